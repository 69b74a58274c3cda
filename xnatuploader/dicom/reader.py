"""One file's DICOM header: the values of the fields asked for, as text, and whether the file may be sent.

`Reader.read` (and `read`) raise no exception, whatever the file holds: an error is a status and a message.
pydicom is imported only where a header is not plain or a keyword is looked up, so that worker processes stay
small.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xnatuploader import records
from xnatuploader.dicom import header
from xnatuploader.dicom.elements import CHARACTER_SET, DEFLATED, DICOMDIR, STORAGE

Cells = tuple[str, ...]
Compact = tuple[str, str, Cells]
"""(status, message, one cell per field of the plan): a reading as processes send it to each other."""

Opener = Callable[[str], int]
"""Opens a path for reading and returns the descriptor."""

IMAGE_TYPE, SOP_CLASS, SOP_INSTANCE = 0x00080008, 0x00080016, 0x00080018
SERIES_UID, BURNED_IN = 0x0020000E, 0x00280301
ALWAYS = ("SOPClassUID", "ImageType", "BurnedInAnnotation")
"""Read besides the wanted fields and `records.DICOM_FIELDS`, because the rules need them."""

MOST_INFLATED = 256 << 20
"""Bytes that a deflated header may inflate to before the last needed field; a zip bomb has more."""
MOST_READ = 64 << 20
"""Bytes that pydicom may read of one file that is not plain."""
MOST_READS = 300_000
"""How often it may read: very many empty elements are few bytes, and take much time."""

REVIEW_WORDS = ("BurnedInAnnotation", "SecondaryCapture", "ScreenSave")
"""The words of the row Review of the Configuration sheet."""

KEY_OBJECTS = STORAGE + "88.59"
SECONDARY_CAPTURES = frozenset({STORAGE + "7", *(f"{STORAGE}7.{i}" for i in range(1, 5))})
_SCREEN_SAVES = frozenset({"SCREEN SAVE", "SCREEN_SAVE"})
_DOCUMENTS = {"1": "PDF", "2": "CDA", "3": "STL", "4": "OBJ", "5": "MTL"}

_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ"})
_NUMBERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_PLAIN_TEXT = frozenset({"AS", "CS", "DA", "DT", "TM"})
_ENCODED_LISTS = frozenset({"LO", "SH", "UC"})
_ENCODED_WHOLE = frozenset({"LT", "ST", "UT"})
_KNOWN_CHARSETS = frozenset(
    {b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192", b"ISO 2022 IR 6", b"ISO 2022 IR 100", b"GB18030", b"GBK"}
    | {f"ISO_IR {n}".encode() for n in (13, 101, 109, 110, 126, 127, 138, 144, 148, 166)}
)
"""Character sets (PS3.3 section C.12.1.1.2) in which ASCII bytes are ASCII text."""

_OTHER_FORMATS = (
    (b"%PDF", "a PDF document"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"PK\x03\x04", "a ZIP archive or Office document"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"\x1f\x8b", "a compressed (gzip) file"),
    (b"7z\xbc\xaf", "a compressed (7z) file"),
    (b"Rar!", "a compressed (RAR) file"),
    (b"\x5c\x01\x00\x00", "a NIfTI or Analyze image"),
    (b"MZ", "a Windows program"),
    (b"<?xml", "an XML file"),
    (b"{", "a text (JSON) file"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Which objects are not sent, or only after a person has released them; from the Configuration sheet."""

    skip_image_types: frozenset[str] = frozenset({"DOSE_INFO"})
    """ImageType values (0008,0008), at any position, that make a file `skipped`."""
    review: frozenset[str] = frozenset(REVIEW_WORDS)
    """Some of `REVIEW_WORDS`: which files get the status `review`."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What to read of each file, determined once; plain data that can be sent to worker processes."""

    fields: tuple[str, ...]
    """Keywords or `gggg,eeee`, as they become keys of `Reading.values`."""
    tags: tuple[int, ...]
    """The tag of each field."""
    vrs: Mapping[int, str]
    """Tag -> VR by the data dictionary (PS3.6), for headers without VRs; empty for unknown tags."""
    rules: Rules


