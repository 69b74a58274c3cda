"""What a DICOM object is to XNAT: the types of its scan and session, its resource, its leading modality.

Pure. XNAT decides by SOP Class UID (0008,0016) first, by Modality (0008,0060) second, and calls the rest
"other DICOM" (its session builder's SOP, modality and default factories; UIDs: DICOM PS3.6 annex A). Types
that only the newest XNATs have (dermoscopy, respiration, ...) are left as "other DICOM" here, because older
servers answer an unknown type with 400.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from xnatuploader.dicom.elements import STORAGE as _ROOT

_KIND_OF_SOP: Mapping[str, str] = {
    **dict.fromkeys((f"{_ROOT}4", f"{_ROOT}4.1", f"{_ROOT}4.3"), "mr"),
    **dict.fromkeys((f"{_ROOT}2", f"{_ROOT}2.1"), "ct"),
    **dict.fromkeys((f"{_ROOT}128", f"{_ROOT}130"), "pet"),
    **dict.fromkeys((f"{_ROOT}12.1", f"{_ROOT}13.1.1"), "xa"),
    **dict.fromkeys((f"{_ROOT}6.1", f"{_ROOT}3.1"), "us"),
    **dict.fromkeys((f"{_ROOT}481.{n}" for n in range(1, 10)), "rtImage"),
    f"{_ROOT}1": "cr",
    f"{_ROOT}77.1.5.4": "opt",
    **dict.fromkeys((f"{_ROOT}1.2", f"{_ROOT}1.2.1"), "mg"),
    **dict.fromkeys((f"{_ROOT}1.1", f"{_ROOT}1.1.1"), "dx"),
    f"{_ROOT}20": "nm",
    f"{_ROOT}12.2": "rf",
    **dict.fromkeys((f"{_ROOT}88.{n}" for n in (11, 22, 33, 50, 65, 67, 69, 70)), "sr"),
    f"{_ROOT}66.4": "seg",
    f"{_ROOT}7": "sc",
    f"{_ROOT}77.1.6": "sm",
    f"{_ROOT}77.1.2": "gm",
    **dict.fromkeys((f"{_ROOT}9.1.1", f"{_ROOT}9.1.3"), "ecg"),
    f"{_ROOT}9.7.1": "eeg",
    # No images: "other DICOM" even where Modality names the machine they came from.
    **dict.fromkeys((f"{_ROOT}66", f"{_ROOT}66.1", f"{_ROOT}66.2", f"{_ROOT}66.3", f"{_ROOT}67"), "other"),
    **dict.fromkeys((f"{_ROOT}11.{n}" for n in range(1, 13)), "other"),
    f"{_ROOT}88.59": "other",
    "1.3.12.2.1107.5.9.1": "other",
    # XNAT has words for these but does not rank them, so that they end as "other DICOM" as well.
    **dict.fromkeys((f"{_ROOT}1.3", f"{_ROOT}1.3.1", f"{_ROOT}9.2.1", f"{_ROOT}9.3.1"), "other"),
    **dict.fromkeys((f"{_ROOT}77.1.1.1", f"{_ROOT}77.1.2.1", f"{_ROOT}77.1.4.1"), "other"),
    **dict.fromkeys((f"{_ROOT}77.1.5.1", f"{_ROOT}77.1.5.2", f"{_ROOT}13.1.2"), "other"),
}
"""SOP Class UID -> XNAT's prefix for the scan type."""

_SCAN_ORDER = (
    *("pet", "mr", "ct", "xa", "us", "rtImage", "cr", "opt", "mg", "dx", "nm", "sr", "seg", "sc"),
    *("sm", "gm", "rf", "es", "xc", "rg", "ecg", "eeg"),
)
"""Which kind names a scan that holds several, first one first."""

