"""Rows to what an upload sends where. Pure: no server, no files; `--test` prints what comes out of here.

Labels, scan IDs and names come from the rows, never from what is left to do, so that a second run plans the
same addresses as the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from xnatuploader import records
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Outcome, ResourcePlan, Row, ScanPlan, SessionPlan, SessionRow, Status
from xnatuploader.scan import labels, placement, sessions

SEVERAL_STUDIES = "the session holds several studies, and XNAT would split them again"
RENUMBERED = "a scan has another ID than its SeriesNumber, and XNAT would add it a second time"
MIXED_SERIES = "a series mixes modalities, and XNAT would split it"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is going to do."""

    sessions: tuple[SessionPlan, ...] = ()
    set_aside: tuple[Outcome, ...] = ()
    """Files that cannot be sent as their rows are now, each with the reason."""

    @property
    def scans(self) -> int:
        """Number of scans to look at."""
        return sum(len(session.scans) for session in self.sessions)

    @property
    def files(self) -> int:
        """Number of files to look at."""
        return sum(len(session.rows) for session in self.sessions)


def select(
    rows: Sequence[Row], session_rows: Sequence[SessionRow], *, again: bool = False
) -> tuple[Row, ...]:
    """Return the rows that a run tries; `again` adds those that say success (`--verify`, `--overwrite`)."""
    travels = sessions.Gate(session_rows)
    chosen = tuple(
        row for row in rows if travels(row) or (again and row.status is Status.SUCCESS and row.session_label)
    )
    if len({row.file for row in rows}) == len(rows):
        return chosen
    # A person copied rows. What became of a file is written into all of its rows, so it travels once, and
    # only where none of them says no.
    refused = {row.file for row in rows if not row.upload and not travels(row)}
    once = {row.file: row for row in reversed(chosen) if row.file not in refused}
    return tuple(row for row in chosen if once.get(row.file) is row)


def build(rows: Sequence[Row], selected: Sequence[Row]) -> Plan:
    """Group `selected` into sessions, scans and resources; `rows` are all rows of the workbook.

    A row with a doubt, without a session or scan, or whose label belongs to different subjects or visits is set aside.
    """
    clashes = labels.label_conflicts(rows)
    set_aside: list[Outcome] = []
    by_session: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in selected:
        kept_back = _kept_back(row, clashes)
        if kept_back is not None:
            set_aside.append(kept_back)
        else:
            by_session[row.subject, row.session_label].append(row)
    listed: dict[str, list[Row]] = defaultdict(list)
    wanted = {label for _, label in by_session}
    for row in rows:
        if row.session_label in wanted and labels.takes_part(row):
            listed[row.session_label].append(row)
    plans = tuple(
        _session_plan(subject, label, going, listed[label]) for (subject, label), going in by_session.items()
    )
    return Plan(plans, tuple(set_aside))


def _kept_back(row: Row, clashes: Mapping[str, str]) -> Outcome | None:
    if row.doubt:
        return Outcome(row.file, Status.CONFLICT, row.doubt)
    if row.file in clashes:
        return Outcome(row.file, Status.CONFLICT, clashes[row.file])
    if row.status is Status.CONFLICT and not row.session_label:
        return Outcome(row.file, Status.CONFLICT, row.message)
    needed = {
        "Subject": row.subject,
        "SessionLabel": row.session_label,
        "ScanID": row.scan_id,
        "Filename": row.filename,
    }
    lacking = [name for name, value in needed.items() if not value]
    if lacking:
        return Outcome(
            row.file, Status.FAILED, f"{' and '.join(lacking)} empty: run scan again, or fill the cells in."
        )
    return None


