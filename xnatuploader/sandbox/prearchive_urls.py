"""The prearchive's URLs and services: lists, logs, build, commit, move, archive, and the session builder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import unquote

from aiohttp import web

from xnatuploader.sandbox import (
    addresses,
    answers,
    archiving,
    dicomfacts,
    faults,
    importing,
    options,
    prearchive,
    store,
)
from xnatuploader.sandbox.calls import Actor, Call, Login, Site

_COLUMNS = (
    "project",
    "timestamp",
    "lastmod",
    "uploaded",
    "scan_date",
    "scan_time",
    "subject",
    "folderName",
    "name",
    "tag",
    "status",
    "url",
    "autoarchive",
    "prevent_anon",
    "prevent_auto_commit",
    "SOURCE",
    "VISIT",
    "PROTOCOL",
    "TIMEZONE",
)


async def handle(call: Call, rest: list[str]) -> web.StreamResponse:
    """/data/prearchive[/projects/P[/timestamp/session[/...]]]."""
    names = [unquote(one) for one in rest]
    if not names or names == ["projects"]:
        return _list(call, [one for one in call.store.waiting.values() if prearchive.may_see(call, one)])
    if names[0] != "projects":
        raise answers.unknown_address()
    if len(names) == 2:
        return _list(call, _of_projects(call, names[1].split(",")))
    if len(names) < 4:
        raise answers.unknown_address()
    method = call.request.method
    if method == "GET" and len(names) == 4 and "json" in call.query.get("format", ""):
        known = call.store.waiting.get("/".join(names[1:4]))
        return _list(call, [known] if known is not None and prearchive.may_see(call, known) else [])
    waiting = prearchive.find(call, *names[1:4])
    if method == "POST":
        return await _act(call, waiting)
    if method == "DELETE":
        prearchive.remove(call, waiting)
        return answers.text()
    if method not in ("GET", "HEAD"):
        raise answers.unknown_method()
    return _show(call, waiting, names[4:])


def _of_projects(call: Call, names: Iterable[str]) -> list[store.PrearchiveSession]:
    wanted = set(names)
    for name in wanted - {prearchive.UNASSIGNED}:
        if name not in call.store.projects or not call.can(name, "edit"):
            raise answers.Refusal(404, "Unable to find the specified project")
    mine = [one for one in call.store.waiting.values() if prearchive.may_see(call, one)]
    return [one for one in mine if one.project in wanted]


def _list(call: Call, found: list[store.PrearchiveSession]) -> web.StreamResponse:
    return answers.table(call.query, _COLUMNS, [_row(one) for one in found])


def _row(waiting: store.PrearchiveSession) -> dict[str, str]:
    return {
        "project": waiting.project,
        "timestamp": waiting.timestamp,
        "lastmod": store.now_text(waiting.lastmod),
        "uploaded": store.now_text(waiting.uploaded),
        "scan_date": waiting.scan_date,
        "scan_time": waiting.scan_time,
        "subject": waiting.subject,
        "folderName": waiting.folder,
        "name": waiting.name,
        "tag": waiting.tag,
        "status": waiting.status,
        "url": prearchive.uri_of(waiting),
        "autoarchive": waiting.autoarchive,
        "prevent_anon": str(waiting.prevent_anon).lower(),
        "prevent_auto_commit": str(waiting.prevent_auto_commit).lower(),
        "SOURCE": waiting.source,
    }


def _show(call: Call, waiting: store.PrearchiveSession, rest: list[str]) -> web.StreamResponse:
    if not rest:
        if not waiting.built:
            raise answers.Refusal(404, "The session document has not been built")
        document = prearchive.folder_of(call, waiting).with_suffix(".xml")
        return web.Response(text=document.read_text(encoding="utf-8"), content_type="text/xml")
    if rest[0] == "logs":
        return _logs(call, waiting, rest[1:])
    if rest[0] != "scans":
        raise answers.unknown_address()
    return _scans(call, waiting, rest[1:])


def _logs(call: Call, waiting: store.PrearchiveSession, rest: list[str]) -> web.StreamResponse:
    if not rest:
        rows = [{"id": str(number)} for number in range(len(waiting.logs))]
        return answers.table(call.query, ("id",), rows)
    if rest[0] == "last" and waiting.logs:
        return answers.text(waiting.logs[-1])
    if rest[0].isdigit() and int(rest[0]) < len(waiting.logs):
        return answers.text(waiting.logs[int(rest[0])])
    raise answers.Refusal(404, "There is no such log")


def _scans(call: Call, waiting: store.PrearchiveSession, rest: list[str]) -> web.StreamResponse:
    scans = prearchive.scans_of(waiting)
    if not rest:
        rows = []
        for scan in scans:
            given = dicomfacts.scan_fields(list(scan.files.values()))
            rows.append({**given, "ID": scan.id, "xsiType": scan.xsi})
        return answers.table(call.query, ("ID", "type", "xsiType", "series_description", "UID"), rows)
    chosen = next((one for one in scans if one.id == rest[0]), None)
    if chosen is None or rest[1:2] != ["resources"]:
        raise answers.Refusal(404, "Unable to find the specified scan.")
    by_label = chosen.by_label()
    if len(rest) == 2:
        return _resources(call, waiting, chosen.id, by_label)
    if len(rest) < 4 or rest[3] != "files" or rest[2] not in by_label:
        raise answers.Refusal(404, "Unable to find the specified resource")
    return _files(call, waiting, chosen.id, rest[2], by_label[rest[2]], "/".join(rest[4:]))


def _resources(
    call: Call, waiting: store.PrearchiveSession, scan_id: str, by_label: Mapping[str, Collection[str]]
) -> web.StreamResponse:
    folder = prearchive.folder_of(call, waiting)
    rows = [
        {
            "label": label,
            "element_name": "xnat:resourceCatalog",
            "category": "scans",
            "cat_id": scan_id,
            "file_count": str(len(paths)),
            "file_size": str(sum((folder / one).stat().st_size for one in paths)),
        }
        for label, paths in by_label.items()
    ]
    columns = ("label", "element_name", "category", "cat_id", "file_count", "file_size")
    return answers.table(call.query, columns, rows)


def _files(
    call: Call, waiting: store.PrearchiveSession, scan_id: str, label: str, paths: Collection[str], name: str
) -> web.StreamResponse:
    """Answer with a resource's files, or with the one named. Digests are not there before archiving."""
    folder = prearchive.folder_of(call, waiting)
    named = {one.rsplit("/", 1)[-1]: folder / one for one in paths}
    if name:
        if name not in named:
            raise answers.Refusal(404, "Unable to find file.")
        return web.FileResponse(named[name])
    base = f"/data{prearchive.uri_of(waiting)}/scans/{scan_id}/resources/{label}/files/"
    rows = [
        {"Name": one, "Size": str(path.stat().st_size), "URI": base + one, "collection": label}
        for one, path in named.items()
    ]
    return answers.table(call.query, ("Name", "Size", "URI", "collection", "digest"), rows)


