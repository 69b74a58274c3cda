"""Rows, layouts and workbooks for the tests of the workbook."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import openpyxl
import pytest

from xnatuploader import records
from xnatuploader.workbook import book

LAYOUT = (
    ("Settings of this upload",),
    ("Fill in what stands below.",),
    (),
    ("Paths", "Nested", "{SubjectName}-{ID}", "**", "{Directory}", "{filename}.dcm"),
    (),
    ("Mappings", "Subject", "ID"),
    ("", "Session", "DICOM:StudyDate"),
    ("XNAT", "Project", "0012"),
)
NAMES = {"ID": 0, "filename": 1}
COLUMNS = len(records.COLUMNS) + len(NAMES)
"""How many columns the sheet Files has."""
MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def make_row(number: int, **fields: object) -> records.Row:
    given: dict[str, object] = {
        "file": f"Doe^John-0001/20200312/Chest CT/scan{number:04d}.dcm",
        "pattern": "Nested",
        "filename": f"scan{number:04d}.dcm",
        "upload": True,
        "subject": "0001",
        "session": "20200312",
        "dataset": "Chest CT",
        "session_label": "0001_20200312_CT",
        "scan_id": "3",
        "resource": "DICOM",
        "size": "526336",
        "modified": "2020-03-12T10:00:00Z",
        "modality": "CT",
        "study_date": "20200312",
        "series_number": "3",
        "instance_number": str(number),
        "sop_instance_uid": f"1.2.3.{number}",
        "values": records.Values(NAMES, ("0001", f"scan{number:04d}")),
    }
    return records.Row(**{**given, **fields})  # type: ignore[arg-type]


def make_rows(count: int) -> list[records.Row]:
    return [make_row(number) for number in range(count)]


def make_session(label: str = "0001_20200312_CT", **fields: object) -> records.SessionRow:
    given: dict[str, object] = {"subject": "0001", "session_label": label, "date": "20200312", "files": 3}
    return records.SessionRow(**{**given, **fields})  # type: ignore[arg-type]


def scanned(
    path: Path,
    rows: Sequence[records.Row] | None = None,
    sessions: Sequence[records.SessionRow] | None = None,
) -> Path:
    """Make a workbook as init and one scan leave it."""
    book.create(path, LAYOUT)
    rescan(path, make_rows(5) if rows is None else rows, sessions)
    return path


def rescan(
    path: Path,
    rows: Sequence[records.Row],
    sessions: Sequence[records.SessionRow] | None = None,
    **options: bool,
) -> None:
    book.write_scan(
        path,
        rows,
        [make_session()] if sessions is None else sessions,
        list(NAMES),
        {book.FOLDER: "/data/export"},
        **options,
    )


def files(path: Path) -> list[str]:
    return [row.file for row in book.Book.open(path).rows()]


def bare(row: records.Row) -> dict[str, object]:
    """Return a row's columns, without sheet and row number."""
    return {
        name: dict(value) if isinstance(value := getattr(row, name), Mapping) else value
        for name in records.Row.__slots__
        if name not in ("number", "sheet", "sop_class_uid")
    }


def parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def edit_parts(path: Path, change: Mapping[str, Callable[[str], str] | str]) -> None:
    """Change parts of a workbook's zip by functions on their text; a text adds a part or replaces it."""
    content = {name: data.decode() if name in change else data for name, data in parts(path).items()}
    for name, how in change.items():
        content[name] = how if isinstance(how, str) else how(str(content[name]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def sheet_part(path: Path, name: str) -> str:
    """Return the part of a sheet by its name on the tab."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read("xl/workbook.xml").decode()
        links = archive.read("xl/_rels/workbook.xml.rels").decode()
    entry = next(tag for tag in re.findall(r"<sheet\s[^>]*>", text) if f'name="{name}"' in tag)
    link = re.search(r'r:id="([^"]+)"', entry)
    assert link is not None
    relation = next(
        tag for tag in re.findall(r"<Relationship\s[^>]*>", links) if f'Id="{link.group(1)}"' in tag
    )
    target = re.search(r'Target="/?([^"]+)"', relation)
    assert target is not None
    return target.group(1) if target.group(1).startswith("xl/") else f"xl/{target.group(1)}"


def rows_xml(path: Path, name: str) -> list[str]:
    """Return each row of a sheet as it is stored."""
    return re.findall(r"<row .*?</row>", parts(path)[sheet_part(path, name)].decode(), re.DOTALL)


def loaded(path: Path) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(path.read_bytes()))


def through_libreoffice(path: Path, folder: Path) -> Path:
    """Return the workbook as LibreOffice saves it."""
    program = shutil.which("soffice")
    if program is None:
        pytest.skip("LibreOffice is not installed")
    folder.mkdir()
    profile = (folder / "profile").as_uri()
    command = [program, f"-env:UserInstallation={profile}", "--headless", "--convert-to", "xlsx"]
    subprocess.run(
        [*command, "--outdir", str(folder), str(path)], check=True, capture_output=True, timeout=120
    )
    return folder / path.name
