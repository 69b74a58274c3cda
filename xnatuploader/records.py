"""The records that the rooms hand to each other, and the tables that several of them share.

Everything that came from a sheet, a path or a DICOM header is text: a sheet gives back `3` for `003`, so
numbers and dates become text at the border (`workbook`, `dicom`) and stay text.
"""

from __future__ import annotations

import enum
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


class Status(str, enum.Enum):
    """The words of the Status column, exactly as in the sheet."""

    EMPTY = ""
    """Not tried yet."""
    SUCCESS = "success"
    """The server was verified to hold the file."""
    FAILED = "failed"
    """Tried, and not on the server; Message says why."""
    INTERRUPTED = "interrupted"
    """Not tried or not finished, because the run was stopped."""
    CONFLICT = "conflict"
    """Sending it would mix or replace something that is there; a person has to decide."""
    MISSING = "missing"
    """Listed, and not on disk."""
    UNMATCHED = "unmatched"
    """Fits no pattern set, is not DICOM, or lacks a value that a mapping needs."""
    SKIPPED = "skipped"
    """A kind of object that is not sent (reports, key objects, dose screens, damaged files)."""
    REVIEW = "review"
    """Its pixels may show who the patient is; a person has to say yes."""
    DUPLICATE = "duplicate"
    """The same SOP instance is listed already, or XNAT holds it in changed form."""

    def __str__(self) -> str:
        return self.value


TOOLS_OWN_NO = frozenset(
    {Status.UNMATCHED, Status.SKIPPED, Status.REVIEW, Status.DUPLICATE, Status.CONFLICT, Status.MISSING}
)
"""An N beside one of these was written by the tool, and is worked out again by each scan."""

TRIED_AT_UPLOAD = frozenset(Status) - {Status.SUCCESS, Status.UNMATCHED}
"""A row with one of these and Upload yes is tried. `success` is believed; `unmatched` has nowhere to go."""


RELEASED = "It was released by Release review."
"""Note in Message of a file that was tried because of its session's Release review, and is not on the server yet."""

HELD = "XNAT holds this image already"
"""How the Message of a row begins that an upload marked `duplicate`, since XNAT has the image with other content."""

NOT_SELECTED = "N"
"""What an upload writes under Upload of a file that is not to be tried again."""


class Values(Mapping[str, str]):
    """A small read-only mapping whose names are shared by many records, so that 100,000 rows stay small.

    `names` maps each name to its position in `cells`; make it once and pass the same object to all.
    """

    __slots__ = ("_cells", "_names")

    def __init__(self, names: Mapping[str, int], cells: Sequence[str]) -> None:
        self._names = names
        self._cells = cells if isinstance(cells, tuple) else tuple(cells)

    def __getitem__(self, name: str) -> str:
        return self._cells[self._names[name]]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the text of `name`; without the exception that `Mapping.get` costs where it is absent."""
        position = self._names.get(name)
        return default if position is None else self._cells[position]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __hash__(self) -> int:
        # Without one a dataclass refuses it as a default (`Mapping` sets it to None with its `__eq__`).
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[object, ...]:
        return (Values, (dict(self._names), self._cells))


IMPORT_HANDLERS = ("DICOM-zip", "SI", "gradual-DICOM", "XAR", "inbox")
"""The handlers of XNAT's import service, as `--import-handler` takes them."""

REFRESH_WORDS = ("checksum", "delete", "append", "populateStats")
"""What XNAT can be asked to do when it refreshes a catalog."""

YES = frozenset({"y", "yes", "true", "1", "x"})
NO = frozenset({"", "n", "no", "false", "0"})
"""What people write into a cell that says yes or no, in small letters."""


def is_yes(text: str) -> bool:
    """Tell whether a person who wrote `text` into a Y/N cell means yes."""
    return text.strip().lower() in YES


_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_-]")


@functools.lru_cache(maxsize=5_000)
def label(text: str) -> str:
    """Return `text` as XNAT can hold it in labels and scan IDs, with `_` for every other character.

    XNAT takes letters without accents, digits, `_` and `-`, and answers anything else with a bare 500.
    """
    return _NOT_IN_LABELS.sub("_", unicodedata.normalize("NFC", text))


