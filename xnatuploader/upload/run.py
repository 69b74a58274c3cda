"""One upload from the login to the last status: preparing, looking at the server, sending, saving.

The steps and their order are those of the contract's section on the upload. What happens inside one scan is
`transfer`'s trade; here it is decided which scans go when, and nothing that was found out is lost.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xnatuploader import errors, xnat
from xnatuploader.config.sheet import Config
from xnatuploader.console import interrupts, progress, report
from xnatuploader.dicom import reader
from xnatuploader.records import Outcome, Row, SessionPlan, Status
from xnatuploader.upload import (
    after,
    direct,
    imports,
    journal,
    plan,
    preflight,
    prepare,
    results,
    routes,
    summary,
)
from xnatuploader.upload.state import Asked, Ledger
from xnatuploader.workbook.book import Book
from xnatuploader.xnat import signin

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 240.0
"""How often the workbook is brought up to date while a long run lasts."""

SECONDS_BEFORE_A_FORECAST = 60.0
"""How long files have to be on their way before their pace tells how long the rest takes."""

TAKEN_OVER = (
    "Another run took this spreadsheet over, so this one stops. Its results are in the journal beside the "
    "spreadsheet; run upload again when the other run has ended."
)


def send(
    opened: Book, settings: Config, files: prepare.Files, asked: Asked, taken: results.TakenIn
) -> report.Result:
    """Run the whole upload; whatever happens, what was found out stands in the journal or the workbook."""
    ready = prepare.prepared(
        opened,
        settings,
        files,
        verify=asked.verify,
        overwrite=asked.overwrite,
        anonymize=asked.anonymize,
        waiting=taken.waiting,
    )
    if asked.only_commits:
        ready = replace(ready, selected=(), failed={})
    selected = ready.selected
    session_rows = opened.sessions()
    pending = taken.unfinished_at(asked.server, asked.project)
    gone = prepare.all_missing(selected, files, ready.rows)
    only_save = not (selected or pending or asked.commit or asked.refresh)
    stopping = interrupts.Interrupts(asked.interactive)
    with (
        _in_time(asked, stopping.stop),
        contextlib.nullcontext() if gone or only_save else _connect(asked, stopping.stop) as connection,
        journal.Journal.open(
            asked.spreadsheet, {"project": asked.project, "server": asked.server}
        ) as written,
    ):
        released = frozenset(
            row.file for row in selected if not row.upload and row.status is not Status.SUCCESS
        )
        ledger = Ledger(
            asked,
            ready.rows,
            ready.placed,
            session_rows,
            written,
            released,
            dict(taken.waiting),
            unfinished=pending,
            elsewhere=taken.unfinished_elsewhere(asked.server, asked.project),
        )
        if connection is not None:
            return _with_server(ledger, connection, stopping, ready, files, settings)
        for row in selected:
            ledger.record(Outcome(row.file, Status.MISSING, "The file is not on disk."))
        if gone:
            logger.error("%s", gone)
        return summary.end(ledger, None, False, selected)


def _with_server(
    ledger: Ledger,
    connection: xnat.Server,
    stopping: interrupts.Interrupts,
    ready: prepare.Prepared,
    files: prepare.Files,
    settings: Config,
) -> report.Result:
    asked = ledger.asked
    trouble: errors.XnatUploaderError | None = None
    with stopping:
        try:
            project = connection.open_project(asked.project)
            if asked.importing is not None:
                imports.check_project(asked.importing, project, asked.project)
            run = _Run(ledger, connection, project, ready, files, stopping)
            run.send(run.plan(settings))
            run.finisher.after_all()
        except errors.XnatUploaderError as caught:
            trouble = caught
        except xnat.RequestFailed as failed:
            if not stopping.stop.is_set():
                trouble = errors.ServerUnreachable(failed.message)
        except Exception as fault:
            logger.debug("A fault of the program:", exc_info=True)
            trouble = errors.InternalError.of(fault)
        return summary.end(ledger, trouble, stopping.by_user, ready.selected)


@contextlib.contextmanager
def _in_time(asked: Asked, stop: threading.Event) -> Iterator[None]:
    """Set `stop` when `--until` or `--max-duration` is over, also while the server is waited for."""
    if asked.deadline is None:
        yield
        return
    left = (asked.deadline - datetime.datetime.now()).total_seconds()
    timer = threading.Timer(max(0.0, left), stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connect(asked: Asked, stop: threading.Event) -> xnat.Server:
    return signin.connect(
        asked.server,
        asked.environ,
        interactive=asked.interactive,
        jobs=asked.jobs,
        wait=asked.wait_seconds,
        stop=stop,
    )


class _Run:
    """The part of an upload that needs the server."""

    def __init__(
        self,
        ledger: Ledger,
        connection: xnat.Server,
        project: str,
        ready: prepare.Prepared,
        files: prepare.Files,
        stopping: interrupts.Interrupts,
    ) -> None:
        self.ready = ready
        self.ledger = ledger
        self.asked = ledger.asked
        self.connection = connection
        self.project = project
        self.files = files
        self.stopping = stopping
        self.fatal: errors.XnatUploaderError | None = None
        self.finisher = after.Finisher(
            ledger, connection, project, ready, stopping, self._importer, self._session_id
        )
        self.there: Sequence[xnat.RemoteSession] = ()
        """The sessions of the project before anything was created."""
        self.subjects: Mapping[str, str] = {}
        """Likewise its subjects, label to ID."""
        self.forecast = signin.Forecast(connection.login_until)
        self.original = {row.file: row for row in ready.selected} if ready.disguise else {}

    # ---- before anything is created

    def plan(self, settings: Config) -> tuple[SessionPlan, ...]:
        """Plan, and compare every planned session with what the project holds."""
        rows, selected = self.ready.as_sent()
        planned = plan.build(rows, selected)
        for outcome in (*self.ready.failed.values(), *planned.set_aside):
            self.ledger.record(outcome)
        self.subjects = self.connection.subjects(self.project)
        self.there = there = self.connection.sessions(self.project)
        listed: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            listed[row.session_label].append(row)
        join = {row.session_label for row in self.ledger.session_rows if row.join}
        labels_there = [remote.label for remote in there]
        going = []
        advised: list[str] = []
        for session in planned.sessions:
            free = self._next_free(session.session_label, [*labels_there, *advised], listed, settings)
            self.stopping.ask_if_wanted()
            if self.stopping.stop.is_set():
                break
            judged = preflight.judge(
                session,
                listed[session.session_label],
                there,
                lambda remote: self.connection.session_uid(self.project, remote),
                lambda remote: self.connection.scans(remote.id),
                join=session.session_label in join,
                plain_uids=self._plain_uids(listed[session.session_label]),
                next_free=free,
            )
            if judged.conflict:
                if free and free in judged.conflict:
                    advised.append(free)  # the next one is not told to take the same
                self._keep_back(session, judged.conflict)
                continue
            if judged.warning:
                self.ledger.warn(session.session_label, judged.warning)
            going.append(judged.session)
        return tuple(going)

    def _plain_uids(self, listed: Sequence[Row]) -> frozenset[str]:
        """Return the studies as they are before de-identification: found there, they were sent without it."""
        if self.ready.disguise is None:
            return frozenset()
        files = {row.file for row in listed}
        return frozenset(row.study_instance_uid for row in self.ready.rows if row.file in files)

    def _next_free(
        self, label: str, there: Sequence[str], listed: Mapping[str, Sequence[Row]], settings: Config
    ) -> str:
        if "Visit" not in settings.session_label.fields:
            return ""
        return preflight.next_free_label(label, [*there, *listed])

    def _keep_back(self, session: SessionPlan, conflict: str) -> None:
        rows = [row for scan in session.scans for resource in scan.resources for row in resource.rows]
        not_sent = f"{report.plural(len(rows), 'file')} {'is' if len(rows) == 1 else 'are'} not sent."
        logger.warning("%s: %s %s", session.session_label, not_sent, conflict)
        for row in rows:
            self.ledger.record(Outcome(row.file, Status.CONFLICT, conflict))

    # ---- sending

    def send(self, planned: Sequence[SessionPlan]) -> None:
        """Send all work, `jobs` pieces at a time, and finish each session after its last piece."""
        self.plans = {session.session_label: session for session in planned}
        self.route = self._route()
        pieces = list(self.route.work(planned))
        self.work_left = Counter(piece.session.session_label for piece in pieces)
        self.files_in_all = sum(piece.files for piece in pieces)
        waiting: queue.SimpleQueue[routes.Work] = queue.SimpleQueue()
        for piece in pieces:
            waiting.put(piece)
        self.sending_since = time.monotonic()
        with progress.shown() as shown:
            noun = self.route.noun
            self.work_bar = shown.bar(noun.capitalize(), f" {noun}", len(pieces))
            self.file_bar = shown.bar("Files", " files", 0)
            threads = [
                threading.Thread(target=self._work, args=(waiting,), name=f"{noun}-{number}", daemon=True)
                for number in range(min(self.asked.jobs, max(1, len(pieces))))
            ]
            for thread in threads:
                thread.start()
            self._watch(threads)
            if not self.stopping.stop.is_set():
                leftovers = threading.Thread(target=self._finish_leftovers, name="leftovers", daemon=True)
                leftovers.start()
                self._watch([leftovers])
        if self.fatal is not None:
            raise self.fatal

    def _session_id(self, label: str) -> str:
        """Return XNAT's ID of a session, '' if it has none."""
        before = (remote.id for remote in self.there if remote.label == label)
        return self.route.session_id(label) or next(before, "")

    def _route(self) -> routes.Route:
        if self.asked.importing is None:
            return routes.Direct(self._transfer())
        if self.asked.importing.by_headers:
            logger.warning(
                "--dest-by-headers: XNAT decides by the DICOM headers where sessions go, and the labels in the "
                "sheet are not used."
            )
        for label in self.plans:
            self.ledger.importing(label)
        return routes.Imports(self._importer(self.asked.importing))

    def _importer(self, chosen: imports.Options) -> imports.Importer:
        return imports.Importer(
            self.connection,
            self.project,
            self.files.path,
            chosen,
            on_outcome=self.ledger.record,
            on_sent=self._on_sent,
            on_files=self._on_files,
            check=self._check,
            copy=self.ready.disguise.copy if self.ready.disguise else None,
            stop=self.stopping.stop,
            subjects=self.subjects,
        )

    def _transfer(self) -> direct.Transfer:
        return direct.Transfer(
            self.connection,
            self.project,
            self.files.path,
            direct.Options(overwrite=self.asked.overwrite, verify=self.asked.verify),
            on_outcome=self.ledger.record,
            on_sent=self._on_sent,
            on_files=self._on_files,
            on_session=self.ledger.touch,
            on_scan=self.ledger.made_scan,
            check=self._check,
            copy=self.ready.disguise.copy if self.ready.disguise else None,
            stop=self.stopping.stop,
            subjects=self.subjects,
            planned=tuple(self.plans.values()),
            could_add=any(row.status is Status.SUCCESS for row in self.ledger.rows),
        )

    def _on_sent(self, count: int) -> None:
        with self.ledger.guard:
            self.ledger.sent_bytes += count

    def _on_files(self, count: int) -> None:
        self.file_bar.advance(count)

    def _check(self, row: Row, path: Path) -> Outcome | None:
        """Look again at a file whose size or time is not what the scan saw: it must still be the same image."""
        row = self.original.get(row.file, row)
        read = reader.read(path, (), prepare.NO_RULES)
        if not read.values:
            return Outcome(
                row.file,
                Status.FAILED,
                f"The file has changed, and its header cannot be read: {read.message}",
            )
        for keyword, name in (
            ("StudyInstanceUID", row.study_instance_uid),
            ("SeriesInstanceUID", row.series_instance_uid),
            ("SOPInstanceUID", row.sop_instance_uid),
        ):
            if name and read.values.get(keyword, "") != name:
                return Outcome(row.file, Status.FAILED, prepare.ANOTHER_IMAGE.format(keyword))
        return None

    def _work(self, waiting: queue.SimpleQueue[routes.Work]) -> None:
        """Do one piece of work after the other until there are no more or the run is to stop."""
        while not self.stopping.stop.is_set():
            try:
                piece = waiting.get_nowait()
            except queue.Empty:
                return
            label = piece.session.session_label
            self.file_bar.extend(piece.files)
            try:
                piece.send()
                self._piece_done(piece)
            except errors.XnatUploaderError as trouble:
                self._stop_for(trouble)
            except Exception as trouble:
                logger.debug("Scans %s of %s", [scan.scan_id for scan in piece.scans], label, exc_info=True)
                self._stop_for(errors.InternalError.of(trouble))
            self.work_bar.advance()

    def _finish_leftovers(self) -> None:
        try:
            self.finisher.finish_leftovers(self.plans)
        except errors.XnatUploaderError as trouble:
            self._stop_for(trouble)
        except Exception as trouble:
            logger.debug("Steps of earlier runs", exc_info=True)
            self._stop_for(errors.InternalError.of(trouble))

    def _stop_for(self, trouble: errors.XnatUploaderError) -> None:
        with self.ledger.guard:
            if self.fatal is None:
                self.fatal = trouble
        self.stopping.stop.set()

    def _piece_done(self, piece: routes.Work) -> None:
        session = piece.session
        for scan in piece.scans:
            self.ledger.tell_failures(session, scan)
        identifier = self.route.session_id(session.session_label)
        if identifier:
            self.ledger.link(session.session_label, self.connection.link(identifier, self.project))
        with self.ledger.guard:
            self.work_left[session.session_label] -= 1
            last = self.work_left[session.session_label] == 0
        if last and self.route.steps_after and not self.stopping.stop.is_set():
            self.finisher.finish_session(session)

    # ---- the main thread

    def _watch(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for the workers: ask when Ctrl-C was pressed, stop in time, save now and then."""
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(timeout=0.1)
            self.stopping.ask_if_wanted()
            if self.stopping.at_once.is_set():
                return
            self._look_at_the_login()
            if self.asked.lock_lost.is_set():
                self._stop_for(errors.WorkbookInUse(TAKEN_OVER))
                continue  # the workbook is the other run's
            if time.monotonic() - self.ledger.last_save > SECONDS_BETWEEN_SAVES:
                try:
                    self.ledger.save()
                except errors.SpreadsheetLocked:
                    logger.debug("The workbook is open elsewhere; results stay in the journal for now.")

    def _look_at_the_login(self) -> None:
        """Say in time that the login will end before the work does."""
        spent = time.monotonic() - self.sending_since
        done = self.file_bar.done
        known = done > 0 and spent >= SECONDS_BEFORE_A_FORECAST
        warning = self.forecast.warning(spent / done * (self.files_in_all - done) if known else None)
        if warning:
            logger.warning("%s", warning)
