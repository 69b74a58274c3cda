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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xnatuploader import (
    anonymizing,
    catalogs,
    dicom,
    errors,
    guards,
    importer,
    interrupts,
    journal,
    placement,
    plan,
    progress,
    reading,
    report,
    results,
    routes,
    server,
    sessions,
    signin,
    transfer,
)
from xnatuploader.config import Config
from xnatuploader.records import DICOM_FIELDS, Found, Outcome, Row, ScanPlan, SessionPlan, SessionRow, Status
from xnatuploader.workbook.book import Book

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 240.0
"""How often the workbook is brought up to date while a long run lasts."""

SECONDS_BEFORE_A_FORECAST = 60.0
"""How long files have to be on their way before their pace tells how long the rest takes."""

NOT_FINISHED = "The run was stopped before this file was sent."
TAKEN_OVER = (
    "Another run took this spreadsheet over, so this one stops. Its results are in the journal beside the "
    "spreadsheet; run upload again when the other run has ended."
)
_NO_RULES = dicom.Rules(frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class Asked:
    """What this run was asked to do."""

    spreadsheet: Path
    server: str
    project: str
    overwrite: bool
    verify: bool
    pipeline: bool
    anonymize: bool
    jobs: int
    deadline: datetime.datetime | None
    wait_seconds: float
    interactive: bool
    environ: Mapping[str, str]
    importing: importer.Options | None = None
    """How sessions travel through XNAT's import service; None: scan by scan into the archive."""
    commit: importer.Options | None = None
    """How sessions that wait in the prearchive are archived; None: they are not."""
    refresh: tuple[str, ...] = ()
    """Options of a refresh of the sessions' catalogs; empty: none is wanted."""
    lock_lost: threading.Event = field(default_factory=threading.Event)
    """Set when another run took the workbook over, as after a long sleep of this computer."""

    @property
    def only_commits(self) -> bool:
        """Whether nothing is sent: a session that waits must not be filled by another route first."""
        return self.commit is not None and self.importing is None


class Files:
    """Where the files of the rows are.

    The File column is relative to `--dir`; without it, to the current folder or the folder that was scanned.
    Sheets of 1.x hold paths as they were typed then: from the current folder, or the workbook's.
    """

    def __init__(self, folder: Path | None, opened: Book, spreadsheet: Path) -> None:
        remembered = [Path(opened.folder)] if opened.folder else []
        old = [] if opened.folder else [Path(), spreadsheet.absolute().parent]
        self.bases = [folder, *old] if folder is not None else [Path(), *remembered, *old]
        self._last = self.bases[0]

    def path(self, row: Row) -> Path:
        """Return the path of a row's file; where no folder has it, the path in the first."""
        here = self._last / row.file
        if len(self.bases) == 1 or here.exists():
            return here
        for base in self.bases:
            if (base / row.file).exists():
                self._last = base
                return base / row.file
        return self.bases[0] / row.file


def completed(rows: Sequence[Row], files: Files, settings: Config) -> list[Row]:
    """Return the rows with what 1.x did not write filled in from the headers: scan, resource, file name."""
    lacking = [
        row
        for row in rows
        if row.session_label and row.status is not Status.UNMATCHED and plan.lacks_columns(row) and row.upload
    ]
    if not lacking:
        return list(rows)
    known = dict(
        zip((row.file for row in lacking), _headers(lacking, files, settings.dicom_fields), strict=True)
    )
    filled = [_filled(row, known[row.file]) if row.file in known else row for row in rows]
    return placement.place_scans(filled)


def _place(row: Row) -> tuple[str, str, str, str]:
    return row.session_label, row.scan_id, row.resource, row.filename.casefold()


@dataclass(frozen=True, slots=True)
class Prepared:
    """The rows of a run before anything is asked of the server."""

    rows: list[Row]
    """All rows of the workbook, completed."""
    placed: Mapping[str, Row]
    """Those whose place the sheet does not hold yet, by file."""
    selected: tuple[Row, ...]
    """Those that this run tries."""
    disguise: anonymizing.Disguise | None = None
    """With de-identification."""

    def as_sent(self) -> tuple[list[Row], list[Row]]:
        """Return (all rows, selected rows) with the values that XNAT gets to see."""
        if self.disguise is None:
            return self.rows, list(self.selected)
        return [*map(self.disguise.as_sent, self.rows)], [*map(self.disguise.as_sent, self.selected)]


def prepared(
    opened: Book,
    settings: Config,
    files: Files,
    *,
    again: bool,
    anonymize: bool,
    waiting: Mapping[str, Outcome] | None = None,
) -> Prepared:
    """Read the rows, complete them from headers where columns do not tell, and choose those that travel.

    `waiting` are outcomes of an earlier run that the workbook does not hold yet. Raises `ConfigurationError`
    where a label or name would carry what de-identification removes.
    """
    in_sheet = results.applied(opened.rows(), waiting or {})
    rows = completed(in_sheet, files, settings)
    placed = {row.file: row for row, old in zip(rows, in_sheet, strict=True) if _place(row) != _place(old)}
    del in_sheet  # of 100,000 rows every copy counts
    session_rows = opened.sessions()
    chosen = plan.one_per_series(plan.select(rows, session_rows, again=again))
    fields = (*settings.dicom_fields, *(anonymizing.PATIENT_FIELDS if anonymize else ()))
    headers = dict(zip((_series(row) for row in chosen), _headers(chosen, files, fields), strict=True))

    def known(row: Row) -> Row:
        header = headers.get(_series(row))
        return replace(row, sop_class_uid=header.get("SOPClassUID", "")) if header else row

    rows = [known(row) for row in rows]
    selected = plan.select(rows, session_rows, again=again)
    if not anonymize:
        return Prepared(rows, placed, selected)
    patients = {row.series_instance_uid: headers[_series(row)] for row in chosen}
    disguise = anonymizing.Disguise(settings, patients)
    problems = disguise.problems(selected)
    if problems:
        raise errors.ConfigurationError(problems)
    return Prepared(rows, placed, selected, disguise)


def _series(row: Row) -> tuple[str, str, str]:
    return row.session_label, row.scan_id, row.resource


def _headers(rows: Sequence[Row], files: Files, fields: Sequence[str]) -> Iterable[Mapping[str, str]]:
    found = [Found(str(files.path(row).absolute()), 0, "") for row in rows]
    root = Path(found[0].file).anchor if found else "/"
    return [header.values for _, header in reading.read_all(Path(root), found, fields, _NO_RULES)]


def _filled(row: Row, header: Mapping[str, str]) -> Row:
    gaps: dict[str, Any] = {
        name: header.get(keyword, "")
        for keyword, name in {**DICOM_FIELDS, "SOPClassUID": "sop_class_uid"}.items()
        if not getattr(row, name)
    }
    return replace(row, **gaps)


@dataclass(slots=True)
class _Ledger:
    """Everything that was found out in this run, and where it still has to be written."""

    asked: Asked
    rows: list[Row]
    completed: Mapping[str, Row]
    """Rows whose place the sheet does not hold yet (1.x workbooks), by file: it goes there with their outcome."""
    session_rows: Sequence[SessionRow]
    journal: journal.Journal
    released: frozenset[str] = frozenset()
    """Files that travel only because of their session's Release review."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    """Session label -> its page on XNAT."""
    warnings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Session label -> what to add to its Warnings."""
    notes: list[str] = field(default_factory=list)
    """Further lines of the summary."""
    touched: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    sent_bytes: int = 0
    last_save: float = field(default_factory=time.monotonic)
    locked: str = ""
    """Why the workbook could not be written the last time."""
    guard: threading.Lock = field(default_factory=threading.Lock)

    def record(self, outcome: Outcome) -> None:
        """Write one outcome into the journal and remember it for the workbook."""
        if outcome.file in self.released:
            outcome = sessions.still_released(outcome)
        row = self.completed.get(outcome.file)
        if row is not None:
            outcome = replace(
                outcome, filename=row.filename, scan_id=outcome.scan_id or row.scan_id, resource=row.resource
            )
        self.journal.outcome(outcome)
        with self.guard:
            self.outcomes[outcome.file] = outcome

    def touch(self, label: str) -> None:
        """Note that files go into a session, so that its steps after the upload are not forgotten."""
        with self.guard:
            new = label not in self.touched
            self.touched.add(label)
        if new:
            self.journal.note("touched", project=self.asked.project, session=label)

    def finish(self, label: str) -> None:
        """Note that the steps after the upload of a session were sent, or are not wanted."""
        with self.guard:
            self.finished.add(label)
        self.journal.note("finished", project=self.asked.project, session=label)

    def current_sessions(self) -> list[SessionRow]:
        """Return the Sessions rows as they stand now."""
        with self.guard:
            outcomes = dict(self.outcomes)
            notes = {label: list(texts) for label, texts in self.warnings.items()}
        made = sessions.session_rows(results.applied(self.rows, outcomes), self.session_rows)
        return [
            replace(
                row,
                link=self.links.get(row.session_label, row.link),
                warnings="; ".join([*filter(None, [row.warnings]), *notes.get(row.session_label, ())]),
            )
            for row in made
        ]

    def save(self) -> Mapping[str, Outcome]:
        """Write what is known into the workbook; return the outcomes that have no row any more."""
        with self.guard:
            outcomes = dict(self.outcomes)
        self.last_save = time.monotonic()
        try:
            homeless = results.save(self.asked.spreadsheet, outcomes, self.current_sessions())
        except errors.SpreadsheetLocked as trouble:
            self.locked = str(trouble)
            raise
        self.locked = ""
        return homeless


def send(opened: Book, settings: Config, files: Files, asked: Asked, taken: results.TakenIn) -> report.Result:
    """Run the whole upload; whatever happens, what was found out stands in the journal or the workbook."""
    ready = prepared(
        opened,
        settings,
        files,
        again=asked.verify or asked.overwrite,
        anonymize=asked.anonymize,
        waiting=taken.waiting,
    )
    if asked.only_commits:
        ready = replace(ready, selected=())
    selected = ready.selected
    session_rows = opened.sessions()
    pending = {label for project, label in taken.unfinished if project == asked.project}
    gone = _all_missing(selected, files)
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
        ledger = _Ledger(
            asked,
            ready.rows,
            ready.placed,
            session_rows,
            written,
            released,
            dict(taken.waiting),
            touched=pending,
        )
        if connection is not None:
            return _with_server(ledger, connection, stopping, ready, files, settings)
        for row in selected:
            ledger.record(Outcome(row.file, Status.MISSING, "The file is not on disk."))
        if gone:
            logger.error("%s", gone)
        return _end(ledger, None, False, selected)


def _all_missing(selected: Sequence[Row], files: Files) -> str:
    """Say that the folder is the wrong one if no listed file is there; the first few decide that quickly."""
    if not selected or any(files.path(row).exists() for row in selected[:20]):
        return ""
    if any(files.path(row).exists() for row in selected[20:]):
        return ""
    return (
        f"None of the {len(selected)} selected files is in {files.bases[0].absolute()}: give the folder that was "
        "scanned with --dir."
    )


def _with_server(
    ledger: _Ledger,
    connection: server.Server,
    stopping: interrupts.Interrupts,
    ready: Prepared,
    files: Files,
    settings: Config,
) -> report.Result:
    asked = ledger.asked
    trouble: errors.XnatUploaderError | None = None
    with stopping:
        try:
            project = connection.open_project(asked.project)
            if asked.importing is not None:
                importer.check_project(asked.importing, project, asked.project)
            run = _Run(ledger, connection, project, ready, files, stopping)
            run.send(run.plan(settings))
            run.after_all()
        except errors.XnatUploaderError as caught:
            trouble = caught
        except server.RequestFailed as failed:
            if not stopping.stop.is_set():
                trouble = errors.ServerUnreachable(failed.message)
        except Exception as fault:
            logger.debug("A fault of the program:", exc_info=True)
            trouble = errors.InternalError.of(fault)
        return _end(ledger, trouble, stopping.by_user, ready.selected)


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


def _connect(asked: Asked, stop: threading.Event) -> server.Server:
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
        ledger: _Ledger,
        connection: server.Server,
        project: str,
        ready: Prepared,
        files: Files,
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
        self.forecast = signin.Forecast(connection.login_until)
        self.original = {row.file: row for row in ready.selected} if ready.disguise else {}

    # ---- before anything is created

    def plan(self, settings: Config) -> tuple[SessionPlan, ...]:
        """Plan, and compare every planned session with what the project holds."""
        rows, selected = self.ready.as_sent()
        planned = plan.build(rows, selected)
        for outcome in planned.set_aside:
            self.ledger.record(outcome)
        there = self._there()
        listed: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            listed[row.session_label].append(row)
        join = {row.session_label for row in self.ledger.session_rows if row.join}
        labels_there = [remote.label for remote in there]
        going = []
        for session in planned.sessions:
            self.stopping.ask_if_wanted()
            if self.stopping.stop.is_set():
                break
            judged = guards.judge(
                session,
                listed[session.session_label],
                there,
                lambda remote: self.connection.session_uid(self.project, remote),
                lambda remote: self.connection.scans(self.project, remote),
                join=session.session_label in join,
                plain_uids=self._plain_uids(listed[session.session_label]),
                next_free=self._next_free(session.session_label, labels_there, listed, settings),
            )
            if judged.conflict:
                self._keep_back(session, judged.conflict)
                continue
            if judged.warning:
                self._warn(session.session_label, judged.warning)
            going.append(judged.session)
        return tuple(going)

    def _there(self) -> list[server.RemoteSession]:
        """List the sessions of the project, each with the label of its subject."""
        subjects = {identifier: label for label, identifier in self.connection.subjects(self.project).items()}
        return [
            replace(remote, subject_label=remote.subject_label or subjects.get(remote.subject_id, ""))
            for remote in self.connection.sessions(self.project)
        ]

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
        return guards.next_free_label(label, [*there, *listed])

    def _keep_back(self, session: SessionPlan, conflict: str) -> None:
        rows = [row for scan in session.scans for resource in scan.resources for row in resource.rows]
        logger.warning("%s: %d files are not sent. %s", session.session_label, len(rows), conflict)
        for row in rows:
            self.ledger.record(Outcome(row.file, Status.CONFLICT, conflict))

    def _warn(self, label: str, text: str) -> None:
        logger.warning("%s: %s", label, text)
        self.ledger.warnings[label].append(text)

    # ---- sending

    def send(self, planned: Sequence[SessionPlan]) -> None:
        """Send all work, `jobs` pieces at a time, and finish each session after its last piece."""
        self.plans = {session.session_label: session for session in planned}
        self.route = self._route({session.xsi_type for session in planned})
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
                self._finish_leftovers()
        if self.fatal is not None:
            raise self.fatal

    def _route(self, session_types: Collection[str]) -> routes.Route:
        if self.asked.importing is None:
            return routes.Direct(self._transfer(session_types))
        if self.asked.importing.by_headers:
            logger.warning(
                "--dest-by-headers: XNAT decides by the DICOM headers where sessions go, and the labels in the "
                "sheet are not used."
            )
        return routes.Imports(self._importer(self.asked.importing))

    def _importer(self, chosen: importer.Options) -> importer.Importer:
        return importer.Importer(
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
        )

    def _transfer(self, session_types: Collection[str]) -> transfer.Transfer:
        return transfer.Transfer(
            self.connection,
            self.project,
            self.files.path,
            transfer.Options(overwrite=self.asked.overwrite, verify=self.asked.verify),
            on_outcome=self.ledger.record,
            on_sent=self._on_sent,
            on_files=self._on_files,
            on_session=self.ledger.touch,
            check=self._check,
            copy=self.ready.disguise.copy if self.ready.disguise else None,
            stop=self.stopping.stop,
            session_types=session_types,
        )

    def _on_sent(self, count: int) -> None:
        with self.ledger.guard:
            self.ledger.sent_bytes += count

    def _on_files(self, count: int) -> None:
        self.file_bar.advance(count)

    def _check(self, row: Row, path: Path) -> Outcome | None:
        """Look again at a file whose size or time is not what the scan saw: it must still be the same image."""
        row = self.original.get(row.file, row)
        header = dicom.read(path, (), _NO_RULES).values
        for keyword, name in (
            ("StudyInstanceUID", row.study_instance_uid),
            ("SeriesInstanceUID", row.series_instance_uid),
            ("SOPInstanceUID", row.sop_instance_uid),
        ):
            if name and header.get(keyword, "") != name:
                return Outcome(
                    row.file,
                    Status.FAILED,
                    f"The file is another image than when it was scanned ({keyword} differs): run scan again.",
                )
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

    def _stop_for(self, trouble: errors.XnatUploaderError) -> None:
        with self.ledger.guard:
            if self.fatal is None:
                self.fatal = trouble
        self.stopping.stop.set()

    def _piece_done(self, piece: routes.Work) -> None:
        session = piece.session
        for scan in piece.scans:
            self._tell_failures(session, scan)
        self._note_link(session.session_label, self.route.session_id(session.session_label))
        with self.ledger.guard:
            self.work_left[session.session_label] -= 1
            last = self.work_left[session.session_label] == 0
        if last and self.route.steps_after and not self.stopping.stop.is_set():
            self._finish_session(session)

    def _note_link(self, label: str, identifier: str) -> None:
        if identifier:
            self.ledger.links[label] = self.connection.link(identifier, self.project)

    def _tell_failures(self, session: SessionPlan, scan: ScanPlan) -> None:
        """Say once per scan and cause what did not work, with the rows it concerns."""
        causes: dict[tuple[Status, str], list[Row]] = defaultdict(list)
        for resource in scan.resources:
            for row in resource.rows:
                outcome = self.ledger.outcomes.get(row.file)
                if outcome is not None and outcome.status not in (Status.SUCCESS, Status.INTERRUPTED):
                    causes[outcome.status, outcome.message].append(row)
        for (status, message), rows in causes.items():
            logger.warning(
                "%s, scan %s: %s %s (%s). %s",
                session.session_label, scan.scan_id, report.plural(len(rows), "file"), status, _row_numbers(rows),
                message,
            )  # fmt: skip

    # ---- after all files: what waits is archived, catalogs are refreshed

    def after_all(self) -> None:
        """Do what was asked for besides sending, for every session of the workbook that says yes."""
        if self.asked.commit is not None and not self.stopping.stop.is_set():
            self._commit(self.asked.commit)
        if self.asked.refresh and not self.stopping.stop.is_set():
            self._refresh(self.asked.refresh)

    def _listed_sessions(self) -> dict[str, list[Row]]:
        """Return the rows of every session that were sent or travel, as they are sent, with their outcomes."""
        gate = sessions.Gate(self.ledger.session_rows)
        rows, _ = self.ready.as_sent()
        found: dict[str, list[Row]] = defaultdict(list)
        for row in results.applied(rows, self.ledger.outcomes):
            sent = row.status is Status.SUCCESS and gate.open(row)
            if row.session_label and row.scan_id and (sent or gate(row)):
                found[row.session_label].append(row)
        return found

    def _commit(self, chosen: importer.Options) -> None:
        """Archive the sessions that wait in the prearchive, unless some of their files are still to be sent."""
        committer = self._importer(chosen)
        done = left_alone = 0
        for label, rows in self._listed_sessions().items():
            self.stopping.ask_if_wanted()
            if self.stopping.stop.is_set():
                return
            if any(row.status in (Status.EMPTY, Status.INTERRUPTED) for row in rows):
                left_alone += 1
                continue
            for session in plan.build(rows, rows).sessions:
                if committer.commit_session(session):
                    done += 1
                    for scan in session.scans:
                        self._tell_failures(session, scan)
                    self._note_link(label, committer.session_id(label))
        waited = f"{report.plural(done, 'session')} waited" if done else "No session of this workbook waits"
        self.ledger.notes.append(f"{waited} in the prearchive.")
        if left_alone:
            alone = report.plural(left_alone, "session")
            self.ledger.notes.append(f"Left alone, because files are still to be sent: {alone}.")

    def _refresh(self, words: Sequence[str]) -> None:
        """Have XNAT refresh the catalogs of the sessions that it has."""
        there = {remote.label for remote in self.connection.sessions(self.project)}
        done = 0
        for label in self._listed_sessions():
            self.stopping.ask_if_wanted()
            if self.stopping.stop.is_set():
                return
            if label not in there:
                continue
            try:
                catalogs.refresh(self.connection, catalogs.session_resource(self.project, label), words)
                done += 1
            except server.RequestFailed as trouble:
                self._warn(label, f"Its catalogs could not be refreshed: {trouble.message}")
        self.ledger.notes.append(f"The catalogs of {report.plural(done, 'session')} were refreshed.")

    # ---- after the last file of a session

    def _finish_leftovers(self) -> None:
        """Send the steps after the upload for sessions that an earlier run filled and could not finish."""
        for label in sorted(self.ledger.touched - self.ledger.finished):
            if label not in self.plans:
                rows = [row for row in self.ledger.rows if row.session_label == label and row.scan_id]
                if rows:
                    reason = plan.why_not_pulled(rows)
                    self._finish_session(
                        SessionPlan(
                            rows[0].subject, label, "", post_steps=not reason, post_steps_reason=reason
                        )
                    )

    def _finish_session(self, session: SessionPlan) -> None:
        label = session.session_label
        if label not in self.ledger.touched or not self._complete(label):
            return  # nothing went there, or not everything yet
        if self.asked.pipeline:
            try:
                self.connection.finish(self.project, session.subject, label, pull=session.post_steps)
            except server.RequestFailed as trouble:
                self._warn(label, f"The steps after the upload did not work: {trouble.message}")
            if session.post_steps:
                self._look_after_scans(session)
            else:
                self._warn(label, f"Headers were not pulled: {session.post_steps_reason}.")
        self.ledger.finish(label)

    def _complete(self, label: str) -> bool:
        """Tell whether every selected file of a session is on the server."""
        outcomes = self.ledger.outcomes
        gate = sessions.Gate(self.ledger.session_rows)
        for row in self.ledger.rows:
            if row.session_label == label and (gate(row) or row.file in outcomes):
                now = outcomes[row.file].status if row.file in outcomes else row.status
                if now is not Status.SUCCESS:
                    return False
        return True

    def _look_after_scans(self, session: SessionPlan) -> None:
        """List the scans once after XNAT worked on them: types stay ours, further scans are told."""
        try:
            scans = self.connection.scans(self.project, session.session_label)
            wanted = {scan.scan_id: scan for scan in session.scans}
            known = {row.scan_id for row in self.ledger.rows if row.session_label == session.session_label}
            for there in scans:
                ours = wanted.get(there.id)
                if ours is not None and ours.scan_type and there.type != ours.scan_type:
                    self.connection.create_scan(
                        self.project, session.subject, session.session_label, there.id,
                        there.xsi_type or ours.xsi_type, {"type": ours.scan_type},
                    )  # fmt: skip
            extra = sorted(there.id for there in scans if there.id not in known and not session.exists)
            if extra:
                self._warn(session.session_label, f"XNAT has further scans there: {', '.join(extra)}.")
        except server.RequestFailed as trouble:
            self._warn(session.session_label, f"The scans could not be listed afterwards: {trouble.message}")

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


def _row_numbers(rows: Sequence[Row]) -> str:
    """Write where rows stand: `Files rows 17-28, 40`."""
    spans: list[list[int]] = []
    for number in sorted(row.number for row in rows):
        if spans and number <= spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [f"{low}" if low == high else f"{low}-{high}" for low, high in spans[:5]]
    more = ", ..." if len(spans) > 5 else ""
    return f"{rows[0].sheet} row{'s' if len(rows) > 1 else ''} {', '.join(words)}{more}"


def _end(
    ledger: _Ledger, trouble: errors.XnatUploaderError | None, by_user: bool, selected: Sequence[Row]
) -> report.Result:
    """Mark what was not reached, save, and say how the run ended."""
    for row in selected:
        if row.file not in ledger.outcomes and row.status is not Status.SUCCESS:
            ledger.record(Outcome(row.file, Status.INTERRUPTED, NOT_FINISHED))
    troubles = [trouble] if trouble is not None else []
    try:
        if not ledger.asked.lock_lost.is_set():
            homeless = ledger.save()
            unfinished = {(ledger.asked.project, label) for label in ledger.touched - ledger.finished}
            ledger.journal.close()
            results.begin_anew(ledger.asked.spreadsheet, unfinished, homeless)
    except errors.SpreadsheetLocked as locked:
        place = ledger.journal.path
        troubles.append(
            errors.SpreadsheetLocked(
                f"{locked} Results are safe in {place} and go into the workbook with the next run."
            )
        )
    for one in troubles:
        logger.error("%s", one)
    outcomes = ledger.outcomes.values()
    counts = Counter(outcome.status for outcome in outcomes)
    return report.Result(
        exit_code=_exit_code(troubles, counts, by_user),
        text=_summary(counts, ledger, by_user, bool(troubles)),
        files=_counted(ledger),
        sessions=len({row.session_label for row in selected}),
        scans=len({(row.session_label, row.scan_id) for row in selected}),
        bytes=ledger.sent_bytes,
        problems=(
            *map(str, troubles),
            *(f"{count} x {message}" for message, count in _commonest(outcomes)),
        ),
    )


def _counted(ledger: _Ledger) -> dict[str, int]:
    """Count the rows of the workbook by what stands in Status now."""
    counts = Counter(
        ledger.outcomes[row.file].status if row.file in ledger.outcomes else row.status for row in ledger.rows
    )
    return report.in_words(counts)


def _exit_code(
    troubles: Iterable[errors.XnatUploaderError], counts: Mapping[Status, int], by_user: bool
) -> int:
    """Return the first of 130, 3, 4, 5, 6, 1 that applies, 0 if none does."""
    codes = {trouble.exit_code for trouble in troubles}
    if by_user:
        codes.add(130)
    if any(counts.get(status) for status in (Status.FAILED, Status.CONFLICT, Status.MISSING)):
        codes.add(1)
    return next((code for code in (130, 3, 4, 5, 6, 2, 1) if code in codes), 0)


def _commonest(outcomes: Iterable[Outcome]) -> list[tuple[str, int]]:
    bad = (Status.FAILED, Status.CONFLICT, Status.MISSING)
    return Counter(outcome.message for outcome in outcomes if outcome.status in bad).most_common(3)


def _summary(counts: Mapping[Status, int], ledger: _Ledger, by_user: bool, in_trouble: bool) -> str:
    words = [f"{counts[status]:,} {status.value}" for status in Status if counts.get(status)]
    lines = [f"{', '.join(words) or 'Nothing was sent'} ({report.human_bytes(ledger.sent_bytes)} sent)."]
    for message, count in _commonest(ledger.outcomes.values()):
        rows = [
            row
            for row in ledger.rows
            if (outcome := ledger.outcomes.get(row.file)) and outcome.message == message
        ]
        lines.append(f"  {count:,} x {message} ({_row_numbers(rows)})")
    lines += ledger.notes
    left = counts.get(Status.INTERRUPTED, 0)
    if left:
        labels = {
            row.session_label
            for row in ledger.rows
            if (outcome := ledger.outcomes.get(row.file)) and outcome.status is Status.INTERRUPTED
        }
        in_time = not by_user and not in_trouble and ledger.asked.deadline is not None
        why = "Stopped in time, as asked: " if in_time else ""
        lines.append(
            f"{why}{report.plural(left, 'file')} in {report.plural(len(labels), 'session')} left to send. "
            "Run the same command again to go on."
        )
    return "\n".join(lines)
