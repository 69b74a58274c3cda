"""What a DICOM object is to XNAT: the types of its scan and session, its resource, its leading modality.

Pure, and the one table of SOP classes for the tool and its sandbox. XNAT types a scan by SOP Class UID (0008,0016)
alone (DefaultXnatImagescandataBeanFactory, SOPModel.getScanType), a session by SOP Class UID first and Modality
(0008,0060) second; all others are "other DICOM". Types that only the newest XNATs have (dermoscopy, respiration,
...) are left as "other DICOM" here, because older servers answer an unknown type with 400.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xnatuploader.dicom.elements import STORAGE


@dataclass(frozen=True, slots=True)
class SopClass:
    """One row of the table."""

    uid: str
    """SOP Class UID (DICOM PS3.6 annex A)."""
    name: str
    """Its DICOM keyword there."""
    scan: str
    """XNAT's prefix for the type of a scan, as `ct` of `xnat:ctScanData`."""
    session: str
    """The same for a session; empty where this class gives a session no type."""
    resource: str
    """`DICOM` or `secondary`."""


_ROWS = """
128      PositronEmissionTomographyImageStorage            pet         pet   DICOM      scans sessions primary
130      EnhancedPETImageStorage                           pet         pet   DICOM      scans sessions primary
4        MRImageStorage                                    mr          mr    DICOM      scans sessions primary
4.1      EnhancedMRImageStorage                            mr          mr    DICOM      scans sessions primary
4.3      EnhancedMRColorImageStorage                       mr          mr    secondary  scans sessions
2        CTImageStorage                                    ct          ct    DICOM      scans sessions primary
2.1      EnhancedCTImageStorage                            ct          ct    DICOM      scans sessions primary
12.1     XRayAngiographicImageStorage                      xa          xa    DICOM      scans sessions primary
13.1.1   XRay3DAngiographicImageStorage                    xa          xa    DICOM      scans sessions primary
6.1      UltrasoundImageStorage                            us          us    DICOM      scans sessions primary
3.1      UltrasoundMultiFrameImageStorage                  us          us    DICOM      scans sessions primary
481.1    RTImageStorage                                    rtImage     -     DICOM      scans no-rank primary
481.2    RTDoseStorage                                     rtImage     -     DICOM      scans no-rank primary
481.3    RTStructureSetStorage                             rtImage     -     secondary  scans
481.4    RTBeamsTreatmentRecordStorage                     rtImage     -     secondary  scans
481.5    RTPlanStorage                                     rtImage     -     secondary  scans
481.6    RTBrachyTreatmentRecordStorage                    rtImage     -     secondary  scans
481.7    RTTreatmentSummaryRecordStorage                   rtImage     -     secondary  scans
481.8    RTIonPlanStorage                                  rtImage     -     secondary  scans
481.9    RTIonBeamsTreatmentRecordStorage                  rtImage     -     secondary  scans
1        ComputedRadiographyImageStorage                   cr          cr    DICOM      scans sessions primary
77.1.5.4 OphthalmicTomographyImageStorage                  opt         opt   DICOM      scans sessions primary
1.2      DigitalMammographyXRayImageStorageForPresentation mg          mg    DICOM      scans sessions primary
1.2.1    DigitalMammographyXRayImageStorageForProcessing   mg          mg    DICOM      scans sessions primary
13.1.3   BreastTomosynthesisImageStorage                   mg          mg    DICOM      newest newest newest
1.1      DigitalXRayImageStorageForPresentation            dx          dx    DICOM      scans sessions primary
1.1.1    DigitalXRayImageStorageForProcessing              dx          dx    DICOM      scans sessions primary
20       NuclearMedicineImageStorage                       nm          nm    DICOM      scans sessions primary
88.11    BasicTextSRStorage                                sr          sr    DICOM      scans sessions primary
88.22    EnhancedSRStorage                                 sr          sr    DICOM      scans sessions primary
88.33    ComprehensiveSRStorage                            sr          -     secondary  scans
88.50    MammographyCADSRStorage                           sr          -     secondary  scans
88.65    ChestCADSRStorage                                 sr          -     secondary  scans
88.67    XRayRadiationDoseSRStorage                        sr          -     secondary  scans
88.69    ColonCADSRStorage                                 sr          -     secondary  scans
88.70    ImplantationPlanSRStorage                         sr          -     secondary  scans
66.4     SegmentationStorage                               seg         -     secondary  scans
7        SecondaryCaptureImageStorage                      sc          -     secondary  scans
77.1.6   VLWholeSlideMicroscopyImageStorage                sm          sm    DICOM      scans sessions primary
77.1.2   VLMicroscopicImageStorage                         gm          gm    DICOM      scans sessions primary
12.2     XRayRadiofluoroscopicImageStorage                 rf          -     DICOM      scans primary
9.1.1    TwelveLeadECGWaveformStorage                      ecg         ecg   DICOM      scans sessions primary
9.1.3    AmbulatoryECGWaveformStorage                      ecg         ecg   DICOM      scans sessions primary
9.7.1    RoutineScalpElectroencephalogramWaveformStorage   eeg         eeg   secondary  scans sessions
1.3      DigitalIntraOralXRayImageStorageForPresentation   otherDicom  -     DICOM      no-rank primary
1.3.1    DigitalIntraOralXRayImageStorageForProcessing     otherDicom  -     DICOM      no-rank primary
9.2.1    HemodynamicWaveformStorage                        otherDicom  -     DICOM      no-rank primary
9.3.1    CardiacElectrophysiologyWaveformStorage           otherDicom  -     DICOM      no-rank primary
13.1.2   XRay3DCraniofacialImageStorage                    otherDicom  -     DICOM      no-rank primary
77.1.1.1 VideoEndoscopicImageStorage                       otherDicom  -     DICOM      no-rank primary
77.1.2.1 VideoMicroscopicImageStorage                      otherDicom  -     DICOM      no-rank primary
77.1.4.1 VideoPhotographicImageStorage                     otherDicom  -     DICOM      no-rank primary
77.1.5.1 OphthalmicPhotography8BitImageStorage             otherDicom  -     DICOM      no-rank primary
77.1.5.2 OphthalmicPhotography16BitImageStorage            otherDicom  -     DICOM      no-rank primary
6.3      PhotoacousticImageStorage                         otherDicom  -     DICOM      new-type primary
9.6.1    RespiratoryWaveformStorage                        otherDicom  -     DICOM      new-type primary
9.7.2    ElectromyogramWaveformStorage                     otherDicom  -     DICOM      new-type primary
9.7.3    ElectrooculogramWaveformStorage                   otherDicom  -     DICOM      new-type primary
9.8.1    BodyPositionWaveformStorage                       otherDicom  -     DICOM      new-type primary
77.1.7   DermoscopicPhotographyImageStorage                otherDicom  -     DICOM      new-type primary
77.1.8   ConfocalMicroscopyImageStorage                    otherDicom  -     DICOM      new-type primary
91.1     MicroscopyBulkSimpleAnnotationsStorage            otherDicom  -     DICOM      new-type primary
104.4    EncapsulatedOBJStorage                            otherDicom  -     DICOM      new-type primary
104.5    EncapsulatedMTLStorage                            otherDicom  -     DICOM      new-type primary
"""
"""End of the SOP Class UID, DICOM keyword, scan, session, resource, and where the row is from.

The sources are files of XNAT's library dicom-xnat-sop, read by SOPModel: `scans` is series-scans.properties,
`sessions` study-sessions.properties, `primary` primary-sops.txt; without `primary` an object is secondary.
`no-rank`: the map has a type that stands in no lead-scan-types.txt (for RT: in no list of session types), so
XNAT comes to "other DICOM" all the same. `new-type`: the type came after 1.9. `newest`: from 1.10; older ones
take tomosyntheses for "other DICOM". What has no row is "other DICOM" and secondary.
"""


