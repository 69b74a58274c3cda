"""What the archive holds after an import, against what was sent.

Where XNAT leaves files as they are, their MD5s in its listing are those of what was sent. Its anonymisation
changes them, and so may its receiver, which writes DICOM anew; then the SOPInstanceUIDs in the catalogs tell
that the same objects are there, and where UIDs were changed as well only their number is left to check.
"""

from __future__ import annotations

import xml.etree.ElementTree as xml
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from xnatuploader import xnat
from xnatuploader.records import Row
from xnatuploader.xnat import tables
from xnatuploader.xnat.http import Repeats

_CATALOG = "{http://nrg.wustl.edu/catalog}"

CHECKED = {
    "md5": "Archived by XNAT's import service, with the same MD5.",
    "size": "Archived by XNAT's import service, with the same size (there is no MD5 to compare).",
    "uid": "Archived by XNAT's import service, which changed the file. Checked: the number of files, and this "
    "image's SOPInstanceUID.",
    "count": "Archived by XNAT's import service, which changed the files and their UIDs. Checked: the number of "
    "files.",
}
THERE = {
    "md5": "Was in the archive already, with the same MD5.",
    "size": "Was in the archive already, with the same size (there is no MD5 to compare).",
    "uid": "Was in the archive already, as XNAT's import service changed it. Checked: the SOPInstanceUID.",
}


@dataclass(frozen=True, slots=True)
class Sent:
    """One file as it was sent, or would be."""

    row: Row
    name: str
    size: int
    """Bytes, -1 if not known."""
    md5: str


@dataclass(frozen=True, slots=True)
class Held:
    """One file that the archive lists."""

    scan: str
    resource: str
    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Seen:
    """How a sent file was found: `how` is a key of `CHECKED`."""

    how: str
    scan: str = ""


class Archive:
    """The sessions of one project, as far as an import asks for them."""

    def __init__(self, connection: xnat.Server, project: str) -> None:
        self._server = connection
        self._project = project

    def find(self, label: str) -> str:
        """Return the ID of a session, '' if there is none. Raises `RequestFailed`."""
        return self._server.session_id(self._project, label)

    def files(self, session_id: str) -> list[Held]:
        """List every file of a session's scans. Raises `RequestFailed`."""
        path = f"{tables.session_by_id(session_id)}/scans/ALL/files"
        try:
            answer = self._server.request(
                "GET", path, {"format": "json"}, as_json=True, timeout=300.0, repeats=Repeats(record=True)
            )
        except xnat.RequestFailed as failure:
            # XNAT answers so where there is no scan at all (FileList.handleMultipleCatalogs).
            if failure.status == 500 and not self._server.scans(session_id):
                return []
            raise
        found = []
        for row in tables.rows(answer):
            scan = tables.scan_of(row)
            file = tables.remote_file(row)
            if scan and file.name:
                found.append(Held(scan, tables.cell(row, "collection"), file.name, file.size, file.digest))
        return found

    def uids(self, session_id: str, places: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return SOPInstanceUID -> scan, as the catalogs of (scan, resource) list them; none if they do not."""
        found: dict[str, str] = {}
        for scan, resource in places:
            below = f"scans/{tables.quoted(scan)}/resources/{tables.quoted(resource)}"
            path = f"{tables.session_by_id(session_id)}/{below}"
            try:
                text = self._server.request("GET", path, {"format": "xml"}, html=True).text
                root = xml.fromstring(text)
            except (xnat.RequestFailed, xml.ParseError):
                continue
            found.update((uid, scan) for entry in root.iter(f"{_CATALOG}entry") if (uid := entry.get("UID")))
        return found


def compare(
    sent: Sequence[Sent],
    held: Sequence[Held],
    uids_of: Callable[[Collection[tuple[str, str]]], Mapping[str, str]],
    *,
    alone: bool = False,
) -> dict[str, Seen]:
    """Return how each sent file was found, by `Row.file`; what is not found is left out.

    `alone`: the session holds nothing but what was sent, so that numbers may be compared as well.
    """
    seen: dict[str, Seen] = {}
    used: set[Held] = set()
    by_md5 = {one.digest: one for one in held if one.digest}
    by_name = {(one.resource, one.name, one.size): one for one in held if not one.digest}
    for one in sent:
        found = by_md5.get(one.md5) if one.md5 else None
        how = "md5"
        if found is None:
            found, how = by_name.get((one.row.resource or "DICOM", one.name, one.size)), "size"
        if found is not None:
            seen[one.row.file] = Seen(how, found.scan)
            used.add(found)
    left = [one for one in sent if one.row.file not in seen]
    free = [one for one in held if one not in used]
    if not left or not free:
        return seen
    uids = uids_of(sorted({(one.scan, one.resource) for one in free}))
    by_uid = {
        one.row.file: Seen("uid", uids[one.row.sop_instance_uid])
        for one in left
        if one.row.sop_instance_uid in uids
    }
    if not by_uid and alone and len(free) == len(left):
        return {**seen, **{one.row.file: Seen("count") for one in left}}
    return {**seen, **by_uid}