_COMMON: Mapping[str, tuple[int, str]] = {
    "Modality": (0x00080060, "CS"),
    "StudyDate": (0x00080020, "DA"),
    "SeriesNumber": (0x00200011, "IS"),
    "SeriesDescription": (0x0008103E, "LO"),
    "StudyDescription": (0x00081030, "LO"),
    "InstanceNumber": (0x00200013, "IS"),
    "Manufacturer": (0x00080070, "LO"),
    "ManufacturerModelName": (0x00081090, "LO"),
    "StationName": (0x00081010, "SH"),
    "StudyInstanceUID": (0x0020000D, "UI"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "SOPInstanceUID": (0x00080018, "UI"),
    "SOPClassUID": (0x00080016, "UI"),
    "ImageType": (0x00080008, "CS"),
    "BurnedInAnnotation": (0x00280301, "CS"),
    "PatientID": (0x00100020, "LO"),
    "PatientName": (0x00100010, "PN"),
    "AccessionNumber": (0x00080050, "SH"),
    "StudyID": (0x00200010, "SH"),
    "StudyTime": (0x00080030, "TM"),
    "SeriesDate": (0x00080021, "DA"),
    "AcquisitionDate": (0x00080022, "DA"),
    "ProtocolName": (0x00181030, "LO"),
    "BodyPartExamined": (0x00180015, "CS"),
}
"""Tag and VR (PS3.6) of the fields that nearly every scan reads, so that it starts without importing pydicom."""

_COMMON_VRS = dict(_COMMON.values())


def tag_of(name: str) -> int:
    """Return the tag of a DICOM keyword or of `gggg,eeee` (hexadecimal); ValueError if it is neither."""
    if name in _COMMON:
        return _COMMON[name][0]
    from pydicom import datadict

    if re.fullmatch(r"\(?[0-9A-Fa-f]{4},[0-9A-Fa-f]{4}\)?", name):
        return int(name.strip("()").replace(",", ""), 16)
    tag = datadict.tag_for_keyword(name)
    if tag is None or not name:  # retired elements have the keyword ''
        raise ValueError(name)
    return tag


def keyword_known(name: str) -> bool:
    """Tell whether `DICOM:name` can be used: a keyword or `gggg,eeee` of a text or number before the pixels."""
    try:
        tag = tag_of(name)
    except ValueError:
        return False
    return 0x0008 <= tag >> 16 < 0x7FE0 and _dictionary_vr(tag) not in _BINARY


def _dictionary_vr(tag: int) -> str:
    """Return the VR by the dictionary, of two possible ones the first (US of `US or SS`); '' if unknown."""
    if tag in _COMMON_VRS:
        return _COMMON_VRS[tag]
    from pydicom import datadict

    try:
        return str(datadict.dictionary_VR(tag)).split(" or ")[0]
    except KeyError:
        if (tag >> 16) & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"
        return "UL" if not tag & 0xFFFF else ""


def plan(fields: Sequence[str], rules: Rules) -> ReadPlan:
    """Return what to read. Raises ValueError for a name that is neither keyword nor tag."""
    names = tuple(dict.fromkeys((*records.DICOM_FIELDS, *ALWAYS, *fields)))
    tags = tuple(tag_of(name) for name in names)
    return ReadPlan(names, tags, {tag: _dictionary_vr(tag) for tag in tags}, rules)


def read(path: str | os.PathLike[str], fields: Sequence[str], rules: Rules) -> records.Reading:
    """Read one file's header; `Reading.values` has `fields`, `records.DICOM_FIELDS` and `ALWAYS`.

    For many files make one `Reader`, or use `pool.read_all`.
    """
    made = plan(fields, rules)
    return reading_of(Reader(made).read(os.fspath(path)), names_of(made))


def names_of(made: ReadPlan) -> Mapping[str, int]:
    """Return the positions of the fields in `Cells`, for `reading_of`."""
    return {name: position for position, name in enumerate(made.fields)}


def reading_of(compact: Compact, names: Mapping[str, int]) -> records.Reading:
    """Return the reading that `compact` stands for."""
    status, message, cells = compact
    values = records.Values(names, cells) if cells else records.NO_VALUES
    return records.Reading(values, records.Status(status), message)


class Reader:
    """Reads headers by one plan; may be used by several threads at once."""

    def __init__(self, made: ReadPlan, opener: Opener = header.open_file) -> None:
        self._plan = made
        self._open = opener
        self._skipped_types = {_type_word(word) for word in made.rules.skip_image_types if word.strip()}
        asked = {*made.tags, CHARACTER_SET}
        if "BurnedInAnnotation" not in made.rules.review:
            asked.remove(BURNED_IN)
        self._wanted = frozenset(asked)
        self._last = max(asked)
        self._texts: dict[tuple[int, bytes, bytes, bytes], str] = {}

    def read(self, path: str) -> Compact:
        """Return what the header of the file at `path` says; never raises an Exception."""
        handle = None
        try:
            handle = self._open(path)
            return self._read(handle)
        except Exception as error:
            return (*_cannot_read(error), ())
        finally:
            if handle is not None:
                try:
                    os.close(handle)
                except OSError:
                    pass  # a network drive may report an error at closing, after all has been read

    def _read(self, handle: int) -> Compact:
        data = os.read(handle, header.FIRST_READ)
        if not data:
            return (*(_EMPTY if stat.S_ISREG(os.fstat(handle).st_mode) else _DEVICE), ())
        if not header.looks_like_dicom(data):
            return (records.Status.UNMATCHED.value, _not_dicom(data), ())
        source = header.file_source(handle)
        begin = header.begin(data)
        found = None
        if begin is not None:
            if begin.media_class == DICOMDIR:
                return (*_DICOMDIR_SKIPPED, ())
            if begin.syntax in DEFLATED:
                return self._judged(self._deflated(source, begin.offset))
            found = header.walk(data, begin.offset, begin.implicit, self._wanted, self._last, source)
        if found is None:
            found, media_class = by_pydicom(source, self._wanted, self._last)
            if media_class == DICOMDIR:
                return (*_DICOMDIR_SKIPPED, ())
        return self._judged(found)

    def _deflated(self, source: header.Source, offset: int) -> header.Header:
        inflated = header.InflatedSource(source, offset, MOST_INFLATED)
        data = inflated(0, header.FIRST_READ)
        found = header.walk(data, 0, False, self._wanted, self._last, inflated)
        if found is not None:
            return found
        again = header.InflatedSource(source, offset, MOST_READ)
        return by_pydicom(again, self._wanted, self._last, dataset_only=True)[0]

    def _judged(self, found: header.Header) -> Compact:
        return (*self._status(found), self._cells(found))

    def _cells(self, found: header.Header) -> Cells:
        """Return the text of each field. Files of a series have most texts in common, which are kept once."""
        elements, texts = found.elements, self._texts
        charset = elements[CHARACTER_SET][1] if CHARACTER_SET in elements else b""
        cells = []
        for tag in self._plan.tags:
            element = elements.get(tag)
            if element is None:
                cells.append("")
                continue
            key = (tag, *element, charset)
            cell = texts.get(key) if found.little_endian else None
            if cell is None:
                vr = self._plan.vrs[tag] if element[0] in (b"", b"UN") else element[0].decode("latin-1")
                cell = text(vr or "UN", element[1], charset, found.little_endian)
                if found.little_endian:
                    texts[key] = cell
            cells.append(cell)
        if len(texts) > 4096:
            texts.clear()
        return tuple(cells)

    def _status(self, found: header.Header) -> tuple[str, str]:
        elements = found.elements
        if found.cut or (found.ended and SERIES_UID not in elements and SERIES_UID in self._wanted):
            return _CUT
        sop_class = _ascii(elements.get(SOP_CLASS))
        if not sop_class:
            return _NO_CLASS
        kind = _kind_not_sent(sop_class)
        if kind:
            return records.Status.SKIPPED.value, kind
        types = [_type_word(word) for word in _ascii(elements.get(IMAGE_TYPE)).split("\\")]
        for word in types:
            if word in self._skipped_types:
                return records.Status.SKIPPED.value, (
                    f"The image type says {word}, which the Configuration sheet lists under SkipImageTypes."
                )
        return self._review(sop_class, types, elements)

    def _review(
        self, sop_class: str, types: list[str], elements: Mapping[int, tuple[bytes, bytes]]
    ) -> tuple[str, str]:
        review = self._plan.rules.review
        if "BurnedInAnnotation" in review and _ascii(elements.get(BURNED_IN)).strip().upper() == "YES":
            return _REVIEW_BURNED_IN
        if "ScreenSave" in review and not _SCREEN_SAVES.isdisjoint(types):
            return _REVIEW_SCREEN_SAVE
        if "SecondaryCapture" in review and sop_class in SECONDARY_CAPTURES:
            return _REVIEW_SECONDARY
        return "", ""


_SKIPPED, _REVIEW = records.Status.SKIPPED.value, records.Status.REVIEW.value
_RELEASE = (
    "Look at it, then put Y in its Upload cell here, or in Release review of its session, if it may be sent."
)
_REVIEW_BURNED_IN = (
    _REVIEW,
    f"The header says that text is burned into the picture (Burned In Annotation YES). {_RELEASE}",
)
_REVIEW_SCREEN_SAVE = (_REVIEW, f"A saved screen, which may show who the patient is. {_RELEASE}")
_REVIEW_SECONDARY = (_REVIEW, f"A secondary capture, which may show who the patient is. {_RELEASE}")
_DICOMDIR_SKIPPED = (_SKIPPED, "A DICOMDIR: the table of contents of a disc, not an image.")
_EMPTY = (_SKIPPED, "The file is empty (0 bytes). Copy it again from where it came from.")
_CUT = (
    _SKIPPED,
    "The file ends within its header: it was not copied completely. Copy it again from its source.",
)
_DAMAGED = (_SKIPPED, "The header is damaged and could not be read. Export the file again from its source.")
_TOO_LARGE = (_SKIPPED, "The header is larger than any real one. Export the file again from its source.")
_NO_CLASS = (
    _SKIPPED,
    "The header does not say what kind of object this is (no SOP Class UID), so it cannot be sent.",
)
_DEVICE = (_SKIPPED, "This is a device or pipe, not an ordinary file.")
_FOLDER = (_SKIPPED, "This is a folder, not a file.")
_GONE = (records.Status.MISSING.value, "The file was listed, but is gone from the disk now.")


_NOT_SENT = (
    (DICOMDIR, _DICOMDIR_SKIPPED[1]),
    (KEY_OBJECTS, "A key object note: a list of marked images, not an image."),
    (f"{STORAGE}88.", "A structured report: text about the patient, not an image."),
    (f"{STORAGE}104.", "An encapsulated document ({kind}), not an image."),
    (f"{STORAGE}11.", "A presentation state: how images were displayed, not an image."),
)
"""First part of a SOP class (PS3.4 table B.5-1) -> why its objects are not sent; the first one that fits counts."""


def _kind_not_sent(sop_class: str) -> str:
    """Return why objects of this SOP class are not sent, or ''."""
    for root, message in _NOT_SENT:
        if sop_class.startswith(root):
            return message.format(kind=_DOCUMENTS.get(sop_class[len(root) :], "other"))
    return ""


def _type_word(word: str) -> str:
    return word.strip(" \0").upper()


def _ascii(element: tuple[bytes, bytes] | None) -> str:
    return "" if element is None else element[1].decode("latin-1").strip(" \0")


def _cannot_read(error: Exception) -> tuple[str, str]:
    """Return status and message for whatever opening or reading raised."""
    if isinstance(error, PermissionError):
        return (
            _SKIPPED,
            "You may not read this file. Ask its owner for the right to read it, then scan again.",
        )
    if isinstance(error, IsADirectoryError):
        return _FOLDER
    if isinstance(error, header.HeaderTooLarge):
        return _TOO_LARGE
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return _GONE
    if isinstance(error, OSError) and error.errno == errno.ESTALE:
        return _GONE
    if isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno)
        return (
            _SKIPPED,
            f"The file could not be read ({reason}). Check its disk or network drive, then scan again.",
        )
    if isinstance(error, EOFError):
        return _CUT
    return _DAMAGED


