"""DICOM elements as bytes: their VRs and delimiters, transfer syntaxes, and the header of one element.

Values are left alone here. Encodings: PS3.5 section 7 (elements and sequences), A.4 (encapsulated pixel data).
pydicom is imported for messages only, so that the processes that read headers stay small.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
CHARACTER_SET = 0x00080005
"""SpecificCharacterSet."""
DEEPEST = 60
"""Levels of nested sequences; real objects have fewer than ten."""

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs whose length takes four bytes in explicit encodings, after two reserved ones (PS3.5 table 7.1-1)."""
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""VRs whose length takes two bytes (PS3.5 table 7.1-2)."""
BYTE_VRS = frozenset({b"OB", b"OW"})
"""VRs that may hold fragments of compressed pixel data."""

IMPLICIT_VR = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95"})
"""Transfer syntaxes whose data set is deflated: plain explicit VR, and the one of JPIP references."""

STANDARD_UIDS = "1.2.840.10008."
"""Root of the UIDs that the DICOM standard itself gives out (PS3.6 annex A); they name no patient."""
STORAGE = "1.2.840.10008.5.1.4.1.1."
"""Root of the SOP classes of stored objects (PS3.4 table B.5-1)."""
DICOMDIR = "1.2.840.10008.1.3.10"
"""SOP class of the table of contents of a disc."""


class Malformed(Exception):
    """Something in the bytes is not a DICOM element. The message names the element, never its value."""


class ShortBuffer(Exception):
    """The buffer ends within an element; the file may be longer than the buffer."""


class Encoding:
    """Byte order, and whether VRs are written; where they are not, they are looked up in `vrs` (tag to VR)."""

    __slots__ = ("explicit", "in_un", "long", "order", "vrs", "with_vr", "without_vr")

    def __init__(self, explicit: bool, big: bool = False, vrs: Mapping[int, bytes] | None = None) -> None:
        self.explicit = explicit
        self.vrs = vrs or {}
        self.order = ">" if big else "<"
        self.with_vr = struct.Struct(self.order + "HH2sH").unpack_from
        self.without_vr = struct.Struct(self.order + "HHL").unpack_from
        self.long = struct.Struct(self.order + "L").unpack_from
        self.in_un = Encoding(False, vrs=vrs) if explicit else self
        """Inside a sequence written as UN: always implicit little endian (PS3.5 6.2.2)."""

    def inside(self, vr: bytes) -> Encoding:
        """Return the encoding inside a sequence of this VR."""
        return self.in_un if vr == b"UN" else self


EXPLICIT, IMPLICIT, BIG = Encoding(True), Encoding(False), Encoding(True, big=True)


def name(tag: int) -> str:
    """Return `(gggg,eeee)`, with the keyword where there is one, for messages."""
    from pydicom import datadict

    keyword = datadict.keyword_for_tag(tag)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})" + (f" {keyword}" if keyword else "")


def read_header(buf: bytes, at: int, end: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
    """Return tag, VR, length and the position of the value of the element at `at`; no byte from `end` on is read.

    Where no VR is written, it is taken from `encoding.vrs` (`UN` if that has none). Some exports change to
    implicit VR in the middle of an explicit data set: then there are no two letters where the VR is expected,
    and the bytes are read as the length, as pydicom does. Raises `ShortBuffer` and `Malformed`.
    """
    if at + 8 > end:
        raise ShortBuffer
    if encoding.explicit:
        group, number, vr, length = encoding.with_vr(buf, at)
        if group != 0xFFFE:
            if vr in SHORT_VRS:
                return group << 16 | number, vr, length, at + 8
            if vr in LONG_VRS:
                if at + 12 > end:
                    raise ShortBuffer
                return group << 16 | number, vr, encoding.long(buf, at + 8)[0], at + 12
            if b"AA" <= vr <= b"ZZ":
                raise Malformed(f"element {name(group << 16 | number)} has an unknown VR")
    group, number, length = encoding.without_vr(buf, at)
    tag = group << 16 | number
    return tag, encoding.vrs.get(tag, b"UN"), length, at + 8


def write_header(tag: int, vr: bytes, length: int, encoding: Encoding) -> bytes:
    """Return the header of an element with a value of `length` bytes."""
    order = encoding.order
    if not encoding.explicit or tag >> 16 == 0xFFFE:
        return struct.pack(order + "HHL", tag >> 16, tag & 0xFFFF, length)
    if vr in LONG_VRS:
        return struct.pack(order + "HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, length)
    return struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, vr, length)


def end_of_value(
    buf: bytes, vr: bytes, length: int, value: int, end: int, encoding: Encoding, depth: int
) -> int:
    """Return the position behind an element whose value begins at `value`. Raises `ShortBuffer` or `Malformed`."""
    if length != UNDEFINED:
        if value + length > end:
            raise ShortBuffer
        return value + length
    if vr in BYTE_VRS:
        return end_of_fragments(lambda at, size: buf[at : at + size], value, end, encoding)
    return _end_of_items(buf, value, end, encoding.inside(vr), depth + 1)


def end_of_fragments(read: Callable[[int, int], bytes], at: int, end: int, encoding: Encoding) -> int:
    """Return the position behind encapsulated pixel data whose first item is at `at`.

    Only the items' headers are read, by `read(position, size)`; none of them from `end` on.
    """
    while at + 8 <= end:
        group, number, length = encoding.without_vr(read(at, 8), 0)  # items and delimiters have no VR
        at, tag = at + 8, group << 16 | number
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM or length == UNDEFINED:
            raise Malformed("its compressed pixel data do not consist of fragments")
        at += length
    raise ShortBuffer


def _end_of_items(buf: bytes, at: int, end: int, encoding: Encoding, depth: int) -> int:
    if depth > DEEPEST:
        raise Malformed(f"its sequences are nested more than {DEEPEST} deep")
    while True:
        tag, _, length, at = read_header(buf, at, end, encoding)
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM:
            raise Malformed("one of its sequences contains something that is not an item")
        at = _end_of_data_set(buf, at, end, encoding, depth) if length == UNDEFINED else at + length


def _end_of_data_set(buf: bytes, at: int, end: int, encoding: Encoding, depth: int) -> int:
    while True:
        tag, vr, length, value = read_header(buf, at, end, encoding)
        if tag == ITEM_END:
            return value
        if tag >> 16 == 0xFFFE:
            raise Malformed("an item ends in the wrong place")
        at = end_of_value(buf, vr, length, value, end, encoding, depth)
