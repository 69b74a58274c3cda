"""The workbook's style part: finding or adding the few cell formats that our sheets use."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

from xnatuploader.workbook import structure

MAIN_NAMESPACE = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"

NEW = (
    f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<styleSheet xmlns="{MAIN_NAMESPACE}">'
    '<fonts count="1"><font><sz val="11"/><name val="Calibri"/><family val="2"/></font></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill>'
    '<fill><patternFill patternType="gray125"/></fill></fills>'
    '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
    '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>'
    '<cellXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/></cellXfs>'
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>'
)

# ECMA-376 part 1, 18.8.39: the order of the groups in a style sheet.
_ORDER = (
    "numFmts", "fonts", "fills", "borders", "cellStyleXfs", "cellXfs", "cellStyles", "dxfs", "tableStyles",
    "colors", "extLst",
)  # fmt: skip

TEXT_FORMAT = 49
"""Excel's built-in number format `@`: what is typed into such a cell stays as typed."""


class Styles:
    """A style part that grows; `xml` is its text now."""

    def __init__(self, xml: str) -> None:
        self.xml = xml

    def _tree(self) -> ElementTree.Element:
        return ElementTree.fromstring(self.xml.encode())

    def text(self) -> int:
        """Return the style of a plain text cell."""
        return self._format(TEXT_FORMAT)

    def number(self) -> int:
        """Return the style of a plain number with separators for thousands (format 3: `#,##0`)."""
        return self._format(3)

    def size(self) -> int:
        """Return the style that shows a number of bytes in kB, MB or GB."""
        code = '[>=1000000000]0.0,,," GB";[>=1000000]0.0,," MB";0.0," kB"'
        return self._format(self._number_format(code))

    def indented(self) -> int:
        """Return the style of a text that follows a column of numbers."""
        return self._add("cellXfs", self._xf(TEXT_FORMAT, 0, 0, '<alignment horizontal="left" indent="1"/>'))

    def header(self) -> int:
        """Return the style of a heading."""
        font = self._add(
            "fonts", '<font><b/><sz val="11"/><color rgb="FFFFFFFF"/><name val="Calibri"/></font>'
        )
        fill = self._add(
            "fills",
            '<fill><patternFill patternType="solid"><fgColor rgb="FF1F4E79"/><bgColor indexed="64"/>'
            "</patternFill></fill>",
        )
        return self._add("cellXfs", self._xf(TEXT_FORMAT, font, fill, '<alignment vertical="center"/>'))

    def link(self) -> int:
        """Return the style of a link."""
        font = self._add(
            "fonts", '<font><u/><sz val="11"/><color rgb="FF0563C1"/><name val="Calibri"/></font>'
        )
        return self._add("cellXfs", self._xf(TEXT_FORMAT, font, 0, ""))

    def signal(self, colour: str, fill: str) -> int:
        """Return a differential style for conditional formats: text colour and fill, as `9C0006`."""
        return self._add(
            "dxfs",
            f'<dxf><font><color rgb="FF{colour}"/></font><fill><patternFill><bgColor rgb="FF{fill}"/>'
            "</patternFill></fill></dxf>",
        )

    def _format(self, number: int) -> int:
        wanted = {"numFmtId": str(number), "fontId": "0", "fillId": "0", "borderId": "0"}
        for index, style in enumerate(self._tree().iterfind("{*}cellXfs/{*}xf")):
            plain = all(style.get(name, "0") == value for name, value in wanted.items())
            if plain and style.find("{*}alignment") is None:
                return index
        return self._add("cellXfs", self._xf(number, 0, 0, ""))

    def _xf(self, number: int, font: int, fill: int, body: str) -> str:
        marks = ' applyNumberFormat="1"' + ' applyFont="1"' * bool(font) + ' applyFill="1"' * bool(fill)
        start = f'<xf numFmtId="{number}" fontId="{font}" fillId="{fill}" borderId="0" xfId="0"{marks}'
        return f'{start} applyAlignment="1">{body}</xf>' if body else f"{start}/>"

    def _number_format(self, code: str) -> int:
        entries = self._tree().findall("{*}numFmts/{*}numFmt")
        taken = [int(entry.get("numFmtId", "0")) for entry in entries]
        for number, entry in zip(taken, entries, strict=True):
            if entry.get("formatCode") == code:
                return number
        number = max([163, *taken]) + 1
        self._add("numFmts", f'<numFmt numFmtId="{number}" formatCode="{html.escape(code)}"/>')
        return number

    def _add(self, group: str, entry: str) -> int:
        """Return the position of `entry` in its group, where it is added at the end if it is not there yet."""
        wanted, tree = ElementTree.fromstring(entry), self._tree()
        if tree.find(f"{{*}}{group}") is None:
            self._add_group(group)
        entries = tree.findall(f"{{*}}{group}/*")
        for index, there in enumerate(entries):
            if _same(there, wanted):
                return index
        self.xml = structure.with_child(self.xml, group, entry)
        count = rf'(<(?:\w+:)?{group}\b[^>]*\scount=")\d*'
        self.xml = re.sub(count, rf"\g<1>{len(entries) + 1}", self.xml, count=1)
        return len(entries)

    def _add_group(self, group: str) -> None:
        followers = "|".join(_ORDER[_ORDER.index(group) + 1 :])
        at = re.search(rf"<((?:\w+:)?)(?:{followers})\b|</((?:\w+:)?)styleSheet>", self.xml)
        assert at is not None
        self.xml = f"{self.xml[: at.start()]}<{at[1] or at[2] or ''}{group}/>{self.xml[at.start() :]}"


def _same(one: ElementTree.Element, other: ElementTree.Element) -> bool:
    """Tell whether two elements say the same, whatever their prefixes and the blanks between them."""
    alike = structure.local(one.tag) == structure.local(other.tag) and one.attrib == other.attrib
    return alike and len(one) == len(other) and all(map(_same, one, other))
