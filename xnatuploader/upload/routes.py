"""How planned sessions get to XNAT: `direct` scan by scan into the archive, `imports` by the import service.

A route says what one worker does at a time; `run` and `workers` decide when it is done, and report on it.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from xnatuploader import errors
from xnatuploader.records import ScanPlan, SessionPlan


@dataclass(frozen=True, slots=True)
class Work:
    """What one worker sends before it takes the next."""

    session: SessionPlan
    scans: tuple[ScanPlan, ...]
    """The scans of the session that go with it."""
    send: Callable[[], None]
    """Sends them, and records every one of their rows. Raises what ends the run."""

    @property
    def files(self) -> int:
        """Number of files in it."""
        return sum(len(scan.rows) for scan in self.scans)


class Route(abc.ABC):
    """How planned sessions get to the server."""

    noun: str
    """What the first bar counts."""
    steps_after: bool
    """Whether XNAT has to be asked to read a session once it is whole: after an import it does so by itself."""

    def __init__(self) -> None:
        self._over: errors.XnatUploaderError | None = None

    @abc.abstractmethod
    def work(self, planned: Sequence[SessionPlan]) -> Iterator[Work]:
        """Yield the work in the order in which it is to be begun."""

    @abc.abstractmethod
    def session_id(self, session_label: str) -> str:
        """Return the server's ID of a session, '' where it is not in the archive."""

    @contextlib.contextmanager
    def ending(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Call `interrupt` at the end; what ended the run is raised again at every later call."""
        try:
            if self._over is not None:
                raise self._over
            yield
        except errors.XnatUploaderError as error:
            self._over = error
            raise
        finally:
            interrupt()
