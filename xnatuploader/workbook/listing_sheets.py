"""Writing the list of files: a new list, a scan's rows into an old one, an upload's outcomes."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence

from xnatuploader import records
from xnatuploader.workbook import cells, editor, files_sheet, fresh, rewrite, structure, table

_WIDTHS = {
    "Pattern": 12, "File": 60, "Filename": 26, "Upload": 10, "Status": 13, "Message": 60, "Subject": 16,
    "Session": 12, "Dataset": 22, "SessionLabel": 26, "ScanID": 10, "Resource": 11, "Size": 12, "Modified": 22,
    "MD5": 36, "DICOM:SeriesDescription": 28, "DICOM:StudyDescription": 28, "DICOM:StudyInstanceUID": 52,
    "DICOM:SeriesInstanceUID": 52, "DICOM:SOPInstanceUID": 52,
}  # fmt: skip


_HEADINGS = {field: heading for heading, field in records.COLUMNS.items()}
OUTCOME_HEADINGS = tuple(_HEADINGS[field] for field in records.OUTCOME_FIELDS)
_ALWAYS = ("Status", "Message")
"""Headings under which an outcome is written even where its text is empty."""


def write(
    work: editor.Editor, rows: Sequence[records.Row], headings: Sequence[str], restart: bool
) -> list[rewrite.SheetChange]:
    """Bring the Files sheets up to date: add new sheets, return the changes of those that are there.

    The row of a file that is listed changes where it is; all others are added at the end of the last sheet.
    """
    worksheets = work.skeleton.series(files_sheet.NAME)
    if restart:
        for worksheet in worksheets:
            work.set_aside(worksheet, files_sheet.NAME)
        worksheets = ()
    if not worksheets:
        _write_new(work, rows, headings, 1)
        return []
    waiting: dict[str, list[records.Row]] = {}
    for row in rows:
        waiting.setdefault(row.file, []).append(row)
    changes = [_change(work, worksheet, headings, waiting) for worksheet in worksheets]
    not_listed = {id(row) for left in waiting.values() for row in left}
    new = [row for row in rows if id(row) in not_listed]
    if new:
        last = changes[-1].old.last_row()
        fit = fresh.LAST_ROW - last
        texts = map(files_sheet.texts_of(headings), new[:fit])
        changes[-1] = dataclasses.replace(
            changes[-1], filled=changes[-1].edited, values=texts, count=len(new[:fit]), after=last
        )
        if new[fit:]:
            _write_new(work, new[fit:], headings, _number(worksheets[-1]) + 1)
    return changes


def _number(worksheet: structure.Sheet) -> int:
    """Return the 2 of `Files 2`, 1 for `Files`."""
    number = worksheet.name.rpartition(" ")[2]
    return int(number) if number.isdecimal() else 1


def _write_new(
    work: editor.Editor, rows: Sequence[records.Row], headings: Sequence[str], number: int
) -> None:
    """Add as many sheets as the rows fill, one for no rows; the first is `Files` (1), `Files 2`, ..."""
    columns = [
        fresh.Column(
            heading,
            # The heading and its filter button have to fit.
            width=_WIDTHS.get(heading, max(14, len(heading) + 5)),
            style=work.styles.text(),
            choice=heading == "Upload",
            signals=heading == "Status",
        )
        for heading in headings
    ]
    texts = files_sheet.texts_of(headings)
    fit = fresh.LAST_ROW - 1
    for begin in range(0, max(len(rows), 1), fit):
        part = rows[begin : begin + fit]
        name = files_sheet.NAME if number == 1 else f"{files_sheet.NAME} {number}"
        fresh.add(work, name, columns, map(texts, part), len(part))
        number += 1


def _change(
    work: editor.Editor,
    worksheet: structure.Sheet,
    headings: Sequence[str],
    waiting: Mapping[str, list[records.Row]],
) -> rewrite.SheetChange:
    """Return the change of one sheet, and take from `waiting` (file -> rows) the rows that it has already."""
    old = table.ListSheet(work.book, worksheet, work.reader, files_sheet.KEY)
    matched = {
        number: waiting[file].pop(0) for number, (file,) in old.texts((files_sheet.KEY,)) if waiting.get(file)
    }
    letters = old.add_columns(headings)
    layout, texts = files_sheet.Layout(old), files_sheet.texts_of(headings)

    def edit(number: int, xml: str) -> Mapping[str, rewrite.Value]:
        row = matched.get(number)
        if row is None:
            return {}
        now = layout.texts_by_column(xml, number)
        return {
            column: text
            for heading, column, text in zip(headings, letters, texts(row), strict=True)
            if now.get(column, "") != text and not _says(heading, now.get(column, ""), text)
        }

    return rewrite.SheetChange(old, edit, letters)


def _says(heading: str, cell: str, text: str) -> bool:
    """Tell whether a cell that does not hold `text` letter by letter says the same."""
    if heading == "Upload":
        return records.is_yes(cell) == records.is_yes(text)
    if heading == "Status":
        return cell.strip().lower() == text
    return cells.from_xml(cells.to_xml(text)) == cell


def write_outcomes(work: editor.Editor, outcomes: Mapping[str, records.Outcome]) -> list[rewrite.SheetChange]:
    """Return the changes that write outcomes into the rows of their files."""
    if not outcomes:
        return []
    headings = named_by(outcomes)
    return [
        _outcomes(work, worksheet, outcomes, headings) for worksheet in work.skeleton.series(files_sheet.NAME)
    ]


def _outcomes(
    work: editor.Editor,
    worksheet: structure.Sheet,
    outcomes: Mapping[str, records.Outcome],
    headings: Sequence[str],
) -> rewrite.SheetChange:
    old = table.ListSheet(work.book, worksheet, work.reader, files_sheet.KEY)
    letters = old.add_columns(headings)
    key, texts, cell = old.columns[files_sheet.KEY], files_sheet.texts_of(headings), work.reader.cell

    def edit(number: int, xml: str) -> Mapping[str, rewrite.Value]:
        outcome = outcomes.get(cell(xml, f"{key}{number}")[1])
        if outcome is None:
            return {}
        return {
            column: text
            for heading, column, text in zip(headings, letters, texts(outcome), strict=True)
            if (text or heading in _ALWAYS) and cell(xml, f"{column}{number}")[1] != text
        }

    return rewrite.SheetChange(old, edit, letters)


def named_by(outcomes: Mapping[str, records.Outcome]) -> tuple[str, ...]:
    """Return the headings under which these outcomes write anything."""
    return tuple(
        heading
        for heading in OUTCOME_HEADINGS
        if heading in _ALWAYS or any(map(operator.attrgetter(records.COLUMNS[heading]), outcomes.values()))
    )


def is_written(headings: Sequence[str], wanted: Sequence[str], texts: Sequence[str]) -> bool:
    """Tell whether the `texts` of a row's cells say what is `wanted` under the headings that `named_by` returned."""
    return all(
        want == text or cells.from_xml(cells.to_xml(want)) == text
        for heading, want, text in zip(headings, wanted, texts, strict=True)
        if want or heading in _ALWAYS
    )
