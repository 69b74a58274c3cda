"""The upload that is under way, as its parts see it: what was asked for, the rows, what is known, the server."""

from __future__ import annotations

from dataclasses import dataclass

from xnatuploader import xnat
from xnatuploader.config.sheet import Config
from xnatuploader.console.interrupts import Interrupts
from xnatuploader.upload.options import RunOptions
from xnatuploader.upload.prepare import Files, Prepared
from xnatuploader.upload.state import UploadState


@dataclass(frozen=True, slots=True)
class CurrentUpload:
    """One upload to one project, once the server has let it in."""

    settings: Config
    files: Files
    ready: Prepared
    state: UploadState
    server: xnat.Server
    project: str
    """XNAT's ID of the project."""
    stopping: Interrupts

    @property
    def options(self) -> RunOptions:
        """What was asked for."""
        return self.state.options

    @property
    def is_stopped(self) -> bool:
        """Whether nothing new is to be begun."""
        return self.stopping.stop.is_set()
