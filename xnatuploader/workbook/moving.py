"""Where rows go when others come in or go out above them, and what that makes of addresses and formulas."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Collection, Mapping

from xnatuploader.workbook import cells

LAST_ROW = 1_048_576


class RowMap:
    """Old row numbers of one sheet to new ones.

    `first` and `last` are the rows that the list had; a range over all of it stays a range over all of it.
    """

    def __init__(
        self, header: int, first: int, last: int, inserted: Mapping[int, int], removed: Collection[int]
    ) -> None:
        """Take the number of rows inserted after each old row, and the old rows taken out."""
        self._removed = frozenset(removed)
        steps: dict[int, int] = {}
        for row, count in inserted.items():
            steps[row + 1] = steps.get(row + 1, 0) + count
        for row in self._removed:
            steps[row + 1] = steps.get(row + 1, 0) - 1
        # Rows inserted after row 5 and row 5 taken out both tell from row 6 on.
        self._starts = [0, *sorted(steps)]
        self._deltas = [0]
        for start in self._starts[1:]:
            self._deltas.append(self._deltas[-1] + steps[start])
        self.header = header
        self.first = first
        self.last = last
        self.new_last = self._after(last)
        for row, count in inserted.items():
            self.new_last = max(self.new_last, self._after(row) + count)
        self.identical = not steps

    def moved(self, row: int) -> int:
        """Return the new number of a row; of one taken out, that of the row which came into its place."""
        new = row + self._deltas[bisect.bisect_right(self._starts, row) - 1]
        return min(new, LAST_ROW)

    def _after(self, row: int) -> int:
        """Return the new number of the row after which others are inserted, or of the one above it."""
        return self.moved(row) - (row in self._removed)

    def first_inserted(self, row: int) -> int:
        """Return the number of the first row inserted after the old `row`."""
        return self._after(row) + 1

    def new(self, row: int) -> int | None:
        """Return the new number of a row, None if it was taken out."""
        return None if row in self._removed else self.moved(row)

    def span(self, begin: int, end: int) -> tuple[int, int] | None:
        """Return the new first and last row of a range, None if nothing of it is left."""
        if end == LAST_ROW:
            new_end = LAST_ROW
        else:
            last = end
            while last in self._removed and last >= begin:
                last -= 1
            new_end = self.moved(last) if last >= begin else 0
        whole = begin <= self.first and end >= self.last >= self.first
        if whole:
            new_begin = begin if begin <= self.header else self.header + 1
            return new_begin, max(new_end, self.new_last, new_begin)
        first = begin
        while first in self._removed and first <= end:
            first += 1
        new_begin = self.moved(first)
        return (new_begin, new_end) if new_end >= new_begin else None


_CELL = r"\$?[A-Z]{1,3}\$?\d{1,7}"
_REFERENCE = re.compile(r"(\$?)([A-Z]{1,3})?(\$?)(\d{1,7})")


def move_address(address: str, rows: RowMap) -> str:
    """Return where `D17`, `A2:D17` or `3:5` is now, '' if it is gone."""
    begin, _, end = address.partition(":")
    one, two = _REFERENCE.fullmatch(begin), _REFERENCE.fullmatch(end or begin)
    if not one or not two:
        return address
    span = rows.span(*sorted((int(one.group(4)), int(two.group(4))))) if end else None
    if not end:
        row = rows.new(int(one.group(4)))
        span = (row, row) if row is not None else None
    if span is None:
        return ""
    made = _with_row(one, span[0])
    return f"{made}:{_with_row(two, span[1])}" if end else made


def _with_row(match: re.Match[str], row: int) -> str:
    dollar_column, column, dollar_row, _ = match.groups("")
    return f"{dollar_column}{column}{dollar_row}{row}"


def move_addresses(addresses: str, rows: RowMap) -> str:
    """Return the new form of addresses parted by spaces; those that are gone are left out."""
    moved = (move_address(address, rows) for address in addresses.split())
    return " ".join(address for address in moved if address)


_TOKEN = re.compile(
    r'"(?:[^"]|"")*"'  # a text
    # a table's column, or another workbook's cell
    r"|\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\](?:[^\W\d][\w.]*!\$?[A-Z$:\d]+)?"
    r"|'\[(?:[^']|'')*'!\$?[A-Z$:\d]+"  # another workbook's cell
    r"|(?P<sheet>'(?:[^']|'')+'!|[^\W\d][\w.]*!)?"
    rf"(?P<reference>(?<![\w.$]){_CELL}(?::{_CELL})?(?![\w(.!])|(?<![\w.$:])\$?\d{{1,7}}:\$?\d{{1,7}}(?![\w(.!:]))"
    r"|'(?:[^']|'')*'!?"
    r"|[^\W\d][\w.]*!?"  # a name or a function: LOG10( is no cell
    r"|\d+(?:\.\d+)?"
)


def _each_reference(formula: str, change: Callable[[str, str], str]) -> str:
    """Return the formula with each reference replaced by what `change(sheet, reference)` returns.

    `sheet` is '' where the reference names none. References into other workbooks and the columns of tables
    (`[1]Sheet!A1`, `Table1[Size]`) are passed over.
    """

    def changed(match: re.Match[str]) -> str:
        reference = match.group("reference")
        if reference is None:
            return match.group()
        prefix = match.group("sheet") or ""
        name = prefix[:-1]
        if name.startswith("'"):
            name = name[1:-1].replace("''", "'")
        return prefix + change(name, reference)

    return _TOKEN.sub(changed, formula)


Maps = Mapping[str, RowMap]
"""Sheet name in lower case -> where its rows go."""


def move_formula(formula: str, own: str, maps: Maps, top: tuple[int, int] | None = None) -> str:
    """Return a formula for moved rows. `own`: the sheet it stands on, for references that name none.

    `top`: old and new first row of the range that a conditional format or drop-down serves; rows without `$`
    count from there.
    """

    def change(name: str, reference: str) -> str:
        rows = maps.get((name or own).lower())
        if rows is None:
            return reference
        match = _REFERENCE.fullmatch(reference)
        if top is not None and match and not match.group(3) and match.group(2):
            row = int(match.group(4)) - top[0] + top[1]
            return _with_row(match, row) if row > 0 else "#REF!"
        return move_address(reference, rows) or "#REF!"

    return _each_reference(formula, change)


def offset_formula(formula: str, down: int, right: int) -> str:
    """Return a formula as it reads when it is filled down and to the right by so many cells."""

    def change(_: str, reference: str) -> str:
        return ":".join(_offset(part, down, right) for part in reference.split(":"))

    return _each_reference(formula, change)


def _offset(reference: str, down: int, right: int) -> str:
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return reference
    dollar_column, column, dollar_row, row = match.groups("")
    number = int(row) if dollar_row else int(row) + down
    if column and not dollar_column:
        at = cells.column_number(column) + right
        if at < 1:
            return "#REF!"
        column = cells.letters(at)
    return f"{dollar_column}{column}{dollar_row}{number}" if number > 0 else "#REF!"
