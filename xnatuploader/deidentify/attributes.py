"""The attributes of DICOM's data dictionary (PS3.6), as pydicom has them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydicom._dicom_dict import DicomDictionary

from xnatuploader.dicom import elements

DICTIONARY: Mapping[int, tuple[str, str, str, str, str]] = MappingProxyType(DicomDictionary)
"""Tag -> VR, VM, name, whether retired, keyword."""

VR_OF: Mapping[int, bytes] = MappingProxyType(
    {tag: entry[0][:2].encode() for tag, entry in DicomDictionary.items()}
)
"""Tag -> VR; of "US or SS" and the like the first, since nothing is decoded by it."""

EXPLICIT = elements.Encoding(True, vrs=VR_OF)
IMPLICIT = elements.Encoding(False, vrs=VR_OF)
BIG_ENDIAN = elements.Encoding(True, big=True, vrs=VR_OF)
