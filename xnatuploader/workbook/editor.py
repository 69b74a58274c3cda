"""Changing a workbook that somebody uses: parts are replaced or added, all others stay as they are."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Mapping
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
        self._parts: dict[str, bytes | package.Writer] = {}
        self._texts: dict[str, str] = {}
        self._large: set[str] = set()
        self._removed: set[str] = set()
        self._taken = {found.name.lower() for found in self.skeleton.sheets}
        self._reader: sheet.CellReader | None = None
        self.styles = styles.Styles(
            book.text(self.skeleton.styles_part) if self.skeleton.styles_part else styles.NEW
        )

    @property
    def reader(self) -> sheet.CellReader:
        """What turns this workbook's cells into text."""
        if self._reader is None:
            strings = structure.shared_strings(self.book, self.skeleton.strings_part)
            self._reader = sheet.CellReader(strings, self.skeleton.date_styles, self.skeleton.from_1904)
        return self._reader

    def text(self, part: str) -> str:
        """Return a small XML part as it is by now; '' where there is none."""
        if part not in self._texts:
            self._texts[part] = self.book.text(part) if self.book.has(part) else ""
        return self._texts[part]

    def set_text(self, part: str, text: str) -> None:
        """Replace a small XML part."""
        if text != self.text(part):
            self._texts[part] = text
            self._parts[part] = text.encode()

    def write(self, part: str, writer: package.Writer, size: int) -> None:
        """Replace or add a part by what `writer` writes; `size` is about how many bytes that will be."""
        self._parts[part] = writer
        if size > 3 << 30:
            self._large.add(part)

    def save(self) -> Path:
        """Write the changed workbook beside the old one, and return its place. Raises SpreadsheetLocked."""
        if self.styles.changed:
            self._save_styles()
        return package.save(self.book, self._parts, frozenset(self._large), frozenset(self._removed))

    def _save_styles(self) -> None:
        part = self.skeleton.styles_part
        if not part:
            part = posixpath.join(posixpath.dirname(self.skeleton.workbook_part), "styles.xml")
            self._override(part, f"{_CONTENT}.spreadsheetml.styles+xml")
            self._relate(self.skeleton.workbook_part, f"{_OFFICE}/relationships/styles", part)
        self._parts[part] = self.styles.xml.encode()

    # Sheets

    def add_sheet(self, name: str, writer: package.Writer, size: int, filter_range: str = "") -> str:
        """Add a worksheet at the end of the workbook and return its part."""
        folder = posixpath.join(posixpath.dirname(self.skeleton.workbook_part), "worksheets")
        taken = {part.lower() for part in (*self.book.names, *self._parts)}
        number = 1
        while f"{folder}/sheet{number}.xml".lower() in taken:
            number += 1
        part = f"{folder}/sheet{number}.xml"
        self.write(part, writer, size)
        self._override(part, f"{_CONTENT}.spreadsheetml.worksheet+xml")
        link = self._relate(self.skeleton.workbook_part, f"{_OFFICE}/relationships/worksheet", part)
        self._list_sheet(name, link, filter_range)
        return part

    def _list_sheet(self, name: str, link: str, filter_range: str) -> None:
        part = self.skeleton.workbook_part
        text = self.text(part)
        prefix = _prefix(text, "sheets")
        index = len(re.findall(rf"<{prefix}sheet\s", text))
        number = max([0, *(int(taken) for taken in re.findall(r'\ssheetId="(\d+)"', text))]) + 1
        namespace = f"{_OFFICE}/relationships"
        if "http://purl.oclc.org/ooxml/" in text:
            namespace = "http://purl.oclc.org/ooxml/officeDocument/relationships"
        entry = (
            f'<{prefix}sheet xmlns:r="{namespace}" name="{cells.attribute(name)}" sheetId="{number}" '
            f'r:id="{link}"/>'
        )
        text = text.replace(f"</{prefix}sheets>", f"{entry}</{prefix}sheets>", 1)
        if filter_range:
            text = _with_filter_name(text, prefix, index, filter_range)
        self.set_text(part, text)

    def set_aside(self, old: structure.Sheet, name: str) -> None:
        """Give a sheet the name `NAME old`, or `NAME old 2`, ...; formulas keep naming it as they did."""
        numbered = (f"{name} old {number}" for number in itertools.count(2))
        names = itertools.chain([f"{name} old"], numbered)
        self._rename(old, next(free for free in names if free.lower() not in self._taken))

    def _rename(self, old: structure.Sheet, name: str) -> None:
        self._taken.add(name.lower())
        part = self.skeleton.workbook_part
        text = self.text(part)
        prefix = _prefix(text, "sheets")
        entries = list(re.finditer(rf"<{prefix}sheet\s[^>]*>", text))
        entry = entries[old.index]
        renamed = re.sub(r'(\sname=)("[^"]*"|\'[^\']*\')', rf'\1"{cells.attribute(name)}"', entry.group())
        text = text[: entry.start()] + renamed + text[entry.end() :]
        quoted_old = re.escape(cells.attribute(old.name))
        quoted_new = cells.attribute("'" + name.replace("'", "''") + "'")

        def scoped(match: re.Match[str]) -> str:
            # A name that belongs to the sheet (its filter, its print area) goes with it.
            own = f'localSheetId="{old.index}"' in match.group(1)
            if not own:
                return match.group()
            return match.group(1) + re.sub(
                rf"(?:'{quoted_old}'|&#x27;{quoted_old}&#x27;|\b{quoted_old})!",
                lambda _: quoted_new + "!",
                match.group(2),
            )

        text = re.sub(rf"(<{prefix}definedName\s[^>]*>)([^<]*)", scoped, text)
        self.set_text(part, text)

    def lengthen_filter_name(self, sheet: structure.Sheet, last: int) -> None:
        """Have the hidden name that Excel keeps for a sheet's filter reach down to row `last`."""
        part = self.skeleton.workbook_part
        name = re.compile(
            rf'(<(?:\w+:)?definedName\b(?=[^>]*"_xlnm\._FilterDatabase")(?=[^>]*\slocalSheetId="{sheet.index}")'
            r"[^>]*>[^<]*:\$?[A-Z]+\$?)(\d+)"
        )
        self.set_text(part, name.sub(lambda match: f"{match[1]}{max(int(match[2]), last)}", self.text(part)))

    # Facts

    def remember(self, facts: Mapping[str, str]) -> None:
        """Store texts in custom document properties, where Excel and LibreOffice keep them."""
        if all(self.skeleton.facts.get(name) == value for name, value in facts.items()):
            return
        part = self.skeleton.custom_part
        if not part:
            part = "docProps/custom.xml"
            self.set_text(
                part,
                f'{_DECLARATION}<Properties xmlns="{_OFFICE}/custom-properties" '
                f'xmlns:vt="{_OFFICE}/docPropsVTypes"></Properties>',
            )
            self._override(part, f"{_CONTENT}.custom-properties+xml")
            self._relate("", f"{_OFFICE}/relationships/custom-properties", part)
        text = self.text(part)
        for name, value in facts.items():
            text = _with_property(text, structure.FACT_PREFIX + name, value)
        self.set_text(part, text)

    # The package's own lists

    def _override(self, part: str, content_type: str) -> None:
        text = self.text(_TYPES)
        prefix = _prefix(text, "Types")
        entry = f'<{prefix}Override PartName="/{part}" ContentType="{content_type}"/>'
        self.set_text(_TYPES, text.replace(f"</{prefix}Types>", f"{entry}</{prefix}Types>", 1))

    def _relate(self, source: str, kind: str, target: str, external: bool = False) -> str:
        where = package.relationships_part(source)
        text = self.text(where)
        if not text:
            text = f'{_DECLARATION}<Relationships xmlns="{_PACKAGE}/relationships"></Relationships>'
        text = re.sub(r"<((?:\w+:)?)Relationships\b([^>]*)/>", r"<\1Relationships\2></\1Relationships>", text)
        taken = set(re.findall(r'\sId="([^"]*)"', text))
        number = len(taken) + 1
        while f"rId{number}" in taken:
            number += 1
        prefix = _prefix(text, "Relationships")
        if "http://purl.oclc.org/ooxml/" in self.text(self.skeleton.workbook_part):
            kind = kind.replace(f"{_OFFICE}/", "http://purl.oclc.org/ooxml/officeDocument/")
        mode = ' TargetMode="External"' if external else ""
        place = cells.attribute(target) if external else "/" + target
        entry = f'<{prefix}Relationship Id="rId{number}" Type="{kind}" Target="{place}"{mode}/>'
        self.set_text(where, text.replace(f"</{prefix}Relationships>", f"{entry}</{prefix}Relationships>", 1))
        return f"rId{number}"

    def link_to(self, part: str, url: str) -> str:
        """Add a hyperlink's target to a sheet and return its relationship's ID."""
        return self._relate(part, f"{_OFFICE}/relationships/hyperlink", url, external=True)

    def formulas_will_change(self) -> None:
        """Have Excel work out all formulas on opening, where it has any: it trusts the values it stored."""
        if not self.skeleton.calc_chain_part:
            return
        part = self.skeleton.workbook_part
        text = self.text(part)
        prefix = _prefix(text, "sheets")
        if "fullCalcOnLoad" in text:
            return
        new = re.sub(rf"<{prefix}calcPr\b", f'<{prefix}calcPr fullCalcOnLoad="1"', text, count=1)
        self.set_text(part, new)

    def drop_calc_chain(self) -> None:
        """Remove the list of cells with formulas: Excel makes it anew, and calls a wrong one damage."""
        chain = self.skeleton.calc_chain_part
        if not chain or chain in self._removed:
            return
        self._removed.add(chain)
        self.formulas_will_change()
        types = self.text(_TYPES)
        pattern = rf'<(?:\w+:)?Override\b[^>]*PartName="/{re.escape(chain)}"[^>]*/>'
        self.set_text(_TYPES, re.sub(pattern, "", types, flags=re.IGNORECASE))
        where = package.relationships_part(self.skeleton.workbook_part)
        pattern = r'<(?:\w+:)?Relationship\b[^>]*Type="[^"]*/calcChain"[^>]*/>'
        self.set_text(where, re.sub(pattern, "", self.text(where)))


