"""How bodies travel by DICOM-zip and gradual-DICOM: into the prearchive, one after the other; what is left over.

Both put what they get into one entry, known by project, study and label, and replace the same image when it
comes again: sending a body once more is safe as long as nobody archives the entry, which
`prevent_auto_commit` sees to.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

from xnatuploader import xnat
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload import files, tar_body
from xnatuploader.upload.imports import bodies, options
from xnatuploader.upload.imports.session import FILTERED, Session, SessionRefused
from xnatuploader.xnat import prearchive
from xnatuploader.xnat.imports import AnswerLost
from xnatuploader.xnat.prearchive import PrearchiveEntry

logger = logging.getLogger(__name__)

_READS_TAR = (1, 8, 3)
"""Since this version DICOM-zip reads tar, too (DicomZipImporter.importTgzFile); SI always did (PrearcImporter.run)."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 4.0)
"""Seconds after each attempt to send a body."""


def into_prearchive(session: Session, going: Sequence[files.Item]) -> None:
    """Import by DICOM-zip or gradual-DICOM: into the prearchive, and from there as the destination says."""
    sender = BodySender(session)
    left = left_over(session)
    if left is not None:
        sender.entries[left.url] = left
        going = not_in(session, left, going)
    elif session.options.dest.timestamp:
        raise SessionRefused(
            f"{session.options.handler} adds only to an entry of the prearchive that has this session's study and "
            "label, and there is none at --dest. Leave the time stamp out of --dest."
        )
    if sender.send(going):
        for entry in sender.entries.values():
            session.finish(entry)


def left_over(session: Session) -> PrearchiveEntry | None:
    """Return what an earlier run left of the session in the prearchive, at rest.

    Raises `SessionRefused` where it cannot be gone on with.
    """
    name = session.name_there
    found = session.run.prearchive.left(session.studies, name) if name else []
    timestamp = session.options.dest.timestamp
    if timestamp:
        folder = session.options.dest.session
        found = [one for one in found if one.timestamp == timestamp and folder in ("", one.folder)]
    if not found:
        return None
    entry = session.run.prearchive.at_rest(found[-1])
    if entry is None:
        raise SessionRefused(
            "XNAT has just archived this session. Run upload again to check it.", Status.INTERRUPTED
        )
    require_rest(session, entry)
    if entry.subject and entry.subject != session.plan.subject:
        raise SessionRefused(
            f"The session waits in the prearchive under subject {entry.subject}, not {session.plan.subject} "
            f"({session.run.prearchive.address(entry)}). Delete it there, or correct Subject.",
            Status.CONFLICT,
        )
    logger.info("%s: going on with what an earlier run left in the prearchive.", session.label)
    return entry


def require_rest(session: Session, entry: PrearchiveEntry) -> None:
    """Raise `SessionRefused` where XNAT still works on an entry."""
    if entry.status.lstrip("_") not in prearchive.RESTING:
        raise SessionRefused(
            f"XNAT is still working on this session in the prearchive ({entry.status}). Wait some minutes and run "
            "upload again.",
            Status.INTERRUPTED if session.rows.stopped else Status.FAILED,
        )


def elsewhere(uri: str) -> SessionRefused:
    """Return the error for a session that ended at another address than it was sent to."""
    return SessionRefused(f"XNAT put the session elsewhere than it was told to: {uri}. Look for it there.")


def not_in(session: Session, entry: PrearchiveEntry, going: Sequence[files.Item]) -> list[files.Item]:
    """Return the files that an entry does not hold yet; those that it holds count as sent."""
    if session.run.context.copy is not None or session.options.rename:
        return list(going)
    try:
        held = session.run.prearchive.files(entry)
    except xnat.RequestFailed:
        return list(going)
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
                return self.run.service.send(body, self.query(), entries)
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
        of_one = failure.kind == "too-large" or failure.status in (400, 415)
        if not (of_one and self.divisible):
            raise failure
        if len(body.included()) > 1:
            for half in tar_body.halves(body.included()):
                self._send_all(half)
        elif failure.kind == "too-large":
            self._record(body, f"The file is too large to be sent. {failure.message}")
        else:
            self._record(body, failure.message)
