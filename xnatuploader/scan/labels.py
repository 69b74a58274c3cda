"""Which session a row belongs to: session labels, visit numbers, and the conflicts between them.

Pure: rows in, rows out. A label is made once, over all rows, and stands in the sheet from then on; what has
one keeps it, so that neither a second scan nor a half-finished upload can move a visit.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from xnatuploader.config import mappings
from xnatuploader.dicom import xnattypes
from xnatuploader.records import DICOM_FIELDS, Row, Status

MAX_LABEL = 200
"""Longest session label made, in characters; XNAT's column takes 255."""

_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_-]")
_IN_ROW = {
    "Subject": "subject",
    "Session": "session",
    "Dataset": "dataset",
    **{f"DICOM:{keyword}": name for keyword, name in DICOM_FIELDS.items()},
    "DICOM:SOPClassUID": "sop_class_uid",
}


class Template(Protocol):
    """What is asked of a label template; `mappings.Template` is one."""

    @property
    def fields(self) -> Sequence[str]:
        """Every field that it names."""

    def fill(self, lookup: Callable[[str], str]) -> str | mappings.Missing:
        """Return the text, or the field that is empty."""


def subject_label(subject: str) -> str:
    """Return the label that a subject (or session) gets on XNAT: what XNAT cannot hold becomes `_`.

    It takes letters without accents, digits, `_` and `-`; anything else is answered with a bare 500.
    """
    return _NOT_IN_LABELS.sub("_", unicodedata.normalize("NFC", subject))


def value_of(row: Row, name: str) -> str:
    """Return what `name` (mapping row, `DICOM:Keyword`, captured name) holds in this row, '' if nothing."""
    in_row = _IN_ROW.get(name)
    if in_row is not None:
        return str(getattr(row, in_row)) or row.values.get(name, "")
    return row.values.get(name) or row.values.get(f"Path:{name}", "")


def takes_part(row: Row) -> bool:
    """Tell whether a row is to have a session: its mapping values are there, and it may be sent."""
    if row.status is Status.SKIPPED:
        return bool(row.subject) and not row.doubt and row.upload
    return bool(row.subject) and not row.doubt and row.status is not Status.UNMATCHED


def label_sessions(rows: Sequence[Row], template: Template) -> list[Row]:
    """Give a session label to every row that takes part and has none; rows come back in the same order.

    - Rows of a study (StudyInstanceUID and subject) that has a label take that label.
    - Otherwise the template is filled, once for each study. `{Modality}` is the study's leading modality;
      `{Visit}` counts the Session values of a subject in date order, going on after the highest number in
      the labels that stand there.
    - Studies of one Subject and Session value with different leading modalities get two labels: where the
      template does not tell them apart, the modality is added.
    - A row whose template lacks a value becomes `unmatched`. Rows whose label or subject on XNAT would be
      that of another Subject or Session value become `conflict`, Upload N, and get no label.
    """
    studies = _studies(rows)
    _inherit(studies.values())
    _Filling(template, studies.values()).run()
    _find_conflicts(studies.values())
    _spread(studies.values(), (lambda study: study.subject) if "Visit" in template.fields else _whole)
    standing = label_conflicts(rows)
    return [_labelled(row, studies.get(_study_key(row)), standing) for row in rows]


def _labelled(row: Row, study: _Study | None, standing: dict[str, str]) -> Row:
    if row.session_label:
        return _in_conflict(row, standing[row.file]) if row.file in standing else row
    if study is None or row.doubt or row.status is Status.UNMATCHED:
        return row
    if study.label and not study.trouble:
        return replace(row, session_label=study.label)
    if not takes_part(row) or _only_follows(row):
        return row
    if study.trouble:
        return _in_conflict(row, study.trouble)
    message = f"SessionLabel cannot be made: {study.missing} is empty."
    return replace(row, status=Status.UNMATCHED, upload=False, message=message)


def _only_follows(row: Row) -> bool:
    """Tell whether a row makes no label, but takes its study's: its file went away before it had one."""
    return row.status is Status.MISSING and not row.session_label


