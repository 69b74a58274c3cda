"""The prearchive: what waits there and why, building it, archiving it.

An entry's identity is project, StudyInstanceUID and session name (GradualDicomImporter), so that what is sent a
second time joins the entry of the first. Nothing here ever deletes an entry.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from xnatuploader.xnat import messages, routes
from xnatuploader.xnat.archive import Server, remote_file
from xnatuploader.xnat.http import Answer, Repeats, Request, cell

_RESTING = frozenset({"RECEIVING", "READY", "CONFLICT", "ERROR"})
"""In any other state (ARCHIVING, QUEUED_BUILDING, _MOVING, ...) XNAT is working on the entry (PrearcUtils)."""
_ANSWER_SECONDS = 900.0
"""To wait for an answer that comes only after a session was built or archived; XNAT itself gives up after 600."""
_AT_REST_SECONDS = 900.0
"""To wait for an entry that XNAT is working on."""
_BUSY_PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0, *[30.0] * 12)
"""Seconds between the attempts while XNAT says that somebody else is busy with the session: seven minutes."""
_T = TypeVar("_T")
_DONE = (200, 201, 202, 301, 303)
"""A commit answers 301 and archiving in an auto-archiving project 303; both mean that it worked."""


@dataclass(frozen=True, slots=True)
class PrearchiveEntry:
    """One session in the prearchive."""

    project: str
    timestamp: str
    folder: str
    name: str = ""
    """The label it will have."""
    subject: str = ""
    tag: str = ""
    """StudyInstanceUID."""
    status: str = ""
    changed: str = ""
    """When XNAT last added something to it, as XNAT writes it (`lastmod`)."""

    @property
    def url(self) -> str:
        """The address as XNAT's services take it."""
        return routes.prearchived(self.project, self.timestamp, self.folder)

    @property
    def path(self) -> str:
        """The address as a request's path."""
        return self.at(routes.PREARCHIVE_ENTRY)

    def at(self, template: str, *more: str) -> str:
        """Return the path of a template that begins with the entry."""
        return routes.at(template, self.project, self.timestamp, self.folder, *more)


class NotArchived(Exception):
    """XNAT did not archive an entry: `status` is its state now, the text XNAT's reason.

    `busy`: only because somebody else is working on its session.
    """

    def __init__(self, reason: str, status: str = "", *, busy: bool = False) -> None:
        self.status = status
        self.busy = busy
        super().__init__(reason)


def rests(status: str) -> bool:
    """Tell whether XNAT does nothing with an entry in this state."""
    return status.lstrip("_") in _RESTING


def while_busy(send: Callable[[], _T], stop: threading.Event) -> _T:
    """Send something again and again as long as XNAT says that somebody else is busy with the session.

    Raises what `send` raises otherwise, and the refusal itself after some minutes or when the run is to stop.
    """
    for pause in _BUSY_PAUSES:
        try:
            return send()
        except messages.RequestFailed as failure:
            if failure.kind != "busy" or stop.wait(pause):
                raise
    return send()


def entry_of(uri: str) -> PrearchiveEntry | None:
    """Read an answered URI; None if it names nothing in the prearchive."""
    parts = routes.prearchive_parts(uri)
    return PrearchiveEntry(*parts) if parts else None


