"""What a DICOM object is to XNAT: the types of its scan and session, its resource, its leading modality.

Pure. XNAT decides by SOP Class UID (0008,0016) first, by Modality (0008,0060) second, and calls all others
"other DICOM" (its session builder's SOP, modality and default factories; UIDs: DICOM PS3.6 annex A). Types
that only the newest XNATs have (dermoscopy, respiration, ...) are left as "other DICOM" here, because older
servers answer an unknown type with 400.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from xnatuploader.dicom.elements import STORAGE


def _classes(ends: str) -> frozenset[str]:
    """Return the SOP Class UIDs of stored objects that end so."""
    return frozenset(STORAGE + end for end in ends.split())


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _lower(words: str) -> dict[str, str]:
    return {word: word.lower() for word in words.split()}


_SOP_CLASSES: Mapping[str, str] = {
    "mr": "4 4.1 4.3",
    "ct": "2 2.1",
    "pet": "128 130",
    "xa": "12.1 13.1.1",
    "us": "6.1 3.1",
    "rtImage": "481.1 481.2 481.3 481.4 481.5 481.6 481.7 481.8 481.9",
    "cr": "1",
    "opt": "77.1.5.4",
    "mg": "1.2 1.2.1",
    "dx": "1.1 1.1.1",
    "nm": "20",
    "rf": "12.2",
    "sr": "88.11 88.22 88.33 88.50 88.65 88.67 88.69 88.70",
    "seg": "66.4",
    "sc": "7",
    "sm": "77.1.6",
    "gm": "77.1.2",
    "ecg": "9.1.1 9.1.3",
    "eeg": "9.7.1",
    # "Other DICOM" even where Modality names the machine: first what is no image (registrations, presentation
    # states, key objects), then what XNAT knows but gives no rank.
    "other": "66 66.1 66.2 66.3 67 88.59 11.1 11.2 11.3 11.4 11.5 11.6 11.7 11.8 11.9 11.10 11.11 11.12 "
    "1.3 1.3.1 9.2.1 9.3.1 77.1.1.1 77.1.2.1 77.1.4.1 77.1.5.1 77.1.5.2 13.1.2",
}
"""XNAT's prefix for the scan type -> the ends of its SOP Class UIDs."""

_KIND_OF_SOP: Mapping[str, str] = {
    **{uid: kind for kind, ends in _SOP_CLASSES.items() for uid in _classes(ends)},
    "1.3.12.2.1107.5.9.1": "other",  # Siemens CSA, no image
}

_SCAN_ORDER = _list("pet mr ct xa us rtImage cr opt mg dx nm sr seg sc sm gm rf es xc rg ecg eeg")
"""The order in which XNAT takes the type of a scan that has files of several kinds."""

