"""The journal of an upload: outcomes appended and handed to the operating system as they happen.

It stands beside the workbook as `<workbook>.journal`: text, UTF-8, one JSON object per line. What has been
written survives the death of the process at once, and a power failure after a second at the latest. Reading
tolerates a torn line, unknown keys and unknown kinds, so that an older program can take in a newer journal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from xnatuploader import paths, records

logger = logging.getLogger(__name__)

VERSION = 1

_SYNC_SECONDS = 1.0
_O_BINARY = getattr(os, "O_BINARY", 0)  # Windows: without it every line end would grow
_FIELDS = tuple(name for name in records.OUTCOME_FIELDS if name != "status")


Made = tuple[str, str]
"""XNAT's ID of a session, and the ID of a scan that was made in it."""


@dataclass(frozen=True, slots=True)
class JournalContent:
    """What an earlier run left behind."""

    outcomes: Mapping[str, records.Outcome] = field(default_factory=dict)
    """By file; of several the last."""
    finished: frozenset[tuple[str, str]] = frozenset()
    """Sessions whose steps after the upload were sent, as (project, session label), and that no later note
    calls `touched` again."""
    notes: tuple[Mapping[str, object], ...] = ()
    """Every other fact, in order: `kind` and what `Journal.note` was given."""
    meta: Mapping[str, object] = field(default_factory=dict)
    """What the run that began the journal said of itself."""
    unreadable: int = 0
    """Lines that could not be read, as a torn last one."""


class Journal:
    """The open journal of `workbook`, begun or gone on with. Its methods may be called from many threads.

    `meta` are facts about the run (project, server), which must not be secret. None of the writing methods raises: a
    full disk must not end an upload. A journal that cannot be written beside the workbook moves to the user's state
    folder, with a warning; what cannot be written there either is kept in memory and tried again with the next line.
    """

    def __init__(self, workbook: Path, meta: Mapping[str, object] | None = None) -> None:
        self._workbook = workbook
        self._header = _line(
            {"kind": "journal", "version": VERSION, "workbook": workbook.name, **(meta or {})}
        )
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._torn = False
        self._said: set[Path] = set()
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._descriptor = -1
        self.path = beside(workbook)
        self._open_somewhere()
        if self._descriptor >= 0:
            self._append()
        self._syncer = threading.Thread(target=self._sync_regularly, name="journal-sync", daemon=True)
        self._syncer.start()

    def outcome(self, outcome: records.Outcome) -> None:
        """Record what became of one file."""
        facts = {"kind": "outcome", "file": outcome.file, "status": outcome.status.value}
        facts.update((name, value) for name in _FIELDS if (value := getattr(outcome, name)))
        self._write(_line(facts))

    def note(self, kind: str, **facts: object) -> None:
        """Record another fact, such as `note("finished", project="P", session="0001_CT1")`."""
        self._write(_line({"kind": kind, **facts}))

    def close(self) -> None:
        """Bring everything to the disk and close the file, which stays."""
        self._closed.set()
        self._dirty.set()
        self._syncer.join()
        with self._lock:
            if self._descriptor >= 0:
                _sync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        with self._lock:
            self._waiting.append(line)
            if self._descriptor < 0 and not self._closed.is_set():
                self._open_somewhere()
            if self._descriptor >= 0 and not self._append() and self.path != elsewhere(self._workbook):
                self._move_elsewhere()
        self._dirty.set()

    def _append(self) -> bool:
        """Write the lines that wait in one piece; on failure they go on waiting."""
        data = b"".join(self._waiting)
        if self._torn:
            data = b"\n" + data
        try:
            while data:
                written = os.write(self._descriptor, data)
                data = data[written:]
        except OSError as error:
            self._torn = True
            self._say_unwritable(self.path, error)
            return False
        self._torn = False
        self._waiting.clear()
        return True

    def _move_elsewhere(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        self.path = elsewhere(self._workbook)
        self._open_somewhere()
        if self._descriptor >= 0:
            self._append()

    def _open_somewhere(self) -> None:
        """Open `path`, or else the journal in the state folder; on failure stay closed, lines go on waiting."""
        for path in dict.fromkeys((self.path, elsewhere(self._workbook))):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _O_BINARY, 0o666)
            except OSError as error:
                self._say_unwritable(path, error)
                continue
            self._torn = _ends_torn(self._descriptor)
            self._waiting.insert(0, self._header)
            if path != self.path:
                logger.warning("The journal of this run is kept in %s.", path)
            self.path = path
            return

    def _say_unwritable(self, path: Path, error: OSError) -> None:
        if path in self._said:
            return
        self._said.add(path)
        logger.warning(
            "The journal %s cannot be written (%s). Free some disk space or allow writing there; the run goes on.",
            path,
            error.strerror or type(error).__name__,
        )

    def _sync_regularly(self) -> None:
        """Bring what was written to the disk within a second of it, and no oftener than once a second."""
        while not self._closed.is_set():
            self._dirty.wait()
            self._dirty.clear()
            self._closed.wait(_SYNC_SECONDS / 2)
            with self._lock:
                descriptor = os.dup(self._descriptor) if self._descriptor >= 0 else -1
            if descriptor >= 0:  # a copy, so that nobody has to wait for the disk
                _sync(descriptor)
                os.close(descriptor)
            self._closed.wait(_SYNC_SECONDS / 2)


