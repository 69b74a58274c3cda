"""The rows of an upload before the server is asked anything: chosen, found on disk, completed, checked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnatuploader import errors, paths, records
from xnatuploader.config.sheet import Config
from xnatuploader.dicom import pool, reader
from xnatuploader.records import DICOM_FIELDS, FoundFile, Outcome, Reading, Row, Series, Status
from xnatuploader.scan import placement, sessions
from xnatuploader.upload import plan, state
from xnatuploader.upload.options import RunOptions
from xnatuploader.workbook import cells, files_sheet
from xnatuploader.workbook.book import Book

if TYPE_CHECKING:  # it takes half a second that an upload without de-identification need not wait
    from xnatuploader.deidentify.rows import Deidentifier

ANOTHER_IMAGE = "The file is no longer the image that was scanned ({} differs). Run scan again."

NO_RULES = reader.Rules(frozenset(), frozenset())
"""Read headers without judging the files."""


class Files:
    """Where the files of the rows are.

    The File column is relative to `--dir`; without it, to the current folder or the folder that was scanned.
    Sheets of 1.x hold paths as they were typed then: from the current folder, or the workbook's.
    """

    def __init__(self, folder: Path | None, opened: Book, spreadsheet: Path) -> None:
        remembered = [Path(opened.folder)] if opened.folder else []
        old = [Path(), spreadsheet.absolute().parent] if opened.paths_as_typed else []
        self.bases = [folder, *old] if folder is not None else [Path(), *remembered, *old]
        self._last = self.bases[0]

    def path(self, row: Row) -> Path:
        """Return the path of a row's file; where no folder has it, the path in the first."""
        names = paths.spellings(row.file)
        here = Path(paths.joined(self._last, row.file))
        if (len(self.bases) == 1 and len(names) == 1) or here.exists():
            return here
        for base in self.bases:
            for name in names:
                path = Path(paths.joined(base, name))
                if path.exists():
                    self._last = base
                    return path
        return Path(paths.joined(self.bases[0], row.file))


def completed(rows: Sequence[Row], files: Files, settings: Config) -> tuple[list[Row], dict[str, Outcome]]:
    """Return the rows with what 1.x did not write filled in from the headers: scan, resource, file name.

    With them the outcomes of files whose header cannot be read, by file.
    """
    lacking = [
        row
        for row in rows
        if row.session_label and row.status is not Status.UNMATCHED and plan.lacks_columns(row) and row.upload
    ]
    if not lacking:
        return list(rows), {}
    known: dict[str, Mapping[str, str]] = {}
    failed: dict[str, Outcome] = {}
    for row, header in zip(lacking, _headers(lacking, files, settings.dicom_fields), strict=True):
        wrong = _wrong_header(row, header)
        if wrong is None:
            known[row.file] = header.values
        elif not _placed_by_hand(row):
            failed[row.file] = wrong
    filled = [_filled(row, known[row.file]) if row.file in known else row for row in rows]
    return placement.place_scans(filled), failed


def _place(row: Row) -> tuple[str, str, str, str]:
    return row.session_label, row.scan_id, row.resource, row.filename.casefold()


@dataclass(frozen=True, slots=True)
class Prepared:
    """The rows of a run before anything is asked of the server."""

    rows: list[Row]
    """All rows of the workbook, completed."""
    placed: Mapping[str, Row]
    """Those whose session, scan, resource or file name is not in the sheet yet, by file."""
    selected: tuple[Row, ...]
    """Those that this run tries."""
    failed: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes of selected files whose header was needed and cannot be read, by file."""
    deidentifier: Deidentifier | None = None
    """With de-identification."""

    @property
    def released(self) -> frozenset[str]:
        """Files that travel only because of their session's Release review."""
        return frozenset(
            row.file for row in self.selected if not row.upload and row.status is not Status.SUCCESS
        )

    def as_sent(self) -> tuple[list[Row], list[Row]]:
        """Return (all rows, selected rows that can be sent) with the values that XNAT gets to see."""
        selected = [row for row in self.selected if row.file not in self.failed]
        if self.deidentifier is None:
            return self.rows, selected
        return [*map(self.deidentifier.as_sent, self.rows)], [*map(self.deidentifier.as_sent, selected)]


