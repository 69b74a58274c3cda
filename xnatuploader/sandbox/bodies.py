"""Request bodies: which ones XNAT takes as a file or a form, and how they are read."""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import re
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import http, web

from xnatuploader.sandbox import answers
from xnatuploader.sandbox.calls import Call

BATCH = 1 << 20
"""Bytes that are gathered before they are handed to a thread."""
_EXTENSIONS = {
    "application/octet-stream": "",
    "application/zip": ".zip",
    "application/x-tar": ".tar",
    "application/x-gtar": ".tar.gz",
    "application/x-gzip": ".gzip",
    "application/xar": ".xar",
    "application/dicom": ".dcm",
    "application/pdf": ".pdf",
    "text/plain": ".txt",
    "text/xml": ".xml",
    "text/csv": ".csv",
    "application/*": "",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
    "image/svg+xml": ".svg",
    "video/mp4": ".mp4",
    "video/mpeg": ".mpeg",
    "application/msword": ".doc",
    "application/vnd.ms-excel": ".xls",
}
"""Content types that XNAT takes as one raw file, and the ending of the name it then gives."""

_counter = itertools.count()


def content_type(call: Call) -> str:
    """Return the media type as sent, in lower case and without parameters; empty where there is none."""
    return call.request.headers.get("Content-Type", "").split(";")[0].strip().lower()


def is_multipart(call: Call) -> bool:
    """Tell a multipart form from a raw file; a body that XNAT takes as neither is a Refusal."""
    kind = content_type(call)
    if call.flag("inbody"):
        if kind.startswith("multipart/"):
            raise answers.Refusal(406, "inbody=true cannot be used with a multipart form")
        return False
    if kind.startswith("multipart/form-data"):
        return True
    if kind == "application/x-www-form-urlencoded":
        raise answers.Refusal(500, "The request body could not be parsed as a multipart form")
    if kind in _EXTENSIONS or kind.startswith("text/"):
        return False
    raise answers.Refusal(
        400, "No file was found in the request. If the body is the file, add inbody=true to the URL."
    )


def check_length(call: Call, status: int) -> None:
    """Refuse raw bodies that are empty or of unknown length, except zip files."""
    length = call.request.content_length
    if content_type(call) == "application/zip" and length != 0:
        return
    if not length:
        raise answers.Refusal(status, "FileUploadException: the size of the request body is unknown or zero")


def raw_name(call: Call) -> str:
    """Return the name XNAT gives a raw body that has none in the URL."""
    kind = content_type(call)
    if kind.startswith("text/") and kind not in _EXTENSIONS:
        return "upload.txt"
    return "upload" + _EXTENSIONS.get(kind, ".unsupported")


async def chunks(call: Call) -> AsyncIterator[bytes]:
    """Yield the raw body as it arrives, throttled; Cut when the connection breaks or a fault says so."""
    request, site = call.request, call.site
    stop = _stop_after(call)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # not before the body is wanted
    while True:
        try:
            chunk = await request.content.readany()
        except (OSError, aiohttp.ClientError, http.HttpProcessingError, web.RequestPayloadError) as error:
            raise answers.Cut("the client went away in the middle of the body") from error
        if not chunk:
            return
        if site.settings.bandwidth:
            await site.throttle.take(len(chunk), site.settings.bandwidth)
        if stop is not None and call.logged.received + len(chunk) >= stop:
            yield chunk[: max(0, stop - call.logged.received)]
            call.logged.received = stop
            await break_as_ordered(call, "during")
        call.logged.received += len(chunk)
        yield chunk


