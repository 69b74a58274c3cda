"""The .xlsx file as a zip of parts: opening, relationships, and saving a copy beside it and replacing it."""

from __future__ import annotations

import codecs
import contextlib
import copy
import errno
import glob
import os
import posixpath
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from xnatuploader import errors, paths

Writer = Callable[[IO[bytes]], object]
"""Writes one part's bytes to the stream that it is given."""
Parts = Mapping[str, Writer | None]
"""Parts to replace or add; None for one to remove."""

_LEVEL = 3
"""Deflate level for the parts that we write: lists repeat themselves, and a higher one only costs time."""
LARGE = 3 << 30
"""Bytes in a part from which zip needs its 64-bit form; Excel wants the plain form for smaller ones."""
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, RuntimeError)
_COMPOUND_FILE = b"\xd0\xcf\x11\xe0"


def open_for_writing(path: Path) -> IO[bytes]:
    """Open the workbook's file as if to change it: on Windows this fails while Excel has it."""
    return path.open("r+b")


def replace(source: Path, target: Path) -> None:
    """Replace `target` by `source`: on Windows this fails while anybody has `target` open."""
    source.replace(target)


@dataclass(frozen=True, slots=True)
class Relationship:
    """One part's pointer to another. `target` is a part name, or a URL where `external`."""

    id: str
    type: str
    """The last word of its type's URI, as `worksheet`: strict and transitional files differ before it."""
    target: str
    external: bool = False


class Package:
    """The parts of a workbook, open for reading. Use it in `with`: Windows replaces no open file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        start = b""
        try:
            start = self._file.read(8)
            self._zip = zipfile.ZipFile(self._file)
        except (*_BROKEN, OSError) as error:
            self._file.close()
            raise _not_a_workbook(path, start) from error
        self.entries = self._zip.infolist()
        """The zip's own record of each part, in their order in the file."""
        self._by_name = {entry.filename.lower(): entry for entry in self.entries}

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def has(self, part: str) -> bool:
        """Tell whether there is such a part."""
        return part.lower() in self._by_name

    def size(self, part: str) -> int:
        """Return the bytes in a part."""
        return self._by_name[part.lower()].file_size

    @contextlib.contextmanager
    def stream(self, part: str) -> Iterator[IO[bytes]]:
        """Open a part for reading; damage found while reading is a SpreadsheetError."""
        try:
            opened = self._zip.open(self._by_name[part.lower()])
        except (*_BROKEN, OSError) as error:
            raise damaged(self.path, part) from error
        try:
            with opened as stream:
                yield stream
        except (*_BROKEN, UnicodeDecodeError) as error:
            raise damaged(self.path, part) from error

    def text(self, part: str) -> str:
        """Return a small XML part as text without byte order mark: UTF-8 or UTF-16, as ECMA-376 part 2 has it."""
        with self.stream(part) as stream:
            data = stream.read()
            wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            text = data.decode("utf-16" if wide else "utf-8-sig")
            if "<!DOCTYPE" in text:
                raise EOFError("a document type")
        return re.sub(r'(<\?xml[^>]*encoding=["\'])[^"\']*', r"\1UTF-8", text, count=1) if wide else text

    def tree(self, part: str) -> ElementTree.Element:
        """Return a small part parsed."""
        try:
            return ElementTree.fromstring(self.text(part).encode())
        except ElementTree.ParseError as error:
            raise damaged(self.path, part) from error

    def relationships(self, part: str) -> tuple[Relationship, ...]:
        """Return where a part points to; `''` is the package itself."""
        where = relationships_part(part)
        if not self.has(where):
            return ()
        return tuple(_relationship(part, item.attrib) for item in self.tree(where) if item.get("Id"))

    def copy_raw(self, entry: zipfile.ZipInfo, out: zipfile.ZipFile) -> None:
        """Copy a part without unpacking it, by writing its header and bytes where zipfile would write its own."""
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        self._file.seek(entry.header_offset + 30 + skip)
        stream = out.fp
        assert stream is not None
        new = copy.copy(entry)
        new.flag_bits &= ~0x08  # the sizes are in the header, not behind the data
        stream.seek(out.start_dir)
        new.header_offset = out.start_dir
        new.extra = b""
        stream.write(new.FileHeader(zip64=False if new.file_size < zipfile.ZIP64_LIMIT else None))
        left = entry.compress_size
        while left:
            chunk = self._file.read(min(left, 1 << 20))
            if not chunk:
                raise damaged(self.path, entry.filename)
            left -= len(chunk)
            stream.write(chunk)
        out.start_dir = stream.tell()
        out.filelist.append(new)
        out.NameToInfo[new.filename] = new


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise errors.SpreadsheetError(
            f"There is no spreadsheet {path}. Run 'xnatuploader init --spreadsheet {paths.typed(path)}' to make one, "
            "or give its path with --spreadsheet."
        ) from error
    except IsADirectoryError as error:
        raise errors.SpreadsheetError(
            f"{path} is a folder. Give the spreadsheet with --spreadsheet."
        ) from error
    except OSError as error:
        refused = isinstance(error, PermissionError)
        do = (
            "Close it in Excel, or ask for permission to read it." if refused else "Check the drive it is on."
        )
        raise errors.SpreadsheetError(f"{path} cannot be read: {_reason(error)}. {do}") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _not_a_workbook(path: Path, start: bytes) -> errors.SpreadsheetError:
    if start.startswith(_COMPOUND_FILE):
        what = "is protected by a password, or has the old .xls format"
    elif not start:
        what = "is an empty file"
    elif start.startswith(b"PK"):
        return damaged(path, "the file")
    else:
        what = "is not an Excel workbook"
    return errors.SpreadsheetError(
        f"{path} {what}. Save it in Excel as 'Excel Workbook (*.xlsx)' without a password, "
        "or make a new one with 'xnatuploader init'."
    )


