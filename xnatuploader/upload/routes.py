"""The two ways sessions travel: scan by scan into the archive, or session by session through the import service.

A route says what one worker does at a time; when, in which order and what is told of it is `sending`'s trade.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from xnatuploader.records import ScanPlan, SessionPlan
from xnatuploader.upload import direct, imports


@dataclass(frozen=True, slots=True)
class Work:
    """What one worker sends before it takes the next."""

    session: SessionPlan
    scans: tuple[ScanPlan, ...]
    """The scans of the session that go with it."""
    send: Callable[[], None]
    """Sends them, and settles every one of their rows. Raises what ends the run."""

    @property
    def files(self) -> int:
        """Number of files in it."""
        return sum(len(resource.rows) for scan in self.scans for resource in scan.resources)


class Route(Protocol):
    """How planned sessions get to the server."""

    noun: str
    """What the first bar counts."""
    steps_after: bool
    """Whether XNAT has to be told to look at a session once it is whole: an import does so by itself."""

    def work(self, planned: Sequence[SessionPlan]) -> Iterator[Work]:
        """Yield the work in the order in which it is to be begun."""

    def session_id(self, session_label: str) -> str:
        """Return the server's ID of a session, '' where it is not in the archive."""


class Direct:
    """Scan by scan, with the records made by us."""

    noun = "scans"
    steps_after = True

    def __init__(self, sender: direct.Transfer) -> None:
        self._sender = sender
        self.session_id = sender.session_id

    def work(self, planned: Sequence[SessionPlan]) -> Iterator[Work]:
        """As in `Route`."""
        for session in planned:
            for scan in session.scans:
                yield Work(session, (scan,), functools.partial(self._sender.send_scan, session, scan))


class Imports:
    """Session by session, with the records made by XNAT."""

    noun = "sessions"
    steps_after = False

    def __init__(self, sender: imports.Importer) -> None:
        self._sender = sender
        self.session_id = sender.session_id

    def work(self, planned: Sequence[SessionPlan]) -> Iterator[Work]:
        """As in `Route`."""
        for session in planned:
            yield Work(session, session.scans, functools.partial(self._sender.send_session, session))