def beside(workbook: Path) -> Path:
    """Return where the journal of `workbook` belongs."""
    return workbook.with_name(workbook.name + ".journal")


def elsewhere(workbook: Path) -> Path:
    """Return where the journal is kept when the folder of `workbook` cannot be written."""
    full = os.path.normcase(os.path.realpath(workbook))
    key = hashlib.sha256(full.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return paths.state_folder() / "journals" / f"{workbook.name}-{key}.journal"


def read(workbook: Path) -> JournalContent:
    """Return what earlier runs left in the journals of `workbook`; empty if there are none.

    Both are read, the older journal first. Raises OSError where a journal is there and cannot be read.
    """
    found: list[tuple[float, Path]] = []
    for path in (elsewhere(workbook), beside(workbook)):
        try:
            found.append((path.stat().st_mtime, path))
        except OSError:
            continue  # none there
    outcomes: dict[str, records.Outcome] = {}
    finished: set[tuple[str, str]] = set()
    notes: list[Mapping[str, object]] = []
    meta: dict[str, object] = {}
    unreadable = 0
    for _, path in sorted(found):
        with path.open("rb") as stream:
            for line in stream:
                unreadable += not _take_in(line, outcomes, finished, notes, meta)
    return JournalContent(outcomes, frozenset(finished), tuple(notes), meta, unreadable)


def remove(workbook: Path) -> None:
    """Delete the journals of `workbook`; a missing one is no error. Raises OSError."""
    for path in (beside(workbook), elsewhere(workbook)):
        path.unlink(missing_ok=True)


def _take_in(
    line: bytes,
    outcomes: dict[str, records.Outcome],
    finished: set[tuple[str, str]],
    notes: list[Mapping[str, object]],
    meta: dict[str, object],
) -> bool:
    """Add one line to what is known; False if it cannot be read."""
    if not line.strip():
        return True
    try:
        facts = json.loads(line)
        kind = facts.pop("kind")
        if kind == "outcome":
            given = {name: str(facts.get(name) or "") for name in _FIELDS}
            file, status = str(facts["file"]), records.Status(facts["status"])
            # Reinserted, so that the order is that of the last word on each file.
            outcomes.pop(file, None)
            outcomes[file] = records.Outcome(file, status, **given)
        elif kind == "finished":
            finished.add((str(facts["project"]), str(facts["session"])))
        elif kind == "journal":
            meta.update(facts)
        else:
            notes.append({"kind": kind, **facts})
            if kind == "touched":  # files went there again, so its steps are due again
                finished.discard((str(facts.get("project")), str(facts.get("session"))))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return True


def _line(facts: Mapping[str, object]) -> bytes:
    # ASCII only: a file name that is no valid text (lone surrogates) then survives as an escape.
    return json.dumps(facts, ensure_ascii=True, separators=(",", ":"), default=str).encode("ascii") + b"\n"


def _ends_torn(descriptor: int) -> bool:
    """Tell whether a file that is gone on with ends in the middle of a line."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0:
        return False
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) != b"\n"


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network drives cannot
        logger.debug("The journal could not be brought to the disk: %s", error)
