"""DICOM data for the tests, built in code: one call, with keywords for what differs from the defaults.

`dicom_bytes`, `write_dicom` and `dataset` take the same keywords:

* DICOM keywords (`StudyDate="20200312"`, `PatientName="Doe^John"`, `ReferencedImageSequence=[dataset()]`);
  `None` leaves an element out, `""` writes it empty. Values are not checked: `StudyDate="***"` is kept;
* `study`, `series`, `instance`: names from which the UIDs are made (`uid`): files with the same names share them;
* `pixels`: `(rows, columns)` of 16 bits, or a number of bytes, or None for no pixel data;
* `private`: number of private elements in groups 0019 and 0029, as in real MR headers;
* `transfer_syntax`: a UID or one of `SYNTAXES`; `meta=False`: neither preamble nor file meta, as in old exports.

The lower half makes what pydicom would not write: single elements, wrong lengths, deep nesting, deflate bombs.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pydicom
import pydicom.config
import pydicom.datadict
import pydicom.encaps
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

SYNTAXES = {
    "explicit": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "big": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "jpeg": "1.2.840.10008.1.2.4.70",
}
SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
    "KO": "1.2.840.10008.5.1.4.1.1.88.59",
    "PR": "1.2.840.10008.5.1.4.1.1.11.1",
    "DOC": "1.2.840.10008.5.1.4.1.1.104.1",
}
"""Modality -> the SOP class that `dataset(Modality=...)` takes when none is given."""

SEED_FILES = (
    *(f"Doe^John-0001/20200312/Chest CT/scan000{i}.dcm" for i in range(3)),
    *(f"Roe^Jane-0342/20190115/Head CT/scan000{i}.dcm" for i in range(4)),
    *(f"Roe^Jane-0342/20200623/Head CT/scan000{i}.dcm" for i in range(3)),
    *(f"Roe^Jane-0342/20200623/Neck CT/scan000{i}.dcm" for i in range(4)),
)
"""The example tree: two patients, three visits, four series, 14 files."""


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def uid(text: str) -> str:
    """Return the same UID (of the 2.25 kind) for the same `text`, always."""
    return f"2.25.{int.from_bytes(hashlib.md5(text.encode()).digest(), 'big')}"


def dataset(
    *,
    study: str = "study",
    series: str = "series",
    instance: str = "1",
    pixels: tuple[int, int] | int | None = (8, 8),
    private: int = 0,
    **elements: object,
) -> Dataset:
    """Return a CT image's dataset, or whatever `elements` make of it."""
    modality = elements.get("Modality", "CT")
    defaults: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": SOP_CLASSES.get(str(modality), SOP_CLASSES["CT"]),
        "SOPInstanceUID": uid(f"instance {study}/{series}/{instance}"),
        "StudyDate": "20200312",
        "SeriesDate": "20200312",
        "AcquisitionDate": "20200312",
        "StudyTime": "101112",
        "AccessionNumber": "A0001",
        "Modality": modality,
        "Manufacturer": "ACME",
        "InstitutionName": "General Hospital",
        "StationName": "CT01",
        "StudyDescription": "Chest",
        "SeriesDescription": "Axial 5mm",
        "ManufacturerModelName": "Scanner 1",
        "PatientName": "Doe^John",
        "PatientID": "0001",
        "PatientBirthDate": "19700101",
        "PatientSex": "M",
        "StudyInstanceUID": uid(f"study {study}"),
        "SeriesInstanceUID": uid(f"series {study}/{series}"),
        "StudyID": "1",
        "SeriesNumber": "2",
        "InstanceNumber": instance if instance.isdigit() else "1",
    }
    made = Dataset()
    with pydicom.config.disable_value_validation():
        for keyword, value in {**defaults, **_pixel_elements(pixels), **elements}.items():
            if value is not None:
                setattr(made, keyword, value)
        _add_private(made, private)
    return made


def _pixel_elements(pixels: tuple[int, int] | int | None) -> dict[str, object]:
    if pixels is None:
        return {}
    rows, columns = (1, pixels // 2) if isinstance(pixels, int) else pixels
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": min(columns, 65535),
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": bytes(rows * columns * 2),
    }


