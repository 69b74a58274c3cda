"""How bodies travel by DICOM-zip and gradual-DICOM: into the prearchive, one after the other; what is left over.

Both put what they get into one entry, known by project, study and label, and replace the same image when it
comes again: sending a body once more is safe as long as nobody archives the entry, which
`prevent_auto_commit` sees to.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterable, Sequence

from xnatuploader import xnat
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload import files, tar_body
from xnatuploader.upload.imports import bodies, options
from xnatuploader.upload.imports.session import FILTERED, Session, SessionRefused
from xnatuploader.xnat import prearchive
from xnatuploader.xnat.imports import AnswerLost, Entries, about_session
from xnatuploader.xnat.prearchive import PrearchiveEntry

logger = logging.getLogger(__name__)

_READS_TAR = (1, 8, 3)
"""Since this version DICOM-zip reads tar, too (DicomZipImporter.importTgzFile); SI always did (PrearcImporter.run)."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 4.0)
"""Seconds after each attempt to send a body."""


def into_prearchive(session: Session, going: Sequence[files.Item]) -> None:
    """Import by DICOM-zip or gradual-DICOM: into the prearchive, and from there as the destination says."""
    sender = BodySender(session)
    if session.left is not None:
        sender.entries[session.left.url] = session.left
        going = not_in(session, session.left, going)
    elif session.options.dest.timestamp:
        raise SessionRefused(
            f"{session.options.handler} adds only to an entry of the prearchive that has this session's study and "
            "label, and there is none at --dest. Leave the time stamp out of --dest."
        )
    if sender.send(going):
        for entry in sender.entries.values():
            session.finish(entry)


def elsewhere(uri: str) -> SessionRefused:
    """Return the error for a session that ended at another address than it was sent to."""
    return SessionRefused(f"XNAT put the session elsewhere than it was told to: {uri}. Look for it there.")


def not_in(session: Session, entry: PrearchiveEntry, going: Sequence[files.Item]) -> list[files.Item]:
    """Return the files that an entry does not hold yet; those that it holds count as sent."""
    if session.run.context.copy is not None or session.options.rename:
        return list(going)
    held = session.held_in(entry)
    left = []
    for item in going:
        row = item.row
        if held.get((session.scan_of[row.file], row.filename)) != item.size:
            left.append(item)
            continue
        local = files.fingerprint(item, session.run.context)
        session.took(row, item.size, "" if isinstance(local, Outcome) else local.md5)
        session.rows.count(row.file)
    return left


