"""How an upload ends: what was not reached is marked, everything is saved, and the run says what it did."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from xnatuploader import errors
from xnatuploader.console import report
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload.state import UploadState, begin_anew, row_numbers

logger = logging.getLogger(__name__)

NOT_FINISHED = "The run was stopped before this file was sent."


def end(
    state: UploadState, error: errors.XnatUploaderError | None, by_user: bool, selected: Sequence[Row]
) -> report.Result:
    """Mark what was not reached, save, and say how the run ended."""
    for row in selected:
        if row.file not in state.outcomes and row.status is not Status.SUCCESS:
            state.record(Outcome(row.file, Status.INTERRUPTED, NOT_FINISHED))
    caught = [error] if error is not None else []
    try:
        if not state.lock_lost.is_set():
            without_row = state.save()
            state.journal.close()
            begin_anew(state.options.spreadsheet, state.still_due(), without_row)
    except errors.SpreadsheetLocked as locked:
        caught.append(
            errors.SpreadsheetLocked(
                f"{locked} Results are safe in {state.journal.path} and go into the workbook with the next run."
            )
        )
    for one in caught:
        logger.error("%s", one)
    outcomes = state.outcomes.values()
    counts = Counter(outcome.status for outcome in outcomes)
    return report.Result(
        exit_code=_exit_code(caught, counts, by_user),
        text=_summary(counts, state, by_user, bool(caught)),
        files=report.in_words(Counter(map(state.status_of, state.rows))),
        sessions=len({row.session_label for row in selected}),
        scans=len({(row.session_label, row.scan_id) for row in selected}),
        bytes=state.sent_bytes,
        problems=(
            *map(str, caught),
            *(f"{count} x {message}" for message, count in _commonest(outcomes)),
        ),
    )


def nothing_to_do(counts: Mapping[tuple[bool, Status], int]) -> report.Result:
    """Say why there is nothing to do, of rows counted by (Upload, Status): only files that were sent are there."""
    if not counts:
        text = "Nothing to do: the workbook lists no files. Run scan on the folder that holds the data."
    elif any(upload and status is Status.SUCCESS for upload, status in counts):
        text = "Nothing to do: every selected file is on the server already."
    else:
        text = "Nothing to do: no file is selected, by Upload in its own row (sheet Files) and in that of its session."
    by_status: Counter[Status] = Counter()
    for (_, status), count in counts.items():
        by_status[status] += count
    return report.Result(text=text, files=report.in_words(by_status))


def _exit_code(
    caught: Iterable[errors.XnatUploaderError], counts: Mapping[Status, int], by_user: bool
) -> int:
    """Return the first of 130, 3, 4, 5, 6, 1 that applies, 0 if none does."""
    codes = {error.exit_code for error in caught}
    if by_user:
        codes.add(130)
    if any(counts.get(status) for status in (Status.FAILED, Status.CONFLICT, Status.MISSING)):
        codes.add(1)
    return next((code for code in errors.EXIT_CODE_ORDER if code in codes), 0)


def _commonest(outcomes: Iterable[Outcome]) -> list[tuple[str, int]]:
    bad = (Status.FAILED, Status.CONFLICT, Status.MISSING)
    return Counter(outcome.message for outcome in outcomes if outcome.status in bad).most_common(3)


def _summary(counts: Mapping[Status, int], state: UploadState, by_user: bool, failed: bool) -> str:
    words = [f"{counts[status]:,} {status.value}" for status in Status if counts.get(status)]
    done = f"Files of this run: {', '.join(words)}; {report.human_bytes(state.sent_bytes)} sent."
    lines = [done if words else "Nothing was sent."]
    for message, count in _commonest(state.outcomes.values()):
        rows = [
            row
            for row in state.rows
            if (outcome := state.outcomes.get(row.file)) and outcome.message == message
        ]
        lines.append(f"  {count:,} x {message} ({row_numbers(rows)})")
    lines += state.notes
    left = counts.get(Status.INTERRUPTED, 0)
    if left:
        labels = {
            row.session_label
            for row in state.rows
            if (outcome := state.outcomes.get(row.file)) and outcome.status is Status.INTERRUPTED
        }
        in_time = not by_user and not failed and state.options.deadline is not None
        why = "Stopped in time, as asked: " if in_time else ""
        lines.append(
            f"{why}{report.plural(left, 'file')} in {report.plural(len(labels), 'session')} left to send. "
            "Run the same command again to go on."
        )
    return "\n".join(lines)
