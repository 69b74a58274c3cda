"""`upload --import-handler` and its relatives as users type them, from workbook to workbook."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from tests.helpers import builders
from tests.helpers.runs import BOOK, Runner, rows, upload
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Status


@pytest.fixture(autouse=True)
def bytes_stay(box: Sandbox) -> None:
    """Switch the site's anonymisation off, so that bytes show what went where."""
    box.set(anonymize_imports=False)


def statuses() -> set[str]:
    return {row.status.value for row in rows()}


def waiting(box: Sandbox) -> list[dict[str, Any]]:
    import requests

    url = f"{box.url}/data/prearchive/projects/P?format=json"
    answer = requests.get(url, auth=(box.user, box.password), timeout=30)
    return list(answer.json()["ResultSet"]["Result"])


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM", "XAR"])
def test_the_example_tree_arrives_whole(scanned: Path, run: Runner, box: Sandbox, handler: str) -> None:
    ran = upload(run, box, "--import-handler", handler)
    assert ran.code == 0, ran.err + ran.out
    assert statuses() == {"success"}
    for row in rows():
        data = (scanned / row.file).read_bytes()
        there = box.archive / "P/arc001" / row.session_label / "SCANS" / row.scan_id / "DICOM" / row.filename
        assert there.read_bytes() == data
        assert row.md5 == hashlib.md5(data).hexdigest()
    sheet = openpyxl.load_workbook(BOOK)["Sessions"]
    links = [cell.value for cell in sheet[1]].index("Link")
    assert all(
        "/experiments/XNAT_E" in str(line[links]) for line in sheet.iter_rows(min_row=2, values_only=True)
    )
    box.clear_requests()
    assert upload(run, box, "--import-handler", handler).code == 0
    assert box.count() == 0


