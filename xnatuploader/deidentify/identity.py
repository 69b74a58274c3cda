"""What identifies the patient in the header of a file, and the removal of that from the file's texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from pydicom import charset

from xnatuploader.deidentify import attributes, options, profile, values
from xnatuploader.deidentify.profile import Action
from xnatuploader.dicom import elements, reader
from xnatuploader.dicom.elements import Encoding, Malformed, ShortBuffer

_PHRASES = options.keywords(
    """
    PatientID OtherPatientIDs AccessionNumber StudyID PatientBirthDate PatientAddress PatientTelephoneNumbers
    InstitutionName InstitutionAddress InstitutionalDepartmentName StationName AdmissionID DeviceSerialNumber
    """
)
_TAGS = frozenset(
    {tag for tag, vr in attributes.VR_OF.items() if vr == b"PN"} | set(map(reader.tag_of, _PHRASES))
)
"""Tags of the elements that `read_ahead` uses."""
_LAST = 0x0040FFFF
"""The last tag that can hold a name or number of the patient."""
FIELDS = tuple(sorted(attributes.DICTIONARY[tag][4] for tag in _TAGS if tag <= _LAST))
"""Keywords of these elements. With them, texts of a row are cleaned as those of its copy."""
_DELIMITERS = {ord(letter) for letter in "\\^=\n\r\t\f"}
"""After these, ISO 2022 returns to the first character set (PS3.5 6.1.2.5.3)."""


class Identity:
    """Words and whole phrases that a cleaned text must not contain. `header`: keyword -> text."""

    def __init__(self, header: Mapping[str, str]) -> None:
        words: set[str] = set()
        phrases: set[str] = set()
        for keyword, text in header.items():
            if attributes.VR_OF.get(reader.tag_of(keyword)) == b"PN":
                words |= values.name_words(text)
            elif keyword in _PHRASES:
                phrases.update(part.strip() for part in text.split("\\") if len(part.strip()) >= 3)
        self._words = frozenset(words)
        self._phrases = tuple(sorted(phrases, key=len, reverse=True))

    def scrub(self, text: str, vr: str) -> str:
        """Return `text` cleaned; each of several values by itself, where `vr` can have several."""
        parts = [text] if vr in ("LT", "ST", "UT") else text.split("\\")
        return "\\".join(values.scrub(part, self._words, self._phrases) for part in parts)


def read_ahead(head: bytes, encoding: Encoding, character_set: str) -> Identity:
    """Return what identifies the patient in the top level of a data set that begins with `head`."""
    header: dict[str, str] = {}
    at, tag = 0, 0
    while tag <= _LAST:
        try:
            tag, vr, length, value = elements.read_header(head, at, len(head), encoding)
            at = elements.end_of_value(head, vr, length, value, len(head), encoding, 0)
        except (ShortBuffer, Malformed):
            break
        if tag in _TAGS:
            header[attributes.DICTIONARY[tag][4]] = decoded(head[value:at], character_set) or ""
    return Identity(header)


def decoded(raw: bytes, character_set: str) -> str | None:
    """Return the text of a value by the header's SpecificCharacterSet, None when it cannot be read."""
    plain = raw.rstrip(b" \0")
    try:
        codecs = _codecs(character_set)
        if len(codecs) == 1 and b"\x1b" not in plain:
            return plain.decode(codecs[0])
        text: str = charset.decode_bytes(plain, codecs, _DELIMITERS)
    except (LookupError, ValueError):
        return None
    # Where pydicom cannot decode, it raises nothing but puts a replacement, or leaves the escape.
    return None if "\ufffd" in text or "\x1b" in text else text


def cleaned(old: bytes, tag: int, vr: str, identity: Identity, character_set: str) -> bytes:
    """Return a value without what identifies the patient; one that cannot be read as text is emptied."""
    text = decoded(old, character_set)
    if text is None:
        return b""
    clean = identity.scrub(text, vr)
    if clean == text:
        return old
    if not clean.strip(" \\") and profile.basic_profile().get(tag) is Action.DUMMY:
        return values.dummy(vr, 0)  # some objects need it to hold something
    try:
        return charset.encode_string(clean, _codecs(character_set))
    except (LookupError, ValueError):
        return b""


@functools.lru_cache(maxsize=64)
def _codecs(character_set: str) -> list[str]:
    return charset.convert_encodings(character_set.split("\\"))
