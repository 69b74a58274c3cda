"""What differs on Windows, each through the small function that knows both systems; played on whatever this runs on."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from tests.helpers import builders
from tests.helpers.runs import BOOK, Runner, configure, rows, upload
from tests.helpers.sandbox_process import Sandbox
from xnatuploader import cli, paths
from xnatuploader.dicom import pool
from xnatuploader.dicom.reader import Rules
from xnatuploader.records import FoundFile, Status

# ---- paths in the commands that messages propose


@pytest.mark.parametrize(
    ("windows", "path", "wanted"),
    [
        (True, "D:\\MRT-Daten\\Jörg_1.xlsx", "D:\\MRT-Daten\\Jörg_1.xlsx"),
        (True, "D:\\my data\\a.xlsx", '"D:\\my data\\a.xlsx"'),
        (True, "D:\\Smith,John", '"D:\\Smith,John"'),  # PowerShell makes two arguments of it
        (True, "D:\\a;b{1}", '"D:\\a;b{1}"'),
        (True, "\\\\nas\\my data\\", '"\\\\nas\\my data\\\\"'),  # before a quote mark a backslash is doubled
        (False, "/data/a-1.xlsx", "/data/a-1.xlsx"),
        (False, "my data/O'Neil.xlsx", '"my data/O\'Neil.xlsx"'),
        (False, "a;b*[1]", '"a;b*[1]"'),
        (False, "cost $5", "'cost $5'"),
        (False, 'a "b" !\\', "'a \"b\" !\\'"),
    ],
)
def test_a_path_in_a_command_is_quoted_as_the_shells_of_the_system_want_it(
    windows: bool, path: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "is_windows", lambda: windows)
    assert paths.typed(path) == wanted
    if not windows:
        assert shlex.split(wanted) == [path]


# ---- paths with a root of their own


@pytest.mark.parametrize(
    ("folder", "file", "wanted"),
    [
        ("C:\\data", "a/b.dcm", "C:\\data\\a/b.dcm"),
        ("C:\\", "C:\\data\\a.dcm", "C:\\data\\a.dcm"),
        ("D:\\data", "C:\\data\\a.dcm", "C:\\data\\a.dcm"),
        ("\\\\nas\\mri\\", "\\\\nas\\mri\\a.dcm", "\\\\nas\\mri\\a.dcm"),
        ("\\\\nas\\mri", "a.dcm", "\\\\nas\\mri\\a.dcm"),
        ("\\\\?\\C:\\data", "a/b.dcm", "\\\\?\\C:\\data\\a\\b.dcm"),
        ("C:\\data", "x/" * 120 + "a.dcm", "\\\\?\\C:\\data\\" + "x\\" * 120 + "a.dcm"),
    ],
)
def test_a_file_below_a_folder_opens_on_windows(
    folder: str, file: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "is_windows", lambda: True)
    assert paths.joined(folder, file) == wanted


@pytest.mark.parametrize(
    ("folder", "file", "wanted"),
    [
        ("/data", "a/b.dcm", "/data/a/b.dcm"),
        ("/", "/data/a.dcm", "/data/a.dcm"),
        ("data", "/x/a.dcm", "/x/a.dcm"),
    ],
)
def test_a_file_below_a_folder_opens_elsewhere(
    folder: str, file: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "is_windows", lambda: False)
    assert paths.joined(folder, file) == wanted


def test_a_header_is_read_by_its_own_root_whatever_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(builders.dicom_bytes())
    found = [FoundFile(str(path.absolute()), 0, "")]
    ((_, header),) = pool.read_all(tmp_path / "elsewhere", found, (), Rules())
    assert header.values["Modality"] == "CT"


# ---- headers that cannot be read, where an upload needs them


def outcomes() -> dict[str, tuple[Status, str]]:
    return {row.file: (row.status, row.message) for row in rows()}


def damage(*files: Path) -> None:
    """Make headers unreadable; size and time of change stay, so that nothing else is amiss."""
    for file in files:
        found = file.stat()
        file.write_bytes((b"\0" * 128 + b"DICM").ljust(found.st_size, b"\xff"))
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.slow
def test_a_header_that_cannot_be_read_is_an_error_of_its_file_and_another_file_gives_the_type(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    first = next(file for file, _ in outcomes().items())
    damage(scanned / first)
    ran = upload(run, box)
    assert ran.code == 1, ran.err
    said = outcomes()
    status, message = said.pop(first)
    assert status is Status.FAILED
    assert "header" in message
    assert {status for status, _ in said.values()} == {Status.SUCCESS}


@pytest.mark.slow
def test_a_series_without_any_readable_header_does_not_go_out(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    first = next(iter(outcomes()))
    series = sorted((scanned / first).parent.iterdir())
    damage(*series)
    assert upload(run, box).code == 1
    failed = {file for file, (status, _) in outcomes().items() if status is Status.FAILED}
    assert failed == {path.relative_to(scanned).as_posix() for path in series}


@pytest.mark.slow
def test_a_file_that_is_gone_is_missing_and_another_one_tells(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    first = next(iter(outcomes()))
    (scanned / first).unlink()
    assert upload(run, box).code == 1
    said = outcomes()
    assert said.pop(first)[0] is Status.MISSING
    assert {status for status, _ in said.values()} == {Status.SUCCESS}


@pytest.mark.slow
@pytest.mark.parametrize("all_of_them", [False, True])
def test_names_do_not_slip_out_where_the_first_header_of_a_series_cannot_be_read(
    seed_tree: Path, run: Runner, box: Sandbox, all_of_them: bool
) -> None:
    """Who the patient is would not be known then, and a label with the name would pass."""
    assert run("init", "--spreadsheet", BOOK).code == 0
    configure("SessionLabel", "{SubjectName}_{Visit}_{Modality}")
    configure("Anonymize", "yes")
    assert run("scan", "--spreadsheet", BOOK, "--dir", seed_tree).code in (0, 1)
    files = {file: seed_tree / file for file in outcomes()}
    firsts = {path.parent: path for path in reversed(files.values())}
    damage(*(files.values() if all_of_them else firsts.values()))
    ran = upload(run, box)
    assert ran.code == (1 if all_of_them else 2), ran.err
    assert not any("Doe" in label for subject in box.state()["P"].values() for label in subject)
    assert box.files() == {}


@pytest.mark.slow
@pytest.mark.parametrize("uid", ["1.2.3", ""])
def test_names_do_not_slip_out_where_two_patients_share_the_uid_of_a_series(
    here: Path, run: Runner, box: Sandbox, uid: str
) -> None:
    for folder, name in (("Doe^John-0001", "Doe^John"), ("Zone-0342", "Roe^Jane")):
        builders.write_seed_file(
            here / "data_files",
            f"{folder}/20200312/Chest CT/a.dcm",
            SeriesInstanceUID=uid or None,
            PatientName=name,
        )
    assert run("init", "--spreadsheet", BOOK).code == 0
    configure("SessionLabel", "{SubjectName}_{Visit}_{Modality}")
    configure("Anonymize", "yes")
    run("scan", "--spreadsheet", BOOK, "--dir", here / "data_files")
    ran = upload(run, box)
    assert ran.code == 2, ran.err
    assert box.files() == {}
    assert box.state()["P"] == {}


@pytest.mark.slow
def test_what_was_sent_is_not_replaced_by_a_file_whose_header_is_another(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    assert upload(run, box).code == 0
    before = box.files()
    first = next(iter(outcomes()))
    damage(scanned / first)
    assert upload(run, box, "--verify").code == 0, "which needs no file on disk"
    assert outcomes()[first][0] is Status.SUCCESS
    assert upload(run, box, "--overwrite").code == 1
    assert outcomes()[first][0] is Status.FAILED
    assert box.files() == before


@pytest.mark.slow
@pytest.mark.parametrize("blank", [(), ("Filename",), ("Resource",), ("Filename", "Resource")])
def test_a_file_that_a_person_placed_goes_as_it_is(
    scanned: Path, run: Runner, box: Sandbox, blank: tuple[str, ...]
) -> None:
    """Though its header cannot be read; what the person left empty is filled in."""
    row = next(iter(rows()))
    odd = (scanned / row.file).with_name("odd.dcm")
    odd.write_bytes(b"")
    run("scan", "--spreadsheet", BOOK, "--dir", scanned)
    opened = openpyxl.load_workbook(BOOK)
    headings = [cell.value for cell in opened["Files"][1]]
    for cells in opened["Files"].iter_rows(min_row=2):
        if str(cells[headings.index("File")].value).endswith("odd.dcm"):
            given = {
                "Upload": "Y", "Subject": row.subject, "Session": row.session, "Dataset": row.dataset,
                "SessionLabel": row.session_label, "ScanID": row.scan_id, "Resource": "DICOM", "Filename": "odd.dcm",
            }  # fmt: skip
            for heading, value in given.items():
                cells[headings.index(heading)].value = "" if heading in blank else value
    opened.save(BOOK)
    ran = upload(run, box)
    assert ran.code == 0, ran.err
    assert len(box.files()) == 15


# ---- paths of 260 characters and more

ALIAS = "/proc/self/root"
"""Another name of the root, which plays the prefix of long paths."""


@pytest.fixture
def short_paths_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open only what is shorter than 260 characters or has the prefix, as Windows does."""

    def long_path(path: str | os.PathLike[str]) -> str:
        whole = os.path.abspath(path)  # noqa: PTH100
        return os.fspath(path) if len(whole) < 240 or whole.startswith(ALIAS) else ALIAS + whole

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: Any, *more: Any, **named: Any) -> Any:
            if isinstance(path, (str, os.PathLike)):
                whole = os.path.abspath(path)  # noqa: PTH100
                if len(whole) >= 260 and not os.fspath(path).startswith(ALIAS):
                    raise FileNotFoundError(errno.ENOENT, "No such file or directory", os.fspath(path))
            return real(path, *more, **named)

        return opening

    monkeypatch.setattr(paths, "long_path", long_path)
    for module, name in ((os, "open"), (os, "stat"), (io, "open"), (os, "scandir"), (os, "lstat")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))


