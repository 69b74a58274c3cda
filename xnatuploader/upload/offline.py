"""`upload --test`: the plan without a server, and what de-identification would do to one file of each series."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from xnatuploader.config.sheet import Config
from xnatuploader.console import report
from xnatuploader.upload import plan, prepare
from xnatuploader.upload.options import RunOptions
from xnatuploader.workbook import book


def test(opened: book.Book, settings: Config, options: RunOptions) -> report.Result:
    """Print the plan and send nothing; with de-identification also write the De-identified sheet."""
    files = prepare.Files(options.folder, opened, options.spreadsheet)
    ready = prepare.prepared(opened, settings, files, options)
    rows, selected = ready.as_sent()
    planned = plan.build(rows, selected)
    planned = dataclasses.replace(planned, set_aside=(*planned.set_aside, *ready.failed.values()))
    if ready.deidentifier is not None:
        _write_inspection(ready, files, options.spreadsheet)
    size = sum(int(row.size) for session in planned.sessions for row in session.rows if row.size.isdigit())
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


def _by_way_of(options: RunOptions) -> str:
    chosen = options.importing
    if chosen is None:
        return ""
    end = "archive" if chosen.dest.archive else "prearchive"
    where = "where XNAT decides by the headers" if chosen.by_headers else f"into the {end}"
    return f", through XNAT's import service ({chosen.handler}), {where}"


def _write_inspection(ready: prepare.Prepared, files: prepare.Files, spreadsheet: Path) -> None:
    """Write the De-identified sheet: one file of each series, each element before and after."""
    from xnatuploader.deidentify import rows as deidentified

    assert ready.deidentifier is not None
    lines = [
        line
        for row in plan.one_per_series(row for row in ready.selected if row.file not in ready.failed)
        for line in ready.deidentifier.inspect(row, files.path(row))
    ]
    book.write_report(
        spreadsheet,
        deidentified.SHEET,
        deidentified.HEADINGS,
        lines,
        {"SessionLabel": 24, "Tag": 24, "Keyword": 32, "Before": 44, "After": 44, "Note": 44, "ScanID": 10},
    )
