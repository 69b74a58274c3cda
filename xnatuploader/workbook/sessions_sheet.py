"""The Sessions sheet: one row per XNAT session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xnatuploader import records
from xnatuploader.workbook import cells, editor, fresh, package, rewrite, sheet, structure, styles, table

NAME = "Sessions"
KEY = "SessionLabel"

HEADINGS: Mapping[str, str] = {
    "Upload": "upload",
    "Subject": "subject",
    "SessionLabel": "session_label",
    "Date": "date",
    "Modality": "modality",
    "Scans": "scans",
    "Files": "files",
    "Size": "size",
    "Done": "done",
    "Failed": "failed",
    "Left": "left",
    "Warnings": "warnings",
    "Release review": "release_review",
    "Join": "join",
    "Link": "link",
}
"""Heading -> field of `SessionRow`, in the order of the columns."""
_DECISIONS = ("Upload", "Release review", "Join")
"""Columns of a session that is there already in which only people write."""
_NUMBERS = ("Scans", "Files", "Size", "Done", "Failed", "Left")
_WIDTHS = {"Subject": 18, "SessionLabel": 26, "Date": 11, "Warnings": 90, "Release review": 15, "Link": 70}


def read(
    book: package.Package, worksheet: structure.Sheet, reader: sheet.CellReader
) -> tuple[records.SessionRow, ...]:
    """Return the rows that name a session. Raises SpreadsheetError without the columns that decide."""
    listed = table.ListSheet(book, worksheet, reader, KEY)
    listed.require("Upload")
    rows = (_session(texts) for _, texts in listed.texts(tuple(HEADINGS)))
    return tuple(row for row in rows if row.session_label)


def _day(text: str) -> str:
    return text.replace("-", "") if len(text) == 10 and text.count("-") == 2 else text


def _whole(text: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return 0


_READ: Mapping[str, Callable[[str], Any]] = {
    "SessionLabel": cells.label,
    "Date": _day,
    **dict.fromkeys(_NUMBERS, _whole),
    **dict.fromkeys(_DECISIONS, records.is_yes),
}
"""What makes a value of a cell's text, where it is not the text itself."""
_STYLE: Mapping[str, Callable[[styles.Styles], int]] = {
    **dict.fromkeys(_NUMBERS, styles.Styles.number),
    "Size": styles.Styles.size,
    "Warnings": styles.Styles.indented,
    "Link": styles.Styles.link,
}


def _session(texts: Sequence[str]) -> records.SessionRow:
    values: dict[str, Any] = {
        field: _READ.get(heading, str)(text)
        for (heading, field), text in zip(HEADINGS.items(), texts, strict=True)
    }
    return records.SessionRow(**values)


def _values(row: records.SessionRow) -> list[str | int]:
    """Return what the cells of a row hold, in the order of `HEADINGS`."""
    values = (getattr(row, field) for field in HEADINGS.values())
    return [("Y" if value else "N") if isinstance(value, bool) else value for value in values]


def write(
    work: editor.Editor, sessions: Sequence[records.SessionRow], restart: bool = False
) -> list[rewrite.SheetChange]:
    """Add the Sessions sheet, or return the change that brings it up to date. Rows of other sessions stay as they are.

    `restart` begins a new sheet, on which sessions of the old one keep what people decided about them.
    """
    worksheet = work.skeleton.sheet(NAME)
    if worksheet is None:
        _write_new(work, sessions)
    elif restart:
        decided = {_key(old): old for old in read(work.book, worksheet, work.reader)}
        work.set_aside(worksheet, NAME)
        _write_new(work, [_with_decisions(row, decided.get(_key(row), row)) for row in sessions])
    else:
        return [_change(work, worksheet, sessions)]
    return []


def _key(row: records.SessionRow) -> tuple[str, str]:
    return row.session_label, row.subject


def _with_decisions(row: records.SessionRow, old: records.SessionRow) -> records.SessionRow:
    return replace(row, upload=old.upload, release_review=old.release_review, join=old.join)


def _write_new(work: editor.Editor, sessions: Sequence[records.SessionRow]) -> None:
    columns = [
        fresh.Column(
            heading,
            _WIDTHS.get(heading, 10),
            _STYLE.get(heading, styles.Styles.text)(work.styles),
            choice=heading in _DECISIONS,
        )
        for heading in HEADINGS
    ]
    fresh.add(work, NAME, columns, map(_values, sessions), len(sessions))


def _change(
    work: editor.Editor, worksheet: structure.Sheet, sessions: Sequence[records.SessionRow]
) -> rewrite.SheetChange:
    old = table.ListSheet(work.book, worksheet, work.reader, KEY)
    letters, columns = old.add_columns(tuple(HEADINGS)), old.columns
    waiting = {_key(row): row for row in sessions}
    rows: dict[int, records.SessionRow] = {}
    for number, (label, subject) in old.texts((KEY, "Subject")):
        row = waiting.pop((cells.label(label), subject), None)
        if row is not None:
            rows[number] = row

    def edit(number: int, xml: str) -> Mapping[str, rewrite.Value]:
        return _changes(rows[number], number, xml, columns, work.reader) if number in rows else {}

    after = old.last_row() if waiting else 0
    rows_there = {**rows, **dict(enumerate(waiting.values(), after + 1))}
    edited = [columns[heading] for heading in HEADINGS if heading not in _DECISIONS]
    links = _links(work, worksheet, columns["Link"], rows_there)
    new = map(_values, waiting.values())
    return rewrite.SheetChange(old, edit, edited, letters, new, len(waiting), after, links)


def _links(
    work: editor.Editor, worksheet: structure.Sheet, column: str, rows: Mapping[int, records.SessionRow]
) -> dict[str, str]:
    """Make links of the URLs that the sheet does not lead to yet. `rows`: by their numbers."""
    known = {link.target for link in work.book.relationships(worksheet.part) if link.external}
    return {
        f"{column}{number}": work.link_to(worksheet.part, row.link)
        for number, row in sorted(rows.items())
        if row.link.startswith(("http://", "https://")) and row.link not in known
    }


def _changes(
    row: records.SessionRow, number: int, xml: str, columns: Mapping[str, str], reader: sheet.CellReader
) -> dict[str, rewrite.Value]:
    changes: dict[str, rewrite.Value] = {}
    for heading, value in zip(HEADINGS, _values(row), strict=True):
        kind, text = reader.cell(xml, f"{columns[heading]}{number}")
        if kind == sheet.DATE:
            text = _day(text)
        if heading not in _DECISIONS and text != str(value):
            changes[columns[heading]] = value
    return changes
