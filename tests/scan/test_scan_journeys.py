"""What a scan does to the workbook of somebody who works with it: edits, second scans, summaries, many rows."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import openpyxl
import pytest
from openpyxl.comments import Comment
from openpyxl.styles import PatternFill

from tests.helpers import builders
from tests.helpers.runs import Runner
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.studies import Study, headings_of
from xnatuploader.records import Status
from xnatuploader.scan import rows
from xnatuploader.workbook import fresh, package

NECK = "Roe^Jane-0342/20200623/Neck CT"
CHEST = "Doe^John-0001/20200312/Chest CT"
REASONS = "The most common reasons why files are not uploaded:"


@pytest.fixture
def empty(run: Runner, here: Path) -> Study:
    made = Study(run, here)
    made.init()
    return made


@pytest.fixture
def study(empty: Study) -> Study:
    """The example tree, scanned."""
    builders.seed_tree(empty.data)
    assert empty.scan().code == 0
    return empty


def sheet_parts(study: Study) -> dict[str, bytes]:
    with zipfile.ZipFile(study.book) as book:
        return {name: book.read(name) for name in book.namelist() if "worksheets/" in name}


def add(where: Study, file: str, **elements: object) -> Path:
    return builders.write_seed_file(where.data, file, **elements)


# --- a second scan


def test_a_second_scan_of_the_same_folder_leaves_every_sheet_byte_for_byte(study: Study) -> None:
    before = sheet_parts(study)
    assert study.scan().code == 0
    assert sheet_parts(study) == before
    assert len(before) == 3


def test_a_second_scan_changes_nothing_either_where_rows_are_in_conflict_or_review(study: Study) -> None:
    add(study, f"{CHEST}/scan0007.dcm", BurnedInAnnotation="YES")
    add(study, f"{CHEST}/scan0008.dcm", Modality="SR")
    shutil.copy(study.data / CHEST / "scan0000.dcm", study.data / CHEST / "scan0009.dcm")
    add(study, "Poe^Ann-000 1/20200312/Chest/scan0001.dcm")
    add(study, "Poe^Ann-000_1/20200312/Chest/scan0001.dcm", instance="99")
    assert study.scan().code == 1
    before = study.texts(), study.texts("Sessions")
    assert study.scan().code == 1
    assert (study.texts(), study.texts("Sessions")) == before
    assert {row["Status"] for row in before[0]} == {None, "review", "skipped", "duplicate", "conflict"}


def test_user_columns_fills_notes_filters_widths_and_sheets_of_their_own_stay(study: Study) -> None:
    def decorate(opened: openpyxl.Workbook) -> None:
        files = opened["Files"]
        files.insert_cols(3)
        files.cell(1, 3).value = "Radiographer's note"
        for line in range(2, files.max_row + 1):
            files.cell(line, 3).value = f"note {line}"
        files["C5"].fill = PatternFill("solid", fgColor="FFFFCC00")
        files["D4"].comment = Comment("look again", "me")
        files.column_dimensions["C"].width = 44
        files.auto_filter.add_filter_column(7, ["0342"])
        files.row_dimensions[3].hidden = True
        opened.create_sheet("Mine")["A1"] = "=1+1"

    study.edit(decorate)
    notes = {line["File"]: line["Radiographer's note"] for line in study.texts()}
    add(study, f"{CHEST}/scan0001a.dcm", instance="50")
    (study.data / NECK / "scan0000.dcm").unlink()
    assert study.scan().code == 0
    after = {line["File"]: line["Radiographer's note"] for line in study.texts()}
    assert after == {**notes, f"{CHEST}/scan0001a.dcm": None}
    opened = openpyxl.load_workbook(study.book)
    files = opened["Files"]
    assert opened["Mine"]["A1"].value == "=1+1"
    assert files.column_dimensions["C"].width == 44
    filled = [cell.value for cell in files["C"] if cell.fill.fgColor.rgb == "FFFFCC00"]
    assert filled == ["note 5"]
    assert [cell.comment.text for line in files.iter_rows() for cell in line if cell.comment] == [
        "look again"
    ]
    assert files.auto_filter.ref.endswith(str(files.max_row))
    assert files.auto_filter.filterColumn
    assert files.freeze_panes is not None


def test_rows_that_a_person_sorted_stay_sorted_and_new_ones_come_last(study: Study) -> None:
    def turn_round(opened: openpyxl.Workbook) -> None:
        files = opened["Files"]
        lines = [[cell.value for cell in line] for line in files.iter_rows(min_row=2)]
        for place, line in enumerate(reversed(lines), 2):
            for column, value in enumerate(line, 1):
                files.cell(place, column).value = value

    study.edit(turn_round)
    before = [line["File"] for line in study.texts()]
    add(study, f"{CHEST}/scan0001a.dcm", instance="50")
    assert study.scan().code == 0
    assert [line["File"] for line in study.texts()] == [*before, f"{CHEST}/scan0001a.dcm"]


def test_new_files_come_last(study: Study) -> None:
    new = f"{CHEST}/scan0001a.dcm"
    add(study, new, instance="50")
    assert study.scan().code == 0
    files = [str(line["File"]) for line in study.texts()]
    assert files.index(new) == len(files) - 1
    row = study.row("scan0001a")
    assert (row.upload, row.session_label, row.scan_id) == (True, "0001_20200312_CT", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heading", "value", "field"),
    [("Subject", "S-77", "subject"), ("Dataset", "Thorax", "dataset"), ("SessionLabel", "Visit_A", "session_label")],
)  # fmt: skip
def test_what_a_person_edited_stays_edited(study: Study, heading: str, value: str, field: str) -> None:
    study.set(heading, value, CHEST)
    for _ in range(2):
        assert study.scan().code == 0
        for file, row in study.rows().items():
            assert (getattr(row, field) == value) == file.startswith(CHEST), row
    label = study.row(f"{CHEST}/scan0000").session_label
    assert label in study.sessions()


def test_a_persons_n_and_y_stay(study: Study) -> None:
    study.set("Upload", "N", "Neck CT")
    study.set("Upload", "yes", f"{CHEST}/scan0001")
    assert study.scan().code == 0
    assert [row.upload for file, row in study.rows().items() if "Neck" in file] == [False] * 4
    assert sum(row.upload for row in study.rows().values()) == 10
    assert {line["Upload"] for line in study.texts() if "scan0001" in str(line["File"])} == {"Y", "N", "yes"}


def test_a_folder_renamed_on_disk_brings_nobody_back_who_was_taken_out(study: Study) -> None:
    study.set("Upload", "N", "Neck CT")
    (study.data / NECK).rename((study.data / NECK).with_name("Neck renamed"))
    for _ in range(2):
        assert study.scan().code == 0
        renamed = [row for file, row in study.rows().items() if "Neck renamed" in file]
        assert [row.upload for row in renamed] == [False] * 4
    assert {row.status for file, row in study.rows().items() if "Neck CT" in file} == {Status.MISSING}


def test_a_released_review_file_stays_released_and_a_tools_n_is_worked_out_again(study: Study) -> None:
    path = add(study, f"{CHEST}/scan0008.dcm", BurnedInAnnotation="YES")
    assert study.scan().code == 0
    assert (study.row("scan0008").status, study.row("scan0008").upload) == (Status.REVIEW, False)
    study.set("Upload", "Y", "scan0008")
    assert study.scan().code == 0
    assert (study.row("scan0008").status, study.row("scan0008").upload) == (Status.REVIEW, True)
    path.unlink()
    add(study, f"{CHEST}/scan0009.dcm", BurnedInAnnotation="YES")
    assert study.scan().code == 0
    assert study.row("scan0008").status is Status.MISSING
    add(study, f"{CHEST}/scan0009.dcm")
    assert study.scan().code == 0
    assert (study.row("scan0009").status, study.row("scan0009").upload) == (Status.EMPTY, True)


def test_a_file_that_is_gone_is_missing_and_welcome_again(study: Study) -> None:
    path = study.data / CHEST / "scan0001.dcm"
    data = path.read_bytes()
    path.unlink()
    assert study.scan().code == 0
    assert study.row(f"{CHEST}/scan0001").status is Status.MISSING
    path.write_bytes(data)
    assert study.scan().code == 0
    row = study.row(f"{CHEST}/scan0001")
    assert (row.status, row.upload, row.message) == (Status.EMPTY, True, "")


@pytest.mark.slow
def test_a_file_changed_after_it_was_sent_says_so_until_it_is_as_sent_again(
    study: Study, run: Runner, box: Sandbox
) -> None:
    words = ("--spreadsheet", study.book, "--dir", study.data, "--server", box.url, "--project", "P")
    assert run("upload", *words).code == 0
    path = study.data / CHEST / "scan0001.dcm"
    data, times = path.read_bytes(), path.stat()
    path.write_bytes(data + b"\0\0")
    gone = study.data / CHEST / "scan0002.dcm"
    gone.unlink()
    assert study.scan().code == 0
    row = study.row(f"{CHEST}/scan0001")
    assert row.status is Status.SUCCESS
    assert "changed after it was sent" in row.message
    assert "--overwrite" in row.message
    assert study.row(f"{CHEST}/scan0002").status is Status.SUCCESS
    assert study.sessions()["0001_20200312_CT"].done == 3
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert study.scan().code == 0
    assert "changed" not in study.row(f"{CHEST}/scan0001").message


def test_rows_of_unmatched_paths_come_with_their_option_and_stay(study: Study) -> None:
    (study.data / "notes.txt").write_text("hello")
    (study.data / CHEST / "text.dcm").write_text("hello")
    ran = study.scan()
    assert re.search(r"2 +not listed .*--unmatched", ran.out)
    assert len(study.rows()) == 14
    assert study.scan("--unmatched").code == 0
    assert study.row("notes.txt").message == (
        "Nested: the file is in no folder, and the pattern is for at least 3 folders (** stands for one or more)"
    )
    assert "a text file" in study.row("text.dcm").message
    (study.data / "more.txt").write_text("hello")
    ran = study.scan()
    assert ran.code == 0
    assert re.search(r"2 +unmatched ", ran.out)
    assert re.search(r"1 +not listed .*--unmatched", ran.out)
    assert list(study.rows())[14:] == ["notes.txt", f"{CHEST}/text.dcm"]


# --- another folder, another workbook


def test_another_folder_is_refused_with_the_two_ways_on_and_restart_keeps_the_old_list(study: Study) -> None:
    other = study.data.parent / "other"
    builders.write_seed_file(other, "Poe^Ann-0009/20210101/Head/a.dcm")
    study.set("Dataset", "Thorax", CHEST)
    before = study.book.read_bytes()
    ran = study.scan("--dir", str(other))
    assert ran.code == 2
    assert "init" in ran.err
    assert "--restart" in ran.err
    assert study.book.read_bytes() == before
    assert study.scan("--dir", str(other), "--restart").code == 0
    assert list(study.rows()) == ["Poe^Ann-0009/20210101/Head/a.dcm"]
    assert set(study.sessions()) == {"0009_20210101_CT"}
    old = study.texts("Files old")
    assert len(old) == 14
    assert {line["Dataset"] for line in old if CHEST in str(line["File"])} == {"Thorax"}
    assert study.scan("--dir", str(other)).code == 0


def test_a_folder_that_only_moved_is_welcome(study: Study) -> None:
    moved = study.data.rename(study.data.parent / "moved")
    before = study.texts()
    assert study.scan("--dir", str(moved)).code == 0
    assert study.texts() == before


def test_an_open_workbook_ends_a_scan_before_it_reads_anything(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study.book.parent / f"~${study.book.name}").write_bytes(
        b"\x06Ann Ex".ljust(55) + b"\x06\0" + "Ann Ex".encode("utf-16-le")
    )
    monkeypatch.setattr(rows, "read", lambda *_, **__: pytest.fail("it read the folder"))
    ran = study.scan()
    assert ran.code == 6
    assert str(study.book) in ran.err
    assert "Ann Ex" in ran.err


def test_a_workbook_locked_only_at_the_end_leaves_the_result_beside_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(study, f"{CHEST}/scan0007.dcm")
    before = study.book.read_bytes()
    replace = os.replace

    def refuse(source: str, target: str) -> None:
        if Path(target) == study.book:
            raise PermissionError(errno.EACCES, "The process cannot access the file", target)
        replace(source, target)

    monkeypatch.setattr(package.os, "replace", refuse)
    ran = study.scan()
    assert ran.code == 6
    beside = study.book.with_name("study (scan result).xlsx")
    assert beside.name in ran.err
    assert study.book.read_bytes() == before
    study.book = beside
    assert len(study.rows()) == 15


# --- the Configuration changes between two scans


def test_a_changed_mapping_changes_what_the_tool_wrote_and_nothing_else(study: Study) -> None:
    study.set("Subject", "S-77", CHEST)
    study.set("Upload", "N", NECK)
    study.configure("Mappings", "Subject", "SubjectName")
    assert study.scan().code == 0
    assert study.row(f"{CHEST}/scan0000").subject == "S-77"
    neck = study.row(f"{NECK}/scan0000")
    assert (neck.subject, neck.session_label, neck.upload) == ("Roe^Jane", "Roe_Jane_20200623_CT", False)
    left = study.sessions()["0342_20200623_CT"]
    assert (left.files, left.warnings) == (0, "no file is listed")


@pytest.mark.slow
def test_a_mapping_row_may_be_added_renamed_and_removed(study: Study) -> None:
    study.configure("Mappings", "Site", "{SubjectName}/{DICOM:Modality}")
    assert study.scan().code == 0
    line = study.texts()[0]
    assert line["Site"] == "Doe^John/CT"
    study.set("Site", "Ward 7", CHEST)
    assert study.scan().code == 0
    assert {line["Site"] for line in study.texts()} == {"Ward 7", "Roe^Jane/CT"}

    def rename(opened: openpyxl.Workbook) -> None:
        for line in opened["Configuration"].iter_rows(min_col=2, max_col=2):
            if line[0].value == "Site":
                line[0].value = "Place"

    study.edit(rename)
    assert study.scan().code == 0
    assert study.texts()[0]["Place"] == "Doe^John/CT"
    study.edit(lambda opened: _remove(opened, "Place"))
    before = {file: (row.subject, row.session, row.dataset) for file, row in study.rows().items()}
    assert study.scan().code == 0
    assert {file: (row.subject, row.session, row.dataset) for file, row in study.rows().items()} == before


def _remove(opened: openpyxl.Workbook, label: str) -> None:
    for line in opened["Configuration"].iter_rows(min_col=1, max_col=8):
        if line[1].value == label:
            for cell in line[1:]:
                cell.value = None


def test_captures_that_equal_a_heading_are_headed_path(empty: Study) -> None:
    builders.seed_tree(empty.data)
    empty.configure("Paths", "Nested", "{Subject}-{ID}", "**", "{Dataset}", "{Filename}.dcm")
    empty.configure("Mappings", "Dataset", "Dataset")
    assert empty.scan().code == 0
    line = empty.texts()[0]
    assert (line["Path:Subject"], line["Path:Dataset"], line["Path:Filename"]) == (
        "Doe^John",
        "Chest CT",
        "scan0000",
    )
    assert (line["Subject"], line["Dataset"], line["Filename"]) == ("0001", "Chest CT", "scan0000.dcm")
    before = empty.texts()
    assert empty.scan().code == 0
    assert empty.texts() == before


def test_a_corrected_pattern_takes_in_what_did_not_fit(study: Study) -> None:
    moved = study.data / "0777" / "Head"
    builders.write_dicom(moved / "a.dcm", study="new", StudyDate="20210505")
    assert study.scan("--unmatched").code == 0
    assert study.row("0777").status is Status.UNMATCHED
    study.configure("Paths", "Flat", "{ID}", "{Directory}", "{filename}.dcm")
    assert study.scan().code == 0
    row = study.row("0777")
    assert (row.pattern, row.status, row.upload) == ("Flat", Status.EMPTY, True)
    assert row.session_label == "0777_20210505_CT"


def test_a_changed_review_row_of_the_configuration_is_applied_to_what_is_listed(study: Study) -> None:
    add(study, f"{CHEST}/scan0008.dcm", BurnedInAnnotation="YES")
    add(study, f"{CHEST}/scan0009.dcm", ImageType=["DERIVED", "MONTAGE"])
    assert study.scan().code == 0
    assert study.row("scan0008").status is Status.REVIEW
    study.configure("XNAT", "Review")
    study.configure("XNAT", "SkipImageTypes", "DOSE_INFO, MONTAGE")
    assert study.scan().code == 0
    assert (study.row("scan0008").status, study.row("scan0008").upload) == (Status.EMPTY, True)
    assert (study.row("scan0009").status, study.row("scan0009").upload) == (Status.SKIPPED, False)


def test_an_id_that_excel_made_a_number_is_a_conflict_and_no_new_subject(study: Study) -> None:
    study.set("Subject", 342, f"{NECK}/scan0001")
    ran = study.scan()
    assert ran.code == 1
    row = study.row(f"{NECK}/scan0001")
    assert (row.status, row.upload) == (Status.CONFLICT, False)
    assert "Subject" in row.message
    assert {session.subject for session in study.sessions().values()} == {"0001", "0342"}
    study.set("Subject", "0342", f"{NECK}/scan0001")
    assert study.scan().code == 0
    row = study.row(f"{NECK}/scan0001")
    assert (row.status, row.upload, row.subject, row.message) == (Status.EMPTY, True, "0342", "")


def test_ctrl_c_while_files_are_read_leaves_the_workbook_and_no_lock(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = study.book.read_bytes()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rows, "read", interrupted)
        assert study.scan().code == 130
    assert study.book.read_bytes() == before
    assert study.scan().code == 0


# --- options


def test_debug_looks_at_ten_files_says_each_step_and_leaves_the_other_rows(study: Study) -> None:
    before = study.texts()
    study.set("Dataset", "Thorax", NECK)
    ran = study.scan("--debug")
    assert ran.code == 0
    assert re.search(r"Nested \(.*\) fits: SubjectName = 'Doe\^John'", ran.err)
    assert len(study.texts()) == len(before)
    assert study.row(f"{NECK}/scan0000").dataset == "Thorax"
    assert {row.status for row in study.rows().values()} == {Status.EMPTY}
    assert "10 files" in ran.out


def test_debug_in_a_new_workbook_lists_ten_files(empty: Study) -> None:
    builders.seed_tree(empty.data)
    assert empty.scan("--debug").code == 0
    assert len(empty.rows()) == 10
    assert empty.scan().code == 0
    assert len(empty.rows()) == 14


def test_strict_makes_a_dataset_with_two_series_a_conflict(study: Study) -> None:
    add(study, f"{CHEST}/scan0005.dcm", series="another", SeriesNumber="9")
    assert study.scan().code == 0
    ran = study.scan("--strict")
    assert ran.code == 1
    chest = [row for file, row in study.rows().items() if file.startswith(CHEST)]
    assert {(row.status, row.upload) for row in chest} == {(Status.CONFLICT, False)}
    assert "4 rows" in ran.out
    assert study.scan().code == 0
    assert {row.upload for row in study.rows().values()} == {True}


# --- reasons and the summary


@pytest.fixture
def misfits(empty: Study) -> Study:
    """A folder no file of which fits `init`'s pattern set."""
    for patient in ("A17", "B18"):
        for number in range(3):
            builders.write_dicom(
                empty.data / patient / "CT" / f"IM{number}.ima",
                study=patient,
                instance=str(number + 1),
                StudyDate="20210203",
            )
    (empty.data / "A17" / "readme.txt").write_text("hello")
    return empty


