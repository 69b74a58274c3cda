"""One scan's sending by one thread: look at the files, make what is missing, settle every row."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from xnatuploader import xnat
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Outcome, ResourcePlan, Row, ScanAddress, ScanPlan, SessionPlan, Status
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words
from xnatuploader.upload.direct.items import Item, Look, looks, on_disk, outgoing_of
from xnatuploader.upload.direct.resource import Resource
from xnatuploader.xnat import catalogs

if TYPE_CHECKING:
    from xnatuploader.upload.direct.run import Transfer

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Scan:
    """The sending of one scan by one thread."""

    def __init__(self, transfer: Transfer, session: SessionPlan, scan: ScanPlan) -> None:
        self.transfer = transfer
        self.server = transfer.server
        self.options = transfer.options
        self.session = session
        self.scan = scan
        self.listed = False
        self.open = {row.file: row for resource in scan.resources for row in resource.rows}
        self.counted: set[str] = set()
        self._changed: dict[str, tuple[str, str]] = {}
        """File -> size and time of change, where they are not what the row says."""
        self._made = False

    @property
    def address(self) -> ScanAddress:
        """What names the scan in every request."""
        return ScanAddress(
            self.transfer.project, self.session.subject, self.session.session_label, self.scan.scan_id
        )

    def send(self) -> None:
        """Settle every row that can be settled."""
        examined = [(resource, self._examined(resource)) for resource in self.scan.resources]
        if not any(items for _, items in examined):
            return
        there: Mapping[str, Mapping[str, xnat.RemoteFile]] = {}
        if self.scan.exists and not self._stopped():
            try:
                there = self.server.scan_files(self.address)
            except xnat.RequestFailed as failure:
                self.fail_all((item for _, items in examined for item in items), failure)
                return
            self.listed = True
        sent = []
        for resource, items in examined:
            going = [item for item in items if self._to_send(item, there.get(resource.label, {}), items)]
            if going and not self._stopped():
                sent.append(Resource(self, resource.label, going, there.get(resource.label, {})))
        self._send(sent, there)

    def _send(
        self, resources: Sequence[Resource], there: Mapping[str, Mapping[str, xnat.RemoteFile]]
    ) -> None:
        for resource in resources:
            if self._stopped():
                break
            if self._make_places(resource, resource.label in there):
                resource.send()
        under_way = [resource for resource in resources if resource.sent]
        for check in (Resource.confirm, Resource.give_up):
            under_way = [resource for resource in under_way if resource.unsettled()]
            if not under_way or (check is Resource.give_up and self._stopped()):
                return
            try:
                now: Mapping[str, Mapping[str, xnat.RemoteFile]] = self.server.scan_files(self.address)
                last = check is Resource.give_up
                lost = any(one.lost(now.get(one.label, {}), last=last) for one in under_way)
                if lost and not self._stopped() and not any(one.cut for one in resources):
                    now = self._repaired() or now
            except xnat.RequestFailed as failure:
                message = f"The file was sent, but could not be checked. {failure.message}"
                for resource in under_way:
                    for item in resource.unsettled():
                        self.fail(item, message, failure)
                return
            for resource in under_way:
                check(resource, now.get(resource.label, {}))

    def _repaired(self) -> Mapping[str, Mapping[str, xnat.RemoteFile]] | None:
        """Have XNAT list what lies unlisted on its disk, and return the listing then; None if it would not.

        A file that lost the race for its catalog again and again is stored all the same (facts 4.7).
        """
        try:
            catalogs.repair_scan(self.server, self.address)
            return self.server.scan_files(self.address)
        except xnat.RequestFailed as failure:
            logger.debug("The catalog could not be refreshed: %s", failure.message)
            return None

    # ---- looking at the files

    def _examined(self, resource: ResourcePlan) -> list[Item]:
        """Return the files that are there and may be sent; the others are settled."""
        items: list[Item] = []
        names: set[str] = set()
        for row, look in looks(resource.rows, self._look):
            if self._stopped():
                return items
            name = row.filename
            if not _NAME.fullmatch(name) or name in (".", "..") or name.endswith("_catalog.xml"):
                self.settle(row, Status.FAILED, words.BAD_NAME)
            elif name in names:
                self.settle(row, Status.CONFLICT, words.SAME_NAME)
            else:
                names.add(name)
                item = self.examine(row, look)
                if item is not None:
                    items.append(item)
        return items

    def _look(self, row: Row) -> Look:
        """Look at a row's file on disk, where that matters."""
        path = self.transfer.resolve(row)
        if row.status is Status.SUCCESS and not self.options.overwrite:
            return Look(path)
        try:
            return Look(path, path.stat())
        except (OSError, ValueError) as error:
            return Look(path, None, error)

    def examine(self, row: Row, look: Look | None = None) -> Item | None:
        """Judge a row's file as it was seen, or look now; None if that settled the row."""
        seen = look or self._look(row)
        path, found, error = seen.path, seen.found, seen.error
        gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
        if row.status is Status.SUCCESS and found is None and (gone or error is None):
            return Item(row, path, -1, 0, look_only=True)
        if gone:
            self.settle(row, Status.MISSING, "The file is not on disk any more.")
            return None
        if found is None:
            self.settle(row, Status.FAILED, words.unreadable(error or OSError()))
            return None
        facts = on_disk(found)
        if facts != (row.size, row.modified):
            kept_back = self.transfer.check(row, path) if self.transfer.check is not None else None
            if kept_back is not None:
                self.settle(row, kept_back.status, kept_back.message)
                return None
            self._changed[row.file] = facts
        return Item(row, path, found.st_size, found.st_mtime_ns)

    def _to_send(self, item: Item, there: Mapping[str, xnat.RemoteFile], items: Sequence[Item]) -> bool:
        """Compare a file with what the server lists; settle it unless it has to be sent."""
        if self._stopped() or not (there or item.look_only):
            return not self._stopped()
        same = there.get(item.row.filename)
        known = self._identity(item, there)
        if known is None:
            return False
        md5, size = known
        if same is not None and same.digest == md5 != "":
            self.settle(item.row, Status.SUCCESS, words.CHECKED if item.look_only else words.THERE, md5)
        elif elsewhere := _name_of(md5, there, items if self.options.overwrite else ()):
            self.settle(item.row, Status.SUCCESS, f"{words.THERE} Its name there is {elsewhere}.", md5)
        elif same is not None:
            return self.compare(item, same, md5, size)
        elif item.look_only:
            self.settle(item.row, Status.FAILED, words.GONE)
        else:
            return True
        return False

    def compare(self, item: Item, same: xnat.RemoteFile, md5: str, size: int) -> bool:
        """Decide about a file whose name the server has, with another MD5 or with nothing to compare."""
        looks_same = size == same.size and not (md5 and same.digest)
        if looks_same and (item.look_only or not self.options.overwrite):
            self.settle(
                item.row, Status.SUCCESS, words.CHECKED_SIZE if item.look_only else words.THERE_SIZE, md5
            )
            return False
        # What an earlier run sent, and then saw stored wrongly, is this program's own to replace.
        own = item.row.status is Status.FAILED and md5 != "" and item.row.md5.lower() == md5
        if not item.look_only and (self.options.overwrite or own):
            return True
        how = f"its MD5 is {same.digest}" if same.digest else f"it has {same.size} bytes"
        self.settle(
            item.row,
            Status.CONFLICT,
            f"The server has another file of this name ({how}). Run upload with --overwrite to replace it, "
            "or set Upload to N.",
        )
        return False

    def _identity(self, item: Item, there: Mapping[str, xnat.RemoteFile]) -> tuple[str, int] | None:
        """Return MD5 and size of what would be sent; the MD5 is '' where nothing depends on it.

        None if that settled the row. A file is read only where the server lists its name, or one of its size.
        """
        size = item.size if item.size >= 0 else _number(item.row.size)
        if item.look_only and item.row.md5:
            return item.row.md5.lower(), size
        if self.transfer.copy is None:
            sizes = {remote.size for remote in there.values() if remote.digest}
            if not (size in sizes or -1 in sizes or item.row.filename in there):
                return "", size
        try:
            with outgoing_of(self, [item]) as files:
                if not files:
                    return None
                size = files[0].size if files[0].size >= 0 else size
                return tar_body.digest_of(files[0].source), size
        except OSError as error:
            if item.look_only:
                return "", size
            self.settle(item.row, Status.FAILED, words.unreadable(error))
            return None

    # ---- making records

    def _make_places(self, resource: Resource, exists: bool) -> bool:
        """Make session, scan and resource as far as they are missing; False if that failed."""
        self.transfer.on_session(self.session.session_label)
        try:
            self.transfer.make_session(self.session)
            if not self.scan.exists and not self._made:
                self._make_scan()
            if not exists:
                content = xnattypes.resource_content(resource.label)
                self.server.create_resource(self.address, resource.label, "DICOM", content)
        except xnat.RequestFailed as failure:
            self.fail_all(resource.items.values(), failure)
            return False
        return True

    def _make_scan(self) -> None:
        """Make the scan. Raises `RequestFailed`, also where one of this ID has come since the plan was made."""
        scan, label = self.scan, self.session.session_label
        session_id = self.transfer.session_id(label)
        if self.server.has_scan(session_id, scan.scan_id):
            raise xnat.RequestFailed(409, words.SCAN_MEANWHILE, "conflict")
        fields = {
            "type": scan.scan_type,
            "UID": scan.series_uid,
            "series_description": scan.series_description,
        }
        self.server.create_scan(self.address, scan.xsi_type, fields)
        self.transfer.on_scan(label, session_id, scan.scan_id)
        self._made = True

    # ---- settling rows

    def settle(self, row: Row, status: Status, message: str, md5: str = "") -> None:
        """Tell what became of a row, once."""
        if self.open.pop(row.file, None) is None:
            return
        self.count(row.file)
        # A row of 1.x says neither size nor time, and needs no columns for them.
        sent = status is Status.SUCCESS and bool(row.size or row.modified)
        size, modified = self._changed.get(row.file, ("", "")) if sent else ("", "")
        self.transfer.on_outcome(
            Outcome(
                row.file,
                status,
                message,
                md5,
                scan_id=self.scan.scan_id if row.scan_id != self.scan.scan_id else "",
                size=size,
                modified=modified,
            )
        )

    def count(self, file: str) -> None:
        """Count a file as gone out or settled, once."""
        if file not in self.counted:
            self.counted.add(file)
            self.transfer.on_files(1)

    def fail(
        self, item: Item, message: str, failure: xnat.RequestFailed | None = None, md5: str = ""
    ) -> None:
        """Settle a row as failed, or as interrupted where a request was given up because the run stops."""
        if failure is not None and failure.kind in ("connection", "server") and self._stopped():
            self.settle(item.row, Status.INTERRUPTED, words.STOPPED)
        else:
            self.settle(item.row, Status.FAILED, message, md5)

    def fail_all(self, items: Iterable[Item], failure: xnat.RequestFailed) -> None:
        """Settle many rows after one failure, and note a missing right."""
        for item in items:
            self.fail(item, failure.message, failure)
        if failure.kind == "permission" and failure.status != 401:  # a login's trouble is no missing right
            self.transfer.note_refused(self.session, self.scan, failure.message)

    def settle_rest(self) -> None:
        """Mark what is still open as interrupted."""
        for row in list(self.open.values()):
            if row.status is Status.SUCCESS:  # it was only to be looked at again
                del self.open[row.file]
            else:
                self.settle(row, Status.INTERRUPTED, words.STOPPED)

    def _stopped(self) -> bool:
        return self.transfer.stop.is_set()


def _name_of(md5: str, there: Mapping[str, xnat.RemoteFile], items: Iterable[Item]) -> str:
    """Return the name under which the server has a file with this MD5, but for the names of `items`.

    Those may be replaced in this very run.
    """
    if not md5:
        return ""
    taken = {item.row.filename for item in items}
    return next((name for name, remote in there.items() if remote.digest == md5 and name not in taken), "")


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1
