"""The elements in which a copy says how it was de-identified (PS3.15 E.1.1 items 6 and 7), and its file meta.

The codes are those of PS3.16 CID 7050.
"""

from __future__ import annotations

from xnatuploader.deidentify import profile, values
from xnatuploader.deidentify.profile import Policy
from xnatuploader.dicom import elements
from xnatuploader.dicom.elements import Encoding

IMPLEMENTATION_UID = "2.25.106050597899362340592181698927851938368"
"""Implementation Class UID of what this program writes (PS3.7 D.3.3.2): the UUID of its name, a constant."""
IMPLEMENTATION_NAME = "XNATUPLOADER_2"

_MEANINGS = {
    "113100": "Basic Application Confidentiality Profile",
    "113105": "Clean Descriptors Option",
    "113106": "Retain Longitudinal Temporal Information Full Dates Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113109": "Retain Device Identity Option",
}
_TEMPORAL = {"none": "REMOVED", "shifted": "MODIFIED", "full": "UNMODIFIED"}


def codes(policy: Policy) -> tuple[str, ...]:
    """Return the codes (coding scheme DCM) of the profile and the options that `policy` applies."""
    options = {
        "113105": policy.clean_descriptors,
        "113106": policy.retain_dates == "full",
        "113107": policy.retain_dates == "shifted",
        "113108": policy.retain_patient_characteristics,
        "113109": policy.retain_device_identity,
    }
    return ("113100", *(code for code, applies in options.items() if applies))


def method(policy: Policy) -> str:
    """Return the text of DeidentificationMethod: values of at most 64 characters each."""
    texts = [f"xnatuploader: DICOM PS3.15 {profile.EDITION} Basic Profile"]
    texts += [f"Option {code}" for code in codes(policy)[1:]]
    texts += [f"Kept by choice of the site: {field}"[:64] for field in policy.allow_fields]
    return "\\".join(texts)


def code_items(policy: Policy, encoding: Encoding) -> tuple[bytes, ...]:
    """Return one encoded item of DeidentificationMethodCodeSequence for each code."""
    items = []
    for code in codes(policy):
        content = (
            text_element(0x00080100, b"SH", code, encoding)
            + text_element(0x00080102, b"SH", "DCM", encoding)
            + text_element(0x00080104, b"LO", _MEANINGS[code], encoding)
        )
        items.append(elements.write_header(elements.ITEM, b"", len(content), encoding) + content)
    return tuple(items)


def text_elements(policy: Policy, subject: str) -> dict[int, tuple[bytes, str]]:
    """Return VR and text of every other element that each cleaned file has, by tag."""
    return {
        profile.PATIENT_NAME: (b"PN", subject),
        profile.PATIENT_ID: (b"LO", subject),
        profile.IDENTITY_REMOVED: (b"CS", "YES"),
        profile.METHOD: (b"LO", method(policy)),
        profile.TEMPORAL_MODIFIED: (b"CS", _TEMPORAL[policy.retain_dates]),
    }


def text_element(tag: int, vr: bytes, text: str, encoding: Encoding) -> bytes:
    """Return an element whose value is the ASCII text `text`, padded to even length."""
    value = values.padded(text.encode("ascii"), vr.decode())
    return elements.write_header(tag, vr, len(value), encoding) + value


def file_meta(class_uid: str, instance_uid: str, syntax_uid: str) -> bytes:
    """Return an empty preamble and the file meta information (PS3.10 7.1), with nothing of the old one."""
    plain = elements.EXPLICIT
    content = (
        elements.write_header(0x00020001, b"OB", 2, plain)
        + b"\0\1"
        + text_element(0x00020002, b"UI", class_uid, plain)
        + text_element(0x00020003, b"UI", instance_uid, plain)
        + text_element(0x00020010, b"UI", syntax_uid, plain)
        + text_element(0x00020012, b"UI", IMPLEMENTATION_UID, plain)
        + text_element(0x00020013, b"SH", IMPLEMENTATION_NAME, plain)
    )
    length = elements.write_header(0x00020000, b"UL", 4, plain) + len(content).to_bytes(4, "little")
    return bytes(128) + b"DICM" + length + content