def _session_plan(subject: str, label: str, going: Sequence[Row], listed: Sequence[Row]) -> SessionPlan:
    """Plan one session: `going` are the rows to look at, `listed` all rows that carry its label."""
    by_scan: dict[str, list[Row]] = defaultdict(list)
    for row in going:
        by_scan[row.scan_id].append(row)
    scan_ids = {row.scan_id for row in listed if row.scan_id}
    scans = tuple(_scan_plan(scan_id, rows, scan_ids) for scan_id, rows in by_scan.items())
    placed = [row for row in listed if row.scan_id]
    studies = {row.study_instance_uid for row in placed if row.study_instance_uid}
    first = min(going, key=lambda row: (row.study_date, row.file))
    reason = why_not_pulled(placed)
    return SessionPlan(
        subject=records.label(subject),
        session_label=label,
        xsi_type=xnattypes.session_type((row.sop_class_uid, row.modality) for row in placed),
        date=min(filter(None, (xnattypes.iso_date(row.study_date) for row in placed)), default=""),
        uid=next(iter(studies)) if len(studies) == 1 else "",
        modality=xnattypes.leading_modality((row.sop_class_uid, row.modality) for row in placed),
        manufacturer=first.manufacturer,
        model=first.manufacturer_model_name,
        scans=scans,
        post_steps=not reason,
        post_steps_reason=reason,
    )


def _scan_plan(scan_id: str, rows: Sequence[Row], scan_ids: Collection[str]) -> ScanPlan:
    by_resource: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_resource[row.resource or "DICOM"].append(row)
    classes = {row.sop_class_uid for row in rows if row.sop_class_uid}
    datasets = Counter(row.dataset for row in rows if row.dataset)
    return ScanPlan(
        scan_id=scan_id,
        scan_type=placement.type_for(datasets.most_common(1)[0][0] if datasets else "", scan_ids),
        xsi_type=xnattypes.scan_type(classes, next((row.modality for row in rows if row.modality), "")),
        series_uid=next((row.series_instance_uid for row in rows if row.series_instance_uid), ""),
        series_description=next((row.series_description for row in rows if row.series_description), ""),
        resources=tuple(ResourcePlan(name, tuple(group)) for name, group in by_resource.items()),
    )


def why_not_pulled(placed: Sequence[Row]) -> str:
    """Say why XNAT must not rebuild a session from its headers; empty where it may.

    `pullDataFromHeaders` makes scans by study, series number and modality anew, so that scans which stand
    under other IDs would appear a second time (XNAT: PullSessionDataFromHeaders).
    """
    if len({row.study_instance_uid for row in placed if row.study_instance_uid}) > 1:
        return SEVERAL_STUDIES
    if any(row.series_number and row.scan_id != row.series_number for row in placed):
        return RENUMBERED
    modalities: dict[str, set[str]] = defaultdict(set)
    for row in placed:
        modalities[row.scan_id].add(row.modality)
    return MIXED_SERIES if any(len(words) > 1 for words in modalities.values()) else ""


def in_words(plan: Plan, project: str) -> str:
    """Write the plan for people: what `--test` prints. It names files, as asked for."""
    lines = []
    for session in plan.sessions:
        lines.append(
            f"{project or '(no project)'} / {session.subject} / {session.session_label}"
            f"  {session.xsi_type}  {session.date or 'no date'}  {len(session.rows)} files"
        )
        for scan in session.scans:
            lines.append(f"  scan {scan.scan_id}  {scan.scan_type}  {scan.xsi_type}")
            for resource in scan.resources:
                lines += [f"    {row.file} -> {resource.label}/{row.filename}" for row in resource.rows]
        if session.post_steps_reason:
            lines.append(f"  XNAT will not be asked to read the headers: {session.post_steps_reason}")
    for outcome in plan.set_aside:
        lines.append(f"not sent ({outcome.status}): {outcome.file}: {outcome.message}")
    return "\n".join(lines)


def lacks_columns(row: Row) -> bool:
    """Tell whether a row must be completed from its file's header before it can be placed (1.x workbooks)."""
    uids = row.study_instance_uid and row.series_instance_uid and row.sop_instance_uid
    return not (row.scan_id and row.resource and uids)


def one_per_series(rows: Iterable[Row]) -> list[Row]:
    """Choose one row per series and resource, whose header tells for all what no column holds (the SOP class)."""
    seen: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        seen.setdefault((row.session_label, row.scan_id, row.resource), row)
    return list(seen.values())
