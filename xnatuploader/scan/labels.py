"""Which session a row belongs to: session labels, visit numbers, and the conflicts between them.

Pure: rows in, rows out. A label is made once, over all rows, and stands in the sheet from then on; a row that has
one keeps it, so that neither a second scan nor a half-finished upload can move a visit.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from xnatuploader import records
from xnatuploader.config.mappings import Template
from xnatuploader.config.patterns import normal
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Row, Status

MAX_LABEL = 200
"""Longest session label made, in characters; XNAT's column takes 255."""

_FIELDS = {
    **records.MAPPED_COLUMNS,
    **{f"DICOM:{keyword}": name for keyword, name in records.DICOM_FIELDS.items()},
    "DICOM:SOPClassUID": "sop_class_uid",
}
"""What a mapping or a label template names -> field of `Row`; other columns hold nothing that they may name."""


def value_of(row: Row, name: str) -> str:
    """Return what `name` (mapping row, `DICOM:Keyword`, captured name) holds in this row, '' if nothing."""
    if name in _FIELDS:
        return str(getattr(row, _FIELDS[name])) or row.values.get(name, "")
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
    inherited = _inherited(studies.values())
    standing = [
        replace(study, labels=tuple(study.given) or (inherited[key],))
        for key, study in studies.items()
        if study.given or key in inherited
    ]
    fresh = [study for key, study in studies.items() if study.unlabelled and key not in inherited]
    filled = _told_apart(_filled(template, fresh, standing), standing)
    problems = _problems(filled, standing)
    by_visit = "Visit" in template.fields
    problems = _spread(problems, fresh, lambda study: study.subject if by_visit else study.whole)
    labels = inherited | {one.key: one.labels[0] for one in filled if one.key not in problems}
    lacking = (study for study in fresh if study.key not in problems and study.key not in labels)
    missing = {study.key: _missing(template, study) for study in lacking}
    conflicts = label_conflicts(rows)
    result = []
    for row in rows:
        if row.session_label:
            row = in_conflict(row, conflicts[row.file]) if row.file in conflicts else row
        elif row.doubt or row.status is Status.UNMATCHED:
            pass
        elif (key := _study_key(row)) in labels:
            row = replace(row, session_label=labels[key])
        elif takes_part(row) and not _only_follows(row):
            row = in_conflict(row, problems[key]) if key in problems else _unmatched(row, missing[key])
        result.append(row)
    return result


def _only_follows(row: Row) -> bool:
    """Tell whether a row makes no label, but takes its study's: its file went away before it had one."""
    return row.status is Status.MISSING and not row.session_label


def in_conflict(row: Row, message: str) -> Row:
    """Hold a row back until a person has decided."""
    return replace(row, status=Status.CONFLICT, upload=False, message=message)


def _unmatched(row: Row, field: str) -> Row:
    message = (
        f"SessionLabel has no value: {field} is empty. Correct the SessionLabel row of the Configuration "
        f"sheet, for example with a second choice: {{{field.split(' or ')[0]}|...}}"
    )
    return replace(row, status=Status.UNMATCHED, upload=False, message=message)


# --- studies


StudyKey = tuple[str, str, str]
"""Subject, Session value, StudyInstanceUID (or what takes its place)."""

Who = tuple[str, str]
"""What a label stands for: Subject and Session value, both in NFC, so that two Unicode forms are one."""


@dataclass(frozen=True, slots=True)
class Study:
    """One study under one Subject and Session value, as far as labels go."""

    key: StudyKey
    date: str
    """Earliest study date, YYYY-MM-DD; '' if none can be read."""
    modality: str
    """The leading one of the whole study, whatever Session values its files have."""
    given: Mapping[str, Row]
    """Labels that its rows carry already, each with a row."""
    unlabelled: Sequence[Row]
    """Rows that take part and have no label."""
    present: bool
    """Some of its files are there, or were sent: those that are gone claim nothing."""
    labels: tuple[str, ...] = ()
    """What it is called: several labels where rows of 1.x or a person gave more than one."""

    @property
    def subject(self) -> str:
        """As it is compared."""
        return self.key[0]

    @property
    def who(self) -> Who:
        """What its label stands for."""
        return self.key[0], self.key[1]

    @property
    def whole(self) -> tuple[str, str]:
        """What the study is under all its Session values."""
        return _whole(self.key)


def _study_key(row: Row) -> StudyKey:
    # Without a UID, files of one visit and machine are taken for one study.
    return normal(row.subject), normal(row.session), row.study_instance_uid or f"no UID {row.modality}"


