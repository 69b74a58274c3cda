"""Writing the list of files: a new list, a scan's rows into an old one, an upload's outcomes."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from xnatuploader import records
from xnatuploader.workbook import (
    cells,
    editor,
    files_sheet,
    fresh,
    moving,
    pins,
    rewrite,
    sheet,
    structure,
    table,
)

_WIDTHS = {
    "Pattern": 12, "File": 60, "Filename": 26, "Upload": 10, "Status": 13, "Message": 60, "Subject": 16,
    "Session": 12, "Dataset": 22, "SessionLabel": 26, "ScanID": 10, "Resource": 11, "Size": 12, "Modified": 22,
    "MD5": 36, "DICOM:SeriesDescription": 28, "DICOM:StudyDescription": 28, "DICOM:StudyInstanceUID": 52,
    "DICOM:SeriesInstanceUID": 52, "DICOM:SOPInstanceUID": 52,
}  # fmt: skip


def _width(heading: str) -> float:
    """Return a column's width in characters; room for the heading and its filter button."""
    return _WIDTHS.get(heading, max(14, len(heading) + 5))


OUTCOME_HEADINGS = (
    *("Status", "Message", "MD5", "Filename", "SessionLabel", "ScanID", "Resource", "Size", "Modified"),
)
_ALWAYS = ("Status", "Message")
_NAMED = tuple(files_sheet.FIELDS[heading] for heading in OUTCOME_HEADINGS)


Plans = list[tuple[structure.Sheet, rewrite.Plan]]


def write(work: editor.Editor, rows: Sequence[records.Row], headings: Sequence[str], restart: bool) -> Plans:
    """Make the Files sheets hold these rows: add new sheets, return the plans for those that are there."""
    places = work.skeleton.series(files_sheet.NAME)
    if restart:
        _set_aside(work, places)
        places = ()
    if not places:
        _write_new(work, rows, headings, files_sheet.NAME, 1)
        return []
    lists = [_OldList(work, place, headings) for place in places]
    overflow = _assign(lists, rows)
    if overflow:
        _write_new(work, overflow, headings, files_sheet.NAME, _next_number(places))
    return [(old.place, old.plan(work)) for old in lists]


def _next_number(places: Sequence[structure.Sheet]) -> int:
    match = re.search(r" (\d+)$", places[-1].name)
    return int(match.group(1)) + 1 if match else 2


def _set_aside(work: editor.Editor, places: Sequence[structure.Sheet]) -> None:
    taken = {place.name.lower() for place in work.skeleton.sheets}
    for place in places:
        for number in itertools.count(1):
            name = f"{files_sheet.NAME} old" + (f" {number}" if number > 1 else "")
            if name.lower() not in taken:
                break
        taken.add(name.lower())
        work.rename_sheet(place, name)


def _write_new(
    work: editor.Editor, rows: Sequence[records.Row], headings: Sequence[str], name: str, number: int
) -> None:
    text, signals = work.styles.text(), {}
    for word, (colour, fill) in fresh.SIGNALS.items():
        signals[word] = work.styles.signal(colour, fill)
    columns = [
        fresh.Column(heading, _width(heading), text, heading == "Upload", heading == "Status")
        for heading in headings
    ]
    texts = files_sheet.texts_of(headings)
    room = fresh.LAST_ROW - 1
    for begin in range(0, max(len(rows), 1), room):
        part = rows[begin : begin + room]
        title = name if number == 1 else f"{name} {number}"
        writer = fresh.writer(columns, _Texts(texts, part), len(part), work.styles.header(), signals)
        where = fresh.range_name(title, len(columns), len(part))
        work.add_sheet(title, writer, 70 * len(columns) * len(part), where)
        number += 1


class _Texts(Iterable[Sequence[str]]):
    """The rows' texts, made one by one each time they are asked for."""

    def __init__(self, texts: files_sheet.Texts, rows: Sequence[records.Row]) -> None:
        self._texts = texts
        self._rows = rows

    def __iter__(self) -> Iterator[Sequence[str]]:
        return map(self._texts, self._rows)


