"""`upload`: rows to plan to server to outcomes to workbook."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnatuploader import errors
from xnatuploader.console import report
from xnatuploader.records import Row, Status

if TYPE_CHECKING:
    from xnatuploader.config import sheet as configuration
    from xnatuploader.upload import imports, prepare
    from xnatuploader.upload.results import TakenIn
    from xnatuploader.workbook.book import Book

SUMMARY = "send what the workbook lists to XNAT"
DESCRIPTION = (
    "Send the files that the workbook lists to an XNAT project, check that they arrived, and write each file's "
    "status back. Run it again to go on after an interruption: what is on the server is not sent again."
)
EXAMPLE = """example:
  xnatuploader upload --spreadsheet study.xlsx --dir data_files --test
shows what would be sent where. Without --test it is sent. Server and project are taken from the Configuration
sheet, or from --server https://xnat.example.org --project Test001."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What an upload is asked to do."""

    spreadsheet: Path
    folder: Path | None = None
    """None: where the workbook was scanned."""
    server: str | None = None
    project: str | None = None
    test: bool = False
    overwrite: bool = False
    verify: bool = False
    pipeline: bool = True
    anonymize: bool = False
    jobs: int = 4
    until: datetime.time | None = None
    max_seconds: float | None = None
    wait_seconds: float = 0.0
    importing: imports.Options | None = None
    """How sessions travel through XNAT's import service; None: scan by scan into the archive."""
    commit: imports.Options | None = None
    """How sessions that wait in the prearchive are archived; None: they are not."""
    refresh: tuple[str, ...] = ()
    """Options of a refresh of the sessions' catalogs; empty: none is wanted."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Where login and server may stand (`XNAT_USER`, `XNAT_PASS`, `NETRC`, `XNAT_HOST`)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this operation has: none."""


def run(args: argparse.Namespace) -> report.Result:
    """Run `upload` as the command line asks for it."""
    from xnatuploader import paths

    spreadsheet = Path(args.spreadsheet)
    folder = paths.data_folder(args.dir, spreadsheet) if args.dir else None
    if folder is not None and not folder.is_dir():
        raise errors.UsageError(paths.why_no_folder(folder))
    return upload(
        Options(
            spreadsheet=spreadsheet,
            folder=folder,
            server=args.server,
            project=args.project,
            test=args.test,
            overwrite=args.overwrite,
            verify=args.verify,
            pipeline=not args.nopipeline,
            anonymize=args.anonymize,
            jobs=args.jobs,
            until=args.until,
            max_seconds=args.max_duration,
            wait_seconds=args.wait,
            **_import_options(args),
        )
    )


def _import_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is asked of XNAT's import service. Raises `UsageError` for what XNAT would not carry."""
    from xnatuploader.upload import imports

    chosen = imports.chosen(
        args.import_handler,
        dest=args.dest,
        by_headers=args.dest_by_headers,
        overwrite=args.import_overwrite,
        quarantine=args.quarantine,
        rename=args.rename,
        pipelines=not args.nopipeline,
        via_cache=args.via_cache,
        commit=args.commit,
    )
    if chosen is not None and args.overwrite:
        raise errors.UsageError(
            "--overwrite is for uploads scan by scan. With --import-handler say --import-overwrite delete."
        )
    commit = imports.Options(overwrite=args.import_overwrite, pipelines=not args.nopipeline)
    return {
        "importing": chosen,
        "commit": commit if args.commit else None,
        "refresh": imports.refresh_words(args.refresh_catalog),
    }


def upload(options: Options) -> report.Result:
    """Send what the workbook lists; see the contract's section on the upload for the steps."""
    from xnatuploader.config import sheet
    from xnatuploader.dicom import reader
    from xnatuploader.upload import results
    from xnatuploader.workbook import book, lock

    opened = book.Book.open(options.spreadsheet)
    settings = sheet.parse(opened.configuration(), reader.keyword_known)
    settings = settings.with_options(options.server, options.project).with_fallback_server(
        options.environ.get("XNAT_HOST", "")
    )
    if not opened.has_files:
        raise errors.SpreadsheetError(
            f"{options.spreadsheet} has no sheet Files yet, so there is nothing to send: first run "
            f"'xnatuploader scan --spreadsheet {options.spreadsheet} --dir FOLDER'."
        )
    if options.test:
        return _test(opened, settings, options)
    with lock.hold(options.spreadsheet) as held:
        taken = results.take_in(options.spreadsheet)
        if taken.outcomes:
            opened = book.Book.open(options.spreadsheet)
        if not taken.unfinished_at(settings.server, settings.project) and not taken.waiting:
            counts = _counts_if_nothing_to_do(opened, options)
            if counts is not None:
                return report.Result(text=_why_nothing(counts), files=_tally_words(counts))
        settings.require_server_and_project()
        _warn_if_locked(options.spreadsheet)
        return _send(opened, settings, options, taken, held.lost)


def _warn_if_locked(spreadsheet: Path) -> None:
    from xnatuploader.workbook import book

    try:
        book.probe(spreadsheet)
    except errors.SpreadsheetLocked as trouble:
        logger.warning("%s The upload goes on; results are kept in the journal meanwhile.", trouble)


