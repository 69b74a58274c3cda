"""The fast walk over a plain DICOM header, and where its bytes come from.

Plain means: little-endian, explicit or implicit VR, tags ascending, known VRs, lengths that fit (PS3.5
section 7.1, PS3.10 section 7.1). The walk jumps from element to element by their lengths, so that an element
that is not wanted costs no more than the reading of its first bytes. For every other header the result is None,
and pydicom reads it; where the walk returns a result, pydicom's is the same (`tests/helpers/fuzzing.py`).

`walk` decodes elements itself: with a call of `elements.read_header` for each, reading a header took 12 to 30 %
longer. It and `_begin` share the tables of `elements`. Nothing here recurses, however deep the nesting is.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from xnatuploader.dicom import elements
from xnatuploader.dicom.elements import CHARACTER_SET, LONG_VRS, SHORT_VRS, UNDEFINED, Malformed, ShortBuffer

Source = Callable[[int, int], bytes]
"""`source(offset, size)` gives up to `size` bytes from `offset`; fewer only where the data ends."""

FIRST_READ = 8192
"""Bytes read of every file; enough for an ordinary image."""
STEP = 4096
"""Bytes read after a jump, or at the end of those in memory."""
LONGEST_VALUE = 1 << 20
"""A header with a longer wanted value (in bytes) is not plain: no text field is as long."""
MOST_STEPS = 200_000
"""Elements read inside one sequence before it is left to pydicom, which has its own limits."""

_explicit = struct.Struct("<HH2sH").unpack_from
_implicit = struct.Struct("<HHL").unpack_from
_long_length = struct.Struct("<L").unpack_from


class DatasetStart(NamedTuple):
    """Where and how the dataset of a file begins."""

    offset: int
    syntax: str
    """Transfer syntax UID; empty where the file has no file meta."""
    media_class: str
    """MediaStorageSOPClassUID of the file meta, the only class a DICOMDIR has."""
    implicit: bool


@dataclass(frozen=True, slots=True)
class Header:
    """What was found of the wanted elements."""

    elements: dict[int, tuple[bytes, bytes]]
    """Tag -> (VR, raw value); the VR is empty in implicit VR."""
    ended: bool = False
    """The data ended, between two elements, before an element beyond the last wanted one."""
    cut: bool = False
    """The data ended inside an element. The walk never says so (it leaves the file to pydicom)."""
    little_endian: bool = True


class HeaderTooLarge(Exception):
    """More bytes would be needed to reach the last wanted element than any real header holds."""


def file_source(handle: int) -> Source:
    """Return the source of an open file's bytes, by its descriptor."""

    def positioned(size: int, offset: int) -> bytes:
        return os.pread(handle, size, offset)

    def sought(size: int, offset: int) -> bytes:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)

    part = positioned if hasattr(os, "pread") else sought

    def read(offset: int, size: int) -> bytes:
        data = part(size, offset)
        # Network storage may answer in pieces.
        while data and len(data) < size and (more := part(size - len(data), offset + len(data))):
            data += more
        return data

    return read


def open_file(path: str) -> int:
    """Open a file for `file_source`; a pipe of that name does not block."""
    flags = (
        os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    )
    return os.open(path, flags)


class InflatedSource:
    """The source of what a deflated dataset holds (PS3.5 section A.5), inflated only as far as asked.

    An offset may be at most one byte before the last one. Needs some 100 kB of memory, however long the dataset
    is. Raises HeaderTooLarge beyond `limit` bytes, and zlib.error where the packed data is damaged.
    """

    def __init__(self, packed: Source, offset: int, limit: int) -> None:
        self._packed = packed
        self._next = offset
        self._limit = limit
        self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        self._waiting = b""
        self._kept = b""
        self._start = 0
        self._over = False

    def __call__(self, offset: int, size: int) -> bytes:
        """Return up to `size` inflated bytes from `offset`."""
        while not self._over and self._start + len(self._kept) < offset + size:
            if offset + size > self._limit:
                raise HeaderTooLarge
            self._inflate(offset)
        begin = offset - self._start
        return self._kept[begin : begin + size] if begin >= 0 else b""

    def _inflate(self, offset: int) -> None:
        if not self._waiting:
            self._waiting = self._packed(self._next, 1 << 15)
            self._next += len(self._waiting)
        fresh = self._unpacker.decompress(self._waiting, 1 << 16)
        stuck = not fresh and not self._waiting
        self._waiting = self._unpacker.unconsumed_tail
        self._over = self._unpacker.eof or stuck
        passed = min(max(offset - 1 - self._start, 0), len(self._kept))
        self._start += passed
        self._kept = self._kept[passed:] + fresh


