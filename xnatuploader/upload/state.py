"""What an upload knows: what earlier runs left in the journal, what this one found out, and writing it down.

An outcome goes into the journal at once and into the workbook now and then. The journal is begun anew only when
its outcomes were seen in the saved workbook.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xnatuploader import errors, records
from xnatuploader.console import report
from xnatuploader.records import OUTCOME_FIELDS, Outcome, Row, ScanPlan, SessionPlan, SessionRow, Status
from xnatuploader.scan import sessions
from xnatuploader.upload import journal
from xnatuploader.upload.journal import Made
from xnatuploader.upload.options import RunOptions
from xnatuploader.workbook import book

logger = logging.getLogger(__name__)

PIPELINES = ""
"""In the place of a scan's ID among those made in a session: its pipelines were asked for."""

SessionKey = tuple[str, str, str]
"""Server ('' in older journals), project and label of a session."""


# ---- what earlier runs left


@dataclass(frozen=True, slots=True)
class EarlierRuns:
    """What the journal of earlier runs said."""

    outcomes: int = 0
    """Files whose outcome came from it."""
    unfinished: Mapping[SessionKey, Set[Made]] = field(default_factory=dict)
    """Sessions to which files were sent and whose steps after the upload were not -> the scans made there."""
    waiting: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes that could not go into the workbook, because it is open elsewhere: the journal keeps them."""
    locked: str = ""
    """Why not."""

    def unfinished_at(self, server: str, project: str) -> dict[str, Set[Made]]:
        """Return the unfinished sessions of one project, by label."""
        return {key[2]: made for key, made in self.unfinished.items() if _is_at(key, server, project)}

    def unfinished_elsewhere(self, server: str, project: str) -> dict[SessionKey, Set[Made]]:
        """Return those of other servers and projects."""
        return {key: made for key, made in self.unfinished.items() if not _is_at(key, server, project)}


def same_server(one: str, other: str) -> bool:
    """Tell whether two addresses are one server's: scheme, default port, case and a last slash make no difference."""
    return _plain_address(one) == _plain_address(other)


def _plain_address(address: str) -> str:
    host, slash, path = re.sub(r"^[a-z]+://", "", address.strip().lower()).partition("/")
    return re.sub(r":(80|443)$", "", host) + (slash + path).rstrip("/")


def _is_at(key: SessionKey, server: str, project: str) -> bool:
    return key[1] == project and (not key[0] or same_server(key[0], server))


def take_in(spreadsheet: Path) -> EarlierRuns:
    """Write what earlier runs' journals hold into the workbook, and drop what was seen to be there.

    Where the workbook cannot be written the journal stays as it is, and its outcomes are `waiting`.
    """
    left = journal.read(spreadsheet)
    if not left.outcomes and not left.notes:
        if left.meta:
            journal.remove(spreadsheet)
        return EarlierRuns()
    unfinished = _unfinished(left)
    without_row: Mapping[str, Outcome] = {}
    if left.outcomes:
        opened = book.Book.open(spreadsheet)
        rows = applied(opened.rows(), left.outcomes)
        try:
            without_row = save(spreadsheet, left.outcomes, sessions.session_rows(rows, opened.sessions()))
        except errors.SpreadsheetLocked as error:
            return EarlierRuns(0, unfinished, left.outcomes, str(error))
        logger.info("Added the results of an earlier run: %d files.", len(left.outcomes) - len(without_row))
    begin_anew(spreadsheet, unfinished, without_row)
    return EarlierRuns(len(left.outcomes) - len(without_row), unfinished)


def _unfinished(left: journal.JournalContent) -> dict[SessionKey, set[Made]]:
    """Return the sessions whose steps after the upload are to be done, with the scans made there."""
    found: dict[SessionKey, set[Made]] = defaultdict(set)
    for note in left.notes:
        server, project, label, session, scan = (
            str(note.get(name, "")) for name in ("server", "project", "session", "id", "scan")
        )
        if (project, label) in left.finished:
            continue
        if note.get("kind") == "touched":
            found[server, project, label].update(())
        elif note.get("kind") == "made":
            found[server, project, label].add((session, scan))
        elif note.get("kind") == "imported":
            found[server, project, label].clear()
    return dict(found)


