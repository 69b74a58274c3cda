"""`demo`: the example of the documentation, run for real against a throw-away XNAT on this computer."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xnatuploader import errors
from xnatuploader.console import report

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SUMMARY = "show init, scan and upload on example files, without a server"
DESCRIPTION = (
    "Make a small tree of DICOM files in ./xnatuploader-demo, then run init, scan and upload on it against a "
    "throw-away XNAT on this computer. Nothing leaves the machine."
)
EXAMPLE = """example:
  xnatuploader demo"""

FOLDER = "xnatuploader-demo"
PROJECT = "Demo"
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True, slots=True)
class _Series:
    """One folder of the example tree: a series of CT images."""

    patient: str
    patient_id: str
    date: str
    folder: str
    images: int
    number: int


TREE = (
    _Series("Doe^John", "0001", "20200312", "Chest CT", 3, 1),
    _Series("Roe^Jane", "0342", "20190115", "Head CT", 4, 1),
    _Series("Roe^Jane", "0342", "20200623", "Head CT", 3, 1),
    _Series("Roe^Jane", "0342", "20200623", "Neck CT", 4, 2),
)
"""The example of the documentation: two patients, three visits, four series, fourteen files."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this operation has: none."""


def run(args: argparse.Namespace) -> report.Result:
    """Run `demo` in the current folder."""
    return demo(Path(FOLDER), jobs=args.jobs, say=_silent if args.json else print)


def _silent(*words: object) -> None:
    """Say nothing: stdout is promised to `--json`."""


def demo(folder: Path, *, jobs: int = 4, say=print) -> report.Result:  # type: ignore[no-untyped-def]
    """Make the example tree below `folder` and take it through init, scan and upload."""
    from xnatuploader.commands import init, scan
    from xnatuploader.sandbox import options as sandbox_options
    from xnatuploader.sandbox import process
    from xnatuploader.upload.options import RunOptions
    from xnatuploader.upload.run import upload

    if folder.exists():
        raise errors.UsageError(f"{folder} exists already: remove it, or run the demo in another folder.")
    data, workbook, server = folder / "data", folder / "files.xlsx", folder / "xnat"
    say(f"Making {sum(series.images for series in TREE)} DICOM files of two invented patients in {data}")
    make_tree(data)
    chosen = sandbox_options.SandboxOptions(str(server.absolute()), projects=[PROJECT])
    user = chosen.users[0]
    with process.running(chosen) as sandbox:
        say(f"Starting a throw-away XNAT on this computer: {sandbox.url}")
        say(f"\n$ xnatuploader init --spreadsheet {workbook}")
        say(init.init(workbook).text.splitlines()[0])
        say(f"\n$ xnatuploader scan --spreadsheet {workbook} --dir {data}")
        say(scan.scan(scan.Options(workbook, data, jobs=jobs)).text)
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
        f"\nWhere to look:\n  {workbook}  the spreadsheet: Configuration, Sessions, Files with each file's status"
    )
    say(f"  {archive}  what the XNAT stored:")
    for path in sorted(archive.rglob("*.dcm")):
        say(f"    {path.relative_to(archive).as_posix()}")
    return report.Result(
        exit_code=sent.exit_code,
        files=sent.files,
        sessions=sent.sessions,
        scans=sent.scans,
        bytes=sent.bytes,
        problems=sent.problems,
    )


def make_tree(folder: Path) -> None:
    """Write the example tree: `SURNAME^GIVENNAME-ID/YYYYMMDD/Series/scan0000.dcm`, small CT images."""
    for series in TREE:
        place = folder / f"{series.patient}-{series.patient_id}" / series.date / series.folder
        place.mkdir(parents=True)
        for index, image in enumerate(_images(series)):
            image.save_as(place / f"scan{index:04d}.dcm", enforce_file_format=True)


def _images(series: _Series) -> Iterator[Dataset]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    study = generate_uid(entropy_srcs=[series.patient_id, series.date])
    series_uid = generate_uid(entropy_srcs=[study, str(series.number)])
    for index in range(series.images):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = _CT_IMAGE
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
        image.ContentDate = datetime.date(2020, 1, 1).strftime("%Y%m%d")
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows = image.Columns = 16
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.PixelData = bytes((index * 16 + offset) % 256 for offset in range(512))
        yield image
