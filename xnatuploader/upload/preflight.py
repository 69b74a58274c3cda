"""What the server already holds against what the plan says: nothing is created before these agree.

XNAT moves a session whose label is used under another subject, and adds files of any study to any session, with
status 200 (SubjAssessmentResource.handlePut, FileList.handlePut); so the looking has to be done here.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from xnatuploader import xnat
from xnatuploader.console import report
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Outcome, Row, ScanPlan, SessionPlan, Status
from xnatuploader.scan import placement
from xnatuploader.upload import plan
from xnatuploader.upload.current import CurrentUpload

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cleared:
    """What may be sent, and what the project held before anything was made."""

    sessions: tuple[SessionPlan, ...]
    subjects: Mapping[str, str]
    """Label of each subject of the project -> its ID."""
    session_ids: Mapping[str, str]
    """Label of each session of the project -> its ID."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A session after the look at the server: the plan to follow, or the conflict that keeps it back."""

    session: SessionPlan
    conflict: str = ""
    warning: str = ""


def clear(current: CurrentUpload) -> Cleared:
    """Plan the run, and compare every planned session with what the project holds; conflicts are recorded."""
    rows, selected = current.ready.as_sent()
    planned = plan.build(rows, selected)
    for outcome in (*current.ready.failed.values(), *planned.set_aside):
        current.state.record(outcome)
    subjects = current.server.subjects(current.project)
    there = _with_studies(current, current.server.sessions(current.project))
    studies = ProjectStudies(rows, there, lambda remote: current.server.link(remote.id, current.project))
    listed: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        listed[row.session_label].append(row)
    join = {row.session_label for row in current.state.session_rows if row.join}
    taken = {remote.label for remote in there} | listed.keys()
    going = []
    for session in planned.sessions:
        label = session.session_label
        current.stopping.ask_if_wanted()
        if current.is_stopped:
            break
        plain = _plain_uids(current, listed[label])
        free = next_free_label(label, taken) if "Visit" in current.settings.session_label.fields else ""
        verdict = judge(
            session,
            listed[label],
            there,
            lambda remote: (
                current.server.session_uid(current.project, remote),
                current.server.scans(remote.id),
            ),
            join=label in join,
            plain_uids=plain,
            next_free=free,
        )
        if not verdict.conflict and not _by_headers(current):
            verdict = replace(verdict, conflict=studies.elsewhere(session, plain))
        if verdict.conflict:
            if free and free in verdict.conflict:
                taken.add(free)  # the next one is not told to take the same
            _keep_back(current, session, verdict.conflict)
            continue
        if verdict.warning:
            current.state.warn(label, verdict.warning)
        going.append(verdict.session)
    return Cleared(tuple(going), subjects, {remote.label: remote.id for remote in reversed(there)})


def _by_headers(current: CurrentUpload) -> bool:
    """Tell whether XNAT is to choose the labels itself, so that those of the sheet say nothing."""
    return current.options.importing is not None and current.options.importing.by_headers


def _with_studies(current: CurrentUpload, there: Sequence[xnat.RemoteSession]) -> list[xnat.RemoteSession]:
    """Return the sessions of the project with their studies, as far as XNAT's list tells."""
    uids = current.server.study_uids(current.project) if there else {}
    return [replace(remote, uid=remote.uid or uids.get(remote.id, "")) for remote in there]


