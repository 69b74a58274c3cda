"""A tree of small files, the workbook that lists it, and runs of the program on copies of that."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openpyxl

from tests.faults.nursery import Conditions, Nursery, Run
from tests.helpers import builders
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Row, Status
from xnatuploader.upload import tar_body
from xnatuploader.workbook import book

FILE_BYTES = 10_240
"""Size of every file. With its archive header it is larger than an archive's padding, so that the number of
files in an archive follows from its length."""

BOOK = "study.xlsx"
NOTE = "My note"
PART_FILES = 10
_FRAME = 512 + FILE_BYTES


@dataclass(slots=True)
class Tally:
    """The result of a fault: one line of the table."""

    fault: str
    runs: int = 0
    injected: int = 0
    files: int = 0
    lost: int = 0
    """Files that are not both on the server and `success` at the end, though they should be."""
    twice: int = 0
    """Files that the server had confirmed and that were sent again."""
    hidden: int = 0
    """Files sent again because the server hid that it had them (a list that does not name them)."""
    wrong: int = 0
    """Statuses or bytes that are not true, damaged workbooks, changed cells of the user, unexpected exit codes."""
    problems: list[str] = field(default_factory=list)

    def complain(self, text: str, count: int = 1) -> None:
        """Count something that is wrong, with a message for whoever looks for the cause."""
        self.wrong += count
        self.problems.append(text)


def make_tree(folder: Path, sessions: int, scans: int, files: int) -> None:
    """Write `files` files of one size in each scan."""
    for visit, series in itertools.product(range(sessions), range(1, scans + 1)):
        for number in range(files):
            data = builders.dicom_bytes(
                pixels=8_000, study=f"study {visit}", series=f"series {series}", instance=str(number + 1),
                PatientID=f"{visit:04}", StudyDate=f"202003{visit + 10}", SeriesNumber=str(series),
                SeriesDescription=f"Series {series}",
            )  # fmt: skip
            left = FILE_BYTES - len(data) - 12
            data += builders.element(0xFFFCFFFC, "OB", bytes(left))  # PS3.10 7.2: trailing padding
            path = (
                folder / f"Doe-{visit:04}" / f"202003{visit + 10}" / f"Part {series}" / f"im{number:04}.dcm"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


class Scene:
    """One tree with its scanned workbook, a nursery, and a sandbox; trials use a project each."""

    def __init__(self, folder: Path, sessions: int = 2, scans: int = 2, files: int = 30) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.environ: dict[str, str] = {}
        self._numbers = itertools.count(1)
        make_tree(self.data, sessions, scans, files)
        self.count = sessions * scans * files
        self.nursery = Nursery()
        self.box = Sandbox(folder / "xnat", projects=["P"], users=["demo:demo:owner", "reader:reader:reader"])
        self._prepare()

    def _prepare(self) -> None:
        place = self.folder / "template"
        place.mkdir()
        for words in (["init"], ["scan", "--dir", str(self.data)]):
            run = self.nursery.start([*words, "--spreadsheet", BOOK], place, {}, place / "out.txt")
            assert run.wait() == 0, run.said()
        opened = openpyxl.load_workbook(place / BOOK)
        sheet = opened["Files"]
        column = sheet.max_column + 1
        sheet.cell(1, column, NOTE)
        for row in range(2, sheet.max_row + 1):
            sheet.cell(row, column, f"note on {sheet.cell(row, 2).value}")
        opened.save(place / BOOK)
        self.template = place / BOOK
        assert len(list(book.Book.open(self.template).rows())) == self.count

    def fresh_server(self) -> None:
        """Begin with an empty server: what it holds of earlier trials only makes requests slower."""
        self.box.stop()
        self.box = Sandbox(
            self.folder / f"xnat{next(self._numbers)}", projects=["P"],
            users=["demo:demo:owner", "reader:reader:reader"],
        )  # fmt: skip

    def trial(self, *, own_data: bool = False) -> Trial:
        """Return a new trial, with a copy of the files where the case changes them."""
        return Trial(self, next(self._numbers), own_data)

    def close(self) -> None:
        self.nursery.__exit__(None, None, None)
        self.box.stop()


class Trial:
    """One workbook and one project."""

    def __init__(self, scene: Scene, number: int, own_data: bool) -> None:
        self.scene = scene
        self.project = f"P{number}"
        self.folder = scene.folder / f"trial{number}"
        self.folder.mkdir()
        self.data = scene.data
        if own_data:
            self.data = self.folder / "data"
            shutil.copytree(scene.data, self.data)
        self.book = self.folder / BOOK
        shutil.copy(scene.template, self.book)
        self.runs = 0
        scene.box.add_project(self.project)
        self._from = self._last_number()

    # ---- running

    def words(self, *more: str) -> list[str]:
        return [
            "upload", "--spreadsheet", BOOK, "--dir", str(self.data), "--server", self.scene.box.url,
            "--project", self.project, *more,
        ]  # fmt: skip

    def start(
        self, conditions: Conditions, *more: str, nursery: Nursery | None = None, user: str = "demo"
    ) -> Run:
        """Begin an upload in a process of its own."""
        import os

        self.runs += 1
        os.environ.update(
            XNAT_USER=user, XNAT_PASS=user, HOME=str(self.folder), XDG_STATE_HOME=str(self.folder)
        )
        chosen = {"part_files": PART_FILES, "quick_pauses": 0.02, **conditions}
        return (nursery or self.scene.nursery).start(
            self.words(*more), self.folder, chosen, self.folder / f"run{self.runs}.txt"
        )

    def run(self, conditions: Conditions | None = None, *more: str, user: str = "demo") -> int:
        """Run an upload to its end and return its exit code."""
        self.last = self.start(conditions or {}, *more, user=user)
        return self.last.wait()

    # ---- looking

    def rows(self) -> list[Row]:
        return list(book.Book.open(self.book).rows())

    def on_server(self) -> dict[str, str]:
        """Return what the server lists: `subject/session/scan/resource/name` -> digest."""
        return self.scene.box.files(self.project)

    def is_whole(self) -> bool:
        """Tell whether the workbook can be opened, by another program's reader, with all its rows."""
        try:
            opened = openpyxl.load_workbook(self.book, read_only=True)
            count = sum(
                1 for row in opened["Files"].iter_rows(min_row=2, max_col=2, values_only=True) if row[1]
            )
            opened.close()
        except Exception:
            return False
        return count == self.scene.count

    def puts(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the requests that sent files."""
        found = self.scene.box.requests("PUT", f"/projects/{self.project}/.*/files/", max(since, self._from))
        return [one for one in found if "/files/" in one["path"]]

    def files_sent(self, since: int = 0) -> int:
        """Return how many files went out in requests that the server answered with 200 and that no fault struck."""
        good = [one for one in self.puts(since) if one["status"] == 200 and not one["faults"]]
        return sum(files_in(one) for one in good)

    def _last_number(self) -> int:
        return int(self.scene.box.control("GET", "requests?count=1")["last"])

    def mark(self) -> int:
        """Return a number that later requests exceed."""
        return self._last_number()

    # ---- judging

    def judge(self, tally: Tally, expected: Sequence[Status] = (Status.SUCCESS,)) -> None:
        """Add what is lost or untrue at the end to the tally."""
        tally.runs += self.runs
        tally.files += self.scene.count
        if not self.is_whole():
            tally.complain("the workbook is damaged")
            return
        listed = self.on_server()
        rows = self.rows()
        for row in rows:
            key = f"{row.subject}/{row.session_label}/{row.scan_id}/{row.resource}/{row.filename}"
            if row.status not in expected:
                tally.lost += 1
                tally.problems.append(f"{row.file}: {row.status} {row.message}")
            elif row.status is Status.SUCCESS and not self._is_there(row, key, listed):
                tally.complain(f"{row.file} says success but the server does not have it")
        self._check_notes(tally)
        done = all(row.status is Status.SUCCESS for row in rows)
        if done and list(self.folder.glob("*.journal")):
            tally.complain("a journal is left")

    def _is_there(self, row: Row, key: str, listed: dict[str, str]) -> bool:
        stored = self.scene.box.archive / self.project / "arc001" / row.session_label / "SCANS" / row.scan_id
        path = stored / row.resource / row.filename
        local = self.data / row.file
        digest = md5_of(path)
        right = digest == listed.get(key) == row.md5
        return right and (self.data != self.scene.data or digest == md5_of(local))

    def _check_notes(self, tally: Tally) -> None:
        opened = openpyxl.load_workbook(self.book, read_only=True)
        lines = opened["Files"].iter_rows(values_only=True)
        head = list(next(lines))
        file, note = head.index("File"), head.index(NOTE)
        changed = sum(1 for line in lines if line[note] != f"note on {line[file]}")
        opened.close()
        if changed:
            tally.complain(f"{changed} notes of the user changed", changed)


def files_in(request: dict[str, Any]) -> int:
    """Return how many files a request carried, from its length."""
    if f"/files/{tar_body.Part.name}" not in request["path"]:
        return 1
    return max(0, int(request["received"]) - 1024) // _FRAME


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, '' if it is not there."""
    try:
        return hashlib.md5(path.read_bytes()).hexdigest()
    except OSError:
        return ""
