"""How the import service compares: `python -m tests.benchmarks.bench_import [--files 100] [--kilobytes 128]`.

Prints a Markdown table. The same data go to a sandbox on this machine by every route in turn: scan by scan in
archives, and through the import service. Each is timed as a whole process, login and workbook included.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
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
    "DICOM-zip": ("--import-handler", "DICOM-zip"),
    "DICOM-zip, --via-cache": ("--import-handler", "DICOM-zip", "--via-cache"),
    "SI": ("--import-handler", "SI"),
    "XAR": ("--import-handler", "XAR"),
    "gradual-DICOM": ("--import-handler", "gradual-DICOM"),
}


@dataclass(frozen=True, slots=True)
class Took:
    """The result of one route."""

    seconds: float
    requests: int


def make_data(folder: Path, files: int, size: int) -> None:
    """Write the sessions: one subject each, one study, `SCANS` series of `files` images."""
    for session in range(1, SESSIONS + 1):
        for scan in range(1, SCANS + 1):
            for index in range(files):
                file = f"Doe^John-{session:04}/20200312/Scan {scan}/im{index:05}.dcm"
                builders.write_seed_file(folder, file, SeriesNumber=str(scan), pixels=size)


def measure(work: Path, route: Sequence[str], latency: float, count: int) -> Took:
    """Upload everything by one route into a fresh sandbox."""
    shutil.copyfile(work / "scanned.xlsx", work / BOOK)
    with (
        tempfile.TemporaryDirectory() as folder,
        Sandbox(Path(folder), projects=["P"], latency=latency) as box,
    ):
        begin = time.perf_counter()
        in_own_process(work, "upload", "--spreadsheet", BOOK, "--dir", "data", "--server", box.url, "--project", "P",
            "--jobs", str(JOBS), "--nopipeline" if route[-1:] != ("XAR",) else "--json", *route)  # fmt: skip
        seconds = time.perf_counter() - begin
        stored = len(box.files("P"))
        if stored != count:
            raise SystemExit(f"{route}: {stored} of {count} files are stored")
        return Took(seconds, box.count())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100, help="images in a scan")
    parser.add_argument("--kilobytes", type=int, default=128, help="size of an image")
    parser.add_argument("--rounds", type=int, default=1)
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
        print("| route | latency | seconds | files/s | requests |\n| --- | --- | --- | --- | --- |")
        for latency in (0.0, 0.02):
            for name, route in ROUTES.items():
                took = [measure(work, route, latency, count) for _ in range(asked.rounds)]
                seconds = statistics.median(one.seconds for one in took)
                line = f"| {name} | {latency * 1000:.0f} ms | {seconds:.1f} | {count / seconds:.0f} |"
                print(f"{line} {took[0].requests} |", flush=True)


if __name__ == "__main__":
    main()