def begin_anew(
    spreadsheet: Path, unfinished: Mapping[SessionKey, Set[Made]], without_row: Mapping[str, Outcome]
) -> None:
    """Drop the journal, but for what no workbook holds.

    That is which sessions still want their steps after the upload, and outcomes of files without a row.
    """
    journal.remove(spreadsheet)
    if unfinished or without_row:
        with journal.Journal(spreadsheet) as fresh:
            for key in sorted(unfinished):
                named = dict(zip(("server", "project", "session"), key, strict=True))
                fresh.note("touched", **named)
                for session, scan in sorted(unfinished[key]):
                    fresh.note("made", **named, id=session, scan=scan)
            for outcome in without_row.values():
                fresh.outcome(outcome)


# ---- outcomes onto rows, and into the workbook


def onto(row: Row, outcome: Outcome) -> Row:
    """Return `row` as it is after `outcome`."""
    changed: dict[str, Any] = {"status": outcome.status, "message": outcome.message}
    for name in OUTCOME_FIELDS:
        given = getattr(outcome, name)
        if given:
            changed[name] = given
    if outcome.upload:
        changed["upload"] = records.is_yes(outcome.upload)
    return replace(row, **changed)


def applied(rows: Iterable[Row], outcomes: Mapping[str, Outcome]) -> list[Row]:
    """Return the rows with each one's outcome."""
    return [onto(row, outcomes[row.file]) if row.file in outcomes else row for row in rows]


def save(
    spreadsheet: Path, outcomes: Mapping[str, Outcome], session_rows: Sequence[SessionRow]
) -> Mapping[str, Outcome]:
    """Write outcomes into the workbook; return those that were not seen there afterwards (their rows are gone).

    Raises `SpreadsheetLocked` where the workbook cannot be written, or was deleted or replaced meanwhile.
    """
    try:
        standing = book.write_outcomes(spreadsheet, outcomes, session_rows)
    except errors.SpreadsheetError as error:
        raise errors.SpreadsheetLocked(
            f"{error} The results are safe in {journal.beside(spreadsheet)}: put the workbook back and run "
            "upload again."
        ) from error
    without_row = {file: outcome for file, outcome in outcomes.items() if file not in standing}
    if without_row:
        logger.warning(
            "The results of %d files have no row in %s any more; they are kept in %s. Run scan on the same folder "
            "to list those files again.",
            len(without_row),
            spreadsheet,
            journal.beside(spreadsheet),
        )
    return without_row


# ---- what this run finds out


