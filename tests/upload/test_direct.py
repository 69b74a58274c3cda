"""One scan's sending, against a stand-in that keeps files as XNAT does, and can be told to misbehave."""

from __future__ import annotations

import io
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.builders import md5
from xnatuploader import errors, records, xnat
from xnatuploader.records import Outcome, ResourcePlan, Row, ScanAddress, ScanPlan, SessionPlan, Status
from xnatuploader.upload import direct, files, resource, tar_body
from xnatuploader.upload.files import SendContext
from xnatuploader.upload.resource import NOTHING_STORED, SendOptions
from xnatuploader.xnat.http import Request

Failed = xnat.RequestFailed


class StandIn:
    """The calls of `Server` that sending uses."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.files: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.unlisted: set[str] = set()
        """Names that are on the server's disk and not in its catalog."""
        self.before: dict[str, Callable[..., None]] = {}
        """Method -> what happens first."""
        self.wrong: Callable[[str], bytes | None] = lambda name: None
        """Name -> what is stored in place of what was sent."""
        self.checksums = True
        self.stores = True
        self.unpacks = "yes"
        """`stored`: an archive is stored as it is; `no`: nothing is; `zip`: nothing of a tar is."""
        self.version = (1, 8, 11)
        self.limit = 10**12
        self.guard = threading.Lock()
        self.there: dict[str, str] = {}
        self.scans_there: set[tuple[str, str]] = set()

    def request(self, request: Request) -> None:
        """Refuse what else may be asked, as the catalog refresh: this account may not."""
        self.calls.append((request.method, request.path))
        raise xnat.RequestFailed(403, "This account may not do that.", "permission")

    def _called(self, *call: Any) -> None:
        with self.guard:
            self.calls.append(call)
        if call[0] in self.before:
            self.before[call[0]](*call[1:])

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def scan_files(self, address: ScanAddress) -> Any:
        self._called("scan_files", address.scan)
        return {
            resource: {
                name: xnat.RemoteFile(name, len(data), md5(data) if self.checksums else "")
                for name, data in files.items()
                if name not in self.unlisted
            }
            for resource, files in self.files.get((address.session, address.scan), {}).items()
            if files
        }

    def is_older_than(self, *version: int) -> bool:
        return self.version < version

    def session_id(self, project: str, label: str) -> str:
        self._called("session_id", label)
        return self.there.get(label, "")

    def has_scan(self, session: str, scan_id: str) -> bool:
        self._called("has_scan", session, scan_id)
        return (session, scan_id) in self.scans_there

    def may_not_add(self, project: str, types: list[str]) -> bool:
        self._called("may_not_add", types)
        return not self.stores

    def create_subject(self, project: str, label: str) -> str:
        self._called("create_subject", label)
        return "XNAT_S1"

    def create_session(self, project: str, subject: str, label: str, xsi_type: str, fields: Any) -> str:
        self._called("create_session", label, xsi_type, fields)
        return "XNAT_E1"

    def create_scan(self, address: ScanAddress, xsi_type: str, fields: Any) -> None:
        self._called("create_scan", address.scan, xsi_type, fields)
        self.files.setdefault((address.session, address.scan), {})

    def create_resource(self, address: ScanAddress, resource: str, *kind: str) -> None:
        self._called("create_resource", address.scan, resource, *kind)
        self.files.setdefault((address.session, address.scan), {}).setdefault(resource, {})

    def put_archive(self, *call: Any) -> tuple[str, ...]:
        address, resource, factory, name, overwrite = call
        body = factory()
        self._called("put_archive", len(body), overwrite)
        data = self._received(body)
        swallowed = {"no": (".tar", ".zip"), "zip": (".tar",)}.get(self.unpacks, ())
        if not self.stores or name.endswith(swallowed):
            return ()
        if self.unpacks == "stored":
            return self._store(address, resource, {name: data}, overwrite)
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as package:
                members = {member: package.read(member) for member in package.namelist()}
            return self._store(address, resource, members, overwrite)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        return self._store(address, resource, members, overwrite)

    def put_file(self, *call: Any) -> tuple[str, ...]:
        address, resource, name, factory, overwrite = call
        body = factory()
        self._called("put_file", name, len(body), overwrite)
        data = self._received(body) if len(body) else b""
        return self._store(address, resource, {name: data}, overwrite) if self.stores else ()

    def _received(self, body: Any) -> bytes:
        if len(body) > self.limit:
            raise Failed(413, "The proxy lets no more through.", "too-large")
        data = b"".join(body)
        assert len(data) == len(body)
        return data

    def _store(
        self, address: ScanAddress, resource: str, sent: dict[str, bytes], overwrite: bool
    ) -> tuple[str, ...]:
        files = self.files[address.session, address.scan][resource]
        left = []
        for name, data in sent.items():
            if name in files and not overwrite:
                left.append(name)
                continue
            wrong = self.wrong(name)
            files[name] = data if wrong is None else wrong
            self.unlisted.discard(name)
        return tuple(left)


