"""The Files sheets: which heading is which field of a row, and what people and Excel make of the cells."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xnatuploader import records
from xnatuploader.workbook import cells, package, sheet, structure, table

NAME = "Files"
KEY = "File"

_DESTINATION = ("File", "Filename", "Subject", "Session", "Dataset", "SessionLabel", "ScanID", "Resource")
"""Columns in which a number or a date that Excel made of an ID would send files to a wrong session or scan."""
_DATES = re.compile(r"\d{8}")
_PADDED = re.compile(r"0\d+")
_MEMO = 5_000
"""Different texts of a column that are remembered, so that equal ones are one object."""


_AT = {field.name: at for at, field in enumerate(dataclasses.fields(records.Row))}
"""Field of `Row` -> its position."""


def headings(value_headings: Sequence[str], mapping_headings: Sequence[str]) -> tuple[str, ...]:
    """Return the headings of a new Files sheet in the order of its columns."""
    further = [heading for heading in mapping_headings if heading not in records.COLUMNS]
    rest = [heading for heading in value_headings if heading not in (*records.COLUMNS, *further)]
    rest.sort(key=lambda heading: not heading.startswith("DICOM:"))
    return (*records.BEFORE_MAPPINGS, *further, *records.AFTER_MAPPINGS, *rest)


Texts = Callable[[records.Row | records.Outcome], list[str]]
_SHOWN: Mapping[str, Callable[[Any], str]] = {
    "upload": lambda upload: upload if isinstance(upload, str) else "Y" if upload else "N",
    "status": operator.attrgetter("value"),
}
"""Field -> what makes the text of a cell of its value, where it is not the value itself."""


def texts_of(of_headings: Sequence[str]) -> Texts:
    """Return a function that gives the texts of a row's cells under these two or more headings."""
    names = [records.COLUMNS.get(heading, "values") for heading in of_headings]
    fetch = operator.attrgetter(*names)
    special = [(at, _SHOWN[name]) for at, name in enumerate(names) if name in _SHOWN]
    further = [(at, of_headings[at]) for at, name in enumerate(names) if name == "values"]

    def texts(row: records.Row | records.Outcome) -> list[str]:
        found = list(fetch(row))
        for at, show in special:
            found[at] = show(found[at])
        for at, heading in further:
            found[at] = found[at].get(heading, "")
        return found

    return texts


def status_and_message(status: str, message: str) -> tuple[records.Status, str]:
    """Return what a Status cell says; a text that is no status is an error text of 1.x."""
    word = status.strip().lower()
    if word == "none":
        word = ""
    try:
        return records.Status(word), message
    except ValueError:
        return records.Status.FAILED, message or status.strip()


def read_rows(
    book: package.Package, worksheet: structure.Sheet, reader: sheet.CellReader
) -> list[records.Row]:
    """Return the rows of one Files sheet that name a file.

    Raises SpreadsheetError without a File column, and without an Upload column: what is sent is not guessed.
    """
    listed = table.ListSheet(book, worksheet, reader, KEY)
    listed.require("Upload")
    layout = Layout(listed)
    made = (layout.row(xml, number) for number, xml in listed.rows())
    return layout.doubted([row for row in made if row is not None])


@dataclasses.dataclass(slots=True)
class _Column:
    """A column of the sheet."""

    heading: str
    letters: str
    at: int
    """Position among a row's texts: first come the fields of `Row`, then the further columns."""
    destination: bool
    holds_dates: bool
    zero_padded: str = ""
    """The first text that is a number written with leading zeros."""
    memo: dict[str, str] = dataclasses.field(default_factory=dict)
    """XML of a cell -> its text."""