_KIND_OF_MODALITY: Mapping[str, str] = {
    **{
        word: word.lower()
        for word in ("MR", "CT", "XA", "US", "CR", "OPT", "MG", "DX", "NM", "RF", "SR", "SEG")
    },
    **{word: word.lower() for word in ("SC", "SM", "GM", "ES", "XC", "RG", "ECG", "EEG")},
    **dict.fromkeys(("RT", "RTIMAGE", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD"), "rtImage"),
    "PT": "pet",
    "IVUS": "us",
    "OT": "sc",
}
"""Modality -> XNAT's prefix for the scan type, where the SOP class does not tell."""

_SESSION_ORDER = (
    *("pet", "mr", "ct", "xa", "us", "cr", "opt", "mg", "dx", "nm", "sr", "sm", "gm", "ecg", "eeg"),
)
"""Which SOP classes name a session, first one first. RT, segmentations, captures and fluoroscopy do not."""

_SESSION_SR = frozenset({f"{_ROOT}88.11", f"{_ROOT}88.22"})
"""The only structured reports whose SOP class names a session."""

_MODALITY_ORDER = (
    *("PT", "MR", "CT", "XA", "US", "RT", "CR", "OPT", "MG", "DX", "NM", "EEG", "ECG", "EMG", "EOG", "IVUS"),
    *("SM", "GM", "RF", "ES", "XC", "RG", "DMS", "CFM", "PA", "RESP", "POS", "OBJ", "OT", "SR", "SC", "ANN"),
)
"""Which Modality names a session that no SOP class names, first one first."""

_SESSION_OF_MODALITY: Mapping[str, str] = {
    **{
        word: word.lower()
        for word in ("MR", "CT", "XA", "US", "RT", "CR", "OPT", "MG", "DX", "NM", "SR", "SM")
    },
    **{word: word.lower() for word in ("GM", "RF", "ES", "XC", "RG", "ECG", "EEG")},
    "PT": "pet",
    "IVUS": "us",
}

_SAYS_LITTLE = ("OT", "SR", "SC", "ANN")
_RATHER = ("RTIMAGE", "RTDOSE", "RTPLAN", "RTSTRUCT", "RTRECORD", "SEG")

_PRIMARY = frozenset(
    f"{_ROOT}{tail}"
    for tail in (
        *(
            "1",
            "1.1",
            "1.1.1",
            "1.2",
            "1.2.1",
            "1.3",
            "1.3.1",
            "2",
            "2.1",
            "3.1",
            "4",
            "4.1",
            "6.1",
            "6.3",
            "20",
        ),
        *("9.1.1", "9.1.3", "9.2.1", "9.3.1", "9.6.1", "9.6.2", "9.7.1", "9.7.2", "9.7.3", "9.8.1"),
        *("12.1", "12.1.1", "12.2", "12.2.1", "13.1.1", "13.1.2", "13.1.3", "128", "130"),
        *(
            "77.1.1",
            "77.1.1.1",
            "77.1.2",
            "77.1.2.1",
            "77.1.4",
            "77.1.4.1",
            "77.1.5.1",
            "77.1.5.2",
            "77.1.5.4",
        ),
        *("77.1.6", "77.1.7", "77.1.8", "88.11", "88.22", "481.1", "481.2"),
    )
)
"""SOP classes that XNAT's catalog builder takes for the images proper of a scan."""

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
    """Return the one word that names a study: CT for CT with SEG, PT for PET/CT, PETMR for PET with MR.

    `pairs` are the (SOP class, Modality) of its files. Where XNAT knows only "other DICOM", the most telling
    Modality that is there is returned, and `OT` where there is none at all; never an empty text.
    """
    known = set(pairs)
    kinds = _session_kinds(known)
    if {"pet", "mr"} <= kinds.keys():
        return "PETMR"
    for kind in _SESSION_ORDER:
        if kind in kinds:
            return _name_of(kind, kinds[kind])
    words = {_word(modality) for _, modality in known} - {""}
    for word in (*(w for w in _MODALITY_ORDER if w not in _SAYS_LITTLE), *_RATHER):
        if word in words:
            return word
    others = sorted(words - set(_SAYS_LITTLE))
    return next(iter((*others, *(word for word in _SAYS_LITTLE if word in words))), "OT")


def series_modality(modalities: Iterable[str]) -> str:
    """Return the word XNAT puts into a scan ID when series share a number (`5-MR1`), `OT` if it has none."""
    words = {_word(modality) for modality in modalities}
    return next((word for word in _MODALITY_ORDER if word in words), "OT")


def scan_word(xsi_type: str) -> str:
    """Return that word where only the xsiType is known: `xnat:petScanData` gives `PT`, others `OT`."""
    kind = xsi_type.removeprefix("xnat:").removesuffix("ScanData")
    return series_modality([{"pet": "PT"}.get(kind, kind)])


def resource(sop_class: str) -> str:
    """Return the label of the resource that XNAT would put this object into: `DICOM` or `secondary`.

    A SOP class that is not known (empty, as in rows of an old workbook) is taken for an image.
    """
    return "DICOM" if not sop_class or sop_class in _PRIMARY else "secondary"


def resource_content(label: str) -> str:
    """Return what XNAT writes as the content of a resource with this label."""
    return "RAW" if label == "DICOM" else label


def iso_date(study_date: str) -> str:
    """Write a DICOM date (`20200312`, of old `2020.03.12`; PS3.5 table 6.2-1) as XNAT takes it, `2020-03-12`.

    Returns '' for what is no date (empty, `***`), so that odd dates neither crash nor count.
    """
    match = _DATE.fullmatch(study_date.strip())
    return f"{match[1]}-{match[3]}-{match[4]}" if match else ""


def words(xsi_type: str) -> str:
    """Return a type in words for a message: `xnat:petSessionData` is `PET session`."""
    name = xsi_type.removeprefix("xnat:")
    for ending, noun in (("SessionData", "session"), ("ScanData", "scan")):
        if name.endswith(ending):
            kind = name.removesuffix(ending)
            special = {"otherDicom": "other DICOM", "petmr": "PET/MR", "rtImage": "radiotherapy"}
            return f"{special.get(kind, kind.upper())} {noun}"
    return xsi_type


def _session_kinds(pairs: Iterable[Pair]) -> dict[str, set[str]]:
    """Return the kinds that may name the session, each with the Modality words found beside it.

    Where the SOP class is not known (a row read back from the sheet), Modality stands in for it.
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
    """Return the Modality that was found for `kind` (IVUS), or DICOM's usual word for it (US)."""
    fitting = [word for word in found if _KIND_OF_MODALITY.get(word) == kind]
    return fitting[0] if len(fitting) == 1 else {"pet": "PT"}.get(kind, kind.upper())


def _word(modality: str) -> str:
    return modality.split("\\")[0].strip().upper()