def damaged(path: Path | str, part: str) -> errors.SpreadsheetError:
    """Return the error for a workbook that cannot be read to its end."""
    return errors.SpreadsheetError(
        f"{path} is damaged ({part} cannot be read). Open it in Excel, let Excel repair it and save it, "
        "or go back to a backup copy."
    )


def relationships_part(part: str) -> str:
    """Return the name of the part that holds `part`'s relationships."""
    folder, name = posixpath.split(part)
    return posixpath.join(folder, "_rels", f"{name}.rels")


def _relationship(part: str, attributes: Mapping[str, str]) -> Relationship:
    target = attributes.get("Target", "")
    external = attributes.get("TargetMode") == "External"
    if not external:
        folder = posixpath.dirname(part)
        target = target.replace("\\", "/")
        target = posixpath.normpath(posixpath.join("/" + folder, target)).lstrip("/")
    return Relationship(attributes["Id"], attributes.get("Type", "").rsplit("/", 1)[-1], target, external)


def save(package: Package, parts: Parts, large: frozenset[str] = frozenset()) -> Path:
    """Write a copy of `package` with `parts` replaced, added or removed, beside it, and return its path.

    Parts that are not named are copied as they are compressed, byte for byte. The copy is flushed to disk;
    `move` replaces the workbook by it. `large` names parts that may pass 3 GB. Raises SpreadsheetLocked.
    """
    target = _beside(real(package.path))
    try:
        with target.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as out:
                _copy_parts(package, out, parts, large)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(package.path, target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_written(package.path, error) from error
        raise
    return target


def _beside(path: Path) -> Path:
    """Return a name for the new file; a scan never lists names that begin with `~$`."""
    for left in path.parent.glob(f"~${glob.escape(path.name)}.*.part"):
        # Left by a run that was killed while it saved; a younger one may belong to a run that goes on.
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
    return path.with_name(f"~${path.name}.{os.getpid()}.part")


def _copy_parts(package: Package, out: zipfile.ZipFile, parts: Parts, large: frozenset[str]) -> None:
    entries = {entry.filename: entry for entry in package.entries}
    for name in dict.fromkeys((*entries, *parts)):
        if name not in parts:
            package.copy_raw(entries[name], out)
        elif (writer := parts[name]) is not None:
            with out.open(name, "w", force_zip64=name in large) as stream:
                writer(stream)


def real(path: Path) -> Path:
    """Return what a link points to, so that the link stays one; any other path as it is."""
    return path.resolve() if path.is_symlink() else path


def signature(path: Path) -> tuple[int, ...]:
    """Return what changes when somebody saves the file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def move(source: Path, target: Path) -> None:
    """Replace the workbook by the finished file, durably. Raises OSError, with both files as they were."""
    target = real(target)
    replace(source, target)
    with contextlib.suppress(OSError):  # Windows and some network drives cannot flush a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def not_written(path: Path, error: OSError) -> errors.SpreadsheetLocked:
    """Return the error for a workbook that could not be written, with what to do about it."""
    if error.errno == errno.ENOSPC:
        what = ": the disk is full. Make room"
    elif isinstance(error, PermissionError):
        what = ". Close it in Excel (or ask for permission to write there)"
    else:
        what = f": {_reason(error)}. Check the drive"
    return errors.SpreadsheetLocked(f"{path} could not be written{what} and run the same command again.")
