"""Runs of the program in processes of their own that begin at once, because everything is imported beforehand.

The nursery is a process that forks. It has one thread, so that forking is safe, and it ends with its parent.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

Conditions = Mapping[str, Any]
"""Name of a function in `conditions` -> its argument."""

KILLED = -signal.SIGKILL

_BEFOREHAND = (
    "openpyxl", "xnat", "xnatutils", "xnatuploader.upload.run", "xnatuploader.commands.init",
    "xnatuploader.commands.scan", "xnatuploader.commands.upload", "tests.faults.conditions",
)  # fmt: skip


class Nursery:
    """`with Nursery() as nursery: run = nursery.start(["upload", ...], folder, {...}, out)`; one run at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
        )
        self._received = b""

    def start(self, words: Sequence[str], folder: Path, conditions: Conditions, out: Path) -> Run:
        """Begin a run of the program with `words` in `folder`; what it prints goes to `out`."""
        asked = {
            "words": list(words), "folder": str(folder), "conditions": dict(conditions), "out": str(out),
            "environ": dict(os.environ),
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        return Run(self, self.next_number(60.0), out)

    def next_number(self, seconds: float) -> int:
        """Return the next number that the nursery writes. Raises TimeoutError."""
        assert self._process.stdout is not None
        ends = time.monotonic() + seconds
        while b"\n" not in self._received:
            left = ends - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError("the run did not end in time")
            data = os.read(self._process.stdout.fileno(), 4096)
            if not data:
                raise RuntimeError("the nursery has ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return int(line)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Run:
    """One run that has begun."""

    def __init__(self, nursery: Nursery, pid: int, out: Path) -> None:
        self._nursery = nursery
        self.pid = pid
        self.out = out
        self.code: int | None = None

    def kill(self) -> None:
        """Send SIGKILL, as a task manager does; a run that has ended meanwhile stays as it is."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code, negative for a signal; a run that does not end is killed and raises."""
        if self.code is None:
            try:
                self.code = self._nursery.next_number(seconds)
            except TimeoutError:
                self.kill()
                self.code = self._nursery.next_number(10.0)
                raise AssertionError(f"the run did not end in {seconds:.0f} s:\n{self.said()}") from None
        return self.code

    def said(self) -> str:
        """Return what it has printed so far."""
        return self.out.read_text(encoding="utf-8", errors="replace")


def _serve() -> None:
    """Fork a run for each line of stdin; write its process ID, and when it has ended its exit code."""
    for module in _BEFOREHAND:
        importlib.import_module(module)
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
        _write(child)
        _, status = os.waitpid(child, 0)
        _write(os.waitstatus_to_exitcode(status))


def _become(asked: Mapping[str, Any]) -> None:
    """Be the program from now on."""
    from tests.faults import conditions
    from xnatuploader import cli

    code = 99
    try:
        os.chdir(asked["folder"])
        out = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.clear()
        os.environ.update(asked["environ"])
        for name, value in asked["conditions"].items():
            getattr(conditions, name)(value)
        code = cli.main(asked["words"])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _write(number: int) -> None:
    os.write(1, b"%d\n" % number)


if __name__ == "__main__":
    _serve()
