"""When to try again: pauses, `Retry-After`, and a clock that tests can replace."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

_T = TypeVar("_T")

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the five attempts of a request."""

_LOGIN_ATTEMPTS = 3
_LOGIN_SECONDS = 20.0


class Unclear(Exception):
    """The server did not say whether the login is accepted. `passing`: another try may help.

    `not_xnat`: something answered, but no XNAT.
    """

    def __init__(
        self, message: str, *, passing: bool, retry_after: float | None = None, not_xnat: bool = False
    ) -> None:
        self.passing = passing
        self.not_xnat = not_xnat
        self.retry_after = retry_after
        super().__init__(message)


class Clock:
    """Time, so that tests need not wait."""

    def now(self) -> float:
        """Return seconds that only ever grow."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Sleep, but not longer than until `event` is set; return whether it is."""
        return event.wait(seconds)


def with_patience(ask: Callable[[], _T], clock: Clock, stop: threading.Event, wait: float = 0) -> _T:
    """Ask for the login up to three times within 20 s, or as long as `wait` seconds while nothing answers."""
    begin = clock.now()
    pause = PAUSES[0]
    attempt = 0
    while True:
        attempt += 1
        try:
            return ask()
        except Unclear as error:
            spent = clock.now() - begin
            pause = max(pause, error.retry_after or 0.0)
            enough = spent + pause >= (wait or _LOGIN_SECONDS) or (attempt >= _LOGIN_ATTEMPTS and not wait)
            if not error.passing or enough or clock.wait(stop, pause):
                raise
            pause = min(max(pause, PAUSES[0]) * 2, 30.0)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that `Retry-After` asks for (a number or a date), at most 60, None without it."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return min(float(value), 60.0)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    present = datetime.now(timezone.utc) if now is None else now
    return min(max((at - present).total_seconds(), 0.0), 60.0)
