"""Where in its session a file goes: scan ID, resource and file name, and the scan's type.

Pure: rows in, rows out. What a row has already stays as it is for ever, because it may stand on the server;
only what is missing is made, so that new files never move old ones.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from xnatuploader import records
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Row, Status
from xnatuploader.scan import labels

MAX_NAME = 200
"""Longest file name given, in characters; XNAT and Windows shares take 255 with the path's limits on top."""

_HASH = 12
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")
_RESERVED_END = re.compile(r"(_catalog\.xml|\.(zip|tar|tgz|gz|bz2|xz|7z|rar|xar|jar))$", re.IGNORECASE)
"""XNAT keeps `*_catalog.xml` for itself, and takes archives apart when it is asked to extract."""


def place_scans(rows: Sequence[Row]) -> list[Row]:
    """Give ScanID, Resource and Filename to every row that has a session label and lacks one of them.

    A scan is the rows of one SeriesInstanceUID in a session. Its ID is the SeriesNumber by XNAT's own rule
    (its session builder): missing, the SeriesInstanceUID with `_` for what is no word character; shared by
    several series of one study, `5-CT1`, `5-CT2`. A series that comes later, or with another study that was
    joined, takes the next free `5-CT1`, and those before it keep theirs. File names are unique in their
    resource, also where only case differs. The rows come back in the same order, those without a label as
    they are.
    """
    scan_ids = _scan_ids(rows)
    resources = [
        (row.resource or xnattypes.resource(row.sop_class_uid)) if row.session_label else row.resource
        for row in rows
    ]
    names = _file_names(rows, scan_ids, resources)
    return [
        row
        if (scan_id, resource, name) == (row.scan_id, row.resource, row.filename)
        else replace(row, scan_id=scan_id, resource=resource, filename=name)
        for row, scan_id, resource, name in zip(rows, scan_ids, resources, names, strict=True)
    ]


def type_for(dataset: str, scan_ids: Collection[str]) -> str:
    """Return the scan's type for a Dataset: the same text, or `Series <text>` where a scan has that ID.

    XNAT finds a scan in a URL by ID or by type, so that a type `3` beside a scan `3` would name two scans.
    """
    return f"Series {dataset}" if dataset in scan_ids else dataset


def strict_conflicts(rows: Sequence[Row]) -> list[Row]:
    """Make every unsent row `conflict`, Upload N, whose Dataset holds more than one series in its session."""
    series: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for row in rows:
        if row.session_label and row.status not in (Status.SKIPPED, Status.UNMATCHED, Status.DUPLICATE):
            series[row.subject, row.session_label, row.dataset].add(row.series_instance_uid or row.scan_id)
    mixed = {key: len(found) for key, found in series.items() if len(found) > 1}
    unsent = (Status.EMPTY, Status.FAILED, Status.INTERRUPTED, Status.REVIEW)
    result = []
    for row in rows:
        count = mixed.get((row.subject, row.session_label, row.dataset), 0)
        if count and row.status in unsent:
            message = (
                f"Dataset '{row.dataset}' holds {count} series in session {row.session_label}, and --strict "
                "allows one. Give each series its own Dataset, or scan without --strict."
            )
            row = labels.in_conflict(row, message)
        result.append(row)
    return result


# --- scans


@dataclass(slots=True)
class _Series:
    """What the rows tell of one series in one session."""

    number: str = ""
    uid: str = ""
    study: str = ""
    date: str = ""
    dataset: str = ""
    modalities: set[str] = field(default_factory=set)
    scan_id: str = ""
    travels: bool = False
    """Some row of it is not skipped; a skipped series must not change the IDs of the others."""

    def note(self, row: Row) -> None:
        self.number = self.number or row.series_number.strip()
        self.uid = self.uid or row.series_instance_uid
        self.study = self.study or row.study_instance_uid
        self.date = self.date or row.study_date
        self.dataset = self.dataset or row.dataset
        self.modalities.add(row.modality)
        self.scan_id = self.scan_id or usable_id(row.scan_id)
        self.travels = self.travels or row.upload or row.status is not Status.SKIPPED

    @property
    def base(self) -> str:
        """The ID by XNAT's rule, if no other series has it."""
        number = f"_{self.number[1:]}" if self.number.startswith("+") else self.number
        return records.label(number or self.uid or self.dataset or "unknown")[:64]


def usable_id(scan_id: str) -> str:
    """Return `scan_id` if XNAT can hold it (letters, digits, `_`, `-`), else ''."""
    return scan_id if records.label(scan_id) == scan_id else ""


def _scan_ids(rows: Sequence[Row]) -> list[str]:
    """Return each row's scan ID; rows without a session keep theirs."""
    unnamed = _Unnamed(rows)
    sessions: dict[str, dict[str, _Series]] = defaultdict(dict)
    keys = []
    for row in rows:
        keys.append(row.series_instance_uid or unnamed.key(row))
        if row.session_label:
            sessions[row.session_label].setdefault(keys[-1], _Series()).note(row)
    for found in sessions.values():
        _number(list(found.values()))
    return [
        usable_id(row.scan_id) or sessions[row.session_label][key].scan_id
        if row.session_label
        else row.scan_id
        for row, key in zip(rows, keys, strict=True)
    ]


