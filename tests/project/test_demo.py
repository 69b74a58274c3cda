"""README's first command does what README says, in a process of its own and in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import openpyxl
import pytest

from tests.house import ROOT

FOLDER = "xnatuploader-demo"
FILES = 14
"""Images of the example tree."""


@dataclass(frozen=True)
class Demo:
    """The folder in which `demo` ran, and its home; how it ended."""

    folder: Path
    home: Path
    done: subprocess.CompletedProcess[str]

    def again(self) -> subprocess.CompletedProcess[str]:
        return demo(self.folder, self.home)


def demo(folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as README has it, but for the program's name: a checkout need not be installed."""
    without_login = {name: value for name, value in os.environ.items() if not name.startswith("XNAT_")}
    variables = {
        **without_login,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "HOME": str(home),
        "USERPROFILE": str(home),
        "APPDATA": str(home / "AppData" / "Roaming"),
        "LOCALAPPDATA": str(home / "AppData" / "Local"),
    }
    return subprocess.run(
        [sys.executable, "-m", "xnatuploader", "demo"],
        cwd=folder, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
        timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder, home = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("home")
    return Demo(folder, home, demo(folder, home))


def test_readme_names_the_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^python -m pip install \. && xnatuploader demo$", text, re.MULTILINE)


def test_the_demo_ends_well_and_says_nothing_on_standard_error(ran: Demo) -> None:
    assert ran.done.returncode == 0, ran.done.stderr
    assert "Warning" not in ran.done.stderr
    assert "Error" not in ran.done.stderr


def test_it_shows_the_three_commands(ran: Demo) -> None:
    shown = re.findall(r"^\$ xnatuploader (\w+)", ran.done.stdout, re.MULTILINE)
    assert shown == ["init", "scan", "upload"]


def test_everything_that_it_names_is_there(ran: Demo) -> None:
    _, _, where = ran.done.stdout.partition("Where to look:\n")
    named = re.findall(r"^  (\S+)  ", where, re.MULTILINE)
    assert named == [str(Path(FOLDER, "files.xlsx")), str(Path(FOLDER, "xnat", "archive"))]
    assert all((ran.folder / one).exists() for one in named)
    stored = re.findall(r"^    (.+\.dcm)$", where, re.MULTILINE)
    assert len(stored) == FILES
    assert all((ran.folder / named[1] / one).is_file() for one in stored)


def test_the_workbook_says_success_for_every_file_and_session(ran: Demo) -> None:
    opened = openpyxl.load_workbook(ran.folder / FOLDER / "files.xlsx", read_only=True)
    heading, *lines = opened["Files"].iter_rows(values_only=True)
    files = [dict(zip(heading, line, strict=True)) for line in lines if any(line)]
    assert Counter(file["Status"] for file in files) == {"success": FILES}
    heading, *lines = opened["Sessions"].iter_rows(values_only=True)
    sessions = [dict(zip(heading, line, strict=True)) for line in lines if any(line)]
    assert len(sessions) == 3, "three visits"
    assert sum(int(session["Done"]) for session in sessions) == FILES
    opened.close()


def test_it_writes_nothing_outside_its_folder(ran: Demo) -> None:
    assert [path.name for path in ran.folder.iterdir()] == [FOLDER]
    assert list(ran.home.iterdir()) == []


@pytest.mark.slow
def test_a_second_demo_is_refused_and_names_the_folder(ran: Demo) -> None:
    before = {path: path.stat().st_mtime_ns for path in (ran.folder / FOLDER).rglob("*")}
    again = ran.again()
    assert again.returncode == 2
    assert again.stdout == ""
    assert FOLDER in again.stderr
    assert len(again.stderr.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in (ran.folder / FOLDER).rglob("*")} == before
