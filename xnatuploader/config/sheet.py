"""What the Configuration sheet says, typed: the layout that `init` writes, and the reading of any layout.

A line of the sheet belongs to the section whose name stands in column A of it or of a line above; column B
holds its label, C onward its values. The layout of 1.x (no `SessionLabel`, fewer `XNAT` rows) stays readable.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

from xnatuploader import errors, records
from xnatuploader.config import mappings, patterns
from xnatuploader.config.mappings import (  # Config.mappings hides the module in its class body
    Mapping,
    Template,
)

SHEET = "Configuration"

REVIEW_WORDS = ("BurnedInAnnotation", "SecondaryCapture", "ScreenSave")
"""What the row `Review` may hold: why a file's pixels may show who the patient is."""

_T = TypeVar("_T")

RetainDates = Literal["none", "shifted", "full"]

LABEL_OF_1X = "{Subject}_{Modality}{Visit}"
"""How 1.x made session labels; used where the sheet has no row `SessionLabel`."""

_INSTRUCTIONS = """\
This sheet tells xnatuploader how your folders are named and where their files go on XNAT.
Change the cells in columns B, C, D ... below, save, close Excel, and run: xnatuploader scan

PATHS: each row is one way in which your files are stored. Column B is a name of your choice for it.
From column C on, each cell stands for one folder, from the top down; the last cell for the file's name.
{Name} takes any text and keeps it under that name: {SubjectName}-{ID} reads the folder Doe^John-0001.
{YYYY}, {MM}, {DD}, {II}: one capital letter, repeated, takes exactly that many digits.
* alone in a cell stands for one folder with any name, ** alone for one or more folders.
Other text must be there as written; small and capital letters are the same.
Rows are tried from the top, and the first that fits a file is used. Add rows for files stored otherwise.

MAPPINGS: where a file goes. Subject is the patient, Session one visit, Dataset the name of a scan.
Write a name that the Paths keep (ID), or DICOM: and a field of the file's header (DICOM:StudyDate).
To join several, put them in braces: {ID}_{DICOM:Modality}. a|b takes the first that is not empty.
SessionLabel is the session's name on XNAT. It may also hold {Subject}, {Session}, {Dataset},
{Modality}, and {Visit} (1, 2, ... by date). Add rows of your own for further columns.

XNAT: Project is the ID of the project, Server the address of your XNAT, as https://xnat.example.org
SkipImageTypes: images of these types are not sent. Separate the words of a list by commas.
Review: images that may show the patient's name wait for your yes. Empty the cell to send them unasked.
Anonymize (yes or no): send copies without personal data. What these copies keep:
RetainDates (none, shifted or full), RetainPatientCharacteristics, RetainDeviceIdentity (yes or no), and
the header fields in AllowFields. CleanDescriptors (yes or no) cleans descriptions instead of removing them.
"""

DEFAULT_LAYOUT: tuple[tuple[str, ...], ...] = (
    *((line,) if line else () for line in _INSTRUCTIONS.splitlines()),
    (),
    ("Paths", "Nested", "{SubjectName}-{ID}", "**", "{Directory}", "{filename}.dcm"),
    (),
    ("Mappings", "Subject", "ID"),
    ("", "Session", "DICOM:StudyDate"),
    ("", "Dataset", "Directory"),
    ("", "SessionLabel", "{Subject}_{Session}_{Modality}"),
    (),
    ("XNAT", "Project", ""),
    ("", "Server", ""),
    ("", "SkipImageTypes", "DOSE_INFO"),
    ("", "Review", ", ".join(REVIEW_WORDS)),
    ("", "Anonymize", "no"),
    ("", "RetainDates", "none"),
    ("", "RetainPatientCharacteristics", "no"),
    ("", "RetainDeviceIdentity", "no"),
    ("", "CleanDescriptors", "no"),
    ("", "AllowFields", ""),
)
"""The lines that `init` writes, from row 1; a line's cells from column A."""

_SECTIONS = ("Paths", "Mappings", "XNAT")
_NEEDED = {"Subject": "ID", "Session": "DICOM:StudyDate", "Dataset": "DICOM:SeriesDescription"}
_XNAT_ROWS = (
    "Project",
    "Server",
    "SkipImageTypes",
    "Review",
    "Anonymize",
    "RetainDates",
    "RetainPatientCharacteristics",
    "RetainDeviceIdentity",
    "CleanDescriptors",
    "AllowFields",
)
_YES = frozenset({"y", "yes", "true", "1", "x"})
_NO = frozenset({"", "n", "no", "false", "0"})


