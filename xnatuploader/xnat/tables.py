"""XNAT's addresses, tables and records as text: percent-encoding, rows and cells, odd answers (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from xnatuploader.xnat import http, messages

_FIELD_LENGTH = 255
"""XNAT's text columns hold no more."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a resource."""

    name: str
    """Path inside the resource, decoded."""
    size: int
    """Bytes; -1 where the server does not say."""
    digest: str = ""
    """MD5 in lower-case hex; '' where the site keeps no checksums."""


def session_path(project: str, subject: str, session: str) -> str:
    """Return the address of a session by its labels."""
    return f"/data/projects/{quoted(project)}/subjects/{quoted(subject)}/experiments/{quoted(session)}"


def session_by_id(session_id: str) -> str:
    """Return the address of a session by its ID (`XNAT_E00001`)."""
    return f"/data/experiments/{quoted(session_id)}"


def scan_path(project: str, subject: str, session: str, scan_id: str) -> str:
    """Return the address of a scan by its ID."""
    return f"{session_path(project, subject, session)}/scans/{quoted(scan_id)}"


def resource_path(project: str, subject: str, session: str, scan_id: str, resource: str) -> str:
    """Return the address of a scan's resource by its label."""
    return f"{scan_path(project, subject, session, scan_id)}/resources/{quoted(resource)}"


def quoted(part: str) -> str:
    """Encode one part of a path. Raises `RequestFailed` for what no encoding can carry."""
    if part in ("", ".", ".."):
        raise messages.RequestFailed(0, f"'{part}' cannot be the name of anything on XNAT.", "other")
    return quote(part, safe="")


def quoted_path(name: str) -> str:
    """Encode a path inside a resource, part by part."""
    return "/".join(quoted(part) for part in name.split("/"))


def fields(xsi_type: str, values: Mapping[str, str]) -> dict[str, str]:
    """Name each field by its full path: short names exist only for some."""
    return {f"{xsi_type}/{name}": value[:_FIELD_LENGTH] for name, value in values.items() if value}


def made(answer: http.Answer, label: str) -> str:
    """Return the ID in a create's answer; where the body is empty the label serves as well."""
    text = answer.text.strip()
    return text.rpartition("/")[2] if text and "\n" not in text and len(text) < 200 else label


def rows(answer: http.Answer) -> list[Mapping[str, Any]]:
    """Return the rows of a table. Raises `RequestFailed` if the answer is none."""
    try:
        found = answer.json()["ResultSet"]["Result"]
        if isinstance(found, list) and all(isinstance(row, dict) for row in found):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise messages.RequestFailed(answer.status, "XNAT's list came incomplete. Try again.", "server")


def item(answer: http.Answer) -> Mapping[str, Any]:
    """Return the fields of a single record. Raises `RequestFailed` if the answer is none."""
    try:
        found = answer.json()["items"][0]["data_fields"]
        if isinstance(found, dict):
            return found
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    raise messages.RequestFailed(answer.status, "XNAT's answer came incomplete. Try again.", "server")


def cell(row: Mapping[str, Any], name: str) -> str:
    """Return a cell as text, whether XNAT heads its column by the short name or by a path in lower case."""
    value = row.get(name)
    if value is None:
        wanted = name.lower()
        for heading, candidate in row.items():
            if heading.lower() == wanted or heading.lower().rpartition("/")[2] == wanted:
                value = candidate
                break
    return "" if value is None else str(value)


def remote_file(row: Mapping[str, Any]) -> RemoteFile:
    """Read a row of a file list: the path inside the resource stands encoded in the URI, not in `Name`."""
    inside = cell(row, "URI").partition("/files/")[2]
    size = cell(row, "Size")
    return RemoteFile(
        unquote(inside) if inside else cell(row, "Name"),
        int(size) if size.isdigit() else -1,
        cell(row, "digest").lower(),
    )


def scan_of(row: Mapping[str, Any]) -> str:
    """Return the ID of the scan to which a row of a file list belongs, '' where it belongs to none.

    XNAT encodes IDs in some of its lists and not in others.
    """
    return unquote(cell(row, "URI").partition("/scans/")[2].partition("/")[0])


def duplicates(answer: http.Answer) -> tuple[str, ...]:
    """Return the names in a `duplicates` answer (JSON, labelled as HTML)."""
    text = answer.text.strip()
    if not text.startswith("{"):
        return ()
    try:
        names = json.loads(text).get("duplicates", [])
    except ValueError:
        return ()
    return tuple(unquote(str(name)) for name in names)


def archive_type(name: str) -> str:
    """Return the type by which XNAT would name a nameless body, so that both ways of telling agree."""
    if name.endswith(".zip"):
        return "application/zip"
    if name.endswith((".tgz", ".tar.gz")):
        return "application/x-gtar"
    return "application/x-tar"
