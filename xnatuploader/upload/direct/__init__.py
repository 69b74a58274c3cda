"""One session's sending: create what is missing, send in parts, compare with the server's listing.

`Transfer.send_scan` is made for a pool of workers, one scan each: a resource has one writer at a time, since
XNAT's catalog of a resource cannot take two (CatalogUtils.writeCatalogToFile: the loser is answered 500, and
its bytes stay on the disk unlisted). The files of a resource therefore go one part after the other.

What counts is what the server lists afterwards, never what it answered: a PUT without the right to edit is
answered 200 and stores nothing (FileList.handlePost), and a file that exists is left as it is, with 200.

Requests for a scan: one listing before (only where the scan exists), one for the scan, one per resource, one
per part, one listing after. Repairs come on top.
"""

from __future__ import annotations

from xnatuploader.upload.direct.resource import ARCHIVE_NAME
from xnatuploader.upload.direct.run import Options, Transfer
from xnatuploader.upload.direct.words import (
    BAD_NAME,
    CHANGED,
    CHECKED,
    CHECKED_SIZE,
    GONE,
    NOT_LISTED,
    NOTHING_STORED,
    SAME_NAME,
    STOPPED,
    THERE,
    THERE_SIZE,
)

__all__ = [
    "ARCHIVE_NAME",
    "BAD_NAME",
    "CHANGED",
    "CHECKED",
    "CHECKED_SIZE",
    "GONE",
    "NOTHING_STORED",
    "NOT_LISTED",
    "SAME_NAME",
    "STOPPED",
    "THERE",
    "THERE_SIZE",
    "Options",
    "Transfer",
]
