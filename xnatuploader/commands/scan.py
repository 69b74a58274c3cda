"""`scan`: files to rows to the workbook. It reads, lists and decides names; it sends nothing."""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xnatuploader import errors, paths
from xnatuploader.config import sheet
from xnatuploader.console import progress, report
from xnatuploader.records import FoundFile, Row, Status
from xnatuploader.scan import find, labels, merge, notices, placement, rows, sessions
from xnatuploader.upload import journal, state
from xnatuploader.workbook import book, lock

REMEMBERED = "configuration"
"""Under which name the workbook remembers the Configuration of the last scan."""

DEBUG_FILES = 10
"""Files that `--debug` scans."""


@dataclass(frozen=True, slots=True)
class ScanOptions:
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


def run(args: argparse.Namespace) -> report.Result:
    """Run `scan` as the command line asks for it."""
    spreadsheet = Path(args.spreadsheet)
    folder = paths.data_folder(args.dir or ".", spreadsheet)
    if not folder.is_dir():
        raise errors.UsageError(paths.why_no_folder(folder))
    logs = Path(args.logdir) if args.logdir else spreadsheet.absolute().parent / "logs"
    return scan(
        ScanOptions(
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


def scan(options: ScanOptions) -> report.Result:
    """List the files below a folder in the workbook, merged with the rows that it holds already."""
    opened = book.Book.open(options.spreadsheet)
    settings = sheet.parse(opened.configuration())
    book.probe(options.spreadsheet)
    with lock.hold(options.spreadsheet), _few_collections():
        left_by_upload = state.take_in(options.spreadsheet)
        if left_by_upload.waiting:
            raise errors.SpreadsheetLocked(left_by_upload.locked)
        if left_by_upload.outcomes:
            opened = book.Book.open(options.spreadsheet)
        previous = [] if options.restart else list(opened.rows())
        aliases = _files_of_old_rows(previous, options)
        with progress.shown() as shown:
            found = _find(options, shown)
            if not options.restart:
                _refuse_another_folder(opened.folder, previous, found, aliases, options)
            listing = rows.read(
                options.folder, found, settings, aliases, unmatched=options.unmatched, jobs=options.jobs, shown=shown
            )  # fmt: skip
        found.clear()
        final = _final_rows(previous, listing, opened.remembered.get(REMEMBERED, ""), settings, options)
        session_rows = sessions.session_rows(final, () if options.restart else opened.sessions())
        book.write_scan(
            options.spreadsheet,
            final,
            session_rows,
            value_headings=settings.value_headings,
            mapping_headings=settings.further_rows,
            remember={
                REMEMBERED: rows.configuration_text(opened.configuration()),
                book.FOLDER: str(options.folder.absolute()),
                **({book.PATHS_AS_TYPED: "yes"} if aliases else {}),
            },
            restart=options.restart,
        )
    return notices.summary(listing, final, session_rows, settings, options.spreadsheet)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Let the garbage collector run seldom: lists of 100,000 rows are no garbage, and cost a fifth more."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _find(options: ScanOptions, shown: progress.Progress) -> list[FoundFile]:
    workbook = options.spreadsheet.absolute()
    own = (
        workbook,
        journal.beside(workbook),
        workbook.with_name(f"{workbook.name}.lock"),
        *options.never_list,
    )
    bar = shown.bar("Finding files", " files", 0)
    found = list(find.list_files(options.folder, own, bar.advance))
    shown.end(bar)
    return found[:DEBUG_FILES] if options.debug else found


def _files_of_old_rows(previous: Sequence[Row], options: ScanOptions) -> dict[str, str]:
    """Map path below `--dir` -> text of the File column, for rows of 1.x, which wrote paths as they were typed."""
    folder = options.folder.absolute()
    bases = (Path.cwd(), options.spreadsheet.absolute().parent, folder)
    aliases: dict[str, str] = {}
    for row in previous:
        if Path(paths.joined(folder, row.file)).exists():
            continue
        for path in (base / name for base in bases for name in paths.spellings(row.file)):
            if path.is_relative_to(folder) and Path(paths.joined(folder, str(path))).exists():
                aliases[path.relative_to(folder).as_posix()] = row.file
                break
    return aliases


def _refuse_another_folder(
    remembered: str,
    previous: Sequence[Row],
    found: Sequence[FoundFile],
    aliases: Mapping[str, str],
    options: ScanOptions,
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


def _final_rows(
    previous: list[Row],
    listing: rows.Listing,
    remembered: str,
    settings: sheet.Config,
    options: ScanOptions,
) -> list[Row]:
    """Merge what was found with the sheet's rows, and give labels, scan IDs and names to those that lack them.

    Empties `previous` and `listing.rows`: three lists of 100,000 rows would need too much memory.
    """
    decided = merge.with_a_choice(previous)
    final = merge.merge(
        previous,
        listing.rows,
        unlisted=listing.unlisted,
        partial=options.debug,
        written_before=rows.written_before(remembered),
    )
    previous.clear()
    listing.rows.clear()
    listing.unlisted.difference_update(row.file for row in final)  # those of an earlier scan --unmatched
    final = [
        labels.in_conflict(row, row.doubt) if row.doubt and row.status is not Status.SUCCESS else row
        for row in final
    ]
    if settings.anonymize:
        from xnatuploader.deidentify.key import Key
        from xnatuploader.deidentify.rows import label_template, name_files  # slow to import

        final = labels.label_sessions(final, label_template(settings))
        final = name_files(final, Key.load())
    else:
        final = labels.label_sessions(final, settings.session_label)
    final = labels.mark_duplicates(final)
    if options.strict:
        final = placement.strict_conflicts(final)
    return merge.keep_choices(placement.place_scans(final), decided)
