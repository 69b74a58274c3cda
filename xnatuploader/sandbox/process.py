"""A sandbox as a child process, on every operating system; it ends with its parent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xnatuploader import errors
from xnatuploader.sandbox import options

START_SECONDS = 60.0


@dataclass(slots=True)
class SandboxProcess:
    """A sandbox in its own process."""

    url: str
    process: subprocess.Popen[str]

    @property
    def root(self) -> str:
        """Return the URL without context path, below which the control URLs are."""
        return "/".join(self.url.split("/")[:3])

    def stop(self) -> None:
        """Have it end regularly, so that it writes its catalogs."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):  # closing is not enough if another process holds the pipe open
                self.process.stdin.write("stop\n")
                self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.process.kill()
        self.process.wait()


def start(
    chosen: options.SandboxOptions, command: Sequence[str] = ("xnatuploader.sandbox",)
) -> SandboxProcess:
    """Start a sandbox and wait until it listens; XnatUploaderError says why it did not.

    `command` is the module that runs it, with its arguments.
    """
    folder = Path(chosen.folder)
    folder.mkdir(parents=True, exist_ok=True)
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    with (folder / "sandbox.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
            cwd=str(folder),
            creationflags=_own_group(),
            start_new_session=sys.platform != "win32",  # the parent handles Ctrl-C
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # it ended at once: its log says why
        process.stdin.write(chosen.as_json() + "\n")
        process.stdin.flush()
    line = _first_line(process)
    if not line:
        process.kill()
        process.wait()
        lines = (folder / "sandbox.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "it wrote no message"
        raise errors.XnatUploaderError(f"The sandbox did not start: {reason}")
    return SandboxProcess(json.loads(line)["url"], process)


def _own_group() -> int:
    """Keep Ctrl-C at a Windows prompt from the child: the parent decides when it ends."""
    if sys.platform == "win32":
        return subprocess.CREATE_NEW_PROCESS_GROUP
    return 0


def _first_line(process: subprocess.Popen[str]) -> str:
    found: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        found.append(process.stdout.readline())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(START_SECONDS)
    return found[0] if found else ""


@contextlib.contextmanager
def running(chosen: options.SandboxOptions) -> Iterator[SandboxProcess]:
    """Run a sandbox as long as the `with` block lasts."""
    child = start(chosen)
    try:
        yield child
    finally:
        child.stop()