def test_when_nothing_matched_the_row_that_is_proposed_makes_the_scan_work(misfits: Study) -> None:
    ran = misfits.scan()
    assert ran.code == 0
    assert "No file fits a pattern set" in ran.out
    assert "Files opened: 7. Files with DICOM among them: 6." in ran.out
    assert "xnatuploader upload" not in ran.out, "there is nothing to upload yet"
    proposed = re.search(r"folder/folder/\*\.ima: 6 files, 6 with DICOM\s+(\S.*)$", ran.out, re.MULTILINE)
    assert proposed is not None, ran.out
    assert not re.search("A17|B18|IM0", ran.out + ran.err), "paths hold patients' names"
    label, *cells = proposed[1].split(" | ")
    misfits.configure("Paths", label, *cells)
    assert misfits.scan().code == 0
    assert {row.session_label for row in misfits.rows().values()} == {"A17_20210203_CT", "B18_20210203_CT"}
    assert len(misfits.rows()) == 6


def test_a_session_all_of_whose_files_lost_a_value_is_no_longer_counted(study: Study) -> None:
    for path in (study.data / CHEST).iterdir():
        add(study, f"{CHEST}/{path.name}", StudyDate="")
    said = json.loads(study.scan("--json").out)
    assert said["files"] == {"not tried": 11, "unmatched": 3}
    assert (said["sessions"], said["scans"]) == (2, 3)


