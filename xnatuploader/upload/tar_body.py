"""Files to request bodies of known length: tar archives that are streamed, with each file's MD5 taken on the way.

A `Part` is a request body: it knows its exact length before the first byte is read, yields chunks of about
1 MiB, and can be read again for another attempt. Memory stays bounded whatever the files' sizes are.

No file that changed after it was examined is ever completed on the server. The length was promised before
the files were opened, so what a small file leaves out is paid back as zeros *behind* the end-of-archive
marker, where readers stop; a change in a file that is streamed breaks the attempt off (`FileChanged`).

The archives are plain ustar: XNAT 1.8 unpacks `.tar` under `extract=true` (FileExtractor.extract; `zip_body` is
for older ones), and image data hardly shrinks (the measurement is in docs/uploading.md), so compressing would only
cost time.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

PART_BYTES = 64 * 1024 * 1024
"""Default size of a part: below a second at 100 MB/s and a minute at 10 Mbit/s, so that a lost one costs
little; large enough that the cost of a request (one catalog rewrite in XNAT) does not count."""

PART_FILES = 2000
"""Default number of files in a part: XNAT has to unpack, hash and list them before a proxy gives up."""

CHUNK = 1024 * 1024
"""Bytes read and handed on at a time; files up to this size are read whole."""

AHEAD = 16
"""Files that are looked at or read ahead at a time where opening them is slow."""

_TRIAL = 8
SLOW_OPEN = 0.002
"""Seconds per small file from which reading ahead pays."""

_BLOCK = 512
_RECORD = 20 * _BLOCK
_NAME_MAX = 100
_MODE_AND_OWNER = b"0000644\x00" + 2 * b"0000000\x00"
_AFTER_CHECKSUM = (b"0".ljust(101, b"\x00") + b"ustar\x00" + b"00").ljust(_BLOCK - 156, b"\x00")
_SUM_AFTER = sum(_AFTER_CHECKSUM)
_SIZE_MAX = 8**11 - 1


class HasSize(Protocol):
    """What `batches` divides."""

    @property
    def size(self) -> int:
        """Bytes."""


_T = TypeVar("_T")
_R = TypeVar("_R")
_Sized = TypeVar("_Sized", bound=HasSize)


class FileChanged(Exception):
    """A file was changed or went away after its length was promised; the attempt has to be broken off.

    Not an OSError: HTTP libraries take those for a lost connection. `name` is the file's name on XNAT.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One file to send."""

    file: str
    """`Row.file`, which identifies it in outcomes."""
    name: str
    """Its name on XNAT, `[A-Za-z0-9._-]` only."""
    size: int
    """Bytes, as examined."""
    source: Path | bytes
    """Where its bytes are, or the bytes themselves (a de-identified copy)."""
    modified_ns: int = 0
    """Time of last change as examined (`st_mtime_ns`), 0 if it was not."""


