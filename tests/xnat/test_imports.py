"""Imports in the background are followed to their end, also where XNAT never says that they have ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers.scripted_server import Reply, Scripted, Seen, Xnat
from xnatuploader import xnat
from xnatuploader.upload import tar_body
from xnatuploader.upload.imports import bodies
from xnatuploader.xnat import credentials, imports, prearchive
from xnatuploader.xnat.prearchive import PrearchiveEntry

ENTRY = PrearchiveEntry("P", "20200312_101112123", "E1", "E1", "S1", "1.2", "RECEIVING", "1")
TAKEN = {"status": "PROCESSING", "msg": "Importing file (xnatuploader-part.tar )", "terminal": False}
RECEIVED = {
    "status": "PROCESSING",
    "msg": "Successfully uploaded {}  sessions to the prearchive.",
    "terminal": False,
}


class Site:
    """A scripted XNAT that says `said` of an import, one message more at each look."""

    def __init__(self, folder: Path, said: Sequence[dict[str, object]]) -> None:
        self.said = said
        self.looks = 0
        self.seen: list[Seen] = []
        self.file = folder / "a.dcm"
        self.file.write_bytes(b"x" * 100)

    def answer(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        if "/data/status/" in seen.path:
            self.looks += 1
            body = json.dumps({"msgs": [list(self.said[: self.looks])]})
            return Reply(200, body, {"Content-Type": "application/json"})
        if seen.method == "POST":
            synchronous = "http-session-listener" not in seen.path
            return Reply(200, f"/data{ENTRY.url}\r\n" if synchronous else "Submitted for prearchival")
        return Reply(200, "")

    def send(
        self, entries: Callable[[], Sequence[PrearchiveEntry]] | None, *, single: bool = False
    ) -> list[str]:
        found = self.file.stat()
        outgoing = tar_body.Outgoing("a.dcm", "a.dcm", found.st_size, self.file, found.st_mtime_ns)
        login = credentials.Credentials("ann", "pw", "test")
        with (
            Scripted(Xnat(self.answer)) as site,
            xnat.connect(site.url, login, environ={}) as connection,
        ):
            sender = imports.ImportService(connection, threading.Event(), via_cache=True)
            body = bodies.Single(outgoing) if single else tar_body.Part([outgoing])
            return sender.send(body, {"import-handler": "DICOM-zip"}, entries)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_POLL_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(imports, "_QUIET_SECONDS", 0.3)


def test_the_count_of_sessions_is_the_end_of_a_zip_and_the_prearchive_tells_where(tmp_path: Path) -> None:
    site = Site(tmp_path, [TAKEN, {**RECEIVED, "msg": str(RECEIVED["msg"]).format(1)}])
    assert site.send(lambda: [ENTRY]) == [ENTRY.url]
    assert site.looks == 2


def test_the_entry_into_which_something_came_last_is_the_one(tmp_path: Path) -> None:
    site = Site(tmp_path, [{**RECEIVED, "msg": str(RECEIVED["msg"]).format(1)}])
    joined = PrearchiveEntry("Q", "20190101_000000000", "E1", changed="2020-03-12 10:00:02")
    other = PrearchiveEntry("P", "20200101_000000000", "E1", changed="2020-03-12 10:00:01")
    assert site.send(lambda: [joined, other]) == [joined.url]


def test_no_session_means_that_nothing_was_kept(tmp_path: Path) -> None:
    site = Site(tmp_path, [TAKEN, {**RECEIVED, "msg": str(RECEIVED["msg"]).format(0)}])
    assert site.send(lambda: [ENTRY]) == []


def test_a_terminal_message_ends_it_as_ever(tmp_path: Path) -> None:
    done = {
        "status": "COMPLETED",
        "msg": "Archive:/archive/projects/P/subjects/S1/experiments/E1",
        "terminal": True,
    }
    assert Site(tmp_path, [TAKEN, done]).send(None) == ["/archive/projects/P/subjects/S1/experiments/E1"]
    failed = {"status": "FAILED", "msg": "unable to read DICOM object", "terminal": True}
    with pytest.raises(xnat.RequestFailed, match="could not import it: unable to read DICOM object"):
        Site(tmp_path, [failed]).send(lambda: [ENTRY])


@pytest.mark.slow
def test_one_that_falls_silent_has_ended_once_nothing_comes_into_the_prearchive(tmp_path: Path) -> None:
    states: Iterator[list[PrearchiveEntry]] = iter(
        [[], *([PrearchiveEntry("P", "t", "E1", changed=str(second))] for second in range(3))]
    )
    last: list[PrearchiveEntry] = []

    def entries() -> list[PrearchiveEntry]:
        last[:] = next(states, last)
        return list(last)

    assert Site(tmp_path, [TAKEN]).send(entries) == ["/prearchive/projects/P/t/E1"]
    assert next(states, None) is None, "as long as something changed there, it went on waiting"


def test_one_that_falls_silent_and_left_nothing_is_unclear(tmp_path: Path) -> None:
    with pytest.raises(imports.AnswerLost, match="did not say within"):
        Site(tmp_path, []).send(lambda: [])


def test_a_single_file_is_imported_in_the_request_since_xnat_would_say_nothing_of_it(tmp_path: Path) -> None:
    site = Site(tmp_path, [])
    assert site.send(lambda: [], single=True) == [ENTRY.url]
    assert site.looks == 0
    assert not any("http-session-listener" in seen.path for seen in site.seen)


def test_a_resource_without_a_label_hides_nothing_else_of_an_entry() -> None:
    """XNAT lists the files of a resource in the prearchive by its label only."""
    below = f"{ENTRY.path}/scans/1/resources"
    tables = {
        f"{ENTRY.path}/scans": [{"ID": "1"}],
        below: [{"label": None}, {"label": "DICOM"}],
        f"{below}/DICOM/files": [{"Name": "a.dcm", "Size": "100", "URI": f"{below}/DICOM/files/a.dcm"}],
    }

    def answer(seen: Seen) -> Reply:
        rows = tables.get(seen.path.partition("?")[0])
        body = json.dumps({"ResultSet": {"Result": rows}})
        return Reply(404 if rows is None else 200, body, {"Content-Type": "application/json"})

    login = credentials.Credentials("ann", "pw", "test")
    with Scripted(Xnat(answer)) as site, xnat.connect(site.url, login, environ={}) as connection:
        held = prearchive.Prearchive(connection, "P", threading.Event()).files(ENTRY)
    assert held == {("1", "a.dcm"): 100}
