"""What an upload is asked to do: made once, from the command line, and read wherever an upload decides something."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xnatuploader.console import terminal
from xnatuploader.upload.imports.options import ImportOptions


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One upload's options. Server, project and `Anonymize` are also in the Configuration; `run` puts both together."""

    spreadsheet: Path
    folder: Path | None = None
    """None: where the workbook was scanned."""
    server: str | None = None
    project: str | None = None
    test: bool = False
    overwrite: bool = False
    verify: bool = False
    pipeline: bool = True
    anonymize: bool = False
    jobs: int = 4
    deadline: datetime.datetime | None = None
    """When the run is to stop, local time."""
    wait_seconds: float = 0.0
    """How long a server that does not answer is tried again."""
    importing: ImportOptions | None = None
    """How sessions travel through XNAT's import service; None: scan by scan into the archive."""
    commit: ImportOptions | None = None
    """How sessions that wait in the prearchive are archived; None: they are not."""
    refresh: tuple[str, ...] = ()
    """Options of a refresh of the sessions' catalogs; empty: none is wanted."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Where login and server may be given (`XNAT_USER`, `XNAT_PASS`, `NETRC`, `XNAT_HOST`)."""

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked."""
        return terminal.there()

    @property
    def only_commits(self) -> bool:
        """Whether nothing is sent: a session that waits must not be filled by another route first."""
        return self.commit is not None and self.importing is None

    @property
    def looks_again(self) -> bool:
        """Whether files that were sent before are looked at again."""
        return self.verify or self.overwrite


def deadline(
    until: datetime.time | None, max_seconds: float | None, now: datetime.datetime
) -> datetime.datetime | None:
    """Return when `--until` and `--max-duration` end a run that begins `now`: the next time the clock shows `until`."""
    ends = []
    if until is not None:
        at = datetime.datetime.combine(now.date(), until)
        ends.append(at if at > now else at + datetime.timedelta(days=1))
    if max_seconds is not None:
        ends.append(now + datetime.timedelta(seconds=max_seconds))
    return min(ends, default=None)