class ConfigurationLine(Protocol):
    """One line of the sheet, as the workbook gives it."""

    @property
    def number(self) -> int:
        """Its row number, from 1."""

    @property
    def cells(self) -> Sequence[object]:
        """Its cells from column A; text, a number, or None where blank."""


@dataclass(frozen=True, slots=True)
class Config:
    """One Configuration sheet, read and found free of problems."""

    pattern_sets: tuple[patterns.PatternSet, ...]
    matcher: patterns.Matcher
    mappings: tuple[Mapping, ...]
    """Subject, Session, Dataset and further rows, in the order of the sheet; without SessionLabel."""
    session_label: Template
    project: str = ""
    server: str = ""
    project_place: str = ""
    """For messages: the cell of the project, or the option that beat it; '' without such a row."""
    server_place: str = ""
    skip_image_types: frozenset[str] = frozenset({"DOSE_INFO"})
    """ImageType values, in capitals."""
    review: frozenset[str] = frozenset(REVIEW_WORDS)
    """Some of `REVIEW_WORDS`."""
    anonymize: bool = False
    retain_dates: RetainDates = "none"
    retain_patient_characteristics: bool = False
    retain_device_identity: bool = False
    clean_descriptors: bool = False
    allow_fields: tuple[str, ...] = ()
    """DICOM keywords, or tags as `gggg,eeee`, that de-identification keeps."""
    is_1x: bool = False
    """The sheet has no `SessionLabel` row: labels are those of 1.x."""

    @property
    def captures(self) -> tuple[str, ...]:
        """Every name that the Paths section captures, in the order of the sheet."""
        return self.matcher.captures

    @property
    def rows(self) -> tuple[str, ...]:
        """The labels of `mappings`."""
        return tuple(mapping.label for mapping in self.mappings)

    @property
    def further_rows(self) -> tuple[str, ...]:
        """The labels of mapping rows besides Subject, Session and Dataset."""
        return tuple(label for label in self.rows if label not in _NEEDED)

    @property
    def headings(self) -> dict[str, str]:
        """Captured name -> heading of its column in the Files sheet."""
        return mappings.headings(self.captures, self.rows)

    def capture_heading(self, name: str) -> str:
        """Return the heading of the column of one captured name."""
        return self.headings[name]

    @property
    def value_headings(self) -> tuple[str, ...]:
        """The headings of `Row.values`: further rows, DICOM fields that have no column anyway, captures."""
        fields = (mappings.DICOM + field for field in self.dicom_fields if field not in records.DICOM_FIELDS)
        return (*self.further_rows, *fields, *self.headings.values())

    @property
    def dicom_fields(self) -> tuple[str, ...]:
        """Every DICOM field that a mapping or the label names, as keyword or `gggg,eeee`."""
        return mappings.dicom_fields((*(mapping.template for mapping in self.mappings), self.session_label))

    @property
    def mapped_captures(self) -> tuple[str, ...]:
        """The captured names that mappings use, in the order of the mappings."""
        fields = (field.removeprefix(mappings.PATH) for mapping in self.mappings for field in mapping.fields)
        return tuple(dict.fromkeys(field for field in fields if field in self.captures))

    def with_options(self, server: str | None = None, project: str | None = None) -> Config:
        """Return this configuration with the command line's options over it: an option beats its cell."""
        changed = self
        if server:
            changed = dataclasses.replace(changed, server=server.strip(), server_place="--server")
        if project:
            changed = dataclasses.replace(changed, project=project.strip(), project_place="--project")
        return changed

    def with_fallback_server(self, host: str) -> Config:
        """Return this configuration with `XNAT_HOST` as its server, where neither sheet nor option names one."""
        if self.server or not host.strip():
            return self
        return dataclasses.replace(self, server=host.strip(), server_place="XNAT_HOST")

    def require_server_and_project(self) -> tuple[str, str]:
        """Return the server's address without a last `/`, and the project's ID.

        Raises `errors.ConfigurationError` naming the cell and the option where one is missing, and where the
        server is no address of the form `https://name`, or holds a password.
        """
        problems = [*_server_problems(self.server, self.server_place)]
        if not self.project:
            problems.append(_absent(self.project_place, "Project", "the project's ID on XNAT", "--project"))
        if problems:
            raise errors.ConfigurationError(problems)
        return self.server.rstrip("/"), self.project


