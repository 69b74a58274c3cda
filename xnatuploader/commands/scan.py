"""`scan`: files to rows to the workbook. It reads, lists and decides names; it sends nothing."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xnatuploader import errors
from xnatuploader.console import report
from xnatuploader.records import Found, Row, SessionRow, Status

if TYPE_CHECKING:
    from xnatuploader.config import mappings
    from xnatuploader.config import sheet as configuration
    from xnatuploader.console.progress import Progress
    from xnatuploader.scan.rows import Looked
    from xnatuploader.workbook.book import Book

SUMMARY = "list the DICOM files of a folder in the workbook"
DESCRIPTION = (
    "Search a folder for DICOM files, work out from their paths and headers where each belongs, and list them in "
    "the workbook: one row per file in Files, one per visit in Sessions. Nothing is sent. A second scan keeps what "
    "you edited and what was uploaded."
)
EXAMPLE = """example:
  xnatuploader scan --spreadsheet study.xlsx --dir data_files
then open study.xlsx, look through the sheets Sessions and Files, and set Upload to N where nothing should be sent."""

REMEMBERED = "configuration"
"""Under which name the workbook remembers the Configuration of the last scan."""

DUPLICATES = "The same image stands in the list already."
"""Said in place of the messages in the sheet, which name files."""

CONFLICTS = "A decision is needed before it can be sent: its Message in the sheet Files says which."
"""Said in place of the messages in the sheet, which quote the values of Subject and Session."""

DEBUG_FILES = 10
"""Files that `--debug` looks at."""

LOOKED_INTO = 2_000
"""Files that are opened, where no path fits, to see which of them hold DICOM."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What a scan is asked to do."""

    spreadsheet: Path
    folder: Path
    unmatched: bool = False
    strict: bool = False
    restart: bool = False
    debug: bool = False
    jobs: int = 4
    never_list: tuple[Path, ...] = ()
    """Further files and folders that are not data (the log folder)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this operation has: none."""


def run(args: argparse.Namespace) -> report.Result:
    """Run `scan` as the command line asks for it."""
    from xnatuploader import paths

    spreadsheet = Path(args.spreadsheet)
    folder = paths.data_folder(args.dir or ".", spreadsheet)
    if not folder.is_dir():
        raise errors.UsageError(paths.why_no_folder(folder))
    logs = Path(args.logdir) if args.logdir else spreadsheet.absolute().parent / "logs"
    return scan(
        Options(
            spreadsheet=spreadsheet,
            folder=folder,
            unmatched=args.unmatched,
            strict=args.strict,
            restart=args.restart,
            debug=args.debug,
            jobs=args.jobs,
            never_list=(logs,),
        )
    )


def scan(options: Options) -> report.Result:
    """List the files below a folder in the workbook, laid onto what it holds already."""
    from xnatuploader.config import sheet
    from xnatuploader.console import progress
    from xnatuploader.dicom import reader
    from xnatuploader.scan import rows as rows_of_files
    from xnatuploader.upload import state
    from xnatuploader.workbook import book, lock

    opened = book.Book.open(options.spreadsheet)
    settings = sheet.parse(opened.configuration(), reader.keyword_known)
    book.probe(options.spreadsheet)
    with lock.hold(options.spreadsheet), _few_collections():
        taken = state.take_in(options.spreadsheet)
        if taken.waiting:
            raise errors.SpreadsheetLocked(taken.locked)
        if taken.outcomes:
            opened = book.Book.open(options.spreadsheet)
        previous = [] if options.restart else list(opened.rows())
        aliases = _files_of_old_rows(previous, options)
        with progress.shown() as shown:
            found = _list(options, shown)
            if not options.restart:
                _refuse_another_folder(opened.folder, previous, found, aliases, options)
            looked = rows_of_files.look(
                options.folder,
                found,
                settings,
                aliases,
                unmatched=options.unmatched,
                jobs=options.jobs,
                shown=shown,
            )
        found.clear()
        rows, session_rows = _settle(previous, opened, looked, settings, options)
        book.write_scan(
            options.spreadsheet,
            rows,
            session_rows,
            value_headings=settings.value_headings,
            mapping_headings=settings.further_rows,
            remember={
                REMEMBERED: rows_of_files.configuration_text(opened.configuration()),
                book.FOLDER: str(options.folder.absolute()),
                **({book.PATHS_AS_TYPED: "yes"} if aliases else {}),
            },
            restart=options.restart,
        )
    return _summary(rows, session_rows, looked, settings, options)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Let the garbage collector look seldom: lists of 100,000 rows are no garbage, and cost a fifth more."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _list(options: Options, shown: Progress) -> list[Found]:
    from xnatuploader.scan import find
    from xnatuploader.upload import journal

    book = options.spreadsheet.absolute()
    own = (book, journal.beside(book), book.with_name(f"{book.name}.lock"), *options.never_list)
    bar = shown.bar("Finding files", " files", 0)
    found = list(find.list_files(options.folder, own, bar.advance))
    shown.end(bar)
    return found[:DEBUG_FILES] if options.debug else found


# ---- the sheet's own rows -----------------------------------------------------------------------------------


