"""Where the messages of a run go: warnings to the screen, everything to one log file per run."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from xnatuploader import paths
from xnatuploader.console import progress

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class _Screen(logging.Handler):
    """Warnings and worse, one line each, above any bar that is drawn; with --debug everything."""

    def __init__(self, level: int, tracebacks: bool) -> None:
        super().__init__(level)
        self.tracebacks = tracebacks

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, unless it was said on the screen already."""
        lines = []
        if not getattr(record, "on_screen", False):
            prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: "
            lines.append(f"{prefix}{record.getMessage()}")
        if self.tracebacks and record.exc_info and record.exc_info[0]:
            lines.append("".join(traceback.format_exception(*record.exc_info)).rstrip())
        for line in lines:
            progress.write(line)


class _File(logging.FileHandler):
    """A log file whose own error (a full disk, a drive that went away) is said once and ends nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._said = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say that the log cannot be written. The standard way would print the message, with its paths."""
        if self._said:
            return
        self._said = True
        error = sys.exc_info()[1]
        reason = getattr(error, "strerror", None) or type(error).__name__
        progress.write(f"Warning: the log {self.baseFilename} can no longer be written ({reason}).")

    def close(self) -> None:
        """Close the file; what it still held may be lost with its drive."""
        try:
            super().close()
        except OSError:
            self.handleError(logging.makeLogRecord({}))


@contextlib.contextmanager
def opened(level: str, *, debug: bool = False, folder: Path | None = None) -> Iterator[Path | None]:
    """Handle the package's messages while the block runs; give the path of the log file, None where there is none.

    `folder` is where the log file is to be; None for none. Other packages' messages go nowhere: they quote header
    values (pydicom) and addresses.
    """
    least = getattr(logging, level.upper())
    file = None if folder is None else _open(folder, least)
    screen = _Screen(logging.DEBUG if debug else max(least, logging.WARNING), debug)
    ours, others = logging.getLogger("xnatuploader"), logging.getLogger()
    ours.setLevel(least)
    ours.propagate = False
    added = [(ours, screen), (others, logging.NullHandler()), *([(ours, file)] if file else [])]
    for logger, handler in added:
        logger.addHandler(handler)
    with warnings.catch_warnings():
        if not debug:
            # Of other packages: they quote header values. What concerns our own code stays as Python has it.
            warnings.filterwarnings("ignore", module=r"(?!xnatuploader\.)")
            warnings.filterwarnings("ignore", category=UserWarning)
        try:
            yield Path(file.baseFilename) if file else None
        finally:
            for logger, handler in added:
                logger.removeHandler(handler)
                handler.close()


def _open(wanted: Path, level: int) -> _File | None:
    """Open the log file in the folder that is wanted, or else in the user's state folder."""
    name = f"xnatuploader-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    elsewhere = paths.state_folder() / "logs"
    for folder in (wanted, elsewhere):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handler = _File(folder / name)
        except OSError as error:
            where = f"it goes to {elsewhere} instead" if folder == wanted else "this run has none"
            reason = error.strerror or type(error).__name__
            progress.write(f"Warning: no log can be written in {folder} ({reason}); {where}.")
            continue
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter(FORMAT))
        return handler
    return None
