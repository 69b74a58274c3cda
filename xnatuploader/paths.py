"""Folders and names that differ between operating systems: whatever is special on Windows asks `is_windows`."""

from __future__ import annotations

import ntpath
import os
import posixpath
import re
import shlex
import sys
from pathlib import Path


def is_windows() -> bool:
    """Tell whether this is Windows."""
    return sys.platform == "win32"


def state_folder() -> Path:
    """Return the user's folder for logs and locks that cannot be kept beside the workbook (not created here)."""
    return _user_folder("LOCALAPPDATA", "XDG_STATE_HOME", ".local/state")


def config_folder() -> Path:
    """Return the user's folder for what must outlive a run, as the de-identification key (not created here)."""
    return _user_folder("APPDATA", "XDG_CONFIG_HOME", ".config")


def _user_folder(windows_variable: str, posix_variable: str, posix_default: str) -> Path:
    base = os.environ.get(windows_variable if is_windows() else posix_variable, "")
    default = "AppData/Local" if is_windows() else posix_default
    return (Path(base) if base else Path.home() / default) / "xnatuploader"


def data_folder(given: str, workbook: Path) -> Path:
    """Return the folder that `--dir` names: from the current folder, or where it is not there, beside the workbook."""
    folder = Path(given)
    if not folder.is_absolute() and not folder.exists():
        beside = workbook.absolute().parent / folder
        if beside.exists():
            return beside
    return folder


def why_no_folder(folder: Path) -> str:
    """Say what to do about a folder that is not there; drives and shares of Windows are often just not connected."""
    text = str(folder)
    if text.startswith(("\\\\", "//")):
        return (
            f"The network folder {text} cannot be reached: check that the server is on and that this user (a "
            "scheduled task has its own) may open it."
        )
    if len(text) > 1 and text[1] == ":":
        return (
            f"There is no folder {text}: check that drive {text[:2]} is connected. A scheduled task does not see "
            r"mapped drives: give it the full name instead (\\server\share\folder)."
        )
    return f"There is no folder {text}: give the folder that holds the data with --dir."


def typed(path: str | os.PathLike[str]) -> str:
    """Return a path as it has to be typed at a prompt: of cmd and PowerShell, or of a POSIX shell."""
    text = os.fspath(path)
    plain = r"[\w.:/\\+-]+" if is_windows() else r"[\w.:/+-]+"
    if re.fullmatch(plain, text):
        return text
    if is_windows():
        return f'"{text}\\"' if text.endswith("\\") else f'"{text}"'
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def spellings(file: str) -> tuple[str, ...]:
    r"""Return the ways in which a path of the File column may be meant: `a\b`, as 1.x wrote it on Windows, is `a/b`."""
    return (file, file.replace("\\", "/")) if "\\" in file else (file,)


def joined(folder: str | os.PathLike[str], file: str) -> str:
    r"""Return the path of `file` below `folder` so that it opens, however long it is: see `long_path`.

    A `file` with a root of its own (`/data`, `C:\data`, `\\server\share`) stays what it is. Whoever opens a
    listed file gets its path from here.
    """
    kind = ntpath if is_windows() else posixpath
    return long_path(kind.join(os.fspath(folder), file))


def long_path(path: str | os.PathLike[str]) -> str:
    r"""Return `path` so that it opens even where Windows' limit of 260 characters would forbid it.

    There a path of 240 characters or more becomes absolute with the prefix `\\?\` (`\\?\UNC\` for a share),
    which wants backslashes and no `..`; everything else stays as it is.
    """
    text = os.fspath(path)
    if not is_windows():
        return text
    if text.startswith("\\\\?\\"):
        return text.replace("/", "\\")
    whole = ntpath.normpath(text if ntpath.isabs(text) else ntpath.join(str(Path.cwd()), text))
    if len(whole) < 240:
        return text
    return f"\\\\?\\UNC\\{whole[2:]}" if whole.startswith("\\\\") else f"\\\\?\\{whole}"
