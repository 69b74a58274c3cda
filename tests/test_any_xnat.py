"""The whole path of a row, seen only through XNAT's REST interface: against the sandbox, or against any real XNAT.

With XNAT_HOST, XNAT_USER, XNAT_PASS and XNAT_PROJECT in the environment these tests run there (docs/development.md).
They make subjects with names of their own and delete them afterwards.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.helpers import builders, runs
from tests.helpers.runs import BOOK, Runner, rows, set_cells
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Row, Status

REAL = {name: os.environ.get(name, "") for name in ("XNAT_HOST", "XNAT_USER", "XNAT_PASS", "XNAT_PROJECT")}
SUBJECTS = tuple(f"T{uuid.uuid4().hex[:8]}" for _ in range(2))


@dataclass
class Xnat:
    """Some XNAT, and what this test may do there."""

    url: str
    user: str
    password: str
    project: str

    def ask(self, method: str, path: str, **more: object) -> requests.Response:
        url = f"{self.url}/data/projects/{self.project}{path}"
        return requests.request(method, url, auth=(self.user, self.password), timeout=120, **more)  # type: ignore[arg-type]

    def listed(self, row: Row) -> dict[str, str]:
        """Return name -> digest of the files of a row's resource."""
        place = (
            f"/subjects/{row.subject}/experiments/{row.session_label}/scans/{row.scan_id}"
            f"/resources/{row.resource}/files?format=json"
        )
        found = self.ask("GET", place).json()["ResultSet"]["Result"]
        return {one["Name"]: one["digest"] for one in found}


@pytest.fixture(params=["sandbox", pytest.param("real", marks=pytest.mark.real)])
def xnat(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Xnat]:
    if request.param == "real":
        if not all(REAL.values()):
            pytest.skip("XNAT_HOST, XNAT_USER, XNAT_PASS and XNAT_PROJECT name no server")
        server = Xnat(
            REAL["XNAT_HOST"].rstrip("/"), REAL["XNAT_USER"], REAL["XNAT_PASS"], REAL["XNAT_PROJECT"]
        )
        monkeypatch.setenv("XNAT_USER", server.user)
        monkeypatch.setenv("XNAT_PASS", server.password)
        yield server
        for subject in SUBJECTS:
            server.ask("DELETE", f"/subjects/{subject}?removeFiles=true")
        return
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"]) as box:
        monkeypatch.setenv("XNAT_USER", box.user)
        monkeypatch.setenv("XNAT_PASS", box.password)
        yield Xnat(box.url, box.user, box.password, "P")


@pytest.fixture
def scanned(here: Path, run: Runner) -> Path:
    """List two subjects, three visits, fourteen files."""
    folder = here / "data_files"
    builders.seed_tree(folder)
    (folder / "Doe^John-0001").rename(folder / f"Doe^John-{SUBJECTS[0]}")
    (folder / "Roe^Jane-0342").rename(folder / f"Roe^Jane-{SUBJECTS[1]}")
    run("init", "--spreadsheet", BOOK)
    assert run("scan", "--spreadsheet", BOOK, "--dir", folder).code == 0
    return folder


def upload(run: Runner, xnat: Xnat, *more: str) -> int:
    return runs.upload(run, xnat, *more, project=xnat.project).code


@pytest.mark.slow
def test_files_arrive_with_their_digests_types_and_dates(scanned: Path, run: Runner, xnat: Xnat) -> None:
    assert upload(run, xnat) == 0
    for row in rows():
        assert row.status is Status.SUCCESS
        sent = hashlib.md5((scanned / row.file).read_bytes()).hexdigest()
        assert xnat.listed(row)[row.filename] in (sent, ""), "an XNAT without checksums lists none"
        sessions = xnat.ask("GET", f"/subjects/{row.subject}/experiments?format=json").json()["ResultSet"][
            "Result"
        ]
        (session,) = [one for one in sessions if one["label"] == row.session_label]
        assert session["xsiType"] == "xnat:ctSessionData"
        assert session["date"].replace("-", "") == row.study_date
        place = f"/subjects/{row.subject}/experiments/{row.session_label}/scans?format=json"
        scans = {one["ID"]: one for one in xnat.ask("GET", place).json()["ResultSet"]["Result"]}
        assert (scans[row.scan_id]["type"], scans[row.scan_id]["xsiType"]) == (row.dataset, "xnat:ctScanData")


@pytest.mark.slow
def test_emptied_status_cells_send_nothing_again(scanned: Path, run: Runner, xnat: Xnat) -> None:
    assert upload(run, xnat) == 0
    set_cells("Status", None)
    assert upload(run, xnat) == 0
    assert all("already" in row.message for row in rows())


@pytest.mark.slow
def test_a_file_changed_there_is_a_conflict_until_overwrite(scanned: Path, run: Runner, xnat: Xnat) -> None:
    assert upload(run, xnat) == 0
    victim = rows()[4]
    place = (
        f"/subjects/{victim.subject}/experiments/{victim.session_label}/scans/{victim.scan_id}"
        f"/resources/{victim.resource}/files/{victim.filename}?overwrite=true&inbody=true"
    )
    assert xnat.ask("PUT", place, data=b"something else").status_code == 200
    assert upload(run, xnat, "--verify") == 1
    assert [row.file for row in rows() if row.status is Status.CONFLICT] == [victim.file]
    assert upload(run, xnat, "--overwrite") == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}