def _whole(key: StudyKey) -> tuple[str, str]:
    subject, session, uid = key
    return subject, f"{uid} {session}" if uid.startswith("no UID") else uid


def _studies(rows: Iterable[Row]) -> dict[StudyKey, Study]:
    """Collect the studies in the order of the rows."""
    members: dict[StudyKey, list[Row]] = defaultdict(list)
    pairs: dict[tuple[str, str], set[xnattypes.Pair]] = defaultdict(set)
    for row in rows:
        if takes_part(row) and not _only_follows(row):
            key = _study_key(row)
            members[key].append(row)
            pairs[_whole(key)].add((row.sop_class_uid, row.modality))
    studies = {}
    for key, own in members.items():
        given: dict[str, Row] = {}
        for row in own:
            if row.session_label:
                given.setdefault(row.session_label, row)
        studies[key] = Study(
            key=key,
            date=min(filter(None, (xnattypes.iso_date(row.study_date) for row in own)), default=""),
            modality=xnattypes.leading_modality(pairs[_whole(key)]),
            given=given,
            unlabelled=[row for row in own if not row.session_label],
            present=any(row.status is not Status.MISSING for row in own),
        )
    return studies


def _inherited(studies: Collection[Study]) -> dict[StudyKey, str]:
    """Return the label that unlabelled rows take: that of their Session value first, else the study's only one."""
    of_whole: dict[tuple[str, str], set[str]] = defaultdict(set)
    for study in studies:
        of_whole[study.whole].update(study.given)
    found = {}
    for study in studies:
        labels = study.given or of_whole[study.whole]
        if study.unlabelled and (study.given or len(labels) == 1):
            found[study.key] = next(iter(labels))
    return found


# --- the template


class _Visits:
    """The number of each visit: those in the labels that are there, then new ones in date order."""

    def __init__(self, template: Template, fresh: Iterable[Study], standing: Iterable[Study]) -> None:
        self._by_modality = "Modality" not in template.fields
        self._numbers: dict[tuple[str, ...], int] = {}
        self._highest: dict[str, int] = defaultdict(int)
        """Subject -> highest number that was ever given."""
        for study in standing:
            for label, row in study.given.items():
                if number := _number_in(label, row, template):
                    self._numbers.setdefault(self._visit(study), number)
                    self._highest[study.subject] = max(self._highest[study.subject], number)
        # Those without a date come last.
        for study in sorted(fresh, key=lambda study: (not study.date, study.date, study.key[1])):
            if self._visit(study) not in self._numbers:
                self.renumber(study)

    def _visit(self, study: Study) -> tuple[str, ...]:
        """Return the study's visit: its Session value; its modality too, if no {Modality} is in the label."""
        return (*study.who, study.modality) if self._by_modality else study.who

    def number(self, study: Study) -> int:
        return self._numbers[self._visit(study)]

    def renumber(self, study: Study) -> None:
        """Give the study's visit the next number of its subject."""
        self._highest[study.subject] += 1
        self._numbers[self._visit(study)] = self._highest[study.subject]


def _number_in(label: str, row: Row, template: Template) -> int:
    """Return the visit number in an existing label, 0 if it does not look like the template."""
    own = _lookup(row, {"Visit": "\x01", "Modality": "\x02"})
    text = template.fill(lambda name: own(name) or "\x02")
    if not isinstance(text, str):
        return 0
    wild = {"\x01": "([0-9]{1,9})", "\x02": "[A-Za-z0-9_-]*?"}
    pattern = "".join(
        wild.get(part) or re.escape(records.label(part)) for part in re.split("([\x01\x02])", text) if part
    )
    match = re.fullmatch(pattern, label, re.IGNORECASE)
    return int(match[1]) if match else 0


def _filled(template: Template, fresh: Sequence[Study], standing: Sequence[Study]) -> list[Study]:
    """Fill the template for each study that has no label; studies that lack a value are left out."""
    owners = _owners(standing)
    visits = _Visits(template, fresh, standing) if "Visit" in template.fields else None
    filled = []
    for study in fresh:
        label = _fill(template, study, visits)
        # A label that a person gave to another visit may hold the number that is due.
        while (
            visits is not None
            and (owner := owners.get(label.casefold(), study.who)) != study.who
            and owner[0] == study.subject
        ):
            visits.renumber(study)
            label = _fill(template, study, visits)
        if label:
            filled.append(replace(study, labels=(label,)))
    return filled


