"""`demo`: the example of the documentation, run for real against a throw-away XNAT on this computer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from xnatuploader import errors
from xnatuploader.commands import init, scan
from xnatuploader.console import report
from xnatuploader.sandbox import options, process
from xnatuploader.upload.options import RunOptions
from xnatuploader.upload.run import upload

FOLDER = "xnatuploader-demo"
PROJECT = "Demo"


@dataclass(frozen=True, slots=True)
class ExampleSeries:
    """One folder of the example tree: a series of CT images."""

    patient: str
    patient_id: str
    date: str
    folder: str
    images: int
    number: int


TREE = (
    ExampleSeries("Doe^John", "0001", "20200312", "Chest CT", 3, 1),
    ExampleSeries("Roe^Jane", "0342", "20190115", "Head CT", 4, 1),
    ExampleSeries("Roe^Jane", "0342", "20200623", "Head CT", 3, 1),
    ExampleSeries("Roe^Jane", "0342", "20200623", "Neck CT", 4, 2),
)
"""The example of the documentation: two patients, three visits, four series, fourteen files."""


def run(args: argparse.Namespace) -> report.Result:
    """Run `demo` in the current folder."""
    # With --json stdout is promised to the result.
    return demo(Path(FOLDER), jobs=args.jobs, say=(lambda text: None) if args.json else print)


def demo(folder: Path, *, jobs: int = 4, say: Callable[[str], None] = print) -> report.Result:
    """Make the example tree below `folder` and take it through init, scan and upload."""
    if folder.exists():
        raise errors.UsageError(f"{folder} exists already: remove it, or run the demo in another folder.")
    data, workbook, server = folder / "data", folder / "files.xlsx", folder / "xnat"
    say(f"Making {sum(series.images for series in TREE)} DICOM files of two invented patients in {data}")
    make_tree(data)
    chosen = options.SandboxOptions(str(server.absolute()), projects=[PROJECT])
    user = chosen.users[0]
    with process.running(chosen) as sandbox:
        say(f"Starting a throw-away XNAT on this computer: {sandbox.url}")
        say(f"\n$ xnatuploader init --spreadsheet {workbook}")
        say(init.init(workbook).text.splitlines()[0])
        say(f"\n$ xnatuploader scan --spreadsheet {workbook} --dir {data}")
        say(scan.scan(scan.ScanOptions(workbook, data, jobs=jobs)).text)
        say(
            f"\n$ xnatuploader upload --spreadsheet {workbook} --dir {data} --server {sandbox.url} --project {PROJECT}"
        )
        sent = upload(
            RunOptions(
                workbook,
                data,
                server=sandbox.url,
                project=PROJECT,
                jobs=jobs,
                environ={"XNAT_USER": user.name, "XNAT_PASS": user.password},
            )
        )
        say(sent.text)
    archive = server / "archive"
    say(
        f"\nWhere to look:\n  {workbook}  the spreadsheet: Configuration, Sessions, Files with each file's status\n"
        f"  {archive}  what XNAT has stored:"
    )
    for path in sorted(archive.rglob("*.dcm")):
        say(f"    {path.relative_to(archive).as_posix()}")
    return replace(sent, text="")


def make_tree(folder: Path) -> None:
    """Write the example tree: `SURNAME^GIVENNAME-ID/YYYYMMDD/Series/scan0000.dcm`, small CT images."""
    for series in TREE:
        target = folder / f"{series.patient}-{series.patient_id}" / series.date / series.folder
        target.mkdir(parents=True)
        for index, image in enumerate(_images(series)):
            image.save_as(target / f"scan{index:04d}.dcm", enforce_file_format=True)


def _images(series: ExampleSeries) -> Iterator[Dataset]:
    study = generate_uid(entropy_srcs=[series.patient_id, series.date])
    series_uid = generate_uid(entropy_srcs=[study, str(series.number)])
    for index in range(series.images):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = generate_uid(entropy_srcs=[series_uid, str(index)])
        image.StudyDate = image.SeriesDate = series.date
        image.StudyTime = "101500"
        image.Modality = "CT"
        image.Manufacturer = "Example"
        image.ManufacturerModelName = "Demo CT"
        image.StationName = "DEMO1"
        image.StudyDescription = "Example study"
        image.SeriesDescription = series.folder
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.PatientName = series.patient
        image.PatientID = series.patient_id
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series_uid
        image.SeriesNumber, image.InstanceNumber = series.number, index + 1
        image.ContentDate = "20200101"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows = image.Columns = 16
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.PixelData = bytes((index * 16 + offset) % 256 for offset in range(512))
        yield image