@pytest.mark.slow
def test_a_session_that_exists_is_refused_and_added_to_when_asked(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    assert upload(run, box, "--import-handler", "DICOM-zip").code == 0
    builders.write_seed_file(scanned, "Doe^John-0001/20200312/Chest CT/scan0009.dcm")
    assert run("scan", "--spreadsheet", BOOK, "--dir", scanned).code == 0
    ran = upload(run, box, "--import-handler", "DICOM-zip")
    assert ran.code == 1
    assert [row.status for row in rows()].count(Status.CONFLICT) == 1
    assert "--import-overwrite none" in ran.err
    assert upload(run, box, "--import-handler", "DICOM-zip", "--import-overwrite", "append").code == 0
    assert statuses() == {"success"}
    assert len(box.files("P")) == 15


def test_sessions_wait_in_the_prearchive_until_they_are_committed(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    assert upload(run, box, "--import-handler", "DICOM-zip", "--dest", "prearchive").code == 0
    assert statuses() == {"success"}
    assert all(
        "Waits in XNAT's prearchive" in row.message and "/data/prearchive/" in row.message for row in rows()
    )
    assert {one["status"] for one in waiting(box)} == {"READY"}
    assert len(waiting(box)) == 3
    assert box.files("P") == {}
    ran = upload(run, box, "--commit")
    assert ran.code == 0, ran.err
    assert "3 sessions were waiting" in ran.out
    assert waiting(box) == []
    assert len(box.files("P")) == 14
    assert {row.message for row in rows()} == {"Archived by XNAT's import service, with the same MD5."}
    ran = upload(run, box, "--commit")
    assert (ran.code, "No session of this workbook was waiting" in ran.out) == (0, True)


@pytest.mark.slow
def test_commit_alone_sends_nothing(scanned: Path, run: Runner, box: Sandbox) -> None:
    ran = upload(run, box, "--commit")
    assert ran.code == 0, ran.err
    assert statuses() == {""}
    assert box.count("PUT", "/projects/") == 0
    assert box.count("POST") == 0


@pytest.mark.slow
def test_catalogs_are_refreshed_after_an_upload_and_by_themselves(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    ran = upload(run, box, "--refresh-catalog")
    assert ran.code == 0, ran.err
    assert "catalogs of 3 sessions were refreshed" in ran.out
    assert box.count("POST", "/services/refresh/catalog") == 3
    row = rows()[0]
    folder = box.archive / "P/arc001" / row.session_label / "SCANS" / row.scan_id / "DICOM"
    (folder / "lost.dcm").write_bytes(b"lies there, listed nowhere")
    box.clear_requests()
    ran = upload(run, box, "--refresh-catalog", "append,populateStats")
    assert ran.code == 0, ran.err
    assert len(box.files("P")) == 15
    assert box.count("PUT", "/projects/") == 0
    asked = [one["path"] for one in box.requests("POST", "/services/refresh/catalog")]
    assert all("options=append%2CpopulateStats" in path for path in asked)


NOT_CARRIED = (
    (("--dest", "archive"), "give --import-handler too"),
    (("--quarantine",), "give --import-handler too"),
    (("--import-handler", "DICOM-zip", "--quarantine"), "does not support --quarantine"),
    (("--import-handler", "SI", "--quarantine", "--dest", "prearchive"), "into the prearchive"),
    (("--import-handler", "SI", "--rename"), "does not support --rename"),
    (("--import-handler", "XAR", "--nopipeline"), "does not support --nopipeline"),
    (("--import-handler", "XAR", "--dest", "prearchive"), "straight into the archive"),
    (("--import-handler", "XAR", "--import-overwrite", "append"), "cannot add to a session"),
    (("--import-handler", "inbox"), "names the folder on the server"),
    (("--import-handler", "DICOM-zip", "--dest", "/archive/P"), "is not a destination"),
    (("--import-handler", "DICOM-zip", "--dest", "/archive/projects/OTHER"), "names project OTHER"),
    (("--import-handler", "DICOM-zip", "--overwrite"), "--import-overwrite delete"),
    (("--import-handler", "inbox", "--dest", "/inbox/Q/x"), "only what is in <inbox>/P/"),
)


@pytest.mark.slow
def test_what_an_import_would_not_carry_ends_with_exit_2_and_nothing_sent(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    for words, said in NOT_CARRIED:
        ran = upload(run, box, *words)
        assert (ran.code, said in ran.err) == (2, True), f"{words}: {ran.err}"
    assert box.files("P") == {}
    assert box.count("POST", "/services/import") == 0


@pytest.mark.slow
def test_the_plan_says_by_which_way(scanned: Path, run: Runner, box: Sandbox) -> None:
    ran = upload(run, box, "--test", "--import-handler", "SI", "--dest", "prearchive")
    assert "through XNAT's import service (SI), into the prearchive" in ran.out
    assert box.count() == 0


@pytest.mark.slow
def test_a_session_half_sent_is_not_committed(scanned: Path, run: Runner, box: Sandbox) -> None:
    assert upload(run, box, "--import-handler", "DICOM-zip", "--dest", "prearchive").code == 0
    builders.write_seed_file(scanned, "Doe^John-0001/20200312/Chest CT/scan0009.dcm")
    assert run("scan", "--spreadsheet", BOOK, "--dir", scanned).code == 0
    ran = upload(run, box, "--commit")
    assert ran.code == 0, ran.err
    assert "2 sessions were waiting" in ran.out
    assert "Not archived yet, because files are still to be sent: 1 session" in ran.out
    assert len(waiting(box)) == 1
    ran = upload(run, box, "--import-handler", "DICOM-zip", "--commit")
    assert ran.code == 0, ran.err
    assert waiting(box) == []
    assert len(box.files("P")) == 15


@pytest.mark.slow
def test_a_conflict_in_the_prearchive_is_archived_once_that_is_allowed(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    box.fault("refuse-import", path="/services/archive")
    ran = upload(run, box, "--import-handler", "gradual-DICOM")
    assert ran.code == 1
    assert statuses() == {"failed"}
    assert all("waits in the prearchive as ERROR" in row.message for row in rows())
    box.clear_faults()
    ran = upload(run, box, "--commit", "--import-overwrite", "append")
    assert ran.code == 0, ran.err + ran.out
    assert statuses() == {"success"}
    assert len(box.files("P")) == 14


@pytest.mark.slow
def test_de_identified_copies_go_through_the_import_too(scanned: Path, run: Runner, box: Sandbox) -> None:
    opened = openpyxl.load_workbook(BOOK)
    for cells in opened["Configuration"].iter_rows(max_col=3):
        if cells[1].value == "Anonymize":
            cells[2].value = "yes"
    opened.save(BOOK)
    assert run("scan", "--spreadsheet", BOOK, "--dir", scanned, "--restart").code == 0
    ran = upload(run, box, "--import-handler", "DICOM-zip")
    assert ran.code == 0, ran.err + ran.out
    assert statuses() == {"success"}
    stored = [path.read_bytes() for path in box.archive.rglob("*.dcm")]
    assert len(stored) == 14
    assert not any(b"Doe^John" in data or b"Roe^Jane" in data for data in stored)


@pytest.mark.slow
def test_the_inbox_from_the_command_line(scanned: Path, run: Runner, box: Sandbox) -> None:
    folder = box.folder / "inbox" / "P" / "batch"
    shutil.copytree(scanned, folder)
    ran = upload(run, box, "--import-handler", "inbox", "--dest", str(folder))
    assert ran.code == 0, ran.err + ran.out
    assert statuses() == {"success"}
    assert len(list(folder.rglob("*.dcm"))) == 14


@pytest.mark.slow
def test_verify_looks_at_what_was_imported(scanned: Path, run: Runner, box: Sandbox) -> None:
    upload(run, box, "--import-handler", "DICOM-zip")
    ran = upload(run, box, "--import-handler", "DICOM-zip", "--verify")
    assert ran.code == 0, ran.err + ran.out
    row = rows()[0]
    folder = box.archive / "P/arc001" / row.session_label / "SCANS" / row.scan_id / "DICOM"
    (folder / row.filename).unlink()
    upload(run, box, "--refresh-catalog", "delete")
    ran = upload(run, box, "--import-handler", "DICOM-zip", "--verify")
    assert ran.code == 1
    assert [one.status for one in rows()].count(Status.FAILED) == 1


@pytest.mark.slow
def test_headers_decide_with_a_warning(scanned: Path, run: Runner, box: Sandbox) -> None:
    ran = upload(run, box, "--import-handler", "DICOM-zip", "--dest-by-headers")
    assert "XNAT decides by the DICOM headers" in ran.err
    assert statuses() == {"failed"}, "the headers of the example name no project"
    assert all("Unassigned" in row.message for row in rows())


@pytest.mark.slow
def test_what_is_left_is_interrupted_when_the_server_goes_away(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xnatuploader.xnat import http

    monkeypatch.setattr(http, "AWAY_AFTER", 1.0)
    box.fault("drop", path="/services/|/data/prearchive|/data/auth", when="before", first=3)
    ran = upload(run, box, "--import-handler", "gradual-DICOM", "--jobs", "1")
    assert ran.code == 4, ran.err + ran.out
    assert statuses() <= {"interrupted", "failed"}
    box.clear_faults()
    ran = upload(run, box, "--import-handler", "gradual-DICOM")
    assert ran.code == 0, ran.err + ran.out
    assert statuses() == {"success"}
    assert waiting(box) == []
