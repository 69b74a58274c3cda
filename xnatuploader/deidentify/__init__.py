"""Copies of DICOM files by the PS3.15 Basic Profile: cleaned wholly, or refused.

`Cleaner(policy, key).clean(path, subject)` is the way in; docs/deidentification.md says what is done and why.
"""

from xnatuploader.deidentify.cleaner import Cleaner, NoCopy
from xnatuploader.deidentify.inspection import (
    ElementChange,
    Residue,
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
    "Residue",
    "inspect",
    "inspect_copy",
    "patient_tokens",
    "removed_mapping_fields",
    "residues",
]