def _absent(place: str, label: str, what: str, option: str) -> str:
    where = f"{place}: {label} is empty" if place else f"{SHEET}: the XNAT section has no row {label}"
    return f"{where}; write {what} there, or give it with {option}."


def _server_problems(server: str, place: str) -> Iterable[str]:
    if not server:
        yield _absent(place, "Server", "the address of your XNAT (https://xnat.example.org)", "--server")
    elif "@" in server:
        # Not repeated: what stands before the @ may be a password.
        yield f"{place}: the server's address must not hold a user name or password."
    elif not re.fullmatch(r"(?i:https?)://[^\s/]+(/\S*)?", server):
        host = re.sub(r"(?i)^([a-z]+://|https?:)/*", "", server)
        yield f"{place}: '{server}' is no web address; write it in full, most likely https://{host}"


# -- Reading the sheet --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """A labelled line of a section."""

    label: str
    cell: str
    """Address of the label."""
    values: tuple[tuple[str, str], ...]
    """Address and text of the cells right of it that are not blank."""
    first: str
    """Address of column C: where a value belongs."""


def parse(
    lines: Sequence[ConfigurationLine],
    field_known: Callable[[str], bool],
    element_known: Callable[[str], bool] | None = None,
) -> Config:
    """Read the lines of the Configuration sheet.

    `field_known` tells whether a keyword or `gggg,eeee` is a DICOM field that mappings can use,
    `element_known` whether a keyword is one that de-identification can keep (by default the same). Raises
    `errors.ConfigurationError` with all problems at once, each with its cell and what to write there.
    """
    problems: list[str] = []
    sections = _sections(lines, problems)
    sets = _pattern_sets(sections.get("Paths", ()), problems)
    matcher = _collect(problems, partial(patterns.compile_sets, sets))
    captures = tuple(dict.fromkeys(_captured(sets)))
    # Without any pattern set each captured name would look like a mistake in the mappings.
    of_mappings: list[str] = problems if sets else []
    mapping_rows = sections.get("Mappings", ())
    rows = _mapping_rows(mapping_rows, captures, field_known, of_mappings)
    label_row = next((row for row in mapping_rows if row.label == "SessionLabel"), None)
    labels = {*_NEEDED, *(row.label for row in mapping_rows if row.label != "SessionLabel")}
    session_label = _session_label(label_row, captures, labels, field_known, of_mappings)
    xnat = _XnatRows(sections.get("XNAT", ()), problems)
    config = Config(
        pattern_sets=sets,
        matcher=matcher or patterns.Matcher(()),
        mappings=rows,
        session_label=session_label,
        is_1x=label_row is None,
        project=xnat.text("Project"),
        project_place=xnat.place("Project"),
        server=xnat.text("Server"),
        server_place=xnat.place("Server"),
        skip_image_types=xnat.image_types("SkipImageTypes", ("DOSE_INFO",)),
        review=xnat.review("Review"),
        anonymize=xnat.yes("Anonymize"),
        retain_dates=xnat.retain_dates("RetainDates"),
        retain_patient_characteristics=xnat.yes("RetainPatientCharacteristics"),
        retain_device_identity=xnat.yes("RetainDeviceIdentity"),
        clean_descriptors=xnat.yes("CleanDescriptors"),
        allow_fields=xnat.fields("AllowFields", element_known or field_known),
    )
    if problems:
        raise errors.ConfigurationError(problems)
    return config


def _sections(lines: Sequence[ConfigurationLine], problems: list[str]) -> dict[str, list[_Row]]:
    """Sort the labelled lines by section. Text in column A that names no section is the user's own note."""
    found: dict[str, list[_Row]] = {}
    section = ""
    for line in lines:
        cells = [_text(cell) for cell in line.cells]
        name, label, *values = [*cells, "", ""][: max(len(cells), 2)]
        named = next((known for known in _SECTIONS if known.lower() == name.lower()), "")
        section = named or section
        if named:
            found.setdefault(named, [])
        elif label and (near := _near(name, _SECTIONS, cutoff=0.85)):
            problems.append(f"{_address(0, line.number)}: '{name}' is no section; write {near}.")
        filled = tuple((_address(2 + at, line.number), text) for at, text in enumerate(values) if text)
        if section and (label or filled):
            row = _Row(label, _address(1, line.number), filled, _address(2, line.number))
            found[section].append(row)
    for name in ("Paths", "Mappings"):
        if name not in found:
            problems.append(
                f"{SHEET}: there is no section {name}; write {name} in column A of its first row."
            )
        elif not found[name]:
            problems.append(f"{SHEET}: the section {name} has no rows; init writes a sheet with an example.")
    return found


