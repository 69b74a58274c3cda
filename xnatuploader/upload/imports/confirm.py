"""What the archive holds after an import, against what was sent.

Where XNAT leaves files as they are, their MD5s in its listing are those of what was sent. Its anonymisation
changes them, and so may its receiver, which writes DICOM anew; then the SOPInstanceUIDs in the catalogs tell
that the same objects are there, and where UIDs were changed as well only their number is left to check.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from xnatuploader.records import Row
from xnatuploader.xnat import RemoteFile

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
    size: int
    """Bytes, -1 if not known."""
    md5: str


@dataclass(frozen=True, slots=True)
class Seen:
    """How a sent file was found: `how` is a key of `CHECKED`."""

    how: str
    scan: str = ""


def compare(
    sent: Sequence[Sent],
    held: Sequence[RemoteFile],
    uids_of: Callable[[Collection[tuple[str, str]]], Mapping[str, str]],
    *,
    alone: bool = False,
) -> dict[str, Seen]:
    """Return how each sent file was found, by `Row.file`; what is not found is left out.

    `alone`: the session holds nothing but what was sent, so that numbers may be compared as well.
    """
    seen: dict[str, Seen] = {}
    used: set[RemoteFile] = set()
    by_md5 = {one.digest: one for one in held if one.digest}
    by_name = {(one.resource, one.name, one.size): one for one in held if not one.digest}
    for one in sent:
        found = by_md5.get(one.md5) if one.md5 else None
        how = "md5"
        if found is None:
            found, how = by_name.get((one.row.resource or "DICOM", one.row.filename, one.size)), "size"
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
