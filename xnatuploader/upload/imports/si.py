"""How a session travels by SI, XNAT's older session importer.

SI begins a new entry with every upload, so that a lost answer is looked after before anything is sent again.
A session in one body is archived by the very request; one that takes several is gathered in an entry of the
prearchive first, so that half a session is never in the archive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from xnatuploader import xnat
from xnatuploader.upload import files, tar_body
from xnatuploader.upload.imports import confirm, options, parts
from xnatuploader.upload.imports.session import Session, SessionRefused
from xnatuploader.xnat import routes
from xnatuploader.xnat.imports import Entries
from xnatuploader.xnat.prearchive import PrearchiveEntry

ONE_BODY = 8 * tar_body.PART_BYTES
"""Bytes up to which a session goes in one body. Larger ones are gathered in the prearchive, and archiving them from
there supports fewer of SI's options."""
_LOOKS = 5
"""How often to look for what an import has made, before it counts as never begun."""


def by_si(session: Session, going: Sequence[files.Item]) -> None:
    """Import a session. Raises `SessionRefused`, `NotArchived`, `RequestFailed`."""
    sender = _Si(session)
    if session.left is not None:
        sender.go_on_with(session.left)
        going = parts.not_in(session, session.left, going)
    sender.plan(going)
    if not sender.send(going):
        return
    for entry in sender.entries.values():
        session.finish(entry)
    if sender.archived:
        session.confirm(sender.archived)


class _Si(parts.BodySender):
    """The bodies of one session through SI."""

    tells_end = True

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.archived = ""
        """Label of the session once a body of this run is in the archive."""
        # By the headers the entry may come to be in another project, where others may have left the same study.
        prearchive = session.run.prearchive
        before = prearchive.now if session.options.by_headers else prearchive.left
        self._known = {one.url for one in before(session.studies, "")}
        self._replace = False
        """Whether the entry holds what a broken attempt left, so that its files may be cut short."""

    def plan(self, going: Sequence[files.Item]) -> None:
        """Decide whether the session goes in one body; with `quarantine` it has to."""
        part = self.options.part_bytes
        limit = ONE_BODY if part == tar_body.PART_BYTES else part
        if self.run.context.copy is not None:
            limit = files.COPIED_BYTES
        several = sum(item.size for item in going) > limit or len(going) > self.options.part_files
        self.one_body = self.options.quarantine or not several

    # ---- one body

    def query(self) -> dict[str, str]:
        """Return the parameters of the next import."""
        query = {
            "import-handler": options.SI,
            "dest": self._dest(),
            "SOURCE": "xnatuploader",
            **self.session.names(),
        }
        replace = self.options.overwrite == "delete"
        if self.entries or self.archived or (self._archives() and self.options.overwrite != "none"):
            query["overwrite"] = "delete" if self._replace or replace else "append"
        if self._archives():
            if replace:
                query["overwrite_files"] = "true"
            if self.options.quarantine:
                query["quarantine"] = "true"
            if not self.options.pipelines:
                query["triggerPipelines"] = "false"
        return query

    def go_on_with(self, entry: PrearchiveEntry) -> None:
        """Put what follows into an entry that an earlier attempt left. Raises `SessionRefused`."""
        if self.options.quarantine:
            raise SessionRefused(
                f"An earlier attempt left the session in the prearchive ({self.run.prearchive.address(entry)}), and "
                "from there XNAT does not support --quarantine. Delete it in XNAT, or leave --quarantine out."
            )
        self.entries[entry.url] = entry
        self._replace = True

    def _archives(self) -> bool:
        return self.options.dest.archive and self.one_body and not self.entries

    def _dest(self) -> str:
        if self.entries:
            return next(iter(self.entries.values())).url
        dest, project = self.options.dest, self.run.project
        by_headers = self.options.by_headers
        if not self._archives():
            if by_headers and not dest.project:
                return routes.to_prearchive()
            return routes.to_prearchive(project, dest.timestamp, dest.session if dest.timestamp else "")
        if by_headers:
            return routes.to_archive(project if dest.project else "")
        return routes.to_archive(project, self.session.plan.subject, self.session.label)

    def import_once(self, body: tar_body.Part, entries: Entries | None) -> list[str]:
        """As in `BodySender`. A session that XNAT is too busy to archive waits in the prearchive: not sent again."""
        try:
            return super().import_once(body, entries)
        except xnat.RequestFailed as failure:
            new = self._new_entry() if failure.kind == "busy" and self._archives() else None
            if new is None:
                raise
            self.go_on_with(new)
            return [new.url]

    def became_of(self, body: tar_body.Part) -> list[str]:
        """As in `BodySender`. Raises `NotArchived`, `SessionRefused`."""
        for look in range(_LOOKS):
            new = self._new_entry()
            if new is not None:
                entry = self.run.prearchive.at_rest(new)
                if entry is not None:
                    self._raise_if_stuck(entry)
                    self.session.require_rest(entry)
                    self.go_on_with(entry)
                    return [entry.url] if self._is_whole(entry, body) else []
            if self._archives() and self._is_archived(body):
                return [routes.to_archive(self.run.project, "-", self.session.label_there)]
            if look < _LOOKS - 1 and self.run.context.stop.wait(parts.PAUSES[look]):
                break
        return []

    def _new_entry(self) -> PrearchiveEntry | None:
        found = self.session.entries()
        return next((one for one in reversed(found) if one.url not in self._known), None)

    def _is_whole(self, entry: PrearchiveEntry, body: tar_body.Part) -> bool:
        """Tell whether an entry holds every file of a body."""
        held = self.run.prearchive.files(entry)
        return all(
            held.get((self.session.scan_of[file.file], self.row_of[file.file].filename)) == file.size
            for file in body.included()
        )

    def _is_archived(self, body: tar_body.Part) -> bool:
        """Tell whether the archive lists every file of a body."""
        identifier = self.session.find()
        if not identifier:
            return False
        sent = [
            confirm.Sent(self.row_of[file.file], file.size, digest, self.session.scan_of[file.file])
            for file in body.included()
            if (digest := body.digests.get(file.name, ""))
        ]
        files_now = self.run.server.session_files(identifier)
        held = [one for one in files_now if one not in self.session.before]
        seen = self.session.compare(sent, held, identifier)
        return bool(sent) and len(seen) == len(body.included())

    def look_at_refusal(self, failure: xnat.RequestFailed) -> None:
        """Raise `NotArchived` where a refusal left an entry with a reason in the prearchive, else the failure."""
        if failure.kind != "too-large" and failure.status not in (413, 415):
            entry = None
            with contextlib.suppress(xnat.RequestFailed):
                entry = self._new_entry()
            if entry is not None:
                self._raise_if_stuck(entry, failure.message)
        raise failure

    def _raise_if_stuck(self, entry: PrearchiveEntry, otherwise: str = "") -> None:
        """Raise `NotArchived` for an entry that XNAT will not archive, with the reason that it gives."""
        if entry.status in ("CONFLICT", "ERROR"):
            reason = self.run.prearchive.reason(entry) or otherwise
            raise self.run.prearchive.not_archived(entry, reason)

    def ended(self, uri: str) -> None:
        """Take in where a body ended."""
        named = routes.archive_parts(uri)
        if named is None:
            super().ended(uri)
            return
        project, _, label = named
        if not self.options.by_headers and (project != self.run.project or label != self.session.label):
            raise parts.elsewhere(uri)
        self.archived = label
