"""The workbook is open in Excel while uploads run: nothing is lost, and no run is a dead end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.runs import BOOK, Runner, rows, set_cells, upload
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import Status
from xnatuploader.upload import journal
from xnatuploader.workbook import package


def open_in_excel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(
            13, "The process cannot access the file because it is being used by another process"
        )

    monkeypatch.setattr(package, "move", refuse)


def test_results_wait_in_the_journal_and_go_into_the_workbook_with_the_next_run(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    with pytest.MonkeyPatch.context() as excel:
        open_in_excel(excel)
        ran = upload(run, box)
        assert ran.code == 6
        assert "journal" in ran.err
    assert {row.status for row in rows()} == {Status.EMPTY}
    assert len(journal.read(Path(BOOK)).outcomes) == 14
    box.clear_requests()
    assert upload(run, box).code == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}
    assert box.count() == 0
    assert not journal.beside(Path(BOOK)).exists()


@pytest.mark.slow
def test_a_second_night_with_the_workbook_still_open_sends_what_is_left(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    set_cells("Upload", "N", lambda row: row["Dataset"] == "Neck CT")
    with pytest.MonkeyPatch.context() as excel:
        open_in_excel(excel)
        assert upload(run, box).code == 6
    set_cells("Upload", "Y")
    box.clear_requests()
    with pytest.MonkeyPatch.context() as excel:
        open_in_excel(excel)
        assert upload(run, box).code == 6
    assert len(box.files()) == 14
    assert box.count("PUT", "extract=true") == 1, "only what was not sent the first night"
    assert upload(run, box).code == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}
