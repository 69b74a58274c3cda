"""What is pinned to a sheet's rows besides their cells, and moves with them.

Merged cells, conditional formats, drop-downs, links, filters, notes and their boxes, drawings, tables, names,
and formulas wherever they stand. What is not known here makes a sheet unsafe to insert rows into.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

from xnatuploader.workbook import cells, editor, fresh, moving, structure

_KNOWN_LINKS = frozenset(
    ("comments", "vmlDrawing", "threadedComment", "drawing", "table", "hyperlink", "printerSettings", "image")
)
_KNOWN_PARTS = frozenset(
    [
        "sheetData",
        "sheetCalcPr",
        "sheetProtection",
        "protectedRanges",
        "autoFilter",
        "sortState",
        "mergeCells",
        "phoneticPr",
        "conditionalFormatting",
        "dataValidations",
        "hyperlinks",
        "printOptions",
        "pageMargins",
        "pageSetup",
        "headerFooter",
        "rowBreaks",
        "colBreaks",
        "ignoredErrors",
        "cellWatches",
        "drawing",
        "legacyDrawing",
        "legacyDrawingHF",
        "picture",
        "tableParts",
        "extLst",
    ]
)
"""What may follow the rows of a sheet (ECMA-376 part 1, 18.3.1.99) and is moved or need not be."""
_KNOWN_EXTENSIONS = frozenset(
    ("conditionalFormattings", "dataValidations", "sparklineGroups", "ignoredErrors")
)
_LARGE = 50 << 20
"""Bytes of another sheet beyond which its formulas are not looked through."""

_ELEMENT = r"<((?:\w+:)?(?:{names}))(\s[^>]*?)?(?:/>|>(.*?)</\1>)"


def _elements(*names: str) -> re.Pattern[str]:
    return re.compile(_ELEMENT.format(names="|".join(names)), re.DOTALL)


def safe(work: editor.Editor, place: structure.Sheet, tail: str) -> bool:
    """Tell whether everything pinned to the rows of this sheet is known, so that rows can be inserted."""
    if any(link.type not in _KNOWN_LINKS for link in work.book.relationships(place.part)):
        return False
    names = {name.rsplit(":", 1)[-1] for name in _children(tail)}
    extensions = {
        name.rsplit(":", 1)[-1]
        for body in re.findall(r"<ext\b[^>]*>(.*?)</ext>", tail, re.DOTALL)
        for name in _children(body)
    }
    return names <= _KNOWN_PARTS and extensions <= _KNOWN_EXTENSIONS


_TOKEN = re.compile(r"<(/?)([\w:.-]+)[^>]*?(/?)>")


def _children(xml: str) -> set[str]:
    """Return the names of the outermost elements of a fragment, which may begin with foreign end tags."""
    names, depth = set(), 0
    for closing, name, empty in _TOKEN.findall(xml):
        if closing:
            depth = max(0, depth - 1)
        else:
            if depth == 0:
                names.add(name)
            depth += not empty
    return names


class Mover:
    """Rewrites one sheet's XML for moved rows, its own and those of sheets that its formulas name."""

    def __init__(self, name: str, maps: moving.Maps, columns: int, links: Sequence[fresh.Link] = ()) -> None:
        self._name = name
        self._maps = maps
        self._rows = maps[name.lower()]
        self._columns = columns
        self._links = links
        self._shared: dict[str, tuple[str, int, int]] = {}
        self._unshared: set[str] = set()
        self._foreign = any(not rows.identical for rows in maps.values())
        self.moves = not self._rows.identical

    def head(self, head: str) -> str:
        """Return what precedes the rows with the sheet's dimension up to date."""
        return re.sub(r'(<(?:\w+:)?dimension\b[^>]*?\sref=")([^"]*)', self._dimension, head, count=1)

    def _dimension(self, match: re.Match[str]) -> str:
        begin, _, end = match.group(2).partition(":")
        last = re.fullmatch(r"([A-Z]+)(\d+)", end or begin)
        if last is None:
            return match.group()
        columns = max(cells.column_number(last.group(1)), self._columns)
        row = max(self._rows.moved(int(last.group(2))), self._rows.new_last)
        return f"{match.group(1)}{begin}:{cells.letters(columns)}{row}"

    # Rows

    def note(self, row: str, number: int) -> None:
        """Learn the formulas that cells of this row share with later ones, before one is written over."""
        if 't="shared"' in row:
            for column, attributes, formula in _FORMULA.findall(row):
                index = _attribute(attributes, "si")
                if formula and 't="shared"' in attributes:
                    self._shared[index] = (formula, number, cells.column_number(column))

    def row(self, before: str, row: str, number: int) -> str:
        """Return the row under its new number, its formulas too. `before`: the row as it was."""
        new = self._rows.moved(number)
        if "<f" in before:
            self._lose_shared(before, row)
            if "<f" in row and (self._foreign or self._unshared):
                row = _FORMULA_CELL.sub(lambda match: self._formula(match, number), row)
        if new == number:
            return row
        row = _ROW_NUMBER.sub(rf'\g<1>"{new}"', row, count=1)
        return _CELL_NAME.sub(rf'<c r="\g<1>{new}"', row)

    def _lose_shared(self, before: str, row: str) -> None:
        """Find formulas that others share and that are written over: the others then need their own."""
        if before is row or 't="shared"' not in before:
            return
        left = {_attribute(attributes, "si") for _, attributes, formula in _FORMULA.findall(row) if formula}
        for _, attributes, formula in _FORMULA.findall(before):
            index = _attribute(attributes, "si")
            if formula and 't="shared"' in attributes and index not in left:
                self._unshared.add(index)

    def _formula(self, match: re.Match[str], number: int) -> str:
        start, column, attributes, formula = match.groups("")
        text = html.unescape(formula)
        if 't="shared"' in attributes:
            index = _attribute(attributes, "si")
            if index not in self._shared or not (self._foreign or index in self._unshared):
                return match.group()
            master, at_row, at_column = self._shared[index]
            right = cells.column_number(column) - at_column
            text = moving.offset_formula(html.unescape(master), number - at_row, right)
            attributes = ""
        attributes = re.sub(
            r'\s(ref|r1|r2)="([^"]*)"',
            lambda found: f' {found.group(1)}="{moving.move_address(found.group(2), self._rows)}"',
            attributes,
        )
        moved = moving.move_formula(text, self._name, self._maps)
        return f"{start}<f{attributes}>{_escaped(moved)}</f>" if moved else f"{start}<f{attributes}/>"

    # What follows the rows

    def tail(self, tail: str) -> str:
        """Return what follows the rows with its addresses and formulas up to date."""
        if self._foreign:
            tail = _SERVING.sub(self._serving, tail)
            tail = _EXTENDED.sub(self._extended, tail)
        if self.moves:
            tail = _PINNED.sub(self._pinned, tail)
            tail = _BREAKS.sub(self._breaks, tail)
            tail = _without_empty(tail)
        return self._with_links(tail)

    def _serving(self, match: re.Match[str]) -> str:
        """Move a conditional format or a drop-down: its ranges, and the formulas that count from them."""
        name, attributes, body = match.groups("")
        where = _attribute(attributes, "sqref")
        if not where:
            return match.group()  # one of the newer forms
        moved = moving.move_addresses(where, self._rows)
        if not moved:
            return ""
        attributes = attributes.replace(f'sqref="{where}"', f'sqref="{moved}"')
        body = self._formulas(body, _top(where, moved))
        return f"<{name}{attributes}>{body}</{name}>" if body else f"<{name}{attributes}/>"

    def _extended(self, match: re.Match[str]) -> str:
        """Move the newer forms of these and sparklines, which hold their ranges in elements."""
        name, attributes, body = match.groups("")
        where = re.search(r"<xm:sqref>([^<]*)</xm:sqref>", body)
        if where is None:
            return match.group()
        moved = moving.move_addresses(where.group(1), self._rows)
        if not moved:
            return ""
        body = self._formulas(body, None if "sparkline" in name else _top(where.group(1), moved))
        body = body.replace(where.group(), f"<xm:sqref>{moved}</xm:sqref>")
        return f"<{name}{attributes}>{body}</{name}>"

    def _formulas(self, body: str, top: tuple[int, int] | None) -> str:
        def moved(match: re.Match[str]) -> str:
            text = moving.move_formula(html.unescape(match.group(2)), self._name, self._maps, top)
            return f"{match.group(1)}{_escaped(text)}{match.group(3)}"

        return _FORMULA_TEXT.sub(moved, body)

    def _pinned(self, match: re.Match[str]) -> str:
        name, attributes, body = match.groups("")
        for attribute in ("ref", "sqref", "r"):
            where = _attribute(attributes, attribute)
            if where:
                moved = moving.move_addresses(where, self._rows)
                if not moved:
                    return ""
                attributes = attributes.replace(f' {attribute}="{where}"', f' {attribute}="{moved}"')
        body = _PINNED.sub(self._pinned, body)
        return f"<{name}{attributes}>{body}</{name}>" if body else f"<{name}{attributes}/>"

    def _breaks(self, match: re.Match[str]) -> str:
        def moved(found: re.Match[str]) -> str:
            return f'{found.group(1)}{self._rows.moved(int(found.group(2)))}"'

        return re.sub(r'(<(?:\w+:)?brk\b[^>]*?\sid=")(\d+)"', moved, match.group())

    def _with_links(self, tail: str) -> str:
        if not self._links:
            return tail
        for link in self._links:
            tail = re.sub(rf'<(?:\w+:)?hyperlink\b[^>]*\sref="{link.cell}"[^>]*/>', "", tail)
        relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
        made = "".join(
            f'<hyperlink xmlns:r="{relations}" ref="{link.cell}" r:id="{link.id}"/>' for link in self._links
        )
        if "</hyperlinks>" in tail:
            return tail.replace("</hyperlinks>", f"{made}</hyperlinks>", 1)
        return insert_element(tail, "hyperlinks", f"<hyperlinks>{made}</hyperlinks>")


