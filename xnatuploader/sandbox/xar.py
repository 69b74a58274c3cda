"""XAR archives: a session's XML document with its files, straight into the archive."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from xnatuploader.sandbox import answers, creating, extracting, fields, files, store
from xnatuploader.sandbox.calls import Call

_XNAT = "{http://nrg.wustl.edu/xnat}"
_CATALOG = "{http://nrg.wustl.edu/catalog}"
_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"


@dataclass(frozen=True, slots=True)
class _Document:
    path: PurePosixPath
    root: ElementTree.Element


async def take(call: Call, upload: Path, storage: extracting.Storage) -> list[str]:
    """Store the session of a XAR; any error in it is a Refusal 400."""
    try:
        await asyncio.to_thread(extracting.extract_zip, upload, storage)
    except answers.Refusal as refusal:
        raise answers.Refusal(400, f"Invalid archive: {refusal.message}") from refusal
    document = _document(storage)
    base = document.path.parent / _lone_folder(upload)
    session = _session(call, document.root)
    for element in document.root.iter(f"{_XNAT}scan"):
        scan = _scan(call, session, element)
        for resource in element.findall(f"{_XNAT}file"):
            await _resource(call, session, scan, resource, storage, base)
    return [f"/archive/experiments/{session.id}"]


def _lone_folder(upload: Path) -> str:
    """Return the only folder beside the document, which XNAT cuts off all paths; empty if there are several."""
    with zipfile.ZipFile(upload) as archive:
        folders = {name.split("/", 1)[0] for name in archive.namelist() if "/" in name}
    return folders.pop() if len(folders) == 1 else ""


def _document(storage: extracting.Storage) -> _Document:
    """Find the one XML document of a session among the members."""
    found = []
    for name in storage.stored:
        if name.endswith(".xml") and not name.endswith("_catalog.xml"):
            try:
                root = ElementTree.parse(storage.folder / name).getroot()
            except ElementTree.ParseError:
                continue
            if root.tag.startswith(_XNAT) and root.tag.endswith("Session"):
                found.append(_Document(PurePosixPath(name), root))
    if len(found) != 1:
        raise answers.Refusal(400, "The archive does not hold exactly one XML document of a session")
    return found[0]


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(f"{_XNAT}{name}") or "").strip()


def _session(call: Call, root: ElementTree.Element) -> store.StoredExperiment:
    project = call.store.projects.get(root.get("project", ""))
    if project is None or not call.can(project.id, "edit"):
        raise answers.Refusal(400, "The document names no project to which you may add")
    subject = call.store.subject(project.id, _text(root, "subject_ID"))
    if subject is None:
        raise answers.Refusal(400, "The subject of the document does not exist in the project")
    label = root.get("label", "")
    xsi = root.get(_TYPE) or _type_of(root.tag)
    given = {name: _text(root, name) for name in fields.EXPERIMENT if "/" not in name and _text(root, name)}
    given.update({name: root.get(name, "") for name in ("UID", "modality") if root.get(name)})
    known = call.store.experiment(project.id, label)
    if known is None:
        return creating.new_experiment(call, project, subject, label, xsi, given)
    if known.subject != subject.id:
        raise answers.Refusal(400, "The session exists under another subject")
    known.fields.update(given)
    call.store.save_experiment(known)
    return known


def _type_of(tag: str) -> str:
    """Return the xsiType of a root element, as `CTSession` -> `xnat:ctSessionData`."""
    word = tag[len(_XNAT) : -len("Session")]
    names = {kind.lower(): kind for kind in fields.MODALITIES}
    if word.lower() not in names:
        raise answers.Refusal(400, f"{word}Session is not a type of session")
    return f"xnat:{names[word.lower()]}SessionData"


def _scan(call: Call, session: store.StoredExperiment, element: ElementTree.Element) -> store.StoredScan:
    scan_id, xsi = element.get("ID", ""), element.get(_TYPE, "")
    if not scan_id or xsi not in fields.KNOWN_SCANS:
        raise answers.Refusal(400, "A scan of the document has no ID or no type")
    known = session.scans.get(scan_id)
    if known is None:
        known = call.store.new_scan(session, scan_id, xsi)
    given = {name: element.get(name, "") for name in ("type", "UID") if element.get(name)}
    more = {name: _text(element, name) for name in fields.SCAN if "/" not in name and _text(element, name)}
    known.fields.update({**more, **given})
    call.store.save_scan(known)
    return known


async def _resource(
    call: Call,
    session: store.StoredExperiment,
    scan: store.StoredScan,
    element: ElementTree.Element,
    storage: extracting.Storage,
    base: PurePosixPath,
) -> None:
    label, uri = element.get("label", "DICOM"), element.get("URI", "")
    catalog = storage.folder / base / uri
    if ".." in uri.split("/") or not catalog.is_file():
        raise answers.Refusal(400, f"The archive does not hold {uri}")
    resource = call.store.resource(scan.key, label)
    if resource is None:
        folder = f"{session.scan_folder(scan)}/{label}"
        resource = call.store.new_resource(
            scan.key, label, folder, element.get("format", ""), element.get("content", "")
        )
    entries: dict[str, store.CatalogEntry | None] = {}
    for name, digest, uid in _entries(catalog):
        source = catalog.parent / name
        target = call.store.archive / resource.folder / name
        if not source.is_file():
            continue
        if target.exists() and name in resource.entries:
            raise answers.Refusal(409, "Session already exists with matching files.")
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        size, _ = await asyncio.to_thread(files.measure, target)
        entries[name] = store.CatalogEntry(size, digest, uid=uid)
    call.store.save_entries(resource, entries)


def _entries(catalog: Path) -> Iterator[tuple[str, str, str]]:
    """Yield name, digest and SOPInstanceUID of the files that a catalog names."""
    try:
        root = ElementTree.parse(catalog).getroot()
    except ElementTree.ParseError as error:
        raise answers.Refusal(400, f"{catalog.name} is not well-formed") from error
    for entry in root.iter(f"{_CATALOG}entry"):
        name = entry.get("URI", "")
        if name and ".." not in name.split("/"):
            yield name, entry.get("digest", ""), entry.get("UID", "")
