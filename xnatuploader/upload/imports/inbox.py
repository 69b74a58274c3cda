"""Sessions whose files are in the server's inbox: send the path, follow the import, find where it ended.

XNAT imports everything below a path, and by default deletes it afterwards. So a path is only sent when every
file below the same folder here belongs to the session and is to travel, and the originals are always kept.
"""

from __future__ import annotations

import logging
import posixpath
import time
from collections.abc import Sequence
from pathlib import PurePosixPath

from xnatuploader import paths
from xnatuploader.console.report import plural
from xnatuploader.records import Status
from xnatuploader.scan import find
from xnatuploader.upload import files
from xnatuploader.upload.imports import options
from xnatuploader.upload.imports.session import Session, SessionRefused

logger = logging.getLogger(__name__)

_SIX_HOURS = 6 * 3600.0
_POLL = 0.5
_FAILED = frozenset({"failed", "error"})
_DONE = frozenset({"completed", "processed", "complete"})


def by_inbox(session: Session, going: Sequence[files.Item]) -> None:
    """Import a session that is in the server's inbox. Raises `SessionRefused`, `RequestFailed`."""
    run = session.run
    if session.plan.exists:
        raise SessionRefused(
            "The inbox cannot add to a session that exists. Use DICOM-zip or SI for it.", Status.CONFLICT
        )
    folder = common_folder(going)
    path = f"{session.options.inbox_folder}/{folder}".rstrip("/")
    for item in going:
        known = session.rows.keep([files.fingerprint(item, run.context)])
        # XNAT imports also a file that cannot be read here, so that it counts among those that came.
        session.took(item.row, item.size, known[0].md5 if known else "")
    earlier = run.service.inbox_order(path)
    if earlier or session.left is None or len(session.held_in(session.left)) < len(going):
        _follow(session, earlier or _ordered(session, path))
    waiting = run.prearchive.now(session.studies, session.label)
    for entry in waiting[-1:]:
        now = run.prearchive.at_rest(entry)
        if now is not None:
            session.finish(now)
            return
    session.confirm(session.label)


def common_folder(going: Sequence[files.Item]) -> str:
    """Return the folder (relative to `--dir`) that holds the session and nothing else. Raises `SessionRefused`."""
    names = [_below_dir(item) for item in going]
    shared = posixpath.commonpath([name.parent for name in names])
    inside = [name.relative_to(shared) for name in names]
    here = {item.path.parents[len(name.parts) - 1] for item, name in zip(going, inside, strict=True)}
    others = {found.file for folder in here for found in find.list_files(folder)} - set(map(str, inside))
    if others:
        raise SessionRefused(
            f"The session's folder holds {plural(len(others), 'file')} that this run does not send, and XNAT imports "
            "whole folders. Give the session a folder of its own, or use DICOM-zip."
        )
    return shared


def _below_dir(item: files.Item) -> PurePosixPath:
    """Return the path of a file below `--dir`. Raises `SessionRefused` for one that is not below it."""
    for name in map(PurePosixPath, paths.spellings(item.row.file)):
        leads_out = name.is_absolute() or ".." in name.parts
        if not leads_out and item.path.parts[-len(name.parts) :] == name.parts:
            return name
    raise SessionRefused(
        f"The File column names {item.row.file} by a full path or with .., and the inbox needs its path below --dir. "
        "Use DICOM-zip."
    )


def _ordered(session: Session, path: str) -> str:
    """Send the order; return the address of its progress."""
    query = {
        "import-handler": options.INBOX,
        **session.names(),
        "path": path,
        "cleanupAfterImport": "false",
    }
    if session.options.rename:
        query["rename"] = "true"
    if not session.options.pipelines:
        query["triggerPipelines"] = "false"
    uris = session.run.service.order(query)
    if not uris:
        raise SessionRefused(
            "XNAT took the request to import, but gave no address for following it. Look for the session in XNAT."
        )
    return uris[0]


def _follow(session: Session, address: str) -> None:
    """Wait until the server is done. Raises `SessionRefused` where it failed or takes too long."""
    until = time.monotonic() + _SIX_HOURS
    while time.monotonic() < until:
        status, said = session.run.service.inbox_state(address)
        if status in _FAILED:
            why = f": {said.rstrip('.')}" if said else ""
            raise SessionRefused(f"XNAT could not import the folder from its inbox{why}.")
        if status in _DONE:
            return
        logger.debug("%s: %s", address, status)
        if session.run.context.stop.wait(_POLL):
            raise SessionRefused(
                "The run was stopped while XNAT imported the session from its inbox. Run upload again to check it.",
                Status.INTERRUPTED,
            )
    raise SessionRefused(
        "XNAT did not finish the import from its inbox within six hours. Look for the session in XNAT."
    )