def _table() -> Mapping[str, SopClass]:
    found = {}
    for line in _ROWS.strip().splitlines():
        end, name, scan, session, resource_label, *_ = line.split()
        found[STORAGE + end] = SopClass(STORAGE + end, name, scan, session.strip("-"), resource_label)
    return found


SOP_CLASSES: Mapping[str, SopClass] = _table()
"""SOP Class UID -> what XNAT makes of it."""


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _lower(words: str) -> dict[str, str]:
    return {word: word.lower() for word in words.split()}


_SCAN_ORDER = _list("pet mr ct xa us rtImage cr opt mg dx nm sr seg sc sm gm rf es rg ecg eeg")
"""The order in which XNAT takes the type of a scan that has files of several kinds (lead-scan-types.txt)."""

_KIND_OF_MODALITY: Mapping[str, str] = {
    **_lower("MR CT XA US CR OPT MG DX NM RF SR SEG SC SM GM ES XC RG ECG EEG"),
    **dict.fromkeys(("RT", "RTIMAGE", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD"), "rtImage"),
    **{"PT": "pet", "IVUS": "us", "OT": "sc"},
}
"""Modality -> XNAT's prefix for the scan type, where the SOP class has none."""

_SESSION_ORDER = _list("pet mr ct xa us cr opt mg dx nm sr sm gm ecg eeg")
"""The order in which XNAT takes the type of a session. RT, segmentations, captures and fluoroscopy have none."""

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

_DATE = re.compile(r"([0-9]{4})([.\-/]?)(0[1-9]|1[0-2])\2(0[1-9]|[12][0-9]|3[01])")

Pair = tuple[str, str]
"""(SOP Class UID, Modality) of a file; either may be empty."""


def scan_type(sop_classes: Iterable[str], modality: str) -> str:
    """Return the xsiType of a scan, as `xnat:ctScanData`, from the SOP Class UIDs of its files.

    Its Modality counts only where they are not known (rows of an old workbook).
    """
    known = {sop for sop in sop_classes if sop}
    kinds = {SOP_CLASSES[sop].scan for sop in known & SOP_CLASSES.keys()}
    if not known:
        kinds = {_KIND_OF_MODALITY.get(_word(modality), "")}
    lead = next((kind for kind in _SCAN_ORDER if kind in kinds), "otherDicom")
    return f"xnat:{lead}ScanData"


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
    found = SOP_CLASSES.get(sop_class)
    return found.resource if found else "secondary" if sop_class else "DICOM"


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
        found = SOP_CLASSES.get(sop)
        kind = found.session if found else "" if sop else _KIND_OF_MODALITY.get(word, "")
        if kind == "sr" and not sop:
            continue  # a report of an unknown class comes last, by its Modality
        if kind in _SESSION_ORDER:
            kinds.setdefault(kind, set()).add(word)
    return kinds


def _name_of(kind: str, found: set[str]) -> str:
    """Return the Modality that the files have for `kind` (IVUS), or DICOM's usual one (US)."""
    fitting = [word for word in found if _KIND_OF_MODALITY.get(word) == kind]
    return fitting[0] if len(fitting) == 1 else {"pet": "PT"}.get(kind, kind.upper())


def _word(modality: str) -> str:
    return modality.split("\\")[0].strip().upper()
