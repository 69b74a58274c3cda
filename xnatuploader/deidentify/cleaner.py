"""The door of the room: a file and its new subject in, a cleaned copy or the reason for none out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from xnatuploader import records
from xnatuploader.deidentify import attributes, profile
from xnatuploader.deidentify.identity import Identity
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.nested import Telling
from xnatuploader.deidentify.profile import Action, Policy
from xnatuploader.deidentify.rules import Rules
from xnatuploader.deidentify.source import Copy, Source
from xnatuploader.deidentify.walk import Walk
from xnatuploader.dicom.elements import Malformed, ShortBuffer


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned copy, ready to be sent."""

    copy: Copy
    values: Mapping[str, str]
    """What the copy says, by keyword: UIDs of study, series and instance, and the fields from which an XNAT
    session and scan are made. What is absent or was removed is missing here."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Cleaned, (self.copy, dict(self.values)))

    @property
    def size(self) -> int:
        """Bytes of the copy."""
        return self.copy.size

    @property
    def held(self) -> bool:
        """Whether the whole copy is in memory: up to `source.HELD` bytes, and deflated files."""
        return self.copy.held

    def chunks(self) -> Iterator[bytes]:
        """Yield the copy; may be called again. Raises `source.Changed` and OSError, unless it is held."""
        return self.copy.chunks()

    def data(self) -> bytes:
        """Return the copy's bytes; meant for held ones."""
        return b"".join(self.chunks())

    def write(self, path: Path) -> None:
        """Write the copy to `path`, about 1 MiB at a time. Raises `source.Changed` and OSError."""
        with path.open("wb") as file:
            for chunk in self.chunks():
                file.write(chunk)


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that has no cleaned copy, and must not be sent."""

    status: records.Status
    """REVIEW: its content itself identifies the patient. FAILED: could not be cleaned. MISSING: gone."""
    message: str


class Cleaner:
    """Cleans files by one policy with one key. Threads may share it, processes get copies of it.

    Raises ValueError when `policy` has problems (`Policy.problems`).
    """

    def __init__(self, policy: Policy, key: Key) -> None:
        self._rules = Rules(policy, key)

    def __reduce__(self) -> tuple[object, ...]:
        return (Cleaner, (self._rules.policy, self._rules.key))

    @property
    def policy(self) -> Policy:
        """What is kept, and how."""
        return self._rules.policy

    @property
    def key(self) -> Key:
        """The secret; show its fingerprint only."""
        return self._rules.key

    def clean(self, path: Path, subject: str) -> Cleaned | Refused:
        """Return the cleaned copy of the file at `path`, with `subject` as patient; or why there is none.

        No file raises: what cannot be read, or not be cleaned wholly, is `Refused`.
        """
        try:
            original = Source(path)
        except FileNotFoundError:
            return Refused(
                records.Status.MISSING, "The file is not there any more. Put it back, or set Upload to N."
            )
        except (OSError, Malformed) as trouble:
            return _failed(trouble)
        try:
            return Cleaned(*Walk(self._rules, original, path, subject).run())
        except Telling as telling:
            return Refused(records.Status.REVIEW, _TELLING.format(kind=telling.kind))
        except (OSError, Malformed, ShortBuffer) as trouble:
            return _failed(trouble)
        finally:
            original.close()

    def remap_uid(self, uid: str) -> str:
        """Return the UID that stands in cleaned files where `uid` stood."""
        return self._rules.key.uid(uid)

    def text(self, keyword: str, text: str, subject: str, patient: Mapping[str, str] | None = None) -> str:
        """Return what a cleaned file says where the original says `text` for `keyword`, empty if removed.

        For what is made from the workbook and not from the copy: fields of XNAT sessions, labels. `patient`
        gives what is known of the patient (PatientName, PatientID, AccessionNumber, ...), for descriptions.
        """
        tag = profile.field_tag(keyword)
        action = self._rules.actions.get(tag, Action.REMOVE) if tag is not None else Action.REMOVE
        vr = attributes.VR_OF.get(tag or 0, b"UN").decode()
        if action is Action.CLEAN:
            return Identity(patient or {}).scrub(text, vr)
        return self._rules.new_text(action, vr, text, subject)


_TELLING = (
    "It is or holds {kind}, whose content can tell who the patient is and is not de-identified. "
    "It is never sent with de-identification; set Upload to N."
)


def _failed(trouble: Exception) -> Refused:
    if isinstance(trouble, OSError):
        reason = f"it cannot be read ({trouble.strerror or type(trouble).__name__})"
    elif isinstance(trouble, ShortBuffer):
        reason = "it ends in the middle of an element"
    else:
        reason = str(trouble)
    return Refused(
        records.Status.FAILED,
        f"It cannot be de-identified: {reason}. It was not sent; export it again, or set Upload to N.",
    )
