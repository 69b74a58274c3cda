"""How fast the workbook is: python -m tests.benchmarks.bench_workbook [--rows 100000]

Prints seconds and peak memory for each thing that a run does with a list of so many rows, beside openpyxl's own
ways of reading and writing it where `--openpyxl` asks for them (minutes at 100,000 rows). Each measurement runs
in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from xnatuploader import records
from xnatuploader.workbook import book

NAMES = {"SubjectName": 0, "ID": 1, "Directory": 2, "filename": 3}
FILES_PER_SESSION = 200


def make_row(number: int) -> records.Row:
    """Return the row of one file of a CT series, all columns filled as a scan fills them."""
    session = number // FILES_PER_SESSION
    subject, day = f"{session // 2:04d}", f"202003{session % 28 + 1:02d}"
    series = f"1.2.840.113619.2.55.3.{session}.3"
    return records.Row(
        file=f"Doe^John-{subject}/{day}/Chest CT/scan{number:06d}.dcm",
        pattern="Nested",
        filename=f"scan{number:06d}.dcm",
        upload=True,
        subject=subject,
        session=day,
        dataset="Chest CT",
        session_label=f"{subject}_{day}_CT",
        scan_id="3",
        resource="DICOM",
        size=str(500_000 + number % 1000),
        modified="2020-03-12T10:00:00Z",
        modality="CT",
        study_date=day,
        series_number="3",
        series_description="Thorax 1.0",
        study_description="Chest",
        instance_number=str(number % FILES_PER_SESSION),
        manufacturer="SIEMENS",
        manufacturer_model_name="Sensation 64",
        station_name="CT1",
        study_instance_uid=f"1.2.840.113619.2.55.3.{session}",
        series_instance_uid=series,
        sop_instance_uid=f"{series}.{number}",
        values=records.Values(NAMES, ("Doe^John", subject, "Chest CT", f"scan{number:06d}")),
    )


def make_sessions(rows: int) -> list[records.SessionRow]:
    """Return the Sessions rows of so many files."""
    return [
        records.SessionRow(f"{number // 2:04d}", f"{number // 2:04d}_{number}_CT", files=FILES_PER_SESSION)
        for number in range(rows // FILES_PER_SESSION)
    ]


def scan(path: Path, count: int) -> None:
    """Write a list for the first time."""
    book.create(path, [("Paths", "Nested", "{ID}", "{filename}.dcm")], force=True)
    rows = [make_row(number) for number in range(count)]
    with Clock():
        book.write_scan(path, rows, make_sessions(count), list(NAMES), {book.FOLDER: "/data"})


def read(path: Path, count: int) -> None:
    """Read all rows."""
    with Clock():
        rows = list(book.Book.open(path).rows())
    assert len(rows) == count


def columns(path: Path, count: int) -> None:
    """Read two columns alone, as `check` does to count the files."""
    with Clock():
        listed = sum(1 for _ in book.Book.open(path).columns("Upload", "Status"))
    assert listed == count


def outcomes(path: Path, count: int) -> None:
    """Write an outcome for every row, with the list of rows alive as in an upload."""
    rows = list(book.Book.open(path).rows())
    found = {
        row.file: records.Outcome(row.file, records.Status.SUCCESS, "Checked: MD5.", f"{number:032x}")
        for number, row in enumerate(rows)
    }
    with Clock():
        saved = book.write_outcomes(path, found, make_sessions(count))
    assert len(saved) == count


def rescan(path: Path, count: int) -> None:
    """Write a second scan: a new file, a changed one, all others as they are."""
    rows = list(book.Book.open(path).rows())
    rows[5] = dataclasses.replace(rows[5], size="1")
    rows[0:1] = [make_row(count)]
    with Clock():
        book.write_scan(path, rows, make_sessions(count), list(NAMES), {book.FOLDER: "/data"})


def openpyxl_read(path: Path, count: int) -> None:
    """Read with openpyxl, read-only."""
    import openpyxl

    with Clock():
        page = openpyxl.load_workbook(path, read_only=True)["Files"]
        assert sum(1 for _ in page.iter_rows(values_only=True)) == count + 1


def openpyxl_save(path: Path, count: int) -> None:
    """Load and save with openpyxl."""
    import openpyxl

    with Clock():
        openpyxl.load_workbook(path).save(path.with_name("saved.xlsx"))


OURS = (scan, read, columns, outcomes, columns, rescan)
THEIRS = (openpyxl_read, openpyxl_save)


class Clock:
    """Prints the seconds that pass within it."""

    def __enter__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        print(f"{wall:8.2f} s{cpu:9.2f} s CPU{peak_megabytes():9.0f} MB", flush=True)


def peak_megabytes() -> float:
    """Return this process's highest resident size so far."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--openpyxl", action="store_true")
    options = parser.parse_args()
    # A forked child would report its parent's peak.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "files.xlsx"
        for what in (*OURS, *(THEIRS if options.openpyxl else ())):
            run(context, what, path, options.rows)
        print(f"{path.stat().st_size / 1e6:.1f} MB on disk")


def run(
    context: multiprocessing.context.SpawnContext, what: Callable[[Path, int], None], path: Path, rows: int
) -> None:
    """Measure one thing in a process of its own."""
    print(f"{(what.__doc__ or '').split(',')[0].rstrip('.'):60}", end="", flush=True)
    process = context.Process(target=what, args=(path, rows))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{what.__name__} failed")


if __name__ == "__main__":
    main()
