"""Imports that are killed, as by a power cut, and repeated: what had arrived is success, and nothing is there twice."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pydicom
import pytest

from tests.helpers.journeys import VISIT, Journey
from tests.helpers.runs import variables
from tests.helpers.sandbox_process import Sandbox

KILLS = 8
IMAGES = 12
CASES = [
    *(
        (handler, dest)
        for handler in ("DICOM-zip", "SI", "gradual-DICOM")
        for dest in (("--dest", "archive"), ("--dest", "prearchive"), ("--dest", "archive", "--via-cache"))
    ),
    ("XAR", ()),
    ("inbox", ()),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A slow site as XNAT is shipped: there is time to kill a run at every request, and while XNAT archives."""
    folder = tmp_path_factory.mktemp("site")
    with Sandbox(
        folder, projects=["P"], anonymize_imports=True, latency=0.02, archive_seconds=0.5
    ) as sandbox:
        yield sandbox


def study(journey: Journey) -> None:
    for number in range(IMAGES // 2):
        journey.file(VISIT.format(number))
        journey.file(VISIT.replace("Chest", "Neck").format(number))
    journey.scan()


def words(journey: Journey, handler: str, options: tuple[str, ...]) -> list[str]:
    if handler == "inbox":
        folder = journey.site.folder / "inbox" / journey.project / "batch"
        if not folder.exists():
            shutil.copytree(journey.data, folder)
        options = ("--dest", str(folder))
    return ["--import-handler", handler, *options]


def begun(journey: Journey, given: list[str]) -> subprocess.Popen[bytes]:
    command = [
        *(
            sys.executable,
            "-m",
            "xnatuploader",
            "upload",
            "--spreadsheet",
            "study.xlsx",
            "--dir",
            str(journey.data),
        ),
        *("--server", journey.site.url, "--project", journey.project, *given),
    ]
    names = {
        "XNAT_USER": journey.site.user,
        "XNAT_PASS": journey.site.password,
        "XNAT_HOST": journey.site.url,
    }
    return subprocess.Popen(
        command, env=variables(**names), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def killed_at(journey: Journey, request: int, given: list[str]) -> bool:
    """Run an upload in a process of its own and kill it at its n-th request; False if it ended before."""
    journey.site.clear_requests()
    with begun(journey, given) as process:
        while process.poll() is None:
            if journey.site.count() >= request:
                process.kill()
                return True
            time.sleep(0.005)
    return False


def images(journey: Journey, where: str) -> list[str]:
    paths = (journey.site.folder / where / journey.project).rglob("*.dcm")
    return sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in paths)


@pytest.mark.slow
@pytest.mark.parametrize(("handler", "options"), CASES, ids=[" ".join((one[0], *one[1])) for one in CASES])
def test_a_killed_import_ends_whole_when_it_is_repeated(
    journey: Journey, handler: str, options: tuple[str, ...]
) -> None:
    """Killed once or twice at any request, and repeated at once, while XNAT is still at work on it."""
    chance = random.Random(f"{handler} {options}")
    waits = "prearchive" in options
    study(journey)
    journey.site.clear_requests()
    requests, runs, kills = 0, 0, []
    for round_ in range(1 + KILLS):
        journey.project = f"{journey.project.partition('x')[0]}x{round_}"
        journey.site.add_project(journey.project)
        journey.scan("--restart")
        given = words(journey, handler, options)
        if requests:
            at = [chance.randint(1, requests) for _ in range(1 + round_ % 2)]
            kills.append([number for number in at if killed_at(journey, number, given)])
        for _ in range(3):
            ran = journey.upload(*given)
            runs += 1
            assert "conflict" not in {row.status.value for row in journey.rows()}, ran.err
            if ran.code == 0:
                break
        said = f"killed at {kills[-1:]} of {requests} requests: {ran.err}{ran.out}"
        assert ran.code == 0, said
        requests = requests or journey.site.count()
        rows = journey.rows()
        assert {row.status.value for row in rows} == {"success"}, said
        uids = sorted(row.sop_instance_uid for row in rows)
        assert images(journey, "prearchive" if waits else "archive") == uids, said
        assert images(journey, "archive" if waits else "prearchive") == [], said
    assert sum(map(len, kills)) >= KILLS // 2
    print(f"{handler} {' '.join(options)}: killed at {kills} of {requests} requests; {runs} runs")
