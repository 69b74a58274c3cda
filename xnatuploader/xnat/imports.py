"""The import service and the user cache: one body in, the URIs of where it ended out.

An import is never repeated blindly: when its answer is lost, `AnswerLost` says so, and the caller looks at the
prearchive and the archive before anything is sent again.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from xnatuploader.xnat import routes
from xnatuploader.xnat.archive import Server
from xnatuploader.xnat.http import Body, Repeats, Request
from xnatuploader.xnat.messages import RequestFailed
from xnatuploader.xnat.prearchive import PrearchiveEntry

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 900.0
"""To wait for the next bytes of an answer: SI and XAR archive the session before they answer."""
_BACKGROUND_SECONDS = 3600.0
"""How long an import in the background may take that says when it is done."""
_QUIET_SECONDS = 300.0
"""Likewise without a new message and without a change in the prearchive, where none says that it is done."""
_POLL_SECONDS = (0.3, 3.0)
"""The first pause between two looks at an import in the background, and the longest."""
_RECEIVED = re.compile(r"successfully uploaded (\d+) +sessions? to the prearchive", re.IGNORECASE)
"""The last message of DICOM-zip where it is not told to commit; it is not marked as the last
(DicomZipImporter.call)."""
_SINGLE = "application/dicom"
_LOST = frozenset({0, 429, 500, 502, 503, 504})
_OF_SESSION = re.compile(
    r"unable to (deduce session label|identify (subject|(destination )?project))|not allowed to create new subjects"
    r"|session already exists|via archive process|already contains a scan|already exists for another subject"
    r"|unable to archive for the prearchive session|src uri is invalid|non-standard prearchive structure"
    r"|invalid destination|multiple imaging sessions",
    re.IGNORECASE,
)
"""What XNAT says of a session or a destination (PrearcSessionArchiver, SessionImporter, PrearcImporterHelper): other
files would be told the same."""

Entries = Callable[[], Sequence[PrearchiveEntry]]
"""Gives what the prearchive has of a session now."""


class ImportBody(Body, Protocol):
    """A body of an import: an archive, a form, or a single DICOM file."""

    @property
    def content_type(self) -> str: ...  # noqa: D102

    @property
    def name(self) -> str:
        """The name that the user cache gives it; by its ending XNAT tells what it is."""


class AnswerLost(Exception):
    """An import's answer was lost: XNAT may have taken it, or may still be working on it."""

    def __init__(self, failure: RequestFailed) -> None:
        self.failure = failure
        super().__init__(failure.message)


def about_session(failure: RequestFailed) -> bool:
    """Tell whether a refusal concerns the whole session, so that its files need not be sent one by one."""
    return failure.kind == "busy" or bool(_OF_SESSION.search(failure.message))


def _is_lost(failure: RequestFailed) -> bool:
    """Tell whether XNAT may have taken an import, or be working on it, though it did not say so."""
    return failure.status in _LOST and failure.kind not in ("too-large", "busy")


