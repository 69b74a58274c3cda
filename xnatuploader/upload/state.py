"""What an upload was asked to do and what it found out, and where that still has to be written."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from xnatuploader import errors
from xnatuploader.console import report
from xnatuploader.records import Outcome, Row, ScanPlan, SessionPlan, SessionRow, Status
from xnatuploader.scan import sessions
from xnatuploader.upload import imports, journal, results
from xnatuploader.upload.journal import Made

logger = logging.getLogger(__name__)


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
    importing: imports.Options | None = None
    """How sessions travel through XNAT's import service; None: scan by scan into the archive."""
    commit: imports.Options | None = None
    """How sessions that wait in the prearchive are archived; None: they are not."""
    refresh: tuple[str, ...] = ()
    """Options of a refresh of the sessions' catalogs; empty: none is wanted."""
    lock_lost: threading.Event = field(default_factory=threading.Event)
    """Set when another run took the workbook over, as after a long sleep of this computer."""

    @property
    def only_commits(self) -> bool:
        """Whether nothing is sent: a session that waits must not be filled by another route first."""
        return self.commit is not None and self.importing is None


@dataclass(slots=True)
class Ledger:
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
    unfinished: Mapping[str, Set[Made]] = field(default_factory=dict)
    """Session label -> scans made in it, of sessions whose steps after the upload earlier runs left undone."""
    elsewhere: Mapping[results.Place, Set[Made]] = field(default_factory=dict)
    """The same of other servers and projects; they stay in the journal for a run that goes there."""
    touched: set[str] = field(init=False)
    made: dict[str, set[Made]] = field(init=False)
    """Session label -> scans that this run made, or an earlier one whose steps are still to be done."""
    finished: set[str] = field(default_factory=set)
    sent_bytes: int = 0
    last_save: float = field(default_factory=time.monotonic)
    locked: str = ""
    """Why the workbook could not be written the last time."""
    guard: threading.Lock = field(default_factory=threading.Lock)
    _by_label: dict[str, list[Row]] = field(init=False)

    def __post_init__(self) -> None:
        self.touched = set(self.unfinished)
        self.made = defaultdict(set, {label: set(made) for label, made in self.unfinished.items()})
        self._by_label = defaultdict(list)
        for row in self.rows:
            self._by_label[row.session_label].append(row)

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
            self._note("touched", label)

    def made_scan(self, label: str, session_id: str, scan_id: str) -> None:
        """Note that a scan was made: XNAT is asked to read its headers when the session is whole."""
        with self.guard:
            self.made[label].add((session_id, scan_id))
        self._note("made", label, id=session_id, scan=scan_id)

    def importing(self, label: str) -> None:
        """Note that a session goes through the import service: none of its scans counts as made by this program."""
        with self.guard:
            known = bool(self.made.pop(label, None))
        if known:
            self._note("imported", label)

    def made_in(self, label: str, session_id: str) -> frozenset[str]:
        """Return the IDs of the scans that were made in a session; one that was made anew there has none."""
        with self.guard:
            return frozenset(scan for session, scan in self.made.get(label, ()) if session == session_id)

    def still_due(self) -> dict[results.Place, Set[Made]]:
        """Return the sessions whose steps after the upload a later run has to send, with the scans made there."""
        here = (self.asked.server, self.asked.project)
        due = {(*here, label): self.made.get(label, set()) for label in self.touched - self.finished}
        return {**self.elsewhere, **due}

    def _note(self, kind: str, label: str, **more: str) -> None:
        self.journal.note(kind, server=self.asked.server, project=self.asked.project, session=label, **more)

    def finish(self, label: str) -> None:
        """Note that the steps after the upload of a session were sent, or are not wanted."""
        with self.guard:
            self.finished.add(label)
        self._note("finished", label)

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

    def warn(self, label: str, text: str) -> None:
        """Say something of a session on the screen, in the log and in its Warnings."""
        logger.warning("%s: %s", label, text)
        with self.guard:
            self.warnings[label].append(text)

    def link(self, label: str, address: str) -> None:
        """Note where a session's page on XNAT is."""
        with self.guard:
            self.links[label] = address

    def rows_of(self, label: str) -> Sequence[Row]:
        """Return the rows of a session."""
        return self._by_label.get(label, ())

    def status_of(self, row: Row) -> Status:
        """Return a row's status as it stands now."""
        outcome = self.outcomes.get(row.file)
        return row.status if outcome is None else outcome.status

    def tell_failures(self, session: SessionPlan, scan: ScanPlan) -> None:
        """Say once per scan and cause what did not work, with the rows it concerns."""
        causes: dict[tuple[Status, str], list[Row]] = defaultdict(list)
        for resource in scan.resources:
            for row in resource.rows:
                outcome = self.outcomes.get(row.file)
                if outcome is not None and outcome.status not in (Status.SUCCESS, Status.INTERRUPTED):
                    causes[outcome.status, outcome.message].append(row)
        for (status, message), rows in causes.items():
            logger.warning(
                "%s, scan %s: %s %s (%s). %s",
                session.session_label, scan.scan_id, report.plural(len(rows), "file"), status, row_numbers(rows),
                message,
            )  # fmt: skip


def row_numbers(rows: Sequence[Row]) -> str:
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