def _stop_after(call: Call) -> int | None:
    if call.plan.find("drop", "during") or call.plan.find("hang", "during"):
        return max(1, (call.request.content_length or 2) // 2)
    return None


async def break_as_ordered(call: Call, when: str) -> None:
    """Break the connection if a fault says so: `before`, `during` or `after` the body."""
    hang = call.plan.find("hang", when)
    if hang is not None:
        await asyncio.sleep(hang.seconds or 3600)
    if hang is not None or call.plan.find("drop", when):
        raise answers.Cut("ordered by a fault")


async def batches(call: Call) -> AsyncIterator[bytes]:
    """Yield the raw body in pieces of about a megabyte, including what had arrived when the connection broke."""
    gathered: list[bytes] = []
    size = 0
    try:
        async for chunk in chunks(call):
            gathered.append(chunk)
            size += len(chunk)
            if size >= BATCH:
                yield b"".join(gathered)
                gathered, size = [], 0
    except answers.Cut:
        if gathered:
            yield b"".join(gathered)
        raise
    if gathered:
        yield b"".join(gathered)


async def discard(call: Call) -> None:
    """Read the body and forget it."""
    async for _ in chunks(call):
        pass


def scratch_file(call: Call) -> Path:
    """Return the path of a new file, for a body that is being received."""
    return call.store.scratch / f"{os.getpid()}-{next(_counter)}"


async def spool(call: Call, target: Path) -> int:
    """Write the raw body to a file and return its size. At a cut, what had arrived stays in the file."""
    total = 0
    with target.open("wb") as out:
        async for batch in batches(call):
            total += len(batch)
            if len(batch) < 65536:
                out.write(batch)
            else:
                await asyncio.to_thread(out.write, batch)
    return total


@dataclass(slots=True)
class FormFile:
    """A file that came in a multipart form."""

    name: str
    path: Path


@dataclass(slots=True)
class MultipartForm:
    """A multipart form: its files, spooled to disk, and its plain fields."""

    files: list[FormFile] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def discard(self) -> None:
        """Remove what was spooled."""
        for part in self.files:
            part.path.unlink(missing_ok=True)


async def read_form(call: Call) -> MultipartForm:
    """Spool a multipart body to disk and parse it."""
    match = re.search(r'boundary="?([^";]+)"?', call.request.headers.get("Content-Type", ""))
    if match is None:
        raise answers.Refusal(400, "The multipart form names no boundary")
    whole = scratch_file(call)
    try:
        size = await spool(call, whole)
        if not size:
            return MultipartForm()
        return await asyncio.to_thread(_split_form, whole, match.group(1).encode(), call)
    finally:
        whole.unlink(missing_ok=True)


def _split_form(whole: Path, boundary: bytes, call: Call) -> MultipartForm:
    form = MultipartForm()
    fence = b"--" + boundary
    with whole.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(fence)
        while at >= 0:
            head = at + len(fence)
            if data[head : head + 2] == b"--":
                break
            end_of_head = data.find(b"\r\n\r\n", head)
            following = data.find(b"\r\n" + fence, end_of_head + 2)
            if end_of_head < 0 or following < 0:
                raise answers.Refusal(400, "The multipart form is incomplete")
            begin = min(end_of_head + 4, following)
            _take_part(form, data[head:end_of_head].decode("utf-8", "replace"), data, begin, following, call)
            at = following + 2
    return form


def _take_part(form: MultipartForm, head: str, data: mmap.mmap, begin: int, end: int, call: Call) -> None:
    field_name = re.search(r'[; ]name="([^"]*)"', head)
    file_name = re.search(r'filename="([^"]*)"', head)
    if field_name and field_name.group(1) == "reference":
        raise answers.Refusal(400, "Files may not be given by reference")
    if file_name is None:
        if field_name is not None:
            form.fields[field_name.group(1)] = data[begin:end].decode("utf-8", "replace")
        return
    name = file_name.group(1).replace("\\", "/").rsplit("/", 1)[-1]
    target = scratch_file(call)
    with target.open("wb") as out:
        for start in range(begin, end, BATCH):
            out.write(data[start : min(end, start + BATCH)])
    form.files.append(FormFile(name, target))


class Feed:
    """Passes bytes from the event loop to one thread, and holds a few megabytes of them at most."""

    LIMIT = 4 * BATCH

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = deque[bytes]()
        self._current = memoryview(b"")
        self._size = 0
        self._changed = threading.Condition()
        self._has_space = asyncio.Event()
        self._has_space.set()
        self._ended = False
        self._broken = False
        self._abandoned = False

    async def put(self, chunk: bytes) -> None:
        """Hand over bytes; waits while the thread is behind."""
        with self._changed:
            if self._abandoned:
                return
            self._waiting.append(chunk)
            self._size += len(chunk)
            if self._size > self.LIMIT:
                self._has_space.clear()
            self._changed.notify()
        await self._has_space.wait()

    def end(self, broken: bool = False) -> None:
        """Say that nothing more comes; `broken` if the body was cut off."""
        with self._changed:
            self._ended, self._broken = True, broken
            self._changed.notify()

    def abandon(self) -> None:
        """Say, in the thread, that it will read no more."""
        with self._changed:
            self._abandoned = True
            self._waiting.clear()
        self._loop.call_soon_threadsafe(self._has_space.set)

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, in the thread; empty at the end, Cut if the body was cut off."""
        if not self._current:
            self._current = memoryview(self._next())
        piece = bytes(self._current if size < 0 else self._current[:size])
        self._current = self._current[len(piece) :]
        return piece

    def _next(self) -> bytes:
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait()
            if not self._waiting:
                if self._broken:
                    raise answers.Cut("the body was cut off")
                return b""
            chunk = self._waiting.popleft()
            self._size -= len(chunk)
            if self._size <= self.LIMIT and not self._has_space.is_set():
                self._loop.call_soon_threadsafe(self._has_space.set)
        return chunk
