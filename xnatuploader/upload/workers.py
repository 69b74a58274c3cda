"""The threads of an upload: pieces of work sent side by side, and the main thread that watches over them."""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from xnatuploader import errors
from xnatuploader.console.progress import Bar
from xnatuploader.records import SessionPlan
from xnatuploader.upload.current import CurrentUpload
from xnatuploader.upload.routes import Route, Work
from xnatuploader.xnat.login import Forecast

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 240.0
"""How often the workbook is brought up to date while a long run lasts."""

SECONDS_BEFORE_A_FORECAST = 60.0
"""How long files have to be on their way before their pace tells how long the rest takes."""

TAKEN_OVER = (
    "Another run took this spreadsheet over, so this one stops. Its results are in the journal beside the "
    "spreadsheet; run upload again when the other run has ended."
)


class Workers:
    """Sends the work of one run, `--jobs` pieces at a time. The bars count pieces and files."""

    def __init__(self, current: CurrentUpload, piece_bar: Bar, file_bar: Bar) -> None:
        self.current = current
        self.piece_bar = piece_bar
        self.file_bar = file_bar
        self.fatal: errors.XnatUploaderError | None = None
        """The first error that no other piece of work would escape."""
        self._since = time.monotonic()
        self._files = 0
        self._pieces_left: Counter[str] = Counter()
        self._forecast = Forecast(current.server.login_until)

    def send(
        self, pieces: Sequence[Work], route: Route, finish_session: Callable[[SessionPlan], None]
    ) -> None:
        """Send all pieces; `finish_session` is called after the last one of each session."""
        self._pieces_left.update(piece.session.session_label for piece in pieces)
        self._files = sum(piece.files for piece in pieces)
        waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
        for piece in pieces:
            waiting.put(piece)

        def work() -> None:
            while not self.current.is_stopped:
                try:
                    piece = waiting.get_nowait()
                except queue.Empty:
                    return
                self.file_bar.extend(piece.files)
                send = functools.partial(self._send_piece, piece, route, finish_session)
                self._guarded(send, piece.session.session_label)
                self.piece_bar.advance()

        count = min(self.current.options.jobs, max(1, len(pieces)))
        self._watch(
            [threading.Thread(target=work, name=f"{route.noun}-{n}", daemon=True) for n in range(count)]
        )

    def run_beside(self, job: Callable[[], None], name: str) -> None:
        """Do something else with the server in a thread of its own, watched like the rest."""
        if not self.current.is_stopped:
            thread = threading.Thread(target=self._guarded, args=(job, name), name=name, daemon=True)
            self._watch([thread])

    def stop_for(self, error: errors.XnatUploaderError) -> None:
        """End the run because of an error that the other pieces of work would meet too."""
        with self.current.state.guard:
            if self.fatal is None:
                self.fatal = error
        self.current.stopping.stop.set()

    def _guarded(self, job: Callable[[], None], what: str) -> None:
        """Run a job; what ends it ends the run."""
        try:
            job()
        except errors.XnatUploaderError as error:
            self.stop_for(error)
        except Exception as error:
            logger.debug("A fault of the program at %s:", what, exc_info=True)
            self.stop_for(errors.InternalError.of(error))

    def _send_piece(self, piece: Work, route: Route, finish_session: Callable[[SessionPlan], None]) -> None:
        piece.send()
        state, label = self.current.state, piece.session.session_label
        for scan in piece.scans:
            state.tell_failures(piece.session, scan)
        identifier = route.session_id(label) or piece.session.exists
        if identifier:
            state.link(label, self.current.server.link(identifier, self.current.project))
        with state.guard:
            self._pieces_left[label] -= 1
            last = self._pieces_left[label] == 0
        if last:
            state.tell_duplicates(label)
        if last and route.steps_after and not self.current.is_stopped:
            finish_session(piece.session)

    # ---- the main thread

    def _watch(self, threads: Sequence[threading.Thread]) -> None:
        """Start threads and wait for them: ask when Ctrl-C was pressed, stop in time, save now and then."""
        state = self.current.state
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(timeout=0.1)
            self.current.stopping.ask_if_wanted()
            if self.current.stopping.at_once.is_set():
                return
            self._look_at_the_login()
            if state.lock_lost.is_set():
                self.stop_for(errors.WorkbookInUse(TAKEN_OVER))
                continue  # the workbook is the other run's
            if time.monotonic() - state.last_save > SECONDS_BETWEEN_SAVES:
                try:
                    state.save()
                except errors.SpreadsheetLocked:
                    logger.debug("The workbook is open elsewhere; results stay in the journal for now.")

    def _look_at_the_login(self) -> None:
        """Say in time that the login will end before the work does."""
        spent = time.monotonic() - self._since
        done = self.file_bar.done
        known = done > 0 and spent >= SECONDS_BEFORE_A_FORECAST
        warning = self._forecast.warning(spent / done * (self._files - done) if known else None)
        if warning:
            logger.warning("%s", warning)
