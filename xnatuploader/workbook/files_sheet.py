"""The Files sheets: which heading is which field of a row, and what people and Excel make of the cells."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from xnatuploader import records
from xnatuploader.workbook import cells, package, sheet, structure, table

NAME = "Files"
KEY = "File"

BEFORE_MAPPINGS: Mapping[str, str] = {
    "Pattern": "pattern",
    "File": "file",
    "Filename": "filename",
    "Upload": "upload",
    "Status": "status",
    "Message": "message",
    "Subject": "subject",
    "Session": "session",
    "Dataset": "dataset",
}
AFTER_MAPPINGS: Mapping[str, str] = {
    "SessionLabel": "session_label",
    "ScanID": "scan_id",
    "Resource": "resource",
    "Size": "size",
    "Modified": "modified",
    "MD5": "md5",
    **{f"DICOM:{keyword}": name for keyword, name in records.DICOM_FIELDS.items()},
}
FIELDS: Mapping[str, str] = {**BEFORE_MAPPINGS, **AFTER_MAPPINGS}
"""Heading -> field of `Row`, in the order of the columns; further mapping rows stand between the halves."""

_DECIDES_PLACE = ("File", "Filename", "Subject", "Session", "Dataset", "SessionLabel", "ScanID", "Resource")
"""Columns in which a number or a date that Excel made of an ID would send files to a wrong place."""
_DATES = re.compile(r"\d{8}")
_PADDED = re.compile(r"0\d+")
_MEMO = 5_000
"""Different texts of a column that are remembered, so that equal ones are one object."""


def headings(value_headings: Sequence[str], mapping_headings: Sequence[str]) -> tuple[str, ...]:
    """Return the headings of a new Files sheet in the order of its columns."""
    further = [heading for heading in mapping_headings if heading not in FIELDS]
    rest = [heading for heading in value_headings if heading not in FIELDS and heading not in further]
    dicom = [heading for heading in rest if heading.startswith("DICOM:")]
    captured = [heading for heading in rest if not heading.startswith("DICOM:")]
    return (*BEFORE_MAPPINGS, *further, *AFTER_MAPPINGS, *dicom, *captured)


Texts = Callable[[records.Row], list[str]]


def texts_of(of_headings: Sequence[str]) -> Texts:
    """Return a function that gives the texts of a row's cells under these headings."""
    names = [FIELDS.get(heading, "values") for heading in of_headings]
    fetch = operator.attrgetter(*names, "values")
    uploads = [place for place, name in enumerate(names) if name == "upload"]
    states = [place for place, name in enumerate(names) if name == "status"]
    further = [(place, of_headings[place]) for place, name in enumerate(names) if name == "values"]

    def texts(row: records.Row) -> list[str]:
        found = list(fetch(row))
        values: Mapping[str, str] = found.pop()
        for place in uploads:
            found[place] = "Y" if found[place] else "N"
        for place in states:
            found[place] = found[place].value
        for place, heading in further:
            found[place] = values.get(heading, "")
        return found

    return texts


def status_and_message(status: str, message: str) -> tuple[records.Status, str]:
    """Return what a Status cell says; a text that is none of the words is an error text of 1.x."""
    word = status.strip().lower()
    if word == "none":
        word = ""
    try:
        return records.Status(word), message
    except ValueError:
        return records.Status.FAILED, message or status.strip()


def _padded_in(label: str, number: str) -> str:
    """Return how `number` is written in a session label with its zeros (`0342` in `0342_CT1`), '' if it is not."""
    found = re.search(rf"(?<![A-Za-z0-9])0+{number}(?![A-Za-z0-9])", label) if number.isdecimal() else None
    return found[0] if found else ""


def read_rows(book: package.Package, place: structure.Sheet, reader: sheet.CellReader) -> list[records.Row]:
    """Return the rows of one Files sheet that name a file.

    Raises SpreadsheetError without a File column, and without an Upload column: what travels is not guessed.
    """
    header = table.read_header(book, place, reader, KEY)
    table.require(header, "Upload", book, place)
    layout = Layout(header)
    rows = []
    with book.stream(place.part) as stream:
        for number, row in sheet.Source(stream).rows():
            if number > header.number:
                made = layout.row(row, number, reader, place.name)
                if made is not None:
                    rows.append(made)
    return layout.doubted(rows)