def test_the_summary_counts_tells_the_commonest_reasons_and_names_nobody(study: Study) -> None:
    for number in range(10, 15):
        add(study, f"{CHEST}/scan00{number}.dcm", Modality="SR")
    for number in range(20, 23):
        add(study, f"{CHEST}/scan00{number}.dcm", BurnedInAnnotation="YES")
    for number in range(2):
        (study.data / f"John Doe{number}.txt").write_text("hello")
    (study.data / CHEST / "empty.dcm").write_bytes(b"")
    ran = study.scan()
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert "25 files" in lines[0]
    assert "14 files to upload" in lines[0]
    assert "3 sessions with 4 scans" in lines[0]
    counts = {words[1]: words[0] for line in lines if len(words := re.split(r"\s{2,}", line.strip())) == 3}
    assert (counts["not tried"], counts["skipped"], counts["review"]) == ("14", "6", "3")
    reasons = [
        line.split(maxsplit=1) for line in lines[lines.index(REASONS) + 1 :] if re.match(r" +\d", line)
    ]
    assert [count for count, _ in reasons] == ["5", "3", "2"]
    assert "structured report" in reasons[0][1]
    assert max(map(len, lines)) <= 100 or "xnatuploader upload" in max(lines, key=len)
    assert "Release review" in ran.out
    assert "xnatuploader upload" in ran.out
    logs = "".join(log.read_text(encoding="utf-8") for log in (study.book.parent / "logs").iterdir())
    for text in (ran.out, ran.err, logs):
        assert not re.search(r"Doe|Roe|Jane|John|scan00|0342", text)