@dataclass(slots=True)
class _Place:
    """One line of an old list that names a file."""

    number: int
    file: str


class _OldList:
    """One Files sheet as it is, and what the new list makes of it."""

    def __init__(self, work: editor.Editor, place: structure.Sheet, headings: Sequence[str]) -> None:
        self.place = place
        old = table.read_header(work.book, place, work.reader, files_sheet.KEY)
        self.header, self.added = rewrite.add_columns(old, headings)
        self._old_header = old
        self.headings = sorted(
            (heading for heading in headings), key=lambda name: cells.column_number(self.header.columns[name])
        )
        self.listed: list[_Place] = []
        self.end = old.number
        for number, (file,) in table.columns_of(work.book, place, work.reader, old, (files_sheet.KEY,)):
            self.end = max(self.end, number)
            if file:
                self.listed.append(_Place(number, file))
        self.matched: dict[int, records.Row] = {}
        self.inserted: dict[int, list[records.Row]] = {}
        self.removed: frozenset[int] = frozenset()
        self.emptied: frozenset[int] = frozenset()

    def settle(self) -> None:
        """Note which lines the new list does not have, after all of its rows were assigned."""
        self.removed = frozenset(line.number for line in self.listed if line.number not in self.matched)

    def overfull(self) -> int:
        """Return how many rows too many the sheet would have."""
        count = self.end + sum(len(rows) for rows in self.inserted.values()) - len(self.removed)
        return max(0, count - fresh.LAST_ROW)

    def take_last_new(self) -> records.Row:
        """Take out the last of the new rows."""
        last = max(self.inserted)
        row = self.inserted[last].pop()
        if not self.inserted[last]:
            del self.inserted[last]
        return row

    def plan(self, work: editor.Editor) -> rewrite.Plan:
        """Return what is to become of this sheet."""
        texts = files_sheet.texts_of(self.headings)
        if not self._can_move(work):
            self._append_instead()
        return rewrite.Plan(
            header=self.header,
            edit=self._edit(work, texts),
            rows=self._row_map(),
            added=self.added,
            inserted={at: [texts(row) for row in new] for at, new in self.inserted.items()},
            columns=[self.header.columns[heading] for heading in self.headings],
            removed=self.removed,
            edits=[self.header.columns[heading] for heading in self.headings],
        )

    def _row_map(self) -> moving.RowMap:
        first = self.listed[0].number if self.listed else self.header.number + 1
        last = self.listed[-1].number if self.listed else self.header.number
        counts = {at: len(new) for at, new in self.inserted.items()}
        return moving.RowMap(self.header.number, first, last, counts, self.removed)

    def _can_move(self, work: editor.Editor) -> bool:
        """Tell whether rows may go up or down here; nothing moves when all that is new comes at the end."""
        if not self.removed and all(at >= self.end for at in self.inserted):
            return True
        with work.book.stream(self.place.part) as stream:
            source = sheet.Source(stream)
            for _ in source.rows():
                pass
        return pins.safe(work, self.place, source.tail)

    def _append_instead(self) -> None:
        """Have new rows follow the last one and lines of files that are gone emptied: nothing moves then."""
        new = [row for at in sorted(self.inserted) for row in self.inserted[at]]
        self.inserted = {self.end: new} if new else {}
        self.emptied = self.removed
        self.removed = frozenset()

    def _edit(self, work: editor.Editor, texts: files_sheet.Texts) -> rewrite.Edit:
        layout = files_sheet.Layout(self._old_header)

        def edit(number: int, xml: str) -> Mapping[str, rewrite.Value]:
            row = self.matched.get(number)
            if row is None and number not in self.emptied:
                return {}
            now = layout.texts_by_column(xml, work.reader, number)
            if row is None:
                return {self.header.columns[heading]: "" for heading in self.headings}
            return _changes(self.headings, texts(row), self.header.columns, now)

        return edit


