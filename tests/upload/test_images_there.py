"""Images that XNAT has already under other names or in changed form: a site as it is shipped changes what it imports.

Sent once more, such an image would be there twice, the second time with the patient's name.
"""

from __future__ import annotations

import io
from typing import Any

import pydicom
import pytest

from tests.helpers.http_client import Client
from tests.helpers.journeys import LABEL, SERIES, STUDY, Journey, one_visit
from tests.helpers.runs import Runner
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Status
from xnatuploader.xnat import http

IMPORT = ("--import-handler", "DICOM-zip")


@pytest.fixture(autouse=True)
def as_shipped(site: Sandbox) -> None:
    """Have the site change what comes by the prearchive, as its script does unless it was switched off."""
    site.set(anonymize_imports=True)


def imported(journey: Journey, *more: str, count: int = 3) -> None:
    """Have XNAT's import service make the session, and change its files."""
    one_visit(journey, count)
    journey.scan()
    ran = journey.upload(*IMPORT, *more)
    assert ran.code == 0, ran.err
    assert names_there(journey) == {"0001"}


def anew(journey: Journey, run: Runner) -> None:
    """Begin with a fresh workbook, as a colleague would."""
    assert run("init", "--spreadsheet", "study.xlsx", "--force").code == 0
    journey.scan()


def images_there(journey: Journey) -> list[pydicom.Dataset]:
    """Return what lies on the server's disk."""
    files = (journey.site.archive / journey.project).rglob("*.dcm")
    return [pydicom.dcmread(io.BytesIO(path.read_bytes())) for path in files]


def names_there(journey: Journey) -> set[str]:
    return {str(image.PatientName) for image in images_there(journey)}


# ---- rows that an import sent


@pytest.mark.parametrize("more", [(), ("--rename",)])
def test_verify_after_an_import_goes_by_the_image(journey: Journey, more: tuple[str, ...]) -> None:
    imported(journey, *more)
    ran = journey.upload("--verify")
    assert ran.code == 0, ran.err
    assert {row.status for row in journey.rows()} == {Status.SUCCESS}
    assert all("SOPInstanceUID" in row.message for row in journey.rows())
    assert not any("--overwrite" in row.message for row in journey.rows())


def test_verify_finds_what_is_gone_after_an_import(journey: Journey) -> None:
    imported(journey)
    scans = journey.state()["0001"][LABEL]["scans"]
    (scan,) = scans
    name = next(iter(scans[scan]["resources"]["DICOM"]["files"]))
    path = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}/scans/{scan}/resources/DICOM"

    assert Client(journey.site)("DELETE", f"{path}/files/{name}").status_code == 200
    assert journey.upload("--verify").code == 1
    assert sorted(journey.statuses()) == [Status.FAILED, Status.SUCCESS, Status.SUCCESS]


def test_overwrite_leaves_what_an_import_sent(journey: Journey) -> None:
    imported(journey)
    puts = journey.puts()
    assert journey.upload("--overwrite").code == 0
    assert journey.puts() == puts
    assert names_there(journey) == {"0001"}
    assert set(journey.statuses()) == {Status.SUCCESS}


# ---- rows of a workbook that never sent them


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_fresh_workbook_sends_no_image_twice(
    journey: Journey, run: Runner, renamed: bool, more: tuple[str, ...]
) -> None:
    imported(journey, *(["--rename"] if renamed else []))
    anew(journey, run)
    puts = journey.puts()
    ran = journey.upload(*more)
    assert ran.code == 0, ran.err
    assert journey.puts() == puts
    assert names_there(journey) == {"0001"}
    assert len(images_there(journey)) == 3
    for row in journey.rows():
        assert (row.status, row.upload) == (Status.DUPLICATE, False)
        assert row.message.startswith("XNAT holds this image already, changed on arrival (file ")
        assert "--overwrite" not in row.message
    assert "3 images are on XNAT already, changed on arrival" in ran.err
    assert ran.err.count("on XNAT already") == 1, "one line, not one for each file"


def test_what_is_new_goes_and_what_is_there_does_not(journey: Journey, run: Runner) -> None:
    imported(journey)
    anew(journey, run)
    journey.file("Doe^John-0001/20200312/Chest CT/a7.dcm")
    journey.file("Doe^John-0001/20200312/Neck CT/b.dcm", SeriesNumber="3")
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    words = sorted(row.status for row in journey.rows())
    assert words == [Status.DUPLICATE] * 3 + [Status.SUCCESS] * 2
    assert len(images_there(journey)) == 5
    assert journey.steps()[-1] == "?triggerPipelines=true", "duplicates keep nothing back"


def test_what_xnat_holds_is_told_with_its_page_and_no_scan_calls_it_listed(
    journey: Journey, run: Runner
) -> None:
    imported(journey)
    anew(journey, run)
    assert journey.upload().code == 0
    assert journey.session(LABEL).link.startswith(journey.site.url)
    said = journey.scan().out
    assert "XNAT holds this image already" in said
    assert "already listed" not in said.replace("already listed, or", "")


