"""A row's file on its way to XNAT, the same for both routes: look, check that it is the row's, copy, compare.

What keeps a file back is returned as its `Outcome`, what goes on as an `Item` or what is sent for it.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xnatuploader import records, xnat
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.scan import find
from xnatuploader.upload import tar_body

CHECKED = "On the server, with the same MD5."
CHECKED_SIZE = "On the server, with the same size (there is no MD5 to compare)."
THERE = "Was on the server already, with the same MD5."
THERE_SIZE = "Was on the server already, with the same size (there is no MD5 to compare)."
CHECKED_UID = (
    "On the server, as XNAT changed it on arrival. Checked: the image's SOPInstanceUID "
    "(file {name} in scan {scan})."
)
HELD = (
    f"{records.HELD}, changed on arrival (file {{name}} in scan {{scan}}). It is not sent again: that would put the "
    "patient's name back."
)
CHANGED_THERE = (
    "This image was changed on XNAT after it was sent (file {name} in scan {scan}). Ask the owner of the project why; "
    "then set Upload to N."
)
GONE = "It is not on the server any more. Run upload again to send it."
MISSING = "The file is not on disk any more."
CHANGED = (
    "The file changed or disappeared while it was being sent. Run upload again once nothing is writing to it."
)
NOT_LISTED = "XNAT accepted the file twice and still does not list it. Run upload again."
BAD_NAME = "XNAT allows only letters, digits and . _ - in Filename. Correct the cell."
SAME_NAME = "Another row of this scan has the same Filename. Change one of them."

COPIED_BYTES = 16 * 1024 * 1024
"""Bytes of copies that are made at a time: they may be in memory."""
_SLOW_LOOK = 0.001
"""Seconds per file from which looking at several at a time pays."""
FILENAME: Callable[[Row], str] = operator.attrgetter("filename")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True, slots=True)
class SendContext:
    """What everything that a run sends has in common. The callbacks may be called from many threads."""

    server: xnat.Server
    project: str
    resolve: Callable[[Row], Path]
    """Gives the path of a row's file."""
    on_outcome: Callable[[Outcome], None]
    """Is called once for every row, when its outcome is known."""
    on_sent: Callable[[int], None] = _nothing
    """Is given the number of bytes that went out, repeats included."""
    on_files: Callable[[int], None] = _nothing
    """Counts each file once, when it has gone out or its outcome is known."""
    on_session: Callable[[str], None] = _nothing
    """Is given a session's label before anything of it is made or sent, for each scan to which something goes."""
    on_scan: Callable[[str, str, str], None] = _nothing
    """Is given a session's label and ID, and the ID of each scan that was made."""
    check: Callable[[Row, Path], Outcome | None] | None = None
    """Is asked about a file whose size or time differs from its row; an outcome keeps it back."""
    copy: Callable[[Row, Path], bytes | Path | Outcome] | None = None
    """Makes what is sent in place of a file: bytes, a temporary file (deleted after use), or what keeps it back."""
    stop: threading.Event = field(default_factory=threading.Event)
    subjects: Mapping[str, str] = field(default_factory=dict)
    """Label to ID of the project's subjects. They are not made again: XNAT refuses that for a shared one."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file that was examined."""

    row: Row
    path: Path
    size: int
    modified_ns: int
    changed: tuple[str, str] = ("", "")
    """Size and time of change as a row holds them, where they are not what the row says."""
    look_only: bool = False
    """It was sent by an earlier run: only look whether the server still has it."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is compared of a file that would be sent."""

    md5: str
    """Empty where nothing depends on it."""
    size: int