# -- actions on one session ----------------------------------------------------------------------------------


async def _act(call: Call, waiting: store.PrearchiveSession) -> web.StreamResponse:
    action = call.query.get("action", "")
    if waiting.status not in prearchive.RESTING:
        raise answers.Refusal(409, "session document locked")
    if action == "build":
        prearchive.build(call, waiting)
        return answers.uri_list([prearchive.uri_of(waiting)])
    if action in ("reset", "reset-status"):
        prearchive.set_status(call, waiting, "RECEIVING")
        return answers.text()
    if action in ("set", "set-status"):
        prearchive.set_status(call, waiting, call.query.get("status", "READY"))
        return answers.text()
    if action == "move":
        prearchive.move(call, waiting, call.query.get("newProject", ""))
        return answers.text(prearchive.uri_of(waiting), 301)
    if action == "commit":
        return await _commit(call, waiting)
    raise answers.Refusal(400, f"Unknown action: {action}")


async def _commit(call: Call, waiting: store.PrearchiveSession) -> web.StreamResponse:
    """Build, and archive where that is automatic: 301 with the URI as body and no Location."""
    prearchive.build(call, waiting)
    automatic = prearchive.is_automatic(call, waiting)
    asked = call.query.get("AA", call.query.get("auto-archive", "")) == "true"
    if waiting.project == prearchive.UNASSIGNED or not (automatic or asked):
        return answers.uri_list([prearchive.uri_of(waiting)])
    merge = archiving.merge_of(call, call.query.get("overwrite"), always=True)
    try:
        session = await archiving.archive(call, waiting, merge)
    except answers.Refusal as refusal:
        raise answers.Refusal(500, f"FAILED: {refusal.message}") from refusal
    return answers.text(importing.session_uri(call, session), 301)


# -- services ------------------------------------------------------------------------------------------------