def _in_conflict(row: Row, message: str) -> Row:
    return replace(row, status=Status.CONFLICT, upload=False, message=message)


# --- studies


StudyKey = tuple[str, str, str]
"""Subject, Session value, StudyInstanceUID (or what stands for it)."""


@dataclass(slots=True)
class _Study:
    """One study under one Subject and Session value, as far as labels go."""

    subject: str
    """As `_text` gives it, so that one name in two Unicode forms is one subject."""
    session: str
    uid: str
    order: int
    date: str = ""
    """Earliest study date, YYYY-MM-DD; '' if none can be read."""
    modality: str = ""
    given: dict[str, Row] = field(default_factory=dict)
    """Labels that its rows carry already, each with a row."""
    unlabelled: list[Row] = field(default_factory=list)
    """Rows that take part and have no label."""
    label: str = ""
    missing: str = ""
    """The field that the template lacks."""
    trouble: str = ""
    """Why it cannot have its label."""
    made: bool = False
    """Its label does not come from the sheet: it is made now."""
    present: bool = False
    """Some of its files are there, or were sent: those that are gone claim nothing."""

    @property
    def who(self) -> tuple[str, str]:
        """What a label stands for."""
        return self.subject, self.session


def _text(value: str) -> str:
    return unicodedata.normalize("NFC", value)


def _study_key(row: Row) -> StudyKey:
    # Without a UID, files of one visit and machine are taken for one study.
    return _text(row.subject), _text(row.session), row.study_instance_uid or f"no UID {row.modality}"


def _studies(rows: Iterable[Row]) -> dict[StudyKey, _Study]:
    """Collect the studies in the order of the rows."""
    studies: dict[StudyKey, _Study] = {}
    pairs: dict[tuple[str, str], set[xnattypes.Pair]] = defaultdict(set)
    for row in rows:
        if not takes_part(row) or _only_follows(row):
            continue
        key = _study_key(row)
        study = studies.get(key)
        if study is None:
            study = studies[key] = _Study(*key, order=len(studies))
        pairs[_whole(study)].add((row.sop_class_uid, row.modality))
        study.present = study.present or row.status is not Status.MISSING
        date = xnattypes.iso_date(row.study_date)
        if date and (not study.date or date < study.date):
            study.date = date
        if row.session_label:
            study.given.setdefault(row.session_label, row)
        else:
            study.unlabelled.append(row)
    for study in studies.values():
        study.modality = xnattypes.leading_modality(pairs[_whole(study)])
    return studies


def _whole(study: _Study) -> tuple[str, str]:
    """Return what has one leading modality: a study, whatever Session values its files have."""
    return study.subject, study.uid if not study.uid.startswith("no UID") else f"{study.uid} {study.session}"


def _inherit(studies: Collection[_Study]) -> None:
    """Let rows take their study's label: that of their Session value first, else the study's only one."""
    of_study: dict[tuple[str, str], set[str]] = defaultdict(set)
    for study in studies:
        of_study[_whole(study)].update(study.given)
    for study in studies:
        if not study.unlabelled:
            continue
        labels = study.given or of_study[_whole(study)]
        if study.given or len(labels) == 1:
            study.label = next(iter(labels))
        study.made = not study.label


# --- the template