def prepared(
    opened: Book,
    settings: Config,
    files: Files,
    options: RunOptions,
    waiting: Mapping[str, Outcome] | None = None,
) -> Prepared:
    """Read the rows, complete them from headers where columns do not tell, and choose those that travel.

    `waiting` are outcomes of an earlier run that the workbook does not hold yet. Raises `ConfigurationError`
    where a label or name would carry what de-identification removes.
    """
    anonymize = settings.anonymize
    in_sheet = state.applied(opened.rows(), waiting or {})
    rows, unplaced = completed(in_sheet, files, settings)
    placed = {
        row.file: row
        for row, old in zip(rows, in_sheet, strict=True)
        if _place(row) != _place(old) and row.file not in unplaced
    }
    del in_sheet  # of 100,000 rows every copy counts
    session_rows, again = opened.sessions(), options.looks_again
    going = [row for row in plan.select(rows, session_rows, again=again) if row.file not in unplaced]
    fields = settings.dicom_fields
    if anonymize:
        from xnatuploader.deidentify import identity

        fields += identity.FIELDS
    headers, unreadable = _by_series(going, files, fields)

    def known(row: Row) -> Row:
        header = headers.get(row.series)
        return replace(row, sop_class_uid=header.get("SOPClassUID", "")) if header else row

    rows = [known(row) for row in rows]
    chosen = plan.select(rows, session_rows, again=again)
    wrong = unplaced | unreadable
    failed = {
        row.file: wrong[row.file]
        for row in chosen
        if row.file in wrong
        and _is_told(row, wrong[row.file], overwrite=options.overwrite, anonymize=anonymize)
    }
    # What 1.x sent and has no place without its header cannot be looked for either: it stays as it is.
    selected = tuple(row for row in chosen if row.file in failed or row.file not in unplaced)
    if not anonymize:
        return Prepared(rows, placed, selected, failed)
    from xnatuploader.deidentify.rows import Deidentifier

    deidentifier = Deidentifier(settings, headers)
    problems = deidentifier.problems([row for row in selected if row.file not in failed])
    if problems:
        raise errors.ConfigurationError(problems)
    return Prepared(rows, placed, selected, failed, deidentifier)


def _is_told(row: Row, wrong: Outcome, *, overwrite: bool, anonymize: bool) -> bool:
    """Tell whether a header that cannot be read is an error of its row.

    What was sent is only looked for on the server, but with `--overwrite`; a file that is gone was sent even so.
    """
    if _placed_by_hand(row) and not anonymize:
        return False
    return row.status is not Status.SUCCESS or (overwrite and wrong.status is not Status.MISSING)


def _placed_by_hand(row: Row) -> bool:
    """Tell whether a person gave a place to a file of which the scan could not read the header either.

    It goes there as it is; what that session holds is known without it.
    """
    return bool(row.session_label and row.scan_id) and not (row.series_instance_uid or row.sop_instance_uid)


def _by_series(
    rows: Sequence[Row], files: Files, fields: Sequence[str]
) -> tuple[dict[Series, Mapping[str, str]], dict[str, Outcome]]:
    """Read one header of each series, which tells for all its files what no column holds (SOP class, patient).

    A file whose header cannot be read is an error of that file, and the next one of its series tells. Without any,
    no file of the series is left to be sent: nothing is taken for known that is not.
    """
    series: dict[Series, list[Row]] = defaultdict(list)
    for row in rows:
        series[row.series].append(row)
    headers: dict[Series, Mapping[str, str]] = {}
    failed: dict[str, Outcome] = {}
    for part in (slice(0, 1), slice(1, None)):
        asked = [row for key, group in series.items() if key not in headers for row in group[part]]
        for row, header in zip(asked, _headers(asked, files, fields), strict=True):
            if row.series in headers:
                continue
            wrong = _wrong_header(row, header)
            if wrong is None:
                headers[row.series] = header.values
            else:
                failed[row.file] = wrong
    return headers, failed


