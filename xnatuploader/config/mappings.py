"""Mapping cells and label templates: how the values of a row are built from its path and its header (pure).

A cell is a captured name, a DICOM field (`DICOM:StudyDate`, `DICOM:0008,0020`) or a template with braces
(`{ID}_{DICOM:Modality}`). `a|b` takes the first that has a value, inside braces and outside them (there the
alternatives may be templates); each alternative says in full what it is (`DICOM:StudyDate|DICOM:SeriesDate`).
The cells of a row are joined with nothing between. `SessionLabel` is built in the same way, from more fields.
"""

from __future__ import annotations

import difflib
import re
from collections import abc
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from xnatuploader import errors

DICOM = "DICOM:"
"""How a header field begins in cells, headings and the fields of a template."""

PATH = "Path:"
"""How a captured name begins whose plain name is taken by another column."""

FIXED_HEADINGS = (
    "Pattern",
    "File",
    "Filename",
    "Upload",
    "Status",
    "Message",
    "Subject",
    "Session",
    "Dataset",
    "SessionLabel",
    "ScanID",
    "Resource",
    "Size",
    "Modified",
    "MD5",
)
"""The columns of the Files sheet that are always there."""

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
    text: str = ""
    """The cells as they are written, for messages."""

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
    cells: tuple[str, ...] = ()
    """As they are written."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Captured names, and DICOM fields with `DICOM:` before them."""
        return self.template.fields


def _first(cell: tuple[Alternative, ...], lookup: Callable[[str], str]) -> str | Missing:
    lacking = []
    for alternative in cell:
        text = ""
        for piece in alternative:
            value = (
                piece if isinstance(piece, str) else next(filter(_has_text, map(lookup, piece.fields)), None)
            )
            if value is None:
                lacking.append(" or ".join(piece.fields if isinstance(piece, Choice) else ()))
                break
            text += value
        else:
            return text
    return Missing(" or ".join(lacking))


def _has_text(value: str) -> bool:
    """Blanks alone are no value: they would make a subject that nobody can see."""
    return bool(value.strip())


def parse(
    label: str,
    cells: Sequence[tuple[str, str]],
    captures: Collection[str],
    field_known: Callable[[str], bool],
    label_cell: str = "",
) -> Mapping:
    """Read one row of the Mappings section.

    `cells` are (address, text) of the cells right of the label; `captures` the names that the Paths section
    captures; `field_known` tells whether a keyword or `gggg,eeee` is a DICOM field. Raises
    `errors.ConfigurationError` with every problem of the row.
    """
    names = {name: name for name in captures} | {PATH + name: name for name in captures}
    template = _template(label, cells, names, field_known, label_cell)
    return Mapping(label, template, label_cell, tuple(text for _, text in cells))


def parse_label(
    cells: Sequence[tuple[str, str]],
    captures: Collection[str],
    rows: Collection[str],
    field_known: Callable[[str], bool],
    label_cell: str = "",
) -> Template:
    """Read the row `SessionLabel`: its fields are those of mapping cells, the `rows`, Modality and Visit.

    The template's `fields` are headings of the Files sheet (a capture that shares its name with a row is
    `Path:Name`), `Modality` and `Visit`. Raises `errors.ConfigurationError` with every problem.
    """
    heads = headings(captures, rows)
    names = heads | {PATH + name: heads[name] for name in captures}
    names |= {name: name for name in (*rows, *LABEL_FIELDS)}
    return _template("SessionLabel", cells, names, field_known, label_cell)


def headings(captures: Iterable[str], rows: Collection[str]) -> dict[str, str]:
    """Return the heading of each captured name's column: `Path:Name` where another column has that name."""
    taken = {*FIXED_HEADINGS, *LABEL_FIELDS, *rows}
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


