"""Changing a list's sheet: cells change in their rows, and new rows follow the last one.

The sheet is streamed from the old workbook into the new one. No row moves, so that nothing which people attached to
rows (notes, colours, formulas and charts on whatever sheet) has to be rewritten.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from xnatuploader import records
from xnatuploader.workbook import cells, editor, fresh, sheet, table

Value = str | int
Edit = Callable[[int, str], Mapping[str, Value]]
"""From a row's number and XML to the cells to change: column letters -> new value."""


@dataclass(frozen=True, slots=True)
class SheetChange:
    """What is to become of one sheet: cells change in its rows, and rows are added below its list."""

    old: table.ListSheet
    edit: Edit
    edited: Sequence[str]
    """Letters of the columns that `edit` may change."""
    filled: Sequence[str] = ()
    """Letters of the columns that the new rows fill."""
    values: Iterable[Sequence[Value]] = ()
    """For each new row a value for each of the columns `filled`."""
    count: int = 0
    """How many new rows there are."""
    after: int = 0
    """Number of the last row that holds anything."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Cells that lead to a URL: name -> ID of the sheet's relationship to the URL."""

    @property
    def last(self) -> int:
        """Number of the last new row."""
        return self.after + self.count


def apply(work: editor.Editor, changes: Sequence[SheetChange]) -> None:
    """Have the editor make these changes."""
    work.formulas_will_change()
    text = work.styles.text()
    for change in changes:
        part = change.old.worksheet.part
        if _overwrites_formulas(work, change.edited):
            work.drop_calc_chain()
        if change.count:
            work.edit_filter_name(change.old.worksheet, functools.partial(_longer, change))
            for link in work.book.relationships(part):
                if link.type == "table" and work.book.has(link.target):
                    work.set_text(link.target, _longer_table(work.text(link.target), change))
        size = work.book.size(part) + 4_000 * change.count
        work.write(part, functools.partial(_write, work, change, text), size)


def _overwrites_formulas(work: editor.Editor, columns: Sequence[str]) -> bool:
    """Tell whether any sheet has formulas in these columns, by Excel's own list of them."""
    chain = work.skeleton.calc_chain_part
    any_of = "|".join(columns)
    return bool(chain and columns and re.search(rf'\sr="(?:{any_of})\d+"', work.text(chain)))


def _write(work: editor.Editor, change: SheetChange, text: int, stream: IO[bytes]) -> None:
    with work.book.stream(change.old.worksheet.part) as old:
        source = sheet.RowStream(old)
        stream.write(_with_dimension(source.head, change).encode())
        fresh.write_batches(stream, _rows(source, change, text))
        stream.write(_with_links(_longer_ranges(source.tail, change), change.links).encode())


def _rows(source: sheet.RowStream, change: SheetChange, text: int) -> Iterator[str]:
    """Yield the old rows with their changes, then the new ones. `text`: style of cells that have none of their own."""
    filled, heading_row = change.filled, change.old.heading_row
    own = sheet.column_styles(source.head)
    styles = {column: own(column) or text for column in (*filled, *change.edited)}
    shared = _SharedFormulas()
    blank: dict[int, str] = {}
    for number, row in source.rows():
        if change.count and number > change.after:
            blank[number] = row
        elif number == heading_row:
            yield _with_headings(row, number, change.old.added, text)
        elif number < heading_row:
            yield row
        else:
            edited = _with_cells(row, number, change.edit(number, row), styles)
            yield shared.kept(row, edited) if "<f" in row else edited
    order = sorted(range(len(filled)), key=lambda at: cells.column_number(filled[at]))
    make = fresh.row_maker([(filled[at], styles[filled[at]]) for at in order])
    for number, values in enumerate(change.values, change.after + 1):
        if number in blank:  # it may have a height and fills of its own, but must not be hidden
            start, mark, cells_of_it = blank.pop(number).partition(">")
            row = re.sub(r'\s(?:hidden="[^"]*"|ht="0(?:\.0*)?")', "", start) + mark + cells_of_it
            yield _with_cells(row, number, dict(zip(filled, values, strict=True)), styles)
        else:
            yield make(number, [values[at] for at in order])
    yield from blank.values()


def _with_headings(row: str, number: int, added: Mapping[str, str], text: int) -> str:
    styles = re.findall(r'<c r="[A-Z]+\d+" s="(\d+)"', row)
    like_the_last = int(styles[-1]) if styles else text
    return _with_cells(row, number, added, dict.fromkeys(added, like_the_last))


def _with_cells(row: str, number: int, values: Mapping[str, Value], styles: Mapping[str, int]) -> str:
    for column, value in values.items():
        row = sheet.set_cell(row, number, column, sheet.content_of(value), styles[column])
    return row


_FORMULA = re.compile(
    r'(<c r="([A-Z]+\d+)"[^>]*>)<f(?=[^>]*\st="shared")(?=[^>]*\ssi="(\d+)")[^>]*?(?:/>|>([^<]*)</f>)'
)


