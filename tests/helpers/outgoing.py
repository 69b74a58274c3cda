"""Files to send: on disk, in memory, and changed after they were looked at."""

from __future__ import annotations

import os
from pathlib import Path

from xnatuploader.upload import tar_body


def looked_at(path: Path, name: str = "") -> tar_body.Outgoing:
    """Return a file on disk as it is now."""
    found = path.stat()
    return tar_body.Outgoing(path.name, name or path.name, found.st_size, path, found.st_mtime_ns)


def written(folder: Path, name: str, data: bytes) -> tar_body.Outgoing:
    """Write a file and return it."""
    path = folder / name
    path.write_bytes(data)
    return looked_at(path)


def held(name: str, data: bytes) -> tar_body.Outgoing:
    """Return a file whose bytes are in memory."""
    return tar_body.Outgoing(f"row {name}", name, len(data), data)


def of_sizes(*sizes: int) -> list[tar_body.Outgoing]:
    """Return files in memory, named as in an import."""
    return [held(f"SCANS/{n}/DICOM/im ü{n}.dcm", os.urandom(size)) for n, size in enumerate(sizes)]


def spoil(path: Path, change: str) -> None:
    """Change a file, or what is at its path."""
    found = path.stat()
    if change == "grown":
        path.write_bytes(path.read_bytes() + b"more")
    elif change == "shrunk":
        path.write_bytes(path.read_bytes()[: found.st_size // 2])
    elif change == "emptied":
        path.write_bytes(b"")
    elif change == "touched":  # same length, other content
        path.write_bytes(b"y" * found.st_size)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000_000))
    else:
        path.unlink()
        if change == "folder":
            path.mkdir()
