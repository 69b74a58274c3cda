"""Guards: what the project holds against what is planned, before anything is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xnatuploader import xnat
from xnatuploader.records import ResourcePlan, Row, ScanPlan, SessionPlan
from xnatuploader.upload import plan, preflight

STUDY, SERIES = "1.2.3", "1.2.3.4"
SCAN = ScanPlan("5", "Chest", "xnat:ctScanData", SERIES)
SESSION = SessionPlan("S1", "S1_CT1", "xnat:ctSessionData", "2020-03-12", STUDY, "CT", scans=(SCAN,))
ROW = Row(
    "a.dcm", session_label="S1_CT1", subject="S1", scan_id="5", study_date="20200312", study_instance_uid=STUDY,
    series_instance_uid=SERIES,
)  # fmt: skip
THERE = xnat.RemoteSession("E1", "S1_CT1", "XS1", "S1", "xnat:ctSessionData", "2020-03-12")


def judge(
    *there: xnat.RemoteSession,
    session: SessionPlan = SESSION,
    rows: tuple[Row, ...] = (ROW,),
    uid: str = STUDY,
    scans: tuple[xnat.RemoteScan, ...] = (),
    **more: Any,
) -> preflight.Verdict:
    return preflight.judge(session, rows, there, lambda _: (uid, scans), **more)


def never(_: xnat.RemoteSession) -> Any:
    raise AssertionError("nothing has to be asked about a session that is not there")


def test_a_new_session_is_not_asked_about_and_goes_as_planned() -> None:
    other = replace(THERE, label="S2_CT1")
    judged = preflight.judge(SESSION, [ROW], [other], never)
    assert judged == preflight.Verdict(SESSION)


def test_the_same_study_is_added_to_without_a_word() -> None:
    judged = judge(THERE)
    assert (judged.conflict, judged.warning) == ("", "")
    assert judged.session.exists == "E1"


def test_a_session_keeps_the_type_that_it_has() -> None:
    assert judge(replace(THERE, xsi_type="xnat:petSessionData")).session.xsi_type == "xnat:petSessionData"
    assert judge(replace(THERE, xsi_type="")).session.xsi_type == "xnat:ctSessionData"


def test_another_subject_is_a_conflict_even_with_join() -> None:
    judged = judge(replace(THERE, subject_label="Other"), join=True)
    assert "under subject Other" in judged.conflict


def test_a_label_that_differs_in_case_is_a_conflict() -> None:
    assert "only in case" in judge(replace(THERE, label="s1_ct1")).conflict


@pytest.mark.parametrize("join", [False, True])
def test_another_study_is_a_conflict_unless_joined(join: bool) -> None:
    judged = judge(THERE, uid="9.9", join=join)
    assert ("9.9" in judged.conflict) == (not join)
    assert ("9.9" in judged.warning) == join


def test_a_study_of_which_something_was_sent_before_is_no_stranger() -> None:
    """Rows that say success count among those under the label: the second study of a day came by hand."""
    assert judge(THERE, uid="7.7", rows=(ROW, replace(ROW, study_instance_uid="7.7"))).conflict == ""


def test_a_known_series_vouches_for_a_session_without_study() -> None:
    scans = (xnat.RemoteScan("5", uid=SERIES),)
    judged = judge(replace(THERE, date="1999-01-01"), uid="", scans=scans)
    assert (judged.conflict, judged.warning) == ("", "")


def test_without_study_and_series_the_date_decides() -> None:
    assert "1999-01-01" in judge(replace(THERE, date="1999-01-01"), uid="").conflict
    same = judge(THERE, uid="")
    assert same.conflict == ""
    assert "does not say which study" in same.warning
    assert "does not say which study" in judge(replace(THERE, date=""), uid="").warning


def test_a_conflict_names_the_next_free_label() -> None:
    assert "S1_CT3" in judge(THERE, uid="9", next_free="S1_CT3").conflict


def test_a_scan_id_of_another_series_is_left_to_it() -> None:
    judged = judge(THERE, scans=(xnat.RemoteScan("5", uid="8.8"), xnat.RemoteScan("5-CT1", uid="8.9")))
    (scan,) = judged.session.scans
    assert (scan.scan_id, scan.exists) == ("5-CT2", False)
    assert judged.session.post_steps_reason == plan.RENUMBERED


def test_two_newcomers_never_take_one_id() -> None:
    second = ScanPlan("5-CT1", "Chest", "xnat:ctScanData", "1.2.3.5")
    session = replace(SESSION, scans=(SCAN, second))
    judged = judge(THERE, session=session, scans=(xnat.RemoteScan("5", uid="8.8"),))
    ids = [scan.scan_id for scan in judged.session.scans]
    assert len(set(ids)) == 2
    assert "5" not in ids


def test_a_series_that_is_there_under_another_id_goes_there() -> None:
    judged = judge(THERE, scans=(xnat.RemoteScan("77", "Scout", "xnat:mrScanData", SERIES),))
    (scan,) = judged.session.scans
    assert (scan.scan_id, scan.exists, scan.xsi_type) == ("77", True, "xnat:mrScanData")


def test_a_scan_without_series_uid_is_taken_by_its_id() -> None:
    (scan,) = judge(THERE, scans=(xnat.RemoteScan("5"),)).session.scans
    assert (scan.scan_id, scan.exists) == ("5", True)
    assert judge(THERE, scans=(xnat.RemoteScan("5"),)).session.post_steps


def test_a_type_that_a_scan_there_has_as_id_is_written_out() -> None:
    session = replace(SESSION, scans=(replace(SCAN, scan_type="9"),))
    (scan,) = judge(THERE, session=session, scans=(xnat.RemoteScan("9", uid="8"),)).session.scans
    assert scan.scan_type == "Series 9"


@pytest.mark.parametrize(
    ("label", "taken", "free"),
    [
        ("S_CT1", [], "S_CT2"),
        ("S_CT1", ["S_CT2", "s_ct3"], "S_CT4"),
        ("S_CT9", ["S_CT10"], "S_CT11"),
        ("Baseline", [], ""),
    ],
)
def test_the_next_free_label(label: str, taken: list[str], free: str) -> None:
    assert preflight.next_free_label(label, taken) == free


# ---- the study under another label

OTHER = xnat.RemoteSession("E2", "S1_MR1", "XS1", "S1", "xnat:ctSessionData", "2020-03-12", STUDY)


def elsewhere(*there: xnat.RemoteSession, rows: tuple[Row, ...] = (ROW,), **more: Any) -> str:
    session = replace(SESSION, scans=(replace(SCAN, resources=(ResourcePlan("DICOM", (ROW,)),)),))
    studies = preflight.ProjectStudies(rows, there, lambda found: f"http://x/{found.id}")
    return studies.elsewhere(session, **more)


def test_a_study_that_the_project_holds_under_another_label_is_a_conflict() -> None:
    said = elsewhere(OTHER)
    assert "as session S1_MR1 (http://x/E2)" in said
    assert "SessionLabel" in said


def test_another_subject_is_named_with_the_label() -> None:
    assert "session S1_MR1 of subject S9" in elsewhere(replace(OTHER, subject_label="S9"))


def test_a_study_under_its_own_label_or_unknown_is_none() -> None:
    assert elsewhere() == ""
    assert elsewhere(replace(OTHER, uid="")) == ""
    assert elsewhere(replace(OTHER, uid="7.7")) == ""
    assert elsewhere(OTHER, replace(THERE, uid=STUDY)) == "", "the label holds the study: a series is welcome"


def test_a_label_that_this_workbook_gives_the_study_too_is_no_stranger() -> None:
    assert elsewhere(OTHER, rows=(ROW, replace(ROW, file="b.dcm", session_label="S1_MR1"))) == ""


def test_a_study_that_went_there_without_de_identification_is_a_conflict() -> None:
    said = elsewhere(replace(OTHER, uid="1.1"), plain={"1.1"})
    assert "without de-identification" in said
    both = (ROW, replace(ROW, file="b.dcm", session_label="S1_MR1"))
    assert elsewhere(replace(OTHER, uid="1.1"), rows=both, plain={"1.1"}) != ""