class Layout:
    """How the cells of one sheet become rows, and what was odd about them."""

    def __init__(self, header: table.Header) -> None:
        self._names = [field.name for field in dataclasses.fields(records.Row)]
        fixed = {FIELDS[heading]: column for heading, column in header.columns.items() if heading in FIELDS}
        further = [heading for heading in header.columns if heading not in FIELDS]
        self._further = {heading: place for place, heading in enumerate(further)}
        count = len(self._names)
        self._place = {fixed[name]: self._names.index(name) for name in fixed}
        self._place.update(
            {header.columns[heading]: count + place for heading, place in self._further.items()}
        )
        self._width = count + len(further)
        self._heading = {place: heading for heading, place in self._heading_places(header)}
        self._at = {name: self._names.index(name) for name in self._names}
        self._memo: list[dict[str, str]] = [{} for _ in range(self._width)]
        self._odd: list[tuple[int, int, str, str]] = []
        self._padded: dict[int, str] = {}
        self._dated: set[int] = set()
        self._undated: set[int] = set()
        self._watched = {
            self._names.index(FIELDS[heading]) for heading in _DECIDES_PLACE if heading in header.columns
        }
        self._date_fields = {
            place
            for place, heading in self._heading.items()
            if heading.startswith("DICOM:") and "Date" in heading
        }
        self._count = 0

    def _heading_places(self, header: table.Header) -> Iterator[tuple[str, int]]:
        for heading, column in header.columns.items():
            yield heading, self._place[column]

    def row(self, xml: str, number: int, reader: sheet.CellReader, sheet_name: str) -> records.Row | None:
        """Return the row of one line, None where it names no file."""
        found = self._texts(xml, reader, number)
        at = self._at
        if not found[at["file"]]:
            return None
        count = len(self._names)
        values = records.Values(self._further, tuple(found[count:])) if self._further else records.NO_VALUES
        arguments: list[object] = list(found[:count])
        status, message = status_and_message(found[at["status"]], found[at["message"]])
        arguments[at["status"]], arguments[at["message"]] = status, message
        arguments[at["session_label"]] = cells.label(found[at["session_label"]])
        arguments[at["upload"]] = cells.is_yes(found[at["upload"]])
        arguments[at["values"]], arguments[at["sheet"]], arguments[at["number"]] = values, sheet_name, number
        self._count += 1
        return records.Row(*arguments)  # type: ignore[arg-type]

    def _texts(self, xml: str, reader: sheet.CellReader, number: int) -> list[str]:
        found = [""] * self._width
        cells_found = sheet.PLAIN_CELL.findall(xml)
        if len(cells_found) != xml.count('<c r="'):
            cells_found = [sheet.raw_cell(xml, match.start()) for match in re.finditer('<c r="', xml)]
        places, memos, kind_of = self._place, self._memo, reader.kind
        for column, attributes, content in cells_found:
            place = places.get(column)
            if place is None or not content:
                continue
            kind = kind_of(attributes)
            if kind == sheet.SHARED:
                found[place] = reader.value(kind, content)
                continue
            if kind != sheet.TEXT:
                found[place] = self._odd_text(kind, reader.value(kind, content), place, column, number)
                continue
            memo = memos[place]
            text = memo.get(content)
            if text is None:
                text = cells.from_xml(content)
                if len(memo) < _MEMO:
                    memo[content] = text
            found[place] = text
        for place in self._watched:
            text = found[place]
            if text and text[0] == "0" and place not in self._padded and _PADDED.fullmatch(text):
                self._padded[place] = text
        return found

    def texts_by_column(self, xml: str, reader: sheet.CellReader, number: int) -> dict[str, str]:
        """Return the texts of a line's cells by their column letters."""
        found = self._texts(xml, reader, number)
        return {column: found[place] for column, place in self._place.items()}

    def _odd_text(self, kind: str, text: str, place: int, column: str, number: int) -> str:
        if kind == sheet.DATE and (place in self._watched or place in self._date_fields):
            day = text[:10].replace("-", "")
            if len(text) == 10:
                text = day
        if place in self._watched:
            self._odd.append((self._count, place, kind, f"{column}{number}"))
        return text

    def doubted(self, rows: list[records.Row]) -> list[records.Row]:
        """Return the rows, those marked in which Excel's idea of a cell may not be what was meant."""
        dates = self._columns_of_dates(rows)
        for index, place, kind, name in self._odd:
            if index >= len(rows):
                continue
            row = rows[index]
            text = str(getattr(row, self._names[place]))
            doubt = self._doubt(row, place, kind, text, name, dates)
            if doubt and not row.doubt:
                rows[index] = dataclasses.replace(row, doubt=doubt)
        return rows

    def _columns_of_dates(self, rows: list[records.Row]) -> frozenset[int]:
        """Return the columns in question whose other cells are all dates of eight digits."""
        places = {place for _, place, kind, _ in self._odd if kind == sheet.DATE}
        odd = {(index, place) for index, place, _, _ in self._odd}
        found = set()
        for place in places:
            fetch = operator.attrgetter(self._names[place])
            texts = {fetch(row) for index, row in enumerate(rows) if (index, place) not in odd} - {""}
            if all(_DATES.fullmatch(text) for text in texts) and (texts or self._heading[place] == "Session"):
                found.add(place)
        return frozenset(found)

    def _doubt(
        self, row: records.Row, place: int, kind: str, text: str, name: str, dates: frozenset[int]
    ) -> str:
        # The row is told by whoever shows the message: rows with the same mistake have the same text.
        where = f"{self._heading[place]} (column {name.rstrip('0123456789')})"
        if kind == sheet.ERROR:
            return f"{where} holds the error {text}. Type the value as text."
        if kind == sheet.DATE and place not in dates:
            return f"{where} was turned into a date by Excel. Format the cell as Text and type it again."
        if kind != sheet.NUMBER:
            return ""
        if place in self._padded:
            return (
                f"{where} is the number {text}, but other cells of the column are written like "
                f"{self._padded[place]}. Format the cell as Text and type it again with its zeros."
            )
        padded = _padded_in(row.session_label, text)
        if padded and self._heading[place] in ("Subject", "Session"):
            return (
                f"{where} is the number {text}, but the session label {row.session_label} was made from {padded}. "
                "Format the cell as Text and type it again with its zeros."
            )
        if "E" in text.upper() or len(text.lstrip("-").replace(".", "")) > 15:
            return f"{where} is a number that Excel has rounded. Format the cell as Text and type it again."
        return ""
