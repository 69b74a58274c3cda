"""What is decided of one file by what the server lists, and that each outcome is recorded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from xnatuploader import xnat
from xnatuploader.records import Outcome, Row, Status
from xnatuploader.upload import files
from xnatuploader.upload.files import Fingerprint, Item, SendContext
from xnatuploader.upload.recording import STOPPED, PendingRows


def item(status: Status = Status.EMPTY, md5: str = "") -> Item:
    row = Row("a", filename="a.dcm", status=status, md5=md5)
    return Item(row, Path("a"), 10, 0, look_only=status is Status.SUCCESS)


def decided(one: Item, *there: xnat.RemoteFile, md5: str = "m1", overwrite: bool = False) -> str:
    """Return the status that is recorded, or 'send'."""
    names = {file.name: file for file in there}
    found = files.decide(one, Fingerprint(md5, 10), names, overwrite=overwrite)
    return found.status.value if isinstance(found, Outcome) else "send"


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_md5_is_success_under_any_name(overwrite: bool) -> None:
    assert decided(item(), xnat.RemoteFile("a.dcm", 10, "m1"), overwrite=overwrite) == "success"
    assert decided(item(), xnat.RemoteFile("b.dcm", 10, "m1"), overwrite=overwrite) == "success"


def test_another_file_of_the_name_is_a_conflict_unless_it_may_be_replaced() -> None:
    other = xnat.RemoteFile("a.dcm", 10, "m2")
    assert decided(item(), other) == "conflict"
    assert decided(item(), other, overwrite=True) == "send"
    assert decided(item(Status.FAILED, "M1"), other) == "send", "an earlier run saw it stored wrongly"
    assert decided(item(Status.FAILED, "m3"), other) == "conflict"
    assert decided(item(Status.SUCCESS, "m1"), other, overwrite=True) == "conflict", "it is only looked at"


def test_without_an_md5_sizes_are_compared() -> None:
    assert decided(item(), xnat.RemoteFile("a.dcm", 10, "")) == "success"
    assert decided(item(), xnat.RemoteFile("a.dcm", 10, ""), overwrite=True) == "send"
    assert decided(item(), xnat.RemoteFile("a.dcm", 11, "")) == "conflict"


def test_what_is_not_there_is_sent_and_what_was_sent_is_failed() -> None:
    assert decided(item(), xnat.RemoteFile("b.dcm", 10, "m2")) == "send"
    assert decided(item(Status.SUCCESS, "m1"), xnat.RemoteFile("b.dcm", 10, "m2")) == "failed"


def test_an_outcome_is_recorded_and_counted_once() -> None:
    said: list[Outcome] = []
    counted: list[int] = []
    context = SendContext(
        None,  # type: ignore[arg-type]
        "P",
        lambda row: Path(row.file),
        on_outcome=said.append,
        on_files=counted.append,
    )
    rows = PendingRows(context, [Row("a", scan_id="3"), Row("b", status=Status.SUCCESS), Row("c")], "5")
    rows.count("a")
    rows.record(Outcome("a", Status.SUCCESS, "there"))
    rows.record(Outcome("a", Status.FAILED, "later"))
    rows.interrupt()
    assert said == [
        Outcome("a", Status.SUCCESS, "there", scan_id="5"),
        Outcome("c", Status.INTERRUPTED, STOPPED, scan_id="5"),
    ], "b was only to be looked at again"
    assert counted == [1, 1]
    assert rows.open == {}
