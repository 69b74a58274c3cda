"""What the Configuration sheet says, typed: the layout that `init` writes, and the reading of any layout.

The layout of 1.x (no `SessionLabel`, fewer `XNAT` rows) stays readable.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from xnatuploader import errors, records
from xnatuploader.config import mappings, patterns
from xnatuploader.config.lines import SHEET, LabelledRow, near, plain, sections
from xnatuploader.config.mappings import (  # Config.mappings hides the module in its class body
    Mapping,
    Template,
)
from xnatuploader.dicom import reader

_T = TypeVar("_T")

RetainDates = Literal["none", "shifted", "full"]

LABEL_OF_1X = "{Subject}_{Modality}{Visit}"
"""How 1.x made session labels; used where the sheet has no row `SessionLabel`."""

_EXAMPLES = {"Subject": "ID", "Session": "DICOM:StudyDate", "Dataset": "DICOM:SeriesDescription"}
"""Mapping rows that every sheet needs, with an example for each."""


# -- The XNAT section ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the XNAT section: what `init` writes, what the instructions say, and how it is read."""

    label: str
    read: Callable[[str], object]
    """Turns a text into a value. Raises ValueError with what to write."""
    default: str
    """What `init` writes, and what a sheet without the row means."""
    explanation: str
    word: str = ""
    """For a list, the pattern of one of its words; they may go on over several cells."""

    @property
    def field(self) -> str:
        """The field of `Config`: `skip_image_types` for `SkipImageTypes`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.label).lower()


def _yes_or_no(text: str) -> bool:
    if text.lower() not in records.YES | records.NO:
        raise ValueError("write yes or no.")
    return records.is_yes(text)


def _retain_dates(text: str) -> RetainDates:
    choices: dict[str, RetainDates] = {"": "none", "none": "none", "shifted": "shifted", "full": "full"}
    if text.lower() not in choices:
        raise ValueError("write none, shifted or full.")
    return choices[text.lower()]


def _review_word(text: str) -> str:
    for word in reader.REVIEW_WORDS:
        if plain(word) == plain(text):
            return word
    meant = near(text, reader.REVIEW_WORDS)
    raise ValueError(
        f"did you mean {meant}?" if meant else f"use {', '.join(reader.REVIEW_WORDS)}, or empty the cell."
    )


def _element(text: str) -> str:
    return mappings.dicom_field(re.sub(r"(?i)^DICOM:", "", text), _is_element)


def _is_element(name: str) -> bool:
    try:
        reader.tag_of(name)
    except ValueError:
        return False
    return True


# Image types hold blanks (SCREEN SAVE), so only commas separate them.
_WORD_BETWEEN_COMMAS = r"[^,;\n]*[^,;\s][^,;\n]*"
_ELEMENT = r"(?:DICOM:)?\(?[0-9A-Fa-f]{4},\s?[0-9A-Fa-f]{4}\)?|[^,;\s]+"

SETTINGS = (
    Setting("Project", str, "", "the ID of the project on XNAT."),
    Setting("Server", str, "", "the address of your XNAT, such as https://xnat.example.org"),
    Setting("SkipImageTypes", str.upper, "DOSE_INFO",
        "images of these types are not sent. Separate several types by commas.", _WORD_BETWEEN_COMMAS),
    Setting("Review", _review_word, ", ".join(reader.REVIEW_WORDS),
        "images that may show a name are held until you set Upload to Y. Empty the cell to hold none.",
        _WORD_BETWEEN_COMMAS),
    Setting("Anonymize", _yes_or_no, "no",
        "write yes to send copies without personal data. The rows below say what they keep."),
    Setting("RetainDates", _retain_dates, "none",
        "none removes all dates, shifted moves them by some days, full keeps them."),
    Setting("RetainPatientCharacteristics", _yes_or_no, "no", "yes keeps the patient's age, sex, size and weight."),
    Setting("RetainDeviceIdentity", _yes_or_no, "no", "yes keeps the scanner's name and serial number."),
    Setting("CleanDescriptors", _yes_or_no, "no",
        "yes keeps descriptions, cleaned of what identifies the patient; no removes them."),
    Setting("AllowFields", _element, "", "further header fields to keep, separated by commas.", _ELEMENT),
)  # fmt: skip
"""The rows of the XNAT section, in their order. A new row is a line here and a field in `Config`."""


# -- What init writes ---------------------------------------------------------------------------------------

_INSTRUCTIONS = """\
This sheet tells xnatuploader how your folders are named and where their files go on XNAT.
Change the cells in columns B, C, D ... below, save, close Excel, and run: xnatuploader scan

