"""A worksheet whose first rows hold headings: finding the columns by them, and reading below them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from xnatuploader import errors
from xnatuploader.workbook import cells, package, sheet, structure

_HEADING_ROWS = 50
"""People put a title above a list; the headings are looked for this far down."""


@dataclass(frozen=True, slots=True)
class Header:
    """Where a sheet's headings stand."""

    number: int
    """Row number of the headings."""
    columns: Mapping[str, str]
    """Heading -> column letters; of two equal headings the first counts."""
    last: int
    """Number of the last column that has a heading."""


def find_header(row: str, number: int, reader: sheet.CellReader, key: str) -> Header | None:
    """Return the header if this row has a cell that says `key`."""
    columns: dict[str, str] = {}
    last = 0
    for column, _, text in reader.cells(row):
        if text:
            columns.setdefault(text, column)
            last = max(last, cells.column_number(column))
    return Header(number, columns, last) if key in columns else None


def read_header(book: package.Package, place: structure.Sheet, reader: sheet.CellReader, key: str) -> Header:
    """Return a sheet's header. Raises SpreadsheetError where there is none in the first rows."""
    with book.stream(place.part) as stream:
        for number, row in sheet.Source(stream).rows():
            if number > _HEADING_ROWS:
                break
            header = find_header(row, number, reader, key)
            if header is not None:
                return header
    raise _lacking(key, book, place)


def require(header: Header, heading: str, book: package.Package, place: structure.Sheet) -> None:
    """Raise SpreadsheetError where the sheet has no column of this heading."""
    if heading not in header.columns:
        raise _lacking(heading, book, place)


def _lacking(heading: str, book: package.Package, place: structure.Sheet) -> errors.SpreadsheetError:
    return errors.SpreadsheetError(
        f"The sheet {place.name} of {book.path.name} has no column headed {heading}. Write the heading back, "
        f"or rename the sheet and run 'xnatuploader scan' to get a new list."
    )


def columns_of(
    book: package.Package,
    place: structure.Sheet,
    reader: sheet.CellReader,
    header: Header,
    headings: Sequence[str],
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (row number, texts under these headings) for each row below the header, empty ones too.

    Only these cells are looked at; a heading that the sheet lacks gives empty texts.
    """
    order = sorted(
        (cells.column_number(header.columns[heading]), place, f'<c r="{header.columns[heading]}')
        for place, heading in enumerate(headings)
        if heading in header.columns
    )
    begins = [(place, begin) for _, place, begin in order]
    empty = [""] * len(headings)
    match_at, kind_of, value_of = sheet.PLAIN_CELL.match, reader.kind, reader.value
    with book.stream(place.part) as stream:
        for number, row in sheet.Source(stream).rows():
            if number <= header.number:
                continue
            texts = empty.copy()
            position = 0
            for at, begin in begins:
                start = row.find(f'{begin}{number}"', position)
                if start < 0:
                    continue
                match = match_at(row, start)
                position = start
                if match:
                    _, attributes, content = match.groups("")
                else:
                    _, attributes, content = sheet.raw_cell(row, start)
                texts[at] = value_of(kind_of(attributes), content)
            yield number, tuple(texts)
