"""Archives unpacked into a folder: tar and gzipped tar as they arrive, zip from a file."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from xnatuploader.sandbox import addresses, answers, store

PIECE = 1 << 20

Reader = Callable[[int], bytes]


def kind_of(name: str) -> str:
    """Tell an archive's format by its name: `zip`, `tar`, `tgz`, `gz`, or empty."""
    for kind, endings in (
        ("zip", (".zip", ".zar")),
        ("tar", (".tar", ".xar")),
        ("tgz", (".tgz", ".tar.gz")),
        ("gz", (".gz",)),
    ):
        if name.endswith(endings):
            return kind
    return ""


@dataclass(slots=True)
class Storage:
    """Writes files below one folder, wrongly where a fault says so."""

    folder: Path
    overwrite: bool
    checksums: bool
    corrupt: str = ""
    """`corrupt`, `silent-corrupt` or `lying-digest`."""
    disk_full: bool = False
    reserved: bool = True
    """Whether names that belong to catalogs are refused."""
    stored: dict[str, store.CatalogEntry] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    _made: set[Path] = field(default_factory=set)

    def write(self, name: str, pieces: Iterator[bytes]) -> None:
        """Store one file; an existing one is kept and noted unless `overwrite`. A cut leaves a truncated file."""
        path = addresses.clean_path(name, self.reserved)
        out = self.open(path)
        if out is None:
            for _ in pieces:
                pass
            return
        with out:
            self.stored[path] = self._copy(out, pieces)

    def open(self, path: str) -> IO[bytes] | None:
        """Open a file for writing under its final name, or note that it exists and return None."""
        target = self.folder / path
        if target.parent not in self._made:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(target.parent)
        try:
            return target.open("wb" if self.overwrite else "xb")
        except FileExistsError:
            self.duplicates.append(path)
            return None

    def _copy(self, out: IO[bytes], pieces: Iterator[bytes]) -> store.CatalogEntry:
        writer = Writer(self, out)
        for piece in pieces:
            writer.write(piece)
        return writer.entry()


class Writer:
    """Writes one file's bytes, counts and hashes them."""

    def __init__(self, storage: Storage, out: IO[bytes]) -> None:
        self._storage, self._out = storage, out
        self._hash = hashlib.md5(usedforsecurity=False)
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Write, count and hash."""
        mode = self._storage.corrupt
        stored = _altered(piece) if mode in ("corrupt", "silent-corrupt") and not self.size else piece
        if self._storage.disk_full:
            self._out.write(stored[: len(stored) // 2])
            raise answers.Refusal(500, "java.io.IOException: No space left on device")
        self._out.write(stored)
        if self._storage.checksums:
            self._hash.update(stored if mode == "corrupt" else piece)
        self.size += len(piece)

    def entry(self) -> store.CatalogEntry:
        """Return the catalog's entry for what was written."""
        digest = self._hash.hexdigest() if self._storage.checksums else ""
        if digest and self._storage.corrupt == "lying-digest":
            digest = digest[::-1]
        return store.CatalogEntry(self.size, digest)


def _altered(piece: bytes) -> bytes:
    return piece[:-1] + bytes([piece[-1] ^ 0xFF]) if piece else piece


def extract_file(source: Path, kind: str, storage: Storage, name: str) -> None:
    """Unpack an archive on disk; a damaged one is a Refusal 500."""
    if kind == "zip":
        extract_zip(source, storage)
    else:
        with source.open("rb") as archive:
            extract_stream(archive.read, kind, storage, name)


def extract_stream(read: Reader, kind: str, storage: Storage, name: str) -> None:
    """Unpack a tar, tgz or gz as it comes from `read`; a damaged one is a Refusal 500."""
    try:
        if kind == "tar":
            _untar(_Exact(read), storage)
        else:
            with gzip.GzipFile(fileobj=_Readable(read), mode="rb") as plain:  # type: ignore[call-overload]
                if kind == "tgz":
                    _untar(_Exact(plain.read), storage)
                else:
                    storage.write(name[: -len(".gz")], iter(lambda: plain.read(PIECE), b""))
        while read(PIECE):
            pass
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise answers.Refusal(500, f"The archive could not be extracted: {error}") from error