def unreadable(row: Row, error: Exception) -> Outcome:
    """Return the outcome of a file that cannot be read."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    return Outcome(
        row.file,
        Status.FAILED,
        f"The file cannot be read ({reason}). Check that no other program has it open and that you may read it.",
    )


# ---- looking


def examined(rows: Sequence[Row], context: SendContext, *, again: bool = False) -> Iterator[Item | Outcome]:
    """Examine the files of one resource until the run is to stop; with `again` also those that were sent before."""
    names: set[str] = set()
    look = functools.partial(_looked, context=context, again=again)
    with contextlib.closing(tar_body.in_order(look, rows, _SLOW_LOOK)) as found:
        for row, (path, facts) in zip(rows, found, strict=True):
            name = row.filename
            if context.stop.is_set():
                return
            if not _NAME.fullmatch(name) or name in (".", "..") or name.endswith("_catalog.xml"):
                yield Outcome(row.file, Status.FAILED, BAD_NAME)
            elif name in names:
                yield Outcome(row.file, Status.CONFLICT, SAME_NAME)
            else:
                names.add(name)
                yield _examined(row, path, facts, context)


def _looked(row: Row, context: SendContext, again: bool) -> tuple[Path, os.stat_result | Exception | None]:
    """Return a file's path with what the disk says of it, None where that does not matter."""
    path = context.resolve(row)
    if row.status is Status.SUCCESS and not again:
        return path, None
    try:
        return path, path.stat()
    except (OSError, ValueError) as error:
        return path, error


def _examined(
    row: Row, path: Path, found: os.stat_result | Exception | None, context: SendContext
) -> Item | Outcome:
    gone = isinstance(found, FileNotFoundError | NotADirectoryError)
    if found is None or (gone and row.status is Status.SUCCESS):
        return Item(row, path, -1, 0, look_only=True)
    if gone:
        return Outcome(row.file, Status.MISSING, MISSING)
    if isinstance(found, Exception):
        return unreadable(row, found)
    facts = (str(found.st_size), find.modified(found.st_mtime))
    if facts == (row.size, row.modified):
        return Item(row, path, found.st_size, found.st_mtime_ns)
    kept_back = context.check(row, path) if context.check is not None else None
    return kept_back or Item(row, path, found.st_size, found.st_mtime_ns, changed=facts)


# ---- copying


def batches(items: Iterable[Item], context: SendContext, limit_bytes: int) -> Iterator[Sequence[Item]]:
    """Yield all files at once; where copies are made, no more than a body's, because they take room."""
    if context.copy is None:
        yield list(items)
    else:
        yield from tar_body.batches(items, min(limit_bytes, COPIED_BYTES))


@contextlib.contextmanager
def outgoing(
    items: Iterable[Item], context: SendContext, name_of: Callable[[Row], str]
) -> Iterator[list[tar_body.Outgoing | Outcome]]:
    """Yield what is sent for each file: itself, or a copy that is gone after the block."""
    copies: list[Path] = []
    try:
        if context.copy is None:
            yield [
                tar_body.Outgoing(one.row.file, name_of(one.row), one.size, one.path, one.modified_ns)
                for one in items
            ]
        else:
            yield [_copied(item, context.copy, name_of(item.row), copies) for item in items]
    finally:
        for path in copies:
            with contextlib.suppress(OSError):
                path.unlink()


def _copied(
    item: Item, make: Callable[[Row, Path], bytes | Path | Outcome], name: str, copies: list[Path]
) -> tar_body.Outgoing | Outcome:
    try:
        copy = make(item.row, item.path)
        if isinstance(copy, Outcome):
            return copy
        if isinstance(copy, bytes):
            return tar_body.Outgoing(item.row.file, name, len(copy), copy)
        copies.append(copy)
        found = copy.stat()
        return tar_body.Outgoing(item.row.file, name, found.st_size, copy, found.st_mtime_ns)
    except OSError as error:
        return unreadable(item.row, error)


# ---- comparing


def fingerprint(item: Item, context: SendContext) -> Fingerprint | Outcome:
    """Work out MD5 and size of what would be sent for a file."""
    try:
        with outgoing([item], context, FILENAME) as (one,):
            if isinstance(one, Outcome):
                return one
            size = one.size if one.size >= 0 else sent_size(item.row)
            return Fingerprint(tar_body.digest_of(one.source), size)
    except OSError as error:
        return Fingerprint("", sent_size(item.row)) if item.look_only else unreadable(item.row, error)


