"""Run the program; edit its workbook as in a spreadsheet program, and read it as the program does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openpyxl

from xnatuploader.records import Row
from xnatuploader.workbook import book

ROOT = Path(__file__).resolve().parents[2]
BOOK = "study.xlsx"
"""The workbook of most tests."""


@dataclass(frozen=True)
class Ran:
    """How one run of the program ended."""

    code: int
    out: str
    err: str


Runner = Callable[..., Ran]
"""Runs the program with a command line; the fixture `run` gives it."""


def upload_words(url: str, *more: str, project: str = "P", workbook: str | Path = BOOK) -> list[str]:
    """Return the command line of an upload from `data_files`."""
    return [
        "upload", "--spreadsheet", str(workbook), "--dir", "data_files", "--server", url, "--project", project, *more,
    ]  # fmt: skip


def upload(run: Runner, site: Any, *more: str, project: str = "P", workbook: str | Path = BOOK) -> Ran:
    """Upload `data_files` to `site`, a server with its `url`."""
    return run(*upload_words(site.url, *more, project=project, workbook=workbook))


def variables(**more: str) -> dict[str, str]:
    """Return the environment for running this program in a process of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def in_own_process(folder: Path, *words: str) -> None:
    """Run the program in `folder` as the user demo, in a process of its own; raises with its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "xnatuploader", *words],
        cwd=folder,
        env=variables(XNAT_USER="demo", XNAT_PASS="demo", HOME=str(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


# ---- the workbook


def rows(workbook: str | Path = BOOK) -> list[Row]:
    return list(book.Book.open(Path(workbook)).rows())


def listed(sheet: str = "Files", workbook: str | Path = BOOK) -> list[dict[str, Any]]:
    """Return a sheet's rows by heading, as a spreadsheet program shows them; empty cells as ''."""
    lines = openpyxl.load_workbook(workbook)[sheet].iter_rows(values_only=True)
    headings = [str(text or "") for text in next(lines)]
    return [
        dict(zip(headings, ("" if cell is None else cell for cell in line), strict=True)) for line in lines
    ]


def edit(changes: Callable[[openpyxl.Workbook], object], workbook: str | Path = BOOK) -> None:
    """Change the workbook as a person with a spreadsheet program would, and save it."""
    opened = openpyxl.load_workbook(workbook)
    changes(opened)
    opened.save(workbook)


def set_cells(
    heading: str,
    value: object,
    where: Callable[[dict[str, Any]], bool] = lambda row: True,
    sheet: str = "Files",
    workbook: str | Path = BOOK,
) -> None:
    """Fill a column of the rows that `where` chooses with `value`; a function `value` is called with each row."""

    def change(opened: openpyxl.Workbook) -> None:
        headings = [cell.value for cell in opened[sheet][1]]
        for cells in opened[sheet].iter_rows(min_row=2):
            row = dict(zip(headings, (cell.value for cell in cells), strict=True))
            if where(row):
                cells[headings.index(heading)].value = value(row) if callable(value) else value

    edit(change, workbook)


def configure(label: str, *values: str) -> None:
    """Fill the row `label` of the Configuration sheet."""

    def change(opened: openpyxl.Workbook) -> None:
        for cells in opened["Configuration"].iter_rows(min_col=1, max_col=8):
            if cells[1].value == label:
                for cell, value in zip(cells[2:], [*values, *[None] * 6], strict=False):
                    cell.value = value

    edit(change)