def _changes(
    headings: Sequence[str], texts: Sequence[str], columns: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, rewrite.Value]:
    changes: dict[str, rewrite.Value] = {}
    for heading, text in zip(headings, texts, strict=True):
        column = columns[heading]
        old = now.get(column, "")
        if old == text:
            continue
        if heading == "Upload" and cells.is_yes(old) == cells.is_yes(text):
            continue
        if heading == "Status" and old.strip().lower() == text:
            continue
        if len(text) > cells.MAX_TEXT // 2 and cells.from_xml(cells.to_xml(text)) == old:
            continue
        changes[column] = text
    return changes


def _assign(lists: Sequence[_OldList], rows: Sequence[records.Row]) -> list[records.Row]:
    """Give each row its line in an old list or a place after one; return those that no sheet has room for."""
    where: dict[str, list[tuple[_OldList, int]]] = {}
    for old in lists:
        for line in old.listed:
            where.setdefault(line.file, []).append((old, line.number))
    for lines in where.values():
        lines.reverse()
    current, after = lists[0], lists[0].header.number
    for row in rows:
        lines = where.get(row.file, [])
        if lines:
            current, after = lines.pop()
            current.matched[after] = row
        else:
            current.inserted.setdefault(after, []).append(row)
    overflow: list[records.Row] = []
    for old in lists:
        old.settle()
        for _ in range(old.overfull()):
            if old.inserted:
                overflow.append(old.take_last_new())
    overflow.reverse()
    return overflow


def write_outcomes(work: editor.Editor, outcomes: Mapping[str, records.Outcome]) -> Plans:
    """Return the plans that write outcomes into the rows of their files."""
    if not outcomes:
        return []
    plans: Plans = []
    named = named_by(outcomes)
    texts = _texts_of(named)
    for place in work.skeleton.series(files_sheet.NAME):
        old = table.read_header(work.book, place, work.reader, files_sheet.KEY)
        header, added = rewrite.add_columns(old, named)
        key = header.columns[files_sheet.KEY]
        columns = [(heading, header.columns[heading]) for heading in named]

        def edit(
            number: int, xml: str, key: str = key, columns: Sequence[tuple[str, str]] = columns
        ) -> Mapping[str, rewrite.Value]:
            outcome = outcomes.get(work.reader.cell(xml, f"{key}{number}")[1])
            if outcome is None:
                return {}
            changes: dict[str, rewrite.Value] = {}
            for (heading, column), text in zip(columns, texts(outcome), strict=True):
                if (text or heading in _ALWAYS) and work.reader.cell(xml, f"{column}{number}")[1] != text:
                    changes[column] = text
            return changes

        rows = moving.RowMap(header.number, header.number + 1, header.number, {}, ())
        letters = [column for _, column in columns]
        plans.append((place, rewrite.Plan(header, edit, rows, added, edits=letters)))
    return plans


def named_by(outcomes: Mapping[str, records.Outcome]) -> tuple[str, ...]:
    """Return the headings under which these outcomes write anything."""
    seen = {name for outcome in outcomes.values() for name in _NAMED if getattr(outcome, name)}
    return tuple(name for name in OUTCOME_HEADINGS if name in _ALWAYS or files_sheet.FIELDS[name] in seen)


def _texts_of(headings: Sequence[str]) -> Callable[[records.Outcome], Sequence[str]]:
    fetch = operator.attrgetter(*(files_sheet.FIELDS[heading] for heading in headings))

    def texts(outcome: records.Outcome) -> Sequence[str]:
        status, *rest = fetch(outcome)
        return [status.value, *rest]

    return texts


def stands(outcome: records.Outcome, headings: Sequence[str], texts: Sequence[str]) -> bool:
    """Tell whether cells with these texts, under what `named_by` returned, say what the outcome says."""
    for heading, wanted, text in zip(headings, _texts_of(headings)(outcome), texts, strict=True):
        if (wanted or heading in _ALWAYS) and wanted != text and cells.from_xml(cells.to_xml(wanted)) != text:
            return False
    return True
