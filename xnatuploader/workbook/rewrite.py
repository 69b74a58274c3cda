"""An existing list's sheet with cells changed, rows inserted and rows taken out, streamed from old to new."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from xnatuploader.workbook import cells, editor, fresh, moving, package, sheet, structure, table

Value = str | int
Edit = Callable[[int, str], Mapping[str, Value]]
"""From a row's number and XML to the cells to change: column letters -> new value."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to become of one sheet."""

    header: table.Header
    edit: Edit
    rows: moving.RowMap
    added: Mapping[str, str] = field(default_factory=dict)
    """Column letters -> heading, for columns that the sheet lacks."""
    inserted: Mapping[int, Sequence[Sequence[Value]]] = field(default_factory=dict)
    """Old row number -> the rows that follow it now, each with a value for each of `columns`."""
    columns: Sequence[tuple[str, int]] = ()
    """Letters and style of the columns that inserted rows fill, ascending."""
    removed: frozenset[int] = frozenset()
    links: Sequence[fresh.Link] = ()


def add_columns(header: table.Header, headings: Sequence[str]) -> tuple[table.Header, dict[str, str]]:
    """Return the header with columns for the headings that it lacks, to the right, and those columns."""
    added: dict[str, str] = {}
    last = header.last
    for heading in headings:
        if heading not in header.columns and heading not in added.values():
            last += 1
            added[cells.letters(last)] = heading
    columns = {**header.columns, **{heading: letters for letters, heading in added.items()}}
    return table.Header(header.number, columns, last), added


def apply(work: editor.Editor, place: structure.Sheet, plan: Plan) -> None:
    """Have the editor write this sheet by the plan, with all that is pinned to its rows moved along."""
    size = work.book.size(place.part)
    count = sum(len(rows) for rows in plan.inserted.values())
    mover = _Mover(place.name, plan)
    style = work.styles.text()

    def write(stream: IO[bytes]) -> None:
        with package.Package(work.book.path) as book, book.stream(place.part) as old:
            _write(old, stream, plan, mover, style)

    work.write(place.part, write, size + 4_000 * count)


def _write(old: IO[bytes], stream: IO[bytes], plan: Plan, mover: _Mover, style: int) -> None:
    source = sheet.Source(old)
    stream.write(mover.head(source.head).encode())
    make = fresh.row_maker(plan.columns)
    moves = not plan.rows.identical
    batch: list[str] = []
    for number, row in source.rows():
        if number not in plan.removed:
            batch.append(_row(number, row, plan, mover, style, moves))
        for at, values in enumerate(plan.inserted.get(number, ()), 1):
            batch.append(make(_after(plan, number) + at, values))
        if len(batch) > 500:
            stream.write("".join(batch).encode())
            batch.clear()
    stream.write("".join(batch).encode())
    stream.write(mover.tail(source.tail).encode())


def _after(plan: Plan, number: int) -> int:
    """Return the new number of the row after which rows are inserted, or of what stands there now."""
    new = plan.rows.new(number)
    return new if new is not None else plan.rows.moved(number) - 1


def _row(number: int, row: str, plan: Plan, mover: _Mover, style: int, moves: bool) -> str:
    if number == plan.header.number:
        for column, heading in plan.added.items():
            row = sheet.set_cell(row, number, column, sheet.content_of(heading), _style_of_last(row, style))
    elif number > plan.header.number:
        for column, value in plan.edit(number, row).items():
            row = sheet.set_cell(row, number, column, sheet.content_of(value), style)
    return mover.row(row, number) if moves else row


def _style_of_last(row: str, otherwise: int) -> int:
    styles = re.findall(r'<c r="[A-Z]+\d+" s="(\d+)"', row)
    return int(styles[-1]) if styles else otherwise


class _Mover:
    """Rewrites the addresses of one sheet's XML for its moved rows."""

    def __init__(self, name: str, plan: Plan) -> None:
        self._name = name
        self._plan = plan
        self._rows = plan.rows

    def head(self, head: str) -> str:
        """Return the part's head with its dimension and views up to date."""
        return head

    def row(self, row: str, number: int) -> str:
        """Return the row under its new number."""
        new = self._rows.moved(number)
        if new == number:
            return row
        row = re.sub(r'(<row\b[^>]*?\sr=)["\']\d+["\']', rf'\1"{new}"', row, count=1)
        return re.sub(r'<c r="([A-Z]+)\d+"', rf'<c r="\g<1>{new}"', row)

    def tail(self, tail: str) -> str:
        """Return what follows the rows with its addresses up to date."""
        return tail
