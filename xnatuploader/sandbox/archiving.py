"""From the prearchive into the archive: what conflicts, what merges, what is renumbered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from xnatuploader.sandbox import answers, creating, dicomfacts, files, headers, prearchive, store
from xnatuploader.sandbox.calls import Actor, Call
from xnatuploader.sandbox.dicomfacts import Facts
from xnatuploader.sandbox.prearchive import BuiltScan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Merge:
    """What archiving may do if the session exists already."""

    allowed: bool = False
    override: bool = False
    """Whether another study, other scan numbers and existing files are accepted without a conflict."""
    replace_files: bool = False
    quarantine: bool = False


def merge_of(call: Call, value: str | None, always: bool = False) -> Merge:
    """Read `overwrite`: without it nothing is merged; any value but `delete` and `override` means `append`."""
    override = value in ("delete", "override")
    replace = override or call.flag("overwrite_files")
    return Merge(always or value is not None, override, replace, call.flag("quarantine"))


class Conflict(answers.Refusal):
    """Archiving would mix sessions or replace files."""

    def __init__(self, message: str) -> None:
        super().__init__(409, message)


async def archive(
    actor: Actor, waiting: store.PrearchiveSession, merge: Merge, target: prearchive.Target | None = None
) -> store.StoredExperiment:
    """Put a built session into the archive. A failure leaves the entry with status CONFLICT or ERROR.

    Refusals: a Conflict is 409, no right 403, no project 400, a session that is being archived already 423.
    """
    if waiting.status in ("ARCHIVING", "QUEUED_ARCHIVING"):
        raise answers.Refusal(423, "Operation already in progress on this prearchive entry.")
    _adopt(actor, waiting, target)
    if waiting.project == prearchive.UNASSIGNED:
        raise answers.Refusal(400, "Unable to archive a session that is not assigned to a project")
    if not actor.can(waiting.project, "edit"):
        raise answers.Refusal(403, "Invalid permissions for this project")
    before = waiting.status
    prearchive.set_status(actor, waiting, "ARCHIVING")
    if actor.settings.archive_seconds:
        await asyncio.sleep(actor.settings.archive_seconds)
    try:
        if actor.plan.find("refuse-import"):
            raise answers.Refusal(500, "A fault was set for this request: the session could not be archived")
        work = _Archiving(actor, waiting, merge)
        await asyncio.to_thread(work.measure)
        return work.run()  # records change in the event loop only
    except answers.Refusal as refusal:
        status = "CONFLICT" if refusal.status == 409 else "ERROR"
        prearchive.set_status(actor, waiting, status, refusal.message)
        raise
    except asyncio.CancelledError:
        prearchive.set_status(actor, waiting, before)
        raise


async def automatically(actor: Actor, waiting: store.PrearchiveSession) -> None:
    """Archive a built entry without a request that waits for it; its status and log say what went wrong."""
    try:
        replaces = actor.prearchive_code(waiting.project) == 5
        await archive(actor, waiting, Merge(True, False, replaces))
    except answers.Refusal as refusal:
        log.info("%s was not archived: %s", waiting.key, refusal.message)


def _adopt(actor: Actor, waiting: store.PrearchiveSession, target: prearchive.Target | None) -> None:
    """Take over the project and the labels that the request to archive names."""
    if target is None:
        return
    if target.project and target.project != waiting.project:
        prearchive.move(actor, waiting, target.project)
    waiting.subject = dicomfacts.clean(target.subject) or waiting.subject
    waiting.name = dicomfacts.clean(target.session) or waiting.name


class _Archiving:
    """Moves one session from the prearchive into the archive."""

    def __init__(self, actor: Actor, waiting: store.PrearchiveSession, merge: Merge) -> None:
        self.actor, self.waiting, self.merge = actor, waiting, merge
        self.project = actor.store.projects[waiting.project]
        self.source = prearchive.folder_of(actor, waiting)
        self.scans = prearchive.scans_of(waiting)
        self.measured: dict[str, tuple[int, str]] = {}

    def measure(self) -> None:
        """Take sizes and digests of the files; a fault may damage them first."""
        for path in list(self.waiting.files):
            if self.actor.plan.find("corrupt"):
                data = (self.source / path).read_bytes()
                (self.source / path).write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))
            self.measured[path] = files.measure(self.source / path)

    def run(self) -> store.StoredExperiment:
        """Check for conflicts, then move records and files."""
        subject = self._subject()
        existing = self.actor.store.experiment(self.project.id, self.waiting.name)
        if existing is not None:
            self._check_session(existing, subject)
        plan = [(scan, self._scan_for(existing, scan)) for scan in self.scans]
        for scan, known in plan:
            if known is not None:
                self._check_files(known, scan)
        if subject is None:
            subject = creating.new_subject(self.actor, self.project, self.waiting.subject or "unknown", {})
        facts = list(self.waiting.files.values())
        if existing is None:
            fields = dicomfacts.session_fields(facts)
            existing = creating.new_experiment(
                self.actor, self.project, subject, self.waiting.name, self.waiting.xsi, fields
            )
        for scan, known in plan:
            self._store_scan(existing, scan, known)
        if self.merge.quarantine:
            existing.fields["quarantine_status"] = "quarantine"
            self.actor.store.save_experiment(existing)
        prearchive.remove(self.actor, self.waiting)
        return existing

    def _subject(self) -> store.StoredSubject | None:
        """Find the subject, ignoring case (unlike the hierarchy's URLs)."""
        wanted = self.waiting.subject.lower()
        found = self.actor.store.subjects_of(self.project.id)
        return next((one for one in found if one.label.lower() == wanted), None)

    def _check_session(self, existing: store.StoredExperiment, subject: store.StoredSubject | None) -> None:
        if not self.merge.allowed:
            raise Conflict("Session already exists, retry with overwrite enabled")
        if subject is None or existing.subject != subject.id:
            raise Conflict(
                "Invalid modification of session subject via archive process."
                " Already Exists for another Subject"
            )
        if existing.xsi != self.waiting.xsi:
            raise Conflict(f"Invalid modification of session modality via archive process ({existing.xsi})")
        uid = existing.fields.get("UID", "")
        if uid and uid != self.waiting.tag and not self.merge.override:
            raise Conflict("Invalid modification of session UID via archive process.")

    def _scan_for(self, existing: store.StoredExperiment | None, scan: BuiltScan) -> store.StoredScan | None:
        """Find the scan that a series goes into; None is a new one."""
        if existing is None:
            return None
        uid = next(iter(scan.files.values())).get("SeriesInstanceUID", "")
        for known in existing.scans.values():
            if uid and known.fields.get("UID") == uid:
                if known.id != scan.id and not self.merge.override and not known.id.startswith(f"{scan.id}-"):
                    raise Conflict(
                        "Session already contains a scan with the same UID, but a different number"
                        f" ({known.id})."
                    )
                return known
        same_number = existing.scans.get(scan.id)
        if same_number is not None and not same_number.fields.get("UID"):
            return same_number
        return None

    def _check_files(self, known: store.StoredScan, scan: BuiltScan) -> None:
        if self.merge.replace_files or self.merge.override:
            return
        names = {path.rsplit("/", 1)[-1] for path in scan.files}
        instances = {facts.get("SOPInstanceUID", "") for facts in scan.files.values()}
        for resource in self.actor.store.resources_of(known.key):
            if names & set(resource.entries):
                raise Conflict("Session already exists with matching files.")
            folder = self.actor.store.archive / resource.folder
            there = headers.read_all(folder / name for name in resource.entries)
            if instances & {facts.get("SOPInstanceUID", "") for facts in there.values()}:
                raise Conflict("Duplicate DCM UID cannot be merged at this time.")

    def _store_scan(
        self, session: store.StoredExperiment, scan: BuiltScan, known: store.StoredScan | None
    ) -> None:
        if known is None:
            known = self._new_scan(session, scan)
        for label, members in scan.by_label().items():
            self._store_resource(session, known, label, members)
        count = sum(len(one.entries) for one in self.actor.store.resources_of(known.key))
        known.fields["frames"] = str(count)
        self.actor.store.save_scan(known)

    def _new_scan(self, session: store.StoredExperiment, scan: BuiltScan) -> store.StoredScan:
        facts = list(scan.files.values())
        number, scan_id = 0, scan.id
        while scan_id in session.scans:  # another series has the number: only the new scan is renamed
            number += 1
            scan_id = f"{scan.id}-{dicomfacts.leading_modality(facts)}{number}"
        made = self.actor.store.new_scan(session, scan_id, scan.xsi)
        made.fields.update(dicomfacts.scan_fields(facts))
        self.actor.store.save_scan(made)
        return made

    def _store_resource(
        self,
        session: store.StoredExperiment,
        scan: store.StoredScan,
        label: str,
        members: Mapping[str, Facts],
    ) -> None:
        kept = self.actor.store
        resource = kept.resource(scan.key, label)
        if resource is None:
            folder = f"{session.scan_folder(scan)}/{label}"
            content = "RAW" if label == "DICOM" else "secondary"
            resource = kept.new_resource(
                scan.key, label, folder, "DICOM", content, f"scan_{scan.id}_catalog.xml"
            )
        entries: dict[str, store.CatalogEntry | None] = {}
        for path, facts in members.items():
            name = path.rsplit("/", 1)[-1]
            entry = self._move_file(path, kept.archive / resource.folder / name)
            entries[name] = replace(entry, uid=facts.get("SOPInstanceUID", ""))
        kept.save_entries(resource, entries)

    def _move_file(self, path: str, target: Path) -> store.CatalogEntry:
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.source / path).replace(target)
        size, digest = self.measured[path]
        return store.CatalogEntry(size, digest if self.actor.settings.checksums else "")
