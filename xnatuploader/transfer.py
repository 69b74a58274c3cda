"""One session's sending: create what is missing, send in parts, compare with the server's listing.

`Transfer.send_scan` is made for a pool of workers, one scan each: a resource has one writer at a time, since
XNAT's catalog of a resource cannot take two (CatalogUtils.writeCatalogToFile: the loser is answered 500, and
its bytes stay on the disk unlisted). The files of a resource therefore go one part after the other.

What counts is what the server lists afterwards, never what it answered: a PUT without the right to edit is
answered 200 and stores nothing (FileList.handlePost), and a file that exists is left as it is, with 200.

Requests for a scan: one listing before (only where the scan exists), one for the scan, one per resource, one
per part, one listing after. Repairs come on top.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xnatuploader import archive, errors, server
from xnatuploader.records import Outcome, ResourcePlan, Row, ScanPlan, SessionPlan, Status

logger = logging.getLogger(__name__)

ARCHIVE_NAME = "xnatuploader-part.tar"
"""The ending makes XNAT unpack it; always one name, so that a server that does not keeps only one of them."""

CHECKED = "On the server, with the same MD5."
CHECKED_SIZE = "On the server, with the same size (there is no MD5 to compare)."
THERE = "Was on the server already, with the same MD5."
THERE_SIZE = "Was on the server already, with the same size (there is no MD5 to compare)."
STOPPED = "The run was stopped before this file was sent and checked. Run upload again to go on."
CHANGED = "The file changed or went away while it was being sent. Run upload again when nothing writes to it."
NOTHING_STORED = (
    "XNAT answered that all was well and stored nothing: this account may not add files to such a session. "
    "Ask an owner of the project for the right to edit."
)

COPIED_BYTES = 16 * 1024 * 1024
"""Where copies are sent, so many bytes of them are made at a time: they may stand in memory."""

EMPTY_MD5 = archive.digest_of(b"")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_FEW = 8
"""Up to so many files are repaired one by one, which also gets past an archive that is unpacked wrongly."""

NOT_LISTED = "XNAT took the file and does not list it, also after a second time. Run upload again."
GONE = "It is not on the server any more. Run upload again to send it."
BAD_NAME = "Filename may hold only letters, digits and . _ - for XNAT. Correct the cell."
SAME_NAME = "Another row of this scan has the same Filename. Change one of them."

_LASTING = frozenset({"permission", "missing", "conflict", "duplicate-scan", "other"})
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Options:
    """How a run sends."""

    overwrite: bool = False
    """Replace what differs on the server; else it is a conflict."""
    verify: bool = False
    """Rows that say success are only looked for on the server."""
    part_bytes: int = archive.PART_BYTES
    part_files: int = archive.PART_FILES


@dataclass(frozen=True, slots=True)
class _Item:
    """One file that was examined."""

    row: Row
    path: Path
    size: int
    modified_ns: int
    look_only: bool = False
    """It was sent by an earlier run: only look whether the server still has it."""


@dataclass(slots=True)
class _Place:
    """A subject or session that is made once, by whoever comes first."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    made: bool = False
    identifier: str = ""
    tries: int = 0
    failure: server.RequestFailed | None = None


def _nothing(count: int) -> None:
    return None


