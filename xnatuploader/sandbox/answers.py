"""Answers in XNAT's formats: tables, single records, HTML error pages."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from aiohttp import web

Row = Mapping[str, str]


class Refusal(Exception):
    """A request that is answered with a status and a reason, as an HTML page."""

    def __init__(self, status: int, message: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


def unknown_address() -> Refusal:
    """Return the refusal of an address that XNAT does not have."""
    return Refusal(404, "The server has not found anything matching the request URI")


def unknown_method() -> Refusal:
    """Return the refusal of a method that an address does not take."""
    return Refusal(405, "The method is not allowed")


class Cut(Exception):
    """The connection is broken, or a fault breaks it: no answer is sent."""


def error_page(status: int, message: str) -> str:
    """Return the page with the reason in <h3>, well-formed, beginning with <html> as clients expect."""
    reason = html.escape(message or f"The server answered {status}", quote=False)
    return (
        f"<html>\n<head>\n   <title>Status page</title>\n</head>\n<body>\n<h3>{reason}</h3>"
        '<p>You can get technical details <a href="http://www.w3.org/Protocols/rfc2616/rfc2616-sec10.html'
        f'#sec10">here</a> ({status}).<br/>\n'
        'Please continue your visit at our <a href="/">home page</a>.\n</p>\n'
        "</body>\n</html>\n"
    )


def refused(refusal: Refusal) -> web.Response:
    """Return the answer for a refusal."""
    page = error_page(refusal.status, refusal.message)
    return web.Response(
        status=refusal.status, text=page, content_type="text/html", headers=refusal.headers or None
    )


def text(body: str = "", status: int = 200) -> web.Response:
    """Return a plain-text answer."""
    return web.Response(status=status, text=body, content_type="text/plain")


def uri_list(uris: Sequence[str], status: int = 200, one_plain: bool = False) -> web.Response:
    """Return URIs one per line, each line ended with CRLF."""
    if one_plain and len(uris) == 1:
        return text(uris[0], status)
    body = "".join(f"{one}\r\n" for one in uris)
    return web.Response(status=status, text=body, content_type="text/uri-list")


def as_json(value: Any, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(status=status, body=json.dumps(value).encode(), content_type="application/json")


def table(
    query: Mapping[str, str],
    columns: Sequence[str],
    rows: Iterable[Row],
    title: str = "",
    column_info: Mapping[str, Mapping[str, str]] | None = None,
    total: bool = True,
) -> web.Response:
    """Return a table in the format asked for; every cell is text."""
    chosen, limited = _window(query, list(rows))
    wanted = query.get("format", "json").lower()
    if "csv" in wanted:
        return web.Response(text=_csv(columns, chosen), content_type="text/csv")
    if "xml" in wanted:
        return web.Response(text=_xml(columns, chosen), content_type="text/xml")
    if "html" in wanted:
        return web.Response(text=_html(columns, chosen), content_type="text/html")
    result: dict[str, Any] = {"Result": [{name: row.get(name, "") for name in columns} for row in chosen]}
    if title:
        result["title"] = title
    if column_info is not None:
        result["Columns"] = [{"key": key, **info} for key, info in column_info.items()]
    if total and not limited:
        result["totalRecords"] = str(len(chosen))
    return as_json({"ResultSet": result})


def _window(query: Mapping[str, str], rows: list[Row]) -> tuple[list[Row], bool]:
    by = query.get("sortBy", "")
    if by:
        rows.sort(key=lambda row: row.get(by, ""), reverse=query.get("sortOrder", "").upper() == "DESC")
    limit = query.get("limit", "*")
    try:
        offset = int(query.get("offset", "0"))
        if limit in ("*", ""):
            return rows[offset:], False
        return rows[offset : offset + int(limit)], True
    except ValueError as error:
        raise Refusal(400, "limit and offset have to be numbers") from error


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    return out.getvalue()


def _xml(columns: Sequence[str], rows: Sequence[Row]) -> str:
    heads = "".join(f"<column>{escape(name)}</column>" for name in columns)
    lines = (
        "<row>" + "".join(f"<cell>{escape(row.get(name, ''))}</cell>" for name in columns) + "</row>"
        for row in rows
    )
    body = "".join(lines)
    return f"<ResultSet><results><columns>{heads}</columns><rows>{body}</rows></results></ResultSet>"


def _html(columns: Sequence[str], rows: Sequence[Row]) -> str:
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(row.get(name, ''))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return f"<html><body><table><tr>{heads}</tr>{lines}</table></body></html>"


def item(xsi: str, fields: Mapping[str, str], children: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return one record in the shape of XNAT's items documents; empty ones are left out."""
    return {
        "children": list(children),
        "meta": {
            "create_event_id": 1,
            "xsi:type": xsi,
            "isHistory": False,
            "start_date": "Mon Jan 01 00:00:00 UTC 2024",
        },
        "data_fields": {name: value for name, value in fields.items() if value != ""},
    }


def single(query: Mapping[str, str], record: dict[str, Any]) -> web.Response:
    """Return one record: JSON when asked for, else XML."""
    if "json" in query.get("format", "").lower():
        return as_json({"items": [record]})
    return web.Response(text=record_xml(record), content_type="text/xml")


def record_xml(record: Mapping[str, Any]) -> str:
    """Return one record as an XML document (its own fields only)."""
    xsi = record["meta"]["xsi:type"]
    kind = xsi.split(":", 1)[1]
    attributes = "".join(
        f" {name}={quoteattr(value)}" for name, value in record["data_fields"].items() if "/" not in name
    )
    names = 'xmlns:xnat="http://nrg.wustl.edu/xnat" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<xnat:{kind} {names}{attributes}/>\n'


def chosen_columns(query: Mapping[str, str], default: Sequence[str]) -> list[str]:
    """Return the columns asked for (paths in lower case, as XNAT returns them) with URI, or the default."""
    asked = [one.strip() for one in query.get("columns", "").split(",") if one.strip()]
    if not asked:
        return list(default)
    names = [one.lower() if ":" in one else one for one in asked]
    return names if "URI" in names else [*names, "URI"]
