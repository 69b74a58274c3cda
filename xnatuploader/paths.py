"""Folders and names that differ between operating systems, each behind a function that a test can ask for both."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def is_windows() -> bool:
    """Tell whether this is Windows."""
    return sys.platform == "win32"


def state_folder(
    windows: bool | None = None, environ: Mapping[str, str] | None = None, home: Path | None = None
) -> Path:
    """Return the user's folder for logs and locks that cannot stand beside the workbook (not created here)."""
    return _user_folder("LOCALAPPDATA", "XDG_STATE_HOME", (".local", "state"), windows, environ, home)


def config_folder(
    windows: bool | None = None, environ: Mapping[str, str] | None = None, home: Path | None = None
) -> Path:
    """Return the user's folder for what must outlive a run, as the de-identification key (not created here)."""
    return _user_folder("APPDATA", "XDG_CONFIG_HOME", (".config",), windows, environ, home)


def _user_folder(
    windows_variable: str,
    posix_variable: str,
    posix_default: tuple[str, ...],
    windows: bool | None,
    environ: Mapping[str, str] | None,
    home: Path | None,
) -> Path:
    on_windows = is_windows() if windows is None else windows
    variables = os.environ if environ is None else environ
    base = variables.get(windows_variable if on_windows else posix_variable, "")
    if base:
        return Path(base) / "xnatuploader"
    start = Path.home() if home is None else home
    default = ("AppData", "Local") if on_windows else posix_default
    return start.joinpath(*default, "xnatuploader")
