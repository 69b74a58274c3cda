"""Mapping cells and label templates: how the values of a row are built from its path and its header (pure).

A cell is a captured name, a DICOM field (`DICOM:StudyDate`, `DICOM:0008,0020`) or a template with braces
(`{ID}_{DICOM:Modality}`). `a|b` takes the first that has a value, inside braces and outside them (there the
alternatives may be templates); each alternative says in full what it is (`DICOM:StudyDate|DICOM:SeriesDate`).
The cells of a row are joined with nothing between. `SessionLabel` is built in the same way, from more fields.
"""

from __future__ import annotations

import re
from collections import abc
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from xnatuploader import errors, records
from xnatuploader.config.lines import LabelledRow, near
from xnatuploader.dicom import reader

DICOM = "DICOM:"
"""How a header field begins in cells, headings and the fields of a template."""

PATH = "Path:"
"""How a captured name begins whose plain name is taken by another column."""

LABEL_FIELDS = ("Modality", "Visit")
"""What a label template may name besides mapping rows, captures and DICOM fields."""

_TAG = re.compile(r"\(?\s*([0-9A-Fa-f]{4})\s*,\s*([0-9A-Fa-f]{4})\s*\)?")

_COMMON_KEYWORDS = """
    AccessionNumber AcquisitionDate AcquisitionDateTime AcquisitionNumber AcquisitionTime BodyPartExamined
    ClinicalTrialProtocolID ClinicalTrialSiteID ClinicalTrialSubjectID ClinicalTrialTimePointID
    ContentDate DeviceSerialNumber EchoTime FrameOfReferenceUID ImageType InstanceCreationDate
    InstanceNumber InstitutionName Laterality MagneticFieldStrength Manufacturer ManufacturerModelName
    Modality OperatorsName OtherPatientIDs PatientAge PatientBirthDate PatientID PatientName
    PatientPosition PatientSex PatientSize PatientWeight PerformedProcedureStepDescription
    PerformedProcedureStepID PerformingPhysicianName ProtocolName ReferringPhysicianName RepetitionTime
    RequestedProcedureDescription SeriesDate SeriesDescription SeriesInstanceUID SeriesNumber SeriesTime
    SliceThickness SOPClassUID SOPInstanceUID StationName StudyDate StudyDescription StudyID
    StudyInstanceUID StudyTime
"""
"""What people map; a misspelt field is nearly always meant to be one of these."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A value cannot be built: `field` names what is empty (`DICOM:StudyDate`; `ID or DICOM:PatientID`)."""

    field: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The first of `fields` that has a value."""

    fields: tuple[str, ...]


Alternative = tuple[str | Choice, ...]
"""Literal text and choices, in order."""


@dataclass(frozen=True, slots=True)
class Template:
    """How one value is built: for each cell its alternatives; the cells' values are joined."""

    cells: tuple[tuple[Alternative, ...], ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that is named, once, in order: as `fill` hands them to its `lookup`."""
        pieces = (piece for cell in self.cells for alternative in cell for piece in alternative)
        return tuple(dict.fromkeys(f for piece in pieces if isinstance(piece, Choice) for f in piece.fields))

    def fill(self, lookup: Callable[[str], str]) -> str | Missing:
        """Return the value; `lookup` gives a field's text, '' where there is none. Text is kept as it is."""
        values = []
        for cell in self.cells:
            value = _first(cell, lookup)
            if isinstance(value, Missing):
                return value
            values.append(value)
        return "".join(values)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One row of the Mappings section."""

    label: str
    template: Template
    address: str = ""
    """Of the label, for messages."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Captured names, and DICOM fields with `DICOM:` before them."""
        return self.template.fields


def _first(cell: tuple[Alternative, ...], lookup: Callable[[str], str]) -> str | Missing:
    lacking = []
    for alternative in cell:
        text = ""
        for piece in alternative:
            # Blanks alone are no value: they would make a subject that nobody can see.
            value = (
                piece if isinstance(piece, str) else next(filter(str.strip, map(lookup, piece.fields)), None)
            )
            if value is None:
                lacking.append(" or ".join(piece.fields if isinstance(piece, Choice) else ()))
                break
            text += value
        else:
            return text
    return Missing(" or ".join(lacking))


def parse(row: LabelledRow, captures: Collection[str]) -> Mapping:
    """Read one row of the Mappings section; `captures` are the names that the Paths section captures.

    Raises `errors.ConfigurationError` with every problem of the row.
    """
    names = {name: name for name in captures} | {PATH + name: name for name in captures}
    return Mapping(row.label, _template(row, names), row.cell)


def parse_label(row: LabelledRow, captures: Collection[str], rows: Collection[str]) -> Template:
    """Read the row `SessionLabel`: its fields are those of mapping cells, the `rows`, Modality and Visit.

    The template's `fields` are headings of the Files sheet (a capture that shares its name with a row is
    `Path:Name`), `Modality` and `Visit`. Raises `errors.ConfigurationError` with every problem.
    """
    heads = headings(captures, rows)
    names = heads | {PATH + name: heads[name] for name in captures}
    names |= {name: name for name in (*rows, *LABEL_FIELDS)}
    return _template(row, names)


def headings(captures: Iterable[str], rows: Collection[str]) -> dict[str, str]:
    """Return the heading of each captured name's column: `Path:Name` where another column has that name."""
    taken = {*records.COLUMNS, *LABEL_FIELDS, *rows}
    return {name: PATH + name if name in taken else name for name in captures}


def resolve(mapping: Mapping, captures: abc.Mapping[str, str], dicom: abc.Mapping[str, str]) -> str | Missing:
    """Build the value of one row for one file.

    `captures` are the values from its path, `dicom` those of its header by keyword or `gggg,eeee`.
    """

    def lookup(field: str) -> str:
        if field.startswith(DICOM):
            return dicom.get(field[len(DICOM) :], "")
        return captures.get(field, "")

    return mapping.template.fill(lookup)


def dicom_fields(templates: Iterable[Template]) -> tuple[str, ...]:
    """Return every DICOM field that `templates` name, once, as keyword or `gggg,eeee`."""
    fields = (field for template in templates for field in template.fields if field.startswith(DICOM))
    return tuple(dict.fromkeys(field[len(DICOM) :] for field in fields))


def canonical_tag(text: str) -> str:
    """Return `gggg,eeee` in small letters for a tag however it is written, '' for anything else."""
    tag = _TAG.fullmatch(text.strip())
    return f"{tag[1]},{tag[2]}".lower() if tag else ""


def dicom_field(text: str, known: Callable[[str], bool], prefix: str = "") -> str:
    """Return the DICOM field that `text` names, as keyword or `gggg,eeee`, if `known` says that it can be used.

    Raises ValueError with what to write, after `prefix`.
    """
    field = canonical_tag(text) or text
    if known(field):
        return field
    if meant := _nearest_field(text):
        raise ValueError(f"did you mean {prefix}{meant}?")
    raise ValueError(f"use the standard's keyword, such as {prefix}StudyDate, or its tag.")


def _nearest_field(text: str) -> str:
    """Return the DICOM keyword that `text` most likely means, '' if nothing is near."""
    plain = re.sub(r"[^A-Za-z0-9]", "", text)
    return plain if reader.keyword_known(plain) else near(text, _COMMON_KEYWORDS.split(), cutoff=0.8)


# -- Reading cells ----------------------------------------------------------------------------------------


def _template(row: LabelledRow, names: abc.Mapping[str, str]) -> Template:
    """Read the cells of a row; `names` gives the field for what is written, header fields apart."""
    problems = []
    parsed = []
    for address, text in row.values:
        try:
            parsed.append(_cell(text, names))
        except ValueError as error:
            problems.append(f"{address}: {error}")
    if not row.values:
        problems.append(
            f"{row.cell}: '{row.label}' has no value; fill in the cell to its right, or clear the row."
        )
    if problems:
        raise errors.ConfigurationError(problems)
    return Template(tuple(parsed))


def _cell(text: str, names: abc.Mapping[str, str]) -> tuple[Alternative, ...]:
    """Read one cell; raises ValueError with what is wrong and what to write."""
    if not re.fullmatch(r"(?s:[^{}]|\{[^{}]*\})*", text):
        raise ValueError(f"'{text}' has an unmatched brace; a field is written {{ID}}.")
    alternatives = re.split(r"\|(?![^{}]*\})", text)  # at each | that is not inside braces
    return tuple(_alternative(alternative.strip(), text, names) for alternative in alternatives)


def _alternative(text: str, cell: str, names: abc.Mapping[str, str]) -> Alternative:
    if "{" not in text:
        return (Choice((_field(text, cell, names),)),)
    return tuple(
        Choice(tuple(_field(name.strip(), cell, names) for name in piece[1:-1].split("|")))
        if piece[0] == "{"
        else piece
        for piece in re.findall(r"(?s:\{[^{}]*\}|[^{}]+)", text)
    )


def _field(text: str, cell: str, names: abc.Mapping[str, str]) -> str:
    """Return the field that `text` names in `cell`; raises ValueError."""
    header = re.fullmatch(r"(?is:dicom\s*:(.*))", text)
    if header:
        try:
            return DICOM + dicom_field(header[1].strip(), reader.keyword_known, DICOM)
        except ValueError as error:
            raise ValueError(f"'{text}' is not a DICOM field that holds text or numbers; {error}") from error
    if text not in names:
        raise ValueError(_unknown(text, cell, names))
    return names[text]


def _unknown(text: str, cell: str, names: abc.Mapping[str, str]) -> str:
    if not text:
        return f"'{cell}' lacks a name; write a captured name or a DICOM field there."
    problem = f"'{text}' is neither a name that the Paths section captures nor a DICOM field"
    known = [name for name in names if not name.startswith(PATH)]
    if meant := near(text, known):
        return f"{problem}; did you mean {meant}?"
    if keyword := _nearest_field(text):
        return f"{problem}; for the header field write DICOM:{keyword}."
    return (
        f"{problem}. Known names: {', '.join(known) or 'none'}. Fixed text needs a name in braces beside it, as in "
        "{ID}_text."
    )
