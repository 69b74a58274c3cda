"""What the site shows of itself: start page, version, preferences, schemas, searchable types, users."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import answers, fields, inbox, site_script
from xnatuploader.sandbox.calls import Call

OPEN_PROPERTIES = ("buildInfo", "siteId", "siteUrl", "siteHome", "siteLogoPath")
"""Preferences that anybody may read, logged in or not."""


async def home(call: Call) -> web.StreamResponse:
    """GET /: a page that says who is logged in."""
    name = call.login.user.name if call.login is not None else "Guest"
    page = (
        "<html><head><title>XNAT (sandbox)</title></head><body>"
        f'<span id="user_info">Logged in as: &nbsp;<a href="#">{html.escape(name)}</a></span>'
        "<p>A throw-away XNAT for trying, training and tests.</p></body></html>"
    )
    return web.Response(text=page, content_type="text/html")


async def login_page(call: Call) -> web.StreamResponse:
    """GET /app/template/Login.vm: where browsers are sent; an HTML page with 200."""
    page = (
        "<html><head><title>XNAT - Login</title></head><body><h2>Log in to XNAT</h2>"
        '<form name="form1" method="post"><input name="username"/><input type="password" name="password"/>'
        "</form></body></html>"
    )
    return web.Response(text=page, content_type="text/html")


def build_info(call: Call) -> dict[str, str]:
    """Return what the build information page shows."""
    return {
        "version": call.settings.version,
        "buildNumber": "1",
        "buildDate": "Thu Jan 01 00:00:00 UTC 2026",
        "commit": "sandbox",
        "dirty": "false",
        "timestamp": "1767225600000",
        "hostName": "sandbox",
        "nodeId": "",
    }


async def xapi(call: Call, rest: list[str]) -> web.StreamResponse:
    """/xapi/...: site configuration, schemas, users."""
    if rest[:1] == ["siteConfig"]:
        return _site_config(call, rest[1:])
    if rest[:1] == ["schemas"]:
        return _schemas(rest[1:])
    if rest[:1] == ["anonymize"]:
        return await site_script.shown(call, rest[1:])
    if rest[:1] == ["dicom"]:
        return inbox.shown(call, rest[1:])
    if rest[:2] == ["users", "username"]:
        return answers.text(call.user.name)
    if rest[:1] == ["users"]:
        return _users(call, rest[1:])
    raise answers.Refusal(404, "")


def is_open(rest: list[str]) -> bool:
    """Tell whether an /xapi URL is readable without a login."""
    return len(rest) > 1 and rest[0] == "siteConfig" and rest[1] in OPEN_PROPERTIES


def _readable(call: Call) -> dict[str, Any]:
    """Preferences that every logged-in user may read."""
    settings = call.settings
    return {
        "buildInfo": build_info(call),
        "siteId": "XNAT",
        "siteUrl": str(call.request.url.origin()) + call.site.options.context,
        "siteHome": "/",
        "siteLogoPath": "/images/logo.png",
        "checksums": settings.checksums,
        "defaultProjectAutoArchiveSetting": settings.auto_archive,
        "dicomFileNameTemplate": "${StudyInstanceUID}-${SeriesNumber}-${InstanceNumber}"
        "-${HashSOPClassUIDWithSOPInstanceUID}",
        "enableSitewideAnonymizationScript": settings.anonymize_imports,
        "sitewideAnonymizationScript": site_script.SCRIPT,
        "scanTypeMapping": True,
        "sessionXmlRebuilderInterval": max(1, round(settings.builder_idle / 60)),
        "sessionXmlRebuilderRepeat": int(settings.builder_interval * 1000),
        "sitewidePetMr": "",
        "uiDefaultCompressedUploaderImporter": "DICOM-zip",
        "uiAllowNonAdminProjectCreation": True,
        "zipExtensions": "zip,jar,rar,ear,gar,mrb",
        "enableSitewideSeriesImportFilter": False,
    }


def _admin_only(call: Call) -> dict[str, Any]:
    return {
        "sessionTimeout": f"{call.settings.session_timeout:g} seconds",
        "concurrentMaxSessions": call.settings.max_sessions,
        "requireLogin": True,
        "aliasTokenTimeout": f"{call.settings.token_timeout:g} seconds",
        "maintainFileHistory": False,
        "maxFailedLogins": call.settings.max_failed_logins,
        "preventCrossModalityMerge": True,
        "sessionArchiveTimeoutInterval": 600,
        "enableCsrfToken": True,
        "inboxPath": str(call.store.inbox),
        "archivePath": str(call.store.archive),
    }


def _site_config(call: Call, rest: list[str]) -> web.StreamResponse:
    known, secret = _readable(call), _admin_only(call)
    admin = call.login is not None and call.login.user.role == "admin"
    visible = {**known, **secret} if admin else known
    if not rest:
        return answers.as_json(visible)
    names = rest[1].split(",") if rest[0] == "values" and len(rest) > 1 else [rest[0]]
    for name in names:
        if name not in known and name not in secret:
            raise answers.Refusal(404, "")
        if name not in visible:
            raise answers.Refusal(403, "")
    if rest[0] == "values":
        return answers.as_json({name: visible[name] for name in names})
    value = visible[rest[0]]
    if len(rest) > 1:
        if not isinstance(value, dict) or rest[1] not in value:
            raise answers.Refusal(404, "")
        return answers.text(value[rest[1]])
    return answers.as_json(value)


def _schemas(rest: list[str]) -> web.StreamResponse:
    if not rest:
        return answers.as_json(["xnat"])
    if rest[0] == "datatypes":
        return answers.as_json(sorted(_searchable()))
    if rest[-1] not in ("xnat", "xnat.xsd"):
        raise answers.Refusal(404, "")
    text = (Path(__file__).parent / "schema.xsd").read_text(encoding="utf-8")
    return web.Response(text=text, content_type="application/xml")


def _users(call: Call, rest: list[str]) -> web.StreamResponse:
    if rest[:1] == ["active"] and len(rest) == 2 and call.request.method == "DELETE":
        if call.user.role != "admin":
            raise answers.Refusal(403, "")
        return answers.as_json(call.site.end_logins(rest[1]))
    if not rest:
        return answers.as_json(sorted(call.site.users))
    if rest[0] not in call.site.users:
        raise answers.Refusal(404, "")
    if rest[0] != call.user.name and call.user.role != "admin":
        raise answers.Refusal(403, "")
    return answers.as_json({"username": rest[0], "firstName": rest[0], "lastName": "", "enabled": True})


def _searchable() -> list[str]:
    """Return the types that the schema has a class for."""
    both = ["mr", "ct", "pet", "cr", "dx", "mg", "us", "xa", "nm", "sm", "otherDicom"]
    sessions = [f"xnat:{one}SessionData" for one in (*both, "petmr", "rt")]
    return ["xnat:projectData", "xnat:subjectData", *sessions, *(f"xnat:{one}ScanData" for one in both)]


async def search(call: Call, rest: list[str]) -> web.StreamResponse:
    """/data/search: which types can be searched, and (always empty) results."""
    if rest[:1] == ["elements"] and len(rest) == 1:
        rows = [{"ELEMENT_NAME": one, "SINGULAR": one, "PLURAL": one, "COUNT": "0"} for one in _searchable()]
        return answers.table(call.query, ("ELEMENT_NAME", "SINGULAR", "PLURAL", "COUNT"), rows)
    if rest[:1] == ["elements"]:
        names = fields.SCAN if "Scan" in rest[1] else fields.EXPERIMENT
        rows = [{"FIELD_ID": one.upper(), "HEADER": one, "ELEMENT_NAME": rest[1]} for one in names]
        return answers.table(call.query, ("FIELD_ID", "HEADER", "ELEMENT_NAME"), rows)
    return answers.table(call.query, ("subjectid",), [])


async def users(call: Call) -> web.StreamResponse:
    """/data/users: the accounts of this site."""
    rows = [
        {"xdat_user_id": str(number), "login": name, "firstname": name, "lastname": "", "email": ""}
        for number, name in enumerate(call.site.users, 1)
    ]
    return answers.table(call.query, ("xdat_user_id", "login", "firstname", "lastname", "email"), rows)