class BodySender:
    """The bodies of one session on their way, in sequence."""

    one_body = False
    """All files go in one body."""
    divisible = True
    """What XNAT refuses is sent in halves, so that one bad file does not keep others back."""
    tells_end = False
    """XNAT says when an import in the background has ended."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.run = session.run
        self.options = session.options
        self.entries: dict[str, PrearchiveEntry] = {}
        """Where the bodies ended in the prearchive, by URL."""
        self.row_of: dict[str, Row] = {}
        """The rows of what is sent, by `Row.file`."""

    # ---- dividing

    def send(self, going: Sequence[files.Item]) -> bool:
        """Send all files; what XNAT took is in `session.sent` then, what it refused is recorded.

        False if a stop of the run left some of them.
        """
        self.row_of = {item.row.file: item.row for item in going}
        for group in self._groups(going):
            if not self.session.rows.stopped:
                with self.session.rows.outgoing(group, self.session.name_of) as sent:
                    self._send_all(sent)
        return all(file in self.session.sent or file not in self.session.rows.open for file in self.row_of)

    def _groups(self, items: Sequence[files.Item]) -> Iterable[Sequence[files.Item]]:
        if self.one_body:
            return [items]
        return files.batches(items, self.run.context, self.options.part_bytes)

    def bodies_of(self, sent: Sequence[tar_body.Outgoing]) -> list[tar_body.Part]:
        """Divide files into bodies: single ones for gradual-DICOM, else archives."""
        if self.options.handler != options.GRADUAL:
            tar = not self.run.server.is_older_than(*_READS_TAR)
            limits = self.options.part_bytes, self.options.part_files
            if self.one_body:
                limits = sum(file.size for file in sent) + 1, len(sent) + 1
            return bodies.archives(sent, *limits, tar=tar)
        # A raw body is always called upload.dcm, so that a file with a name of its own travels as a form.
        plain = self.options.rename or self.options.via_cache
        return [bodies.Single(file) if plain else bodies.Form(file) for file in sent]

    # ---- one body

    def _send_all(self, sent: Sequence[tar_body.Outgoing]) -> None:
        if sent:
            for body in self.bodies_of(sent):
                self._send(body)

    def _send(self, body: tar_body.Part) -> None:
        if self.session.rows.stopped:
            return
        body.watch = self.session.rows.watch(body.files)
        try:
            with body.ready():
                try:
                    uris = self._post(body)
                finally:
                    self._changed(body, body.left_out)
        except tar_body.FileChanged as changed:
            self._changed(body, (changed.name,))
            self._send_all([file for file in body.included() if file.name != changed.name])
        except xnat.RequestFailed as failure:
            self._refused(body, failure)
        else:
            self.took(body, uris)

    def _post(self, body: tar_body.Part) -> list[str]:
        """Import a body; it is sent again after a lost answer once it was seen where the first one ended."""
        for attempt, pause in enumerate(PAUSES, 1):
            last = attempt == len(PAUSES)
            entries = None if self.tells_end else self.session.entries
            try:
                send = functools.partial(self.import_once, body, entries)
                return prearchive.while_busy(send, self.run.context.stop)
            except AnswerLost as lost:
                stopped = self.run.context.stop.wait(pause)
                uris = self.became_of(body)
                if uris:
                    return uris
                if last or stopped:
                    raise lost.failure from lost
                for entry in entries() if entries is not None else ():
                    self.run.prearchive.at_rest(
                        entry
                    )  # the body may be in it, and XNAT still working on that
            except xnat.RequestFailed as failure:
                self.look_at_refusal(failure)
                if last or "concurrent file sends" not in failure.message.lower():
                    raise
                self.run.context.stop.wait(pause)
        raise AssertionError("unreachable")

    def import_once(self, body: tar_body.Part, entries: Entries | None) -> list[str]:
        """Import a body; return where it ended. Raises as `ImportService.send`."""
        return self.run.service.send(body, self.query(), entries)

    def became_of(self, body: tar_body.Part) -> list[str]:
        """Return where an import whose answer was lost ended, nothing to send it again: here that does no harm."""
        return []

    def look_at_refusal(self, failure: xnat.RequestFailed) -> None:
        """Raise where a refusal is not to be looked at any further."""

    def query(self) -> dict[str, str]:
        """Return the parameters of the next import."""
        query = {
            "import-handler": self.options.handler,
            "prevent_auto_commit": "true",
            "SOURCE": "xnatuploader",
            **self.session.names(),
        }
        if self.options.rename:
            query["rename"] = "true"
        return query

    # ---- what came of it

    def took(self, body: tar_body.Part, uris: Sequence[str]) -> None:
        """Note that XNAT has taken a body, which ended at `uris`. Raises `SessionRefused`."""
        if not uris:
            self._record(body, FILTERED)
            return
        self.note(body)
        for uri in uris:
            self.ended(uri)

    def note(self, body: tar_body.Part) -> None:
        """Note the files of a body as sent."""
        for file in body.included():
            self.session.took(self.row_of[file.file], file.size, body.digests.get(file.name, ""))

    def ended(self, uri: str) -> None:
        """Take in where a body ended. Raises `SessionRefused` where that is not where it was sent."""
        entry = prearchive.entry_of(uri)
        if entry is None:
            raise elsewhere(uri)
        if entry.project != self.run.project and not self.options.by_headers:
            raise SessionRefused(
                f"XNAT put the session into the prearchive of {entry.project}, because this account may not make "
                f"sessions in {self.run.project} ({self.run.prearchive.address(entry)}). Ask an owner of the "
                "project for the right, and delete what waits there."
            )
        self.entries.setdefault(entry.url, entry)

    def _changed(self, body: tar_body.Part, names: Collection[str]) -> None:
        rows = [self.row_of[file.file] for file in body.files if file.name in names]
        self.session.rows.record_all(rows, Status.FAILED, files.CHANGED)

    def _record(self, body: tar_body.Part, message: str) -> None:
        rows = [self.row_of[file.file] for file in body.included()]
        self.session.rows.record_all(rows, Status.FAILED, message)

    def _refused(self, body: tar_body.Part, failure: xnat.RequestFailed) -> None:
        """Send what XNAT did not take in halves, or record why it did not take one file."""
        of_files = failure.kind == "too-large" or failure.status in (400, 415)
        if not (of_files and self.divisible) or about_session(failure):
            raise failure
        if len(body.included()) > 1:
            for half in tar_body.halves(body.included()):
                self._send_all(half)
        elif failure.kind == "too-large":
            self._record(body, f"The file is too large to be sent. {failure.message}")
        else:
            self._record(body, failure.message)