class _Filling:
    """Fills the template for each fresh study: visit numbers, labels, and modalities to tell them apart."""

    def __init__(self, template: Template, studies: Collection[_Study]) -> None:
        self._template = template
        self._fields = frozenset(template.fields)
        self._fresh = [study for study in studies if study.made]
        self._standing = [study for study in studies if study.given or study.label]
        self._numbers: dict[tuple[str, ...], int] = {}
        """Visit -> its number."""
        self._highest: dict[str, int] = defaultdict(int)
        """Subject -> highest visit number that was ever given."""
        self._owners: dict[str, tuple[str, str]] = {}
        """Label as compared -> Subject and Session value that it stands for."""
        for study in self._standing:
            for label in study.given or (study.label,):
                self._owners.setdefault(label.casefold(), study.who)

    def run(self) -> None:
        """Set `label`, or `missing` or `trouble`, of every fresh study."""
        if "Visit" in self._fields:
            self._read_visits()
            self._count_visits()
        for study in self._fresh:
            self._fill(study)
        self._tell_apart()
        for study in self._fresh:
            if len(study.label) > MAX_LABEL:
                study.trouble = (
                    f"The session label would have {len(study.label)} characters, and at most {MAX_LABEL} "
                    "are allowed. Shorten the SessionLabel row of the Configuration sheet."
                )

    def _visit(self, study: _Study) -> tuple[str, ...]:
        """Return the study's visit: its Session value; its modality too, if no {Modality} is in the label."""
        visit = (study.subject, study.session)
        return visit if "Modality" in self._fields else (*visit, study.modality)

    def _read_visits(self) -> None:
        for study in self._standing:
            for label, row in study.given.items():
                number = self._number_in(label, row)
                if number:
                    self._numbers.setdefault(self._visit(study), number)
                    self._highest[study.subject] = max(self._highest[study.subject], number)

    def _number_in(self, label: str, row: Row) -> int:
        """Return the visit number in a label that stands, 0 if it does not look like the template."""
        own = _lookup(row, {"Visit": "\x01", "Modality": "\x02"})
        text = self._template.fill(lambda name: own(name) or "\x03")
        if not isinstance(text, str):
            return 0
        wild = {"\x01": "([0-9]{1,9})", "\x02": "[A-Za-z0-9_-]*?", "\x03": "[A-Za-z0-9_-]*?"}
        pattern = "".join(
            wild.get(part) or re.escape(subject_label(part))
            for part in re.split("([\x01-\x03])", text)
            if part
        )
        match = re.fullmatch(pattern, label, re.IGNORECASE)
        return int(match[1]) if match else 0

    def _count_visits(self) -> None:
        """Give numbers to the visits that have none, in date order; those without a date come last."""
        first: dict[tuple[str, ...], tuple[bool, str, str, int]] = {}
        for study in self._fresh:
            place = (not study.date, study.date, study.session, study.order)
            visit = self._visit(study)
            first[visit] = min(place, first.get(visit, place))
        for visit in sorted(first, key=lambda visit: first[visit]):
            if visit not in self._numbers:
                self._numbers[visit] = self._next_number(visit[0])

    def _next_number(self, subject: str) -> int:
        self._highest[subject] += 1
        return self._highest[subject]

    def _fill(self, study: _Study) -> None:
        filled = self._filled(study)
        if "Visit" in self._fields:
            # A label that a person gave to another visit may hold the number that is due.
            while (owner := self._owners.get(filled.casefold())) and owner != study.who:
                if owner[0] != study.subject:
                    break
                self._numbers[self._visit(study)] = self._next_number(study.subject)
                filled = self._filled(study)
        study.label = filled

    def _filled(self, study: _Study) -> str:
        """Return the label by the first row that has all values: a series lacking one goes with its study."""
        own = {"Modality": study.modality, "Visit": str(self._numbers.get(self._visit(study), ""))}
        for row in study.unlabelled:
            text = self._template.fill(_lookup(row, own))
            if isinstance(text, str):
                return subject_label(text)
            study.missing = study.missing or text.field
        return ""

    def _tell_apart(self) -> None:
        """Add the modality where studies of one Subject and Session value got one label and differ in it."""
        modalities: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        standing = set()
        for study in self._standing:
            ending = f"_{subject_label(study.modality)}".casefold()
            for label in study.given or (study.label,):
                place = (*study.who, label.casefold())
                modalities[place].add(study.modality)
                standing.add((place, study.modality))
                # What was told apart before counts for the plain label too, or a re-scan would go back to it.
                modalities[(*study.who, label.casefold().removesuffix(ending))].add(study.modality)
        for study in self._fresh:
            modalities[(*study.who, study.label.casefold())].add(study.modality)
        for study in self._fresh:
            place = (*study.who, study.label.casefold())
            if not study.label or (place, study.modality) in standing:
                continue
            told_apart = f"{study.label}_{subject_label(study.modality)}"
            if len(modalities[place]) > 1 or self._owners.get(told_apart.casefold()) == study.who:
                study.label = told_apart