def looks_like_dicom(data: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a DICOM file, with or without preamble.

    Without the preamble (old exports) the first two elements must be in order, of group 0002 or 0008, and
    short, which no text and no other format is.
    """
    if data[128:132] == b"DICM":
        return True
    return any(_two_sensible_elements(data, encoding) for encoding in (elements.EXPLICIT, elements.BIG))


def _two_sensible_elements(data: bytes, encoding: elements.Encoding) -> bool:
    position, previous = 0, 0
    try:
        for _ in range(2):
            if position + 12 > len(data) or encoding.with_vr(data, position)[0] not in (0x0002, 0x0008):
                return False
            tag, _, length, start = elements.read_header(data, position, len(data), encoding)
            if tag <= previous or length > 1024:
                return False
            position, previous = start + length, tag
    except (ShortBuffer, Malformed):
        return False
    return True


def begin(data: bytes) -> DatasetStart | None:
    """Read the file meta in `data`, a file's first bytes; None where the file is left to pydicom."""
    try:
        return _begin(data)
    except struct.error:
        return None


def _begin(data: bytes) -> DatasetStart | None:
    position = 132 if data[128:132] == b"DICM" else 0
    previous, syntax, media_class = 0, "", ""
    while True:
        group, number, vr, length = _explicit(data, position)
        if group != 2:
            break
        start = position + 8
        if vr in LONG_VRS:
            (length,) = _long_length(data, start)
            start += 4
        elif vr not in SHORT_VRS:
            return None
        if position in (0, 132):
            # pydicom converts the first element, and fails on one of another kind.
            if (number, vr, length) != (0x0000, b"UL", 4) and vr not in (b"OB", b"UI"):
                return None
        elif number <= previous:
            return None
        if number in (0x0002, 0x0010) and vr != b"UI":
            return None
        if number == 0x0010:
            syntax = _uid(data[start : start + length])
        elif number == 0x0002:
            media_class = _uid(data[start : start + length])
        position, previous = start + length, number
    if group == 0 or syntax == elements.BIG_ENDIAN or (vr in LONG_VRS and len(data) < position + 12):
        return None
    if syntax in elements.DEFLATED:
        return DatasetStart(position, syntax, media_class, False)
    # The first element has to agree with the transfer syntax; where it does not, pydicom has its own rules.
    if syntax:
        implicit = not _letters(vr)
        agreed = implicit == (syntax == elements.IMPLICIT_VR)
    else:
        implicit = vr not in SHORT_VRS | LONG_VRS
        agreed = group < 1024 and position == 0
    return DatasetStart(position, syntax, media_class, implicit) if agreed else None


def _uid(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


def _letters(vr: bytes) -> bool:
    return len(vr) == 2 and 0x40 < vr[0] < 0x5B and 0x40 < vr[1] < 0x5B


def walk(
    data: bytes, position: int, implicit: bool, wanted: frozenset[int], last: int, read: Source
) -> Header | None:
    """Return the raw values of the `wanted` tags, or None where the header is not plain.

    `data` holds the first bytes of what `read` gives, `position` is where the dataset begins in it, `last` is
    the greatest of the wanted tags: the walk ends there or at the first greater tag.
    """
    found: dict[int, tuple[bytes, bytes]] = {}
    base, size, previous = 0, len(data), -1
    while True:
        if position + 12 > size:
            base, position = base + position, 0
            data = read(base, STEP)
            size = len(data)
            if size < 8:
                return Header(found, ended=True) if not size and _ends_at(base, read) else None
        if implicit:
            group, number, length = _implicit(data, position)
            vr, start = b"", position + 8
        else:
            group, number, vr, length = _explicit(data, position)
            start = position + 8
        tag = group << 16 | number
        if tag > last:
            return None if vr in LONG_VRS and size < start + 4 else Header(found)
        if tag <= previous:
            return None
        if vr in LONG_VRS:
            if size < start + 4:
                return None
            (length,) = _long_length(data, start)
            start += 4
        elif vr not in SHORT_VRS and not implicit:
            return None
        if length == UNDEFINED:
            if not (implicit or vr == b"SQ" or vr == b"UN"):
                return None
            behind = _behind_sequence(_Window(read, data, base), base + start, implicit)
            if behind is None:
                return None
            end = behind - base
        else:
            end = start + length
            if tag in wanted:
                value = data[start:end] if end <= size else _beyond(read, base + start, length)
                if value is None or (tag == CHARACTER_SET and not _plain_charset(vr, value)):
                    return None
                found[tag] = (vr, value)
                if tag == last:
                    return Header(found)
        previous, position = tag, end


def _plain_charset(vr: bytes, value: bytes) -> bool:
    """Tell whether a SpecificCharacterSet is one that pydicom converts without an exception."""
    return vr in (b"CS", b"") and b"\0" not in value.rstrip(b" \0")


def _ends_at(offset: int, read: Source) -> bool:
    """Tell whether the data ends exactly at `offset`, and not before it."""
    return offset == 0 or bool(read(offset - 1, 1))


def _beyond(read: Source, offset: int, length: int) -> bytes | None:
    """Return a value that is not wholly in memory; None where it is too long, or the file too short."""
    if length > LONGEST_VALUE:
        return None
    value = read(offset, length)
    return value if len(value) == length else None


class _Window:
    """Random access to a source through the piece that is in memory."""

    def __init__(self, read: Source, data: bytes, base: int) -> None:
        self._read = read
        self.data = data
        self._base = base

    def at(self, offset: int, size: int) -> int:
        """Return the index of `offset` in `data`; read on where fewer than `size` bytes follow it there."""
        begin = offset - self._base
        if begin < 0 or begin + size > len(self.data):
            self.data, self._base, begin = self._read(offset, STEP), offset, 0
        return begin

    def take(self, offset: int, size: int) -> bytes:
        begin = self.at(offset, size)
        return self.data[begin : begin + size]


def _behind_sequence(window: _Window, position: int, implicit: bool) -> int | None:
    """Return the offset behind a sequence of undefined length whose value begins at `position`.

    None where the nesting is not plain. The stack holds, for each open sequence and item, its end (None: until a
    delimiter) and whether it is in implicit VR. Items of known length are read element by element too, because
    pydicom does so and fails where the elements do not fill the item; `elements.end_of_value` skips such items,
    and can therefore not be used here.
    """
    stack: list[tuple[bool, int | None, bool]] = [(False, None, implicit)]
    if implicit and not _is_item(window.take(position, 4)):
        return None
    for _ in range(MOST_STEPS):
        is_item, end, implicit = stack[-1]
        if is_item and position == end:
            stack.pop()
            continue
        if end is not None and position > end:
            return None
        at = window.at(position, 12)
        try:
            tag, vr, length, value = elements.read_header(
                window.data, at, len(window.data), elements.IMPLICIT if implicit else elements.EXPLICIT
            )
        except (ShortBuffer, Malformed):
            return None
        position += value - at
        if tag == (elements.ITEM_END if is_item else elements.SEQUENCE_END):
            if end is not None:
                return None
            stack.pop()
            if not stack:
                return position
        elif not is_item:
            if tag != elements.ITEM:
                return None
            item_end = None if length == UNDEFINED else position + length
            stack.append((True, item_end, implicit or _item_is_implicit(window.take(position, 6))))
        elif not implicit and vr == b"UN" and value - at == 8:
            return None  # no VR in an explicit item
        elif tag == CHARACTER_SET and not _plain_charset(
            b"" if implicit else vr, window.take(position, min(length, 256))
        ):
            return None
        elif length != UNDEFINED:
            position += length
        elif _is_item(window.take(position, 4)) if implicit else vr in (b"SQ", b"UN"):
            stack.append((False, None, implicit))
        else:
            return None
    return None


def _is_item(data: bytes) -> bool:
    return data == b"\xfe\xff\x00\xe0"


def _item_is_implicit(first: bytes) -> bool:
    """Tell whether an item's first element has no VR: writers may switch inside UN (PS3.5 section 6.2.2)."""
    return len(first) == 6 and not _letters(first[4:])
