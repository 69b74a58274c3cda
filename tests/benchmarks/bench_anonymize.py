"""What de-identification costs an upload: `python -m tests.benchmarks.bench_anonymize [--files 800] [--rounds 3]`.

Prints a Markdown table. The same CT files of 512 kB over four scans go to a sandbox on this machine, in turn as they
are and de-identified; the upload alone is timed, as a whole process. The sandbox's files stand in memory where there
is /dev/shm, so that the disk is not what is measured.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import openpyxl

from tests.helpers import builders
from tests.helpers.runs import in_own_process
from tests.helpers.sandbox_process import Sandbox

SCANS = 4
SIZE = 512 * 1024


def make_data(folder: Path, files: int) -> None:
    """Write four subjects of one series each."""
    for scan in range(SCANS):
        for index in range(files // SCANS):
            builders.write_dicom(
                folder / f"Doe^John-S{scan}/20200101/Head/im{index:04}.dcm",
                PatientID=f"X{scan}99", PatientName="Doe^John", SeriesNumber=3, InstanceNumber=index + 1,
                StudyInstanceUID=builders.uid(f"study {scan}"), SeriesInstanceUID=builders.uid(f"series {scan}"),
                SOPInstanceUID=builders.uid(f"image {scan} {index}"), pixels=SIZE,
            )  # fmt: skip


def make_workbook(work: Path, name: str, anonymize: str) -> None:
    in_own_process(work, "init", "--spreadsheet", name, "--force")
    opened = openpyxl.load_workbook(work / name)
    for cells in opened["Configuration"].iter_rows():
        if cells[1].value == "Anonymize":
            cells[2].value = anonymize
    opened.save(work / name)
    in_own_process(work, "scan", "--spreadsheet", name, "--dir", "data")


def upload(work: Path, name: str, memory: str | None) -> float:
    """Return the seconds of one upload into an empty sandbox."""
    with tempfile.TemporaryDirectory(dir=memory) as place, Sandbox(Path(place), projects=["P"]) as box:
        begun = time.perf_counter()
        in_own_process(
            work, "upload", "--spreadsheet", name, "--dir", "data", "--server", box.url, "--project", "P",
            "--nopipeline",
        )  # fmt: skip
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    took: dict[str, list[float]] = {"no": [], "yes": []}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        make_data(work / "data", args.files)
        for _ in range(args.rounds):
            for anonymize, times in took.items():
                make_workbook(work, "study.xlsx", anonymize)
                times.append(upload(work, "study.xlsx", memory))
                shutil.rmtree(work / "logs", ignore_errors=True)
    print("| upload of | median | rate |\n| --- | --- | --- |")
    for anonymize, times in took.items():
        seconds = statistics.median(times)
        what = "de-identified copies" if anonymize == "yes" else "the files as they are"
        print(f"| {what} | {seconds:.1f} s | {args.files * SIZE / seconds / 1e6:.0f} MB/s |")
    ratio = statistics.median(plain / clean for plain, clean in zip(took["no"], took["yes"], strict=True))
    print(f"\nRate with de-identification over the rate without, median of the pairs: {ratio:.2f}")


if __name__ == "__main__":
    main()
