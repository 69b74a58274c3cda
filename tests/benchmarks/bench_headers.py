"""How fast headers are read: `python -m tests.benchmarks.bench_headers [--files 4000] [--rounds 3]`.

Ours (one process, and as `scan` does it) against a bare pydicom loop, which reads to the pixels, and one that
stops after the last needed tag; they take turns, so that other work on the machine affects all alike. The
files are in the page cache. Prints one line per kind of file and contender: files/s (median of the rounds),
bytes read per file, and the peak memory of the largest process so far.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
from pydicom import filereader

from tests.helpers import builders
from tests.helpers.openers import slow_open
from xnatuploader import records
from xnatuploader.dicom import pool, reader
from xnatuploader.dicom.elements import CHARACTER_SET
from xnatuploader.scan import find

RULES = reader.Rules()
PLAN = reader.plan([], RULES)
LAST = max((*PLAN.tags, CHARACTER_SET))

Contender = Callable[[Path, list[records.FoundFile]], int]


def make(folder: Path, count: int, size: int, **elements: object) -> list[records.FoundFile]:
    """Write `count` files of at least `size` bytes, each its own instance, and list them."""
    mark = "1.2.826.0.1.1000000"
    data = builders.dicom_bytes(SOPInstanceUID=mark, **elements)  # type: ignore[arg-type]
    for number in range(count):
        path = folder / f"series{number // 400:03}" / f"scan{number:06}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            target.write(data.replace(mark.encode(), f"1.2.826.0.1.1{number:06}".encode()))
            if size > len(data):
                target.truncate(size)  # pixels that nobody reads take no room on the disk
    return list(find.list_files(folder))


def ours(root: Path, files: list[records.FoundFile]) -> int:
    return sum(not found.message for _, found in pool.read_all(root, files, [], RULES))


def ours_one_process(root: Path, files: list[records.FoundFile]) -> int:
    return sum(not found.message for _, found in pool.read_all(root, files, [], RULES, workers=0))


def bare_pydicom(root: Path, files: list[records.FoundFile]) -> int:
    for found in files:
        dataset = pydicom.dcmread(root / found.file, stop_before_pixels=True)
        [dataset.get(keyword, "") for keyword in records.DICOM_FIELDS]
    return len(files)


def pydicom_to_last_tag(root: Path, files: list[records.FoundFile]) -> int:
    for found in files:
        with (root / found.file).open("rb") as source:
            dataset = filereader.read_partial(source, stop_when=lambda tag, vr, length: tag > LAST)
            [dataset.get(keyword, "") for keyword in records.DICOM_FIELDS]
    return len(files)


def ours_slow(root: Path, files: list[records.FoundFile]) -> int:
    return sum(not found.message for _, found in pool.read_all(root, files, [], RULES, opener=slow_open))


def one_at_a_time_slow(root: Path, files: list[records.FoundFile]) -> int:
    results = pool.read_all(root, files, [], RULES, opener=slow_open, jobs=1)
    return sum(not found.message for _, found in results)


USUAL: tuple[Contender, ...] = (ours, ours_one_process, bare_pydicom, pydicom_to_last_tag)


def kinds(count: int) -> Iterator[tuple[str, int, int, dict[str, object], tuple[Contender, ...]]]:
    """Give what is measured: name, number of files, their size, their elements, contenders."""
    yield "10 kB", count, 10_000, {}, USUAL
    yield "512 kB CT", count, 512 << 10, {}, USUAL
    yield "400 private elements", count, 0, {"private": 400, "Modality": "MR"}, USUAL
    yield "implicit VR", count, 10_000, {"transfer_syntax": "implicit"}, USUAL
    yield "5 ms per open", min(count, 2000), 10_000, {}, (ours_slow, one_at_a_time_slow)


def bytes_read() -> int:
    """Return what this process has read so far; 0 where the system does not count it."""
    try:
        counters = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(counters.split()[1])


def peak_megabytes() -> int:
    try:
        import resource
    except ImportError:
        return 0
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in both) >> 10


def measure(
    root: Path, files: list[records.FoundFile], contenders: tuple[Contender, ...], rounds: int
) -> None:
    """Run the contenders in turn, `rounds` times, and print their lines."""
    rates: dict[str, list[float]] = {contender.__name__: [] for contender in contenders}
    sizes: dict[str, int] = {}
    for _ in range(rounds):
        for contender in contenders:
            before, started = bytes_read(), time.perf_counter()
            done = contender(root, files)
            rates[contender.__name__].append(len(files) / (time.perf_counter() - started))
            sizes[contender.__name__] = (bytes_read() - before) // len(files)
            assert done == len(files), contender.__name__
    for name, measured in rates.items():
        read = f"{sizes[name]:9,}" if name != "ours" else f"{'(workers)':>9}"
        print(
            f"  {name:22} {statistics.median(measured):10,.0f} files/s {read} bytes/file {peak_megabytes():5} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, pydicom {pydicom.__version__}, {os.cpu_count()} processors")
    for name, count, size, elements, contenders in kinds(options.files):
        with tempfile.TemporaryDirectory() as folder:
            files = make(Path(folder), count, size, **elements)
            print(f"{name}: {count:,} files")
            measure(Path(folder), files, contenders, options.rounds)


if __name__ == "__main__":
    main()
