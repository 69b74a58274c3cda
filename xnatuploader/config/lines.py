"""The lines of the Configuration sheet as labelled rows in sections, each cell with its address (pure).

A line of the sheet belongs to the section whose name is in its column A, or in the nearest line above that has one
there; column B holds its label, C onward its values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xnatuploader.records import ConfigurationLine, column_letters

SHEET = "Configuration"
SECTIONS = ("Paths", "Mappings", "XNAT")


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A labelled line of a section."""

    label: str
    cell: str
    """Address of the label (`Configuration B5`), for messages."""
    values: tuple[tuple[str, str], ...]
    """Address and text of the cells right of it that are not blank."""
    first: str = ""
    """Address of column C: where a value belongs."""


def sections(lines: Sequence[ConfigurationLine], problems: list[str]) -> dict[str, list[LabelledRow]]:
    """Sort the labelled lines by section. Text in column A that names no section is the user's own note."""
    found: dict[str, list[LabelledRow]] = {}
    section = ""
    for line in lines:
        name, label, *values = [*(cell.strip() for cell in line.cells), "", ""][: max(len(line.cells), 2)]
        named = next((known for known in SECTIONS if known.lower() == name.lower()), "")
        section = named or section
        if named:
            found.setdefault(named, [])
        elif label and (meant := near(name, SECTIONS, cutoff=0.85)):
            problems.append(f"{_address(1, line.number)}: there is no section '{name}'; write {meant}.")
        filled = tuple((_address(at, line.number), text) for at, text in enumerate(values, 3) if text)
        if section and (label or filled):
            row = LabelledRow(label, _address(2, line.number), filled, _address(3, line.number))
            found[section].append(row)
    for name in ("Paths", "Mappings"):
        if name not in found:
            problems.append(
                f"{SHEET}: there is no section {name}; write {name} in column A of its first row."
            )
        elif not found[name]:
            problems.append(f"{SHEET}: the section {name} has no rows; init writes a sheet with an example.")
    return found


def _address(column: int, row: int) -> str:
    return f"{SHEET} {column_letters(column)}{row}"


def near(written: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """Return which of `known` was most likely meant by `written`, '' if none."""
    by_plain = {plain(name): name for name in known}
    found = difflib.get_close_matches(plain(written), by_plain, n=1, cutoff=cutoff)
    return by_plain[found[0]] if found else ""


def plain(text: str) -> str:
    """Return `text` in small letters, without blanks and signs: how a slip is compared with what was meant."""
    return re.sub(r"[\W_]", "", text).lower()
