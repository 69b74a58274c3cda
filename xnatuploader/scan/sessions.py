"""One row per session: what it holds, how far it is, what is odd about it, and whether its files are sent.

Pure: rows of the Files sheet in, rows of the Sessions sheet out. The columns that people fill in (Upload,
Release review, Join) and Link stay as they were.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from xnatuploader import records
from xnatuploader.console import report
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Outcome, Row, SessionRow, Status

Key = tuple[str, str]
"""Subject and session label."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")
_ENOUGH_FOR_STEPS = 5
_NAMED_AT_MOST = 3
"""How many scans a warning names before it counts the rest."""


def session_rows(rows: Sequence[Row], previous: Sequence[SessionRow] = ()) -> tuple[SessionRow, ...]:
    """Return the Sessions sheet: the rows of `previous` in their order, then new ones by date and subject.

    Files counts what is selected (Upload yes, review files that are released) or was sent; Done, Failed and
    Left add up to it. A session that no row names any more keeps its row, with counts of 0.
    """
    found = _by_session(rows)
    shared = _SharedImages(row for group in found.values() for row in group)
    result = [_summary(old, found.pop((old.subject, old.session_label), []), shared) for old in previous]
    # A new name for a session that was taken out (a corrected Subject) must not bring it back.
    taken_out = {old.session_label for old in previous if not old.upload}
    new = [
        _summary(SessionRow(subject, label, upload=label not in taken_out), group, shared)
        for (subject, label), group in found.items()
    ]
    # A session without a date comes after those that have one.
    return (*result, *sorted(new, key=lambda row: (not row.date, row.date, row.subject, row.session_label)))


