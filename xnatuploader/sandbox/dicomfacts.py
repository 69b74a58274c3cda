"""What a DICOM header says and what XNAT makes of it: types, scan IDs, names, routing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xnatuploader.dicom import xnattypes

Facts = Mapping[str, str]
"""DICOM keyword -> text, for the tags below; absent elements are missing or empty."""

_TAGS = {
    0x00080005: "SpecificCharacterSet",
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080020: "StudyDate",
    0x00080030: "StudyTime",
    0x00080050: "AccessionNumber",
    0x00080060: "Modality",
    0x00080070: "Manufacturer",
    0x00081030: "StudyDescription",
    0x0008103E: "SeriesDescription",
    0x00081090: "ManufacturerModelName",
    0x00100010: "PatientName",
    0x00100020: "PatientID",
    0x00100030: "PatientBirthDate",
    0x001021B0: "AdditionalPatientHistory",
    0x00104000: "PatientComments",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200011: "SeriesNumber",
    0x00200013: "InstanceNumber",
    0x00324000: "StudyComments",
}
_LAST = max(_TAGS)
_FRONT = 1 << 16
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_NOT_EXPLICIT = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


# -- reading -------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, str]:
    """Return what a file's header says; a file that is not DICOM is a ValueError."""
    with path.open("rb") as source:
        front = source.read(_FRONT)
    facts = _walk(front)
    return facts if facts is not None else _ask_pydicom(path)


def _walk(front: bytes) -> dict[str, str] | None:
    """Read an explicit little-endian header without undefined lengths; None for any other."""
    if front[128:132] != b"DICM" or front[132:136] != b"\x02\x00\x00\x00":
        return None
    begin = 144 + int.from_bytes(front[140:144], "little")
    syntax = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", front[:begin], re.DOTALL)
    if syntax is None or syntax.group(1).decode() in _NOT_EXPLICIT:
        return None
    found: dict[str, str] = {}
    at, end = begin, len(front)
    while at + 12 <= end:
        tag = (front[at] | front[at + 1] << 8) << 16 | front[at + 2] | front[at + 3] << 8
        if tag > _LAST:
            return _decoded(found)
        kind = front[at + 4 : at + 6]
        if kind in _LONG:
            length, start = int.from_bytes(front[at + 8 : at + 12], "little"), at + 12
        else:
            length, start = int.from_bytes(front[at + 6 : at + 8], "little"), at + 8
        at = start + length
        if length == 0xFFFFFFFF or at > end:
            return None
        if tag in _TAGS:
            found[_TAGS[tag]] = front[start:at].decode("latin-1")
    return None


def _decoded(found: dict[str, str]) -> dict[str, str]:
    code = "utf-8" if "192" in found.pop("SpecificCharacterSet", "") else "latin-1"
    return {name: text.encode("latin-1").decode(code, "replace").strip(" \0") for name, text in found.items()}


def _ask_pydicom(path: Path) -> dict[str, str]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    names = [name for name in _TAGS.values() if name != "SpecificCharacterSet"]
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=[*names])
        found = {name: _text(header.get(name)) for name in names}
    except (
        InvalidDicomError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        NotImplementedError,
    ) as error:
        raise ValueError(f"unable to read DICOM object {path.name}") from error
    if not any(found.values()):
        raise ValueError(f"unable to read DICOM object {path.name}")
    return {name: value for name, value in found.items() if value}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip(" \0")


# -- types ---------------------------------------------------------------------------------------------------


def session_type(files: Iterable[Facts]) -> str:
    """Return the xsiType of a session, as `xnat:ctSessionData`."""
    return xnattypes.session_type((one.get("SOPClassUID", ""), one.get("Modality", "")) for one in files)


def scan_type(files: Iterable[Facts]) -> str:
    """Return the xsiType of a scan, as `xnat:ctScanData`."""
    return xnattypes.scan_type((one["SOPClassUID"] for one in files if one.get("SOPClassUID")), "")


def resource_label(facts: Facts) -> str:
    """Return `DICOM` for primary objects, else `secondary`."""
    return xnattypes.resource(facts.get("SOPClassUID", ""))


def leading_modality(files: Iterable[Facts]) -> str:
    """Return the modality that takes precedence among these files, `OT` if none is known."""
    return xnattypes.series_modality(one.get("Modality", "") for one in files)


# -- scans ---------------------------------------------------------------------------------------------------


def by_series(files: Mapping[str, Facts]) -> dict[str, dict[str, Facts]]:
    """Group files (path -> facts) by SeriesInstanceUID."""
    series: dict[str, dict[str, Facts]] = {}
    for path, facts in files.items():
        series.setdefault(facts.get("SeriesInstanceUID", ""), {})[path] = facts
    return series