_KIND_OF_MODALITY: Mapping[str, str] = {
    **_lower("MR CT XA US CR OPT MG DX NM RF SR SEG SC SM GM ES XC RG ECG EEG"),
    **dict.fromkeys(("RT", "RTIMAGE", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD"), "rtImage"),
    **{"PT": "pet", "IVUS": "us", "OT": "sc"},
}
"""Modality -> XNAT's prefix for the scan type, where the SOP class has none."""

_SESSION_ORDER = _list("pet mr ct xa us cr opt mg dx nm sr sm gm ecg eeg")
"""The order in which XNAT takes the type of a session. RT, segmentations, captures and fluoroscopy have none."""

_SESSION_SR = _classes("88.11 88.22")
"""The only structured reports whose SOP class gives the session its type."""

_MODALITY_ORDER = _list(
    "PT MR CT XA US RT CR OPT MG DX NM EEG ECG EMG EOG IVUS SM GM RF ES XC RG DMS CFM PA RESP POS OBJ OT SR SC ANN"
)
"""The order in which a Modality gives the type to a session whose SOP classes give none."""

_SESSION_OF_MODALITY: Mapping[str, str] = {
    **_lower("MR CT XA US RT CR OPT MG DX NM SR SM GM RF ES XC RG ECG EEG"),
    **{"PT": "pet", "IVUS": "us"},
}

_UNSPECIFIC = ("OT", "SR", "SC", "ANN")
_SECOND_CHOICE = ("RTIMAGE", "RTDOSE", "RTPLAN", "RTSTRUCT", "RTRECORD", "SEG")

_PRIMARY = _classes(
    "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 3.1 4 4.1 6.1 6.3 20 9.1.1 9.1.3 9.2.1 9.3.1 9.6.1 9.6.2 9.7.1 9.7.2 "
    "9.7.3 9.8.1 12.1 12.1.1 12.2 12.2.1 13.1.1 13.1.2 13.1.3 128 130 77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.4 "
    "77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.4 77.1.6 77.1.7 77.1.8 88.11 88.22 481.1 481.2"
)
"""SOP classes that XNAT's catalog builder counts as the images of a scan."""

_DATE = re.compile(r"([0-9]{4})([.\-/]?)(0[1-9]|1[0-2])\2(0[1-9]|[12][0-9]|3[01])")

Pair = tuple[str, str]
"""(SOP Class UID, Modality) of a file; either may be empty."""


def scan_type(sop_classes: Iterable[str], modality: str) -> str:
    """Return the xsiType of a scan, as `xnat:ctScanData`, from its files' SOP Class UIDs and its Modality."""
    kinds = {_KIND_OF_SOP.get(sop, "") for sop in sop_classes}
    for kind in _SCAN_ORDER:
        if kind in kinds:
            return f"xnat:{kind}ScanData"
    if "other" in kinds:
        return "xnat:otherDicomScanData"
    return f"xnat:{_KIND_OF_MODALITY.get(_word(modality), 'otherDicom')}ScanData"


def session_type(pairs: Iterable[Pair]) -> str:
    """Return a session's xsiType, as `xnat:petmrSessionData`, from the (SOP class, Modality) of its files."""
    known = set(pairs)
    kinds = _session_kinds(known)
    if {"pet", "mr"} <= kinds.keys():
        return "xnat:petmrSessionData"
    for kind in _SESSION_ORDER:
        if kind in kinds:
            return f"xnat:{kind}SessionData"
    words = {_word(modality) for _, modality in known}
    lead = next((word for word in _MODALITY_ORDER if word in words), "")
    return f"xnat:{_SESSION_OF_MODALITY.get(lead, 'otherDicom')}SessionData"


def leading_modality(pairs: Iterable[Pair]) -> str:
    """Return the Modality that stands for a study: CT for CT with SEG, PT for PET/CT, PETMR for PET with MR.

    `pairs` are the (SOP class, Modality) of its files. Where XNAT knows only "other DICOM", the most specific
    Modality of the study is returned, and `OT` where it has none; never an empty text.
    """
    known = set(pairs)
    kinds = _session_kinds(known)
    if {"pet", "mr"} <= kinds.keys():
        return "PETMR"
    for kind in _SESSION_ORDER:
        if kind in kinds:
            return _name_of(kind, kinds[kind])
    words = {_word(modality) for _, modality in known} - {""}
    for word in (*(w for w in _MODALITY_ORDER if w not in _UNSPECIFIC), *_SECOND_CHOICE):
        if word in words:
            return word
    others = sorted(words - set(_UNSPECIFIC))
    return next(iter((*others, *(word for word in _UNSPECIFIC if word in words))), "OT")


def series_modality(modalities: Iterable[str]) -> str:
    """Return the Modality that XNAT puts into a scan ID when series share a number (`5-MR1`); `OT` if none."""
    words = {_word(modality) for modality in modalities}
    return next((word for word in _MODALITY_ORDER if word in words), "OT")


def scan_word(xsi_type: str) -> str:
    """Return the same where only the xsiType is known: `PT` for `xnat:petScanData`; `OT` if none."""
    kind = xsi_type.removeprefix("xnat:").removesuffix("ScanData")
    return series_modality([{"pet": "PT"}.get(kind, kind)])


def resource(sop_class: str) -> str:
    """Return the label of the resource that XNAT would put this object into: `DICOM` or `secondary`.

    An unknown SOP class (empty, as in rows of an old workbook) counts as an image.
    """
    return "DICOM" if not sop_class or sop_class in _PRIMARY else "secondary"


def resource_content(label: str) -> str:
    """Return what XNAT writes as the content of a resource with this label."""
    return "RAW" if label == "DICOM" else label


def iso_date(study_date: str) -> str:
    """Write a DICOM date (`20200312`, of old `2020.03.12`; PS3.5 table 6.2-1) as XNAT takes it, `2020-03-12`.

    Returns '' for what is not a date (empty, `***`).
    """
    match = _DATE.fullmatch(study_date.strip())
    return f"{match[1]}-{match[3]}-{match[4]}" if match else ""


def _session_kinds(pairs: Iterable[Pair]) -> dict[str, set[str]]:
    """Return the kinds that may give the session its type, each with the Modalities of its files.

    Where the SOP class is not known (a row read back from the sheet), Modality is used instead.
    """
    kinds: dict[str, set[str]] = {}
    for sop, modality in pairs:
        word = _word(modality)
        kind = _KIND_OF_SOP.get(sop, "") if sop else _KIND_OF_MODALITY.get(word, "")
        if kind == "sr" and sop not in _SESSION_SR:
            continue
        if kind in _SESSION_ORDER:
            kinds.setdefault(kind, set()).add(word)
    return kinds


def _name_of(kind: str, found: set[str]) -> str:
    """Return the Modality that the files have for `kind` (IVUS), or DICOM's usual one (US)."""
    fitting = [word for word in found if _KIND_OF_MODALITY.get(word) == kind]
    return fitting[0] if len(fitting) == 1 else {"pet": "PT"}.get(kind, kind.upper())


def _word(modality: str) -> str:
    return modality.split("\\")[0].strip().upper()
