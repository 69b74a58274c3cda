"""Where the messages of a run go: warnings to the screen, everything to one log file per run."""

from __future__ import annotations

import datetime
import logging
import os
import sys
import traceback
import warnings
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


class Logging:
    """The handlers of the package's logger, for as long as one run lasts.

    `file` is where the log is, None for a run without one. Other packages' messages go nowhere: they quote
    header values (pydicom) and addresses.
    """

    def __init__(self, level: str, *, debug: bool = False, folder: Path | None = None) -> None:
        """`folder` is where the log file is to be; None for none."""
        self.level = getattr(logging, level.upper())
        self.debug = debug
        self.folder = folder
        self.file: Path | None = None
        self._logger = logging.getLogger("xnatuploader")
        self._handlers: list[logging.Handler] = []
        self._silence = logging.NullHandler()
        self._unwarned = warnings.catch_warnings()

    def __enter__(self) -> Logging:
        self._logger.setLevel(self.level)
        self._logger.propagate = False
        screen_level = logging.DEBUG if self.debug else max(self.level, logging.WARNING)
        self._handlers = [_Screen(screen_level, self.debug)]
        if self.folder is not None:
            self._handlers += self._open(self.folder)
        for handler in self._handlers:
            self._logger.addHandler(handler)
        logging.getLogger().addHandler(self._silence)
        self._unwarned.__enter__()
        if not self.debug:
            # Of other packages: they quote header values. What concerns our own code stays as Python has it.
            warnings.filterwarnings("ignore", module=r"(?!xnatuploader\.)")
            warnings.filterwarnings("ignore", category=UserWarning)
        return self

    def __exit__(self, *error: object) -> None:
        self._unwarned.__exit__(None, None, None)
        logging.getLogger().removeHandler(self._silence)
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()

    def _open(self, wanted: Path) -> list[logging.Handler]:
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
            handler.setLevel(self.level)
            handler.setFormatter(logging.Formatter(FORMAT))
            self.file = folder / name
            return [handler]
        return []
