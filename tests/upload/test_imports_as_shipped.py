"""Imports into a site as XNAT ships it, whose anonymisation changes every file: what each row says was checked.

The real command line; what the archive or the prearchive holds is read from its disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pydicom
import pytest

from tests.helpers import builders
from tests.helpers.journeys import BOOK, LABEL, STUDY, VISIT, Journey
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Row

UID = (
    "Archived by XNAT's import service, which changed the file. Checked: the number of files, and this image's "
    "SOPInstanceUID."
)
MD5 = "Archived by XNAT's import service, with the same MD5."
NAME = "Checked: it is listed there."
THERE = "Was in the archive already, as XNAT's import service changed it. Checked: the SOPInstanceUID."
BY_HEADERS = f"{UID} By its headers XNAT named the session ByHeader_1."
ARCHIVE, PREARCHIVE = ("--dest", "archive"), ("--dest", "prearchive")
CACHE, RENAME, HEADERS = ("--via-cache",), ("--rename",), ("--dest-by-headers",)

IMPORTS = (
    *((handler, (*where, *cache), UID if where == ARCHIVE else NAME)
      for handler in ("DICOM-zip", "SI", "gradual-DICOM") for where in (ARCHIVE, PREARCHIVE) for cache in ((), CACHE)),
    *((handler, (*where, *RENAME), UID if where == ARCHIVE else NAME)
      for handler in ("DICOM-zip", "gradual-DICOM") for where in (ARCHIVE, PREARCHIVE)),
    *((handler, HEADERS, BY_HEADERS) for handler in ("DICOM-zip", "SI", "gradual-DICOM")),
    ("XAR", ARCHIVE, MD5),
    ("XAR", (*ARCHIVE, *CACHE), MD5),
    ("inbox", (), UID),
    ("inbox", RENAME, UID),
)  # fmt: skip
"""Handler, options, and what the rows' messages end with."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(tmp_path_factory.mktemp("site"), projects=["P"], anonymize_imports=True) as sandbox:
        yield sandbox


def two_series(journey: Journey) -> None:
    """List a session of two series, whose files bear the patient's name."""
    for number in range(3):
        journey.file(VISIT.format(number), PatientComments=comments(journey))
        journey.file(VISIT.replace("Chest", "Neck").format(number), PatientComments=comments(journey))
    journey.scan()


def comments(journey: Journey) -> str:
    return f"Project:{journey.project} Subject:ByHeader Session:ByHeader_1"


def imported(journey: Journey, handler: str, *more: str) -> Any:
    if handler == "inbox":
        folder = journey.site.folder / "inbox" / journey.project / "batch"
        if not folder.exists():
            shutil.copytree(journey.data, folder)
        more = ("--dest", str(folder), *more)
    return journey.upload("--import-handler", handler, *more)


def held(journey: Journey, where: str) -> dict[str, pydicom.Dataset]:
    """Return the images on the server's disk by SOPInstanceUID; `where` is archive or prearchive."""
    paths = (journey.site.folder / where / journey.project).rglob("*.dcm")
    images = [pydicom.dcmread(path) for path in paths]
    found = {str(image.SOPInstanceUID): image for image in images}
    assert len(found) == len(images), "an image is there twice"
    return found


def uids(rows: list[Row]) -> set[str]:
    return {row.sop_instance_uid for row in rows}


