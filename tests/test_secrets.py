"""Nothing secret in what a run prints or leaves behind, and no patient's name on screen or in a log at info level."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import builders
from tests.helpers.logins import token_of, write_login
from tests.helpers.runs import BOOK, Ran, Runner, configure, edit, set_cells, upload_words
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.terminal import Terminal

PASSWORD = "S3cret-p4ssword"
NAMES = ("Featherstonehaugh", "Cholmondeley", "19310405", "Wriothesley")
"""A patient's names and birth date, as they stand in paths and headers."""


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox whose only account has a password that is easy to find again."""
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], users=[f"ann:{PASSWORD}"]) as box:
        monkeypatch.setenv("XNAT_USER", box.user)
        monkeypatch.setenv("XNAT_PASS", box.password)
        yield box


def left_behind(*folders: Path, netrc: Path | None = None) -> bytes:
    """Return the bytes of every file below, workbooks unpacked, but for the netrc file itself."""
    import zipfile

    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path == netrc:
                continue
            found.append(path.name.encode())
            found.append(path.read_bytes())
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as package:
                    found += [package.read(name) for name in package.namelist()]
    return b"\n".join(found)


def assert_kept(secrets: list[str], ran: Ran, *folders: Path, netrc: Path | None = None) -> None:
    import base64

    forms = [form.encode() for form in secrets]
    forms += [base64.b64encode(form) for form in forms]
    held = left_behind(*folders, netrc=netrc) + ran.out.encode() + ran.err.encode()
    assert len(held) > 1000, "there is something to search"
    for form in forms:
        assert form not in held


# ---- secrets


@pytest.mark.slow
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_a_password_in_the_environment_stays_there(
    level: str, scanned: Path, here: Path, nobodys_home: Path, guarded: Sandbox, run: Runner
) -> None:
    guarded.fault("kill-session", every=7, times=3)
    guarded.fault("status", method="PUT", path="/files", first=2, times=2, status=503)
    ran = run(*upload_words(guarded.url, "--loglevel", level, "--json"))
    assert ran.code == 0, ran.err
    assert_kept([guarded.password], ran, here, nobodys_home)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        {"do": "status", "path": "/data/auth", "status": 401},
        {"do": "status", "path": "/data/auth", "status": 500},
        {"do": "status", "path": "/data/projects/P", "status": 500},
        {"do": "drop", "path": "/data/auth"},
        {"do": "html", "path": "/data/projects"},
        {"do": "disk-full", "method": "PUT", "path": "/files/"},
    ],
    ids=json.dumps,
)
def test_secrets_stay_hidden_when_things_go_wrong(
    fault: dict[str, object], scanned: Path, here: Path, nobodys_home: Path, guarded: Sandbox, run: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from xnatuploader.xnat import http

    monkeypatch.setattr(http.Clock, "wait", lambda self, event, seconds: event.is_set())
    alias, secret = token_of(guarded)
    monkeypatch.delenv("XNAT_USER")
    monkeypatch.delenv("XNAT_PASS")
    netrc = nobodys_home / ".netrc"
    write_login(netrc, guarded.url, alias, secret)
    before = netrc.read_bytes()
    guarded.fault(**fault)  # type: ignore[arg-type]
    ran = run(*upload_words(guarded.url, "--debug"))
    assert ran.code in (1, 3, 4, 5), ran.err
    assert_kept([secret, guarded.password], ran, here, nobodys_home, netrc=netrc)
    assert netrc.read_bytes() == before


@pytest.mark.slow
def test_a_session_cookie_is_nowhere(
    scanned: Path,
    here: Path,
    nobodys_home: Path,
    guarded: Sandbox,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from xnatuploader.xnat import http

    tokens: set[str] = set()
    plain = http.Connection.send

    def noting(self, request, token, *more):  # type: ignore[no-untyped-def]
        tokens.add(token)
        return plain(self, request, token, *more)

    monkeypatch.setattr(http.Connection, "send", noting)
    guarded.fault("kill-session", path="/data/projects", every=3, times=2)
    caplog.set_level(logging.DEBUG)  # of every library, also where the program's own log would leave it out
    ran = run(*upload_words(guarded.url, "--debug"))
    ran = replace(ran, err=ran.err + caplog.text)
    assert ran.code == 0
    assert len(tokens - {""}) >= 2
    assert_kept(sorted(tokens - {""}), ran, here, nobodys_home)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a POSIX matter")
@pytest.mark.parametrize("operation", ["upload", "check"])
def test_a_typed_password_is_nowhere_and_its_token_only_in_the_netrc_file(
    operation: str, scanned: Path, here: Path, nobodys_home: Path, guarded: Sandbox
) -> None:
    typed = upload_words(guarded.url, "--debug")
    if operation == "check":
        typed[0] = "check"
    with Terminal(typed, here, {"XNAT_USER": "", "XNAT_PASS": ""}) as terminal:
        terminal.wait_for("User name on ")
        terminal.type(f"{guarded.user}\n")
        terminal.wait_for("Password of ")
        terminal.type("wrong-S3cret\n")
        terminal.wait_for(r"(?s)refused the login.*User name on ")
        terminal.type(f"{guarded.user}\n")
        terminal.wait_for(r"(?s)Password of .*Password of ")
        terminal.type(f"{guarded.password}\n")
        assert terminal.end() == 0, terminal.seen
    netrc = nobodys_home / ".netrc"
    assert "The login was saved" in terminal.seen
    secret = netrc.read_text().split("password ")[1].split()[0]
    ran = Ran(0, terminal.seen, "")
    assert_kept([secret, guarded.password, "wrong-S3cret"], ran, here, nobodys_home, netrc=netrc)


@pytest.mark.slow
def test_a_broken_netrc_file_is_not_quoted(
    scanned: Path,
    here: Path,
    nobodys_home: Path,
    guarded: Sandbox,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XNAT_USER")
    monkeypatch.delenv("XNAT_PASS")
    netrc = nobodys_home / ".netrc"
    host = guarded.url.split("//")[1]
    netrc.write_text(f"machine {host} login ann password two S3cret words\nmachine\nS3cret\n")
    for operation in ("upload", "check"):
        line = upload_words(guarded.url, "--debug")
        line[0] = operation
        ran = run(*line)
        assert ran.code == 3
        assert_kept(["S3cret"], ran, here, netrc=netrc)


# ---- patients' names


@pytest.fixture
def named_tree(here: Path) -> Path:
    """A tree whose paths and headers are full of names, with something wrong in every way that scan knows."""
    folder = here / "data_files"
    header = {"PatientName": "Featherstonehaugh^Wriothesley", "PatientBirthDate": "19310405"}
    person = "Featherstonehaugh^Cholmondeley-0001"

    def write(path: str, **fields: str) -> None:
        builders.write_seed_file(folder, path, **{**header, **fields})

    for number in range(3):
        write(f"{person}/20200312/Chest CT/Wriothesley{number}.dcm")
    write(f"{person}/20200312/Chest CT/copy of Wriothesley.dcm", SOPInstanceUID="1.2.3.4")
    write(f"{person}/20200312/Neck CT/copy of Cholmondeley.dcm", SOPInstanceUID="1.2.3.4")
    write(f"{person}/20200312/Neck CT/Cholmondeley.dcm", BurnedInAnnotation="YES")
    write(f"{person}/20200312/Neck CT/dose.dcm", ImageType="DERIVED\\DOSE_INFO")
    write(f"{person}/20200312/Neck CT/dateless.dcm", StudyDate="")
    builders.write_dicom(folder / "Cholmondeley" / "no pattern fits Wriothesley.dcm")
    (folder / person / "20200312" / "Chest CT" / "Wriothesley.dcm").write_text("no DICOM")
    (folder / person / "20200312" / "Chest CT" / "Featherstonehaugh.dcm").write_bytes(
        b"\0" * 128 + b"DICM\x08"
    )
    return folder


def assert_nameless(ran: Ran, logs: bool = True) -> None:
    log = b"".join(path.read_bytes() for path in Path("logs").glob("*.log")) if logs else b""
    for name in NAMES:
        assert name not in ran.out
        assert name not in ran.err
        assert name.encode() not in log


def test_names_in_paths_and_headers_reach_neither_screen_nor_log(
    named_tree: Path, run: Runner, guarded: Sandbox
) -> None:
    run("init", "--spreadsheet", BOOK)
    for more in ([], ["--unmatched"], ["--json"], ["--strict"]):
        ran = run("scan", "--spreadsheet", BOOK, "--dir", named_tree, *more)
        assert ran.code in (0, 1)
        assert_nameless(ran)
    for name in NAMES[:2]:
        assert name.encode() in left_behind(Path(BOOK).parent), "the sheet itself shows them"
    set_cells("Upload", "Y", lambda row: row["Status"] in ("review", "duplicate", "skipped"))
    for more in ([], ["--verify"], ["--overwrite", "--json"]):
        assert_nameless(run(*upload_words(guarded.url, *more)))
    assert_nameless(
        run("check", "--spreadsheet", BOOK, "--server", guarded.url, "--project", "P", "--dir", named_tree)
    )


def test_nothing_fits_and_names_stay_hidden(named_tree: Path, run: Runner) -> None:
    run("init", "--spreadsheet", BOOK)
    configure("Nested", "Study-{ID}", "**", "{Directory}", "{filename}.dcm")
    ran = run("scan", "--spreadsheet", BOOK, "--dir", named_tree)
    assert "No file fits" in ran.out
    assert_nameless(ran)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        {"do": "status", "method": "PUT", "path": "/files/", "status": 403},
        {"do": "status", "method": "PUT", "path": "/files/", "status": 413},
        {"do": "status", "method": "PUT", "path": "/scans/", "status": 400},
        {"do": "lose", "method": "PUT", "path": "/files/"},
        {"do": "corrupt", "method": "PUT", "path": "/files/"},
        {"do": "truncate", "path": "/files", "keep": 1},
    ],
    ids=json.dumps,
)
def test_names_stay_hidden_when_files_fail(
    fault: dict[str, object], named_tree: Path, run: Runner, guarded: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xnatuploader.xnat import http

    monkeypatch.setattr(http.Clock, "wait", lambda self, event, seconds: event.is_set())
    run("init", "--spreadsheet", BOOK)
    run("scan", "--spreadsheet", BOOK, "--dir", named_tree)
    guarded.fault(**fault)  # type: ignore[arg-type]
    ran = run(*upload_words(guarded.url))
    assert ran.code in (1, 4, 5), ran.err
    assert_nameless(ran)


@pytest.mark.slow
def test_names_stay_hidden_when_files_are_unreadable_gone_or_changed(
    named_tree: Path, run: Runner, guarded: Sandbox
) -> None:
    run("init", "--spreadsheet", BOOK)
    run("scan", "--spreadsheet", BOOK, "--dir", named_tree)
    files = sorted(named_tree.rglob("Wriothesley?.dcm"))
    files[0].unlink()
    files[1].unlink()
    files[1].mkdir()
    builders.write_seed_file(named_tree, files[2].relative_to(named_tree).as_posix(), SOPInstanceUID="1.9.9")
    ran = run(*upload_words(guarded.url))
    assert ran.code == 1
    assert_nameless(ran)


@pytest.mark.slow
def test_conflicts_at_the_server_name_labels_only(named_tree: Path, run: Runner, guarded: Sandbox) -> None:
    run("init", "--spreadsheet", BOOK)
    run("scan", "--spreadsheet", BOOK, "--dir", named_tree)
    run(*upload_words(guarded.url))

    def move(opened: object) -> None:
        sheet = opened["Files"]  # type: ignore[index]
        headings = [cell.value for cell in sheet[1]]
        for cells in sheet.iter_rows(min_row=2):
            cells[headings.index("Status")].value = None
            cells[headings.index("Subject")].value = "0099"

    edit(move)
    ran = run(*upload_words(guarded.url))
    assert ran.code == 1
    assert "0001_20200312_CT" in ran.err
    assert_nameless(ran)


@pytest.mark.slow
def test_paths_are_shown_at_debug_level_and_in_the_plan(
    named_tree: Path, run: Runner, guarded: Sandbox
) -> None:
    """What the tests above search for can be found, where it is allowed."""
    run("init", "--spreadsheet", BOOK)
    ran = run("scan", "--spreadsheet", BOOK, "--dir", named_tree, "--debug")
    assert NAMES[0] in ran.err
    assert NAMES[0] in run("upload", "--spreadsheet", BOOK, "--dir", named_tree, "--test").out
