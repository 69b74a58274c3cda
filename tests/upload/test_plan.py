"""The plan: what goes where follows from the sheet alone, whatever is left to do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnatuploader.records import Row, SessionRow, Status
from xnatuploader.upload import plan

CT = "1.2.840.10008.5.1.4.1.1.2"
PT = "1.2.840.10008.5.1.4.1.1.128"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def row(file: str = "a.dcm", **fields: str | bool | Status) -> Row:
    facts: dict[str, object] = {
        "filename": file, "upload": True, "subject": "S1", "session": "20200312", "dataset": "Chest",
        "session_label": "S1_CT1", "scan_id": "5", "resource": "DICOM", "modality": "CT", "sop_class_uid": CT,
        "study_date": "20200312", "series_number": "5", "series_description": "Axial", "manufacturer": "ACME",
        "manufacturer_model_name": "X1", "study_instance_uid": "1.2", "series_instance_uid": "1.2.5",
    }  # fmt: skip
    return Row(file, **{**facts, **fields})  # type: ignore[arg-type]


def build(*rows: Row, selected: tuple[Row, ...] | None = None) -> plan.Plan:
    return plan.build(rows, rows if selected is None else selected)


def test_a_session_says_what_xnat_wants_to_know() -> None:
    (session,) = build(row()).sessions
    assert (session.subject, session.session_label, session.xsi_type) == (
        "S1",
        "S1_CT1",
        "xnat:ctSessionData",
    )
    assert (session.date, session.uid, session.modality) == ("2020-03-12", "1.2", "CT")
    assert (session.manufacturer, session.model, session.exists) == ("ACME", "X1", "")
    (scan,) = session.scans
    assert (scan.scan_id, scan.scan_type, scan.xsi_type) == ("5", "Chest", "xnat:ctScanData")
    assert (scan.series_uid, scan.series_description) == ("1.2.5", "Axial")
    assert [(r.label, len(r.rows)) for r in scan.resources] == [("DICOM", 1)]


def test_what_was_sent_before_still_decides_the_session() -> None:
    """Only a CT is left of a PET/CT: the session stays a PET session."""
    sent = row("p.dcm", modality="PT", sop_class_uid=PT, scan_id="6", series_instance_uid="1.2.6")
    left = row("c.dcm")
    (session,) = build(sent, left, selected=(left,)).sessions
    assert session.xsi_type == "xnat:petSessionData"
    assert [scan.scan_id for scan in session.scans] == ["5"]


def test_secondary_captures_have_a_resource_of_their_own() -> None:
    (session,) = build(row("a"), row("b", resource="secondary"), row("c", resource="")).sessions
    assert [(r.label, [one.file for one in r.rows]) for r in session.scans[0].resources] == [
        ("DICOM", ["a", "c"]),
        ("secondary", ["b"]),
    ]


def test_a_type_like_a_scan_id_of_the_session_is_written_out() -> None:
    (session,) = build(row("a", dataset="6"), row("b", scan_id="6", series_instance_uid="1.2.6")).sessions
    assert [scan.scan_type for scan in session.scans] == ["Series 6", "Chest"]


@pytest.mark.parametrize("field", ["subject", "session_label", "scan_id", "filename"])
def test_a_row_without_a_place_is_set_aside_with_the_column_named(field: str) -> None:
    made = build(row("a"), row("b", **{field: ""}))
    assert [(one.file, one.status) for one in made.set_aside] == [("b", Status.FAILED)]
    names = {
        "subject": "Subject",
        "session_label": "SessionLabel",
        "scan_id": "ScanID",
        "filename": "Filename",
    }
    assert names[field] in made.set_aside[0].message
    assert made.files == 1


def test_a_doubt_is_a_conflict_and_goes_nowhere() -> None:
    made = build(row(doubt="Subject is the number 1 where others hold 0001."))
    assert [(one.status, "0001" in one.message) for one in made.set_aside] == [(Status.CONFLICT, True)]
    assert made.sessions == ()


def test_one_label_for_two_subjects_is_a_conflict_and_never_a_merge() -> None:
    made = build(row("a"), row("b", subject="S2"))
    assert made.sessions == ()
    assert {one.status for one in made.set_aside} == {Status.CONFLICT}


def test_selection_is_what_says_yes_twice_and_is_not_done() -> None:
    rows = [
        row("yes"), row("no", upload=False), row("done", status=Status.SUCCESS),
        row("again", status=Status.FAILED), row("lost", status=Status.MISSING),
        row("elsewhere", session_label="S1_CT2", status=Status.EMPTY),
    ]  # fmt: skip
    sheet = [SessionRow("S1", "S1_CT1"), SessionRow("S1", "S1_CT2", upload=False)]
    assert [one.file for one in plan.select(rows, sheet)] == ["yes", "again", "lost"]
    assert [one.file for one in plan.select(rows, sheet, again=True)] == ["yes", "done", "again", "lost"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row()], ""),
        ([row("a"), row("b", study_instance_uid="9")], plan.SEVERAL_STUDIES),
        ([row("a", scan_id="5-CT1")], plan.RENUMBERED),
        ([row("a"), row("b", modality="SEG", sop_class_uid=SEG)], plan.MIXED_SERIES),
        ([row("a", series_number="")], ""),
    ],
)
def test_headers_are_pulled_only_where_xnat_would_not_split(rows: list[Row], reason: str) -> None:
    (session,) = plan.build(rows, rows).sessions
    assert (session.post_steps, session.post_steps_reason) == (not reason, reason)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 11), min_size=1))
def test_what_is_left_never_changes_where_it_goes(left: set[int]) -> None:
    """Lessons C1 and C35: any part of the rows is planned to the places that all of them have."""
    rows = [
        row(
            f"{number}.dcm", scan_id=str(number % 4), series_number=str(number % 4),
            series_instance_uid=f"1.{number % 4}", dataset=str(number % 3),
        )
        for number in range(12)
    ]  # fmt: skip

    def places(selected: list[Row]) -> dict[str, tuple[str, ...]]:
        return {
            one.file: (
                s.subject,
                s.session_label,
                s.xsi_type,
                scan.scan_id,
                scan.series_uid,
                r.label,
                one.filename,
            )
            for s in plan.build(rows, selected).sessions
            for scan in s.scans
            for r in scan.resources
            for one in r.rows
        }

    whole = places(rows)
    part = places([rows[number] for number in sorted(left)])
    assert part == {file: whole[file] for file in part}
    assert len(part) == len(left)


def test_the_plan_in_words_names_each_file_and_where_it_goes() -> None:
    said = plan.in_words(build(row("x/a.dcm", filename="a.dcm"), row("y", subject="")), "P")
    for word in ("P / S1 / S1_CT1", "scan 5", "x/a.dcm -> DICOM/a.dcm", "not sent (failed): y: Subject"):
        assert word in said


def test_an_uneven_study_date_does_not_become_the_sessions() -> None:
    (session,) = build(row("a", study_date="***"), row("b", study_date="20200311")).sessions
    assert session.date == "2020-03-11"