def _fill(template: Template, study: Study, visits: _Visits | None) -> str:
    """Return the label by the first row that has all values: a series lacking one goes with its study."""
    own = {"Modality": study.modality, "Visit": str(visits.number(study)) if visits else ""}
    texts = (template.fill(_lookup(row, own)) for row in study.unlabelled)
    return next((records.label(text) for text in texts if isinstance(text, str)), "")


def _missing(template: Template, study: Study) -> str:
    """Return the first field that the template lacks in this study."""
    own = {"Modality": study.modality, "Visit": "1"}
    texts = (template.fill(_lookup(row, own)) for row in study.unlabelled)
    return next((text.field for text in texts if not isinstance(text, str)), "")


def _lookup(row: Row, own: Mapping[str, str]) -> Callable[[str], str]:
    return lambda name: own[name] if name in own else value_of(row, name)


def _owners(standing: Iterable[Study]) -> dict[str, Who]:
    """Return label as compared -> what it stands for; the first that has it owns it."""
    owners: dict[str, Who] = {}
    for study in standing:
        for label in study.labels:
            owners.setdefault(label.casefold(), study.who)
    return owners


def _told_apart(filled: Sequence[Study], standing: Sequence[Study]) -> list[Study]:
    """Add the modality where studies of one Subject and Session value got one label and differ in it."""
    owners = _owners(standing)
    modalities: dict[tuple[Who, str], set[str]] = defaultdict(set)
    in_sheet = {(study.who, label.casefold(), study.modality) for study in standing for label in study.labels}
    for who, label, modality in in_sheet:
        # What was told apart before counts for the plain label too, or a re-scan would go back to it.
        ending = f"_{records.label(modality)}".casefold()
        modalities[who, label].add(modality)
        modalities[who, label.removesuffix(ending)].add(modality)
    for study in filled:
        modalities[study.who, study.labels[0].casefold()].add(study.modality)
    result = []
    for study in filled:
        label = study.labels[0]
        longer = f"{label}_{records.label(study.modality)}"
        shared = len(modalities[study.who, label.casefold()]) > 1
        if (study.who, label.casefold(), study.modality) not in in_sheet and (
            shared or owners.get(longer.casefold()) == study.who
        ):
            study = replace(study, labels=(longer,))
        result.append(study)
    return result


# --- conflicts


def _problems(filled: Sequence[Study], standing: Sequence[Study]) -> dict[StudyKey, str]:
    """Return what is wrong with new labels: too long, or of another Subject or Session value as well."""
    there = [study for study in standing if study.present]
    ranks = dict.fromkeys((study.subject for study in there), 1)
    for study in filled:
        ranks.setdefault(study.subject, 0)
    clashes = _clashes(ranks)
    claims: dict[str, dict[Who, bool]] = defaultdict(dict)
    """Label as compared -> who claims it, and whether by a label in the sheet; those come first."""
    for claimed, in_sheet in ((there, True), (filled, False)):
        for study in claimed:
            for label in study.labels:
                claims[label.casefold()].setdefault(study.who, in_sheet)
    problems = {}
    for study in filled:
        label = study.labels[0]
        claimants = claims[label.casefold()]
        others = [who for who in claimants if who != study.who]
        if len(label) > MAX_LABEL:
            problems[study.key] = (
                f"The session label would have {len(label)} characters, and at most {MAX_LABEL} are allowed. "
                "Shorten the SessionLabel row of the Configuration sheet."
            )
        elif study.subject in clashes:
            problems[study.key] = clashes[study.subject]
        elif others and not claimants[study.who]:
            problems[study.key] = _one_label(label, study.who, others[0])
    return problems


def _spread(
    problems: Mapping[StudyKey, str], fresh: Sequence[Study], group: Callable[[Study], object]
) -> dict[StudyKey, str]:
    """Let a new label's problem hold back the others of its study, or of a subject whose visits count.

    Otherwise the next scan would take those that went ahead for given, and label the rest after them.
    """
    of_group = {group(study): problems[study.key] for study in fresh if study.key in problems}
    return {
        study.key: problems.get(study.key, of_group[group(study)])
        for study in fresh
        if group(study) in of_group
    }


