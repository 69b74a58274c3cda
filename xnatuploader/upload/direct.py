"""Sessions scan by scan into the archive: make what is missing, send in parts, compare with the server's listing.

`Transfer.send_scan` is made for a pool of workers, one scan each: a resource has one writer at a time, since
XNAT's catalog of a resource cannot take two (CatalogUtils.writeCatalogToFile: the loser is answered 500, and
its bytes stay on the disk unlisted). The files of a resource therefore go one part after the other.

What counts is what the server lists afterwards, never what it answered: a PUT without the right to edit is
answered 200 and stores nothing (FileList.handlePost), and a file that exists is left as it is, with 200.

Requests for a scan: one listing before (only where the scan exists), one for the scan, one per resource, one
per part, one listing after. Repairs come on top.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from xnatuploader import errors, xnat
from xnatuploader.dicom import xnattypes
from xnatuploader.records import Outcome, ScanAddress, ScanPlan, SessionPlan
from xnatuploader.upload import files, held
from xnatuploader.upload.held import Listing
from xnatuploader.upload.recording import PendingRows
from xnatuploader.upload.resource import LASTING, Resource, SendOptions, ServerLimits, listing
from xnatuploader.upload.routes import Route, Work
from xnatuploader.xnat import catalogs

logger = logging.getLogger(__name__)

_TRIES = 3
SESSION_MEANWHILE = (
    "Somebody has made a session with this label since this run began. Run upload again, which first looks at what it "
    "holds."
)
SCAN_MEANWHILE = (
    "Somebody has made a scan with this ID since this run began. Run upload again, which first looks at what "
    "it holds."
)


class Transfer(Route):
    """Sends scans to one project; `send_scan` may be called from many threads, for different scans.

    `planned` are all sessions of the run. A missing right concerns the record that met it; it ends the run
    (`ProjectRefused`) when every scan has met it and nothing was stored. A single session proves nothing where earlier
    runs could add to the project (`could_add`).
    """

    noun = "scans"
    steps_after = True

    def __init__(
        self,
        context: files.SendContext,
        options: SendOptions | None = None,
        *,
        planned: Sequence[SessionPlan] = (),
        could_add: bool = False,
    ) -> None:
        super().__init__()
        self._context = context
        self._records = ProjectRecords(context)
        self._untold = held.UntoldScans(context.server)
        self._limits = ServerLimits(
            options or SendOptions(),
            ((session.session_label, scan.scan_id) for session in planned for scan in session.scans),
            server=context.server,
            stored=could_add and len(planned) == 1,
        )

    def work(self, planned: Sequence[SessionPlan]) -> Iterator[Work]:
        """As in `Route`."""
        for session in planned:
            for scan in session.scans:
                yield Work(session, (scan,), functools.partial(self.send_scan, session, scan))

    def session_id(self, session_label: str) -> str:
        """As in `Route`."""
        return self._records.session_id(session_label)

    def send_scan(self, session: SessionPlan, scan: ScanPlan) -> None:
        """Bring one scan to the server and record every one of its rows.

        Raises what ends the run (`XnatUploaderError`); rows that are open then are `interrupted`. Every later
        call raises the same at once.
        """
        sending = ScanUpload(self._context, self._limits, self._records, self._untold, session, scan)
        with self.ending(sending.rows.interrupt):
            sending.send()


@dataclass(slots=True)
class _Made:
    """A subject or session that is made once, by whoever comes first."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    made: bool = False
    identifier: str = ""
    tries: int = 0
    sent: bool = False
    """A request to make it has gone out, so that it may be there though no answer came."""
    failure: xnat.RequestFailed | None = None