PATHS: each row describes one way in which your files are stored. Column B is a name of your choice for it.
From column C on, each cell stands for one folder, from the top down; the last cell is for the file's name.
{Name} takes any text and keeps it under that name: {SubjectName}-{ID} reads the folder Doe^John-0001.
{YYYY}, {MM}, {DD}, {II}: one capital letter, repeated, takes exactly that many digits.
* alone in a cell stands for one folder with any name, ** alone for one or more folders.
Any other text has to be in the path as you write it; small and capital letters count as the same.
The rows are tried from the top, and the first one that fits a file is used. Add rows for other files.

MAPPINGS: where a file goes. Subject is the patient, Session one visit, Dataset the name of a scan.
Write a name from the Paths section (ID), or DICOM: and a field of the file's header (DICOM:StudyDate).
To join several, put them in braces: {ID}_{DICOM:Modality}. a|b takes the first that is not empty.
SessionLabel is the session's name on XNAT. It may also use {Subject}, {Session}, {Dataset},
{Modality}, and {Visit} (1, 2, ... by date). Add rows of your own for further columns.

XNAT: where files are sent, which are held back, and whether personal data is removed from them.
"""

DEFAULT_LAYOUT: tuple[tuple[str, ...], ...] = (
    *((line,) if line else () for line in _INSTRUCTIONS.splitlines()),
    *((f"{setting.label}: {setting.explanation}",) for setting in SETTINGS),
    (),
    ("Paths", "Nested", "{SubjectName}-{ID}", "**", "{Directory}", "{filename}.dcm"),
    (),
    ("Mappings", "Subject", "ID"),
    ("", "Session", "DICOM:StudyDate"),
    ("", "Dataset", "Directory"),
    ("", "SessionLabel", "{Subject}_{Session}_{Modality}"),
    (),
    *(("" if at else "XNAT", setting.label, setting.default) for at, setting in enumerate(SETTINGS)),
)
"""The lines that `init` writes, from row 1; a line's cells from column A."""