class Part:
    """The body of one request: an archive of `files`, or with `framed` False the bytes of a single file.

    After a full pass `digests` holds the MD5 (hex) of every file by name, and `left_out` the reason for every
    file that had changed and was therefore not put in. `watch`, when set, is called with the bytes and
    the number of files handed on in this pass.
    """

    name = "xnatuploader-part.tar"
    """What XNAT is to call an archive: it tells the format by the ending. Always one name, so that a server that does
    not unpack it keeps only one of them."""
    content_type = "application/x-tar"

    def __init__(self, files: Sequence[Outgoing], *, framed: bool = True) -> None:
        if not framed and len(files) != 1:
            raise ValueError("a body without archive frame holds exactly one file")
        self.files = tuple(files)
        self.framed = framed
        self.watch: Callable[[int, int], None] | None = None
        self.digests: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._length = _archive_length(self.files) if framed else self.files[0].size
        self._modified = b"%011o\x00" % int(time.time())

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return True  # an empty file is a body, too

    def included(self) -> list[Outgoing]:
        """Return the files without those that were left out."""
        return [file for file in self.files if file.name not in self.left_out]

    def ready(self) -> contextlib.AbstractContextManager[object]:
        """Return the block in which length and bytes may be asked for. Here nothing has to be prepared."""
        return contextlib.nullcontext()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body from its beginning. Raises `FileChanged` when the attempt has to be broken off."""
        self.digests = {}
        self.left_out = {}
        sent = 0
        for chunk, done in self._chunks():
            sent += len(chunk)
            if self.watch is not None:
                self.watch(sent, done)
            if chunk:
                yield chunk
        if self.framed:
            yield from _zeros(self._length - sent)

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        """Yield chunks of about 1 MiB, each with the number of files complete behind it."""
        small = [one for one in self.files if one.size <= CHUNK]
        with contextlib.closing(in_order(content_of, small, SLOW_OPEN)) as contents:
            yield from self._gathered(contents)

    def _gathered(self, contents: Iterator[bytes | FileChanged]) -> Iterator[tuple[bytes, int]]:
        held: list[bytes] = []
        held_size = 0
        owed = 0
        for count, outgoing in enumerate(self.files):
            if outgoing.size > CHUNK:
                held.append(self._head(outgoing))
                yield b"".join(held), count
                for chunk in self._streamed(outgoing):
                    yield chunk, count
                held, held_size = [self._padding(outgoing.size)], 0
                continue
            data = next(contents)
            if isinstance(data, FileChanged):
                owed += _BLOCK + outgoing.size
                if not self.framed or owed > CHUNK:
                    raise data  # more zeros than are worth sending
                self.left_out[outgoing.name] = data.reason
                continue
            self.digests[outgoing.name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
            held += (self._head(outgoing), data, self._padding(outgoing.size))
            held_size += _BLOCK + outgoing.size
            if held_size >= CHUNK:
                yield b"".join(held), count + 1
                held, held_size = [], 0
        yield b"".join(held), len(self.files)

    def _head(self, outgoing: Outgoing) -> bytes:
        return _tar_head(outgoing.name, outgoing.size, self._modified) if self.framed else b""

    def _padding(self, size: int) -> bytes:
        return bytes(-size % _BLOCK) if self.framed else b""

    def _streamed(self, outgoing: Outgoing) -> Iterator[bytes]:
        digest = hashlib.md5(usedforsecurity=False)
        source = outgoing.source
        chunks: Iterator[bytes]
        if isinstance(source, bytes):
            chunks = (source[start : start + CHUNK] for start in range(0, len(source), CHUNK))
        else:
            chunks = _read_chunks(outgoing, source)
        for chunk in chunks:
            digest.update(chunk)
            yield chunk
        self.digests[outgoing.name] = digest.hexdigest()


def in_order(work: Callable[[_T], _R], items: Iterable[_T], slow: float) -> Generator[_R, None, None]:
    """Yield what `work` returns for each item, in their order; several at a time once it proves slow.

    `slow` is the number of seconds per item from which that pays: on a network drive every open takes
    milliseconds, on a disk of this computer threads would only cost. No more than `AHEAD` are begun ahead.
    """
    waiting = iter(items)
    spent = 0.0
    for count, item in enumerate(waiting, 1):
        begun = time.perf_counter()
        result = work(item)
        spent += time.perf_counter() - begun
        yield result
        if count >= _TRIAL and spent > slow * count:
            break
    pool = futures.ThreadPoolExecutor(AHEAD, "read-ahead")
    try:
        ahead = collections.deque(pool.submit(work, item) for item in itertools.islice(waiting, AHEAD))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(work, item) for item in itertools.islice(waiting, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def plan_parts(
    files: Sequence[Outgoing],
    limit_bytes: int = PART_BYTES,
    limit_files: int = PART_FILES,
    archive: Callable[[Sequence[Outgoing]], Part] = Part,
) -> list[Part]:
    """Divide `files`, in their order, into parts of at most `limit_bytes` of content and `limit_files` files.

    `archive` makes the archive of some files. A file as large as a whole part, or with a name that a plain tar header
    cannot hold, becomes a body of its own without a frame: an archive would gain nothing there.
    """

    def alone(outgoing: Outgoing) -> bool:
        return outgoing.size >= limit_bytes or not fits_archive(outgoing)

    together = [outgoing for outgoing in files if not alone(outgoing)]
    return [
        *(Part([outgoing], framed=False) for outgoing in files if alone(outgoing)),
        *(archive(some) for some in batches(together, limit_bytes, limit_files)),
    ]


def batches(
    files: Iterable[_Sized], limit_bytes: int, limit_files: int = PART_FILES
) -> Iterator[list[_Sized]]:
    """Divide `files`, in their order, into batches of at most `limit_bytes` and `limit_files`, but of one at least."""
    held: list[_Sized] = []
    size = 0
    for file in files:
        if held and (size + file.size > limit_bytes or len(held) >= limit_files):
            yield held
            held, size = [], 0
        held.append(file)
        size += file.size
    if held:
        yield held


def halves(files: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    """Split files into two halves, of at least one each where there are two."""
    middle = len(files) // 2
    return files[:middle], files[middle:]


def fits_archive(outgoing: Outgoing) -> bool:
    """Tell whether a plain ustar header can hold the name (100 bytes) and the size (8 GiB)."""
    return len(outgoing.name.encode()) <= _NAME_MAX and outgoing.size <= _SIZE_MAX


def digest_of(source: Path | bytes) -> str:
    """Return the MD5 (hex) of a file or of bytes, in bounded memory. Raises OSError."""
    if isinstance(source, bytes):
        return hashlib.md5(source, usedforsecurity=False).hexdigest()
    digest = hashlib.md5(usedforsecurity=False)
    with source.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _archive_length(files: Sequence[Outgoing]) -> int:
    content = sum(_BLOCK + outgoing.size + -outgoing.size % _BLOCK for outgoing in files)
    content += 2 * _BLOCK  # the end-of-archive marker
    return content + -content % _RECORD


def _tar_head(name: str, size: int, modified: bytes) -> bytes:
    """Return the 512 bytes before a file in a ustar archive (POSIX.1-1988), faster than `tarfile` does."""
    first = name.encode().ljust(_NAME_MAX, b"\x00") + _MODE_AND_OWNER + b"%011o\x00" % size + modified
    checksum = sum(first) + 8 * 32 + _SUM_AFTER
    return first + b"%06o\x00 " % checksum + _AFTER_CHECKSUM


def content_of(outgoing: Outgoing) -> bytes | FileChanged:
    """Return a small file's bytes, or why they are not those of the file that was examined."""
    source = outgoing.source
    try:
        return source if isinstance(source, bytes) else _read_whole(outgoing, source)
    except FileChanged as changed:
        return changed


