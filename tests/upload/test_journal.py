"""The journal: nothing that was recorded is lost, whatever ends the run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xnatuploader import paths, records
from xnatuploader.upload import journal

Outcome = records.Outcome
Status = records.Status


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "state_folder", lambda: tmp_path / "state")
    return tmp_path / "files.xlsx"


def test_outcomes_come_back_the_last_of_each_file(book: Path) -> None:
    last = Outcome("b/2.dcm", Status.SUCCESS, "checked", "0" * 32, "2.dcm", "0001_CT1", "5-CT1", "DICOM")
    with journal.Journal(book, {"project": "P", "server": "https://x"}) as opened:
        opened.outcome(Outcome("b/2.dcm", Status.FAILED, "no"))
        opened.outcome(Outcome("a/1.dcm", Status.CONFLICT, "other"))
        opened.outcome(last)
    content = journal.read(book)
    assert list(content.outcomes.values()) == [Outcome("a/1.dcm", Status.CONFLICT, "other"), last]
    assert content.unreadable == 0
    assert content.meta == {"version": 1, "workbook": "files.xlsx", "project": "P", "server": "https://x"}


def test_finished_sessions_and_other_notes_come_back(book: Path) -> None:
    with journal.Journal(book) as opened:
        opened.note("finished", project="P", session="0001_CT1")
        opened.note("joined", session="x", when=3)
    content = journal.read(book)
    assert content.finished == {("P", "0001_CT1")}
    assert content.notes == ({"kind": "joined", "session": "x", "when": 3},)


def test_a_session_that_was_touched_after_it_was_finished_is_not_finished(book: Path) -> None:
    with journal.Journal(book) as opened:
        for kind in ("touched", "finished"):
            opened.note(kind, project="P", session="a")
        for kind in ("finished", "touched"):
            opened.note(kind, project="P", session="b")
    assert journal.read(book).finished == {("P", "a")}


def test_without_a_journal_nothing_is_known(book: Path) -> None:
    content = journal.read(book)
    assert not content.outcomes
    assert not content.finished


@pytest.mark.parametrize("name", ["Müller\n\r\u2028x", "\udcff\udc80.dcm", "日本", 'a"b\\c', "\x00", "😀"])
def test_every_file_name_survives_even_one_that_is_no_text(book: Path, name: str) -> None:
    with journal.Journal(book) as opened:
        opened.outcome(Outcome(name, Status.SUCCESS))
    assert list(journal.read(book).outcomes) == [name]


def test_a_later_run_goes_on_with_the_journal(book: Path) -> None:
    for file in ("a", "b"):
        with journal.Journal(book) as opened:
            opened.outcome(Outcome(file, Status.SUCCESS))
    assert list(journal.read(book).outcomes) == ["a", "b"]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_loses_only_itself_and_the_next_run_starts_a_new_line(book: Path, cut: int) -> None:
    with journal.Journal(book) as opened:
        opened.outcome(Outcome("a", Status.SUCCESS))
        opened.outcome(Outcome("torn", Status.SUCCESS))
    place = journal.beside(book)
    place.write_bytes(place.read_bytes()[:-cut])
    with journal.Journal(book) as opened:
        opened.outcome(Outcome("c", Status.SUCCESS))
    content = journal.read(book)
    known = ["a", "torn", "c"] if cut == 1 else ["a", "c"]  # only the line's end was lost
    assert list(content.outcomes) == known


def test_lines_of_another_version_or_damaged_ones_are_passed_over(book: Path) -> None:
    journal.beside(book).write_bytes(
        b'{"kind":"outcome","file":"a","status":"success","new":[1]}\n'
        b"\x00\x00\x00\xff\n\n[1]\n3\n" + b"[" * 100_000 + b"\n"
        b'{"kind":"outcome","file":"b","status":"unheard-of"}\n'
        b'{"kind":"outcome","status":"success"}\n'
        b'{"kind":"brand-new","x":1}\n'
        b'{"kind":"outcome","file":"c","status":"failed","message":null}\n'
    )
    content = journal.read(book)
    assert set(content.outcomes) == {"a", "c"}
    assert content.outcomes["c"] == Outcome("c", Status.FAILED)
    assert content.unreadable == 6
    assert content.notes == ({"kind": "brand-new", "x": 1},)


def test_many_threads_write_whole_lines(book: Path) -> None:
    opened = journal.Journal(book)

    def work(start: int) -> None:
        for number in range(start, start + 200):
            opened.outcome(Outcome(f"{number}.dcm", Status.SUCCESS, "m" * (number % 300)))

    threads = [threading.Thread(target=work, args=(n * 200,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened.close()
    content = journal.read(book)
    assert len(content.outcomes) == 1600
    assert content.unreadable == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from xnatuploader import records
from xnatuploader.upload import journal
opened = journal.Journal(Path(sys.argv[1]))
for number in range(500):
    opened.outcome(records.Outcome(f"{number}.dcm", records.Status.SUCCESS))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_process_loses_nothing_that_it_recorded(book: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(book)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(journal.read(book).outcomes) == 500


def test_what_was_written_reaches_the_disk_soon_and_on_closing(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.set())
    opened = journal.Journal(book)
    opened.outcome(Outcome("a", Status.SUCCESS))
    assert synced.wait(20)
    synced.clear()
    opened.close()
    assert synced.is_set()


def test_the_disk_is_not_bothered_for_every_line(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    with journal.Journal(book) as opened:
        for number in range(2000):
            opened.outcome(Outcome(str(number), Status.SUCCESS))
    assert 1 <= len(calls) <= 20


def test_a_drive_that_cannot_sync_is_no_error(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with journal.Journal(book) as opened:
        opened.outcome(Outcome("a", Status.SUCCESS))
    assert list(journal.read(book).outcomes) == ["a"]


def refuse_beside(monkeypatch: pytest.MonkeyPatch, book: Path) -> None:
    real = os.open

    def opened(path: object, *args: object, **kwargs: object) -> int:
        if path == journal.beside(book):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)


def test_a_folder_that_cannot_be_written_sends_the_journal_to_the_state_folder(
    book: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_beside(monkeypatch, book)
    opened = journal.Journal(book)
    opened.outcome(Outcome("a", Status.SUCCESS))
    assert opened.path == journal.elsewhere(book)
    assert str(opened.path) in caplog.text
    opened.close()
    assert list(journal.read(book).outcomes) == ["a"]
    journal.remove(book)
    assert not opened.path.exists()
    assert not journal.read(book).outcomes


def test_two_workbooks_of_one_name_have_two_journals_in_the_state_folder(tmp_path: Path) -> None:
    assert journal.elsewhere(tmp_path / "a" / "f.xlsx") != journal.elsewhere(tmp_path / "b" / "f.xlsx")


def fill_disk(monkeypatch: pytest.MonkeyPatch, full: set[int], torn: bytes = b"") -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if descriptor in full:
            if torn:
                real(descriptor, data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)


def test_a_disk_that_fills_up_moves_the_journal_and_loses_no_line(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = journal.Journal(book)
    opened.outcome(Outcome("a", Status.SUCCESS))
    full = {opened._descriptor}
    monkeypatch.setattr(os, "close", lambda descriptor, real=os.close: descriptor in full or real(descriptor))
    fill_disk(monkeypatch, full, torn=b"yes")
    opened.outcome(Outcome("b", Status.SUCCESS))
    opened.outcome(Outcome("c", Status.SUCCESS))
    assert opened.path == journal.elsewhere(book)
    assert len(opened._waiting) == 0
    opened.close()
    assert set(journal.read(book).outcomes) == {"a", "b", "c"}


def test_when_no_place_has_room_the_lines_wait_and_are_written_later(
    book: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = journal.Journal(book)
    with monkeypatch.context() as patch:
        fill_disk(patch, set(range(3, 1000)), torn=b"yes")
        for file in ("a", "b", "c") * 10:
            opened.outcome(Outcome(file, Status.SUCCESS))
        assert len(opened._waiting) >= 30
    assert len(caplog.records) <= 3, "told once, not for every line"
    opened.outcome(Outcome("d", Status.SUCCESS))
    assert len(opened._waiting) == 0
    opened.close()
    assert set(journal.read(book).outcomes) == {"a", "b", "c", "d"}


def test_recording_after_closing_is_no_crash(book: Path) -> None:
    """A worker may finish after a second Ctrl-C closed everything."""
    opened = journal.Journal(book)
    opened.close()
    opened.close()
    opened.outcome(Outcome("late", Status.SUCCESS))
    assert len(opened._waiting) == 1