def test_conflicts_name_their_subjects_in_the_sheet_only(study: Study) -> None:
    study.configure("Mappings", "Subject", "SubjectName")
    study.configure("Mappings", "SessionLabel", "V_{Session}")
    add(study, "Poe^Ann-0007/20200312/Chest/scan0001.dcm")
    ran = study.scan("--restart")
    assert ran.code == 1
    assert "Poe^Ann" in study.row("Poe").message
    assert not re.search("Poe|Doe", ran.out + ran.err)
    assert "4 rows in conflict" in ran.out


def test_json_says_the_same_and_nothing_else(study: Study) -> None:
    add(study, f"{CHEST}/scan0010.dcm", Modality="SR")
    said = json.loads(study.scan("--json").out)
    assert (said["command"], said["exit_code"], said["files"]) == ("scan", 0, {"not tried": 14, "skipped": 1})
    assert (said["sessions"], said["scans"]) == (3, 4)
    assert said["bytes"] == sum(int(row.size) for row in study.rows().values() if row.upload)
    assert said["problems"] == ["1 x A structured report: text about the patient, not an image."]


def test_an_empty_folder_says_so(empty: Study) -> None:
    ran = empty.scan()
    assert ran.code == 0
    assert "no files" in ran.out
    assert "--dir" in ran.out


