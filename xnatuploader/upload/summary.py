"""How an upload ends: what was not reached is marked, everything is saved, and the run says what it did."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from xnatuploader import errors
from xnatuploader.console import report
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload import results
from xnatuploader.upload.state import Ledger, row_numbers

logger = logging.getLogger(__name__)

NOT_FINISHED = "The run was stopped before this file was sent."


def end(
    ledger: Ledger, trouble: errors.XnatUploaderError | None, by_user: bool, selected: Sequence[Row]
) -> report.Result:
    """Mark what was not reached, save, and say how the run ended."""
    for row in selected:
        if row.file not in ledger.outcomes and row.status is not Status.SUCCESS:
            ledger.record(Outcome(row.file, Status.INTERRUPTED, NOT_FINISHED))
    troubles = [trouble] if trouble is not None else []
    try:
        if not ledger.asked.lock_lost.is_set():
            homeless = ledger.save()
            ledger.journal.close()
            results.begin_anew(ledger.asked.spreadsheet, ledger.still_due(), homeless)
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


def _counted(ledger: Ledger) -> dict[str, int]:
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


def _summary(counts: Mapping[Status, int], ledger: Ledger, by_user: bool, in_trouble: bool) -> str:
    words = [f"{counts[status]:,} {status.value}" for status in Status if counts.get(status)]
    lines = [f"{', '.join(words) or 'Nothing was sent'} ({report.human_bytes(ledger.sent_bytes)} sent)."]
    for message, count in _commonest(ledger.outcomes.values()):
        rows = [
            row
            for row in ledger.rows
            if (outcome := ledger.outcomes.get(row.file)) and outcome.message == message
        ]
        lines.append(f"  {count:,} x {message} ({row_numbers(rows)})")
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