def test_duplicates_are_not_looked_at_again_until_a_person_says_y(journey: Journey, run: Runner) -> None:
    imported(journey)
    anew(journey, run)
    assert journey.upload().code == 0
    journey.scan()
    assert {(row.status, row.upload) for row in journey.rows()} == {(Status.DUPLICATE, False)}
    assert journey.upload().out.startswith("Nothing to do")
    journey.put("Upload", "Y")
    puts = journey.puts()
    assert journey.upload().code == 0
    assert journey.puts() == puts
    assert {(row.status, row.upload) for row in journey.rows()} == {(Status.DUPLICATE, False)}


def test_the_uids_of_the_copies_are_compared(journey: Journey, run: Runner) -> None:
    one_visit(journey, 3)
    journey.configure("SessionLabel", "{Subject}_{Visit}_{Modality}")
    journey.configure("Session", "Directory")
    journey.configure("Anonymize", "yes")
    journey.scan()
    ran = journey.upload(*IMPORT, "--rename")
    assert ran.code == 0, ran.err + ran.out
    before = len(images_there(journey))
    assert run("init", "--spreadsheet", "study.xlsx", "--force").code == 0
    journey.configure("SessionLabel", "{Subject}_{Visit}_{Modality}")
    journey.configure("Session", "Directory")
    journey.configure("Anonymize", "yes")
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err + ran.out
    assert set(journey.statuses()) == {Status.DUPLICATE}
    assert len(images_there(journey)) == before


SECONDARY = "1.2.840.10008.5.1.4.1.1.7"


def test_secondary_images_are_compared_too(journey: Journey, run: Runner) -> None:
    one_visit(journey, 1)
    journey.file("Doe^John-0001/20200312/Shots/s.dcm", SeriesNumber="9", SOPClassUID=SECONDARY)
    journey.scan()
    journey.put("Upload", "Y")
    ran = journey.upload(*IMPORT, "--rename")
    assert ran.code == 0, ran.err
    assert {row.resource for row in journey.rows()} == {"DICOM", "secondary"}
    anew(journey, run)
    journey.put("Upload", "Y")
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert set(journey.statuses()) == {Status.DUPLICATE}
    assert len(images_there(journey)) == 2


@pytest.mark.parametrize("where", ["another scan", "another resource"])
def test_an_image_in_another_place_of_the_session_is_found(journey: Journey, run: Runner, where: str) -> None:
    """Somebody moved them by hand: the other scan does not say of which series it is."""
    imported(journey)
    state = journey.state()["0001"][LABEL]
    (scan,) = state["scans"]
    anew(journey, run)
    if where == "another resource":
        journey.put("Resource", "secondary")
    else:
        path = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}/scans/{scan}"

        fields = "xsiType=xnat:ctScanData&xnat:ctScanData/UID="
        assert Client(journey.site)("PUT", f"{path}?{fields}").status_code == 200
        journey.put("ScanID", "77")
    puts = journey.puts()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.puts() == puts
    assert set(journey.statuses()) == {Status.DUPLICATE}
    assert set(journey.state()["0001"][LABEL]["scans"]) == {scan}


# ---- what it costs


def catalogs(journey: Journey, since: int) -> int:
    return journey.site.count("GET", "/resources/[A-Za-z]+[?]format=xml", since=since)


def test_no_catalog_is_asked_for_where_md5s_tell(journey: Journey, run: Runner) -> None:
    one_visit(journey)
    journey.scan()
    assert journey.upload().code == 0
    last = journey.site.requests()[-1]["number"]
    assert journey.upload("--verify").code == 0
    anew(journey, run)
    assert journey.upload().code == 0
    assert catalogs(journey, last) == 0


def test_one_catalog_of_a_scan_that_exists_is_asked_for(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    assert journey.upload().code == 0
    last = journey.site.requests()[-1]["number"]
    for number in (5, 6, 7):
        journey.file(f"Doe^John-0001/20200312/Chest CT/a{number}.dcm")
    journey.file("Doe^John-0001/20200312/Neck CT/b.dcm", SeriesNumber="3")
    journey.scan()
    assert journey.upload().code == 0
    assert journey.whole()
    assert catalogs(journey, last) == 1


def test_what_cannot_be_compared_is_not_sent(journey: Journey, run: Runner) -> None:
    imported(journey, "--rename")
    anew(journey, run)
    journey.site.fault("status", method="GET", path="/resources/DICOM[?]format=xml", status=403)
    puts = journey.puts()
    ran = journey.upload()
    assert ran.code != 0
    assert journey.puts() == puts
    assert set(journey.statuses()) == {Status.FAILED}


@pytest.mark.parametrize("emptied", ["its cells", "the column"])
def test_a_workbook_without_the_instances_uids_compares_them_all_the_same(
    journey: Journey, run: Runner, emptied: str
) -> None:
    """Somebody deleted what looked superfluous; --overwrite would put the patient's name back."""
    imported(journey)
    anew(journey, run)
    if emptied == "its cells":
        journey.put("DICOM:SOPInstanceUID", "")
    else:
        journey.edit(lambda opened: _without(opened["Files"], "DICOM:SOPInstanceUID"))
    ran = journey.upload("--overwrite")
    assert ran.code == 0, ran.err
    assert set(journey.statuses()) == {Status.DUPLICATE}
    assert names_there(journey) == {"0001"}


def _without(sheet: Any, heading: str) -> None:
    sheet.delete_cols([cell.value for cell in sheet[1]].index(heading) + 1)


def test_a_scan_whose_series_a_script_wrote_as_none_is_looked_at(journey: Journey, run: Runner) -> None:
    """Scripts write Python's None into fields; as the UID of a series it says nothing."""
    imported(journey)
    scan = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}/scans/2"
    fields = "xsiType=xnat:ctScanData&xnat:ctScanData/UID=None"
    assert Client(journey.site)("PUT", f"{scan}?{fields}").status_code == 200
    anew(journey, run)
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert set(journey.statuses()) == {Status.DUPLICATE}
    assert len(images_there(journey)) == 3


