"""A new sheet with a list on it: headings, widths, frozen header, filter, drop-downs, colours, rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from xnatuploader import records
from xnatuploader.workbook import cells, editor, sheet, structure, styles

LAST_ROW = 1_048_576
"""Excel's last row; also where drop-downs and colours end, so that they serve rows added later."""

_BATCH = 500

SIGNALS: Mapping[str, tuple[str, str]] = {
    "success": ("006100", "C6EFCE"),
    "failed": ("9C0006", "FFC7CE"),
    "conflict": ("9C0006", "FFC7CE"),
    "missing": ("9C0006", "FFC7CE"),
    "interrupted": ("7F6000", "FFEB9C"),
    "review": ("7F6000", "FFEB9C"),
    "duplicate": ("595959", "E7E6E6"),
    "skipped": ("595959", "E7E6E6"),
    "unmatched": ("595959", "E7E6E6"),
}
"""Status word -> text colour and fill."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a new sheet."""

    heading: str
    width: float
    style: int
    choice: bool = False
    """Y/N drop-down."""
    signals: bool = False
    """Cells are coloured by the status that they hold."""


def add(
    work: editor.Editor,
    name: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str | int]],
    count: int,
    replaced: structure.Sheet | None = None,
) -> None:
    """Add a sheet with these rows, or replace another by it. `count`: how many rows there are."""
    last, header = records.column_letters(len(columns)), work.styles.header()
    coloured = any(column.signals for column in columns)
    signals = {word: work.styles.signal(*pair) for word, pair in SIGNALS.items() if coloured}
    make = row_maker([(records.column_letters(at), column.style) for at, column in enumerate(columns, 1)])

    def write(stream: IO[bytes]) -> None:
        stream.write(_head(columns, last, count, header).encode())
        write_batches(stream, itertools.starmap(make, enumerate(rows, 2)))
        stream.write(_tail(columns, last, count, signals).encode())

    size = 70 * len(columns) * count
    if replaced is None:
        quoted = name.replace("'", "''")
        work.add_sheet(name, write, size, f"'{quoted}'!$A$1:${last}${max(count + 1, 2)}")
    else:
        work.write(replaced.part, write, size)


def _head(columns: Sequence[Column], last: str, count: int, header_style: int) -> str:
    widths = "".join(
        f'<col min="{at}" max="{at}" width="{column.width}" style="{column.style}" customWidth="1"/>'
        for at, column in enumerate(columns, 1)
    )
    headings = "".join(
        f'<c r="{records.column_letters(at)}1" s="{header_style}"{sheet.content_of(column.heading)}'
        for at, column in enumerate(columns, 1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
        f'<worksheet xmlns="{styles.MAIN_NAMESPACE}" '
        'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">'
        '<sheetPr><pageSetUpPr fitToPage="1"/></sheetPr>'
        f'<dimension ref="A1:{last}{count + 1}"/><sheetViews><sheetView workbookViewId="0">'
        '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>'
        '<selection pane="bottomLeft" activeCell="A2" sqref="A2"/></sheetView></sheetViews>'
        f'<sheetFormatPr defaultRowHeight="15"/><cols>{widths}</cols><sheetData>'
        f'<row r="1" ht="20" customHeight="1">{headings}</row>'
    )


def write_batches(stream: IO[bytes], rows: Iterable[str]) -> None:
    """Write the XML of rows, some hundred at a time: one by one they would be slow to compress."""
    left = iter(rows)
    while batch := "".join(itertools.islice(left, _BATCH)):
        stream.write(batch.encode())


def row_maker(columns: Sequence[tuple[str, int]]) -> Callable[[int, Sequence[str | int]], str]:
    """Return a function that makes the XML of a row from its number and the values of these columns.

    `columns`: letters and style, in the order of the values; the letters must ascend.
    """
    parts = [(f'<c r="{letters}', f'" s="{style}" t="inlineStr"><is>', style) for letters, style in columns]
    # Nearly all texts come again and again; what a text becomes is kept for a bounded number of them.
    memo: dict[str, str] = {}

    def make(number: int, values: Sequence[str | int]) -> str:
        made = []
        for value, (start, middle, style) in zip(values, parts, strict=True):
            if value == "":
                continue
            if isinstance(value, str):
                element = memo.get(value)
                if element is None:
                    element = cells.element(value)
                    if len(memo) < 50_000:
                        memo[value] = element
                made.append(f"{start}{number}{middle}{element}</is></c>")
            else:
                made.append(f'{start}{number}" s="{style}"><v>{value}</v></c>')
        return f'<row r="{number}">{"".join(made)}</row>'

    return make


def _tail(columns: Sequence[Column], last: str, count: int, signals: Mapping[str, int]) -> str:
    choices = [records.column_letters(at) for at, column in enumerate(columns, 1) if column.choice]
    coloured = [records.column_letters(at) for at, column in enumerate(columns, 1) if column.signals]
    return (
        f'</sheetData><autoFilter ref="A1:{last}{max(count + 1, 2)}"/>'
        f"{''.join(_colours(letters, signals) for letters in coloured)}"
        f"{_drop_downs(choices)}"
        '<pageMargins left="0.4" right="0.4" top="0.5" bottom="0.5" header="0.3" footer="0.3"/>'
        '<pageSetup orientation="landscape" fitToHeight="0"/>'
        # Excel marks each text that looks like a number with a green corner; here all are meant to be texts.
        f'<ignoredErrors><ignoredError sqref="A1:{last}{LAST_ROW}" numberStoredAsText="1"/></ignoredErrors>'
        "</worksheet>"
    )


def _colours(letters: str, signals: Mapping[str, int]) -> str:
    rules = "".join(
        f'<cfRule type="cellIs" dxfId="{style}" priority="{priority}" operator="equal">'
        f'<formula>"{word}"</formula></cfRule>'
        for priority, (word, style) in enumerate(signals.items(), 1)
    )
    return f'<conditionalFormatting sqref="{letters}2:{letters}{LAST_ROW}">{rules}</conditionalFormatting>'


def _drop_downs(choices: Sequence[str]) -> str:
    if not choices:
        return ""
    where = " ".join(f"{letters}2:{letters}{LAST_ROW}" for letters in choices)
    # An information, not a stop: "yes" and "x" are understood too.
    return (
        '<dataValidations count="1"><dataValidation type="list" errorStyle="information" allowBlank="1" '
        'showErrorMessage="1" errorTitle="Y or N" error="Y sends, N does not." '
        f'sqref="{where}"><formula1>"Y,N"</formula1></dataValidation></dataValidations>'
    )
