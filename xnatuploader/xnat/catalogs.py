"""Catalog refresh: XNAT's lists of files brought in line with the files on its disk.

A file whose PUT lost the race for its catalog is on the disk and in no list; a refresh with `append` lists it, and
`checksum` has XNAT calculate the MD5s that a catalog lacks (DefaultCatalogService).
"""

from __future__ import annotations

from collections.abc import Sequence

from xnatuploader.records import ScanAddress
from xnatuploader.xnat import routes
from xnatuploader.xnat.archive import Server
from xnatuploader.xnat.http import Repeats, Request

REPAIR = ("append", "checksum", "populateStats")
"""What lists files without ever removing one from the list."""
_SECONDS = 900.0


def refresh(server: Server, resource: str, options: Sequence[str]) -> None:
    """Refresh the catalogs below `resource` (`/archive/...`). Raises `RequestFailed`.

    XNAT only logs a catalog that it could not lock, so what matters has to be listed again afterwards.
    """
    query = {"resource": resource, "options": ",".join(options)}
    server.request(Request("POST", routes.REFRESH, query, timeout=_SECONDS, repeats=Repeats(record=True)))


def session_resource(project: str, label: str) -> str:
    """Return the address of a session as the refresh takes it."""
    return routes.archived(routes.at(routes.PROJECT_SESSION, project, label))


def repair_scan(server: Server, address: ScanAddress) -> None:
    """Have XNAT list the files of a scan that are on its disk and in no catalog. Raises `RequestFailed`."""
    refresh(server, routes.archived(routes.at_scan(routes.SCAN, address)), REPAIR)
