"""What is done with each attribute: DICOM PS3.15 table E.1-1, its options, and what it leaves open.

The Basic Profile's column (edition 2026c) comes from dicom-anonymizer, the option columns are in
`options`. Where the table leaves a choice that depends on the kind of object (X/Z, X/D, Z/D, X/Z/D), the
action is the one that keeps every kind valid: a dummy where one is allowed, else an empty value.

What the table does not list (docs/deidentification.md has the reasons):
private attributes and those that are not in pydicom's dictionary are removed; names, addresses (URLs),
dates and UIDs of instances are treated like the listed ones; free text is cleaned of what identifies the patient in
the same header; everything else is kept.
"""

from __future__ import annotations

import enum
import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c

from xnatuploader.config.sheet import RetainDates
from xnatuploader.deidentify import attributes, options, values
from xnatuploader.deidentify.key import Key
from xnatuploader.dicom import reader

EDITION = "2026c"
"""Edition of PS3.15 from which the Basic Profile's column is taken."""


class Action(enum.Enum):
    """What is done with an attribute; a sequence that stays is always cleaned item by item."""

    KEEP = "kept"
    REMOVE = "removed"
    EMPTY = "emptied"
    DUMMY = "replaced by a dummy"
    UID = "replaced by a keyed UID"
    SHIFT = "shifted by the subject's number of days"
    CLEAN = "cleaned of what identifies the patient"
    SUBJECT = "replaced by the Subject"


@dataclass(frozen=True, slots=True)
class Policy:
    """The choices of the Configuration sheet. The default is the Basic Profile without any option."""

    retain_dates: RetainDates = "none"
    """`none`; `shifted`: by a keyed number of days per subject, times stay; `full`: as they are."""
    retain_patient_characteristics: bool = False
    """Sex, age, size, weight, ... stay."""
    retain_device_identity: bool = False
    """Station name, serial numbers, ... stay."""
    clean_descriptors: bool = False
    """Descriptions and comments stay, without the words that identify the patient."""
    allow_fields: tuple[str, ...] = ()
    """Single elements that stay, by keyword or `gggg,eeee`."""

    def problems(self) -> list[str]:
        """Return one sentence for each element of AllowFields that cannot be kept."""
        return [
            f"AllowFields: '{name}' cannot be kept by choice: every copy treats it in the same way. Take it out."
            for name in self.allow_fields
            if (tag := reader.tag_of(name)) in _NEVER_ALLOWED or not 0x0008 <= tag >> 16 < 0x7FE0
        ]


PATIENT_NAME, PATIENT_ID = reader.tag_of("PatientName"), reader.tag_of("PatientID")
IDENTITY_REMOVED = reader.tag_of("PatientIdentityRemoved")
METHOD = reader.tag_of("DeidentificationMethod")
METHOD_CODES = reader.tag_of("DeidentificationMethodCodeSequence")
TEMPORAL_MODIFIED = reader.tag_of("LongitudinalTemporalInformationModified")
_NEVER_ALLOWED = {PATIENT_NAME, PATIENT_ID, IDENTITY_REMOVED, METHOD, METHOD_CODES, TEMPORAL_MODIFIED}

_DATES = frozenset({"DA", "DT", "TM"})
_FREE_TEXT = frozenset({"LT", "ST", "UT", "UC"})
_TEXT = _FREE_TEXT | {"AE", "CS", "LO", "SH", "PN"}

_KEPT_UIDS = options.keywords(
    """
    SOPClassesInStudy SOPClassesSupported CodingSchemeUID ContextGroupExtensionCreatorUID ContextUID
    MappingResourceUID CreatorVersionUID PertinentSOPClassesInStudy PertinentSOPClassesInSeries
    """
)
"""Unlisted UIDs, besides those of classes and transfer syntaxes, that name no instance and no patient."""

_KEPT_TEXT = options.keywords(
    """
    ExtendedCodeMeaning LongCodeValue CodingSchemeExternalID CodingSchemeName
    CodingSchemeResponsibleOrganization CodingSchemeURL URNCodeValue ImageDisplayFormat
    """
)
"""Unlisted free text and addresses that belong to a published code or hold defined terms."""

_REMOVED_TOO = options.keywords(
    """
    LengthToEnd EncryptedAttributesSequence PatientBirthDateInAlternativeCalendar
    PatientDeathDateInAlternativeCalendar
    """
)
"""Unlisted: birth and death dates again, the encrypted originals, a length that is wrong now."""


@functools.cache
def basic_profile() -> Mapping[int, Action]:
    """Return the Basic Profile's column, for single attributes (not for the repeating groups 50xx and 60xx).

    Unambiguous codes (D, Z, X, U) are taken as they are; Z/D, X/D and X/Z/D are D, X/Z is Z. X/Z/U* concerns
    sequences of references, which stay with their UIDs replaced.
    """
    table = dicomfields_2026c
    columns = (
        (Action.DUMMY, (table.D_TAGS, table.Z_D_TAGS, table.X_D_TAGS, table.X_Z_D_TAGS)),
        (Action.EMPTY, (table.Z_TAGS, table.X_Z_TAGS)),
        (Action.REMOVE, (table.X_TAGS,)),
        (Action.UID, (table.U_TAGS,)),
        (Action.KEEP, (table.X_Z_U_STAR_TAGS,)),
    )
    made = {
        tag[0] << 16 | tag[1]: action
        for action, lists in columns
        for tags in lists
        for tag in tags
        if len(tag) == 2
    }
    made[PATIENT_NAME] = made[PATIENT_ID] = Action.SUBJECT
    return MappingProxyType(made)


