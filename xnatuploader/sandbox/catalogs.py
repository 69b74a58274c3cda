"""Catalog refresh: catalogs brought in line with what lies on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from xnatuploader.sandbox import addresses, answers, files, store
from xnatuploader.sandbox.calls import Call

OPERATIONS = ("append", "delete", "checksum", "populatestats")


async def refresh(call: Call) -> web.StreamResponse:
    """POST /data/services/refresh/catalog?resource=...&options=...: 200 with an empty body."""
    if call.request.method != "POST":
        raise answers.unknown_method()
    asked = call.request.query.getall("resource", [])
    if not asked:
        raise answers.Refusal(400, "No resource was named")
    resources = [one for uri in asked for one in _located(call, uri)]
    chosen = _operations(call)
    for resource in resources:
        await _refresh(call, resource, chosen)
    return answers.text()


def _operations(call: Call) -> set[str]:
    """Read the options; without a known one all apply (checksum only if the site has checksums on)."""
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
    parts = addresses.uri_parts(uri)
    if parts[:1] == ["archive"]:
        parts = parts[1:]
    if not parts or parts[0] not in ("projects", "subjects", "experiments"):
        raise answers.Refusal(400, f"Invalid Resource URI: {unquote(uri)}")
    address = addresses.resolve(call, addresses.from_uri(parts))
    if address.missing:
        raise answers.Refusal(400, f"Invalid Resource URI: {unquote(uri)}")
    if not call.can(address.project_id, "edit"):
        raise answers.Refusal(403, "Invalid permissions")
    if address.resource is not None:
        return [address.resource]
    return list(_below(call, address))


def _below(call: Call, address: addresses.Address) -> Iterable[store.StoredResource]:
    yield from call.store.resources_of(address.holder()[0])
    if address.experiment is not None and address.scan is None:
        for scan in address.experiment.scans.values():
            yield from call.store.resources_of(scan.key)


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
        there = {name: one for name, one in resource.entries.items() if name in on_disk}
        changed.update(await asyncio.to_thread(files.digested, folder, there))
    if changed:
        call.store.save_entries(resource, changed)


def _on_disk(folder: Path) -> set[str]:
    found = (one for one in folder.rglob("*") if one.is_file() and not one.name.endswith("_catalog.xml"))
    return {one.relative_to(folder).as_posix() for one in found}
