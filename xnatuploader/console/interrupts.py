"""Ctrl-C and SIGTERM during an upload: asking before stopping, while the transfers go on."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from xnatuploader.console import terminal

QUESTION = "Stop the upload? Files that are being sent will be finished; the rest can be sent later. [y/N] "


class Interrupts:
    """Signal handlers for as long as an upload lasts.

    `stop` is set when the run is to end cleanly, `at_once` when it is to end now. The first Ctrl-C on a
    terminal only asks: `ask_if_wanted` asks the question, and has to be called from the main thread. Without a
    terminal, or on SIGTERM, there is nobody to ask and the answer is yes.
    """

    def __init__(self, interactive: bool) -> None:
        self.interactive = interactive
        self.stop = threading.Event()
        self.at_once = threading.Event()
        self.by_user = False
        """Whether a person, or the system on behalf of one, wanted the run to end."""
        self._wanted = False
        self._asking = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_interrupt)
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_terminate)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set() or self._asking:
            self._stop()
            self.at_once.set()
            if self._asking:
                raise KeyboardInterrupt  # out of the question
        elif self.interactive:
            self._wanted = True
        else:
            self._stop()

    def _stop(self) -> None:
        self.by_user = True
        self.stop.set()

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._stop()
        if self._asking:
            raise KeyboardInterrupt  # out of the question

    def ask_if_wanted(self) -> None:
        """Ask the question if Ctrl-C was pressed; *no* goes on as if nothing had happened."""
        if not self._wanted:
            return
        self._wanted = False
        self._asking = True
        try:
            print(file=sys.stderr)
            answer = terminal.ask(QUESTION)
        except (KeyboardInterrupt, EOFError):
            # A second Ctrl-C, or the terminal went away: there is nobody to ask any more.
            self._stop()
            return
        finally:
            self._asking = False
        if answer.strip().lower() in ("y", "yes"):
            self._stop()