# ECMA-376 part 1, 18.3.1.99: the order of what follows the rows.
_ORDER = [
    "sheetCalcPr",
    "sheetProtection",
    "protectedRanges",
    "scenarios",
    "autoFilter",
    "sortState",
    "dataConsolidate",
    "customSheetViews",
    "mergeCells",
    "phoneticPr",
    "conditionalFormatting",
    "dataValidations",
    "hyperlinks",
    "printOptions",
    "pageMargins",
    "pageSetup",
    "headerFooter",
    "rowBreaks",
    "colBreaks",
    "customProperties",
    "cellWatches",
    "ignoredErrors",
    "smartTags",
    "drawing",
    "legacyDrawing",
    "legacyDrawingHF",
    "drawingHF",
    "picture",
    "oleObjects",
    "controls",
    "webPublishItems",
    "tableParts",
    "extLst",
]


def insert_element(tail: str, name: str, element: str) -> str:
    """Return what follows a sheet's rows with an element put where the schema wants it."""
    for follower in _ORDER[_ORDER.index(name) + 1 :]:
        match = re.search(rf"<(?:\w+:)?{follower}\b", tail)
        if match:
            return tail[: match.start()] + element + tail[match.start() :]
    end = tail.rfind("</")
    return tail[:end] + element + tail[end:]


