"""`check`: a line for each thing, `ok` or what to do, and the exit code of the first problem."""

from __future__ import annotations

import datetime
import json
import re
from collections import namedtuple
from pathlib import Path

import pytest

from tests.helpers.logins import write_login
from tests.helpers.runs import BOOK, Ran, Runner, configure
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.scripted_server import Reply, Scripted, Seen, Xnat
from tests.helpers.waiting import time_is
from xnatuploader import errors
from xnatuploader.commands import check
from xnatuploader.workbook import book, lock
from xnatuploader.xnat import http

SUBJECTS = [
    "versions", "temporary files", "workbook", "Configuration", "folder", "proxy", "server", "login", "project",
    "prearchive", "anonymisation", "checksums",
]  # fmt: skip
"""What is looked at, in this order."""


def looked(run: Runner, box: Sandbox, *more: str) -> Ran:
    return run("check", "--spreadsheet", BOOK, "--server", box.url, "--project", "P", *more)


def lines(ran: Ran) -> dict[str, tuple[str, str]]:
    """Read the lines: subject -> (ok or problem, text)."""
    found = {}
    for line in ran.out.splitlines():
        if match := re.match(r"(ok|problem) +([^:]+): (.*)", line):
            found[match[2]] = (match[1], match[3])
    return found


def test_everything_is_ready(scanned: Path, run: Runner, box: Sandbox) -> None:
    before = Path(BOOK).read_bytes()
    ran = looked(run, box)
    assert ran.code == 0, ran.out
    told = lines(ran)
    assert list(told) == SUBJECTS
    assert {word for word, _ in told.values()} == {"ok"}
    assert len(ran.out.splitlines()) == len(SUBJECTS), "one line each"
    assert "14 files" in told["workbook"][1]
    assert str(scanned) in told["folder"][1]
    assert box.url in told["server"][1]
    assert "without TLS" in told["server"][1]
    assert "XNAT_USER" in told["login"][1]
    assert "demo may add to it" in told["project"][1]
    assert "code 4" in told["prearchive"][1]
    assert told["checksums"][1].startswith("on")
    assert "Python" in told["versions"][1]
    assert Path(BOOK).read_bytes() == before
    logged = "".join(path.read_text(encoding="utf-8") for path in Path("logs").iterdir())
    assert all(line in logged for line in ran.out.splitlines())
    assert not Path(f"{BOOK}.lock").exists()
    assert box.count("PUT", "/data/projects") == 0


