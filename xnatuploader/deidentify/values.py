"""New values in place of old ones: dummies, shifted dates, texts without the words that identify the patient."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Iterable

WORD = "ANONYMIZED"
"""The dummy for text; valid for every text VR, CS included."""

_DUMMIES = {
    "AS": b"000Y",
    "DA": b"19000101",
    "DT": b"19000101000000",
    "TM": b"000000",
    "DS": b"0",
    "IS": b"0",
    "UR": b"http://anonymized.invalid",  # .invalid is reserved for this, RFC 2606
}
_TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_PADDED_WITH_BLANK = _TEXT_VRS | {"AS", "DA", "DS", "DT", "IS", "TM", "UR"}


def dummy(vr: str, length: int) -> bytes:
    """Return a valid value for `vr` that says nothing; binary values become `length` (at most 1024) zeros."""
    if vr in _TEXT_VRS:
        return WORD.encode()
    return _DUMMIES.get(vr) or bytes(min(length, 1024) or 2)


def shift_dates(text: str, vr: str, days: int) -> str:
    """Shift every date of a DA or DT value (one or several, ranges included) by `days`.

    A part that is not a date is replaced by the dummy, since it cannot be shifted. Times and zones are kept.
    """
    return "\\".join(_shift_one(part.strip(" \0"), vr, days) for part in text.split("\\"))


def _shift_one(text: str, vr: str, days: int) -> str:
    if not text:
        return ""
    if vr == "DA" and "-" in text:  # a range, as queries have them
        return "-".join(_shift_one(end.strip(), vr, days) for end in text.split("-", 1))
    match = re.fullmatch(r"(\d{4})\.?(\d{2})?\.?(\d{2})?((?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)", text)
    if match is None or (vr == "DA" and (match[3] is None or match[4])):
        return _DUMMIES[vr].decode()
    year, month, day, rest = match.groups()
    try:
        # A date without day or month moves from its middle, so that it stays a date of the same precision.
        moved = datetime.date(int(year), int(month or 7), int(day or 15)) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return _DUMMIES[vr].decode()
    return f"{moved.year:04}{moved.month:02}{moved.day:02}"[: 8 if day else 6 if month else 4] + rest


def fold(text: str) -> str:
    """Return `text` as it is compared: without case and diacritics, full-width forms as plain ones."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).casefold()


_TRANSCRIPTIONS: tuple[dict[int, str], ...] = (
    {ord(letter): pair for letter, pair in zip("äöüøåæ", ("ae", "oe", "ue", "oe", "aa", "ae"), strict=True)},
    {ord(letter): plain for letter, plain in zip("øæłđðþ", ("o", "a", "l", "d", "d", "th"), strict=True)},
)
"""Letters that people do not only write by dropping a diacritic."""


def spellings(word: str) -> set[str]:
    """Return the folded forms in which `word` may be written: Müller is also mueller and muller."""
    lower = unicodedata.normalize("NFC", word.casefold())
    return {fold(lower), *(fold(lower.translate(letters)) for letters in _TRANSCRIPTIONS)}


def name_words(name: str) -> set[str]:
    """Return the folded words (two letters or more) of a person name in all its writings (PS3.5 6.2.1)."""
    words = re.findall(r"[^\W\d_]+", name)
    return {spelling for word in words if len(word) >= 2 for spelling in spellings(word)}


_PATTERNS = re.compile(
    r"""
    [\w.+-]+@[\w.-]+                                # an e-mail address
    | \b(?:https?|ftp|file)://\S+ | \bwww\.\S+
    | \b\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\b           # a date
    | \d{5,}                                        # a number of any register, a date without dots
    | \+?\b\d{2,}(?:[ /-]\d{2,}){2,}                # a telephone number
    | \b(?:dr|prof|mr|mrs|ms|miss|herr|frau|mme|sr|sra|pat)\b\.?\s+[^\W\d_][\w'-]*
    """,
    re.IGNORECASE | re.VERBOSE,
)


def scrub(text: str, words: frozenset[str], phrases: Iterable[str]) -> str:
    """Return `text` without `phrases`, `words`, dates, long numbers, addresses and names after titles.

    `words` are folded; one of four letters or more is also found inside longer ones (`MuellerHead`).
    """
    without = text
    for phrase in phrases:
        without = re.sub(re.escape(phrase), " ", without, flags=re.IGNORECASE)
    without = _PATTERNS.sub(" ", without)
    long = [word for word in words if len(word) >= 4]

    def judge(match: re.Match[str]) -> str:
        forms = spellings(match[0])
        hit = bool(forms & words) or any(word in form for form in forms for word in long)
        return " " if hit else match[0]

    without = re.sub(r"[^\W_]+", judge, without)
    if without == text:
        return text
    without = re.sub(r"\(\s*\)|\[\s*\]", " ", without)
    return re.sub(r"[ \t]{2,}", " ", without).strip(" \t,;:^_-/")


def padded(value: bytes, vr: str) -> bytes:
    """Return `value` with an even length, as every value has (PS3.5 6.2)."""
    if len(value) % 2 == 0:
        return value
    return value + (b" " if vr in _PADDED_WITH_BLANK else b"\0")
