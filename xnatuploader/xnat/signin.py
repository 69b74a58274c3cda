"""The login of one run: credentials found or asked for, a typed login saved, its end told in time."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone

from xnatuploader import xnat
from xnatuploader.console import progress
from xnatuploader.xnat import credentials

logger = logging.getLogger(__name__)

SECONDS_UNTIL_IT_IS_WAITING = 20.0
"""A login that takes longer, with `--wait`, is said to wait for the server."""

SOON = timedelta(hours=1)
"""How long before its end a login is called short."""


def connect(
    address: str,
    environ: Mapping[str, str],
    *,
    interactive: bool,
    jobs: int = 4,
    wait: float = 0.0,
    stop: threading.Event | None = None,
    warn: Callable[[str], object] = logger.warning,
) -> xnat.Server:
    """Log in, and save the token that the server gives for a login that a person typed.

    Says until when the login works; `warn` takes what is wrong with the netrc file. Raises `LoginRefused`,
    `ServerUnreachable` or `UsageError`.
    """
    looked = credentials.search(address, environ)
    for warning in looked.warnings:
        warn(warning)

    def save_token(alias: str, secret: str, expires: datetime | None) -> None:
        try:
            place = credentials.save(address, alias, secret, expires, environ=environ)
        except OSError as trouble:
            reason = trouble.strerror or str(trouble)
            logger.warning("The login could not be saved (%s): the next run asks again.", reason)
            return
        _say(f"The login was saved in {place}: until it ends, no run asks for a password.")

    with _saying_that_it_waits(wait if looked.credentials else 0.0):
        connection = xnat.Server.connect(
            address,
            looked.credentials,
            environ=environ,
            interactive=interactive,
            jobs=jobs,
            wait=wait,
            on_token=save_token,
            stop=stop,
        )
    logger.info("Logged in to %s as %s (%s).", connection.url, connection.user, connection.source)
    until = credentials.expiry_sentence(connection.login_until)
    if until:
        _say(until)
    return connection


@contextlib.contextmanager
def _saying_that_it_waits(seconds: float) -> Iterator[None]:
    """Say once that the server is waited for, if the block lasts; 0 seconds to wait: say nothing."""
    if not seconds:
        yield
        return
    ends = datetime.now() + timedelta(seconds=seconds)
    sentence = f"The server does not answer yet. It is tried again and again until {ends:%A %H:%M}."
    timer = threading.Timer(SECONDS_UNTIL_IT_IS_WAITING, _say, [sentence])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(sentence: str) -> None:
    """Say something that is no warning on the screen and in the log."""
    progress.writer()(sentence)
    logger.info("%s", sentence)


class Forecast:
    """Tells when a login will end before the work does: once when that is seen, once more an hour before."""

    def __init__(self, until: datetime | None) -> None:
        self.until = until
        self._said_long_before = self._said_soon = False

    def warning(self, seconds_left: float | None, now: datetime | None = None) -> str:
        """Return the sentence to say now, '' for none. `seconds_left`: of the work, None if not known yet."""
        present = datetime.now(timezone.utc) if now is None else now
        if self.until is None or self._said_soon:
            return ""
        soon = self.until - present <= SOON
        lasts = not soon
        if seconds_left is not None:
            lasts = present + timedelta(seconds=seconds_left) < self.until
        if lasts or (self._said_long_before and not soon):
            return ""
        self._said_soon, self._said_long_before = soon, True
        return self._sentence(seconds_left)

    def _sentence(self, seconds_left: float | None) -> str:
        assert self.until is not None  # seen in `warning`
        left = "" if seconds_left is None else f", and about {_hours(seconds_left)} of work are left"
        return (
            f"The login ends on {self.until.astimezone():%A at %H:%M}{left}. What is not sent by then goes with a "
            "later run: log in anew then, by `xnatuploader check` in a terminal."
        )


def _hours(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"
