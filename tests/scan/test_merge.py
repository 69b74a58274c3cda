"""The rules by which a new scan is laid onto the sheet, one test for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnatuploader.records import RELEASED, TOOLS_OWN_NO, Row, Status
from xnatuploader.scan import merge


def fresh(file: str, **fields: object) -> Row:
    given = {
        "pattern": "Nested", "upload": True, "subject": "0001", "session": "20200312", "dataset": "Chest",
        "size": "10", "modified": "2020-03-12T10:00:00Z", "series_instance_uid": "1.2", "values": {"ID": "0001"},
    }  # fmt: skip
    return Row(file, **{**given, **fields})  # type: ignore[arg-type]


def laid(previous: list[Row], *rows: Row, written=lambda row: None, **scan: object) -> list[Row]:  # type: ignore[no-untyped-def]
    return merge.merge(
        previous,
        rows,
        **scan,
        written_before=written,  # type: ignore[arg-type]
    )


def with_choices(previous: list[Row], *rows: Row, **scan: object) -> list[Row]:
    return merge.keep_choices(laid(previous, *rows, **scan), previous)


@pytest.mark.parametrize("status", sorted(TOOLS_OWN_NO))
def test_the_tools_own_no_is_worked_out_again(status: Status) -> None:
    old = fresh("a", upload=False, status=status, message="some reason")
    (row,) = laid([old], fresh("a"))
    assert (row.upload, row.status, row.message) == (True, Status.EMPTY, "")


@pytest.mark.parametrize("status", sorted(set(Status) - TOOLS_OWN_NO))
def test_any_other_no_is_a_persons_and_stays(status: Status) -> None:
    (row,) = laid([fresh("a", upload=False, status=status)], fresh("a"))
    assert not row.upload
    assert row.status is status


def test_a_persons_yes_beside_a_tools_status_stays() -> None:
    old = fresh("a", upload=True, status=Status.REVIEW, message="burned in")
    (row,) = laid([old], fresh("a", upload=False, status=Status.REVIEW, message="burned in"))
    assert row.upload
    assert row.status is Status.REVIEW


def test_a_yes_given_before_a_file_came_up_for_review_does_not_release_it() -> None:
    (row,) = laid([fresh("a")], fresh("a", upload=False, status=Status.REVIEW, message="burned in"))
    assert not row.upload
    assert row.status is Status.REVIEW


def test_a_person_who_was_taken_out_does_not_come_back_after_the_file_was_away_for_a_while() -> None:
    taken_out = [fresh("a", upload=False)]
    gone = with_choices(taken_out)
    assert gone[0].status is Status.MISSING
    (back,) = with_choices(gone, fresh("a"))
    assert back.status is Status.EMPTY
    assert not back.upload


def test_a_person_who_was_taken_out_does_not_come_back_after_a_conflict() -> None:
    taken_out = [fresh("a", upload=False)]
    conflict = [replace(taken_out[0], status=Status.CONFLICT, message="two subjects")]
    noted = merge.keep_choices(conflict, taken_out)
    (row,) = laid(noted, fresh("a"))
    assert not row.upload


def test_a_person_who_was_taken_out_does_not_come_back_under_another_path() -> None:
    old = [fresh("a", upload=False, sop_instance_uid="1.1"), fresh("b", sop_instance_uid="1.2")]
    new = [fresh("moved a", sop_instance_uid="1.1"), fresh("moved b", sop_instance_uid="1.2")]
    for _ in range(2):
        rows = {row.file: row for row in with_choices(old, *new)}
        assert {file: row.upload for file, row in rows.items() if "moved" in file} == {
            "moved a": False,
            "moved b": True,
        }
        old = list(rows.values())


def test_new_rows_without_a_uid_are_no_moved_ones() -> None:
    (_, row) = laid([fresh("a", upload=False)], fresh("b"))
    assert row.upload


def test_a_yes_beside_a_duplicate_is_given_back_after_the_rules_ran_again() -> None:
    released = fresh("b", upload=True, status=Status.DUPLICATE)
    again = replace(released, upload=False)
    assert merge.keep_choices([again], [released])[0].upload


def test_success_stays_with_everything_that_was_sent() -> None:
    sent = fresh(
        "a", status=Status.SUCCESS, md5="d" * 32, session_label="0001_A", scan_id="3", filename="a.dcm"
    )
    (row,) = laid([sent], fresh("a", subject="0009", dataset="Other"))
    assert row == sent


def test_a_file_that_changed_after_it_was_sent_says_so() -> None:
    sent = fresh("a", status=Status.SUCCESS, md5="d" * 32)
    (row,) = laid([sent], fresh("a", size="11"))
    assert row.status is Status.SUCCESS
    assert row.message == merge.CHANGED_AFTER_SENDING
    assert row.size == "10", "the size is that of what was sent"


def test_a_file_that_is_as_sent_again_does_not_say_so_any_more() -> None:
    sent = fresh("a", status=Status.SUCCESS, message=merge.CHANGED_AFTER_SENDING)
    assert laid([sent], fresh("a"))[0].message == ""


def test_columns_that_1x_did_not_write_are_filled_for_sent_rows() -> None:
    old = Row("a", status=Status.SUCCESS, subject="0001", session_label="0001_CT1")
    (row,) = laid([old], fresh("a", subject="0009"))
    assert (row.subject, row.size, row.series_instance_uid) == ("0001", "10", "1.2")


def test_a_file_that_is_gone_keeps_its_row_as_missing() -> None:
    (row,) = laid([fresh("a")])
    assert row.status is Status.MISSING
    assert row.upload


def test_a_sent_file_that_is_gone_stays_a_success() -> None:
    (row,) = laid([fresh("a", status=Status.SUCCESS)])
    assert row.status is Status.SUCCESS


def test_a_failed_row_stays_failed_with_its_message() -> None:
    (row,) = laid([fresh("a", status=Status.FAILED, message="disk full there")], fresh("a"))
    assert (row.status, row.message, row.upload) == (Status.FAILED, "disk full there", True)


def test_labels_scan_ids_and_names_once_given_stay() -> None:
    old = fresh("a", session_label="0001_A", scan_id="7", filename="x.dcm", resource="DICOM")
    (row,) = laid([old], fresh("a"))
    assert (row.session_label, row.scan_id, row.filename, row.resource) == ("0001_A", "7", "x.dcm", "DICOM")


def written_by_tool(row: Row) -> dict[str, str]:
    return {"Subject": "0001", "Session": "20200312", "Dataset": "Chest"}


def test_a_subject_that_a_person_edited_stays_edited() -> None:
    (row,) = laid([fresh("a", subject="0001-B")], fresh("a"), written=written_by_tool)
    assert row.subject == "0001-B"


def test_a_dataset_that_a_person_edited_stays_edited() -> None:
    (row,) = laid([fresh("a", dataset="Thorax")], fresh("a"), written=written_by_tool)
    assert row.dataset == "Thorax"


def test_a_subject_that_the_tool_wrote_follows_a_changed_mapping_and_gets_a_new_place() -> None:
    old = fresh("a", session_label="0001_A", scan_id="7", filename="x.dcm")
    (row,) = laid([old], fresh("a", subject="P-0001"), written=written_by_tool)
    assert (row.subject, row.session_label, row.scan_id, row.filename) == ("P-0001", "", "", "")


def test_what_1x_wrote_is_kept_where_nobody_knows_who_wrote_it() -> None:
    (row,) = laid([fresh("a", subject="0001")], fresh("a", subject="other"))
    assert row.subject == "0001"


def test_new_files_come_at_the_end_in_the_order_of_the_listing() -> None:
    rows = laid([fresh("a"), fresh("c")], fresh("a"), fresh("b"), fresh("c"), fresh("d"))
    assert [row.file for row in rows] == ["a", "c", "b", "d"]


def test_rows_of_unmatched_paths_stay_without_unmatched_and_new_ones_do_not_come() -> None:
    old = Row("note.txt", status=Status.UNMATCHED, message="no pattern")
    new = Row("other.txt", status=Status.UNMATCHED, message="no pattern")
    unlisted = {"note.txt", "other.txt"}
    assert [row.file for row in laid([old], replace(old), new, unlisted=unlisted)] == ["note.txt"]
    assert [row.file for row in laid([old], replace(old), new)] == ["note.txt", "other.txt"]


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdef"), unique=True))
def test_no_scan_takes_out_or_moves_a_row(before: list[str], found: list[str]) -> None:
    rows = laid([fresh(file) for file in before], *map(fresh, sorted(found)), unlisted=set(found[:2]))
    assert [row.file for row in rows[: len(before)]] == before


def test_a_row_that_matched_before_stays_when_no_pattern_fits_any_more() -> None:
    now = Row("a", status=Status.UNMATCHED, message="no pattern")
    (row,) = laid([fresh("a")], now, unlisted={"a"})
    assert (row.status, row.message, row.upload) == (Status.UNMATCHED, "no pattern", False)


def test_debug_leaves_the_rows_of_other_files_as_they_are() -> None:
    rows = laid([fresh("a"), fresh("z", status=Status.EMPTY)], fresh("a"), partial=True)
    assert [(row.file, row.status) for row in rows] == [("a", Status.EMPTY), ("z", Status.EMPTY)]


def test_further_mapping_rows_follow_the_same_rule() -> None:
    old = fresh("a", values={"Site": "edited", "ID": "0001"})
    new = fresh("a", values={"Site": "north", "ID": "0001"})
    (row,) = laid([old], new, written=lambda row: {**written_by_tool(row), "Site": "south"})
    assert row.values["Site"] == "edited"
    (row,) = laid([old], new, written=lambda row: {**written_by_tool(row), "Site": "edited"})
    assert row.values["Site"] == "north"


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(Status), st.booleans()), unique_by=lambda t: t[0]
    )
)
def test_a_second_scan_of_the_same_folder_changes_nothing(given_rows: list[tuple[str, Status, bool]]) -> None:
    previous = [fresh(file, status=status, upload=upload) for file, status, upload in given_rows]
    scanned = [fresh(file) for file in "abcdef"]
    once = with_choices(previous, *scanned)
    assert with_choices(once, *scanned) == once


def test_a_released_file_that_failed_is_no_persons_no() -> None:
    failed = fresh("a", upload=False, status=Status.FAILED, message=f"lost. {RELEASED}")
    (row,) = with_choices([failed], fresh("a", upload=False, status=Status.REVIEW, message="burned in"))
    assert (row.status, row.message) == (Status.REVIEW, "burned in")
