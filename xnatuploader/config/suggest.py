"""Which rows of the Paths section would fit the files of a folder, for a scan in which nothing matched (pure)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from xnatuploader.config import patterns

_ENDINGS = (".dcm", ".dicom", ".ima", ".img")
"""Endings worth a pattern of their own. Others are not repeated: `John.Doe` would be a name on the screen."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A form that many paths of a scan share, and the pattern set that would fit it."""

    folders: int
    """How many folders are above the file."""
    ending: str
    """`.dcm` and the like, '' where names have no well-known ending."""
    files: int
    dicom: int
    """How many of `files` hold DICOM."""
    label: str
    row: tuple[str, ...]
    """The cells to add to the Paths section, right of `label`."""
    lacking: tuple[str, ...]
    """Which of the names that the mappings need this row does not capture."""

    @property
    def form(self) -> str:
        """The shape in words that hold no name of a folder or file: `folder/folder/*.dcm`."""
        return "folder/" * self.folders + (f"*{self.ending}" if self.ending else "file")

    def lines(self) -> Iterator[str]:
        """Yield the shape, and the row to add, as a person reads them."""
        holds = f"{self.dicom:,} with DICOM" if self.dicom else "none with DICOM"
        yield f"{self.form}: {self.files:,} file{'s'[: self.files != 1]}, {holds}"
        if self.dicom:
            yield f"    {' | '.join((self.label, *self.row))}"
            if self.lacking:
                yield f"    (too few folders for {', '.join(self.lacking)}: change the Mappings that use it)"


def suggest(
    paths: Iterable[str],
    dicom: Iterable[bool],
    needed: Sequence[str] = ("ID", "Directory"),
    taken: Collection[str] = (),
) -> tuple[Shape, ...]:
    """Return the three most common shapes of `paths`, those with most DICOM first, each with a row that fits.

    `dicom` says for each path whether the file holds DICOM. `needed` are the captured names that the mappings
    use, in their order: the first is given to the top folder, the last to the folder of the file. `taken` are
    labels that are in use.
    """
    files: Counter[tuple[int, str]] = Counter()
    holding: Counter[tuple[int, str]] = Counter()
    for path, holds in zip(paths, dicom, strict=True):
        shape = (path.count("/"), next((end for end in _ENDINGS if path.lower().endswith(end)), ""))
        files[shape] += 1
        holding[shape] += holds
    ranked = sorted(files, key=lambda shape: (-holding[shape], -files[shape], shape))[:3]
    names = [name for name in dict.fromkeys(needed) if name != "filename"]
    shapes: list[Shape] = []
    for folders, ending in ranked:
        captured, cells = _folder_cells(folders, [name for name in names if not patterns.digits_in(name)])
        in_use = {*taken, *(shape.label for shape in shapes)}
        labels = (f"Folders{folders}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
        label = next(free for free in labels if free not in in_use)
        counts = files[folders, ending], holding[folders, ending]
        lacking = tuple(name for name in names if name not in captured)
        shapes.append(Shape(folders, ending, *counts, label, (*cells, "{filename}" + ending), lacking))
    return tuple(shapes)


def _folder_cells(folders: int, wanted: list[str]) -> tuple[list[str], list[str]]:
    """Return which of the `wanted` names that number of folders can capture, and the folders' cells.

    The top folder gets the first name (most often the subject's), the folder of the file the last one (most
    often the dataset's), folders below the top those between.
    """
    captured = wanted[:folders] if folders < len(wanted) else wanted
    cells = [f"{{{name}}}" for name in captured]
    between = ["*"] * (folders - len(captured))
    return captured, [*cells[:-1], *between, *cells[-1:]]
