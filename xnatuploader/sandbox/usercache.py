"""The user cache. A flag is inverted in XNAT 1.8.11: only PUT does what was meant."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from xnatuploader.sandbox import answers, bodies, extracting
from xnatuploader.sandbox.calls import Call


def _root(call: Call) -> Path:
    return call.store.cache / call.user.name


def _below(root: Path, path: str) -> Path:
    parts = [one for one in unquote(path).split("/") if one]
    if not parts or ".." in parts:
        raise answers.Refusal(400, f"Malformed path in the user cache: {path}")
    return root.joinpath(*parts)


def located(call: Call, src: str) -> Path:
    """Find `/user/cache/resources/X/files/Y`; malformed is a Refusal 400, missing 404."""
    prefix, _, rest = src.partition("/user/cache/resources/")
    folder, files, name = rest.partition("/files/")
    if prefix or not files or not name:
        raise answers.Refusal(400, f"Invalid src: {src}")
    found = _below(_root(call), folder) / name
    if ".." in name.split("/") or not found.is_file():
        raise answers.Refusal(404, f"There is no file {src}")
    return found


async def handle(call: Call, rest: list[str]) -> web.StreamResponse:
    """/data/user/cache/resources[/X[/files[/Y]]]."""
    if rest[:2] != ["cache", "resources"]:
        raise answers.unknown_address()
    folder, _, name = "/".join(rest[2:]).partition("/files")
    name = name.strip("/")
    method = call.request.method
    if method == "PUT":
        return await _put(call, folder, name)
    if method in ("GET", "HEAD"):
        return _get(call, folder, name)
    if method == "DELETE":
        return _delete(call, folder, name)
    if method == "POST":
        return await _post(call, folder, name)
    raise answers.unknown_method()


async def _put(call: Call, folder: str, name: str) -> web.StreamResponse:
    target = _below(_root(call), folder)
    if not name:
        if target.exists():
            raise answers.Refusal(412, "The resource exists already")
        target.mkdir(parents=True)
        return answers.text()
    target.mkdir(parents=True, exist_ok=True)
    if bodies.is_multipart(call):
        form = await bodies.read_form(call)
        for part in form.files:
            if call.flag("extract") and extracting.kind_of(part.name) == "zip":
                storage = extracting.Storage(target, overwrite=True, checksums=False)
                extracting.extract_zip(part.path, storage)
                part.path.unlink()
            else:
                part.path.replace(_below(target, name))
        return answers.text()
    bodies.check_length(call, 500)
    final = _below(target, name)
    final.parent.mkdir(parents=True, exist_ok=True)
    await bodies.spool(call, final)
    return answers.text()


def _get(call: Call, folder: str, name: str) -> web.StreamResponse:
    """Answer with nothing, 404, a folder's files, where folders, a folder's files, one file were meant."""
    if not folder:
        return answers.table(call.query, ("Name", "URI"), [])
    if not name:
        raise answers.Refusal(404, "Unable to find the resource in the user cache")
    target = _below(_root(call), folder)
    rows = [
        {
            "Name": one.name,
            "Size": str(one.stat().st_size),
            "URI": f"/data/user/cache/resources/{folder}/files/{one.name}",
        }
        for one in sorted(target.rglob("*"))
        if one.is_file()
    ]
    return answers.table(call.query, ("Name", "Size", "URI"), rows)


def _delete(call: Call, folder: str, name: str) -> web.StreamResponse:
    """Answer 404, or delete the folder, where a folder or one file was meant."""
    if not name:
        raise answers.Refusal(404, "Unable to find the resource in the user cache")
    target = _below(_root(call), folder)
    if not target.exists():
        raise answers.Refusal(404, "Unable to find the resource in the user cache")
    shutil.rmtree(target)
    return answers.text()


async def _post(call: Call, folder: str, name: str) -> web.StreamResponse:
    """Store files in a folder: only with a name in the URL, and under another name."""
    form = await bodies.read_form(call)
    if not name:
        form.discard()
        raise answers.Refusal(400, "Please use HTTP PUT request to specify a file name in the URL.")
    target = _below(_root(call), folder)
    target.mkdir(parents=True, exist_ok=True)
    for part in form.files:
        part.path.replace(target / part.name)
    return answers.text("File(s) successfully uploaded", 201)
