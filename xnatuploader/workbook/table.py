"""A worksheet with a list on it: finding the columns by their headings, and reading the rows below."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from xnatuploader import errors, records
from xnatuploader.workbook import cells, package, sheet, structure

_HEADING_ROWS = 50
"""People put a title above a list; the headings are looked for this far down."""
_HOLDS_SOMETHING = re.compile(r"<(?:v|is|f)\b")
_FILLED = re.compile(r'<c r="([A-Z]+)\d+"[^>/]*>(?!</c>)')
_MERGED = re.compile(r'<(?:\w+:)?mergeCell\b[^>]*\sref="\w+:[A-Z]+(\d+)"')


class ListSheet:
    """One worksheet's list. Raises SpreadsheetError where its first rows have no cell that says `key`."""

    def __init__(
        self, book: package.Package, worksheet: structure.Sheet, reader: sheet.CellReader, key: str
    ) -> None:
        self._book = book
        self.worksheet = worksheet
        self.reader = reader
        self.heading_row = 0
        """Row number of the headings."""
        self.columns: dict[str, str] = {}
        """Heading -> column letters; of two equal headings the first counts."""
        self.added: dict[str, str] = {}
        """Column letters -> heading, for columns that the sheet is to get."""
        self.width = 0
        """Number of the last column that has a heading."""
        for number, row in self.rows():
            if key in self.columns or number > _HEADING_ROWS:
                break
            named = [(text, column) for column, _, text in reader.cells(row) if text]
            self.heading_row = number
            self.columns = dict(reversed(named))
            self.width = max((cells.column_number(column) for _, column in named), default=0)
        self.require(key)

    def require(self, heading: str) -> None:
        """Raise SpreadsheetError where the list has no column of this heading."""
        if heading not in self.columns:
            raise errors.SpreadsheetError(
                f"The sheet {self.worksheet.name} of {self._book.path.name} has no column headed {heading}. "
                "Write the heading back, or rename the sheet and run 'xnatuploader scan' to get a new list."
            )

    def rows(self) -> Iterator[tuple[int, str]]:
        """Yield number and XML of each row below the headings, empty ones too."""
        with self._book.stream(self.worksheet.part) as stream:
            for number, row in sheet.RowStream(stream).rows():
                if number > self.heading_row:
                    yield number, row

    def texts(self, headings: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield (row number, texts under these headings) for each row below the headings, empty ones too.

        Only these cells are looked at; a heading that the sheet lacks gives empty texts.
        """
        letters = [
            (at, self.columns[heading]) for at, heading in enumerate(headings) if heading in self.columns
        ]
        letters.sort(key=lambda pair: cells.column_number(pair[1]))
        begins = [(at, f'<c r="{column}') for at, column in letters]
        empty = [""] * len(headings)
        match_at, kinds, value_of = sheet.PLAIN_CELL.match, self.reader.kinds, self.reader.value
        for number, row in self.rows():
            texts = empty.copy()
            position = 0
            for at, begin in begins:
                start = row.find(f'{begin}{number}"', position)
                if start < 0:
                    continue
                match = match_at(row, start)
                position = start
                _, attributes, content = match.groups("") if match else sheet.raw_cell(row, start)
                texts[at] = value_of(kinds[attributes], content)
            yield number, tuple(texts)

    def last_row(self) -> int:
        """Return the number of the last row with a value, a formula or a merged cell: new rows come below it."""
        last = self.heading_row
        with self._book.stream(self.worksheet.part) as stream:
            source = sheet.RowStream(stream)
            for number, row in source.rows():
                if _HOLDS_SOMETHING.search(row):
                    last = number
        return max([last, *map(int, _MERGED.findall(source.tail))])

    def add_columns(self, headings: Sequence[str]) -> list[str]:
        """Return the letters of these columns; missing ones are added to the right, in free columns."""
        lacking = [heading for heading in dict.fromkeys(headings) if heading not in self.columns]
        # People also write beside the list without a heading.
        used = {letters for _, row in self.rows() for letters in _FILLED.findall(row)} if lacking else set()
        right = map(records.column_letters, itertools.count(self.width + 1))
        free = (letters for letters in right if letters not in used and letters not in self.added)
        for heading, letters in zip(lacking, free, strict=False):
            self.columns[heading] = letters
            self.added[letters] = heading
        return [self.columns[heading] for heading in headings]
