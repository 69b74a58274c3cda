"""Conditions of a run under test; each function is called in its process before the program begins."""

from __future__ import annotations

import errno
import functools
import resource
import threading
import time
from pathlib import Path

from tests.helpers.waiting import QuickClock
from xnatuploader.upload import run, workers
from xnatuploader.upload.resource import SendOptions
from xnatuploader.workbook import package
from xnatuploader.xnat import http


def part_files(count: int) -> None:
    """Send archives of so many files each, so that a small tree goes out in many parts."""
    run.SendOptions = functools.partial(SendOptions, part_files=count)  # type: ignore


def quick_pauses(seconds: float) -> None:
    """Wait no longer than this between attempts."""
    http.Clock = functools.partial(QuickClock, seconds)  # type: ignore


def fast_clock(rate: float) -> None:
    """Let the time for which the server may be away pass so many times faster."""

    class Fast(QuickClock):
        def now(self) -> float:
            return time.monotonic() * rate

        def wait(self, event: threading.Event, seconds: float) -> bool:
            return event.wait(seconds / rate)

    http.Clock = Fast  # type: ignore


def short_timeouts(seconds: float) -> None:
    """Wait no longer than this for any answer."""
    kinds = dict.fromkeys(("connect", "small", "send", "finish", "login"), seconds)
    http.Timeouts = functools.partial(http.Timeouts, **kinds)  # type: ignore


def save_every(seconds: float) -> None:
    """Save the workbook this often."""
    workers.SECONDS_BETWEEN_SAVES = seconds


def workbook_held(times: int) -> None:
    """Refuse to replace the workbook so many times, as Windows does while Excel has it open."""
    real, left = package.replace, [times]

    def replace(source: Path, target: Path) -> None:
        if target.suffix == ".xlsx" and left[0] > 0:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        real(source, target)

    package.replace = replace


def largest_file(size: int) -> None:
    """Let no file grow beyond so many bytes: what a full disk does to journal and workbook."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def clock_jumps(seconds: float) -> None:
    """Let the wall clock jump back and forth by so much, every second time it is read."""
    real, readings = time.time, [0]

    def jumping() -> float:
        readings[0] += 1
        return real() + (seconds if readings[0] % 4 in (1, 2) else -seconds)

    time.time = jumping
