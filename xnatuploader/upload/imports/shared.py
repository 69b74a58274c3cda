"""What the sessions of one import run share: the options, the prearchive, the archive, what was found out."""

from __future__ import annotations

import threading
from collections.abc import Collection

from xnatuploader.upload.files import SendContext
from xnatuploader.upload.imports.options import ImportOptions
from xnatuploader.xnat.imports import ImportService
from xnatuploader.xnat.prearchive import Prearchive, PrearchiveEntry

WAITS = "Waits in XNAT's prearchive"
"""How the message of a row begins whose file is to wait there."""


class ImportRun:
    """The connection to XNAT as the sessions of one run use it."""

    def __init__(self, context: SendContext, options: ImportOptions) -> None:
        self.context = context
        self.server = context.server
        self.project = context.project
        self.options = options
        self.service = ImportService(context.server, context.stop, via_cache=options.via_cache)
        self.prearchive = Prearchive(context.server, context.project, context.stop)
        self._subjects = dict(context.subjects)
        self._guard = threading.Lock()
        self.ids: dict[str, str] = {}
        """Label -> ID of the sessions that this run made or found."""

    def subject_id(self, label: str) -> str:
        """Return the ID of a subject, which is made where the project has none. Raises `RequestFailed`."""
        with self._guard:  # XNAT may make two of two requests at a time
            if label not in self._subjects:
                self._subjects[label] = self.server.create_subject(self.project, label)
            return self._subjects[label]

    def find(self, label: str) -> str:
        """Return the ID of a session in the archive, '' if there is none. Raises `RequestFailed`."""
        return self.server.session_id(self.project, label)

    def find_study(self, studies: Collection[str]) -> tuple[str, str]:
        """Return ID and label of a session in the archive that holds one of these studies, '' twice if none does.

        Raises `RequestFailed`.
        """
        uids = self.server.study_uids(self.project, again=True)
        if not any(uid in studies for uid in uids.values()):
            return "", ""
        there = self.server.sessions(self.project)
        return next(((one.id, one.label) for one in there if uids.get(one.id) in studies), ("", ""))

    def waits(self, entry: PrearchiveEntry) -> str:
        """Return the message for what waits in the prearchive because that was asked for."""
        return f"{WAITS} ({self.prearchive.address(entry)})."
