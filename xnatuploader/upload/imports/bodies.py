"""Request bodies of an import: zips and single files, streamed, of a length known before the first byte.

A zip is written in one pass without compressing. A small file is read whole, so that its CRC stands before
it; a large one travels as *deflate* with stored blocks and its CRC behind it, because Java's streaming reader
takes no stored member whose CRC comes later (java.util.zip.ZipInputStream).
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from xnatuploader.upload import tar_body

_BLOCK = 65535
"""Bytes in a stored block (RFC 1951, 3.2.4)."""
_LOCAL, _CENTRAL, _DESCRIPTOR = 30, 46, 16
_LIMIT = _FULL = 0xFFFFFFFF
_MANY = _ALL = 0xFFFF
"""From these on a number stands in a zip64 record, and the plain field is full of ones."""
_UTF8, _BEHIND = 0x800, 0x8
_DATE = (2020 - 1980) << 9 | 1 << 5 | 1

Watch = Callable[[int, int], None]


class Zip:
    """A zip of `files` under their names; `digests` holds their MD5s by name after a full pass.

    Raises `archive.Changed` while it is read when a file is not the one that was examined.
    """

    content_type = "application/zip"

    def __init__(self, files: Sequence[tar_body.Outgoing]) -> None:
        self.files = tuple(files)
        self.watch: Watch | None = None
        self.digests: dict[str, str] = {}
        self._length = _zip_length([(file.name, _packed_size(file.size)) for file in self.files])

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[bytes]:
        held: list[bytes] = []
        size = 0
        for piece in self._pieces():
            held.append(piece)
            size += len(piece)
            if size >= tar_body.CHUNK:
                yield b"".join(held)
                held, size = [], 0
        yield b"".join(held)

    def _pieces(self) -> Iterator[bytes]:
        self.digests = {}
        members: list[_Member] = []
        sent = 0
        for count, file in enumerate(self.files):
            for chunk in self._file(file, sent, members):
                sent += len(chunk)
                self._tell(sent, count)
                yield chunk
        self._tell(sent, len(self.files))
        yield _directory(members, sent)

    def _tell(self, sent: int, files: int) -> None:
        if self.watch is not None:
            self.watch(sent, files)

    def _file(self, file: tar_body.Outgoing, at: int, members: list[_Member]) -> Iterator[bytes]:
        reader = tar_body.Part([file], framed=False)
        if not _is_large(file.size):
            data = b"".join(reader)
            member = _Member(file.name, at, zlib.crc32(data), len(data), len(data))
            yield member.local() + data
        else:
            member = _Member(file.name, at, 0, _blocks_size(file.size), file.size, behind=True)
            yield member.local()
            yield from _stored_blocks(reader, file.size, member)
            yield struct.pack("<4L", 0x08074B50, member.crc, member.packed, member.size)
        members.append(member)
        self.digests.update(reader.digests)


class Single:
    """One DICOM file as it is (`application/dicom`): XNAT calls every such body `upload.dcm`."""

    content_type = "application/dicom"

    def __init__(self, file: tar_body.Outgoing) -> None:
        self._part = tar_body.Part([file], framed=False)
        self.files = (file,)
        self.watch: Watch | None = None

    @property
    def digests(self) -> Mapping[str, str]:
        """As in `Zip`."""
        return self._part.digests

    def __len__(self) -> int:
        return len(self._part)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[bytes]:
        self._part.watch = self.watch
        yield from self._part


class Form(Single):
    """One DICOM file as a form's only part, which is the way to give a single file its name."""

    def __init__(self, file: tar_body.Outgoing) -> None:
        super().__init__(file)
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        name = file.name.rpartition("/")[2]
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/dicom\r\n\r\n"
        ).encode()
        self._foot = f"\r\n--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + len(self._part) + len(self._foot)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        yield from super().__iter__()
        yield self._foot


class Tar(Single):
    """One file that is too large for a zip (4 GiB), in a tar."""

    content_type = "application/x-tar"

    def __init__(self, file: tar_body.Outgoing) -> None:
        super().__init__(file)
        self._part = tar_body.Part([file])

    def __iter__(self) -> Iterator[bytes]:
        yield from super().__iter__()
        for name, reason in self._part.left_out.items():
            raise tar_body.Changed(name, reason)


Body = Zip | Single | Tar


