"""Runs that nobody watches: no questions, no lost logins, the right code, stopping in time, waiting for a server."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.helpers.logins import token_of, write_login
from tests.helpers.runs import BOOK, Runner, rows, upload_words, variables
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.scripted_server import Reply, Scripted
from tests.helpers.waiting import eventually, time_is
from xnatuploader.console import progress
from xnatuploader.records import Status
from xnatuploader.upload import direct, summary
from xnatuploader.xnat import login


@pytest.fixture
def netrc(box: Sandbox, nobodys_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the login into a netrc file in place of the environment."""
    monkeypatch.delenv("XNAT_USER")
    monkeypatch.delenv("XNAT_PASS")
    file = nobodys_home / ".netrc"
    write_login(file, box.url, box.user, box.password)
    return file


def apart(url: str, *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a scheduler does: a process of its own, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "xnatuploader", *upload_words(url, *more)],
        env=variables(**environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


# ---- credentials, and nobody to ask


def test_the_environment_comes_before_the_netrc_file(
    scanned: Path, box: Sandbox, netrc: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_login(netrc, box.url, "nobody", "wrong")
    monkeypatch.setenv("XNAT_USER", box.user)
    monkeypatch.setenv("XNAT_PASS", box.password)
    assert run(*upload_words(box.url)).code == 0


def test_the_netrc_file_serves_a_run_without_a_terminal(
    scanned: Path, box: Sandbox, netrc: Path, run: Runner
) -> None:
    before = netrc.read_bytes()
    assert run(*upload_words(box.url)).code == 0
    assert netrc.read_bytes() == before
    assert ".netrc" in the_log()


def the_log() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in Path("logs").glob("*.log"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="closing descriptors by a shell is a POSIX matter")
@pytest.mark.parametrize("stdin", ["</dev/null", "<&-", "| cat", "endless"])
def test_no_login_and_no_terminal_ends_at_once_whatever_stdin_is(
    stdin: str, scanned: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XNAT_USER")
    monkeypatch.delenv("XNAT_PASS")
    program = " ".join(["exec", sys.executable, "-m", "xnatuploader", *upload_words(box.url)])
    if stdin == "endless":  # a pipe that stays open and never says anything
        reader, writer = os.pipe()
        process = subprocess.Popen(
            ["sh", "-c", program], stdin=reader, stderr=subprocess.PIPE, env=variables()
        )
        try:
            said = process.communicate(timeout=60)[1].decode()
        finally:
            os.close(reader)
            os.close(writer)
        code = process.returncode
    else:
        line = f"echo secret | {program}" if stdin == "| cat" else f"{program} {stdin}"
        done = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, env=variables(), timeout=60, check=False
        )
        code, said = done.returncode, done.stderr
    assert code == 3
    assert "machine 127.0.0.1" in said
    assert ".netrc" in said
    assert box.files() == {}


@pytest.mark.slow
def test_the_server_may_stand_in_xnat_host_as_the_last_resort(
    scanned: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAT_HOST", box.url)
    ran = run("upload", "--spreadsheet", BOOK, "--dir", "data_files", "--project", "P")
    assert ran.code == 0, ran.err
    monkeypatch.setenv("XNAT_HOST", "http://127.0.0.1:9")
    assert run(*upload_words(box.url, "--verify")).code == 0, "an option beats it"


# ---- whatever goes wrong at the login, the saved login survives, and nothing is sent


def refusing(
    status: int, body: str = "<html><h3>no</h3></html>", headers: dict[str, str] | None = None
) -> Scripted:
    return Scripted(lambda seen: Reply(status, body, headers or {}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again without pauses."""
    from xnatuploader.xnat import http

    monkeypatch.setattr(http.Clock, "wait", lambda self, event, seconds: event.is_set())


CASES: dict[str, tuple[Callable[[], Scripted], str, int, str]] = {
    "wrong password": (lambda: refusing(401), "", 3, "refused"),
    "an expired token": (lambda: refusing(403, "<h3>security token has expired or is invalid</h3>"), "", 3, "expired"),
    "an expired password": (lambda: refusing(302, "", {"Location": "/app/template/XDATScreen_UpdateUser.vm"}), "", 3,
        "password"),
    "500": (lambda: refusing(500), "", 4, "500"),
    "502": (lambda: refusing(502), "", 4, "502"),
    "503": (lambda: refusing(503), "", 4, "503"),
    "404": (lambda: refusing(404), "", 4, "No XNAT"),
    "a wrong path that serves HTML": (lambda: refusing(200, "<html><h1>Welcome to our hospital</h1></html>"), "/wrong",
        4, "No XNAT"),
    "another host": (lambda: refusing(302, "", {"Location": "http://elsewhere.example.org/"}), "", 4, "elsewhere"),
    "redirects in circles": (lambda: Scripted(lambda seen: Reply(302, "", {"Location": f"{seen.path}x/"})), "", 4,
        "circles"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_error_at_the_login_has_its_message_and_code_and_the_netrc_file_stays(
    name: str, scanned: Path, nobodys_home: Path, run: Runner, quick: None
) -> None:
    make, path, code, said = CASES[name]
    netrc = nobodys_home / ".netrc"
    with make() as site:
        write_login(netrc, site.url, "ann", "S3cret-netrc")
        before, book = netrc.read_bytes(), Path(BOOK).read_bytes()
        ran = run(*upload_words(site.url + path))
    assert ran.code == code, ran.err
    assert said in ran.err
    assert len([line for line in ran.err.splitlines() if line.startswith("xnatuploader:")]) == 1
    assert "S3cret" not in ran.err + the_log()
    assert netrc.read_bytes() == before
    assert Path(BOOK).read_bytes() == book
    assert not [seen for seen in site.seen if seen.method == "PUT"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9", "127.0.0.1:9"),
        ("https://no-such-computer.invalid", "no-such-computer.invalid"),
    ],
)
def test_a_server_that_is_not_there_is_4_and_the_netrc_file_stays(
    address: str, said: str, scanned: Path, nobodys_home: Path, run: Runner, quick: None
) -> None:
    netrc = nobodys_home / ".netrc"
    write_login(netrc, address, "ann", "S3cret-netrc")
    before = netrc.read_bytes()
    ran = run(*upload_words(address))
    assert ran.code == 4
    assert said in ran.err
    assert netrc.read_bytes() == before


@pytest.mark.slow
def test_a_context_path_works_and_one_that_was_forgotten_is_named(
    scanned: Path, tmp_path_factory: pytest.TempPathFactory, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAT_USER", "demo")
    monkeypatch.setenv("XNAT_PASS", "demo")
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], context="/xnat") as box:
        assert box.url.endswith("/xnat")
        ran = run(*upload_words(box.url.removesuffix("/xnat")))
        assert (ran.code, "/xnat" in ran.err) == (4, True)
        assert run(*upload_words(box.url)).code == 0


# ---- TLS and proxies


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(
    authority: trustme.CA,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Sandbox]:
    """A sandbox with TLS whose authority nobody knows."""
    certificate = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    monkeypatch.setenv("XNAT_USER", "demo")
    monkeypatch.setenv("XNAT_PASS", "demo")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], cert=str(cert), key=str(key)) as box:
        yield box


@pytest.mark.slow
def test_an_unknown_authority_is_4_and_names_the_variable_that_makes_it_known(
    scanned: Path,
    secured: Sandbox,
    authority: trustme.CA,
    tmp_path: Path,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = run(*upload_words(secured.url))
    assert ran.code == 4
    assert "certificate" in ran.err
    assert "REQUESTS_CA_BUNDLE" in ran.err
    assert secured.count() == 0, "no login was sent"
    bundle = tmp_path / "hospital.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    ran = run(*upload_words(secured.url))
    assert ran.code == 0, ran.err
    assert len(secured.files()) == 14
    ran = run("check", "--spreadsheet", BOOK, "--server", secured.url, "--project", "P")
    assert ran.code == 0
    assert "TLS" in ran.out


@pytest.mark.slow
def test_a_bundle_that_is_not_there_is_2(
    scanned: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/hospital.pem")
    ran = run(*upload_words(box.url))
    assert ran.code == 2
    assert "hospital.pem" in ran.err


@pytest.mark.slow
def test_http_that_moves_to_https_gets_no_login_in_the_open(
    scanned: Path,
    secured: Sandbox,
    authority: trustme.CA,
    tmp_path: Path,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tmp_path / "hospital.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with Scripted(lambda seen: Reply(301, "", {"Location": f"{secured.url}{seen.path}"})) as plain:
        assert run(*upload_words(plain.url)).code == 0
    assert not [seen for seen in plain.seen if seen.headers.get("Authorization")]
    assert len(secured.files()) == 14


def test_a_proxy_that_is_not_there_is_4_and_named_without_its_password(
    scanned: Path, run: Runner, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAT_USER", "demo")
    monkeypatch.setenv("XNAT_PASS", "demo")
    monkeypatch.setenv("HTTP_PROXY", "http://me:S3cret-proxy@127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://me:S3cret-proxy@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for operation in ("upload", "check"):
        ran = run(
            operation,
            "--spreadsheet",
            BOOK,
            "--server",
            "http://xnat.example.org",
            "--project",
            "P",
            "--debug",
        )
        assert ran.code == 4
        assert "proxy 127.0.0.1:9" in ran.err + ran.out
        assert "S3cret" not in ran.err + ran.out + the_log()


@pytest.mark.slow
def test_a_run_through_a_proxy_works(
    scanned: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forwarding proxy in a few lines; the server's name is one that only the proxy can resolve."""
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def forward(seen):  # type: ignore[no-untyped-def]
        target = box.url + re.sub(r"^https?://[^/]+", "", seen.path)
        kept = {
            k: v
            for k, v in seen.headers.items()
            if k.lower() not in ("host", "proxy-connection", "connection")
        }
        body = seen.body if seen.method in ("PUT", "POST") else None
        request = urllib.request.Request(target, data=body, method=seen.method, headers=kept)
        try:
            answer = opener.open(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        headers = {k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "set-cookie")}
        return Reply(answer.status, answer.read(), headers)

    with Scripted(forward) as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        ran = run(*upload_words("http://xnat.example.invalid"))
        assert ran.code == 0, ran.err
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert len(box.files()) == 14


# ---- logins that end


@pytest.mark.slow
def test_a_saved_token_is_told_at_the_start_and_warned_of_in_time(
    scanned: Path, box: Sandbox, netrc: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.set(token_timeout=1800, latency=0.05)
    write_login(netrc, box.url, *token_of(box))
    ran = run(*upload_words(box.url))
    assert ran.code == 0
    assert "The login works until" in ran.err
    assert "The login works until" in the_log()
    assert ran.err.count("The login ends on") == 1
    assert "WARNING" in the_log()


@pytest.mark.slow
def test_a_session_that_ends_in_the_middle_costs_nothing(
    scanned: Path, box: Sandbox, netrc: Path, run: Runner
) -> None:
    write_login(netrc, box.url, *token_of(box))
    box.fault("kill-session", every=5, times=6)
    ran = run(*upload_words(box.url))
    assert ran.code == 0, ran.err
    assert {row.status for row in rows()} == {Status.SUCCESS}


@pytest.mark.slow
def test_a_token_that_ends_in_the_middle_is_3_with_everything_saved_and_the_next_login_goes_on(
    scanned: Path, box: Sandbox, netrc: Path, run: Runner
) -> None:
    write_login(netrc, box.url, *token_of(box))
    before = netrc.read_bytes()
    box.set(latency=0.03)

    def end_it() -> None:
        assert eventually(lambda: box.count("PUT", "/files/") >= 1)
        box.expire_tokens()
        box.kill_sessions()

    helper = threading.Thread(target=end_it)
    helper.start()
    ran = run(*upload_words(box.url, "--jobs", "1"))
    helper.join()
    assert ran.code == 3, ran.err
    assert "expired" in ran.err
    statuses = [row.status for row in rows()]
    assert set(statuses) <= {Status.SUCCESS, Status.INTERRUPTED}
    assert Status.INTERRUPTED in statuses
    assert "left to send" in ran.out
    assert netrc.read_bytes() == before
    assert not Path(f"{BOOK}.lock").exists()
    write_login(netrc, box.url, box.user, box.password)
    assert run(*upload_words(box.url)).code == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}


NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.timezone.utc)


def in_hours(hours: float) -> datetime.datetime:
    return NOW + datetime.timedelta(hours=hours)


def warned(forecast: login.Forecast, seconds_left: float | None, now: datetime.datetime = NOW) -> str:
    with time_is(now, login):
        return forecast.warning(seconds_left)


def test_a_login_that_outlasts_the_work_is_no_warning() -> None:
    assert warned(login.Forecast(in_hours(5)), 3600.0) == ""
    assert warned(login.Forecast(in_hours(0.5)), 600.0) == "", "even in its last hour"
    assert warned(login.Forecast(None), 1e9) == ""


def test_work_that_outlasts_the_login_is_said_once_and_again_an_hour_before_its_end() -> None:
    forecast = login.Forecast(in_hours(5))
    assert "9 hours" in warned(forecast, 9 * 3600.0)
    assert warned(forecast, 9 * 3600.0) == ""
    assert warned(forecast, 5 * 3600.0, in_hours(3.9)) == ""
    assert "5 hours" in warned(forecast, 5 * 3600.0, in_hours(4.1))
    assert warned(forecast, 5 * 3600.0, in_hours(4.5)) == ""


def test_a_login_in_its_last_hour_is_said_before_the_pace_is_known() -> None:
    forecast = login.Forecast(in_hours(2))
    assert warned(forecast, None) == ""
    assert "xnatuploader check" in warned(forecast, None, in_hours(1.5))
    assert warned(forecast, None, in_hours(1.6)) == ""


# ---- stopping in time, and waiting


@pytest.mark.slow
def test_max_duration_ends_with_0_and_what_is_left_is_interrupted_and_told(
    scanned: Path, box: Sandbox, run: Runner
) -> None:
    ran = run(*upload_words(box.url, "--max-duration", "0:00", "--json"))
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["files"] == {"interrupted": 14}
    assert box.files() == {}
    assert run(*upload_words(box.url)).code == 0
    assert {row.status for row in rows()} == {Status.SUCCESS}


@pytest.mark.slow
def test_until_stops_a_run_in_its_middle(
    scanned: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xnatuploader.commands import upload

    box.set(latency=0.1)
    soon = datetime.datetime.now() + datetime.timedelta(seconds=3)
    monkeypatch.setattr(upload, "deadline", lambda *_: soon)
    ran = run(*upload_words(box.url, "--jobs", "1"))
    assert ran.code == 0, ran.err
    counted = {status: [row.status for row in rows()].count(status) for status in Status}
    left = counted[Status.INTERRUPTED]
    assert left > 0
    assert counted[Status.SUCCESS] + left == 14
    assert f"Stopped in time, as asked: {left} file" in ran.out
    assert len(box.files()) >= counted[Status.SUCCESS]


@pytest.mark.parametrize(
    ("now", "until", "expected"),
    [("2026-03-01 22:00", "06:00", "2026-03-02 06:00"), ("2026-03-01 05:00", "06:00", "2026-03-01 06:00")],
)
def test_until_is_the_next_time_that_the_clock_shows_it(now: str, until: str, expected: str) -> None:
    from xnatuploader.commands.options import time_of_day
    from xnatuploader.upload.options import deadline

    at = deadline(time_of_day(until), None, datetime.datetime.fromisoformat(now))
    assert at == datetime.datetime.fromisoformat(expected)


@pytest.mark.slow
def test_a_server_that_comes_back_is_waited_for_at_the_start(
    scanned: Path, tmp_path_factory: pytest.TempPathFactory, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAT_USER", "demo")
    monkeypatch.setenv("XNAT_PASS", "demo")
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"]) as box:
        url = box.url
        box.stop()
        monkeypatch.setattr(login, "SECONDS_UNTIL_IT_IS_WAITING", 0.5)
        helper = threading.Timer(2.0, box.start)
        helper.start()
        ran = run(*upload_words(url, "--wait", "0:02"))
        helper.join()
        assert ran.code == 0, ran.err
        assert ran.err.count("does not answer yet") == 1
        assert "does not answer yet" in the_log()
        assert len(box.files()) == 14


def test_waiting_ends_when_the_working_day_begins(
    scanned: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xnatuploader.commands import upload

    monkeypatch.setenv("XNAT_USER", "demo")
    monkeypatch.setenv("XNAT_PASS", "demo")
    soon = datetime.datetime.now() + datetime.timedelta(seconds=1)
    monkeypatch.setattr(upload, "deadline", lambda *_: soon)
    ran = run(*upload_words("http://127.0.0.1:9", "--wait", "8:00", "--until", "06:00"))
    assert ran.code == 4


# ---- one run at a time; folders


@pytest.mark.slow
def test_a_second_run_on_the_same_workbook_is_2_and_names_who_has_it(
    scanned: Path, box: Sandbox, run: Runner
) -> None:
    box.set(latency=0.1)
    first = subprocess.Popen(
        [sys.executable, "-m", "xnatuploader", *upload_words(box.url)],
        env=variables(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert eventually(lambda: Path(f"{BOOK}.lock").exists())
        assert eventually(lambda: box.count() > 0)
        for operation in (upload_words(box.url), ["scan", "--spreadsheet", BOOK, "--dir", "data_files"]):
            ran = run(*operation)
            assert ran.code == 2
            assert str(first.pid) in ran.err
            assert "since" in ran.err
    finally:
        assert first.wait(90) == 0


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["scan", "upload", "check"])
@pytest.mark.parametrize(
    ("folder", "said"),
    [("Q:\\study", "drive Q:"), ("\\\\nas01\\mri\\study", "network folder"), ("nowhere", "--dir")],
)
def test_a_folder_that_is_not_there_is_2_and_says_what_to_do(
    operation: str, folder: str, said: str, scanned: Path, box: Sandbox, run: Runner
) -> None:
    ran = run(operation, "--spreadsheet", BOOK, "--dir", folder, *(
        [] if operation == "scan" else ["--server", box.url, "--project", "P"]
    ))  # fmt: skip
    assert ran.code == 2
    assert said in ran.err + ran.out
    assert folder in ran.err + ran.out


# ---- what is said while it lasts


@pytest.mark.slow
def test_without_a_terminal_plain_lines_appear_and_every_second_one_is_in_the_log(
    scanned: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    box.set(latency=0.03)
    ran = run(*upload_words(box.url, "--jobs", "1"))
    assert ran.code == 0
    lines = [line for line in ran.err.splitlines() if line.startswith("Scans: ")]
    logged = [line for line in the_log().splitlines() if "Scans: " in line]
    assert len(lines) >= 4
    assert len(logged) == len(lines) // 2
    assert re.search(r"Scans: \d of 4 scans, .*; Files: \d+ of \d+ files", lines[-1])
    assert "\r" not in ran.err


def test_lines_come_every_30_seconds_on_the_screen_and_every_minute_in_the_log() -> None:
    assert progress.SECONDS_BETWEEN_LINES == 30.0
    assert progress.SECONDS_BETWEEN_LINES * progress.LINES_PER_LOG_LINE == 60.0


# ---- how runs end


@pytest.mark.slow
def test_sigterm_ends_a_scheduled_run_with_130_and_everything_saved(scanned: Path, box: Sandbox) -> None:
    box.set(latency=0.2)
    process = subprocess.Popen(
        [sys.executable, "-m", "xnatuploader", *upload_words(box.url, "--jobs", "1")],
        env=variables(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert eventually(lambda: box.count("PUT", "/data/projects") > 0)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "left to send" in out, err
    assert Status.INTERRUPTED in {row.status for row in rows()}


@pytest.mark.parametrize(
    ("codes", "by_user", "bad", "expected"),
    [
        ([], False, False, 0),
        ([], False, True, 1),
        ([6], False, True, 6),
        ([5, 6], False, True, 5),
        ([6, 4], False, False, 4),
        ([4, 3], False, True, 3),
        ([3, 6], True, True, 130),
        ([], True, True, 130),
        ([1], False, False, 1),
    ],
)
def test_of_several_exit_codes_the_first_in_the_table_counts(
    codes: list[int], by_user: bool, bad: bool, expected: int
) -> None:
    from xnatuploader import errors

    kinds = {3: errors.LoginRefused, 4: errors.ServerUnreachable, 5: errors.ProjectRefused,
             6: errors.SpreadsheetLocked, 1: errors.InternalError}  # fmt: skip
    counts = {Status.FAILED: 2} if bad else {Status.SUCCESS: 2}
    assert summary._exit_code([kinds[code]("x") for code in codes], counts, by_user) == expected


@pytest.mark.slow
def test_a_server_that_fails_while_the_project_is_looked_at_is_4_with_everything_marked(
    scanned: Path, box: Sandbox, run: Runner, quick: None
) -> None:
    box.fault("status", method="GET", path="/data/projects/P/subjects", status=500)
    box.fault("status", method="GET", path="/data/projects/P/experiments", status=500)
    ran = run(*upload_words(box.url))
    assert ran.code == 4, ran.err
    assert "Something unexpected" not in ran.err
    assert {row.status for row in rows()} == {Status.INTERRUPTED}


@pytest.mark.slow
def test_a_fault_of_the_program_in_a_worker_ends_the_run_cleanly_and_names_no_path(
    scanned: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, session: object, scan: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/Doe^John/scan.dcm")

    monkeypatch.setattr(direct.Transfer, "send_scan", broken)
    ran = run(*upload_words(box.url))
    assert ran.code == 1
    assert "Permission denied" in ran.err
    assert "Doe" not in ran.err + ran.out + the_log()
    assert {row.status for row in rows()} == {Status.INTERRUPTED}
