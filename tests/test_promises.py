"""What the documentation promises, looked at from outside: words in, exit code, screen and workbook out."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from tests.helpers import builders, runs
from tests.helpers.runs import Runner, variables
from tests.helpers.sandbox_process import Sandbox

BOOK = "files.xlsx"
"""What `init` writes where no --spreadsheet is given."""
DATA = "data_files"
edit = functools.partial(runs.edit, workbook=BOOK)
put = functools.partial(runs.set_cells, workbook=BOOK)
listed = functools.partial(runs.listed, workbook=BOOK)


def column(heading: str, sheet: str = "Files") -> list[Any]:
    return [row[heading] for row in listed(sheet)]


def remove_column(heading: str) -> None:
    def change(opened: openpyxl.Workbook) -> None:
        headings = [cell.value for cell in opened["Files"][1]]
        opened["Files"].delete_cols(headings.index(heading) + 1)

    edit(change)


@pytest.fixture
def scanned(seed_tree: Path, run: Runner) -> Path:
    assert run("init").code == 0
    assert run("scan", "--dir", DATA).code == 0
    return seed_tree


# ---- 1, the command line


def test_a_usage_problem_is_said_once(here: Path) -> None:
    command = [sys.executable, "-m", "xnatuploader", "scan", "--loglevel", "chatty"]
    ran = subprocess.run(command, capture_output=True, text=True, env=variables(), timeout=60)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "chatty" in ran.stderr


# ---- 2, the workbook


def test_an_upload_before_the_scan_is_a_workbook_problem(here: Path, run: Runner) -> None:
    run("init")
    for words in (("upload",), ("upload", "--test")):
        ran = run(*words)
        assert ran.code == 2
        assert "no sheet Files" in ran.err
        assert "xnatuploader scan" in ran.err
        assert not ran.out


def test_where_nothing_is_selected_upload_does_not_say_that_it_is_all_there(
    scanned: Path, run: Runner
) -> None:
    put("Upload", lambda row: "N")
    ran = run("upload", "--dir", DATA)
    assert ran.code == 0
    assert "no file is selected" in ran.out
    assert "already" not in ran.out
    edit(lambda opened: opened["Files"].delete_rows(2, 20))
    ran = run("upload", "--dir", DATA)
    assert ran.code == 0
    assert "lists no files" in ran.out


def test_without_an_upload_column_it_is_not_guessed_what_is_sent(scanned: Path, run: Runner) -> None:
    remove_column("Upload")
    ran = run("upload", "--dir", DATA)
    assert ran.code == 2
    assert "no column headed Upload" in ran.err


@pytest.mark.slow
def test_a_whole_column_that_lost_its_zeros_is_a_conflict_and_no_new_subject(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    put("Subject", lambda row: int(row["Subject"]))
    ran = run("upload", "--dir", DATA, "--server", box.url, "--project", "P")
    assert ran.code == 1
    assert set(column("Status")) == {"conflict"}
    assert box.state()["P"] == {}
    assert all("0342" in row["Message"] for row in listed() if "Roe" in row["File"])
    assert run("scan", "--dir", DATA).code == 1
    assert run("upload", "--dir", DATA, "--server", box.url, "--project", "P").code in (0, 1)
    assert box.state()["P"] == {}


@pytest.mark.slow
def test_rows_with_one_mistake_are_one_line_on_the_screen(scanned: Path, run: Runner, box: Sandbox) -> None:
    put("Subject", lambda row: 342 if row["Subject"] == "0342" else row["Subject"])
    ran = run("upload", "--dir", DATA, "--server", box.url, "--project", "P")
    assert ran.code == 1
    assert column("Status").count("conflict") == 11
    said = [line for line in ran.out.splitlines() if "342" in line]
    assert len(said) == 1
    assert "11 x" in said[0]


def test_init_writes_no_file_that_excel_would_not_open(here: Path, run: Runner) -> None:
    for name in ("study", "study.xls", "study.csv"):
        ran = run("init", "--spreadsheet", name)
        assert ran.code == 2
        assert "study.xlsx" in ran.err
        assert not (here / name).exists()


def test_a_scan_without_any_session_still_writes_both_sheets(here: Path, run: Runner) -> None:
    (here / DATA).mkdir()
    run("init")
    assert run("scan", "--dir", DATA).code == 0
    opened = openpyxl.load_workbook(BOOK)
    assert opened.sheetnames == ["Configuration", "Files", "Sessions"]
    for name in ("Files", "Sessions"):
        assert opened[name]["A2"].value is None
        assert opened[name].freeze_panes == "A2"
    builders.seed_tree(here / DATA)
    assert run("scan", "--dir", DATA).code == 0
    assert len(listed()) == 14
    assert len(listed("Sessions")) == 3


# ---- 7, where files go


@pytest.mark.slow
def test_a_label_that_a_person_wrote_is_made_fit_for_xnat(scanned: Path, run: Runner, box: Sandbox) -> None:
    put("SessionLabel", lambda row: "first visit/é" if row["Subject"] == "0001" else row["SessionLabel"])
    where = ("--dir", DATA, "--server", box.url, "--project", "P")
    assert run("upload", *where).code == 0
    assert set(box.state()["P"]["0001"]) == {"first_visit__"}
    assert set(column("Status")) == {"success"}
    box.clear_requests()
    assert run("upload", *where).code == 0
    assert box.count() == 0
    assert run("scan", "--dir", DATA).code == 0
    labels = {row["SessionLabel"] for row in listed("Sessions") if row["Files"]}
    assert labels == {"first_visit__", "0342_20190115_CT", "0342_20200623_CT"}


def test_a_session_that_was_taken_out_stays_out_under_a_label_with_odd_characters(
    scanned: Path, run: Runner
) -> None:
    for sheet in ("Files", "Sessions"):
        put("SessionLabel", lambda row: row["SessionLabel"].replace("_", " "), sheet=sheet)
    put("Upload", lambda row: "N" if row["Subject"] == "0001" else "Y", sheet="Sessions")
    ran = run("upload", "--test", "--dir", DATA)
    assert "11 files" in ran.out.splitlines()[0]
    assert "Doe" not in ran.out
    run("scan", "--dir", DATA)
    assert {row["SessionLabel"]: row["Upload"] for row in listed("Sessions")} == {
        "0001_20200312_CT": "N",
        "0342_20190115_CT": "Y",
        "0342_20200623_CT": "Y",
    }


def test_a_conflict_names_the_label_as_it_is_written(scanned: Path, run: Runner) -> None:
    put("SessionLabel", lambda row: "SAME_Label")
    ran = run("upload", "--test", "--dir", DATA)
    assert "SAME_Label would stand for" in ran.out


# ---- 2, 8: files that change, and files that go


@pytest.mark.slow
def test_a_file_that_was_replaced_is_not_said_to_have_changed(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    where = ("--dir", DATA, "--server", box.url, "--project", "P")
    before, after = builders.SEED_FILES[0], builders.SEED_FILES[3]
    builders.write_seed_file(scanned, before, StationName="changed before it was sent")
    assert run("upload", *where).code == 0
    assert run("scan", "--dir", DATA).code == 0
    assert not [message for message in column("Message") if "changed" in message]
    builders.write_seed_file(scanned, after, StationName="changed after it was sent")
    run("scan", "--dir", DATA)
    assert ["changed" in row["Message"] for row in listed() if row["File"] == after] == [True]
    assert run("upload", *where, "--overwrite").code == 0
    assert run("scan", "--dir", DATA).code == 0
    assert not [message for message in column("Message") if "changed" in message]
    assert set(column("Status")) == {"success"}


@pytest.mark.slow
def test_one_file_that_is_gone_is_no_wrong_folder(scanned: Path, run: Runner, box: Sandbox) -> None:
    where = ("--dir", DATA, "--server", box.url, "--project", "P")
    run("upload", *where)
    put("Status", lambda row: "" if row["File"] == builders.SEED_FILES[0] else row["Status"])
    (scanned / builders.SEED_FILES[0]).unlink()
    ran = run("upload", *where)
    assert ran.code == 1
    assert column("Status").count("missing") == 1
    assert "--dir" not in ran.err


@pytest.mark.slow
def test_a_date_as_old_scanners_write_it_is_the_sessions_date(here: Path, run: Runner, box: Sandbox) -> None:
    file = "Doe^John-0001/1994/Chest/a.dcm"
    builders.write_seed_file(here / DATA, file, StudyDate="1994.11.05")
    run("init")
    run("scan", "--dir", DATA)
    assert column("Date", "Sessions") == ["1994-11-05"]
    assert run("upload", "--dir", DATA, "--server", box.url, "--project", "P").code == 0
    (session,) = box.state()["P"]["0001"].values()
    assert session["date"] == "1994-11-05"


# ---- what people do to sheets


@pytest.mark.slow
def test_a_row_that_was_copied_is_one_file_still(scanned: Path, run: Runner, box: Sandbox) -> None:
    def copy(opened: openpyxl.Workbook) -> None:
        opened["Files"].append([cell.value for cell in opened["Files"][2]])

    where = ("--dir", DATA, "--server", box.url, "--project", "P")
    edit(copy)
    assert run("upload", *where).code == 0
    assert column("Status") == ["success"] * 15
    assert len(box.files("P")) == 14
    put("Status", lambda row: "")
    edit(lambda opened: opened["Files"].cell(2, 4, "N"))
    assert "13 files" in run("upload", *where, "--test").out.splitlines()[0]


def test_without_an_upload_column_in_sessions_it_is_not_guessed_either(scanned: Path, run: Runner) -> None:
    edit(lambda opened: opened["Sessions"].delete_cols(1))
    for words in (("upload", "--test"), ("scan",)):
        ran = run(*words, "--dir", DATA)
        assert ran.code == 2
        assert "The sheet Sessions of files.xlsx has no column headed Upload" in ran.err


@pytest.mark.slow
def test_paths_of_a_1x_sheet_from_windows_are_found_elsewhere(here: Path, run: Runner, box: Sandbox) -> None:
    builders.seed_tree(here / DATA)
    run("init")
    headings = ["Pattern", "File", "Filename", "Upload", "Status", "Subject", "Session", "Dataset"]
    headings += ["SessionLabel", "DICOM:Modality", "DICOM:StudyDate", "DICOM:SeriesNumber"]
    names = [f"{DATA}\\" + file.replace("/", "\\") for file in builders.SEED_FILES[:3]]

    def old(opened: openpyxl.Workbook) -> None:
        sheet = opened["Configuration"]
        for cells in sheet.iter_rows(min_col=2, max_col=3):
            if cells[0].value == "SessionLabel":
                cells[0].value = cells[1].value = None
        files = opened.create_sheet("Files")
        files.append(headings)
        for name in names:
            last = name.rpartition("\\")[2]
            place = ["0001", "20200312", "Chest CT", "0001_CT1", "CT", "20200312", "2"]
            files.append(["Nested", name, last, "Y", "", *place])

    edit(old)
    ran = run("upload", "--server", box.url, "--project", "P")
    assert ran.code == 0, ran.err
    assert set(box.state()["P"]["0001"]) == {"0001_CT1"}
    assert run("scan", "--dir", DATA).code == 0
    assert [row["Status"] for row in listed() if row["Subject"] == "0001"] == ["success"] * 3
    assert len(listed()) == 14


def test_a_scan_does_not_ask_for_an_upload_of_nothing(scanned: Path, run: Runner) -> None:
    assert "xnatuploader upload" in run("scan", "--dir", DATA).out
    put("Status", lambda row: "success")
    ran = run("scan", "--dir", DATA)
    assert "nothing to upload" in ran.out
    assert "xnatuploader upload" not in ran.out


def test_a_scan_counts_as_to_upload_what_an_upload_would_try(scanned: Path, run: Runner) -> None:
    put("Upload", lambda row: "N" if row["Subject"] == "0001" else "Y", sheet="Sessions")
    put("Status", lambda row: "conflict" if row["DICOM:SeriesNumber"] == "3" else "")
    ran = run("scan", "--dir", DATA)
    assert ran.code == 1
    assert " 11 files to upload" in ran.out
    assert "11 files" in run("upload", "--test", "--dir", DATA).out.splitlines()[0]


@pytest.mark.slow
def test_two_visits_in_conflict_get_two_free_labels_to_choose(here: Path, run: Runner, box: Sandbox) -> None:
    for visit in ("20200101", "20210101"):
        builders.write_seed_file(here / DATA, f"Doe^John-0001/{visit}/Chest/a.dcm")
    run("init")

    def by_visit(opened: openpyxl.Workbook) -> None:
        for cells in opened["Configuration"].iter_rows(min_col=2, max_col=3):
            if cells[0].value == "SessionLabel":
                cells[1].value = "{Subject}_{Modality}{Visit}"

    edit(by_visit)
    run("scan", "--dir", DATA)
    others = {f"0001_CT{n}": {"xsi": "xnat:ctSessionData", "UID": f"1.2.{n}"} for n in (1, 2)}
    box.put_state({"P": {"0001": others}})
    where = ("--dir", DATA, "--server", box.url, "--project", "P")
    ran = run("upload", *where)
    assert ran.code == 1
    assert "1 file is not sent" in ran.err
    advised = [message.rpartition(" ")[2].rstrip(".") for message in column("Message")]
    assert advised == ["0001_CT3", "0001_CT4"]
    put("SessionLabel", lambda row: row["Message"].rpartition(" ")[2].rstrip("."))
    assert run("upload", *where).code == 0
    assert set(box.state()["P"]["0001"]) == {"0001_CT1", "0001_CT2", "0001_CT3", "0001_CT4"}