def scan_ids(series: Mapping[str, Mapping[str, Facts]]) -> dict[str, str]:
    """Return series UID -> scan ID: the number, or `5-CT1`, `5-CT2` where shared."""
    numbers = {uid: _scan_number(uid, next(iter(files.values()))) for uid, files in series.items()}
    shared = [one for one in set(numbers.values()) if list(numbers.values()).count(one) > 1]
    counted: dict[str, int] = {}
    ids = {}
    for uid, number in numbers.items():
        if number in shared:
            stem = f"{number}-{leading_modality(list(series[uid].values()))}"
            counted[stem] = counted.get(stem, 0) + 1
            ids[uid] = f"{stem}{counted[stem]}"
        else:
            ids[uid] = number
    return ids


def _scan_number(uid: str, facts: Facts) -> str:
    number = facts.get("SeriesNumber", "").strip()
    if not number:
        return re.sub(r"\W", "_", uid) or "NA"
    return re.sub(r"^\+", "_", number)


def scan_folder(facts: Facts) -> str:
    """Return the folder of a scan in the prearchive, before it is built."""
    number = facts.get("SeriesNumber", "").strip()
    if re.fullmatch(r"[\w-]+", number):
        return number
    return re.sub(r"\W", "_", facts.get("SeriesInstanceUID", "")) or "NA"


def template_name(facts: Facts) -> str:
    """Return the file name of XNAT's template."""
    parts = [
        facts.get(tag) or f"no-value-for-{tag}"
        for tag in ("StudyInstanceUID", "SeriesNumber", "InstanceNumber")
    ]
    code = 1
    for text in (facts.get("SOPClassUID", ""), facts.get("SOPInstanceUID", "")):
        code = (31 * code + _java_hash(text)) & 0xFFFFFFFF
    return "-".join([*parts, _base36(code)]) + ".dcm"


def _java_hash(text: str) -> int:
    value = 0
    for letter in text:
        value = (31 * value + ord(letter)) & 0xFFFFFFFF
    return value


def _base36(value: int) -> str:
    digits = ""
    while value:
        value, rest = divmod(value, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits or "0"


def session_fields(files: Sequence[Facts]) -> dict[str, str]:
    """Return the fields of a session that headers give."""
    first = files[0]
    date, time = first.get("StudyDate", ""), first.get("StudyTime", "")
    fields = {
        "UID": first.get("StudyInstanceUID", ""),
        "date": f"{date[:4]}-{date[4:6]}-{date[6:8]}" if re.fullmatch(r"\d{8}", date) else "",
        "time": f"{time[:2]}:{time[2:4]}:{time[4:6]}" if re.match(r"\d{6}", time) else "",
        "modality": leading_modality(files),
        "dcmPatientId": first.get("PatientID", ""),
        "dcmPatientName": first.get("PatientName", ""),
        "dcmAccessionNumber": first.get("AccessionNumber", ""),
        "session_type": first.get("StudyDescription", ""),
        "scanner/manufacturer": first.get("Manufacturer", ""),
        "scanner/model": first.get("ManufacturerModelName", ""),
    }
    return {name: value[:255] for name, value in fields.items() if value}


def scan_fields(files: Sequence[Facts]) -> dict[str, str]:
    """Return the fields of a scan that headers give; its type is the series description."""
    first = files[0]
    fields = {
        "UID": first.get("SeriesInstanceUID", ""),
        "series_description": first.get("SeriesDescription", ""),
        "type": first.get("SeriesDescription", ""),
        "modality": first.get("Modality", ""),
        "frames": str(len(files)),
        "scanner/manufacturer": first.get("Manufacturer", ""),
        "scanner/model": first.get("ManufacturerModelName", ""),
    }
    return {name: value[:255] for name, value in fields.items() if value}


# -- routing -------------------------------------------------------------------------------------------------

_COMMENTS = ("PatientComments", "StudyComments", "AdditionalPatientHistory")


def assigned(facts: Facts, key: str) -> str:
    """Return what `Key:value` in one of the three comment fields assigns."""
    pattern = re.compile(rf"(?:^|[\s,;]){key}\s*:\s*([\w-]*)(?=$|[\s,;])", re.IGNORECASE)
    for name in _COMMENTS:
        match = pattern.search(facts.get(name, ""))
        if match is not None and match.group(1):
            return match.group(1)
    return ""


def projects_named(facts: Facts) -> list[str]:
    """Return the project IDs that a header may name, the most explicit first."""
    named = (assigned(facts, "Project"), facts.get("StudyDescription", ""), facts.get("AccessionNumber", ""))
    return [one for one in named if one]


def clean(label: str) -> str:
    """Return a label as an import writes it: characters that XNAT does not allow become `_`."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", label.strip())
