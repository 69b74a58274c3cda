"""`POST /data/services/import`: how uploads are read, the handlers, and where the sessions go."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import (
    addresses,
    answers,
    archiving,
    bodies,
    dicomfacts,
    extracting,
    inbox,
    prearchive,
    store,
    usercache,
    xar,
)
from xnatuploader.sandbox.calls import Call
from xnatuploader.sandbox.prearchive import Target

HANDLERS = ("SI", "DICOM-zip", "gradual-DICOM", "XAR", "inbox")


async def handle(call: Call) -> web.StreamResponse:
    """Answer a request to the import service."""
    if call.request.method != "POST":
        raise answers.unknown_method()
    scratch = bodies.scratch_file(call)
    scratch.mkdir()
    try:
        return await _import(call, scratch)
    except answers.Refusal as refusal:
        if call.query.get("format") == "html":  # errors too come with 200 then
            return web.Response(text=answers.error_page(200, refusal.message), content_type="text/html")
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def _import(call: Call, scratch: Path) -> web.StreamResponse:
    handler = call.query.get("import-handler", "")
    if handler and handler not in HANDLERS:
        raise answers.Refusal(404, f"Unknown import-handler: {handler}")
    if call.query.get("prearchive_code") == "1" and "overwrite" in call.query:
        raise answers.Refusal(400, "Invalid combination of prearchive_code and overwrite")
    if handler == "inbox":
        return answers.uri_list([inbox.begin(call)])
    if "src" in call.query:
        return await _from_cache(call, handler, scratch)
    upload, name = await _take(call, scratch)
    full = call.plan.find("disk-full")
    if full is not None:
        raise answers.Refusal(full.status or 507, "No space left on device")
    uris = await run(call, handler or _default_handler(call), upload, name, scratch)
    return answers.uri_list(uris, one_plain="plain" in call.query.get("format", ""))


def _default_handler(call: Call) -> str:
    return "gradual-DICOM" if bodies.content_type(call) == "application/dicom" else "DICOM-zip"


async def _take(call: Call, scratch: Path) -> tuple[Path, str]:
    """Spool the one file of the request; return it with the name that decides its format."""
    if bodies.is_multipart(call):
        form = await bodies.read_form(call)
        call.form = form.fields
        if len(form.files) != 1:
            form.discard()
            few = "Unable to identify upload format."
            raise answers.Refusal(400, "limited to one uploaded resource at a time" if form.files else few)
        taken = scratch / "form"
        form.files[0].path.replace(taken)
        return taken, form.files[0].name
    bodies.check_length(call, 400)
    spooled = scratch / "body"
    name = bodies.raw_name(call)
    try:
        await bodies.spool(call, spooled)
    except answers.Cut:
        await _half(call, spooled, name, scratch)
        raise
    return spooled, name


async def _half(call: Call, spooled: Path, name: str, scratch: Path) -> None:
    """Receive the complete members of an archive that was cut off, as XNAT does before the cut."""
    storage = _storage(scratch / "half")
    try:
        if name.endswith(".zip"):
            await asyncio.to_thread(extracting.salvage_zip, spooled, storage)
            storage.stored.pop(next(reversed(storage.stored), ""), None)  # the last one was cut
        else:
            kind = extracting.kind_of(name)
            await asyncio.to_thread(extracting.extract_file, spooled, kind, storage, name)
    except answers.Refusal:
        pass  # the archive ends in the middle
    target = _target(call)
    for member in storage.stored:
        prearchive.receive(call, storage.folder / member, member, target)


def _storage(folder: Path) -> extracting.Storage:
    folder.mkdir(parents=True, exist_ok=True)
    return extracting.Storage(folder, overwrite=True, checksums=False, reserved=False)


# -- parameters ----------------------------------------------------------------------------------------------


def parameters(call: Call) -> dict[str, str]:
    """Return query and form fields together."""
    return {**(call.form or {}), **call.query}


def destination(value: str) -> tuple[str, dict[str, str]]:
    """Read `dest`: `archive` or `prearchive`, with what it names; a malformed one is a Refusal 400."""
    parts = addresses.uri_parts(value)
    if not parts or parts[0] not in ("archive", "prearchive"):
        raise answers.Refusal(400, f"Invalid destination: {value}")
    where, rest = parts[0], parts[1:]
    if not rest:
        return where, {}
    if rest[0] != "projects" or len(rest) < 2:
        raise answers.Refusal(400, f"Invalid destination: {value}")
    named = {"project": rest[1]}
    if where == "prearchive":
        if len(rest) > 4:
            raise answers.Refusal(400, f"Invalid destination: {value}")
        named.update(zip(("timestamp", "session"), rest[2:], strict=False))
        return where, named
    for word, key, at in (("subjects", "subject", 2), ("experiments", "session", 4)):
        if len(rest) > at:
            if rest[at] != word or len(rest) < at + 2:
                raise answers.Refusal(400, f"Invalid destination: {value}")
            named[key] = rest[at + 1]
    return where, named


def _target(call: Call) -> Target:
    """Gather where an import is to go. For gradual-DICOM only the three names in capitals count."""
    given = parameters(call)
    where, named = destination(given["dest"]) if "dest" in given else ("", {})
    gradual = (given.get("import-handler") or _default_handler(call)) == "gradual-DICOM"
    names = {}
    for key, capital in (("project", "PROJECT_ID"), ("subject", "SUBJECT_ID"), ("session", "EXPT_LABEL")):
        names[key] = given.get(capital, "")
        if not gradual:
            names[key] = names[key] or given.get(key, "") or named.get(key, "")
    auto = given.get("AA", given.get("auto-archive", "")).lower()
    if where and not gradual:
        auto = auto or ("true" if where == "archive" else "false")
    key = ""
    if "timestamp" in named and "session" in named:
        key = f"{named['project']}/{named['timestamp']}/{named['session']}"
    return Target(
        names["project"],
        names["subject"],
        names["session"],
        autoarchive=("true" if auto == "true" else "false") if auto else "",
        rename=call.flag("rename"),
        prevent_anon=given.get("prevent_anon", "").lower() == "true",
        prevent_auto_commit=given.get("prevent_auto_commit", "").lower() == "true",
        source=given.get("SOURCE", ""),
        key=key,
    )


# -- handlers ------------------------------------------------------------------------------------------------


async def run(call: Call, handler: str, upload: Path, name: str, scratch: Path) -> list[str]:
    """Hand a spooled file to its handler; return the URIs of the sessions that it went into."""
    if handler == "gradual-DICOM":
        waiting = prearchive.receive(call, upload, name, _target(call))
        return ["/data" + prearchive.uri_of(waiting)]
    if handler == "XAR":
        return await xar.take(call, upload, _storage(scratch / "xar"))
    members = await _members(upload, name, scratch)
    if handler == "SI":
        return await _session_importer(call, members)
    return await _dicom_zip(call, members)


async def _members(upload: Path, name: str, scratch: Path) -> dict[str, Path]:
    """Unpack an archive, archives inside it too; return name -> path in the order of the archive."""
    kind = extracting.kind_of(name)
    if kind not in ("zip", "tar", "tgz"):
        if name.endswith(".dcm"):
            return {name: upload}
        raise answers.Refusal(400, f"Unsupported format {kind.upper() or 'UNKNOWN'}")
    storage = _storage(scratch / f"x{len(list(scratch.iterdir()))}")
    try:
        await asyncio.to_thread(extracting.extract_file, upload, kind, storage, name)
    except answers.Refusal as refusal:
        raise answers.Refusal(400, refusal.message) from refusal
    found: dict[str, Path] = {}
    for member in storage.stored:
        if extracting.kind_of(member):
            found.update(await _members(storage.folder / member, member, scratch))
        else:
            found[member] = storage.folder / member
    return found


async def _dicom_zip(call: Call, members: Mapping[str, Path]) -> list[str]:
    """Receive every member; with `dest` or `action=commit` build the sessions, and archive them if told."""
    given, target = parameters(call), _target(call)
    commit = given.get("action") == "commit" or "dest" in given
    lenient = call.flag("Ignore-Unparsable", default=commit)
    touched: dict[str, store.PrearchiveSession] = {}
    refused: answers.Refusal | None = None
    for number, (name, path) in enumerate(members.items()):
        try:
            waiting = prearchive.receive(call, path, name, target)
            touched[waiting.key] = waiting
        except answers.Refusal as refusal:
            if not lenient:
                raise
            refused = refusal
        if number % 20 == 19:
            await asyncio.sleep(0)
    if not touched and refused is not None:
        raise refused
    if not commit:
        return ["/data" + prearchive.uri_of(one) for one in touched.values()]
    return [await _commit(call, one, target) for one in touched.values()]


async def _commit(call: Call, waiting: store.PrearchiveSession, target: Target) -> str:
    """Build a session, and archive it in the request if that was asked for.

    `AA=false` and a `dest` in the prearchive hold nothing: what the project archives automatically is archived
    once it is built, only after the answer (seen on 1.9.2.1).
    """
    prearchive.build(call, waiting)
    if waiting.project not in call.store.projects or target.autoarchive != "true":
        if prearchive.is_automatic(call, waiting) and not prearchive.is_held(waiting):
            call.site.spawn(archiving.automatically(call, waiting))
        return "/data" + prearchive.uri_of(waiting)
    merge = archiving.merge_of(
        call, parameters(call).get("overwrite"), always=prearchive.is_automatic(call, waiting)
    )
    merge = replace(merge, quarantine=False)  # this route drops the parameter
    try:
        session = await archiving.archive(call, waiting, merge)
    except answers.Refusal as refusal:
        raise answers.Refusal(400, "unable to archive for the Prearchive session") from refusal
    return session_uri(call, session)


def session_uri(call: Call, session: store.StoredExperiment) -> str:
    """Return a session's archive URL with labels, as the import route gives it."""
    subject = call.store.subjects[session.subject].label
    return f"/data/archive/projects/{session.project}/subjects/{subject}/experiments/{session.label}"


