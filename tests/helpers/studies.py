"""A user's workbook and folder: scanned, and edited as in a spreadsheet program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import openpyxl
from openpyxl.worksheet.worksheet import Worksheet

from tests.helpers import runs
from tests.helpers.runs import Ran, Runner
from xnatuploader.records import Row, SessionRow
from xnatuploader.workbook import book


class Study:
    """`study.xlsx` in the current folder, and the folder `data` beside it."""

    def __init__(self, run: Runner, folder: Path, name: str = "study.xlsx") -> None:
        self.run = run
        self.book = folder / name
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)

    def init(self) -> Ran:
        return self.run("init", "--spreadsheet", self.book)

    def scan(self, *more: str) -> Ran:
        folder = () if "--dir" in more else ("--dir", self.data)
        return self.run("scan", "--spreadsheet", self.book, *folder, *more)

    def rows(self) -> dict[str, Row]:
        """Return the rows of all Files sheets by their File."""
        return {row.file: row for row in book.Book.open(self.book).rows()}

    def row(self, text: str) -> Row:
        """Return the one row whose File contains this text."""
        (found,) = [row for file, row in self.rows().items() if text in file]
        return found

    def sessions(self) -> dict[str, SessionRow]:
        return {row.session_label: row for row in book.Book.open(self.book).sessions()}

    # --- as in a spreadsheet program

    def edit(self, changes: Callable[[openpyxl.Workbook], None]) -> None:
        runs.edit(changes, self.book)

    def set(self, heading: str, value: object, words: str = "", sheet: str = "Files") -> None:
        """Put `value` under `heading` in every line of a sheet that holds `words` in some cell."""

        def change(opened: openpyxl.Workbook) -> None:
            column = headings_of(opened[sheet])[heading]
            for line in opened[sheet].iter_rows(min_row=2):
                if any(words in str(cell.value) for cell in line):
                    line[column].value = value  # type: ignore[assignment]

        self.edit(change)

    def configure(self, section: str, label: str, *values: str) -> None:
        """Fill the row `label` of the Configuration sheet, or add one at the end of `section`."""
        self.edit(lambda opened: _configure(opened["Configuration"], section, label, values))

    def texts(self, sheet: str = "Files") -> list[dict[str, object]]:
        """Return the lines of a sheet as heading -> value, as openpyxl reads them."""
        lines = list(openpyxl.load_workbook(self.book)[sheet].iter_rows(values_only=True))
        return [dict(zip(map(str, lines[0]), line, strict=True)) for line in lines[1:]]


def headings_of(sheet: Worksheet) -> Mapping[str, int]:
    return {str(cell.value): index for index, cell in enumerate(sheet[1])}


def _configure(sheet: Worksheet, section: str, label: str, values: tuple[str, ...]) -> None:
    current, last = "", 0
    for line in sheet.iter_rows(min_col=1, max_col=12):
        current = str(line[0].value or current)
        if current == section and line[1].value:
            last = line[1].row
            if line[1].value == label:
                break
    else:
        sheet.insert_rows(last + 1)
        last += 1
        sheet.cell(last, 2).value = label
    for column in range(3, 12):
        sheet.cell(last, column).value = values[column - 3] if column - 3 < len(values) else None
