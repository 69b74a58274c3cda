"""One session of an import: which of its files have to travel, and what became of them on the server.

What all handlers have in common is here; how a handler sends its bodies is in `parts`, `si`, `xar` and `inbox`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from xnatuploader import xnat
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
SEVERAL = (
    "The session holds several studies, and XNAT's import service makes a session of each. Send it "
    "without --import-handler, or use XAR."
)
NO_DIGEST = "The file was sent before, and is not on the server any more. Run upload again to send it."
PART_OF = (
    "The run was stopped before the whole session was sent. What was sent waits in XNAT's prearchive; run upload "
    "again to go on."
)
FILTERED = (
    "XNAT took the file and kept nothing of it: its series import filter or its anonymisation rejected it. Ask "
    "the server's administrator."
)


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
        self.scan_of = {row.file: scan.scan_id for scan in plan.scans for row in scan.rows}
        self.rows = PendingRows(run.context, plan.rows)
        self.sent: dict[str, confirm.Sent] = {}
        """What XNAT has taken, by `Row.file`, with the MD5s of what went out."""
        self.before: frozenset[xnat.RemoteFile] = frozenset()
        """What the session in the archive held before."""
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
        held = self.run.server.session_files(self.plan.exists)
        self.before = frozenset(held)
        sizes = {one.size for one in held if one.digest}
        known = self.rows.keep([self._as_sent(item, sizes) for item in items])
        seen = self.compare(known, held, self.plan.exists)
        replace = self.options.overwrite == "delete"
        for one in known:
            found = seen.get(one.row.file)
            anew = replace and one.row.status is not Status.SUCCESS
            if found is not None and not (anew and found.how == "uid"):
                self._succeed(one, found, confirm.THERE[found.how])
        self._record_looked([item for item in looking if item.row.file in self.rows.open])
        going = [item for item in items if item.row.file in self.rows.open]
        if going and self.options.overwrite == "none":
            raise SessionRefused(EXISTS, Status.CONFLICT)
        return going if replace else self._without_clashes(going, held)

    def compare(
        self,
        sent: Sequence[confirm.Sent],
        held: Sequence[xnat.RemoteFile],
        session_id: str,
        *,
        alone: bool = False,
    ) -> dict[str, confirm.Seen]:
        """Compare files with what a session in the archive holds, its catalogs included where that is needed."""
        server = self.run.server
        return confirm.compare(
            sent, held, lambda resources: server.object_uids(session_id, resources), alone=alone
        )

    def _succeed(self, sent: confirm.Sent, found: confirm.Seen, message: str) -> None:
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
        waiting = self.run.prearchive.left(self.studies, self.label)
        for item in looking:
            if waiting:
                message = self.run.waits(waiting[-1])
                self.rows.record(Outcome(item.row.file, Status.SUCCESS, message, item.row.md5))
            else:
                self.rows.record(Outcome(item.row.file, Status.FAILED, NO_DIGEST))

    def _as_sent(self, item: files.Item, sizes: Collection[int]) -> confirm.Sent | Outcome:
        """Return what would be sent; its MD5 is worked out only where the archive lists one of its size."""
        row = item.row
        if item.look_only:
            return confirm.Sent(row, files.sent_size(row), row.md5.lower())
        if self.run.context.copy is None and item.size not in sizes and -1 not in sizes:
            return confirm.Sent(row, item.size, "")
        local = files.fingerprint(item, self.run.context)
        return local if isinstance(local, Outcome) else confirm.Sent(row, local.size, local.md5)

    # ---- sending

    def name_of(self, row: Row) -> str:
        """Return a file's path inside an archive: unique, and by its last part the name XNAT gives it."""
        return f"SCANS/{self.scan_of[row.file]}/{row.resource or 'DICOM'}/{row.filename}"

    def took(self, row: Row, size: int, md5: str) -> None:
        """Note a file that XNAT has taken."""
        self.sent[row.file] = confirm.Sent(row, size, md5)

    # ---- where it ended

    def finish(self, entry: PrearchiveEntry) -> None:
        """Record what was sent into an entry of the prearchive: archive it, or let it wait there."""
        if self.options.by_headers:
            entry = self.run.prearchive.look(entry) or entry
        self.run.prearchive.build(entry)
        if not self.options.dest.archive:
            self._record_waiting(entry)
            return
        if entry.project != self.run.project:
            raise prearchive.NotArchived(
                f"By its headers XNAT put the session into project {entry.project}; it waits in the prearchive "
                f"({self.run.prearchive.address(entry)}). Move it there, or leave --dest-by-headers out."
            )
        label = entry.name if self.options.by_headers else self.label
        known = self.plan.exists and label == self.label
        existing = "" if known else self.run.find(label)
        if existing and self.options.overwrite == "none":
            message = (
                f"{EXISTS} What was sent waits in the prearchive ({self.run.prearchive.address(entry)})."
            )
            raise SessionRefused(message, Status.CONFLICT)
        if existing:
            self.before = frozenset(self.run.server.session_files(existing))
        uri = self.run.prearchive.archive(
            entry, overwrite=self.options.overwrite == "delete", pipelines=self.options.pipelines
        )
        named = routes.archive_parts(uri)
        self.confirm(named[2] if named else label)

    def _record_waiting(self, entry: PrearchiveEntry) -> None:
        """Record that what was sent waits in the prearchive, as far as it is listed there."""
        message = self.run.waits(entry)
        try:
            held = self.run.prearchive.files(entry)
        except xnat.RequestFailed as failure:
            logger.debug("%s: the entry could not be listed: %s", self.label, failure.message)
            held = {}
        names = {name for _, name in held}
        listed = f"{message} Checked: it is listed there." if held else message
        for sent in self.sent.values():
            there = (
                not held or sent.row.filename in names or self.options.rename or len(held) >= len(self.sent)
            )
            if there:
                self.rows.record(Outcome(sent.row.file, Status.SUCCESS, listed, sent.md5))
            else:
                lost = f"{FILTERED} The rest waits at {self.run.prearchive.address(entry)}."
                self.rows.record(Outcome(sent.row.file, Status.FAILED, lost))

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
        for sent in self.sent.values():
            self.rows.record(Outcome(sent.row.file, Status.FAILED, files.NOT_LISTED, sent.md5))
        if label == self.label and identifier:
            self._name_scans(identifier)

    def repair_catalogs(self, label: str) -> None:
        """Have XNAT list the files on its disk that are in no catalog, and calculate MD5s. Raises `RequestFailed`."""
        resource = catalogs.session_resource(self.run.project, label)
        catalogs.refresh(self.run.server, resource, catalogs.REPAIR)

    def _confirm(self, label: str, identifier: str) -> None:
        held = self.run.server.session_files(identifier)
        if self.options.overwrite != "delete":  # what is replaced may be changed to the same bytes as before
            held = [one for one in held if one not in self.before]
        alone = not self.before
        left = [one for one in self.sent.values() if alone or one.row.file in self.rows.open]
        seen = self.compare(left, held, identifier, alone=alone)
        where = "" if label == self.label else f" By its headers XNAT named the session {label}."
        for sent in left:
            found = seen.get(sent.row.file)
            if found is not None:
                self._succeed(sent, found, confirm.CHECKED[found.how] + where)

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
