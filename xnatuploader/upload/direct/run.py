"""What the scans of a run share: options, records made once, what the server was found to refuse."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xnatuploader import errors, xnat
from xnatuploader.records import Outcome, Row, ScanPlan, SessionPlan
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words
from xnatuploader.upload.direct.resource import LASTING
from xnatuploader.upload.direct.scan import Scan

logger = logging.getLogger(__name__)

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Options:
    """How a run sends."""

    overwrite: bool = False
    """Replace what differs on the server; else it is a conflict."""
    verify: bool = False
    """Rows that say success are only looked for on the server."""
    part_bytes: int = tar_body.PART_BYTES
    part_files: int = tar_body.PART_FILES


@dataclass(slots=True)
class _Place:
    """A subject or session that is made once, by whoever comes first."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    made: bool = False
    identifier: str = ""
    tries: int = 0
    sent: bool = False
    """A request to make it has gone out, so that it may be there though no answer came."""
    failure: xnat.RequestFailed | None = None


def _nothing(count: int) -> None:
    return None


def _nobody(*names: str) -> None:
    return None


NO_SUBJECTS: Mapping[str, str] = {}


class Transfer:
    """Sends scans to one project; `send_scan` may be called from many threads, for different scans.

    `resolve` gives the path of a row's file. `check`, when given, is asked about a file whose size or time
    differs from its row, and returns the outcome that keeps it back. `copy`, when given, makes what is sent
    in place of a file: bytes, a temporary file (deleted here after use), or the outcome that keeps it back.
    `on_outcome` hears of every row of a scan exactly once, when it is settled; `on_sent` of bytes as they go
    out, repeats included; `on_files` counts each file once, when it has gone out or is settled. `on_session`
    hears a session's label before anything of it is made or sent, for each of its scans to which something goes;
    `on_scan` the session's label and ID, and the ID of each scan that was made. `subjects` are those that
    the project has, label to ID: they are not made again, because XNAT refuses that for one that is shared into it.
    `planned` are all sessions of the run. A missing right concerns the record that met it; it ends the run
    (`ProjectRefused`) when every scan has met it and nothing was stored. A single session proves nothing where earlier
    runs could add to the project (`could_add`).

    XNAT has no way to make a record only where there is none, so a session or scan is looked up in the request
    before the one that makes it: what has come since the plan was made is left as it is.
    """

    def __init__(
        self,
        connection: xnat.Server,
        project: str,
        resolve: Callable[[Row], Path],
        options: Options | None = None,
        *,
        on_outcome: Callable[[Outcome], None],
        on_sent: Callable[[int], None] = _nothing,
        on_files: Callable[[int], None] = _nothing,
        on_session: Callable[[str], None] = _nobody,
        on_scan: Callable[[str, str, str], None] = _nobody,
        check: Callable[[Row, Path], Outcome | None] | None = None,
        copy: Callable[[Row, Path], bytes | Path | Outcome] | None = None,
        stop: threading.Event | None = None,
        subjects: Mapping[str, str] = NO_SUBJECTS,
        planned: Sequence[SessionPlan] = (),
        could_add: bool = False,
    ) -> None:
        self.server = connection
        self.project = project
        self.resolve = resolve
        self.options = options or Options()
        self.on_outcome = on_outcome
        self.on_sent = on_sent
        self.on_files = on_files
        self.on_session = on_session
        self.on_scan = on_scan
        self.check = check
        self.copy = copy
        self.stop = stop or threading.Event()
        self._guard = threading.Lock()
        self._subjects = {label: _Place(made=True, identifier=known) for label, known in subjects.items()}
        self._sessions: dict[str, _Place] = {}
        self._planned = {(one.session_label, scan.scan_id) for one in planned for scan in one.scans}
        self._refused: set[tuple[str, str]] = set()
        self._over: errors.XnatUploaderError | None = None
        self._stored = could_add and len(planned) == 1
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
        sending = Scan(self, session, scan)
        try:
            if self._over is not None:
                raise self._over
            sending.send()
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
            self._try_once(place, lambda: self._make(session, place))

    def _make(self, session: SessionPlan, place: _Place) -> str:
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
        there = self.server.session_id(self.project, session.session_label)
        if there and not place.sent:
            raise xnat.RequestFailed(409, words.SESSION_MEANWHILE, "conflict")
        if there:
            return there  # an attempt of this run had made it, and its answer was lost
        place.sent = True
        return self.server.create_session(
            self.project, session.subject, session.session_label, session.xsi_type, fields
        )

    def _try_once(self, place: _Place, make: Callable[[], str]) -> None:
        """Make a record; a lasting failure is remembered, a passing one is tried again by the next scans."""
        if place.failure is not None and (place.failure.kind in LASTING or place.tries >= _TRIES):
            raise place.failure
        place.tries += 1
        try:
            place.identifier = make()
        except xnat.RequestFailed as failure:
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

    def note_refused(self, session: SessionPlan, scan: ScanPlan, message: str) -> None:
        """Note a missing right. Raises `ProjectRefused` once every scan has met it."""
        with self._guard:
            self._refused.add((session.session_label, scan.scan_id))
            left = self._planned - self._refused
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

    def note_too_large(self, size: int, failure: xnat.RequestFailed) -> None:
        """Remember that a body of `size` bytes was refused, so that no part of that size is tried again."""
        with self._guard:
            self._too_large = min(self._too_large, size)
            self.limit = failure.message
            if failure.status == 413:
                self._surely_too_large = min(self._surely_too_large, size)

    def is_too_large(self, part: tar_body.Part) -> bool:
        """Tell whether a part need not be tried: for single files only where the server said so itself."""
        single = len(part.files) == 1 and not part.framed
        return len(part) >= (self._surely_too_large if single else self._too_large)

    def parts_of(self, files: Sequence[tar_body.Outgoing], *, singly: bool = False) -> list[tar_body.Part]:
        """Divide files into the bodies in which this run sends them now."""
        if singly or self._singles:
            return [tar_body.Part([file], framed=False) for file in files]
        return tar_body.plan_parts(files, self.options.part_bytes, self.options.part_files)