class Transfer:
    """Sends scans to one project; `send_scan` may be called from many threads, for different scans.

    `resolve` gives the path of a row's file. `check`, when given, is asked about a file whose size or time
    differs from its row, and returns the outcome that keeps it back. `copy`, when given, makes what is sent
    in place of a file: bytes, a temporary file (deleted here after use), or the outcome that keeps it back.
    `on_outcome` hears of every row of a scan exactly once, when it is settled; `on_sent` of bytes as they go
    out, repeats included; `on_files` counts each file once, when it has gone out or is settled.
    `session_types` are the xsiTypes of all sessions of the run: rights differ by type in XNAT, so a missing
    right ends the run (`ProjectRefused`) when nothing was stored and no type is left to try.
    """

    def __init__(
        self,
        connection: server.Server,
        project: str,
        resolve: Callable[[Row], Path],
        options: Options | None = None,
        *,
        on_outcome: Callable[[Outcome], None],
        on_sent: Callable[[int], None] = _nothing,
        on_files: Callable[[int], None] = _nothing,
        check: Callable[[Row, Path], Outcome | None] | None = None,
        copy: Callable[[Row, Path], bytes | Path | Outcome] | None = None,
        stop: threading.Event | None = None,
        session_types: Collection[str] = (),
    ) -> None:
        self.server = connection
        self.project = project
        self.resolve = resolve
        self.options = options or Options()
        self.on_outcome = on_outcome
        self.on_sent = on_sent
        self.on_files = on_files
        self.check = check
        self.copy = copy
        self.stop = stop or threading.Event()
        self._session_types = frozenset(session_types)
        self._guard = threading.Lock()
        self._subjects: dict[str, _Place] = {}
        self._sessions: dict[str, _Place] = {}
        self._refused_types: dict[str, str] = {}
        self._over: errors.XnatUploaderError | None = None
        self._stored = False
        self._singles = False
        self._too_large = float("inf")
        self._surely_too_large = float("inf")
        self.limit = ""
        """What the server said when it refused a body as too large."""

    # ---- for the caller

    def send_scan(self, session: SessionPlan, scan: ScanPlan) -> None:
        """Bring one scan to the server and settle every one of its rows.

        Raises what ends the run (`XnatUploaderError`); rows that are open then are `interrupted`. Every later
        call raises the same at once.
        """
        sending = _Scan(self, session, scan)
        try:
            if self._over is not None:
                raise self._over
            sending.run()
        except errors.XnatUploaderError as trouble:
            self._over = trouble
            raise
        finally:
            sending.settle_rest()

    def session_id(self, session_label: str) -> str:
        """Return the server's ID of a session that this run made or found, '' if it has not come to it."""
        place = self._sessions.get(session_label)
        return place.identifier if place is not None else ""

    # ---- what the scans share

    def make_session(self, session: SessionPlan) -> None:
        """Make the subject and the session unless this run has done so. Raises `RequestFailed`."""
        place = self._place(self._sessions, session.session_label)
        with place.guard:
            if session.exists and not place.made:
                place.made, place.identifier = True, session.exists
            if place.made:
                return
            refused = self._refused_types.get(session.xsi_type)
            if refused is not None:
                raise server.RequestFailed(403, refused, "permission")
            self._try_once(place, lambda: self._make(session))

    def _make(self, session: SessionPlan) -> str:
        subject = self._place(self._subjects, session.subject)
        with subject.guard:
            if not subject.made:
                self._try_once(subject, lambda: self.server.create_subject(self.project, session.subject))
        fields = {
            "date": session.date,
            "UID": session.uid,
            "modality": session.modality,
            "scanner/manufacturer": session.manufacturer,
            "scanner/model": session.model,
        }
        return self.server.create_session(
            self.project, session.subject, session.session_label, session.xsi_type, fields
        )

    def _try_once(self, place: _Place, make: Callable[[], str]) -> None:
        """Make a record; a lasting failure is remembered, a passing one is tried again by the next scans."""
        if place.failure is not None and (place.failure.kind in _LASTING or place.tries >= _TRIES):
            raise place.failure
        place.tries += 1
        try:
            place.identifier = make()
        except server.RequestFailed as failure:
            place.failure = failure
            if failure.kind == "missing":
                raise errors.ProjectRefused(
                    f"Project {self.project} is gone, or this account may not see it. {failure.message}"
                ) from failure
            raise
        place.made, place.failure = True, None

    def _place(self, places: dict[str, _Place], label: str) -> _Place:
        with self._guard:
            return places.setdefault(label, _Place())

    def note_stored(self) -> None:
        """Note that the server was seen to hold something that this run sent."""
        self._stored = True

    def note_refused(self, session: SessionPlan, message: str) -> None:
        """Note a missing right. Raises `ProjectRefused` once it is clear that every session would meet it."""
        with self._guard:
            self._refused_types.setdefault(session.xsi_type, message)
            left = self._session_types - self._refused_types.keys()
        if not self._stored and not left:
            raise errors.ProjectRefused(f"Nothing can be added to project {self.project}. {message}")

    @property
    def singles(self) -> bool:
        """Whether files go one by one, because this server does not take archives."""
        return self._singles

    def no_archives(self, reason: str) -> None:
        """Send files one by one from now on."""
        with self._guard:
            first, self._singles = not self._singles, True
        if first:
            logger.warning("%s Sending goes on file by file, which is slower.", reason)

    def note_too_large(self, size: int, failure: server.RequestFailed) -> None:
        """Remember that a body of `size` bytes was refused, so that no part of that size is tried again."""
        with self._guard:
            self._too_large = min(self._too_large, size)
            self.limit = failure.message
            if failure.status == 413:
                self._surely_too_large = min(self._surely_too_large, size)

    def is_too_large(self, part: archive.Part) -> bool:
        """Tell whether a part need not be tried: for single files only where the server said so itself."""
        single = len(part.files) == 1 and not part.framed
        return len(part) >= (self._surely_too_large if single else self._too_large)

    def parts_of(self, files: Sequence[archive.Outgoing], *, singly: bool = False) -> list[archive.Part]:
        """Divide files into the bodies in which this run sends them now."""
        if singly or self._singles:
            return [archive.Part([file], framed=False) for file in files]
        return archive.plan_parts(files, self.options.part_bytes, self.options.part_files)


