"""One run per workbook: a lock file beside it, with who holds it and a sign of life.

Two things together decide. The operating system's lock on the file ends with the process that holds it, so a
crash on this computer leaves nothing behind. On network drives such locks do not always reach the other
computers, so the file also names host, user and process, and is rewritten every 30 seconds: a file of
another host that was not rewritten for 5 minutes is taken over.

Ages are measured by the clock of the drive that the file is on, never by comparing two computers' clocks,
and before another host's lock is taken over it is watched for a heartbeat; so a clock that jumps takes
nothing away from a run that is alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import getpass
import hashlib
import importlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xnatuploader import errors, paths

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
"""A lock of another host without a sign of life for this long is taken over."""

_WATCH_SECONDS = 1.2 * HEARTBEAT_SECONDS
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.1
_CONTENT_BYTES = 512
_O_BINARY = getattr(os, "O_BINARY", 0)
_DENIED = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK, 0)  # Wine gives no number
_SYNCHRONIZE = 0x00100000
_ERROR_ACCESS_DENIED = 5
_LOCKED_BYTE = 2**30
"""Windows locks keep others from reading what is locked: this one lies behind the content."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lock file says of the run that holds it; empty text for what it does not say."""

    host: str = ""
    user: str = ""
    pid: int = 0
    since: str = ""
    """When the run began, local time, `YYYY-MM-DD HH:MM:SS`."""
    token: str = ""
    """Different for every run."""
    beat: int = 0
    """Number of heartbeats so far."""
    released: bool = False
    """The run has ended, though the file could not be deleted."""


class Hold:
    """A lock that is held. `lost` is set when another run took it over, as after a long sleep of this one."""

    def __init__(self, path: Path, descriptor: int, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        self.lost = threading.Event()
        self._descriptor = descriptor
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back and delete the file. A second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        ours = not self.lost.is_set() and _read_holder(self.path) == self.holder
        with contextlib.suppress(OSError):
            if ours:  # the file says so too, in case it cannot be deleted
                _write(self._descriptor, dataclasses.replace(self.holder, released=True))
        if paths.is_windows():  # an open file cannot be deleted there
            _close(self._descriptor)
        with contextlib.suppress(OSError):
            if ours:
                self.path.unlink()
        if not paths.is_windows():  # and elsewhere it must be gone before anybody else can lock it
            _close(self._descriptor)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS) and not self.lost.is_set():
            try:
                self._renew()
            except OSError as error:  # a network drive that is away for a moment
                logger.debug("The lock %s could not be renewed: %s", self.path, error)

    def _renew(self) -> None:
        """Write the next heartbeat, unless the file names another run by now."""
        try:
            found = _parse(self.path.read_bytes())
        except FileNotFoundError:  # somebody tidied up
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
            lock_file(descriptor)
            _close(self._descriptor)
            self._descriptor, found = descriptor, self.holder
        if found.token != self.holder.token:
            self.lost.set()
            logger.error("The lock %s was taken over by %s.", self.path, _who(found))
            return
        self.holder = dataclasses.replace(self.holder, beat=self.holder.beat + 1)
        _write(self._descriptor, self.holder)


@contextlib.contextmanager
def hold(workbook: Path) -> Iterator[Hold]:
    """Hold the lock of `workbook` while the block runs.

    Raises `errors.WorkbookInUse` when another run holds it.
    """
    held = acquire(workbook)
    try:
        yield held
    finally:
        held.release()


def acquire(workbook: Path) -> Hold:
    """Take the lock of `workbook`, for `Hold.release` to give back.

    Raises `errors.WorkbookInUse` when another run holds it, or when no folder can be written for a lock.
    """
    full = Path(os.path.realpath(workbook))
    try:
        return _acquire_at(full.with_name(full.name + ".lock"), full.name)
    except OSError as error:
        logger.debug("No lock file can be written beside the spreadsheet: %s", error)
    other = elsewhere(full)
    try:
        other.parent.mkdir(parents=True, exist_ok=True)
        return _acquire_at(other, full.name)
    except OSError as error:
        raise errors.WorkbookInUse(
            f"{full.name} cannot be locked: the program can write neither to its folder nor to {other.parent} "
            f"({error.strerror or error}). Ask for permission to write to one of them."
        ) from error


