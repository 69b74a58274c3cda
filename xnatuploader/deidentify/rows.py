"""De-identification of a workbook's rows: labels and names without what is removed, and copies in place of files."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

from xnatuploader import errors
from xnatuploader.config import mappings
from xnatuploader.config.sheet import Config
from xnatuploader.deidentify import attributes, inspection
from xnatuploader.deidentify.cleaner import Cleaner, NoCopy
from xnatuploader.deidentify.key import Key
from xnatuploader.deidentify.profile import Policy, removed
from xnatuploader.deidentify.source import OriginalChanged
from xnatuploader.dicom import reader
from xnatuploader.records import DICOM_FIELDS, Outcome, Row, Series, Status
from xnatuploader.scan import labels

_DATES = frozenset({b"DA", b"DT", b"TM"})

SHEET = "De-identified"

HEADINGS = ("SessionLabel", "ScanID", "Tag", "Keyword", "Before", "After", "Note")
"""Of the De-identified sheet. The note is what a person has to look at."""


def policy_of(settings: Config) -> Policy:
    """Return what the rows of the Configuration sheet keep in the copies.

    Raises `errors.ConfigurationError` where AllowFields names what de-identification writes itself.
    """
    policy = Policy(**{field.name: getattr(settings, field.name) for field in fields(Policy)})
    if policy.problems():
        cell = settings.sources["allow_fields"]
        raise errors.ConfigurationError([f"{cell}: {problem}" for problem in policy.problems()])
    return policy


# ---- scan: labels and names of what is kept


def label_template(settings: Config) -> mappings.Template:
    """Return the label's template with `{Visit}` for every date that is removed (`{Session}` from a StudyDate)."""
    template, policy = settings.session_label, policy_of(settings)

    def kept(field: str) -> str:
        gone = removed(_header_fields(field, settings), policy)
        return "Visit" if any(attributes.VR_OF.get(reader.tag_of(name)) in _DATES for name in gone) else field

    def piece(part: str | mappings.Choice) -> str | mappings.Choice:
        return (
            part if isinstance(part, str) else mappings.Choice(tuple(dict.fromkeys(map(kept, part.fields))))
        )

    cells = tuple(
        tuple(tuple(piece(part) for part in alternative) for alternative in cell) for cell in template.cells
    )
    return replace(template, cells=cells)


def _header_fields(field: str, settings: Config) -> set[str]:
    """Return the header fields that a field of a label (a mapping row, `DICOM:x`, a capture) is made of."""
    rows = {mapping.label: mapping.fields for mapping in settings.mappings}
    fields = rows.get(field, (field,))
    return {name.removeprefix("DICOM:") for name in fields if name.startswith("DICOM:")}


def name_files(rows: Sequence[Row], key: Key) -> list[Row]:
    """Name files that have no name yet by the UID of their copy: names made from paths contain patients' names."""
    return [
        replace(row, filename=f"{key.uid(row.sop_instance_uid)}.dcm")
        if not row.filename and row.session_label and row.sop_instance_uid
        else row
        for row in rows
    ]


# ---- upload: what is sent


