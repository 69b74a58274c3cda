"""What the sessions of one run share: the connection, the prearchive, what was found out, the way to go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from xnatuploader import errors, xnat
from xnatuploader.records import Outcome, Row, SessionPlan, Status
from xnatuploader.upload.direct.items import Item
from xnatuploader.upload.direct.run import NO_SUBJECTS
from xnatuploader.upload.imports import confirm, inbox, options, packages, parts, si
from xnatuploader.upload.imports.session import EXISTS, Session
from xnatuploader.xnat.imports import ImportService
from xnatuploader.xnat.prearchive import NotArchived, Prearchive, PrearchiveEntry

logger = logging.getLogger(__name__)

Way = Callable[[Session, Sequence[Item]], None]
WAYS: dict[str, Way] = {
    options.ZIP: parts.into_prearchive,
    options.GRADUAL: parts.into_prearchive,
    options.SI: si.by_si,
    options.XAR: packages.by_xar,
    options.INBOX: inbox.by_inbox,
}
WAITS = "Waits in XNAT's prearchive"


def _nothing(count: int) -> None:
    return None


class Importer:
    """Sends sessions to one project through XNAT's import service; `send_session` may run in many threads.

    The arguments are those of `transfer.Transfer`. Rows come as they are sent: with de-identification
    their UIDs are those of the copies. `haste` scales the pauses between attempts, for tests.
    Raises `UsageError` where the options do not fit this run.
    """

    def __init__(
        self,
        connection: xnat.Server,
        project: str,
        resolve: Callable[[Row], Path],
        chosen: options.Options | None = None,
        *,
        on_outcome: Callable[[Outcome], None],
        on_sent: Callable[[int], None] = _nothing,
        on_files: Callable[[int], None] = _nothing,
        check: Callable[[Row, Path], Outcome | None] | None = None,
        copy: Callable[[Row, Path], bytes | Path | Outcome] | None = None,
        stop: threading.Event | None = None,
        subjects: Mapping[str, str] = NO_SUBJECTS,
        haste: float = 1.0,
    ) -> None:
        self.server = connection
        self.project = project
        self.resolve = resolve
        self.options = chosen or options.Options()
        self.on_outcome = on_outcome
        self.on_sent = on_sent
        self.on_files = on_files
        self.check = check
        self.copy = copy
        self.stop = stop or threading.Event()
        self.haste = haste
        self.service = ImportService(connection, self.stop, via_cache=self.options.via_cache)
        self.prearchive = Prearchive(connection, project, self.stop)
        self.way = WAYS[self.options.handler]
        self._subjects = dict(subjects)
        self._ids: dict[str, str] = {}
        self._over: errors.XnatUploaderError | None = None
        self._refuse()

    def _refuse(self) -> None:
        if self.options.handler != options.INBOX:
            return
        if self.copy is not None:
            raise errors.UsageError(
                "With inbox XNAT imports the originals on its disk, so nothing is de-identified. Use DICOM-zip with "
                "--anonymize."
            )
        parts_there = PurePosixPath(self.options.inbox_folder.replace("\\", "/")).parts
        if self.project not in parts_there:
            raise errors.UsageError(
                f"XNAT takes from its inbox only what lies in <inbox>/{self.project}/..., and --dest is "
                f"{self.options.inbox_folder}. Correct --dest."
            )

    # ---- for the caller

    def send_session(self, plan: SessionPlan) -> None:
        """Import one session and settle every one of its rows.

        Raises what ends the run (`XnatUploaderError`); rows that are open then are `interrupted`. Every later
        call raises the same at once.
        """
        session = Session(self, plan)
        try:
            if self._over is not None:
                raise self._over
            session.send()
        except errors.XnatUploaderError as trouble:
            self._over = trouble
            raise
        finally:
            session.settle_rest()

    def commit_session(self, plan: SessionPlan) -> bool:
        """Archive what waits in the prearchive of a session whose rows were all sent; False if nothing does.

        Every row is settled anew if something did. Raises what ends the run.
        """
        session = Session(self, plan)
        try:
            waiting = self.prearchive.now(session.studies, plan.session_label)
            entry = self.prearchive.at_rest(waiting[-1]) if waiting else None
        except xnat.RequestFailed as failure:
            logger.warning("%s: the prearchive could not be listed. %s", plan.session_label, failure.message)
            return False
        if entry is None:
            return False
        try:
            self._commit(session, entry)
        except (NotArchived, xnat.RequestFailed) as trouble:
            session.settle_all(session.open.values(), Status.FAILED, str(trouble))
        finally:
            session.settle_rest()
        return True

    def _commit(self, session: Session, entry: PrearchiveEntry) -> None:
        for row in list(session.open.values()):
            size = int(row.size) if row.size.isdecimal() else -1
            session.sent[row.file] = confirm.Sent(row, row.filename, size, row.md5.lower())
        overwrite = self.options.overwrite
        existing = self.server.session_id(self.project, session.label)
        if existing:
            if overwrite == "none":
                message = f"{EXISTS} It waits in the prearchive ({self.prearchive.address(entry)})."
                session.settle_all(session.open.values(), Status.CONFLICT, message)
                return
            session.before = frozenset(self.server.session_files(existing))
        self.prearchive.build(entry)
        self.prearchive.archive(entry, overwrite=overwrite == "delete", pipelines=self.options.pipelines)
        session.confirm(session.label)

    def session_id(self, session_label: str) -> str:
        """Return the server's ID of a session that this run made or found, '' if it has not come to it."""
        return self._ids.get(session_label, "")

    # ---- for the sessions

    def subject_id(self, label: str) -> str:
        """Return the ID of a subject, which is made where the project has none. Raises `RequestFailed`."""
        if label not in self._subjects:
            self._subjects[label] = self.server.create_subject(self.project, label)
        return self._subjects[label]

    def know(self, label: str, identifier: str) -> None:
        """Remember a session's ID."""
        if identifier:
            self._ids[label] = identifier

    def waits(self, entry: PrearchiveEntry) -> str:
        """Return the sentence for what waits in the prearchive because that was asked for."""
        return f"{WAITS} ({self.prearchive.address(entry)})."
