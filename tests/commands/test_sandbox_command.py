"""`xnatuploader sandbox`: what is typed, what is printed, how it ends."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from xnatuploader import errors
from xnatuploader.commands import options, sandbox
from xnatuploader.sandbox import faults
from xnatuploader.sandbox.options import Settings

ROOT = Path(__file__).resolve().parents[2]


def parsed(*words: str) -> argparse.Namespace:
    return options.parse(["sandbox", *words])


def test_without_options_there_is_a_project_and_a_user() -> None:
    chosen = sandbox.chosen_options(parsed())
    assert chosen.projects == ["DEMO"]
    assert [(one.name, one.password) for one in chosen.users] == [("demo", "demo")]
    assert Path(chosen.folder).name == "xnat-sandbox"


def test_everything_can_be_asked_for() -> None:
    chosen = sandbox.chosen_options(
        parsed(
            *("--project", "A", "--projects", "B,C", "--user", "anna:secret", "--user", "guest:g:reader"),
            *("--context", "xnat/", "--set", "checksums=no", "--latency", "0.5", "--folder", "here"),
            *("--fault", "status method=PUT path=/files/ first=2 status=500"),
        )
    )
    assert chosen.projects == ["A", "B", "C"]
    assert [(one.name, one.role) for one in chosen.users] == [("anna", "owner"), ("guest", "reader")]
    assert chosen.context == "/xnat"
    settings = Settings()
    settings.change(chosen.settings)
    assert (settings.checksums, settings.latency) == (False, 0.5)
    assert faults.make(chosen.faults[0]).first == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fault", "explode"], "There is no fault 'explode'"),
        (["--set", "checksum=no"], "There is no switch called checksum"),
        (["--set", "checksums"], "NAME=VALUE"),
        (["--set", "latency=much"], "needs a number"),
        (["--set", "checksums=maybe"], "needs yes or no"),
        (["--user", "anna"], "name:password"),
        (["--fault", "status path=("], "path is not a regular expression"),
        (["--fault", "status path='a"], "No closing quotation"),
        (["--port", "99999"], "port"),
    ],
)
def test_a_wrong_word_is_named(words: list[str], said: str) -> None:
    with pytest.raises(errors.UsageError, match=said):
        sandbox.chosen_options(parsed(*words))


def test_every_fault_is_explained_in_the_help() -> None:
    for name in faults.ACTIONS:
        assert name in options.OPERATIONS["sandbox"].example


@pytest.mark.skipif(os.name == "nt", reason="a signal ends it differently on Windows")
def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "xnatuploader",
            "sandbox",
            "--folder",
            str(tmp_path / "x"),
            "--project",
            "TRY",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout is not None
        said = ""
        while "Stop it" not in said:
            line = running.stdout.readline()
            assert line, running.communicate()
            said += line
        assert "for trying, training and tests only" in said
        assert re.search(r"user +demo +password +demo", said)
        assert re.search(r"project +TRY", said)
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url is not None
        with urllib.request.urlopen(f"{url.group()}/xapi/siteConfig/buildInfo", timeout=10) as answer:
            assert b"version" in answer.read()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
        assert running.returncode == 0, err
        assert "Traceback" not in err
        assert "has stopped" in out
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    cert = tmp_path / "site.pem"
    if text is not None:
        cert.write_text(text)
    args = parsed("--cert", str(cert), "--folder", str(tmp_path / "x"))
    with pytest.raises(errors.UsageError, match=r"site\.pem"):
        sandbox.run(args)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        args = parsed("--port", str(taken.getsockname()[1]), "--folder", str(tmp_path / "x"))
        with pytest.raises(errors.UsageError, match="could not start"):
            sandbox.run(args)
