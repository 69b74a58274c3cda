"""Workbooks of 1.x upload and scan again without edits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import openpyxl
import pytest

from tests.helpers import builders, runs
from tests.helpers.runs import Runner
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Row, Status

HEADINGS = (
    "Pattern", "File", "Filename", "Upload", "Status", "Subject", "Session", "Dataset", "SessionLabel",
    "DICOM:Manufacturer", "DICOM:ManufacturerModelName", "DICOM:Modality", "DICOM:SeriesNumber", "DICOM:StationName",
    "DICOM:StudyDate", "DICOM:StudyDescription", "SubjectName", "ID", "Directory", "filename",
)  # fmt: skip
VISITS = {("0001", "20200312"): 1, ("0342", "20190115"): 1, ("0342", "20200623"): 2}


def as_1x_writes_it(path: Path, statuses: dict[str, str] | None = None) -> None:
    """Write what 1.1.9 writes for the example tree, cell for cell."""
    opened = openpyxl.Workbook()
    sheet = opened.active
    assert sheet is not None
    sheet.title = "Configuration"
    for line in (
        ("Instructions",), ("How to fill this in\n",), (), ("Configuration",),
        ("Paths", "DICOM", "{SubjectName}-{ID}", "**", "{Directory}", "{filename}.dcm"), (), (), (), (),
        ("Mappings", "Subject", "ID"), (None, "Session", "DICOM:StudyDate"), (None, "Dataset", "Directory"), (),
        ("XNAT", "Project", "P"), (None, "Server", "http://localhost:8080"),
        (None, "AllowFields", "AccessionNumber"), (None, "SkipImageTypes", "DOSE_INFO"),
    ):  # fmt: skip
        sheet.append(line)
    files = opened.create_sheet("Files")
    files.append(HEADINGS)
    for file in sorted(Path("data_files").rglob("*.dcm")):
        patient, date, directory, name = file.parts[1:]
        subject_name, subject = patient.split("-")
        label = f"{subject}_CT{VISITS[subject, date]}"
        status = (statuses or {}).get(file.as_posix())
        files.append(
            ("DICOM", file.as_posix(), name, "Y", status, subject, date, directory.replace(" ", "_"), label, "ACME",
             "Scanner 1", "CT", 3 if "Neck" in directory else 2, "CT01", date, directory, subject_name, subject,
             directory, name.removesuffix(".dcm"))
        )  # fmt: skip
    opened.save(path)


def rows() -> list[Row]:
    return runs.rows("old.xlsx")


def upload(run: Runner, box: Sandbox, *more: str) -> int:
    return run("upload", "--spreadsheet", "old.xlsx", "--dir", "data_files", "--server", box.url, *more).code


def check_it_arrived(box: Sandbox) -> None:
    listed = rows()
    assert {row.status for row in listed} == {Status.SUCCESS}
    assert {row.session_label for row in listed} == {"0001_CT1", "0342_CT1", "0342_CT2"}
    assert {row.file.partition("/")[0] for row in listed} == {"data_files"}, "paths stay as 1.x wrote them"
    assert set(box.state()["P"]["0342"]) == {"0342_CT1", "0342_CT2"}
    assert len(box.files()) == 14


def test_a_1x_workbook_uploads_without_edits(seed_tree: Path, run: Runner, box: Sandbox) -> None:
    as_1x_writes_it(Path("old.xlsx"))
    assert upload(run, box) == 0
    check_it_arrived(box)
    assert all(row.scan_id and row.resource == "DICOM" for row in rows()), (
        "the place is written into the sheet"
    )


def test_a_1x_workbook_scans_again_without_losing_anything(
    seed_tree: Path, run: Runner, box: Sandbox
) -> None:
    first = "data_files/Doe^John-0001/20200312/Chest CT/scan0000.dcm"
    second = "data_files/Doe^John-0001/20200312/Chest CT/scan0001.dcm"
    as_1x_writes_it(Path("old.xlsx"), {first: "success", second: "Digest mismatch 1234"})
    assert run("scan", "--spreadsheet", "old.xlsx", "--dir", "data_files").code == 0
    by_file = {row.file: row for row in rows()}
    assert len(by_file) == 14
    assert by_file[first].status is Status.SUCCESS
    assert (by_file[second].status, by_file[second].message) == (Status.FAILED, "Digest mismatch 1234")
    assert {row.session_label for row in by_file.values()} == {"0001_CT1", "0342_CT1", "0342_CT2"}


@pytest.mark.slow
def test_a_1x_workbook_that_was_scanned_again_uploads_old_and_new_files(
    seed_tree: Path, run: Runner, box: Sandbox
) -> None:
    as_1x_writes_it(Path("old.xlsx"))
    for visit in ("20210101", "20220202"):
        builders.write_seed_file(seed_tree, f"Roe^Jane-0342/{visit}/Head CT/scan0000.dcm")
        assert run("scan", "--spreadsheet", "old.xlsx", "--dir", "data_files").code == 0
        assert upload(run, box) == 0
        assert {row.status for row in rows()} == {Status.SUCCESS}
    assert len(box.files()) == len(rows()) == 16


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "damaged"])
@pytest.mark.parametrize("verify", [False, True])
def test_what_1x_has_sent_stays_success_whatever_became_of_the_file(
    seed_tree: Path, run: Runner, box: Sandbox, how: str, verify: bool
) -> None:
    files = sorted(Path("data_files").rglob("*.dcm"))
    as_1x_writes_it(Path("old.xlsx"), {file.as_posix(): "success" for file in files[1:]})
    if how == "gone":
        files[3].unlink()
    else:
        files[3].write_bytes(b"")
    upload(run, box, *(["--verify"] if verify else []))
    row = next(row for row in rows() if row.file == files[3].as_posix())
    assert row.status is Status.SUCCESS
    assert next(row for row in rows() if row.file == files[0].as_posix()).status is Status.SUCCESS


def test_a_new_visit_goes_on_counting_from_the_labels_of_1x(seed_tree: Path, run: Runner) -> None:
    as_1x_writes_it(Path("old.xlsx"))
    builders.write_seed_file(seed_tree, "Roe^Jane-0342/20180101/Head CT/scan0000.dcm", StudyDate="20180101")
    assert run("scan", "--spreadsheet", "old.xlsx", "--dir", "data_files").code == 0
    new = [row for row in rows() if "20180101" in row.file]
    assert [row.session_label for row in new] == ["0342_CT3"]


@pytest.mark.slow
def test_two_files_of_one_name_in_a_scan_both_arrive(seed_tree: Path, run: Runner, box: Sandbox) -> None:
    chest = seed_tree / "Doe^John-0001/20200312/Chest CT"
    (chest.parent / "more" / "Chest CT").mkdir(parents=True)
    (chest / "scan0002.dcm").rename(chest.parent / "more/Chest CT/scan0001.dcm")
    as_1x_writes_it_with_depth = Path("old.xlsx")
    moved = "data_files/Doe^John-0001/20200312/more/Chest CT/scan0001.dcm"
    as_1x_for_moved(as_1x_writes_it_with_depth, moved)
    assert upload(run, box) == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}
    assert len(box.files()) == 14


def as_1x_for_moved(path: Path, moved: str) -> None:
    (Path(moved)).rename("aside.dcm")
    as_1x_writes_it(path)
    Path("aside.dcm").rename(moved)
    opened = openpyxl.load_workbook(path)
    sheet = opened["Files"]
    twin = [cell.value for cell in sheet[2]]
    twin[HEADINGS.index("File")], twin[HEADINGS.index("Filename")] = moved, "scan0001.dcm"
    sheet.append(twin)
    opened.save(path)


@pytest.mark.slow
@pytest.mark.interop
def test_a_workbook_that_1x_wrote_itself_uploads_and_scans_again(
    seed_tree: Path, run: Runner, box: Sandbox, peer: Path
) -> None:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for words in (("init",), ("scan", "--dir", "data_files")):
        command = [str(peer), *words, "--spreadsheet", "old.xlsx"]
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=alone)
    assert upload(run, box, "--project", "P") == 0
    check_it_arrived(box)
    assert run("scan", "--spreadsheet", "old.xlsx", "--dir", "data_files").code == 0
    check_it_arrived(box)
