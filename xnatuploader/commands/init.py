"""`init`: write a new workbook, ready to be filled in."""

from __future__ import annotations

import argparse
from pathlib import Path

from xnatuploader import errors
from xnatuploader.console import report

SUMMARY = "write a new workbook with its Configuration sheet"
DESCRIPTION = "Write a new workbook with one sheet, Configuration. An existing file is left alone."
EXAMPLE = """example:
  xnatuploader init --spreadsheet study.xlsx
then open study.xlsx, read the lines at the top of its Configuration sheet, and fill in Project and Server."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this operation has: none."""


def run(args: argparse.Namespace) -> report.Result:
    """Run `init` as the command line asks for it."""
    return init(Path(args.spreadsheet), force=args.force)


def init(spreadsheet: Path, *, force: bool = False) -> report.Result:
    """Write a new workbook at `spreadsheet`; an existing one is refused unless `force` is given."""
    from xnatuploader.config import sheet
    from xnatuploader.workbook import book

    if spreadsheet.suffix.lower() != ".xlsx":
        # Excel goes by the ending: it would not open the file, or say that it is damaged.
        others = {".xls", ".xlsm", ".xlsb", ".ods", ".csv", ".txt"}
        stem = spreadsheet.stem if spreadsheet.suffix.lower() in others else spreadsheet.name
        raise errors.UsageError(
            f"The name of a new workbook ends with .xlsx: write --spreadsheet {spreadsheet.with_name(stem)}.xlsx"
        )
    book.create(spreadsheet, sheet.DEFAULT_LAYOUT, force=force)
    return report.Result(
        text=f"Wrote {spreadsheet}.\n"
        "Next: open it, adapt Paths and Mappings to your folders, fill in Project and Server, save and close it,\n"
        f"then run: xnatuploader scan --spreadsheet {spreadsheet} --dir FOLDER"
    )
