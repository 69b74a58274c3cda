"""The whole path of a row, seen only through XNAT's REST interface: against the sandbox, or against any real XNAT.

With XNAT_HOST, XNAT_USER, XNAT_PASS and XNAT_PROJECT in the environment these tests run there (tests/real/README.md);
with XNAT_GROUP_USER and XNAT_GROUP_PASS also as an account of a custom group. They make subjects with names of their
own and delete them afterwards, with their sessions and what waits of them in the prearchive. The sandbox is as XNAT is
shipped: the site's anonymisation is on.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from tests.helpers import builders, runs
from tests.helpers.runs import BOOK, Runner, configure, rows, set_cells
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Row, Status

REAL = {name: os.environ.get(name, "") for name in ("XNAT_HOST", "XNAT_USER", "XNAT_PASS", "XNAT_PROJECT")}
GROUP = tuple(os.environ.get(name, "") for name in ("XNAT_GROUP_USER", "XNAT_GROUP_PASS"))
SUBJECTS = tuple(f"T{uuid.uuid4().hex[:8]}" for _ in range(2))

pytestmark = pytest.mark.slow


@dataclass
class Xnat:
    """Some XNAT, and what this test may do there."""

    url: str
    user: str
    password: str
    project: str
    group: tuple[str, ...]
    """User and password of an account that may make sessions and not change subjects; empty where there is none."""

    def ask(self, method: str, path: str, **more: object) -> requests.Response:
        url = f"{self.url}/data{path}"
        return requests.request(method, url, auth=(self.user, self.password), timeout=120, **more)  # type: ignore[arg-type]

    def put(self, path: str, **more: object) -> None:
        answer = self.ask("PUT", f"/projects/{self.project}{path}", **more)
        assert answer.status_code in (200, 201), f"{path}: {answer.status_code} {answer.text}"

    def table(self, path: str) -> list[dict[str, str]]:
        answer = self.ask("GET", path, params={"format": "json"})
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return list(answer.json()["ResultSet"]["Result"])

    def session(self, row: Row) -> str:
        """Return the address of a row's session."""
        return f"/projects/{self.project}/subjects/{row.subject}/experiments/{row.session_label}"

    def listed(self, row: Row) -> dict[str, str]:
        """Return name -> digest of the files of a row's resource."""
        found = self.table(f"{self.session(row)}/scans/{row.scan_id}/resources/{row.resource}/files")
        return {one["Name"]: one["digest"] for one in found}

    def images(self) -> dict[str, pydicom.Dataset]:
        """Return every image of the test's subjects, by label, scan and name."""
        found = {}
        for subject in SUBJECTS:
            place = f"/projects/{self.project}/subjects/{subject}"
            if self.ask("GET", place).status_code == 404:
                continue
            for session in self.table(f"{place}/experiments"):
                for file in self.table(f"{place}/experiments/{session['label']}/scans/ALL/files"):
                    content = self.ask("GET", file["URI"].partition("/data")[2]).content
                    name = f"{session['label']}/{file['URI'].partition('/scans/')[2]}"
                    found[name] = pydicom.dcmread(io.BytesIO(content))
        return found

    def waiting(self) -> list[dict[str, str]]:
        """Return what waits of the test's subjects in the prearchive."""
        entries = self.table(f"/prearchive/projects/{self.project}")
        return [one for one in entries if one["subject"] in SUBJECTS]

    def clean(self) -> None:
        for subject in SUBJECTS:
            self.ask("DELETE", f"/projects/{self.project}/subjects/{subject}?removeFiles=true")
        for entry in self.waiting():
            self.ask("DELETE", entry["url"])


@pytest.fixture(params=["sandbox", pytest.param("real", marks=pytest.mark.real)])
def xnat(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Xnat]:
    if request.param == "real":
        if not all(REAL.values()):
            pytest.skip("XNAT_HOST, XNAT_USER, XNAT_PASS and XNAT_PROJECT name no server")
        server = Xnat(
            REAL["XNAT_HOST"].rstrip("/"), REAL["XNAT_USER"], REAL["XNAT_PASS"], REAL["XNAT_PROJECT"], GROUP
        )
        sign_in(monkeypatch, server.user, server.password)
        yield server
        server.clean()
        return
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], anonymize_imports=True) as box:
        box.add_user("group", "group-pw", role="member")
        server = Xnat(box.url, box.user, box.password, "P", ("group", "group-pw"))
        sign_in(monkeypatch, server.user, server.password)
        yield server
        server.clean()
        assert (server.images(), server.waiting()) == ({}, [])