def _lookup(row: Row, own: Mapping[str, str]) -> Callable[[str], str]:
    return lambda name: own[name] if name in own else value_of(row, name)


# --- conflicts


class _Subjects:
    """Subjects whose labels on XNAT would be the same, or differ in case only."""

    def __init__(self, subjects: Iterable[tuple[str, int]]) -> None:
        """Take (subject, standing) pairs; the highest standing keeps the label, if it is alone."""
        self._standing: dict[str, dict[str, int]] = defaultdict(dict)
        for subject, standing in subjects:
            known = self._standing[subject_label(subject).casefold()]
            known[subject] = max(standing, known.get(subject, 0))

    def clash(self, subject: str) -> str:
        """Return why this subject's rows cannot go on, '' if they can."""
        known = self._standing[subject_label(subject).casefold()]
        if len(known) < 2:
            return ""
        others = {other: standing for other, standing in known.items() if other != subject}
        if known[subject] > max(others.values()):
            return ""
        return (
            f"Subject '{subject}' and subject '{_highest(others)}' would both be {subject_label(subject)} on "
            "XNAT. If they are one person, write the same Subject for both; if not, change one of them."
        )


def _highest(standing: dict[str, int]) -> str:
    return max(standing, key=lambda name: standing[name])


def _find_conflicts(studies: Collection[_Study]) -> None:
    """Set `trouble` of studies whose new label belongs to another Subject or Session value as well."""
    present = [study for study in studies if study.present and (study.given or study.label)]
    subjects = _Subjects((study.subject, 0 if study.made else 1) for study in present)
    standing: dict[str, set[tuple[str, str]]] = defaultdict(set)
    claims: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    for study in present:
        for label in study.given or (study.label,):
            claims[label.casefold()][study.who] = None
            if not study.made:
                standing[label.casefold()].add(study.who)
    for study in present:
        if not study.made:
            continue
        key = study.label.casefold()
        study.trouble = study.trouble or subjects.clash(study.subject)
        if not study.trouble and study.who not in standing[key]:
            others = [who for who in (*standing[key], *claims[key]) if who != study.who]
            study.trouble = _one_label(study.label, study.who, others[0]) if others else ""


def _spread(studies: Collection[_Study], group: Callable[[_Study], object]) -> None:
    """Let a new label's trouble hold back the others of its study, or of a subject whose visits count.

    Otherwise the next scan would take those that went ahead for given, and label the rest after them.
    """
    troubles = {group(study): study.trouble for study in studies if study.trouble}
    for study in studies:
        if study.made:
            study.trouble = study.trouble or troubles.get(group(study), "")


def _one_label(label: str, who: tuple[str, str], other: tuple[str, str]) -> str:
    """Say that two Subjects, or two Session values of one Subject, have one label."""
    if who[0] != other[0]:
        return (
            f"Session label {label} would stand for subject '{who[0]}' and for subject '{other[0]}'. "
            "Correct the Subject column, or the SessionLabel row of the Configuration sheet."
        )
    return (
        f"Session label {label} would stand for the Session values '{who[1]}' and '{other[1]}' of subject "
        f"'{who[0]}'. Correct the Session column, or add {{Session}} or {{Visit}} to the SessionLabel row."
    )


@dataclass(slots=True)
class _Claim:
    """The rows of one Subject and Session value under one label."""

    who: tuple[str, str]
    label: str
    """As it is written."""
    sent: bool = False
    studies: set[str] = field(default_factory=set)
    """Their studies; where a row has no UID, its date."""
    unsent: list[str] = field(default_factory=list)
    """Files."""

    def add(self, row: Row) -> None:
        self.studies |= {row.study_instance_uid or row.study_date, row.study_date} - {""}
        if row.status is Status.SUCCESS:
            self.sent = True
        else:
            self.unsent.append(row.file)