class Prearchive:
    """The prearchive as one run sees it; every method may be called from several threads."""

    def __init__(self, server: Server, project: str, stop: threading.Event) -> None:
        self._server = server
        self.project = project
        self._stop = stop
        self._guard = threading.Lock()
        self._left: list[PrearchiveEntry] | None = None

    def left(self, studies: Collection[str], name: str) -> list[PrearchiveEntry]:
        """Return what earlier runs left of a session, oldest first; asked for once per run.

        With `name` '' entries of any name.
        """
        with self._guard:
            if self._left is None:
                self._left = self.entries()
            return _of(self._left, studies, name)

    def now(self, studies: Collection[str], name: str) -> list[PrearchiveEntry]:
        """As `left`, but asked again; with `name` '' in every project, because headers may name another one."""
        return _of(self.entries(everywhere=not name), studies, name)

    def entries(self, *, everywhere: bool = False) -> list[PrearchiveEntry]:
        """List the project's entries, or all that the account may see, oldest first. Raises `RequestFailed`."""
        rows = self._server.rows(
            routes.PREARCHIVE if everywhere else routes.at(routes.PREARCHIVE_PROJECT, self.project)
        )
        return sorted(_read(rows), key=lambda entry: entry.timestamp)

    def look(self, entry: PrearchiveEntry) -> PrearchiveEntry | None:
        """Return an entry as it is now, None if it is gone (archived, most often)."""
        # One that is gone is an empty table (PrearcSessionResource.represent). XNAT 1.7.0 to 1.7.2 answer 404 to the
        # address of any entry; their list has it.
        found = self._rows_or_none(entry.path)
        if found is None:
            found = self._rows_or_none(routes.at(routes.PREARCHIVE_PROJECT, entry.project))
        return next((one for one in found or () if one.url == entry.url), None)

    def _rows_or_none(self, path: str) -> list[PrearchiveEntry] | None:
        """Return the entries listed at an address, None if there is no such address."""
        try:
            return _read(self._server.rows(path))
        except messages.RequestFailed as failure:
            if failure.status == 404:
                return None
            raise

    def at_rest(self, entry: PrearchiveEntry) -> PrearchiveEntry | None:
        """Wait until XNAT does nothing with an entry; return it then, None if it is gone.

        A stop of the run ends the waiting: the entry is then returned as it is.
        """
        until = time.monotonic() + _AT_REST_SECONDS
        pause = 0.2
        while True:
            now = self.look(entry)
            if now is None or rests(now.status) or time.monotonic() > until or self._stop.wait(pause):
                return now
            pause = min(pause * 1.5, 5.0)

    def build(self, entry: PrearchiveEntry) -> None:
        """Have XNAT make the session's document, as an archive needs it. Raises `RequestFailed`.

        An entry on which XNAT is working already is waited for.
        """

        def order() -> None:
            self._order(entry.path, {"action": "build"})

        try:
            order()
        except messages.RequestFailed:
            now = self.at_rest(entry)
            if now is not None and now.status != "READY":
                while_busy(order, self._stop)

    def archive(
        self, entry: PrearchiveEntry, names: Mapping[str, str], *, overwrite: bool, pipelines: bool
    ) -> str:
        """Archive an entry; return the URI XNAT gives it, '' if the answer was lost and it is done even so.

        `names` (`project`, `subject`, `session`) stand over those of the entry (PrearcSessionArchiver.fixSubject,
        .fixSessionLabel); `dest` would count for nothing. `overwrite` replaces files that are there. Without it files
        are only added: XNAT takes any word in `overwrite` here for leave to override, `append` too
        (Archiver.initialize). While somebody else is busy with the session it is tried again. Raises `NotArchived`.
        """
        query = {"src": entry.url, **names}
        if overwrite:
            query |= {"overwrite": "delete", "overwrite_files": "true"}
        if not pipelines:
            query["triggerPipelines"] = "false"

        for pause in (*_BUSY_PAUSES, 0.0):
            try:
                answer = self._order(routes.ARCHIVE, query)
                return answer.headers.get("Location", "") or answer.text.strip()
            except messages.RequestFailed as failure:
                now: PrearchiveEntry | None = entry
                with contextlib.suppress(messages.RequestFailed):
                    now = self.at_rest(entry)
                if now is None:
                    return ""
                reason = self.reason(now)
                # A job that failed is a 500, and where the answer was lost only the log tells why.
                busy = "busy" in (failure.kind, messages.failure(500, reason).kind)
                if not (busy and pause) or self._stop.wait(pause):
                    raise self.not_archived(now, reason or failure.message, busy=busy) from failure
        raise AssertionError("unreachable")

    def not_archived(self, entry: PrearchiveEntry, reason: str, *, busy: bool = False) -> NotArchived:
        """Return the error for an entry that was not archived: its state, XNAT's reason, where it waits."""
        if busy:
            waits = (
                "XNAT is still working on this session, so that it was not archived. It waits in the prearchive "
                f"({self.address(entry)}). Run upload again in some minutes."
            )
            return NotArchived(waits, entry.status, busy=True)
        return NotArchived(
            f"XNAT did not archive the session. It waits in the prearchive as {entry.status or 'not archived'}: "
            f"{reason.rstrip('.') or 'no reason given'}. Look at it there ({self.address(entry)}); with "
            "--import-overwrite append or delete, a later run archives it.",
            entry.status,
        )

    def address(self, entry: PrearchiveEntry) -> str:
        """Return the full address of an entry, for people."""
        return f"{self._server.url}{entry.path}"

    def _order(self, path: str, query: Mapping[str, str]) -> Answer:
        """Send an order that XNAT goes on with even if its answer is lost."""
        return self._server.request(
            Request("POST", path, query, accept=_DONE, timeout=_ANSWER_SECONDS, repeats=Repeats(once=True))
        )

    def reason(self, entry: PrearchiveEntry) -> str:
        """Return the last line of an entry's log, '' if there is none."""
        try:
            text = self._server.request(Request("GET", entry.at(routes.PREARCHIVE_LOG), html=True)).text
        except messages.RequestFailed:
            return ""
        return re.sub(r"^[\d\-:. T,]+:?\s*", "", messages.headline(text)).rstrip(".")

    def files(self, entry: PrearchiveEntry) -> dict[tuple[str, str], int]:
        """Return what an entry holds: (scan ID, file name) -> size in bytes. Raises `RequestFailed`."""
        held: dict[tuple[str, str], int] = {}
        for scan in self._column(entry.at(routes.PREARCHIVE_SCANS), "ID"):
            # XNAT finds a resource of the prearchive by its label only (PrearcSessionResourceFiles); its receiver,
            # through which ours come, always gives one.
            for label in self._column(entry.at(routes.PREARCHIVE_RESOURCES, scan), "label"):
                files = self._server.rows(entry.at(routes.PREARCHIVE_FILES, scan, label))
                held.update(((scan, file.name), file.size) for file in map(remote_file, files))
        return held

    def _column(self, path: str, name: str) -> list[str]:
        return [text for row in self._server.rows(path) if (text := cell(row, name))]


def _of(entries: Collection[PrearchiveEntry], studies: Collection[str], name: str) -> list[PrearchiveEntry]:
    return [entry for entry in entries if entry.tag in studies and (not name or entry.name == name)]


def _read(rows: Collection[Mapping[str, object]]) -> list[PrearchiveEntry]:
    found = []
    for row in rows:
        entry = entry_of(cell(row, "url"))
        if entry is not None:
            columns = ("name", "subject", "tag", "status", "lastmod")
            texts = (cell(row, column) for column in columns)
            found.append(PrearchiveEntry(entry.project, entry.timestamp, entry.folder, *texts))
    return found
