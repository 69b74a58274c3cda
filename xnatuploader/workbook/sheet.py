"""Streaming a worksheet's rows as text, and reading and changing single cells in that text.

A row is handed on as the XML it has in the part, brought to one plain form: no namespace prefix, and each
cell beginning `<c r="D17"`. All other rooms look for cells by that beginning.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Callable, Iterator
from typing import IO
from xml.etree import ElementTree

from xnatuploader import records
from xnatuploader.workbook import cells, package, structure

_CHUNK = 1 << 20


class RowStream:
    """One worksheet's part, read once from its beginning: `head`, then `rows()`, then `tail`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._text = ""
        self._decoder: codecs.IncrementalDecoder | None = None
        self.prefix = ""
        """Namespace prefix of the elements, with its colon; Excel, LibreOffice and openpyxl use none."""
        self.empty = False
        self.tail = ""
        """What follows the rows, from `</sheetData>`; there after `rows` came to its end."""
        self.head = self._read_head()
        """What precedes the rows, up to and with `<sheetData>`."""

    def _read(self) -> bool:
        chunk = self._stream.read(_CHUNK)
        if self._decoder is None:
            wide = chunk[:2] in (b"\xff\xfe", b"\xfe\xff")
            self._decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")()
        self._text += self._decoder.decode(chunk, final=not chunk)
        return bool(chunk)

    def _read_head(self) -> str:
        start = re.compile(r"<(\w+:)?sheetData\b[^>]*?(/?)>")
        while not (match := start.search(self._text)):
            if not self._read():
                raise EOFError("no sheetData")
        self.prefix = match.group(1) or ""
        self.empty = bool(match.group(2))
        head, self._text = self._text[: match.end()], self._text[match.end() :]
        if "<!DOCTYPE" in head:
            raise EOFError("a document type")
        if self.empty:
            head = head[: match.start()] + f"<{self.prefix}sheetData>"
        head = re.sub(r'^(<\?xml[^>]*?\sencoding=["\'])[^"\']*', r"\1UTF-8", head)
        if self.prefix:
            head = _with_default_namespace(head, self.prefix)
        return head

    def rows(self) -> Iterator[tuple[int, str]]:
        """Yield (row number, the row's XML in plain form) for each row that the part has."""
        number = 0
        done = self.empty
        while not done:
            text, done = self._next_rows()
            plain = not _ODD_CELL.search(text)
            position = 0
            while (begin := text.find("<row", position)) >= 0:
                position = _row_end(text, begin)
                row = text[begin:position]
                given = row[8 : row.find('"', 8)] if plain and row.startswith('<row r="') else ""
                if given.isdecimal():
                    number = int(given)
                else:
                    number, row = plain_row(row, number)
                yield number, row
        self.tail = self._rest()

    def _next_rows(self) -> tuple[str, bool]:
        """Return the text of the next whole rows, and whether they are the last."""
        close = f"</{self.prefix}row>"
        end = f"</{self.prefix}sheetData"
        while True:
            if _markup_is_whole(self._text):
                self._text = structure.strip_comments(self._text)
                stop = self._text.rfind(close)
                finish = self._text.find(end, max(stop, 0))
                cut = finish if finish >= 0 else stop + len(close)
                if finish >= 0 or stop >= 0:
                    text, self._text = self._text[:cut], self._text[cut:]
                    return self._without_prefix(text), finish >= 0
            if not self._read():
                raise EOFError("the rows do not end")

    def _without_prefix(self, text: str) -> str:
        if not self.prefix:
            return text
        return text.replace("<" + self.prefix, "<").replace("</" + self.prefix, "</")

    def _rest(self) -> str:
        while self._read():
            pass
        return f"</{self.prefix}sheetData>{self._text}" if self.empty else self._text


_ODD_CELL = re.compile(r'<c(?: (?!r="[A-Z])|[>/\n\r\t])')


def _markup_is_whole(text: str) -> bool:
    """Tell whether no comment or the like is cut off at the end: one may hold what looks like rows."""
    if "!" not in text and "?" not in text:
        return True
    comments = text.count("<!--") <= text.count("-->") and text.count("<![CDATA[") <= text.count("]]>")
    return comments and text.count("<?") <= text.count("?>")


def _with_default_namespace(head: str, prefix: str) -> str:
    uri = re.search(rf'\bxmlns:{prefix[:-1]}\s*=\s*["\']([^"\']+)', head)
    if uri is None or re.search(r"\bxmlns\s*=", head):
        return head
    return head.replace(f"<{prefix}worksheet", f'<{prefix}worksheet xmlns="{uri.group(1)}"', 1)


def _row_end(text: str, begin: int) -> int:
    close = text.find(">", begin)
    end = close if text[close - 1] == "/" else text.find("</row>", close)
    if close < 0 or end < 0:
        raise EOFError("a row does not end")
    return text.index(">", end) + 1


