"""Found files to rows: the path is matched, the header read, the mappings filled in."""

from __future__ import annotations

import collections
import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xnatuploader import errors
from xnatuploader.config import mappings, patterns, sheet
from xnatuploader.console import progress
from xnatuploader.dicom import pool, reader
from xnatuploader.records import DICOM_FIELDS, ConfigurationLine, FoundFile, Reading, Row, Status, Values
from xnatuploader.scan import labels

logger = logging.getLogger(__name__)

MOST_KNOWN = 4096
"""Different sets of values for which the result of the mappings is remembered."""


@dataclass(slots=True)
class Listing:
    """What a scan found in its folder, before it is merged with the sheet."""

    folder: Path
    files: int
    jobs: int
    """Files that may be read at once."""
    rows: list[Row] = field(default_factory=list)
    """One for each file, in the order of `find.list_files`."""
    unlisted: set[str] = field(default_factory=set)
    """Files that get a row only with `--unmatched`."""
    misfits: list[str] = field(default_factory=list)
    """Paths that fit no pattern set."""
    causes: Counter[str] = field(default_factory=Counter)
    """Why files cannot be assigned, without their paths (those hold patients' names)."""


def read(
    folder: Path,
    found: Sequence[FoundFile],
    settings: sheet.Config,
    aliases: Mapping[str, str],
    *,
    unmatched: bool,
    jobs: int,
    shown: progress.Progress,
) -> Listing:
    """Match every path, read the headers of those that fit, and make a row for each file.

    `aliases` give the text of the File column for files that a sheet of 1.x lists under another path.
    """
    listing = Listing(folder, len(found), jobs)
    matcher = settings.matcher
    matches = collections.deque(matcher.match(item.file) for item in found)
    if logger.isEnabledFor(logging.DEBUG):
        for item in found:
            for line in matcher.explain(item.file):
                logger.debug("%s", line)
    fitting = [
        item for item, match in zip(found, matches, strict=True) if isinstance(match, patterns.PathMatch)
    ]
    rules = reader.Rules(frozenset(settings.skip_image_types), frozenset(settings.review))
    headers = pool.read_all(folder, fitting, settings.dicom_fields, rules, jobs=jobs)
    bar = shown.bar("Reading files", " files", len(fitting))
    maker = _RowMaker(settings, aliases)
    for item in found:
        match = matches.popleft()  # 100,000 of them need much memory
        if isinstance(match, patterns.PathMatch):
            _, header = next(headers)
            row = maker.row(item, match, header)
            assigned, cause = header.status is not Status.UNMATCHED, header.message
            bar.advance()
        else:
            row = maker.unmatched(item, item.error or "; ".join(match.reasons))
            assigned, cause = False, item.error or "; ".join(match.rules)
            listing.misfits.append(item.file)
        listing.rows.append(row)
        if not assigned:
            listing.causes[cause] += 1
            if not unmatched:
                listing.unlisted.add(row.file)
    return listing


class _RowMaker:
    """Turns a path match and a header into a row; the names of the further columns are shared by all rows."""

    def __init__(self, settings: sheet.Config, aliases: Mapping[str, str]) -> None:
        self.settings = settings
        self.aliases = aliases
        self.names = {heading: index for index, heading in enumerate(settings.value_headings)}
        self.further = {label: self.names[label] for label in settings.further_rows}
        self.captures = {name: self.names[heading] for name, heading in settings.headings.items()}
        self.fields = {
            heading.removeprefix("DICOM:"): index
            for heading, index in self.names.items()
            if heading.startswith("DICOM:")
        }
        self.used_captures = settings.mapped_captures
        self.used_fields = mappings.dicom_fields(mapping.template for mapping in settings.mappings)
        # Files of a series share the values that the mappings use.
        self._mapped = functools.lru_cache(MOST_KNOWN)(self._map)

    def unmatched(self, item: FoundFile, reason: str) -> Row:
        """Make the row of a file that no pattern set fits."""
        return Row(
            file=self.aliases.get(item.file, item.file),
            status=Status.UNMATCHED,
            message=reason,
            size=str(item.size),
            modified=item.modified,
        )

    def row(self, item: FoundFile, match: patterns.PathMatch, header: Reading) -> Row:
        """Make the row of a file that a pattern set fits."""
        read = header.values.get
        mapped, lacking = self._mapped(
            tuple(match.values.get(name, "") for name in self.used_captures),
            tuple(read(keyword, "") for keyword in self.used_fields),
        )
        status, message = header.status, header.message
        if lacking and status in (Status.EMPTY, Status.REVIEW):
            status, message = Status.UNMATCHED, "; ".join(lacking)
        cells = [""] * len(self.names)
        for label, index in self.further.items():
            cells[index] = mapped[label]
        for keyword, index in self.fields.items():
            cells[index] = read(keyword, "")
        for name, index in self.captures.items():
            cells[index] = match.values.get(name, "")
        fixed: dict[str, Any] = {name: read(keyword, "") for keyword, name in DICOM_FIELDS.items()}
        return Row(
            file=self.aliases.get(item.file, item.file),
            pattern=match.label,
            upload=status is Status.EMPTY,
            status=status,
            message=message,
            subject=mapped["Subject"],
            session=mapped["Session"],
            dataset=mapped["Dataset"],
            size=str(item.size),
            modified=item.modified,
            values=Values(self.names, cells),
            sop_class_uid=read("SOPClassUID", ""),
            **fixed,
        )

    def _map(self, captures: tuple[str, ...], header: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
        """Return label -> text, and a sentence for each mapping that lacks its value.

        The values are those of `used_captures` and of `used_fields`.
        """
        path = dict(zip(self.used_captures, captures, strict=True))
        fields = dict(zip(self.used_fields, header, strict=True))
        mapped: dict[str, str] = {}
        lacking: list[str] = []
        for mapping in self.settings.mappings:
            value = mappings.resolve(mapping, path, fields)
            if isinstance(value, mappings.Missing):
                mapped[mapping.label] = ""
                lacking.append(
                    f"{mapping.label} has no value: {value.field} is empty in this file. Correct the Mappings, "
                    f"for example with a second choice: {value.field.split(' or ')[0]}|..."
                )
            else:
                mapped[mapping.label] = value
        return mapped, lacking


def configuration_text(lines: Sequence[ConfigurationLine]) -> str:
    """Write the lines of a Configuration sheet below its instructions as text that a workbook can remember."""
    return json.dumps([[line.number, *line.cells] for line in lines if any(line.cells[1:])])


def written_before(remembered: str) -> Callable[[Row], Mapping[str, str] | None]:
    """Return a function that tells what the mappings of the last scan gave for a row: label -> text.

    `remembered` is the Configuration of that scan (`configuration_text`); where there is none the function
    returns None, which says that nobody knows.
    """
    try:
        lines = [
            ConfigurationLine(number, tuple(map(str, cells)))
            for number, *cells in json.loads(remembered or "[]")
        ]
        settings = sheet.parse(lines)  # none at all is a ConfigurationError, too
    except (errors.ConfigurationError, ValueError, TypeError):
        return lambda row: None

    def written(row: Row) -> Mapping[str, str]:
        def lookup(name: str) -> str:
            if name.startswith("DICOM:"):
                return labels.value_of(row, name)
            return row.values.get(settings.headings.get(name, name), "")

        given = ((mapping.label, mapping.template.fill(lookup)) for mapping in settings.mappings)
        return {label: "" if isinstance(text, mappings.Missing) else text for label, text in given}

    return written
