"""The cleaning of one element and all that is nested in it.

An element that is kept is copied byte by byte, one that changes is encoded again, and one whose end cannot be
found raises an exception. So no value can get into the copy that was not examined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xnatuploader.deidentify.attributes import VR_OF
from xnatuploader.deidentify.profile import Action
from xnatuploader.dicom import elements, reader
from xnatuploader.dicom.elements import UNDEFINED, Encoding, Malformed, ShortBuffer

NewValue = Callable[[int, bytes, bytes, Action], bytes]
"""Tag, VR, old value and action -> new value, padded."""

_DOCUMENT, _CONTENT = reader.tag_of("EncapsulatedDocument"), reader.tag_of("ContentSequence")


class IdentifyingContent(Exception):
    """The file is or contains something (`kind`) whose content itself can identify the patient."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


@dataclass(frozen=True, slots=True)
class Scope:
    """The surroundings of an element: the bytes and their encoding, the actions that apply, and the depth."""

    buf: bytes
    encoding: Encoding
    actions: Mapping[int, Action]
    dummies: Mapping[int, Action]
    """The actions inside a sequence that is replaced by a dummy."""
    new_value: NewValue
    depth: int = 0


def check_content(tag: int, length: int) -> None:
    """Raise `IdentifyingContent` for an element that can contain a whole report."""
    if tag == _CONTENT:
        raise IdentifyingContent("report content (ContentSequence)")
    if tag == _DOCUMENT and length:
        raise IdentifyingContent("an encapsulated document")


def clean_element(
    scope: Scope, tag: int, vr: bytes, length: int, value: int, end: int
) -> tuple[bytes | None, int]:
    """Return an element's new bytes (None: it is kept as it is) and where it ends.

    Its value begins at `value` in `scope.buf`, and has to end at `end` or before.
    Raises `ShortBuffer`, `Malformed` and `IdentifyingContent`.
    """
    check_content(tag, length)
    action = scope.actions.get(tag, Action.REMOVE)
    if action is Action.REMOVE:
        return b"", elements.end_of_value(scope.buf, vr, length, value, end, scope.encoding, scope.depth)
    if length == UNDEFINED or vr == b"SQ" or (vr == b"UN" and VR_OF.get(tag) == b"SQ"):
        return _clean_sequence(scope, tag, vr, length, value, end)
    stop = value + length
    if stop > end:
        raise ShortBuffer
    if VR_OF.get(tag) == b"SQ":
        raise Malformed(f"element {elements.name(tag)} is a sequence, but is not written as one")
    if action is Action.KEEP or not length:
        return None, stop
    old = scope.buf[value:stop]
    new = scope.new_value(tag, vr, old, action)
    return (None if new == old else elements.write_header(tag, vr, len(new), scope.encoding) + new), stop


def _clean_sequence(
    scope: Scope, tag: int, vr: bytes, length: int, value: int, end: int
) -> tuple[bytes | None, int]:
    """Clean a sequence as `clean_element` does. One that changes gets a defined length."""
    action = scope.actions[tag]
    if vr in elements.BYTE_VRS and action is Action.KEEP:  # compressed pixel data inside a sequence
        return None, elements.end_of_value(scope.buf, vr, length, value, end, scope.encoding, scope.depth)
    if vr not in (b"SQ", b"UN") or VR_OF.get(tag, b"SQ") != b"SQ":
        raise Malformed(f"element {elements.name(tag)} is written as a sequence, but is none")
    if action is Action.EMPTY:
        stop = elements.end_of_value(scope.buf, vr, length, value, end, scope.encoding, scope.depth)
        return elements.write_header(tag, vr, 0, scope.encoding), stop
    actions = scope.dummies if action is Action.DUMMY else scope.actions
    encoding = scope.encoding.inside(vr)
    inside = Scope(scope.buf, encoding, actions, scope.dummies, scope.new_value, scope.depth + 1)
    content, stop = clean_items(inside, value, end, length)
    return (
        None if content is None else elements.write_header(tag, vr, len(content), scope.encoding) + content
    ), stop


def clean_items(scope: Scope, at: int, end: int, length: int) -> tuple[bytes | None, int]:
    """Clean a sequence's items (`length` bytes at `at`); return them (None: as they are) and its end."""
    if scope.depth > elements.DEEPEST:
        raise Malformed(f"its sequences are nested more than {elements.DEEPEST} deep")
    end = _inner_end(at, end, length)
    pieces: list[bytes] = []
    changed = False
    while length == UNDEFINED or at < end:
        item = at
        tag, _, item_length, at = elements.read_header(scope.buf, at, end, scope.encoding)
        if tag == elements.SEQUENCE_END and length == UNDEFINED:
            break
        if tag != elements.ITEM:
            raise Malformed("one of its sequences contains something that is not an item")
        content, at = _clean_data_set(scope, at, end, item_length)
        if content is None:
            pieces.append(scope.buf[item:at])
        else:
            changed = True
            pieces += (elements.write_header(elements.ITEM, b"", len(content), scope.encoding), content)
    return (b"".join(pieces) if changed else None), at


def _clean_data_set(scope: Scope, at: int, end: int, length: int) -> tuple[bytes | None, int]:
    """Clean an item's content of `length` bytes at `at`; return it (None: as it is) and the item's end."""
    end = _inner_end(at, end, length)
    pieces: list[bytes] = []
    kept_from = at
    while length == UNDEFINED or at < end:
        tag, vr, element_length, value = elements.read_header(scope.buf, at, end, scope.encoding)
        if tag == elements.ITEM_END and length == UNDEFINED:
            break
        if tag >> 16 == 0xFFFE:
            raise Malformed("an item ends in the wrong place")
        new, stop = clean_element(scope, tag, vr, element_length, value, end)
        if new is not None:
            pieces += (scope.buf[kept_from:at], new)
            kept_from = stop
        at = stop
    content = b"".join((*pieces, scope.buf[kept_from:at])) if pieces else None
    return content, at + 8 if length == UNDEFINED else at


def _inner_end(at: int, end: int, length: int) -> int:
    if length == UNDEFINED:
        return end
    if at + length > end:
        raise ShortBuffer
    return at + length