def sent_size(row: Row) -> int:
    """Return the size that a row gives its file, -1 if it gives none."""
    return int(row.size) if row.size.isdecimal() else -1


def decide(
    item: Item,
    local: Fingerprint,
    there: Mapping[str, xnat.RemoteFile],
    *,
    overwrite: bool,
    replaced: Collection[str] = (),
    find: Callable[[Row], xnat.RemoteFile | None] = _nothing,
) -> Item | Outcome:
    """Compare a file with what the server lists of its resource; return it if it has to be sent.

    `replaced` are names whose files on the server this run may replace. `find` gives the file on the server that is
    the same image, and is asked only where the MD5 tells nothing.
    """
    file, md5 = item.row.file, local.md5
    same = there.get(item.row.filename)
    if same is not None and same.digest == md5 != "":
        return Outcome(file, Status.SUCCESS, CHECKED if item.look_only else THERE, md5)
    elsewhere = (
        name for name, remote in there.items() if md5 and remote.digest == md5 and name not in replaced
    )
    if name := next(elsewhere, ""):
        return Outcome(file, Status.SUCCESS, f"{THERE} Its name there is {name}.", md5)
    image = find(item.row)
    if image is not None:
        return _decide_by_image(item, local, image, replaceable=overwrite and image == same)
    if same is not None:
        return decide_by_name(item, local, same, overwrite=overwrite)
    return Outcome(file, Status.FAILED, GONE) if item.look_only else item


def _decide_by_image(
    item: Item, local: Fingerprint, image: xnat.RemoteFile, *, replaceable: bool
) -> Item | Outcome:
    """Decide about a file whose image the server holds as another file than its name says, or with other bytes.

    Only what this workbook saw there byte for byte is its own to replace: another file of the same image was changed
    by XNAT or by a person, most often because it names the patient.
    """
    row, md5 = item.row, local.md5
    place = {"name": image.name, "scan": image.scan}
    if image.digest == md5 != "" or (not image.digest and image.size == local.size >= 0):
        message = THERE if image.digest else THERE_SIZE
        where = " Its name there is {name}, in scan {scan}.".format(**place)
        return Outcome(row.file, Status.SUCCESS, message + where, md5, scan_id=image.scan)
    if row.status is not Status.SUCCESS:
        return Outcome(row.file, Status.DUPLICATE, HELD.format(**place), upload=records.NOT_SELECTED)
    untold = not image.digest and image.size < 0
    unchanged = image.digest == row.md5.lower() != ""
    if untold or not (unchanged or re.search("with the same (MD5|size)", row.message)):
        return Outcome(row.file, Status.SUCCESS, CHECKED_UID.format(**place), row.md5, scan_id=image.scan)
    if replaceable and not item.look_only:
        return item
    return Outcome(row.file, Status.CONFLICT, CHANGED_THERE.format(**place))


def decide_by_name(
    item: Item, local: Fingerprint, same: xnat.RemoteFile, *, overwrite: bool
) -> Item | Outcome:
    """Decide about a file whose name the server has, with another MD5 or with nothing to compare."""
    row, md5 = item.row, local.md5
    looks_same = local.size == same.size and not (md5 and same.digest)
    if looks_same and (item.look_only or not overwrite):
        return Outcome(row.file, Status.SUCCESS, CHECKED_SIZE if item.look_only else THERE_SIZE, md5)
    # What an earlier run sent, and then saw stored wrongly, is this program's own to replace.
    own = row.status is Status.FAILED and md5 != "" and row.md5.lower() == md5
    if not item.look_only and (overwrite or own):
        return item
    how = f"its MD5 is {same.digest}" if same.digest else f"it has {same.size} bytes"
    return Outcome(
        row.file,
        Status.CONFLICT,
        f"The server has another file of this name ({how}). Run upload with --overwrite to replace it, "
        "or set Upload to N.",
    )
