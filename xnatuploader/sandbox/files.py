"""Files of a resource: put, extract, list, read, delete."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import addresses, answers, bodies, extracting, store
from xnatuploader.sandbox.addresses import Address
from xnatuploader.sandbox.calls import Call

COLUMNS = (
    "Name",
    "Size",
    "URI",
    "collection",
    "file_tags",
    "file_format",
    "file_content",
    "cat_ID",
    "digest",
)
RACE = "Another thread or process modified the catalog {}: the file could not be added to it"


async def handle(call: Call, address: Address) -> web.StreamResponse:
    """Answer a request for `.../files[/path]`."""
    method = call.request.method
    if method in ("GET", "HEAD"):
        return await _read(call, address)
    if method in ("PUT", "POST"):
        return await put(call, address)
    if method == "DELETE":
        return await delete(call, address)
    raise answers.unknown_method()


# -- storing -------------------------------------------------------------------------------------------------


async def put(call: Call, address: Address) -> web.StreamResponse:
    """Store a file, or the members of an archive. Without the right to edit: 200, and nothing is stored."""
    addresses.require_parents(call, address)
    if not call.can(address.project_id, "edit") or call.plan.find("lose"):
        await bodies.discard(call)
        return answers.text()
    if "resources" not in address.names:
        raise answers.Refusal(400, "No resource was named")
    incoming = FileUpload(call, address)
    try:
        if bodies.is_multipart(call):
            await incoming.take_form()
        else:
            bodies.check_length(call, 500)
            await incoming.take_raw()
    finally:
        incoming.tidy()
    await incoming.write_catalog()
    if incoming.storage.duplicates:
        body = json.dumps({"duplicates": incoming.storage.duplicates}, separators=(",", ":"))
        return web.Response(text=body, content_type="text/html")
    return answers.text()


class FileUpload:
    """Stores the files of one request in a resource, and lists them in its catalog."""

    def __init__(self, call: Call, address: Address) -> None:
        self.call, self.address = call, address
        self.label = address.names["resources"]
        self.resource = address.resource
        self.read_at = self.resource.generation if self.resource else -1
        if self.resource is not None:
            self.folder = self.resource.folder
        else:
            self.folder = f"{address.holder()[1]}/{self.label}"
        plan = call.plan
        corrupt = next((w for w in ("corrupt", "silent-corrupt", "lying-digest") if plan.find(w)), "")
        self.storage = extracting.Storage(
            call.store.archive / self.folder,
            call.flag("overwrite"),
            call.settings.checksums,
            corrupt,
            plan.find("disk-full") is not None,
        )
        self._scratch: list[Path] = []

    def tidy(self) -> None:
        """Remove what was spooled."""
        for path in self._scratch:
            path.unlink(missing_ok=True)

    async def take_raw(self) -> None:
        """Take the body as one file or archive. The catalog was read before: another request may change it now."""
        named = self.address.file.rstrip("/")
        name = named.rsplit("/", 1)[-1] or bodies.raw_name(self.call)
        kind = extracting.kind_of(name) if self.call.flag("extract") else ""
        if kind == "zip":
            await self._take_zip()
        elif kind:
            await self._take_stream(kind, name)
        else:
            await self._take_single(addresses.clean_path(named or name))

    async def _take_single(self, path: str) -> None:
        out = (
            await asyncio.to_thread(self.storage.open, path) if self._is_large() else self.storage.open(path)
        )
        if out is None:
            await bodies.discard(self.call)
            return
        with out:
            writer = extracting.Writer(self.storage, out)
            async for batch in bodies.batches(self.call):
                if len(batch) < 131072:
                    writer.write(batch)
                else:
                    await asyncio.to_thread(writer.write, batch)
        self.storage.stored[path] = writer.entry()

    def _is_large(self) -> bool:
        return (self.call.request.content_length or 0) > bodies.BATCH

    async def _take_zip(self) -> None:
        spooled = bodies.scratch_file(self.call)
        self._scratch.append(spooled)
        try:
            await bodies.spool(self.call, spooled)
        except answers.Cut:
            await asyncio.to_thread(extracting.salvage_zip, spooled, self.storage)
            raise
        await asyncio.to_thread(extracting.extract_zip, spooled, self.storage)

    async def _take_stream(self, kind: str, name: str) -> None:
        feed = bodies.Feed()
        work = asyncio.ensure_future(asyncio.to_thread(self._extract, feed, kind, name))
        broken = True
        try:
            async for batch in bodies.batches(self.call):
                await feed.put(batch)
            broken = False
        finally:
            feed.end(broken)
            try:
                await work
            except answers.Cut:
                if not broken:
                    raise

    def _extract(self, feed: bodies.Feed, kind: str, name: str) -> None:
        try:
            extracting.extract_stream(feed.read, kind, self.storage, name)
        finally:
            feed.abandon()

    async def take_form(self) -> None:
        """Take the files of a multipart form; it is spooled before the catalog is read, to leave others little time."""
        form = await bodies.read_form(self.call)
        self._scratch += [part.path for part in form.files]
        if not form.files:
            raise answers.Refusal(400, "No file was found in the request")
        current = self.address.resource
        self.read_at = current.generation if current else -1
        await asyncio.to_thread(self._store_parts, form)

    def _store_parts(self, form: bodies.MultipartForm) -> None:
        for part in form.files:
            kind = extracting.kind_of(part.name) if self.call.flag("extract") else ""
            if kind:
                extracting.extract_file(part.path, kind, self.storage, part.name)
            else:
                with part.path.open("rb") as source:
                    pieces = iter(lambda s=source: s.read(bodies.BATCH), b"")  # type: ignore[misc]
                    self.storage.write(self.address.file.rstrip("/") or part.name, pieces)

    async def write_catalog(self) -> None:
        """Write the catalog. If another request did since it was read, the answer is 500 and the bytes stay."""
        call, query = self.call, self.call.query
        if call.plan.find("race"):
            raise answers.Refusal(500, RACE.format(f"{self.label}_catalog.xml"))
        holder = self.address.holder()[0]
        known = call.store.resource(holder, self.label)
        if self.resource is None and known is not None and self.address.names["resources"] == known.label:
            raise answers.Refusal(500, RACE.format(f"{self.label}_catalog.xml"))
        if self.resource is None:
            content = query.get("content", "") or ("RAW" if self.address.scan is not None else "")
            self.resource = call.store.new_resource(
                holder, self.label, self.folder, format=query.get("format", ""), content=content
            )
        elif not self.resource.present or self.resource.generation != self.read_at:
            raise answers.Refusal(500, RACE.format(self.resource.catalog))
        for entry in self.storage.stored.values():
            entry.format, entry.content = query.get("format", ""), query.get("content", "")
            entry.tags = query.get("tags", "")
        changed = dict(self.storage.stored)
        changed.update(await missing_digests(call, self.resource, changed))
        if changed:
            call.store.save_entries(self.resource, changed)


async def missing_digests(
    call: Call, resource: store.StoredResource, changed: dict[str, store.CatalogEntry]
) -> dict[str, store.CatalogEntry]:
    """Return entries whose digest was empty with one, if the site has checksums on."""
    if not call.settings.checksums:
        return {}
    bare = [name for name, one in resource.entries.items() if not one.digest and name not in changed]
    if not bare:
        return {}
    folder = call.store.archive / resource.folder
    return await asyncio.to_thread(digested, folder, {name: resource.entries[name] for name in bare})


def digested(folder: Path, entries: dict[str, store.CatalogEntry]) -> dict[str, store.CatalogEntry]:
    """Return those entries whose file is there, with its size and digest."""
    found = {}
    for name, entry in entries.items():
        size, digest = measure(folder / name)
        if digest:
            found[name] = replace(entry, size=size, digest=digest)
    return found


def measure(path: Path) -> tuple[int, str]:
    """Return a file's size and MD5; a missing file has an empty digest."""
    try:
        with path.open("rb") as source:
            digest = hashlib.md5(usedforsecurity=False)
            for piece in iter(lambda: source.read(bodies.BATCH), b""):
                digest.update(piece)
            return source.tell(), digest.hexdigest()
    except OSError:
        return 0, ""


