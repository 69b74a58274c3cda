"""What a person at a terminal sees: bars, the password prompt, Ctrl-C."""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import Runner, rows, upload_words
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.terminal import Terminal
from xnatuploader.records import Status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a POSIX matter"),
]


def test_both_bars_are_drawn_and_the_prompted_login_is_saved(
    scanned: Path, here: Path, box: Sandbox, nobodys_home: Path
) -> None:
    box.set(latency=0.05)
    environ = {"XNAT_USER": "", "XNAT_PASS": ""}
    with Terminal(upload_words(box.url), here, environ) as terminal:
        terminal.wait_for("User name on ")
        terminal.type(f"{box.user}\n")
        terminal.wait_for("Password of ")
        terminal.type(f"{box.password}\n")
        assert terminal.end() == 0
    assert "Scans" in terminal.seen
    assert "Files" in terminal.seen
    assert "%|" in terminal.seen, "bars, not lines"
    assert "14 success" in terminal.seen
    assert "The login works until" in terminal.seen
    assert box.password not in terminal.seen.replace(f"{box.user} on", "").replace(
        f"\r\n{box.user}", ""
    ).replace(f": {box.user}", ""), "a password is not echoed"
    saved = nobodys_home / ".netrc"
    assert saved.stat().st_mode & 0o777 == 0o600
    (entry,) = netrc.netrc(str(saved)).hosts.values()
    assert entry[0] != box.user, "the token is saved, not the password"


def test_the_saved_login_serves_the_next_run(
    scanned: Path, here: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Terminal(
        upload_words(box.url, "--nopipeline"), here, {"XNAT_USER": "", "XNAT_PASS": ""}
    ) as terminal:
        terminal.wait_for("User name on ")
        terminal.type(f"{box.user}\n")
        terminal.wait_for("Password of ")
        terminal.type(f"{box.password}\n")
        assert terminal.end() == 0
    monkeypatch.delenv("XNAT_USER")
    monkeypatch.delenv("XNAT_PASS")
    ran = run(*upload_words(box.url, "--verify"))
    assert ran.code == 0, ran.err


def test_without_a_terminal_there_is_no_bar_and_no_prompt(
    scanned: Path, box: Sandbox, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(*upload_words(box.url))
    assert ran.code == 0
    assert "%|" not in ran.err
    assert "\r" not in ran.err
    monkeypatch.delenv("XNAT_PASS")
    assert "Password" not in run(*upload_words(box.url, "--verify")).err.replace("YOUR-PASSWORD", "")


def test_ctrl_c_asks_and_no_goes_on_as_if_nothing_had_happened(
    scanned: Path, here: Path, box: Sandbox
) -> None:
    box.set(latency=0.3)
    with Terminal(upload_words(box.url, "--jobs", "1"), here) as terminal:
        terminal.wait_for(r"Files.*\|")
        terminal.ctrl_c()
        terminal.wait_for(r"\[y/N\]")
        terminal.type("n\n")
        assert terminal.end() == 0
    assert [row.status for row in rows()] == [Status.SUCCESS] * 14


def test_ctrl_c_and_yes_finishes_what_is_in_flight_and_ends_with_130(
    scanned: Path, here: Path, box: Sandbox
) -> None:
    box.set(latency=0.3)
    with Terminal(upload_words(box.url, "--jobs", "1"), here) as terminal:
        terminal.wait_for(r"Files.*\|")
        terminal.ctrl_c()
        terminal.wait_for(r"\[y/N\]")
        terminal.type("y\n")
        assert terminal.end() == 130
    statuses = {row.status for row in rows()}
    assert statuses <= {Status.SUCCESS, Status.INTERRUPTED}
    assert Status.INTERRUPTED in statuses
    on_server = set(box.files())
    for row in rows():
        if row.status is Status.SUCCESS:
            assert f"{row.subject}/{row.session_label}/{row.scan_id}/DICOM/{row.filename}" in on_server


def test_a_second_ctrl_c_stops_at_once_and_saves_what_is_known(
    scanned: Path, here: Path, box: Sandbox
) -> None:
    box.fault("hang", method="PUT", path="/files/", first=2, seconds=120)
    with Terminal(upload_words(box.url, "--jobs", "1"), here) as terminal:
        terminal.wait_for(r"Files.*\|")
        terminal.ctrl_c()
        terminal.wait_for(r"\[y/N\]")
        terminal.ctrl_c()
        assert terminal.end(30) == 130
    assert {row.status for row in rows()} <= {Status.SUCCESS, Status.INTERRUPTED}


def test_sigterm_is_taken_as_yes(scanned: Path, here: Path, box: Sandbox) -> None:
    import signal

    box.set(latency=0.3)
    with Terminal(upload_words(box.url, "--jobs", "1"), here) as terminal:
        terminal.wait_for(r"Files.*\|")
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.end() == 130
    assert Status.INTERRUPTED in {row.status for row in rows()}