def _add_private(made: Dataset, count: int) -> None:
    kinds: tuple[tuple[str, object], ...] = (
        ("LO", "some private text"),
        ("DS", ["1.5", "2.5", "3.5"]),
        ("OB", b"\x01\x02\x03\x04" * 16),
        ("UL", 7),
        ("UN", b"SV10" * 8),
    )
    for number in range(count):
        group = 0x0019 if number % 2 else 0x0029
        block = made.private_block(group, f"ACME HEADER {number // 400}", create=True)
        vr, value = kinds[number % len(kinds)]
        block.add_new(number // 2 % 200, vr, value)


def dicom_bytes(*, transfer_syntax: str = "explicit", meta: bool = True, **elements: object) -> bytes:
    """Return a whole file; keywords as for `dataset`, and `transfer_syntax` and `meta`."""
    syntax = pydicom.uid.UID(SYNTAXES.get(transfer_syntax, transfer_syntax))
    with pydicom.config.disable_value_validation():
        return _written(dataset(**elements), syntax, meta)  # type: ignore[arg-type]


def _written(made: Dataset, syntax: pydicom.uid.UID, meta: bool) -> bytes:
    if "PixelData" in made:
        if syntax.is_compressed:
            made.PixelData = pydicom.encaps.encapsulate([bytes(made.PixelData)])
            made["PixelData"].is_undefined_length = True
        made["PixelData"].VR = "OB" if syntax.is_compressed else "OW"
    file_meta = FileMetaDataset()
    file_meta.FileMetaInformationGroupLength = 0  # pydicom writes the right number
    file_meta.FileMetaInformationVersion = b"\0\1"
    file_meta.ImplementationClassUID = pydicom.uid.UID(uid("tests"))
    file_meta.TransferSyntaxUID = syntax
    if "SOPClassUID" in made:
        file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    if "SOPInstanceUID" in made:
        file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    target = io.BytesIO()
    if meta:
        pydicom.dcmwrite(target, FileDataset(target, made, file_meta=file_meta, preamble=b"\0" * 128))
    else:
        implicit, little = syntax == SYNTAXES["implicit"], syntax != SYNTAXES["big"]
        pydicom.dcmwrite(target, made, implicit_vr=implicit, little_endian=little)
    return target.getvalue()


def write_dicom(path: Path, **elements: object) -> Path:
    """Write `dicom_bytes(**elements)` to `path`, making its folders; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(**elements))  # type: ignore[arg-type]
    return path


def seed_tree(folder: Path, **elements: object) -> list[Path]:
    """Write the 14 files of the example tree below `folder` and return their paths, in order of `SEED_FILES`.

    Patients `Doe^John` (0001) and `Roe^Jane` (0342); a study for each visit, a series for each folder.
    """
    return [write_seed_file(folder, file, **elements) for file in SEED_FILES]


def write_seed_file(folder: Path, file: str, **elements: object) -> Path:
    """Write one file whose headers follow from a path like those of `SEED_FILES`; also for further ones."""
    patient, date, series, name = file.split("/")
    patient_name, _, patient_id = patient.rpartition("-")
    number = int("".join(filter(str.isdigit, name)) or 0) + 1
    defaults: dict[str, object] = {
        "PatientName": patient_name,
        "PatientID": patient_id,
        "StudyDate": date,
        "SeriesDate": date,
        "AcquisitionDate": date,
        "StudyDescription": series,
        "SeriesDescription": series,
        "SeriesNumber": "3" if series.startswith("Neck") else "2",
        "study": f"{patient} {date}",
        "series": series,
        "instance": str(number),
    }
    return write_dicom(folder / file, **{**defaults, **elements})


# --- what pydicom would not write ---


def tag_of(keyword: str) -> int:
    """Return the number of a DICOM keyword's tag."""
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
"""Value representations with a four-byte length in explicit VR (PS3.5 table 7.1-1)."""


def element(
    tag: int | str, vr: str, value: bytes, *, explicit: bool = True, length: int | None = None
) -> bytes:
    """Return one little-endian element; `length` replaces the true length, 0xFFFFFFFF is undefined."""
    number = tag_of(tag) if isinstance(tag, str) else tag
    stated = len(value) if length is None else length
    head = struct.pack("<HH", number >> 16, number & 0xFFFF)
    if not explicit:
        return head + struct.pack("<L", stated) + value
    if vr in LONG_VRS:
        return head + vr.encode() + b"\0\0" + struct.pack("<L", stated) + value
    return head + vr.encode() + struct.pack("<H", stated) + value


def raw_file(*elements: bytes, transfer_syntax: str = "explicit", preamble: bool = True) -> bytes:
    """Return a file with a right preamble and file meta around `elements`, taken as they are."""
    body = b"".join(elements)
    if not preamble:
        return body
    syntax = SYNTAXES.get(transfer_syntax, transfer_syntax).encode()
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020010, "UI", syntax + b"\0" * (len(syntax) % 2))
    length = element(0x00020000, "UL", struct.pack("<L", len(meta)))
    return b"\0" * 128 + b"DICM" + length + meta + body


def position(data: bytes, keyword: str) -> int:
    """Return where the first element of `keyword` begins in little-endian `data` (its tag's bytes)."""
    tag = tag_of(keyword)
    found = data.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
    assert found >= 0, keyword
    return found


def with_length(data: bytes, keyword: str, length: int) -> bytes:
    """Return explicit-VR `data` with another number in the length field of `keyword`."""
    at = position(data, keyword)
    long_form = data[at + 4 : at + 6].decode() in LONG_VRS
    field = struct.pack("<L" if long_form else "<H", length)
    start = at + (8 if long_form else 6)
    return data[:start] + field + data[start + len(field) :]


def with_vr(data: bytes, keyword: str, vr: bytes) -> bytes:
    """Return explicit-VR `data` with another VR (two bytes, possibly nonsense) at `keyword`."""
    at = position(data, keyword)
    return data[: at + 4] + vr + data[at + 6 :]


def truncated_before(data: bytes, keyword: str) -> bytes:
    """Return `data` up to the element of `keyword`."""
    return data[: position(data, keyword)]


def nested_sequences(depth: int, *, explicit: bool = True) -> bytes:
    """Return a file of `depth` sequences of undefined length, one inside the other, never closed."""
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    sequence = element(0x00081140, "SQ", b"", explicit=explicit, length=0xFFFFFFFF)
    syntax = "explicit" if explicit else "implicit"
    return raw_file((sequence + item) * depth, transfer_syntax=syntax)


def write_deflate_bomb(path: Path, megabytes: int, *, before: Sequence[bytes] = ()) -> Path:
    """Write a small file that inflates to `before` and a private element of `megabytes` MB of zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = element(0x00091000, "UN", b"", length=megabytes << 20)
    with path.open("wb") as target:
        target.write(raw_file(transfer_syntax="deflated"))
        target.write(packer.compress(b"".join(before) + head))
        for _ in range(megabytes):
            target.write(packer.compress(bytes(1 << 20)))
        target.write(packer.flush())
    return path