# -- listing and reading -------------------------------------------------------------------------------------


async def _read(call: Call, address: Address) -> web.StreamResponse:
    if address.missing == "projects" or (
        address.experiment is None and address.missing and not address.project
    ):
        raise answers.Refusal(404 if address.missing == "projects" else 500, "Unable to find the parent")
    if "scans" in address.names and "projects" not in address.names and not address.scans:
        # FileList finds no project to ask then: a NullPointerException.
        raise answers.Refusal(500, "")
    if not address.file:
        return await _zipped(call, address) if call.query.get("format") == "zip" else listing(call, address)
    if address.missing or address.resource is None:
        raise answers.Refusal(404, "Unable to find file.")
    entry = address.resource.entries.get(address.file.strip("/"))
    path = call.store.archive / address.resource.folder / address.file.strip("/")
    if entry is None or not path.is_file():
        if call.flag("accept-not-found"):
            return web.Response(status=204)
        raise answers.Refusal(404, "Unable to find file.")
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})


def _listed(call: Call, address: Address) -> list[tuple[str, store.StoredResource]]:
    """Return the resources whose files are asked for, each with the URL of its holder."""
    found: list[tuple[str, store.StoredResource]] = []
    if "scans" in address.names:
        found = [
            (f"{address.prefix()}/scans/{one.id}", held)
            for one in address.scans
            for held in _of_scan(call, one)
        ]
    elif not address.missing or address.missing == "resources":
        found = [(address.prefix(), one) for one in call.store.resources_of(address.holder()[0])]
        if call.flag("all") and address.experiment is not None:
            for scan in address.experiment.scans.values():
                found += [(f"{address.prefix()}/scans/{scan.id}", one) for one in _of_scan(call, scan)]
    name = address.names.get("resources")
    return [(prefix, one) for prefix, one in found if name in (None, one.label, str(one.number))]