_ROW_NUMBER = re.compile(r'\sr\s*=\s*["\'](\d+)["\']')
_CELL_TAG = re.compile(r"<c(\s[^>]*?)?(/?)>")
_CELL_NAME = re.compile(r'\sr\s*=\s*["\']\$?([A-Za-z]+)\$?\d+["\']')


def plain_row(row: str, before: int) -> tuple[int, str]:
    """Return the row's number (one more than `before` where it is not given) and its plain form."""
    tag = row[: row.find(">")]
    match = _ROW_NUMBER.search(tag)
    number = int(match.group(1)) if match else before + 1
    if not match:
        row = f'<row r="{number}"' + row[4:]
    cells_there = row.count("<c ") + row.count("<c>") + row.count("<c/>")
    if row.count('<c r="') != cells_there or "<c\n" in row or "<c\t" in row or "<c\r" in row:
        row = _with_cell_names(row, number)
    return number, row


def _with_cell_names(row: str, number: int) -> str:
    column = 0

    def named(match: re.Match[str]) -> str:
        nonlocal column
        attributes = match.group(1) or ""
        name = _CELL_NAME.search(attributes)
        column = cells.column_number(name.group(1).upper()) if name else column + 1
        rest = re.sub(r"\s+", " ", _CELL_NAME.sub("", attributes)).rstrip().replace("'", '"')
        return f'<c r="{records.column_letters(column)}{number}"{rest}{match.group(2)}>'

    return _CELL_TAG.sub(named, row)


PLAIN_CELL = re.compile(
    r'<c r="([A-Z]+)\d+"([^>/]*)(?:/>|>(?:<f(?:\s[^>/]*)?(?:/>|>[^<]*</f>))?'
    r'(?:<(?:is><t|v)(?: xml:space="preserve")?>([^<]*)</(?:t></is|v)>)?</c>)'
)
"""A cell in one of the forms that nearly all have: its column, its other attributes, its value."""

_ATTRIBUTE = re.compile(r'([\w:]+)\s*=\s*["\']([^"\']*)["\']')

TEXT, NUMBER, DATE, BOOL, ERROR, SHARED = "text", "number", "date", "bool", "error", "shared"


class _Kinds(dict[str, str]):
    """A cell's attributes -> what it holds: TEXT, SHARED, NUMBER, DATE, BOOL or ERROR."""

    def __init__(self, date_styles: frozenset[int]) -> None:
        self._date_styles = date_styles

    def __missing__(self, attributes: str) -> str:
        given = dict(_ATTRIBUTE.findall(attributes))
        style = given.get("s", "0")
        is_date = style.isdecimal() and int(style) in self._date_styles
        self[attributes] = _TYPES.get(given.get("t", "n"), DATE if is_date else NUMBER)
        return self[attributes]


_TYPES = {"inlineStr": TEXT, "str": TEXT, "s": SHARED, "b": BOOL, "e": ERROR, "d": DATE}


class CellReader:
    """Turns a cell's XML into text; knows the workbook's shared strings and which styles are dates."""

    def __init__(self, book: package.Package, skeleton: structure.Structure) -> None:
        self._strings = structure.shared_strings(book, skeleton.strings_part)
        self._from_1904 = skeleton.from_1904
        self.kinds = _Kinds(skeleton.date_styles)

    def value(self, kind: str, content: str) -> str:
        """Return the text of a cell of this kind; dates in ISO form."""
        if kind == TEXT:
            return cells.from_xml(content)
        if kind == SHARED:
            known = content.isdecimal() and int(content) < len(self._strings)
            return self._strings[int(content)] if known else ""
        if not content:
            return ""
        if kind == BOOL:
            return "TRUE" if content.strip() in ("1", "true") else "FALSE"
        if kind == DATE:
            return self._date(content)
        return cells.from_xml(content) if kind == ERROR else cells.number_text(content.strip())

    def _date(self, content: str) -> str:
        if re.match(r"\d{4}-\d\d-\d\d", content):
            return content.strip().replace("T00:00:00", "").removesuffix(".000").replace("T", " ")
        return cells.date_text(content.strip(), self._from_1904)

    def cells(self, row: str) -> Iterator[tuple[str, str, str]]:
        """Yield (column letters, kind, text) for each cell of the row."""
        for column, attributes, content in raw_cells(row):
            kind = self.kinds[attributes]
            yield column, kind, self.value(kind, content)

    def cell(self, row: str, name: str) -> tuple[str, str]:
        """Return (kind, text) of the cell called `name`, as `D17`; no such cell is an empty text."""
        start = row.find(f'<c r="{name}"')
        if start < 0:
            return TEXT, ""
        _, attributes, content = raw_cell(row, start)
        kind = self.kinds[attributes]
        return kind, self.value(kind, content)