async def _sources(call: Call) -> list[store.PrearchiveSession]:
    """Find the sessions that `src` names, in the URL or a form; a leading /data or /REST is allowed."""
    values = call.request.query.getall("src", [])
    if call.request.content_type == "application/x-www-form-urlencoded":
        form = await call.request.post()
        values = [*(str(one) for one in form.getall("src", [])), *values]
        call.form = {name: str(value) for name, value in form.items()}
    asked = [one for value in values for one in value.split(",")]
    if not asked:
        raise answers.Refusal(404, "Unknown prearchive session.")
    found = []
    for value in asked:
        parts = addresses.uri_parts(value.strip())
        if len(parts) != 5 or parts[:2] != ["prearchive", "projects"]:
            raise answers.Refusal(400, f"Invalid src: {value}")
        found.append(prearchive.find(call, *parts[2:]))
    return found


async def archive_service(call: Call) -> web.StreamResponse:
    """POST /data/services/archive: 200 or 303 with the archive's URI; every failure of the job is a 500."""
    sources = await _sources(call)
    if any(one.project == prearchive.UNASSIGNED for one in sources):
        raise answers.Refusal(400, "Unable to archive a session that is not assigned to a project")
    query = importing.parameters(call)
    session_name = query.get("session", "") or query.get("label", "")
    target = prearchive.Target(query.get("project", ""), query.get("subject", ""), session_name)
    if len(sources) > 1:
        for one in sources:
            call.site.spawn(_quietly(call, one, target))
        return _list(call, sources)
    waiting = sources[0]
    if waiting.status not in prearchive.RESTING:
        raise answers.Refusal(403, "Operation already in progress on this prearchive entry.")
    session = await _archive_one(call, waiting, target)
    uri = importing.session_uri(call, session)
    automatic = query.get("auto-archive", "") != "false" and call.prearchive_code(session.project) >= 4
    if automatic or call.flag("redirect"):
        location = f"{call.request.url.origin()}{call.site.options.context}{uri}"
        return web.Response(status=303, headers={"Location": location})
    return answers.uri_list([uri])


async def _archive_one(
    call: Call, waiting: store.PrearchiveSession, target: prearchive.Target
) -> store.StoredExperiment:
    """Archive with merging always allowed; any `overwrite` word, `append` too, acts as override."""
    if not waiting.built:
        raise answers.Refusal(500, "Failed: the session document has not been built")
    override = importing.parameters(call).get("overwrite", "none") != "none"
    replace = override or call.flag("overwrite_files")
    merge = archiving.Merge(True, override, replace, call.flag("quarantine"))
    try:
        return await archiving.archive(call, waiting, merge, target)
    except answers.Refusal as refusal:
        if refusal.status in (403, 423):
            raise
        raise answers.Refusal(500, f"Failed: {refusal.message}") from refusal


async def _quietly(call: Call, waiting: store.PrearchiveSession, target: prearchive.Target) -> None:
    try:
        await _archive_one(call, waiting, target)
    except answers.Refusal:
        pass  # the entry's status and log say why


async def batch(call: Call, rest: list[str]) -> web.StreamResponse:
    """POST /data/services/prearchive/{move|delete|rebuild}?src=..."""
    word = rest[0] if rest else ""
    if call.request.method != "POST" or word not in ("move", "delete", "rebuild"):
        raise answers.unknown_address()
    sources = await _sources(call)
    for waiting in sources:
        if word == "move":
            prearchive.move(call, waiting, importing.parameters(call).get("newProject", ""))
        elif word == "rebuild":
            prearchive.build(call, waiting)
        else:
            prearchive.remove(call, waiting)
    return _list(call, [one for one in sources if one.key in call.store.waiting])


# -- the session builder -------------------------------------------------------------------------------------


async def session_builder(site: Site) -> None:
    """Build, again and again, the sessions that have been idle; archive those that are archived automatically."""
    system = options.User("system", "", "admin")
    actor = Actor(site=site, plan=faults.NOTHING, login=Login("", system, 0.0, ""))
    while True:
        await asyncio.sleep(min(site.settings.builder_interval, 1.0))
        for waiting in list(site.store.waiting.values()):
            idle = time.time() - waiting.lastmod
            ready = waiting.status == "RECEIVING" and not prearchive.is_held(waiting)
            if ready and idle > site.settings.builder_idle:
                await _take(actor, waiting)


async def _take(actor: Actor, waiting: store.PrearchiveSession) -> None:
    try:
        prearchive.build(actor, waiting)
    except answers.Refusal:
        return  # the entry's status and log say why
    if prearchive.is_automatic(actor, waiting):
        await archiving.automatically(actor, waiting)
