"""How a XAR travels: one archive for the whole session, its subject made first, straight into the archive."""

from __future__ import annotations

from collections.abc import Sequence

from xnatuploader.records import Status
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words
from xnatuploader.upload.direct.items import Item
from xnatuploader.upload.imports import bodies, confirm, options, xar
from xnatuploader.upload.imports.session import Refused, Session
from xnatuploader.xnat import catalogs
from xnatuploader.xnat.imports import AnswerLost

_ATTEMPTS = 3
_PAUSES = (0.5, 1.0, 2.0)


def by_xar(session: Session, going: Sequence[Item]) -> None:
    """Import a session as a XAR. Raises `Refused`, `RequestFailed`."""
    if session.plan.exists:
        raise Refused("XAR cannot add to a session that exists. Use DICOM-zip or SI for it.", Status.CONFLICT)
    run = session.run
    subject = run.subject_id(session.plan.subject)
    left = list(going)
    with session.outgoing(left) as files:
        while files:
            package = _Package(session, subject, files)
            try:
                package.body.make()
                package.send()
                break
            except tar_body.FileChanged as changed:
                for file in files:
                    if file.name == changed.name:
                        session.settle(package.rows[file.file], Status.FAILED, words.CHANGED)
                files = [file for file in files if file.name != changed.name]
            finally:
                package.body.close()
    if session.sent:
        # The catalogs came without MD5s, so that those compared next are of what lies on XNAT's disk.
        catalogs.refresh(run.server, catalogs.session_resource(run.project, session.label), catalogs.REPAIR)
        session.confirm(session.label)


class _Package:
    """One attempt to send a session's XAR."""

    def __init__(self, session: Session, subject: str, files: Sequence[tar_body.Outgoing]) -> None:
        self.session = session
        self.files = files
        rows = {row.file: row for row in session.open.values()}
        self.rows = {file.file: rows[file.file] for file in files}
        listed = [(session.scan_of[file.file], self.rows[file.file]) for file in files]
        rest = xar.members(session.plan, session.run.project, subject, listed)
        self.body = bodies.Zip([*files, *rest])
        self.body.watch = self._watch
        self._state = [0, 0]

    def _watch(self, size: int, files: int) -> None:
        self.session.run.on_sent(max(0, size - self._state[0]) if size >= self._state[0] else size)
        for file in self.body.files[self._state[1] : files]:
            if file.file:
                self.session.count(file.file)
        self._state = [size, max(files, self._state[1])]

    def send(self) -> None:
        """Send it; after a lost answer look whether the session is there before it is sent again."""
        run = self.session.run
        for attempt in range(_ATTEMPTS):
            try:
                run.service.send(self.body, {"import-handler": options.XAR})
                break
            except AnswerLost as lost:
                stopped = run.stop.wait(_PAUSES[attempt] * run.haste)
                if run.server.session_id(run.project, self.session.label):
                    break
                if stopped or attempt == _ATTEMPTS - 1:
                    raise lost.failure from lost
        for file in self.files:
            row = self.rows[file.file]
            md5 = self.body.digests.get(file.name, "")
            self.session.sent[row.file] = confirm.Sent(row, row.filename, file.size, md5)