def test_a_field_that_a_mapping_needs_is_named_and_the_row_is_listed(study: Study) -> None:
    add(study, f"{CHEST}/scan0010.dcm", StudyDate=None)
    ran = study.scan()
    assert ran.code == 0
    row = study.row("scan0010")
    assert row.status is Status.UNMATCHED
    assert "DICOM:StudyDate is empty" in row.message
    assert re.search(r"1 +.*DICOM:StudyDate is empty", ran.out), ran.out


# --- the Sessions sheet


def test_the_sessions_sheet_says_what_is_odd(study: Study) -> None:
    for number in (5, 9):
        add(study, f"{CHEST}/scan000{number}.dcm")
    add(study, f"{CHEST}/scan0008.dcm", BurnedInAnnotation="YES")
    add(study, "Roe^Jane-0342/20190115/Head CT/scan0005.dcm", study="another")
    assert study.scan().code == 0
    chest = study.sessions()["0001_20200312_CT"]
    assert (chest.subject, chest.date, chest.modality, chest.scans, chest.files, chest.left) == (
        "0001", "20200312", "CT", 1, 5, 5,
    )  # fmt: skip
    assert "images missing between 1 and 10" in chest.warnings
    assert "1 file to review" in chest.warnings
    assert "2 studies in one session (2019-01-15)" in study.sessions()["0342_20190115_CT"].warnings


