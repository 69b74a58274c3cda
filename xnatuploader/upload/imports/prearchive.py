"""The prearchive: what waits there, why it does, building it, archiving it.

An entry's identity is project, StudyInstanceUID and session name (GradualDicomImporter), so that what is sent a
second time joins the entry of the first. Nothing here ever deletes an entry.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from xnatuploader import xnat
from xnatuploader.xnat import messages, tables
from xnatuploader.xnat.http import Repeats

RESTING = frozenset({"RECEIVING", "READY", "CONFLICT", "ERROR"})
"""Anything else (ARCHIVING, QUEUED_BUILDING, _MOVING, ...) is under way."""
UNASSIGNED = "Unassigned"
ANSWER_SECONDS = 900.0
"""To wait for an answer that comes only after a session was built or archived; XNAT itself gives up after 600."""
_PATIENCE = 900.0
"""Seconds to wait for an entry that is under way."""
_URL = re.compile(r"/prearchive/projects/([^/]+)/([^/]+)/([^/?#]+)")
_ARCHIVED = re.compile(r"/projects/([^/]+)/subjects/([^/]+)/experiments/([^/?#]+)")
_ONCE = Repeats(once=True)
_DONE = (200, 201, 202, 301, 303)
"""A commit answers 301 and archiving in an auto-archiving project 303; both mean that it worked."""


@dataclass(frozen=True, slots=True)
class Entry:
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
    """When something last came into it, as XNAT writes it (`lastmod`)."""

    @property
    def url(self) -> str:
        """The address as XNAT's services take it."""
        return f"/prearchive/projects/{self.project}/{self.timestamp}/{self.folder}"

    @property
    def path(self) -> str:
        """The address as a request's path."""
        parts = (self.project, self.timestamp, self.folder)
        return f"/data/prearchive/projects/{'/'.join(quote(part, safe='') for part in parts)}"


class NotArchived(Exception):
    """XNAT did not archive an entry: `status` is where it stands now, the text XNAT's reason."""

    def __init__(self, reason: str, status: str = "") -> None:
        self.status = status
        super().__init__(reason)


def entry_of(uri: str) -> Entry | None:
    """Read an answered URI; None if it names nothing in the prearchive."""
    found = _URL.search(uri)
    return Entry(found[1], found[2], found[3]) if found else None


def archived_as(uri: str) -> tuple[str, str, str] | None:
    """Read (project, subject, session) from an answered URI of the archive, None if it is none."""
    found = _ARCHIVED.search(urlsplit(uri).path)
    return (found[1], found[2], found[3]) if found else None


