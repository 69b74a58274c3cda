"""Catalog refresh: catalogs brought in line with what lies on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from xnatuploader.sandbox import files, places, store, tables
from xnatuploader.sandbox.world import Call

OPERATIONS = ("append", "delete", "checksum", "populatestats")


async def refresh(call: Call) -> web.StreamResponse:
    """POST /data/services/refresh/catalog?resource=...&options=...: 200 with an empty body."""
    if call.request.method != "POST":
        raise tables.Refusal(405, "The method is not allowed")
    asked = call.request.query.getall("resource", [])
    if not asked:
        raise tables.Refusal(400, "No resource was named")
    resources = [one for uri in asked for one in _located(call, uri)]
    chosen = _operations(call)
    for resource in resources:
        await _refresh(call, resource, chosen)
    return tables.text()


def _operations(call: Call) -> set[str]:
    """Read the options; none that is known means all (checksums only where the site has them on)."""
    words = {
        word.strip().lower()
        for value in call.request.query.getall("options", [])
        for word in value.split(",")
    }
    words |= {one for one in ("append", "delete", "checksum", "populateStats") if call.flag(one)}
    known = {one.lower() for one in words} & set(OPERATIONS)
    if known:
        return known
    return set(OPERATIONS) - (set() if call.settings.checksums else {"checksum"})


def _located(call: Call, uri: str) -> list[store.StoredResource]:
    """Find the resources at or below a URI of the archive."""
    parts = [one for one in uri.split("/") if one]
    if parts[:1] in (["data"], ["REST"]):
        parts = parts[1:]
    if parts[:1] == ["archive"]:
        parts = parts[1:]
    if not parts or parts[0] not in ("projects", "subjects", "experiments"):
        raise tables.Refusal(400, f"Invalid Resource URI: {unquote(uri)}")
    place = places.resolve(call, places.parse(parts))
    if place.missing:
        raise tables.Refusal(400, f"Invalid Resource URI: {unquote(uri)}")
    if not call.can(place.project_id, "edit"):
        raise tables.Refusal(403, "Invalid permissions")
    if place.resource is not None:
        return [place.resource]
    return list(_below(call, place))


def _below(call: Call, place: places.Place) -> Iterable[store.StoredResource]:
    yield from call.store.resources_of(place.holder()[0])
    if place.experiment is not None and place.scan is None:
        for scan in place.experiment.scans.values():
            yield from call.store.resources_of(store.scan_key(scan))


async def _refresh(call: Call, resource: store.StoredResource, chosen: set[str]) -> None:
    folder = call.store.archive / resource.folder
    changed: dict[str, store.CatalogEntry | None] = {}
    on_disk = await asyncio.to_thread(_on_disk, folder)
    if "delete" in chosen:
        changed.update({name: None for name in resource.entries if name not in on_disk})
    if "append" in chosen:
        for name in on_disk:
            if name not in resource.entries:
                size, digest = await asyncio.to_thread(files.measure, folder / name)
                digest = digest if call.settings.checksums or "checksum" in chosen else ""
                changed[name] = store.CatalogEntry(size, digest)
    if "checksum" in chosen:
        for name, entry in resource.entries.items():
            if not entry.digest and name in on_disk:
                size, digest = await asyncio.to_thread(files.measure, folder / name)
                changed[name] = store.CatalogEntry(size, digest, entry.format, entry.content, entry.tags)
    if changed:
        call.store.save_entries(resource, changed)


def _on_disk(folder: Path) -> set[str]:
    found = (one for one in folder.rglob("*") if one.is_file() and not one.name.endswith("_catalog.xml"))
    return {one.relative_to(folder).as_posix() for one in found}
