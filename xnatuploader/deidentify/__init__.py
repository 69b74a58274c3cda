"""Copies of DICOM files without what identifies the patient, by the Basic Profile of PS3.15: complete, or none.

`Cleaner(policy, key).clean(path, subject)` makes one; docs/deidentification.md says what is done and why.
"""

from xnatuploader.deidentify.cleaner import Cleaner, NoCopy
from xnatuploader.deidentify.inspection import (
    ElementChange,
    inspect,
    inspect_copy,
    patient_tokens,
    residues,
)
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy, removed_mapping_fields
from xnatuploader.deidentify.source import CleanCopy, OriginalChanged

__all__ = [
    "CleanCopy",
    "Cleaner",
    "ElementChange",
    "Key",
    "NoCopy",
    "OriginalChanged",
    "Policy",
    "inspect",
    "inspect_copy",
    "patient_tokens",
    "removed_mapping_fields",
    "residues",
]