@dataclass(frozen=True, slots=True)
class Config:
    """One Configuration sheet, read and found free of problems."""

    matcher: patterns.Matcher
    mappings: tuple[Mapping, ...]
    """Subject, Session, Dataset and further rows, in the order of the sheet; without SessionLabel."""
    session_label: Template
    sources: dict[str, str]
    """Field of a setting -> the cell that holds it, or the option that took precedence; '' without such a row."""
    project: str
    server: str
    skip_image_types: tuple[str, ...]
    """ImageType values, in capitals."""
    review: tuple[str, ...]
    """Some of `reader.REVIEW_WORDS`."""
    anonymize: bool
    retain_dates: RetainDates
    retain_patient_characteristics: bool
    retain_device_identity: bool
    clean_descriptors: bool
    allow_fields: tuple[str, ...]
    """DICOM keywords, or tags as `gggg,eeee`, that de-identification keeps."""

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
        return tuple(label for label in self.rows if label not in records.MAPPED_COLUMNS)

    @property
    def headings(self) -> dict[str, str]:
        """Captured name -> heading of its column in the Files sheet."""
        return mappings.headings(self.captures, self.rows)

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
        fields = dict.fromkeys(field for mapping in self.mappings for field in mapping.fields)
        return tuple(field for field in fields if field in self.captures)

    def with_options(self, server: str | None = None, project: str | None = None) -> Config:
        """Return this configuration with the command line's options, which take precedence over its cells."""
        return self._with("server", server, "--server")._with("project", project, "--project")

    def with_fallback_server(self, host: str) -> Config:
        """Return this configuration with `XNAT_HOST` as its server, where neither sheet nor option names one."""
        return self if self.server else self._with("server", host.strip(), "XNAT_HOST")

    def _with(self, field: str, value: str | None, source: str) -> Config:
        if not value:
            return self
        changes: dict[str, Any] = {field: value.strip(), "sources": {**self.sources, field: source}}
        return dataclasses.replace(self, **changes)

    def require_server_and_project(self) -> tuple[str, str]:
        """Return the server's address without a last `/`, and the project's ID.

        Raises `errors.ConfigurationError` naming the cell and the option where one is missing, and where the
        server is no address of the form `https://name`, or holds a password.
        """
        problems = list(_server_problems(self.server, self.sources["server"]))
        if not self.project:
            problems.append(
                _absent(self.sources["project"], "Project", "the project's ID on XNAT", "--project")
            )
        if problems:
            raise errors.ConfigurationError(problems)
        return self.server.rstrip("/"), self.project


def _absent(cell: str, label: str, what: str, option: str) -> str:
    where = f"{cell}: {label} is empty" if cell else f"{SHEET}: the XNAT section has no row {label}"
    return f"{where}; write {what} there, or give it with {option}."


def _server_problems(server: str, source: str) -> Iterable[str]:
    if not server:
        yield _absent(source, "Server", "the address of your XNAT (https://xnat.example.org)", "--server")
    elif "@" in server:
        # The address is not repeated: what is before the @ may be a password.
        yield f"{source}: the server's address must not contain a user name or password."
    elif not re.fullmatch(r"(?i:https?)://[^\s/]+(/\S*)?", server):
        host = re.sub(r"(?i)^([a-z]+://|https?:)/*", "", server)
        yield f"{source}: '{server}' is not a web address; write it in full, most likely https://{host}"


# -- Reading the sheet --------------------------------------------------------------------------------------


def parse(lines: Sequence[records.ConfigurationLine]) -> Config:
    """Read the lines of the Configuration sheet.

    Raises `errors.ConfigurationError` with all problems at once, each with its cell and what to write there.
    """
    problems: list[str] = []
    rows = sections(lines, problems)
    sets = [row for row in rows.get("Paths", ()) if row.label]
    for row in rows.get("Paths", ()):
        if not row.label:
            problems.append(f"{row.cell}: this pattern set has no label; write a name of your choice there.")
    matcher = _collect(problems, partial(patterns.compile_sets, sets))
    # The names in braces, also of sets that do not compile, so that mappings can be checked as well.
    braced = (name for row in sets for _, part in row.values for name in re.findall(r"\{([^{}]*)\}", part))
    captures = tuple(dict.fromkeys(name for name in braced if patterns.NAME.fullmatch(name)))
    # Without any pattern set each captured name would look like a mistake in the mappings.
    of_mappings: list[str] = problems if sets else []
    found = _mapping_rows(rows.get("Mappings", ()), captures, of_mappings)
    session_label = _session_label(rows.get("Mappings", ()), captures, of_mappings)
    settings = _settings(rows.get("XNAT", ()), problems)
    if problems or matcher is None:
        raise errors.ConfigurationError(problems)
    return Config(matcher=matcher, mappings=found, session_label=session_label, **settings)


def _collect(problems: list[str], read: Callable[[], _T]) -> _T | None:
    """Return what `read` gives; where it finds problems, note them all and go on."""
    try:
        return read()
    except errors.ConfigurationError as error:
        problems.extend(error.problems)
        return None


