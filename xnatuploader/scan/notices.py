"""What a scan tells at its end: counts, the most common reasons why files are not uploaded, and what to do next.

Nothing here quotes a path, a Subject or a Session: they may hold patients' names, and screens are shared.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from xnatuploader import paths, records
from xnatuploader.config import sheet, suggest
from xnatuploader.console import report
from xnatuploader.dicom import pool, reader
from xnatuploader.records import FoundFile, Row, SessionRow, Status
from xnatuploader.scan import sessions
from xnatuploader.scan.rows import Listing

WIDTH = 100
"""Columns of the summary; a Windows prompt has 120."""

FILES_OPENED = 2_000
"""Files that are opened, where no path fits, to see which of them hold DICOM."""

MEANINGS: Mapping[str, str] = {
    "not tried": "are ready for an upload, or have Upload N",
    "success": "are on XNAT",
    "failed": "were tried and are not on XNAT",
    "interrupted": "were not tried, because the upload was stopped",
    "conflict": "need your decision: see Message",
    "missing": "are listed but no longer in the folder",
    "unmatched": "cannot be sent yet: see Message",
    "skipped": "are not images, or are damaged",
    "review": "may show in the picture who the patient is",
    "duplicate": "hold an image that is already listed, or that XNAT holds already",
    "not listed": "fit no pattern, or are not DICOM; scan --unmatched lists them",
}
"""Status word -> what it says of these files."""

_LISTED = "This image is already listed."
_HELD = f"{records.HELD}, in another form."
_CONFLICTS = "You have to decide something first: see Message in the sheet Files."
"""Said in place of the messages in the sheet, which name files, Subjects and Sessions."""


def summary(
    listing: Listing,
    rows: Sequence[Row],
    session_rows: Sequence[SessionRow],
    settings: sheet.Config,
    workbook: Path,
) -> report.Result:
    """Return how a scan of `listing` ended, whose rows and sessions the workbook holds now."""
    counts = report.count_statuses(rows)
    may_travel = sessions.Gate(session_rows)
    going = [row for row in rows if row.status is not Status.MISSING and may_travel(row)]
    listed = [row for row in rows if sessions.has_session(row)]
    labels = {row.session_label for row in listed}
    scans = {(row.session_label, row.scan_id) for row in listed}
    size = sum(int(row.size) for row in going if row.size.isdigit())
    reasons = _reasons(rows, listing)
    lines = [
        f"{report.plural(listing.files, 'file')} in {listing.folder}: {report.plural(len(going), 'file')} to upload "
        f"({report.human_bytes(size)}). The list holds {report.plural(len(labels), 'session')} with "
        f"{report.plural(len(scans), 'scan')}.",
        *(
            f"{count:>11,}  {word:<11}  {MEANINGS[word]}"
            for word, count in {**counts, "not listed": len(listing.unlisted)}.items()
            if count
        ),
    ]
    if reasons:
        lines.append("The most common reasons why files are not uploaded:")
        lines += [_wrapped(reason, f"{count:>11,}  ") for reason, count in reasons]
    lines += _decisions(counts)
    if listing.files and len(listing.misfits) == listing.files:
        lines += _nothing_matched(listing, settings, workbook)
    else:
        lines += _next_step(listing, workbook, len(going))
    return report.Result(
        exit_code=1 if counts.get("conflict") else 0,
        text="\n".join(lines),
        files=counts,
        sessions=len(labels),
        scans=len(scans),
        bytes=size,
        problems=tuple(f"{count} x {reason}" for reason, count in reasons),
    )


def _reasons(rows: Sequence[Row], listing: Listing) -> list[tuple[str, int]]:
    """Return the three most common reasons why files are not going to be sent."""
    shown = (Status.SKIPPED, Status.REVIEW, Status.MISSING)
    reasons = Counter(row.message for row in rows if row.status in shown)
    duplicates = [row.message for row in rows if row.status is Status.DUPLICATE]
    reasons[_HELD] = sum(message.startswith(records.HELD) for message in duplicates)
    reasons[_LISTED] = len(duplicates) - reasons[_HELD]
    reasons[_CONFLICTS] = sum(row.status is Status.CONFLICT for row in rows)
    # For a path that fits no set its cause is shown: the message in the sheet quotes the path.
    reasons.update(
        row.message
        for row in rows
        if row.status is Status.UNMATCHED and row.pattern and row.message not in listing.causes
    )
    return [(reason, count) for reason, count in (reasons + listing.causes).most_common(3) if count]


def _wrapped(text: str, first: str = "") -> str:
    """Break `text` into lines that hang below the end of `first`."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _decisions(counts: Mapping[str, int]) -> Iterator[str]:
    if counts.get("review"):
        yield _wrapped(
            f"To release {report.plural(counts['review'], 'review file')}: look at the pictures, then put Y in "
            "Release review of their session (sheet Sessions), or in Upload of single rows (sheet Files)."
        )
    if counts.get("conflict"):
        yield _wrapped(
            f"{report.plural(counts['conflict'], 'row')} in conflict: filter the sheet Files by Status, do what "
            "Message says, and scan again."
        )


def _next_step(listing: Listing, workbook: Path, going: int) -> Iterator[str]:
    if not listing.files:
        yield f"There are no files in {listing.folder}: give the folder that holds the data with --dir."
    elif not going:
        yield f"There is nothing to upload now; the sheets Sessions and Files of {workbook} say why."
    else:
        yield f"Next: look through the sheets Sessions and Files of {workbook}, close it, then run:"
        yield f"  xnatuploader upload --spreadsheet {paths.typed(workbook)} --dir {paths.typed(listing.folder)}"


def _nothing_matched(listing: Listing, settings: sheet.Config, workbook: Path) -> Iterator[str]:
    """Say what the folder looks like, and which rows of the Paths section would fit it."""
    some = [FoundFile(file, 0, "") for file in listing.misfits[:FILES_OPENED]]
    headers = pool.read_all(
        listing.folder, some, (), reader.Rules(frozenset(), frozenset()), jobs=listing.jobs
    )
    holds_dicom = [header.status is not Status.UNMATCHED for _, header in headers]
    yield "No file fits a pattern set of the Configuration sheet, so nothing can be uploaded yet."
    yield f"Files opened: {len(some):,}. Files with DICOM among them: {sum(holds_dicom):,}."
    shapes = suggest.suggest(
        listing.misfits[:FILES_OPENED],
        holds_dicom,
        needed=settings.mapped_captures,
        taken=[one.label for one in settings.matcher.sets],
    )
    yield from (f"  {line}" for shape in shapes for line in shape.lines())
    if any(holds_dicom):
        yield _wrapped(
            f"Next: open {workbook} and add the row that suits your files to the section Paths: its label in column B, "
            "each further part in a cell of its own. Save, close it, and scan again."
        )
    else:
        yield "Next: check that --dir is the folder that holds the DICOM files."
