"""Functions that open a file as bad drives do; worker processes import them by name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

from xnatuploader.dicom import header

KILLER, SLOW_OPEN = "killer.dcm", 0.005


def deadly_open(path: str) -> int:
    """Open a file; a worker process dies when it opens `KILLER`."""
    if path.endswith(KILLER) and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    return header.open_file(path)


def slow_open(path: str) -> int:
    """Open a file as a network drive does: after a pause."""
    time.sleep(SLOW_OPEN)
    return header.open_file(path)


def refusing_open(path: str) -> int:
    raise PermissionError(13, "Permission denied")
