"""Logins and connections: a netrc file, a token, a connection that never really waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.helpers.sandbox_process import Sandbox
from xnatuploader import xnat
from xnatuploader.xnat import credentials, http

OTHERS = "# my logins\nmachine other.example.org login o password p\n"
"""The rest of the netrc file, which must not change."""
ANN = credentials.Credentials("ann", "pw", "XNAT_USER and XNAT_PASS")
QUICK = http.Timeouts(connect=2, small=2, send=2, finish=2, login=2)


def write_login(file: Path, url: str, user: str, password: str) -> None:
    """Write a netrc file with this login and another one."""
    host = url.split("://")[1].split("/")[0]
    file.write_text(f"{OTHERS}machine {host} login {user} password {password}\n")
    file.chmod(0o600)


def token_of(box: Sandbox) -> tuple[str, str]:
    """Have the server issue a token; return its alias and secret."""
    url = f"{box.url}/data/services/tokens/issue"
    answer = requests.get(url, auth=(box.user, box.password), timeout=30).json()
    return answer["alias"], answer["secret"]


class NoTime(http.Clock):
    """A clock that moves only when somebody waits: a wait ends at once, and the clock shows that it has passed."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        self.time += seconds
        return event.is_set()


def connect(url: str, found: credentials.Credentials = ANN, **keywords: Any) -> xnat.Server:
    """Connect as Ann, with a clock that never really waits."""
    given = {name: keywords.pop(name) for name in ("wait", "stop") if name in keywords}
    patience = http.Patience(
        clock=keywords.pop("clock", NoTime()), timeouts=keywords.pop("timeouts", QUICK), **given
    )
    return xnat.connect(url, found, environ=keywords.pop("environ", {}), patience=patience, **keywords)


class Bytes:
    """A body as uploads make them: it has a length, and gives its blocks once."""

    def __init__(self, content: bytes, fails: Exception | None = None) -> None:
        self.content = content
        self.fails = fails

    def __len__(self) -> int:
        return len(self.content)

    def __iter__(self) -> Iterator[bytes]:
        half = len(self.content) // 2
        yield self.content[:half]
        if self.fails:
            raise self.fails
        yield self.content[half:]
