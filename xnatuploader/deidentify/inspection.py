"""What a person checks before the first upload: elements before and after the cleaning, and names that are left."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from xnatuploader.deidentify import values
from xnatuploader.deidentify.source import CleanCopy

_SHOWN = 200
"""Characters of a value, enough to recognize a name."""
_ITEMS = 3
"""Items of a sequence that are shown; a multi-frame object has thousands of them."""
_HEAD = 32 * 1024 * 1024
"""Bytes of a large copy that are read to be shown."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LEAST = 3
"""Characters of a token; shorter ones occur in many words."""


@dataclass(frozen=True, slots=True)
class ElementChange:
    """One element of a file, with nested ones after the sequence that holds them."""

    tag: str
    """`0010,0010`; nested `0008,1140[1] 0008,1155`, items counted from 1."""
    keyword: str
    """Its keyword, `private` for private elements, empty for unknown ones."""
    before: str
    """The original's value as text, at most 200 characters; empty when it is absent."""
    after: str
    """The copy's value; empty when it was removed or emptied."""

    @property
    def name(self) -> str:
        """Keyword and tag, for messages."""
        return f"{self.keyword or self.tag} ({self.tag})"


def inspect(before: Dataset, after: Dataset) -> list[ElementChange]:
    """Return every element of both data sets (file meta and preamble too, pixel data not), in order."""
    old, new, nothing = dict(_elements(before)), dict(_elements(after)), ("", "")
    return [
        ElementChange(tag, (old.get(tag) or new[tag])[0], old.get(tag, nothing)[1], new.get(tag, nothing)[1])
        for tag in sorted(old.keys() | new.keys())
    ]


def inspect_copy(path: Path, cleaned: CleanCopy) -> list[ElementChange]:
    """Return `inspect` for a file and its cleaned copy. Raises OSError and `OriginalChanged`."""
    before = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    after = pydicom.dcmread(io.BytesIO(_head(cleaned)), stop_before_pixels=True)
    return inspect(before, after)


def _head(cleaned: CleanCopy) -> bytes:
    """Return the beginning of a copy, with everything before the pixel data."""
    total, parts = 0, []
    for chunk in cleaned.chunks():
        parts.append(chunk)
        total += len(chunk)
        if total > _HEAD:
            break
    return b"".join(parts)


def _elements(data_set: Dataset) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield tag, keyword and text of all elements, nested ones behind their sequence."""
    preamble = getattr(data_set, "preamble", None) or b""
    if preamble.strip(b"\0"):
        text = f"{len(preamble)} bytes: {preamble.decode('ascii', 'replace').strip()}"
        yield "0000,0000", ("preamble", text[:_SHOWN])
    yield from _nested(getattr(data_set, "file_meta", None) or Dataset(), "")
    yield from _nested(data_set, "")


def _nested(data_set: Dataset, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for tag in sorted(data_set.keys()):
        if tag.group == 0x7FE0:
            continue
        name = f"{prefix}{tag.group:04X},{tag.element:04X}"
        try:
            element = data_set[tag]
        except Exception:  # pydicom raises many kinds for damaged values
            yield name, (pydicom.datadict.keyword_for_tag(tag), "a value that cannot be read")
            continue
        keyword = "private" if element.tag.is_private else element.keyword
        if element.VR != "SQ":
            yield name, (keyword, _text(element))
            continue
        items = list(element.value or ())
        yield name, (keyword, f"{len(items)} items" if len(items) != 1 else "1 item")
        for number, item in enumerate(items[:_ITEMS], start=1):
            yield from _nested(item, f"{name}[{number}] ")


def _text(element: DataElement) -> str:
    value = element.value
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{len(value)} bytes" if value else ""
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        return "\\".join(map(str, value))[:_SHOWN]
    return str(value)[:_SHOWN]


def patient_tokens(name: str, patient_id: str, birth_date: str) -> frozenset[str]:
    """Return the texts that must not be found in a copy, folded, at least three characters long.

    The words of the name in their usual transcriptions, the ID with and without leading zeros, and the birth
    date (`YYYYMMDD`) as people write it, with day or month first; parts of dates are joined by `-`.
    """
    tokens = values.name_words(name)
    plain_id = values.fold(patient_id.strip())
    tokens |= {plain_id, plain_id.lstrip("0"), re.sub(r"[\W_]+", "", plain_id)}
    return frozenset(token for token in tokens if len(token) >= _LEAST) | _date_forms(birth_date)


def _date_forms(date: str) -> set[str]:
    match = re.fullmatch(r"\s*(\d{4})\D?(\d\d)\D?(\d\d)\s*", date)
    if match is None:
        return set()
    year, month, day = match.groups()
    name = _MONTHS[int(month) - 1] if 1 <= int(month) <= 12 else month
    orders = [(year, month, day), (day, month, year), (month, day, year)]
    short = [(year[2:], month, day), (day, month, year[2:]), (month, day, year[2:])]
    joined = {"".join(parts) for parts in (*orders, *short)}
    dashed = {"-".join(parts) for parts in orders}
    dashed |= {"-".join(part.lstrip("0") for part in parts) for parts in orders}
    return (
        joined | dashed | {f"{day}-{name}-{year}", f"{int(day)}-{name}-{year}", f"{name}-{int(day)}-{year}"}
    )


def residues(strings: Iterable[tuple[str, str]], tokens: frozenset[str]) -> dict[str, str]:
    """Return the names of those `strings` (pairs of a name and a text) that contain one of `tokens`, with the longest.

    Case does not matter. Letters of four and more are found inside longer words, too; shorter ones,
    numbers and dates only as a whole. Tokens are lower case, without diacritics.
    """
    found = {}
    for name, text in strings:
        words, forms = _compared(text)
        hits = [token for token in tokens if _holds(token, words, forms)]
        if hits:
            found[name] = max(hits, key=lambda token: (len(token), token))
    return found


def _compared(text: str) -> tuple[set[str], set[str]]:
    """Return the folded words of `text`, camel case split, and its forms with `-` as separator."""
    words = re.findall(r"[^\W\d_]+|\d+", text)
    words += re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    forms = {re.sub(r"[\W_]+", "-", form) for form in values.spellings(text)}
    return {form for word in words for form in values.spellings(word)}, forms


def _holds(token: str, words: set[str], forms: set[str]) -> bool:
    if token in words:
        return True
    if token.isalpha():
        return len(token) > _LEAST and any(token in form for form in forms)
    plain = re.escape(re.sub(r"[\W_]+", "-", token))
    pattern = re.compile(rf"(?<![^\W_]){plain}(?![^\W_])")
    return any(pattern.search(form) for form in forms)
