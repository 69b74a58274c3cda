"""The files of one resource on their way: parts, smaller pieces, the comparison with the listing, one repair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from xnatuploader import xnat
from xnatuploader.records import Status
from xnatuploader.upload import tar_body
from xnatuploader.upload.direct import words
from xnatuploader.upload.direct.items import Item, outgoing_of

if TYPE_CHECKING:
    from xnatuploader.upload.direct.scan import Scan

ARCHIVE_NAME = "xnatuploader-part.tar"
"""The ending makes XNAT unpack it; always one name, so that a server that does not keeps only one of them."""

COPIED_BYTES = 16 * 1024 * 1024
"""Where copies are sent, so many bytes of them are made at a time: they may stand in memory."""

EMPTY_MD5 = tar_body.digest_of(b"")
_FEW = 8
"""Up to so many files are repaired one by one, which also gets past an archive that is unpacked wrongly."""
LASTING = frozenset({"permission", "missing", "conflict", "duplicate-scan", "other"})
"""Kinds of failures that another attempt does not mend."""


class Resource:
    """The files of one resource on their way."""

    def __init__(
        self, scan: Scan, label: str, items: Sequence[Item], before: Mapping[str, xnat.RemoteFile]
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
        self.troubles: dict[str, xnat.RequestFailed] = {}
        """Why files did not get through; the server may hold them even so (a proxy that lost patience)."""
        self._blocked: xnat.RequestFailed | None = None

    def unsettled(self) -> list[Item]:
        """Return the files that went out, or should have, and whose row is not settled."""
        return [item for item in self.items.values() if item.row.file in self.scan.open]

    def send(self) -> None:
        """Send all files, one part after the other."""
        # The listing came just before: what it does not name is nobody's, or a leftover that only
        # overwriting cures; what it names is there to be replaced.
        self._send_items(list(self.items.values()), overwrite=self.scan.listed)

    def _send_items(self, items: Sequence[Item], *, overwrite: bool, singly: bool = False) -> None:
        for group in self._groups(items):
            with outgoing_of(self.scan, group) as files:
                for part in self.transfer.parts_of(files, singly=singly):
                    self._send_part(part, overwrite)

    def _groups(self, items: Sequence[Item]) -> Iterable[Sequence[Item]]:
        """Yield all files at once; where copies are made, no more than a part's, because they take room."""
        if self.transfer.copy is None:
            yield items
            return
        held: list[Item] = []
        size = 0
        for item in items:
            if held and size + item.size > min(self.scan.options.part_bytes, COPIED_BYTES):
                yield held
                held, size = [], 0
            held.append(item)
            size += item.size
        if held:
            yield held

    def _send_part(self, part: tar_body.Part, overwrite: bool) -> None:
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
                raise xnat.RequestFailed(0, "", "too-large")
            self._put(part, overwrite)
        except tar_body.FileChanged as changed:
            self.sent = True
            self.changed.add(changed.name)
            rest = [file for file in part.files if file.name != changed.name]
            if rest:  # what the broken attempt may have left is not listed, and has to be overwritten
                self._send_part(tar_body.Part(rest, framed=part.framed), True)
        except xnat.RequestFailed as failure:
            self._part_failed(part, overwrite, failure)

    def _put(self, part: tar_body.Part, overwrite: bool) -> None:
        part.watch = self._watch(part)
        address, label = self.scan.address, self.label
        try:
            if part.framed:
                left = self.scan.server.put_archive(address, label, lambda: part, ARCHIVE_NAME, overwrite)
                self.archived.update(file.name for file in part.files)
            else:
                left = self.scan.server.put_file(address, label, part.files[0].name, lambda: part, overwrite)
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
                self.digests[file.name] = (digest, file.size)

    def _watch(self, part: tar_body.Part) -> Callable[[int, int], None]:
        """Return what counts bytes and files of a part; a pass that begins anew counts its bytes again."""
        state = [0, 0]

        def watch(size: int, files: int) -> None:
            begun = state[0] if size >= state[0] else 0
            self.transfer.on_sent(size - begun)
            for file in part.files[state[1] : files]:
                self.scan.count(file.file)
            state[:] = [size, max(files, state[1])]

        return watch

    def _part_failed(self, part: tar_body.Part, overwrite: bool, failure: xnat.RequestFailed) -> None:
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
        elif failure.kind in LASTING:
            if failure.kind in ("permission", "missing", "duplicate-scan"):
                self._blocked = failure  # about the scan, not about these files
            self.scan.fail_all([self.items[file.name] for file in part.files], failure)
        else:
            self.sent = True
            self.troubles.update((file.name, failure) for file in part.files)

    def _send_singly(self, part: tar_body.Part, overwrite: bool) -> None:
        for file in part.files:
            self._send_part(tar_body.Part([file], framed=False), overwrite)

    # ---- comparing with the listing

    def confirm(self, now: Mapping[str, xnat.RemoteFile]) -> None:
        """Settle what the server holds as it was sent; send what it does not hold a second time."""
        right = self._settle_right(now)
        for item in self.unsettled():
            name = item.row.filename
            if name in self.troubles:
                self._fail_for_trouble(item)
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

    def _fail_for_trouble(self, item: Item) -> None:
        """Settle a file whose request failed; its MD5 is noted, so that the next run may replace what is there."""
        failure = self.troubles[item.row.filename]
        md5, _ = self.digests.get(item.row.filename, ("", -1))
        self.scan.fail(item, failure.message, failure, md5)

    def lost(self, now: Mapping[str, xnat.RemoteFile], *, last: bool) -> bool:
        """Tell whether a file that went out, and will not be sent once more, is not listed at all."""
        names = (item.row.filename for item in self.unsettled())
        went = self.digests.keys() - self.changed if last else self.troubles.keys() - self.changed
        return any(name in went and name not in now for name in names)

    @property
    def cut(self) -> bool:
        """Tell whether a body may have ended half-way: half a file then lies on the server's disk, unlisted."""
        return any(failure.status != 500 for failure in self.troubles.values())

    def give_up(self, now: Mapping[str, xnat.RemoteFile]) -> None:
        """Settle what is still open after the second time, by what the server holds now."""
        self._settle_right(now)
        if self.transfer.stop.is_set():
            return
        for item in self.unsettled():
            name = item.row.filename
            remote = now.get(name)
            digest, size = self.digests.get(name, ("", -1))
            if name in self.troubles:
                self._fail_for_trouble(item)
            elif not digest or name in self.changed:
                self.scan.settle(item.row, Status.FAILED, words.CHANGED)
            elif remote is None:
                self.scan.settle(item.row, Status.FAILED, words.NOT_LISTED)
            else:
                held = f"MD5 {remote.digest}" if remote.digest else f"{remote.size} bytes instead of {size}"
                message = (
                    f"XNAT stored other bytes than were sent ({held}), also the second time. Tell the "
                    "server's administrator, its disk may be failing; then run upload again."
                )
                self.scan.settle(item.row, Status.FAILED, message, digest)

    def _settle_right(self, now: Mapping[str, xnat.RemoteFile]) -> int:
        """Settle every file that the server lists as it was sent; return how many."""
        right = 0
        for item in self.unsettled():
            remote = now.get(item.row.filename)
            digest, size = self.digests.get(item.row.filename, ("", -1))
            if remote is None or not digest:
                continue
            if remote.digest == digest or (not remote.digest and remote.size == size):
                right += 1
                message = words.CHECKED if remote.digest else words.CHECKED_SIZE
                self.scan.settle(item.row, Status.SUCCESS, message, digest)
        if right:
            self.transfer.note_stored()
        return right

    def _is_new(self, item: Item, now: Mapping[str, xnat.RemoteFile]) -> bool:
        """Tell whether the server lists something else under a file's name than before."""
        return now.get(item.row.filename) != self.before.get(item.row.filename)

    def _fresh(self, item: Item) -> Item | None:
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

    def _probe(self, again: Sequence[Item], archive_is_listed: bool) -> list[Item]:
        """Find out by one single file why nothing was stored; return what is to be sent again.

        Either the server does not unpack archives, or it stores nothing at all: then this account has no
        right to edit (FileList.handlePost: 200 and nothing done), and the files fail.
        """
        one = min(again, key=lambda item: item.size)
        self._send_items([one], overwrite=True, singly=True)
        now = self.scan.server.scan_files(self.scan.address).get(self.label, {})
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
        self.scan.fail_all(again, xnat.RequestFailed(403, words.NOTHING_STORED, "permission"))
        return []
