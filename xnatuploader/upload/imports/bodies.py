"""Request bodies of an import: zips and single files, of a length known before the first byte.

A zip is made in a temporary file and not compressed. So every member's CRC comes before its bytes: Java's
streaming reader takes no stored member whose CRC comes later (java.util.zip.ZipInputStream).
"""

from __future__ import annotations

import bisect
import contextlib
import secrets
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from xnatuploader import xnat
from xnatuploader.upload import tar_body

_LIMIT = 0xFFFFFFFF
"""Bytes in a file from which it travels in a tar, for readers that do not know large zips."""
_DATE = (2020, 1, 1, 0, 0, 0)


class Zip:
    """A zip of `files` and `rest` under their names, in a temporary file from `make` to `close`.

    After `make` `digests` holds their MD5s by name.
    """

    content_type = "application/zip"
    name = "upload.zip"

    def __init__(self, files: Sequence[tar_body.Outgoing], rest: Sequence[tar_body.Outgoing] = ()) -> None:
        self.files = tuple(files)
        self._rest = tuple(rest)
        self.watch: Callable[[int, int], None] | None = None
        self.digests: dict[str, str] = {}
        self._stream: IO[bytes] | None = None
        self._length = 0
        self._ends: list[int] = []
        """Where each file's bytes end."""

    def __len__(self) -> int:
        self.make()
        return self._length

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[bytes]:
        stream = self.make()
        stream.seek(0)
        sent = 0
        while chunk := stream.read(tar_body.CHUNK):
            sent += len(chunk)
            if self.watch is not None:
                self.watch(sent, bisect.bisect_right(self._ends, sent))
            yield chunk

    def make(self) -> IO[bytes]:
        """Write the zip, unless that is done, and return it.

        Raises `FileChanged` when a file is not the one that was examined, `RequestFailed` where there is no room.
        """
        if self._stream is None:
            try:
                self._stream = self._written()
            except OSError as error:
                raise xnat.RequestFailed(
                    0,
                    "The files could not be put together in this computer's temporary folder "
                    f"({error.strerror or type(error).__name__}). Make room there.",
                    "other",
                ) from error
        return self._stream

    def close(self) -> None:
        """Give up the temporary file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _written(self) -> IO[bytes]:
        self.digests, self._ends = {}, []
        with contextlib.ExitStack() as on_failure:
            stream = on_failure.enter_context(tempfile.TemporaryFile(prefix="xnatuploader-"))
            with zipfile.ZipFile(stream, "w") as package:
                for file in (*self.files, *self._rest):
                    self._add(file, package)
                    self._ends.append(stream.tell())
            self._length = stream.tell()
            on_failure.pop_all()
        return stream

    def _add(self, file: tar_body.Outgoing, package: zipfile.ZipFile) -> None:
        part = tar_body.Part([file], framed=False)
        member = zipfile.ZipInfo(file.name, _DATE)
        member.file_size = file.size
        with package.open(member, "w") as writer:
            for chunk in part:
                writer.write(chunk)
        self.digests.update(part.digests)


class Single(tar_body.Part):
    """One DICOM file as it is (`application/dicom`): XNAT calls every such body `upload.dcm`."""

    content_type = "application/dicom"

    def __init__(self, file: tar_body.Outgoing) -> None:
        super().__init__([file], framed=False)
        name = file.name.rpartition("/")[2]
        self.name = name if name.lower().endswith(".dcm") else f"{name}.dcm"


class Form(Single):
    """One DICOM file as a form's only part: only so XNAT gives a single file its own name."""

    def __init__(self, file: tar_body.Outgoing) -> None:
        super().__init__(file)
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        name = file.name.rpartition("/")[2]
        self._before = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/dicom\r\n\r\n"
        ).encode()
        self._behind = f"\r\n--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._before) + super().__len__() + len(self._behind)

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        yield from super().__iter__()
        yield self._behind


class Tar(tar_body.Part):
    """One file that is too large for a plain zip (4 GiB), in a tar."""

    content_type = "application/x-tar"
    name = "upload.tar"

    def __init__(self, file: tar_body.Outgoing) -> None:
        super().__init__([file])

    def __iter__(self) -> Iterator[bytes]:
        yield from super().__iter__()
        for name, reason in self.left_out.items():
            raise tar_body.FileChanged(name, reason)


Body = Zip | Single | Tar


def archives(files: Sequence[tar_body.Outgoing], limit_bytes: int, limit_files: int) -> list[Body]:
    """Divide `files` into zips with at most that many bytes of content and that many files each."""
    zipped = [file for file in files if file.size < _LIMIT]
    return [
        *(Tar(file) for file in files if file.size >= _LIMIT),
        *(Zip(some) for some in tar_body.batches(zipped, limit_bytes, limit_files)),
    ]
