"""Many headers at once: worker processes where there are many files, threads where opening them is slow.

Either of two costs can be the larger one: the processor's (some 30 microseconds a file, which several processes
share), or the storage's (5 milliseconds to open a file on a network drive, so that many are opened at a time). A
chunk of files is read one by one as long as that is quick, and by threads as soon as it is not.

A worker that dies while it reads a file (no memory left, a fault in a library) is replaced, and its chunk is
read again file by file, so that only this file is lost.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from xnatuploader import paths, records
from xnatuploader.dicom import header, reader
from xnatuploader.dicom.reader import Compact, Reader

MOST_WORKERS = 8
WORKERS_PAY = 2.0
"""Seconds of processor time still to come from which on workers are started; their start takes part of one."""
OPENS_PER_JOB = 8
"""Files opened at a time for each of `jobs` where storage is slow; waiting threads cost next to nothing."""
SLOW = 0.001
"""Seconds per file from which on storage is slow and threads are worth their own cost."""
FIRST_CHUNK, CHUNK = 16, 256
"""Files in the first chunk, so that the first results come at once, and in the later ones."""
STRIDE = 8
"""Files read one by one between two checks of the clock."""
AHEAD = 3
"""Chunks that each worker is sent before the first of them is finished."""
WINDOW = 0.5
"""Seconds after which waiting is interrupted, so that Ctrl-C works: on Windows it does not within a wait."""

START_SECONDS = 60.0
"""How long a worker may take to start; a slow computer with a virus scanner needs ten."""

_DIED = (EOFError, OSError)
"""What a pipe raises when the process at its other end is gone."""
_WORKER_DIED: Compact = (
    records.Status.SKIPPED.value,
    "The file could not be read: the process that read its header died. Check the file with another program.",
    (),
)

Results = tuple[list[Compact], bool]
"""Of a chunk: the reading of each path, and whether storage was slow."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some files to read, and how; what a worker is sent."""

    paths: tuple[str, ...]
    plan: reader.ReadPlan
    opener: reader.Opener
    in_flight: int
    slow: bool = False
    """Storage was slow for an earlier chunk: check the clock after the first file already."""


def read_all(
    root: Path,
    files: Sequence[records.FoundFile],
    fields: Sequence[str],
    rules: reader.Rules,
    jobs: int = 4,
    opener: reader.Opener = header.open_file,
    workers: int | None = None,
) -> Iterator[tuple[records.FoundFile, records.Reading]]:
    """Yield each file with its reading, in the order of `files`; their paths are below `root` or absolute.

    `jobs` determines how many files are opened at a time where that is slow (1: one at a time). `opener` opens a
    file, `workers` is the number of processes (None: by the number of files and processors); both are for
    tests and benchmarks. Closing the iterator stops the workers.
    """
    plan = reader.plan(fields, rules)
    names = reader.names_of(plan)
    readable = [found for found in files if not found.error]
    count = worker_count(jobs) if workers is None else workers
    in_flight = 1 if jobs <= 1 else jobs * OPENS_PER_JOB
    chunks = _chunks(root, readable, Chunk((), plan, opener, in_flight))
    pays = WORKERS_PAY if workers is None else 0.0
    with contextlib.closing(_read(chunks, len(readable), count, pays)) as results:
        compacts = itertools.chain.from_iterable(results)
        for found in files:
            if found.error:
                yield found, records.Reading(status=records.Status.SKIPPED, message=found.error)
            else:
                yield found, reader.reading_of(next(compacts), names)


def worker_count(jobs: int) -> int:
    """Return how many worker processes there may be; 0: this process reads all files itself."""
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    return 0 if processors < 2 or jobs <= 1 else min(processors, MOST_WORKERS)


def _chunks(root: Path, files: Sequence[records.FoundFile], model: Chunk) -> Iterator[Chunk]:
    begin, size = 0, FIRST_CHUNK
    while begin < len(files):
        part = tuple(paths.joined(root, found.file) for found in files[begin : begin + size])
        yield dataclasses.replace(model, paths=part)
        begin, size = begin + size, min(size * 2, CHUNK)


def _read(
    chunks: Iterator[Chunk], total: int, count: int, pays: float
) -> Generator[list[Compact], None, None]:
    """Read the chunks in this process until `count` workers have started, if there is enough left for them to do.

    They are started if at least `pays` seconds of processor time are still to come (the waiting for storage is
    done by threads); with 0 at once, and they read all but the first chunk.
    """
    workers: _WorkerPool | None = None
    done, seconds, slow = 0, 0.0, False
    try:
        for chunk in chunks:
            if workers is not None and (workers.ready.is_set() or not pays):
                yield from _by_workers(itertools.chain([chunk], chunks), workers, count)
                return
            started = time.process_time()
            compacts, slow = read_chunk(dataclasses.replace(chunk, slow=slow))
            seconds += time.process_time() - started
            done += len(compacts)
            if workers is None and count and seconds / done * (total - done) >= pays:
                workers = _WorkerPool(count)
            yield compacts
    finally:
        if workers is not None:
            workers.close()


def read_chunk(chunk: Chunk) -> Results:
    """Read the files of a chunk in this process: one by one, and by threads as soon as that is slow."""
    one = Reader(chunk.plan, chunk.opener)
    compacts: list[Compact] = []
    stride = 1 if chunk.slow else STRIDE
    while len(compacts) < len(chunk.paths):
        started = time.perf_counter()
        part = chunk.paths[len(compacts) : len(compacts) + stride]
        compacts.extend(map(one.read, part))
        stride = STRIDE
        if chunk.in_flight > 1 and time.perf_counter() - started > SLOW * len(part):
            compacts.extend(_by_threads(one, chunk.paths[len(compacts) :], chunk.in_flight))
            return compacts, True
    return compacts, False


