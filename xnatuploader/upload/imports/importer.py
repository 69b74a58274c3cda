"""Sends or archives one session after the other; which handler does what."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from xnatuploader import errors, xnat
from xnatuploader.records import SessionPlan, Status
from xnatuploader.upload import files
from xnatuploader.upload.imports import inbox, options, parts, si, xar
from xnatuploader.upload.imports.session import Session, SessionRefused
from xnatuploader.upload.imports.shared import WAITS, ImportRun
from xnatuploader.upload.routes import Route, Work
from xnatuploader.xnat import prearchive

logger = logging.getLogger(__name__)

HANDLERS: dict[str, Callable[[Session, Sequence[files.Item]], None]] = {
    options.ZIP: parts.into_prearchive,
    options.GRADUAL: parts.into_prearchive,
    options.SI: si.by_si,
    options.XAR: xar.by_xar,
    options.INBOX: inbox.by_inbox,
}


class Importer(Route):
    """Sends sessions to one project through XNAT's import service; `send_session` may run in many threads.

    Rows come as they are sent: with de-identification their UIDs are those of the copies. Raises `UsageError` where
    the options do not fit this run.
    """

    noun = "sessions"
    steps_after = False

    def __init__(self, context: files.SendContext, chosen: options.ImportOptions) -> None:
        super().__init__()
        self._run = ImportRun(context, chosen)
        if chosen.handler != options.INBOX:
            return
        if context.copy is not None:
            raise errors.UsageError(
                "With inbox XNAT imports the originals on its disk, so nothing is de-identified. Use DICOM-zip with "
                "--anonymize."
            )
        if context.project not in PurePosixPath(chosen.inbox_folder.replace("\\", "/")).parts:
            raise errors.UsageError(
                f"XNAT takes from its inbox only what is in <inbox>/{context.project}/..., and --dest is "
                f"{chosen.inbox_folder}. Correct --dest."
            )

    def work(self, planned: Sequence[SessionPlan]) -> Iterator[Work]:
        """As in `Route`."""
        for session in planned:
            yield Work(session, session.scans, functools.partial(self.send_session, session))

    def session_id(self, session_label: str) -> str:
        """As in `Route`."""
        return self._run.ids.get(session_label, "")

    # ---- sending

    def send_session(self, plan: SessionPlan) -> None:
        """Import one session and record every one of its rows.

        Raises what ends the run (`XnatUploaderError`); rows that are open then are `interrupted`. Every later
        call raises the same at once.
        """
        session = Session(self._run, plan)
        with self.ending(session.interrupt):
            self._send(session)

    def _send(self, session: Session) -> None:
        items = session.examined()
        try:
            session.refuse()
            session.look_for_earlier()
            going = session.not_there_yet(items)
            if going and not session.rows.stopped:
                HANDLERS[self._run.options.handler](session, going)
        except SessionRefused as refusal:
            session.recognise()
            session.rows.record_all(session.travelling(), refusal.status, str(refusal))
        except prearchive.NotArchived as error:
            session.recognise()
            under_way = error.busy or not prearchive.rests(error.status)
            status = Status.INTERRUPTED if session.rows.stopped and under_way else Status.FAILED
            session.rows.record_all(session.travelling(), status, str(error))
        except xnat.RequestFailed as failure:
            session.recognise()
            session.rows.fail(session.travelling(), failure)

    # ---- what waits

    def commit_session(self, plan: SessionPlan) -> bool:
        """Archive what waits in the prearchive of a session whose rows were all sent; False if nothing does.

        What is said to wait and has been archived meanwhile is only checked. Every row is recorded anew if something
        did. Raises what ends the run.
        """
        session = Session(self._run, plan)
        try:
            waiting = self._run.prearchive.now(session.studies, session.label)
            entry = self._run.prearchive.at_rest(waiting[-1]) if waiting else None
            told = any(row.message.startswith(WAITS) for row in plan.rows)
            if entry is None and not (told and self._run.find(session.label)):
                return False
        except xnat.RequestFailed as failure:
            logger.warning("%s: the prearchive could not be listed. %s", session.label, failure.message)
            return False
        for row in session.rows.open.values():
            session.took(row, files.sent_size(row), row.md5.lower())
        try:
            if entry is None:  # somebody has archived it, or a run that was killed then
                session.confirm(session.label)
            else:
                session.require_subject(entry)
                session.finish(entry)
        except SessionRefused as refusal:
            session.rows.record_all(session.rows.open.values(), refusal.status, str(refusal))
        except (prearchive.NotArchived, xnat.RequestFailed) as error:
            # Also when the run was stopped: a session with interrupted rows is not archived by the next run either.
            session.rows.record_all(session.rows.open.values(), Status.FAILED, str(error))
        finally:
            session.interrupt()
        return True
