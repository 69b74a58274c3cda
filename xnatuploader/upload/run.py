"""The life of an upload: read the workbook, prepare, log in, compare with the server, send, finish, save, say."""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from xnatuploader import errors, paths, xnat
from xnatuploader.config import sheet
from xnatuploader.console import interrupts, progress, report
from xnatuploader.records import Outcome, Status
from xnatuploader.upload import after, offline, plan, preflight, prepare, summary
from xnatuploader.upload.current import CurrentUpload
from xnatuploader.upload.direct import Transfer
from xnatuploader.upload.files import SendContext
from xnatuploader.upload.imports.importer import Importer
from xnatuploader.upload.imports.options import check_project
from xnatuploader.upload.journal import Journal
from xnatuploader.upload.options import RunOptions
from xnatuploader.upload.resource import SendOptions
from xnatuploader.upload.routes import Route
from xnatuploader.upload.state import EarlierRuns, UploadState, take_in
from xnatuploader.upload.workers import Workers
from xnatuploader.workbook import book, lock

logger = logging.getLogger(__name__)


def upload(options: RunOptions) -> report.Result:
    """Send what the workbook lists, and write down what became of every file.

    Raises what keeps the run from beginning (`errors`); from the first request on, an error ends the run with its
    message, and what was found out until then is in the workbook or the journal.
    """
    opened = book.Book.open(options.spreadsheet)
    settings = _settings(opened, options)
    if options.test:
        return offline.test(opened, settings, options)
    with lock.hold(options.spreadsheet) as held:
        earlier = take_in(options.spreadsheet)
        if earlier.outcomes:
            opened = book.Book.open(options.spreadsheet)
        if not earlier.unfinished_at(settings.server, settings.project) and not earlier.waiting:
            counts = prepare.counts_if_nothing_to_do(opened, options)
            if counts is not None:
                return summary.nothing_to_do(counts)
        settings.require_server_and_project()
        _warn_if_open_elsewhere(options.spreadsheet)
        return _send(opened, settings, options, earlier, held.lost)


def _settings(opened: book.Book, options: RunOptions) -> sheet.Config:
    """Return the Configuration with the command line's server, project and `--anonymize` in it."""
    settings = sheet.parse(opened.configuration())
    settings = settings.with_options(options.server, options.project)
    settings = settings.with_fallback_server(options.environ.get("XNAT_HOST", ""))
    if not opened.has_files:
        raise errors.SpreadsheetError(
            f"{options.spreadsheet} has no sheet Files yet, so there is nothing to send: first run "
            f"'xnatuploader scan --spreadsheet {paths.typed(options.spreadsheet)} --dir FOLDER'."
        )
    return replace(settings, anonymize=settings.anonymize or options.anonymize)


def _warn_if_open_elsewhere(spreadsheet: Path) -> None:
    try:
        book.probe(spreadsheet)
    except errors.SpreadsheetLocked as error:
        logger.warning("%s The upload goes on; results are kept in the journal meanwhile.", error)


def _send(
    opened: book.Book,
    settings: sheet.Config,
    options: RunOptions,
    earlier: EarlierRuns,
    lock_lost: threading.Event,
) -> report.Result:
    """Prepare the rows, log in, send, and end the run."""
    target = settings.server, settings.project
    files = prepare.Files(options.folder, opened, options.spreadsheet)
    ready = prepare.prepared(opened, settings, files, options, earlier.waiting)
    if options.only_commits:
        ready = replace(ready, selected=(), failed={})
    gone = prepare.all_missing(ready.selected, files, ready.rows)
    wanted = ready.selected or earlier.unfinished_at(*target) or options.commit or options.refresh
    stopping = interrupts.Interrupts(options.interactive)
    with (
        _stopped_in_time(options.deadline, stopping.stop),
        _login(settings, options, stopping.stop)
        if wanted and not gone
        else contextlib.nullcontext() as server,
        Journal(options.spreadsheet, {"project": settings.project, "server": settings.server}) as written,
    ):
        state = UploadState(options, target, ready.rows, opened.sessions(), written, earlier, lock_lost)
        state.completed, state.released = ready.placed, ready.released
        if server is not None:
            with stopping:
                error = _with_server(settings, files, ready, state, server, stopping)
                return summary.end(state, error, stopping.by_user, ready.selected)
        for row in ready.selected:
            state.record(Outcome(row.file, Status.MISSING, "The file is not on disk."))
        if gone:
            logger.error("%s", gone)
        return summary.end(state, None, False, ready.selected)