def _counts_if_nothing_to_do(opened: Book, options: Options) -> Mapping[tuple[bool, Status], int] | None:
    """Return how many rows there are of each (Upload, Status) if no row is to be tried, else None.

    The list is read once, and only the columns that decide: 100,000 finished rows are seen in a moment.
    """
    from xnatuploader.scan import sessions
    from xnatuploader.workbook import cells, files_sheet

    if options.verify or options.overwrite or options.commit or options.refresh:
        return None
    gate = sessions.Gate(opened.sessions())
    seen: dict[tuple[str, ...], int] = {}
    kinds: dict[tuple[str, ...], tuple[bool, Status]] = {}
    for texts in opened.columns("Upload", "Status", "Message", "Subject", "SessionLabel"):
        if texts not in seen:
            wanted, word, said, subject, label = texts
            status, message = files_sheet.status_and_message(word, said)
            upload = cells.is_yes(wanted)
            row = Row("", upload=upload, status=status, message=message, subject=subject)
            if gate(dataclasses.replace(row, session_label=cells.label(label))):
                return None
            kinds[texts] = upload, status
        seen[texts] = seen.get(texts, 0) + 1
    counts: dict[tuple[bool, Status], int] = {}
    for texts, count in seen.items():
        counts[kinds[texts]] = counts.get(kinds[texts], 0) + count
    return counts


def _why_nothing(counts: Mapping[tuple[bool, Status], int]) -> str:
    """Say why there is nothing to do: only files that were sent are on the server."""
    if not counts:
        return "Nothing to do: the workbook lists no files. Run scan on the folder that holds the data."
    if any(upload and status is Status.SUCCESS for upload, status in counts):
        return "Nothing to do: every selected file is on the server already."
    return "Nothing to do: no file is selected, by Upload in its own row (sheet Files) and in that of its session."


def _tally_words(counts: Mapping[tuple[bool, Status], int]) -> dict[str, int]:
    words: dict[str, int] = {}
    for (_, status), count in counts.items():
        word = status.value or "not tried"
        words[word] = words.get(word, 0) + count
    return words


def _test(opened: Book, settings: configuration.Config, options: Options) -> report.Result:
    """Plan without a server, print the plan, change nothing."""
    from xnatuploader.upload import plan, prepare

    files = prepare.Files(options.folder, opened, options.spreadsheet)
    anonymize = settings.anonymize or options.anonymize
    ready = prepare.prepared(
        opened, settings, files, verify=options.verify, overwrite=options.overwrite, anonymize=anonymize
    )
    rows, selected = ready.as_sent()
    planned = plan.build(rows, selected)
    planned = dataclasses.replace(planned, set_aside=(*planned.set_aside, *ready.failed.values()))
    if ready.disguise is not None:
        _write_inspection(ready, files, options.spreadsheet)
    size = sum(int(row.size) for row in planned.rows() if row.size.isdigit())
    head = (
        f"Test only, nothing is sent: {report.plural(planned.files, 'file')} ({report.human_bytes(size)}) in "
        f"{report.plural(len(planned.sessions), 'session')}, {report.plural(planned.scans, 'scan')} "
        f"to project {settings.project or '(none given)'} on {report.address(settings.server) or '(no server given)'}"
        f"{_by_way_of(options)}."
    )
    return report.Result(
        text=f"{head}\n{plan.in_words(planned, settings.project)}".rstrip(),
        files=report.count_statuses(rows),
        sessions=len(planned.sessions),
        scans=planned.scans,
        bytes=size,
        problems=tuple(f"{outcome.status}: {outcome.message}" for outcome in planned.set_aside),
    )


def _by_way_of(options: Options) -> str:
    asked = options.importing
    if asked is None:
        return ""
    end = "archive" if asked.dest.archive else "prearchive"
    where = "where XNAT decides by the headers" if asked.by_headers else f"into the {end}"
    return f", through XNAT's import service ({asked.handler}), {where}"


def _write_inspection(ready: prepare.Prepared, files: prepare.Files, spreadsheet: Path) -> None:
    """Write the De-identified sheet: one file of each series, each element before and after."""
    from xnatuploader.deidentify import rows as anonymizing
    from xnatuploader.upload import plan
    from xnatuploader.workbook import book

    assert ready.disguise is not None
    lines = [
        line
        for row in plan.one_per_series(row for row in ready.selected if row.file not in ready.failed)
        for line in anonymizing.inspected(ready.disguise, row, files.path(row))
    ]
    book.write_report(
        spreadsheet,
        anonymizing.SHEET,
        anonymizing.HEADINGS,
        [dataclasses.astuple(line) for line in lines],
        {"SessionLabel": 24, "Tag": 24, "Keyword": 32, "Before": 44, "After": 44, "Note": 44, "ScanID": 10},
    )


def _send(
    opened: Book,
    settings: configuration.Config,
    options: Options,
    taken: TakenIn,
    lock_lost: threading.Event,
) -> report.Result:
    from xnatuploader.upload import prepare
    from xnatuploader.upload import run as sending
    from xnatuploader.upload.state import Asked
    from xnatuploader.xnat import credentials

    asked = Asked(
        spreadsheet=options.spreadsheet,
        server=settings.server,
        project=settings.project,
        overwrite=options.overwrite,
        verify=options.verify,
        pipeline=options.pipeline,
        anonymize=settings.anonymize or options.anonymize,
        jobs=options.jobs,
        deadline=_deadline(options),
        wait_seconds=options.wait_seconds,
        interactive=credentials.terminal_there(options.environ),
        environ=options.environ,
        importing=options.importing,
        commit=options.commit,
        refresh=options.refresh,
        lock_lost=lock_lost,
    )
    files = prepare.Files(options.folder, opened, options.spreadsheet)
    return sending.send(opened, settings, files, asked, taken)


def _deadline(options: Options) -> datetime.datetime | None:
    now = datetime.datetime.now()
    ends = []
    if options.until is not None:
        at = datetime.datetime.combine(now.date(), options.until)
        ends.append(at if at > now else at + datetime.timedelta(days=1))
    if options.max_seconds is not None:
        ends.append(now + datetime.timedelta(seconds=options.max_seconds))
    return min(ends, default=None)