def test_a_web_page_in_place_of_a_catalog_tells_nothing(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As well-formed XML it would be a catalog without any image."""
    monkeypatch.setattr(http, "PAUSES", (0.0,) * len(http.PAUSES))
    imported(journey)
    journey.file("Doe^John-0001/20200312/Chest CT/a7.dcm")
    journey.scan()
    journey.site.fault("html", method="GET", path="/resources/DICOM[?]format=xml")
    puts = journey.puts()
    ran = journey.upload()
    assert ran.code == 1
    assert journey.puts() == puts
    assert "web page" in ran.err


# ---- a study that the project holds under another label


def by_the_scanner(journey: Journey, label: str = "S1_MR1", uid: str = STUDY) -> None:
    journey.there("S1", label, UID=uid, date="2020-03-12", scans={"2": {"type": "t", "UID": SERIES}})


@pytest.mark.parametrize("more", [(), IMPORT, ("--overwrite",)])
def test_a_study_under_another_label_is_found_before_a_second_copy(
    journey: Journey, more: tuple[str, ...]
) -> None:
    one_visit(journey)
    by_the_scanner(journey)
    journey.scan()
    assert journey.upload(*more).code == 1
    assert "0001" not in journey.state()
    for row in journey.rows():
        assert row.status is Status.CONFLICT
        assert "holds this study as session S1_MR1 of subject S1 (http" in row.message
    journey.put("Subject", "S1")
    journey.put("SessionLabel", "S1_MR1")
    journey.put("Subject", "S1", sheet="Sessions")
    journey.put("SessionLabel", "S1_MR1", sheet="Sessions")
    ran = journey.upload()
    assert ran.code == 0, ran.err


def test_a_study_that_went_under_its_own_label_goes_on(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    assert journey.upload().code == 0
    journey.file("Doe^John-0001/20200312/Neck CT/b.dcm", SeriesNumber="3")
    journey.scan()
    assert journey.upload().code == 0
    assert journey.whole()


def test_of_a_session_that_tells_no_study_nothing_is_claimed(journey: Journey) -> None:
    one_visit(journey)
    by_the_scanner(journey, uid="")
    journey.scan()
    assert journey.upload().code == 0
    assert journey.whole()


STUDIES = "/experiments[?]xsiType=xnat%3AimageSessionData&columns=ID%2CUID"


def test_studies_are_asked_for_once_a_run_and_not_of_an_empty_project(journey: Journey) -> None:
    one_visit(journey)
    journey.file("Roe^Jane-0002/20200312/Chest CT/a.dcm")
    journey.scan()
    before = journey.site.count("GET", STUDIES)
    assert journey.upload().code == 0
    assert journey.site.count("GET", STUDIES) == before
    for name in ("0001", "0002"):
        journey.file(
            f"{'Doe^John' if name == '0001' else 'Roe^Jane'}-{name}/20200312/Neck CT/b.dcm", SeriesNumber="3"
        )
    journey.file("Poe^Ann-0003/20200312/Chest CT/a.dcm")
    journey.scan()
    assert journey.upload().code == 0
    assert journey.whole()
    assert journey.site.count("GET", STUDIES) == before + 1


def test_nothing_is_sent_while_the_server_does_not_say_which_studies_it_holds(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy whose XNAT is restarting: without the list a second copy would not be noticed."""
    monkeypatch.setattr(http, "PAUSES", (0.0,) * len(http.PAUSES))
    one_visit(journey)
    by_the_scanner(journey)
    journey.scan()
    journey.site.fault("status", method="GET", path=STUDIES, status=502)
    assert journey.upload().code == 4
    assert "0001" not in journey.state()
    journey.site.clear_faults()
    assert journey.upload().code == 1
    assert set(journey.statuses()) == {Status.CONFLICT}