def nearest_field(text: str, field_known: Callable[[str], bool]) -> str:
    """Return the DICOM keyword that `text` most likely stands for, '' if nothing is near."""
    plain = re.sub(r"[^A-Za-z0-9]", "", text)
    if plain and field_known(plain):
        return plain
    by_case = {keyword.lower(): keyword for keyword in _COMMON_KEYWORDS.split()}
    near = difflib.get_close_matches(plain.lower(), by_case, n=1, cutoff=0.8)
    return by_case[near[0]] if near else ""


# -- Reading cells ----------------------------------------------------------------------------------------


def _template(
    label: str,
    cells: Sequence[tuple[str, str]],
    names: abc.Mapping[str, str],
    field_known: Callable[[str], bool],
    label_cell: str,
) -> Template:
    problems = []
    parsed = []
    for address, text in cells:
        try:
            parsed.append(_cell(text, _Vocabulary(names, field_known)))
        except ValueError as trouble:
            problems.append(f"{address}: {trouble}")
    if not cells:
        problems.append(
            f"{label_cell}: '{label}' has no value; fill in the cell to its right, or clear the row."
        )
    if problems:
        raise errors.ConfigurationError(problems)
    return Template(tuple(parsed), " ".join(text for _, text in cells))


def _cell(text: str, vocabulary: _Vocabulary) -> tuple[Alternative, ...]:
    """Read one cell; raises ValueError with what is wrong and what to write."""
    if not re.fullmatch(r"(?s:[^{}]|\{[^{}]*\})*", text):
        raise ValueError(f"'{text}' has a brace without its partner; a field is written {{ID}}.")
    alternatives = re.split(r"\|(?![^{}]*\})", text)  # at each | that is not inside braces
    return tuple(_alternative(alternative.strip(), text, vocabulary) for alternative in alternatives)


def _alternative(text: str, cell: str, vocabulary: _Vocabulary) -> Alternative:
    if "{" not in text:
        return (Choice((vocabulary.field(text, cell),)),)
    pieces: list[str | Choice] = []
    for piece in re.findall(r"(?s:\{[^{}]*\}|[^{}]+)", text):
        if piece[0] == "{":
            pieces.append(Choice(tuple(vocabulary.field(name, cell) for name in piece[1:-1].split("|"))))
        else:
            pieces.append(piece)
    return tuple(pieces)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The fields that a cell may name: `names` gives the field for what is written."""

    names: abc.Mapping[str, str]
    field_known: Callable[[str], bool]

    def field(self, written: str, cell: str) -> str:
        """Return the field that is `written` in `cell`; raises ValueError."""
        text = written.strip()
        header = re.fullmatch(r"(?is:dicom\s*:(.*))", text)
        if header:
            return DICOM + self._header_field(header[1].strip())
        if text in self.names:
            return self.names[text]
        raise ValueError(self._unknown(text, cell))

    def _header_field(self, text: str) -> str:
        field = canonical_tag(text) or text
        if field and self.field_known(field):  # pydicom knows an empty keyword
            return field
        near = nearest_field(text, self.field_known)
        hint = (
            f"did you mean DICOM:{near}?"
            if near
            else "use the standard's keyword, as DICOM:StudyDate, or its tag."
        )
        raise ValueError(f"'DICOM:{text}' is no DICOM field with text or numbers; {hint}")

    def _unknown(self, text: str, cell: str) -> str:
        if not text:
            return f"'{cell}' leaves a name out; write a captured name or a DICOM field there."
        known = [name for name in self.names if not name.startswith(PATH)]
        said = f"'{text}' is neither a name that the Paths section captures nor a DICOM field"
        near = difflib.get_close_matches(text.lower(), [name.lower() for name in known], n=1, cutoff=0.75)
        if near:
            return f"{said}; did you mean {next(name for name in known if name.lower() == near[0])}?"
        keyword = nearest_field(text, self.field_known)
        if keyword:
            return f"{said}; for the header's field write DICOM:{keyword}."
        text_hint = "Fixed text stands beside a name in braces, as {ID}_text."
        return f"{said}. Known names: {', '.join(known) or 'none'}. {text_hint}"