_FORMULA = re.compile(r'<c r="([A-Z]+)\d+"[^>]*><f(\s[^>]*?)?(?:/>|>([^<]*)</f>)')
_FORMULA_CELL = re.compile(r'(<c r="([A-Z]+)\d+"[^>]*>)<f(\s[^>]*?)?(?:/>|>([^<]*)</f>)')
_ROW_NUMBER = re.compile(r'(<row\b[^>]*?\sr=)["\']\d+["\']')
_CELL_NAME = re.compile(r'<c r="([A-Z]+)\d+"')
_SERVING = _elements("conditionalFormatting", "dataValidation")
_EXTENDED = _elements("x14:conditionalFormatting", "x14:dataValidation", "x14:sparkline")
_PINNED = _elements(
    "autoFilter", "sortState", "sortCondition", "mergeCell", "hyperlink", "protectedRange", "ignoredError",
    "cellWatch",
)  # fmt: skip
_BREAKS = _elements("rowBreaks")
_FORMULA_TEXT = re.compile(r"(<(?:\w+:)?(?:f|formula|formula1|formula2)(?:\s[^>]*)?>)([^<]*)(</)")
_EMPTY = re.compile(
    r"<((?:\w+:)?(?:mergeCells|dataValidations|hyperlinks|protectedRanges|ignoredErrors|cellWatches))(?:\s[^>]*)?>"
    r"\s*</\1>"
)
_COUNTED = re.compile(r"(<(?:\w+:)?(?:mergeCells|dataValidations)\b[^>]*?)\scount=\"\d+\"")