def _files_of_old_rows(previous: Sequence[Row], options: Options) -> dict[str, str]:
    """Map path below `--dir` -> text of the File column, for rows of 1.x, which wrote paths as typed then."""
    from xnatuploader import paths

    folder = options.folder.absolute()
    aliases: dict[str, str] = {}
    for row in previous:
        if Path(paths.joined(folder, row.file)).exists():
            continue
        bases = (Path.cwd(), options.spreadsheet.absolute().parent, folder)
        for path in (base / name for base in bases for name in paths.spellings(row.file)):
            if path.is_relative_to(folder) and Path(paths.joined(folder, str(path))).exists():
                aliases[path.relative_to(folder).as_posix()] = row.file
                break
    return aliases


def _refuse_another_folder(
    remembered: str,
    previous: Sequence[Row],
    found: Sequence[Found],
    aliases: Mapping[str, str],
    options: Options,
) -> None:
    """Refuse a folder whose files are not those of the list; a folder that only moved is welcome."""
    now = str(options.folder.absolute())
    if not previous or not remembered or remembered == now or options.debug:
        return
    here = {aliases.get(item.file, item.file) for item in found}
    listed = [row.file for row in previous if row.status is not Status.MISSING]
    if sum(file in here for file in listed) * 2 < len(listed):
        raise errors.UsageError(
            f"{options.spreadsheet} lists the files of {remembered}, and most of them are not in {now}. "
            "For another folder make a new workbook with init, or begin a new list in this one with --restart."
        )


def _settle(
    previous: list[Row],
    opened: Book,
    looked: Looked,
    settings: configuration.Config,
    options: Options,
) -> tuple[list[Row], Sequence[SessionRow]]:
    """Lay what was found onto the sheet's rows, and give labels, scan IDs and names to those that lack them.

    Empties `previous` and `looked.rows`: three lists of 100,000 rows would need too much memory.
    """
    from xnatuploader.scan import labels, merge, placement, sessions
    from xnatuploader.scan import rows as rows_of_files

    decided = merge.with_a_choice(previous)
    rows = merge.merge(
        previous,
        merge.Scan(looked.rows, looked.unlisted, partial=options.debug),
        written_before=rows_of_files.written_before(opened.remembered.get(REMEMBERED, "")),
    )
    previous.clear()
    looked.rows.clear()
    looked.unlisted.difference_update(row.file for row in rows)  # those of an earlier scan --unmatched
    rows = [_doubted(row) for row in rows]
    rows = labels.label_sessions(rows, _label_template(settings))
    rows = labels.mark_duplicates(rows)
    if options.strict:
        rows = placement.strict_conflicts(rows)
    rows = placement.place_scans(_named(rows, settings))
    rows = merge.keep_choices(rows, decided)
    held = () if options.restart else opened.sessions()
    return rows, sessions.session_rows(rows, held)


def _label_template(settings: configuration.Config) -> mappings.Template:
    """Return the template of labels; with Anonymize it takes what de-identification keeps."""
    if not settings.anonymize:
        return settings.session_label
    from xnatuploader.deidentify import rows as anonymizing

    return anonymizing.label_template(settings)


def _named(rows: list[Row], settings: configuration.Config) -> list[Row]:
    """Name the files of new rows so that the names hold nothing of the patient, where Anonymize says so."""
    if not settings.anonymize:
        return rows
    from xnatuploader import deidentify
    from xnatuploader.deidentify import rows as anonymizing

    return anonymizing.name_files(rows, deidentify.Key.load())


def _doubted(row: Row) -> Row:
    if not row.doubt or row.status is Status.SUCCESS:
        return row
    return replace(row, status=Status.CONFLICT, upload=False, message=row.doubt)


# ---- what is said at the end --------------------------------------------------------------------------------

WIDTH = 100
"""Columns of the summary; a Windows prompt has 120."""

MEANINGS: Mapping[str, str] = {
    "not tried": "wait for an upload, or have Upload N",
    "success": "are on XNAT",
    "failed": "were tried, and are not on XNAT",
    "interrupted": "were not tried, as the upload was stopped",
    "conflict": "need a decision of yours: see Message",
    "missing": "are listed, and not in the folder any more",
    "unmatched": "have no place on XNAT yet: see Message",
    "skipped": "are no images, or damaged",
    "review": "may show in their pixels who the patient is",
    "duplicate": "are the same image as another file of the list",
    "not listed": "fit no pattern, or are not DICOM; scan --unmatched lists them",
}
"""Status word -> what it says of these files."""


