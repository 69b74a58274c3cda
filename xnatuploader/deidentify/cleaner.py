"""The cleaning of files by one policy: from a file and its new subject, a cleaned copy or why there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xnatuploader import records
from xnatuploader.deidentify import attributes
from xnatuploader.deidentify.identity import Identity
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.nested import IdentifyingContent
from xnatuploader.deidentify.profile import Action, KeyedPolicy, Policy
from xnatuploader.deidentify.source import CleanCopy, Original
from xnatuploader.deidentify.walk import FileCleaner
from xnatuploader.dicom import reader
from xnatuploader.dicom.elements import Malformed, ShortBuffer


@dataclass(frozen=True, slots=True)
class NoCopy:
    """Why a file has no cleaned copy, and must not be sent."""

    status: records.Status
    """REVIEW: its content itself can identify the patient. FAILED: it could not be cleaned. MISSING: it is gone."""
    message: str


class Cleaner:
    """Cleans files by one policy with one key. Threads may share it.

    Raises ValueError when `policy` has problems (`Policy.problems`).
    """

    def __init__(self, policy: Policy, key: Key) -> None:
        self._policy = KeyedPolicy(policy, key)

    def clean(self, path: Path, subject: str) -> CleanCopy | NoCopy:
        """Return the cleaned copy of the file at `path`, with `subject` as patient; or why there is none.

        No file raises an exception: for one that cannot be read, or not be cleaned completely, there is a `NoCopy`.
        """
        try:
            with contextlib.closing(Original(path)) as original:
                return FileCleaner(self._policy, original, subject).clean()
        except FileNotFoundError:
            return NoCopy(
                records.Status.MISSING, "The file is gone from the disk. Put it back, or set Upload to N."
            )
        except IdentifyingContent as content:
            return NoCopy(
                records.Status.REVIEW,
                f"The file is or contains {content.kind}. Its content can tell who the patient is and is not cleaned, "
                "so it is never sent with de-identification: set Upload to N.",
            )
        except (OSError, Malformed, ShortBuffer) as error:
            return _failed(error)

    def text(self, keyword: str, text: str, subject: str, patient: Mapping[str, str] | None = None) -> str:
        """Return the value of `keyword` in a cleaned file where the original has `text`; empty if it is removed.

        For fields of XNAT's sessions and scans, which are made from the workbook and not from the copy.
        `patient` has what is known of the patient (PatientName, PatientID, AccessionNumber, ...), from which
        descriptions are cleaned.
        """
        tag = reader.tag_of(keyword)
        action = self._policy.actions.get(tag, Action.REMOVE)
        vr = attributes.VR_OF.get(tag, b"UN").decode()
        if action is Action.CLEAN:
            return Identity(patient or {}).scrub(text, vr)
        return self._policy.new_text(action, vr, text, subject)


def _failed(error: Exception) -> NoCopy:
    if isinstance(error, OSError):
        reason = f"it cannot be read ({error.strerror or type(error).__name__})"
    elif isinstance(error, ShortBuffer):
        reason = "it ends in the middle of an element"
    else:
        reason = str(error)
    return NoCopy(
        records.Status.FAILED,
        f"The file was not sent, because it cannot be de-identified: {reason}. Export it again, or set Upload to N.",
    )
