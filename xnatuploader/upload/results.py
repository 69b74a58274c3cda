"""What uploads found out, into the workbook: outcomes onto rows, journals left behind, saving while Excel may look."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xnatuploader import errors
from xnatuploader.records import Outcome, Row, SessionRow
from xnatuploader.scan import sessions
from xnatuploader.upload import journal
from xnatuploader.workbook import book

logger = logging.getLogger(__name__)


Place = tuple[str, str, str]
"""Server ('' in older journals), project and label of a session."""


def same_server(one: str, other: str) -> bool:
    """Tell whether two addresses are one server's: scheme, default port, case and a last slash make no difference."""
    return _plain_address(one) == _plain_address(other)


def _plain_address(address: str) -> str:
    host, slash, path = re.sub(r"^[a-z]+://", "", address.strip().lower()).partition("/")
    return re.sub(r":(80|443)$", "", host) + (slash + path).rstrip("/")


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What a journal left by an earlier run said."""

    outcomes: int = 0
    """Files whose outcome came from it."""
    unfinished: Mapping[Place, Set[journal.Made]] = field(default_factory=dict)
    """Sessions to which files were sent and whose steps after the upload were not -> the scans made there."""
    waiting: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes that could not go into the workbook, because it is open elsewhere: the journal keeps them."""
    locked: str = ""
    """Why not."""

    def unfinished_at(self, server: str, project: str) -> dict[str, Set[journal.Made]]:
        """Return the unfinished sessions of one project, by label."""
        return {place[2]: made for place, made in self.unfinished.items() if _is_at(place, server, project)}

    def unfinished_elsewhere(self, server: str, project: str) -> dict[Place, Set[journal.Made]]:
        """Return those of other servers and projects."""
        return {place: made for place, made in self.unfinished.items() if not _is_at(place, server, project)}


def _is_at(place: Place, server: str, project: str) -> bool:
    return place[1] == project and (not place[0] or same_server(place[0], server))


def onto(row: Row, outcome: Outcome) -> Row:
    """Return `row` as it stands after `outcome`."""
    changed: dict[str, Any] = {"status": outcome.status, "message": outcome.message}
    for name in ("md5", "filename", "session_label", "scan_id", "resource", "size", "modified"):
        given = getattr(outcome, name)
        if given:
            changed[name] = given
    return replace(row, **changed)


def applied(rows: Iterable[Row], outcomes: Mapping[str, Outcome]) -> list[Row]:
    """Return the rows with each one's outcome."""
    return [onto(row, outcomes[row.file]) if row.file in outcomes else row for row in rows]


def take_in(spreadsheet: Path) -> TakenIn:
    """Write what earlier runs' journals hold into the workbook, and drop what was seen to stand there.

    Where the workbook cannot be written the journal stays as it is, and its outcomes are `waiting`.
    """
    left = journal.read(spreadsheet)
    if not left.outcomes and not left.notes:
        if left.meta:
            journal.remove(spreadsheet)
        return TakenIn()
    unfinished = _unfinished(left)
    homeless: Mapping[str, Outcome] = {}
    if left.outcomes:
        opened = book.Book.open(spreadsheet)
        rows = applied(opened.rows(), left.outcomes)
        try:
            homeless = save(spreadsheet, left.outcomes, sessions.session_rows(rows, opened.sessions()))
        except errors.SpreadsheetLocked as trouble:
            return TakenIn(0, unfinished, left.outcomes, str(trouble))
        logger.info("Took in the results of an earlier run: %d files.", len(left.outcomes) - len(homeless))
    begin_anew(spreadsheet, unfinished, homeless)
    return TakenIn(len(left.outcomes) - len(homeless), unfinished)


def _unfinished(left: journal.JournalContent) -> dict[Place, set[journal.Made]]:
    """Return the sessions whose steps after the upload are to be done, with the scans made there."""
    found: dict[Place, set[journal.Made]] = defaultdict(set)
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
    spreadsheet: Path, unfinished: Mapping[Place, Set[journal.Made]], homeless: Mapping[str, Outcome]
) -> None:
    """Drop the journal, but for what no workbook holds.

    That is which sessions still want their steps after the upload, and outcomes of files without a row.
    """
    journal.remove(spreadsheet)
    if unfinished or homeless:
        with journal.Journal.open(spreadsheet) as fresh:
            for place in sorted(unfinished):
                named = dict(zip(("server", "project", "session"), place, strict=True))
                fresh.note("touched", **named)
                for session, scan in sorted(unfinished[place]):
                    fresh.note("made", **named, id=session, scan=scan)
            for outcome in homeless.values():
                fresh.outcome(outcome)


def save(
    spreadsheet: Path, outcomes: Mapping[str, Outcome], session_rows: Sequence[SessionRow]
) -> Mapping[str, Outcome]:
    """Write outcomes into the workbook; return those that were not seen there afterwards (their rows are gone).

    Raises `SpreadsheetLocked` where the workbook cannot be written, or was deleted or replaced meanwhile.
    """
    try:
        standing = book.write_outcomes(spreadsheet, outcomes, session_rows)
    except errors.SpreadsheetError as trouble:
        raise errors.SpreadsheetLocked(
            f"{trouble} The results are safe in {journal.beside(spreadsheet)}: put the workbook back and run "
            "upload again."
        ) from trouble
    homeless = {file: outcome for file, outcome in outcomes.items() if file not in standing}
    if homeless:
        logger.warning(
            "The results of %d files have no row in %s any more; they are kept in %s. Run scan on the same folder "
            "to list those files again.",
            len(homeless),
            spreadsheet,
            journal.beside(spreadsheet),
        )
    return homeless
