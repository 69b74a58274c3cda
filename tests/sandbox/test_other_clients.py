"""Requests that other clients make and this tool does not: a form as body, files as one zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import builders
from tests.helpers.http_client import Client, zip_of
from tests.helpers.sandbox_process import Sandbox

SESSION = "/data/projects/P/subjects/S1/experiments/E1"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Sandbox(tmp_path / "xnat", projects=["P"]) as box:
        yield Client(box)


def waiting(client: Client, label: str) -> str:
    """Import one image into the prearchive; return the address of its session there."""
    url = f"/data/services/import?import-handler=SI&dest=/prearchive/projects/P&subject=S1&session={label}"
    body = zip_of({"a.dcm": builders.dicom_bytes(study=label)})
    return client("POST", url, body, headers={"Content-Type": "application/zip"}).text.strip()


def test_the_services_of_the_prearchive_read_a_form(client: Client) -> None:
    # BatchPrearchiveActionsA.handlePost loads the body's fields, and a urlencoded form counts as a form
    # (RequestUtil.isMultiPartFormData).
    form = f"src={waiting(client, 'E1')}&subject=S2&session=E9"
    assert client("POST", "/data/services/archive", form, headers=FORM).status_code == 303
    assert list(client.box.state()["P"]["S2"]) == ["E9"]
    form = f"src={waiting(client, 'E2')}"
    assert client("POST", "/data/services/prearchive/delete", form, headers=FORM).status_code == 200


@pytest.mark.parametrize("scan", ["3", "ALL"])
def test_files_come_as_one_zip(client: Client, scan: str) -> None:
    # FileList.buildZipRepresentation: session label, scan ID and type, resource label (RestFileUtils.buildRelativePath)
    client("PUT", f"{SESSION}?xsiType=xnat:ctSessionData")
    client("PUT", f"{SESSION}/scans/3?xsiType=xnat:ctScanData&type=Head%205mm")
    for name in ("a.dcm", "sub/b.dcm"):
        client("PUT", f"{SESSION}/scans/3/resources/DICOM/files/{name}", name.encode())
    answer = client("GET", f"{SESSION}/scans/{scan}/files?format=zip")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "E1/scans/3-Head_5mm/resources/DICOM/files/a.dcm": b"a.dcm",
            "E1/scans/3-Head_5mm/resources/DICOM/files/sub/b.dcm": b"sub/b.dcm",
        }


def test_no_files_are_no_zip_but_404(client: Client) -> None:
    client("PUT", f"{SESSION}?xsiType=xnat:ctSessionData")
    assert client("GET", f"{SESSION}/scans/ALL/files?format=zip").status_code == 404
