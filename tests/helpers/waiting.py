"""Time: waiting for what another thread or process does, a clock that stands still, a clock with short pauses."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from types import ModuleType
from typing import Any
from unittest import mock

from xnatuploader.xnat import http


def eventually(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Call `check` until it returns something true, or `seconds` are over; return what it last returned."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found or time.monotonic() > end:
            return found
        time.sleep(0.02)


@contextlib.contextmanager
def time_is(moment: datetime, module: ModuleType) -> Iterator[None]:
    """Let it be `moment` for a module that asks its `datetime`, while the block runs."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return moment.astimezone(tz)

    with mock.patch.object(module, "datetime", Stopped):
        yield


class QuickClock(http.Clock):
    """The real clock, but a pause between attempts is never longer than `longest` seconds."""

    def __init__(self, longest: float = 0.02) -> None:
        self.longest = longest

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(min(seconds, self.longest))
