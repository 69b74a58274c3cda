"""A sheet that is written anew each time, for people to look at: it holds nothing that anybody edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xnatuploader.workbook import editor, fresh

_WIDTH = 16.0


def write(
    work: editor.Editor,
    name: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Mapping[str, float],
) -> None:
    """Make the sheet `name` hold `rows` of texts under `headings`; what it held before is gone."""
    columns = [fresh.Column(heading, widths.get(heading, _WIDTH), work.styles.text()) for heading in headings]
    writer = fresh.writer(columns, rows, len(rows), work.styles.header(), {})
    size = 150 * len(rows) * len(headings)
    place = work.skeleton.sheet(name)
    if place is None:
        work.add_sheet(name, writer, size, fresh.range_name(name, len(columns), len(rows)))
    else:
        work.write(place.part, writer, size)
