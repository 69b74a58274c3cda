"""An append-only file of JSON lines, with which a sandbox that was killed continues.

Each changed record is one line, flushed as it is written. The file is rewritten, without history, at each
start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


class StateFile:
    """The file. Read it, then rewrite it, then append to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._out: BinaryIO | None = None

    def read(self) -> Iterator[list[Any]]:
        """Yield the records in the order they were written; a torn last line was never acknowledged."""
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def rewrite(self, records: Iterable[list[Any]]) -> None:
        """Replace the file by these records, and open it for more."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as out:
            for record in records:
                out.write(json.dumps(record).encode() + b"\n")
        fresh.replace(self._path)
        self._out = self._path.open("ab")

    def append(self, record: list[Any]) -> None:
        """Write one record; an OSError after the file was closed."""
        if self._out is None:
            raise OSError("The sandbox has been stopped.")
        self._out.write(json.dumps(record).encode() + b"\n")
        self._out.flush()

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            self._out.close()
            self._out = None
