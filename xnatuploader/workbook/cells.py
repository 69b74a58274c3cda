r"""The text in a cell: what XML cannot hold, Excel's own escapes, numbers and dates, column letters.

A control character or half of a surrogate pair (a file name that is not valid UTF-8 holds them) is shown as
`\x0B` or `\uDC80` and read back as what it was. Where a text already holds such a sequence, its backslash is
shown as `\x5C`; and `_x0041_`, which Excel takes for its own escape of `A`, is written with `\x5F` for the
first underscore, so that no program ever sees it.
"""

from __future__ import annotations

import datetime
import html
import re

from xnatuploader import records

MAX_TEXT = 32_767
"""UTF-16 units that Excel keeps in a cell."""

_TO_SHOW = re.compile(
    "[\x00-\x09\x0b-\x1f\ud800-\udfff\ufffe\uffff]"
    r"|\\(?=x(?:0[0-9B-F]|1[0-9A-F]|5C|5F)|u(?:D[89A-F][0-9A-F]{2}|FFF[EF]))"
    r"|_(?=x[0-9A-Fa-f]{4}_)"
)
_SHOWN = re.compile(r"\\(?:x(0[0-9B-F]|1[0-9A-F]|5C|5F)|u(D[89A-F][0-9A-F]{2}|FFF[EF]))")
_EXCELS_ESCAPE = re.compile(
    r"_x(?:00[01][0-9A-Fa-f]|[Dd][89A-Fa-f][0-9A-Fa-f]{2}|[Ff]{3}[EeFf]|005[Ff](?=_x[0-9A-Fa-f]{4}_))_"
)
_NOT_PLAIN = re.compile("[&<>\x00-\x09\x0b-\x1f\ud800-\udfff\ufffe\uffff]|_x|\\\\[xu]")
_BROKEN_TAIL = re.compile(r"\\(?:x[0-9A-F]?|u[0-9A-F]{0,3})?$")


def shown(text: str) -> str:
    """Return `text` with everything that XML or Excel would not give back shown as an escape."""
    return _TO_SHOW.sub(_show, text)


def _show(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}"


def unshown(text: str) -> str:
    """Undo `shown`."""
    if "\\" not in text:
        return text
    return _SHOWN.sub(lambda match: chr(int(match.group(1) or match.group(2), 16)), text)


def to_xml(text: str) -> str:
    """Return the XML content of a text cell; longer texts than Excel holds are cut, and say so."""
    if len(text) * 2 <= MAX_TEXT and not _NOT_PLAIN.search(text):
        return text
    return html.escape(_cut(shown(text), len(text)), quote=False)


def _cut(text: str, count: int) -> str:
    if len(text) * 2 <= MAX_TEXT or _units(text) <= MAX_TEXT:
        return text
    note = f" ... [cut, {count} characters in all]"
    most = MAX_TEXT - len(note)
    kept = text[:most]
    while _units(kept) > most:
        kept = kept[: len(kept) - (_units(kept) - most + 1) // 2]
    return _BROKEN_TAIL.sub("", kept) + note


def _units(text: str) -> int:
    return len(text) + sum(char > "\uffff" for char in text)


def from_xml(content: str) -> str:
    """Return the text that the XML `content` of a `t` element stands for; Excel's and our escapes undone."""
    if "&" in content:
        content = _ENTITY.sub(_entity, content)
    if "\r" in content:
        content = content.replace("\r\n", "\n").replace("\r", "\n")
    if "_x" in content:
        content = _EXCELS_ESCAPE.sub(lambda match: chr(int(match.group()[2:6], 16)), content)
    return unshown(content)


_ENTITY = re.compile(r"&(?:#(\d+)|#x([0-9A-Fa-f]+)|(?:amp|lt|gt|quot|apos));")


def _entity(match: re.Match[str]) -> str:
    """Undo one of XML's five named entities, or a numbered one."""
    decimal, hexadecimal = match.groups()
    if not (decimal or hexadecimal):
        return html.unescape(match.group())
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return chr(code) if code <= 0x10FFFF else match.group()


def attribute(text: str) -> str:
    """Return `text` for use between the double quotes of an XML attribute."""
    return html.escape(shown(text), quote=True).replace("\n", "&#10;")


def element(text: str) -> str:
    """Return the `t` element for `text`, with its white space kept."""
    content = to_xml(text)
    if content != content.strip() or "\n" in content:
        return f'<t xml:space="preserve">{content}</t>'
    return f"<t>{content}</t>"


def number_text(value: str) -> str:
    """Return a number as Excel shows it: `342` for `342.0`, at most 15 digits."""
    if value.isdigit():
        return value.lstrip("0") or "0"
    try:
        number = float(value)
    except ValueError:
        return value
    return format(number or 0, ".15g")  # -0 is 0


def date_text(value: str, from_1904: bool) -> str:
    """Return the moment that a date cell's number stands for in ISO form, without the time where it is midnight.

    Excel counts days from 1900 and takes 1900 for a leap year, so that numbers below 61 are one day off.
    """
    try:
        days = float(value)
        start = datetime.datetime(1904, 1, 1) if from_1904 else datetime.datetime(1899, 12, 30)
        if not from_1904 and days < 61:
            start += datetime.timedelta(days=1)
        moment = start + datetime.timedelta(seconds=round(days * 86_400))
    except (ValueError, OverflowError):  # it is no date
        return number_text(value)
    return moment.isoformat(sep=" ", timespec="seconds").removesuffix(" 00:00:00")


def column_number(text: str) -> int:
    """Return the number of the column with these letters, 1 for A."""
    number = 0
    for char in text:
        number = number * 26 + ord(char) - 64
    return number


def label(text: str) -> str:
    """Return a session label that a person may have written, with `_` for what XNAT cannot hold."""
    return records.label(text.strip())