class ProjectStudies:
    """Which studies the project holds, and which labels this workbook gives them.

    `rows` are all rows of the sheet, `there` the sessions of the project; `link` gives a session's page.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        there: Iterable[xnat.RemoteSession],
        link: Callable[[xnat.RemoteSession], str],
    ) -> None:
        self._link = link
        self._held: dict[str, list[xnat.RemoteSession]] = defaultdict(list)
        for remote in there:
            if remote.uid:
                self._held[remote.uid].append(remote)
        self._labels: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.study_instance_uid in self._held:
                self._labels[row.study_instance_uid].add(row.session_label)

    def elsewhere(self, session: SessionPlan, plain: Collection[str] = ()) -> str:
        """Say that the project holds a study of this session under a label that is none of the sheet's; '' if not.

        XNAT would keep a second copy without a word. `plain` are the studies' UIDs before de-identification: what
        has one of them was sent without it, and is nobody's own. A session that tells no study is not compared.
        """
        label = session.session_label
        unsent = {row.study_instance_uid for row in session.rows if row.status is not Status.SUCCESS}
        for uid in sorted({*unsent, *plain} & self._held.keys()):
            holders = self._held[uid]
            known = {label} if uid in plain else {label, *self._labels[uid]}
            strange = next((remote for remote in holders if remote.label not in known), None)
            if strange is None or any(remote.label == label for remote in holders):
                continue
            moved = strange.subject_label not in ("", session.subject)
            name = f"{strange.label}{f' of subject {strange.subject_label}' if moved else ''}"
            if uid in plain:
                return (
                    f"The project holds this study without de-identification as session {name} "
                    f"({self._link(strange)}). Have that session removed, or set Upload to N."
                )
            cells = "Subject and SessionLabel" if moved else "SessionLabel"
            return (
                f"The project holds this study as session {name} ({self._link(strange)}). Write "
                f"{'them' if moved else 'that label'} in {cells}, or set Upload to N."
            )
        return ""


def _plain_uids(current: CurrentUpload, listed: Sequence[Row]) -> frozenset[str]:
    """Return the studies as they are before de-identification: found there, they were sent without it."""
    if current.ready.deidentifier is None:
        return frozenset()
    files = {row.file for row in listed}
    return frozenset(row.study_instance_uid for row in current.ready.rows if row.file in files)


def _keep_back(current: CurrentUpload, session: SessionPlan, conflict: str) -> None:
    count = len(session.rows)
    not_sent = f"{report.plural(count, 'file')} {'is' if count == 1 else 'are'} not sent."
    logger.warning("%s: %s %s", session.session_label, not_sent, conflict)
    for row in session.rows:
        current.state.record(Outcome(row.file, Status.CONFLICT, conflict))


def judge(
    session: SessionPlan,
    listed: Sequence[Row],
    there: Sequence[xnat.RemoteSession],
    look: Callable[[xnat.RemoteSession], tuple[str, Sequence[xnat.RemoteScan]]],
    *,
    join: bool = False,
    plain_uids: Collection[str] = (),
    next_free: str = "",
) -> Verdict:
    """Compare one planned session with the sessions of the project.

    `listed` are all rows of the sheet under its label, sent ones included. `look` asks the server for the study's UID
    and the scans of a session, and is called only where the session exists. `plain_uids` are the studies' UIDs before
    de-identification: a session there that holds one was sent without it. `next_free` is named in a conflict of
    studies as the label to take.
    """
    same = next((remote for remote in there if remote.label == session.session_label), None)
    if same is None:
        alike = next((r for r in there if r.label.casefold() == session.session_label.casefold()), None)
        if alike is not None:
            return Verdict(session, f"The project has a session '{alike.label}', which differs from "
                          f"'{session.session_label}' only in case. Write the label the same way, or choose "
                          "another in SessionLabel.")  # fmt: skip
        return Verdict(session)
    if same.subject_label and same.subject_label != session.subject:
        return Verdict(session, f"The project has a session '{same.label}' under subject {same.subject_label}, not "
                      f"{session.subject}: XNAT would move it. Correct Subject, or choose another "
                      "SessionLabel.")  # fmt: skip
    uid, scans = look(same)
    same = replace(same, uid=uid)
    if same.uid and same.uid in plain_uids:
        return Verdict(session, f"Session '{same.label}' on XNAT holds this study without de-identification: cleaned "
                      "files are not mixed with it. Have that session removed, or choose another "
                      "SessionLabel.")  # fmt: skip
    contradiction, warning = _same_visit(same, scans, listed)
    if contradiction and not join:
        advice = f" The next free label is {next_free}." if next_free else ""
        return Verdict(session, f"{contradiction} If it is the same visit, set Join to Y in the Sessions sheet; "
                      f"if not, choose another SessionLabel.{advice}")  # fmt: skip
    return Verdict(
        _onto_existing(replace(session, exists=same.id, xsi_type=same.xsi_type or session.xsi_type), scans),
        warning=contradiction or warning,
    )


def _same_visit(
    same: xnat.RemoteSession, scans: Sequence[xnat.RemoteScan], listed: Sequence[Row]
) -> tuple[str, str]:
    """Return (contradiction, warning) for a session that exists under the planned label and subject."""
    studies = {row.study_instance_uid for row in listed if row.study_instance_uid}
    if same.uid and studies:
        if same.uid in studies:
            return "", ""
        return f"Session '{same.label}' on XNAT holds another study (StudyInstanceUID {same.uid}).", ""
    series = {row.series_instance_uid for row in listed if row.series_instance_uid}
    if series & {scan.uid for scan in scans if scan.uid}:
        return "", ""
    dates = {xnattypes.iso_date(row.study_date) for row in listed} - {""}
    if same.date and dates and same.date not in dates:
        return (
            f"Session '{same.label}' on XNAT is dated {same.date}, the files {', '.join(sorted(dates))}.",
            "",
        )
    return "", (
        f"Session '{same.label}' on XNAT does not say which study it holds; nothing in its subject or date differs, "
        "so files are added to it."
    )


def _onto_existing(session: SessionPlan, scans: Sequence[xnat.RemoteScan]) -> SessionPlan:
    """Give every planned scan the ID that its series has, or may have, in the session there."""
    by_uid = {scan.uid: scan for scan in scans if scan.uid}
    by_id = {scan.id: scan for scan in scans}
    taken = {*by_id, *(scan.scan_id for scan in session.scans)}
    fitted: list[ScanPlan] = []
    for scan in session.scans:
        uid = scan.series_uid
        there = by_uid.get(uid) if uid else None
        if there is None:
            there = by_id.get(scan.scan_id)
            if there is not None and uid and there.uid and there.uid != uid:
                new_id = placement.free_scan_id(
                    _number(scan.scan_id),
                    xnattypes.scan_word(scan.xsi_type),
                    {one.casefold() for one in taken},
                )
                taken.add(new_id)
                fitted.append(replace(scan, scan_id=new_id))
                continue
        if there is not None:
            scan = replace(scan, scan_id=there.id, xsi_type=there.xsi_type or scan.xsi_type, exists=True)
        fitted.append(scan)
    fitted = [replace(scan, untold=_untold(scan, scans)) for scan in fitted]
    renumbered = any(old.scan_id != new.scan_id for old, new in zip(session.scans, fitted, strict=True))
    reason = session.post_steps_reason or (plan.RENUMBERED if renumbered else "")
    named = (replace(scan, scan_type=placement.type_for(_plain(scan.scan_type), taken)) for scan in fitted)
    return replace(session, scans=tuple(named), post_steps=not reason, post_steps_reason=reason)


def _untold(scan: ScanPlan, scans: Sequence[xnat.RemoteScan]) -> tuple[str, ...]:
    """Return the other scans there that may hold images of a series: an image belongs to one series (PS3.3 A.1.2.3)."""
    return tuple(one.id for one in scans if one.id != scan.scan_id and one.uid in ("", scan.series_uid))


def _plain(scan_type: str) -> str:
    return scan_type.removeprefix("Series ")


def _number(scan_id: str) -> str:
    """Return the series number that an ID such as `5-CT1` was made of."""
    return re.sub(r"-[A-Z]+\d+$", "", scan_id)


def next_free_label(label: str, taken: Iterable[str]) -> str:
    """Return `label` with its last number raised to the first that nobody has; '' where it ends in none."""
    match = re.fullmatch(r"(.*?)(\d+)", label)
    if not match:
        return ""
    used = {other.casefold() for other in taken}
    number = int(match[2]) + 1
    while f"{match[1]}{number}".casefold() in used:
        number += 1
    return f"{match[1]}{number}"
