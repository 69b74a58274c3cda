"""One session of an import: which of its files have to travel, and what became of them on the server.

What all handlers have in common is here; how a handler sends its bodies is in `parts`, `si`, `xar` and `inbox`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from xnatuploader import records, xnat
from xnatuploader.records import Outcome, Row, ScanAddress, SessionPlan, Status
from xnatuploader.upload import files
from xnatuploader.upload.imports import confirm, options
from xnatuploader.upload.imports.shared import ImportRun
from xnatuploader.upload.recording import PendingRows
from xnatuploader.xnat import catalogs, prearchive, routes
from xnatuploader.xnat.prearchive import PrearchiveEntry

logger = logging.getLogger(__name__)

EXISTS = (
    "The session exists on XNAT, and --import-overwrite none adds nothing to it. Use append to add files, delete to "
    "replace them, or set Upload to N."
)
DIFFERS = "The session has another file of this name. Use --import-overwrite delete to replace it, or set Upload to N."
CHANGED_THERE = (
    "XNAT has this image, and its content was changed there after it was sent. Ask the owner of the project why; then "
    "set Upload to N."
)
HELD = (
    f"{records.HELD}, with other content (scan {{}}). It is not sent again. To replace it, set Upload to Y and use "
    "--import-overwrite delete."
)
SEVERAL = (
    "The session holds several studies, and XNAT's import service makes a session of each. Send it "
    "without --import-handler, or use XAR."
)
NO_DIGEST = "The file was sent before, and is not on the server any more. Run upload again to send it."
NOT_SEEN = (
    "XNAT took the file and does not list it in its prearchive ({}): its series import filter or its anonymisation may "
    "have rejected it. Run upload again; if that does not help, ask the server's administrator."
)
OTHER_SUBJECT = (
    "The session waits in the prearchive under subject {}, not {} ({}). Delete it there, or correct Subject."
)
LISTED = {
    "name": "it is listed there",
    "number": "as many files are listed there as were sent",
}
"""What `confirm.waiting` tells, in words."""
PART_OF = (
    "The run was stopped before the whole session was sent. What was sent waits in XNAT's prearchive; run upload "
    "again to go on."
)
FILTERED = (
    "XNAT took the file and kept nothing of it: its series import filter or its anonymisation rejected it. Ask "
    "the server's administrator."
)


_LOOKS, _LOOK_SECONDS = 60, 2.0
"""How often to look whether a session still grows, and how long to wait before each look."""


class SessionRefused(Exception):
    """The whole session cannot be imported; the text says why. `status` is for its rows."""

    def __init__(self, reason: str, status: Status = Status.FAILED) -> None:
        self.status = status
        super().__init__(reason)


class Session:
    """The import of one session by one thread."""

    def __init__(self, run: ImportRun, plan: SessionPlan) -> None:
        self.run = run
        self.plan = plan
        self.options = run.options
        self.label = plan.session_label
        self.label_there = self.label
        """The label in the archive, which XNAT chooses where the headers decide."""
        self.scan_of = {row.file: scan.scan_id for scan in plan.scans for row in scan.rows}
        self.rows = PendingRows(run.context, plan.rows)
        self.sent: dict[str, confirm.Sent] = {}
        """What XNAT has taken, by `Row.file`, with the MD5s of what went out."""
        self.before: frozenset[xnat.RemoteFile] = frozenset()
        """What the session in the archive held before."""
        self._new_files = 0
        """How many files the archive lists since then."""
        self.left: PrearchiveEntry | None = None
        """What an earlier run left of it in the prearchive."""
        self.studies = {row.study_instance_uid for row in plan.rows if row.study_instance_uid}

    @property
    def name_there(self) -> str:
        """The name of its entry in the prearchive, '' where the headers decide."""
        return "" if self.options.by_headers else self.label

    def names(self) -> dict[str, str]:
        """Return project, subject and session as handlers take them; nothing where the headers decide."""
        if self.options.by_headers:
            return {}
        return {
            "PROJECT_ID": self.run.project,
            "SUBJECT_ID": self.plan.subject,
            "EXPT_LABEL": self.label,
        }

    def held_in(self, entry: PrearchiveEntry) -> dict[tuple[str, str], int]:
        """Return what an entry lists: (scan ID, file name) -> bytes; nothing where XNAT has not built it yet."""
        try:
            return self.run.prearchive.files(entry)
        except xnat.RequestFailed as failure:
            logger.debug("%s: the entry could not be listed: %s", self.label, failure.message)
            return {}

    def find(self) -> str:
        """Return its ID in the archive as it is now, '' if it is not there. Raises `RequestFailed`."""
        if not self.options.by_headers:
            return self.run.find(self.label)
        identifier, self.label_there = self.run.find_study(self.studies)
        return identifier

    def entries(self) -> list[PrearchiveEntry]:
        """Return what the prearchive has of the session now, oldest first. Raises `RequestFailed`."""
        return self.run.prearchive.now(self.studies, self.name_there)

    def travelling(self) -> list[Row]:
        """Return the open rows but those that are only looked at, about which a failure says nothing."""
        return [row for row in self.rows.open.values() if row.status is not Status.SUCCESS]

    def interrupt(self) -> None:
        """Record what is still open as interrupted."""
        begun = [row for row in self.travelling() if row.file in self.sent]
        self.rows.record_all(begun, Status.INTERRUPTED, PART_OF)
        self.rows.interrupt()

    # ---- what an earlier run left

    def look_for_earlier(self) -> None:
        """Find what earlier runs left of the session in the prearchive, or have brought into the archive meanwhile.

        XNAT goes on after a run was killed or an answer was lost, so that a session may have come to be since the run
        began. Raises `SessionRefused` where what waits cannot be gone on with.
        """
        if self.name_there:
            found = self.run.prearchive.left(self.studies, self.name_there)
            dest = self.options.dest
            if dest.timestamp:
                found = [
                    one
                    for one in found
                    if one.timestamp == dest.timestamp and dest.session in ("", one.folder)
                ]
            self.left = self.run.prearchive.at_rest(found[-1]) if found else None
        if self.left is not None:
            self.require_rest(self.left)
            self.require_subject(self.left)
            logger.info("%s: going on with what an earlier run left in the prearchive.", self.label)
        if self.options.by_headers or not self.plan.exists:
            self.plan = replace(self.plan, exists=self.find())

    def require_rest(self, entry: PrearchiveEntry) -> None:
        """Raise `SessionRefused` where XNAT still works on an entry."""
        if not prearchive.rests(entry.status):
            raise SessionRefused(
                f"XNAT is still working on this session in the prearchive ({self.run.prearchive.address(entry)}). "
                "Run upload again in some minutes.",
                Status.INTERRUPTED,
            )

    def require_subject(self, entry: PrearchiveEntry) -> None:
        """Raise `SessionRefused` where an entry is of another subject than the rows."""
        if entry.subject and entry.subject != self.plan.subject and not self.options.by_headers:
            message = OTHER_SUBJECT.format(
                entry.subject, self.plan.subject, self.run.prearchive.address(entry)
            )
            raise SessionRefused(message, Status.CONFLICT)

    # ---- what has to be sent

    def examined(self) -> list[files.Item]:
        """Return the files that are there and may be sent."""
        resources = [resource for scan in self.plan.scans for resource in scan.resources]
        return [item for resource in resources for item in self.rows.examined(resource.rows)]

    def refuse(self) -> None:
        """Raise `SessionRefused` for a session that the import would put elsewhere, or take apart."""
        reason = self.options.dest.refuses(self.plan)
        if reason:
            raise SessionRefused(reason)
        several = len(self.studies) > 1 or (self.studies and not self.plan.uid)
        if self.options.handler != options.XAR and several:
            raise SessionRefused(SEVERAL)

    def not_there_yet(self, items: Sequence[files.Item]) -> list[files.Item]:
        """Return the files that have to be sent; those that the archive has are recorded.

        Raises `SessionRefused` where something has to be sent into a session that exists, and may not.
        """
        looking = [item for item in items if item.look_only]
        if not self.plan.exists:
            self._record_looked(looking)
            return [item for item in items if not item.look_only]
        self.run.ids[self.label] = self.plan.exists
        held = self._comparable()
        self.before = frozenset(held)
        sizes = {one.size for one in held if one.digest}
        known = self.rows.keep([self._as_sent(item, sizes) for item in items])
        seen = self.compare(known, held, self.plan.exists, by_size=False)
        replaces = self.options.overwrite == "delete"
        kept = {found.scan for found in seen.values() if found.how == "md5"}
        for one in known:
            if (found := seen.get(one.row.file)) is not None:
                self._record_there(one, found, kept, replaces=replaces)
        self._record_looked([item for item in looking if item.row.file in self.rows.open])
        going = [item for item in items if item.row.file in self.rows.open]
        if going and self.options.overwrite == "none":
            raise SessionRefused(EXISTS, Status.CONFLICT)
        return going if replaces else self._without_clashes(going, held)

    def _record_there(
        self, one: confirm.Sent, found: confirm.Seen, kept: Collection[str], *, replaces: bool
    ) -> None:
        """Record a file that the archive has, unless it is to be replaced. `kept`: scans that XNAT left unchanged."""
        changed, looked = found.how == "uid", one.row.status is Status.SUCCESS
        if changed and looked and "same MD5" in one.row.message:
            self.rows.record(Outcome(one.row.file, Status.CONFLICT, CHANGED_THERE))
        elif changed and not looked and replaces:
            return
        elif changed and not looked and found.scan in kept:
            message = HELD.format(found.scan)
            self.rows.record(Outcome(one.row.file, Status.DUPLICATE, message, upload=records.NOT_SELECTED))
        else:
            self._succeed(one, found, confirm.THERE[found.how] + self._named(self.label_there))

    def _comparable(self) -> list[xnat.RemoteFile]:
        """List what the session holds; where MD5s are missing, XNAT is asked to calculate them first."""
        held = self.run.server.session_files(self.plan.exists)
        if self.options.handler == options.XAR:
            held = self._once_whole(held)
        if all(one.digest for one in held):
            return held
        self.repair_catalogs(self.label_there)
        return self.run.server.session_files(self.plan.exists)

    def _once_whole(self, held: Sequence[xnat.RemoteFile]) -> list[xnat.RemoteFile]:
        """List the session again while its files grow in number.

        XarImporter makes the session before it moves the files, and goes on with a killed run's.
        """
        for _ in range(_LOOKS):
            if len(held) >= len(self.plan.rows) or self.run.context.stop.wait(_LOOK_SECONDS):
                break
            before, held = held, self.run.server.session_files(self.plan.exists)
            if len(held) == len(before):
                break
        return list(held)

    def compare(
        self,
        sent: Sequence[confirm.Sent],
        held: Sequence[xnat.RemoteFile],
        session_id: str,
        *,
        by_size: bool = True,
    ) -> dict[str, confirm.Seen]:
        """Compare files with what a session in the archive holds, its catalogs included where that is needed."""
        server = self.run.server
        return confirm.compare(
            sent, held, lambda resources: server.object_uids(session_id, resources), by_size=by_size
        )

    def _succeed(self, sent: confirm.Sent, found: confirm.Seen, message: str) -> None:
        if found.scan != sent.scan:
            message = f"{message} XNAT put it into scan {found.scan}."
        self.rows.record(Outcome(sent.row.file, Status.SUCCESS, message, sent.md5, scan_id=found.scan))

    def _without_clashes(
        self, going: Sequence[files.Item], held: Sequence[xnat.RemoteFile]
    ) -> list[files.Item]:
        """Keep back files that have the name of another file there: XNAT would refuse the whole session for them."""
        if self.options.rename:
            return list(going)
        taken = {(one.scan, one.resource, one.name) for one in held}
        return self.rows.keep(
            Outcome(item.row.file, Status.CONFLICT, DIFFERS)
            if (self.scan_of[item.row.file], item.row.resource or "DICOM", item.row.filename) in taken
            else item
            for item in going
        )

    def _record_looked(self, looking: Sequence[files.Item]) -> None:
        """Record rows of an earlier run that are only looked at: they may still wait in the prearchive."""
        if not looking:
            return
        if self.left is not None:
            self._record_waiting(self.left, [self._sent(item.row, -1, item.row.md5) for item in looking])
        else:
            self.rows.record_all([item.row for item in looking], Status.FAILED, NO_DIGEST)

    def _as_sent(self, item: files.Item, sizes: Collection[int]) -> confirm.Sent | Outcome:
        """Return what would be sent; its MD5 is worked out only where the archive lists one of its size."""
        row = item.row
        if item.look_only:
            return self._sent(row, files.sent_size(row), row.md5.lower())
        if self.run.context.copy is None and item.size not in sizes and -1 not in sizes:
            return self._sent(row, item.size, "")
        local = files.fingerprint(item, self.run.context)
        return local if isinstance(local, Outcome) else self._sent(row, local.size, local.md5)

    def _sent(self, row: Row, size: int, md5: str) -> confirm.Sent:
        return confirm.Sent(row, size, md5, self.scan_of[row.file])

    # ---- sending

    def name_of(self, row: Row) -> str:
        """Return a file's path inside an archive: unique, and by its last part the name XNAT gives it."""
        return f"SCANS/{self.scan_of[row.file]}/{row.resource or 'DICOM'}/{row.filename}"

    def took(self, row: Row, size: int, md5: str) -> None:
        """Note a file that XNAT has taken."""
        self.sent[row.file] = self._sent(row, size, md5)

    # ---- where it ended

    def finish(self, entry: PrearchiveEntry) -> None:
        """Record what was sent into an entry of the prearchive: archive it, or let it wait there."""
        if self.options.by_headers:
            entry = self.run.prearchive.look(entry) or entry
        self.run.prearchive.build(entry)
        if not self.options.dest.archive:
            self._record_waiting(entry, list(self.sent.values()))
            return
        if entry.project != self.run.project:
            raise prearchive.NotArchived(
                f"By its headers XNAT put the session into project {entry.project}; it waits in the prearchive "
                f"({self.run.prearchive.address(entry)}). Move it there, or leave --dest-by-headers out."
            )
        label = entry.name if self.options.by_headers else self.label
        known = self.plan.exists and label == self.label_there
        existing = "" if known else self.run.find(label)
        if existing and self.options.overwrite == "none":
            message = (
                f"{EXISTS} What was sent waits in the prearchive ({self.run.prearchive.address(entry)})."
            )
            raise SessionRefused(message, Status.CONFLICT)
        if existing:
            self.before = frozenset(self.run.server.session_files(existing))
        names = {"project": self.run.project, "subject": self.plan.subject, "session": self.label}
        uri = self.run.prearchive.archive(
            entry,
            {} if self.options.by_headers else names,
            overwrite=self.options.overwrite == "delete",
            pipelines=self.options.pipelines,
        )
        named = routes.archive_parts(uri)
        self.confirm(named[2] if named else label)

    def _record_waiting(self, entry: PrearchiveEntry, sent: Sequence[confirm.Sent]) -> None:
        """Record that files wait in the prearchive, as far as they are listed there. Raises `RequestFailed`."""
        held = self.run.prearchive.files(entry)
        found = confirm.waiting(sent, [name for _, name in held])
        lost = NOT_SEEN.format(self.run.prearchive.address(entry))
        for one in sent:
            how = found.get(one.row.file)
            if how is None:
                self.rows.record(Outcome(one.row.file, Status.FAILED, lost))
            else:
                message = f"{self.run.waits(entry)} Checked: {LISTED[how]}."
                self.rows.record(Outcome(one.row.file, Status.SUCCESS, message, one.md5))

    def confirm(self, label: str) -> None:
        """Record what was sent by what the archive lists, after one repair of its catalogs where that helps."""
        identifier = ""
        try:
            identifier = self.run.find(label)
            if identifier:
                self.run.ids[label] = identifier
                self._confirm(label, identifier)
            if identifier and any(file in self.rows.open for file in self.sent):
                self.repair_catalogs(label)
                self._confirm(label, identifier)
        except xnat.RequestFailed as failure:
            message = f"The session was archived, but could not be checked. {failure.message}"
            self.rows.record_all([one.row for one in self.sent.values()], Status.FAILED, message)
        self._record_unseen()
        if label == self.label and identifier:
            self._name_scans(identifier)

    def _record_unseen(self) -> None:
        """Record what was sent and not found in the archive."""
        shared = confirm.shared_uids(self.sent.values())
        untold = self._new_files >= len(self.sent) and self.sent.keys() <= self.rows.open.keys()
        for one in self.sent.values():
            if one.row.sop_instance_uid in shared:
                self.rows.record(Outcome(one.row.file, Status.CONFLICT, confirm.SHARED_UID))
            elif untold:
                self.rows.record(Outcome(one.row.file, Status.CONFLICT, confirm.UNTOLD))
            else:
                self.rows.record(Outcome(one.row.file, Status.FAILED, files.NOT_LISTED, one.md5))

    def recognise(self) -> None:
        """Record what the archive holds of what was sent, though the import was refused.

        XNAT may have gone on with the import of a run that was killed, and have archived it while this one sent the
        session once more. Nothing is deleted: what waits in the prearchive is told.
        """
        if not self.sent or self.options.overwrite == "delete":
            return
        try:
            identifier = self.find()
            held = self.run.server.session_files(identifier) if identifier else []
            held = [one for one in held if one not in self.before]
            seen = self.compare(list(self.sent.values()), held, identifier, by_size=False)
            waiting = self.entries() if seen else []
        except xnat.RequestFailed as failure:
            logger.debug("%s: the archive could not be looked at: %s", self.label, failure.message)
            return
        if seen:
            self.run.ids[self.label] = identifier
        for file, found in seen.items():
            self._succeed(self.sent[file], found, confirm.THERE[found.how] + self._named(self.label_there))
        for entry in waiting:
            logger.warning(
                "%s: the archive holds what was sent, and a second copy waits in the prearchive (%s). Delete it there.",
                self.label,
                self.run.prearchive.address(entry),
            )

    def repair_catalogs(self, label: str) -> None:
        """Have XNAT list the files on its disk that are in no catalog, and calculate MD5s. Raises `RequestFailed`."""
        resource = catalogs.session_resource(self.run.project, label)
        catalogs.refresh(self.run.server, resource, catalogs.REPAIR)

    def _confirm(self, label: str, identifier: str) -> None:
        held = self.run.server.session_files(identifier)
        new = [one for one in held if one not in self.before]
        self._new_files = len(new)
        if self.options.overwrite != "delete":  # what is replaced may be changed to the same bytes as before
            held = new
        left = list(self.sent.values())
        seen = self.compare(left, held, identifier)
        for sent in left:
            found = seen.get(sent.row.file)
            if found is not None:
                self._succeed(sent, found, confirm.CHECKED[found.how] + self._named(label))

    def _named(self, label: str) -> str:
        """Return what a message says of the session's label in the archive, if it is not the sheet's."""
        return "" if label == self.label else f" By its headers XNAT named the session {label}."

    def _name_scans(self, identifier: str) -> None:
        """Give the scans that were imported their Dataset as type; XNAT took the series description."""
        wanted = {scan.series_uid: scan for scan in self.plan.scans if scan.series_uid and scan.scan_type}
        try:
            for there in self.run.server.scans(identifier):
                ours = wanted.get(there.uid)
                if ours is not None and there.type != ours.scan_type:
                    address = ScanAddress(self.run.project, self.plan.subject, self.label, there.id)
                    xsi_type = there.xsi_type or ours.xsi_type
                    self.run.server.create_scan(address, xsi_type, {"type": ours.scan_type})
        except xnat.RequestFailed as failure:
            logger.warning("%s: the scans' types could not be set. %s", self.label, failure.message)
