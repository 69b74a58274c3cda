"""The map in docs/development.md is the truth: which room rests on which, and on which library."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "xnatuploader"
STANDARD = set(sys.stdlib_module_names)


def room_of(path: Path) -> str:
    """Name the room that a file belongs to: a module, a folder of one trade, or one command."""
    parts = path.relative_to(PACKAGE).parts
    if parts[0] == "commands" and parts[1] != "__init__.py":
        return f"commands/{parts[1]}"
    return parts[0] if len(parts) == 1 else f"{parts[0]}/"


def room_named(dotted: str) -> str:
    """Name the room of `xnatuploader.x.y`."""
    parts = dotted.split(".")[1:]
    if not parts:
        return "__init__.py"
    if parts[0] == "commands":
        return f"commands/{parts[1]}.py" if len(parts) > 1 else "commands/"
    return f"{parts[0]}/" if (PACKAGE / parts[0]).is_dir() else f"{parts[0]}.py"


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """Return (rooms, libraries) that a file imports, also inside functions and for types."""
    rooms: set[str] = set()
    libraries: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            if top == "xnatuploader":
                rooms.add(room_named(_module(name)))
            elif top not in STANDARD:
                libraries.add(top)
    return rooms, libraries


def _module(dotted: str) -> str:
    """Cut `xnatuploader.server.Server` down to the module."""
    parts = dotted.split(".")
    while len(parts) > 1:
        path = PACKAGE.joinpath(*parts[1:])
        if path.is_dir() or path.with_suffix(".py").is_file():
            break
        parts.pop()
    return ".".join(parts)


@functools.cache
def rooms() -> dict[str, tuple[set[str], set[str]]]:
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room in ("__init__.py", "__main__.py") or path == PACKAGE / "commands" / "__init__.py":
            continue
        ours, libraries = imports_of(path)
        held = found.setdefault(room, (set(), set()))
        held[0].update(ours - {room, "__init__.py"})
        held[1].update(libraries)
    return found


@functools.cache
def table() -> dict[str, tuple[set[str], set[str]]]:
    """Read the map, in its order: room -> (rooms it rests on, libraries)."""
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    told = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            told[cells[0].strip("`")] = (_names(cells[2]), _names(cells[3]))
    return told


def _names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_every_room_is_on_the_map() -> None:
    assert set(rooms()) == set(table())


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_rests_on_what_the_map_says(room: str) -> None:
    assert rooms()[room][0] == table()[room][0]


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_uses_the_libraries_that_the_map_says(room: str) -> None:
    assert rooms()[room][1] == table()[room][1]


def test_imports_run_only_downward() -> None:
    order = list(table())
    upward = [
        f"{room} -> {below}"
        for room, (rests_on, _) in table().items()
        for below in rests_on
        if order.index(below) <= order.index(room)
    ]
    assert upward == []


def test_there_are_no_junk_drawers() -> None:
    assert not [
        path for path in PACKAGE.rglob("*.py") if path.stem in ("utils", "util", "helpers", "misc", "common")
    ]