class _Scan:
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
        self._made = False

    @property
    def address(self) -> tuple[str, str, str, str]:
        """What names the scan in every request."""
        return self.transfer.project, self.session.subject, self.session.session_label, self.scan.scan_id

    def run(self) -> None:
        """Settle every row that can be settled."""
        examined = [(resource, self._examined(resource)) for resource in self.scan.resources]
        if not any(items for _, items in examined):
            return
        there: Mapping[str, Mapping[str, server.RemoteFile]] = {}
        if self.scan.exists and not self._stopped():
            try:
                there = self.server.scan_files(*self.address)
            except server.RequestFailed as failure:
                self.fail_all((item for _, items in examined for item in items), failure)
                return
            self.listed = True
        sent = []
        for resource, items in examined:
            going = [item for item in items if self._to_send(item, there.get(resource.label, {}), items)]
            if going and not self._stopped():
                sent.append(_Resource(self, resource.label, going, there.get(resource.label, {})))
        self._send(sent, there)

    def _send(
        self, resources: Sequence[_Resource], there: Mapping[str, Mapping[str, server.RemoteFile]]
    ) -> None:
        for resource in resources:
            if self._stopped():
                break
            if self._make_places(resource, resource.label in there):
                resource.send()
        under_way = [resource for resource in resources if resource.sent]
        for check in (_Resource.confirm, _Resource.give_up):
            under_way = [resource for resource in under_way if resource.unsettled()]
            if not under_way or (check is _Resource.give_up and self._stopped()):
                return
            try:
                now = self.server.scan_files(*self.address)
            except server.RequestFailed as failure:
                message = f"The file was sent, but could not be checked. {failure.message}"
                for resource in under_way:
                    for item in resource.unsettled():
                        self.fail(item, message, failure)
                return
            for resource in under_way:
                check(resource, now.get(resource.label, {}))

    # ---- looking at the files

    def _examined(self, resource: ResourcePlan) -> list[_Item]:
        """Return the files that are there and may be sent; the others are settled."""
        items: list[_Item] = []
        names: set[str] = set()
        for row in resource.rows:
            if self._stopped():
                return items
            name = row.filename
            if not _NAME.fullmatch(name) or name in (".", "..") or name.endswith("_catalog.xml"):
                self.settle(row, Status.FAILED, BAD_NAME)
            elif name in names:
                self.settle(row, Status.CONFLICT, SAME_NAME)
            else:
                names.add(name)
                item = self.examine(row)
                if item is not None:
                    items.append(item)
        return items

    def examine(self, row: Row) -> _Item | None:
        """Look at a row's file on disk; None if that settled the row."""
        sent_before = row.status is Status.SUCCESS
        path = self.transfer.resolve(row)
        if sent_before and not self.options.overwrite:
            return _Item(row, path, -1, 0, look_only=True)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if sent_before:
                return _Item(row, path, -1, 0, look_only=True)
            self.settle(row, Status.MISSING, "The file is not on disk any more.")
            return None
        except (OSError, ValueError) as error:
            self.settle(row, Status.FAILED, _unreadable(error))
            return None
        if self.transfer.check is not None and _differs(row, found.st_size, found.st_mtime):
            kept_back = self.transfer.check(row, path)
            if kept_back is not None:
                self.settle(row, kept_back.status, kept_back.message)
                return None
        return _Item(row, path, found.st_size, found.st_mtime_ns)

    def _to_send(self, item: _Item, there: Mapping[str, server.RemoteFile], items: Sequence[_Item]) -> bool:
        """Compare a file with what the server lists; settle it unless it has to be sent."""
        if self._stopped() or not (there or item.look_only):
            return not self._stopped()
        same = there.get(item.row.filename)
        known = self._identity(item, there)
        if known is None:
            return False
        md5, size = known
        if same is not None and same.digest == md5 != "":
            self.settle(item.row, Status.SUCCESS, CHECKED if item.look_only else THERE, md5)
        elif elsewhere := _name_of(md5, there, items if self.options.overwrite else ()):
            self.settle(item.row, Status.SUCCESS, f"{THERE} Its name there is {elsewhere}.", md5)
        elif same is not None:
            return self.compare(item, same, md5, size)
        elif item.look_only:
            self.settle(item.row, Status.FAILED, GONE)
        else:
            return True
        return False

    def compare(self, item: _Item, same: server.RemoteFile, md5: str, size: int) -> bool:
        """Decide about a file whose name the server has, with another MD5 or with nothing to compare."""
        looks_same = size == same.size and not (md5 and same.digest)
        if looks_same and (item.look_only or not self.options.overwrite):
            self.settle(item.row, Status.SUCCESS, CHECKED_SIZE if item.look_only else THERE_SIZE, md5)
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

    def _identity(self, item: _Item, there: Mapping[str, server.RemoteFile]) -> tuple[str, int] | None:
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
                return archive.digest_of(files[0].source), size
        except OSError as error:
            if item.look_only:
                return "", size
            self.settle(item.row, Status.FAILED, _unreadable(error))
            return None

    # ---- making records

    def _make_places(self, resource: _Resource, exists: bool) -> bool:
        """Make session, scan and resource as far as they are missing; False if that failed."""
        try:
            self.transfer.make_session(self.session)
            if not self.scan.exists and not self._made:
                fields = {
                    "type": self.scan.scan_type,
                    "UID": self.scan.series_uid,
                    "series_description": self.scan.series_description,
                }
                self.server.create_scan(*self.address, self.scan.xsi_type, fields)
                self._made = True
            if not exists:
                content = "RAW" if resource.label == "DICOM" else resource.label
                self.server.create_resource(*self.address, resource.label, "DICOM", content)
        except server.RequestFailed as failure:
            self.fail_all(resource.items.values(), failure)
            return False
        return True

    # ---- settling rows

    def settle(self, row: Row, status: Status, message: str, md5: str = "") -> None:
        """Tell what became of a row, once."""
        if self.open.pop(row.file, None) is None:
            return
        self.count(row.file)
        self.transfer.on_outcome(
            Outcome(
                row.file,
                status,
                message,
                md5,
                scan_id=self.scan.scan_id if row.scan_id != self.scan.scan_id else "",
            )
        )

    def count(self, file: str) -> None:
        """Count a file as gone out or settled, once."""
        if file not in self.counted:
            self.counted.add(file)
            self.transfer.on_files(1)

    def fail(self, item: _Item, message: str, failure: server.RequestFailed | None = None) -> None:
        """Settle a row as failed, or as interrupted where a request was given up because the run stops."""
        if failure is not None and failure.kind in ("connection", "server") and self._stopped():
            self.settle(item.row, Status.INTERRUPTED, STOPPED)
        else:
            self.settle(item.row, Status.FAILED, message)

    def fail_all(self, items: Iterable[_Item], failure: server.RequestFailed) -> None:
        for item in items:
            self.fail(item, failure.message, failure)
        if failure.kind == "permission":
            self.transfer.note_refused(self.session, failure.message)

    def settle_rest(self) -> None:
        """Mark what is still open as interrupted."""
        for row in list(self.open.values()):
            if row.status is Status.SUCCESS:  # it was only to be looked at again
                del self.open[row.file]
            else:
                self.settle(row, Status.INTERRUPTED, STOPPED)

    def _stopped(self) -> bool:
        return self.transfer.stop.is_set()


