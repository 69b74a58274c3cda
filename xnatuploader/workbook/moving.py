"""Where rows go when others are inserted or taken out above them, and what that makes of addresses and formulas."""

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
        self._starts = [0, *sorted(steps)]
        self._deltas = [0]
        for start in self._starts[1:]:
            self._deltas.append(self._deltas[-1] + steps[start])
        self.header = header
        self.first = first
        self.last = last
        self.new_last = last + self._deltas[-1]
        self.identical = not steps

    def moved(self, row: int) -> int:
        """Return the new number of a row; of one taken out, that of the row which came into its place."""
        new = row + self._deltas[bisect.bisect_right(self._starts, row) - 1]
        return min(new, LAST_ROW)

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
    r'"(?:[^"]|"")*"'
    rf"|(?P<sheet>'(?:[^']|'')+'!|(?<![\w.\]])[^\W\d][\w.]*!)?"
    rf"(?P<ref>(?<![\w.$]){_CELL}(?::{_CELL})?(?![\w(.!:])|(?<![\w.$:])\$?\d{{1,7}}:\$?\d{{1,7}}(?![\w(.!:]))"
    r"|\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\](?:[^\W\d][\w. ]*!)?"
    r"|'(?:[^']|'')*'!?"
    r"|[^\W\d][\w.]*!?"
    r"|\d+(?:\.\d+)?"
)


def _each_reference(formula: str, change: Callable[[str, str], str]) -> str:
    """Return the formula with each reference replaced by what `change(sheet, reference)` returns.

    `sheet` is '' where the reference names none. References into other workbooks and the columns of tables
    (`[1]Sheet!A1`, `Table1[Size]`) are passed over.
    """
    out = []
    position = 0
    foreign = False
    for match in _TOKEN.finditer(formula):
        out.append(formula[position : match.start()])
        position = match.end()
        reference = match.group("ref")
        text = match.group()
        adjacent = match.start() > 0 and formula[match.start() - 1] == "]"
        if reference is None or (foreign and adjacent):
            foreign = text.startswith("[")
            out.append(text)
            if foreign and text.endswith("!"):
                # `[1]Sheet!` stands before a reference that is not ours.
                skip = re.compile(rf"{_CELL}(?::{_CELL})?").match(formula, position)
                if skip:
                    out.append(skip.group())
                    position = skip.end()
                    out.append("")
            continue
        foreign = False
        prefix = match.group("sheet") or ""
        name = prefix.rstrip("!")
        if name.startswith("'"):
            name = name[1:-1].replace("''", "'")
        out.append(prefix + change(name, reference))
    out.append(formula[position:])
    return "".join(out)


def move_formula(
    formula: str, sheet: str, inside: bool, rows: RowMap, top: tuple[int, int] | None = None
) -> str:
    """Return a formula for the moved rows of `sheet`. `inside`: it stands on that sheet itself.

    `top`: old and new first row of the range that a conditional format or drop-down serves; rows without `$`
    count from there.
    """

    def change(name: str, reference: str) -> str:
        if name.lower() != sheet.lower() if name else not inside:
            return reference
        if top is not None and ":" not in reference and (match := _REFERENCE.fullmatch(reference)):
            if not match.group(3):
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