def _without_empty(tail: str) -> str:
    """Take out groups that nothing is left of, and the counts (optional) of those that shrank."""
    return _COUNTED.sub(r"\1", _EMPTY.sub("", tail))


def _attribute(attributes: str, name: str) -> str:
    match = re.search(rf'\s{name}="([^"]*)"', attributes)
    return match.group(1) if match else ""


def _top(before: str, after: str) -> tuple[int, int] | None:
    old, new = re.search(r"\d+", before.split()[0]), re.search(r"\d+", after)
    return (int(old.group()), int(new.group())) if old and new else None


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def move_around(work: editor.Editor, places: Mapping[str, structure.Sheet], maps: moving.Maps) -> None:
    """Move what other parts pin to the rows of these sheets. `places`: by name in lower case, as `maps`."""
    moving_maps = {name: rows for name, rows in maps.items() if not rows.identical}
    if not moving_maps:
        return
    work.drop_calc_chain()
    for name, rows in moving_maps.items():
        for link in work.book.relationships(places[name].part):
            change = _ATTACHED.get(link.type)
            if change is not None and work.book.has(link.target):
                work.set_text(link.target, change(work.text(link.target), rows))
    rewritten = {places[name].part for name in maps}
    for part in work.book.names:
        if part not in rewritten and _may_hold_formulas(part, work):
            _move_formulas(work, part, moving_maps)


def _may_hold_formulas(part: str, work: editor.Editor) -> bool:
    if part == work.skeleton.workbook_part:
        return True
    folder = posixpath.basename(posixpath.dirname(part))
    holds = folder in ("worksheets", "charts", "chartsheets", "tables", "pivotCache")
    return holds and part.endswith(".xml") and work.book.size(part) <= _LARGE


_ANY_FORMULA = re.compile(
    r"(<(?:\w+:)?(?:f|formula|formula1|formula2|definedName|calculatedColumnFormula|totalsRowFormula)"
    r"(?:\s[^>]*)?>)([^<]*)(</)"
)
_PIVOT_SOURCE = re.compile(r"<(?:\w+:)?worksheetSource\b[^>]*>")


