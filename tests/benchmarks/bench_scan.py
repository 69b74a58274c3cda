"""How fast and how large a scan is: `python -m tests.benchmarks.bench_scan [--rounds 3] [--only 512 ...]`.

Prints a Markdown table: `scan` as a user runs it (start, listing, headers, workbook), 1.1.9 of this program
where the environment variable XNATUPLOADER_PEER names its executable, and a loop that opens each file with
pydicom and does nothing else; they take turns, so that other work on the machine affects all alike. Medians of the
rounds. All files are in the page cache, those of the slow storage too: there a preloaded library (built with
gcc) makes each opening of a data file take 5 ms.

Bytes per file are what all processes of a run read (`rchar`: pipes between them included), less what a run
over a single file reads. Memory is the sum over all processes, and the largest process beside the main one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers import builders

PACKAGE = Path(__file__).resolve().parents[2]
PEER = os.environ.get("XNATUPLOADER_PEER", "")
SLOW = 5_000
"""Microseconds that an opening takes on the simulated network drive."""
LOOP = (
    "import os, sys, pydicom\n"
    "for folder, _, names in os.walk(sys.argv[1]):\n"
    "    for name in names:\n"
    "        pydicom.dcmread(os.path.join(folder, name), stop_before_pixels=True)\n"
)


@dataclass(frozen=True)
class Contender:
    """Something to be timed: `command` gives its command line for a folder of files and an empty folder of its own."""

    name: str
    command: Callable[[Path, Path], list[str]]
    prepare: Callable[[Path], list[str]] | None = None
    """The command line that makes the workbook, which is not timed."""


@dataclass
class Taken:
    """What the rounds of one contender took."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Seconds of the processors, by all processes: what other work on the machine changes least."""
    read: int = 0
    """Bytes, by all processes."""
    tree: int = 0
    """Most memory of all processes together, kB."""
    main: int = 0
    """Most memory of the main process, kB."""
    worker: int = 0
    """Most memory of any other process, kB."""


def ours(name: str = "ours", *options: str) -> Contender:
    """Return this program with further options."""
    start = [sys.executable, "-m", "xnatuploader"]
    return Contender(
        name,
        lambda data, own: [
            *start, "scan", "--dir", str(data), "--spreadsheet", str(own / "b.xlsx"), *options,
        ],
        lambda own: [*start, "init", "--spreadsheet", str(own / "b.xlsx")],
    )  # fmt: skip


def rivals() -> list[Contender]:
    """Return 1.1.9, if it is there, and the bare loop."""
    peer = Contender(
        "1.1.9",
        lambda data, own: [PEER, "scan", "--dir", str(data), "--spreadsheet", str(own / "b.xlsx")],
        lambda own: [PEER, "init", "--spreadsheet", str(own / "b.xlsx")],
    )
    loop = Contender("pydicom loop", lambda data, own: [sys.executable, "-c", LOOP, str(data)])
    return [*([peer] if PEER else []), loop]


# --- the files


