"""The rows of one scan or session until their outcomes are recorded; outcomes are recorded only here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from xnatuploader import xnat
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload import files, tar_body

STOPPED = "The run was stopped before this file was sent and checked. Run upload again to go on."

_T = TypeVar("_T")


class PendingRows:
    """Rows whose outcome is not known yet; for one thread. Each outcome is recorded once, later ones are dropped."""

    def __init__(self, context: files.SendContext, rows: Iterable[Row], scan_id: str = "") -> None:
        self.context = context
        self.open = {row.file: row for row in rows}
        self._scan_id = scan_id
        """The scan to which all of them go, '' where XNAT chooses."""
        self._counted: set[str] = set()
        self._changed: dict[str, tuple[str, str]] = {}

    @property
    def stopped(self) -> bool:
        """Whether the run is to stop."""
        return self.context.stop.is_set()

    # ---- recording

    def record(self, outcome: Outcome) -> None:
        """Record what became of a row, with what the sheet does not say: another scan, another size or time."""
        row = self.open.pop(outcome.file, None)
        if row is None:
            return
        self.count(row.file)
        scan_id = outcome.scan_id or self._scan_id
        # A row of 1.x says neither size nor time, and needs no columns for them.
        known = outcome.status is Status.SUCCESS and bool(row.size or row.modified)
        size, modified = self._changed.get(row.file, ("", "")) if known else ("", "")
        scan_id = scan_id if scan_id != row.scan_id else ""
        self.context.on_outcome(replace(outcome, scan_id=scan_id, size=size, modified=modified))

    def record_all(self, rows: Iterable[Row], status: Status, message: str) -> None:
        """Record the same of several rows."""
        for row in list(rows):
            self.record(Outcome(row.file, status, message))

    def fail(
        self, rows: Iterable[Row], failure: xnat.RequestFailed, message: str = "", md5: str = ""
    ) -> None:
        """Record rows as failed, or as interrupted where a request was given up because the run stops."""
        if failure.kind in ("connection", "server", "busy") and self.stopped:
            self._interrupt([row for row in rows if row.file in self.open])
            return
        for row in list(rows):
            self.record(Outcome(row.file, Status.FAILED, message or failure.message, md5))

    def keep(self, found: Iterable[_T | Outcome]) -> list[_T]:
        """Record the outcomes among `found`; return the rest."""
        kept: list[_T] = []
        for one in found:
            if isinstance(one, Outcome):
                self.record(one)
            else:
                kept.append(one)
        return kept

    def interrupt(self) -> None:
        """Record what is still open as interrupted, unless it was only to be looked at again."""
        self._interrupt(list(self.open.values()))

    def _interrupt(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row.status is Status.SUCCESS:
                del self.open[row.file]
            else:
                self.record(Outcome(row.file, Status.INTERRUPTED, STOPPED))

    # ---- files

    def examined(self, rows: Sequence[Row], *, again: bool = False) -> list[files.Item]:
        """Return the files of one resource that are there and may be sent."""
        items = self.keep(files.examined(rows, self.context, again=again))
        self._changed.update((item.row.file, item.changed) for item in items)
        return items

    @contextlib.contextmanager
    def outgoing(
        self, items: Iterable[files.Item], name_of: Callable[[Row], str] = files.FILENAME
    ) -> Iterator[list[tar_body.Outgoing]]:
        """Yield what is sent for each file; a copy is gone after the block."""
        with files.outgoing(items, self.context, name_of) as made:
            yield self.keep(made)

    # ---- progress

    def count(self, file: str) -> None:
        """Count a file once, when it has gone out or its outcome is known."""
        if file not in self._counted:
            self._counted.add(file)
            self.context.on_files(1)

    def watch(self, sent: Sequence[tar_body.Outgoing]) -> Callable[[int, int], None]:
        """Return what counts bytes and files of a body; a pass that begins anew counts its bytes again."""
        bytes_before = files_before = 0

        def watch(size: int, complete: int) -> None:
            nonlocal bytes_before, files_before
            self.context.on_sent(size - bytes_before if size >= bytes_before else size)
            for file in sent[files_before:complete]:
                self.count(file.file)
            bytes_before, files_before = size, max(complete, files_before)

        return watch
