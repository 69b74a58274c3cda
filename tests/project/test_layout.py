"""The map in docs/development.md is true: which room rests on which and on which library, and what is where."""

from __future__ import annotations

import functools
import re

import pytest

from tests import house

PACKAGE = house.ROOT / house.NAME


@functools.cache
def look() -> house.House:
    return house.look()


@functools.cache
def rooms() -> dict[str, tuple[set[str], set[str]]]:
    """Return each room with (rooms it imports, libraries it imports), as the source has them."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for room, targets in look().rooms().items():
        if room != "__init__":
            found[room] = targets - {"__init__"}, set()
    for module, libraries in look().libraries.items():
        if house.room_of(module) != "__init__":
            found[house.room_of(module)][1].update(libraries)
    return found


@functools.cache
def table() -> dict[str, tuple[set[str], set[str]]]:
    """Read the map, in its order: room -> (rooms it rests on, libraries)."""
    text = (house.ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    told = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            (room,) = _names(cells[0])
            told[room] = _names(cells[2]), _names(cells[3])
    return told


def _names(cell: str) -> set[str]:
    return {name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", cell)}


def test_every_room_is_on_the_map() -> None:
    assert set(rooms()) == set(table())


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_rests_on_what_the_map_says(room: str) -> None:
    assert rooms()[room] == table()[room]


def test_imports_run_only_downward() -> None:
    order = list(table())
    upward = [
        f"{room} -> {below}"
        for room, (rests_on, _) in table().items()
        for below in rests_on
        if order.index(below) <= order.index(room)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert house.circles(look().imports) == []


def test_no_class_name_is_used_twice() -> None:
    assert {name: modules for name, modules in look().classes.items() if len(modules) > 1} == {}


def test_functions_fit_a_screen_and_take_few_parameters() -> None:
    large = [
        name
        for name, lines, parameters in look().functions
        if lines > house.LONGEST_FUNCTION or parameters > house.MOST_PARAMETERS
    ]
    assert large == []


def test_every_file_that_the_page_for_developers_names_is_there() -> None:
    text = (house.ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*/[a-z_]+\.(?:py|tsv))`", text))
    assert paths
    roots = (house.ROOT, PACKAGE, PACKAGE / "upload", house.ROOT / "tests")
    assert [path for path in sorted(paths) if not any((root / path).is_file() for root in roots)] == []


def test_every_function_that_it_names_behind_a_file_is_there() -> None:
    text = (house.ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+/[a-z_]+\.py)`((?:,? `[A-Za-z_.]+`)+)", text)
    wrong = []
    for path, names in named:
        source = (PACKAGE / path).read_text(encoding="utf-8") if (PACKAGE / path).is_file() else ""
        for name in re.findall(r"`([A-Za-z_.]+)`", names):
            parts = [part for part in name.split(".") if part != "py"]
            if not name.endswith(".py") and not all(
                re.search(rf"\b(def|class) {part}\b", source) for part in parts
            ):
                wrong.append(f"{path} {name}")
    assert len(named) > 15
    assert wrong == []


def test_there_are_no_junk_drawers() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert not [module for module in look().lines if module.split("/")[-1] in drawers]