@pytest.mark.slow
def test_release_review_sends_the_sessions_review_files_and_an_n_on_a_session_sends_nothing(
    study: Study, run: Runner, box: Sandbox
) -> None:
    add(study, f"{CHEST}/scan0008.dcm", BurnedInAnnotation="YES")
    add(study, f"{NECK}/scan0008.dcm", BurnedInAnnotation="YES")
    assert study.scan().code == 0
    study.set("Release review", "Y", "0001_20200312_CT", sheet="Sessions")
    study.set("Upload", "N", "0342_20190115_CT", sheet="Sessions")
    assert study.scan().code == 0
    assert study.sessions()["0001_20200312_CT"].release_review
    assert not study.sessions()["0342_20190115_CT"].upload
    words = ("--spreadsheet", study.book, "--dir", study.data, "--server", box.url, "--project", "P")
    assert run("upload", *words).code == 0
    rows = study.rows()
    assert rows[f"{CHEST}/scan0008.dcm"].status is Status.SUCCESS
    assert rows[f"{NECK}/scan0008.dcm"].status is Status.REVIEW
    assert {row.status for row in rows.values() if row.session_label == "0342_20190115_CT"} == {Status.EMPTY}
    assert study.scan().code == 0
    assert study.rows() == rows


# --- a list longer than a sheet


