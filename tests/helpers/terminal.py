"""The program in a pseudo-terminal: type into it, read what a person would see, send real signals."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType


class Terminal:
    """`with Terminal(["upload", ...], folder, env) as t: t.wait_for("Password"); t.type("secret\\n")`."""

    def __init__(self, words: list[str], folder: Path, environ: dict[str, str] | None = None) -> None:
        import pty

        self.master, slave = pty.openpty()
        package = str(Path(__file__).resolve().parents[2])
        variables = {
            **os.environ,
            "PYTHONPATH": package,
            "TERM": "xterm",
            "COLUMNS": "120",
            **(environ or {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xnatuploader", *words],
            stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=variables, close_fds=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def read(self, seconds: float) -> None:
        """Read what the program prints; wait `seconds` at most."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if ready:
            try:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:  # Linux reports EIO when the program has closed the terminal
                pass

    def wait_for(self, text: str, seconds: float = 60.0) -> str:
        """Read until `text` (a regular expression) appears; if it does not, fail and show everything read."""
        ends = time.monotonic() + seconds
        while not re.search(text, self.seen):
            if time.monotonic() > ends or (self.process.poll() is not None and not self._more()):
                raise AssertionError(f"{text!r} did not appear; the screen was:\n{self.seen}")
            self.read(0.1)
        return self.seen

    def _more(self) -> bool:
        before = len(self.seen)
        self.read(0.2)
        return len(self.seen) > before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ctrl_c(self) -> None:
        self.type("\x03")

    def end(self, seconds: float = 60.0) -> int:
        """Wait until the program has ended; return its exit code."""
        ends = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > ends:
                raise AssertionError(f"the program did not end; the screen was:\n{self.seen}")
            self.read(0.1)
        while self._more():
            pass
        return int(self.process.returncode)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


def _own_terminal() -> None:
    """Make the pseudo-terminal the controlling one, so that typed Ctrl-C becomes SIGINT."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