def _of_scan(call: Call, scan: store.StoredScan) -> Iterable[store.StoredResource]:
    return call.store.resources_of(scan.key)


def listing(call: Call, address: Address) -> web.StreamResponse:
    """Answer with the table of files; a scan or resource that is missing has none."""
    rows: list[dict[str, str]] = []
    for prefix, resource in _listed(call, address):
        base, number = f"{prefix}/resources/{resource.number}/files/", str(resource.number)
        for name, entry in resource.entries.items():
            rows.append(
                {
                    "Name": name.rsplit("/", 1)[-1],
                    "Size": str(entry.size),
                    "URI": base + name,
                    "collection": resource.label,
                    "file_tags": entry.tags,
                    "file_format": entry.format or resource.format,
                    "file_content": entry.content or resource.content,
                    "cat_ID": number,
                    "digest": entry.digest,
                }
            )
    rows = _chosen(call, rows)
    truncate = call.plan.find("truncate")
    if truncate is not None:
        rows = rows[: truncate.keep]
    info = {"URI": {"serverRoot": call.site.options.context}}
    answer = answers.table(call.query, COLUMNS, rows, title="Files", column_info=info, total=False)
    if call.plan.find("cut-listing") and isinstance(answer.body, bytes):
        answer.body = answer.body[: len(answer.body) // 2]
    return answer


async def _zipped(call: Call, address: Address) -> web.Response:
    """Answer with the files themselves, under the names that FileList gives them; without one it is a Refusal 404."""
    experiment = address.experiment
    label = experiment.label if experiment is not None else address.project_id
    names = {
        one.id: f"{one.id}-{re.sub(r'[^A-Za-z0-9_]', '_', one.fields['type'])}"
        for one in (experiment.scans.values() if experiment is not None else ())
        if one.fields.get("type")
    }
    found: dict[str, Path] = {}
    for prefix, resource in _listed(call, address):
        parent, _, scan = prefix.rpartition("/scans/")
        folder = f"{label}/scans/{names.get(scan, scan)}" if parent else label
        for name in resource.entries:
            path = call.store.archive / resource.folder / name
            if path.is_file():
                found[f"{folder}/resources/{resource.label}/files/{name}"] = path
    if not found:
        raise answers.Refusal(404, "")
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, path in found.items():
            await asyncio.to_thread(archive.write, path, name)
    return web.Response(body=body.getvalue(), content_type="application/zip")


def _chosen(call: Call, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    for parameter in ("file_format", "file_content"):
        wanted = call.query.get(parameter)
        if wanted:
            rows = [row for row in rows if row[parameter] in wanted.split(",")]
    index = call.query.get("index")
    if index is not None:
        if not index.isdigit() or int(index) >= len(rows):
            raise answers.Refusal(404, "There is no file of that number")
        rows = [rows[int(index)]]
    return rows


# -- deleting ------------------------------------------------------------------------------------------------


async def delete(call: Call, address: Address) -> web.StreamResponse:
    """Delete all files whose path begins with the one given, all if it is empty."""
    addresses.require_parents(call, address)
    if not call.can(address.project_id, "delete"):
        raise answers.Refusal(403, "User does not have permission to delete files here")
    if address.resource is None:
        raise answers.Refusal(404, "No matched files")
    resource, matches = address.resource, _matcher(address.file)
    gone = [name for name in resource.entries if matches(name)]
    if not gone:
        if call.flag("accept-not-found"):
            return web.Response(status=204)
        raise answers.Refusal(404, "No matched files")
    if call.flag("removeFiles", default=True):
        await asyncio.to_thread(_unlink, call.store.archive / resource.folder, gone)
    nothing: dict[str, Any] = dict.fromkeys(gone)
    call.store.save_entries(resource, nothing)
    return answers.text()


def _matcher(path: str) -> Callable[[str], bool]:
    if path.endswith("*"):
        pattern = re.compile(path[:-1] + ".*")  # a dot stands for any character, as on the server
        return lambda name: bool(pattern.match(name))
    return lambda name: name.startswith(path)


def _unlink(folder: Path, names: list[str]) -> None:
    for name in names:
        try:
            (folder / name).unlink()
        except OSError:
            pass  # it is deleted already