class _Resource:
    """The files of one resource on their way."""

    def __init__(
        self, scan: _Scan, label: str, items: Sequence[_Item], before: Mapping[str, server.RemoteFile]
    ) -> None:
        self.scan = scan
        self.before = before
        """What the server listed before."""
        self.transfer = scan.transfer
        self.label = label
        self.items = {item.row.filename: item for item in items}
        self.digests: dict[str, tuple[str, int]] = {}
        """Name -> MD5 and size of what was sent."""
        self.sent = False
        self.archived: set[str] = set()
        self.left_alone: set[str] = set()
        """Names that XNAT had and did not replace."""
        self.changed: set[str] = set()
        self.troubles: dict[str, server.RequestFailed] = {}
        """Why files did not get through; the server may hold them even so (a proxy that lost patience)."""
        self._blocked: server.RequestFailed | None = None

    def unsettled(self) -> list[_Item]:
        """Return the files that went out, or should have, and whose row is not settled."""
        return [item for item in self.items.values() if item.row.file in self.scan.open]

    def send(self) -> None:
        """Send all files, one part after the other."""
        # The listing came just before: what it does not name is nobody's, or a leftover that only
        # overwriting cures; what it names is there to be replaced.
        self._send_items(list(self.items.values()), overwrite=self.scan.listed)

    def _send_items(self, items: Sequence[_Item], *, overwrite: bool, singly: bool = False) -> None:
        for group in self._groups(items):
            with outgoing_of(self.scan, group) as files:
                for part in self.transfer.parts_of(files, singly=singly):
                    self._send_part(part, overwrite)

    def _groups(self, items: Sequence[_Item]) -> Iterable[Sequence[_Item]]:
        """Yield all files at once; where copies are made, no more than a part's, because they take room."""
        if self.transfer.copy is None:
            yield items
            return
        held: list[_Item] = []
        size = 0
        for item in items:
            if held and size + item.size > min(self.scan.options.part_bytes, COPIED_BYTES):
                yield held
                held, size = [], 0
            held.append(item)
            size += item.size
        if held:
            yield held

    def _send_part(self, part: archive.Part, overwrite: bool) -> None:
        """Send one part, in smaller pieces where the server does not take it; troubles are noted."""
        if self.transfer.stop.is_set():
            return
        if self._blocked is not None:
            self.scan.fail_all([self.items[file.name] for file in part.files], self._blocked)
            return
        if part.framed and self.transfer.singles:
            self._send_singly(part, overwrite)
            return
        try:
            if self.transfer.is_too_large(part):
                raise server.RequestFailed(0, "", "too-large")
            self._put(part, overwrite)
        except archive.Changed as changed:
            self.sent = True
            self.changed.add(changed.name)
            rest = [file for file in part.files if file.name != changed.name]
            if rest:  # what the broken attempt may have left is not listed, and has to be overwritten
                self._send_part(archive.Part(rest, framed=part.framed), True)
        except server.RequestFailed as failure:
            self._part_failed(part, overwrite, failure)

    def _put(self, part: archive.Part, overwrite: bool) -> None:
        part.watch = self._watch(part)
        where = (*self.scan.address, self.label)
        try:
            if part.framed:
                left = self.scan.server.put_archive(*where, lambda: part, ARCHIVE_NAME, overwrite)
                self.archived.update(file.name for file in part.files)
            else:
                left = self.scan.server.put_file(*where, part.files[0].name, lambda: part, overwrite)
        finally:
            self._take_digests(part)
        self.sent = True
        self.left_alone.update(left)
        self.changed.update(part.left_out)

    def _take_digests(self, part: archive.Part) -> None:
        """Keep the MD5s of what went out, also of an attempt that failed: the server may have stored it."""
        for file in part.files:
            digest = part.digests.get(file.name) or (EMPTY_MD5 if file.size == 0 else "")
            if digest and file.name not in part.left_out:  # an empty file may travel in a form, unread
                self.digests[file.name] = (digest, file.size)

    def _watch(self, part: archive.Part) -> Callable[[int, int], None]:
        """Return what counts bytes and files of a part; a pass that begins anew counts its bytes again."""
        state = [0, 0]

        def watch(size: int, files: int) -> None:
            begun = state[0] if size >= state[0] else 0
            self.transfer.on_sent(size - begun)
            for file in part.files[state[1] : files]:
                self.scan.count(file.file)
            state[:] = [size, max(files, state[1])]

        return watch

    def _part_failed(self, part: archive.Part, overwrite: bool, failure: server.RequestFailed) -> None:
        if failure.kind == "too-large":
            if failure.message:
                self.transfer.note_too_large(len(part), failure)
            if len(part.files) > 1:
                for half in part.halves():
                    self._send_part(half, overwrite)
            elif part.framed:
                self._send_singly(part, overwrite)
            else:
                message = f"The file is too large to be sent. {failure.message or self.transfer.limit}"
                self.scan.fail(self.items[part.files[0].name], message)
        elif failure.kind == "archive-refused" and part.framed:
            self.transfer.no_archives(failure.message)
            self._send_singly(part, overwrite)
        elif failure.kind in _LASTING:
            if failure.kind in ("permission", "missing", "duplicate-scan"):
                self._blocked = failure  # about the scan, not about these files
            self.scan.fail_all([self.items[file.name] for file in part.files], failure)
        else:
            self.sent = True
            self.troubles.update((file.name, failure) for file in part.files)

    def _send_singly(self, part: archive.Part, overwrite: bool) -> None:
        for file in part.files:
            self._send_part(archive.Part([file], framed=False), overwrite)

    # ---- comparing with the listing

    def confirm(self, now: Mapping[str, server.RemoteFile]) -> None:
        """Settle what the server holds as it was sent; send what it does not hold a second time."""
        right = self._settle_right(now)
        for item in self.unsettled():
            name = item.row.filename
            if name in self.troubles:
                self.scan.fail(item, self.troubles[name].message, self.troubles[name])
            elif name in self.left_alone and name in now:
                md5, size = self.digests.get(name, ("", item.size))
                self.scan.compare(item, now[name], md5, size)
        changed = set(self.changed)
        again = [fresh for item in self.unsettled() if (fresh := self._fresh(item)) is not None]
        if not again or self.transfer.stop.is_set():
            return
        unseen = not right and not any(self._is_new(item, now) for item in again)
        if unseen and not changed.issuperset(item.row.filename for item in again):
            again = self._probe(again, ARCHIVE_NAME in now)
        self._send_items(again, overwrite=True, singly=len(again) <= _FEW)

    def give_up(self, now: Mapping[str, server.RemoteFile]) -> None:
        """Settle what is still open after the second time, by what the server holds now."""
        self._settle_right(now)
        if self.transfer.stop.is_set():
            return
        for item in self.unsettled():
            name = item.row.filename
            remote = now.get(name)
            digest, size = self.digests.get(name, ("", -1))
            if name in self.troubles:
                self.scan.fail(item, self.troubles[name].message, self.troubles[name])
            elif not digest or name in self.changed:
                self.scan.settle(item.row, Status.FAILED, CHANGED)
            elif remote is None:
                self.scan.settle(item.row, Status.FAILED, NOT_LISTED)
            else:
                held = f"MD5 {remote.digest}" if remote.digest else f"{remote.size} bytes instead of {size}"
                message = (
                    f"XNAT stored other bytes than were sent ({held}), also the second time. Tell the "
                    "server's administrator, its disk may be failing; then run upload again."
                )
                self.scan.settle(item.row, Status.FAILED, message, digest)

    def _settle_right(self, now: Mapping[str, server.RemoteFile]) -> int:
        """Settle every file that the server lists as it was sent; return how many."""
        right = 0
        for item in self.unsettled():
            remote = now.get(item.row.filename)
            digest, size = self.digests.get(item.row.filename, ("", -1))
            if remote is None or not digest:
                continue
            if remote.digest == digest or (not remote.digest and remote.size == size):
                right += 1
                message = CHECKED if remote.digest else CHECKED_SIZE
                self.scan.settle(item.row, Status.SUCCESS, message, digest)
        if right:
            self.transfer.note_stored()
        return right

    def _is_new(self, item: _Item, now: Mapping[str, server.RemoteFile]) -> bool:
        """Tell whether the server lists something else under a file's name than before."""
        return now.get(item.row.filename) != self.before.get(item.row.filename)

    def _fresh(self, item: _Item) -> _Item | None:
        """Return what a file is now, where it had changed; None if that settled its row."""
        name = item.row.filename
        if name not in self.changed:
            return item
        self.changed.discard(name)
        self.digests.pop(name, None)
        examined = self.scan.examine(item.row)
        if examined is not None:
            self.items[name] = examined
        return examined

    def _probe(self, again: Sequence[_Item], archive_is_listed: bool) -> list[_Item]:
        """Find out by one single file why nothing was stored; return what is to be sent again.

        Either the server does not unpack archives, or it stores nothing at all: then this account has no
        right to edit (FileList.handlePost: 200 and nothing done), and the files fail.
        """
        one = min(again, key=lambda item: item.size)
        self._send_items([one], overwrite=True, singly=True)
        now = self.scan.server.scan_files(*self.scan.address).get(self.label, {})
        if self._settle_right(now):
            if archive_is_listed or len(self.archived) > 1:
                left = (
                    f" A file {ARCHIVE_NAME} was left in the scan; delete it in XNAT."
                    if archive_is_listed
                    else ""
                )
                self.transfer.no_archives(f"The server does not unpack archives.{left}")
            return [item for item in again if item.row.file in self.scan.open]
        if self._is_new(one, now) or one.row.filename in self.changed or self.transfer.stop.is_set():
            return list(again)
        self.scan.fail_all(again, server.RequestFailed(403, NOTHING_STORED, "permission"))
        return []