class Prearchive:
    """The prearchive as one run sees it; every method may be called from several threads."""

    def __init__(self, connection: xnat.Server, project: str, stop: threading.Event) -> None:
        self._server = connection
        self.project = project
        self._stop = stop
        self._guard = threading.Lock()
        self._left: list[Entry] | None = None

    def left(self, studies: Collection[str], name: str) -> list[Entry]:
        """Return what earlier runs left of a session, oldest first; asked for once per run.

        With `name` '' entries of any name.
        """
        with self._guard:
            if self._left is None:
                self._left = self.entries()
            return _of(self._left, studies, name)

    def entries(self, *, everywhere: bool = False) -> list[Entry]:
        """List the project's entries, or all that the account may see, oldest first. Raises `RequestFailed`."""
        path = (
            "/data/prearchive" if everywhere else f"/data/prearchive/projects/{quote(self.project, safe='')}"
        )
        rows = tables.rows(self._server.request("GET", path, {"format": "json"}, as_json=True))
        found = [entry for entry in map(_entry, rows) if entry is not None]
        return sorted(found, key=lambda entry: entry.timestamp)

    def now(self, studies: Collection[str], name: str) -> list[Entry]:
        """As `left`, asked anew; with `name` '' in every project, because headers may name another one."""
        return _of(self.entries(everywhere=not name), studies, name)

    def look(self, entry: Entry) -> Entry | None:
        """Return an entry as it stands now, None if it is gone (archived, most often)."""
        try:
            answer = self._server.request("GET", entry.path, {"format": "json"}, as_json=True)
        except xnat.RequestFailed as failure:
            if failure.status == 404:
                return None
            raise
        found = [one for one in map(_entry, tables.rows(answer)) if one is not None]
        return next((one for one in found if one.url == entry.url), found[0] if found else None)

    def at_rest(self, entry: Entry) -> Entry | None:
        """Wait until XNAT does nothing with an entry; return it then, None if it is gone.

        A stop of the run ends the waiting: the entry is then returned as it is.
        """
        until = time.monotonic() + _PATIENCE
        pause = 0.2
        while True:
            now = self.look(entry)
            if now is None or now.status.lstrip("_") in RESTING or time.monotonic() > until:
                return now
            if self._stop.wait(pause):
                return now
            pause = min(pause * 1.5, 5.0)

    def build(self, entry: Entry) -> None:
        """Have XNAT make the session's document, as an archive needs it. Raises `RequestFailed`."""
        self._server.request(
            "POST", entry.path, {"action": "build"}, accept=_DONE, timeout=ANSWER_SECONDS, repeats=_ONCE
        )

    def archive(self, entry: Entry, *, overwrite: bool, pipelines: bool) -> str:
        """Archive an entry; return the URI XNAT gives it, '' if the answer was lost and it is done even so.

        `overwrite` replaces files that are there. Without it files are only added: XNAT takes any word in
        `overwrite` here for leave to override, `append` too (Archiver.initialize). Raises `NotArchived`.
        """
        query = {
            "src": entry.url,
            **({"overwrite": "delete", "overwrite_files": "true"} if overwrite else {}),
        }
        if not pipelines:
            query["triggerPipelines"] = "false"
        try:
            answer = self._server.request(
                "POST", "/data/services/archive", query,
                accept=_DONE, timeout=ANSWER_SECONDS, repeats=_ONCE,
            )  # fmt: skip
        except xnat.RequestFailed as failure:
            now = self._after(entry)
            if now is None:
                return ""
            raise NotArchived(self._why(now, failure), now.status) from failure
        location = answer.headers.get("Location", "")
        return location or answer.text.strip()

    def _after(self, entry: Entry) -> Entry | None:
        """Look where an entry is after its archiving gave no good answer."""
        try:
            return self.at_rest(entry)
        except xnat.RequestFailed:
            return entry

    def _why(self, entry: Entry, failure: xnat.RequestFailed) -> str:
        reason = self.reason(entry)
        return reason or failure.message

    def reason(self, entry: Entry) -> str:
        """Return the last line of an entry's log, '' if there is none."""
        try:
            text = self._server.request("GET", f"{entry.path}/logs/last", html=True).text
        except xnat.RequestFailed:
            return ""
        said = messages.headline(text)
        return re.sub(r"^[\d\-:. T,]+:?\s*", "", said).rstrip(".")

    def files(self, entry: Entry) -> dict[str, dict[str, int]]:
        """Return what an entry holds: scan ID -> file name -> size in bytes. Raises `RequestFailed`."""
        rows = tables.rows(
            self._server.request("GET", f"{entry.path}/scans", {"format": "json"}, as_json=True)
        )
        return {scan: self._scan_files(entry, scan) for row in rows if (scan := tables.cell(row, "ID"))}

    def _scan_files(self, entry: Entry, scan: str) -> dict[str, int]:
        base = f"{entry.path}/scans/{quote(scan, safe='')}/resources"
        held: dict[str, int] = {}
        for row in tables.rows(self._server.request("GET", base, {"format": "json"}, as_json=True)):
            label = tables.cell(row, "label")
            answer = self._server.request(
                "GET", f"{base}/{quote(label, safe='')}/files", {"format": "json"}, as_json=True
            )
            held.update((file.name, file.size) for file in map(tables.remote_file, tables.rows(answer)))
        return held


def _of(entries: Collection[Entry], studies: Collection[str], name: str) -> list[Entry]:
    return [entry for entry in entries if entry.tag in studies and (not name or entry.name == name)]


def _entry(row: Mapping[str, object]) -> Entry | None:
    found = entry_of(tables.cell(row, "url"))
    if found is None:
        return None
    return Entry(
        found.project,
        found.timestamp,
        found.folder,
        tables.cell(row, "name"),
        tables.cell(row, "subject"),
        tables.cell(row, "tag"),
        tables.cell(row, "status"),
        tables.cell(row, "lastmod"),
    )
