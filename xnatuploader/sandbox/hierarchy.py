"""Projects, subjects, sessions, scans and resources: listed, created, changed, deleted."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from xnatuploader.sandbox import addresses, answers, creating, fields, files, listings, routing, store
from xnatuploader.sandbox.addresses import Address
from xnatuploader.sandbox.calls import Call

Handler = Callable[[Call, Address], Awaitable[web.StreamResponse]]


async def handle(call: Call, found: routing.Match) -> web.StreamResponse:
    """Answer a request below `/data/projects`, `/data/subjects` or `/data/experiments`."""
    if found.route.served_by == "ProjectAccessibilityResource":
        return answers.text("private")
    address = addresses.from_route(found)
    addresses.resolve(call, address)
    if address.served_by == "ProjectResource" and address.rest:
        return _project_setting(call, address)
    if address.last == "files":
        return await files.handle(call, address)
    method = call.request.method
    if method in ("GET", "HEAD"):
        if address.rest == "history" and address.experiment is not None and address.last == "experiments":
            return answers.as_json({"events": call.site.history.get(address.experiment.id, [])})
        return listings.read(call, address)
    if address.rest:
        # Only sharing is done below a record (`.../projects/Q`), and the sandbox has none.
        raise answers.Refusal(400, "")
    if method == "DELETE" and not address.is_listing:
        return await _delete(call, address)
    if method not in ("PUT", "POST") or (address.is_listing and method == "PUT"):
        raise answers.unknown_method()
    handler = _PUT.get(address.last)
    if handler is None or address.is_listing:
        raise answers.unknown_method()
    return await handler(call, address)


# -- project -------------------------------------------------------------------------------------------------


def _project_setting(call: Call, address: Address) -> web.StreamResponse:
    """/data/projects/P/prearchive_code[/n]: how sessions get from the prearchive into the archive."""
    if address.project is None:
        raise answers.Refusal(404, "Unable to find the specified project")
    word, _, value = address.rest.partition("/")
    if call.request.method in ("GET", "HEAD"):
        if word == "prearchive_code":
            return answers.text(str(call.prearchive_code(address.project.id)))
        return listings.read(call, address)
    if word != "prearchive_code":
        raise answers.Refusal(400, "")
    if not call.can(address.project.id, "delete"):
        raise answers.Refusal(403, "User does not have permission to change this project")
    if value not in ("0", "4", "5"):
        raise answers.Refusal(400, "The prearchive code has to be 0, 4 or 5")
    address.project.code = int(value)
    call.store.save_project(address.project)
    return answers.text()


async def _put_project(call: Call, address: Address) -> web.StreamResponse:
    name = address.names["projects"]
    if not addresses.VALID_LABEL.fullmatch(name):
        raise answers.Refusal(417, "Invalid character in project ID.")
    existing = call.store.projects.get(name)
    if existing is None:
        if call.user.role not in ("admin", "owner"):
            raise answers.Refusal(403, "User does not have permission to create projects")
        if any(one.lower() == name.lower() for one in call.store.projects):
            raise answers.Refusal(409, f"A project with the ID {name} exists already")
        existing = store.StoredProject(name, {"name": name})
    elif not call.can(name, "delete"):
        raise answers.Refusal(403, "User does not have permission to change this project")
    existing.fields.update(fields.given("project", "xnat:projectData", call.query))
    call.store.save_project(existing)
    return answers.text(name)


# -- resource ------------------------------------------------------------------------------------------------


async def _put_resource(call: Call, address: Address) -> web.StreamResponse:
    addresses.require_parents(call, address)
    if not call.can(address.project_id, "edit"):
        raise answers.Refusal(403, "User does not have permission to add resources here")
    label, query = address.names["resources"], call.query
    if ".." in label or "/" in label or "\\" in label:
        raise answers.Refusal(400, "The label of the resource is not a clean path")
    holder, folder = address.holder()
    if call.store.resource(holder, label) is not None:
        raise answers.Refusal(409, "Specified resource already exists.")
    call.store.new_resource(
        holder,
        label,
        f"{folder}/{label}",
        format=query.get("format", ""),
        content=query.get("content", ""),
    )
    return answers.text()


# -- deleting ------------------------------------------------------------------------------------------------


async def _delete(call: Call, address: Address) -> web.StreamResponse:
    """Delete a record and what is below it. Files stay on disk unless `removeFiles=true`."""
    if address.missing or not address.last:
        raise answers.Refusal(404, f"Unable to find the specified {address.last[:-1]}")
    if not call.can(address.project_id, "delete"):
        raise answers.Refusal(403, "User account doesn't have permission to delete this")
    folders = _forget(call, address)
    if call.flag("removeFiles"):
        await asyncio.to_thread(_remove, [call.store.archive / one for one in folders])
    return answers.text()


def _forget(call: Call, address: Address) -> list[str]:
    kept = call.store
    if address.last == "resources" and address.resource is not None:
        kept.delete("resource", address.resource.number)
        return [address.resource.folder]
    if address.last == "scans" and address.scan is not None and address.experiment is not None:
        return [_forget_scan(call, address.experiment, address.scan)]
    if address.last == "experiments" and address.experiment is not None:
        return [forget_session(call, address.experiment)]
    subjects = [address.subject] if address.last == "subjects" and address.subject else []
    if address.last == "projects" and address.project is not None:
        subjects = kept.subjects_of(address.project.id)
    folders = []
    for subject in filter(None, subjects):
        folders += [forget_session(call, one) for one in kept.experiments_of(subject.project, subject.id)]
        kept.delete("subject", subject.id)
    if address.last == "projects" and address.project is not None:
        kept.delete("project", address.project.id)
        folders.append(address.project.id)
    return folders


def _forget_scan(call: Call, experiment: store.StoredExperiment, scan: store.StoredScan) -> str:
    for resource in list(call.store.resources_of(scan.key)):
        call.store.delete("resource", resource.number)
    call.store.delete("scan", (experiment.id, scan.id))
    return experiment.scan_folder(scan)


def forget_session(call: Call, experiment: store.StoredExperiment) -> str:
    """Remove a session and all below it from the records; return its folder, relative to the archive."""
    for scan in list(experiment.scans.values()):
        _forget_scan(call, experiment, scan)
    for resource in list(call.store.resources_of(experiment.key)):
        call.store.delete("resource", resource.number)
    call.store.delete("experiment", experiment.id)
    return experiment.folder


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


_PUT: dict[str, Handler] = {
    "projects": _put_project,
    "subjects": creating.put_subject,
    "experiments": creating.put_experiment,
    "scans": creating.put_scan,
    "resources": _put_resource,
}