def _not_dicom(data: bytes) -> str:
    """Say what kind of file this is, as far as its first bytes show."""
    kind = next((kind for magic, kind in _OTHER_FORMATS if data.startswith(magic)), "")
    if not kind and not data.strip(b"\0"):
        kind = "a file of zeros, perhaps a copy that failed"
    if not kind and b"\0" not in data[:512]:
        kind = "a text file"
    return f"Not a DICOM file: {kind}." if kind else "Not a DICOM file."


# --- values as text ---


def text(vr: str, value: bytes, charset: bytes = b"", little_endian: bool = True) -> str:
    """Return a raw value as text, several values joined by a backslash; never raises.

    Padding is removed where pydicom removes it (PS3.5 section 6.2); otherwise the value stays as it is, `***` in a
    date and `007` in a number included. `charset` is the raw SpecificCharacterSet (0008,0005); bytes that it
    cannot decode are replaced. Sequences and binary data are ''.
    """
    if not value or vr in _BINARY:
        return ""
    if vr in _NUMBERS or vr == "AT":
        return _number(vr, value, little_endian)
    if vr == "PN":
        # pydicom does not show an empty last component group either.
        return "\\".join(name.rstrip("=") for name in _decoded(value.rstrip(b"\0 "), charset).split("\\"))
    if vr in _ENCODED_LISTS:
        return "\\".join(part.rstrip("\0 ") for part in _decoded(value, charset).split("\\"))
    if vr in _ENCODED_WHOLE:
        return _decoded(value, charset).rstrip("\0 ")
    if vr == "UN":
        plain = value.rstrip(b"\0 ")
        return plain.decode("ascii") if all(32 <= byte < 127 for byte in plain) else ""
    if vr in ("DS", "IS"):
        return _decimal(value, charset)
    return _unencoded(vr, value.decode("latin-1"))


