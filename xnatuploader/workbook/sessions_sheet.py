"""The Sessions sheet: one line per XNAT session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xnatuploader import records
from xnatuploader.workbook import cells, editor, fresh, moving, package, rewrite, sheet, structure, table

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

Key = tuple[str, str]


def read(
    book: package.Package, place: structure.Sheet, reader: sheet.CellReader
) -> tuple[records.SessionRow, ...]:
    """Return the lines that name a session. Raises SpreadsheetError without the columns that decide."""
    header = table.read_header(book, place, reader, KEY)
    table.require(header, "Upload", book, place)
    found = []
    for _, texts in table.columns_of(book, place, reader, header, tuple(HEADINGS)):
        text = dict(zip(HEADINGS.values(), texts, strict=True))
        if text["session_label"]:
            found.append(_session(text))
    return tuple(found)


def _session(text: Mapping[str, str]) -> records.SessionRow:
    return records.SessionRow(
        subject=text["subject"],
        session_label=cells.label(text["session_label"]),
        upload=cells.is_yes(text["upload"]),
        date=_day(text["date"]),
        modality=text["modality"],
        scans=_whole(text["scans"]),
        files=_whole(text["files"]),
        size=_whole(text["size"]),
        done=_whole(text["done"]),
        failed=_whole(text["failed"]),
        left=_whole(text["left"]),
        warnings=text["warnings"],
        release_review=cells.is_yes(text["release_review"]),
        join=cells.is_yes(text["join"]),
        link=text["link"],
    )


def _day(text: str) -> str:
    return text.replace("-", "") if len(text) == 10 and text.count("-") == 2 else text


def _whole(text: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return 0


def _value(row: records.SessionRow, heading: str) -> str | int:
    value = getattr(row, HEADINGS[heading])
    if isinstance(value, bool):
        return "Y" if value else "N"
    return value if isinstance(value, int) else str(value)


def _style(work: editor.Editor, heading: str) -> int:
    if heading == "Size":
        return work.styles.size()
    if heading in _NUMBERS:
        return work.styles.number()
    if heading == "Warnings":
        return work.styles.indented()
    if heading == "Link":
        return work.styles.link()
    return work.styles.text()


Plans = list[tuple[structure.Sheet, rewrite.Plan]]


def write(work: editor.Editor, sessions: Sequence[records.SessionRow], keep_others: bool) -> Plans:
    """Add the Sessions sheet, or return the plan that brings it up to date.

    `keep_others`: lines of other sessions stay. A scan, which says all there are, leaves an empty sheet too.
    """
    place = work.skeleton.sheet(NAME)
    if place is None:
        if sessions or not keep_others:
            _write_new(work, sessions)
        return []
    header = table.read_header(work.book, place, work.reader, KEY)
    return [(place, _plan(work, place, header, sessions, keep_others))]


def _write_new(work: editor.Editor, sessions: Sequence[records.SessionRow]) -> None:
    columns = [
        fresh.Column(heading, _WIDTHS.get(heading, 10), _style(work, heading), choice=heading in _DECISIONS)
        for heading in HEADINGS
    ]
    rows = [[_value(row, heading) for heading in HEADINGS] for row in sessions]
    writer = fresh.writer(columns, rows, len(rows), work.styles.header(), {})
    where = fresh.range_name(NAME, len(columns), len(rows))
    work.add_sheet(NAME, writer, 2_000 * len(rows), where)


def _plan(
    work: editor.Editor,
    place: structure.Sheet,
    header: table.Header,
    sessions: Sequence[records.SessionRow],
    keep_others: bool,
) -> rewrite.Plan:
    header, added = rewrite.add_columns(header, tuple(HEADINGS))
    matched, new, removed, last = _match(work, place, header, sessions)
    if keep_others:
        removed = frozenset()
    order = sorted(HEADINGS, key=lambda heading: cells.column_number(header.columns[heading]))
    rows = moving.RowMap(header.number, header.number + 1, last, {last: len(new)} if new else {}, removed)
    places = {rows.moved(number): row for number, row in matched.items()}
    places.update(enumerate(new, rows.first_inserted(last)))

    def edit(number: int, xml: str) -> Mapping[str, rewrite.Value]:
        row = matched.get(number)
        return {} if row is None else _changes(row, number, xml, header, work.reader)

    return rewrite.Plan(
        header=header,
        edit=edit,
        rows=rows,
        added=added,
        inserted={last: [[_value(row, heading) for heading in order] for row in new]} if new else {},
        columns=[header.columns[heading] for heading in order],
        removed=removed,
        links=_links(work, place, header, places),
        edits=[header.columns[heading] for heading in HEADINGS if heading not in _DECISIONS],
    )


def _match(
    work: editor.Editor, place: structure.Sheet, header: table.Header, sessions: Sequence[records.SessionRow]
) -> tuple[dict[int, records.SessionRow], list[records.SessionRow], frozenset[int], int]:
    """Return the sessions by their lines, those without one, the lines of others, and the last line."""
    wanted: dict[Key, records.SessionRow] = {(row.session_label, row.subject): row for row in sessions}
    matched: dict[int, records.SessionRow] = {}
    others = set()
    last = header.number
    for number, (label, subject) in table.columns_of(work.book, place, work.reader, header, (KEY, "Subject")):
        if label:
            last = number
            row = wanted.pop((cells.label(label), subject), None)
            if row is None:
                others.add(number)
            else:
                matched[number] = row
    return matched, list(wanted.values()), frozenset(others), last


def _links(
    work: editor.Editor,
    place: structure.Sheet,
    header: table.Header,
    rows: Mapping[int, records.SessionRow],
) -> list[fresh.Link]:
    """Make links of the URLs that the sheet does not lead to yet. `rows`: by their new row numbers."""
    known = {link.target for link in work.book.relationships(place.part) if link.external}
    column = header.columns["Link"]
    return [
        fresh.Link(f"{column}{number}", work.link_to(place.part, row.link))
        for number, row in sorted(rows.items())
        if row.link.startswith(("http://", "https://")) and row.link not in known
    ]


def _changes(
    row: records.SessionRow, number: int, xml: str, header: table.Header, reader: sheet.CellReader
) -> dict[str, rewrite.Value]:
    changes: dict[str, rewrite.Value] = {}
    for heading in HEADINGS:
        if heading in _DECISIONS:
            continue
        column = header.columns[heading]
        value = _value(row, heading)
        kind, text = reader.cell(xml, f"{column}{number}")
        if kind == sheet.DATE:
            text = _day(text)
        if text != str(value):
            changes[column] = value
    return changes
