"""One run per workbook, and never a dead end."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.waiting import eventually
from xnatuploader import errors, paths
from xnatuploader.workbook import lock


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "state_folder", lambda: tmp_path / "state")
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 0.3)
    return tmp_path / "files.xlsx"


def place(book: Path) -> Path:
    return book.with_name("files.xlsx.lock")


def left_behind(book: Path, age: float = 0.0, **facts: Any) -> lock.Holder:
    """Write the lock file of another run, last rewritten `age` seconds ago."""
    given = {"host": "RADPC7", "user": "anna", "pid": 4711, "since": "2026-01-01 12:03:00", "token": "t"}
    holder = lock.Holder(**{**given, **facts})  # type: ignore[arg-type]
    descriptor = os.open(place(book), os.O_RDWR | os.O_CREAT)
    lock._write(descriptor, holder)
    os.close(descriptor)
    then = time.time() - age
    os.utime(place(book), (then, then))
    return holder


def dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def in_place_of_system_lock(monkeypatch: pytest.MonkeyPatch, answer: bool | None) -> None:
    """As on a drive where the system's locks do not reach other computers, or do not work."""
    monkeypatch.setattr(lock, "lock_file", lambda descriptor: answer)


def test_a_second_run_is_told_who_holds_the_workbook_and_what_to_do(book: Path) -> None:
    with lock.hold(book) as held, pytest.raises(errors.WorkbookInUse) as caught, lock.hold(book):
        pytest.fail("two runs at once")
    message = str(caught.value)
    for part in ("files.xlsx", held.holder.user, f"process {os.getpid()}", held.holder.since, "Wait until"):
        assert part in message
    assert caught.value.exit_code == 2


def test_the_lock_ends_with_the_block_and_leaves_no_file(book: Path) -> None:
    for _ in range(3):
        with lock.hold(book) as held:
            assert place(book).exists()
        held.release()  # a second time does nothing
        assert not place(book).exists()


def test_an_error_in_the_block_gives_the_lock_back(book: Path) -> None:
    with pytest.raises(KeyError), lock.hold(book):
        raise KeyError
    assert not place(book).exists()


def test_two_names_of_one_workbook_are_one_lock(book: Path) -> None:
    book.write_bytes(b"")
    link = book.with_name("link.xlsx")
    try:
        link.symlink_to(book)
    except OSError:
        pytest.skip("no right to make links")
    with lock.hold(book), pytest.raises(errors.WorkbookInUse):
        lock.acquire(link)


def test_of_many_that_want_it_at_once_one_gets_it(book: Path) -> None:
    got: list[lock.Hold] = []
    refused: list[errors.WorkbookInUse] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        try:
            got.append(lock.acquire(book))
        except errors.WorkbookInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].release()