@contextlib.contextmanager
def _stopped_in_time(deadline: datetime.datetime | None, stop: threading.Event) -> Iterator[None]:
    """Set `stop` when `--until` or `--max-duration` is over, also while the server is waited for."""
    if deadline is None:
        yield
        return
    left = (deadline - datetime.datetime.now()).total_seconds()
    timer = threading.Timer(max(0.0, left), stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _login(settings: sheet.Config, options: RunOptions, stop: threading.Event) -> xnat.Server:
    return xnat.sign_in(
        settings.server,
        options.environ,
        interactive=options.interactive,
        jobs=options.jobs,
        wait=options.wait_seconds,
        stop=stop,
    )


def _with_server(
    settings: sheet.Config,
    files: prepare.Files,
    ready: prepare.Prepared,
    state: UploadState,
    server: xnat.Server,
    stopping: interrupts.Interrupts,
) -> errors.XnatUploaderError | None:
    """Do everything that needs the server; return the error that ended it, None if it came to its end."""
    try:
        project = server.open_project(
            settings.project, lambda: {one.xsi_type for one in plan.build(*ready.as_sent()).sessions}
        )
        if state.options.importing is not None:
            check_project(state.options.importing, project, settings.project)
        current = CurrentUpload(settings, files, ready, state, server, project, stopping)
        _send_all(current, preflight.clear(current))
    except errors.XnatUploaderError as error:
        return error
    except xnat.RequestFailed as failed:
        return None if stopping.stop.is_set() else errors.ServerUnreachable(failed.message)
    except Exception as fault:
        logger.debug("A fault of the program:", exc_info=True)
        return errors.InternalError.of(fault)
    return None


def _send_all(current: CurrentUpload, cleared: preflight.Cleared) -> None:
    """Send what may be sent, then do what was asked for besides. Raises the error that ended it."""
    planned = cleared.sessions
    noun, pieces = "scans", sum(len(session.scans) for session in planned)
    if current.options.importing is not None:
        noun, pieces = "sessions", len(planned)
    with progress.shown() as shown:
        piece_bar = shown.bar(noun.capitalize(), f" {noun}", pieces)
        workers = Workers(current, piece_bar, shown.bar("Files", " files", 0))
        context = _send_context(current, cleared, workers.file_bar.advance)
        route = _route(current, cleared, context)
        finisher = after.Finisher(
            current,
            lambda chosen: Importer(context, chosen),
            lambda label: route.session_id(label) or cleared.session_ids.get(label, ""),
        )
        workers.send(list(route.work(planned)), route, finisher.finish_session)
        labels = {session.session_label for session in planned}
        workers.run_beside(lambda: finisher.finish_leftovers(labels), "leftovers")
    if workers.fatal is not None:
        raise workers.fatal
    finisher.after_all()


def _send_context(
    current: CurrentUpload, cleared: preflight.Cleared, on_files: Callable[[int], None]
) -> SendContext:
    return SendContext(
        current.server,
        current.project,
        current.files.path,
        on_outcome=current.state.record,
        on_sent=current.state.sent,
        on_files=on_files,
        on_session=current.state.touch,
        on_scan=current.state.made_scan,
        check=prepare.image_check(current.ready),
        copy=current.ready.deidentifier.copy if current.ready.deidentifier else None,
        stop=current.stopping.stop,
        subjects=cleared.subjects,
    )


def _route(current: CurrentUpload, cleared: preflight.Cleared, context: SendContext) -> Route:
    chosen = current.options.importing
    if chosen is None:
        return Transfer(
            context,
            SendOptions(overwrite=current.options.overwrite),
            planned=cleared.sessions,
            could_add=any(row.status is Status.SUCCESS for row in current.state.rows),
        )
    if chosen.by_headers:
        logger.warning(
            "--dest-by-headers: XNAT decides by the DICOM headers where sessions go, and the labels in the "
            "sheet are not used."
        )
    for session in cleared.sessions:
        current.state.importing(session.session_label)
    return Importer(context, chosen)