def _mapping_rows(
    rows: Sequence[LabelledRow], captures: Sequence[str], problems: list[str]
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
            read.append(_collect(problems, partial(mappings.parse, row, captures)))
    for label, example in _EXAMPLES.items() if rows else ():
        if label not in labels and not any(plain(label) == plain(other) for other in labels):
            meant = near(label, labels.keys() - _EXAMPLES.keys() - {"SessionLabel"})
            hint = (
                f"{labels[meant]} says '{meant}': write {label} there"
                if meant
                else f"add it, as {label}, {example}"
            )
            problems.append(f"{SHEET}: the Mappings section has no row {label}; {hint}.")
    return tuple(mapping for mapping in read if mapping is not None)


def _session_label(rows: Sequence[LabelledRow], captures: Sequence[str], problems: list[str]) -> Template:
    """Read the row SessionLabel; a sheet of 1.x has none."""
    of_1x = LabelledRow("SessionLabel", SHEET, ((SHEET, LABEL_OF_1X),))
    row = next((row for row in rows if row.label == "SessionLabel"), of_1x)
    labels = [*_EXAMPLES, *(other.label for other in rows if other.label != "SessionLabel")]
    return _collect(problems, partial(mappings.parse_label, row, captures, labels)) or Template(())


def _label_problem(row: LabelledRow, labels: dict[str, str]) -> str:
    """Say what is wrong with the label of a mapping row, '' if nothing is."""
    label = row.label
    standard = (*_EXAMPLES, "SessionLabel")
    if not label:
        return "this row has no label; write a name for its column there, or clear the row."
    if label in labels:
        return f"the row {label} appears twice (first in {labels[label]}); clear one of them."
    if label in standard:
        return ""
    meant = next((name for name in standard if plain(name) == plain(label)), "")
    if meant:
        return f"'{label}' has to be written {meant}."
    if re.search(r"[{}|]", label) or label.startswith((mappings.DICOM, mappings.PATH)):
        return (
            f"'{label}' cannot be the name of a row; use a name without braces or |, that does not begin with "
            "DICOM: or Path:."
        )
    if label in records.COLUMNS or label in mappings.LABEL_FIELDS:
        return f"'{label}' is the name of another column or field; give this row another name."
    return ""


def _settings(rows: Sequence[LabelledRow], problems: list[str]) -> dict[str, Any]:
    """Read the XNAT section: field of `Config` -> value.

    Rows of other names are left alone, unless they are near enough to a known one to be a slip: a misspelt
    Anonymize must not send patients' names.
    """
    known = {setting.label: setting for setting in SETTINGS}
    found: dict[str, LabelledRow] = {}
    for row in rows:
        if row.label in found:
            first = found[row.label].cell
            problems.append(
                f"{row.cell}: the row {row.label} appears twice (first in {first}); clear one of them."
            )
        elif row.label in known:
            found[row.label] = row
        elif meant := near(row.label, known, cutoff=0.7):
            problems.append(f"{row.cell}: there is no setting '{row.label}'; write {meant}.")
    values: dict[str, Any] = {"sources": {}}
    for setting in SETTINGS:
        row = found.get(setting.label) or LabelledRow(setting.label, "", (("", setting.default),))
        values[setting.field] = _value(setting, row, problems)
        values["sources"][setting.field] = row.values[0][0] if row.values else row.first
    return values


def _value(setting: Setting, row: LabelledRow, problems: list[str]) -> object:
    texts = row.values or ((row.first, ""),)
    if setting.word:
        texts = tuple((cell, word.strip()) for cell, text in texts for word in re.findall(setting.word, text))
    read = []
    for cell, text in texts if setting.word else texts[:1]:
        try:
            read.append(setting.read(text))
        except ValueError as error:
            problems.append(f"{cell}: '{text}' is not a value for {setting.label}; {error}")
    if setting.word:
        return tuple(dict.fromkeys(read))
    return read[0] if read else None
