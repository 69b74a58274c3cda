"""The Sessions sheet: counts that add up, warnings worth reading, and who travels."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnatuploader.records import Row, SessionRow, Status
from xnatuploader.scan import sessions

STEADY = settings(derandomize=True, deadline=None)


def row(file, *, number="1", scan="2", label="0001_20200312_CT", **more):
    facts = {
        "subject": "0001",
        "upload": True,
        "study_date": "20200312",
        "modality": "CT",
        "size": "1000",
        "study_instance_uid": "s1",
        "series_instance_uid": f"series {scan}",
        "sop_instance_uid": f"image {file}",
        "dataset": "Chest CT",
    }
    return Row(file=file, session_label=label, scan_id=scan, instance_number=number, **{**facts, **more})


def series(count, scan="2", **more):
    return [row(f"{scan}/{i}", number=str(i), scan=scan, **more) for i in range(1, count + 1)]


def only(rows, previous=()):
    (session,) = sessions.session_rows(rows, previous)
    return session


def warnings(rows, previous=()):
    return only(rows, previous).warnings.split("; ")


# --- counts


def test_a_session_is_counted():
    rows = [
        *series(3),
        row("a", scan="3", number="1", status=Status.SUCCESS),
        row("b", scan="3", number="2", status=Status.FAILED),
        row("c", scan="3", number="3", status=Status.INTERRUPTED),
    ]
    session = only(rows)
    assert (session.subject, session.session_label) == ("0001", "0001_20200312_CT")
    assert (session.date, session.modality) == ("2020-03-12", "CT")
    assert (session.scans, session.files, session.size) == (2, 6, 6000)
    assert (session.done, session.failed, session.left) == (1, 1, 4)
    assert session.warnings == ""


def test_only_selected_files_are_counted():
    rows = [
        *series(2),
        row("a", upload=False, number="3"),
        row("b", status=Status.REVIEW, upload=False, number="4"),
    ]
    assert only(rows).files == 2


def test_released_review_files_are_counted():
    rows = [*series(2), row("b", status=Status.REVIEW, upload=False, number="3")]
    session = only(rows, [SessionRow("0001", "0001_20200312_CT", release_review=True)])
    assert session.files == 3
    assert session.warnings == ""


def test_unmatched_and_skipped_rows_and_rows_without_a_label_make_no_session():
    rows = [
        row("a", label="", status=Status.CONFLICT),
        row("b", status=Status.SKIPPED, upload=False),
        row("c", status=Status.UNMATCHED),
    ]
    assert sessions.session_rows(rows) == ()


def test_a_skipped_row_that_a_person_selected_belongs():
    assert only([row("a", status=Status.SKIPPED, upload=True)]).files == 1


def test_the_earliest_study_date_counts_and_odd_dates_do_not():
    rows = [row("a", study_date="***"), row("b", study_date="2020.03.14"), row("c", study_date="20200313")]
    assert only(rows).date == "2020-03-13"
    assert only([row("a", study_date="")]).date == ""


def test_an_odd_size_is_no_size():
    assert only([row("a", size=""), row("b", size="?"), row("c", size="5")]).size == 5


STATUSES = st.sampled_from([status for status in Status if status is not Status.UNMATCHED])


@STEADY
@given(st.lists(st.tuples(STATUSES, st.booleans()), min_size=1, max_size=20), st.booleans())
def test_done_failed_and_left_add_up_to_files(facts, release):
    rows = [row(f"f{i}", status=status, upload=upload) for i, (status, upload) in enumerate(facts)]
    for session in sessions.session_rows(
        rows, [SessionRow("0001", "0001_20200312_CT", release_review=release)]
    ):
        assert session.done + session.failed + session.left == session.files
        assert min(session.done, session.failed, session.left) >= 0


# --- what people filled in, and order


def test_what_people_filled_in_stays():
    old = SessionRow(
        "0001", "0001_20200312_CT", upload=False, release_review=True, join=True, link="https://x/1"
    )
    new = only(series(2), [old])
    assert (new.upload, new.release_review, new.join, new.link) == (False, True, True, "https://x/1")
    assert new.files == 2


def test_sessions_keep_their_order_and_new_ones_follow_by_date_and_subject():
    rows = [
        row("a", label="C", subject="9", study_date="20200101"),
        row("e", label="E", subject="1", study_date=""),
        row("b", label="A", subject="2", study_date="20210101"),
        row("c", label="B", subject="3", study_date="20190101"),
        row("f", label="F", subject="1", study_date="20210101"),
        row("d", label="D", subject="1"),
    ]
    previous = [SessionRow("9", "C"), SessionRow("1", "D")]
    made = sessions.session_rows(rows, previous)
    assert [one.session_label for one in made] == ["C", "D", "B", "F", "A", "E"]


def test_making_the_sheet_twice_changes_nothing():
    rows = [*series(3), *series(2, "3", label="X", subject="2")]
    once = sessions.session_rows(rows)
    assert sessions.session_rows(rows, once) == once


@pytest.mark.parametrize("upload", [True, False])
def test_a_session_that_no_row_names_keeps_its_row_with_counts_of_nothing(upload):
    (kept,) = sessions.session_rows(
        [], [SessionRow("1", "gone", upload=upload, files=7, left=7, modality="CT")]
    )
    assert (kept.session_label, kept.upload, kept.files, kept.left) == ("gone", upload, 0, 0)
    assert "no file is listed" in kept.warnings
    assert kept.warnings == "no file is listed"


def test_a_session_that_was_taken_out_does_not_come_back_under_a_corrected_subject():
    out = SessionRow("001", "0001_20200312_CT", upload=False)
    new = [one for one in sessions.session_rows(series(1), [out]) if one.subject == "0001"]
    assert [one.upload for one in new] == [False]


# --- warnings


def test_a_gap_in_a_series_is_counted_against_the_range_seen():
    rows = [one for one in series(120, "3") if one.instance_number not in ("7", "40")]
    assert warnings(rows) == ["scan 3: 2 of 120 images missing between 1 and 120"]


def test_a_series_that_does_not_begin_at_one_has_no_gap():
    assert only([row(f"f{i}", number=str(i)) for i in range(41, 81)]).warnings == ""


def test_a_series_counted_in_steps_has_no_gap_but_a_missing_step_is_one():
    numbers = list(range(1, 101, 10))
    assert only([row(f"f{i}", number=str(i)) for i in numbers]).warnings == ""
    numbers.remove(41)
    assert warnings([row(f"f{i}", number=str(i)) for i in numbers]) == [
        "scan 2: 1 of 10 images missing between 1 and 91"
    ]


def test_few_images_are_not_taken_for_steps():
    assert warnings([row("a", number="1"), row("b", number="3")]) == [
        "scan 2: 1 of 3 images missing between 1 and 3"
    ]


@pytest.mark.parametrize("numbers", [("", ""), ("x", "y"), ("7", "7"), ("1", "x"), ("1", "2")])
def test_odd_or_equal_instance_numbers_are_no_gap(numbers):
    assert only([row(f"f{i}", number=number) for i, number in enumerate(numbers)]).warnings == ""


def test_a_duplicate_or_a_lost_file_does_not_fill_a_gap():
    rows = [one if one.instance_number != "2" else replace(one, status=Status.MISSING) for one in series(3)]
    assert warnings(rows) == ["1 file not on disk", "scan 2: 1 of 3 images missing between 1 and 3"]


def test_many_gaps_are_named_three_times_and_then_counted():
    rows = [one for scan in "34567" for one in series(3, scan) if one.instance_number != "2"]
    said = warnings(rows)
    assert len(said) == 4
    assert said[3] == "the same in 2 more scans"


def test_several_studies_in_one_session_are_named_with_their_dates():
    rows = [row("a"), row("b", number="2", study_instance_uid="s2", study_date="20200313")]
    assert warnings(rows) == ["2 studies in one session (2020-03-12, 2020-03-13)"]
    undated = [replace(one, study_date="") for one in rows]
    assert warnings(undated) == ["2 studies in one session"]


def test_review_files_are_counted_and_it_is_said_how_to_release_them():
    rows = [*series(1), row("a", number="2", status=Status.REVIEW, upload=False)]
    assert warnings(rows) == ["1 file to review: Y in Release review sends them"]


def test_duplicates_and_conflicts_are_counted():
    rows = [
        *series(2),
        row("a", number="1", status=Status.DUPLICATE, upload=False),
        row("b", number="2", status=Status.DUPLICATE, upload=False),
        row("c", number="3", status=Status.CONFLICT, upload=False),
    ]
    assert warnings(rows) == ["1 file in conflict", "2 duplicates left out"]


def test_images_that_are_listed_for_another_subject_or_session_are_named():
    rows = [
        row("a", sop_instance_uid="i1"),
        row("b", sop_instance_uid="i1", subject="0002", label="0002_X"),
        row("c", sop_instance_uid="i1", label="0001_Y"),
    ]
    by_label = {one.session_label: one.warnings for one in sessions.session_rows(rows)}
    assert by_label["0001_20200312_CT"] == (
        "1 image also listed for subject 0002; 1 image also listed for session 0001_Y"
    )
    assert by_label["0002_X"] == "1 image also listed for subject 0001"


def test_a_series_under_two_datasets_is_said():
    rows = [row("a"), row("b", number="2", dataset="Chest CT copy")]
    assert warnings(rows) == ["scan 2: 2 Datasets in one series"]


def test_series_of_one_description_with_different_counts_are_mentioned():
    rows = [*series(3, "3", series_description="DWI"), *series(2, "4", series_description="DWI")]
    assert warnings(rows) == ["images per scan differ: 3 in 3, 2 in 4"]
    assert (
        only([*series(3, "3", series_description="DWI"), *series(2, "4", series_description="T1")]).warnings
        == ""
    )


def test_a_session_with_nothing_selected_says_so():
    assert warnings([replace(one, upload=False) for one in series(2)]) == ["no file is selected"]


# --- who travels


def test_a_file_travels_when_its_row_and_its_session_say_yes():
    yes, no = SessionRow("0001", "0001_20200312_CT"), SessionRow("0001", "0001_20200312_CT", upload=False)
    assert sessions.Gate([yes])(row("a"))
    assert not sessions.Gate([no])(row("a"))
    assert not sessions.Gate([yes])(row("a", upload=False))


@pytest.mark.parametrize(
    ("status", "tried"),
    [
        (Status.EMPTY, True),
        (Status.FAILED, True),
        (Status.INTERRUPTED, True),
        (Status.CONFLICT, True),
        (Status.MISSING, True),
        (Status.REVIEW, True),
        (Status.DUPLICATE, True),
        (Status.SKIPPED, True),
        (Status.SUCCESS, False),
        (Status.UNMATCHED, False),
    ],
)
def test_the_status_decides_whether_a_selected_row_is_tried(status, tried):
    assert sessions.Gate([])(row("a", status=status)) is tried
    assert not sessions.Gate([])(row("a", status=status, upload=False))


def test_release_review_sends_the_review_files_of_that_session_and_nothing_else():
    released = [SessionRow("0001", "0001_20200312_CT", release_review=True)]
    assert sessions.Gate(released)(row("a", status=Status.REVIEW, upload=False))
    assert not sessions.Gate(released)(row("a", status=Status.DUPLICATE, upload=False))
    assert not sessions.Gate(released)(row("a", upload=False))
    assert not sessions.Gate(released)(row("a", status=Status.REVIEW, upload=False, label="other"))


def test_release_review_does_not_send_a_session_that_was_taken_out():
    out = [SessionRow("0001", "0001_20200312_CT", upload=False, release_review=True)]
    assert not sessions.Gate(out)(row("a", status=Status.REVIEW, upload=True))


def test_a_workbook_without_sessions_sends_what_its_rows_say():
    gate = sessions.Gate([])
    assert gate(row("a"))
    assert not gate(row("b", upload=False))


def test_an_edited_subject_does_not_bring_back_a_session_that_was_taken_out():
    gate = sessions.Gate([SessionRow("001", "0001_20200312_CT", upload=False)])
    assert not gate(row("a", subject="0001"))
