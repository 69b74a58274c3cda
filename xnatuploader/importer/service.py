"""`POST /data/services/import` and the user cache: one body in, the URIs of where it ended out.

An import is never repeated blindly: when its answer is lost, `Unclear` says so, and the caller looks at the
prearchive and the archive before anything is sent again.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping
from urllib.parse import quote

from xnatuploader import server
from xnatuploader.importer import bodies
from xnatuploader.server.connection import Repeats

logger = logging.getLogger(__name__)

IMPORT = "/data/services/import"
_CACHE = "/user/cache/resources"
_ANSWER_SECONDS = 900.0
"""To wait for the next bytes of an answer: SI and XAR archive the session before they answer."""
_BACKGROUND_SECONDS = 3600.0
_POLL_SECONDS = 0.3
_ENDINGS = {"application/zip": "zip", "application/x-tar": "tar", "application/xar": "xar"}
_LOST = frozenset({0, 429, 500, 502, 503, 504})


class Unclear(Exception):
    """An import's answer was lost: XNAT may have taken it, or may still be at it."""

    def __init__(self, failure: server.RequestFailed) -> None:
        self.failure = failure
        super().__init__(failure.message)


class Service:
    """The import service for one run."""

    def __init__(self, connection: server.Server, stop: threading.Event, *, via_cache: bool) -> None:
        self._server = connection
        self._stop = stop
        self._via_cache = via_cache

    def send(self, body: bodies.Body, query: Mapping[str, str]) -> list[str]:
        """Import one body; return the URIs XNAT answers, without `/data` or a host in front.

        Raises `RequestFailed` for a refusal, `Unclear` where XNAT may have taken it, and what the body
        raises.
        """
        try:
            return self._through_cache(body, query) if self._via_cache else self._directly(body, query)
        except server.RequestFailed as failure:
            if failure.status in _LOST and failure.kind != "too-large":
                raise Unclear(failure) from failure
            raise

    def order(self, query: Mapping[str, str]) -> list[str]:
        """Have XNAT import what lies on the server already."""
        return self._post(query, {})

    def _directly(self, body: bodies.Body, query: Mapping[str, str]) -> list[str]:
        raw = {} if isinstance(body, bodies.Form) else {"inbody": "true"}
        return self._post({**query, **raw}, {"Content-Type": body.content_type}, body)

    def _post(
        self, query: Mapping[str, str], headers: Mapping[str, str], body: bodies.Body | None = None
    ) -> list[str]:
        answer = self._server.request(
            "POST", IMPORT, query, None if body is None else (lambda: body),
            headers=headers, accept=(200, 201, 202, 301, 303), timeout=_ANSWER_SECONDS,
            repeats=Repeats(once=True),
        )  # fmt: skip
        return uris(answer.text)

    # ---- by way of the user cache

    def _through_cache(self, body: bodies.Body, query: Mapping[str, str]) -> list[str]:
        """Put the body into a new folder of the user's cache and import it from there in the background."""
        folder = f"xnatuploader-{secrets.token_hex(8)}"
        name = _name_of(body)
        path = f"/data{_CACHE}/{folder}/files/{quote(name)}"
        headers = {"Content-Type": body.content_type}
        self._server.request("PUT", path, {"inbody": "true"}, lambda: body, headers=headers)
        listener = f"xnatuploader-{secrets.token_hex(8)}"
        src = {"src": f"{_CACHE}/{folder}/files/{name}", "http-session-listener": listener}
        found = self._post({**query, **src}, {})
        if not found:
            found = self._followed(listener)
        self._clean_up(path, folder)
        return found

    def _followed(self, listener: str) -> list[str]:
        """Follow a background import to its end. Raises `Unclear` if its progress cannot be seen any more."""
        seen = 0
        until = time.monotonic() + _BACKGROUND_SECONDS
        while time.monotonic() < until:
            try:
                answer = self._server.request(
                    "GET", f"/data/status/{listener}", {"format": "json"}, as_json=True
                )
                said = _messages(answer.json())
            except server.RequestFailed as failure:  # a new login has another list
                raise Unclear(failure) from failure
            for message in said[seen:]:
                logger.debug("Import %s: %s %s", listener, message.get("status"), message.get("msg"))
            seen = len(said)
            last = said[-1] if said else {}
            if str(last.get("terminal", "")).lower() == "true":
                text = str(last.get("msg", ""))
                if str(last.get("status", "")).upper() == "FAILED":
                    raise server.RequestFailed(400, f"XNAT could not import it: {text.rstrip('.')}.", "other")
                return uris(text)
            self._stop.wait(_POLL_SECONDS) if not self._stop.is_set() else time.sleep(_POLL_SECONDS)
        raise Unclear(server.RequestFailed(0, "XNAT did not finish the import within an hour.", "connection"))

    def _clean_up(self, path: str, folder: str) -> None:
        """Remove the folder from the cache; what XNAT 1.8.11 answers to that is not to be trusted.

        There a file's DELETE removes the whole folder, and the folder's own answers 404.
        """
        for one in (path, f"/data{_CACHE}/{folder}"):
            try:
                self._server.request("DELETE", one, accept=(200, 202, 204, 404), html=True)
            except server.RequestFailed as failure:
                logger.debug("The user cache could not be cleaned up: %s", failure.message)


def uris(text: str) -> list[str]:
    """Return the URIs in an answer (one per line) or a progress message (`Archive:<uri>;...`)."""
    found = re.findall(r"(?:/data)?(/(?:archive|prearchive|xapi)/[^\s;,<>\"]+)", text)
    return list(dict.fromkeys(found))


def _messages(parsed: object) -> list[Mapping[str, object]]:
    lists = parsed.get("msgs") if isinstance(parsed, dict) else None
    if not isinstance(lists, list):
        return []
    return [one for some in lists if isinstance(some, list) for one in some if isinstance(one, dict)]


def _name_of(body: bodies.Body) -> str:
    """Return the name under which the cache holds a body: its ending tells XNAT what it is."""
    ending = _ENDINGS.get(body.content_type)
    return f"upload.{ending}" if ending else _dicom_name(body.files[0].name.rpartition("/")[2])


def _dicom_name(name: str) -> str:
    return name if name.lower().endswith(".dcm") else f"{name}.dcm"