class _Readable:
    """The one method of a file that gzip needs."""

    def __init__(self, read: Reader) -> None:
        self.read = read


class _Exact:
    """Reads exactly as many bytes as asked for."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._kept = memoryview(b"")

    def take(self, size: int) -> bytes:
        """Return `size` bytes; fewer are an EOFError."""
        if len(self._kept) >= size:
            taken, self._kept = self._kept[:size], self._kept[size:]
            return bytes(taken)
        pieces, missing = [bytes(self._kept)], size - len(self._kept)
        self._kept = memoryview(b"")
        while missing > 0:
            piece = self._read(PIECE)
            if not piece:
                raise EOFError("the archive ends in the middle")
            pieces.append(piece[:missing])
            self._kept = memoryview(piece)[missing:]
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield `size` bytes in pieces; after an early end, those that came and then an EOFError."""
        while size > 0:
            if not self._kept:
                fresh = self._read(PIECE)
                if not fresh:
                    raise EOFError("the archive ends in the middle")
                self._kept = memoryview(fresh)
            piece, self._kept = self._kept[:size], self._kept[size:]
            size -= len(piece)
            yield bytes(piece)


def _untar(source: _Exact, storage: Storage) -> None:
    """Read ustar, GNU and pax archives; links, folders and devices are skipped."""
    long_name, pax = "", dict[str, str]()
    while True:
        header = source.take(512)
        if not header.strip(b"\0"):
            return
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise ValueError("a tar header has a wrong checksum")
        size, kind = int(pax["size"]) if "size" in pax else _number(header[124:136]), header[156:157]
        padding = -size % 512
        if kind in (b"L", b"x"):
            body = source.take(size + padding)[:size]
            if kind == b"L":
                long_name = body.rstrip(b"\0").decode("utf-8", "replace")
            else:
                pax = _pax(body)
            continue
        name = pax.get("path") or long_name or _name(header)
        if kind in (b"0", b"\0", b"7"):
            storage.write(name, source.pieces(size))
        else:
            for _ in source.pieces(size):
                pass
        source.take(padding)
        if kind != b"g":
            long_name, pax = "", {}


def _number(text: bytes) -> int:
    if text[0] & 0x80:
        return int.from_bytes(text, "big") & ((1 << (8 * len(text) - 1)) - 1)
    return int(text.strip(b"\0 ") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    prefix = (
        header[345:500].split(b"\0", 1)[0].decode("utf-8", "replace") if header[257:263] == b"ustar\0" else ""
    )
    return f"{prefix}/{name}" if prefix else name


def _pax(body: bytes) -> dict[str, str]:
    found = {}
    while body:
        length, _, _ = body.partition(b" ")
        line, body = body[: int(length)], body[int(length) :]
        key, _, value = line[len(length) + 1 : -1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return found


def extract_zip(source: Path, storage: Storage) -> None:
    """Unpack a zip file; a damaged one is a Refusal 500."""
    try:
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as member:
                        storage.write(info.filename, iter(lambda m=member: m.read(PIECE), b""))  # type: ignore[misc]
    except (zipfile.BadZipFile, OSError, zlib.error, NotImplementedError, EOFError) as error:
        raise answers.Refusal(500, f"The archive could not be extracted: {error}") from error


def salvage_zip(source: Path, storage: Storage) -> None:
    """Store the members that arrived of a zip that was cut off; the last one may be truncated."""
    data = source.read_bytes()
    at = 0
    while data[at : at + 4] == b"PK\x03\x04" and at + 30 <= len(data):
        method = int.from_bytes(data[at + 8 : at + 10], "little")
        packed = int.from_bytes(data[at + 18 : at + 22], "little")
        names = int.from_bytes(data[at + 26 : at + 28], "little")
        begin = at + 30 + names + int.from_bytes(data[at + 28 : at + 30], "little")
        name = data[at + 30 : at + 30 + names].decode("utf-8", "replace")
        body = data[begin : begin + packed]
        plain = zlib.decompressobj(-15).decompress(body) if method == 8 else body
        if name and not name.endswith("/"):
            storage.write(name, iter([plain]))
        at = begin + packed