def archives(files: Sequence[tar_body.Outgoing], limit_bytes: int, limit_files: int) -> list[Body]:
    """Divide `files` into zips of at most so many bytes of content and so many files each."""
    made: list[Body] = []
    held: list[tar_body.Outgoing] = []
    size = 0
    for file in files:
        if _blocks_size(file.size) >= _LIMIT:
            made.append(Tar(file))
            continue
        if held and (size + file.size > limit_bytes or len(held) >= limit_files):
            made.append(Zip(held))
            held, size = [], 0
        held.append(file)
        size += file.size
    return [*made, Zip(held)] if held else made


class _Member:
    """What the directory at the end has to say of a member."""

    def __init__(
        self, name: str, offset: int, crc: int, packed: int, size: int, *, behind: bool = False
    ) -> None:
        self.name = name.encode()
        self.offset, self.crc, self.packed, self.size = offset, crc, packed, size
        self.flags = _UTF8 | (_BEHIND if behind else 0)
        self.method = 8 if behind else 0
        self._behind = behind

    def local(self) -> bytes:
        """Return the header in front of the data."""
        known = (0, 0, 0) if self._behind else (self.crc, self.packed, self.size)
        head = struct.pack(
            "<L5H3L2H", 0x04034B50, 20, self.flags, self.method, 0, _DATE, *known, len(self.name), 0
        )
        return head + self.name

    def central(self) -> bytes:
        """Return the line of the directory; beyond 4 GiB the offset stands in a zip64 field."""
        far = self.offset >= _LIMIT
        extra = struct.pack("<2HQ", 1, 8, self.offset) if far else b""
        head = struct.pack(
            "<L6H3L5H2L",
            0x02014B50, 45 if far else 20, 45 if far else 20, self.flags, self.method, 0, _DATE,
            self.crc, self.packed, self.size, len(self.name), len(extra), 0, 0, 0, 0,
            _FULL if far else self.offset,
        )  # fmt: skip
        return head + self.name + extra


def _is_large(size: int) -> bool:
    return size > tar_body.CHUNK


def _blocks_size(size: int) -> int:
    """Return the length of `size` bytes in stored blocks."""
    return size + 5 * -(-size // _BLOCK)


def _packed_size(size: int) -> int:
    """Return how many bytes a file of `size` takes in a zip, its header apart."""
    return _blocks_size(size) + _DESCRIPTOR if _is_large(size) else size


def _stored_blocks(chunks: Iterator[bytes] | tar_body.Part, size: int, member: _Member) -> Iterator[bytes]:
    """Yield the data in stored blocks, and put its CRC into `member`."""
    held = b""
    left = size
    for chunk in chunks:
        member.crc = zlib.crc32(chunk, member.crc)
        data = memoryview(held + chunk)
        pieces: list[bytes | memoryview] = []
        at = 0
        while len(data) - at >= _BLOCK or (len(data) - at == left and left > 0):
            block = data[at : at + _BLOCK]
            left -= len(block)
            at += len(block)
            count = len(block)
            pieces += (struct.pack("<BHH", left == 0, count, count ^ 0xFFFF), block)
        held = bytes(data[at:])
        if pieces:
            yield b"".join(pieces)


def _zip_length(members: Sequence[tuple[str, int]]) -> int:
    """Return the length of a zip, by each member's name and packed size; as `__iter__` writes it."""
    at = directory = 0
    for name, packed in members:
        length = len(name.encode())
        directory += _CENTRAL + length + (12 if at >= _LIMIT else 0)
        at += _LOCAL + length + packed
    return at + directory + len(_end(len(members), directory, at))


def _directory(members: Sequence[_Member], at: int) -> bytes:
    lines = b"".join(member.central() for member in members)
    return lines + _end(len(members), len(lines), at)


def _end(count: int, size: int, at: int) -> bytes:
    """Return what stands behind the directory, with the zip64 records where the plain one cannot say it."""
    large = b""
    if count >= _MANY or at >= _LIMIT or size >= _LIMIT:
        large = struct.pack("<LQ2H2L4Q", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, at)
        large += struct.pack("<LLQL", 0x07064B50, 0, at + size, 1)
    few = _ALL if large else count
    return large + struct.pack(
        "<L4H2LH", 0x06054B50, 0, 0, few, few, _FULL if large else size, _FULL if large else at, 0
    )