def raw_cells(row: str) -> list[tuple[str, str, str]]:
    """Return (column letters, attributes, XML content of the value) of each cell of the row."""
    found = PLAIN_CELL.findall(row)
    if len(found) == row.count('<c r="'):
        return found
    return [raw_cell(row, match.start()) for match in re.finditer('<c r="', row)]


def raw_cell(row: str, start: int) -> tuple[str, str, str]:
    """Return (column letters, attributes, XML content of the value) of the cell that begins at `start`."""
    match = PLAIN_CELL.match(row, start)
    if match:
        column, attributes, content = match.groups("")
        return column, attributes, content
    return _unusual_cell(row[start : cell_end(row, start)])


def cell_end(row: str, start: int) -> int:
    """Return where the cell that begins at `start` ends."""
    close = row.find(">", start)
    return close + 1 if row[close - 1] == "/" else row.find("</c>", close) + 4


_TAG = re.compile("<[^>]*>")
_FOREIGN = re.compile(r"(</?|\s)(?!xml:)\w[\w.-]*:(\w)")


def _unusual_cell(xml: str) -> tuple[str, str, str]:
    """Read a cell with formatted text, extensions or an odd spelling through the XML parser."""
    # Without its prefixes, which were declared far above it, it is XML by itself.
    plain = _TAG.sub(lambda tag: _FOREIGN.sub(r"\1\2", tag.group()), xml)
    try:
        element = ElementTree.fromstring(plain.encode())
    except ElementTree.ParseError as error:
        # An EOFError would pass by the generator that rows come from, which says which workbook it is.
        cell = xml.split('"')[1]
        raise package.damaged("The spreadsheet", f"cell {cell}") from error
    name = re.match("[A-Z]+", element.get("r", ""))
    attributes = "".join(f' {key}="{value}"' for key, value in element.attrib.items() if key != "r")
    inline = element.find("is")
    if inline is not None:
        content = "".join(text.text or "" for text in (*inline.findall("t"), *inline.findall("r/t")))
    else:
        content = element.findtext("v", "")
    return name.group() if name else "", attributes, html.escape(content, quote=False)


_COLUMN = re.compile(r"<(?:\w+:)?col\s[^>]*>")


def column_styles(head: str) -> Callable[[str], int]:
    """Return a function from column letters to the style that the sheet gives to new cells there, 0 for none."""
    ranges = []
    for tag in _COLUMN.findall(head):
        found = dict(_ATTRIBUTE.findall(tag))
        numbers = [found.get(name, "0") for name in ("min", "max", "style")]
        if all(number.isdecimal() for number in numbers):
            ranges.append(tuple(map(int, numbers)))

    def style(letters: str) -> int:
        number = cells.column_number(letters)
        return next((style for begin, end, style in ranges if begin <= number <= end), 0)

    return style


def set_cell(row: str, number: int, column: str, content: str, style: int) -> str:
    """Return the row with one cell's content replaced; the cell keeps its style, a new one gets `style`.

    `content` is what `content_of` returned.
    """
    name = f"{column}{number}"
    start = row.find(f'<c r="{name}"')
    if start < 0:
        return _insert_cell(row, column, f'<c r="{name}" s="{style}"{content}') if content != "/>" else row
    end = cell_end(row, start)
    attributes = row[start : row.find(">", start)]
    own = re.search(r'\ss=["\'](\d+)', attributes)
    kept = f' s="{own.group(1)}"' if own else ""
    return f'{row[:start]}<c r="{name}"{kept}{content}{row[end:]}'


def content_of(value: str | int) -> str:
    """Return the end of a cell element after its style: type and value."""
    if isinstance(value, int):
        return f"><v>{value}</v></c>"
    if not value:
        return "/>"
    return f' t="inlineStr"><is>{cells.element(value)}</is></c>'


_NAME_IN_ROW = re.compile(r'<c r="([A-Z]+)')


def _insert_cell(row: str, column: str, cell: str) -> str:
    tag_end = row.find(">") + 1
    tag, body = row[:tag_end], row[tag_end:]
    # `spans` is a hint to readers, and would now be wrong.
    tag = re.sub(r'\sspans="[^"]*"', "", tag)
    if tag.endswith("/>"):
        return f"{tag[:-2].rstrip()}>{cell}</row>"
    wanted = cells.column_number(column)
    later = (found for found in _NAME_IN_ROW.finditer(body) if cells.column_number(found[1]) > wanted)
    # extLst, if a row ever has one, comes after the cells.
    at = next((found.start() for found in later), body.find("<extLst"))
    if at < 0:
        at = body.rfind("</row>")
    return tag + body[:at] + cell + body[at:]
