"""How the import service compares: `python -m tests.benchmarks.bench_import [--files 100] [--kilobytes 128]`.

Prints a Markdown table. The same data go to a sandbox on this machine by every route in turn: scan by scan in
archives, and through the import service. Each is timed as a whole process, login and workbook included; of several
rounds, in turn, the lowest figures count.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import builders
from tests.helpers.runs import BOOK, in_own_process
from tests.helpers.sandbox_process import Sandbox

SESSIONS, SCANS, JOBS = 4, 2, 4
ROUTES: dict[str, Sequence[str]] = {
    "direct, archives": (),
    "direct, zips (XNAT 1.7.6)": (),
    "DICOM-zip": ("--import-handler", "DICOM-zip"),
    "DICOM-zip, zips (XNAT 1.8.2)": ("--import-handler", "DICOM-zip"),
    "DICOM-zip, --via-cache": ("--import-handler", "DICOM-zip", "--via-cache"),
    "SI": ("--import-handler", "SI"),
    "XAR": ("--import-handler", "XAR"),
    "gradual-DICOM": ("--import-handler", "gradual-DICOM"),
}


@dataclass(frozen=True, slots=True)
class Took:
    """The result of one route."""

    seconds: float
    cpu: float
    """Of the program's process."""
    requests: int


def make_data(folder: Path, files: int, size: int) -> None:
    """Write the sessions: one subject each, one study, `SCANS` series of `files` images."""
    for session in range(1, SESSIONS + 1):
        for scan in range(1, SCANS + 1):
            for index in range(files):
                file = f"Doe^John-{session:04}/20200312/Scan {scan}/im{index:05}.dcm"
                builders.write_seed_file(folder, file, SeriesNumber=str(scan), pixels=size)


def measure(work: Path, name: str, latency: float, count: int) -> Took:
    """Upload everything by one route into a fresh sandbox."""
    route = ROUTES[name]
    told = name.partition("XNAT ")[2].rstrip(")") or "1.8.11"
    shutil.copyfile(work / "scanned.xlsx", work / BOOK)
    with (
        tempfile.TemporaryDirectory() as folder,
        Sandbox(Path(folder), projects=["P"], latency=latency, version=told) as box,
    ):
        begin, spent = time.perf_counter(), _spent()
        in_own_process(work, "upload", "--spreadsheet", BOOK, "--dir", "data", "--server", box.url, "--project", "P",
            "--jobs", str(JOBS), "--nopipeline" if route[-1:] != ("XAR",) else "--json", *route)  # fmt: skip
        seconds, cpu = time.perf_counter() - begin, _spent() - spent
        stored = len(box.files("P"))
        if stored != count:
            raise SystemExit(f"{name}: {stored} of {count} files are stored")
        return Took(seconds, cpu, box.count())


def _spent() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100, help="images in a scan")
    parser.add_argument("--kilobytes", type=int, default=128, help="size of an image")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--routes", default="", help="only routes whose name has this")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_data(work / "data", asked.files, asked.kilobytes * 1024)
        in_own_process(work, "init", "--spreadsheet", "scanned.xlsx")
        in_own_process(work, "scan", "--spreadsheet", "scanned.xlsx", "--dir", "data")
        count = SESSIONS * SCANS * asked.files
        print(
            f"{count} files of {asked.kilobytes} kB in {SESSIONS} sessions of {SCANS} scans, --jobs {JOBS}\n"
        )
        print(
            "| route | latency | seconds | CPU | files/s | requests |\n| --- | --- | --- | --- | --- | --- |"
        )
        names = [name for name in ROUTES if asked.routes in name]
        for latency in (0.0, 0.02):
            rounds = [
                {name: measure(work, name, latency, count) for name in names} for _ in range(asked.rounds)
            ]
            for name in names:
                took = [one[name] for one in rounds]
                seconds, cpu = min(one.seconds for one in took), min(one.cpu for one in took)
                line = f"| {name} | {latency * 1000:.0f} ms | {seconds:.1f} | {cpu:.2f} | {count / seconds:.0f} |"
                print(f"{line} {took[0].requests} |", flush=True)


if __name__ == "__main__":
    main()
