"""The workbook's style part: finding or adding the few cell formats that our sheets use."""

from __future__ import annotations

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
        self._before = xml
        self.xml = xml

    @property
    def changed(self) -> bool:
        """Tell whether anything was added."""
        return self.xml != self._before

    def text(self) -> int:
        """Return the style of a plain text cell."""
        return self._format(TEXT_FORMAT)

    def number(self) -> int:
        """Return the style of a plain number with separators for thousands (format 3: `#,##0`)."""
        return self._format(3)

    def size(self) -> int:
        """Return the style that shows a number of bytes in kB, MB or GB."""
        code = "[>=1000000000]0.0,,,&quot; GB&quot;;[>=1000000]0.0,,&quot; MB&quot;;0.0,&quot; kB&quot;"
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
        for group in structure.children(ElementTree.fromstring(self.xml.encode()), "cellXfs"):
            for index, style in enumerate(structure.children(group, "xf")):
                plain = all(style.get(name, "0") == value for name, value in wanted.items())
                if plain and not structure.children(style, "alignment"):
                    return index
        return self._add("cellXfs", self._xf(number, 0, 0, ""))

    def _xf(self, number: int, font: int, fill: int, body: str) -> str:
        marks = ' applyNumberFormat="1"' + ' applyFont="1"' * bool(font) + ' applyFill="1"' * bool(fill)
        start = f'<xf numFmtId="{number}" fontId="{font}" fillId="{fill}" borderId="0" xfId="0"{marks}'
        return f'{start} applyAlignment="1">{body}</xf>' if body else f"{start}/>"

    def _number_format(self, code: str) -> int:
        known = re.search(rf'<(?:\w+:)?numFmt\s[^>]*formatCode="{re.escape(code)}"[^>]*>', self.xml)
        if known:
            number = re.search(r'numFmtId="(\d+)"', known.group())
            if number:
                return int(number.group(1))
        taken = [int(number) for number in re.findall(r'<(?:\w+:)?numFmt\s[^>]*?numFmtId="(\d+)"', self.xml)]
        number_id = max([163, *taken]) + 1
        self._add("numFmts", f'<numFmt numFmtId="{number_id}" formatCode="{code}"/>')
        return number_id

    def _add(self, group: str, entry: str) -> int:
        """Return the position of `entry` in its group, where it is added at the end if it is not there yet."""
        known = re.search(rf"<((?:\w+:)?){group}\b[^>]*?(?:/>|>(.*?)</\1{group}>)", self.xml, re.DOTALL)
        if known is None:
            self._add_group(group)
            return self._add(group, entry)
        entries = _top_level(known[2] or "")
        prefixed = re.sub(r"<(/?)(?=\w)", rf"<\1{known[1]}", entry)
        if prefixed in entries:
            return entries.index(prefixed)
        self.xml = structure.with_child(self.xml, group, prefixed)
        count = rf'(<(?:\w+:)?{group}\b[^>]*\scount=")\d*'
        self.xml = re.sub(count, rf"\g<1>{len(entries) + 1}", self.xml, count=1)
        return len(entries)

    def _add_group(self, group: str) -> None:
        followers = "|".join(_ORDER[_ORDER.index(group) + 1 :])
        at = re.search(rf"<((?:\w+:)?)(?:{followers})\b|</((?:\w+:)?)styleSheet>", self.xml)
        assert at is not None
        self.xml = f"{self.xml[: at.start()]}<{at[1] or at[2] or ''}{group}/>{self.xml[at.start() :]}"


_TOKEN = re.compile(r"<(/?)[\w:.]+[^>]*?(/?)>")


def _top_level(body: str) -> list[str]:
    """Return the elements that stand side by side in `body`, each as its text."""
    found, depth, begin = [], 0, 0
    for match in _TOKEN.finditer(body):
        closing, empty = match.groups()
        if not closing and depth == 0:
            begin = match.start()
        depth += -1 if closing else 0 if empty else 1
        if depth == 0:
            found.append(body[begin : match.end()])
    return found
