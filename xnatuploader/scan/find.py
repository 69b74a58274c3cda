"""The files below a folder: each once, in an order that stays the same, whatever is in the way.

An entry that cannot be read (a folder without permission, a device, a broken link) is a `FoundFile` with `error`.
"""

from __future__ import annotations

import datetime
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from xnatuploader import paths, records

SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
SYSTEM_PREFIXES = ("._", "~$")
"""What Finder, Explorer and Office leave behind; never listed."""

_DANGLING = "A broken link: the file it points to is gone."
_DEVICE = "This is not a file but a device, pipe or socket."
_JUNCTION = 0xA0000003
"""IO_REPARSE_TAG_MOUNT_POINT: Windows' link from folder to folder, which Python does not call a link."""
_EPOCH = datetime.datetime(1970, 1, 1)

_digits = re.compile(r"([0-9]+)")
_Identity = tuple[int, int] | str
_Part = tuple[int, tuple[str | int, ...], str]


def order(file: str) -> tuple[_Part, ...]:
    """Return the sort key of a path with `/`: folder by folder, files before folders, numbers as numbers.

    `list_files` gives its files in this order.
    """
    *folders, name = file.split("/")
    return (*(_part(1, folder) for folder in folders), _part(0, name))


def _part(is_folder: int, name: str) -> _Part:
    """Return the key of one name; the name itself decides between `a` and `A`, and between `1` and `01`."""
    pieces = _digits.split(name.casefold())
    return is_folder, tuple(int(piece) if at % 2 else piece for at, piece in enumerate(pieces)), name


def list_files(
    root: Path, exclude: Collection[Path] = (), seen: Callable[[], object] = lambda: None
) -> Iterator[records.FoundFile]:
    """Give every file below `root`, in the order of `order`.

    `exclude`: files and folders to leave out (the workbook, its logs, journal and lock). Links to folders are
    followed once, so that loops end and no file is listed twice because of a link; a folder's own path goes
    before a link to it. `seen` is called for each file as it is found, the first long before the last.
    """
    walk = _Walk(root, exclude)
    found = []
    for one in walk.files():
        found.append(one)
        seen()
    if walk.links:
        found.sort(key=lambda one: order(one.file))
    yield from found


class _Walk:
    """One walk below a root: what it has seen, and the links it still has to follow."""

    def __init__(self, root: Path, exclude: Collection[Path]) -> None:
        self._root = os.fspath(root)
        self._excluded = {_whole(path) for path in exclude}
        self._excluded_names = {os.path.normcase(path.name) for path in exclude}
        self._seen: set[_Identity] = set()
        self.links: list[str] = []

    def files(self) -> Iterator[records.FoundFile]:
        """Give the files below the root, then those behind links to folders; links found on the way are added."""
        yield from self.below("", linked=False)
        for link in self.links:
            yield from self.below(link, linked=True)

    def below(self, start: str, linked: bool) -> Iterator[records.FoundFile]:
        """Give the files below the folder `start` (relative, '' is the root), folder by folder.

        `linked`: `start` was reached by a link; then folders seen before are left out.
        """
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            if not self._enter(folder, linked):
                continue
            try:
                with os.scandir(self._path(folder)) as entries:
                    names = sorted(entries, key=lambda entry: _part(0, entry.name))
            except OSError as error:
                yield records.FoundFile(folder or ".", 0, "", _why_no_folder(error))
                continue
            folders = []
            for entry in names:
                file = f"{folder}/{entry.name}" if folder else entry.name
                if self._left_out(entry.name, file):
                    continue
                kind, found = _look(entry, file)
                if kind == "folder":
                    folders.append(file)
                elif kind == "link":
                    self.links.append(file)
                elif found is not None and not _is_system_file(entry.name):
                    yield found
            waiting.extend(reversed(folders))

    def _enter(self, folder: str, linked: bool) -> bool:
        """Note the folder as seen; False for one behind a link that was seen before."""
        try:
            identity = _identity(self._path(folder))
        except OSError:
            return True  # opening it says why
        known = identity in self._seen
        self._seen.add(identity)
        return not (linked and known)

    def _path(self, file: str) -> str:
        return paths.joined(self._root, file)

    def _left_out(self, name: str, file: str) -> bool:
        if os.path.normcase(name) not in self._excluded_names:
            return False
        return _whole(Path(self._root, file)) in self._excluded


def _is_system_file(name: str) -> bool:
    return name.lower() in SYSTEM_FILES or name.startswith(SYSTEM_PREFIXES)


def _whole(path: Path) -> str:
    """Return the one spelling of a path by which it is known again, whatever links and case lead to it."""
    try:
        return os.path.normcase(path.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return os.path.normcase(path.absolute())


def _identity(path: str) -> _Identity:
    """Return what tells one folder from another; network drives that have no inode numbers go by name."""
    status = Path(path).stat()
    return (status.st_dev, status.st_ino) if status.st_ino else _whole(Path(path))


def _look(entry: os.DirEntry[str], file: str) -> tuple[str, records.FoundFile | None]:
    """Return `folder`, `link` (to a folder) or `file`, and for the last what was found."""
    is_link = False
    try:
        is_link = entry.is_symlink()
        status = entry.stat(follow_symlinks=is_link)
    except FileNotFoundError:
        # Gone meanwhile, or a link to nothing: reading a file that is gone says so.
        return "file", records.FoundFile(file, 0, "", _DANGLING if is_link else "")
    except OSError as error:
        return "file", records.FoundFile(file, 0, "", _why_no_entry(error))
    if stat.S_ISDIR(status.st_mode):
        is_junction = getattr(status, "st_reparse_tag", 0) == _JUNCTION
        return ("link" if is_link or is_junction else "folder"), None
    problem = "" if stat.S_ISREG(status.st_mode) else _DEVICE
    return "file", records.FoundFile(file, status.st_size, modified(status.st_mtime), problem)


def _why_no_entry(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "You have no permission to read this file. Ask its owner, then scan again."
    return f"The file could not be read ({error.strerror or 'unknown reason'}). Scan again later."


def _why_no_folder(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "You have no permission to open this folder. Its files are not listed: ask its owner, then scan again."
    if isinstance(error, FileNotFoundError):
        return "This folder has disappeared during the scan; was it moved? Scan again."
    reason = error.strerror or "unknown reason"
    return f"This folder could not be opened ({reason}), so its files are not listed. Scan again later."


def modified(seconds: float) -> str:
    """Return a file's last change (seconds since 1970) as `YYYY-MM-DDTHH:MM:SSZ`, '' beyond all years."""
    try:
        return (_EPOCH + datetime.timedelta(seconds=int(seconds))).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError):
        return ""