async def _session_importer(call: Call, members: Mapping[str, Path]) -> list[str]:
    """Make sessions of all that is DICOM; archive in the request unless the prearchive was asked for."""
    given, target = parameters(call), _target(call)
    auto, held = target.autoarchive, replace(target, prevent_anon=False, prevent_auto_commit=True)
    target = replace(held, fresh=not target.key, autoarchive="", source="SessionImporter")
    touched: dict[str, store.PrearchiveSession] = {}
    by_study: dict[str, str] = {}
    for name, path in members.items():
        try:
            study = dicomfacts.read(path).get("StudyInstanceUID", "")
            joined = replace(target, fresh=False, key=by_study[study]) if study in by_study else target
            waiting = prearchive.receive(call, path, name, joined)
        except (answers.Refusal, ValueError):
            continue  # what is not DICOM is skipped
        by_study[waiting.tag] = waiting.key
        touched[waiting.key] = waiting
    if not touched:
        raise answers.Refusal(400, "Upload did not include parsable files for session generation.")
    for waiting in touched.values():
        prearchive.build(call, waiting)
    where = destination(given["dest"])[0] if "dest" in given else ""
    if where == "prearchive":
        return ["/data" + prearchive.uri_of(one) for one in touched.values()]
    if len(touched) > 1:
        raise answers.Refusal(400, "Upload included files for multiple imaging sessions.")
    waiting = next(iter(touched.values()))
    if not _archives(call, waiting, where, auto):
        return ["/data" + prearchive.uri_of(waiting)]
    merge = archiving.merge_of(call, given.get("overwrite"))
    return [session_uri(call, await archiving.archive(call, waiting, merge))]