class Bench:
    """A folder of files, their plan, a stand-in server, and what a run recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = StandIn()
        self.outcomes: dict[str, Outcome] = {}
        self.recorded: list[Outcome] = []
        self.sent_bytes = 0
        self.counted = 0
        self.stop = threading.Event()
        self.rows: dict[str, Row] = {}

    def write(self, name: str, data: bytes, **facts: Any) -> Row:
        path = self.folder / name
        path.write_bytes(data)
        found = path.stat()
        modified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
        row = Row(
            name, filename=name, size=str(found.st_size), modified=modified, scan_id="3",
            session_label="0001_CT1", subject="0001", resource="DICOM", number=len(self.rows) + 2, **facts,
        )  # fmt: skip
        self.rows[name] = row
        return row

    def many(self, count: int, size: int = 700) -> list[Row]:
        return [self.write(f"{n:04}.dcm", bytes([n % 256]) * size + str(n).encode()) for n in range(count)]

    def plan(self, rows: Iterable[Row] = (), *, exists: bool = False, **facts: Any) -> SessionPlan:
        by_resource: dict[str, list[Row]] = {}
        for row in rows or self.rows.values():
            by_resource.setdefault(row.resource, []).append(row)
        scan = ScanPlan(
            "3", "Head", "xnat:ctScanData", "1.2.3", "Head 1mm",
            tuple(ResourcePlan(label, tuple(group)) for label, group in by_resource.items()), exists=exists,
        )  # fmt: skip
        given = {"exists": "XNAT_E1" if exists else "", "date": "2020-03-12", "uid": "1.2"} | facts
        return SessionPlan("0001", "0001_CT1", "xnat:ctSessionData", scans=(scan,), **given)

    def there(self, name: str, data: bytes, resource: str = "DICOM") -> None:
        self.server.files.setdefault(("0001_CT1", "3"), {}).setdefault(resource, {})[name] = data

    def stored(self, resource: str = "DICOM") -> dict[str, bytes]:
        return self.server.files.get(("0001_CT1", "3"), {}).get(resource, {})

    def transfer(self, options: SendOptions | None = None, **hooks: Any) -> direct.Transfer:
        of_run = {name: hooks.pop(name) for name in ("planned", "could_add") if name in hooks}
        context = SendContext(
            self.server,  # type: ignore[arg-type]
            "P",
            lambda row: self.folder / row.file,
            on_outcome=self._on_outcome,
            on_sent=self._sent,
            on_files=self._counted,
            stop=self.stop,
            **hooks,
        )
        return direct.Transfer(context, options, **of_run)

    def _on_outcome(self, outcome: Outcome) -> None:
        self.recorded.append(outcome)
        self.outcomes[outcome.file] = outcome

    def _sent(self, count: int) -> None:
        assert count >= 0
        self.sent_bytes += count

    def _counted(self, count: int) -> None:
        self.counted += count

    def run(self, plan: SessionPlan | None = None, options: SendOptions | None = None, **hooks: Any) -> None:
        session = plan or self.plan()
        sender = self.transfer(options, **hooks)
        for scan in session.scans:
            sender.send_scan(session, scan)

    def statuses(self) -> dict[str, str]:
        return {file: outcome.status.value for file, outcome in self.outcomes.items()}

    def all_are(self, status: Status) -> bool:
        assert len(self.recorded) == len(self.outcomes), "a row was recorded twice"
        return set(self.outcomes) == set(self.rows) and {o.status for o in self.recorded} == {status}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


SMALL = SendOptions(part_bytes=2000, part_files=100)
AGAIN = SendOptions(overwrite=True)


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "LIST_PAUSES", (0.0, 0.0, 0.0))


# The plain way


def test_a_new_scan_is_made_filled_and_checked_with_few_requests(bench: Bench) -> None:
    bench.many(50)
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.stored() == {n: (bench.folder / n).read_bytes() for n in bench.rows}
    assert bench.server.names() == [
        "create_subject", "session_id", "create_session", "has_scan", "create_scan", "create_resource", "put_archive",
        "scan_files",
    ]  # fmt: skip
    first = bench.outcomes["0000.dcm"]
    assert first.md5 == md5((bench.folder / "0000.dcm").read_bytes())
    assert first.message == files.CHECKED
    assert bench.counted == 50
    assert bench.sent_bytes >= 50 * 700


def test_records_are_made_with_their_fields(bench: Bench) -> None:
    bench.write("a", b"a")
    bench.run(bench.plan(modality="CT", manufacturer="Acme", model="X"))
    calls = {call[0]: call for call in bench.server.calls}
    assert calls["create_session"][1:] == (
        "0001_CT1",
        "xnat:ctSessionData",
        {
            "date": "2020-03-12", "UID": "1.2", "modality": "CT", "scanner/manufacturer": "Acme",
            "scanner/model": "X",
        },
    )  # fmt: skip
    wanted = {"type": "Head", "UID": "1.2.3", "series_description": "Head 1mm"}
    assert calls["create_scan"][1:] == ("3", "xnat:ctScanData", wanted)
    assert calls["create_resource"][1:] == ("3", "DICOM", "DICOM", "RAW")


def test_two_resources_cost_one_listing(bench: Bench) -> None:
    bench.write("a", b"a")
    bench.rows["b"] = replace(bench.write("b", b"b"), resource="secondary")
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.stored("secondary") == {"b": b"b"}
    assert bench.server.names().count("scan_files") == 1
    assert ("create_resource", "3", "secondary", "DICOM", "secondary") in bench.server.calls


def test_subject_and_session_are_made_once_whoever_comes_first(bench: Bench) -> None:
    bench.write("a", b"a")
    session = bench.plan()
    scans = [replace(session.scans[0], scan_id=str(n)) for n in range(12)]
    bench.server.before["create_session"] = lambda *_: time.sleep(0.02)
    sender = bench.transfer()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda scan: sender.send_scan(session, scan), scans))
    assert bench.server.names().count("create_session") == 1
    assert bench.server.names().count("create_subject") == 1
    assert sender.session_id("0001_CT1") == "XNAT_E1"
    assert [o.status for o in bench.recorded] == [Status.SUCCESS] * 12
    assert {o.scan_id for o in bench.recorded} == {"", *(str(n) for n in range(12) if n != 3)}


def test_parts_go_one_after_the_other_and_are_bounded(bench: Bench) -> None:
    bench.many(10)
    bench.run(options=SMALL)
    assert bench.all_are(Status.SUCCESS)
    sizes = [call[1] for call in bench.server.calls if call[0] == "put_archive"]
    assert len(sizes) == 5
    assert max(sizes) <= 10240


def test_empty_and_large_files_arrive(bench: Bench) -> None:
    bench.write("empty", b"")
    bench.write("large", b"l" * 5000)
    bench.write("x" * 120, b"a name too long for a plain archive")
    bench.run(options=SMALL)
    assert bench.all_are(Status.SUCCESS)
    assert {n: len(d) for n, d in bench.stored().items()} == {"empty": 0, "large": 5000, "x" * 120: 35}


# What is there already


def test_what_the_server_has_is_not_sent(bench: Bench) -> None:
    for row in bench.many(5):
        bench.there(row.filename, (bench.folder / row.file).read_bytes())
    bench.run(bench.plan(exists=True))
    assert bench.all_are(Status.SUCCESS)
    assert bench.server.names() == ["scan_files"]
    assert bench.outcomes["0001.dcm"].md5 == md5((bench.folder / "0001.dcm").read_bytes())
    assert bench.counted == 5


def test_only_what_is_missing_is_sent(bench: Bench) -> None:
    bench.many(5)
    bench.there("0000.dcm", (bench.folder / "0000.dcm").read_bytes())
    bench.run(bench.plan(exists=True))
    assert bench.all_are(Status.SUCCESS)
    assert bench.server.names() == ["scan_files", "put_archive", "scan_files"]
    assert bench.server.calls[1][1] == 10240


def test_the_same_bytes_under_another_name_are_not_sent_again(bench: Bench) -> None:
    bench.write("a", b"image")
    bench.there("by-somebody-else.dcm", b"image")
    bench.run(bench.plan(exists=True))
    assert bench.outcomes["a"].status is Status.SUCCESS
    assert "by-somebody-else.dcm" in bench.outcomes["a"].message
    assert set(bench.stored()) == {"by-somebody-else.dcm"}


def test_a_local_file_is_read_only_where_the_server_has_its_name_or_size(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write("a", b"a" * 10)
    bench.write("b", b"b" * 11)
    bench.there("c", b"c" * 10)
    read: list[str] = []
    real = tar_body.digest_of
    monkeypatch.setattr(tar_body, "digest_of", lambda s: (read.append(s.name), real(s))[1])
    bench.run(bench.plan(exists=True))
    assert read == ["a"]


def test_another_file_under_the_name_is_a_conflict_that_names_the_option(bench: Bench) -> None:
    bench.write("a", b"ours")
    bench.there("a", b"theirs")
    bench.run(bench.plan(exists=True))
    assert bench.all_are(Status.CONFLICT)
    assert "--overwrite" in bench.outcomes["a"].message
    assert bench.stored() == {"a": b"theirs"}


def test_with_overwrite_what_differs_is_replaced_and_what_is_equal_is_not_sent(bench: Bench) -> None:
    bench.write("a", b"ours")
    bench.write("b", b"equal", status=Status.SUCCESS)
    bench.there("a", b"theirs")
    bench.there("b", b"equal")
    bench.run(bench.plan(exists=True), AGAIN)
    assert bench.all_are(Status.SUCCESS)
    assert bench.stored() == {"a": b"ours", "b": b"equal"}
    assert len([c for c in bench.server.calls if c[0] == "put_archive"]) == 1


def test_with_overwrite_a_file_is_not_taken_for_another_that_is_being_replaced(bench: Bench) -> None:
    """Otherwise the only copy of `a` would be written over by the new `b`."""
    bench.write("a", b"old content of b")
    bench.write("b", b"new content of b")
    bench.there("b", b"old content of b")
    bench.run(bench.plan(exists=True), AGAIN)
    assert bench.stored() == {"a": b"old content of b", "b": b"new content of b"}
    assert bench.all_are(Status.SUCCESS)


def test_verify_looks_without_reading_or_sending(bench: Bench) -> None:
    for name in ("same", "gone", "other"):
        bench.write(name, name.encode(), status=Status.SUCCESS, md5=md5(name.encode()).upper())
        (bench.folder / name).unlink()
    bench.there("same", b"same")
    bench.there("other", b"damaged")
    bench.run(bench.plan(exists=True), SendOptions())
    assert bench.statuses() == {"same": "success", "gone": "failed", "other": "conflict"}
    assert bench.server.names() == ["scan_files"]


def test_verify_of_a_scan_that_is_gone_makes_nothing(bench: Bench) -> None:
    bench.write("a", b"a", status=Status.SUCCESS, md5=md5(b"a"))
    bench.run(options=SendOptions())
    assert bench.all_are(Status.FAILED)
    assert bench.server.names() == []


def test_verify_without_a_noted_digest_reads_the_file_or_compares_the_size(bench: Bench) -> None:
    bench.write("read", b"1", status=Status.SUCCESS)
    bench.write("size", b"22", status=Status.SUCCESS)
    bench.write("other", b"333", status=Status.SUCCESS)
    for name, data in (("read", b"1"), ("size", b"??"), ("other", b"4444")):
        bench.there(name, data)
    (bench.folder / "size").unlink()
    (bench.folder / "other").unlink()
    bench.run(bench.plan(exists=True), SendOptions())
    assert bench.statuses() == {"read": "success", "size": "success", "other": "conflict"}
    assert bench.outcomes["read"].message == files.CHECKED
    assert bench.outcomes["size"].message == files.CHECKED_SIZE


def test_with_overwrite_a_sent_file_that_left_the_disk_is_only_looked_for(bench: Bench) -> None:
    bench.write("a", b"a", status=Status.SUCCESS, md5=md5(b"a"))
    (bench.folder / "a").unlink()
    bench.there("a", b"a")
    bench.run(bench.plan(exists=True), AGAIN)
    assert bench.all_are(Status.SUCCESS)


# A site without checksums


def test_without_checksums_sizes_are_compared_and_the_message_says_so(bench: Bench) -> None:
    bench.server.checksums = False
    bench.write("a", b"aaa")
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.outcomes["a"].message == files.CHECKED_SIZE
    again = Bench(bench.folder)
    again.server = bench.server
    again.server.calls.clear()
    again.write("a", b"aaa")
    again.run(again.plan(exists=True))
    assert again.outcomes["a"].message == files.THERE_SIZE
    assert again.server.names() == ["scan_files"]


def test_without_checksums_another_size_is_a_conflict(bench: Bench) -> None:
    bench.server.checksums = False
    bench.write("a", b"aaa")
    bench.there("a", b"bb")
    bench.run(bench.plan(exists=True))
    assert bench.all_are(Status.CONFLICT)


def test_without_checksums_overwrite_sends_again_because_nobody_can_tell(bench: Bench) -> None:
    bench.server.checksums = False
    bench.write("a", b"aaa")
    bench.there("a", b"bbb")
    bench.run(bench.plan(exists=True), AGAIN)
    assert bench.stored() == {"a": b"aaa"}


# Answers that lie


def test_a_file_that_the_server_spoilt_is_sent_a_second_time(bench: Bench) -> None:
    bench.many(30)
    spoilt = {"0007.dcm"}

    def wrong(name: str) -> bytes | None:
        if name in spoilt:
            spoilt.discard(name)
            return b"broken"
        return None

    bench.server.wrong = wrong
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.server.names()[-3:] == ["scan_files", "put_file", "scan_files"]
    assert bench.server.calls[-2][3] is True, "what this run sent is overwritten"


def test_a_server_that_goes_on_spoiling_a_file_makes_it_failed_and_the_others_not(bench: Bench) -> None:
    bench.many(5)
    bench.server.wrong = lambda name: b"broken" if name == "0003.dcm" else None
    bench.run()
    assert [f for f, s in bench.statuses().items() if s != "success"] == ["0003.dcm"]
    outcome = bench.outcomes["0003.dcm"]
    assert outcome.status is Status.FAILED
    assert md5(b"broken") in outcome.message
    assert outcome.md5 == md5((bench.folder / "0003.dcm").read_bytes())


def test_what_the_server_spoilt_in_an_earlier_run_is_replaced_without_overwrite(bench: Bench) -> None:
    bench.write("a", b"ours", status=Status.FAILED, md5=md5(b"ours"))
    bench.there("a", b"spoilt")
    bench.run(bench.plan(exists=True))
    assert bench.all_are(Status.SUCCESS)
    assert bench.stored() == {"a": b"ours"}


def test_leftovers_that_the_server_does_not_list_are_overwritten_in_one_go(bench: Bench) -> None:
    """As a killed run or a catalog race leaves them."""
    for row in bench.many(20):
        bench.there(row.filename, b"half")
        bench.server.unlisted.add(row.filename)
    bench.run(bench.plan(exists=True))
    assert bench.all_are(Status.SUCCESS)
    assert bench.server.names().count("put_archive") == 1


def test_leftovers_in_a_scan_that_nobody_listed_before_are_cured_by_the_repair(bench: Bench) -> None:
    bench.many(20)
    bench.there("0003.dcm", b"half")
    bench.server.unlisted.add("0003.dcm")
    bench.run()
    assert bench.all_are(Status.SUCCESS)


def test_a_file_that_somebody_else_sent_meanwhile_is_a_conflict_not_a_loss(bench: Bench) -> None:
    bench.many(3)
    bench.server.before["put_archive"] = lambda *_: bench.there("0001.dcm", b"theirs")
    bench.run()
    assert bench.statuses() == {"0000.dcm": "success", "0001.dcm": "conflict", "0002.dcm": "success"}
    assert bench.stored()["0001.dcm"] == b"theirs"


def test_a_truncated_listing_costs_a_repair_and_no_truth(bench: Bench) -> None:
    bench.many(30)
    bench.server.unlisted = set()
    hidden = {f"{n:04}.dcm" for n in range(20, 30)}
    bench.server.before["put_archive"] = lambda *_: None
    real = bench.server._store

    def store(*call: Any) -> tuple[str, ...]:
        left = real(*call)
        bench.server.unlisted.update(hidden)
        hidden.clear()
        return left

    bench.server._store = store  # type: ignore[method-assign]
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.server.names().count("put_archive") == 2


# Refusals


def test_200_with_nothing_stored_ends_the_run_once_with_one_message(bench: Bench) -> None:
    bench.server.stores = False
    bench.many(40)
    with pytest.raises(errors.ProjectRefused) as caught:
        bench.run()
    assert caught.value.exit_code == 5
    assert "right" in str(caught.value)
    assert bench.all_are(Status.FAILED)
    assert bench.server.names().count("put_file") == 1


def test_a_list_that_lags_is_not_waited_for_once_the_run_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "LIST_PAUSES", (600.0, 600.0))
    bench.many(2)
    bench.server.unlisted.update(bench.rows)
    bench.server.before["put_archive"] = lambda *_: bench.server.before.update(
        scan_files=lambda *_: (bench.server.unlisted.update(bench.rows), bench.stop.set())
    )
    bench.run()
    assert bench.all_are(Status.INTERRUPTED)
    assert bench.server.names().count("scan_files") == 1


def test_403_ends_the_run_and_later_scans_raise_the_same_at_once(bench: Bench) -> None:
    bench.many(3)

    def refuse(*_: Any) -> None:
        raise Failed(403, "This account may not add to the project.", "permission")

    bench.server.before["create_session"] = refuse
    sender = bench.transfer()
    session = bench.plan()
    with pytest.raises(errors.ProjectRefused) as first:
        sender.send_scan(session, session.scans[0])
    calls = len(bench.server.calls)
    other = replace(session.scans[0], resources=())
    with pytest.raises(errors.ProjectRefused) as second:
        sender.send_scan(session, other)
    assert second.value is first.value
    assert len(bench.server.calls) == calls


def test_subjects_that_the_project_has_are_not_made_again(bench: Bench) -> None:
    """XNAT refuses it for one that is shared into the project (SubjectResource.handlePut)."""
    bench.many(2)
    sender = bench.transfer(subjects={"0001": "XNAT_S7"})
    session = bench.plan()
    sender.send_scan(session, session.scans[0])
    assert bench.all_are(Status.SUCCESS)
    assert "create_subject" not in bench.server.names()


def test_scans_that_were_made_are_told(bench: Bench) -> None:
    bench.many(2)
    told: list[tuple[str, ...]] = []
    sender = bench.transfer(on_scan=lambda *made: told.append(made))
    session = bench.plan()
    sender.send_scan(session, session.scans[0])
    sender.send_scan(session, replace(session.scans[0], scan_id="4", exists=True))
    assert told == [("0001_CT1", "XNAT_E1", "3")]


def test_a_session_that_came_since_the_plan_is_left_as_it_is(bench: Bench) -> None:
    bench.many(2)
    bench.server.there["0001_CT1"] = "XNAT_E9"
    bench.run()
    assert bench.all_are(Status.FAILED)
    assert {o.message for o in bench.recorded} == {direct.SESSION_MEANWHILE}
    assert "create_session" not in bench.server.names()


def test_a_session_of_which_only_the_answer_was_lost_is_gone_on_with(bench: Bench) -> None:
    bench.many(2)

    def lose(*call: Any) -> None:
        bench.server.there["0001_CT1"] = "XNAT_E1"
        bench.server.before.pop("create_session")
        raise Failed(503, "busy", "server")

    bench.server.before["create_session"] = lose
    sender, session = bench.transfer(), bench.plan()
    for number in (1, 2):
        sender.send_scan(session, replace(session.scans[0], scan_id=str(number)))
    assert [o.status.value for o in bench.recorded] == ["failed"] * 2 + ["success"] * 2
    assert bench.server.names().count("create_session") == 1


def test_a_session_that_comes_before_a_second_attempt_is_not_taken_for_ours(bench: Bench) -> None:
    bench.many(2)
    count = iter(range(9))

    def fail_once(*_: Any) -> None:
        if next(count) == 0:
            bench.server.there["0001_CT1"] = "XNAT_E9"
            raise Failed(503, "busy", "server")

    bench.server.before["create_subject"] = fail_once
    sender, session = bench.transfer(), bench.plan()
    for number in (1, 2):
        sender.send_scan(session, replace(session.scans[0], scan_id=str(number)))
    assert bench.recorded[-1].message == direct.SESSION_MEANWHILE
    assert "create_session" not in bench.server.names()


def test_a_scan_that_came_since_the_plan_is_not_made_again(bench: Bench) -> None:
    bench.many(2)
    bench.server.scans_there.add(("XNAT_E1", "3"))
    told: list[tuple[str, ...]] = []
    bench.run(on_scan=lambda *made: told.append(made))
    assert "create_scan" not in bench.server.names()
    assert told == []
    assert {o.message for o in bench.recorded} == {direct.SCAN_MEANWHILE}


def test_a_scan_that_was_refused_is_not_counted_as_made(bench: Bench) -> None:
    bench.many(2)

    def refuse(*_: Any) -> None:
        raise Failed(403, "No.", "permission")

    bench.server.before["create_scan"] = refuse
    told: list[tuple[str, ...]] = []
    with pytest.raises(errors.ProjectRefused):
        bench.run(on_scan=lambda *made: told.append(made))
    assert told == []


def test_a_single_session_that_is_refused_ends_no_run_where_earlier_ones_could_add(bench: Bench) -> None:
    bench.many(2)

    def refuse(*_: Any) -> None:
        raise Failed(403, "No.", "permission")

    bench.server.before["create_subject"] = refuse
    session = bench.plan()
    bench.transfer(planned=[session], could_add=True).send_scan(session, session.scans[0])
    assert bench.all_are(Status.FAILED)


def test_a_session_that_is_refused_does_not_stop_the_others(bench: Bench) -> None:
    bench.many(3)
    session = bench.plan()
    pet = replace(session, session_label="0001_PT1", xsi_type="xnat:petSessionData")

    def refuse(label: str, xsi_type: str, fields: Any) -> None:
        if xsi_type == "xnat:petSessionData":
            raise Failed(403, "No.", "permission")

    bench.server.before["create_session"] = refuse
    sender = bench.transfer(planned=[session, pet])
    sender.send_scan(pet, pet.scans[0])
    assert bench.all_are(Status.FAILED)
    bench.recorded.clear()
    bench.outcomes.clear()
    sender.send_scan(session, session.scans[0])
    assert bench.all_are(Status.SUCCESS)
    calls = len(bench.server.calls)
    sender.send_scan(pet, pet.scans[0])
    assert len(bench.server.calls) == calls, "what is known to be refused is not asked again"


def test_a_server_that_answers_before_it_has_read_anything_is_found_out(
    bench: Bench, monkeypatch: Any
) -> None:
    bench.write("large.dcm", b"x" * 3000)
    bench.server.stores = False
    monkeypatch.setattr(bench.server, "_received", lambda body: b"")
    with pytest.raises(errors.ProjectRefused):
        bench.run(options=SMALL)
    assert bench.all_are(Status.FAILED)
    assert {one.message for one in bench.recorded} == {NOTHING_STORED}


def test_a_right_that_goes_away_in_the_middle_is_told_once_per_scan(bench: Bench) -> None:
    bench.many(10)
    count = iter(range(100))

    def refuse(*_: Any) -> None:
        if next(count) >= 2:
            raise Failed(403, "No.", "permission")

    bench.server.before["put_archive"] = refuse
    with pytest.raises(errors.ProjectRefused):
        bench.run(options=SMALL)
    assert bench.server.names().count("put_archive") == 3


def test_a_scan_that_may_not_be_written_costs_one_request_not_one_per_part(bench: Bench) -> None:
    bench.many(10)
    session = bench.plan()
    sender = bench.transfer(SMALL)
    sender.send_scan(session, session.scans[0])
    before = bench.server.names().count("put_archive")

    def refuse(*_: Any) -> None:
        raise Failed(403, "No.", "permission")

    bench.server.before["put_archive"] = refuse
    sender.send_scan(session, replace(session.scans[0], scan_id="4"))
    assert bench.server.names().count("put_archive") == before + 1
    assert [o.status.value for o in bench.recorded] == ["success"] * 10 + ["failed"] * 10


def test_a_project_that_is_gone_ends_the_run(bench: Bench) -> None:
    bench.many(2)

    def gone(*_: Any) -> None:
        raise Failed(422, "No such project.", "missing")

    bench.server.before["create_subject"] = gone
    with pytest.raises(errors.ProjectRefused, match="gone"):
        bench.run()
    assert bench.all_are(Status.INTERRUPTED)


def test_a_server_that_is_away_ends_the_run_and_the_rest_is_interrupted(bench: Bench) -> None:
    bench.many(10)
    count = iter(range(100))

    def away(*_: Any) -> None:
        if next(count) == 2:
            raise errors.ServerUnreachable("away")

    bench.server.before["put_archive"] = away
    with pytest.raises(errors.ServerUnreachable):
        bench.run(options=SMALL)
    assert bench.all_are(Status.INTERRUPTED)


def test_a_session_that_cannot_be_made_fails_its_files_without_asking_again(bench: Bench) -> None:
    bench.many(3)

    def refuse(*_: Any) -> None:
        raise Failed(409, "The label is taken.", "conflict")

    bench.server.before["create_session"] = refuse
    sender = bench.transfer()
    session = bench.plan()
    for number in range(5):
        sender.send_scan(session, replace(session.scans[0], scan_id=str(number)))
    assert bench.server.names() == ["create_subject", "session_id", "create_session"]
    assert {o.message for o in bench.recorded} == {"The label is taken."}


def test_a_session_that_could_not_be_made_at_once_is_tried_again_by_the_next_scan(bench: Bench) -> None:
    bench.many(3)
    count = iter(range(100))

    def fail_once(*_: Any) -> None:
        if next(count) == 0:
            raise Failed(503, "busy", "server")

    bench.server.before["create_session"] = fail_once
    sender = bench.transfer()
    session = bench.plan()
    for number in (1, 2):
        sender.send_scan(session, replace(session.scans[0], scan_id=str(number)))
    assert [o.status.value for o in bench.recorded] == ["failed"] * 3 + ["success"] * 3


def test_one_part_that_fails_does_not_stop_the_others(bench: Bench) -> None:
    bench.many(10)
    count = iter(range(100))

    def fail_second(*_: Any) -> None:
        if next(count) == 1:
            raise Failed(500, "XNAT failed inside.", "server")

    bench.server.before["put_archive"] = fail_second
    bench.run(options=SMALL)
    assert sorted(bench.statuses().values()) == ["failed"] * 2 + ["success"] * 8


def test_what_a_proxy_gave_up_on_counts_if_the_server_finished_it(bench: Bench) -> None:
    bench.many(4)
    real = bench.server._store

    def stored_but_answered_504(*call: Any) -> tuple[str, ...]:
        real(*call)
        raise Failed(504, "The proxy gave up.", "server")

    bench.server._store = stored_but_answered_504  # type: ignore[method-assign]
    bench.run()
    assert bench.all_are(Status.SUCCESS)


def test_a_listing_that_cannot_be_had_leaves_nothing_called_success(bench: Bench) -> None:
    bench.many(3)

    def refuse(*_: Any) -> None:
        raise Failed(500, "XNAT failed inside.", "server")

    bench.server.before["scan_files"] = refuse
    bench.run()
    assert bench.all_are(Status.FAILED)
    assert "could not be checked" in bench.outcomes["0000.dcm"].message


# Limits and archives


def test_413_halves_parts_down_to_single_files_and_remembers_the_limit(bench: Bench) -> None:
    bench.many(40, size=5000)
    bench.write("huge", b"h" * 50_000)
    bench.server.limit = 31_000
    bench.run()
    assert [f for f, s in bench.statuses().items() if s != "success"] == ["huge"]
    message = bench.outcomes["huge"].message
    assert "too large" in message
    assert "The proxy lets no more through." in message
    refused = [
        c
        for c in bench.server.calls
        if c[0].startswith("put") and c[1 if c[0] == "put_archive" else 2] > 31_000
    ]
    assert len(refused) <= 6, "each size is tried once"


def test_a_size_that_was_refused_is_not_tried_again_by_the_next_scan(bench: Bench) -> None:
    bench.write("huge", b"h" * 50_000)
    bench.server.limit = 31_000
    sender = bench.transfer()
    session = bench.plan()
    sender.send_scan(session, session.scans[0])
    before = [n for n in bench.server.names() if n.startswith("put")]
    sender.send_scan(session, replace(session.scans[0], scan_id="4"))
    assert [n for n in bench.server.names() if n.startswith("put")] == before
    assert [o.status for o in bench.recorded] == [Status.FAILED] * 2
    assert bench.recorded[0].message == bench.recorded[1].message


def test_a_server_that_refuses_archives_gets_single_files_for_the_rest_of_the_run(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.many(5)

    def refuse(*_: Any) -> None:
        raise Failed(415, "The server did not take the archive.", "archive-refused")

    bench.server.before["put_archive"] = refuse
    sender = bench.transfer()
    session = bench.plan()
    for number in (1, 2):
        sender.send_scan(session, replace(session.scans[0], scan_id=str(number)))
    assert [o.status for o in bench.recorded] == [Status.SUCCESS] * 10
    assert bench.server.names().count("put_archive") == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("unpacks", ["stored", "no"])
def test_a_server_that_does_not_unpack_gets_single_files(
    bench: Bench, caplog: pytest.LogCaptureFixture, unpacks: str
) -> None:
    bench.server.unpacks = unpacks
    bench.many(20)
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert "does not unpack" in caplog.text
    assert (tar_body.Part.name in caplog.text) is (unpacks == "stored")


def test_a_server_of_unknown_age_that_stores_nothing_of_a_tar_gets_zips(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server.unpacks = "zip"
    bench.many(200)
    sender = bench.transfer()
    session = bench.plan()
    for number in (1, 2):
        sender.send_scan(session, replace(session.scans[0], scan_id=str(number)))
    assert [o.status for o in bench.recorded] == [Status.SUCCESS] * 400
    # One tar, one file alone, one file in a zip, and the rest in zips; the second scan goes in one zip.
    assert bench.server.names().count("put_archive") == 4
    assert bench.server.names().count("put_file") == 1
    assert "one by one" not in caplog.text


def test_an_xnat_before_1_8_gets_zips_at_once(bench: Bench) -> None:
    bench.server.unpacks, bench.server.version = "zip", (1, 7, 6)
    bench.many(20)
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.server.names().count("put_archive") == 1
    assert "put_file" not in bench.server.names()


def test_no_temporary_file_is_left_of_a_zip_that_was_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.server.version, bench.server.limit = (1, 7, 6), 10_000
    made: list[Any] = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **k: (made.append(real(**k)), made[-1])[1])
    bench.many(30)
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert len(made) > 2
    assert all(one.closed for one in made)


# Files that are not as they were


def test_a_file_that_is_gone_is_missing_and_the_others_go(bench: Bench) -> None:
    bench.many(3)
    (bench.folder / "0001.dcm").unlink()
    bench.run()
    assert bench.statuses() == {"0000.dcm": "success", "0001.dcm": "missing", "0002.dcm": "success"}


def test_a_file_that_cannot_be_read_is_failed_without_its_path(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.many(2)
    real = Path.stat

    def stat(self: Path, **kwargs: Any) -> Any:
        if self.name == "0001.dcm":
            raise PermissionError(13, "Permission denied")
        return real(self, **kwargs)

    monkeypatch.setattr(Path, "stat", stat)
    bench.run()
    assert bench.statuses() == {"0000.dcm": "success", "0001.dcm": "failed"}
    assert "Permission denied" in bench.outcomes["0001.dcm"].message
    assert "0001" not in bench.outcomes["0001.dcm"].message


def test_a_file_that_differs_from_its_row_is_checked_first(bench: Bench) -> None:
    bench.many(3)
    (bench.folder / "0001.dcm").write_bytes(b"another image, longer than before" * 100)
    asked: list[str] = []

    def check(row: Row, path: Path) -> Outcome | None:
        asked.append(row.file)
        assert path == bench.folder / row.file
        return Outcome(row.file, Status.FAILED, "another image")

    bench.run(check=check)
    assert asked == ["0001.dcm"]
    assert bench.outcomes["0001.dcm"].message == "another image"
    assert "0001.dcm" not in bench.stored()


def change_while_sending(bench: Bench, name: str, times: int, change: Callable[[Path], None]) -> None:
    """Change a file after it was examined and before it is read."""
    left = [times]

    def before(*_: Any) -> None:
        if left[0]:
            left[0] -= 1
            change(bench.folder / name)

    bench.server.before["put_archive"] = bench.server.before["put_file"] = before


def test_a_file_that_changed_while_being_sent_is_sent_as_it_is_now(bench: Bench) -> None:
    bench.many(5)
    change_while_sending(bench, "0002.dcm", 1, lambda path: path.write_bytes(b"new"))
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.stored()["0002.dcm"] == b"new"
    assert bench.outcomes["0002.dcm"].md5 == md5(b"new")


def test_a_file_that_goes_on_changing_is_failed_and_not_on_the_server(bench: Bench) -> None:
    bench.many(5)
    change_while_sending(bench, "0002.dcm", 99, lambda path: path.write_bytes(path.read_bytes() + b"more"))
    bench.run()
    assert [f for f, s in bench.statuses().items() if s != "success"] == ["0002.dcm"]
    assert bench.outcomes["0002.dcm"] == Outcome("0002.dcm", Status.FAILED, files.CHANGED)
    assert "0002.dcm" not in bench.stored()


@pytest.mark.parametrize("size", [700, 3_000_000])
def test_a_file_that_vanished_while_being_sent_is_missing_and_the_others_arrive(
    bench: Bench, size: int
) -> None:
    bench.many(5)
    bench.write("0002.dcm", b"x" * size)
    change_while_sending(bench, "0002.dcm", 1, lambda path: path.unlink())
    bench.run()
    assert bench.statuses().pop("0002.dcm") == "missing"
    assert sorted(bench.stored()) == ["0000.dcm", "0001.dcm", "0003.dcm", "0004.dcm"]
    assert list(bench.statuses().values()).count("success") == 4


def test_a_large_file_that_changed_breaks_only_its_own_attempt_off(bench: Bench) -> None:
    bench.many(5)
    bench.write("0002.dcm", b"x" * 3_000_000)
    change_while_sending(bench, "0002.dcm", 1, lambda path: path.write_bytes(b"y" * 3_000_001))
    bench.run()
    assert bench.all_are(Status.SUCCESS)
    assert bench.stored()["0002.dcm"] == b"y" * 3_000_001


# Copies


def test_copies_are_sent_in_place_of_the_files_and_their_digests_count(bench: Bench) -> None:
    bench.many(6)
    made: list[Path] = []

    def copy(row: Row, path: Path) -> bytes | Path:
        data = b"clean " + path.read_bytes()[-3:] + row.file.encode()
        if int(row.file[:4]) % 2:
            return data
        temporary = bench.folder / f"{row.file}.tmp"
        temporary.write_bytes(data)
        made.append(temporary)
        return temporary

    bench.run(copy=copy)
    assert bench.all_are(Status.SUCCESS)
    assert all(data.startswith(b"clean ") for data in bench.stored().values())
    assert bench.outcomes["0001.dcm"].md5 == md5(bench.stored()["0001.dcm"])
    assert made
    assert not any(path.exists() for path in made)
    before = len([n for n in bench.server.names() if n.startswith("put")])
    again = Bench(bench.folder)
    again.server, again.rows = bench.server, bench.rows
    again.run(again.plan(exists=True), copy=copy)
    assert again.all_are(Status.SUCCESS)
    assert len([n for n in bench.server.names() if n.startswith("put")]) == before
    assert not any(path.exists() for path in made)


def test_a_file_of_which_no_copy_can_be_made_is_kept_back(bench: Bench) -> None:
    bench.many(3)

    def copy(row: Row, path: Path) -> bytes | Outcome:
        if row.file == "0001.dcm":
            return Outcome(row.file, Status.FAILED, "cannot be cleaned")
        if row.file == "0002.dcm":
            raise PermissionError(13, "Permission denied")
        return b"clean"

    bench.run(copy=copy)
    assert bench.statuses() == {"0000.dcm": "success", "0001.dcm": "failed", "0002.dcm": "failed"}
    assert bench.stored() == {"0000.dcm": b"clean"}


def test_no_more_copies_than_a_part_are_held_at_a_time(bench: Bench) -> None:
    bench.many(20)
    alive = 0
    most = 0

    def copy(row: Row, path: Path) -> Path:
        temporary = bench.folder / f"{row.file}.tmp"
        temporary.write_bytes(path.read_bytes())
        nonlocal alive, most
        alive = len(list(bench.folder.glob("*.tmp")))
        most = max(most, alive)
        return temporary

    bench.run(options=SMALL, copy=copy)
    assert bench.all_are(Status.SUCCESS)
    assert most <= 3


# Names, stopping


@pytest.mark.parametrize("name", ["a b.dcm", "ä.dcm", "a/b.dcm", "..", "", "x_catalog.xml", "a#1"])
def test_a_name_that_xnat_would_mangle_is_not_sent(bench: Bench, name: str) -> None:
    bench.rows["a"] = replace(bench.write("a", b"a"), filename=name)
    bench.write("b", b"b")
    bench.run()
    assert bench.statuses() == {"a": "failed", "b": "success"}


def test_two_rows_with_one_name_never_overwrite_each_other(bench: Bench) -> None:
    bench.write("a", b"a")
    bench.rows["b"] = replace(bench.write("b", b"b"), filename="a")
    bench.run()
    assert bench.statuses() == {"a": "success", "b": "conflict"}
    assert bench.stored() == {"a": b"a"}


def test_stopping_finishes_the_part_in_flight_and_checks_it(bench: Bench) -> None:
    bench.many(10)
    count = iter(range(100))

    def stop_at_second(*_: Any) -> None:
        if next(count) == 1:
            bench.stop.set()

    bench.server.before["put_archive"] = stop_at_second
    bench.run(options=SMALL)
    assert sorted(bench.statuses().values()) == ["interrupted"] * 6 + ["success"] * 4
    assert bench.server.names()[-3:] == ["put_archive", "put_archive", "scan_files"]


def test_a_stopped_run_asks_nothing_and_marks_all_but_what_was_sent_before(bench: Bench) -> None:
    bench.many(3)
    bench.write("sent", b"s", status=Status.SUCCESS)
    bench.stop.set()
    bench.run(bench.plan(exists=True), SendOptions())
    assert bench.server.names() == []
    assert bench.statuses() == {f"000{n}.dcm": "interrupted" for n in range(3)}


def test_a_request_given_up_because_the_run_stops_is_interrupted_not_failed(bench: Bench) -> None:
    bench.many(3)

    def give_up(*_: Any) -> None:
        bench.stop.set()
        raise Failed(0, "The connection was lost.", "connection")

    bench.server.before["put_archive"] = give_up
    bench.run()
    assert bench.all_are(Status.INTERRUPTED)


def test_every_row_is_recorded_once_even_after_an_unexpected_exception(bench: Bench) -> None:
    bench.many(3)

    def crash(*_: Any) -> None:
        raise RuntimeError("a fault of this program")

    bench.server.before["put_archive"] = crash
    with pytest.raises(RuntimeError):
        bench.run()
    assert bench.all_are(Status.INTERRUPTED)


def test_progress_counts_each_file_once_though_parts_are_repeated(bench: Bench) -> None:
    bench.many(10)
    bench.server.limit = 10_240
    bench.run()
    assert bench.counted == 10


def test_messages_hold_no_paths(bench: Bench) -> None:
    """Paths hold patients' names."""
    assert records.Row("x").filename == ""
    bench.many(2)
    (bench.folder / "0001.dcm").unlink()
    bench.run()
    assert not any(str(bench.folder) in o.message or "0001" in o.message for o in bench.recorded)


@pytest.mark.parametrize("slow", [False, True])
def test_files_are_looked_at_several_at_a_time_only_where_that_is_slow(
    monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    rows = [Row(f"{number}.dcm") for number in range(500)]
    here, others, several, now = threading.current_thread(), set(), threading.Event(), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])  # only looking takes time

    def look(row: Row) -> str:
        now[0] += 0.02 if slow else 0.001
        if threading.current_thread() is not here:
            others.add(threading.current_thread())
            if len(others) > 1:
                several.set()
            several.wait(30)
        return row.file

    assert list(tar_body.in_order(look, rows, 0.005)) == [row.file for row in rows]
    assert bool(others) is several.is_set() is slow
