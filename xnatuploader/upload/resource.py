"""The files of one resource on their way: parts, smaller pieces, the comparison with the listing, one repair."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xnatuploader import errors, xnat
from xnatuploader.records import Outcome, ScanAddress, Status
from xnatuploader.upload import files, tar_body, zip_body
from xnatuploader.upload.held import Listing
from xnatuploader.upload.recording import PendingRows

logger = logging.getLogger(__name__)

_UNPACKS_TAR = (1, 8)
"""Since this version XNAT unpacks tar; older ones answer 200 and store nothing of it."""
EMPTY_MD5 = tar_body.digest_of(b"")
_FEW = 8
"""Up to this number of files are repaired one by one, which also gets past an archive that is unpacked wrongly."""
LASTING = frozenset({"permission", "missing", "conflict", "busy", "duplicate-scan", "other"})
"""Kinds of failures that another attempt does not mend."""
NOTHING_STORED = (
    "XNAT reported success and stored nothing: this account may not add files to such a session. "
    "Ask an owner of the project for the right to edit."
)

LIST_PAUSES = (0.5, 1.0, 2.0)
"""Seconds between two looks at a list that lacks what XNAT has just taken."""


@dataclass(frozen=True, slots=True)
class SendOptions:
    """How a run sends scan by scan."""

    overwrite: bool = False
    """Replace what differs on the server; else it is a conflict."""
    part_bytes: int = tar_body.PART_BYTES
    part_files: int = tar_body.PART_FILES


class ServerLimits:
    """What this run has found that the server does not take: archives, large bodies, or any file at all.

    A missing right concerns the scan that met it; it ends the run when all `planned` scans (session label, scan ID)
    have met it and nothing was stored.
    """

    def __init__(
        self,
        options: SendOptions,
        planned: Iterable[tuple[str, str]] = (),
        *,
        server: xnat.Server,
        stored: bool = False,
    ) -> None:
        self.options = options
        self._server = server
        self.zips = False
        """Archives are zips, because this server stores nothing of a tar."""
        self.singles = False
        """Files go one by one, because this server does not take archives."""
        self.limit = ""
        """What the server said when it refused a body as too large."""
        self._guard = threading.Lock()
        self._waiting = set(planned)
        """Scans that have met no missing right."""
        self.stored = stored
        """The server was seen to hold something that this run sent."""
        self._too_large = self._surely_too_large = float("inf")

    def note_failure(self, address: ScanAddress, failure: xnat.RequestFailed) -> None:
        """Note a missing right. Raises `ProjectRefused` once every scan has met it."""
        if failure.kind != "permission" or failure.status == 401:  # a login that fails is no missing right
            return
        with self._guard:
            self._waiting.discard((address.session, address.scan))
            over = not self._waiting and not self.stored
        if over:
            raise errors.ProjectRefused(
                f"Nothing can be added to project {address.project}. {failure.message}"
            )

    def no_archives(self, reason: str) -> None:
        """Send files one by one from now on."""
        with self._guard:
            first, self.singles = not self.singles, True
        if first:
            logger.warning("%s Files are now sent one by one, which is slower.", reason)

    def archive(self, sent: Sequence[tar_body.Outgoing]) -> tar_body.Part:
        """Return the archive of some files that this server unpacks, as far as that is known."""
        zipped = self.zips or self._server.is_older_than(*_UNPACKS_TAR)
        return zip_body.Zip(sent) if zipped else tar_body.Part(sent)

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

    def parts_of(self, sent: Sequence[tar_body.Outgoing], *, singly: bool = False) -> list[tar_body.Part]:
        """Divide files into the bodies in which this run sends them now."""
        if singly or self.singles:
            return [tar_body.Part([file], framed=False) for file in sent]
        return tar_body.plan_parts(sent, self.options.part_bytes, self.options.part_files, self.archive)


@dataclass(slots=True)
class Resource:
    """The files of one resource on their way."""

    rows: PendingRows
    limits: ServerLimits
    address: ScanAddress
    label: str
    items: dict[str, files.Item]
    """By their names on XNAT."""
    before: Mapping[str, xnat.RemoteFile] | None
    """What the server listed there, None for a new scan."""
    digests: dict[str, files.Fingerprint] = field(default_factory=dict)
    """Name -> MD5 and size of what was sent."""
    archived: dict[str, type[tar_body.Part]] = field(default_factory=dict)
    """Names that went in an archive, with the last one's kind."""
    left_alone: set[str] = field(default_factory=set)
    """Names that XNAT had and did not replace."""
    changed: set[str] = field(default_factory=set)
    """Names whose files changed while they were sent."""
    failures: dict[str, xnat.RequestFailed] = field(default_factory=dict)
    """Why files did not get through; the server may hold them even so (a proxy that lost patience)."""
    session_type: str = ""
    """Such as `xnat:ctSessionData`."""
    blocked: xnat.RequestFailed | None = None
    """Why nothing more goes to this scan."""
    sent: bool = False
    """XNAT may have got something of it; it may also have answered before it read anything."""

    def pending(self) -> list[files.Item]:
        """Return the files that went out, or should have, and whose outcome is not known."""
        return [item for item in self.items.values() if item.row.file in self.rows.open]

    def send(self) -> None:
        """Send all files, one part after the other."""
        # The listing came just before: what it does not name is nobody's, or a leftover that only
        # overwriting cures; what it names is there to be replaced.
        self._send_items(self.items.values(), overwrite=self.before is not None)

    def fail(self, items: Iterable[files.Item], failure: xnat.RequestFailed) -> None:
        """Record files as failed after one failure, and note a missing right."""
        self.rows.fail([item.row for item in items], failure)
        self.limits.note_failure(self.address, failure)

    def _send_items(self, items: Iterable[files.Item], *, overwrite: bool, singly: bool = False) -> None:
        for some in files.batches(items, self.rows.context, self.limits.options.part_bytes):
            with self.rows.outgoing(some) as sent:
                for part in self.limits.parts_of(sent, singly=singly):
                    self._send_part(part, overwrite)

    def _send_part(self, part: tar_body.Part, overwrite: bool) -> None:
        """Send one part, in smaller pieces where the server does not take it; failures are noted."""
        if self.rows.stopped:
            return
        if self.blocked is not None:
            self.fail(self._items_of(part), self.blocked)
            return
        if part.framed and self.limits.singles:
            self._send_singly(part, overwrite)
            return
        try:
            with part.ready():
                if self.limits.is_too_large(part):
                    raise xnat.RequestFailed(0, "", "too-large")
                self._put(part, overwrite)
        except tar_body.FileChanged as changed:
            self.sent = True
            self.changed.add(changed.name)
            rest = [file for file in part.files if file.name != changed.name]
            if rest:  # what the broken attempt may have left is not listed, and has to be overwritten
                self._send_part(self.limits.archive(rest), True)
        except xnat.RequestFailed as failure:
            self._part_failed(part, overwrite, failure)

    def _items_of(self, part: tar_body.Part) -> list[files.Item]:
        return [self.items[file.name] for file in part.files]

    def _put(self, part: tar_body.Part, overwrite: bool) -> None:
        part.watch = self.rows.watch(part.files)
        server, address, label = self.rows.context.server, self.address, self.label
        try:
            if part.framed:
                left = server.put_archive(address, label, lambda: part, part.name, overwrite)
                self.archived.update((file.name, type(part)) for file in part.files)
            else:
                left = server.put_file(address, label, part.files[0].name, lambda: part, overwrite)
        finally:
            self._take_digests(part)
        self.sent = True
        self.left_alone.update(left)
        self.changed.update(part.left_out)

    def _take_digests(self, part: tar_body.Part) -> None:
        """Keep the MD5s of what went out, also of an attempt that failed: the server may have stored it."""
        for file in part.files:
            digest = part.digests.get(file.name) or (EMPTY_MD5 if file.size == 0 else "")
            if digest and file.name not in part.left_out:  # an empty file may travel in a form, unread
                self.digests[file.name] = files.Fingerprint(digest, file.size)

    def _part_failed(self, part: tar_body.Part, overwrite: bool, failure: xnat.RequestFailed) -> None:
        if failure.kind == "too-large":
            if failure.message:
                self.limits.note_too_large(len(part), failure)
            if len(part.files) > 1:
                for half in tar_body.halves(part.files):
                    self._send_part(self.limits.archive(half), overwrite)
            elif part.framed:
                self._send_singly(part, overwrite)
            else:
                message = f"The file is too large to be sent. {failure.message or self.limits.limit}"
                self.rows.record_all([item.row for item in self._items_of(part)], Status.FAILED, message)
        elif failure.kind == "archive-refused" and part.framed:
            self.limits.no_archives(failure.message)
            self._send_singly(part, overwrite)
        elif failure.kind in LASTING:
            if failure.kind in ("permission", "missing", "duplicate-scan"):
                self.blocked = failure  # about the scan, not about these files
            self.fail(self._items_of(part), failure)
        else:
            self.sent = True
            self.failures.update((file.name, failure) for file in part.files)

    def _send_singly(self, part: tar_body.Part, overwrite: bool) -> None:
        for file in part.files:
            self._send_part(tar_body.Part([file], framed=False), overwrite)

    # ---- comparing with the listing

    def confirm(self, now: Mapping[str, xnat.RemoteFile]) -> None:
        """Mark files that the server lists with the right MD5 as success; send the others once more."""
        right = self._mark_right(now)
        for item in self.pending():
            name = item.row.filename
            if name in self.failures:
                self._fail_unanswered(item)
            elif name in self.left_alone and name in now:
                local = self.digests.get(name, files.Fingerprint("", item.size))
                overwrite = self.limits.options.overwrite
                self.rows.keep([files.decide_by_name(item, local, now[name], overwrite=overwrite)])
        changed = set(self.changed)
        again = [fresh for item in self.pending() for fresh in self._fresh(item)]
        if not again or self.rows.stopped:
            return
        unseen = not right and not any(self._is_new(item, now) for item in again)
        if unseen and not changed.issuperset(item.row.filename for item in again):
            again = self._probe(again, now)
        self._send_items(again, overwrite=True, singly=len(again) <= _FEW)

    def _fail_unanswered(self, item: files.Item) -> None:
        """Record a file whose request failed, with its MD5, so that the next run may replace what is there."""
        local = self.digests.get(item.row.filename, files.Fingerprint("", -1))
        self.rows.fail([item.row], self.failures[item.row.filename], md5=local.md5)

    def lost(self, now: Mapping[str, xnat.RemoteFile], *, last: bool) -> bool:
        """Tell whether a file that went out, and will not be sent once more, is not listed at all."""
        went = (self.digests if last else self.failures).keys() - self.changed
        unlisted = went - now.keys()
        return any(item.row.filename in unlisted for item in self.pending())

    @property
    def cut(self) -> bool:
        """Tell whether a body may have ended half-way: then half a file may be on the server's disk, in no list."""
        return any(failure.status != 500 for failure in self.failures.values())

    def give_up(self, now: Mapping[str, xnat.RemoteFile]) -> None:
        """Record what is still open after the second time, by what the server holds now."""
        self._mark_right(now)
        if self.rows.stopped:
            return
        for item in self.pending():
            name = item.row.filename
            remote = now.get(name)
            local = self.digests.get(name)
            if name in self.failures:
                self._fail_unanswered(item)
            elif local is None or name in self.changed:
                self.rows.record(Outcome(item.row.file, Status.FAILED, files.CHANGED))
            elif remote is None:
                self.rows.record(Outcome(item.row.file, Status.FAILED, files.NOT_LISTED))
            else:
                held = (
                    f"MD5 {remote.digest}"
                    if remote.digest
                    else f"{remote.size} bytes instead of {local.size}"
                )
                message = (
                    f"XNAT twice stored other bytes than were sent ({held}). Tell the server's administrator "
                    "that its disk may be failing; then run upload again."
                )
                self.rows.record(Outcome(item.row.file, Status.FAILED, message, local.md5))

    def _mark_right(self, now: Mapping[str, xnat.RemoteFile]) -> int:
        """Record every file that the server lists as it was sent; return how many."""
        right = 0
        for item in self.pending():
            remote = now.get(item.row.filename)
            local = self.digests.get(item.row.filename)
            if remote is None or local is None:
                continue
            if remote.digest == local.md5 or (not remote.digest and remote.size == local.size):
                right += 1
                message = files.CHECKED if remote.digest else files.CHECKED_SIZE
                self.rows.record(Outcome(item.row.file, Status.SUCCESS, message, local.md5))
        if right:
            self.limits.stored = True
        return right

    def _is_new(self, item: files.Item, now: Mapping[str, xnat.RemoteFile]) -> bool:
        """Tell whether the server lists something else under a file's name than before."""
        return now.get(item.row.filename) != (self.before or {}).get(item.row.filename)

    def _fresh(self, item: files.Item) -> list[files.Item]:
        """Return a file as it is now, where it had changed; nothing if it may not be sent any more."""
        name = item.row.filename
        if name not in self.changed:
            return [item]
        self.changed.discard(name)
        self.digests.pop(name, None)
        found = self.rows.examined([item.row], again=self.limits.options.overwrite)
        self.items.update((name, fresh) for fresh in found)
        return found

    def _probe(self, again: Sequence[files.Item], now: Mapping[str, xnat.RemoteFile]) -> list[files.Item]:
        """Find out by one single file why nothing was stored; return what is to be sent again.

        Either the server does not unpack such archives, or it stores nothing at all (FileList.handlePost: 200 and
        nothing done): then it is asked whether this account has no right to edit, and the files fail. Where it has one,
        XNAT's list does not tell, and the next look at it decides.
        """
        one = min(again, key=lambda item: item.size)
        held = self._tried(one, singly=True)
        if one.row.file in self.rows.open:
            if self._is_new(one, held) or one.row.filename in self.changed or self.rows.stopped:
                return list(again)
            if self.rows.context.server.may_not_add(self.address.project, [self.session_type]):
                self.fail(again, xnat.RequestFailed(403, NOTHING_STORED, "permission"))
            return []
        kept = next((kind.name for kind in (tar_body.Part, zip_body.Zip) if kind.name in now), "")
        if kept or len(self.archived) > 1:
            self._other_archives(again, kept)
        return [item for item in again if item.row.file in self.rows.open]

    def _other_archives(self, again: Sequence[files.Item], kept: str) -> None:
        """Settle how files go where archives are not unpacked: in zips if a zip of one file is, else singly.

        `kept` is the name of an archive that it stored as it is.
        """
        tars = [item for item in again if self.archived.get(item.row.filename) is tar_body.Part]
        rest = [item for item in tars if item.row.file in self.rows.open]
        if rest and not kept:
            self.limits.zips = True
            one = min(rest, key=lambda item: item.size)
            self._tried(one)
            if one.row.file not in self.rows.open:
                return
        left = f" A file {kept} was left in the scan; delete it in XNAT." if kept else ""
        self.limits.no_archives(f"The server does not unpack archives.{left}")

    def _tried(self, item: files.Item, *, singly: bool = False) -> Mapping[str, xnat.RemoteFile]:
        """Send one file, and record it if the server lists it then; return what it lists."""
        self._send_items([item], overwrite=True, singly=singly)
        name = item.row.filename
        now = listing(self.rows, self.address, lambda listed: self._is_late(listed, [name])).get(
            self.label, {}
        )
        self._mark_right(now)
        return now

    def is_late(self, listed: Listing) -> bool:
        """Tell whether a list lacks a file that XNAT has taken."""
        return self._is_late(listed, [item.row.filename for item in self.pending()])

    def _is_late(self, listed: Listing, names: Iterable[str]) -> bool:
        """Tell whether a list lacks one of these, though XNAT has taken it and left no archive packed."""
        now = listed.get(self.label, {})
        if any(kind.name in now for kind in (tar_body.Part, zip_body.Zip)):
            return False
        taken = self.digests.keys() - self.failures.keys() - self.changed - now.keys()
        return any(name in taken for name in names)


def listing(rows: PendingRows, address: ScanAddress, is_late: Callable[[Listing], bool]) -> Listing:
    """List a scan's files, again for some seconds where the list lags behind. Raises `RequestFailed`."""
    for pause in LIST_PAUSES:
        now = rows.context.server.scan_files(address)
        if not is_late(now) or rows.context.stop.wait(pause):
            return now
    return rows.context.server.scan_files(address)
