"""`scan` over folders of whatever a hospital export holds: no file ends it, and the workbook opens everywhere."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

import openpyxl
import pydicom.errors
import pytest

from tests.helpers import builders, workbook_samples
from tests.helpers.runs import Runner
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.studies import Study
from xnatuploader.dicom import header, reader
from xnatuploader.records import Status
from xnatuploader.scan import find

FOLDER = "Doe^John-0001/20200312/Chest CT"
POSIX = pytest.mark.skipif(os.name != "posix", reason="names and links that only POSIX systems have")


@pytest.fixture
def study(run: Runner, here: Path) -> Study:
    made = Study(run, here)
    made.init()
    return made


def put(study: Study, name: str | bytes, data: bytes | None = None, **elements: object) -> Path:
    """Write a file into the series folder: these bytes, or a CT image with its own instance."""
    folder = study.data / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / os.fsdecode(name)
    if data is None:
        given = {"instance": str(len(list(folder.iterdir())) + 1), **elements}
        data = builders.dicom_bytes(**given)  # type: ignore[arg-type]
    path.write_bytes(data)
    return path


def opens_everywhere(study: Study, tmp_path: Path) -> None:
    """Hold the workbook against openpyxl, an XML parser on every part, and LibreOffice where it is."""
    assert openpyxl.load_workbook(study.book)["Files"].max_row > 1
    with zipfile.ZipFile(study.book) as package:
        assert package.testzip() is None
        for part in package.namelist():
            if part.endswith((".xml", ".rels")):
                ElementTree.fromstring(package.read(part))
    converted = workbook_samples.through_libreoffice(study.book, tmp_path / "saved")
    assert len(openpyxl.load_workbook(converted)["Files"]["A"]) == len(study.rows()) + 1


# --- one folder with a bit of everything


def nested(depth: int) -> bytes:
    return builders.nested_sequences(depth)


GOOD = builders.dicom_bytes(instance="900")
HOSTILE: dict[str, tuple[bytes, Status | None]] = {
    "empty.dcm": (b"", Status.SKIPPED),
    "preamble only.dcm": (b"\0" * 128 + b"DICM", Status.SKIPPED),
    "half a preamble.dcm": (b"\0" * 100, None),
    "meta only.dcm": (builders.raw_file(), Status.SKIPPED),
    "text.dcm": (b"Dear colleague, thank you for referring ...\n", None),
    "picture.dcm": (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(600), None),
    "zeros.dcm": (bytes(4096), None),
    "cut early.dcm": (builders.truncated_before(GOOD, "StudyInstanceUID"), Status.SKIPPED),
    "cut in a value.dcm": (GOOD[: builders.position(GOOD, "SeriesInstanceUID") + 12], Status.SKIPPED),
    "length too long.dcm": (builders.with_length(GOOD, "StudyDescription", 0xFFFE), Status.SKIPPED),
    "nested explicit.dcm": (nested(5_000), Status.SKIPPED),
    "nested implicit.dcm": (builders.nested_sequences(5_000, explicit=False), Status.SKIPPED),
    "unknown VR.dcm": (
        builders.with_vr(builders.dicom_bytes(instance="918"), "StudyDescription", b"Q!"),
        Status.EMPTY,
    ),
    "no deflate.dcm": (builders.raw_file(b"\xff" * 64, transfer_syntax="deflated"), Status.SKIPPED),
    "cut deflate.dcm": (builders.dicom_bytes(transfer_syntax="deflated")[:420], Status.SKIPPED),
    "no class.dcm": (builders.dicom_bytes(SOPClassUID=None, instance="901"), Status.SKIPPED),
    "report.dcm": (builders.dicom_bytes(Modality="SR", pixels=None, instance="902"), Status.SKIPPED),
    "pdf.dcm": (builders.dicom_bytes(Modality="DOC", pixels=None, instance="903"), Status.SKIPPED),
    "key object.dcm": (builders.dicom_bytes(Modality="KO", pixels=None, instance="904"), Status.SKIPPED),
    "state.dcm": (builders.dicom_bytes(Modality="PR", pixels=None, instance="905"), Status.SKIPPED),
    "dose.dcm": (
        builders.dicom_bytes(ImageType=["DERIVED", "SECONDARY", "A", "DOSE_INFO"], instance="906"),
        Status.SKIPPED,
    ),
    "burned.dcm": (builders.dicom_bytes(BurnedInAnnotation="YES", instance="907"), Status.REVIEW),
    "secondary.dcm": (builders.dicom_bytes(Modality="SC", instance="908"), Status.REVIEW),
    "no date.dcm": (builders.dicom_bytes(StudyDate=None, instance="909"), Status.UNMATCHED),
    "same.dcm": (GOOD, Status.DUPLICATE),
    "several values.dcm": (
        builders.dicom_bytes(StudyDescription=["Chest", "Abdo"], SeriesNumber=["2", "3"], instance="910"),
        Status.EMPTY,
    ),
    "empty tags.dcm": (
        builders.dicom_bytes(StudyDescription="", Manufacturer="", SeriesNumber="", instance="911"),
        Status.EMPTY,
    ),
    "charset.dcm": (
        builders.dicom_bytes(SpecificCharacterSet="nonsense", StudyDescription="M\xfcller", instance="912"),
        Status.EMPTY,
    ),
    "control.dcm": (
        builders.dicom_bytes(StudyDescription="Chest\x0bCT", Manufacturer="A\x00B", instance="913"),
        Status.EMPTY,
    ),
    "big endian.dcm": (builders.dicom_bytes(transfer_syntax="big", instance="914"), Status.EMPTY),
    "old.dcm": (builders.dicom_bytes(transfer_syntax="implicit", meta=False, instance="915"), Status.EMPTY),
    "deflated.dcm": (builders.dicom_bytes(transfer_syntax="deflated", instance="916"), Status.EMPTY),
    "formula.dcm": (builders.dicom_bytes(StudyDescription='=HYPERLINK("x")', instance="917"), Status.EMPTY),
}


@pytest.mark.slow
def test_every_hostile_file_is_a_row_with_a_reason_or_is_left_out(
    study: Study, tmp_path_factory: pytest.TempPathFactory
) -> None:
    put(study, "a good one.dcm", GOOD)
    for name, (data, _) in HOSTILE.items():
        put(study, name, data)
    ran = study.scan()
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err + ran.out
    assert "Unknown encoding" not in ran.err, "what pydicom says of single files is not for the screen"
    listed = study.rows()
    expected = {f"{FOLDER}/{name}": status for name, (_, status) in HOSTILE.items() if status is not None}
    assert {file: row.status for file, row in listed.items() if "good" not in file} == expected
    for row in listed.values():
        assert row.upload == (row.status is Status.EMPTY), row
        assert bool(row.message) == (row.status is not Status.EMPTY), row
    opens_everywhere(study, tmp_path_factory.mktemp("opened"))


def test_with_unmatched_also_what_is_no_dicom_is_a_row_and_stays_one(study: Study) -> None:
    for name, (data, _) in HOSTILE.items():
        put(study, name, data)
    left_out = {f"{FOLDER}/{name}" for name, (_, status) in HOSTILE.items() if status is None}
    assert study.scan("--unmatched").code == 0
    assert {file for file, row in study.rows().items() if "Not a DICOM file" in row.message} == left_out
    assert study.scan().code == 0
    assert {file for file, row in study.rows().items() if "Not a DICOM file" in row.message} == left_out


@pytest.mark.parametrize("date", ["***", "1994.11.05", "6B29FC40-CA47", "99999999", "2020031", "0"])
def test_odd_dates_end_nothing_and_stay_text(study: Study, date: str) -> None:
    put(study, "a.dcm", StudyDate=date)
    assert study.scan().code == 0
    row = study.row("a.dcm")
    assert (row.session, row.study_date, row.status) == (date, date, Status.EMPTY)
    assert re.fullmatch(r"0001_[A-Za-z0-9_-]+_CT", row.session_label)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        pydicom.errors.InvalidDicomError("no"),
        OSError(errno.EIO, "I/O error"),
        OSError("without a number"),
        PermissionError(errno.EACCES, "denied"),
        RecursionError("too deep"),
        zlib.error("bad data"),
        NotImplementedError("VR"),
        ValueError("embedded null byte"),
        TypeError("None"),
        KeyError("tag"),
        IndexError("list"),
        AttributeError("VR"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        struct.error("unpack"),
        OverflowError("int"),
        AssertionError(),
        EOFError(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_reading_raises_is_one_row(
    study: Study, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    put(study, "a.dcm")
    put(study, "odd.dcm", builders.dicom_bytes(transfer_syntax="big", instance="77"))

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(reader, "by_pydicom", fail)
    assert study.scan().code == 0
    assert study.row("a.dcm").status is Status.EMPTY
    row = study.row("odd.dcm")
    assert (row.status, row.upload) == (Status.SKIPPED, False)
    assert row.message.endswith((".", ".)"))
    assert FOLDER not in row.message


def test_folders_and_files_without_right_are_said_and_the_others_go_on(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(study, "a.dcm")
    locked = put(study, "locked.dcm")
    (study.data / "Secret^Sue-0009").mkdir()
    scandir, opener = os.scandir, os.open

    def refuse_folder(path: str) -> object:
        if "Secret" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    def refuse_file(path: str, *rest: int) -> int:
        if os.fspath(path).endswith(locked.name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opener(path, *rest)

    monkeypatch.setattr(find.os, "scandir", refuse_folder)
    monkeypatch.setattr(header.os, "open", refuse_file)
    ran = study.scan("--unmatched")
    assert ran.code == 0
    assert study.row("a.dcm").status is Status.EMPTY
    assert (study.row("locked").status, "right" in study.row("locked").message) == (Status.SKIPPED, True)
    folder = study.row("Secret^Sue-0009")
    assert (folder.status, "permission" in folder.message) == (Status.UNMATCHED, True)
    assert "no permission to open this folder" in ran.out
    assert "Secret" not in ran.out + ran.err


def test_files_that_vanish_while_they_are_read_are_missing(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(study, "a.dcm")
    gone = put(study, "gone.dcm")
    opener = os.open

    def vanish(path: str, *rest: int) -> int:
        if os.fspath(path).endswith(gone.name):
            gone.unlink(missing_ok=True)
        return opener(path, *rest)

    monkeypatch.setattr(header.os, "open", vanish)
    assert study.scan().code == 0
    row = study.row("gone.dcm")
    assert (row.status, row.upload) == (Status.MISSING, False)


# --- what only POSIX systems have


ODD_NAMES = (
    b"caf\xe9.dcm",
    b"bell\x07 and \x1b[31m.dcm",
    b"new\nline.dcm",
    b"tab\tin.dcm",
    b"_x0041_.dcm",
    b"=1+1.dcm",
    b"'quoted'.dcm",
    b"back\\slash.dcm",
    b"#hash?query&amp;<b>.dcm",
    " M\u00fcller \U0001f600.dcm".encode(),
    "u\u0308 decomposed.dcm".encode(),
    "\uffff\ufdd0.dcm".encode(),
    b" leading and trailing .dcm",
)


@pytest.mark.slow
@POSIX
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes only UTF-8 names")
def test_odd_file_names_are_listed_sent_and_opened_again_by_their_cell(
    study: Study, run: Runner, box: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = [put(study, name, instance=str(number)) for number, name in enumerate(ODD_NAMES, 1)]
    assert study.scan().code == 0
    rows = study.rows()
    assert sorted(rows) == sorted(f"{FOLDER}/{path.name}" for path in paths)
    opens_everywhere(study, tmp_path_factory.mktemp("opened"))
    before = study.texts()
    assert study.scan().code == 0
    assert study.texts() == before, "the cells find their files again"
    ran = run(
        "upload", "--spreadsheet", study.book, "--dir", study.data, "--server", box.url, "--project", "P"
    )
    assert ran.code == 0, ran.err + ran.out
    for row in study.rows().values():
        sent = (study.data / row.file).read_bytes()
        assert (row.status, row.md5) == (Status.SUCCESS, hashlib.md5(sent).hexdigest())
        place = box.archive / "P" / "arc001" / row.session_label / "SCANS" / row.scan_id / "DICOM"
        assert (place / row.filename).read_bytes() == sent


@POSIX
def test_pipes_links_and_loops_neither_block_nor_come_twice(study: Study) -> None:
    put(study, "a.dcm")
    folder = study.data / FOLDER
    os.mkfifo(folder / "pipe.dcm")
    (folder / "dangling.dcm").symlink_to(folder / "nowhere.dcm")
    (folder / "self.dcm").symlink_to(folder / "self.dcm")
    (folder / "loop").symlink_to(study.data, target_is_directory=True)
    (study.data / "Again^Ann-0002").symlink_to(study.data / "Doe^John-0001", target_is_directory=True)
    elsewhere = study.data.parent / "elsewhere"
    builders.write_dicom(elsewhere / "20200401" / "Head" / "b.dcm", study="other", StudyDate="20200401")
    (study.data / "Linked^Lee-0003").symlink_to(elsewhere, target_is_directory=True)
    assert study.scan().code == 0
    rows = study.rows()
    fine = {file for file, row in rows.items() if row.status is Status.EMPTY}
    assert fine == {f"{FOLDER}/a.dcm", "Linked^Lee-0003/20200401/Head/b.dcm"}
    assert rows[f"{FOLDER}/pipe.dcm"].status is Status.SKIPPED
    assert rows[f"{FOLDER}/dangling.dcm"].status is Status.SKIPPED
    assert rows[f"{FOLDER}/self.dcm"].status is Status.SKIPPED
    assert len(rows) == 5


# --- memory


@pytest.mark.slow
def test_a_deflate_bomb_takes_little_memory(study: Study) -> None:
    resource = pytest.importorskip("resource")
    path = study.data / FOLDER / "bomb.dcm"
    builders.write_deflate_bomb(path, 64)
    put(study, "a.dcm")
    study.scan()  # what is imported on the way counts no more
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    builders.write_deflate_bomb(path, 128)
    assert study.scan().code == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < (40 << 10 if sys.platform != "darwin" else 40 << 20)
    assert study.row("bomb.dcm").status is Status.SKIPPED
    assert study.row("a.dcm").status is Status.EMPTY


def test_of_a_large_file_only_the_header_is_read(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(study, "large.dcm", pixels=2_000_000)
    opened: list[str] = []
    read = 0
    opener, os_read, positioned = os.open, os.read, getattr(os, "pread", None)

    def counted_open(name: str, *rest: int) -> int:
        if os.fspath(name).endswith(".dcm"):
            opened.append(os.fspath(name))
        return opener(name, *rest)

    def counted_read(handle: int, size: int) -> bytes:
        nonlocal read
        data = os_read(handle, size)
        read += len(data)
        return data

    def counted_pread(handle: int, size: int, offset: int) -> bytes:
        nonlocal read
        assert positioned is not None
        data: bytes = positioned(handle, size, offset)
        read += len(data)
        return data

    monkeypatch.setattr(os, "open", counted_open)
    monkeypatch.setattr(os, "read", counted_read)
    if positioned is not None:
        monkeypatch.setattr(os, "pread", counted_pread)
    assert study.scan().code == 0
    assert opened == [str(path)]
    assert 0 < read <= 16 << 10
