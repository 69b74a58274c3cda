"""What every test may ask for: the program run in this process, a sandbox, the example tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import builders
from tests.sandbox_process import Sandbox
from xnatuploader import cli


@dataclass(frozen=True)
class Ran:
    """How one run of the program ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test away from the netrc, keys and logins of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    for name in ("XNAT_HOST", "XNAT_USER", "XNAT_PASS", "NETRC", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    return home


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
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
def box(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Run a sandbox with project `P`, and put its user into the environment."""
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"]) as sandbox:
        monkeypatch.setenv("XNAT_USER", sandbox.user)
        monkeypatch.setenv("XNAT_PASS", sandbox.password)
        yield sandbox