def elsewhere(workbook: Path) -> Path:
    """Return the path of the lock for a workbook whose folder cannot be written."""
    full = os.path.normcase(os.path.realpath(workbook))
    key = hashlib.sha256(full.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return paths.state_folder() / "locks" / f"{key}.lock"


def lock_file(descriptor: int) -> bool | None:
    """Ask the operating system for the lock on an open file, without waiting.

    True: it is ours until the file is closed or the process ends. False: another process has it. None: this
    drive knows no locks.
    """
    try:
        if paths.is_windows():
            msvcrt = importlib.import_module("msvcrt")
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl = importlib.import_module("fcntl")
            # Not lockf: that one is lost when any other descriptor of the file is closed in this process.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _DENIED else None
    return True


def process_is_alive(pid: int) -> bool:
    """Tell whether a process of this computer is running."""
    if pid <= 0:
        return False
    if paths.is_windows():
        # Not os.kill(pid, 0): on Windows that sends Ctrl-C.
        kernel32 = importlib.import_module("ctypes").windll.kernel32
        handle = kernel32.OpenProcess(_SYNCHRONIZE, False, pid)
        if not handle:
            return bool(kernel32.GetLastError() == _ERROR_ACCESS_DENIED)  # there, but somebody else's
        ended = kernel32.WaitForSingleObject(handle, 0) == 0
        kernel32.CloseHandle(handle)
        return not ended
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # all others: there, but somebody else's
    return True


def _acquire_at(path: Path, name: str) -> Hold:
    """Take the lock file `path`. Raises OSError where it cannot be written at all, else `WorkbookInUse`."""
    found = Holder()
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)  # another run is starting or ending just now
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _O_BINARY, 0o666)
        except PermissionError:
            # Windows: the file is being deleted. Elsewhere: it is another user's.
            if path.exists() and attempt < _ATTEMPTS - 1:
                found = _read_holder(path) or Holder()
                if found.token and not found.released and _is_alive(path, found):
                    break
                if found.token:
                    path.unlink()
                continue
            raise
        taken = _take(path, descriptor, name)
        if isinstance(taken, Hold):
            return taken
        _close(descriptor)
        found = taken
    raise errors.WorkbookInUse(_message(name, found))


def _take(path: Path, descriptor: int, name: str) -> Hold | Holder:
    """Take an open lock file if nobody holds it; return who is in the way if that may pass in a moment.

    Raises `errors.WorkbookInUse` when another run is alive.
    """
    try:
        granted = lock_file(descriptor)
        found = _parse(_read(descriptor))
        if not _is_current(path, descriptor):
            return found  # it was released and deleted between opening and locking
        gone_here = granted is True and found.host == _host()
        if found.token and not found.released and not gone_here:
            if _is_alive(path, found) or (
                granted is False and found.host == _host() and process_is_alive(found.pid)
            ):
                raise errors.WorkbookInUse(_message(name, found))
            logger.warning("The lock that %s left on %s is taken over.", _who(found), name)
        if granted is False:
            if found.token and not found.released:
                # Its system lock never ended, as on a computer that hangs.
                aside = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
                path.rename(aside)
                with contextlib.suppress(OSError):
                    aside.unlink()
            return found
        holder = Holder(_host(), _user(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"), uuid.uuid4().hex)
        _write(descriptor, holder)
        if granted is None:  # without the system's help the last one to write has won
            time.sleep(_PAUSE_SECONDS)
            if (winner := _parse(_read(descriptor))).token != holder.token:
                return winner
    except BaseException:
        _close(descriptor)
        raise
    return Hold(path, descriptor, holder)


def _is_alive(path: Path, found: Holder) -> bool:
    """Tell whether the run that a lock names still gives signs of life."""
    if found.host == _host() and not process_is_alive(found.pid):
        return False
    # A negative age is a clock that was set back: no run that is alive leaves one of that size for long.
    if abs(_age(path)) < STALE_SECONDS:
        return True
    logger.warning("The lock of %s looks abandoned. Watching it for %d seconds.", _who(found), _WATCH_SECONDS)
    end = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, _WATCH_SECONDS / 10))
        now = _read_holder(path)
        if now is None or now.released:
            return False
        if now != found:
            return True
    return False


def _age(path: Path) -> float:
    """Return the seconds since the file was written, both times by the clock of the drive it is on."""
    try:
        written = path.stat().st_mtime
    except OSError:
        return 0.0
    probe = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        probe.write_bytes(b"?")
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:  # the file can be read and its folder not be written
        now = time.time()
    return now - written


def _is_current(path: Path, descriptor: int) -> bool:
    """Tell whether the open file is still the one at `path`."""
    if paths.is_windows():
        return True  # what is open there cannot be deleted or replaced
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _read_holder(path: Path) -> Holder | None:
    """Return what the file at `path` says, None if it is not there or cannot be read."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _read(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 64 * 1024)


def _write(descriptor: int, holder: Holder) -> None:
    """Replace the content in one write of always the same length, so that nobody reads a half of it."""
    os.ftruncate(descriptor, _CONTENT_BYTES)  # what another program left there may be longer
    content = json.dumps(dataclasses.asdict(holder)).encode("ascii").ljust(_CONTENT_BYTES - 1) + b"\n"
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, content)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)  # for other computers to see it


def _parse(content: bytes) -> Holder:
    """Return what a lock file says; what cannot be understood names nobody."""
    try:
        facts = json.loads(content)
        return Holder(
            **{name: type(empty)(facts[name]) for name, empty in dataclasses.asdict(Holder()).items()}
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder()


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a second time, or a network drive that is away
        os.close(descriptor)


def _host() -> str:
    return socket.gethostname()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in some containers
        return "an unknown user"


def _who(found: Holder) -> str:
    if not found.token:
        return "another run"
    where = "on this computer" if found.host == _host() else f"on {found.host}"
    return f"{found.user} {where} (process {found.pid}, since {found.since})"


def _message(name: str, found: Holder) -> str:
    if found.token and found.host != _host():
        free = "If that computer was switched off, the spreadsheet is free 5 minutes later."
    else:
        free = "If it hangs, end that process."
    return f"{name} is in use by {_who(found)}. Wait until that run has ended, or stop it there. {free}"