def sign_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    monkeypatch.setenv("XNAT_USER", user)
    monkeypatch.setenv("XNAT_PASS", password)


@pytest.fixture
def tree(here: Path, run: Runner) -> Path:
    """Make two subjects, three visits, fourteen files, and a workbook that was not scanned yet."""
    folder = here / "data_files"
    for file in builders.SEED_FILES:
        named = file.replace("-0001/", f"-{SUBJECTS[0]}/").replace("-0342/", f"-{SUBJECTS[1]}/")
        builders.write_seed_file(folder, named)
    run("init", "--spreadsheet", BOOK)
    return folder


@pytest.fixture
def scanned(tree: Path, run: Runner) -> Path:
    assert run("scan", "--spreadsheet", BOOK, "--dir", tree).code == 0
    return tree


def upload(run: Runner, xnat: Xnat, *more: str) -> int:
    return runs.upload(run, xnat, *more, project=xnat.project).code


def statuses() -> set[Status]:
    return {row.status for row in rows()}


def test_files_arrive_with_their_digests_types_and_dates(scanned: Path, run: Runner, xnat: Xnat) -> None:
    assert upload(run, xnat) == 0
    for row in rows():
        assert row.status is Status.SUCCESS
        sent = hashlib.md5((scanned / row.file).read_bytes()).hexdigest()
        assert xnat.listed(row)[row.filename] in (sent, ""), "an XNAT without checksums lists none"
        sessions = xnat.table(f"/projects/{xnat.project}/subjects/{row.subject}/experiments")
        (session,) = [one for one in sessions if one["label"] == row.session_label]
        assert session["xsiType"] == "xnat:ctSessionData"
        assert session["date"].replace("-", "") == row.study_date
        scans = {one["ID"]: one for one in xnat.table(f"{xnat.session(row)}/scans")}
        assert (scans[row.scan_id]["type"], scans[row.scan_id]["xsiType"]) == (row.dataset, "xnat:ctScanData")


def test_emptied_status_cells_send_nothing_again(scanned: Path, run: Runner, xnat: Xnat) -> None:
    assert upload(run, xnat) == 0
    set_cells("Status", None)
    assert upload(run, xnat) == 0
    assert all("already" in row.message for row in rows())


def test_a_file_changed_there_is_a_conflict_until_overwrite(scanned: Path, run: Runner, xnat: Xnat) -> None:
    assert upload(run, xnat) == 0
    victim = rows()[4]
    place = (
        f"{xnat.session(victim)}/scans/{victim.scan_id}/resources/{victim.resource}/files/{victim.filename}"
    )
    assert xnat.ask("PUT", f"{place}?overwrite=true&inbody=true", data=b"something else").status_code == 200
    assert upload(run, xnat, "--verify") == 1
    assert [row.file for row in rows() if row.status is Status.CONFLICT] == [victim.file]
    assert upload(run, xnat, "--overwrite") == 0
    assert statuses() == {Status.SUCCESS}


