"""init, scan and upload as a user runs them, against the sandbox: the whole path of a row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import openpyxl
import pytest

from tests.helpers import builders
from tests.helpers.runs import BOOK, Runner, configure, edit, rows, set_cells, upload
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Row, Status
from xnatuploader.workbook import book
from xnatuploader.xnat import http


def test_the_example_tree_arrives_whole_and_in_the_right_places(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    ran = upload(run, box)
    assert ran.code == 0, ran.err
    listed = rows()
    assert [row.status for row in listed] == [Status.SUCCESS] * 14
    assert {row.session_label for row in listed} == {
        "0001_20200312_CT",
        "0342_20190115_CT",
        "0342_20200623_CT",
    }
    assert len({(row.session_label, row.scan_id) for row in listed}) == 4
    for row in listed:
        sent = (scanned / row.file).read_bytes()
        stored = (
            box.archive / "P" / "arc001" / row.session_label / "SCANS" / row.scan_id / "DICOM" / row.filename
        )
        assert stored.read_bytes() == sent
        assert row.md5 == hashlib.md5(sent).hexdigest()
    state = box.state()["P"]
    assert set(state) == {"0001", "0342"}, "Subject 0001 arrives as 0001"
    for label, date in (("0342_20190115_CT", "2019-01-15"), ("0342_20200623_CT", "2020-06-23")):
        session = state["0342"][label]
        assert (session["xsi"], session["date"]) == ("xnat:ctSessionData", date)
    for row in listed:
        scan = state[row.subject][row.session_label]["scans"][row.scan_id]
        assert (scan["xsi"], scan["type"]) == ("xnat:ctScanData", row.dataset)


def test_a_second_upload_exits_0_without_a_request(scanned: Path, run: Runner, box: Sandbox) -> None:
    upload(run, box)
    box.clear_requests()
    ran = upload(run, box)
    assert ran.code == 0
    assert "Nothing to do" in ran.out
    assert box.count() == 0


def test_with_the_status_cells_emptied_nothing_is_sent_again(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    upload(run, box)
    set_cells("Status", None)
    box.clear_requests()
    assert upload(run, box).code == 0
    assert [row.status for row in rows()] == [Status.SUCCESS] * 14
    assert box.count("PUT", "/files") == 0


def change_on_the_server(box: Sandbox, row: Row) -> None:
    """Replace a file there by another, as somebody with another client would."""
    import requests

    url = (
        f"{box.url}/data/projects/P/subjects/{row.subject}/experiments/{row.session_label}/scans/{row.scan_id}"
        f"/resources/DICOM/files/{row.filename}?overwrite=true&inbody=true"
    )
    assert (
        requests.put(url, data=b"something else", auth=(box.user, box.password), timeout=30).status_code
        == 200
    )


def test_verify_finds_a_file_that_differs_on_the_server_and_overwrite_replaces_it(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    upload(run, box)
    victim = rows()[3]
    change_on_the_server(box, victim)
    assert upload(run, box, "--verify").code == 1
    statuses = {row.file: row.status for row in rows()}
    assert statuses.pop(victim.file) is Status.CONFLICT
    assert set(statuses.values()) == {Status.SUCCESS}
    assert upload(run, box, "--overwrite").code == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}
    stored = (
        box.archive / "P/arc001" / victim.session_label / "SCANS" / victim.scan_id / "DICOM" / victim.filename
    )
    assert stored.read_bytes() == (scanned / victim.file).read_bytes()


@pytest.mark.slow
def test_verify_finds_a_file_that_is_gone_on_the_server(scanned: Path, run: Runner, box: Sandbox) -> None:
    import requests

    upload(run, box)
    victim = rows()[0]
    url = (
        f"{box.url}/data/projects/P/subjects/{victim.subject}/experiments/{victim.session_label}/scans/"
        f"{victim.scan_id}/resources/DICOM/files/{victim.filename}"
    )
    assert requests.delete(url, auth=(box.user, box.password), timeout=30).status_code == 200
    assert upload(run, box, "--verify").code == 1
    assert next(row for row in rows() if row.file == victim.file).status is Status.FAILED
    assert upload(run, box).code == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}


# ---- errors that end a run: one clear message, the right code, nothing sent


def nothing_was_sent(box: Sandbox) -> bool:
    return box.count("PUT", "/data/projects") == 0 and box.files() == {}


def test_a_missing_project_ends_with_5(scanned: Path, run: Runner, box: Sandbox) -> None:
    ran = upload(run, box, project="Nope")
    assert ran.code == 5
    assert "no project Nope" in ran.err
    assert nothing_was_sent(box)
    assert {row.status for row in rows()} <= {Status.EMPTY, Status.INTERRUPTED}


def test_a_wrong_password_ends_with_3(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAT_PASS", "wrong-s3cret")
    ran = upload(run, box)
    assert ran.code == 3
    assert "XNAT_USER" in ran.err
    assert "wrong-s3cret" not in ran.err
    assert nothing_was_sent(box)


@pytest.mark.slow
def test_an_unreachable_server_ends_with_4(scanned: Path, run: Runner, box: Sandbox) -> None:
    box.stop()
    ran = run(
        "upload",
        "--spreadsheet",
        BOOK,
        "--dir",
        "data_files",
        "--server",
        "http://127.0.0.1:9",
        "--project",
        "P",
    )
    assert ran.code == 4
    assert "127.0.0.1:9" in ran.err


@pytest.mark.slow
def test_no_credentials_and_no_terminal_ends_with_3_and_the_lines_to_add(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XNAT_USER")
    ran = upload(run, box)
    assert ran.code == 3
    assert "machine" in ran.err
    assert nothing_was_sent(box)


@pytest.mark.parametrize("operation", ["scan", "upload"])
def test_a_missing_workbook_ends_with_2_and_names_init(operation: str, here: Path, run: Runner) -> None:
    ran = run(operation, "--spreadsheet", "none.xlsx", "--dir", ".")
    assert ran.code == 2
    assert "none.xlsx" in ran.err
    assert "init" in ran.err


def test_a_workbook_without_a_configuration_sheet_ends_with_2(seed_tree: Path, run: Runner) -> None:
    openpyxl.Workbook().save(BOOK)
    ran = run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    assert ran.code == 2
    assert "Configuration" in ran.err


def test_three_mistakes_in_the_configuration_are_reported_together_with_their_cells(
    seed_tree: Path, run: Runner
) -> None:
    run("init", "--spreadsheet", BOOK)
    configure("Nested", "{Subject Name}", "**", "{filename}.dcm")
    configure("Session", "DICOM:StudyDat")
    configure("Anonymize", "perhaps")
    ran = run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    assert ran.code == 2
    assert ran.err.count("Configuration C") >= 3, ran.err
    assert "StudyDate" in ran.err
    assert not book.Book.open(Path(BOOK)).has_files


def test_init_leaves_an_existing_workbook_alone(here: Path, run: Runner) -> None:
    assert run("init", "--spreadsheet", BOOK).code == 0
    before = Path(BOOK).read_bytes()
    ran = run("init", "--spreadsheet", BOOK)
    assert ran.code == 2
    assert "--force" in ran.err
    assert Path(BOOK).read_bytes() == before
    assert run("init", "--spreadsheet", BOOK, "--force").code == 0


# ---- what goes into the sheet


def test_text_that_looks_like_a_formula_is_text(here: Path, run: Runner) -> None:
    builders.write_seed_file(here / "d", "Doe^John-0001/20200312/Chest/a.dcm", StudyDescription="=1+1")
    run("init", "--spreadsheet", BOOK)
    assert run("scan", "--spreadsheet", BOOK, "--dir", "d").code == 0
    sheet = openpyxl.load_workbook(BOOK)["Files"]
    (cell,) = [c for c in sheet[2] if sheet.cell(1, c.column).value == "DICOM:StudyDescription"]
    assert (cell.value, cell.data_type) == ("=1+1", "s")
    assert rows()[0].study_description == "=1+1"


def test_the_test_option_prints_the_plan_and_changes_nothing(
    scanned: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(BOOK).read_bytes()
    ran = run("upload", "--spreadsheet", BOOK, "--dir", "data_files", "--test")
    assert ran.code == 0
    assert "0342_20200623_CT" in ran.out
    assert "14 files" in ran.out
    assert Path(BOOK).read_bytes() == before


def test_json_is_the_only_thing_on_stdout(scanned: Path, run: Runner, box: Sandbox) -> None:
    ran = upload(run, box, "--json")
    said = json.loads(ran.out)
    assert (said["command"], said["exit_code"], said["files"], said["sessions"], said["scans"]) == (
        "upload", 0, {"success": 14}, 3, 4,
    )  # fmt: skip
    assert said["bytes"] > 0
    assert said["problems"] == []


def test_a_file_that_is_not_on_disk_is_missing_and_the_others_are_sent(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    gone = rows()[5].file
    (scanned / gone).unlink()
    assert upload(run, box).code == 1
    statuses = {row.file: row.status for row in rows()}
    assert statuses.pop(gone) is Status.MISSING
    assert set(statuses.values()) == {Status.SUCCESS}


@pytest.mark.slow
def test_a_wrong_folder_is_said_once(scanned: Path, run: Runner, box: Sandbox, here: Path) -> None:
    (here / "elsewhere").mkdir()
    ran = run("upload", "--spreadsheet", BOOK, "--dir", "elsewhere", "--server", box.url, "--project", "P")
    assert ran.code == 1
    assert "--dir" in ran.err
    assert {row.status for row in rows()} == {Status.MISSING}


def test_rows_and_sessions_that_say_n_stay_here(scanned: Path, run: Runner, box: Sandbox) -> None:
    set_cells("Upload", "N", lambda row: row["Dataset"] == "Neck CT")

    def take_out(opened: openpyxl.Workbook) -> None:
        sheet = opened["Sessions"]
        headings = [cell.value for cell in sheet[1]]
        for cells in sheet.iter_rows(min_row=2):
            if cells[headings.index("SessionLabel")].value == "0001_20200312_CT":
                cells[headings.index("Upload")].value = "N"

    edit(take_out)
    assert upload(run, box).code == 0
    sent = {row.file for row in rows() if row.status is Status.SUCCESS}
    assert len(sent) == 7
    assert not any("Neck" in file or "Doe" in file for file in sent)
    assert set(box.state()["P"]) == {"0342"}


def test_steps_after_the_upload_are_sent_once_per_session(scanned: Path, run: Runner, box: Sandbox) -> None:
    upload(run, box)
    for step in ("pullDataFromHeaders", "fixScanTypes", "triggerPipelines"):
        asked = [one["path"].partition("?")[0] for one in box.requests("PUT", step)]
        assert len(asked) == len(set(asked)) == 3, step


@pytest.mark.slow
def test_nopipeline_skips_them(scanned: Path, run: Runner, box: Sandbox) -> None:
    upload(run, box, "--nopipeline")
    assert not [r for r in box.requests("PUT") if "pullDataFromHeaders" in str(r)]


@pytest.mark.slow
def test_files_that_lost_every_race_for_the_catalog_are_listed_by_a_refresh(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.Clock, "wait", lambda self, event, seconds: event.is_set())
    box.fault("race", method="PUT", path="0001_20200312_CT/scans/.*/files/")
    ran = upload(run, box)
    assert ran.code == 0, ran.err
    assert {row.status for row in rows()} == {Status.SUCCESS}
    assert box.count("POST", "/data/services/refresh/catalog") >= 1
