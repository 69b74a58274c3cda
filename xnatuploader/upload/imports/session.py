"""One session's import by one thread: look at its files, have them imported, settle every row.

What is common to all handlers stands here; how a handler's bodies travel stands in `parts`, `si`, `packages`
and `inbox`.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xnatuploader import xnat
from xnatuploader.records import Outcome, Row, ScanAddress, ScanPlan, SessionPlan, Status
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words
from xnatuploader.upload.direct.items import Item, on_disk
from xnatuploader.upload.imports import confirm, options
from xnatuploader.xnat import catalogs, prearchive

if TYPE_CHECKING:
    from xnatuploader.upload.imports.run import Importer

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]+")

EXISTS = (
    "The session exists on XNAT, and --import-overwrite none adds nothing to it. Use append to add files, delete to "
    "replace them, or set Upload to N."
)
DIFFERS = "The session has another file of this name. Use --import-overwrite delete to replace it, or set Upload to N."
SEVERAL = (
    "The session holds several studies, and XNAT's import service makes a session of each. Leave --import-handler "
    "out for it, or use XAR."
)
NO_DIGEST = "The file was sent before, and is not on the server any more. Run upload again to send it."
PART_OF = (
    "The run was stopped before the whole session was sent. What was sent waits in XNAT's prearchive; run upload "
    "again to go on."
)
FILTERED = (
    "XNAT took the file and kept nothing of it: its series import filter or its anonymisation turned it away. Ask "
    "the server's administrator."
)


class Refused(Exception):
    """The whole session cannot be imported; the text says why. `status` is for its rows."""

    def __init__(self, reason: str, status: Status = Status.FAILED) -> None:
        self.status = status
        super().__init__(reason)


class Session:
    """The import of one session."""

    def __init__(self, run: Importer, plan: SessionPlan) -> None:
        self.run = run
        self.plan = plan
        self.options = run.options
        self.label = plan.session_label
        self.scan_of = {row.file: scan.scan_id for scan, row in rows_of(plan)}
        self.open = {row.file: row for _, row in rows_of(plan)}
        self._changed: dict[str, tuple[str, str]] = {}
        """File -> size and time of change, where they are not what the row says."""
        self.counted: set[str] = set()
        self.sent: dict[str, confirm.Sent] = {}
        """What XNAT has taken, by `Row.file`, with the MD5s of what went out."""
        self.before: frozenset[xnat.ArchivedFile] = frozenset()
        """What the session in the archive held before."""
        self.studies = {row.study_instance_uid for _, row in rows_of(plan) if row.study_instance_uid}

    # ---- the way of every session

    def send(self) -> None:
        """Settle every row that can be settled."""
        items = self._examined()
        try:
            self._refuse()
            going = self._not_there_yet(items)
            if going and not self.stopped():
                self.run.way(self, going)
        except Refused as refusal:
            self.settle_all(self._travelling(), refusal.status, str(refusal))
        except prearchive.NotArchived as trouble:
            under_way = trouble.status.lstrip("_") not in prearchive.RESTING
            status = Status.INTERRUPTED if self.stopped() and under_way else Status.FAILED
            self.settle_all(self._travelling(), status, str(trouble))
        except xnat.RequestFailed as failure:
            self.fail_all(self._travelling(), failure)

    def _travelling(self) -> list[Row]:
        """Return the open rows but those that are only looked at: trouble says nothing about them."""
        return [row for row in self.open.values() if row.status is not Status.SUCCESS]

    def _refuse(self) -> None:
        """Raise `Refused` for a session that the import would put elsewhere, or take apart."""
        reason = self.options.dest.refuses(self.plan)
        if reason:
            raise Refused(reason)
        if self.options.handler != options.XAR and (
            len(self.studies) > 1 or (self.studies and not self.plan.uid)
        ):
            raise Refused(SEVERAL)

    def _not_there_yet(self, items: Sequence[Item]) -> list[Item]:
        """Return the files that have to be sent; those that the archive has are settled.

        Raises `Refused` where something has to be sent into a session that exists, and may not.
        """
        looking = [item for item in items if item.look_only]
        if not self.plan.exists:
            self._settle_looked(looking)
            return [item for item in items if not item.look_only]
        self.run.know(self.label, self.plan.exists)
        held = self.run.server.session_files(self.plan.exists)
        self.before = frozenset(held)
        known = [sent for item in items if (sent := self._identity(item, held)) is not None]
        seen = confirm.compare(
            known, held, lambda places: self.run.server.object_uids(self.plan.exists, places)
        )
        replace = self.options.overwrite == "delete"
        for item in items:
            found = seen.get(item.row.file)
            if found is not None and not (replace and found.how == "uid" and not item.look_only):
                md5 = next(one.md5 for one in known if one.row.file == item.row.file)
                self.settle(item.row, Status.SUCCESS, confirm.THERE[found.how], md5, found.scan)
        self._settle_looked([item for item in looking if item.row.file in self.open])
        going = [item for item in items if item.row.file in self.open]
        if going and self.options.overwrite == "none":
            raise Refused(EXISTS, Status.CONFLICT)
        return going if replace else self._without_clashes(going, held)

    def _without_clashes(self, going: Sequence[Item], held: Sequence[xnat.ArchivedFile]) -> list[Item]:
        """Keep back what has the name of another file there: XNAT would refuse the whole session for it."""
        if self.options.rename:
            return list(going)
        taken = {(one.scan, one.resource, one.name) for one in held}
        left = []
        for item in going:
            if (self.scan_of[item.row.file], item.row.resource or "DICOM", item.row.filename) in taken:
                self.settle(item.row, Status.CONFLICT, DIFFERS)
            else:
                left.append(item)
        return left

    def _settle_looked(self, looking: Sequence[Item]) -> None:
        """Settle rows of an earlier run that are only looked at: they may still wait in the prearchive."""
        if not looking:
            return
        waiting = self.run.prearchive.left(self.studies, self.label)
        for item in looking:
            if waiting:
                self.settle(item.row, Status.SUCCESS, self.run.waits(waiting[-1]), item.row.md5)
            else:
                self.settle(item.row, Status.FAILED, NO_DIGEST)

    def _identity(self, item: Item, held: Sequence[xnat.ArchivedFile]) -> confirm.Sent | None:
        """Return what would be sent; its MD5 is worked out only where the archive lists one of its size."""
        row = item.row
        if item.look_only:
            size = int(row.size) if row.size.isdecimal() else -1
            return confirm.Sent(row, row.filename, size, row.md5.lower())
        if self.run.copy is None and not any(one.digest and one.size in (item.size, -1) for one in held):
            return confirm.Sent(row, row.filename, item.size, "")
        with self.outgoing([item]) as files:
            if not files:
                return None
            try:
                return confirm.Sent(row, row.filename, files[0].size, tar_body.digest_of(files[0].source))
            except OSError as error:
                self.settle(row, Status.FAILED, words.unreadable(error))
                return None

    # ---- the files on disk

    def _examined(self) -> list[Item]:
        items: list[Item] = []
        names: set[tuple[str, str, str]] = set()
        for scan, row in rows_of(self.plan):
            if self.stopped():
                return items
            place = (scan.scan_id, row.resource or "DICOM", row.filename)
            if not _NAME.fullmatch(row.filename) or row.filename in (".", ".."):
                self.settle(row, Status.FAILED, words.BAD_NAME)
            elif place in names:
                self.settle(row, Status.CONFLICT, words.SAME_NAME)
            else:
                names.add(place)
                item = self.examine(row)
                if item is not None:
                    items.append(item)
        return items

    def examine(self, row: Row) -> Item | None:
        """Look at a row's file on disk; None if that settled the row."""
        path = self.run.resolve(row)
        if row.status is Status.SUCCESS:
            return Item(row, path, -1, 0, look_only=True)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self.settle(row, Status.MISSING, "The file is not on disk any more.")
            return None
        except (OSError, ValueError) as error:
            self.settle(row, Status.FAILED, words.unreadable(error))
            return None
        facts = on_disk(found)
        if facts != (row.size, row.modified):
            kept_back = self.run.check(row, path) if self.run.check is not None else None
            if kept_back is not None:
                self.settle(row, kept_back.status, kept_back.message)
                return None
            self._changed[row.file] = facts
        return Item(row, path, found.st_size, found.st_mtime_ns)

    @contextlib.contextmanager
    def outgoing(self, items: Sequence[Item]) -> Iterator[list[tar_body.Outgoing]]:
        """Yield what is sent for each file: itself, or a copy that is gone after the block."""
        made: list[tar_body.Outgoing] = []
        copies: list[Path] = []
        try:
            for item in items:
                outgoing = self._plain(item) if self.run.copy is None else self._copied(item, copies)
                if outgoing is not None:
                    made.append(outgoing)
            yield made
        finally:
            for path in copies:
                with contextlib.suppress(OSError):
                    path.unlink()

    def name_of(self, row: Row) -> str:
        """Return a file's path inside an archive: unique, and by its last part the name XNAT gives it."""
        return f"SCANS/{self.scan_of[row.file]}/{row.resource or 'DICOM'}/{row.filename}"

    def _plain(self, item: Item) -> tar_body.Outgoing:
        return tar_body.Outgoing(
            item.row.file, self.name_of(item.row), item.size, item.path, item.modified_ns
        )

    def _copied(self, item: Item, copies: list[Path]) -> tar_body.Outgoing | None:
        assert self.run.copy is not None
        try:
            copy = self.run.copy(item.row, item.path)
            if isinstance(copy, Outcome):
                self.settle(item.row, copy.status, copy.message)
                return None
            name = self.name_of(item.row)
            if isinstance(copy, bytes):
                return tar_body.Outgoing(item.row.file, name, len(copy), copy)
            copies.append(copy)
            found = copy.stat()
            return tar_body.Outgoing(item.row.file, name, found.st_size, copy, found.st_mtime_ns)
        except OSError as error:
            self.settle(item.row, Status.FAILED, words.unreadable(error))
            return None

    # ---- where it ended

    def finish(self, entry: prearchive.PrearchiveEntry) -> None:
        """Settle what was sent into an entry of the prearchive: archive it, or let it wait there."""
        if self.options.by_headers:
            entry = self.run.prearchive.look(entry) or entry
        self.run.prearchive.build(entry)
        if not self.options.dest.archive:
            self._settle_waiting(entry)
            return
        label = entry.name if self.options.by_headers else self.label
        if entry.project != self.run.project:
            raise prearchive.NotArchived(
                f"By its headers XNAT put the session into project {entry.project}; it waits in the prearchive "
                f"({self.run.prearchive.address(entry)}). Move it there, or leave --dest-by-headers out."
            )
        existing = ""
        if self.options.overwrite == "none" or label != self.label:
            existing = self.run.server.session_id(self.run.project, label)
        if existing and self.options.overwrite == "none":
            raise Refused(f"{EXISTS} What was sent waits in the prearchive ({self.run.prearchive.address(entry)}).",
                          Status.CONFLICT)  # fmt: skip
        if existing:
            self.before = frozenset(self.run.server.session_files(existing))
        uri = self.run.prearchive.archive(entry, overwrite=self.options.overwrite == "delete",
                                     pipelines=self.options.pipelines)  # fmt: skip
        named = prearchive.archived_as(uri)
        self.confirm(named[2] if named else label)

    def _settle_waiting(self, entry: prearchive.PrearchiveEntry) -> None:
        """Say that what was sent waits in the prearchive, as far as it is listed there."""
        message = self.run.waits(entry)
        try:
            held = self.run.prearchive.files(entry)
        except xnat.RequestFailed as failure:
            logger.debug("%s: the entry could not be listed: %s", self.label, failure.message)
            held = {}
        names = {name for files in held.values() for name in files}
        count = sum(len(files) for files in held.values())
        for sent in list(self.sent.values()):
            if not held:
                self.settle(sent.row, Status.SUCCESS, message, sent.md5)
            elif sent.name in names or self.options.rename or count >= len(self.sent):
                self.settle(sent.row, Status.SUCCESS, f"{message} Checked: it is listed there.", sent.md5)
            else:
                self.settle(
                    sent.row,
                    Status.FAILED,
                    f"{FILTERED} The rest waits at {self.run.prearchive.address(entry)}.",
                )

    def confirm(self, label: str) -> None:
        """Settle what was sent by what the archive lists, after one repair of its catalogs where that helps."""
        identifier = ""
        try:
            identifier = self.run.server.session_id(self.run.project, label)
            self.run.know(label, identifier)
            if identifier:
                self._confirm(label, identifier)
            if identifier and any(file in self.open for file in self.sent):
                catalogs.refresh(
                    self.run.server, catalogs.session_resource(self.run.project, label), catalogs.REPAIR
                )
                self._confirm(label, identifier)
        except xnat.RequestFailed as failure:
            message = f"The session was archived, but could not be checked. {failure.message}"
            self.settle_all([one.row for one in self.sent.values()], Status.FAILED, message)
        for sent in self.sent.values():
            self.settle(sent.row, Status.FAILED, words.NOT_LISTED, sent.md5)
        if label == self.label and identifier:
            self._name_scans(identifier)

    def _confirm(self, label: str, identifier: str) -> None:
        held = self.run.server.session_files(identifier)
        if self.options.overwrite != "delete":  # what is replaced may be changed to the same bytes as before
            held = [one for one in held if one not in self.before]
        left = [one for one in self.sent.values() if one.row.file in self.open]
        if not self.before:
            left = list(self.sent.values())
        seen = confirm.compare(
            left, held, lambda places: self.run.server.object_uids(identifier, places), alone=not self.before
        )
        where = "" if label == self.label else f" By its headers XNAT named the session {label}."
        for sent in left:
            found = seen.get(sent.row.file)
            if found is not None:
                self.settle(
                    sent.row, Status.SUCCESS, confirm.CHECKED[found.how] + where, sent.md5, found.scan
                )

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

    # ---- settling rows

    def settle(self, row: Row, status: Status, message: str, md5: str = "", scan: str = "") -> None:
        """Tell what became of a row, once; `scan` is where XNAT has it, '' if that is not known."""
        if self.open.pop(row.file, None) is None:
            return
        self.count(row.file)
        scan_id = scan if scan and scan != row.scan_id else ""
        sent = status is Status.SUCCESS and bool(row.size or row.modified)
        size, modified = self._changed.get(row.file, ("", "")) if sent else ("", "")
        self.run.on_outcome(
            Outcome(row.file, status, message, md5, scan_id=scan_id, size=size, modified=modified)
        )

    def settle_all(self, rows: Iterable[Row], status: Status, message: str) -> None:
        """As `settle`, for several rows."""
        for row in list(rows):
            self.settle(row, status, message)

    def fail_all(self, rows: Iterable[Row], failure: xnat.RequestFailed) -> None:
        """Settle rows as failed, or as interrupted where a request was given up because the run stops."""
        if failure.kind in ("connection", "server") and self.stopped():
            self.settle_all(rows, Status.INTERRUPTED, words.STOPPED)
        else:
            self.settle_all(rows, Status.FAILED, failure.message)

    def settle_rest(self) -> None:
        """Mark what is still open as interrupted."""
        for row in list(self.open.values()):
            if row.status is Status.SUCCESS:  # it was only to be looked at again
                del self.open[row.file]
            else:
                self.settle(row, Status.INTERRUPTED, PART_OF if row.file in self.sent else words.STOPPED)

    def count(self, file: str) -> None:
        """Count a file as gone out or settled, once."""
        if file not in self.counted:
            self.counted.add(file)
            self.run.on_files(1)

    def stopped(self) -> bool:
        """Tell whether the run is to stop."""
        return self.run.stop.is_set()


def rows_of(plan: SessionPlan) -> Iterator[tuple[ScanPlan, Row]]:
    """Yield every row of a session with its scan."""
    for scan in plan.scans:
        for resource in scan.resources:
            for row in resource.rows:
                yield scan, row


def names_of(held: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, str], int]:
    """Return (scan, name) -> size of what an entry of the prearchive holds."""
    return {(scan, name): size for scan, files in held.items() for name, size in files.items()}