def _wrong_header(row: Row, header: Reading) -> Outcome | None:
    """Return the outcome of a file whose header does not tell what its row needs; None where it does."""
    if header.status is Status.MISSING:
        return Outcome(row.file, Status.MISSING, "The file is not on disk any more.")
    if not any(header.values.get(name) for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")):
        reason = header.message or "it has neither a SOPClassUID nor a SeriesInstanceUID."
        return Outcome(row.file, Status.FAILED, f"Its DICOM header cannot be read: {reason} Run scan again.")
    series = header.values.get("SeriesInstanceUID", "")
    if row.series_instance_uid and series != row.series_instance_uid:
        return Outcome(row.file, Status.FAILED, ANOTHER_IMAGE.format("SeriesInstanceUID"))
    return None


def changed_image(row: Row, path: Path) -> Outcome | None:
    """Look again at a file whose size or time is not what the scan saw: None where it is still the same image."""
    header = reader.read(path, (), NO_RULES)
    if not header.values:
        return Outcome(
            row.file, Status.FAILED, f"The file has changed, and its header cannot be read: {header.message}"
        )
    for keyword, name in (
        ("StudyInstanceUID", row.study_instance_uid),
        ("SeriesInstanceUID", row.series_instance_uid),
        ("SOPInstanceUID", row.sop_instance_uid),
    ):
        if name and header.values.get(keyword, "") != name:
            return Outcome(row.file, Status.FAILED, ANOTHER_IMAGE.format(keyword))
    return None


def image_check(ready: Prepared) -> Callable[[Row, Path], Outcome | None]:
    """Return `changed_image` for rows as they are sent: de-identified ones carry the UIDs of their copies."""
    originals = {row.file: row for row in ready.selected} if ready.deidentifier else {}
    return lambda row, path: changed_image(originals.get(row.file, row), path)


def _headers(rows: Sequence[Row], files: Files, fields: Sequence[str]) -> Iterable[Reading]:
    found = [FoundFile(str(files.path(row).absolute()), 0, "") for row in rows]
    return [header for _, header in pool.read_all(files.bases[0], found, fields, NO_RULES)]


def _filled(row: Row, header: Mapping[str, str]) -> Row:
    gaps: dict[str, Any] = {
        name: header.get(keyword, "")
        for keyword, name in {**DICOM_FIELDS, "SOPClassUID": "sop_class_uid"}.items()
        if not getattr(row, name)
    }
    return replace(row, **gaps)


def counts_if_nothing_to_do(opened: Book, options: RunOptions) -> Mapping[tuple[bool, Status], int] | None:
    """Return how many rows there are of each (Upload, Status) if no row is to be tried, else None.

    The list is read once, and only the columns that decide: 100,000 finished rows are seen in a moment.
    """
    if options.looks_again or options.commit or options.refresh:
        return None
    gate = sessions.Gate(opened.sessions())
    kinds: dict[tuple[str, ...], tuple[bool, Status]] = {}
    counts: Counter[tuple[bool, Status]] = Counter()
    for texts in opened.columns("Upload", "Status", "Message", "Subject", "SessionLabel"):
        if texts not in kinds:
            wanted, word, said, subject, label = texts
            status, message = files_sheet.status_and_message(word, said)
            upload = records.is_yes(wanted)
            row = Row("", upload=upload, status=status, message=message, subject=subject)
            if gate(replace(row, session_label=cells.label(label))):
                return None
            kinds[texts] = upload, status
        counts[kinds[texts]] += 1
    return counts


def all_missing(selected: Sequence[Row], files: Files, listed: Sequence[Row]) -> str:
    """Say that the folder is the wrong one if no listed file is there; the first few decide that quickly."""
    if not selected or any(files.path(row).exists() for row in selected[:20]):
        return ""
    if any(files.path(row).exists() for row in selected[20:]):
        return ""
    if any(files.path(row).exists() for row in listed[:200] if row.status is Status.SUCCESS):
        return ""  # the folder is the right one, and these few files are gone
    return (
        f"None of the {len(selected)} selected files is in {files.bases[0].absolute()}. Use --dir to "
        "give the folder that was scanned."
    )
