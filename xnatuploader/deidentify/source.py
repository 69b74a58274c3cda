"""The bytes of one DICOM file, in memory when it is small and by windows when it is large, and its cleaned copy.

The pixel data of a large file are not read for its cleaning. The copy has their position, and reads them when it is
sent.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xnatuploader.dicom import elements, header

HELD = 8 * 1024 * 1024
"""Bytes up to which a whole file is read at once."""
WINDOW = 1024 * 1024
LARGEST_WINDOW = 256 * 1024 * 1024
"""Bytes that one sequence may have; far more than the largest functional groups."""
LARGEST_INFLATED = 256 * 1024 * 1024
"""Bytes that a deflated data set may inflate to; a zip bomb has more."""
_CHUNK = 1024 * 1024


def _version(descriptor: int) -> tuple[int, int]:
    """Return size and `st_mtime_ns` of an open file, by which a changed one is known."""
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns


class OriginalChanged(Exception):
    """The file is no longer the one that was cleaned, so the rest of its copy cannot be made."""


class Original:
    """A file being cleaned. `buf` holds the bytes from position `base` on; `size` is the length of it all."""

    __slots__ = ("_file", "_source", "base", "buf", "path", "size", "version")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._source = header.file_source(self._file.fileno())
        self.version = _version(self._file.fileno())
        self.size = self.version[0]
        self.base = 0
        self.buf = b""
        self._fill(0, self.size if self.size <= HELD else WINDOW)

    def close(self) -> None:
        """Close the file; what is in `buf` stays."""
        self._file.close()

    @property
    def held(self) -> bool:
        """Whether `buf` is all there is."""
        return self.base == 0 and len(self.buf) == self.size

    def at(self, position: int) -> int:
        """Return the index of `position` in `buf`, after reading on where `buf` has no whole element header there."""
        if position + 12 > self.base + len(self.buf) and self.base + len(self.buf) < self.size:
            self._fill(position, WINDOW)
        return position - self.base

    def cover(self, start: int, stop: int) -> None:
        """Read on until `buf` has all from `start` to `stop`. Raises `elements.Malformed` beyond the limit."""
        if start < self.base or stop > self.base + len(self.buf):
            self._fill(start, max(WINDOW, stop - start))

    def widen(self, start: int) -> None:
        """Read four times as much into `buf`, from `start` on. Raises `elements.Malformed` where the file ends."""
        if self.base + len(self.buf) >= self.size:
            raise elements.Malformed("the file ends in the middle of an element")
        self._fill(start, 4 * max(WINDOW, len(self.buf)) if start == self.base else WINDOW)

    def read(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from `start` without moving `buf`."""
        if self.base <= start and start + count <= self.base + len(self.buf):
            return self.buf[start - self.base : start - self.base + count]
        return self._read(start, count)

    def inflate(self, start: int) -> None:
        """Replace everything from `start` on by what it inflates to (PS3.5 A.5).

        Raises `elements.Malformed` when it cannot be inflated, or to more than is sound.
        """
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        data = b""
        try:
            if self.size - start <= LARGEST_INFLATED:
                data = inflater.decompress(self.read(start, self.size - start), LARGEST_INFLATED + 1)
        except zlib.error as error:
            raise elements.Malformed("its deflated data set is damaged") from error
        if self.size - start > LARGEST_INFLATED or len(data) > LARGEST_INFLATED:
            raise elements.Malformed("its deflated data set is larger than can be handled")
        if not inflater.eof:
            raise elements.Malformed("its deflated data set is cut off")
        self.buf, self.base = self.read(0, start) + data, 0
        self.size = len(self.buf)

    def _fill(self, start: int, count: int) -> None:
        if count > LARGEST_WINDOW:
            raise elements.Malformed("one of its sequences is larger than can be handled")
        self.buf = self._read(start, min(count, self.size - start))
        self.base = start

    def _read(self, start: int, count: int) -> bytes:
        data = self._source(start, count)
        if len(data) < count:
            raise elements.Malformed("the file became shorter while it was read")
        return data


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes `start` to `stop` of the original file, unchanged."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class CleanCopy:
    """A cleaned copy, ready to be sent: new bytes, and for large files stretches of the original between them."""

    path: Path
    pieces: tuple[bytes | Stretch, ...]
    size: int
    """Bytes of the copy."""
    original: tuple[int, int]
    """`Original.version` of the file when it was cleaned."""

    @property
    def held(self) -> bool:
        """Whether the whole copy is in memory: up to `HELD` bytes, and deflated files."""
        return not any(isinstance(piece, Stretch) for piece in self.pieces)

    def chunks(self) -> Iterator[bytes]:
        """Yield the copy in pieces of at most about 1 MiB (a held file: in one); may be called again.

        Raises `OriginalChanged` when the original has changed since, and OSError when it cannot be read.
        """
        if self.held:
            yield from (piece for piece in self.pieces if isinstance(piece, bytes))
            return
        with self.path.open("rb", buffering=0) as file:
            self._compare(file.fileno())
            for piece in self.pieces:
                if isinstance(piece, bytes):
                    yield piece
                    continue
                file.seek(piece.start)
                left = piece.stop - piece.start
                while left:
                    chunk = file.read(min(left, _CHUNK))
                    if not chunk:
                        raise OriginalChanged("The file became shorter while its cleaned copy was made.")
                    left -= len(chunk)
                    yield chunk
            self._compare(file.fileno())

    def data(self) -> bytes:
        """Return the copy's bytes; meant for held ones."""
        return b"".join(self.chunks())

    def write(self, path: Path) -> None:
        """Write the copy to `path` as `chunks` gives it, and raise what that raises."""
        with path.open("wb") as file:
            file.writelines(self.chunks())

    def _compare(self, descriptor: int) -> None:
        if _version(descriptor) != self.original:
            raise OriginalChanged("The file was changed while its cleaned copy was made.")
