"""Catalog refresh: XNAT's lists of files brought in line with what lies on its disk.

A file whose PUT lost the race for its catalog lies on the disk unlisted; a refresh with `append` lists it, and
`checksum` has XNAT work out MD5s that a catalog lacks (DefaultCatalogService).
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from xnatuploader import xnat
from xnatuploader.xnat.http import Repeats

ALL = ("checksum", "delete", "append", "populateStats")
REPAIR = ("append", "checksum", "populateStats")
"""What lists files without ever taking one out."""
_SECONDS = 900.0


def refresh(connection: xnat.Server, resource: str, options: Sequence[str] = ALL) -> None:
    """Refresh the catalogs below `resource` (`/archive/...`). Raises `RequestFailed`.

    XNAT only logs a catalog that it could not lock, so what matters has to be listed again afterwards.
    """
    query = {"resource": resource, "options": ",".join(options)}
    connection.request(
        "POST",
        "/data/services/refresh/catalog",
        query,
        timeout=_SECONDS,
        repeats=Repeats(record=True),
    )


def session_resource(project: str, label: str) -> str:
    """Return the address of a session as the refresh takes it."""
    return f"/archive/projects/{quote(project, safe='')}/experiments/{quote(label, safe='')}"


def repair_scan(
    connection: xnat.Server, project: str, subject: str, label: str, scan: str, resource: str = ""
) -> None:
    """List what lies unlisted on XNAT's disk in one scan, or one resource of it. Raises `RequestFailed`."""
    parts = ("archive", "projects", project, "subjects", subject, "experiments", label, "scans", scan)
    below = ("resources", resource) if resource else ()
    refresh(connection, "".join(f"/{quote(part, safe='')}" for part in (*parts, *below)), REPAIR)