def test_series_are_added_to_a_session_that_another_client_made(
    scanned: Path, run: Runner, xnat: Xnat
) -> None:
    first = rows()[0]
    place = f"/subjects/{first.subject}/experiments/{first.session_label}"
    header = pydicom.dcmread(scanned / first.file, stop_before_pixels=True)
    kind = "xnat:ctSessionData"
    fields = {
        "xsiType": kind,
        f"{kind}/UID": str(header.StudyInstanceUID),
        f"{kind}/note": "kept",
        f"{kind}/date": "2020-03-12",
    }
    xnat.put(f"/subjects/{first.subject}")
    xnat.put(place, params=fields)
    xnat.put(f"{place}/scans/9", params={"xsiType": "xnat:ctScanData", "xnat:ctScanData/type": "Scout"})
    xnat.put(f"{place}/scans/9/resources/DICOM", params={"format": "DICOM", "content": "RAW"})
    theirs = builders.dicom_bytes(
        study=f"Doe^John-{SUBJECTS[0]} 20200312", series="scout", instance="scout 1", SeriesNumber="9"
    )
    xnat.put(f"{place}/scans/9/resources/DICOM/files/scout.dcm", params={"inbody": "true"}, data=theirs)
    assert upload(run, xnat) == 0
    assert statuses() == {Status.SUCCESS}
    scans = {one["ID"]: one["type"] for one in xnat.table(f"{xnat.session(first)}/scans")}
    assert scans == {"9": "Scout", first.scan_id: first.dataset}
    (kept,) = xnat.table(f"{xnat.session(first)}/scans/9/files")
    assert (kept["Name"], kept["digest"]) in (("scout.dcm", builders.md5(theirs)), ("scout.dcm", ""))
    record = xnat.ask("GET", xnat.session(first), params={"format": "json"}).json()["items"][0]["data_fields"]
    assert record["note"] == "kept"


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI"])
def test_series_are_added_to_imported_sessions_and_no_image_is_sent_twice(
    scanned: Path, run: Runner, xnat: Xnat, handler: str
) -> None:
    set_cells("Upload", "N", lambda row: "Neck" in row["File"])
    assert upload(run, xnat, "--import-handler", handler) == 0
    imported = xnat.images()
    assert len(imported) == 10
    assert upload(run, xnat, "--verify") == 0, "whatever the site changed on arrival"
    set_cells("Upload", "Y", lambda row: "Neck" in row["File"])
    assert upload(run, xnat) == 0
    assert statuses() == {Status.SUCCESS}
    set_cells("Status", None)  # as a workbook that knows of nothing
    assert upload(run, xnat) == 0
    there = xnat.images()
    assert len(there) == 14
    assert {name: there[name] for name in imported} == imported, "as the site's anonymisation left them"
    assert len({str(image.SOPInstanceUID) for image in there.values()}) == 14


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI"])
def test_imports_wait_in_the_prearchive_until_they_are_archived(
    scanned: Path, run: Runner, xnat: Xnat, handler: str
) -> None:
    assert upload(run, xnat, "--import-handler", handler, "--dest", "prearchive") == 0
    assert all("prearchive" in row.message for row in rows())
    labels = sorted({row.session_label for row in rows()})
    assert sorted(one["name"] for one in xnat.waiting()) == labels
    assert xnat.images() == {}
    assert upload(run, xnat, "--commit") == 0
    assert statuses() == {Status.SUCCESS}
    assert xnat.waiting() == []
    assert sorted({name.partition("/")[0] for name in xnat.images()}) == labels


@pytest.mark.parametrize("route", [[], ["--import-handler", "DICOM-zip"]])
def test_cleaned_copies_arrive(tree: Path, run: Runner, xnat: Xnat, route: list[str]) -> None:
    configure("Anonymize", "yes")
    assert run("scan", "--spreadsheet", BOOK, "--dir", tree).code == 0
    assert upload(run, xnat, *route) == 0
    assert statuses() == {Status.SUCCESS}
    sent = {row.sop_instance_uid for row in rows()}
    there: dict[str, Any] = xnat.images()
    assert len(there) == 14
    for image in there.values():
        assert image.PatientIdentityRemoved == "YES"
        assert str(image.SOPInstanceUID) not in sent
        assert "Doe" not in str(image)
        assert "Roe" not in str(image)
    assert upload(run, xnat, "--verify") == 0


def test_an_account_that_may_not_change_subjects_adds_sessions(
    scanned: Path, run: Runner, xnat: Xnat, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not all(xnat.group):
        pytest.skip("XNAT_GROUP_USER and XNAT_GROUP_PASS name no account")
    for subject in SUBJECTS:
        xnat.put(f"/subjects/{subject}")
    sign_in(monkeypatch, *xnat.group)
    assert upload(run, xnat) == 0
    assert statuses() == {Status.SUCCESS}
    assert len(xnat.images()) == 14
