"""Catalog refresh: XNAT's lists of files brought in line with the files on its disk.

A file whose PUT lost the race for its catalog is on the disk and in no list; a refresh with `append` lists it, and
`checksum` has XNAT calculate the MD5s that a catalog lacks (DefaultCatalogService).
"""

from __future__ import annotations

from collections.abc import Sequence

from xnatuploader.records import ScanAddress
from xnatuploader.xnat.archive import Server, scan_path
from xnatuploader.xnat.http import Repeats, Request, quoted

REPAIR = ("append", "checksum", "populateStats")
"""What lists files without ever removing one from the list."""
_SECONDS = 900.0


def refresh(server: Server, resource: str, options: Sequence[str]) -> None:
    """Refresh the catalogs below `resource` (`/archive/...`). Raises `RequestFailed`.

    XNAT only logs a catalog that it could not lock, so what matters has to be listed again afterwards.
    """
    query = {"resource": resource, "options": ",".join(options)}
    path = "/data/services/refresh/catalog"
    server.request(Request("POST", path, query, timeout=_SECONDS, repeats=Repeats(record=True)))


def session_resource(project: str, label: str) -> str:
    """Return the address of a session as the refresh takes it."""
    return f"/archive/projects/{quoted(project)}/experiments/{quoted(label)}"


def repair_scan(server: Server, address: ScanAddress) -> None:
    """Have XNAT list the files of a scan that are on its disk and in no catalog. Raises `RequestFailed`."""
    refresh(server, scan_path(address).replace("/data", "/archive", 1), REPAIR)
