"""One policy with one key: what becomes of an attribute, and the new text of a value."""

from __future__ import annotations

import functools
import re
import unicodedata

from xnatuploader.deidentify import attributes, profile, values
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Action, Policy


class KeyedPolicy:
    """The actions of `policy`, and what of them needs `key`. Nothing in it changes once it is made.

    Raises ValueError when `choices` have problems.
    """

    def __init__(self, choices: Policy, key: Key) -> None:
        self.choices = choices
        self.key = key
        self.actions = profile.actions(choices)

    @functools.cached_property
    def dummies(self) -> dict[int, Action]:
        """The actions inside a sequence that has to be a dummy: no text or number of its items stays."""
        left = (Action.KEEP, Action.CLEAN, Action.SHIFT)
        return {
            tag: Action.DUMMY
            if action in left and attributes.VR_OF.get(tag) not in (b"SQ", b"UI")
            else action
            for tag, action in self.actions.items()
        }

    def new_text(self, action: Action, vr: str, text: str, subject: str) -> str:
        """Return the new text of a value, for all actions but CLEAN (which needs to know the patient)."""
        if action is Action.KEEP:
            return text
        if action is Action.SUBJECT:
            return header_subject(subject)
        if not text.strip(" \0") or action in (Action.REMOVE, Action.EMPTY, Action.CLEAN):
            return ""
        if action is Action.SHIFT:
            return values.shift_dates(text, vr, self.key.days(subject))
        if vr == "UI":
            return "\\".join(self.key.uid(uid) for uid in text.split("\\"))
        return values.dummy(vr, 2).decode("ascii")


def header_subject(subject: str) -> str:
    """Return `subject` as it stands in PatientName and PatientID: plain ASCII without DICOM's separators.

    What XNAT allows in labels is untouched. Files of one subject get the same text, whatever their character
    sets.
    """
    plain = unicodedata.normalize("NFC", subject.strip())
    return re.sub(r"[^A-Za-z0-9 ._()+-]", "_", plain)