class ImportService:
    """The import service for one run."""

    def __init__(self, server: Server, stop: threading.Event, *, via_cache: bool) -> None:
        self._server = server
        self._stop = stop
        self._via_cache = via_cache

    def send(self, body: ImportBody, query: Mapping[str, str], entries: Entries | None = None) -> list[str]:
        """Import one body; return the URIs of where it ended, without `/data` or a host in front.

        `entries` is for imports that do not say in the background when they are done. Raises `RequestFailed` for a
        refusal, `AnswerLost` where XNAT may have taken it, and what the body raises.
        """
        try:
            if self._via_cache:
                return self._through_cache(body, query, entries)
            raw = {} if body.content_type.startswith("multipart/") else {"inbody": "true"}
            return self._post({**query, **raw}, body)
        except RequestFailed as failure:
            if _is_lost(failure):
                raise AnswerLost(failure) from failure
            raise

    def order(self, query: Mapping[str, str]) -> list[str]:
        """Have XNAT import what is on the server already."""
        return self._post(query)

    def _post(self, query: Mapping[str, str], body: ImportBody | None = None) -> list[str]:
        answer = self._server.request(
            Request(
                "POST",
                routes.IMPORT,
                query,
                None if body is None else (lambda: body),
                headers={} if body is None else {"Content-Type": body.content_type},
                accept=(200, 201, 202, 301, 303),
                repeats=Repeats(once=True),
                timeout=_ANSWER_SECONDS,
            )
        )
        return routes.uris(answer.text)

    # ---- from the server's inbox

    def inbox_order(self, folder: str) -> str:
        """Return the address of an import of that folder that XNAT has not ended yet, '' if it tells of none."""
        try:
            orders = self._server.request(Request("GET", routes.INBOX_ACTIVE, as_json=True)).json()
        except RequestFailed as failure:
            logger.debug("The imports from the inbox could not be listed: %s", failure.message)
            return ""
        for order in orders if isinstance(orders, list) else ():
            if str(order.get("sessionPath", "")).rstrip("/\\") == folder:
                return routes.at(routes.INBOX_IMPORT, str(order.get("id")))
        return ""

    def inbox_state(self, address: str) -> tuple[str, str]:
        """Return the state of an import from the inbox (DicomInboxImportRequest) and what XNAT says of it."""
        record = self._server.request(Request("GET", address, as_json=True)).json()
        if not isinstance(record, dict):
            return "", ""
        said = str(record.get("message") or record.get("resolution") or "")
        return str(record.get("status", "")).lower(), said

    # ---- through the user cache

    def _through_cache(
        self, body: ImportBody, query: Mapping[str, str], entries: Entries | None
    ) -> list[str]:
        """Put the body into a new folder of the user's cache and import it from there.

        This is done in the background, except for a single file: XNAT says nothing of that (GradualDicomImporter).
        Nothing is left in the cache, unless the answer was lost: XNAT may still be reading it then.
        """
        folder = f"xnatuploader-{secrets.token_hex(8)}"
        path = routes.at(routes.CACHE_FILE, folder, body.name)
        headers = {"Content-Type": body.content_type}
        self._server.request(Request("PUT", path, {"inbody": "true"}, lambda: body, headers))
        source = {**query, "src": routes.source(path)}
        try:
            if body.content_type == _SINGLE:
                found = self._post(source)
            else:
                listener = f"xnatuploader-{secrets.token_hex(8)}"
                found = self._post({**source, "http-session-listener": listener})
                found = found or self._followed(listener, entries)
        except RequestFailed as failure:
            if not _is_lost(failure):
                self._clean_up(path, routes.at(routes.CACHE_FOLDER, folder))
            raise
        self._clean_up(path, routes.at(routes.CACHE_FOLDER, folder))
        return found

    def _followed(self, listener: str, entries: Entries | None) -> list[str]:
        """Follow a background import to its end by its messages, or by `entries` where they do not tell it.

        Raises `AnswerLost` if its progress cannot be seen any more.
        """
        watched = _Watched(entries)
        while not watched.too_long():
            last = watched.newest(self._messages(listener))
            text = str(last.get("msg", ""))
            if str(last.get("terminal", "")).lower() == "true":
                if str(last.get("status", "")).upper() == "FAILED":
                    raise RequestFailed(400, f"XNAT could not import it: {text.rstrip('.')}.", "other")
                return routes.uris(text)
            received = _RECEIVED.search(text)
            if received and entries is not None:
                return _newest(entries()) if int(received[1]) else []
            pause = watched.pause()
            self._stop.wait(pause) if not self._stop.is_set() else time.sleep(pause)
        left = _newest(entries()) if entries is not None else []
        if not left:
            minutes = watched.limit // 60
            why = f"XNAT did not say within {minutes:.0f} minutes that the import has ended."
            raise AnswerLost(RequestFailed(0, why, "connection"))
        return left

    def _messages(self, listener: str) -> list[Mapping[str, object]]:
        request = Request("GET", routes.at(routes.STATUS, listener), {"format": "json"}, as_json=True)
        try:
            parsed = self._server.request(request).json()
        except RequestFailed as failure:  # a new login has another list
            raise AnswerLost(failure) from failure
        lists = parsed.get("msgs") if isinstance(parsed, dict) else None
        if not isinstance(lists, list):
            return []
        return [one for some in lists if isinstance(some, list) for one in some if isinstance(one, dict)]

    def _clean_up(self, file: str, folder: str) -> None:
        """Remove the folder from the cache; what XNAT 1.8.11 answers to that is not to be trusted.

        There a file's DELETE removes the whole folder, and the folder's own answers 404.
        """
        for path in (file, folder):
            try:
                self._server.request(Request("DELETE", path, accept=(200, 202, 204, 404), html=True))
            except RequestFailed as failure:
                logger.debug("The user cache could not be cleaned up: %s", failure.message)


class _Watched:
    """How long an import in the background has been running, or silent where it does not say when it is done."""

    def __init__(self, entries: Entries | None) -> None:
        self._entries = entries
        self.limit = _BACKGROUND_SECONDS if entries is None else _QUIET_SECONDS
        self._until = time.monotonic() + self.limit
        self._pause = _POLL_SECONDS[0]
        self._seen = 0
        self._last: Sequence[PrearchiveEntry] = ()

    def newest(self, said: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
        """Note the messages so far; return the last of them."""
        for message in said[self._seen :]:
            logger.debug("Import: %s %s", message.get("status"), message.get("msg"))
        if len(said) > self._seen and self._entries is not None:
            self._until = time.monotonic() + self.limit
        self._seen = len(said)
        return said[-1] if said else {}

    def too_long(self) -> bool:
        """Tell whether the time is up; a change in the prearchive shows that XNAT is still working."""
        if time.monotonic() < self._until:
            return False
        now = self._entries() if self._entries is not None else ()
        if now == self._last:
            return True
        self._last, self._until = now, time.monotonic() + self.limit
        return False

    def pause(self) -> float:
        """Return the seconds until the next look."""
        now, self._pause = self._pause, min(self._pause * 1.5, _POLL_SECONDS[1])
        return now


def _newest(entries: Sequence[PrearchiveEntry]) -> list[str]:
    """Return the URL of the entry that changed last: XNAT may add to an older entry of the same session."""
    if not entries:
        return []
    return [max(entries, key=lambda entry: (entry.changed, entry.timestamp)).url]
