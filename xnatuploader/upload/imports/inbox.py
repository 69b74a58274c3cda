"""Sessions whose files lie in the server's inbox: send the path, follow the import, look where it ended.

XNAT imports everything below a path, and by default deletes it afterwards. So a path is only sent when every
file below the same folder here belongs to the session and is to travel, and the originals are always kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from xnatuploader.records import Status
from xnatuploader.scan import find
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words
from xnatuploader.upload.direct.items import Item
from xnatuploader.upload.imports import confirm, options
from xnatuploader.upload.imports.session import Refused, Session

logger = logging.getLogger(__name__)

_HOURS = 6 * 3600.0
_POLL = 0.5
_FAILED = frozenset({"failed", "error"})
_DONE = frozenset({"completed", "processed", "complete"})


def by_inbox(session: Session, going: Sequence[Item]) -> None:
    """Import a session that lies in the server's inbox. Raises `Refused`, `RequestFailed`."""
    run = session.run
    if session.plan.exists:
        raise Refused(
            "The inbox cannot add to a session that exists. Use DICOM-zip or SI for it.", Status.CONFLICT
        )
    folder = _common_folder(session, going)
    path = f"{session.options.inbox_folder}/{folder}".rstrip("/")
    for item in going:
        session.sent[item.row.file] = confirm.Sent(
            item.row, item.row.filename, item.size, _md5(session, item)
        )
    left = run.prearchive.left(session.studies, session.label)
    if not left:
        _follow(session, _ordered(session, path))
    waiting = run.prearchive.now(session.studies, session.label)
    for entry in waiting[-1:]:
        now = run.prearchive.at_rest(entry)
        if now is not None:
            session.finish(now)
            return
    session.confirm(session.label)


def _common_folder(session: Session, going: Sequence[Item]) -> str:
    """Return the folder (relative to `--dir`) that holds the session and nothing else. Raises `Refused`."""
    files = [item.row.file for item in going]
    folders = [file.split("/")[:-1] for file in files]
    shared = _common(folders)
    here = Path(*going[0].path.parts[: len(shared) - len(files[0].split("/"))])
    wanted = {"/".join(file.split("/")[len(shared) :]) for file in files}
    others = {found.file for found in find.list_files(here)} - wanted
    if others:
        raise Refused(
            f"The session's folder holds {len(others)} files that are not to be sent, and XNAT imports whole "
            "folders. Give the session a folder of its own, or use DICOM-zip."
        )
    return "/".join(shared)


def _common(folders: Sequence[Sequence[str]]) -> list[str]:
    """Return the parts that all folders begin with."""
    shared: list[str] = []
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return shared


def _md5(session: Session, item: Item) -> str:
    try:
        return tar_body.digest_of(item.path)
    except OSError as error:
        session.settle(item.row, Status.FAILED, words.unreadable(error))
        return ""


def _ordered(session: Session, path: str) -> str:
    """Send the order; return the address of its progress."""
    query = {
        "import-handler": options.INBOX,
        "PROJECT_ID": session.run.project,
        "SUBJECT_ID": session.plan.subject,
        "EXPT_LABEL": session.label,
        "path": path,
        "cleanupAfterImport": "false",
    }
    if session.options.rename:
        query["rename"] = "true"
    if not session.options.pipelines:
        query["triggerPipelines"] = "false"
    uris = session.run.service.order(query)
    if not uris:
        raise Refused("XNAT took the order and named no import to follow. Look for the session in XNAT.")
    return uris[0]


def _follow(session: Session, address: str) -> None:
    """Wait until the server is done. Raises `Refused` where it failed or takes too long."""
    until = time.monotonic() + _HOURS
    while time.monotonic() < until:
        status, said = session.run.service.inbox_state(address)
        if status in _FAILED:
            why = f": {said.rstrip('.')}" if said else ""
            raise Refused(f"XNAT could not import the folder from its inbox{why}.")
        if status in _DONE:
            return
        logger.debug("%s: %s", address, status)
        if session.run.stop.wait(_POLL * session.run.haste):
            raise Refused(
                "The run was stopped while XNAT imported the session from its inbox. Run upload again to check it.",
                Status.INTERRUPTED,
            )
    raise Refused("XNAT did not finish the import from its inbox within hours. Look for the session in XNAT.")
