"""DICOM elements as bytes: reading an element's header, writing one, and finding where an element ends.

Values are left alone here. Encodings: PS3.5 section 7 (elements and sequences), A.4 (encapsulated pixel
data).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

from pydicom import datadict
from pydicom._dicom_dict import DicomDictionary

from xnatuploader.deidentify import options

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DEEPEST = 60
"""Levels of nested sequences; real objects have fewer than ten."""

LONG_VRS = frozenset(vr.encode() for vr in options.keywords("OB OD OF OL OV OW SQ SV UC UN UR UT UV"))
"""VRs whose length takes four bytes in explicit encodings (PS3.5 table 7.1-1)."""
SHORT_VRS = frozenset(
    vr.encode() for vr in options.keywords("AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US")
)
BYTE_VRS = frozenset({b"OB", b"OW"})
"""VRs that may hold fragments of compressed pixel data."""

DICTIONARY: Mapping[int, tuple[str, str, str, str, str]] = MappingProxyType(DicomDictionary)
"""Tag -> VR, VM, name, whether retired, keyword (PS3.6)."""

VR_OF: Mapping[int, bytes] = MappingProxyType(
    {tag: entry[0][:2].encode() for tag, entry in DicomDictionary.items()}
)
"""Tag -> VR by the dictionary; of "US or SS" and the like the first, since nothing is decoded by it."""


class Malformed(Exception):
    """The bytes are not elements all the way. The text says where, never what stands there."""


class Short(Exception):
    """The buffer ends before the element does; the file may hold more."""


class Encoding:
    """Byte order, and whether VRs are written."""

    __slots__ = ("big", "explicit", "long", "order", "short", "tag")

    def __init__(self, explicit: bool, big: bool = False) -> None:
        self.explicit = explicit
        self.big = big
        self.order = ">" if big else "<"
        self.tag = struct.Struct(self.order + "HH").unpack_from
        self.long = struct.Struct(self.order + "L").unpack_from
        self.short = struct.Struct(self.order + "H").unpack_from


EXPLICIT, IMPLICIT, BIG = Encoding(True), Encoding(False), Encoding(True, True)


def tag_of(keyword: str) -> int:
    """Return the tag of a standard keyword. Raises KeyError when there is none."""
    tag = datadict.tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


def name(tag: int) -> str:
    """Return `(gggg,eeee)`, with the keyword where there is one, for messages."""
    keyword = datadict.keyword_for_tag(tag)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})" + (f" {keyword}" if keyword else "")


def read_header(buf: bytes, at: int, end: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
    """Return tag, VR, length and the position of the value of the element at `at`; none lies behind `end`.

    The VR is the dictionary's where none is written (`UN` if it has none). Some exports change to implicit
    VR in the middle of an explicit data set: what stands in the VR's place then is no pair of letters, and
    is taken for the length, as pydicom does. Raises `Short`.
    """
    if at + 8 > end:
        raise Short
    group, number = encoding.tag(buf, at)
    tag: int = group << 16 | number
    if encoding.explicit and group != 0xFFFE:
        vr = buf[at + 4 : at + 6]
        if vr in SHORT_VRS:
            return tag, vr, encoding.short(buf, at + 6)[0], at + 8
        if vr in LONG_VRS:
            if at + 12 > end:
                raise Short
            return tag, vr, encoding.long(buf, at + 8)[0], at + 12
        if b"AA" <= vr <= b"ZZ":
            raise Malformed(f"element {name(tag)} has a VR that is unknown")
    return tag, VR_OF.get(tag, b"UN"), encoding.long(buf, at + 4)[0], at + 8


def write_header(tag: int, vr: bytes, length: int, encoding: Encoding) -> bytes:
    """Return the header of an element with a value of `length` bytes."""
    order = encoding.order
    if not encoding.explicit or tag >> 16 == 0xFFFE:
        return struct.pack(order + "HHL", tag >> 16, tag & 0xFFFF, length)
    if vr in LONG_VRS:
        return struct.pack(order + "HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, length)
    return struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, vr, length)


def inner(vr: bytes, encoding: Encoding) -> Encoding:
    """Return the encoding inside a sequence: within UN it is always implicit little endian (PS3.5 6.2.2)."""
    return IMPLICIT if vr == b"UN" else encoding


def holds_items(tag: int, vr: bytes, length: int) -> bool:
    """Tell whether the element is a sequence of data sets."""
    return vr == b"SQ" or (vr == b"UN" and (length == UNDEFINED or VR_OF.get(tag) == b"SQ"))


def skip(
    buf: bytes, tag: int, vr: bytes, length: int, value: int, end: int, encoding: Encoding, depth: int
) -> int:
    """Return the position behind an element. Raises `Short` or `Malformed`."""
    if length != UNDEFINED:
        if value + length > end:
            raise Short
        return value + length
    if vr in BYTE_VRS:
        return skip_fragments(buf, value, end, encoding)
    return _skip_items(buf, value, end, inner(vr, encoding), depth + 1)


def skip_fragments(buf: bytes, at: int, end: int, encoding: Encoding) -> int:
    """Return the position behind encapsulated data whose first item is at `at`."""
    while True:
        tag, _, length, at = read_header(buf, at, end, encoding)
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM or length == UNDEFINED:
            raise Malformed("compressed pixel data do not consist of fragments")
        at += length


def _skip_items(buf: bytes, at: int, end: int, encoding: Encoding, depth: int) -> int:
    if depth > DEEPEST:
        raise Malformed(f"sequences are nested more than {DEEPEST} deep")
    while True:
        tag, _, length, at = read_header(buf, at, end, encoding)
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM:
            raise Malformed("a sequence holds something that is no item")
        at = _skip_data_set(buf, at, end, encoding, depth) if length == UNDEFINED else at + length


def _skip_data_set(buf: bytes, at: int, end: int, encoding: Encoding, depth: int) -> int:
    while True:
        tag, vr, length, value = read_header(buf, at, end, encoding)
        if tag == ITEM_END:
            return value
        if tag >> 16 == 0xFFFE:
            raise Malformed("an item ends in the wrong place")
        at = skip(buf, tag, vr, length, value, end, encoding, depth)