def _prefix(text: str, element: str) -> str:
    match = re.search(rf"<((?:\w+:)?){element}\b", text)
    return match.group(1) if match else ""


def _with_filter_name(text: str, prefix: str, index: int, where: str) -> str:
    name = (
        f'<{prefix}definedName name="_xlnm._FilterDatabase" localSheetId="{index}" hidden="1">'
        f"{where.replace('&', '&amp;').replace('<', '&lt;')}</{prefix}definedName>"
    )
    close = f"</{prefix}definedNames>"
    if close in text:
        return text.replace(close, name + close, 1)
    text = re.sub(rf"<{prefix}definedNames\s*/>", "", text)
    names = f"<{prefix}definedNames>{name}{close}"
    # ECMA-376 part 1, 18.2.27: sheets, functionGroups, externalReferences, definedNames.
    for element in ("externalReferences", "functionGroups", "sheets"):
        end = f"</{prefix}{element}>"
        if end in text:
            return text.replace(end, end + names, 1)
    return text


def _with_property(text: str, name: str, value: str) -> str:
    prefix = _prefix(text, "Properties")
    text = re.sub(rf"<{prefix}Properties\b([^>]*)/>", rf"<{prefix}Properties\1></{prefix}Properties>", text)
    content = cells.to_xml(value)
    quoted = re.escape(cells.attribute(name))
    known = re.search(
        rf'(<{prefix}property\b[^>]*\sname="{quoted}"[^>]*>)(.*?)(</{prefix}property>)', text, re.DOTALL
    )
    value_xml = f'<vt:lpwstr xmlns:vt="{_OFFICE}/docPropsVTypes">{content}</vt:lpwstr>'
    if known:
        return text[: known.end(1)] + value_xml + text[known.start(3) :]
    taken = [int(pid) for pid in re.findall(r'\spid="(\d+)"', text)]
    entry = (
        f'<{prefix}property fmtid="{{D5CDD505-2E9C-101B-9397-08002B2CF9AE}}" pid="{max([1, *taken]) + 1}" '
        f'name="{cells.attribute(name)}">{value_xml}</{prefix}property>'
    )
    return text.replace(f"</{prefix}Properties>", f"{entry}</{prefix}Properties>", 1)
