"""The workbook for the rest of the program: make one, read it, write a scan's list or an upload's outcomes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from xnatuploader import errors, records
from xnatuploader.workbook import (
    configuration_sheet,
    editor,
    files_sheet,
    fresh,
    listing_sheets,
    owners,
    package,
    rewrite,
    sessions_sheet,
    sheet,
    structure,
    table,
)

probe = owners.probe

FOLDER = "folder"
"""Fact that the workbook remembers: the folder that the list was made from."""
PATHS_AS_TYPED = "paths as typed"
"""Fact that it remembers where File may hold paths as 1.x wrote them: not below that folder, but as typed then."""
_TRIES = 3
_WIDTH = 16.0
"""Width of a report's columns in characters."""


def create(path: Path, layout: Sequence[Sequence[str]], force: bool = False) -> None:
    """Write a new workbook with one sheet, Configuration, filled from `layout` (rows of texts, A onward).

    Raises SpreadsheetError where the file exists, unless `force`; SpreadsheetLocked if it cannot be written.
    """
    if path.exists() and not force:
        raise errors.SpreadsheetError(
            f"{path} exists already. Give another name with --spreadsheet, or write over it, its settings and "
            "its lists with --force."
        )
    target = path.with_name(f"~${path.name}.{os.getpid()}.part")
    try:
        configuration_sheet.write_new(target, layout)
        package.move(target, path)
    except FileNotFoundError as error:
        raise errors.SpreadsheetError(
            f"The folder {path.parent} does not exist. Make it, or give another path with --spreadsheet."
        ) from error
    except OSError as error:
        raise package.not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            target.unlink()


class Book:
    """A workbook as it was when a method was called: the file is open only while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_skeleton()

    def _read_skeleton(self) -> None:
        signature = package.signature(self.path)
        with package.Package(self.path) as book:
            self._skeleton = structure.read(book)
            self._reader = sheet.CellReader(book, self._skeleton)
        self._signature = signature  # as it was before, in case that somebody saves in between

    @classmethod
    def open(cls, path: Path) -> Book:
        """Open a workbook. Raises SpreadsheetError: not there, not a workbook, protected, damaged."""
        return cls(path)

    def _opened(self) -> package.Package:
        """Open the file; one that another program saved meanwhile may keep its sheets and texts elsewhere."""
        if package.signature(self.path) != self._signature:
            self._read_skeleton()
        return package.Package(self.path)

    @property
    def folder(self) -> str:
        """The folder that the list was made from; '' before the first scan."""
        return self._skeleton.facts.get(FOLDER, "")

    @property
    def paths_as_typed(self) -> bool:
        """Tell whether File may hold paths as 1.x wrote them."""
        return not self.folder or PATHS_AS_TYPED in self._skeleton.facts

    @property
    def remembered(self) -> Mapping[str, str]:
        """All facts that the workbook remembers, `folder` among them."""
        return dict(self._skeleton.facts)

    @property
    def has_files(self) -> bool:
        """Tell whether there is a list of files."""
        return bool(self._skeleton.series(files_sheet.NAME))

    def configuration(self) -> tuple[records.ConfigurationLine, ...]:
        """Return the Configuration sheet's lines that hold anything. Raises SpreadsheetError without one."""
        with self._opened() as book:
            return configuration_sheet.read(book, self._skeleton, self._reader)

    def rows(self) -> Iterator[records.Row]:
        """Yield the rows of Files, Files 2, ... that name a file; none where there is no such sheet yet."""
        with self._opened() as book:
            for worksheet in self._skeleton.series(files_sheet.NAME):
                yield from files_sheet.read_rows(book, worksheet, self._reader)

    def sessions(self) -> tuple[records.SessionRow, ...]:
        """Return the rows of the Sessions sheet; none where there is no such sheet yet."""
        with self._opened() as book:
            worksheet = self._skeleton.sheet(sessions_sheet.NAME)
            return () if worksheet is None else sessions_sheet.read(book, worksheet, self._reader)

    def columns(self, *headings: str) -> Iterator[tuple[str, ...]]:
        """Yield the texts under these headings for each row that names a file: much faster than `rows`.

        The texts are as the cells have them (`yes`, `Y`); a heading that a sheet lacks gives '', but Upload,
        without which nobody knows what is to be sent, raises SpreadsheetError.
        """
        with self._opened() as book:
            for worksheet in self._skeleton.series(files_sheet.NAME):
                listed = table.ListSheet(book, worksheet, self._reader, files_sheet.KEY)
                if "Upload" in headings:
                    listed.require("Upload")
                for _, (file, *texts) in listed.texts((files_sheet.KEY, *headings)):
                    if file:
                        yield tuple(texts)