class Deidentifier:
    """One upload's de-identification: rows as they are sent to XNAT, and copies in place of files.

    Raises `errors.KeyUnusable` where the key cannot be read, and what `policy_of` raises.
    """

    def __init__(self, settings: Config, patients: Mapping[Series, Mapping[str, str]] | None = None) -> None:
        self.settings = settings
        self.policy = policy_of(settings)
        self.cleaner = Cleaner(self.policy, Key.load())
        self.patients = patients or {}
        """Series -> the header of its first file."""
        self._text = functools.lru_cache(maxsize=65536)(self._clean_text)

    def as_sent(self, row: Row) -> Row:
        """Return the row with the UIDs, dates and descriptions that its cleaned copy has."""
        changed: dict[str, Any] = {
            name: self._text(keyword, text, row.subject, row.series)
            for keyword, name in DICOM_FIELDS.items()
            if (text := getattr(row, name))
        }
        return replace(row, **changed)

    def _clean_text(self, keyword: str, text: str, subject: str, series: Series) -> str:
        return self.cleaner.text(keyword, text, subject, self.patients.get(series))

    def copy(self, row: Row, path: Path) -> bytes | Path | Outcome:
        """Return what is sent in place of a file; an `Outcome` where there is no completely cleaned copy."""
        made = self.cleaner.clean(path, row.subject)
        if isinstance(made, NoCopy):
            return Outcome(row.file, made.status, made.message)
        if made.held:
            return made.data()
        with tempfile.NamedTemporaryFile(prefix="xnatuploader-", suffix=".dcm", delete=False) as file:
            temporary = Path(file.name)
        try:
            made.write(temporary)
        except (OSError, OriginalChanged) as error:
            temporary.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or "it changed meanwhile"
            message = f"The file was not sent: no copy of it could be made ({reason}). Run upload again."
            return Outcome(row.file, Status.FAILED, message)
        return temporary

    def problems(self, rows: Sequence[Row]) -> list[str]:
        """Return a sentence for every mapping whose labels or names contain what the copies do not.

        The Subject is the pseudonym that a person chose: a PatientID that equals it does not count, unless the
        mapping itself takes it from the header.
        """
        return [*self._mapping_problems(), *self._text_problems(rows)]

    def _mapping_problems(self) -> Iterable[str]:
        for mapping in self.settings.mappings:
            gone = sorted(removed(_header_fields(mapping.label, self.settings), self.policy))
            if gone and mapping.label in ("Subject", "Dataset"):
                never = Policy(allow_fields=tuple(gone)).problems()
                kept = "" if never else ", or name the element in AllowFields"
                yield (
                    f"{mapping.address or 'Configuration'}: {mapping.label} is made from {', '.join(gone)}, which "
                    f"de-identification removes. Map {mapping.label} to something else{kept}; then run scan --restart."
                )

    def _text_problems(self, rows: Sequence[Row]) -> Iterable[str]:
        """Search labels and names for parts of the patients' names, IDs, birth dates and removed dates."""
        searched: set[tuple[Series, str]] = set()
        reported: set[str] = set()
        for row in rows:
            tokens = self._tokens(row.series, row.study_date, row.subject)
            texts = (row.subject, row.session_label, row.dataset, row.filename)
            for column, text in zip(("Subject", "SessionLabel", "Dataset", "Filename"), texts, strict=True):
                if (row.series, text) in searched or column in reported:
                    continue
                searched.add((row.series, text))
                if inspection.residues([(column, text)], tokens):
                    reported.add(column)
                    yield self._leak(column, row, tokens)

    def _leak(self, column: str, row: Row, tokens: frozenset[str]) -> str:
        where = f"{row.sheet} row {row.number}"
        said = f"{where}: {column} still holds something of the patient that de-identification removes"
        if column == "Filename":
            return (
                f"{said}: it is made from the file's own name. Set Anonymize to yes in the Configuration sheet and "
                "run scan --restart, which then names the files by their new UIDs."
            )
        source = self._source(column, row, tokens)
        named = f", taken from {source}" if source else ""
        anonymize = "Set Anonymize to yes in the Configuration sheet"
        advice = anonymize if column == "SessionLabel" else "Change the mapping"
        return f"{said}{named}. {advice} and run scan --restart."

    def _source(self, column: str, row: Row, tokens: frozenset[str]) -> str:
        """Name the fields of a mapping whose values hold a token: `{SubjectName}`, `DICOM:StudyDate`."""
        if column == "SessionLabel":
            fields: Sequence[str] = self.settings.session_label.fields
        else:
            fields = next((m.fields for m in self.settings.mappings if m.label == column), ())
        guilty = [
            name
            for name in fields
            if name not in ("Modality", "Visit")
            and inspection.residues([(name, labels.value_of(row, name))], tokens)
        ]
        return " and ".join(f"{{{name}}} in {column}" for name in guilty)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - lives as long as the one upload that made it
    def _tokens(self, series: Series, study_date: str, subject: str) -> frozenset[str]:
        patient = self.patients.get(series, {})
        names = " ".join(patient.get(name, "") for name in ("PatientName", "OtherPatientNames"))
        tokens = inspection.patient_tokens(
            names, patient.get("PatientID", ""), patient.get("PatientBirthDate", "")
        )
        tokens |= inspection.patient_tokens("", patient.get("AccessionNumber", ""), "")
        if self.policy.retain_dates != "full":
            tokens |= inspection.patient_tokens("", "", study_date)
        return tokens - inspection.patient_tokens(subject, subject, "")

    # ---- `--test --anonymize`: a sheet to look at

    def inspect(self, row: Row, path: Path) -> list[tuple[str, ...]]:
        """Return what de-identification does to one file: a line of `HEADINGS` for each element.

        The note says what of the patient is left in the copy, or why there is none.
        """
        made = self.cleaner.clean(path, row.subject)
        where = (row.session_label, row.scan_id)
        if isinstance(made, NoCopy):
            return [(*where, "", "", "", "", f"{made.status}: {made.message}")]
        changes = inspection.inspect_copy(path, made)
        tokens = self._tokens(row.series, row.study_date, row.subject)
        left = inspection.residues(((change.name, change.after) for change in changes), tokens)
        notes = {name: f"still holds '{token}'" for name, token in left.items()}
        return [(*where, *astuple(change), notes.get(change.name, "")) for change in changes]