@pytest.mark.parametrize(("handler", "options", "said"), IMPORTS)
def test_every_row_says_what_was_checked(
    journey: Journey, handler: str, options: tuple[str, ...], said: str
) -> None:
    two_series(journey)
    ran = imported(journey, handler, *options)
    assert ran.code == 0, ran.err + ran.out
    rows = journey.rows()
    assert {row.status.value for row in rows} == {"success"}
    assert all(row.message.endswith(said) for row in rows), {row.message for row in rows}
    waits = PREARCHIVE[1] in options
    assert all(("/data/prearchive/" in row.message) is waits for row in rows)
    images = held(journey, "prearchive" if waits else "archive")
    assert images.keys() == uids(rows)
    assert held(journey, "archive" if waits else "prearchive") == {}
    name = "Doe^John" if handler == "XAR" else "ByHeader" if options == HEADERS else "0001"
    assert {str(image.PatientName) for image in images.values()} == {name}
    if not waits:
        (sessions,) = [subject for subject in journey.state().values() if subject]
        scans = sessions["ByHeader_1" if options == HEADERS else LABEL]["scans"]
        counts = {scan: len(record["resources"]["DICOM"]["files"]) for scan, record in scans.items()}
        assert counts == {"2": 3, "3": 3}


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM", "XAR"])
@pytest.mark.parametrize("said", ["Session processing may already be in progress", "Nothing here"])
def test_nothing_of_a_patient_stays_in_the_cache_after_a_refusal(
    journey: Journey, handler: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passing refusal is asked again, and each attempt puts the whole body into the cache."""
    monkeypatch.setattr("xnatuploader.xnat.prearchive._BUSY_PAUSES", (0.0,) * 5)
    two_series(journey)
    journey.site.clear_requests()
    journey.site.fault(
        "status", method="POST", path="/services/import", status=400, message=said, times=2, when="before"
    )
    imported(journey, handler, *CACHE)
    put = [one["path"].split("/files/")[0] for one in journey.site.requests("PUT", "/user/cache/")]
    gone = [one["path"].split("/files/")[0] for one in journey.site.requests("DELETE", "/user/cache/")]
    assert put
    assert set(put) == set(gone)


# ---- once more


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM", "XAR", "inbox"])
def test_a_fresh_workbook_finds_every_image_and_sends_none(journey: Journey, handler: str) -> None:
    """As after a run that was killed before it had written anything down."""
    two_series(journey)
    assert imported(journey, handler).code == 0
    before = journey.site.files(journey.project)
    journey.scan("--restart")
    journey.site.clear_requests()
    ran = imported(journey, handler)
    assert ran.code == 0, ran.err
    assert {row.status.value for row in journey.rows()} == {"success"}
    checked = "Was in the archive already, with the same MD5." if handler == "XAR" else THERE
    assert {row.message for row in journey.rows()} == {checked}
    assert journey.site.count("POST", "/services/import") == 0
    assert journey.site.files(journey.project) == before
    assert held(journey, "prearchive") == {}


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM"])
def test_what_an_earlier_run_left_in_the_prearchive_is_gone_on_with(journey: Journey, handler: str) -> None:
    two_series(journey)
    assert imported(journey, handler, *PREARCHIVE).code == 0
    journey.scan("--restart")
    ran = imported(journey, handler, *ARCHIVE)
    assert ran.code == 0, ran.err
    rows = journey.rows()
    assert {row.message for row in rows} == {UID}
    assert held(journey, "archive").keys() == uids(rows)
    assert held(journey, "prearchive") == {}


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM"])
def test_a_session_that_its_headers_named_is_found_again(journey: Journey, handler: str) -> None:
    """It has another label than in the sheet; its study tells which it is."""
    two_series(journey)
    assert imported(journey, handler, *HEADERS).code == 0
    before = journey.site.files(journey.project)
    there = f"{THERE} By its headers XNAT named the session ByHeader_1."
    journey.site.clear_requests()
    ran = imported(journey, handler, *HEADERS, "--verify")
    assert ran.code == 0, ran.err
    assert {row.message for row in journey.rows()} == {there}
    journey.scan("--restart")
    ran = imported(journey, handler, *HEADERS)
    assert ran.code == 0, ran.err
    assert {row.message for row in journey.rows()} == {there}
    assert journey.site.count("POST", "/services/import") == 0
    assert journey.site.files(journey.project) == before
    assert held(journey, "prearchive") == {}


@pytest.mark.parametrize("lost", [{"do": "status", "status": 504}, {"do": "drop"}], ids=["504", "drop"])
def test_si_by_headers_looks_for_the_session_before_it_sends_it_again(
    journey: Journey, lost: dict[str, Any]
) -> None:
    """XNAT archived it, and its answer was lost: under which label the session is, only XNAT knows.

    What waits of the same study in another project was there before.
    """
    two_series(journey)
    assert imported(journey, "SI", *PREARCHIVE).code == 0
    other = {path: path.read_bytes() for path in (journey.site.folder / "prearchive").rglob("*.dcm")}
    journey.project += "b"
    journey.site.add_project(journey.project)
    two_series(journey)
    journey.scan("--restart")
    journey.site.clear_requests()
    journey.site.fault(**lost, method="POST", path="/services/import", when="after", times=1)
    ran = imported(journey, "SI", *HEADERS)
    assert ran.code == 0, ran.err
    assert {row.message for row in journey.rows()} == {BY_HEADERS}
    assert journey.site.count("POST", "/services/import") == 1
    assert held(journey, "archive").keys() == uids(journey.rows())
    assert all(path.read_bytes() == content for path, content in other.items())
    assert held(journey, "prearchive") == {}


@pytest.mark.parametrize("options", [(), ("--import-handler", "DICOM-zip")])
def test_verify_finds_what_came_by_an_import(journey: Journey, options: tuple[str, ...]) -> None:
    two_series(journey)
    assert imported(journey, "DICOM-zip").code == 0
    ran = journey.upload("--verify", *options)
    assert ran.code == 0, ran.err
    assert {row.status.value for row in journey.rows()} == {"success"}


def test_a_commit_is_checked_like_an_import(journey: Journey) -> None:
    two_series(journey)
    assert imported(journey, "DICOM-zip", *PREARCHIVE).code == 0
    ran = journey.upload("--commit")
    assert ran.code == 0, ran.err
    assert {row.message for row in journey.rows()} == {UID}


def test_a_commit_that_was_killed_before_it_wrote_anything_down_is_repeated(journey: Journey) -> None:
    two_series(journey)
    assert imported(journey, "DICOM-zip", *PREARCHIVE).code == 0
    shutil.copy(BOOK, "before.xlsx")
    assert journey.upload("--commit").code == 0
    shutil.copy("before.xlsx", BOOK)
    ran = journey.upload("--commit")
    assert ran.code == 0, ran.err
    assert {row.message for row in journey.rows()} == {UID}


# ---- what is not there is no success


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM", "inbox"])
def test_another_image_under_a_name_that_is_there_is_no_success(journey: Journey, handler: str) -> None:
    """As many files are listed as are to be sent, and one of them has another UID than ours of that name."""
    two_series(journey)
    assert imported(journey, "DICOM-zip").code == 0
    file = journey.rows()[0].file
    builders.write_seed_file(journey.data, file, instance="99", PatientComments=comments(journey))
    journey.scan("--restart")
    ran = imported(journey, handler)
    assert ran.code == 1
    assert {row.file for row in journey.rows() if row.status.value == "conflict"} == {file}
    assert [row.status.value for row in journey.rows()].count("success") == 5


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM"])
def test_an_image_that_is_there_with_other_bytes_is_a_duplicate(journey: Journey, handler: str) -> None:
    """As on the direct route: XNAT left the scan's files as they were, so the difference is somebody's doing."""
    two_series(journey)
    journey.site.set(anonymize_imports=False)
    try:
        assert imported(journey, handler).code == 0
        before = journey.site.files(journey.project)
        file = journey.rows()[0].file
        builders.write_seed_file(
            journey.data, file, PatientComments=comments(journey), InstitutionName="Elsewhere"
        )
        journey.scan("--restart")
        ran = imported(journey, handler, "--import-overwrite", "append")
    finally:
        journey.site.set(anonymize_imports=True)
    assert ran.code == 0, ran.err
    changed = {row.file: row for row in journey.rows() if row.status.value != "success"}
    assert [(row.file, row.status.value, row.upload) for row in changed.values()] == [
        (file, "duplicate", False)
    ]
    assert changed[file].message.startswith("XNAT holds this image already, with other content (scan 2).")
    assert journey.site.files(journey.project) == before
    journey.scan()
    assert journey.rows()[0].status.value == "duplicate", "an upload found it, of which a scan knows nothing"


def test_a_study_that_is_there_under_the_label_is_left_alone(journey: Journey) -> None:
    two_series(journey)
    journey.there("0001", LABEL, UID=f"{STUDY}.1")
    ran = imported(journey, "DICOM-zip")
    assert ran.code == 1
    assert {row.status.value for row in journey.rows()} == {"conflict"}
    assert held(journey, "prearchive") == held(journey, "archive") == {}


def test_a_corrected_subject_is_not_committed_under_the_old_one(journey: Journey) -> None:
    two_series(journey)
    assert imported(journey, "DICOM-zip", *PREARCHIVE).code == 0
    journey.put("Subject", "0002")
    ran = journey.upload("--commit")
    assert ran.code == 1, ran.err
    assert {row.status.value for row in journey.rows()} == {"conflict"}
    assert held(journey, "archive") == {}
