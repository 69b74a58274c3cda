"""What is decided of one file by what the server lists, and that each outcome is recorded once."""

from __future__ import annotations

from dataclasses import replace
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


def test_a_stop_takes_no_success_away() -> None:
    """With --verify a look that was broken off has found nothing against what was seen before."""
    said: list[Outcome] = []
    context = SendContext(None, "P", lambda row: Path(row.file), on_outcome=said.append)  # type: ignore[arg-type]
    there, new = Row("a", status=Status.SUCCESS), Row("b")
    rows = PendingRows(context, [there, new])
    context.stop.set()
    rows.fail([there, new], xnat.RequestFailed(0, "No answer came.", "connection"))
    assert said == [Outcome("b", Status.INTERRUPTED, STOPPED)]
    assert rows.open == {}


# ---- the same image with other bytes


def by_image(one: Item, image: xnat.RemoteFile, *, overwrite: bool = False) -> Item | Outcome:
    """Decide about a file whose image the server holds as `image`, whatever its name is there."""
    names = {image.name: image} if image.resource == "DICOM" else {}
    return files.decide(one, Fingerprint("m1", 10), names, overwrite=overwrite, find=lambda row: image)


CHANGED = xnat.RemoteFile("a.dcm", 12, "m2", "DICOM", "5")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("status", [Status.EMPTY, Status.CONFLICT, Status.FAILED])
def test_an_image_that_was_changed_on_arrival_is_never_sent(overwrite: bool, status: Status) -> None:
    for image in (CHANGED, replace(CHANGED, name="x.dcm"), replace(CHANGED, resource="secondary")):
        found = by_image(item(status, "m1"), image, overwrite=overwrite)
        assert isinstance(found, Outcome)
        assert (found.status, found.upload) == (Status.DUPLICATE, "N")
        assert f"file {image.name} in scan 5" in found.message


def sent(message: str, md5: str = "m1", *, look_only: bool = True) -> Item:
    one = item(Status.SUCCESS, md5)
    return replace(one, row=replace(one.row, message=message), look_only=look_only)


def test_what_was_sent_by_an_import_is_checked_by_its_image() -> None:
    for look_only in (True, False):
        found = by_image(
            sent("Archived. Checked: UID.", look_only=look_only), CHANGED, overwrite=not look_only
        )
        assert isinstance(found, Outcome)
        assert (found.status, found.scan_id, found.md5) == (Status.SUCCESS, "5", "m1")
        assert "SOPInstanceUID" in found.message


def test_what_was_seen_there_with_its_md5_and_changed_is_a_conflict_or_replaced() -> None:
    found = by_image(sent(files.CHECKED), CHANGED)
    assert isinstance(found, Outcome)
    assert found.status is Status.CONFLICT
    assert "--overwrite" not in found.message
    again = sent(files.CHECKED, look_only=False)
    assert by_image(again, CHANGED, overwrite=True) is again
    assert isinstance(by_image(again, replace(CHANGED, name="x.dcm"), overwrite=True), Outcome)
    edited = sent("The file on disk changed after it was sent.", "M2", look_only=False)
    assert by_image(edited, CHANGED, overwrite=True) is edited, "XNAT holds what this workbook sent"


def test_the_same_bytes_in_another_place_are_success() -> None:
    found = by_image(item(), xnat.RemoteFile("x.dcm", -1, "m1", "secondary", "7"))
    assert isinstance(found, Outcome)
    assert (found.status, found.scan_id) == (Status.SUCCESS, "7")
    assert "x.dcm, in scan 7" in found.message


@pytest.mark.parametrize("size", [10, -1])
def test_an_image_that_only_its_uid_tells_goes_by_that(size: int) -> None:
    """It lies in another scan of a site without checksums: neither MD5 nor size is told, so nothing differs."""
    row = Row("a", filename="a.dcm", status=Status.SUCCESS, message=files.CHECKED_SIZE)
    told = xnat.RemoteFile("x.dcm", -1, "", "DICOM", "9")
    one = Item(row, Path("a"), -1, 0, look_only=True)
    found = files.decide(one, Fingerprint("", size), {}, overwrite=False, find=lambda row: told)
    assert isinstance(found, Outcome)
    assert (found.status, found.scan_id) == (Status.SUCCESS, "9")
    assert "SOPInstanceUID" in found.message