def _decimal(value: bytes, charset: bytes) -> str:
    """Return the numbers of DS and IS as they are written; what is no number as other text."""
    parts = [part.strip() for part in value.decode("latin-1").strip().rstrip(" \0").split("\\")]
    try:
        for part in parts:
            float(part or 0)
    except ValueError:
        return text("LO", value, charset)
    return "\\".join(parts)


def _unencoded(vr: str, value: str) -> str:
    """Return text of the VRs that the character set does not concern."""
    if vr in _PLAIN_TEXT:
        return value.rstrip(" \0")
    if vr == "UI":
        return "\\".join(part.strip() for part in value.rstrip("\0 ").split("\\"))
    if vr == "AE":
        return "\\".join(part.strip() for part in value.split("\\"))
    return value.rstrip()


def _number(vr: str, value: bytes, little_endian: bool) -> str:
    order = "<" if little_endian else ">"
    if vr == "AT":
        pairs = struct.iter_unpack(f"{order}HH", value[: len(value) // 4 * 4])
        return "\\".join(f"({group:04X},{element:04X})" for group, element in pairs)
    letter = _NUMBERS[vr]
    if len(value) % struct.calcsize("=" + letter):
        # Some writers put text there; pydicom tries that too.
        return _unencoded("CS", value.decode("latin-1"))
    return "\\".join(str(number) for (number,) in struct.iter_unpack(order + letter, value))


def _decoded(value: bytes, charset: bytes) -> str:
    """Decode text by the SpecificCharacterSet as pydicom does, in the commonest cases without it."""
    first = charset.rstrip(b" \0")
    if first in _KNOWN_CHARSETS and b"\x1b" not in value:
        if value.isascii():
            return value.decode("ascii")
        if first in (b"", b"ISO_IR 6", b"ISO_IR 100"):
            return value.decode("latin-1")
        if first == b"ISO_IR 192":
            return value.decode("utf-8", errors="replace")
    from pydicom import charset as pydicom_charset
    from pydicom import valuerep

    _silence_pydicom()
    names = charset.decode("latin-1").rstrip(" \0").split("\\")
    try:
        encodings = pydicom_charset.convert_encodings(names if len(names) > 1 else names[0])
        return str(pydicom_charset.decode_bytes(value, encodings, valuerep.TEXT_VR_DELIMS))
    except Exception:
        # The name of any Python codec can stand there, and fail in any way.
        return value.decode("latin-1")


def _silence_pydicom() -> None:
    """Suppress pydicom's warnings: they quote header values, and each file has a message of its own."""
    warnings.filterwarnings("ignore", module=r"(pydicom|xnatuploader)\.")


# --- what is not plain, by pydicom ---


class _Deflated(Exception):
    """pydicom is about to inflate the whole rest of the file, which may be a zip bomb."""


class _BoundedFile:
    """A file for pydicom with a limit on what it may read, which remembers whether the data ran out."""

    def __init__(self, source: header.Source) -> None:
        self._source = source
        self._at = 0
        self._given = 0
        self._reads = 0
        self.cut = False
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise _Deflated
        self._reads += 1
        if self._reads > MOST_READS or self._given + min(size, MOST_READ) > MOST_READ:
            raise header.HeaderTooLarge
        data = self._source(self._at, min(size, MOST_READ))
        if len(data) < size:
            self._ran_out(data, size)
        self._given += len(data)
        self._at += len(data)
        return data

    def _ran_out(self, data: bytes, size: int) -> None:
        """Remember the end of the data. Between two elements, where 8 bytes are read, it is not an error."""
        self.ended = True
        if data or size != 8 or (self._at > 0 and not self._source(self._at - 1, 1)):
            self.cut = True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset if whence == os.SEEK_SET else self._at + offset
        if self._at == 0:  # pydicom has looked for a preamble, for which an old file may be too short
            self.cut = self.ended = False
        return self._at

    def tell(self) -> int:
        return self._at


def by_pydicom(
    source: header.Source, wanted: frozenset[int], last: int, dataset_only: bool = False
) -> tuple[header.Header, str]:
    """Return what pydicom finds, and the MediaStorageSOPClassUID of the file meta.

    `dataset_only`: `source` has neither preamble nor file meta and is in explicit VR (an inflated dataset).
    Raises EOFError where the data had run out, and otherwise whatever pydicom raises.
    """
    from pydicom import filereader

    _silence_pydicom()
    bounded: Any = _BoundedFile(source)
    limits: dict[str, Any] = {
        "stop_when": lambda tag, vr, length: tag > last,
        "defer_size": header.LONGEST_VALUE,
        "specific_tags": sorted(wanted),
    }
    try:
        if dataset_only:
            found, media_class = filereader.read_dataset(bounded, False, True, **limits), ""
        else:
            found = filereader.read_partial(bounded, force=True, **limits)
            media_class = str(found.file_meta.get("MediaStorageSOPClassUID") or "")
        return _header_of(found, wanted, last, bounded), media_class
    except _Deflated:
        pass  # read below, with a limit
    except Exception as error:
        if bounded.ended and not isinstance(error, header.HeaderTooLarge):
            raise EOFError from error
        raise
    inflated = header.InflatedSource(source, bounded.tell(), MOST_READ)
    return by_pydicom(inflated, wanted, last, dataset_only=True)


def _header_of(found: Any, wanted: frozenset[int], last: int, bounded: _BoundedFile) -> header.Header:
    """Return the raw elements of a pydicom dataset; those that it has parsed already are sequences."""
    from pydicom.dataelem import RawDataElement

    elements, little_endian = {}, True
    for tag in wanted:
        raw = found.get_item(tag, keep_deferred=True) if tag in found else None
        if isinstance(raw, RawDataElement):
            value = raw.value if isinstance(raw.value, bytes) else b""
            if len(value) < min(raw.length, header.LONGEST_VALUE):
                continue  # the file ends within it
            elements[int(tag)] = ((raw.VR or "").encode("latin-1"), value)
            little_endian = raw.is_little_endian
        elif raw is not None and tag == CHARACTER_SET and raw.value:
            # The one element that pydicom has converted already.
            names = [raw.value] if isinstance(raw.value, str) else list(raw.value)
            elements[CHARACTER_SET] = (b"CS", "\\".join(names).encode("latin-1"))
    if last in elements:
        return header.Header(elements, little_endian=little_endian)
    return header.Header(elements, bounded.ended, bounded.cut, little_endian)