def _by_session(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Group rows by subject and label; one whose Subject Excel made a number goes with the rest of its label."""
    found: dict[Key, list[Row]] = {}
    doubted = []
    for row in rows:
        if not has_session(row):
            continue
        if row.doubt:
            doubted.append(row)
        else:
            found.setdefault((row.subject, row.session_label), []).append(row)
    if doubted:
        keys: dict[str, list[Key]] = defaultdict(list)
        for key in found:
            keys[key[1]].append(key)
        for row in doubted:
            own = row.subject, row.session_label
            others = keys[row.session_label]
            found.setdefault(own if own in others or len(others) != 1 else others[0], []).append(row)
    return found


class Gate:
    """Tells whether a file may be sent: its own row and its session's row must both say yes."""

    def __init__(self, session_rows: Iterable[SessionRow]) -> None:
        self._by_key: dict[Key, SessionRow] = {}
        self._taken_out: set[str] = set()
        for row in session_rows:
            self._by_key[row.subject, row.session_label] = row
            if not row.upload:
                self._taken_out.add(row.session_label)

    def __call__(self, row: Row) -> bool:
        """Tell whether a run tries this row.

        The row must have a status that is tried and Upload yes, or be a review file of a session whose
        Release review says yes. A session without a row of its own says yes (1.x workbooks have no Sessions
        sheet), but an N on a label holds for whatever Subject its rows have by now.
        """
        tried = row.status in records.TRIED_AT_UPLOAD
        return tried and self.open(row) and (row.upload or self._released(row))

    def open(self, row: Row) -> bool:
        """Tell whether the row's session says yes."""
        session = self._by_key.get((row.subject, row.session_label))
        return session.upload if session is not None else row.session_label not in self._taken_out

    def _released(self, row: Row) -> bool:
        session = self._by_key.get((row.subject, row.session_label))
        waiting = row.status is Status.REVIEW or records.RELEASED in row.message
        return waiting and session is not None and session.release_review


def still_released(outcome: Outcome) -> Outcome:
    """Note in an outcome that is no success that the file had been released, so that the next run tries it again.

    Its row says N, because Release review stands in the Sessions sheet, and its status is no longer `review`.
    """
    final = outcome.status is Status.SUCCESS or outcome.upload == records.NOT_SELECTED
    if final or records.RELEASED in outcome.message:
        return outcome
    return replace(outcome, message=f"{outcome.message} {records.RELEASED}".strip())


def has_session(row: Row) -> bool:
    """Tell whether a row counts as a file of the session whose label it has."""
    if not row.session_label or row.status is Status.UNMATCHED:
        return False
    return row.status is not Status.SKIPPED or row.upload


def _summary(old: SessionRow, rows: Sequence[Row], shared: _SharedImages) -> SessionRow:
    """Return `old` with its counts made anew from `rows`."""
    selected = [row for row in rows if _is_selected(row, old)]
    statuses = Counter(row.status for row in selected)
    done = statuses[Status.SUCCESS]
    failed = statuses[Status.FAILED] + statuses[Status.CONFLICT] + statuses[Status.MISSING]
    return replace(
        old,
        date=min(filter(None, (xnattypes.iso_date(row.study_date) for row in rows)), default=""),
        modality=xnattypes.leading_modality((row.sop_class_uid, row.modality) for row in rows)
        if rows
        else "",
        scans=len({row.scan_id or row.series_instance_uid for row in selected}),
        files=len(selected),
        size=sum(int(row.size) for row in selected if row.size.isdecimal()),
        done=done,
        failed=failed,
        left=len(selected) - done - failed,
        warnings="; ".join(_warnings(old, rows, selected, shared)),
    )


def _is_selected(row: Row, session: SessionRow) -> bool:
    return (
        row.upload or row.status is Status.SUCCESS or (row.status is Status.REVIEW and session.release_review)
    )


# --- warnings


def _warnings(
    session: SessionRow, rows: Sequence[Row], selected: Sequence[Row], shared: _SharedImages
) -> Iterator[str]:
    """Yield what a person should know before the session is sent, the gravest first."""
    if not selected:
        yield "no file is selected" if rows else "no file is listed"
    left_out = Counter(row.status for row in rows if not _is_selected(row, session))
    conflicts = sum(row.status is Status.CONFLICT for row in rows)
    if conflicts:
        yield f"{report.plural(conflicts, 'file')} in conflict"
    yield from shared.warnings(session, rows)
    yield from _several_studies(rows)
    if left_out[Status.REVIEW]:
        yield f"{report.plural(left_out[Status.REVIEW], 'file')} to review: Y in Release review sends them"
    missing = sum(row.status is Status.MISSING for row in rows)
    if missing:
        yield f"{report.plural(missing, 'file')} not on disk"
    scans: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.status not in (Status.DUPLICATE, Status.MISSING):
            scans[row.scan_id].append(row)
    yield from _some([gap for scan_id, group in scans.items() if (gap := _gap(scan_id, group))], "scan")
    yield from _some([mixed for scan_id, group in scans.items() if (mixed := _mixed(scan_id, group))], "scan")
    if left_out[Status.DUPLICATE]:
        yield f"{report.plural(left_out[Status.DUPLICATE], 'duplicate')} left out"
    yield from _unequal(scans)


def _some(warnings: Sequence[str], noun: str) -> Iterator[str]:
    """Yield the first few; the rest as a number."""
    yield from warnings[:_NAMED_AT_MOST]
    rest = len(warnings) - _NAMED_AT_MOST
    if rest > 0:
        yield f"the same in {report.plural(rest, f'more {noun}')}"


def _several_studies(rows: Iterable[Row]) -> Iterator[str]:
    dates: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.study_instance_uid:
            dates[row.study_instance_uid].add(xnattypes.iso_date(row.study_date))
    if len(dates) > 1:
        known = ", ".join(sorted({min(known - {""}) for known in dates.values() if known - {""}}))
        yield f"{len(dates)} studies in one session" + (f" ({known})" if known else "")


def _gap(scan_id: str, rows: Sequence[Row]) -> str:
    """Say how many images are missing between the first and the last InstanceNumber, '' if none does."""
    numbers = {int(row.instance_number) for row in rows if _INTEGER.fullmatch(row.instance_number.strip())}
    if len(numbers) < 2:
        return ""
    first, last = min(numbers), max(numbers)
    # Some machines count in steps (1, 11, 21, ...); a few images are too few to tell steps from gaps.
    step = math.gcd(*(number - first for number in numbers)) if len(numbers) >= _ENOUGH_FOR_STEPS else 1
    expected = (last - first) // step + 1
    missing = expected - len(numbers)
    if not missing:
        return ""
    return f"scan {scan_id}: {missing} of {expected} images missing between {first} and {last}"


def _mixed(scan_id: str, rows: Sequence[Row]) -> str:
    datasets = {row.dataset for row in rows if row.dataset}
    return f"scan {scan_id}: {len(datasets)} Datasets in one series" if len(datasets) > 1 else ""


def _unequal(scans: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Mention series of one description that have different numbers of images."""
    alike: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for scan_id, rows in scans.items():
        if rows[0].series_description:
            alike[rows[0].modality, rows[0].series_description][scan_id] = len(rows)
    for counts in alike.values():
        if len(set(counts.values())) > 1:
            named = list(counts.items())[:_NAMED_AT_MOST]
            yield "images per scan differ: " + ", ".join(f"{count} in {scan_id}" for scan_id, count in named)
            return


class _SharedImages:
    """Images that are listed for several sessions."""

    def __init__(self, rows: Iterable[Row]) -> None:
        first: dict[str, Key] = {}
        self._shared: dict[str, set[Key]] = {}
        for row in rows:
            if row.sop_instance_uid and row.status is not Status.MISSING:
                key = row.subject, row.session_label
                other = first.setdefault(row.sop_instance_uid, key)
                if other != key:
                    self._shared.setdefault(row.sop_instance_uid, {other}).add(key)

    def warnings(self, session: SessionRow, rows: Iterable[Row]) -> Iterator[str]:
        """Yield with whom this session shares images; another subject is named before another session."""
        if not self._shared:
            return
        mine = session.subject, session.session_label
        counts: Counter[tuple[bool, str]] = Counter()
        for uid in {row.sop_instance_uid for row in rows}:
            others = self._shared.get(uid, set()) - {mine}
            counts.update(
                {
                    (True, f"session {label}")
                    if subject == session.subject
                    else (False, f"subject {subject}")
                    for subject, label in others
                }
            )
        named = [
            f"{report.plural(counts[other], 'image')} also listed for {other[1]}" for other in sorted(counts)
        ]
        yield from _some(named, "session")