class Layout:
    """How the cells of one sheet become rows, and which of them may not hold what was meant."""

    def __init__(self, listed: table.ListSheet) -> None:
        self._sheet = listed.worksheet.name
        self._reader = listed.reader
        further = [heading for heading in listed.columns if heading not in records.COLUMNS]
        self._further = {heading: at for at, heading in enumerate(further)}
        self._count = len(_AT) + len(further)
        columns = {heading: _AT[field] for heading, field in records.COLUMNS.items()}
        columns.update((heading, len(_AT) + at) for heading, at in self._further.items())
        self._columns = {
            letters: _Column(
                heading,
                letters,
                columns[heading],
                heading in _DESTINATION,
                heading.startswith("DICOM:") and "Date" in heading,
            )
            for heading, letters in listed.columns.items()
        }
        self._odd: dict[int, list[tuple[_Column, str]]] = {}
        """Row number -> the columns that decide where it goes in which Excel made something else of a text."""

    def row(self, xml: str, number: int) -> records.Row | None:
        """Return the row of one line, None where it names no file."""
        fields: list[Any] = self._texts(xml, number)
        if not fields[_AT["file"]]:
            return None
        if self._further:
            fields[_AT["values"]] = records.Values(self._further, fields[len(_AT) :])
            del fields[len(_AT) :]
        else:
            fields[_AT["values"]] = records.NO_VALUES
        status, message = _AT["status"], _AT["message"]
        fields[status], fields[message] = status_and_message(fields[status], fields[message])
        fields[_AT["session_label"]] = cells.label(fields[_AT["session_label"]])
        fields[_AT["upload"]] = records.is_yes(fields[_AT["upload"]])
        fields[_AT["sheet"]], fields[_AT["number"]] = self._sheet, number
        # By position: names would make reading a twentieth slower.
        return records.Row(*fields)

    def _texts(self, xml: str, number: int) -> list[str]:
        texts = [""] * self._count
        columns, kinds = self._columns, self._reader.kinds
        for letters, attributes, content in sheet.raw_cells(xml):
            column = columns.get(letters)
            if column is None or not content:
                continue
            kind = kinds[attributes]
            text = column.memo.get(content) if kind == sheet.TEXT else None
            if text is None:
                text = self._text(column, kind, content, number)
            texts[column.at] = text
        return texts

    def _text(self, column: _Column, kind: str, content: str, number: int) -> str:
        text = self._reader.value(kind, content)
        if kind == sheet.TEXT and len(column.memo) < _MEMO:
            column.memo[content] = text
        if kind in (sheet.TEXT, sheet.SHARED):
            if column.destination and not column.zero_padded and _PADDED.fullmatch(text):
                column.zero_padded = text
            return text
        if column.destination:
            self._odd.setdefault(number, []).append((column, kind))
        if kind == sheet.DATE and len(text) == 10 and (column.destination or column.holds_dates):
            return text.replace("-", "")
        return text

    def texts_by_column(self, xml: str, number: int) -> dict[str, str]:
        """Return the texts of a row's cells by their column letters."""
        texts = self._texts(xml, number)
        return {letters: texts[column.at] for letters, column in self._columns.items()}

    def doubted(self, rows: list[records.Row]) -> list[records.Row]:
        """Return the rows, those marked in which Excel's idea of a cell may not be what was meant."""
        dates = self._columns_of_dates(rows)
        for index, row in enumerate(rows):
            if row.number in self._odd:
                doubts = (self._doubt(row, column, kind, dates) for column, kind in self._odd[row.number])
                rows[index] = dataclasses.replace(row, doubt=next(filter(None, doubts), ""))
        return rows

    def _columns_of_dates(self, rows: list[records.Row]) -> frozenset[str]:
        """Return the headings of columns in which Excel made dates, and all other cells are dates of eight digits."""
        odd = {(number, column.heading) for number, found in self._odd.items() for column, _ in found}
        headings = {
            column.heading for found in self._odd.values() for column, kind in found if kind == sheet.DATE
        }
        found = set()
        for heading in headings:
            fetch = operator.attrgetter(records.COLUMNS[heading])
            texts = {fetch(row) for row in rows if (row.number, heading) not in odd} - {""}
            if all(map(_DATES.fullmatch, texts)) and (texts or heading == "Session"):
                found.add(heading)
        return frozenset(found)

    def _doubt(self, row: records.Row, column: _Column, kind: str, dates: frozenset[str]) -> str:
        # Whoever shows the message adds the row: rows with the same mistake have the same text.
        where = f"{column.heading} (column {column.letters})"
        text = str(getattr(row, records.COLUMNS[column.heading]))
        if kind == sheet.ERROR:
            return f"{where} holds the error {text}. Type the value as text."
        if kind == sheet.DATE and column.heading not in dates:
            return f"{where} was turned into a date by Excel. Format the cell as Text and type it again."
        if kind != sheet.NUMBER:
            return ""
        if column.zero_padded:
            return (
                f"{where} is the number {text}, but other cells of the column are written like "
                f"{column.zero_padded}. Format the cell as Text and type it again with its zeros."
            )
        padded = _padded_in(row.session_label, text)
        if padded and column.heading in ("Subject", "Session"):
            return (
                f"{where} is the number {text}, but the session label {row.session_label} was made from {padded}. "
                "Format the cell as Text and type it again with its zeros."
            )
        if "E" in text.upper() or len(text.lstrip("-").replace(".", "")) > 15:
            return f"{where} is a number that Excel has rounded. Format the cell as Text and type it again."
        return ""


def _padded_in(label: str, number: str) -> str:
    """Return how `number` is written in a session label with its zeros (`0342` in `0342_CT1`), '' if it is not."""
    found = re.search(rf"(?<![A-Za-z0-9])0+{number}(?![A-Za-z0-9])", label) if number.isdecimal() else None
    return found[0] if found else ""
