"""What the server already holds against what the plan says: nothing is created before these agree.

XNAT moves a session whose label is used under another subject, and adds files of any study to any session, with
status 200 (SubjAssessmentResource.handlePut, FileList.handlePut); so the looking has to be done here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from xnatuploader import xnat
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Row, ScanPlan, SessionPlan
from xnatuploader.scan import placement
from xnatuploader.upload import plan


@dataclass(frozen=True, slots=True)
class Judged:
    """A session after the look at the server: the plan to follow, or the conflict that keeps it back."""

    session: SessionPlan
    conflict: str = ""
    warning: str = ""


def judge(
    session: SessionPlan,
    listed: Sequence[Row],
    there: Sequence[xnat.RemoteSession],
    uid_of: Callable[[xnat.RemoteSession], str],
    scans_of: Callable[[xnat.RemoteSession], Sequence[xnat.RemoteScan]],
    *,
    join: bool = False,
    plain_uids: Collection[str] = (),
    next_free: str = "",
) -> Judged:
    """Compare one planned session with the sessions of the project.

    `listed` are all rows of the sheet under its label, sent ones included. `uid_of` and `scans_of` ask the server
    for the study and the scans of a session, and are called only where the session exists. `plain_uids` are the
    studies' UIDs before de-identification: a session there that holds one was sent without it. `next_free` is named
    in a conflict of studies as the label to take.
    """
    same = next((remote for remote in there if remote.label == session.session_label), None)
    if same is None:
        alike = next((r for r in there if r.label.casefold() == session.session_label.casefold()), None)
        if alike is not None:
            return Judged(session, f"The project has a session '{alike.label}', which differs from "
                          f"'{session.session_label}' only in case. Write the label the same way, or choose "
                          "another in SessionLabel.")  # fmt: skip
        return Judged(session)
    if same.subject_label and same.subject_label != session.subject:
        return Judged(session, f"The project has a session '{same.label}' under subject {same.subject_label}, not "
                      f"{session.subject}: XNAT would move it. Correct Subject, or choose another "
                      "SessionLabel.")  # fmt: skip
    same = replace(same, uid=uid_of(same))
    scans = scans_of(same)
    if same.uid and same.uid in plain_uids:
        return Judged(session, f"Session '{same.label}' on XNAT holds this study without de-identification: cleaned "
                      "files are not mixed with it. Have that session removed, or choose another "
                      "SessionLabel.")  # fmt: skip
    contradiction, warning = _same_visit(same, scans, listed)
    if contradiction and not join:
        advice = f" The next free label is {next_free}." if next_free else ""
        return Judged(session, f"{contradiction} If it is the same visit, set Join to Y in the Sessions sheet; "
                      f"if not, choose another SessionLabel.{advice}")  # fmt: skip
    return Judged(
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
            f"Session '{same.label}' on XNAT is of {same.date}, the files are of {', '.join(sorted(dates))}.",
            "",
        )
    return "", (
        f"Session '{same.label}' on XNAT does not say which study it holds; subject and date do not contradict, "
        "so files are added to it."
    )


def _onto_existing(session: SessionPlan, scans: Sequence[xnat.RemoteScan]) -> SessionPlan:
    """Give every planned scan the ID under which its series stands, or may stand, in the session there."""
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
    renumbered = any(old.scan_id != new.scan_id for old, new in zip(session.scans, fitted, strict=True))
    reason = session.post_steps_reason or (plan.RENUMBERED if renumbered else "")
    named = (replace(scan, scan_type=placement.type_for(_plain(scan.scan_type), taken)) for scan in fitted)
    return replace(session, scans=tuple(named), post_steps=not reason, post_steps_reason=reason)


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