def _text(value: object) -> str:
    """Return a cell as text: Excel makes `17` of a project's number, and 17.0 of that."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _address(column: int, row: int) -> str:
    """Return the cell's name as Excel shows it, behind the sheet's."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return f"{SHEET} {letters}{row}"


def _near(written: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """Return which of `known` was most likely meant by `written`, '' if none."""
    by_plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(written), by_plain, n=1, cutoff=cutoff)
    return by_plain[near[0]] if near else ""


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def _collect(problems: list[str], read: Callable[[], _T]) -> _T | None:
    """Return what `read` gives; where it finds problems, note them all and go on."""
    try:
        return read()
    except errors.ConfigurationError as trouble:
        problems.extend(trouble.problems)
        return None


# -- Paths and Mappings -------------------------------------------------------------------------------------


def _pattern_sets(rows: Sequence[_Row], problems: list[str]) -> tuple[patterns.PatternSet, ...]:
    sets = []
    for row in rows:
        if not row.label:
            problems.append(f"{row.cell}: this pattern set has no label; write a name of your choice there.")
        cells = tuple(address for address, _ in row.values)
        sets.append(patterns.PatternSet(row.label, tuple(text for _, text in row.values), cells, row.cell))
    return tuple(one for one in sets if one.label)


def _captured(sets: Iterable[patterns.PatternSet]) -> Iterable[str]:
    """Yield the names in braces, also of sets that do not compile, so that mappings can be judged as well."""
    for one in sets:
        for part in one.parts:
            yield from (name for name in re.findall(r"\{([^{}]*)\}", part) if patterns.NAME.fullmatch(name))


def _mapping_rows(
    rows: Sequence[_Row], captures: Sequence[str], field_known: Callable[[str], bool], problems: list[str]
) -> tuple[Mapping, ...]:
    """Read all rows of the Mappings section but SessionLabel."""
    read = []
    labels: dict[str, str] = {}
    for row in rows:
        problem = _label_problem(row, labels)
        labels.setdefault(row.label, row.cell)
        if problem:
            problems.append(f"{row.cell}: {problem}")
        elif row.label != "SessionLabel":
            read.append(_collect(problems, partial(_mapping, row, captures, field_known)))
    for label, example in _NEEDED.items() if rows else ():
        if label not in labels and not any(_plain(label) == _plain(other) for other in labels):
            near = _near(
                label, (other for other in labels if other not in _NEEDED and other != "SessionLabel")
            )
            hint = (
                f"{labels[near]} says '{near}': write {label} there"
                if near
                else f"add it, as {label}, {example}"
            )
            problems.append(f"{SHEET}: the Mappings section has no row {label}; {hint}.")
    return tuple(mapping for mapping in read if mapping is not None)


def _mapping(row: _Row, captures: Sequence[str], field_known: Callable[[str], bool]) -> Mapping:
    return mappings.parse(row.label, row.values, captures, field_known, row.cell)


def _session_label(
    row: _Row | None,
    captures: Sequence[str],
    labels: Collection[str],
    field_known: Callable[[str], bool],
    problems: list[str],
) -> Template:
    """Read the row SessionLabel; a sheet of 1.x has none."""
    values = row.values if row else ((SHEET, LABEL_OF_1X),)
    cell = row.cell if row else SHEET
    label = _collect(problems, partial(mappings.parse_label, values, captures, labels, field_known, cell))
    return label or Template(())


def _label_problem(row: _Row, labels: dict[str, str]) -> str:
    """Say what is wrong with the label of a mapping row, '' if nothing is."""
    label = row.label
    standard = (*_NEEDED, "SessionLabel")
    if not label:
        return "this row has no label; write there what its values are, or clear the row."
    if label in labels:
        return f"the row {label} is there twice ({labels[label]}); clear one of them."
    if label in standard:
        return ""
    meant = next((name for name in standard if _plain(name) == _plain(label)), "")
    if meant:
        return f"'{label}' is written {meant}; write {meant}."
    if label in mappings.FIXED_HEADINGS or label in mappings.LABEL_FIELDS:
        return f"'{label}' is the name of another column or field; give this row another name."
    if re.search(r"[{}|]", label) or label.startswith((mappings.DICOM, mappings.PATH)):
        return f"'{label}' cannot be a row's name; use a name without braces, | and a beginning as DICOM:."
    return ""


# -- XNAT ---------------------------------------------------------------------------------------------------


