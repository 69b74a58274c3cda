from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import workbook_samples as samples
from tests.helpers.runs import edit
from xnatuploader import errors, records
from xnatuploader.workbook import book, package

SUCCESS = records.Status.SUCCESS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return samples.scanned(tmp_path / "files.xlsx")


def outcome() -> dict[str, records.Outcome]:
    name = samples.make_row(1).file
    return {name: records.Outcome(name, SUCCESS)}


def refuse_replacing(monkeypatch: pytest.MonkeyPatch, refused: Path) -> None:
    """Play Windows, where a file that Excel has open cannot be replaced."""
    real = package.replace

    def replace(source: Path, target: Path) -> None:
        if target == refused:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        real(source, target)

    monkeypatch.setattr(package, "replace", replace)


def left_beside(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir() if found != path)


def test_a_scan_that_cannot_replace_the_workbook_keeps_its_result_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    refuse_replacing(monkeypatch, path)
    with pytest.raises(errors.SpreadsheetLocked, match=r"files \(scan result\)\.xlsx"):
        samples.rescan(path, samples.make_rows(7))
    assert path.read_bytes() == before
    assert left_beside(path) == ["files (scan result).xlsx"]
    assert len(samples.files(path.with_name("files (scan result).xlsx"))) == 7


def test_outcomes_that_cannot_be_written_leave_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    refuse_replacing(monkeypatch, path)
    with pytest.raises(errors.SpreadsheetLocked, match="Close it in Excel"):
        book.write_outcomes(path, outcome(), [])
    assert path.read_bytes() == before
    assert left_beside(path) == []


def test_a_full_disk_is_named_and_leaves_the_old_workbook(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(package.os, "fsync", full)
    with pytest.raises(errors.SpreadsheetLocked, match="disk is full"):
        book.write_outcomes(path, outcome(), [])
    assert path.read_bytes() == before
    assert left_beside(path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that this user cannot write")
def test_a_folder_that_cannot_be_written_is_an_error_of_the_workbook(path: Path) -> None:
    path.parent.chmod(0o555)
    try:
        with pytest.raises(errors.SpreadsheetLocked):
            book.write_outcomes(path, outcome(), [])
    finally:
        path.parent.chmod(0o755)


def test_a_workbook_saved_by_a_person_meanwhile_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = package.save
    saved = []

    def save(*arguments: object, **options: object) -> Path:
        made = real(*arguments, **options)  # type: ignore[arg-type]
        if not saved:
            edit(lambda workbook: workbook["Files"].cell(3, 40, "a note"), path)
        saved.append(made)
        return made

    monkeypatch.setattr(package, "save", save)
    assert book.write_outcomes(path, outcome(), []) == frozenset(outcome())
    assert len(saved) == 2
    assert samples.loaded(path)["Files"].cell(3, 40).value == "a note"
    assert left_beside(path) == []


def test_a_probe_of_a_free_workbook_says_nothing(path: Path) -> None:
    before = path.read_bytes()
    book.probe(path)
    assert path.read_bytes() == before


def test_a_probe_finds_what_windows_refuses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(package, "open_for_writing", refused)
    with pytest.raises(errors.SpreadsheetLocked, match="Close it in Excel"):
        book.probe(path)


def excel_owner_file(name: str) -> bytes:
    narrow = name.encode("cp1252", errors="replace")
    return (
        bytes([len(narrow)]) + narrow.ljust(54) + len(name).to_bytes(2, "little")
        + name.encode("utf-16-le").ljust(108, b" \0"[:1])
    )  # fmt: skip


def test_a_probe_names_who_has_the_workbook_open_in_excel(path: Path) -> None:
    path.with_name("~$files.xlsx").write_bytes(excel_owner_file("Żaneta Łuczak"))
    with pytest.raises(
        errors.SpreadsheetLocked, match=r"\(Żaneta Łuczak\)\..*delete the file ~\$files\.xlsx"
    ):
        book.probe(path)


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 60, b"\x03Ann"])
def test_an_odd_owner_file_still_means_open(path: Path, content: bytes) -> None:
    path.with_name("~$files.xlsx").write_bytes(content)
    with pytest.raises(errors.SpreadsheetLocked, match="is open"):
        book.probe(path)


def test_a_probe_names_who_has_the_workbook_open_in_libreoffice(path: Path) -> None:
    lock = ",ann,PC-14,22.11.2026 10:00,file:///home/ann/profile;"
    path.with_name(".~lock.files.xlsx#").write_text(lock)
    with pytest.raises(errors.SpreadsheetLocked, match=r"\(ann on PC-14\)"):
        book.probe(path)


def test_a_probe_of_a_workbook_that_is_not_there_leaves_the_message_to_opening_it(tmp_path: Path) -> None:
    book.probe(tmp_path / "files.xlsx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_to_a_workbook_stays_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.xlsx"
    link.symlink_to(path)
    book.write_outcomes(link, outcome(), [])
    assert link.is_symlink()
    assert list(book.Book.open(path).rows())[1].status == SUCCESS
    assert sorted(found.name for found in link.parent.iterdir()) == ["link.xlsx"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_the_workbooks_rights_stay(path: Path) -> None:
    path.chmod(0o640)
    book.write_outcomes(path, outcome(), [])
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_a_killed_run_left_is_cleared_away_later(path: Path) -> None:
    old, young = path.with_name("~$files.xlsx.99.part"), path.with_name("~$files.xlsx.98.part")
    for left in (old, young):
        left.write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    book.write_outcomes(path, outcome(), [])
    assert left_beside(path) == [young.name]


WRITER = """
import sys
from pathlib import Path
from tests.helpers import workbook_samples as samples
from xnatuploader import records
from xnatuploader.workbook import book
path = Path(sys.argv[1])
rows = samples.make_rows(400)
print("ready", flush=True)
for turn in range(10_000):
    status = records.Status.SUCCESS if turn % 2 else records.Status.FAILED
    book.write_outcomes(path, {row.file: records.Outcome(row.file, status, str(turn)) for row in rows}, [])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="uses SIGKILL")
def test_a_kill_at_any_moment_leaves_a_whole_workbook(tmp_path: Path) -> None:
    path = samples.scanned(tmp_path / "files.xlsx", samples.make_rows(400))
    chance = random.Random(7)
    turns = set()
    # Without coverage's variables: its hook slows the writer down, so that every kill would fall into the first turn.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(path)]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=alone) as run:
            assert run.stdout is not None
            run.stdout.readline()
            time.sleep(chance.uniform(0.01, 0.25))
            run.send_signal(signal.SIGKILL)
        rows = list(book.Book.open(path).rows())
        assert len(rows) == 400
        assert len({row.message for row in rows}) == 1
        turns.add(rows[0].message)
        samples.loaded(path)
    assert len(turns) > 1