def write_scan(
    path: Path,
    rows: Sequence[records.Row],
    sessions: Sequence[records.SessionRow],
    value_headings: Sequence[str],
    remember: Mapping[str, str],
    restart: bool = False,
    mapping_headings: Sequence[str] = (),
) -> None:
    """Write a scan's list into the Files sheets and `sessions` into the Sessions sheet.

    Rows stay where they are with all that people put there; only cells of the tool's columns that differ change.
    Files and sessions that are not listed yet are added at the end, in the order given. `value_headings` are the
    columns for `Row.values`; those of them in `mapping_headings` follow Dataset in a new sheet. `remember`: facts,
    `FOLDER` and `PATHS_AS_TYPED` among them. `restart` keeps the old lists as `Files old` and `Sessions old`, and
    begins new ones.

    Raises SpreadsheetLocked where the workbook cannot be replaced; the finished one then lies beside it as
    `<name> (scan result).xlsx`, which the message names.
    """
    headings = files_sheet.headings(value_headings, mapping_headings)

    def change(work: editor.Editor) -> None:
        changes = listing_sheets.write(work, rows, headings, restart)
        changes += sessions_sheet.write(work, sessions, restart)
        rewrite.apply(work, changes)
        work.remember(remember)

    target = _changed_copy(path, change)
    try:
        package.move(target, path)
    except OSError as error:
        kept = _keep_beside(target, path)
        raise errors.SpreadsheetLocked(
            f"{path} could not be written, probably because it is open in Excel. The result of the scan "
            f"is in {kept}: close Excel, and rename that file to {path.name}."
        ) from error


def _changed_copy(path: Path, change: Callable[[editor.Editor], None]) -> Path:
    """Write a changed copy beside the workbook; begin again where it was saved by someone else meanwhile."""
    for _ in range(_TRIES):
        before = package.signature(path)
        with package.Package(path) as book:
            work = editor.Editor(book)
            change(work)
            target = work.save()
        if package.signature(path) == before:
            return target
        target.unlink(missing_ok=True)
    raise errors.SpreadsheetLocked(
        f"{path} is being changed by another program again and again. Close it there, "
        "and run the same command again."
    )


def _keep_beside(target: Path, path: Path) -> Path:
    for number in range(1, 100):
        kept = path.with_name(f"{path.stem} (scan result{'' if number == 1 else f' {number}'}){path.suffix}")
        with contextlib.suppress(OSError):
            package.move(target, kept)
            return kept
    return target


def write_outcomes(
    path: Path, outcomes: Mapping[str, records.Outcome], sessions: Sequence[records.SessionRow]
) -> frozenset[str]:
    """Write what became of files into the workbook as it is now, and the Sessions sheet's counts.

    Rows are found by File. Status, Message and MD5 change, and Filename, SessionLabel, ScanID and Resource
    (and Size and Modified) where an outcome names them; all else stays. Returns the files whose outcome
    was seen in the saved workbook, which is read again for it. Raises SpreadsheetLocked, with the workbook as it was.
    """

    def change(work: editor.Editor) -> None:
        changes = listing_sheets.write_outcomes(work, outcomes)
        if sessions:
            changes += sessions_sheet.write(work, sessions)
        rewrite.apply(work, changes)

    _put(_changed_copy(path, change), path)
    return _written(path, outcomes)


def _put(target: Path, path: Path) -> None:
    try:
        package.move(target, path)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise package.not_written(path, error) from error


def write_report(
    path: Path,
    name: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Mapping[str, float] | None = None,
) -> None:
    """Write a sheet of texts for people to look at; what one of that name held is gone. Raises SpreadsheetLocked."""

    def change(work: editor.Editor) -> None:
        text, width = work.styles.text(), widths or {}
        columns = [fresh.Column(heading, width.get(heading, _WIDTH), text) for heading in headings]
        fresh.add(work, name, columns, rows, len(rows), replaced=work.skeleton.sheet(name))

    _put(_changed_copy(path, change), path)


def _written(path: Path, outcomes: Mapping[str, records.Outcome]) -> frozenset[str]:
    headings = listing_sheets.named_by(outcomes)
    texts_of = files_sheet.texts_of(headings)
    listed: set[str] = set()
    unwritten: set[str] = set()
    for file, *texts in Book.open(path).columns("File", *headings):
        if file in outcomes:
            written = listing_sheets.is_written(headings, texts_of(outcomes[file]), texts)
            (listed if written else unwritten).add(file)
    return frozenset(listed - unwritten)
