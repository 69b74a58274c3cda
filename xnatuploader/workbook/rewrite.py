"""An existing list's sheet with cells changed, rows inserted and rows taken out, streamed from old to new."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from xnatuploader.workbook import cells, editor, fresh, moving, package, pins, sheet, structure, table

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
    columns: Sequence[str] = ()
    """Letters of the columns that inserted rows fill, ascending."""
    removed: frozenset[int] = frozenset()
    links: Sequence[fresh.Link] = ()
    edits: Sequence[str] = ()
    """Letters of the columns that `edit` may change."""


_BATCH = 500
"""Rows that are put together before they are compressed."""


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


def apply(work: editor.Editor, plans: Sequence[tuple[structure.Sheet, Plan]]) -> None:
    """Have the editor write these sheets by their plans, and move all that is pinned to their rows."""
    maps = {place.name.lower(): plan.rows for place, plan in plans}
    pins.move_around(work, {place.name.lower(): place for place, _ in plans}, maps)
    work.formulas_will_change()
    text = work.styles.text()
    for place, plan in plans:
        if pins.overwrites_formulas(work, plan.edits):
            work.drop_calc_chain()
        mover = pins.Mover(place.name, maps, plan.header.last, plan.links)
        count = sum(len(rows) for rows in plan.inserted.values())
        work.write(
            place.part, _writer(work, place, plan, mover, text), work.book.size(place.part) + 4_000 * count
        )


def _writer(
    work: editor.Editor, place: structure.Sheet, plan: Plan, mover: pins.Mover, style: int
) -> package.Writer:
    def write(stream: IO[bytes]) -> None:
        with package.Package(work.book.path) as book, book.stream(place.part) as old:
            _write(old, stream, plan, mover, style)

    return write


def _write(old: IO[bytes], stream: IO[bytes], plan: Plan, mover: pins.Mover, text: int) -> None:
    source = sheet.Source(old)
    stream.write(mover.head(source.head).encode())
    given = sheet.column_styles(source.head)
    styles = {
        column: text if (own := given(column)) is None else own for column in (*plan.columns, *plan.edits)
    }
    make = fresh.row_maker([(column, styles[column]) for column in plan.columns])
    batch: list[str] = []
    for number, row in source.rows():
        formulas = "<f" in row
        if formulas:
            mover.note(row, number)
        if number not in plan.removed:
            edited = _edited(number, row, plan, styles, text)
            batch.append(mover.row(row, edited, number) if formulas or mover.moves else edited)
        for at, values in enumerate(plan.inserted.get(number, ())):
            batch.append(make(plan.rows.first_inserted(number) + at, values))
        if len(batch) > _BATCH:
            stream.write("".join(batch).encode())
            batch.clear()
    stream.write("".join(batch).encode())
    stream.write(mover.tail(source.tail).encode())


def _edited(number: int, row: str, plan: Plan, styles: Mapping[str, int], text: int) -> str:
    if number == plan.header.number:
        for column, heading in plan.added.items():
            row = sheet.set_cell(row, number, column, sheet.content_of(heading), _style_of_last(row, text))
    elif number > plan.header.number:
        for column, value in plan.edit(number, row).items():
            row = sheet.set_cell(row, number, column, sheet.content_of(value), styles.get(column, text))
    return row


def _style_of_last(row: str, otherwise: int) -> int:
    styles = re.findall(r'<c r="[A-Z]+\d+" s="(\d+)"', row)
    return int(styles[-1]) if styles else otherwise
