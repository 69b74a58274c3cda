"""A user's folder and workbook, and a project of the user's own on a sandbox, for tests of whole uploads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openpyxl

from tests.helpers import builders, runs
from tests.helpers.runs import Ran, Runner
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Row, SessionRow, Status
from xnatuploader.workbook import book

BOOK = Path(runs.BOOK)
VISIT = "Doe^John-0001/20200312/Chest CT/a{}.dcm"
LABEL = "0001_20200312_CT"
STUDY = builders.uid("study Doe^John-0001 20200312")
SERIES = builders.uid("series Doe^John-0001 20200312/Chest CT")
STEPS = ["?pullDataFromHeaders=true", "?fixScanTypes=true", "?triggerPipelines=true"]
"""What the upload asks XNAT for once a session is complete, one request each."""
numbers = itertools.count(1)


Start = Callable[..., AbstractContextManager["Journey"]]
"""Starts a site of its own with the switches given, and a journey on it; the fixture `start` gives it."""


class Journey:
    """A user's folder and workbook, and a project on the site."""

    def __init__(self, run: Runner, site: Sandbox) -> None:
        self.program = run
        self.site = site
        self.project = f"J{next(numbers)}"
        self.data = Path("data").absolute()
        site.add_project(self.project)
        assert run("init", "--spreadsheet", BOOK).code == 0

    # ---- the user's side

    def file(self, path: str, **elements: Any) -> Path:
        """Write a file with the headers that its path says, as in the example tree."""
        return builders.write_seed_file(self.data, path, **elements)

    def configure(self, label: str, *values: str) -> None:
        runs.configure(label, *values)

    def edit(self, change: Callable[[openpyxl.Workbook], None]) -> None:
        runs.edit(change)

    def put(
        self, heading: str, value: object, where: Callable[[dict[str, Any]], bool] = lambda _: True,
        sheet: str = "Files",
    ) -> None:  # fmt: skip
        runs.set_cells(heading, value, where, sheet)

    def scan(self, *more: str) -> Ran:
        ran = self.program("scan", "--spreadsheet", BOOK, "--dir", self.data, *more)
        assert ran.code in (0, 1), ran.err
        return ran

    def upload(self, *more: str) -> Ran:
        return self.program(
            "upload", "--spreadsheet", BOOK, "--dir", self.data, "--server", self.site.url,
            "--project", self.project, *more,
        )  # fmt: skip

    # ---- the result

    def rows(self) -> list[Row]:
        return runs.rows()

    def statuses(self) -> list[Status]:
        return [row.status for row in self.rows()]

    def session(self, label: str) -> SessionRow:
        return next(row for row in book.Book.open(BOOK).sessions() if row.session_label == label)

    def state(self) -> dict[str, Any]:
        return dict(self.site.state()[self.project])

    def there(self, subject: str, label: str, **record: Any) -> None:
        """Put a session on the server that somebody else has made."""
        self.site.put_state({self.project: {subject: {label: {"xsi": "xnat:ctSessionData", **record}}}})

    def steps(self) -> list[str]:
        """The requests that asked for the steps after the upload: the part after the session's ID."""
        ids = [record["id"] for sessions in self.state().values() for record in sessions.values()]
        found = [one["path"] for one in self.site.requests("PUT", f"/data/experiments/({'|'.join(ids)})[/?]")]
        return [path.partition("/data/experiments/")[2].lstrip("XNATE_0123456789") for path in found]

    def puts(self) -> int:
        return self.site.count("PUT", f"/projects/{self.project}/.*/files/")

    def whole(self) -> bool:
        """Tell whether every row says success and the server has exactly the bytes of its file."""
        listed = self.site.files(self.project)
        for row in self.rows():
            key = f"{row.subject}/{row.session_label}/{row.scan_id}/{row.resource}/{row.filename}"
            local = builders.md5((self.data / row.file).read_bytes())
            if row.status is not Status.SUCCESS or not listed.get(key) == row.md5 == local:
                return False
        return True


def one_visit(journey: Journey, count: int = 2, **elements: Any) -> None:
    for number in range(count):
        journey.file(VISIT.format(number), **elements)
