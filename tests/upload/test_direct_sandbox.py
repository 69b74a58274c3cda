"""One scan's sending for real: over HTTP to the sandbox, which misbehaves on order."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sandbox_process import Sandbox
from tests.helpers.waiting import QuickClock
from xnatuploader import errors, xnat
from xnatuploader.records import Outcome, ResourcePlan, Row, ScanPlan, SessionPlan, Status
from xnatuploader.upload import direct, resource, tar_body
from xnatuploader.upload.files import SendContext
from xnatuploader.upload.resource import SendOptions
from xnatuploader.xnat import credentials, http

COUNT = 30


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    users = ["demo:demo:owner", "reader:reader:reader"]
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], users=users) as sandbox:
        yield sandbox


class Run:
    """A session of its own on the sandbox, and files to send there."""

    def __init__(self, sandbox: Sandbox, folder: Path, label: str) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self.label = label
        self.outcomes: dict[str, Outcome] = {}
        self.rows: list[Row] = []
        self.said = 0

    def many(self, count: int = COUNT, size: int = 3000) -> None:
        for number in range(count):
            self.write(f"{number:04}.dcm", os.urandom(size))

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.write_bytes(data)
        found = path.stat()
        modified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
        self.rows.append(
            Row(
                name, filename=name, size=str(found.st_size), modified=modified, scan_id="3", resource="DICOM"
            )
        )

    def digests(self) -> dict[str, str]:
        return {r.filename: hashlib.md5((self.folder / r.file).read_bytes()).hexdigest() for r in self.rows}

    def on_disk(self) -> dict[str, str]:
        """What the server's archive folder holds, catalogs left out."""
        folders = [p for p in self.sandbox.archive.rglob("SCANS/3/DICOM") if p.parts[-4] == self.label]
        return {
            p.name: hashlib.md5(p.read_bytes()).hexdigest()
            for folder in folders
            for p in folder.iterdir()
            if not p.name.endswith("_catalog.xml")
        }

    def connect(self, user: str = "demo") -> xnat.Server:
        found = credentials.Credentials(user, user, "test")
        return xnat.connect(self.sandbox.url, found, environ={}, patience=http.Patience(clock=QuickClock()))

    def go(self, *, user: str = "demo", options: SendOptions | None = None, parts: int = 0) -> None:
        """Send, as a run of its own: the plan says what is there."""
        self.outcomes.clear()
        self.said = 0
        options = options or SendOptions(part_files=parts or tar_body.PART_FILES)
        with self.connect(user) as connection:
            there = {s.label: s.id for s in connection.sessions("P")}
            exists = there.get(self.label, "")
            scans = [s.id for s in connection.scans(exists)] if exists else []
            scan = ScanPlan(
                "3", "Head", "xnat:ctScanData", "1.2.3", "Head 1mm",
                (ResourcePlan("DICOM", tuple(self.rows)),), exists="3" in scans,
            )  # fmt: skip
            plan = SessionPlan(
                "S1", self.label, "xnat:ctSessionData", "2020-03-12", "1.2", "CT", "Acme", "X", (scan,),
                exists=exists,
            )  # fmt: skip
            self.sandbox.clear_requests()
            context = SendContext(connection, "P", lambda row: self.folder / row.file, on_outcome=self._heard)
            direct.Transfer(context, options).send_scan(plan, scan)

    def _heard(self, outcome: Outcome) -> None:
        self.said += 1
        self.outcomes[outcome.file] = outcome

    def statuses(self) -> set[str]:
        assert self.said == len(self.outcomes) == len(self.rows)
        return {o.status.value for o in self.outcomes.values()}

    def puts(self) -> int:
        return self.sandbox.count("PUT", "/files/")