@pytest.mark.slow
@pytest.mark.skipif(not Path(ALIAS).exists(), reason="another name of the root is a matter of Linux")
@pytest.mark.parametrize("way", ["plain", "cleaned", "imported", "again"])
def test_files_that_lie_deep_are_listed_and_sent(
    here: Path, run: Runner, box: Sandbox, short_paths_only: None, way: str
) -> None:
    deep = "Doe^John-0001/" + "a folder with a long name/" * 10 + "Chest CT/a.dcm"
    data = here / "data_files"
    for number in range(2):
        target = Path(ALIAS + str(data / deep.replace("a.dcm", f"a{number}.dcm")))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(builders.dicom_bytes(instance=str(number)))
    assert run("init", "--spreadsheet", BOOK).code == 0
    if way == "cleaned":
        configure("Anonymize", "yes")
    for _ in range(2 if way == "again" else 1):
        assert run("scan", "--spreadsheet", BOOK, "--dir", data).code == 0
    assert run("upload", "--test", "--spreadsheet", BOOK, "--dir", data).code == 0
    ran = upload(run, box, *(["--import-handler", "DICOM-zip"] if way == "imported" else []))
    assert ran.code == 0, ran.err
    assert {status for status, _ in outcomes().values()} == {Status.SUCCESS}
    assert len(box.files()) == 2