@pytest.mark.slow
def test_a_list_longer_than_a_sheet_goes_on_in_files_2(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "LAST_ROW", 10)
    before = [row.file for row in study.rows().values()]
    assert study.scan("--restart").code == 0
    opened = openpyxl.load_workbook(study.book)
    assert (opened["Files"].max_row, opened["Files 2"].max_row) == (10, 6)
    assert list(headings_of(opened["Files 2"])) == list(headings_of(opened["Files"]))
    assert list(study.rows()) == before
    texts = study.texts(), study.texts("Files 2")
    assert study.scan().code == 0
    assert (study.texts(), study.texts("Files 2")) == texts
    for number in range(30, 36):
        add(study, f"{NECK}/scan00{number}.dcm")
    assert study.scan().code == 0
    assert len(study.rows()) == 20
    assert openpyxl.load_workbook(study.book)["Files 3"].max_row == 3


# --- how far it is


@pytest.mark.slow
def test_on_a_terminal_files_are_counted_while_they_are_found_then_read_towards_their_number(
    study: Study, here: Path
) -> None:
    from tests.helpers.terminal import Terminal

    words = ["scan", "--spreadsheet", str(study.book), "--dir", str(study.data)]
    with Terminal(words, here) as terminal:
        assert terminal.end() == 0
        seen = terminal.seen
    assert re.search(r"Finding files: \d+ files", seen), seen
    assert re.search(r"Reading files: +0%.*0/14", seen), seen
    assert re.search(r"Reading files: 100%.*14/14", seen), seen
    assert seen.index("Finding files") < seen.index("Reading files") < seen.index("14 files in")


def test_without_a_terminal_nothing_is_drawn(study: Study) -> None:
    assert study.scan().err == ""
