"""The command line against an XNAT that is older or stricter than the sandbox."""

from __future__ import annotations

import pytest

from tests.helpers.http_client import Client
from tests.helpers.journeys import Start, one_visit
from xnatuploader.records import Status
from xnatuploader.xnat import imports, prearchive


def test_replaced_files_are_whole_and_their_old_bytes_stay_on_the_server(start: Start) -> None:
    """FileExtractor moves what an archive replaces to the cache: `--overwrite` does not take bytes off the server."""
    with start(keeps_history=True) as journey:
        one_visit(journey)
        journey.scan()
        assert journey.upload().code == 0
        old = {path.read_bytes() for path in journey.data.rglob("*.dcm")}
        one_visit(journey, PatientComments="corrected")
        journey.scan()
        assert journey.upload("--overwrite").code == 0
        assert journey.whole()
        kept = {path.read_bytes() for path in (journey.site.folder / "cache/.history").rglob("*.dcm")}
        assert kept == old


@pytest.mark.parametrize("label", ["0001", ""])
def test_sessions_are_made_below_a_subject_that_is_shared_into_the_project(start: Start, label: str) -> None:
    with start(shares=True) as journey:
        client = Client(journey.site)
        number = client("PUT", "/data/projects/OTHER/subjects/S1").text
        share = (
            f"/data/projects/OTHER/subjects/S1/projects/{journey.project}{'?label=' + label if label else ''}"
        )
        assert client("PUT", share).status_code == 200
        assert client("PUT", share).status_code == 409
        name = label or number
        assert client("PUT", f"/data/projects/{journey.project}/subjects/{name}").status_code == 403
        one_visit(journey)
        journey.scan()
        for sheet in ("Files", "Sessions"):
            journey.put("Subject", name, sheet=sheet)
        ran = journey.upload()
        assert ran.code == 0, ran.err
        assert set(journey.state()) == {name}
        assert set(journey.statuses()) == {Status.SUCCESS}


@pytest.mark.parametrize("refusals", [1, 4])
def test_an_import_that_is_refused_for_a_while_is_sent_again(
    start: Start, refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prearchive, "_BUSY_PAUSES", (0.01,) * 4)
    with start(import_refusals=refusals) as journey:
        one_visit(journey)
        journey.scan()
        ran = journey.upload("--import-handler", "DICOM-zip")
        assert ran.code == 0, ran.err
        assert set(journey.statuses()) == {Status.SUCCESS}
        assert journey.site.count("POST", "/services/import") == refusals + 1


def test_an_import_in_the_background_that_never_says_its_end_is_found(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "_BACKGROUND_SECONDS", 2.0)
    with start(silent_imports=True) as journey:
        one_visit(journey)
        journey.scan()
        ran = journey.upload("--import-handler", "SI", "--via-cache")
        assert ran.code == 0, ran.err
        assert set(journey.statuses()) == {Status.SUCCESS}
        assert journey.site.count("GET", "/data/status/") > 0


def test_a_site_that_was_never_set_up_is_named_and_nothing_is_sent(start: Start) -> None:
    with start(never_set_up=True) as journey:
        one_visit(journey)
        journey.scan()
        ran = journey.upload()
        assert ran.code == 4
        assert "was never set up" in ran.err
        assert journey.site.count("PUT") == 0
        guest = Client(journey.site)
        guest.session.auth = None
        assert guest("GET", "/xapi/siteConfig/buildInfo").status_code == 200


def test_an_entry_without_an_address_is_committed_from_the_list(start: Start) -> None:
    with start(no_single_entries=True) as journey:
        one_visit(journey)
        journey.scan()
        ran = journey.upload("--import-handler", "DICOM-zip", "--dest", "prearchive")
        assert ran.code == 0, ran.err
        ran = journey.upload("--import-handler", "DICOM-zip", "--commit")
        assert ran.code == 0, ran.err
        assert set(journey.statuses()) == {Status.SUCCESS}
        assert set(journey.state()["0001"]) == {"0001_20200312_CT"}
