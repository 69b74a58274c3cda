"""The examples of docs/patterns.md are true: every table below a pattern or mapping is run."""

import re
from pathlib import Path

import pytest

from xnatuploader import errors
from xnatuploader.config import mappings, patterns
from xnatuploader.config.lines import LabelledRow

PAGE = Path(__file__).parents[2] / "docs" / "patterns.md"
BLOCK = re.compile(r"```(pattern|mapping)\n(.*?)\n```\n\n((?:\|[^\n]*\n)+)", re.DOTALL)
PAIR = re.compile(r"([\w:,]+) = `([^`]*)`")


def rows(table):
    """The cells of a Markdown table below its two lines of heading."""
    lines = table.strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in lines]


def examples(kind):
    return [
        pytest.param(block.splitlines(), left, right, id=f"{block.splitlines()[0]} -- {left}")
        for found, block, table in BLOCK.findall(PAGE.read_text(encoding="utf-8"))
        if found == kind
        for left, right in rows(table)
    ]


def refused():
    section = PAGE.read_text(encoding="utf-8").split("### Cells that are refused")[1].split("\n## ")[0]
    table = "".join(line + "\n" for line in section.splitlines() if line.startswith("|"))
    return [cell.strip("`") for cell, _ in rows(table)]


def compiled(lines):
    sets = []
    for line in lines:
        label, *parts = line.split(" | ")
        sets.append(LabelledRow(label, "cell", tuple(("cell", part) for part in parts)))
    return patterns.compile_sets(sets)


@pytest.mark.parametrize(("lines", "path", "expected"), examples("pattern"))
def test_paths_give_what_the_table_says(lines, path, expected):
    result = compiled(lines).match(path.strip("`"))
    if expected.startswith("no: "):
        assert isinstance(result, patterns.NoMatch)
        assert list(result.reasons) == re.findall(r"`([^`]+)`", expected)
    else:
        assert isinstance(result, patterns.PathMatch)
        label = re.match(r"(\w+): ", expected)
        assert result.label == (label[1] if label else lines[0].split(" | ")[0])
        assert result.values == dict(PAIR.findall(expected))


@pytest.mark.parametrize(("lines", "given", "expected"), examples("mapping"))
def test_mapping_cells_give_what_the_table_says(lines, given, expected):
    row = LabelledRow("Row", "cell", tuple(("cell", text) for text in lines[0].split(" | ")))
    mapping = mappings.parse(row, ("ID", "Directory", "Date"))
    values = dict(PAIR.findall(given))
    header = {key.removeprefix("DICOM:"): text for key, text in values.items() if key.startswith("DICOM:")}
    result = mappings.resolve(mapping, values, header)
    text = re.findall(r"`([^`]+)`", expected)[0]
    assert result == (mappings.Missing(text) if expected.startswith("no: ") else text)


@pytest.mark.parametrize("cell", refused())
def test_refused_cells_are_refused(cell):
    with pytest.raises(errors.ConfigurationError):
        compiled([f"Set | {cell}"])


def test_the_page_has_examples_of_all_kinds():
    assert len(examples("pattern")) > 20
    assert len(examples("mapping")) > 8
    assert len(refused()) > 5