def _move_formulas(work: editor.Editor, part: str, maps: moving.Maps) -> None:
    text = work.text(part)
    lowered = text.lower()
    if not any(f"{html.escape(name, quote=False)}" in lowered for name in maps):
        return

    def moved(match: re.Match[str]) -> str:
        formula = moving.move_formula(html.unescape(match.group(2)), "", maps)
        return f"{match.group(1)}{_escaped(formula)}{match.group(3)}"

    def source(match: re.Match[str]) -> str:
        rows = maps.get(html.unescape(_attribute(match.group(), "sheet")).lower())
        where = _attribute(match.group(), "ref")
        if rows is None or not where:
            return match.group()
        return match.group().replace(f'ref="{where}"', f'ref="{moving.move_address(where, rows) or where}"')

    work.set_text(part, _PIVOT_SOURCE.sub(source, _ANY_FORMULA.sub(moved, text)))


_NOTE = _elements("comment", "threadedComment")
_SHAPE = re.compile(r"<(\w+:)?shape\s.*?</\1shape>", re.DOTALL)
_SHAPE_ROW = re.compile(r"(<(?:\w+:)?Row>)\s*(\d+)\s*(</)")
_ANCHOR = re.compile(r"(<(?:\w+:)?Anchor>)([^<]*)(</)")
_DRAWN_ROW = re.compile(r"(<(?:\w+:)?row>)(\d+)(</(?:\w+:)?row>)")
_TABLE_RANGE = re.compile(r'(<(?:\w+:)?(?:table|autoFilter|sortState|sortCondition)\b[^>]*?\sref=")([^"]*)')


def _move_notes(text: str, rows: moving.RowMap) -> str:
    def moved(match: re.Match[str]) -> str:
        where = _attribute(match.group(2) or "", "ref")
        new = moving.move_address(where, rows)
        return match.group().replace(f'ref="{where}"', f'ref="{new}"', 1) if new else ""

    return _NOTE.sub(moved, text)


def _move_boxes(text: str, rows: moving.RowMap) -> str:
    """Move the boxes in which notes are shown; rows count from 0 there."""

    def moved(match: re.Match[str]) -> str:
        shape = match.group()
        at = _SHAPE_ROW.search(shape)
        if at is None:
            return shape
        old = int(at.group(2))
        new = rows.new(old + 1)
        if new is None:
            return ""
        shape = _SHAPE_ROW.sub(rf"\g<1>{new - 1}\g<3>", shape)
        return _ANCHOR.sub(lambda anchor: _move_anchor(anchor, new - 1 - old), shape)

    return _SHAPE.sub(moved, text)


def _move_anchor(match: re.Match[str], down: int) -> str:
    """Move `left column, dx, top row, dy, right column, dx, bottom row, dy`."""
    numbers = match.group(2).split(",")
    if len(numbers) != 8:
        return match.group()
    for place in (2, 6):
        numbers[place] = f" {max(0, int(numbers[place]) + down)}"
    return match.group(1) + ",".join(numbers) + match.group(3)


def _move_drawn(text: str, rows: moving.RowMap) -> str:
    return _DRAWN_ROW.sub(
        lambda match: f"{match.group(1)}{rows.moved(int(match.group(2)) + 1) - 1}{match.group(3)}", text
    )


def _move_table(text: str, rows: moving.RowMap) -> str:
    def moved(match: re.Match[str]) -> str:
        return match.group(1) + (moving.move_address(match.group(2), rows) or match.group(2))

    return _TABLE_RANGE.sub(moved, text)


_ATTACHED: Mapping[str, Callable[[str, moving.RowMap], str]] = {
    "comments": _move_notes,
    "threadedComment": _move_notes,
    "vmlDrawing": _move_boxes,
    "drawing": _move_drawn,
    "table": _move_table,
}
"""Kind of part that belongs to a sheet -> how it is moved."""


def overwrites_formulas(work: editor.Editor, columns: Sequence[str]) -> bool:
    """Tell whether any sheet has formulas in these columns, by Excel's own list of them."""
    chain = work.skeleton.calc_chain_part
    if not chain or not columns:
        return False
    return bool(re.search(rf'\sr="(?:{"|".join(columns)})\d+"', work.text(chain)))
