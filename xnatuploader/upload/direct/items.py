"""One file on its way: as it was examined, and what is sent in its place."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words

if TYPE_CHECKING:
    from xnatuploader.upload.direct.scan import Scan


_TRIAL = 8
_SLOW_LOOK = 0.001
"""Seconds per file from which looking at several at a time pays."""
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Item:
    """One file that was examined."""

    row: Row
    path: Path
    size: int
    modified_ns: int
    look_only: bool = False
    """It was sent by an earlier run: only look whether the server still has it."""


def on_disk(found: os.stat_result) -> tuple[str, str]:
    """Return size and time of change as a row has them (`Row.size`, `Row.modified`)."""
    try:
        modified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
    except (OSError, OverflowError, ValueError):  # a time that no calendar has
        modified = ""
    return str(found.st_size), modified


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a file on disk."""

    path: Path
    found: os.stat_result | None = None
    error: OSError | ValueError | None = None


def looks(rows: Sequence[Row], look: Callable[[Row], Look]) -> Iterator[tuple[Row, Look]]:
    """Yield every row with what `look` saw, in order; several at a time once looking proves slow.

    On a network drive each look takes milliseconds, on a disk of this computer microseconds.
    """
    begun = time.perf_counter()
    first = [look(row) for row in rows[:_TRIAL]]
    slow = time.perf_counter() - begun > _SLOW_LOOK * _TRIAL
    yield from zip(rows[:_TRIAL], first, strict=True)
    rest = rows[_TRIAL:]
    if not slow:
        yield from ((row, look(row)) for row in rest)
        return
    with futures.ThreadPoolExecutor(tar_body.AHEAD, "look") as pool:
        for start in range(0, len(rest), _BATCH):
            batch = rest[start : start + _BATCH]
            yield from zip(batch, pool.map(look, batch), strict=True)


@contextlib.contextmanager
def outgoing_of(scan: Scan, items: Sequence[Item]) -> Iterator[list[tar_body.Outgoing]]:
    """Yield what is sent for each file: itself, or a copy that is gone after the block.

    A file of which no copy could be made is settled and not among them.
    """
    made: list[tar_body.Outgoing] = []
    copies: list[Path] = []
    try:
        for item in items:
            outgoing = _copied(scan, item) if scan.transfer.copy is not None else _plain(item)
            if outgoing is None:
                continue
            made.append(outgoing)
            if scan.transfer.copy is not None and isinstance(outgoing.source, Path):
                copies.append(outgoing.source)
        yield made
    finally:
        for path in copies:
            with contextlib.suppress(OSError):
                path.unlink()


def _plain(item: Item) -> tar_body.Outgoing:
    return tar_body.Outgoing(item.row.file, item.row.filename, item.size, item.path, item.modified_ns)


def _copied(scan: Scan, item: Item) -> tar_body.Outgoing | None:
    """Have a copy made; None if the row was settled instead."""
    assert scan.transfer.copy is not None
    try:
        copy = scan.transfer.copy(item.row, item.path)
        if isinstance(copy, Outcome):
            scan.settle(item.row, copy.status, copy.message)
            return None
        if isinstance(copy, bytes):
            return tar_body.Outgoing(item.row.file, item.row.filename, len(copy), copy)
        found = copy.stat()
        return tar_body.Outgoing(item.row.file, item.row.filename, found.st_size, copy, found.st_mtime_ns)
    except OSError as error:
        scan.settle(item.row, Status.FAILED, words.unreadable(error))
        return None