def _summary(
    rows: Sequence[Row],
    session_rows: Sequence[SessionRow],
    looked: Looked,
    settings: configuration.Config,
    options: Options,
) -> report.Result:
    from xnatuploader.scan import sessions

    counts = report.count_statuses(rows)
    travels = sessions.Gate(session_rows)
    going = [row for row in rows if row.status is not Status.MISSING and travels(row)]
    scans = {(row.session_label, row.scan_id) for row in rows if row.session_label and row.scan_id}
    named = {label for label, _ in scans}
    size = sum(int(row.size) for row in going if row.size.isdigit())
    common = _common(rows, looked)
    lines = [
        f"{report.plural(looked.found, 'file')} in {options.folder}: {report.plural(len(going), 'file')} to upload "
        f"({report.human_bytes(size)}) in {report.plural(len(named), 'session')}, "
        f"{report.plural(len(scans), 'scan')}.",
        *_by_status(counts, looked),
        *_reasons(common),
        *_advice(looked, settings, options, counts, len(going)),
    ]
    return report.Result(
        exit_code=1 if counts.get("conflict") else 0,
        text="\n".join(lines),
        files=counts,
        sessions=len(named),
        scans=len(scans),
        bytes=size,
        problems=tuple(f"{count} x {reason}" for reason, count in common),
    )


def _by_status(counts: Mapping[str, int], looked: Looked) -> Iterator[str]:
    for word, count in {**counts, "not listed": len(looked.unlisted)}.items():
        if count:
            yield f"{count:>11,}  {word:<11}  {MEANINGS[word]}"


def _common(rows: Sequence[Row], looked: Looked) -> list[tuple[str, int]]:
    """Return the three commonest reasons why files are not going to be sent."""
    told = (Status.SKIPPED, Status.REVIEW, Status.MISSING)
    reasons = Counter(row.message for row in rows if row.status in told)
    reasons[DUPLICATES] = sum(row.status is Status.DUPLICATE for row in rows)
    reasons[CONFLICTS] = sum(row.status is Status.CONFLICT for row in rows)
    # A path that fits no set is told by its cause: the message in the sheet quotes the path.
    reasons.update(
        row.message
        for row in rows
        if row.status is Status.UNMATCHED and row.pattern and row.message not in looked.causes
    )
    return [(reason, count) for reason, count in (reasons + looked.causes).most_common(3) if count]


def _reasons(common: Sequence[tuple[str, int]]) -> Iterator[str]:
    if common:
        yield "The commonest reasons why files stay behind:"
    for reason, count in common:
        yield _wrapped(reason, f"{count:>11,}  ")


def _wrapped(text: str, first: str = "") -> str:
    """Break `text` into lines that hang below the end of `first`."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _advice(
    looked: Looked, settings: configuration.Config, options: Options, counts: Mapping[str, int], going: int
) -> Iterator[str]:
    book = options.spreadsheet
    if counts.get("review"):
        yield _wrapped(
            f"To release {report.plural(counts['review'], 'review file')}: look at them, then put Y in Release "
            "review of their session (sheet Sessions), or in Upload of single rows (sheet Files)."
        )
    if counts.get("conflict"):
        yield _wrapped(
            f"{report.plural(counts['conflict'], 'row')} in conflict: filter the sheet Files by Status, do what "
            "Message says, and scan again."
        )
    if looked.found and len(looked.misfits) == looked.found:
        yield from _nothing_matched(looked, settings, options)
    elif looked.found and not going:
        yield f"There is nothing to upload now; the sheets Sessions and Files of {book} say why."
    elif looked.found:
        yield f"Next: look through the sheets Sessions and Files of {book}, close it, then run:"
        yield f"  xnatuploader upload --spreadsheet {_typed(book)} --dir {_typed(options.folder)}"
    else:
        yield f"There are no files in {options.folder}: give the folder that holds the data with --dir."


def _typed(path: Path) -> str:
    """Return a path as it has to be typed at a prompt."""
    return f'"{path}"' if re.search(r"[\s&^()']", str(path)) else str(path)


def _nothing_matched(looked: Looked, settings: configuration.Config, options: Options) -> Iterator[str]:
    """Say what the folder looks like, and which rows of the Paths section would fit it."""
    from xnatuploader.config import patterns
    from xnatuploader.dicom import pool, reader

    rules = reader.Rules(frozenset(), frozenset())
    some = [Found(file, 0, "") for file in looked.misfits[:LOOKED_INTO]]
    headers = (header for _, header in pool.read_all(options.folder, some, (), rules, jobs=options.jobs))
    flags = [header.status is not Status.UNMATCHED for header in headers]
    yield "No file fits a pattern set of the Configuration sheet, so nothing can be uploaded yet."
    yield f"{sum(flags):,} of {report.plural(len(some), 'file')} looked at hold DICOM."
    needed = settings.mapped_captures
    shapes = patterns.suggest(
        [found.file for found in some],
        flags,
        needed=needed,
        taken=[one.label for one in settings.pattern_sets],
    )
    for shape in shapes:
        held = f"{shape.dicom:,} with DICOM" if shape.dicom else "none with DICOM"
        yield f"  {shape.form}: {report.plural(shape.files, 'file')}, {held}"
        if shape.dicom:
            yield f"      {' | '.join((shape.label, *shape.row))}"
            lacking = [name for name in needed if name not in shape.captured]
            if lacking:
                yield f"      (too few folders for {', '.join(lacking)}: change the Mappings that name it)"
    if any(flags):
        yield _wrapped(
            f"Next: open {options.spreadsheet}, add the row that suits to the section Paths, its label in column "
            "B and each further piece in a cell of its own, save, close it, and scan again."
        )
    else:
        yield "Next: check that --dir is the folder that holds the DICOM files."