class ProjectRecords:
    """The subjects and sessions of a run, each made once, for many threads.

    XNAT has no way to make a record only where there is none, so a session is looked up in the request before
    the one that makes it: what has come since the plan was made is left as it is.
    """

    def __init__(self, context: files.SendContext) -> None:
        self._server = context.server
        self._project = context.project
        self._guard = threading.Lock()
        self._subjects = {
            label: _Made(made=True, identifier=known) for label, known in context.subjects.items()
        }
        self._sessions: dict[str, _Made] = {}

    def session_id(self, session_label: str) -> str:
        """Return the server's ID of a session that this run made or found, '' if it has not come to it."""
        record = self._sessions.get(session_label)
        return record.identifier if record is not None else ""

    def make_session(self, session: SessionPlan) -> None:
        """Make the subject and the session unless this run has done so. Raises `RequestFailed`."""
        record = self._record(self._sessions, session.session_label)
        self._once(record, lambda: session.exists or self._make(session, record))

    def _make(self, session: SessionPlan, record: _Made) -> str:
        subject = self._record(self._subjects, session.subject)
        self._once(subject, lambda: self._server.create_subject(self._project, session.subject))
        fields = {
            "date": session.date,
            "UID": session.uid,
            "modality": session.modality,
            "scanner/manufacturer": session.manufacturer,
            "scanner/model": session.model,
        }
        there = self._server.session_id(self._project, session.session_label)
        if there and not record.sent:
            raise xnat.RequestFailed(409, SESSION_MEANWHILE, "conflict")
        if there:
            return there  # an attempt of this run had made it, and its answer was lost
        record.sent = True
        return self._server.create_session(
            self._project, session.subject, session.session_label, session.xsi_type, fields
        )

    def _once(self, record: _Made, make: Callable[[], str]) -> None:
        """Make a record once; a lasting failure is remembered, a passing one is tried again by the next scans."""
        with record.guard:
            if record.made:
                return
            if record.failure is not None and (record.failure.kind in LASTING or record.tries >= _TRIES):
                raise record.failure
            record.tries += 1
            try:
                record.identifier = make()
            except xnat.RequestFailed as failure:
                record.failure = failure
                if failure.kind == "missing":
                    raise errors.ProjectRefused(
                        f"Project {self._project} is gone, or this account may not see it. {failure.message}"
                    ) from failure
                raise
            record.made = True

    def _record(self, records: dict[str, _Made], label: str) -> _Made:
        with self._guard:
            return records.setdefault(label, _Made())


