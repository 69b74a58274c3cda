"""What every test may ask for: the program run in this process, a sandbox, the example tree."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xnat  # noqa: F401 - here, not within a test: its progress bars keep the stderr they first see

from tests.helpers import builders
from tests.helpers.journeys import Journey, Start
from tests.helpers.runs import BOOK, Ran, Runner
from tests.helpers.sandbox_process import Sandbox
from xnatuploader import cli

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background of a shell: what the tests start would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test away from the netrc, keys and logins of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    for name in ("XNAT_HOST", "XNAT_USER", "XNAT_PASS", "NETRC", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    for name, folder in (
        ("USERPROFILE", ""),
        ("APPDATA", "AppData/Roaming"),
        ("LOCALAPPDATA", "AppData/Local"),
    ):
        monkeypatch.setenv(name, str(home / folder))
    return home


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Return a function that runs the program on these words, in this process, without a terminal."""

    def runner(*words: str | os.PathLike[str]) -> Ran:
        capsys.readouterr()
        code = cli.main([os.fspath(word) for word in words])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return runner


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def seed_tree(here: Path) -> Path:
    """Make the documentation's example: fourteen files of two patients in `data_files`."""
    folder = here / "data_files"
    builders.seed_tree(folder)
    return folder


@pytest.fixture
def scanned(seed_tree: Path, run: Runner) -> Path:
    """List the example tree in a new workbook with the default Configuration; return its folder."""
    assert run("init", "--spreadsheet", BOOK).code == 0
    assert run("scan", "--spreadsheet", BOOK, "--dir", seed_tree).code == 0
    return seed_tree


@pytest.fixture
def box(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Run a sandbox with project `P`, and put its user into the environment."""
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"]) as sandbox:
        monkeypatch.setenv("XNAT_USER", sandbox.user)
        monkeypatch.setenv("XNAT_PASS", sandbox.password)
        yield sandbox


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Run a sandbox for all journeys of a module; each has a project of its own there."""
    with Sandbox(tmp_path_factory.mktemp("site"), projects=["P"]) as sandbox:
        yield sandbox


@pytest.fixture
def journey(here: Path, run: Runner, site: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journey]:
    """Make a user's folder, workbook and project."""
    monkeypatch.setenv("XNAT_USER", site.user)
    monkeypatch.setenv("XNAT_PASS", site.password)
    yield Journey(run, site)
    site.clear_faults()
    site.set(body_limit=0, refuse_archives=0)


@pytest.fixture
def start(here: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return what starts a site of its own with the switches given, and a journey on it."""

    @contextlib.contextmanager
    def started(**chosen: Any) -> Iterator[Journey]:
        with Sandbox(tmp_path / "xnat", **{"projects": ["OTHER"], **chosen}) as site:
            monkeypatch.setenv("XNAT_USER", site.user)
            monkeypatch.setenv("XNAT_PASS", site.password)
            yield Journey(run, site)

    return started


def unavailable(reason: str) -> None:
    if os.environ.get("XNATUPLOADER_CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def installed(folder: Path, python: str | os.PathLike[str] | None, *wanted: str) -> Path:
    """Install packages into an environment of their own below `folder`; return the folder of their commands."""
    if python is None:
        unavailable(f"there is no Python for {wanted[0]}")
    made = subprocess.run(
        [str(python), "-m", "venv", str(folder)], capture_output=True, text=True, timeout=120
    )
    if made.returncode:
        unavailable(f"{python} cannot make a virtual environment: {made.stderr[-300:]}")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    command = [str(scripts / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode:
        unavailable(f"{wanted[0]} could not be installed: {done.stderr[-300:]}")
    return scripts


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `xnatuploader` command of 1.1.9; it needs Python 3.11 (its xnatpy does not import on 3.12)."""
    named = os.environ.get("XNATUPLOADER_PEER")
    if named:
        return Path(named)
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    # setuptools before 81 still has pkg_resources, which 1.1.9's dependencies import
    return installed(tmp_path_factory.mktemp("peer"), python, "xnatuploader==1.1.9", "setuptools<81") / (
        "xnatuploader"
    )


@pytest.fixture(scope="session")
def xnatctl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of xnatctl 0.6.0; it needs Python 3.11 or later."""
    named = os.environ.get("XNATUPLOADER_XNATCTL")
    if named:
        return Path(named)
    newer = (shutil.which(f"python3.{minor}") for minor in range(11, 15))
    python = sys.executable if sys.version_info >= (3, 11) else next(filter(None, newer), None)
    return installed(tmp_path_factory.mktemp("xnatctl"), python, "xnatctl==0.6.0") / "xnatctl"
