"""Which archives travel to which XNAT, over HTTP to the sandbox.

Before 1.8 XNAT answers 200 to a tar and stores nothing of it (CatalogUtils.storeCatalogEntry).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import builders
from tests.helpers.importing import Study as ImportStudy
from tests.helpers.outgoing import spoil
from tests.helpers.runs import Runner
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.studies import Study
from xnatuploader.upload.imports import bodies

SCANS, IMAGES = 3, 100


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "xnat", projects=["P"], version="1.7.6", drops_tar=True) as sandbox:
        yield sandbox


def upload(run: Runner, work: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Send three series of one study; return the MD5s of what was sent."""
    monkeypatch.setenv("XNAT_USER", sandbox.user)
    monkeypatch.setenv("XNAT_PASS", sandbox.password)
    study = Study(run, work)
    sent = set()
    for scan in range(1, SCANS + 1):
        for index in range(IMAGES):
            path = builders.write_seed_file(
                study.data, f"Doe^John-0001/20200312/Scan {scan}/im{index:05}.dcm", SeriesNumber=str(scan)
            )
            sent.add(hashlib.md5(path.read_bytes()).hexdigest())
    assert study.init().code == 0
    assert study.scan().code == 0
    ran = run("upload", "--spreadsheet", study.book, "--dir", study.data, "--server", sandbox.url, "--project", "P",
        "--jobs", "1")  # fmt: skip
    assert ran.code == 0, ran.err
    return sent


def test_three_hundred_files_travel_in_few_requests(
    run: Runner, tmp_path: Path, old: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = upload(run, tmp_path, old, monkeypatch)
    assert len(sent) == SCANS * IMAGES
    assert sorted(old.files("P").values()) == sorted(sent)
    assert old.count("PUT", "/files/") == SCANS
    assert old.count() <= 40


def test_an_xnat_that_does_not_tell_its_age_gets_zips_once_a_tar_was_lost(
    run: Runner, tmp_path: Path, old: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.fault("status", path="/siteConfig/buildInfo", status=404)
    sent = upload(run, tmp_path, old, monkeypatch)
    assert sorted(old.files("P").values()) == sorted(sent)
    # A tar, one file alone, one in a zip, then one zip a scan.
    assert old.count("PUT", "/files/") == 3 + SCANS


@pytest.mark.parametrize(
    ("version", "ending"), [("1.7.6", "zip"), ("1.8.2", "zip"), ("1.8.3", "x-tar"), ("1.9.3", "x-tar")]
)
@pytest.mark.parametrize("handler", ["DICOM-zip", "SI"])
def test_an_import_travels_as_this_xnat_reads_it(
    tmp_path: Path, version: str, ending: str, handler: str
) -> None:
    with Sandbox(tmp_path / "xnat", projects=["P"], version=version, anonymize_imports=False) as sandbox:
        study = ImportStudy(sandbox, tmp_path, "L")
        study.series(2, 3)
        study.go(handler, via_cache=True)
        assert study.statuses() == ["success"], study.messages()
        assert study.archived() == study.expected()
        (put,) = sandbox.requests("PUT", "/user/cache/")
        assert put["path"].partition("?")[0].endswith(ending[-3:])


@pytest.mark.parametrize("version", ["1.7.6", "1.9.3"])
@pytest.mark.parametrize("handler", ["DICOM-zip", "SI"])
def test_a_file_that_changes_before_its_archive_goes_out_is_left_out_of_it(
    tmp_path: Path, version: str, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bodies.archives

    def archives(*given: Any, **more: Any) -> Any:
        spoil(tmp_path / study.rows[1].file, "grown")
        return real(*given, **more)

    monkeypatch.setattr(bodies, "archives", archives)
    with Sandbox(tmp_path / "xnat", projects=["P"], version=version, anonymize_imports=False) as sandbox:
        study = ImportStudy(sandbox, tmp_path, "L")
        study.series(2, 4)
        study.go(handler)
        failed = [one.file for one in study.outcomes.values() if one.status.value != "success"]
        assert failed == [study.rows[1].file], study.messages()
        assert "while it was being sent" in study.outcomes[failed[0]].message
        assert len(study.archived()) == 3
        assert study.imports() == 1
        assert study.waiting() == []


@pytest.mark.parametrize(
    ("told", "older"),
    [("1.7.6", True), ("1.7.5.6", True), ("1.8", False), ("1.8.0-SNAPSHOT", False), ("1.10.1", False), ("", False),
     ("unknown", False)],
)  # fmt: skip
def test_only_a_version_that_is_told_makes_a_server_old(tmp_path: Path, told: str, older: bool) -> None:
    with Sandbox(tmp_path / "xnat", projects=["P"], version=told) as sandbox:
        study = ImportStudy(sandbox, tmp_path, "L")
        with study.connect() as server:
            before = sandbox.count("GET", "/siteConfig/buildInfo")
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: server.is_older_than(1, 8), range(8)))
            assert set(answers) == {older}
            assert sandbox.count("GET", "/siteConfig/buildInfo") - before <= 1, "it is asked for once"