@pytest.mark.slow
def test_the_same_as_json(scanned: Path, run: Runner, box: Sandbox) -> None:
    said = json.loads(looked(run, box, "--json").out)
    assert (said["command"], said["exit_code"], said["problems"]) == ("check", 0, [])
    assert [one["subject"] for one in said["checks"]] == SUBJECTS
    assert all(one["ok"] for one in said["checks"])


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_first_problem(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAT_PASS", "wrong")
    ran = looked(run, box)
    assert ran.code == 3
    assert lines(ran)["login"][0] == "problem"
    ran = looked(run, box, "--dir", "nowhere", "--json")
    said = json.loads(ran.out)
    assert ran.code == said["exit_code"] == 2
    assert [problem.split(":")[0] for problem in said["problems"]] == ["folder", "login"]


def test_a_missing_workbook_is_a_problem_and_the_server_is_looked_at_all_the_same(
    here: Path, run: Runner, box: Sandbox
) -> None:
    ran = looked(run, box)
    assert ran.code == 2
    told = lines(ran)
    assert told["workbook"][0] == "problem"
    assert "init" in told["workbook"][1]
    assert told["project"][0] == "ok"


@pytest.mark.slow
def test_without_a_workbook_server_and_project_are_enough(here: Path, run: Runner, box: Sandbox) -> None:
    ran = run("check", "--server", box.url, "--project", "P")
    assert ran.code == 0, ran.out
    assert lines(ran)["project"][0] == "ok"
    assert run("check", "--server", box.url).code == 2


@pytest.mark.slow
def test_mistakes_in_the_configuration_are_told_with_their_cells(
    scanned: Path, run: Runner, box: Sandbox
) -> None:
    configure("Session", "DICOM:StudyDat")
    ran = looked(run, box)
    assert ran.code == 2
    assert "C" in lines(ran)["Configuration"][1]
    assert lines(ran)["checksums"][0] == "ok"


def test_server_and_project_that_nobody_gave_are_one_problem_each(scanned: Path, run: Runner) -> None:
    ran = run("check", "--spreadsheet", BOOK)
    assert ran.code == 2
    assert ran.out.count("problem  server and project") == 2
    assert "--server" in ran.out


@pytest.mark.slow
def test_a_workbook_that_is_open_in_excel_is_6(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(spreadsheet: Path) -> None:
        raise errors.SpreadsheetLocked(f"{spreadsheet} is open in Excel: close it.")

    monkeypatch.setattr(book, "probe", locked)
    ran = looked(run, box)
    assert ran.code == 6
    assert "Excel" in lines(ran)["workbook"][1]


@pytest.mark.slow
def test_a_workbook_that_another_run_holds_is_2(scanned: Path, run: Runner, box: Sandbox) -> None:
    with lock.hold(Path(BOOK)):
        ran = looked(run, box)
    assert ran.code == 2
    assert "in use by" in lines(ran)["workbook"][1]


@pytest.mark.slow
def test_results_of_an_earlier_run_that_wait_are_told(scanned: Path, run: Runner, box: Sandbox) -> None:
    from xnatuploader.records import Outcome, Status
    from xnatuploader.upload import journal

    with journal.Journal(Path(BOOK)) as written:
        written.outcome(Outcome("a.dcm", Status.SUCCESS, ""))
    assert "1 file of an earlier run" in lines(looked(run, box))["workbook"][1]


@pytest.mark.slow
def test_a_folder_without_the_listed_files_is_1(scanned: Path, here: Path, run: Runner, box: Sandbox) -> None:
    (here / "empty").mkdir()
    ran = looked(run, box, "--dir", "empty")
    assert ran.code == 1
    assert "--dir" in lines(ran)["folder"][1]


@pytest.mark.slow
@pytest.mark.parametrize(("free", "word"), [(5_000_000, "problem"), (5_000_000_000, "ok")])
def test_free_space_for_temporary_files(
    free: int, word: str, scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: usage(9, 9, free))
    ran = looked(run, box)
    assert lines(ran)["temporary files"][0] == word
    assert ran.code == (2 if word == "problem" else 0)


def test_a_project_that_is_not_there_or_read_only_is_5(scanned: Path, run: Runner, box: Sandbox) -> None:
    ran = run("check", "--spreadsheet", BOOK, "--server", box.url, "--project", "Nope")
    assert ran.code == 5
    assert "Nope" in lines(ran)["project"][1]
    assert "checksums" in lines(ran), "the rest is looked at"


@pytest.mark.slow
def test_a_reader_is_told_that_it_may_not_add(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.add_user("rita", "rita", "reader")
    monkeypatch.setenv("XNAT_USER", "rita")
    monkeypatch.setenv("XNAT_PASS", "rita")
    ran = looked(run, box)
    assert ran.code == 5
    assert "rita may read" in lines(ran)["project"][1]


@pytest.mark.slow
def test_checksums_that_are_off_are_told(scanned: Path, run: Runner, box: Sandbox) -> None:
    box.set(checksums=False)
    assert lines(looked(run, box))["checksums"] == ("ok", "off: only sizes can be compared")


@pytest.mark.slow
def test_a_script_of_the_site_is_told_with_both_ways_on(scanned: Path, run: Runner, box: Sandbox) -> None:
    box.set(anonymize_imports=True)
    ran = looked(run, box)
    assert ran.code == 0
    text = lines(ran)["anonymisation"][1]
    assert "the site" in text
    assert "--anonymize" in text
    assert "--import-handler" in text


@pytest.mark.parametrize(
    ("site", "project", "said"),
    [
        ("false", "false", "no script of site or project"),
        ("true", "true", "the site and the project"),
        ("false", "true", "script of the project is"),
        ("", "false", "does not say whether the site"),
    ],
)
def test_scripts_of_site_and_project_in_every_combination(
    site: str, project: str, said: str, run: Runner, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(seen: Seen) -> Reply:
        path = seen.path.split("?")[0]
        if path.endswith("/enableSitewideAnonymizationScript"):
            return Reply(200, site) if site else Reply(403)
        if path.endswith("/image/dicom/status"):
            return Reply(200, f'{{"ResultSet": {{"Result": [{{"edit": "{project}"}}]}}}}')
        if path.startswith("/xapi/anonymize"):
            return Reply(404)
        if path == "/data/projects/P":
            return Reply(200, '{"items": [{"data_fields": {"ID": "P"}}]}')
        if path == "/data/projects":
            return Reply(200, '{"ResultSet": {"Result": [{"id": "P"}]}}')
        return Reply(404)

    monkeypatch.setenv("XNAT_USER", "ann")
    monkeypatch.setenv("XNAT_PASS", "pw")
    with Scripted(Xnat(answer)) as server:
        ran = run("check", "--server", server.url, "--project", "P")
    assert said in lines(ran)["anonymisation"][1], ran.out
    assert "does not say" in lines(ran)["checksums"][1]


@pytest.mark.slow
def test_a_server_that_is_not_there_is_4(scanned: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNAT_USER", "ann")
    monkeypatch.setenv("XNAT_PASS", "pw")
    ran = run("check", "--spreadsheet", BOOK, "--server", "http://127.0.0.1:9", "--project", "P")
    assert ran.code == 4
    assert lines(ran)["server"][0] == "problem"
    assert "login" not in lines(ran)


@pytest.mark.slow
def test_no_login_is_3_with_the_lines_to_add(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XNAT_USER")
    monkeypatch.delenv("XNAT_PASS")
    ran = looked(run, box)
    assert ran.code == 3
    assert "machine 127.0.0.1" in ran.out


@pytest.mark.slow
def test_a_netrc_file_that_others_can_read_is_noted_and_no_problem(
    scanned: Path, run: Runner, box: Sandbox, nobodys_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XNAT_USER")
    monkeypatch.delenv("XNAT_PASS")
    netrc = nobodys_home / ".netrc"
    write_login(netrc, box.url, box.user, box.password)
    netrc.chmod(0o644)
    ran = looked(run, box)
    assert ran.code == 0
    assert "chmod 600" in lines(ran)["login"][1]
    assert "netrc file" in lines(ran)["login"][1]


@pytest.mark.slow
def test_the_server_may_stand_in_xnat_host(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAT_HOST", box.url)
    assert run("check", "--spreadsheet", BOOK, "--project", "P").code == 0
    monkeypatch.setenv("XNAT_HOST", "xnat.example.org")
    ran = run("check", "--spreadsheet", BOOK, "--project", "P")
    assert ran.code == 2
    assert "XNAT_HOST" in ran.out


@pytest.mark.slow
def test_a_proxy_is_named_without_its_login(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://me:S3cret@proxy.example.org:8080")
    found = check._Findings()
    check._proxy(found, "https://xnat.example.org")
    assert str(found.lines[0]) == "ok       proxy: proxy.example.org:8080"
    assert lines(looked(run, box))["proxy"][1] == "none"


NOON = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Sun, 01 Mar 2026 12:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 11:50:00 GMT", -600),
        ("Sun, 01 Mar 2026 13:00:00 GMT", 3600),
        ("", None),
        ("no date", None),
    ],
)
def test_clocks_are_compared(date: str, seconds: float | None, run: Runner) -> None:
    with time_is(NOON, http):
        assert http.seconds_until(date) == seconds


@pytest.mark.slow
def test_a_clock_that_is_wrong_is_noted(
    scanned: Path, run: Runner, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "seconds_until", lambda date: -7200.0)
    ran = looked(run, box)
    assert ran.code == 0
    assert "120 minutes apart" in lines(ran)["server"][1]
