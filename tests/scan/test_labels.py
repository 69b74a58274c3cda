"""Session labels: made once, over all rows, and never moved; mixing people or visits is a conflict."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnatuploader import records
from xnatuploader.config import mappings
from xnatuploader.config.lines import LabelledRow
from xnatuploader.records import Row, Status, Values
from xnatuploader.scan import labels

CT = "1.2.840.10008.5.1.4.1.1.2"
SC = "1.2.840.10008.5.1.4.1.1.7"


STEADY = settings(derandomize=True, deadline=None)


def template(text):
    rows = ["Subject", "Session", "Dataset", "Site"]
    row = LabelledRow("SessionLabel", "B9", (("C9", text),))
    return mappings.parse_label(row, ["ID", "Session"], rows)


DEFAULT = template("{Subject}_{Session}_{Modality}")
OLD = template("{Subject}_{Modality}{Visit}")
PLAIN = template("{Subject}_{Session}")


def row(file, subject="0001", session="20200312", study="s1", modality="CT", **more):
    more.setdefault("study_date", session)
    return Row(
        file=file,
        upload=more.pop("upload", True),
        subject=subject,
        session=session,
        study_instance_uid=study,
        modality=modality,
        **more,
    )


def made(rows, label=DEFAULT):
    return [labelled.session_label for labelled in labels.label_sessions(rows, label)]


def statuses(rows):
    return [one.status for one in rows]


# --- the template


def test_the_label_is_what_the_template_says():
    assert made([row("a")]) == ["0001_20200312_CT"]


def test_the_session_mapping_counts():
    rows = [row("a", session="baseline"), row("b", session="follow-up", study="s2")]
    assert made(rows) == ["0001_baseline_CT", "0001_follow-up_CT"]


def test_captures_further_rows_and_header_fields_may_stand_in_the_label():
    values = Values(
        {"ID": 0, "Site": 1, "DICOM:StudyID": 2, "Path:Session": 3}, ("7", "Sydney", "99", "in path")
    )
    one = row("a", values=values, station_name="CT 01")
    text = template("{Site}-{ID}-{DICOM:StudyID}-{DICOM:StationName}-{Path:Session}-{Session}")
    assert made([one], text) == ["Sydney-7-99-CT_01-in_path-20200312"]


def test_a_value_is_found_under_every_name_it_may_have():
    one = row("a", values=Values({"Path:Session": 0, "ID": 1}, ("x", "7")), series_number="3")
    found = [
        labels.value_of(one, name) for name in ("Subject", "ID", "Path:Session", "DICOM:SeriesNumber", "none")
    ]
    assert found == ["0001", "7", "x", "3", ""]


def test_a_capture_that_has_the_name_of_a_column_is_the_capture():
    one = row(
        "a", filename="a.dcm", size="512", values=Values({"Path:Filename": 0, "Path:Size": 1}, ("f", "s"))
    )
    assert [labels.value_of(one, name) for name in ("Filename", "Size", "Upload")] == ["f", "s", ""]


def test_a_mapping_row_without_a_value_does_not_take_the_capture_of_its_name():
    one = row("a", session="", values=Values({"Path:Session": 0}, ("in path",)))
    assert labels.value_of(one, "Session") == ""


def test_characters_that_xnat_cannot_hold_become_underscores():
    assert made([row("a", subject="Müller O'Neil", session="1994.11.05")]) == ["M_ller_O_Neil_1994_11_05_CT"]


@pytest.mark.parametrize(
    ("subject", "label"),
    [
        ("0001", "0001"),
        ("Doe^John", "Doe_John"),
        ("a/b", "a_b"),
        ("ü", "_"),
        ("u\u0308", "_"),
        ("A-1_b", "A-1_b"),
    ],
)
def test_subjects_are_written_as_xnat_can_hold_them(subject, label):
    assert records.label(subject) == label


def test_a_row_whose_template_lacks_a_value_is_unmatched_and_names_the_field():
    done = labels.label_sessions(
        [row("a"), row("b", subject="2", station_name="X")], template("{DICOM:StationName}")
    )
    assert statuses(done) == [Status.UNMATCHED, Status.EMPTY]
    assert not done[0].upload
    assert done[0].session_label == ""
    assert "DICOM:StationName is empty" in done[0].message


def test_a_series_that_lacks_a_value_goes_with_its_study():
    rows = [row("a"), row("b", station_name="CT01")]
    assert made(rows, template("{Subject}_{DICOM:StationName}")) == ["0001_CT01", "0001_CT01"]


def test_unmatched_skipped_and_doubtful_rows_get_no_label_of_their_own():
    rows = [
        row("a", status=Status.UNMATCHED, upload=False),
        row("b", status=Status.SKIPPED, upload=False, study="s2", modality="SR"),
        row("c", doubt="a number where its neighbours hold text", study="s3"),
        row("d", subject=""),
    ]
    assert labels.label_sessions(rows, DEFAULT) == rows


def test_a_skipped_row_goes_with_its_study_but_does_not_name_it():
    rows = [row("a", status=Status.SKIPPED, upload=False, modality="PT"), row("b")]
    assert made(rows) == ["0001_20200312_CT"] * 2


def test_a_skipped_row_that_a_person_selected_gets_a_label():
    assert made([row("a", status=Status.SKIPPED, upload=True, modality="SR")]) == ["0001_20200312_SR"]


@pytest.mark.parametrize("status", [Status.REVIEW, Status.DUPLICATE])
def test_rows_that_a_person_may_release_get_a_label(status):
    assert made([row("a", status=status, upload=False)]) == ["0001_20200312_CT"]


def test_a_label_that_is_too_long_is_a_conflict_that_says_so():
    done = labels.label_sessions([row("a", subject="x" * 250)], DEFAULT)
    assert done[0].status is Status.CONFLICT
    assert "characters" in done[0].message


# --- modalities and studies


def test_ct_with_segmentation_and_captures_is_one_ct_session():
    rows = [row("a"), row("b", modality="SEG"), row("c", modality="OT", sop_class_uid=SC)]
    assert made(rows) == ["0001_20200312_CT"] * 3


def test_pet_ct_is_a_pet_session_and_pet_mr_its_own():
    assert made([row("a"), row("b", modality="PT")]) == ["0001_20200312_PT"] * 2
    assert made([row("a", modality="MR"), row("b", modality="PT")]) == ["0001_20200312_PETMR"] * 2


def test_studies_of_one_visit_with_different_modalities_get_two_labels():
    assert made([row("a"), row("b", study="s2", modality="MR")]) == ["0001_20200312_CT", "0001_20200312_MR"]


def test_two_modalities_are_told_apart_where_the_template_does_not():
    rows = [row("a"), row("b", study="s2", modality="MR"), row("c", session="20210101", study="s3")]
    assert made(rows, PLAIN) == ["0001_20200312_CT", "0001_20200312_MR", "0001_20210101"]


def test_a_second_modality_that_comes_later_leaves_the_first_label_alone():
    first = labels.label_sessions([row("a")], PLAIN)
    second = labels.label_sessions([*first, row("b", study="s2", modality="MR")], PLAIN)
    assert [one.session_label for one in second] == ["0001_20200312", "0001_20200312_MR"]
    third = [*second, row("c", study="s3", modality="MR"), row("d", study="s4")]
    assert made(third, PLAIN)[2:] == ["0001_20200312_MR", "0001_20200312"]


def test_a_later_study_joins_the_label_that_its_modality_was_given():
    both = labels.label_sessions([row("a"), row("b", study="s2", modality="MR")], PLAIN)
    assert made([*both, row("c", study="s3")], PLAIN)[2] == "0001_20200312_CT"


def test_several_studies_of_one_visit_and_modality_are_one_session():
    assert made([row("a"), row("b", study="s2")]) == ["0001_20200312_CT"] * 2


def test_one_study_with_two_session_values_follows_the_mapping():
    assert made([row("a", session="Head"), row("b", session="Neck")]) == ["0001_Head_CT", "0001_Neck_CT"]


def test_a_file_without_modality_is_other_and_not_none():
    assert made([row("a", modality="")]) == ["0001_20200312_OT"]


# --- labels that stand


def test_rows_that_have_a_label_keep_it():
    assert made([row("a", session_label="mine")]) == ["mine"]


def test_new_rows_of_a_study_take_the_label_that_it_has():
    rows = [row("a", session_label="mine", status=Status.SUCCESS), row("b", modality="PT")]
    assert made(rows) == ["mine", "mine"]


def test_new_rows_of_a_study_take_its_label_also_where_the_session_cell_was_edited():
    assert made([row("a", session="baseline", session_label="mine"), row("b")]) == ["mine", "mine"]


def test_a_study_with_several_labels_goes_by_session_value():
    rows = [row("a", session="Head", session_label="H"), row("b", session="Neck", session_label="N")]
    assert made([*rows, row("c", session="Neck")])[2] == "N"
    assert made([*rows, row("c", session="Arm")])[2] == "0001_Arm_CT"


def test_the_same_study_under_another_subject_does_not_take_the_label():
    assert made([row("a", session_label="mine"), row("b", subject="0002")])[1] == "0002_20200312_CT"


# --- visits


def test_visits_are_numbered_in_date_order_within_the_subject():
    rows = [
        row("a", session="20210101", study="s2"),
        row("b", session="20200101", study="s1"),
        row("c", "0002", "20220101", "s3"),
    ]
    assert made(rows, OLD) == ["0001_CT2", "0001_CT1", "0002_CT1"]


def test_two_modalities_of_one_visit_share_its_number():
    rows = [
        row("a"),
        row("b", study="s2", modality="MR"),
        row("c", session="20210101", study="s3", modality="MR"),
    ]
    assert made(rows, OLD) == ["0001_CT1", "0001_MR1", "0001_MR2"]


def test_without_a_modality_in_the_label_each_modality_is_a_visit():
    rows = [row("a"), row("b", study="s2", modality="MR")]
    assert sorted(made(rows, template("{Subject}_V{Visit}"))) == ["0001_V1", "0001_V2"]


def test_a_number_once_given_never_changes():
    first = labels.label_sessions([row("a", session="20210101", study="s2")], OLD)
    assert made([*first, row("b", session="20200101", study="s1")], OLD) == ["0001_CT1", "0001_CT2"]


def test_a_half_finished_upload_does_not_renumber():
    rows = labels.label_sessions([row("a"), row("b", session="20210101", study="s2")], OLD)
    rows = [replace(rows[0], status=Status.SUCCESS), replace(rows[1], status=Status.FAILED)]
    assert made(rows, OLD) == ["0001_CT1", "0001_CT2"]


def test_labels_of_1x_go_on_from_those_in_the_sheet_also_over_gaps():
    old = [
        row("a", session="20190101", study="", session_label="0001_CT1", status=Status.SUCCESS),
        row("b", session="20190601", study="", session_label="0001_MR4", modality="MR"),
    ]
    rows = [*old, row("c", session="20190101", study="s1"), row("d", session="20200101", study="s2")]
    assert made(rows, OLD) == ["0001_CT1", "0001_MR4", "0001_CT1", "0001_CT5"]


def test_a_number_is_read_whatever_stands_around_it():
    text = template("{Subject}-{Visit}-{DICOM:StationName}")
    rows = [row("a", session_label="0001-7-x", station_name="old"), row("b", session="2021", study="s2")]
    assert made([rows[0], replace(rows[1], station_name="x y")], text)[1] == "0001-1-x_y"
    assert (
        made([replace(rows[0], station_name="x"), replace(rows[1], station_name="x y")], text)[1]
        == "0001-8-x_y"
    )


def test_a_label_that_a_person_wrote_is_not_given_to_another_visit():
    rows = [row("a", session="20190101", subject="1 2", session_label="1_2_CT1")]
    new = row("b", subject="1 2", session="20200101", study="s2")
    assert made([replace(rows[0], subject="1 2", modality="MR"), new], OLD)[1] == "1_2_CT2"


def test_a_number_that_cannot_be_read_is_not_given_again():
    text = template("{Subject}-{Visit}-{DICOM:StationName}")
    rows = [
        row("a", session_label="0001-1-x", station_name="old"),
        row("b", session="20200101", study="s2", station_name="x"),
    ]
    assert made(rows, text) == ["0001-1-x", "0001-2-x"]


def test_odd_and_missing_dates_come_last_and_do_not_crash():
    rows = [
        row("a", session="x", study="s1", study_date=""),
        row("b", session="y", study="s2", study_date="1994.11.05"),
        row("c", session="z", study="s3", study_date="***"),
    ]
    assert made(rows, OLD) == ["0001_CT2", "0001_CT1", "0001_CT3"]


# --- conflicts


def test_subjects_that_end_in_one_label_are_a_conflict_and_each_names_the_other():
    done = labels.label_sessions([row("a", "A B"), row("b", "A_B", study="s2", session="2021")], DEFAULT)
    assert statuses(done) == [Status.CONFLICT] * 2
    assert [one.session_label for one in done] == ["", ""]
    assert not any(one.upload for one in done)
    assert "'A_B'" in done[0].message
    assert "'A B'" in done[1].message


def test_subjects_that_differ_only_in_case_are_a_conflict():
    done = labels.label_sessions([row("a", "abc"), row("b", "ABC", study="s2", session="2021")], DEFAULT)
    assert statuses(done) == [Status.CONFLICT] * 2


def test_one_name_in_two_unicode_forms_is_one_subject():
    done = labels.label_sessions([row("a", "M\u00fcller"), row("b", "Mu\u0308ller")], DEFAULT)
    assert statuses(done) == [Status.EMPTY] * 2
    assert len({one.session_label for one in done}) == 1


def test_a_newcomer_whose_subject_another_has_is_a_conflict_and_the_other_goes_on():
    rows = [row("a", "A B", session_label="A_B_20200312_CT"), row("b", "A_B", study="s2", session="2021")]
    done = labels.label_sessions(rows, DEFAULT)
    assert statuses(done) == [Status.EMPTY, Status.CONFLICT]
    assert labels.label_sessions(done, DEFAULT) == done


@pytest.mark.parametrize("other", ["2020_03_12", "2020.03.12"])
def test_session_values_that_end_in_one_label_are_a_conflict(other):
    done = labels.label_sessions(
        [row("a", session="2020 03 12"), row("b", session=other, study="s2")], DEFAULT
    )
    assert statuses(done) == [Status.CONFLICT] * 2
    assert f"'{other}'" in done[0].message
    assert "'2020 03 12'" in done[1].message


def test_session_values_that_the_template_leaves_out_are_a_conflict():
    rows = [row("a", session="pre"), row("b", session="post", study="s2")]
    done = labels.label_sessions(rows, template("{Subject}_{Modality}"))
    assert statuses(done) == [Status.CONFLICT] * 2
    assert "{Session} or {Visit}" in done[0].message


def test_a_label_that_two_subjects_share_is_a_conflict():
    rows = [row("a", "1"), row("b", "2", study="s2")]
    done = labels.label_sessions(rows, template("{Session}_{Modality}"))
    assert statuses(done) == [Status.CONFLICT] * 2
    assert "subject '2'" in done[0].message


def test_a_label_that_others_have_is_a_conflict_for_the_newcomer_only():
    rows = [row("a", session="pre", session_label="0001_CT", status=Status.SUCCESS)]
    done = labels.label_sessions(
        [*rows, row("b", session="post", study="s2")], template("{Subject}_{Modality}")
    )
    assert statuses(done) == [Status.SUCCESS, Status.CONFLICT]


def test_files_that_went_away_unlabelled_take_their_studys_label_and_make_none():
    gone = row("a", status=Status.MISSING, upload=False)
    assert labels.label_sessions([gone], DEFAULT) == [gone]
    assert made([gone, row("b")]) == ["0001_20200312_CT"] * 2


def test_files_that_are_gone_claim_no_label():
    gone = row("old/a", "A B", session_label="A_B_20200312_CT", status=Status.MISSING, upload=False)
    assert made([gone, row("new/a", "A_B")])[1] == "A_B_20200312_CT"


def test_conflicts_are_found_again_at_upload_after_cells_were_edited():
    rows = [
        row("a", "1", session_label="L", status=Status.SUCCESS),
        row("b", "2", session_label="L", study="s2"),
        row("c", "3", session_label="M", study="s3"),
    ]
    assert list(labels.label_conflicts(rows)) == ["b"]
    assert "subject '1'" in labels.label_conflicts(rows)["b"]


def test_nobody_owns_a_label_under_which_nothing_was_sent():
    rows = [row("a", "1", session_label="L"), row("b", "2", session_label="l", study="s2")]
    assert set(labels.label_conflicts(rows)) == {"a", "b"}


def test_session_values_of_one_study_may_share_the_label_it_has():
    rows = [row("a", session="Head", session_label="L"), row("b", session="Neck", session_label="L")]
    assert labels.label_conflicts(rows) == {}
    other = row("c", session="Arm", session_label="L", study="s2", study_date="20220101")
    assert set(labels.label_conflicts([*rows, other])) == {"a", "b", "c"}


def test_another_study_may_join_a_label_that_two_session_values_of_one_study_share():
    rows = [
        row("a", session="Head", session_label="0001_CT"),
        row("b", session="Neck", session_label="0001_CT"),
    ]
    done = labels.label_sessions(
        [*rows, row("c", session="Head", study="s2")], template("{Subject}_{Modality}")
    )
    assert statuses(done) == [Status.EMPTY] * 3
    assert labels.label_sessions(done, template("{Subject}_{Modality}")) == done


def test_labels_of_1x_that_hold_several_session_values_of_one_date_are_no_conflict():
    rows = [
        row("a", session="Head", study="", study_date="20190101", session_label="0001_CT1"),
        row("b", session="Neck", study="", study_date="20190101", session_label="0001_CT1"),
    ]
    assert labels.label_conflicts(rows) == {}


def test_subjects_that_xnat_would_take_for_one_are_a_conflict_at_upload():
    rows = [row("a", "abc", session_label="L"), row("b", "ABC", session_label="M", study="s2")]
    assert set(labels.label_conflicts(rows)) == {"a", "b"}
    sent = [replace(rows[0], status=Status.SUCCESS), rows[1]]
    assert set(labels.label_conflicts(sent)) == {"b"}


def test_rows_in_doubt_and_rows_that_never_travel_are_in_nobodys_way():
    rows = [
        row("a", "0342", session_label="L"),
        row("b", "342", session_label="L", doubt="a number among zero-padded text"),
        row("c", "9", session_label="L", status=Status.SKIPPED, upload=False),
        row("d", "9", session_label="L", status=Status.MISSING, upload=False),
    ]
    assert labels.label_conflicts(rows) == {}


# --- nothing moves


SUBJECTS = st.sampled_from(["1", "A B", "A_B", "a_b", "M\u00fcller", "Mu\u0308ller"])
SESSIONS = st.sampled_from(["20200101", "2020.01.01", "2020_01_01", "20210101", "x", ""])
STUDIES = st.sampled_from(["", "s1", "s2", "s3"])
MODALITIES = st.sampled_from(["CT", "PT", "MR", "SEG", ""])
STATUSES = st.sampled_from([Status.EMPTY, Status.EMPTY, Status.REVIEW, Status.MISSING, Status.SKIPPED])
FACTS = st.lists(st.tuples(SUBJECTS, SESSIONS, STUDIES, MODALITIES, STATUSES), max_size=10)
TEMPLATES = st.sampled_from(
    [DEFAULT, OLD, PLAIN, template("{Session}"), template("V{Visit}"), template("{Modality}")]
)


def drawn(facts, name="f"):
    return [
        row(f"{name}{i}", subject, session, study, modality, status=status, station_name="x" if i % 2 else "")
        for i, (subject, session, study, modality, status) in enumerate(facts)
    ]


def decided(one):
    return one.session_label, one.status, one.upload


@pytest.mark.slow
@STEADY
@given(FACTS, TEMPLATES)
def test_labelling_twice_changes_nothing(facts, text):
    once = labels.label_sessions(drawn(facts), text)
    twice = labels.label_sessions(once, text)
    assert [decided(one) for one in twice] == [decided(one) for one in once]


@STEADY
@given(FACTS, FACTS, TEMPLATES)
def test_new_rows_never_change_a_label_that_was_given(first, later, text):
    before = labels.label_sessions(drawn(first), text)
    after = labels.label_sessions([*drawn(later, "g"), *before], text)
    kept = {one.file: one.session_label for one in after}
    assert all(kept[one.file] == one.session_label for one in before if one.session_label)


@STEADY
@given(FACTS, TEMPLATES)
def test_no_label_made_stands_for_two_subjects_or_two_visits(facts, text):
    done = labels.label_sessions(drawn(facts), text)
    owners = {}
    subjects = {}
    for one in done:
        if not one.session_label or not labels.takes_part(one) or one.status is Status.MISSING:
            continue
        visit = (composed(one.subject), one.session)
        owners.setdefault(one.session_label.casefold(), set()).add(visit)
        subjects.setdefault(records.label(one.subject).casefold(), set()).add(visit[0])
    assert all(len(visits) == 1 for visits in owners.values())
    assert all(len(texts) == 1 for texts in subjects.values())


def composed(value):
    return value.replace("u\u0308", "\u00fc")


@STEADY
@given(FACTS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_decide_who_is_in_conflict(facts, chance: random.Random):
    rows = drawn(facts)
    mixed = list(rows)
    chance.shuffle(mixed)
    straight = {one.file: one.status for one in labels.label_sessions(rows, DEFAULT)}
    assert {one.file: one.status for one in labels.label_sessions(mixed, DEFAULT)} == straight


# --- duplicates


def image(file, uid="i1", label="L", **more):
    return row(file, session_label=label, sop_instance_uid=uid, **more)


def test_the_second_copy_of_an_image_in_a_session_is_a_duplicate_that_names_the_first():
    done = labels.mark_duplicates([image("Head/a"), image("Head_copy/a"), image("Head/b", "i2")])
    assert statuses(done) == [Status.EMPTY, Status.DUPLICATE, Status.EMPTY]
    assert [one.upload for one in done] == [True, False, True]
    assert "Head/a" in done[1].message


def test_the_copy_that_was_sent_is_the_first_then_the_one_that_was_listed():
    done = labels.mark_duplicates([image("new"), image("old", number=3)])
    assert statuses(done) == [Status.DUPLICATE, Status.EMPTY]
    done = labels.mark_duplicates([image("listed", number=2), image("sent", number=3, status=Status.SUCCESS)])
    assert statuses(done) == [Status.DUPLICATE, Status.SUCCESS]


def test_a_copy_that_is_gone_is_not_the_first():
    done = labels.mark_duplicates([image("old", status=Status.MISSING, number=2), image("new")])
    assert statuses(done) == [Status.MISSING, Status.EMPTY]


def test_a_copy_of_a_review_file_is_not_released_with_it():
    rows = [image("a", status=Status.REVIEW, upload=False), image("b", status=Status.REVIEW, upload=False)]
    assert statuses(labels.mark_duplicates(rows)) == [Status.REVIEW, Status.DUPLICATE]


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED, Status.INTERRUPTED, Status.CONFLICT])
def test_what_an_upload_said_of_a_copy_stays(status):
    rows = [image("a"), image("b", status=Status.SUCCESS), image("c", status=status)]
    assert labels.mark_duplicates(rows)[2] == rows[2]


def test_the_same_image_under_another_subject_is_said_on_both_and_both_may_travel():
    done = labels.mark_duplicates([image("a", subject="1", label="L1"), image("b", subject="2", label="L2")])
    assert statuses(done) == [Status.EMPTY] * 2
    assert all(one.upload for one in done)
    assert "subject '2'" in done[0].message
    assert "subject '1'" in done[1].message


def test_the_same_image_in_another_session_is_said_on_both():
    done = labels.mark_duplicates([image("a", label="L1"), image("b", label="L2")])
    assert "session L2" in done[0].message
    assert "session L1" in done[1].message


def test_images_without_uid_or_session_are_no_duplicates():
    rows = [image("a", uid=""), image("b", uid=""), image("c", label=""), image("d", label="")]
    assert labels.mark_duplicates(rows) == rows


def test_marking_twice_changes_nothing():
    once = labels.mark_duplicates(
        [image("a"), image("b"), image("c", label="M"), image("d", subject="9", label="N")]
    )
    assert labels.mark_duplicates(once) == once
