"""How bodies travel by DICOM-zip and gradual-DICOM: into the prearchive, one after the other; what is left over.

Both put what they get into one entry, known by project, study and label, and replace the same image when it
comes again: sending a body once more is safe as long as nobody archives the entry, which
`prevent_auto_commit` sees to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from xnatuploader import xnat
from xnatuploader.records import Status
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words
from xnatuploader.upload.direct.items import Item
from xnatuploader.upload.imports import bodies, confirm, options
from xnatuploader.upload.imports.session import FILTERED, Refused, Session, names_of
from xnatuploader.xnat import prearchive
from xnatuploader.xnat.imports import AnswerLost
from xnatuploader.xnat.prearchive import PrearchiveEntry

logger = logging.getLogger(__name__)

COPIED_BYTES = 16 * 1024 * 1024
"""Where copies are sent, so many bytes of them are made at a time: they may stand in memory."""
ATTEMPTS = 5
PAUSES = (0.5, 1.0, 2.0, 4.0)


def into_prearchive(session: Session, going: Sequence[Item]) -> None:
    """Import by DICOM-zip or gradual-DICOM: into the prearchive, and from there as the destination says."""
    sender = Parts(session)
    left = left_over(session)
    if left is not None:
        sender.entries[left.url] = left
        going = not_in(session, left, going)
    elif session.options.dest.timestamp:
        raise Refused(
            f"{session.options.handler} joins an entry of the prearchive only by study and label, and none at "
            "--dest has those of this session. Leave the time stamp out of --dest."
        )
    if sender.send(going):
        for entry in sender.entries.values():
            session.finish(entry)


def left_over(session: Session) -> PrearchiveEntry | None:
    """Return what an earlier run left of the session in the prearchive, at rest.

    Raises `Refused` where it cannot be gone on with.
    """
    name = "" if session.options.by_headers else session.label
    found = session.run.prearchive.left(session.studies, name) if name else []
    timestamp = session.options.dest.timestamp
    if timestamp:
        folder = session.options.dest.session
        found = [one for one in found if one.timestamp == timestamp and folder in ("", one.folder)]
    if not found:
        return None
    entry = session.run.prearchive.at_rest(found[-1])
    if entry is None:
        raise Refused(
            "XNAT has just archived this session. Run upload again to check it.", Status.INTERRUPTED
        )
    require_rest(session, entry)
    if entry.subject and entry.subject != session.plan.subject:
        raise Refused(
            f"The session waits in the prearchive under subject {entry.subject}, not {session.plan.subject} "
            f"({session.run.prearchive.address(entry)}). Delete it there, or correct Subject.",
            Status.CONFLICT,
        )
    logger.info("%s: going on with what an earlier run left in the prearchive.", session.label)
    return entry


def require_rest(session: Session, entry: PrearchiveEntry) -> None:
    """Raise `Refused` where XNAT is still at an entry."""
    if entry.status.lstrip("_") not in prearchive.RESTING:
        raise Refused(
            f"XNAT is still at this session in the prearchive ({entry.status}). Wait some minutes and run "
            "upload again.",
            Status.INTERRUPTED if session.stopped() else Status.FAILED,
        )


def not_in(session: Session, entry: PrearchiveEntry, going: Sequence[Item]) -> list[Item]:
    """Return the files that an entry does not hold yet; those that it holds count as sent."""
    try:
        held = names_of(session.run.prearchive.files(entry))
    except xnat.RequestFailed:
        return list(going)
    left = []
    for item in going:
        row = item.row
        size = held.get((session.scan_of[row.file], row.filename))
        if size == item.size and session.run.copy is None and not session.options.rename:
            md5 = _md5(session, item)
            session.sent[row.file] = confirm.Sent(row, row.filename, item.size, md5)
            session.count(row.file)
        else:
            left.append(item)
    return left


def _md5(session: Session, item: Item) -> str:
    try:
        return tar_body.digest_of(item.path)
    except OSError:
        return ""


class Parts:
    """The bodies of one session on their way, in sequence."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.options = session.options
        self.entries: dict[str, PrearchiveEntry] = {}
        """Where the bodies ended in the prearchive, by URL."""

    # ---- dividing

    def send(self, going: Sequence[Item]) -> bool:
        """Send all files; what XNAT took stands in `session.sent` then, what it refused is settled.

        False if a stop of the run left some of them.
        """
        self.rows = {item.row.file: item.row for item in going}
        for group in self.groups(going):
            if not self.session.stopped():
                with self.session.outgoing(group) as files:
                    for body in self.bodies_of(files):
                        self._send_body(body)
        return all(file in self.session.sent or file not in self.session.open for file in self.rows)

    def groups(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Yield all files at once; where copies are made, no more than take little room."""
        if self.session.run.copy is None:
            yield items
            return
        held: list[Item] = []
        size = 0
        for item in items:
            if held and size + item.size > min(self.options.part_bytes, COPIED_BYTES):
                yield held
                held, size = [], 0
            held.append(item)
            size += item.size
        if held:
            yield held

    def bodies_of(self, files: Sequence[tar_body.Outgoing]) -> list[bodies.Body]:
        """Divide files into bodies: single ones for gradual-DICOM, else zips."""
        if self.options.handler != options.GRADUAL:
            return bodies.archives(files, self.options.part_bytes, self.options.part_files)
        # A raw body is always called upload.dcm, so that a file with a name of its own travels as a form.
        plain = self.options.rename or self.options.via_cache
        return [bodies.Single(file) if plain else bodies.Form(file) for file in files]

    # ---- one body

    def _send_body(self, body: bodies.Body) -> None:
        if self.session.stopped():
            return
        body.watch = self._watch(body)
        try:
            uris = self._posted(body)
        except tar_body.FileChanged as changed:
            self._leave_out(body, changed)
            return
        except xnat.RequestFailed as failure:
            self._refused(body, failure)
            return
        self._took(body, uris)

    def _posted(self, body: bodies.Body) -> list[str]:
        if not isinstance(body, bodies.Zip):
            return self.post(body)
        try:
            body.make()
            return self.post(body)
        finally:
            body.close()

    def post(self, body: bodies.Body) -> list[str]:
        """Import a body; it is sent again after a lost answer once it was seen where the first one ended."""
        for attempt in range(ATTEMPTS):
            try:
                return self.session.run.service.send(body, self.query(), self._entries)
            except AnswerLost as lost:
                if attempt == ATTEMPTS - 1 or self.pause(PAUSES[attempt]):
                    raise lost.failure from lost
                self._look()
            except xnat.RequestFailed as failure:
                if "concurrent file sends" not in failure.message.lower() or attempt == ATTEMPTS - 1:
                    raise
                self.pause(PAUSES[attempt])
        raise AssertionError("unreachable")

    def pause(self, seconds: float) -> bool:
        """Wait between two attempts; return whether the run is to stop."""
        return self.session.run.stop.wait(seconds * self.session.run.haste)

    def _look(self) -> None:
        """Wait until XNAT is done with what a lost import may have begun. Raises `RequestFailed`."""
        for entry in self._entries():
            self.session.run.prearchive.at_rest(entry)

    def _entries(self) -> list[PrearchiveEntry]:
        """Return what the prearchive has of the session now, oldest first. Raises `RequestFailed`."""
        name = "" if self.options.by_headers else self.session.label
        return self.session.run.prearchive.now(self.session.studies, name)

    def query(self) -> dict[str, str]:
        """Return the parameters of the next import."""
        query = {
            "import-handler": self.options.handler,
            "prevent_auto_commit": "true",
            "SOURCE": "xnatuploader",
            **self.names(),
        }
        if self.options.rename:
            query["rename"] = "true"
        return query

    def names(self) -> dict[str, str]:
        """Return project, subject and session as both handlers take them; nothing where headers decide."""
        if self.options.by_headers:
            return {}
        return {
            "PROJECT_ID": self.session.run.project,
            "SUBJECT_ID": self.session.plan.subject,
            "EXPT_LABEL": self.session.label,
        }

    def _watch(self, body: bodies.Body) -> Callable[[int, int], None]:
        """Return what counts bytes and files of a body; a pass that begins anew counts its bytes again."""
        state = [0, 0]

        def watch(size: int, files: int) -> None:
            begun = state[0] if size >= state[0] else 0
            self.session.run.on_sent(size - begun)
            for file in body.files[state[1] : files]:
                self.session.count(file.file)
            state[:] = [size, max(files, state[1])]

        return watch

    # ---- what came of it

    def _took(self, body: bodies.Body, uris: Sequence[str]) -> None:
        if not uris:
            self.settle(body, Status.FAILED, FILTERED)
            return
        for file in body.files:
            row = self.rows[file.file]
            md5 = body.digests.get(file.name, "")
            self.session.sent[row.file] = confirm.Sent(row, row.filename, file.size, md5)
        for uri in uris:
            self.ended(uri)

    def ended(self, uri: str) -> None:
        """Take in where a body ended. Raises `Refused` where that is not where it was sent."""
        entry = prearchive.entry_of(uri)
        if entry is None:
            raise Refused(f"XNAT put the session somewhere else than it was told: {uri}. Look for it there.")
        if entry.project != self.session.run.project and not self.options.by_headers:
            raise Refused(
                f"XNAT put the session into the prearchive of {entry.project}, because this account may not make "
                f"sessions in {self.session.run.project} ({self.session.run.prearchive.address(entry)}). "
                "Ask an owner of the project for the right, and delete what waits there."
            )
        self.entries.setdefault(entry.url, entry)

    def settle(self, body: bodies.Body, status: Status, message: str) -> None:
        """Settle every file of a body alike."""
        for file in body.files:
            self.session.settle(self.rows[file.file], status, message)

    def _leave_out(self, body: bodies.Body, changed: tar_body.FileChanged) -> None:
        """Send a body again without the file that changed while it went out."""
        rest = [file for file in body.files if file.name != changed.name]
        for file in body.files:
            if file.name == changed.name:
                self.session.settle(self.rows[file.file], Status.FAILED, words.CHANGED)
        for again in self.bodies_of(rest) if rest else ():
            self._send_body(again)

    def _refused(self, body: bodies.Body, failure: xnat.RequestFailed) -> None:
        """Send what XNAT did not take in halves, so that one bad file keeps back no other."""
        may_be_one = failure.kind == "too-large" or failure.status in (400, 415)
        if may_be_one and len(body.files) > 1:
            middle = len(body.files) // 2
            for half in (body.files[:middle], body.files[middle:]):
                for again in self.bodies_of(half):
                    self._send_body(again)
        elif failure.kind == "too-large":
            self.settle(body, Status.FAILED, f"The file is too large to be sent. {failure.message}")
        elif failure.status in (400, 415):
            self.settle(body, Status.FAILED, failure.message)
        else:
            raise failure
