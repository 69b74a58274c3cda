"""`init`: create a new workbook, ready to be filled in."""

from __future__ import annotations

import argparse
from pathlib import Path

from xnatuploader import errors, paths
from xnatuploader.config import sheet
from xnatuploader.console import report
from xnatuploader.workbook import book


def run(args: argparse.Namespace) -> report.Result:
    """Run `init` as the command line asks for it."""
    return init(Path(args.spreadsheet), force=args.force)


def init(spreadsheet: Path, *, force: bool = False) -> report.Result:
    """Create a new workbook at `spreadsheet`; an existing one is refused unless `force` is given."""
    if spreadsheet.suffix.lower() != ".xlsx":
        # Excel goes by the ending: it would not open the file, or say that it is damaged.
        others = {".xls", ".xlsm", ".xlsb", ".ods", ".csv", ".txt"}
        stem = spreadsheet.stem if spreadsheet.suffix.lower() in others else spreadsheet.name
        name = paths.typed(spreadsheet.with_name(f"{stem}.xlsx"))
        raise errors.UsageError(
            f"The name of a new workbook has to end with .xlsx: write --spreadsheet {name}"
        )
    book.create(spreadsheet, sheet.DEFAULT_LAYOUT, force=force)
    return report.Result(
        text=f"Created {spreadsheet}.\n"
        "Next: open it, adapt Paths and Mappings to your folders, fill in Project and Server, save and close it,\n"
        f"then run: xnatuploader scan --spreadsheet {paths.typed(spreadsheet)} --dir FOLDER"
    )
