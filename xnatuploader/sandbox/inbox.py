"""The DICOM inbox: a folder on the server that is imported in the background."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import answers, archiving, bodies, prearchive, store
from xnatuploader.sandbox.calls import Call


def begin(call: Call) -> str:
    """Check a request to import `path` and start the import; return `/xapi/dicom/{id}`.

    The path has to be inbox/project/...; a wrong one, or no right, is a Refusal 400, a label in use 409.
    """
    query = call.query
    project = query.get("PROJECT_ID", query.get("project", ""))
    subject = query.get("SUBJECT_ID", query.get("subject", ""))
    label = query.get("EXPT_LABEL", query.get("session", ""))
    root = call.store.inbox.resolve()
    path = Path(query.get("path", "")).resolve()
    if project not in call.store.projects or not call.can(project, "edit"):
        raise answers.Refusal(400, f"Unable to import into project {project!r}")
    if not path.is_relative_to(root / project) or not path.exists():
        raise answers.Refusal(400, f"The path is not in the inbox of project {project}: {query.get('path')}")
    if label and call.store.experiment(project, label) is not None:
        raise answers.Refusal(409, f"A session labelled {label} exists already")
    number = call.store.next_number("inbox")
    record: dict[str, Any] = {
        "id": number,
        "status": "Queued",
        "username": call.user.name,
        "sessionPath": str(path),
        "parameters": dict(query),
        "message": "",
    }
    call.site.inbox[number] = record
    target = prearchive.Target(project, subject, label, autoarchive="true")
    call.site.spawn(_work(call, path, target, record))
    return f"/xapi/dicom/{number}"


async def _work(call: Call, path: Path, target: prearchive.Target, record: dict[str, Any]) -> None:
    record["status"] = "Importing"
    keep = call.query.get("cleanupAfterImport", "true").lower() == "false"
    found = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    touched: dict[str, store.PrearchiveSession] = {}
    try:
        for one in found:
            scratch = bodies.scratch_file(call)
            shutil.copyfile(one, scratch)
            try:
                waiting = prearchive.receive(call, scratch, one.name, target)
                touched[waiting.key] = waiting
            except answers.Refusal:
                scratch.unlink(missing_ok=True)
            await asyncio.sleep(0)
        if not touched:
            raise answers.Refusal(400, "The path holds no DICOM files")
        for waiting in touched.values():
            prearchive.build(call, waiting)
            merge = archiving.merge_of(call, call.query.get("overwrite"))
            await archiving.archive(call, waiting, merge)
        record["status"] = "Completed"
    except (answers.Refusal, OSError) as error:
        record["status"], record["message"] = "Failed", getattr(error, "message", str(error))
    if not keep:
        await asyncio.to_thread(shutil.rmtree, path, True)


def shown(call: Call, rest: list[str]) -> web.StreamResponse:
    """GET /xapi/dicom/{id}: how far an import is; /xapi/dicom/list/active: those that have not ended."""
    if rest == ["list", "active"]:
        ended = ("Completed", "Failed")
        return answers.as_json([one for one in call.site.inbox.values() if one["status"] not in ended])
    number = rest[0] if rest else ""
    record = call.site.inbox.get(int(number)) if number.isdigit() else None
    if record is None:
        raise answers.Refusal(404, "")
    return answers.as_json(record)
