"""What an account may not do, and what only looks like it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.helpers.http_client import Client
from tests.helpers.journeys import LABEL, STUDY, Journey, Start, one_visit
from xnatuploader import xnat
from xnatuploader.records import Status
from xnatuploader.upload import files, resource

LIST = "/scans/2/files[?]"
"""The list of the visit's scan."""


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "LIST_PAUSES", (0.0, 0.0, 0.0), raising=False)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_list_that_lags_is_no_missing_right(journey: Journey, times: int) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("truncate", method="GET", path=LIST, keep=0, times=times)
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()
    assert journey.puts() == 1, "what was stored is not sent again"


def test_a_list_that_never_tells_is_no_missing_right(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("truncate", method="GET", path=LIST, keep=0)
    ran = journey.upload()
    assert ran.code == 1, ran.err
    assert {row.message for row in journey.rows()} == {files.NOT_LISTED}
    journey.site.clear_faults()
    assert journey.upload().code == 0
    assert journey.whole()


def test_an_account_that_may_not_edit_is_told_so(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    """XNAT answers 200 and stores nothing (FileList.handlePost); that no right is there is asked for."""
    one_visit(journey)
    journey.scan()
    journey.site.fault("lose", method="PUT", path=f"/projects/{journey.project}/.*/files/")
    monkeypatch.setattr(xnat.Server, "may_not_add", lambda self, project, kinds: True)
    monkeypatch.setattr(xnat.Server, "open_project", lambda self, project, *more: project)
    ran = journey.upload()
    assert ran.code == 5
    assert resource.NOTHING_STORED in {row.message for row in journey.rows()}


def test_one_that_may_edit_is_not(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("lose", method="PUT", path=f"/projects/{journey.project}/.*/files/")
    assert journey.upload().code == 1
    assert {row.message for row in journey.rows()} == {files.NOT_LISTED}


def test_a_403_on_one_subject_concerns_that_subject(journey: Journey) -> None:
    one_visit(journey)
    journey.file("Roe^Jane-0002/20200312/Chest CT/a.dcm")
    journey.scan()
    journey.site.fault("status", method="PUT", path="/subjects/0002$", status=403)
    assert journey.upload().code == 1
    statuses = {row.subject: row.status for row in journey.rows()}
    assert statuses == {"0001": Status.SUCCESS, "0002": Status.FAILED}


# ---- a custom group that may make sessions and not subjects


def of_a_custom_group(may: str) -> dict[str, Any]:
    """Return a site's switches: anna may make sessions of one type, and no subjects."""
    return {"users": ["anna:pw:member", "demo:demo"], "custom_groups": {"anna": may}}


def test_who_may_make_sessions_and_not_subjects_uploads_into_subjects_that_exist(start: Start) -> None:
    with start(**of_a_custom_group("xnat:ctSessionData")) as journey:
        one_visit(journey)
        subject = f"/data/projects/{journey.project}/subjects/0001"
        assert Client(journey.site)("PUT", subject).status_code == 201
        journey.scan()
        ran = journey.upload()
        assert ran.code == 0, ran.err
        assert journey.whole()
        queries = [urlsplit(one["path"]).query for one in journey.site.requests("GET", "dataType=")]
        asked = [parse_qs(one)["dataType"] for one in queries]
        assert asked == [["xnat:subjectData"], ["xnat:ctSessionData"]], "one request more"


def test_a_subject_that_is_missing_is_not_made_by_who_may_make_none(start: Start) -> None:
    with start(**of_a_custom_group("xnat:ctSessionData")) as journey:
        one_visit(journey)
        journey.scan()
        assert journey.upload().code in (1, 5)
        assert set(journey.statuses()) == {Status.FAILED}
        assert journey.state() == {}


def test_who_may_make_neither_is_refused_before_anything_is_made(start: Start) -> None:
    with start(**of_a_custom_group("xnat:mrSessionData")) as journey:
        one_visit(journey)
        journey.scan()
        assert journey.upload().code == 5
        assert journey.site.count("PUT", "/projects/") == 0


def test_a_subject_shared_without_a_label_goes_by_its_accession_id(journey: Journey) -> None:
    """XNAT lists it so in the project into which it is shared; it is not made again under another name."""
    client = Client(journey.site)
    number = client("PUT", f"/data/projects/{journey.project}/subjects/XNAT_S00077").text
    assert number
    journey.there("XNAT_S00077", LABEL, UID=STUDY, date="2020-03-12")
    one_visit(journey)
    journey.scan()
    for sheet in ("Files", "Sessions"):
        journey.put("Subject", "XNAT_S00077", sheet=sheet)
    journey.site.fault("status", method="PUT", path="/subjects/[^/]+$", status=403)
    assert journey.upload().code == 0
    assert set(journey.state()) == {"XNAT_S00077"}
