"""Sessions through the import service for real: every handler, over HTTP to the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.importing import Study
from tests.sandbox_process import Sandbox

ARCHIVING = ("DICOM-zip", "SI", "gradual-DICOM", "XAR")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    users = ["demo:demo:owner", "reader:reader:reader"]
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], users=users) as sandbox:
        yield sandbox


@pytest.fixture
def study(shared: Sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Study]:
    label = "".join(c if c.isalnum() else "_" for c in request.node.name)[-60:]
    yield Study(shared, tmp_path, label)
    shared.clear_faults()
    shared.set(body_limit=0, checksums=True, anonymize_imports=False)


@pytest.mark.parametrize("handler", ARCHIVING)
def test_a_session_is_archived_byte_for_byte(study: Study, handler: str) -> None:
    study.series(2, 4)
    study.series(3, 3)
    study.go(handler)
    assert study.statuses() == ["success"], study.messages()
    assert study.messages() == {"Archived by XNAT's import service, with the same MD5."}
    assert study.archived() == study.expected()
    assert study.waiting() == []
    assert {one.md5 for one in study.outcomes.values()} == set(study.expected().values())
    scans = study.sandbox.state()["P"]["S1"][study.label]["scans"]
    assert {scan: values["type"] for scan, values in scans.items()} == {"2": "Dataset 2", "3": "Dataset 3"}
