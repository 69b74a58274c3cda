"""How a session travels by SI, XNAT's older session importer.

SI begins a new entry with every upload, so that a lost answer is looked after before anything is sent again.
A session in one body is archived by the very request; one that takes several is gathered in an entry of the
prearchive first, so that no half of it ever stands in the archive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xnatuploader import xnat
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct.items import Item
from xnatuploader.upload.imports import bodies, confirm, options, parts
from xnatuploader.upload.imports.session import Refused, Session, names_of
from xnatuploader.xnat import prearchive
from xnatuploader.xnat.imports import AnswerLost
from xnatuploader.xnat.prearchive import PrearchiveEntry

ONE_BODY = 8 * tar_body.PART_BYTES
"""Bytes up to which a session goes in one body: unlike DICOM-zip, SI can be told nothing of it afterwards."""
_LOOKS = 3
"""How often to look for what an import has made, before it counts as never begun."""


def by_si(session: Session, going: Sequence[Item]) -> None:
    """Import a session. Raises `Refused`, `NotArchived`, `RequestFailed`."""
    sender = _Si(session)
    left = parts.left_over(session)
    if left is not None:
        sender.go_on_with(left)
        going = parts.not_in(session, left, going)
    sender.plan(going)
    if not sender.send(going):
        return
    for entry in sender.entries.values():
        session.finish(entry)
    if sender.archived:
        session.confirm(sender.archived)


class _Si(parts.Parts):
    """The bodies of one session through SI."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.archived = ""
        """Label of the session once a body of this run stands in the archive."""
        self._known = {one.url for one in session.run.prearchive.left(session.studies, "")}
        self._gathers = False
        self._replace = False
        """Whether the entry holds what a broken attempt left, so that its files may be cut short."""

    # ---- dividing

    def plan(self, going: Sequence[Item]) -> None:
        """Decide whether the session goes in one body; with `quarantine` it has to."""
        size = sum(item.size for item in going)
        limit = self._limit if self.session.run.copy is None else parts.COPIED_BYTES
        several = size > limit or len(going) > self.options.part_files
        self._gathers = several and not self.options.quarantine

    @property
    def _limit(self) -> int:
        part = self.options.part_bytes
        return ONE_BODY if part == tar_body.PART_BYTES else part

    def groups(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """As in `Parts`; all at once where it has to be one body."""
        return super().groups(items) if self._gathers else iter([items])

    def bodies_of(self, files: Sequence[tar_body.Outgoing]) -> list[bodies.Body]:
        """As in `Parts`."""
        if self._gathers:
            return super().bodies_of(files)
        return bodies.archives(files, sum(file.size for file in files) + 1, len(files) + 1)

    # ---- one body

    def query(self) -> dict[str, str]:
        """Return the parameters of the next import."""
        query = {"import-handler": options.SI, "dest": self._dest(), "SOURCE": "xnatuploader", **self.names()}
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
        """Put what follows into an entry that an earlier attempt left. Raises `Refused`."""
        if self.options.quarantine:
            raise Refused(
                "An earlier attempt left the session in the prearchive "
                f"({self.session.run.prearchive.address(entry)}), and from there XNAT does not carry --quarantine. "
                "Delete it in XNAT, or leave --quarantine out."
            )
        self.entries[entry.url] = entry
        self._replace = True

    def _archives(self) -> bool:
        return self.options.dest.archive and not self._gathers and not self.entries

    def _dest(self) -> str:
        if self.entries:
            return next(iter(self.entries.values())).url
        dest, project = self.options.dest, self.session.run.project
        by_headers = self.options.by_headers
        if not self._archives():
            if by_headers and not dest.project:
                return "/prearchive"
            stamp = f"/{dest.timestamp}" if dest.timestamp else ""
            folder = f"/{dest.session}" if dest.session and dest.timestamp else ""
            return f"/prearchive/projects/{project}{stamp}{folder}"
        if by_headers:
            return f"/archive/projects/{project}" if dest.project else "/archive"
        return f"/archive/projects/{project}/subjects/{self.session.plan.subject}/experiments/{self.session.label}"

    def post(self, body: bodies.Body) -> list[str]:
        """Import a body; after a lost answer find out what became of it before it is sent again."""
        for attempt in range(parts.ATTEMPTS):
            try:
                return self.session.run.service.send(body, self.query())
            except AnswerLost as lost:
                uris = self._became_of(body)
                if uris:
                    return uris
                if attempt == parts.ATTEMPTS - 1 or self.pause(parts.PAUSES[attempt]):
                    raise lost.failure from lost
            except xnat.RequestFailed as failure:
                self._raise_reason(failure)
                raise
        raise AssertionError("unreachable")

    def _became_of(self, body: bodies.Body) -> list[str]:
        """Return where an import whose answer was lost ended, empty if nowhere. Raises `NotArchived`."""
        for look in range(_LOOKS):
            new = self._new_entry()
            if new is not None:
                entry = self.session.run.prearchive.at_rest(new)
                if entry is not None:
                    self._raise_trouble(entry)
                    parts.require_rest(self.session, entry)
                    self.go_on_with(entry)
                    return [entry.url] if self._is_whole(entry, body) else []
            if self._archives() and self._is_archived(body):
                return [
                    f"/archive/projects/{self.session.run.project}/subjects/-/experiments/{self.session.label}"
                ]
            if look < _LOOKS - 1 and self.pause(parts.PAUSES[look]):
                break
        return []

    def _new_entry(self) -> PrearchiveEntry | None:
        name = "" if self.options.by_headers else self.session.label
        found = self.session.run.prearchive.now(self.session.studies, name)
        return next((one for one in reversed(found) if one.url not in self._known), None)

    def _is_whole(self, entry: PrearchiveEntry, body: bodies.Body) -> bool:
        """Tell whether an entry holds every file of a body."""
        held = names_of(self.session.run.prearchive.files(entry))
        names = [(self.session.scan_of[file.file], self.rows[file.file].filename) for file in body.files]
        return all(held.get(name) == file.size for name, file in zip(names, body.files, strict=True))

    def _is_archived(self, body: bodies.Body) -> bool:
        """Tell whether the archive lists every file of a body."""
        run = self.session.run
        identifier = run.server.session_id(run.project, self.session.label)
        if not identifier:
            return False
        sent = [
            confirm.Sent(self.rows[file.file], self.rows[file.file].filename, file.size, digest)
            for file in body.files
            if (digest := body.digests.get(file.name, ""))
        ]
        held = [one for one in run.server.session_files(identifier) if one not in self.session.before]
        seen = confirm.compare(sent, held, lambda places: run.server.object_uids(identifier, places))
        return bool(sent) and len(seen) == len(body.files)

    def _raise_reason(self, failure: xnat.RequestFailed) -> None:
        """Raise `NotArchived` where a refusal left an entry with a reason in the prearchive."""
        if failure.kind == "too-large" or failure.status in (413, 415):
            return
        try:
            entry = self._new_entry()
        except xnat.RequestFailed:
            return
        if entry is not None:
            self._raise_trouble(entry, failure.message)

    def _raise_trouble(self, entry: PrearchiveEntry, otherwise: str = "") -> None:
        if entry.status in ("CONFLICT", "ERROR"):
            reason = self.session.run.prearchive.reason(entry) or otherwise
            raise self.session.run.prearchive.not_archived(entry, reason)

    def ended(self, uri: str) -> None:
        """Take in where a body ended."""
        named = prearchive.archived_as(uri)
        if named is None:
            super().ended(uri)
            return
        project, _, label = named
        if not self.options.by_headers and (
            project != self.session.run.project or label != self.session.label
        ):
            raise Refused(f"XNAT put the session somewhere else than it was told: {uri}. Look for it there.")
        self.archived = label