def _archives(call: Call, waiting: store.PrearchiveSession, where: str, asked: str) -> bool:
    """Decide as FinishImageUpload does."""
    project = call.store.projects.get(waiting.project)
    if project is None:
        return False
    if where == "archive":
        return True
    if asked:
        return asked == "true"
    return call.prearchive_code(waiting.project) >= 4


# -- from the user cache -------------------------------------------------------------------------------------


async def _from_cache(call: Call, handler: str, scratch: Path) -> web.StreamResponse:
    """Import a file uploaded before; with a listener in the background."""
    source = usercache.located(call, call.query["src"])
    handler = handler or ("gradual-DICOM" if source.name.endswith(".dcm") else "DICOM-zip")
    listener = call.query.get("http-session-listener", "")
    if not listener:
        copy = scratch / source.name
        shutil.copyfile(source, copy)
        return answers.uri_list(await run(call, handler, copy, source.name, scratch))
    assert call.login is not None
    messages: list[dict[str, Any]] = []
    call.login.listeners[listener] = messages
    own = bodies.scratch_file(call)  # the request's own folder is gone by then
    own.mkdir()
    call.site.spawn(_in_background(call, handler, source, own, messages))
    where = "archival" if call.query.get("prearchive_code") == "1" else "prearchival"
    return answers.text(f"Submitted for {where}")


async def _in_background(
    call: Call, handler: str, source: Path, scratch: Path, messages: list[dict[str, Any]]
) -> None:
    """Import, and report progress as XNAT does.

    gradual-DICOM reports nothing. DICOM-zip ends with a terminal message only where it builds the sessions
    (DicomZipImporter.call), or where it fails.
    """
    silent = handler == "gradual-DICOM"
    try:
        copy = scratch / source.name
        shutil.copyfile(source, copy)
        if not silent:
            messages.append(_message("PROCESSING", f"Importing file ({source.name} )"))
        uris = await run(call, handler, copy, source.name, scratch)
        if handler == "DICOM-zip":
            text = f"Successfully uploaded {len(uris)}  sessions to the prearchive."
            messages.append(_message("PROCESSING", text))
        given = parameters(call)
        if not silent and (handler != "DICOM-zip" or given.get("action") == "commit" or "dest" in given):
            archived = [one for one in uris if one.startswith("/data/archive")]
            text = ";".join(one[len("/data") :] for one in uris)
            messages.append(_message("COMPLETED", f"{'Archive' if archived else 'Prearchive'}:{text}", True))
    except (answers.Refusal, OSError) as error:
        if not silent:
            messages.append(_message("FAILED", getattr(error, "message", str(error)), True))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _message(status: str, text: str, terminal: bool = False) -> dict[str, Any]:
    return {"status": status, "msg": text, "terminal": terminal}


async def status(call: Call, rest: list[str]) -> web.StreamResponse:
    """GET /data/status/{id}: the messages of a listener, as long as the login lives."""
    assert call.login is not None
    messages = call.login.listeners.get(rest[0] if rest else "")
    if messages is None:
        raise answers.Refusal(404, "There is no such listener")
    return answers.as_json({"msgs": [messages]})
