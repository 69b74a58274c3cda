"""Query parameters that set fields of a record: short names, full paths, and what XNAT refuses in them."""

from __future__ import annotations

import datetime
import html
from collections.abc import Mapping

from xnatuploader.sandbox import answers

PROJECT = ("name", "description", "secondary_ID", "keywords", "pi_firstname", "pi_lastname", "alias")
SUBJECT = (
    "gender",
    "group",
    "dob",
    "yob",
    "age",
    "handedness",
    "src",
    "race",
    "ethnicity",
    "education",
    "weight",
    "height",
    "pi_lastname",
    "pi_firstname",
)
EXPERIMENT = (
    "date",
    "time",
    "note",
    "scanner",
    "operator",
    "modality",
    "UID",
    "dcmPatientId",
    "dcmPatientName",
    "dcmPatientBirthDate",
    "dcmAccessionNumber",
    "visit",
    "visit_id",
    "protocol",
    "acquisition_site",
    "session_type",
    "investigator",
    "age",
    "scanner/manufacturer",
    "scanner/model",
)
SCAN = (
    "type",
    "UID",
    "note",
    "quality",
    "condition",
    "series_description",
    "documentation",
    "scanner",
    "modality",
    "frames",
    "operator",
    "startTime",
    "scanner/manufacturer",
    "scanner/model",
    "parameters/tr",
    "parameters/te",
    "parameters/flip",
    "coil",
    "fieldStrength",
)
_DATES = ("date", "dob", "dcmPatientBirthDate")
_NUMBERS = ("frames", "yob")
_ANCESTORS = {
    "subject": {"xnat:subjectdata"},
    "experiment": {"xnat:experimentdata", "xnat:subjectassessordata", "xnat:imagesessiondata"},
    "scan": {"xnat:imagescandata"},
    "project": {"xnat:projectdata"},
}
_NAMES = {"subject": SUBJECT, "experiment": EXPERIMENT, "scan": SCAN, "project": PROJECT}

# fmt: off
MODALITIES = (
    "mr", "ct", "pet", "petmr", "cr", "dx", "mg", "us", "xa", "rf", "nm", "sm", "rt", "rtImage",
    "otherDicom", "sr", "sc", "opt", "op", "gm", "es", "esv", "xc", "xcv", "rg", "io", "hd", "eps",
    "ecg", "eeg", "seg", "dx3DCraniofacial", "xa3D", "gmv", "emg", "eog", "resp", "pos", "obj",
    "dms", "cfm", "pa",
)
# fmt: on
KNOWN_SESSIONS = frozenset(f"xnat:{one}SessionData" for one in MODALITIES)
KNOWN_SCANS = frozenset(f"xnat:{one}ScanData" for one in MODALITIES)


def given(kind: str, xsi: str, query: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that a query sets on a record of this kind; what belongs to another type is ignored.

    Values are HTML-escaped as XNAT does. A bad date or number, or more than 255
    characters, is a Refusal 400.
    """
    known = {name.lower(): name for name in _NAMES[kind]}
    roots = _ANCESTORS[kind] | {xsi.lower()}
    found: dict[str, str] = {}
    for key, value in query.items():
        root, slash, rest = key.partition("/")
        if ":" in root:
            name = known.get(rest.lower()) if slash and root.lower() in roots else None
            name = name or (
                "ID" if kind == "scan" and rest.lower() == "id" and root.lower() in roots else None
            )
        else:
            name = known.get(key.lower())
        if name is not None:
            found[name] = _checked(name, value)
    return found


def _checked(name: str, value: str) -> str:
    if len(value) > 255:
        raise answers.Refusal(400, f"The value of {name} is longer than 255 characters")
    if name in _DATES and value:
        return _date(name, value)
    if name in _NUMBERS and value and not value.isdigit():
        raise answers.Refusal(400, f"The value of {name} is not a number: {value}")
    return html.escape(value)


def _date(name: str, value: str) -> str:
    for shape in ("%Y-%m-%d", "%m/%d/%Y", "%Y%m%d"):
        try:
            return datetime.datetime.strptime(value, shape).strftime("%Y-%m-%d")
        except ValueError:
            continue
    raise answers.Refusal(400, f"The value of {name} is not a date: {value}")