class _Unnamed:
    """Finds the series of rows without a SeriesInstanceUID (damaged files, rows of a 1.x workbook).

    Such a row belongs to the one series of its session with the same SeriesNumber (and Dataset, where several
    have the number); if there is none, all such rows of one number are a series.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._by_number: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for row in rows:
            if row.session_label and row.series_instance_uid:
                self._by_number[row.session_label, row.series_number].add(row.series_instance_uid)
                exact = row.session_label, row.series_number, row.dataset
                self._by_number[exact].add(row.series_instance_uid)

    def key(self, row: Row) -> str:
        for found in (
            self._by_number.get((row.session_label, row.series_number, row.dataset), ()),
            self._by_number.get((row.session_label, row.series_number), ()),
        ):
            if row.series_number and len(found) == 1:
                return next(iter(found))
        return f"no UID, number {row.series_number}" if row.series_number else f"no UID, {row.dataset}"


def _number(found: Sequence[_Series]) -> None:
    """Give a scan ID to each series of one session that has none."""
    taken = {series.scan_id.casefold() for series in found if series.scan_id}
    given = {series.base.casefold() for series in found if series.scan_id}
    for travels in (True, False):
        newcomers: dict[str, list[_Series]] = defaultdict(list)
        for series in found:
            if not series.scan_id and series.travels is travels:
                newcomers[series.base.casefold()].append(series)
        rest: list[_Series] = []
        for base, sharing in newcomers.items():
            # Studies joined in one session are numbered as if they had been merged one by one.
            sharing.sort(key=lambda series: (series.date or "9", series.study, series.uid))
            alone = sum(series.study == sharing[0].study for series in sharing) == 1
            if alone and base not in taken | given:
                sharing[0].scan_id = sharing[0].base
                taken.add(base)
                del sharing[0]
            given.add(base)
            rest += sharing
        for series in rest:
            series.scan_id = free_scan_id(series.base, xnattypes.series_modality(series.modalities), taken)
            taken.add(series.scan_id.casefold())


def free_scan_id(base: str, modality: str, taken: Collection[str]) -> str:
    """Return the first of `5-CT1`, `5-CT2`, ... that is not in `taken` (case-folded scan IDs)."""
    numbered = (f"{base}-{modality}{index}" for index in itertools.count(1))
    return next(scan_id for scan_id in numbered if scan_id.casefold() not in taken)


# --- file names


Name = tuple[str, str, str, str]
"""Session label, scan ID, resource, and a file name in small letters: what has to be unique."""


@dataclass(slots=True)
class _NewName:
    """A row that needs a file name, on its way to one that no other file has."""

    position: int
    file: str
    resource: tuple[str, str, str]
    name: str
    folders: str
    """Folders not used yet, the nearest last, with `/`."""

    def key(self) -> Name:
        return (*self.resource, self.name.lower())

    def add_parent(self) -> None:
        self.folders, _, nearest = self.folders.rpartition("/")
        self.name = safe_name(f"{_NOT_IN_NAMES.sub('_', nearest)}_{self.name}", self.file)


def _file_names(rows: Sequence[Row], scan_ids: Sequence[str], resources: Sequence[str]) -> list[str]:
    """Return each row's file name: those given stay (one of two that are the same), the others are made."""
    names = [row.filename for row in rows]
    taken: set[Name] = set()
    nameless = []
    sent_first = sorted(range(len(rows)), key=lambda position: rows[position].status is not Status.SUCCESS)
    for position in sent_first:
        row = rows[position]
        if not row.session_label:
            continue
        resource = (row.session_label, scan_ids[position], resources[position])
        key = (*resource, row.filename.lower())
        sent = row.status is Status.SUCCESS and row.filename
        if sent or (row.filename and key not in taken and safe_name(row.filename, row.file) == row.filename):
            taken.add(key)
        else:
            folders, _, last = row.file.rpartition("/")
            name = safe_name(row.filename or last, row.file)
            nameless.append(_NewName(position, row.file, resource, name, folders))
    _name_apart(nameless, taken)
    for done in nameless:
        names[done.position] = done.name
    return names


def _name_apart(waiting: list[_NewName], taken: set[Name]) -> None:
    """Add parent folders, to all that clash, until every name is free; number what never differs."""
    moved = True
    while waiting and moved:
        wanted = Counter(one.key() for one in waiting)
        clashing = [one for one in waiting if wanted[one.key()] > 1 or one.key() in taken]
        taken.update(wanted.keys() - {one.key() for one in clashing})
        moved = any(one.folders for one in clashing) or len(clashing) < len(waiting)
        for one in clashing:
            if one.folders:
                one.add_parent()
        waiting = clashing
    next_number: dict[Name, int] = {}
    for one in sorted(waiting, key=lambda one: one.file):
        first, stem, ending = one.key(), *_split(one.name)
        while one.key() in taken:
            next_number[first] = next_number.get(first, 1) + 1
            tail = f"-{next_number[first]}{ending}"
            one.name = f"{stem[: MAX_NAME - len(tail)]}{tail}"
        taken.add(one.key())


def safe_name(name: str, file: str) -> str:
    """Return `name` as XNAT and every file system can hold it; a name cut short is marked by `file`."""
    safe = _NOT_IN_NAMES.sub("_", name)
    if not safe or safe.startswith("."):
        safe = f"_{safe[1:]}"
    if safe.endswith("."):
        safe = f"{safe[:-1]}_"
    if _RESERVED_END.search(safe):
        safe = f"{safe}.dcm"
    if len(safe) > MAX_NAME:
        stem, ending = _split(safe)
        mark = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()[:_HASH]
        safe = f"{stem[: MAX_NAME - _HASH - 1 - len(ending)]}_{mark}{ending}"
    return safe


def _split(name: str) -> tuple[str, str]:
    """Return a name without and with its ending (`.dcm`); what is too long for one is none."""
    stem, dot, ending = name.rpartition(".")
    return (stem, f".{ending}") if dot and stem and len(ending) <= 8 else (name, "")