def _clashes(standing: Mapping[str, int]) -> dict[str, str]:
    """Return subject -> what is wrong, where labels of several subjects would be the same, or differ in case only.

    `standing` ranks the subjects; the highest keeps the label, if it is alone.
    """
    sharing: dict[str, dict[str, int]] = defaultdict(dict)
    for subject, rank in standing.items():
        sharing[records.label(subject).casefold()][subject] = rank
    found = {}
    for ranks in sharing.values():
        for subject, rank in ranks.items():
            other = max((name for name in ranks if name != subject), key=ranks.__getitem__, default=None)
            if other is not None and rank <= ranks[other]:
                found[subject] = (
                    f"Subject '{subject}' and subject '{other}' would both be {records.label(subject)} on XNAT. If "
                    "they are one person, write the same Subject for both; if not, change one of them."
                )
    return found


def _one_label(label: str, who: Who, other: Who) -> str:
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


def label_conflicts(rows: Sequence[Row]) -> dict[str, str]:
    """Return file -> what is wrong, for unsent rows whose label or subject others have as well.

    A label belongs to those whose rows were sent under it, else to all that carry it. Different subjects, or
    different Session values that have no study in common (a study that was labelled as a whole), must not
    meet under one label; the same goes for subjects that XNAT would take for one.
    """
    claims: dict[str, dict[Who, list[Row]]] = defaultdict(lambda: defaultdict(list))
    standing: dict[str, int] = {}
    for row in rows:
        if row.session_label and takes_part(row) and row.status is not Status.MISSING:
            who = normal(row.subject), normal(row.session)
            claims[row.session_label.casefold()][who].append(row)
            standing[who[0]] = max(int(row.status is Status.SUCCESS), standing.get(who[0], 0))
    clashes = _clashes(standing)
    conflicts: dict[str, str] = {}
    for claimants in claims.values():
        owners = [who for who, own in claimants.items() if any(row.status is Status.SUCCESS for row in own)]
        studies = {who: _studies_of(own) for who, own in claimants.items()} if len(claimants) > 1 else {}
        for who, own in claimants.items():
            others = [other for other in owners or claimants if other != who]
            problem = clashes.get(who[0], "") or next(
                (
                    _one_label(own[0].session_label, who, other)
                    for other in others
                    if other[0] != who[0] or not studies[who] & studies[other]
                ),
                "",
            )
            if problem:
                conflicts |= {row.file: problem for row in own if row.status is not Status.SUCCESS}
    return conflicts


def _studies_of(rows: Iterable[Row]) -> set[str]:
    """Return the studies of rows; where a row has no UID, its date."""
    return {text for row in rows for text in (row.study_instance_uid, row.study_date)} - {""}


# --- duplicates


def mark_duplicates(rows: Sequence[Row]) -> list[Row]:
    """Make a row `duplicate`, Upload N, whose SOP instance is listed in the same session already.

    The first is the one that was sent, else the one listed first, rows that stood in the sheet before new
    ones. The same instance under another subject or in another session is only a message, on both.
    """
    firsts: dict[tuple[str, str], Row] = {}
    sessions: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    """SOP instance -> subject and session label of each session that lists it."""
    listed = [
        row
        for row in rows
        if row.session_label and row.sop_instance_uid and takes_part(row) and row.status is not Status.MISSING
    ]
    for row in sorted(listed, key=lambda row: (row.status is not Status.SUCCESS, row.number == 0)):
        firsts.setdefault((row.session_label, row.sop_instance_uid), row)
        sessions[row.sop_instance_uid][row.subject, row.session_label] = None
    return [
        _compared(row, firsts.get((row.session_label, row.sop_instance_uid)), sessions[row.sop_instance_uid])
        if row.status in (Status.EMPTY, Status.REVIEW, Status.DUPLICATE) and row.sop_instance_uid
        else row
        for row in rows
    ]


def _compared(row: Row, first: Row | None, sessions: Collection[tuple[str, str]]) -> Row:
    if first is None:
        return row
    if first.file != row.file:
        message = f"This image is already listed: {first.file}. To send this copy too, set Upload to Y."
        return replace(row, status=Status.DUPLICATE, upload=False, message=message)
    if len(sessions) > 1 and row.status is Status.EMPTY:
        return replace(row, message=_elsewhere(row, sessions))
    return row


def _elsewhere(row: Row, sessions: Iterable[tuple[str, str]]) -> str:
    others = [one for one in sessions if one != (row.subject, row.session_label)]
    subject, label = next((one for one in others if one[0] != row.subject), others[0])
    where = f"in session {label}" if subject == row.subject else f"for subject '{subject}'"
    return f"This image is also listed {where}: check which of the two it belongs to."
