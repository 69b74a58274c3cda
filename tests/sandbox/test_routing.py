"""The sandbox answers at the addresses that XNAT has, and elsewhere as XNAT's router does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import builders
from tests.helpers.http_client import Client, zip_of
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.waiting import eventually
from xnatuploader.sandbox import routing

SESSION = "/data/projects/P/subjects/S1/experiments/E1"
IMPORT = "/data/services/import?import-handler=DICOM-zip&PROJECT_ID=P&SUBJECT_ID=S1&EXPT_LABEL=E1"
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Sandbox(tmp_path / "xnat", projects=["P"]) as box:
        yield Client(box)


def slices(series: int = 2, count: int = 2) -> dict[str, bytes]:
    return {
        f"s{series}im{n}.dcm": builders.dicom_bytes(
            series=f"series {series}", instance=f"{series} {n}", SeriesNumber=series
        )
        for n in range(1, count + 1)
    }


def put_scan(client: Client, scan: str, files: dict[str, bytes], kind: str = "Head") -> None:
    """Make a scan over REST, with a resource of these files."""
    client("PUT", f"{SESSION}?xsiType=xnat:ctSessionData")
    client("PUT", f"{SESSION}/scans/{scan}?xsiType=xnat:ctScanData&type={kind}")
    client("PUT", f"{SESSION}/scans/{scan}/resources/DICOM?format=DICOM&content=RAW")
    for name, data in files.items():
        assert client("PUT", f"{SESSION}/scans/{scan}/resources/DICOM/files/{name}", data).status_code == 200


def session_id(client: Client) -> str:
    return client.rows("/data/projects/P/experiments")[0]["ID"]


def names(client: Client, path: str) -> list[str]:
    return sorted(row["Name"] for row in client.rows(path))


# -- the router ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "served_by", "rest"),
    [
        ("projects/P/experiments/E", "ExperimentResource", []),
        ("projects/P/experiments/E/scans", "ExperimentResource", ["scans"]),
        ("projects/P/experiments/E/scans/3/files", "ExperimentResource", ["scans", "3", "files"]),
        ("projects/P/experiments/E/files", "ExperimentResource", ["files"]),
        ("projects/P/experiments/E/resources/R/files/a/b", "FileList", ["a", "b"]),
        ("projects/P/subjects/S/experiments/E/scans", "ScanList", []),
        ("projects/P/subjects/S/experiments/E/scans/3/resources/R", "CatalogResource", []),
        ("projects/P/subjects/S/scans", "SubjectResource", ["scans"]),
        ("projects/P/prearchive_code/4", "ProjectResource", ["prearchive_code", "4"]),
        ("experiments/E/scans/ALL/files", "FileList", []),
        ("experiments/E/history", "ExperimentResource", ["history"]),
        ("experiments/E/scans/", "ScanList", [""]),
        ("archive/experiments/E/scans", "ScanList", []),
        ("prearchive/projects/P/T/E/logs/last", "PrearcSessionResource", ["logs", "last"]),
    ],
)
def test_the_longest_template_that_an_address_begins_with_serves_it(
    path: str, served_by: str, rest: list[str]
) -> None:
    found = routing.match(path.split("/"))
    assert found is not None
    assert (found.route.served_by, list(found.rest)) == (served_by, rest)


@pytest.mark.parametrize("path", ["", "nonsense", "archive", "archive/services/import", "services/nonsense"])
def test_an_address_that_begins_with_no_template_is_nobodys(path: str) -> None:
    assert routing.match(path.split("/")) is None


# -- what it means -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_has_no_route_below_a_session_is_answered_with_the_session(client: Client) -> None:
    put_scan(client, "3", slices(3))
    for rest in ("scans", "files", "scans/3/files", "scans/3/resources/DICOM"):
        answer = client("GET", f"/data/projects/P/experiments/E1/{rest}?all=true&format=json")
        assert answer.status_code == 200
        assert answer.json()["items"][0]["data_fields"]["label"] == "E1"
    wrong = client("PUT", "/data/projects/P/experiments/E1/scans/3/resources/DICOM/files/a.dcm", b"x")
    assert wrong.status_code == 400


@pytest.mark.slow
def test_scans_and_their_files_are_listed_by_id_and_below_the_subject(client: Client) -> None:
    put_scan(client, "3", slices(3))
    put_scan(client, "4", slices(4))
    flat = f"/data/experiments/{session_id(client)}"
    for base in (flat, SESSION):
        assert [row["ID"] for row in client.rows(f"{base}/scans")] == ["3", "4"]
        everything = client.rows(f"{base}/scans/ALL/files")
        assert sorted({row["URI"].split("/scans/")[1].split("/")[0] for row in everything}) == ["3", "4"]
        assert len(everything) == 4
    assert names(client, f"{flat}/files") == []


@pytest.mark.slow
def test_the_files_of_no_scan_are_an_error_by_id_and_none_below_the_subject(client: Client) -> None:
    client("PUT", f"{SESSION}?xsiType=xnat:ctSessionData")
    assert client("GET", f"/data/experiments/{session_id(client)}/scans/ALL/files").status_code == 500
    assert client.rows(f"{SESSION}/scans/ALL/files") == []


@pytest.mark.slow
def test_a_type_that_two_scans_have_lists_the_files_of_both(client: Client) -> None:
    put_scan(client, "3", slices(3))
    put_scan(client, "4", slices(4), kind="Head")
    assert len(client.rows(f"{SESSION}/scans/Head/files")) == 4
    assert client("GET", f"{SESSION}/scans/Head").status_code == 404  # a scan itself is found by its ID alone


# -- what a PUT of a session does ----------------------------------------------------------------------------


def fields(client: Client) -> dict[str, str]:
    return dict(client("GET", f"{SESSION}?format=json").json()["items"][0]["data_fields"])


@pytest.mark.slow
def test_a_put_below_the_subject_clears_visit_and_protocol_and_one_by_id_does_not(client: Client) -> None:
    put_scan(client, "3", slices(3))
    full = "xsiType=xnat:ctSessionData&xnat:experimentData/visit=v1&xnat:experimentData/protocol=p1"
    assert client("PUT", f"{SESSION}?{full}").status_code == 200
    assert client("PUT", f"/data/experiments/{session_id(client)}?fixScanTypes=true").status_code == 200
    assert (fields(client)["visit"], fields(client)["protocol"]) == ("v1", "p1")
    assert client("PUT", f"{SESSION}?fixScanTypes=true").status_code == 200
    assert not {"visit", "protocol"} & fields(client).keys()


@pytest.mark.slow
def test_a_pull_over_a_session_loses_the_catalogs_of_scans_that_were_archived(client: Client) -> None:
    client("POST", f"{IMPORT}&dest=/archive", zip_of(slices(2)), headers=ZIP)
    put_scan(client, "3", slices(3))
    flat = f"/data/experiments/{session_id(client)}"
    assert client("PUT", f"{flat}/scans/3?pullDataFromHeaders=true").status_code == 200
    assert len(client.rows(f"{flat}/scans/2/files")) == 2
    assert client("PUT", f"{flat}?pullDataFromHeaders=true").status_code == 200
    assert client.rows(f"{flat}/scans/2/files") == []
    assert len(client.rows(f"{flat}/scans/3/files")) == 2
    refresh = (
        "/data/services/refresh/catalog?options=append,checksum&resource=/archive/projects/P/experiments/E1"
    )
    client("POST", refresh)
    assert len(client.rows(f"{flat}/scans/2/files")) == 2


@pytest.mark.slow
def test_a_pull_of_one_scan_keeps_its_id_and_refuses_two_series(client: Client) -> None:
    put_scan(client, "9", slices(3))
    flat = f"/data/experiments/{session_id(client)}"
    assert client("PUT", f"{flat}/scans/9?pullDataFromHeaders=true").status_code == 200
    assert [row["ID"] for row in client.rows(f"{flat}/scans?columns=ID,UID")] == ["9"]
    put_scan(client, "9", slices(4))
    assert client("PUT", f"{flat}/scans/9?pullDataFromHeaders=true").status_code == 500


# -- background imports --------------------------------------------------------------------------------------


def background(client: Client, query: str, name: str = "up.zip", data: bytes = b"") -> list[dict[str, str]]:
    """Import from the user cache; return the messages once what it made is seen in the prearchive or archive."""
    client(
        "PUT", f"/data/user/cache/resources/x/files/{name}?inbody=true", data or zip_of(slices()), headers=ZIP
    )
    src = f"src=/user/cache/resources/x/files/{name}&http-session-listener=job"
    client("POST", f"/data/services/import?{query}&{src}")
    assert eventually(lambda: client.rows("/data/prearchive") or client.rows("/data/projects/P/experiments"))
    # it tidies up after its last word
    assert eventually(lambda: not any((client.box.folder / "tmp").iterdir()))
    return list(client("GET", "/data/status/job?format=json").json()["msgs"][0])


NAMED = "PROJECT_ID=P&SUBJECT_ID=S1&EXPT_LABEL=E1"


@pytest.mark.slow
def test_a_zip_without_commit_never_says_that_it_is_done(client: Client) -> None:
    said = background(client, f"import-handler=DICOM-zip&{NAMED}")
    assert said[-1] == {
        "status": "PROCESSING",
        "msg": "Successfully uploaded 1  sessions to the prearchive.",
        "terminal": False,
    }


@pytest.mark.slow
def test_a_zip_with_commit_and_si_end_with_a_terminal_message(client: Client) -> None:
    assert (
        background(client, f"import-handler=SI&dest=/prearchive/projects/P&{NAMED}")[-1]["terminal"] is True
    )


@pytest.mark.slow
def test_gradual_dicom_says_nothing(client: Client) -> None:
    one = next(iter(slices().values()))
    assert background(client, f"import-handler=gradual-DICOM&{NAMED}", "a.dcm", one) == []
