"""Time: waiting for what another thread or process does, and a clock that stands still."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from types import ModuleType
from typing import Any
from unittest import mock


def eventually(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for something that another thread or process does; return what `check` last returned."""
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
