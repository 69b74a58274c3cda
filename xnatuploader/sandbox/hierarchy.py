"""Projects, subjects, sessions, scans and resources: listed, created, changed, deleted."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from xnatuploader.sandbox import fields, files, lists, places, routing, sessions, store, tables
from xnatuploader.sandbox.places import Place
from xnatuploader.sandbox.world import Actor, Call

Handler = Callable[[Call, Place], Awaitable[web.StreamResponse]]


async def handle(call: Call, found: routing.Match) -> web.StreamResponse:
    """Answer a request below `/data/projects`, `/data/subjects` or `/data/experiments`."""
    if found.route.served_by == "ProjectAccessibilityResource":
        return tables.text("private")
    place = places.addressed(found)
    places.resolve(call, place)
    if place.served_by == "ProjectResource" and place.rest:
        return _project_setting(call, place)
    if place.last == "files":
        return await files.handle(call, place)
    method = call.request.method
    if method in ("GET", "HEAD"):
        if place.rest == "history" and place.experiment is not None and place.last == "experiments":
            return tables.as_json({"events": call.world.history.get(place.experiment.id, [])})
        return lists.read(call, place)
    if place.rest:
        # Only sharing is done below a record (`.../projects/Q`), and the sandbox has none.
        raise tables.Refusal(400, "")
    if method == "DELETE" and not place.is_listing:
        return await _delete(call, place)
    if method not in ("PUT", "POST") or (place.is_listing and method == "PUT"):
        raise tables.Refusal(405, "The method is not allowed")
    handler = _PUT.get(place.last)
    if handler is None or place.is_listing:
        raise tables.Refusal(405, "The method is not allowed")
    return await handler(call, place)


# -- project -------------------------------------------------------------------------------------------------


def _project_setting(call: Call, place: Place) -> web.StreamResponse:
    """/data/projects/P/prearchive_code[/n]: how sessions get from the prearchive into the archive."""
    if place.project is None:
        raise tables.Refusal(404, "Unable to find the specified project")
    word, _, value = place.rest.partition("/")
    if call.request.method in ("GET", "HEAD"):
        if word == "prearchive_code":
            return tables.text(str(project_code(call, place.project)))
        return lists.read(call, place)
    if word != "prearchive_code":
        raise tables.Refusal(400, "")
    if not call.can(place.project.id, "delete"):
        raise tables.Refusal(403, "User does not have permission to change this project")
    if value not in ("0", "4", "5"):
        raise tables.Refusal(400, "The prearchive code has to be 0, 4 or 5")
    place.project.code = int(value)
    call.store.save_project(place.project)
    return tables.text()


def project_code(actor: Actor, project: store.StoredProject) -> int:
    """Return a project's prearchive code (the site's default where it has none)."""
    return project.code if project.code >= 0 else actor.settings.auto_archive


async def _put_project(call: Call, place: Place) -> web.StreamResponse:
    name = place.names["projects"]
    if not places.VALID_LABEL.fullmatch(name):
        raise tables.Refusal(417, "Invalid character in project ID.")
    existing = call.store.projects.get(name)
    if existing is None:
        if call.user.role not in ("admin", "owner"):
            raise tables.Refusal(403, "User does not have permission to create projects")
        if any(one.lower() == name.lower() for one in call.store.projects):
            raise tables.Refusal(409, f"A project with the ID {name} exists already")
        existing = store.StoredProject(name, {"name": name}, insert_date=store.now_text())
    elif not call.can(name, "delete"):
        raise tables.Refusal(403, "User does not have permission to change this project")
    existing.fields.update(fields.given("project", "xnat:projectData", call.query))
    call.store.save_project(existing)
    return tables.text(name)


# -- resource ------------------------------------------------------------------------------------------------


async def _put_resource(call: Call, place: Place) -> web.StreamResponse:
    places.require_parents(call, place)
    if not call.can(place.project_id, "edit"):
        raise tables.Refusal(403, "User does not have permission to add resources here")
    label, query = place.names["resources"], call.query
    if ".." in label or "/" in label or "\\" in label:
        raise tables.Refusal(400, "The label of the resource is not a clean path")
    holder, folder = place.holder()
    if any(one.label == label for one in call.store.resources_of(holder)):
        raise tables.Refusal(409, "Specified resource already exists.")
    call.store.new_resource(
        holder,
        label,
        f"{folder}/{label}",
        format=query.get("format", ""),
        content=query.get("content", ""),
    )
    return tables.text()


# -- deleting ------------------------------------------------------------------------------------------------


async def _delete(call: Call, place: Place) -> web.StreamResponse:
    """Delete a record and what is below it. Files stay on disk unless `removeFiles=true`."""
    if place.missing or not place.last:
        raise tables.Refusal(404, f"Unable to find the specified {place.last[:-1]}")
    if not call.can(place.project_id, "delete"):
        raise tables.Refusal(403, "User account doesn't have permission to delete this")
    folders = _forget(call, place)
    if call.flag("removeFiles"):
        await asyncio.to_thread(_remove, [call.store.archive / one for one in folders])
    return tables.text()


def _forget(call: Call, place: Place) -> list[str]:
    kept = call.store
    if place.last == "resources" and place.resource is not None:
        kept.delete("resource", place.resource.number)
        return [place.resource.folder]
    if place.last == "scans" and place.scan is not None and place.experiment is not None:
        return [_forget_scan(call, place.experiment, place.scan)]
    if place.last == "experiments" and place.experiment is not None:
        return [forget_session(call, place.experiment)]
    subjects = [place.subject] if place.last == "subjects" and place.subject else []
    if place.last == "projects" and place.project is not None:
        subjects = kept.subjects_of(place.project.id)
    folders = []
    for subject in filter(None, subjects):
        folders += [forget_session(call, one) for one in kept.experiments_of(subject.project, subject.id)]
        kept.delete("subject", subject.id)
    if place.last == "projects" and place.project is not None:
        kept.delete("project", place.project.id)
        folders.append(place.project.id)
    return folders


def _forget_scan(call: Call, experiment: store.StoredExperiment, scan: store.StoredScan) -> str:
    for resource in list(call.store.resources_of(store.scan_key(scan))):
        call.store.delete("resource", resource.number)
    call.store.delete("scan", (experiment.id, scan.id))
    return f"{store.session_folder(experiment)}/SCANS/{scan.id}"


def forget_session(call: Call, experiment: store.StoredExperiment) -> str:
    """Take a session and all below it out of the records; return its folder, relative to the archive."""
    for scan in list(experiment.scans.values()):
        _forget_scan(call, experiment, scan)
    for resource in list(call.store.resources_of(store.experiment_key(experiment))):
        call.store.delete("resource", resource.number)
    call.store.delete("experiment", experiment.id)
    return store.session_folder(experiment)


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


_PUT: dict[str, Handler] = {
    "projects": _put_project,
    "subjects": sessions.put_subject,
    "experiments": sessions.put_experiment,
    "scans": sessions.put_scan,
    "resources": _put_resource,
}