@pytest.fixture
def run(shared: Sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    label = "".join(c if c.isalnum() else "_" for c in request.node.name)[-60:]
    yield Run(shared, tmp_path, label)
    shared.clear_faults()
    shared.set(body_limit=0, refuse_archives=0, checksums=True)


def test_files_arrive_byte_for_byte_and_a_second_run_sends_nothing(run: Run) -> None:
    run.many()
    run.write("empty.dcm", b"")
    run.write("large.dcm", os.urandom(3_000_000))
    run.go(parts=10)
    assert run.statuses() == {"success"}
    assert run.on_disk() == run.digests()
    assert run.puts() == 4
    asked = [r["method"] for r in run.sandbox.requests() if "JSESSION" not in r["path"]]
    looked_up = ["PUT", "GET", "PUT", "GET", "PUT", "PUT"]  # session and scan are, before they are made
    assert asked == looked_up + ["GET"] + ["PUT"] * 4 + ["GET"]  # records, version, parts, one listing
    run.go()
    assert run.statuses() == {"success"}
    assert [r["method"] for r in run.sandbox.requests()][:1] == ["GET"]
    assert run.puts() == 0


FAULTS: dict[str, list[dict[str, Any]]] = {
    "a 500 that comes before the work": [{"do": "status", "status": 500, "times": 2}],
    "a 502 that comes after the work": [{"do": "status", "status": 502, "when": "after", "times": 2}],
    "a 503 with Retry-After": [{"do": "status", "status": 503, "retry_after": "1", "times": 2}],
    "a 429": [{"do": "status", "status": 429, "times": 3}],
    "a connection that breaks before the body": [{"do": "drop", "when": "before", "times": 2}],
    "a connection that breaks in the body": [{"do": "drop", "when": "during", "times": 2}],
    "a connection that breaks after the body": [{"do": "drop", "when": "after", "times": 2}],
    "a catalog race": [{"do": "race", "times": 2}],
    "a login that ends": [{"do": "kill-session", "every": 2, "times": 4}],
    "a web page with 200": [{"do": "html", "times": 1}],
    "a 200 that stores nothing": [{"do": "lose", "times": 1}],
    "storage that alters bytes": [{"do": "corrupt", "times": 1}],
    "a digest that is not the file's": [{"do": "lying-digest", "times": 1}],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_everything_arrives_in_spite_of(run: Run, name: str) -> None:
    run.many()
    for fault in FAULTS[name]:
        run.sandbox.fault(method="PUT", path="/files/", **fault)
    run.go(parts=10)
    assert sum(rule["struck"] for rule in run.sandbox.faults()) >= 1
    assert run.statuses() == {"success"}
    assert run.on_disk() == run.digests()


@pytest.mark.parametrize("fault", ["truncate", "cut-listing"])
def test_everything_arrives_in_spite_of_a_listing_that_is_cut(run: Run, fault: str) -> None:
    run.many()
    run.sandbox.fault(fault, method="GET", path="/files", keep=5, times=1)
    run.go()
    assert run.on_disk() == run.digests()
    wanted = {"success"} if fault == "truncate" else {"failed"}  # half a JSON is no listing at all
    assert run.statuses() in (wanted, {"success"})
    run.go()
    assert run.statuses() == {"success"}


def test_a_reader_is_told_once_that_nothing_was_stored(run: Run) -> None:
    run.many(3)
    run.go()
    for row in run.rows:
        (run.folder / row.file).write_bytes(b"changed " + row.file.encode())
    with pytest.raises(errors.ProjectRefused, match="right"):
        run.go(user="reader", options=SendOptions(overwrite=True))
    assert run.statuses() == {"failed"}
    assert run.puts() == 2  # one archive, and one single file to be sure


def test_a_reader_who_may_make_nothing_is_told_so(run: Run) -> None:
    run.many(3)
    with pytest.raises(errors.ProjectRefused):
        run.go(user="reader")
    assert run.puts() == 0


def test_a_proxy_with_a_small_limit_gets_small_parts(run: Run) -> None:
    run.many(20, size=20_000)
    run.write("huge.dcm", os.urandom(300_000))
    run.sandbox.set(body_limit=100_000)
    run.go()
    assert {f for f, o in run.outcomes.items() if o.status is not Status.SUCCESS} == {"huge.dcm"}
    assert "too large" in run.outcomes["huge.dcm"].message
    assert "client_max_body_size" in run.outcomes["huge.dcm"].message
    assert len(run.on_disk()) == 20


@pytest.mark.parametrize("status", [400, 415])
def test_a_proxy_that_refuses_archives_gets_single_files(run: Run, status: int) -> None:
    run.many(8)
    run.write("empty.dcm", b"")
    run.sandbox.set(refuse_archives=status)
    run.go()
    assert run.statuses() == {"success"}
    assert run.on_disk() == run.digests()
    assert run.puts() == 1 + 9


def test_a_site_without_checksums(run: Run) -> None:
    run.many(5)
    run.sandbox.set(checksums=False)
    run.go()
    assert run.statuses() == {"success"}
    assert "size" in run.outcomes["0000.dcm"].message
    run.go()
    assert run.puts() == 0


def test_a_disk_that_is_full_ends_the_run_with_the_rest_interrupted(run: Run) -> None:
    run.many(30)
    run.sandbox.fault("disk-full", method="PUT", path="/files/", first=2)
    with pytest.raises(errors.ServerUnreachable):
        run.go(parts=10)
    assert run.statuses() == {"interrupted"}
    run.sandbox.clear_faults()
    run.go()
    assert run.statuses() == {"success"}
    assert run.on_disk() == run.digests()


def change(how: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        if how == "grows":
            path.write_bytes(path.read_bytes() + b"more")
        elif how == "shrinks":
            path.write_bytes(path.read_bytes()[:100])
        else:
            path.unlink()

    return act


@pytest.mark.slow
@pytest.mark.parametrize("size", [3000, 5_000_000])
@pytest.mark.parametrize("how", ["grows", "shrinks", "vanishes"])
def test_a_file_that_changes_on_the_way_is_never_stored_as_a_half(
    run: Run, monkeypatch: pytest.MonkeyPatch, how: str, size: int
) -> None:
    run.many(10)
    run.write("changing.dcm", os.urandom(size))
    real = resource.Resource._put
    left = [1]

    def put(self: Any, part: Any, overwrite: bool) -> None:
        if left[0]:
            left[0] -= 1
            change(how)(run.folder / "changing.dcm")
        real(self, part, overwrite)

    monkeypatch.setattr(resource.Resource, "_put", put)
    run.go()
    if how == "vanishes":
        assert run.outcomes.pop("changing.dcm").status is Status.MISSING
        run.rows.pop()
        run.said -= 1
        listed = {k.rpartition("/")[2] for k in run.sandbox.files("P") if f"/{run.label}/" in k}
        assert "changing.dcm" not in listed
    assert run.statuses() == {"success"}
    stored = run.on_disk()
    assert {name: stored[name] for name in run.digests()} == run.digests()


@pytest.mark.slow
def test_a_killed_server_leaves_nothing_that_the_next_run_cannot_mend(
    run: Run, tmp_path_factory: Any
) -> None:
    """The kill comes while a part is being stored: half-stored files lie there, unlisted."""
    with Sandbox(tmp_path_factory.mktemp("killed"), projects=["P"], bandwidth=2_000_000.0) as box:
        again = Run(box, run.folder, run.label)
        again.many(60, size=100_000)
        killer = threading.Timer(1.5, box.kill)
        failed: list[BaseException] = []

        def go() -> None:
            try:
                again.go(parts=20)
            except errors.ServerUnreachable as error:
                failed.append(error)

        sending = threading.Thread(target=go)
        sending.start()
        killer.start()
        killer.join()
        box.options.settings["bandwidth"] = 0.0
        box.start()
        sending.join(120)
        again.go()
        assert again.statuses() == {"success"}
        assert again.on_disk() == again.digests()