# ---- a worker that dies while it starts


def die(pipe: object) -> None:
    """Be a worker that ends before it says that it is ready."""
    os._exit(3)


def sleep(pipe: object) -> None:
    """Be a worker that never says so."""
    time.sleep(60)


@pytest.fixture
def far_ends_stay_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep a duplicate of each far end open in this process, so that no end of file tells that a worker has died.

    Windows does so by itself.
    """
    if os.name == "nt":
        yield
        return
    kept: list[int] = []
    context = multiprocessing.get_context("spawn")
    real = context.Pipe

    def pipe(*arguments: Any) -> Any:
        near, far = real(*arguments)
        kept.append(os.dup(far.fileno()))
        return near, far

    monkeypatch.setattr(type(context), "Pipe", lambda self, *arguments: pipe(*arguments))
    yield
    for descriptor in kept:
        os.close(descriptor)


def read_in_time(root: Path, **options: Any) -> list[Any]:
    """Read a folder's headers in a thread, so that a test sees a hang."""
    found = [FoundFile(f"{number}.dcm", 0, "") for number in range(40)]
    got: list[Any] = []
    worker = threading.Thread(
        target=lambda: got.extend(pool.read_all(root, found, (), Rules(), **options)), daemon=True
    )
    worker.start()
    worker.join(30)
    assert not worker.is_alive(), "it hangs"
    return got


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    for number in range(40):
        (tmp_path / f"{number}.dcm").write_bytes(builders.dicom_bytes(instance=str(number)))
    return tmp_path


@pytest.mark.slow
def test_a_worker_that_dies_while_it_starts_is_noticed(
    forty: Path, monkeypatch: pytest.MonkeyPatch, far_ends_stay_open: None
) -> None:
    monkeypatch.setattr(pool, "_serve", die)
    got = read_in_time(forty, workers=2)
    assert [header.values["Modality"] for _, header in got] == ["CT"] * 40


@pytest.mark.slow
def test_a_worker_that_never_starts_is_given_up(forty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_serve", sleep)
    monkeypatch.setattr(pool, "START_SECONDS", 0.5)
    got = read_in_time(forty, workers=2)
    assert [header.values["Modality"] for _, header in got] == ["CT"] * 40


# ---- standard output whose reader has gone


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EINVAL, "Invalid argument")])
def test_a_reader_of_standard_output_that_has_gone_is_no_error(
    error: OSError, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Windows says EINVAL where others say EPIPE."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise error

        def fileno(self) -> int:
            return descriptor

    with (tmp_path / "out").open("w") as out:
        descriptor = os.dup(out.fileno())
        monkeypatch.setattr("sys.stdout", Gone())
        assert cli.main(["help"]) == 0
        os.close(descriptor)


def test_another_error_of_standard_output_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    assert cli.main(["help"]) == 0
    assert "could not be written (No space left on device)" in capsys.readouterr().err
