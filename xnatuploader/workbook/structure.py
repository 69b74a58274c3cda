"""What a workbook consists of: its sheets in order, its shared strings, which cell styles show a date."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from xnatuploader import errors
from xnatuploader.workbook import cells, package

FACT_PREFIX = "xnatuploader "
"""Begins the names of the custom document properties in which the tool remembers facts."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A worksheet: its name on the tab, and its part of the package."""

    name: str
    part: str
    index: int
    """Position among all sheets from 0, as `localSheetId` counts."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The workbook's skeleton, small enough to read on every opening."""

    workbook_part: str
    sheets: tuple[Sheet, ...]
    strings_part: str
    styles_part: str
    custom_part: str
    calc_chain_part: str
    from_1904: bool
    date_styles: frozenset[int]
    """Cell styles (indexes into cellXfs) that show a number as a date."""
    facts: dict[str, str]

    def sheet(self, name: str) -> Sheet | None:
        """Return the worksheet of this name; a difference of case only counts where there is no exact one."""
        exact = [sheet for sheet in self.sheets if sheet.name == name]
        alike = [sheet for sheet in self.sheets if sheet.name.lower() == name.lower()]
        return next(iter(exact or alike), None)

    def series(self, name: str) -> tuple[Sheet, ...]:
        """Return `Files`, `Files 2`, `Files 3`, ... in the order of their numbers."""
        pattern = re.compile(re.escape(name) + r" ([2-9]|[1-9]\d+)", re.IGNORECASE)
        found = [(int(match[1]), sheet) for sheet in self.sheets if (match := pattern.fullmatch(sheet.name))]
        first = self.sheet(name)
        if first is not None:
            found.append((1, first))
        return tuple(sheet for _, sheet in sorted(found, key=lambda pair: pair[0]))


def local(tag: str) -> str:
    """Return an element's name without its namespace."""
    return tag.rsplit("}", 1)[-1]


def with_child(xml: str, parent: str, entry: str) -> str:
    """Return XML with an element added at the end of the one called `parent`, whatever its prefix."""
    xml = re.sub(rf"<((?:\w+:)?{parent})(\s[^>]*)?/>", r"<\1\2></\1>", xml, count=1)
    end = re.search(rf"</((?:\w+:)?){parent}>", xml)
    if end is None:
        return xml
    entry = re.sub(r"<(/?)(?=\w+[\s/>])", rf"<\1{end[1]}", entry)
    return f"{xml[: end.start()]}{entry}{xml[end.start() :]}"


def read(book: package.Package) -> Structure:
    """Read the skeleton. Raises SpreadsheetError where the package is no workbook."""
    roots = {link.type: link.target for link in book.relationships("")}
    office = roots.get("officeDocument")
    if office is None or not book.has("[Content_Types].xml"):
        raise package.damaged(book.path, "the list of sheets")
    links = book.relationships(office)
    tree = book.tree(office)
    if local(tree.tag) != "workbook":
        raise errors.SpreadsheetError(
            f"{book.path} is not an Excel workbook. Save it in Excel as 'Excel Workbook (*.xlsx)'."
        )
    parts = {link.type: link.target for link in links}
    custom = roots.get("custom-properties", "")
    properties = tree.find("{*}workbookPr")
    return Structure(
        workbook_part=office,
        sheets=_sheets(book, tree, links),
        strings_part=parts.get("sharedStrings", ""),
        styles_part=parts.get("styles", ""),
        custom_part=custom,
        calc_chain_part=parts.get("calcChain", ""),
        from_1904=properties is not None and properties.get("date1904") in ("1", "true"),
        date_styles=_date_styles(book, parts.get("styles", "")),
        facts=_facts(book, custom),
    )


def _sheets(
    book: package.Package, tree: ElementTree.Element, links: Sequence[package.Relationship]
) -> tuple[Sheet, ...]:
    targets = {link.id: link for link in links}
    found = []
    for index, entry in enumerate(tree.iterfind("{*}sheets/{*}sheet")):
        link_id = next((value for key, value in entry.attrib.items() if local(key) == "id"), "")
        link = targets.get(link_id)
        if link is None or not book.has(link.target):
            raise package.damaged(book.path, "the list of sheets")
        if link.type == "worksheet":
            found.append(Sheet(cells.unshown(entry.get("name", "")), link.target, index))
    return tuple(found)


# ECMA-376 part 1, 18.8.30: the built-in number formats that show dates (14-22), times (45-47), and the East
# Asian date formats (27-36, 50-58).
_BUILT_IN_DATES = frozenset((*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)))
_NOT_CODE = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?!(?:h+|m+|s+)\])[^\]]*\]', re.IGNORECASE)


def is_date_format(code: str) -> bool:
    """Tell whether a number format shows a date or a time."""
    bare = _NOT_CODE.sub("", code).split(";")[0].lower()
    return "general" not in bare and bool(re.search("[ymdhs]", bare))


def _date_styles(book: package.Package, part: str) -> frozenset[int]:
    if not part:
        return frozenset()
    tree = book.tree(part)
    formats = {
        int(entry.get("numFmtId", "0")): entry.get("formatCode", "")
        for entry in tree.iterfind("{*}numFmts/{*}numFmt")
    }
    found = set()
    for index, style in enumerate(tree.iterfind("{*}cellXfs/{*}xf")):
        number = int(style.get("numFmtId", "0"))
        if is_date_format(formats[number]) if number in formats else number in _BUILT_IN_DATES:
            found.add(index)
    return frozenset(found)


def _facts(book: package.Package, part: str) -> dict[str, str]:
    if not part:
        return {}
    return {
        entry.get("name", "").removeprefix(FACT_PREFIX): cells.unshown("".join(entry.itertext()))
        for entry in book.tree(part).iterfind("{*}property")
        if entry.get("name", "").startswith(FACT_PREFIX)
    }


_ITEM = re.compile(r"<(?:\w+:)?si(?:\s[^>]*)?(?:/>|>(.*?)</(?:\w+:)?si>)", re.DOTALL)
_PLAIN_ITEM = re.compile(r'<(?:\w+:)?t(?: xml:space="preserve")?>([^<]*)</(?:\w+:)?t>')
_PHONETIC = re.compile(r"<(?:\w+:)?rPh\b.*?</(?:\w+:)?rPh>", re.DOTALL)
_TEXT = re.compile(r"<(?:\w+:)?t(?:\s[^>]*)?>([^<]*)</(?:\w+:)?t>")


def shared_strings(book: package.Package, part: str) -> list[str]:
    """Return the texts that cells of type `s` point to."""
    if not part:
        return []
    content = strip_comments(book.text(part))
    return [item_text(match.group(1) or "") for match in _ITEM.finditer(content)]


def item_text(content: str) -> str:
    """Return the text of a string item: one `t`, or the runs of formatted text, without its reading aids."""
    plain = _PLAIN_ITEM.fullmatch(content)
    if plain:
        return cells.from_xml(plain.group(1))
    runs = _TEXT.findall(_PHONETIC.sub("", content))
    return cells.from_xml("".join(runs))


_MARKED = re.compile(r"<!--.*?-->|<!\[CDATA\[(.*?)\]\]>|<\?(?!xml\s).*?\?>", re.DOTALL)


def strip_comments(content: str) -> str:
    """Return XML without comments and instructions, CDATA as ordinary text: what the patterns here expect."""
    # Single characters are looked for first: that is many times faster, and nearly all parts end here.
    if ("!" not in content or "<!" not in content) and ("?" not in content or "<?" not in content):
        return content
    return _MARKED.sub(lambda match: html.escape(match.group(1) or "", quote=False), content)
