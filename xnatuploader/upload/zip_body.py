"""Zip archives, for versions of XNAT that unpack nothing else, and for XAR.

A zip is made in a temporary file and not compressed. So every member's CRC comes before its bytes: Java's
streaming reader takes no stored member whose CRC comes later (java.util.zip.ZipInputStream).
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from xnatuploader import xnat
from xnatuploader.upload import tar_body

_DATE = (2020, 1, 1, 0, 0, 0)


class Zip(tar_body.Part):
    """A zip of `files`, and of `rest`, which describes them; it takes room on this computer's disk while it is `ready`.

    What holds for a tar of the same files holds for it. But with a `rest` no file is left out, as that would
    still name it: any change raises `FileChanged`.
    """

    name = "xnatuploader-part.zip"
    content_type = "application/zip"

    def __init__(self, files: Sequence[tar_body.Outgoing], rest: Sequence[tar_body.Outgoing] = ()) -> None:
        super().__init__(files)
        self._rest = tuple(rest)
        self._ends: list[int] = []
        """Where each file's bytes end."""

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Keep the zip for the length of a block.

        Raises `FileChanged` when a file is not the one that was examined, `RequestFailed` where there is no room.
        """
        with contextlib.ExitStack() as stack:
            try:
                self._stream = stack.enter_context(tempfile.TemporaryFile(prefix="xnatuploader-"))
                self._write(self._stream)
            except OSError as error:
                raise xnat.RequestFailed(
                    0,
                    "The files could not be put together in this computer's temporary folder "
                    f"({error.strerror or type(error).__name__}). Make room there.",
                    "other",
                ) from error
            yield

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body from its beginning."""
        self._stream.seek(0)
        sent = 0
        while chunk := self._stream.read(tar_body.CHUNK):
            sent += len(chunk)
            if self.watch is not None:
                self.watch(sent, bisect.bisect_right(self._ends, sent))
            yield chunk

    def _write(self, stream: IO[bytes]) -> None:
        self.digests, self.left_out, self._ends = {}, {}, []
        members = (*self.files, *self._rest)
        small = [one for one in members if one.size <= tar_body.CHUNK]
        reading = tar_body.in_order(tar_body.content_of, small, tar_body.SLOW_OPEN)
        with contextlib.closing(reading) as contents, zipfile.ZipFile(stream, "w") as package:
            for one in members:
                data = next(contents) if one.size <= tar_body.CHUNK else None
                if isinstance(data, tar_body.FileChanged):
                    if self._rest:
                        raise data
                    self.left_out[one.name] = data.reason
                elif data is None:
                    _add(package, one, self._streamed(one))
                else:
                    self.digests[one.name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
                    _add(package, one, (data,))
                self._ends.append(stream.tell())
        self._length = stream.tell()


def _add(package: zipfile.ZipFile, outgoing: tar_body.Outgoing, chunks: Iterable[bytes]) -> None:
    member = zipfile.ZipInfo(outgoing.name, _DATE)
    member.file_size = outgoing.size
    with package.open(member, "w") as writer:
        for chunk in chunks:
            writer.write(chunk)
