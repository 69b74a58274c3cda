"""The Configuration sheet: a new one, and the lines of one that people have filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xnatuploader import errors, records
from xnatuploader.workbook import cells, package, sheet, structure

NAME = "Configuration"


def read(
    book: package.Package, skeleton: structure.Structure, reader: sheet.CellReader
) -> tuple[records.ConfigurationLine, ...]:
    """Return the lines that hold anything. Raises SpreadsheetError where there is no such sheet."""
    worksheet = skeleton.sheet(NAME)
    if worksheet is None:
        raise errors.SpreadsheetError(
            f"{book.path} has no sheet named {NAME}. Give the right workbook with --spreadsheet, "
            "or make a new one with 'xnatuploader init' and copy that sheet into it."
        )
    lines = []
    with book.stream(worksheet.part) as stream:
        for number, row in sheet.RowStream(stream).rows():
            texts: list[str] = []
            for column, _, text in reader.cells(row):
                at = cells.column_number(column)
                if text:
                    texts.extend([""] * (at - len(texts)))
                    texts[at - 1] = text
            if texts:
                lines.append(records.ConfigurationLine(number, tuple(texts)))
    return tuple(lines)


_WIDTHS = {"A": 16, "B": 30, "C": 34}
"""Column letters -> width in characters; the others have 24."""
_INSTRUCTION_COLUMNS = 7
_CHARACTERS_IN_A_LINE = 150
_BLANK_ROWS = 60
"""Rows below the last line that are also text cells, for what people add."""


def write_new(path: Path, layout: Sequence[Sequence[str]]) -> None:
    """Write a workbook with this one sheet to `path`, whatever is there.

    `layout`: rows of texts. The rows above the first one that has a section name in A and anything in B are
    instructions: their text in A spans the sheet, the first of them is the title.
    """
    import openpyxl
    from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
    from openpyxl.worksheet.properties import PageSetupProperties

    title = Font(name="Calibri", bold=True, size=14, color="1F4E79")
    section = Font(name="Calibri", bold=True, color="1F4E79")
    label = Font(name="Calibri", bold=True)
    band = PatternFill("solid", fgColor="DDEBF7")
    line = Border(top=Side(style="thin", color="9BC2E6"))
    book = openpyxl.Workbook()
    page = book.active
    assert page is not None
    page.title = NAME
    page.sheet_view.showGridLines = False
    first = next((index for index, row in enumerate(layout) if any(row[1:])), 0)
    width = max([_INSTRUCTION_COLUMNS, *map(len, layout)])
    for letters in map(records.column_letters, range(1, width + 1)):
        page.column_dimensions[letters].width = _WIDTHS.get(letters, 24)
        page.column_dimensions[letters].number_format = "@"
    for number, row in enumerate((*layout, *[()] * _BLANK_ROWS), 1):
        for column in range(1, width + 1):
            cell = page.cell(number, column)
            cell.number_format = "@"
            text = row[column - 1] if column <= len(row) else ""
            if text:
                cell.value = cells.shown(text)
                cell.data_type = "s"  # also where it begins with `=`
        if number <= first:
            text = row[0] if row else ""
            page.merge_cells(f"A{number}:{records.column_letters(_INSTRUCTION_COLUMNS)}{number}")
            head = page.cell(number, 1)
            head.font = title if number == 1 else Font(name="Calibri", color="404040")
            head.alignment = Alignment(wrap_text=True, vertical="top")
            lines = sum(1 + len(part) // _CHARACTERS_IN_A_LINE for part in text.split("\n"))
            page.row_dimensions[number].height = 22 if number == 1 else 15 * lines + 2
            continue
        if row and row[0]:
            for column in range(1, width + 1):
                page.cell(number, column).border = line
                page.cell(number, column).fill = band
            page.cell(number, 1).font = section
        page.cell(number, 2).font = label
    page.page_setup.orientation = "landscape"
    page.page_setup.fitToHeight = 0
    page.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
    book.save(path)
