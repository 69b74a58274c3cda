"""Showing how far a run is: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import datetime
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
LINES_PER_LOG_LINE = 2
"""Each second line goes into the log: one a minute."""


class Bar:
    """One count towards a total (0: not known yet); safe to advance from many threads."""

    def __init__(self, label: str, unit: str, total: int, position: int, stream: TextIO) -> None:
        self.label, self.unit, self.total, self.done = label, unit, total, 0
        self.started = time.monotonic()
        self._guard = threading.Lock()
        self._drawn = None
        if stream.isatty():
            from tqdm import tqdm

            # In a terminal that does not tell its size (0 columns, 0 rows) tqdm would draw nothing.
            known = _columns(stream) > 0
            self._drawn = tqdm(
                total=total, desc=label, unit=unit, position=position, file=stream, leave=position == 0,
                dynamic_ncols=known, ncols=None if known else 80, nrows=None if known else 24, mininterval=0.2,
            )  # fmt: skip

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more as done."""
        with self._guard:
            self.done += steps
            if self._drawn is not None:
                self._drawn.update(steps)

    def extend(self, steps: int) -> None:
        """Make the total `steps` larger (a scan adds its files when its turn comes)."""
        with self._guard:
            self.total += steps
            if self._drawn is not None:
                self._drawn.total = self.total
                self._drawn.refresh()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._drawn is not None:
            self._drawn.close()

    def line(self) -> str:
        """Return count, rate and time left as text."""
        with self._guard:
            done, total = self.done, self.total
        rate = done / max(time.monotonic() - self.started, 0.001)
        if not total:
            return f"{self.label}: {done:,} {self.unit.strip()}, {rate:.1f}/s"
        seconds = int((total - done) / rate) if 0 < done < total else None
        left = "" if seconds is None else f", about {datetime.timedelta(seconds=seconds)} left"
        return f"{self.label}: {done:,} of {total:,} {self.unit.strip()}, {rate:.1f}/s{left}"


class Progress:
    """The bars of one run, and the plain lines that stand in for them where nobody looks at a terminal."""

    def __init__(self) -> None:
        self.stream = sys.stderr
        self.bars: list[Bar] = []
        self._ended = threading.Event()

    def bar(self, label: str, unit: str, total: int) -> Bar:
        """Begin one more bar, below the ones that are there."""
        bar = Bar(label, unit, total, len(self.bars), self.stream)
        self.bars.append(bar)
        return bar

    def end(self, bar: Bar) -> None:
        """Leave a bar as it stands and make room for the next one."""
        bar.close()
        self.bars.remove(bar)

    def _tell(self) -> None:
        """Run in a thread: a line to the stream every 30 s unless it is a terminal, one to the log each minute."""
        beats = 0
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            beats += 1
            text = "; ".join(bar.line() for bar in self.bars)
            if text and not self.stream.isatty():
                print(text, file=self.stream, flush=True)
            if text and beats % LINES_PER_LOG_LINE == 0:
                logger.info("%s", text)

    def close(self) -> None:
        """End the lines and leave the bars as they stand."""
        self._ended.set()
        for bar in reversed(self.bars):
            bar.close()


@contextmanager
def shown() -> Iterator[Progress]:
    """Yield the `Progress` of one run; log lines are written above the bars while it lasts."""
    progress = Progress()
    teller = threading.Thread(target=progress._tell, name="progress", daemon=True)
    teller.start()
    try:
        yield progress
    finally:
        progress.close()
        teller.join(timeout=1)


def write(line: str) -> None:
    """Write a line to standard error without breaking a bar that is drawn there."""
    if "tqdm" in sys.modules and sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0