def label_conflicts(rows: Sequence[Row]) -> dict[str, str]:
    """Return file -> what is wrong, for unsent rows whose label or subject others have as well.

    A label belongs to those whose rows were sent under it, else to all that carry it. Different subjects, or
    different Session values that have no study in common (a study that was labelled as a whole), must not
    meet under one label; the same goes for subjects that XNAT would take for one.
    """
    claims: dict[str, dict[tuple[str, str], _Claim]] = defaultdict(dict)
    standing: dict[str, int] = {}
    carriers = [
        row for row in rows if row.session_label and takes_part(row) and row.status is not Status.MISSING
    ]
    for row in carriers:
        who = _text(row.subject), _text(row.session)
        claims[row.session_label.casefold()].setdefault(who, _Claim(who, row.session_label)).add(row)
        standing[who[0]] = max(int(row.status is Status.SUCCESS), standing.get(who[0], 0))
    subjects = _Subjects(standing.items())
    clashing = {subject: trouble for subject in standing if (trouble := subjects.clash(subject))}
    troubles: dict[str, str] = {}
    for parties in claims.values():
        if len(parties) > 1:
            troubles |= _clashes(list(parties.values()))
        for (subject, _), claim in parties.items():
            if subject in clashing:
                troubles |= dict.fromkeys(claim.unsent, clashing[subject])
    return troubles


def _clashes(parties: list[_Claim]) -> dict[str, str]:
    """Return file -> what is wrong for the rows of several claims to one label."""
    owners = [claim for claim in parties if claim.sent]
    troubles: dict[str, str] = {}
    for claim in parties:
        others = [
            other for other in (owners or parties) if other is not claim and not _one_study(claim, other)
        ]
        if others:
            troubles |= dict.fromkeys(claim.unsent, _one_label(claim.label, claim.who, others[0].who))
    return troubles


def _one_study(claim: _Claim, other: _Claim) -> bool:
    return claim.who[0] == other.who[0] and bool(claim.studies & other.studies)


# --- duplicates


def mark_duplicates(rows: Sequence[Row]) -> list[Row]:
    """Make a row `duplicate`, Upload N, whose SOP instance is listed in the same session already.

    The first is the one that was sent, else the one listed first, rows that stood in the sheet before new
    ones. The same instance under another subject or in another session is only a message, on both.
    """
    firsts: dict[tuple[str, str], Row] = {}
    places: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    listed = [
        row
        for row in rows
        if row.session_label and row.sop_instance_uid and takes_part(row) and row.status is not Status.MISSING
    ]
    for row in sorted(listed, key=lambda row: (row.status is not Status.SUCCESS, row.number == 0)):
        firsts.setdefault((row.session_label, row.sop_instance_uid), row)
        places[row.sop_instance_uid][row.subject, row.session_label] = None
    return [
        _compared(
            row, firsts.get((row.session_label, row.sop_instance_uid)), places.get(row.sop_instance_uid, {})
        )
        for row in rows
    ]


def _compared(row: Row, first: Row | None, places: Collection[tuple[str, str]]) -> Row:
    if first is None or row.status not in (Status.EMPTY, Status.REVIEW, Status.DUPLICATE):
        return row
    if first.file != row.file:
        message = f"The same image as {first.file}. To send this copy as well, set Upload to Y."
        return replace(row, status=Status.DUPLICATE, upload=False, message=message)
    if len(places) > 1 and row.status is Status.EMPTY:
        return replace(row, message=_elsewhere(row, places))
    return row


def _elsewhere(row: Row, places: Iterable[tuple[str, str]]) -> str:
    subject, label = next(
        (place for place in places if place[0] != row.subject),
        next(place for place in places if place != (row.subject, row.session_label)),
    )
    if subject != row.subject:
        return f"The same image is listed for subject '{subject}' too: check which of them it belongs to."
    return f"The same image is listed in session {label} too: check which of them it belongs to."