NO_VALUES: Mapping[str, str] = Values({}, ())


Series = tuple[str, str, str, str]
"""Session label, scan ID, resource and SeriesInstanceUID."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the Files sheet: a file, where it goes, and what became of it.

    Rule: a column that the code reads is a field; a column that only mappings, templates and users read
    is in `values`, under its heading.
    """

    file: str
    """Path relative to `--dir`, with `/`. Identifies the row."""
    pattern: str = ""
    """Label of the pattern set that matched."""
    filename: str = ""
    """Name of the file on XNAT."""
    upload: bool = False
    status: Status = Status.EMPTY
    message: str = ""
    subject: str = ""
    session: str = ""
    dataset: str = ""
    session_label: str = ""
    scan_id: str = ""
    resource: str = ""
    """`DICOM` or `secondary`."""
    size: str = ""
    """Bytes."""
    modified: str = ""
    """Time of last change on disk, UTC, `YYYY-MM-DDTHH:MM:SSZ`."""
    md5: str = ""
    """Of what was sent (with de-identification: of the cleaned copy)."""
    modality: str = ""
    study_date: str = ""
    series_number: str = ""
    series_description: str = ""
    study_description: str = ""
    instance_number: str = ""
    manufacturer: str = ""
    manufacturer_model_name: str = ""
    station_name: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    values: Mapping[str, str] = field(default=NO_VALUES, hash=False)
    """Further mapping rows, further `DICOM:` fields and captured names, by heading."""
    sheet: str = "Files"
    """Worksheet of the row. Not a column."""
    number: int = 0
    """Row number in that worksheet when it was read, 0 before; for messages only. Not a column."""
    doubt: str = ""
    """What is wrong with the row's cells as a person or Excel left them. Not a column."""
    sop_class_uid: str = ""
    """Known while scanning and after reading the header at upload. Not a column."""

    @property
    def series(self) -> Series:
        """What the row's file shares with the others of its series; one header is enough for all of them."""
        return self.session_label, self.scan_id, self.resource, self.series_instance_uid


DICOM_FIELDS: Mapping[str, str] = {
    "Modality": "modality",
    "StudyDate": "study_date",
    "SeriesNumber": "series_number",
    "SeriesDescription": "series_description",
    "StudyDescription": "study_description",
    "InstanceNumber": "instance_number",
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "manufacturer_model_name",
    "StationName": "station_name",
    "StudyInstanceUID": "study_instance_uid",
    "SeriesInstanceUID": "series_instance_uid",
    "SOPInstanceUID": "sop_instance_uid",
}
"""DICOM keyword -> field of `Row`, for the headers that always have a column, in the order of the columns."""

MAPPED_COLUMNS: Mapping[str, str] = {"Subject": "subject", "Session": "session", "Dataset": "dataset"}
BEFORE_MAPPINGS: Mapping[str, str] = {
    "Pattern": "pattern",
    "File": "file",
    "Filename": "filename",
    "Upload": "upload",
    "Status": "status",
    "Message": "message",
    **MAPPED_COLUMNS,
}
AFTER_MAPPINGS: Mapping[str, str] = {
    "SessionLabel": "session_label",
    "ScanID": "scan_id",
    "Resource": "resource",
    "Size": "size",
    "Modified": "modified",
    "MD5": "md5",
    **{f"DICOM:{keyword}": name for keyword, name in DICOM_FIELDS.items()},
}
COLUMNS: Mapping[str, str] = {**BEFORE_MAPPINGS, **AFTER_MAPPINGS}
"""Heading -> field of `Row`, in the order of the Files sheet; further mapping rows come between the halves.

The first three mapping rows, `MAPPED_COLUMNS`, are in every Configuration sheet.
"""


def column_letters(column: int) -> str:
    """Return the letters of column number `column` in a sheet, 1 for A."""
    text = ""
    while column:
        column, rest = divmod(column - 1, 26)
        text = chr(65 + rest) + text
    return text