class _XnatRows:
    """The rows of the XNAT section by label, each read as what it holds; problems are noted, not raised.

    A row that is not there has its default. Rows of other names are left alone, unless they are near enough
    to a known one to be a slip: a misspelt Anonymize must not send patients' names.
    """

    def __init__(self, rows: Sequence[_Row], problems: list[str]) -> None:
        self._rows: dict[str, _Row] = {}
        self._problems = problems
        for row in rows:
            if row.label in self._rows:
                first = self._rows[row.label].cell
                problems.append(
                    f"{row.cell}: the row {row.label} is there twice ({first}); clear one of them."
                )
            elif row.label in _XNAT_ROWS:
                self._rows[row.label] = row
            elif near := _near(row.label, _XNAT_ROWS, cutoff=0.7):
                problems.append(f"{row.cell}: there is no setting '{row.label}'; write {near}.")

    def _values(self, label: str) -> tuple[tuple[str, str], ...]:
        row = self._rows.get(label)
        return row.values if row else ()

    def text(self, label: str) -> str:
        """Return the first cell that is not blank."""
        return next((text for _, text in self._values(label)), "")

    def place(self, label: str) -> str:
        """Return where the value stands or belongs, '' if there is no such row."""
        row = self._rows.get(label)
        return next((address for address, _ in row.values), row.first) if row else ""

    def _words(self, label: str, separated: re.Pattern[str]) -> list[tuple[str, str]]:
        """Return address and text of each word of a list, which may go on over several cells."""
        return [
            (address, word.strip())
            for address, text in self._values(label)
            for word in separated.findall(text)
            if word.strip()
        ]

    def image_types(self, label: str, default: Iterable[str]) -> frozenset[str]:
        """Return ImageType values; they hold blanks (`SCREEN SAVE`), so only commas separate them."""
        if label not in self._rows:
            return frozenset(default)
        return frozenset(word.upper() for _, word in self._words(label, _BETWEEN_COMMAS))

    def review(self, label: str) -> frozenset[str]:
        """Return the words of the row Review, spelt as in `REVIEW_WORDS`; an empty row means none."""
        if label not in self._rows:
            return frozenset(REVIEW_WORDS)
        found = set()
        for address, word in self._words(label, _BETWEEN_COMMAS):
            meant = next((known for known in REVIEW_WORDS if _plain(known) == _plain(word)), None)
            if meant:
                found.add(meant)
            else:
                near = _near(word, REVIEW_WORDS)
                hint = (
                    f"did you mean {near}?" if near else f"use {', '.join(REVIEW_WORDS)}, or empty the cell."
                )
                self._problems.append(f"{address}: '{word}' is no reason for a review; {hint}")
        return frozenset(found)

    def yes(self, label: str) -> bool:
        """Return whether the cell says yes; an empty one says no."""
        text = self.text(label).lower()
        if text not in _YES | _NO:
            self._problems.append(f"{self.place(label)}: {label} is '{self.text(label)}'; write yes or no.")
        return text in _YES

    def retain_dates(self, label: str) -> RetainDates:
        """Return what happens to dates in copies; empty means none is kept."""
        text = self.text(label).lower()
        if text == "shifted":
            return "shifted"
        if text == "full":
            return "full"
        if text not in ("", "none"):
            self._problems.append(
                f"{self.place(label)}: {label} is '{self.text(label)}'; write none, shifted or full."
            )
        return "none"

    def fields(self, label: str, field_known: Callable[[str], bool]) -> tuple[str, ...]:
        """Return DICOM keywords, and tags as `gggg,eeee`, separated by commas or blanks."""
        found = []
        for address, word in self._words(label, _FIELD):
            bare = word[len(mappings.DICOM) :] if word.upper().startswith(mappings.DICOM) else word
            field = mappings.canonical_tag(bare) or bare
            if mappings.canonical_tag(bare) or field_known(field):
                found.append(field)
            else:
                near = mappings.nearest_field(bare, field_known)
                hint = (
                    f"did you mean {near}?"
                    if near
                    else "use the standard's keyword, as StudyDate, or its tag."
                )
                self._problems.append(f"{address}: '{word}' is no DICOM field; {hint}")
        return tuple(dict.fromkeys(found))


_BETWEEN_COMMAS = re.compile(r"[^,;\n]+")
_FIELD = re.compile(r"(?:DICOM:)?\(?[0-9A-Fa-f]{4},\s?[0-9A-Fa-f]{4}\)?|[^,;\s]+")