def actions(policy: Policy) -> dict[int, Action]:
    """Return the action for every attribute that is kept in some form; all others are removed.

    These are private attributes, group lengths, curves and overlays (50xx, 60xx), and attributes that
    neither the table nor the dictionary knows. Raises ValueError when `policy` has problems.
    """
    if policy.problems():
        raise ValueError(" ".join(policy.problems()))
    made: dict[int, Action] = {}
    basic = basic_profile()
    for tag, (vr, _, _, _, keyword) in attributes.DICTIONARY.items():
        if not 0x0008 <= tag >> 16 <= 0x7FE0:
            continue  # file meta and directory records do not occur in an image's data set
        action = _option(keyword, vr, policy, basic[tag]) if tag in basic else _unlisted(keyword, vr, policy)
        if action is not Action.REMOVE:
            made[tag] = action
    made.update({tag: action for tag, action in basic.items() if tag not in attributes.DICTIONARY})
    for name in policy.allow_fields:
        made.update(dict.fromkeys(_allowed(name), Action.KEEP))
    return {tag: action for tag, action in made.items() if action is not Action.REMOVE}


def _option(keyword: str, vr: str, policy: Policy, basic: Action) -> Action:
    """Apply the option columns to a row of the table."""
    if policy.retain_dates != "none" and (retained := _date(keyword, vr, policy)) is not None:
        return retained
    cleaned = Action.CLEAN if vr in _TEXT else Action.KEEP if vr == "SQ" else basic
    if policy.retain_device_identity:
        if keyword in options.DEVICE_KEPT:
            return Action.KEEP
        if keyword in options.DEVICE_CLEANED:
            return cleaned
    if policy.retain_patient_characteristics:
        if keyword in options.PATIENT_KEPT:
            return Action.KEEP
        if keyword in options.PATIENT_CLEANED:
            return cleaned
    if policy.clean_descriptors and keyword in options.DESCRIPTORS_CLEANED:
        return cleaned
    return basic


def _date(keyword: str, vr: str, policy: Policy) -> Action | None:
    """Return the action of the chosen date option, None when it does not concern the attribute."""
    if keyword in options.DATES_NOT_RETAINED or not (vr in _DATES or keyword in options.TIMESTAMPS):
        return None
    if policy.retain_dates == "full" or vr == "TM" or keyword == "TimezoneOffsetFromUTC":
        return Action.KEEP
    return Action.SHIFT if vr in _DATES else None  # a binary time stamp cannot be shifted


def _unlisted(keyword: str, vr: str, policy: Policy) -> Action:
    """Return what is done with an attribute of the dictionary that the table does not name."""
    if keyword in _REMOVED_TOO:
        return Action.REMOVE
    if keyword in _KEPT_TEXT:
        return Action.KEEP
    if vr == "PN":
        return Action.EMPTY
    if vr == "UR":
        return Action.REMOVE
    if vr in _DATES:
        return Action.REMOVE if policy.retain_dates == "none" else _date(keyword, vr, policy) or Action.REMOVE
    if vr == "UI":
        names_a_class = keyword.endswith(("ClassUID", "TransferSyntaxUID")) or keyword in _KEPT_UIDS
        return Action.KEEP if names_a_class else Action.UID
    return Action.CLEAN if vr in _FREE_TEXT else Action.KEEP


def _allowed(name: str) -> list[int]:
    """Return the tags to keep for an AllowFields entry: a private element needs its creator beside it."""
    tag = reader.tag_of(name)
    block = tag >> 8 & 0xFF
    return [tag, tag & 0xFFFF0000 | block] if tag >> 16 & 1 and block >= 0x10 else [tag]


def removed(fields: Iterable[str], policy: Policy) -> set[str]:
    """Return those header fields (keywords or `gggg,eeee`) whose values are not sent: a label would show them.

    Attributes with action CLEAN are not among them: their cleaned text is sent.
    """
    kept = actions(policy)
    sent = (Action.KEEP, Action.CLEAN)
    return {field for field in fields if kept.get(reader.tag_of(field)) not in sent}


class KeyedPolicy:
    """The choices of a policy with a key: the actions, and the new texts. Never changes once it is made.

    Raises ValueError when `choices` have problems.
    """

    def __init__(self, choices: Policy, key: Key) -> None:
        self.choices = choices
        self.key = key
        self.actions = actions(choices)

    @functools.cached_property
    def dummies(self) -> dict[int, Action]:
        """The actions inside a sequence that is replaced by a dummy: no text or number of its items is kept."""
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
    """Return `subject` as it is written into PatientName and PatientID: plain ASCII without DICOM's separators.

    Whatever XNAT allows in labels is kept. Files of one subject get the same text, whatever their character sets.
    """
    plain = unicodedata.normalize("NFC", subject.strip())
    return re.sub(r"[^A-Za-z0-9 ._()+-]", "_", plain)