HOLDING = """
import sys, time
from pathlib import Path
from xnatuploader.workbook import lock
held = lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_process_holds_it_until_it_is_killed_and_then_nothing_is_in_the_way(book: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(book)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(errors.WorkbookInUse, match=f"process {other.pid}"):
            lock.acquire(book)
        other.send_signal(signal.SIGKILL)
        other.wait(20)
        assert place(book).exists()
        lock.acquire(book).release()
    finally:
        other.kill()
        other.wait(20)


FORKED = """
import os, signal, sys, time
from pathlib import Path
from xnatuploader.workbook import lock
held = lock.acquire(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_worker_that_outlives_its_killed_parent_is_no_dead_end(book: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", FORKED, str(book)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    child = int(other.stdout.readline())
    try:
        other.wait(20)
        lock.acquire(book).release()
    finally:
        os.kill(child, signal.SIGKILL)
        other.stdout.close()


@pytest.mark.parametrize("answer", [True, False, None])
def test_another_host_with_a_fresh_heartbeat_holds_it(
    book: Path, monkeypatch: pytest.MonkeyPatch, answer: bool | None
) -> None:
    left_behind(book, age=200)
    in_place_of_system_lock(monkeypatch, answer)
    with pytest.raises(errors.WorkbookInUse, match=r"anna on RADPC7 \(process 4711, since 2026-01-01 12:03"):
        lock.acquire(book)


@pytest.mark.parametrize("age", [301.0, 1e6, -4000.0])
@pytest.mark.parametrize("answer", [True, None])
def test_another_host_without_a_heartbeat_for_five_minutes_is_taken_over(
    book: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: bool | None,
    age: float,
) -> None:
    """A time in the future is a clock that was set back since."""
    left_behind(book, age=age)
    in_place_of_system_lock(monkeypatch, answer)
    lock.acquire(book).release()
    assert "taken over" in caplog.text


def test_an_abandoned_file_whose_system_lock_never_ends_is_set_aside(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(book, age=400)
    answers = iter([False, True])
    monkeypatch.setattr(lock, "lock_file", lambda descriptor: next(answers))
    lock.acquire(book).release()
    assert list(book.parent.iterdir()) == []


def test_a_run_whose_clock_jumped_is_seen_alive_by_its_next_heartbeat(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = left_behind(book, age=7200)
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 20.0)
    beating = threading.Timer(0.2, lambda: left_behind(book, age=7200, beat=holder.beat + 1))
    beating.start()
    with pytest.raises(errors.WorkbookInUse):
        lock.acquire(book)
    beating.join()


def test_ages_are_measured_by_the_clock_of_the_drive(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This computer's clock may be hours away from the other's."""
    left_behind(book, age=10)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    assert 0 <= lock._age(place(book)) < 60


def acquired(book: Path) -> None:
    """Check that the lock can be had, names its new holder, and is given back."""
    with lock.hold(book) as held:
        assert lock._parse(place(book).read_bytes()).token == held.holder.token
    assert not place(book).exists()


@pytest.mark.parametrize("answer", [False, None])
def test_a_dead_process_of_this_host_is_taken_over_at_once(
    book: Path, monkeypatch: pytest.MonkeyPatch, answer: bool | None
) -> None:
    left_behind(book, host=lock._host(), pid=dead_pid())
    answers = iter([answer, True, True])
    monkeypatch.setattr(lock, "lock_file", lambda descriptor: next(answers))
    acquired(book)


def test_a_live_process_of_this_host_holds_it_where_the_drive_knows_no_locks(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(book, host=lock._host(), pid=os.getpid())
    in_place_of_system_lock(monkeypatch, None)
    with pytest.raises(errors.WorkbookInUse, match="end that process"):
        lock.acquire(book)


def test_a_suspended_process_of_this_host_keeps_its_lock(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(book, age=5000, host=lock._host(), pid=os.getpid())
    answers = iter([False, True, True])
    monkeypatch.setattr(lock, "lock_file", lambda descriptor: next(answers))
    with pytest.raises(errors.WorkbookInUse):
        lock.acquire(book)


def test_a_system_lock_that_is_granted_here_outweighs_a_process_number_used_again(book: Path) -> None:
    left_behind(book, host=lock._host(), pid=os.getpid())
    acquired(book)


def test_a_file_that_was_deleted_between_opening_and_locking_is_not_taken_for_the_lock(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lock.lock_file
    deleted: list[Path] = []

    def delete_first(descriptor: int) -> bool | None:
        if not deleted:
            deleted.append(place(book))
            place(book).unlink()
        return real(descriptor)

    monkeypatch.setattr(lock, "lock_file", delete_first)
    with lock.hold(book) as held:
        assert lock._parse(place(book).read_bytes()).token == held.holder.token


@pytest.mark.parametrize("content", [b"", b"\x00" * 512, b"[1]", b'{"host": 3}', b"{" * 5000])
def test_a_lock_file_that_says_nothing_is_no_obstacle(book: Path, content: bytes) -> None:
    place(book).write_bytes(content)
    acquired(book)


def test_a_run_that_ended_but_could_not_delete_its_file_is_no_obstacle(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(book, released=True)
    in_place_of_system_lock(monkeypatch, None)
    acquired(book)


def test_releasing_says_so_in_the_file_where_it_cannot_be_deleted(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lock.acquire(book)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        held.release()
    assert lock._parse(place(book).read_bytes()).released
    acquired(book)


def test_the_heartbeat_rewrites_the_file(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with lock.hold(book) as held:
        assert eventually(lambda: lock._parse(place(book).read_bytes()).beat >= 3)
        assert lock._parse(place(book).read_bytes()).token == held.holder.token


def test_a_holder_that_slept_too_long_notices_that_it_was_taken_over(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    with lock.hold(book) as held:
        place(book).unlink()
        left_behind(book)
        assert held.lost.wait(20) or lock._parse(place(book).read_bytes()).token == held.holder.token
        if not held.lost.is_set():  # the heartbeat came between the two lines above
            left_behind(book)
            assert held.lost.wait(20)
    assert lock._parse(place(book).read_bytes()).token == "t"  # and does not delete the other's


def test_a_lock_file_that_somebody_tidied_away_is_made_again(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with lock.hold(book) as held:
        place(book).unlink()
        assert eventually(place(book).exists)
        assert eventually(lambda: lock._parse(place(book).read_bytes()).token == held.holder.token)
        with pytest.raises(errors.WorkbookInUse):
            lock.acquire(book)


def refuse_beside(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    real = os.open

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)


def test_where_the_folder_cannot_be_written_the_lock_stands_in_the_state_folder(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_beside(monkeypatch, book.parent)
    with lock.hold(book) as held:
        assert held.path == lock.elsewhere(book)
        with pytest.raises(errors.WorkbookInUse):
            lock.acquire(book)
        lock.acquire(book.with_name("other.xlsx")).release()


def test_where_nothing_can_be_written_the_message_says_so(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_beside(monkeypatch, book.parent)
    refuse_beside(monkeypatch, lock.elsewhere(book).parent)
    monkeypatch.setattr(paths, "state_folder", lambda: book.parent)
    monkeypatch.setattr(lock, "elsewhere", lambda workbook: book.parent / "x.lock")
    with pytest.raises(errors.WorkbookInUse, match="Ask for permission to write"):
        lock.acquire(book)


def test_another_users_lock_file_counts_though_it_cannot_be_written(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(book, age=1)
    refuse_beside(monkeypatch, book.parent)
    with pytest.raises(errors.WorkbookInUse, match="anna on RADPC7"):
        lock.acquire(book)


def test_another_users_abandoned_lock_file_is_replaced(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(book, host=lock._host(), pid=dead_pid())
    foreign = place(book).stat().st_ino
    real = os.open

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).exists() and Path(path).stat().st_ino == foreign:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)

    kept = place(book).with_name("keep-inode")
    os.link(place(book), kept)
    monkeypatch.setattr(os, "open", opened)
    held = lock.acquire(book)
    assert held.path == place(book)
    held.release()


# What differs on Windows, with stand-ins for its two libraries.


def on_windows(monkeypatch: pytest.MonkeyPatch, library: str, stand_in: SimpleNamespace) -> None:
    monkeypatch.setattr(paths, "is_windows", lambda: True)
    monkeypatch.setitem(sys.modules, library, stand_in)


def test_on_windows_a_byte_behind_the_content_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int, int]] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        calls.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))

    on_windows(monkeypatch, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    assert lock.lock_file(descriptor) is True
    os.close(descriptor)
    assert calls == [(2**30, 2, 1)]


@pytest.mark.parametrize(
    ("number", "answer"), [(errno.EACCES, False), (errno.EDEADLK, False), (0, False), (errno.EINVAL, None)]
)
def test_on_windows_a_refused_lock_and_a_drive_without_locks_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, answer: bool | None
) -> None:
    def locking(descriptor: int, mode: int, count: int) -> None:
        raise OSError(number, "")

    on_windows(monkeypatch, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    given = lock.lock_file(descriptor)
    os.close(descriptor)
    assert given is answer


@pytest.mark.parametrize(
    ("handle", "error", "waited", "alive"),
    [(7, 0, 0x102, True), (7, 0, 0, False), (0, 87, None, False), (0, 5, None, True)],
)
def test_on_windows_processes_are_asked_for_by_handle(
    monkeypatch: pytest.MonkeyPatch, handle: int, error: int, waited: int, alive: bool
) -> None:
    closed: list[int] = []
    kernel32 = SimpleNamespace(
        OpenProcess=lambda access, inherit, pid: handle,
        GetLastError=lambda: error,
        WaitForSingleObject=lambda handle, timeout: waited,
        CloseHandle=closed.append,
    )
    on_windows(monkeypatch, "ctypes", SimpleNamespace(windll=SimpleNamespace(kernel32=kernel32)))
    assert lock.process_is_alive(4711) is alive
    assert closed == ([handle] if handle else [])


def test_processes_here_are_known_dead_or_alive() -> None:
    assert lock.process_is_alive(os.getpid())
    assert not lock.process_is_alive(dead_pid())
    assert not lock.process_is_alive(0)


def test_the_content_always_has_one_length(tmp_path: Path) -> None:
    holder = lock.Holder("h", "Müller", 1, "s", "t")
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    lock._write(descriptor, holder)
    lock._write(descriptor, dataclasses.replace(holder, user="x", beat=10**6))
    os.close(descriptor)
    content = (tmp_path / "x").read_bytes()
    assert len(content) == 512
    assert lock._parse(content) == dataclasses.replace(holder, user="x", beat=10**6)