def make(folder: Path, count: int, size: int, **elements: object) -> Path:
    """Write `count` files of `size` bytes: 2,000 files a patient, 1,000 a visit, 200 a series."""
    marks = {kind: f"1.2.826.0.{kind}.1000000" for kind in (1, 2, 3)}
    base = {
        "SOPInstanceUID": marks[1], "SeriesInstanceUID": marks[2], "StudyInstanceUID": marks[3],
        "StudyDate": "20200000", "SeriesNumber": "9999", "InstanceNumber": "8888", **elements,
    }  # fmt: skip
    empty = len(builders.dicom_bytes(pixels=2, **base))  # type: ignore[arg-type]
    data = builders.dicom_bytes(pixels=max(size - empty + 2, 2) // 2 * 2, **base)  # type: ignore[arg-type]
    head, pixels = (
        data[: builders.position(data, "PixelData") + 12],
        data[builders.position(data, "PixelData") + 12 :],
    )
    for number in range(count):
        patient, visit, series = number // 2000, number // 1000, number // 200
        date = f"{2000 + visit % 20}{1 + visit % 12:02}{1 + visit % 28:02}"
        changed = {
            marks[1]: f"1.2.826.0.1.1{number:06}", marks[2]: f"1.2.826.0.2.1{series:06}",
            marks[3]: f"1.2.826.0.3.1{visit:06}", "20200000": date,
            "9999": f"{series % 5 + 1:<4}", "8888": f"{number % 200 + 1:<4}",
        }  # fmt: skip
        mine = head
        for old, new in changed.items():
            mine = mine.replace(old.encode(), new.encode())
        place = folder / f"Patient^{patient:03}-{patient:04}" / date / f"Series {series % 5 + 1}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"scan{number % 200:04}.dcm").write_bytes(mine + pixels)
    return folder


# --- one run


def run(words: list[str], own: Path, environ: Mapping[str, str], taken: Taken) -> None:
    """Run a command in the folder `own`, and note what it took; raises where it fails."""
    shell = ["sh", "-c", '"$@" >said 2>&1; code=$?; cat /proc/$$/io >counters; exit $code', "sh", *words]
    started = time.perf_counter()
    process = subprocess.Popen(shell, cwd=own, env={**os.environ, "PYTHONPATH": "", **environ})
    with watched(process.pid, taken):
        _, status, used = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
    taken.processor.append(used.ru_utime + used.ru_stime)
    taken.seconds.append(time.perf_counter() - started)
    if code:
        raise RuntimeError(f"{words} ended with {code}: {(own / 'said').read_text(errors='replace')[-800:]}")
    counters = (own / "counters").read_text(encoding="ascii").split()
    taken.read = int(counters[1])


@contextlib.contextmanager
def watched(shell: int, taken: Taken) -> Iterator[None]:
    """Look at the memory of all processes below `shell`, twenty times a second."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            processes = below(shell)
            # Between its fork and its exec a process looks like its parent, whose memory it shares.
            started = [one for one in processes[1:] if words_of(one) != words_of(processes[0])]
            sizes = [memory_of(process) for process in (*processes[:1], *started)]
            taken.tree = max(taken.tree, sum(sizes))
            taken.main = max(taken.main, *sizes[:1], 0)
            taken.worker = max(taken.worker, *sizes[1:], 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def below(process: int) -> list[int]:
    """Return the processes that descend from this one, parents first."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
        # Workers are children of whichever thread has started them.
        for task in Path(f"/proc/{process}/task").iterdir():
            if task.name != str(process):
                children += (task / "children").read_text(encoding="ascii").split()
        return [int(child) for one in children for child in (int(one), *below(int(one)))]
    return []


def words_of(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def memory_of(process: int) -> int:
    """Return what a process holds in memory, in kB; 0 when it is gone."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    return 0


# --- a case: one kind of files, some contenders


@dataclass(frozen=True)
class Case:
    """Files of one kind and who reads them."""

    name: str
    count: int
    size: int
    contenders: list[Contender]
    elements: Mapping[str, object] = field(default_factory=dict)
    slow: bool = False


def cases() -> list[Case]:
    usual = [ours(), *rivals()]
    mr = {"private": 400, "Modality": "MR"}
    slow = [ours("ours (4 jobs)"), ours("ours, one at a time", "--jobs", "1")]
    return [
        Case("4,000 x 10 kB", 4_000, 10_000, usual),
        Case("40,000 x 10 kB", 40_000, 10_000, usual),
        Case("4,000 CT x 512 kB", 4_000, 512 << 10, usual),
        Case("5,000 MR, 400 private elements", 5_000, 0, usual, mr),
        Case("8,000 x 10 kB, 5 ms per open", 8_000, 10_000, slow, slow=True),
        Case("10,000 x 2 kB", 10_000, 2_000, [ours()]),
        Case("100,000 x 2 kB", 100_000, 2_000, [ours()]),
    ]


def measure(case: Case, rounds: int, space: Path) -> dict[str, Taken]:
    """Make the files, run each contender over one file, then all in turn, `rounds` times."""
    data = make(space / "data", case.count, case.size, **case.elements)
    single = make(space / "single", 1, case.size, **case.elements)
    environ = slowness(space, data) if case.slow else {}
    taken = {one.name: Taken() for one in case.contenders}
    start = {one.name: once(one, single, space, {}, Taken()).read for one in case.contenders}
    for _ in range(rounds):
        for one in case.contenders:
            once(one, data, space, environ, taken[one.name])
    for name, noted in taken.items():
        noted.read = max(noted.read - start[name], 0)
    return taken


def once(one: Contender, data: Path, space: Path, environ: Mapping[str, str], taken: Taken) -> Taken:
    with tempfile.TemporaryDirectory(dir=space) as name:
        own = Path(name)
        # 1.1.9 must not find this package; ours must be found from any folder.
        environ = {**environ, "PYTHONPATH": str(PACKAGE) if one.name.startswith("ours") else ""}
        if one.prepare:
            run(one.prepare(own), own, {"PYTHONPATH": environ["PYTHONPATH"]}, Taken())
        run(one.command(data, own), own, environ, taken)
    return taken


def slowness(space: Path, data: Path) -> dict[str, str]:
    """Build the library that makes opening slow, and return the environment that loads it."""
    library = space / "slow_open.so"
    source = Path(__file__).with_name("slow_open.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SLOW_BELOW": str(data), "SLOW_MICROSECONDS": str(SLOW)}


def lines(case: Case, taken: Mapping[str, Taken]) -> Iterator[str]:
    """Give the rows of the table; the number after x is a time divided by ours."""
    ours_took = taken[case.contenders[0].name]
    for name, noted in taken.items():
        seconds, processor = statistics.median(noted.seconds), statistics.median(noted.processor)
        times = seconds / statistics.median(ours_took.seconds)
        processor_times = processor / statistics.median(ours_took.processor)
        yield (
            f"| {case.name} | {name} | {case.count / seconds:,.0f} | {seconds:.2f} | x {times:.1f} | "
            f"{processor:.2f} | x {processor_times:.1f} | {noted.read // case.count:,} | "
            f"{noted.main >> 10} | {noted.worker >> 10} | {noted.tree >> 10} |"
        )


HEADINGS = (
    "files", "program", "files/s", "seconds", "times ours", "processor s", "times ours", "bytes read per file",
    "main MB", "worker MB", "all MB",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="cases whose name holds one of these words")
    options = parser.parse_args()
    print(
        f"{datetime.date.today()}, {platform.system()}, {os.cpu_count()} processors, "
        f"Python {platform.python_version()}, rounds: {options.rounds} (medians).\n"
    )
    print(f"| {' | '.join(HEADINGS)} |")
    print(f"| --- | --- |{' ---: |' * (len(HEADINGS) - 2)}")
    for case in cases():
        if not options.only or any(word in case.name for word in options.only):
            with tempfile.TemporaryDirectory() as space:
                for line in lines(case, measure(case, options.rounds, Path(space))):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
