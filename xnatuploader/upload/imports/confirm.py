"""What the archive or the prearchive holds after an import, against what was sent.

Where XNAT leaves files as they are, their MD5s in its listing are those of what was sent. Its anonymisation, which
is on unless the site has switched it off, changes them; then the SOPInstanceUIDs in the catalogs tell that the same
images are there. A file whose UID is not there was not seen, however many files are listed.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from xnatuploader.records import Row
from xnatuploader.xnat import RemoteFile

CHECKED = {
    "md5": "Archived by XNAT's import service, with the same MD5.",
    "size": "Archived by XNAT's import service, with the same size (there is no MD5 to compare).",
    "uid": "Archived by XNAT's import service, which changed the file. Checked: the number of files, and this "
    "image's SOPInstanceUID.",
}
THERE = {
    "md5": "Was in the archive already, with the same MD5.",
    "uid": "Was in the archive already, as XNAT's import service changed it. Checked: the SOPInstanceUID.",
}
UNTOLD = (
    "Archived, but XNAT changed the file and its SOPInstanceUID, so that nothing tells whether it is there. Look at "
    "the session in XNAT, then set Upload to N."
)
SHARED_UID = (
    "Archived, but another file that was sent has the same SOPInstanceUID, and XNAT changed both, so that nothing "
    "tells whether each is there. Compare the two files, and set Upload to N for the wrong one."
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One file as it was sent, or would be."""

    row: Row
    size: int
    """Bytes, -1 if not known."""
    md5: str
    scan: str = ""
    """ID of the scan that it is planned for."""

    @property
    def place(self) -> tuple[str, str, str]:
        """Scan, resource and name of the file."""
        return self.scan, self.row.resource or "DICOM", self.row.filename


@dataclass(frozen=True, slots=True)
class Seen:
    """How a sent file was found (`how` is a key of `CHECKED`), and in which scan."""

    how: str
    scan: str


def compare(
    sent: Sequence[Sent],
    held: Sequence[RemoteFile],
    uids_of: Callable[[Collection[tuple[str, str]]], Mapping[str, str]],
    *,
    by_size: bool = True,
) -> dict[str, Seen]:
    """Return how each sent file was found, by `Row.file`; what is not found is left out.

    `uids_of` gives SOPInstanceUID -> scan as the catalogs of (scan, resource) list them; it is called only where the
    MD5s do not tell. Without MD5 a file of the same size counts only with `by_size`, and never where its scan's
    catalog lists UIDs and not this one.
    """
    by_md5: dict[str, list[RemoteFile]] = defaultdict(list)
    for remote in held:
        if remote.digest:
            by_md5[remote.digest].append(remote)
    seen: dict[str, Seen] = {}
    used: set[RemoteFile] = set()
    for one in sent:
        same = by_md5.get(one.md5, ()) if one.md5 else ()
        if same:
            found = next((remote for remote in same if remote.scan == one.scan), same[0])
            seen[one.row.file] = Seen("md5", found.scan)
            used.add(found)
    left = [one for one in sent if one.row.file not in seen]
    free = [one for one in held if one not in used]
    if not left or not free:
        return seen
    uids = uids_of(sorted({(one.scan, one.resource) for one in free}))
    catalogued = set(uids.values())
    plain = {(one.scan, one.resource, one.name): one.size for one in free if not one.digest}
    shared = shared_uids(sent)
    for one in left:
        uid = one.row.sop_instance_uid
        same_size = by_size and plain.get(one.place) == one.size
        if uid in uids and uid not in shared:
            seen[one.row.file] = Seen("size" if same_size else "uid", uids[uid])
        elif same_size and one.scan not in catalogued:
            seen[one.row.file] = Seen("size", one.scan)
    return seen


def shared_uids(sent: Collection[Sent]) -> set[str]:
    """Return the SOPInstanceUIDs that more than one file has."""
    counted = Counter(one.row.sop_instance_uid for one in sent if one.row.sop_instance_uid)
    return {uid for uid, count in counted.items() if count > 1}


def waiting(sent: Collection[Sent], names: Collection[str]) -> dict[str, str]:
    """Return how each sent file is listed in an entry of the prearchive, by `Row.file`: by its name or its number.

    The prearchive lists names and sizes only (PrearcSessionResourceFiles). A name is the one that was sent, or the
    site's own, whose last part is made of the SOPInstanceUID; where the site names files in another way, only their
    number is left.
    """
    known = {*names, *(name.rpartition("-")[2] for name in names)}
    found = {
        one.row.file: "name"
        for one in sent
        if one.row.filename in known or f"{_uid_in_name(one.row)}.dcm" in known
    }
    if not found and len(names) == len(sent):
        return {one.row.file: "number" for one in sent}
    return found


def _uid_in_name(row: Row) -> str:
    """Return what XNAT's own names end in: Java's hash of the list (SOPClassUID, SOPInstanceUID), to base 36.

    XNAT: SiteConfigPreferences.dicomFileNameTemplate, TemplatizedDicomFileNamer.calculateHashString.
    """
    parts = (functools.reduce(_hashed, map(ord, uid), 0) for uid in (row.sop_class_uid, row.sop_instance_uid))
    number, digits = functools.reduce(_hashed, parts, 1), ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


def _hashed(so_far: int, part: int) -> int:
    return (31 * so_far + part) & 0xFFFFFFFF