class _SharedFormulas:
    """Formulas that are stored in one cell and shared by others.

    Where that cell is written over, the others get a formula of their own: the same one, as Excel shows it there.
    """

    def __init__(self) -> None:
        self._lost: dict[str, tuple[str, str]] = {}

    def kept(self, before: str, row: str) -> str:
        """Return the changed row with formulas of its own where shared ones were lost. `before`: as it was."""
        if before is not row:
            for match in _FORMULA.finditer(before):
                if match[4] and match[0] not in row:
                    self._lost[match[3]] = match[2], html.unescape(match[4])
        return _FORMULA.sub(self._own, row) if self._lost else row

    def _own(self, match: re.Match[str]) -> str:
        if match[4] or match[3] not in self._lost:
            return match[0]
        from openpyxl.formula.translate import Translator, TranslatorError

        cell, formula = self._lost[match[3]]
        try:
            own = Translator(f"={formula}", origin=cell).translate_formula(match[2])[1:]
        except TranslatorError:  # it refers to cells above the first row or left of column A
            own = "#REF!"
        return f"{match[1]}<f>{html.escape(own, quote=False)}</f>"


# What has to reach as far as the list


_RANGE = re.compile(r'(?<=[!"])(\$?([A-Z]+)\$?(\d+):\$?([A-Z]+)\$?)(\d+)(?=["<])')


def _with_dimension(head: str, change: SheetChange) -> str:
    """Return what precedes the rows with the range of cells that the sheet says it has."""

    def larger(match: re.Match[str]) -> str:
        column = max([cells.column_number(match[4]), *map(cells.column_number, change.old.added)])
        return f"{match[2]}{match[3]}:{records.column_letters(column)}{max(int(match[5]), change.last)}"

    return re.sub(r"<(?:\w+:)?dimension\b[^>]*>", lambda found: _RANGE.sub(larger, found[0]), head, count=1)


_CHOICE = re.compile(r'<(?:\w+:)?dataValidation\s[^>]*>(?=\s*<(?:\w+:)?formula1>(?:"|&quot;)Y,N\b)')


def _longer_ranges(tail: str, change: SheetChange) -> str:
    """Return what follows the rows with the filter and the Y/N drop-downs over the new rows too.

    The drop-downs were made for the whole column, but LibreOffice cuts them some hundred rows below the list.
    """

    def longer(match: re.Match[str]) -> str:
        cut = change.after <= int(match[2]) < change.last
        return f"{match[1]}{fresh.LAST_ROW}" if cut else match[0]

    tail = _CHOICE.sub(lambda found: re.sub(r"(:[A-Z]+)(\d+)(?=[\s\"])", longer, found[0]), tail)
    return re.sub(r"<(?:\w+:)?autoFilter\b[^>]*>", lambda found: _longer(change, found[0]), tail, count=1)


def _longer_table(xml: str, change: SheetChange) -> str:
    """Return a table's part with the new rows in the table, if it is the list and they follow right below it."""
    table_range = _RANGE.search(xml)
    right_above = table_range is not None and int(table_range[5]) >= change.after
    if not right_above or re.search(r'\stotalsRowCount="[1-9]', xml):
        return xml
    pattern = r"<(?:\w+:)?(?:table|autoFilter)\b[^>]*>"
    return re.sub(pattern, lambda found: _longer(change, found[0]), xml)


def _longer(change: SheetChange, xml: str) -> str:
    """Return XML with a range that begins at the list's headings reaching as far down as the list."""

    def longer(match: re.Match[str]) -> str:
        first, last = cells.column_number(match[2]), cells.column_number(match[4])
        ours = any(first <= cells.column_number(column) <= last for column in change.filled)
        if not ours or int(match[3]) != change.old.heading_row:
            return match[0]
        return f"{match[1]}{max(int(match[5]), change.last)}"

    return _RANGE.sub(longer, xml)


# ECMA-376 part 1, 18.3.1.99: what may follow the links of a sheet, in this order.
_AFTER_LINKS = (
    "printOptions", "pageMargins", "pageSetup", "headerFooter", "rowBreaks", "colBreaks", "customProperties",
    "cellWatches", "ignoredErrors", "smartTags", "drawing", "legacyDrawing", "legacyDrawingHF", "drawingHF",
    "picture", "oleObjects", "controls", "webPublishItems", "tableParts", "extLst",
)  # fmt: skip
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def _with_links(tail: str, links: Mapping[str, str]) -> str:
    """Return what follows the rows with these cells leading where their relationships say."""
    if not links:
        return tail
    for cell in links:
        tail = re.sub(rf'<(?:\w+:)?hyperlink\b[^>]*\sref="{cell}"[^>]*/>', "", tail)
    made = "".join(
        f'<hyperlink xmlns:r="{_RELATIONS}" ref="{cell}" r:id="{link}"/>' for cell, link in links.items()
    )
    group = re.search(r"</(?:\w+:)?hyperlinks>", tail)
    if group:
        return f"{tail[: group.start()]}{made}{tail[group.start() :]}"
    followers = (re.search(rf"<(?:\w+:)?{name}\b", tail) for name in _AFTER_LINKS)
    at = next((found.start() for found in followers if found), tail.rfind("</"))
    return f"{tail[:at]}<hyperlinks>{made}</hyperlinks>{tail[at:]}"
