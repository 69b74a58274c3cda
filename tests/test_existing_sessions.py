"""Adding to sessions that exist, whoever made them: exit 0, the right bytes, and everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.conftest import Ran
from tests.journeys import LABEL, STEPS, STUDY, VISIT, Journey, one_visit
from tests.sandbox_process import Sandbox
from tests.test_sandbox import Client
from xnatuploader.records import Status

SECOND = "Doe^John-0001/20200312/Neck CT/b{}.dcm"
"""The files of a second series of the same study, scan 3."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(tmp_path_factory.mktemp("site"), projects=["P"]) as sandbox:
        yield sandbox


@pytest.fixture
def journey(
    here: Path, run: Callable[..., Ran], site: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Journey]:
    monkeypatch.setenv("XNAT_USER", site.user)
    monkeypatch.setenv("XNAT_PASS", site.password)
    yield Journey(run, site)
    site.clear_faults()


def by_this_tool(journey: Journey) -> None:
    """Have the session made by an earlier run of this workbook."""
    one_visit(journey)
    journey.scan()
    assert journey.upload().code == 0


def by_another_client(journey: Journey) -> None:
    """Have it made over REST by somebody else, with a scan that the workbook does not list."""
    client = Client(journey.site)
    session = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}"
    scan = f"{session}/scans/9"
    fields = f"xsiType=xnat:ctSessionData&xnat:ctSessionData/UID={STUDY}&xnat:ctSessionData/date=2020-03-12"
    client("PUT", f"{session}?{fields}")
    uid = builders.uid("series somebody else's")
    client("PUT", f"{scan}?xsiType=xnat:ctScanData&type=Theirs&xnat:ctScanData/UID={uid}&note=seen")
    client("PUT", f"{scan}/resources/DICOM?format=DICOM&content=RAW")
    for number in range(2):
        data = builders.dicom_bytes(
            study="Doe^John-0001 20200312", series="somebody else's", instance=str(number), SeriesNumber="9"
        )
        assert client("PUT", f"{scan}/resources/DICOM/files/their{number}.dcm", data).status_code == 200


def by_an_import(journey: Journey) -> None:
    """Have it made by XNAT's import service, by way of the prearchive."""
    one_visit(journey)
    journey.scan()
    assert journey.upload("--import-handler", "DICOM-zip").code == 0


MADE = {"this tool": by_this_tool, "another client": by_another_client, "an import": by_an_import}


def session_of(journey: Journey) -> dict[str, Any]:
    return copy.deepcopy(journey.state()["0001"][LABEL])


@pytest.mark.parametrize("maker", MADE)
@pytest.mark.parametrize("visit", [False, True])
def test_a_series_is_added_and_everything_else_stays(journey: Journey, maker: str, visit: bool) -> None:
    MADE[maker](journey)
    if visit:
        full = "xsiType=xnat:ctSessionData&xnat:ctSessionData/visit=v1&xnat:ctSessionData/protocol=p1"
        path = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}?{full}"
        assert Client(journey.site)("PUT", path).status_code == 200
    before, number = session_of(journey), journey.site.requests()[-1]["number"]
    assert before.get("visit", "") == ("v1" if visit else "")
    for name in range(3):
        journey.file(SECOND.format(name))
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert all(status is Status.SUCCESS for status in journey.statuses())
    assert journey.whole()

    after = session_of(journey)
    added = after["scans"].pop("3")
    assert after == before, "fields of the session, its scans, their files and digests"
    assert len(added["resources"]["DICOM"]["files"]) == 3
    assert added["type"] == "Neck CT"
    assert int(added["frames"]) == 3, "XNAT has read the headers of what was added"
    puts = journey.site.requests("PUT", f"/projects/{journey.project}/|/data/experiments/", since=number)
    records = [one["path"].partition(f"/{journey.project}/")[2].partition("?")[0] for one in puts]
    assert not {"subjects/0001", f"subjects/0001/experiments/{LABEL}"} & set(records), "made again"
    steps = ["/scans/3?xsiType=xnat%3ActScanData&pullDataFromHeaders=true", *STEPS[1:]]
    assert journey.steps()[-3:] == steps


@pytest.mark.parametrize("maker", ["this tool", "an import"])
def test_what_is_there_is_not_sent_again_by_a_fresh_workbook(
    journey: Journey, maker: str, run: Callable[..., Ran]
) -> None:
    MADE[maker](journey)
    before = session_of(journey)
    assert run("init", "--spreadsheet", "study.xlsx", "--force").code == 0
    journey.scan()
    puts = journey.puts()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()
    assert journey.puts() == puts
    assert session_of(journey) == before


def test_a_run_that_was_killed_after_it_made_a_scan_pulls_it_later(journey: Journey) -> None:
    """What was made is in the journal, so that the next run knows the session for its own."""
    one_visit(journey, 4)
    journey.scan()
    journey.site.fault("status", method="PUT", path=f"/projects/{journey.project}/.*/files/", status=403)
    assert journey.upload().code == 5
    journey.site.clear_faults()
    assert journey.upload().code == 0
    assert journey.whole()
    assert journey.steps() == STEPS


def test_files_are_added_to_a_scan_that_exists(journey: Journey) -> None:
    by_this_tool(journey)
    before = session_of(journey)
    for number in (2, 3):
        journey.file(VISIT.format(number))
    journey.scan()
    assert journey.upload().code == 0
    assert journey.whole()
    after = session_of(journey)
    files = after["scans"]["2"]["resources"]["DICOM"]["files"]
    for name, entry in before["scans"]["2"]["resources"]["DICOM"]["files"].items():
        assert files[name] == entry


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM", "XAR"])
@pytest.mark.parametrize("cache", [False, True])
def test_every_handler_archives_and_is_verified(journey: Journey, handler: str, cache: bool) -> None:
    one_visit(journey)
    journey.file(SECOND.format(1))
    journey.scan()
    ran = journey.upload("--import-handler", handler, *(["--via-cache"] if cache else []))
    assert ran.code == 0, ran.err
    assert {row.message for row in journey.rows()} == {
        "Archived by XNAT's import service, with the same MD5."
    }
    assert journey.whole()


def test_a_subject_that_is_shared_into_the_project_is_not_made_again(journey: Journey) -> None:
    """XNAT refuses to change it with 403, though sessions below it may be made (TestSharing)."""
    one_visit(journey)
    client = Client(journey.site)
    subject = f"/data/projects/{journey.project}/subjects/0001"
    assert client("PUT", subject).status_code == 201
    journey.site.fault("status", method="PUT", path=f"{subject}$", status=403)
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()