def _by_threads(one: Reader, files: Sequence[str], count: int) -> list[Compact]:
    """Read files, `count` of them at a time."""
    compacts: list[Compact] = [_WORKER_DIED] * len(files)
    following = iter(range(len(files)))
    stopped = threading.Event()

    def work() -> None:
        for at in following:
            if stopped.is_set():
                return
            compacts[at] = one.read(files[at])

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(count, len(files)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(WINDOW)
    finally:
        stopped.set()
    return compacts


# --- worker processes ---


def _by_workers(chunks: Iterator[Chunk], workers: _WorkerPool, count: int) -> Iterator[list[Compact]]:
    """Read the chunks by workers, a few chunks ahead."""
    waiting: collections.deque[futures.Future[Results]] = collections.deque()
    slow = False

    def hand_out(number: int) -> None:
        for chunk in itertools.islice(chunks, number):
            part = dataclasses.replace(chunk, slow=slow, in_flight=-(-chunk.in_flight // count))
            waiting.append(workers.submit(part))

    hand_out(count * AHEAD)
    while waiting:
        while not waiting[0].done():
            futures.wait([waiting[0]], WINDOW)
        compacts, slow = waiting.popleft().result()
        hand_out(1)
        yield compacts


class _WorkerPool:
    """Worker processes, each with a thread of this process that talks to it; dead ones are replaced."""

    def __init__(self, count: int) -> None:
        self._threads = futures.ThreadPoolExecutor(
            count, thread_name_prefix="headers", initializer=_block_interrupts
        )
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        self._closed = threading.Event()
        self.ready = threading.Event()
        """Set when the first worker has started."""
        for _ in range(count):
            self._threads.submit(self._start)

    def submit(self, chunk: Chunk) -> futures.Future[Results]:
        return self._threads.submit(self._read, chunk)

    def close(self) -> None:
        """Stop all workers at once; what they were reading is lost."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.kill()
        self._threads.shutdown(wait=True)
        for worker in self._all:
            worker.kill()

    def _start(self) -> None:
        worker = self._take()
        if worker is not None:
            self._idle.put(worker)
            self.ready.set()

    def _read(self, chunk: Chunk) -> Results:
        worker = self._take()
        if worker is None:
            return read_chunk(chunk)
        try:
            results = worker.read(chunk)
        except _DIED:
            worker.kill()
            return self._one_by_one(chunk)
        self._idle.put(worker)
        return results

    def _one_by_one(self, chunk: Chunk) -> Results:
        """Read a chunk again, file by file, after a worker died; only the file at which the next one dies is lost."""
        compacts: list[Compact] = []
        for path in chunk.paths:
            worker = None if self._closed.is_set() else self._take()
            if worker is None:
                compacts.append(_WORKER_DIED)
                continue
            try:
                compacts.extend(worker.read(dataclasses.replace(chunk, paths=(path,), in_flight=1))[0])
                self._idle.put(worker)
            except _DIED:
                worker.kill()
                compacts.append(_WORKER_DIED)
        return compacts, chunk.slow

    def _take(self) -> _Worker | None:
        """Return an idle worker or a new one; None where none can be started."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        if self._closed.is_set():
            return None
        try:
            worker = _Worker()
            self._all.append(worker)  # before it is waited for, so that `close` ends it
            worker.wait_until_ready()
        except _DIED:
            return None
        return worker


class _Worker:
    """A process that reads chunks. Raises EOFError or OSError when it cannot be started or is gone."""

    def __init__(self) -> None:
        # Always by spawn: forking a process that has threads may hang, and Windows has nothing else.
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end,), daemon=True)
        self._process.start()
        far_end.close()

    def wait_until_ready(self) -> None:
        """Wait until it takes chunks; end it if it does not within `START_SECONDS`."""
        try:
            self._receive(START_SECONDS)
        except _DIED:
            self.kill()
            raise

    def read(self, chunk: Chunk) -> Results:
        self._pipe.send(chunk)
        results: Results = self._receive(None)
        return results

    def _receive(self, seconds: float | None) -> Any:
        """Return what the worker sends. Raises EOFError when it has died, or sends nothing for that many seconds.

        An open pipe does not mean that the worker lives: Windows keeps a duplicate of the worker's end in this
        process until the worker has taken it, and if the worker dies earlier, the pipe stays open for ever.
        """
        ready = connection.wait([self._pipe, self._process.sentinel], seconds)
        if self._pipe in ready or (ready and self._pipe.poll()):
            return self._pipe.recv()
        raise EOFError

    def kill(self) -> None:
        """End the process; a `read` that waits for it then raises EOFError."""
        self._process.kill()
        self._process.join(5)


def _block_interrupts() -> None:
    """Block Ctrl-C in this thread and, since processes inherit that, in the workers that it starts.

    Ctrl-C reaches every process of a terminal, but only the main one acts on it, and a worker that is just
    starting could not yet ignore it. Windows has no such signals; there a starting worker may show a traceback.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _serve(pipe: connection.Connection) -> None:
    """Read the chunks that come through `pipe`, until it closes. The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send("ready")
        while True:
            pipe.send(read_chunk(pipe.recv()))
    except _DIED:
        pass  # the main process has ended or closed the pipe
