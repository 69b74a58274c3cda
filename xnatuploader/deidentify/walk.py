"""The cleaning of one file: its top level, from the preamble to the last element.

What is kept is copied as a stretch of bytes, so that kept elements are identical to the last byte, and pixel data
are neither decoded nor parsed.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from xnatuploader.deidentify import attributes, identity, marks, nested, profile, source, values
from xnatuploader.deidentify.identity import Identity
from xnatuploader.deidentify.nested import IdentifyingContent, Scope
from xnatuploader.deidentify.profile import Action, KeyedPolicy
from xnatuploader.deidentify.source import CleanCopy, Original, Stretch
from xnatuploader.dicom import elements, reader
from xnatuploader.dicom.elements import DEFLATED, UNDEFINED, Encoding, Malformed, ShortBuffer

_PIXELS = frozenset(map(reader.tag_of, ("PixelData", "FloatPixelData", "DoubleFloatPixelData")))
_FIRST_OF_PIXELS = min(_PIXELS)
_MOST_PADDING = 64 * 1024
"""Zeros at the end of a file; one with more was not written completely."""

_NOTED = frozenset({elements.CHARACTER_SET, reader.SOP_CLASS, reader.SOP_INSTANCE})

_REFUSED_CLASSES = (
    (f"{elements.STORAGE}88.", "a structured report or key object"),
    (f"{elements.STORAGE}104.", "an encapsulated document"),
    (f"{elements.STORAGE}9.4.", "a sound recording"),
    (elements.DICOMDIR, "a DICOMDIR"),
)
"""Objects (PS3.4 table B.5-1) whose content itself can identify the patient: first part of the SOP class, kind."""

_UID = re.compile(r"[0-9.]{1,64}")
_T = TypeVar("_T")


class FileCleaner:
    """How far the cleaning of one file is, and what of the copy has been made so far."""

    def __init__(self, policy: KeyedPolicy, original: Original, subject: str) -> None:
        self.policy = policy
        self.original = original
        self.subject = subject
        self.encoding = attributes.IMPLICIT
        self.start = self.kept_from = 0
        self.pieces: list[bytes | Stretch] = []
        self.uids: dict[int, str] = {}
        """SOP class and SOP instance UID that the copy has, by tag."""
        self.character_set = ""
        self._made: dict[tuple[int, bytes, bytes, Action], bytes] = {}

    def clean(self) -> CleanCopy:
        """Return the copy. Raises `Malformed`, `ShortBuffer`, `IdentifyingContent` and OSError."""
        self.start, syntax = self._read_meta()
        if syntax in DEFLATED:
            self.original.inflate(self.start)
        self.encoding = self._guess_encoding(syntax)
        self._top_level()
        uids = (self.uids.get(reader.SOP_CLASS, ""), self.uids.get(reader.SOP_INSTANCE, ""), syntax)
        if not all(map(_UID.fullmatch, uids)):
            raise Malformed("its SOP class, SOP instance or transfer syntax UID is missing or damaged")
        return self._copy(marks.file_meta(*uids), syntax in DEFLATED)

    # --- before the data set ----------------------------------------------------------------------

    def _read_meta(self) -> tuple[int, str]:
        """Return where the data set begins, and its transfer syntax UID."""
        buf = self.original.buf
        at = 132 if buf[128:132] == b"DICM" else 0
        if at == 0 and buf[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
            raise Malformed("it is not a DICOM file")
        syntax = ""
        while buf[at : at + 2] == b"\x02\0":
            tag, _, length, value = elements.read_header(buf, at, len(buf), attributes.EXPLICIT)
            at = value + length
            if at > len(buf):
                raise Malformed("its file meta information is damaged")
            text = buf[value:at].rstrip(b" \0").decode("ascii", "replace")
            if tag == 0x00020010:
                syntax = text
            elif tag == 0x00020002:
                _check_class(text)
        return at, syntax or elements.IMPLICIT_VR

    def _guess_encoding(self, syntax: str) -> Encoding:
        """Return the encoding of the first element; what the file meta says about it is often wrong."""
        if syntax == elements.BIG_ENDIAN:
            return attributes.BIG_ENDIAN
        here = self.original.at(self.start)
        vr = self.original.buf[here + 4 : here + 6]
        return attributes.EXPLICIT if vr in elements.SHORT_VRS | elements.LONG_VRS else attributes.IMPLICIT

    # --- the data set -----------------------------------------------------------------------------

    def _top_level(self) -> None:
        """Clean the elements of the top level up to the end of the file, and insert the marks in their order."""
        self.kept_from = at = self.start
        waiting = sorted(self._marks)
        while at < self.original.size:
            here = self.original.at(at)
            buf = self.original.buf
            if self.original.size - at < 8 or buf[here : here + 4] == b"\0\0\0\0":
                self._check_padding(at)
                break
            tag, vr, length, value = elements.read_header(buf, here, len(buf), self.encoding)
            head = value - here
            if waiting and waiting[0] <= tag:
                earlier = self._earlier_codes(at, vr, length, head) if tag == profile.METHOD_CODES else b""
                while waiting and waiting[0] <= tag:
                    self._replace(at, at, self._mark(waiting.pop(0), earlier))
            if tag in self._marks:
                stop = self._end_of(at, tag, vr, length, head)
                self._replace(at, stop, b"")
            else:
                stop = self._top_element(at, tag, vr, length, head)
            at = stop
        for tag in waiting:
            self._replace(at, at, self._mark(tag, b""))
        self._flush(at)

    def _top_element(self, at: int, tag: int, vr: bytes, length: int, head: int) -> int:
        """Clean the element at `at`, whose value begins `head` bytes later; return where it ends."""
        if tag >= _FIRST_OF_PIXELS and tag in _PIXELS:
            return self._end_of_pixels(at, length, head)
        if tag >> 16 == 0xFFFE:
            raise Malformed("it has a sequence item or delimiter outside any sequence")
        if length != UNDEFINED:
            stop = self._end_of(at, tag, vr, length, head)
            if self._passed_over(at, stop, tag, vr, length):
                return stop
            self.original.cover(at, stop)

        def clean(scope: Scope, value: int, end: int) -> tuple[bytes | None, int]:
            return nested.clean_element(scope, tag, vr, length, value, end)

        new, stop = self._with_window(at, tag, length, head, clean)
        if tag in _NOTED:
            self._note(tag, self.original.read(at + head, length) if new is None else new[head:])
        if new is not None:
            self._replace(at, stop, new)
        return stop

    def _passed_over(self, at: int, stop: int, tag: int, vr: bytes, length: int) -> bool:
        """Keep or remove a value without reading it; return False when it has to be read."""
        nested.check_content(tag, length)
        action = self.policy.actions.get(tag, Action.REMOVE)
        if action is Action.REMOVE:
            self._replace(at, stop, b"")
            return True
        return action is Action.KEEP and b"SQ" not in (vr, attributes.VR_OF.get(tag)) and tag not in _NOTED

    def _with_window(
        self, at: int, tag: int, length: int, head: int, work: Callable[[Scope, int, int], tuple[_T, int]]
    ) -> tuple[_T, int]:
        """Do `work` on the element at `at`, in a window that is widened until it fits; return its end, too."""
        while True:
            buf, base = self.original.buf, self.original.base
            value = at - base + head
            scope = Scope(buf, self.encoding, self.policy.actions, self.policy.dummies, self._new_value)
            try:
                result, stop = work(scope, value, len(buf) if length == UNDEFINED else value + length)
            except ShortBuffer:
                if length != UNDEFINED:
                    raise Malformed(f"the items of {elements.name(tag)} do not fit into it") from None
                self.original.widen(at)
            else:
                return result, base + stop

    def _end_of(self, at: int, tag: int, vr: bytes, length: int, head: int) -> int:
        """Return where an element ends, whatever its content."""
        if length != UNDEFINED:
            if at + head + length > self.original.size:
                raise Malformed(f"it is cut off, {elements.name(tag)} is longer than the rest of the file")
            return at + head + length

        def skip(scope: Scope, value: int, end: int) -> tuple[None, int]:
            return None, elements.end_of_value(scope.buf, vr, length, value, end, scope.encoding, 0)

        return self._with_window(at, tag, length, head, skip)[1]

    def _end_of_pixels(self, at: int, length: int, head: int) -> int:
        """Return where pixel data end; of compressed ones only the fragments' headers are read."""
        stop, size = at + head + length, self.original.size
        if length == UNDEFINED:
            try:
                stop = elements.end_of_fragments(self.original.read, at + head, size, self.encoding)
            except ShortBuffer:
                stop = size + 1
        if stop > size:
            raise Malformed("it is cut off, its pixel data are incomplete")
        return stop

    def _check_padding(self, at: int) -> None:
        """Raise `Malformed` unless only zeros are left, which some exports append; the copy has none."""
        left = self.original.size - at
        if left > _MOST_PADDING or any(self.original.read(at, left)):
            raise Malformed("its last bytes are not a DICOM element")

    # --- values -----------------------------------------------------------------------------------

    def _new_value(self, tag: int, vr: bytes, old: bytes, action: Action) -> bytes:
        """Return the padded new value of an element that is not kept as it is.

        The frames of a file repeat the same values hundreds of times, so that each is made once.
        """
        known = (tag, vr, old, action)
        if known not in self._made:
            self._made[known] = self._make_value(tag, vr, old, action)
        return self._made[known]

    def _make_value(self, tag: int, vr: bytes, old: bytes, action: Action) -> bytes:
        name = (attributes.VR_OF.get(tag, vr) if vr == b"UN" else vr).decode("ascii")
        if action is Action.CLEAN:
            return values.padded(identity.cleaned(old, tag, name, self._identity, self.character_set), name)
        if action is Action.DUMMY and name != "UI":
            return values.padded(values.dummy(name, len(old)), name)
        new = self.policy.new_text(action, name, old.decode("ascii", "replace"), self.subject)
        return values.padded(new.encode("ascii", "replace"), name)

    @functools.cached_property
    def _identity(self) -> Identity:
        """What identifies the patient in the header, read when the first text has to be cleaned."""
        head = self.original.read(self.start, min(source.WINDOW, self.original.size - self.start))
        return identity.read_ahead(head, self.encoding, self.character_set)

    def _note(self, tag: int, raw: bytes) -> None:
        """Remember what the file meta of the copy and the cleaning of its texts need."""
        text = identity.decoded(raw, self.character_set) or ""
        if tag == elements.CHARACTER_SET:
            self.character_set = text
        elif text:
            self.uids[tag] = text
        if tag == reader.SOP_CLASS:
            _check_class(text)

    # --- the copy ---------------------------------------------------------------------------------

    @functools.cached_property
    def _marks(self) -> Mapping[int, tuple[bytes, str]]:
        texts = marks.text_elements(self.policy.choices, profile.header_subject(self.subject))
        return {**texts, profile.METHOD_CODES: (b"SQ", "")}

    def _mark(self, tag: int, earlier: bytes) -> bytes:
        if tag != profile.METHOD_CODES:
            return marks.text_element(tag, *self._marks[tag], self.encoding)
        items = marks.code_items(self.policy.choices, self.encoding)
        content = earlier + b"".join(item for item in items if item not in earlier)
        return elements.write_header(tag, b"SQ", len(content), self.encoding) + content

    def _earlier_codes(self, at: int, vr: bytes, length: int, head: int) -> bytes:
        """Return the cleaned items that an earlier de-identification left, which stay true."""
        if vr != b"SQ":
            return b""
        if length != UNDEFINED:
            self.original.cover(at, min(at + head + length, self.original.size))

        def items(scope: Scope, value: int, end: int) -> tuple[bytes, int]:
            content, stop = nested.clean_items(scope, value, end, length)
            delimiter = 8 if length == UNDEFINED else 0
            return scope.buf[value : stop - delimiter] if content is None else content, stop

        return self._with_window(at, profile.METHOD_CODES, length, head, items)[0]

    def _replace(self, start: int, stop: int, new: bytes) -> None:
        """Put `new` where the original has `start` to `stop`."""
        self._flush(start)
        if new:
            self.pieces.append(new)
        self.kept_from = stop

    def _flush(self, stop: int) -> None:
        if stop > self.kept_from:
            self.pieces.append(Stretch(self.kept_from, stop))

    def _copy(self, meta: bytes, deflate: bool) -> CleanCopy:
        pieces: tuple[bytes | Stretch, ...] = (meta, *self.pieces)
        if self.original.held:
            buf = self.original.buf
            body = [
                buf[piece.start : piece.stop] if isinstance(piece, Stretch) else piece
                for piece in self.pieces
            ]
            pieces = (b"".join((meta, *(_deflated(body) if deflate else body))),)
        size = sum(len(piece) if isinstance(piece, bytes) else piece.stop - piece.start for piece in pieces)
        return CleanCopy(self.original.path, pieces, size, self.original.version)


def _check_class(uid: str) -> None:
    for root, kind in _REFUSED_CLASSES:
        if uid.startswith(root):
            raise IdentifyingContent(kind)


def _deflated(body: list[bytes]) -> list[bytes]:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = [*map(packer.compress, body), packer.flush()]
    return packed if sum(map(len, packed)) % 2 == 0 else [*packed, b"\0"]  # even length, PS3.5 A.5
