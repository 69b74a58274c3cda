"""Sessions through XNAT's import service instead of scan by scan: the way to have XNAT's own anonymisation applied.

`Importer.send_session` is made for a pool of workers, one session each. XNAT decides where the files of an
import end; so what counts is what the archive or the prearchive lists afterwards, never what the import answered.
"""

from __future__ import annotations

from xnatuploader.upload.imports.options import Destination, Options, check_project, chosen
from xnatuploader.upload.imports.run import WAITS, Importer

__all__ = [
    "WAITS",
    "Destination",
    "Importer",
    "Options",
    "check_project",
    "chosen",
]