@contextlib.contextmanager
def outgoing_of(scan: _Scan, items: Sequence[_Item]) -> Iterator[list[archive.Outgoing]]:
    """Yield what is sent for each file: itself, or a copy that is gone after the block.

    A file of which no copy could be made is settled and not among them.
    """
    made: list[archive.Outgoing] = []
    copies: list[Path] = []
    try:
        for item in items:
            outgoing = _copied(scan, item) if scan.transfer.copy is not None else _plain(item)
            if outgoing is None:
                continue
            made.append(outgoing)
            if scan.transfer.copy is not None and isinstance(outgoing.source, Path):
                copies.append(outgoing.source)
        yield made
    finally:
        for path in copies:
            with contextlib.suppress(OSError):
                path.unlink()


def _plain(item: _Item) -> archive.Outgoing:
    return archive.Outgoing(item.row.file, item.row.filename, item.size, item.path, item.modified_ns)


def _copied(scan: _Scan, item: _Item) -> archive.Outgoing | None:
    """Have a copy made; None if the row was settled instead."""
    assert scan.transfer.copy is not None
    try:
        copy = scan.transfer.copy(item.row, item.path)
        if isinstance(copy, Outcome):
            scan.settle(item.row, copy.status, copy.message)
            return None
        if isinstance(copy, bytes):
            return archive.Outgoing(item.row.file, item.row.filename, len(copy), copy)
        found = copy.stat()
        return archive.Outgoing(item.row.file, item.row.filename, found.st_size, copy, found.st_mtime_ns)
    except OSError as error:
        scan.settle(item.row, Status.FAILED, _unreadable(error))
        return None


def _name_of(md5: str, there: Mapping[str, server.RemoteFile], items: Iterable[_Item]) -> str:
    """Return the name under which the server has a file with this MD5, but for the names of `items`.

    Those may be replaced in this very run.
    """
    if not md5:
        return ""
    taken = {item.row.filename for item in items}
    return next((name for name, remote in there.items() if remote.digest == md5 and name not in taken), "")


def _differs(row: Row, size: int, modified: float) -> bool:
    """Tell whether a file's size or time (to the second, UTC) is not what its row says."""
    try:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(modified))
    except (OSError, OverflowError, ValueError):  # a time that no calendar has
        now = ""
    return row.size != str(size) or row.modified != now


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _unreadable(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"The file cannot be read ({reason}). See that it is not open elsewhere and that you may read it."
