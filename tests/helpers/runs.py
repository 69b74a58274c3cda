"""Runs of the program, and their workbook: edited as in a spreadsheet program, read as the program reads it."""

from __future__ import annotations

import os
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
"""Runs the program on these words: what the fixture `run` gives."""


def upload_words(url: str, *more: str, project: str = "P", workbook: str | Path = BOOK) -> list[str]:
    """Return the command line of an upload from `data_files`."""
    return [
        "upload", "--spreadsheet", str(workbook), "--dir", "data_files", "--server", url, "--project", project, *more,
    ]  # fmt: skip


def upload(run: Runner, site: Any, *more: str, project: str = "P", workbook: str | Path = BOOK) -> Ran:
    """Upload `data_files` to `site`, a server with its `url`."""
    return run(*upload_words(site.url, *more, project=project, workbook=workbook))


def variables(**more: str) -> dict[str, str]:
    """Return the environment in which a process of its own runs this program."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


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
    """Type into a column of the rows that `where` chooses: `value`, or what a function makes of the row."""

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
