"""Scan IDs by XNAT's rule, and file names that are unique, harmless and never change."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnatuploader.records import Row, Status
from xnatuploader.scan import placement

SC = "1.2.840.10008.5.1.4.1.1.7"


STEADY = settings(derandomize=True, deadline=None)


def row(file, number="5", series="1.2.5", *, study="1.2", label="S_1", modality="CT", **more):
    return Row(
        file=file,
        upload=more.pop("upload", True),
        session_label=label,
        series_number=number,
        series_instance_uid=series,
        study_instance_uid=study,
        modality=modality,
        **more,
    )


def ids(rows):
    return [placed.scan_id for placed in placement.place_scans(rows)]


def names(rows):
    return [placed.filename for placed in placement.place_scans(rows)]


# --- scan IDs


def test_the_scan_id_is_the_series_number():
    assert ids([row("a"), row("b", "6", "1.2.6")]) == ["5", "6"]


def test_one_folder_with_three_series_becomes_three_scans():
    assert ids([row("a", "1", "s1"), row("b", "2", "s2"), row("c", "3", "s3")]) == ["1", "2", "3"]


def test_a_series_in_two_folders_is_one_scan():
    assert ids([row("Head/a", dataset="Head"), row("Neck/a", dataset="Neck")]) == ["5", "5"]


def test_a_missing_series_number_gives_the_uid_without_dots():
    assert ids([row("a", "", "1.2.840.99")]) == ["1_2_840_99"]


def test_a_leading_plus_becomes_an_underscore():
    assert ids([row("a", "+5")]) == ["_5"]


def test_every_series_that_shares_a_number_is_told_apart_in_the_order_of_the_uids():
    rows = [row("b", series="1.9"), row("a", series="1.1"), row("c", series="1.5", modality="MR")]
    assert ids(rows) == ["5-CT2", "5-CT1", "5-MR1"]


def test_a_modality_that_xnat_does_not_rank_is_called_other():
    assert ids([row("a", series="1.1"), row("b", series="1.2", modality="SEG")]) == ["5-CT1", "5-OT1"]


def test_a_newcomer_to_a_number_that_was_given_gets_the_next_free_id():
    first = placement.place_scans([row("a", series="1.9")])
    assert ids([row("new", series="1.1"), *first]) == ["5-CT1", "5"]
    second = placement.place_scans([row("new", series="1.1"), *first])
    assert ids([*second, row("newer", series="1.0")]) == ["5-CT1", "5", "5-CT2"]


def test_a_newcomer_does_not_take_the_plain_number_that_others_had_to_share():
    shared = placement.place_scans([row("a", series="1.1"), row("b", series="1.2")])
    assert ids([*shared, row("c", series="1.3")]) == ["5-CT1", "5-CT2", "5-CT3"]


def test_studies_joined_in_a_session_are_numbered_as_if_merged_one_by_one():
    rows = [
        row("late", series="1.1", study="A", study_date="20210101"),
        row("early", series="1.2", study="B", study_date="20200101"),
    ]
    assert ids(rows) == ["5-CT1", "5"]


def test_the_same_number_in_two_sessions_is_no_clash():
    assert ids([row("a", series="1.1"), row("b", series="1.2", label="S_2")]) == ["5", "5"]


def test_a_given_scan_id_stays_and_new_files_of_the_series_take_it():
    rows = [row("a", scan_id="5-CT7"), row("b")]
    assert ids(rows) == ["5-CT7", "5-CT7"]


def test_a_given_id_in_other_letters_is_taken():
    rows = [
        row("a", series="1.1", scan_id="5-ct1", number="8"),
        row("b", series="1.2"),
        row("c", series="1.3"),
    ]
    assert ids(rows) == ["5-ct1", "5-CT2", "5-CT3"]


def test_an_id_that_xnat_cannot_hold_is_made_anew():
    assert ids([row("a", scan_id="5/1")]) == ["5"]
    assert ids([row("a", "5#1")]) == ["5_1"]


def test_files_without_a_series_uid_join_the_series_with_their_number():
    sent = row("old", series="", scan_id="5", status=Status.SUCCESS)
    assert ids([sent, row("new", series="1.9")]) == ["5", "5"]


def test_files_without_uid_choose_by_dataset_where_the_number_is_shared():
    rows = [
        row("a", series="1.1", dataset="A"),
        row("b", series="1.2", dataset="B"),
        row("c", series="", dataset="B"),
    ]
    assert ids(rows) == ["5-CT1", "5-CT2", "5-CT2"]


def test_files_with_neither_uid_nor_number_are_a_scan_by_dataset():
    assert ids([row("a", "", "", dataset="Head CT"), row("b", "", "", dataset="Neck")]) == ["Head_CT", "Neck"]
    assert ids([row("a", "", "")]) == ["unknown"]


def test_a_skipped_series_does_not_change_the_ids_of_the_others():
    rows = [
        row("report", series="1.0", modality="SR", status=Status.SKIPPED, upload=False),
        row("image", series="1.9"),
    ]
    assert ids(rows) == ["5-SR1", "5"]


def test_rows_without_a_session_are_left_alone():
    lost = row("a", label="", status=Status.UNMATCHED)
    assert placement.place_scans([lost]) == [lost]


def test_review_and_duplicate_rows_are_placed_because_a_person_may_release_them():
    rows = [row("a", status=Status.REVIEW, upload=False), row("b", status=Status.DUPLICATE, upload=False)]
    assert ids(rows) == ["5", "5"]


# --- resources and types


def test_the_resource_follows_from_the_sop_class_and_stays():
    rows = [row("a"), row("b", sop_class_uid=SC), row("c", sop_class_uid=SC, resource="DICOM")]
    assert [placed.resource for placed in placement.place_scans(rows)] == ["DICOM", "secondary", "DICOM"]


def test_a_type_that_reads_like_a_scan_id_is_written_out():
    assert placement.type_for("3", {"3", "4"}) == "Series 3"
    assert placement.type_for("Head CT", {"3", "4"}) == "Head CT"


# --- file names


def test_a_name_that_is_alone_stays():
    assert names([row("Doe/Head CT/scan0000.dcm")]) == ["scan0000.dcm"]


def test_the_same_name_in_two_folders_takes_the_folders_along():
    assert names([row("Head/1/IM0.dcm"), row("Head/2/IM0.dcm")]) == ["1_IM0.dcm", "2_IM0.dcm"]


def test_folders_are_added_until_the_names_differ():
    rows = [row("A/x/IM0"), row("B/x/IM0"), row("IM0")]
    assert names(rows) == ["A_x_IM0", "B_x_IM0", "IM0"]


def test_names_that_differ_only_in_case_clash():
    assert names([row("a/IM0.dcm"), row("b/im0.DCM")]) == ["a_IM0.dcm", "b_im0.DCM"]


def test_names_that_are_equal_after_replacing_characters_clash():
    assert sorted(names([row("q/a b"), row("q/a_b")])) == ["q_a_b", "q_a_b-2"]


def test_a_name_made_from_folders_does_not_take_one_that_is_there():
    rows = [row("1/IM0.dcm"), row("2/IM0.dcm"), row("1_IM0.dcm")]
    made = names(rows)
    assert made[2] == "1_IM0.dcm"
    assert len({name.lower() for name in made}) == 3


def test_different_scans_sessions_and_resources_may_have_the_same_names():
    rows = [row("a/I"), row("b/I", "6", "1.6"), row("c/I", label="S_2"), row("d/I", sop_class_uid=SC)]
    assert names(rows) == ["I", "I", "I", "I"]


def test_given_names_never_change_when_new_files_come():
    before = placement.place_scans([row("2/IM0.dcm")])
    after = placement.place_scans([row("1/IM0.dcm"), *before])
    assert after[1] == before[0]
    assert after[0].filename == "1_IM0.dcm"


def test_of_two_rows_with_one_name_the_sent_one_keeps_it():
    rows = [row("1/IM0.dcm", filename="IM0.dcm"), row("2/IM0.dcm", filename="IM0.dcm", status=Status.SUCCESS)]
    assert names(rows) == ["1_IM0.dcm", "IM0.dcm"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Müller/bild ü.dcm", "bild__.dcm"),
        ("a/.hidden", "_hidden"),
        ("a/.~lock.x", "__lock.x"),
        ("a/x#1%20.dcm", "x_1_20.dcm"),
        ("a/scan_catalog.xml", "scan_catalog.xml.dcm"),
        ("a/scan_CATALOG.XML", "scan_CATALOG.XML.dcm"),
        ("a/export.zip", "export.zip.dcm"),
        ("a/export.tar.gz", "export.tar.gz.dcm"),
        ("a/ends.", "ends_"),
        ("a/1.2.840.113", "1.2.840.113"),
        ("a/+1", "_1"),
    ],
)
def test_names_are_made_harmless(file, name):
    assert names([row(file)]) == [name]


def test_long_names_are_cut_and_marked_so_that_they_stay_apart():
    rows = [row("a/" + "x" * 250 + "1.dcm"), row("a/" + "x" * 250 + "2.dcm")]
    made = names(rows)
    assert len(set(made)) == 2
    assert all(len(name) <= placement.MAX_NAME and name.endswith(".dcm") for name in made)


PARTS = st.sampled_from(
    ["a", "A", "b", "a b", "a_b", "IM0", "im0.dcm", ".x", "ü", "c_catalog.xml", "y" * 210]
)
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), unique=True, max_size=12)


@pytest.mark.slow
@STEADY
@given(PATHS, PATHS, st.data())
def test_names_are_unique_safe_and_stable_whatever_comes_later(first, later, data):
    series = st.sampled_from(["", "1.1", "1.2", "1.3"])
    number = st.sampled_from(["", "5", "6"])

    def made(files):
        return [row(file, data.draw(number), data.draw(series), study=data.draw(series)) for file in files]

    before = placement.place_scans(made(first))
    after = placement.place_scans([*made([file for file in later if file not in first]), *before])
    assert after[len(after) - len(before) :] == before
    assert placement.place_scans(after) == after
    places = [(r.session_label, r.scan_id, r.resource, r.filename.lower()) for r in after]
    assert len(set(places)) == len(places)
    for placed in after:
        assert re.fullmatch(r"(?![.])[A-Za-z0-9._-]{1,200}", placed.filename)
        assert not placed.filename.lower().endswith("_catalog.xml")
        assert re.fullmatch(r"[A-Za-z0-9_-]+", placed.scan_id)


@STEADY
@given(
    st.lists(st.tuples(st.sampled_from("123"), st.sampled_from(["1.1", "1.2", "1.3", "1.4"])), max_size=12)
)
def test_every_series_of_a_session_has_one_id_of_its_own(pairs):
    placed = placement.place_scans([row(f"f{i}", number, uid) for i, (number, uid) in enumerate(pairs)])
    by_series = {}
    for one in placed:
        assert by_series.setdefault(one.series_instance_uid, one.scan_id) == one.scan_id
    assert len(set(by_series.values())) == len(by_series)


# --- --strict


def test_strict_makes_a_dataset_with_two_series_a_conflict():
    rows = placement.place_scans([row("a", "1", "s1", dataset="Head"), row("b", "2", "s2", dataset="Head")])
    strict = placement.strict_conflicts(rows)
    assert [one.status for one in strict] == [Status.CONFLICT] * 2
    assert not any(one.upload for one in strict)
    assert "Dataset 'Head' holds 2 series in session S_1" in strict[0].message


def test_strict_leaves_one_series_sent_rows_and_other_sessions_alone():
    rows = [
        row("a", "1", "s1", dataset="Head", status=Status.SUCCESS),
        row("b", "2", "s2", dataset="Head"),
        row("c", "3", "s3", dataset="Neck"),
        row("d", "1", "s9", dataset="Head", label="S_2"),
        row("e", "4", "s4", dataset="Neck", status=Status.DUPLICATE, upload=False),
    ]
    assert [one.status for one in placement.strict_conflicts(rows)] == [
        Status.SUCCESS,
        Status.CONFLICT,
        Status.EMPTY,
        Status.EMPTY,
        Status.DUPLICATE,
    ]


def test_placing_leaves_every_other_field_as_it_was():
    before = row("a", message="note", status=Status.FAILED, md5="x")
    after = placement.place_scans([before])[0]
    assert replace(after, scan_id="", resource="", filename="") == before