@dataclass(frozen=True, slots=True)
class ConfigurationLine:
    """One row of the Configuration sheet."""

    number: int
    """Row number, 1 for the first."""
    cells: tuple[str, ...]
    """Texts from column A on, to the last cell that is not empty: `1` for a number 1, dates in ISO form."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One line of the Sessions sheet: one XNAT session to be."""

    subject: str
    session_label: str
    upload: bool = True
    date: str = ""
    modality: str = ""
    scans: int = 0
    files: int = 0
    size: int = 0
    """Bytes."""
    done: int = 0
    failed: int = 0
    left: int = 0
    warnings: str = ""
    release_review: bool = False
    """Y sends this session's `review` files."""
    join: bool = False
    """Y adds to a session on XNAT that holds another study."""
    link: str = ""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that the listing found under `--dir`."""

    file: str
    """Path relative to `--dir`, with `/`, NFC is not applied: it must open the file again."""
    size: int
    """Bytes."""
    modified: str
    """As `Row.modified`."""
    error: str = ""
    """Why it cannot be read at all (a device, a dangling link, a folder without right), else empty."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one file's header says."""

    values: Mapping[str, str] = NO_VALUES
    """DICOM keyword (or `gggg,eeee`) -> text; multi-valued as `a\\b`; a field that is absent is ''."""
    status: Status = Status.EMPTY
    """EMPTY: may be sent. UNMATCHED: not DICOM. SKIPPED, REVIEW, MISSING: as in `Status`."""
    message: str = ""
    """Why, in a radiographer's words, and what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file in an upload; what goes into the journal and the workbook."""

    file: str
    status: Status
    message: str = ""
    md5: str = ""
    filename: str = ""
    """Only where the upload had to give the name (1.x workbooks): else empty, the sheet keeps its own."""
    session_label: str = ""
    """As `filename`."""
    scan_id: str = ""
    """As `filename`, and where the newcomer's ID had to change (`5-CT1`)."""
    resource: str = ""
    """As `filename`."""
    size: str = ""
    """As `Row.size`, of the file that was sent; only where it had changed since the scan."""
    modified: str = ""
    """As `Row.modified`, likewise."""
    upload: str = ""
    """`NOT_SELECTED`, or empty: the cell stays as it is."""


OUTCOME_FIELDS = tuple(one.name for one in fields(Outcome) if one.name != "file")
"""What an outcome changes in its file's row: fields of `Row`, Status and Message first."""


@dataclass(frozen=True, slots=True)
class ScanAddress:
    """Where a scan is on XNAT."""

    project: str
    """The project's ID."""
    subject: str
    """The subject's label."""
    session: str
    """The session's label."""
    scan: str
    """The scan's ID."""


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """The files of one resource of a scan that a run has to look at, in the order of the sheet."""

    label: str
    """`DICOM` or `secondary`; the content is `RAW` for the first, `secondary` for the other."""
    rows: tuple[Row, ...]
    """Each with the name its file has on XNAT in `filename`, unique in the resource."""


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """One scan (DICOM series) of a session, and what of it a run has to look at."""

    scan_id: str
    scan_type: str
    """The Dataset, as it is written to XNAT."""
    xsi_type: str
    """Such as `xnat:ctScanData`."""
    series_uid: str = ""
    series_description: str = ""
    resources: tuple[ResourcePlan, ...] = ()
    exists: bool = False
    """The server has this scan."""
    untold: tuple[str, ...] = ()
    """IDs of other scans of its session there that may hold images of this series, as far as XNAT's list tells."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all its resources."""
        return tuple(row for resource in self.resources for row in resource.rows)


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """One session that an upload creates or adds to. A session with a conflict never becomes a plan."""

    subject: str
    """Label of the subject on XNAT."""
    session_label: str
    xsi_type: str
    """Such as `xnat:ctSessionData`."""
    date: str = ""
    """`YYYY-MM-DD`, or empty."""
    uid: str = ""
    """StudyInstanceUID; empty where the session holds several."""
    modality: str = ""
    manufacturer: str = ""
    model: str = ""
    scans: tuple[ScanPlan, ...] = ()
    exists: str = ""
    """ID of the session on the server, empty where it has to be created."""
    post_steps: bool = True
    """Whether the steps after the upload may run."""
    post_steps_reason: str = ""
    """Why they may not."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all its scans."""
        return tuple(row for scan in self.scans for row in scan.rows)
