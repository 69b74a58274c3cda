"""How fast files are de-identified: `python -m tests.benchmarks.bench_deidentify [--files 200] [--rounds 3]`.

For each kind of file, in turn, so that other work on the machine affects all alike: reading the file and taking
its MD5 (what an upload does anyway), ours in one process, in four threads and in two processes (with what comes back
through the pipe), pydicom reading and writing without any cleaning, and dicom-anonymizer's own engine with the same
table. The files are in the page cache; every copy is made whole and its MD5 taken. Prints files/s (median of the
rounds); at the end, what a 1 GB file costs in memory.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import io
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
from dicomanonymizer import simpledicomanonymizer

from tests.helpers import builders
from xnatuploader.deidentify.cleaner import Cleaner, NoCopy
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy

CLEANER = Cleaner(Policy("shifted", clean_descriptors=True), Key(bytes(range(32))))
KINDS: dict[str, dict[str, object]] = {
    "CT, 512 kB, 50 private elements": {
        "pixels": (512, 512),
        "private": 50,
        "ReferencedImageSequence": [builders.dataset(pixels=None)] * 3,
    },
    "MR, 128 kB, 600 private elements": {"Modality": "MR", "pixels": (256, 256), "private": 600},
    "multi-frame, 1 MB, 200 frames": {
        "pixels": (1024, 512),
        "PerFrameFunctionalGroupsSequence": [builders.dataset(pixels=None)] * 200,
    },
}

Contender = Callable[[list[Path]], object]


def md5_of_copy(path: Path) -> str:
    """Clean a file and take the MD5 of its copy."""
    result = CLEANER.clean(path, "S1")
    if isinstance(result, NoCopy):
        raise SystemExit(result.message)
    return hashlib.md5(result.data()).hexdigest()


def bytes_of_copy(path: Path) -> bytes:
    """Clean a file and return its copy, as a worker process hands it back."""
    result = CLEANER.clean(path, "S1")
    if isinstance(result, NoCopy):
        raise SystemExit(result.message)
    return result.data()


def only_read(path: Path) -> str:
    """Do what an upload without de-identification does with a file."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def read_and_write(path: Path) -> str:
    """Parse and write a file with pydicom, changing nothing."""
    return written(pydicom.dcmread(path))


def library_engine(path: Path) -> str:
    """Clean a file with dicom-anonymizer."""
    data_set = pydicom.dcmread(path)
    simpledicomanonymizer.anonymize_dataset(
        data_set, base_rules_gen=lambda: simpledicomanonymizer.initialize_actions("dicomfields_2026c")
    )
    return written(data_set)


def written(data_set: pydicom.Dataset) -> str:
    """Write a data set to memory and return its MD5."""
    target = io.BytesIO()
    data_set.save_as(target)
    return hashlib.md5(target.getvalue()).hexdigest()


def contenders(
    processes: concurrent.futures.Executor, threads: concurrent.futures.Executor
) -> dict[str, Contender]:
    """Return name -> what is measured."""

    def in_processes(paths: list[Path]) -> None:
        for data in processes.map(bytes_of_copy, paths, chunksize=4):
            hashlib.md5(data)

    return {
        "read and MD5 only": lambda paths: [only_read(path) for path in paths],
        "ours, one process": lambda paths: [md5_of_copy(path) for path in paths],
        "ours, 4 threads": lambda paths: list(threads.map(md5_of_copy, paths)),
        "ours, 2 processes": in_processes,
        "pydicom, read and write": lambda paths: [read_and_write(path) for path in paths[: len(paths) // 4]],
        "dicom-anonymizer": lambda paths: [library_engine(path) for path in paths[: len(paths) // 20]],
    }


SHARE = {"pydicom, read and write": 4, "dicom-anonymizer": 20}
"""The slow ones get every n-th file only."""


def measure(folder: Path, files: int, rounds: int) -> None:
    """Print the rate of every contender for every kind of file."""
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as processes,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        works = contenders(processes, threads)
        for number, (kind, keywords) in enumerate(KINDS.items()):
            paths = [
                builders.write_dicom(folder / f"{number}-{n}.dcm", instance=str(n), **keywords)
                for n in range(files)
            ]
            rates: dict[str, list[float]] = {name: [] for name in works}
            works["ours, 2 processes"](paths[:8])  # starting the workers is no part of it
            for _ in range(rounds):
                for name, work in works.items():
                    began = time.perf_counter()
                    work(paths)
                    count = len(paths) // SHARE.get(name, 1)
                    rates[name].append(count / (time.perf_counter() - began))
            print(kind)
            for name, found in rates.items():
                print(f"  {name:26} {statistics.median(found):8.0f} files/s")
            for path in paths:
                path.unlink()


def memory(folder: Path) -> None:
    """Print what cleaning a file of 1 GB adds to the memory of this process at its peak."""
    path = folder / "large.dcm"
    data = builders.dicom_bytes(pixels=(4, 4))
    size = 1 << 30
    at = data.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(data[: at + 8] + size.to_bytes(4, "little"))
    with path.open("r+b") as file:
        file.truncate(at + 12 + size)  # a hole: nothing is written to the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = CLEANER.clean(path, "S1")
    if isinstance(result, NoCopy):
        raise SystemExit(result.message)
    began = time.perf_counter()
    total = sum(len(chunk) for chunk in result.chunks())
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"a file of {total >> 20} MB: {grown:.0f} MB more memory, {total / seconds / 1e6:.0f} MB/s")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder))
        measure(Path(folder), options.files, options.rounds)


if __name__ == "__main__":
    main()