@dataclass(slots=True)
class ScanUpload:
    """The sending of one scan by one thread: look at the files, make what is missing, send, compare."""

    context: files.SendContext
    limits: ServerLimits
    records: ProjectRecords
    untold: held.UntoldScans
    session: SessionPlan
    scan: ScanPlan
    made: bool = False
    """The scan was made by this run."""
    rows: PendingRows = field(init=False)

    def __post_init__(self) -> None:
        self.rows = PendingRows(self.context, self.scan.rows, self.scan.scan_id)

    @property
    def address(self) -> ScanAddress:
        """What names the scan in every request."""
        return ScanAddress(
            self.context.project, self.session.subject, self.session.session_label, self.scan.scan_id
        )

    def send(self) -> None:
        """Record every row that can be recorded."""
        examined = [
            (resource.label, self.rows.examined(resource.rows, again=self.limits.options.overwrite))
            for resource in self.scan.resources
        ]
        if not any(items for _, items in examined):
            return
        sent: list[Resource] = []
        listed: Listing | None = None
        try:
            if self.scan.exists and not self.rows.stopped:
                listed = self.context.server.scan_files(self.address)
            images = held.HeldImages(
                self.context.server, self.untold, self.session.exists, self.scan, listed or {}
            )
            for label, items in examined:
                before = None if listed is None else listed.get(label, {})
                going = self.rows.keep(self._compared(items, before or {}, images))
                if going and not self.rows.stopped:
                    by_name = {item.row.filename: item for item in going}
                    resource = Resource(self.rows, self.limits, self.address, label, by_name, before)
                    resource.session_type = self.session.xsi_type
                    sent.append(resource)
        except xnat.RequestFailed as failure:
            self.rows.fail([item.row for _, items in examined for item in items], failure)
            self.limits.note_failure(self.address, failure)
            return
        for resource in sent:
            if not self.rows.stopped:
                self._make_and_send(resource, listed or {})
        self._verify([resource for resource in sent if resource.sent])

    def _compared(
        self, items: Sequence[files.Item], there: Mapping[str, xnat.RemoteFile], images: held.HeldImages
    ) -> Iterator[files.Item | Outcome]:
        """Compare files with what the server lists, until the run is to stop. Raises `RequestFailed`."""
        replaced = {item.row.filename for item in items} if self.limits.options.overwrite else set()
        sizes = {remote.size for remote in there.values() if remote.digest}
        for item in items:
            if self.rows.stopped:
                return
            if not there and not item.look_only and images.find(item.row) is None:
                yield item
                continue
            local = self._fingerprint(item, there, sizes, images)
            if isinstance(local, Outcome):
                yield local
            else:
                yield files.decide(
                    item,
                    local,
                    there,
                    overwrite=self.limits.options.overwrite,
                    replaced=replaced,
                    find=images.find,
                )

    def _fingerprint(
        self,
        item: files.Item,
        there: Mapping[str, xnat.RemoteFile],
        sizes: set[int],
        images: held.HeldImages,
    ) -> files.Fingerprint | Outcome:
        """Return what is compared of a file, which is read only where the server may hold the same bytes."""
        size = item.size if item.size >= 0 else files.sent_size(item.row)
        if item.look_only and item.row.md5:
            return files.Fingerprint(item.row.md5.lower(), size)
        if self.context.copy is None and not (size in sizes or -1 in sizes or item.row.filename in there):
            image = images.find(item.row)
            if image is None or image.size not in (-1, size):
                return files.Fingerprint("", size)
        return files.fingerprint(item, self.context)

    def _make_and_send(self, resource: Resource, listed: Listing) -> None:
        try:
            self._make(resource.label, resource.label in listed)
        except xnat.RequestFailed as failure:
            resource.fail(resource.pending(), failure)
        else:
            resource.send()

    # ---- making records

    def _make(self, label: str, exists: bool) -> None:
        """Make session, scan and resource as far as they are missing. Raises `RequestFailed`."""
        self.context.on_session(self.session.session_label)
        self.records.make_session(self.session)
        if not self.scan.exists and not self.made:
            self._make_scan()
        if not exists:
            content = xnattypes.resource_content(label)
            self.context.server.create_resource(self.address, label, "DICOM", content)

    def _make_scan(self) -> None:
        """Make the scan. Raises `RequestFailed`, also where one of this ID has come since the plan was made."""
        scan, label = self.scan, self.session.session_label
        session_id = self.records.session_id(label)
        if self.context.server.has_scan(session_id, scan.scan_id):
            raise xnat.RequestFailed(409, SCAN_MEANWHILE, "conflict")
        fields = {
            "type": scan.scan_type,
            "UID": scan.series_uid,
            "series_description": scan.series_description,
        }
        self.context.server.create_scan(self.address, scan.xsi_type, fields)
        self.context.on_scan(label, session_id, scan.scan_id)
        self.made = True

    # ---- comparing with the listing

    def _verify(self, sent: Sequence[Resource]) -> None:
        """Compare what was sent with the listing; what is not there is sent once more and compared again."""
        for last in (False, True):
            going = [resource for resource in sent if resource.pending()]
            if not going or (last and self.rows.stopped):
                return
            try:
                now = self._listing(going, last, any(resource.cut for resource in sent))
            except xnat.RequestFailed as failure:
                message = f"The file was sent, but could not be checked. {failure.message}"
                rows = [item.row for resource in going for item in resource.pending()]
                self.rows.fail(rows, failure, message)
                return
            for resource in going:
                held = now.get(resource.label, {})
                if last:
                    resource.give_up(held)
                else:
                    resource.confirm(held)

    def _listing(self, going: Sequence[Resource], last: bool, cut: bool) -> Listing:
        """List the scan's files, with those that are on XNAT's disk in no list. Raises `RequestFailed`.

        A file that lost the race for its catalog again and again is stored all the same.
        """
        now = listing(
            self.rows, self.address, lambda listed: any(resource.is_late(listed) for resource in going)
        )
        lost = any(resource.lost(now.get(resource.label, {}), last=last) for resource in going)
        if not lost or cut or self.rows.stopped:
            return now
        try:
            catalogs.repair_scan(self.context.server, self.address)
            return self.context.server.scan_files(self.address) or now
        except xnat.RequestFailed as failure:
            logger.debug("The catalog could not be refreshed: %s", failure.message)
            return now
