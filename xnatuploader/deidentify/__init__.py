"""Copies of DICOM files by the PS3.15 Basic Profile: cleaned wholly, or refused.

`Cleaner(policy, key).clean(path, subject)` is the way in; docs/deidentification.md says what is done and why.
"""

from xnatuploader.deidentify.cleaner import Cleaned, Cleaner, Refused
from xnatuploader.deidentify.inspection import (
    ElementChange,
    Residue,
    inspect,
    inspect_copy,
    patient_tokens,
    residues,
    strings_of,
)
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy, cleaned_mapping_fields, removed_mapping_fields
from xnatuploader.deidentify.source import Changed

__all__ = [
    "Changed",
    "Cleaned",
    "Cleaner",
    "ElementChange",
    "Key",
    "Policy",
    "Refused",
    "Residue",
    "cleaned_mapping_fields",
    "inspect",
    "inspect_copy",
    "patient_tokens",
    "removed_mapping_fields",
    "residues",
    "strings_of",
]