class UploadState:
    """Everything that was found out in this run. Its methods may be called from many threads."""

    def __init__(
        self,
        options: RunOptions,
        target: tuple[str, str],
        rows: Sequence[Row],
        session_rows: Sequence[SessionRow],
        written: journal.Journal,
        earlier: EarlierRuns,
        lock_lost: threading.Event,
    ) -> None:
        self.options = options
        self.server, self.project = target
        """As the Configuration or the command line names them."""
        self.lock_lost = lock_lost
        """Set when another run took the workbook over, as after a long sleep of this computer."""
        self.rows = rows
        self.session_rows = session_rows
        self.journal = written
        self.completed: Mapping[str, Row] = {}
        """Rows of 1.x workbooks that this run completed, by file: what was lacking is written with their outcome."""
        self.released: frozenset[str] = frozenset()
        """Files that travel only because of their session's Release review."""
        self.outcomes: dict[str, Outcome] = dict(earlier.waiting)
        self.links: dict[str, str] = {}
        """Session label -> its page on XNAT."""
        self.warnings: dict[str, list[str]] = defaultdict(list)
        """Session label -> what to add to its Warnings."""
        self.notes: list[str] = []
        """Further lines of the summary."""
        self.unfinished = earlier.unfinished_at(*target)
        """Session label -> scans made in it, of sessions whose steps after the upload earlier runs left undone."""
        self.elsewhere = earlier.unfinished_elsewhere(*target)
        """The same of other servers and projects; they stay in the journal for a run that goes there."""
        self.made = defaultdict(set, {label: set(made) for label, made in self.unfinished.items()})
        """Session label -> scans that this run made, or an earlier one whose steps are still to be done."""
        self.touched = set(self.unfinished)
        self.finished: set[str] = set()
        self.sent_bytes = 0
        self.last_save = time.monotonic()
        self.guard = threading.Lock()
        self._by_label: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
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

    def sent(self, count: int) -> None:
        """Count bytes that went out."""
        with self.guard:
            self.sent_bytes += count

    def touch(self, label: str) -> None:
        """Note that files go into a session, so that its steps after the upload are not forgotten."""
        with self.guard:
            new = label not in self.touched
            self.touched.add(label)
        if new:
            self._note("touched", label)

    def made_scan(self, label: str, session_id: str, scan_id: str) -> None:
        """Note that a scan was made: XNAT is asked to read its headers when the session is whole.

        With `PIPELINES` in its place: that they are asked for now, so that no later run asks once more.
        """
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

    def still_due(self) -> dict[SessionKey, Set[Made]]:
        """Return the sessions whose steps after the upload a later run has to send, with the scans made there."""
        here = (self.server, self.project)
        due = {(*here, label): self.made.get(label, set()) for label in self.touched - self.finished}
        return {**self.elsewhere, **due}

    def finish(self, label: str) -> None:
        """Note that the steps after the upload of a session were sent, or are not wanted."""
        with self.guard:
            self.finished.add(label)
        self._note("finished", label)

    def _note(self, kind: str, label: str, **more: str) -> None:
        self.journal.note(kind, server=self.server, project=self.project, session=label, **more)

    def current_sessions(self) -> list[SessionRow]:
        """Return the Sessions rows as they are now."""
        with self.guard:
            outcomes = dict(self.outcomes)
            notes = {label: list(texts) for label, texts in self.warnings.items()}
        made = sessions.session_rows(applied(self.rows, outcomes), self.session_rows)
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
        return save(self.options.spreadsheet, outcomes, self.current_sessions())

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
        """Return a row's status as it is now."""
        outcome = self.outcomes.get(row.file)
        return row.status if outcome is None else outcome.status

    def tell_duplicates(self, label: str) -> None:
        """Say how many images of a session XNAT holds in changed form."""
        found = sum(
            row.file in self.outcomes and self.outcomes[row.file].status is Status.DUPLICATE
            for row in self.rows_of(label)
        )
        if found:
            many = found != 1
            self.warn(
                label,
                f"{report.plural(found, 'image')} {'are' if many else 'is'} on XNAT already, changed on arrival; "
                f"{'they are' if many else 'it is'} not sent again.",
            )

    def tell_failures(self, session: SessionPlan, scan: ScanPlan) -> None:
        """Say once per scan and cause what did not work, with the rows it concerns."""
        causes: dict[tuple[Status, str], list[Row]] = defaultdict(list)
        for row in scan.rows:
            outcome = self.outcomes.get(row.file)
            told = (Status.SUCCESS, Status.INTERRUPTED, Status.DUPLICATE)
            if outcome is not None and outcome.status not in told:
                causes[outcome.status, outcome.message].append(row)
        for (status, message), rows in causes.items():
            logger.warning(
                "%s, scan %s: %s %s (%s). %s",
                session.session_label, scan.scan_id, report.plural(len(rows), "file"), status, row_numbers(rows),
                message,
            )  # fmt: skip


def row_numbers(rows: Sequence[Row]) -> str:
    """Write which rows of the sheet these are: `Files rows 17-28, 40`."""
    spans: list[list[int]] = []
    for number in sorted(row.number for row in rows):
        if spans and number <= spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [f"{low}" if low == high else f"{low}-{high}" for low, high in spans[:5]]
    more = ", ..." if len(spans) > 5 else ""
    return f"{rows[0].sheet} row{'s' if len(rows) > 1 else ''} {', '.join(texts)}{more}"
