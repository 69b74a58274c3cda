"""Outcomes into the workbook: journals of earlier runs, rows that moved, workbooks that cannot be written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import openpyxl
import pytest

from tests.helpers.runs import Runner, rows
from xnatuploader import errors
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload import journal, state
from xnatuploader.workbook import package

BOOK = Path("study.xlsx")


@pytest.fixture
def listed(seed_tree: Path, run: Runner) -> list[Row]:
    assert run("init", "--spreadsheet", BOOK).code == 0
    assert run("scan", "--spreadsheet", BOOK, "--dir", seed_tree).code == 0
    return rows()


def success(row: Row) -> Outcome:
    return Outcome(row.file, Status.SUCCESS, "There.", "d" * 32)


def left_behind(*outcomes: Outcome, touched: str = "", finished: str = "") -> None:
    """Leave a journal, as a run that was killed does."""
    with journal.Journal(BOOK, {"project": "P"}) as written:
        if touched:
            written.note("touched", project="P", session=touched)
        for outcome in outcomes:
            written.outcome(outcome)
        if finished:
            written.note("finished", project="P", session=finished)


def test_an_outcome_changes_only_what_it_names() -> None:
    row = Row("a", filename="a.dcm", session_label="L", scan_id="5", md5="old", dataset="D")
    now = state.onto(row, Outcome("a", Status.FAILED, "Why."))
    assert now == replace(row, status=Status.FAILED, message="Why.")
    now = state.onto(row, Outcome("a", Status.SUCCESS, "", "new", scan_id="5-CT1"))
    assert (now.md5, now.scan_id, now.filename) == ("new", "5-CT1", "a.dcm")


def test_nothing_left_behind_is_nothing_to_take_in(listed: list[Row]) -> None:
    before = BOOK.read_bytes()
    assert state.take_in(BOOK) == state.EarlierRuns()
    assert BOOK.read_bytes() == before


def test_a_journal_goes_into_the_workbook_and_is_gone(listed: list[Row]) -> None:
    left_behind(*map(success, listed[:3]))
    taken = state.take_in(BOOK)
    assert (taken.outcomes, taken.unfinished) == (3, {})
    assert [row.status for row in rows()[:4]] == [Status.SUCCESS] * 3 + [Status.EMPTY]
    assert not journal.beside(BOOK).exists()


def test_rows_are_found_by_file_wherever_they_stand_now(listed: list[Row]) -> None:
    """Lesson C4: between the runs the user sorted the sheet the other way round."""
    left_behind(success(listed[0]))
    opened = openpyxl.load_workbook(BOOK)
    sheet = opened["Files"]
    lines = [[cell.value for cell in line] for line in sheet.iter_rows(min_row=2)]
    for number, values in enumerate(reversed(lines), 2):
        for column, value in enumerate(values, 1):
            sheet.cell(number, column, value)
    opened.save(BOOK)
    state.take_in(BOOK)
    assert {row.file for row in rows() if row.status is Status.SUCCESS} == {listed[0].file}


def test_sessions_whose_last_steps_are_due_stay_in_the_journal(listed: list[Row]) -> None:
    left_behind(success(listed[0]), touched="L1")
    left_behind(touched="L2", finished="L2")
    taken = state.take_in(BOOK)
    assert taken.unfinished == {("", "P", "L1"): set()}
    assert state.take_in(BOOK).unfinished == {("", "P", "L1"): set()}, "and once more, until they are done"


def test_scans_that_were_made_stay_in_the_journal_with_them(listed: list[Row]) -> None:
    left_behind(success(listed[0]), touched="L1")
    with journal.Journal(BOOK) as written:
        for label, scan in (("L1", "3"), ("L1", "4"), ("L2", "5")):
            written.note("made", server="S", project="P", session=label, id="XNAT_E1", scan=scan)
    left_behind(touched="L2", finished="L2")
    for _ in range(2):
        made = state.take_in(BOOK).unfinished
        assert made == {("", "P", "L1"): set(), ("S", "P", "L1"): {("XNAT_E1", "3"), ("XNAT_E1", "4")}}
    with journal.Journal(BOOK) as written:
        written.note("imported", server="S", project="P", session="L1")
    assert state.take_in(BOOK).unfinished["S", "P", "L1"] == set(), "an import may have replaced them"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://xnat.example.org", "HTTPS://XNAT.example.org/", True),
        ("http://xnat.example.org:80/", "https://xnat.example.org", True),
        ("https://xnat.example.org:443/a", "https://xnat.example.org/a/", True),
        ("https://xnat.example.org/a", "https://xnat.example.org/b", False),
        ("https://xnat.example.org:8443", "https://xnat.example.org", False),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8081", False),
    ],
)
def test_addresses_of_one_server_may_be_written_in_several_ways(one: str, other: str, same: bool) -> None:
    assert state.same_server(one, other) == same


def test_an_outcome_without_a_row_is_kept(listed: list[Row], caplog: pytest.LogCaptureFixture) -> None:
    left_behind(success(listed[0]), success(Row("not/listed.dcm")))
    assert state.take_in(BOOK).outcomes == 1
    assert "have no row" in caplog.text
    assert set(journal.read(BOOK).outcomes) == {"not/listed.dcm"}


def test_while_excel_has_the_workbook_the_journal_waits(
    listed: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(success(listed[0]), touched="L1")
    before = BOOK.read_bytes()

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "in use")

    with monkeypatch.context() as patched:
        patched.setattr(package, "replace", refuse)
        taken = state.take_in(BOOK)
    assert set(taken.waiting) == {listed[0].file}
    assert taken.unfinished == {("", "P", "L1"): set()}
    assert BOOK.read_bytes() == before
    assert state.take_in(BOOK).outcomes == 1


def test_a_workbook_that_is_gone_when_results_come_is_told_as_locked(listed: list[Row]) -> None:
    BOOK.unlink()
    with pytest.raises(errors.SpreadsheetLocked, match="journal"):
        state.save(BOOK, {listed[0].file: success(listed[0])}, ())


def test_an_older_copy_gets_the_results_all_the_same(listed: list[Row]) -> None:
    shutil.copy(BOOK, "backup.xlsx")
    outcomes = {row.file: success(row) for row in listed}
    assert state.save(BOOK, outcomes, ()) == {}
    shutil.copy("backup.xlsx", BOOK)
    assert state.save(BOOK, outcomes, ()) == {}
    assert {row.status for row in rows()} == {Status.SUCCESS}
