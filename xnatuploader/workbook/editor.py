"""Changing a workbook that somebody uses: parts are replaced or added, all others stay as they are."""

from __future__ import annotations

import functools
import html
import itertools
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from xnatuploader.workbook import cells, package, sheet, structure, styles

_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_CONTENT = "application/vnd.openxmlformats-officedocument"
_TYPES = "[Content_Types].xml"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'


class Editor:
    """The changes to one workbook, collected and then saved at once."""

    def __init__(self, book: package.Package) -> None:
        self.book = book
        self.skeleton = structure.read(book)
        self._parts: dict[str, package.Writer | None] = {}
        self._texts: dict[str, str] = {}
        self._large: set[str] = set()
        self._taken = {found.name.lower() for found in self.skeleton.sheets}
        self.styles = styles.Styles(self.text(self.skeleton.styles_part) or styles.NEW)

    @functools.cached_property
    def reader(self) -> sheet.CellReader:
        """What turns this workbook's cells into text."""
        return sheet.CellReader(self.book, self.skeleton)

    def text(self, part: str) -> str:
        """Return a small XML part as it is by now; '' where there is none."""
        if part not in self._texts:
            self._texts[part] = self.book.text(part) if self.book.has(part) else ""
        return self._texts[part]

    def set_text(self, part: str, text: str) -> None:
        """Replace a small XML part."""
        if text != self.text(part):
            self._texts[part] = text
            self._parts[part] = lambda stream: stream.write(text.encode())

    def write(self, part: str, writer: package.Writer, size: int) -> None:
        """Replace or add a part by what `writer` writes; `size` is about how many bytes that will be."""
        self._parts[part] = writer
        if size > package.LARGE:
            self._large.add(part)

    def save(self) -> Path:
        """Write the changed workbook beside the old one, and return its path. Raises SpreadsheetLocked."""
        part = self.skeleton.styles_part
        if not part:
            part = posixpath.join(posixpath.dirname(self.skeleton.workbook_part), "styles.xml")
            self._add_part(part, "spreadsheetml.styles", self.skeleton.workbook_part, "styles")
        self.set_text(part, self.styles.xml)
        return package.save(self.book, self._parts, frozenset(self._large))

    # Sheets

    def add_sheet(self, name: str, writer: package.Writer, size: int, filter_range: str) -> None:
        """Add a worksheet at the end of the workbook, with the hidden name that Excel keeps for its filter."""
        workbook = self.skeleton.workbook_part
        folder = posixpath.join(posixpath.dirname(workbook), "worksheets")
        taken = {part.lower() for part in self._parts}
        parts = (f"{folder}/sheet{number}.xml" for number in itertools.count(1))
        part = next(free for free in parts if free.lower() not in taken and not self.book.has(free))
        self.write(part, writer, size)
        link = self._add_part(part, "spreadsheetml.worksheet", workbook, "worksheet")
        text = self.text(workbook)
        index = len(re.findall(r"<(?:\w+:)?sheet\s", text))
        number = max([0, *(int(taken) for taken in re.findall(r'\ssheetId="(\d+)"', text))]) + 1
        entry = (
            f'<sheet xmlns:r="{self._relationships}" name="{cells.attribute(name)}" sheetId="{number}" '
            f'r:id="{link}"/>'
        )
        text = structure.with_child(text, "sheets", entry)
        entry = (
            f'<definedName name="_xlnm._FilterDatabase" localSheetId="{index}" hidden="1">'
            f"{html.escape(filter_range, quote=False)}</definedName>"
        )
        self.set_text(workbook, structure.with_child(_with_names(text), "definedNames", entry))

    def set_aside(self, old: structure.Sheet, name: str) -> None:
        """Give a sheet the name `NAME old`, or `NAME old 2`, ...; formulas keep naming it as they did."""
        numbered = (f"{name} old {number}" for number in itertools.count(2))
        names = itertools.chain([f"{name} old"], numbered)
        name = next(free for free in names if free.lower() not in self._taken)
        self._taken.add(name.lower())
        part = self.skeleton.workbook_part
        text = self.text(part)
        entry = list(re.finditer(r"<(?:\w+:)?sheet\s[^>]*>", text))[old.index]
        renamed = re.sub(r'(\sname=)("[^"]*"|\'[^\']*\')', rf'\1"{cells.attribute(name)}"', entry[0])
        text = text[: entry.start()] + renamed + text[entry.end() :]
        # A name that belongs to the sheet (its filter, its print area) goes with it.
        known = re.escape(html.escape(old.name, quote=False))
        own_name = rf'(<(?:\w+:)?definedName\s(?=[^>]*localSheetId="{old.index}")[^>]*>)([^<]*)'
        quoted = html.escape("'" + name.replace("'", "''") + "'!", quote=False)
        renamed_in = functools.partial(re.sub, rf"'{known}'!|\b{known}!", lambda _: quoted)
        self.set_text(part, re.sub(own_name, lambda match: match[1] + renamed_in(match[2]), text))

    def edit_filter_name(self, sheet: structure.Sheet, edit: Callable[[str], str]) -> None:
        """Change the hidden name that Excel keeps for a sheet's filter, if there is one."""
        part = self.skeleton.workbook_part
        name = r'<(?:\w+:)?definedName\b(?=[^>]*"_xlnm\._FilterDatabase")(?=[^>]*\slocalSheetId="{}")[^>]*>[^<]*<'
        text = re.sub(name.format(sheet.index), lambda match: edit(match[0]), self.text(part))
        self.set_text(part, text)

    # Facts

    def remember(self, facts: Mapping[str, str]) -> None:
        """Store texts in custom document properties, where Excel and LibreOffice keep them."""
        if all(self.skeleton.facts.get(name) == value for name, value in facts.items()):
            return
        part = self.skeleton.custom_part
        if not part:
            part = "docProps/custom.xml"
            self.set_text(part, f'{_DECLARATION}<Properties xmlns="{_OFFICE}/custom-properties"/>')
            self._add_part(part, "custom-properties", "", "custom-properties")
        text = self.text(part)
        for name, value in facts.items():
            text = _with_property(text, structure.FACT_PREFIX + name, value)
        self.set_text(part, text)

    # The package's own lists

    def _add_part(self, part: str, content: str, source: str, kind: str) -> str:
        """Make a part known to the package; return the ID of the relationship by which `source` points to it."""
        entry = f'<Override PartName="/{part}" ContentType="{_CONTENT}.{content}+xml"/>'
        self.set_text(_TYPES, structure.with_child(self.text(_TYPES), "Types", entry))
        return self._relate(source, kind, part)

    @property
    def _relationships(self) -> str:
        strict = "http://purl.oclc.org/ooxml/"
        office = f"{strict}officeDocument" if strict in self.text(self.skeleton.workbook_part) else _OFFICE
        return f"{office}/relationships"

    def _relate(self, source: str, kind: str, target: str, external: bool = False) -> str:
        where = package.relationships_part(source)
        text = self.text(where)
        if not text:
            text = f'{_DECLARATION}<Relationships xmlns="{_PACKAGE}/relationships"/>'
        taken = set(re.findall(r'\sId="([^"]*)"', text))
        free = next(
            name for name in map("rId{}".format, itertools.count(len(taken) + 1)) if name not in taken
        )
        mode = ' TargetMode="External"' if external else ""
        address = cells.attribute(target) if external else f"/{target}"
        entry = f'<Relationship Id="{free}" Type="{self._relationships}/{kind}" Target="{address}"{mode}/>'
        self.set_text(where, structure.with_child(text, "Relationships", entry))
        return free

    def link_to(self, part: str, url: str) -> str:
        """Add a hyperlink's target to a sheet and return its relationship's ID."""
        return self._relate(part, "hyperlink", url, external=True)

    def formulas_will_change(self) -> None:
        """Have Excel work out all formulas on opening, where it has any: it trusts the values it stored."""
        part = self.skeleton.workbook_part
        if self.skeleton.calc_chain_part and "fullCalcOnLoad" not in self.text(part):
            new = re.sub(r"<(?:\w+:)?calcPr\b", r'\g<0> fullCalcOnLoad="1"', self.text(part), count=1)
            self.set_text(part, new)

    def drop_calc_chain(self) -> None:
        """Remove the list of cells with formulas: Excel makes it anew, and calls a wrong one damage."""
        chain = self.skeleton.calc_chain_part
        if not chain or chain in self._parts:
            return
        self._parts[chain] = None
        self.formulas_will_change()
        types = self.text(_TYPES)
        pattern = rf'<(?:\w+:)?Override\b[^>]*PartName="/{re.escape(chain)}"[^>]*/>'
        self.set_text(_TYPES, re.sub(pattern, "", types, flags=re.IGNORECASE))
        where = package.relationships_part(self.skeleton.workbook_part)
        pattern = r'<(?:\w+:)?Relationship\b[^>]*Type="[^"]*/calcChain"[^>]*/>'
        self.set_text(where, re.sub(pattern, "", self.text(where)))


def _with_names(text: str) -> str:
    """Return the workbook's part with a list of names, empty if it had none."""
    if re.search(r"<(?:\w+:)?definedNames\b", text):
        return text
    # ECMA-376 part 1, 18.2.27: the names follow these.
    *_, last = re.finditer(r"</((?:\w+:)?)(?:sheets|functionGroups|externalReferences)>", text)
    return f"{text[: last.end()]}<{last[1]}definedNames/>{text[last.end() :]}"


def _with_property(text: str, name: str, value: str) -> str:
    quoted = re.escape(cells.attribute(name))
    known = rf'<((?:\w+:)?property)\b[^>]*\sname="{quoted}"[^>]*>.*?</\1>'
    text = re.sub(known, "", text, flags=re.DOTALL)
    number = max([1, *map(int, re.findall(r'\spid="(\d+)"', text))]) + 1
    return structure.with_child(
        text,
        "Properties",
        f'<property fmtid="{{D5CDD505-2E9C-101B-9397-08002B2CF9AE}}" pid="{number}" '
        f'name="{cells.attribute(name)}"><vt:lpwstr xmlns:vt="{_OFFICE}/docPropsVTypes">{cells.to_xml(value)}'
        "</vt:lpwstr></property>",
    )