def _read_whole(outgoing: Outgoing, path: Path) -> bytes:
    """Return a small file's bytes. Raises `FileChanged` unless they are those of the file that was examined."""
    try:
        with path.open("rb", buffering=0) as stream:
            data = stream.read(outgoing.size + 1) or b""
            while len(data) < outgoing.size and (more := stream.read(outgoing.size - len(data))):
                data += more  # a raw read may return less than was asked for
            _same(outgoing, os.fstat(stream.fileno()))
    except OSError as error:
        raise FileChanged(outgoing.name, _unreadable(error)) from error
    if len(data) != outgoing.size:
        raise FileChanged(outgoing.name, "it changed while it was being sent")
    return data


def _read_chunks(outgoing: Outgoing, path: Path) -> Iterator[bytes]:
    """Yield a large file's bytes, the last chunk only after the file was seen to be unchanged."""
    left = outgoing.size
    try:
        with path.open("rb", buffering=0) as stream:
            _same(outgoing, os.fstat(stream.fileno()))
            while left > 0:
                chunk = stream.read(min(CHUNK, left))
                if not chunk:
                    raise FileChanged(outgoing.name, "it became shorter while it was being sent")
                left -= len(chunk)
                if left == 0:
                    _same(outgoing, os.fstat(stream.fileno()))
                yield chunk
    except OSError as error:
        raise FileChanged(outgoing.name, _unreadable(error)) from error


def _same(outgoing: Outgoing, now: os.stat_result) -> None:
    if not stat.S_ISREG(now.st_mode):
        raise FileChanged(outgoing.name, "it is not a regular file any more")
    if now.st_size != outgoing.size or (outgoing.modified_ns and now.st_mtime_ns != outgoing.modified_ns):
        raise FileChanged(outgoing.name, "it changed while it was being sent")


def _unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it disappeared while it was being sent"
    return f"it could not be read ({error.strerror or type(error).__name__})"


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, CHUNK))
        count -= CHUNK
