"""Print how the package is laid out: rooms, arrows, circles, code lines, doubled names, long functions.

    python -m tests.house [FOLDER]     FOLDER: another checkout, to compare with

A room is a folder or a module directly below the package. An arrow is a room that imports another one, in whatever
place of a file. A circle is a set of modules, or of rooms, each of which reaches all the others by imports. A code line
is one that holds more than blanks, comments or a docstring.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "xnatuploader"
LONGEST_FUNCTION = 60
"""Lines, from `def` to the last."""
MOST_PARAMETERS = 7
"""Without `self` and `cls`."""


@dataclass
class House:
    """What the package's files say of its structure."""

    imports: dict[str, set[str]] = field(default_factory=dict)
    """Module (`upload/run`) to the modules of the package that it imports."""
    libraries: dict[str, set[str]] = field(default_factory=dict)
    """Module to the top names of what it imports from elsewhere, the standard library left out."""
    lines: Counter[str] = field(default_factory=Counter)
    """Module to its code lines."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Name of a class to the modules that define one of that name."""
    functions: list[tuple[str, int, int]] = field(default_factory=list)
    """`module:name`, lines, parameters of each function."""

    def rooms(self) -> dict[str, set[str]]:
        """Return each room with the rooms it imports."""
        found: dict[str, set[str]] = {}
        for module, targets in self.imports.items():
            held = found.setdefault(room_of(module), set())
            held.update(room_of(target) for target in targets)
        for room, targets in found.items():
            targets.discard(room)
        return found


def room_of(module: str) -> str:
    """Name the room of a module: `upload/run` lies in `upload`."""
    return module.split("/")[0]


def look(root: Path = ROOT) -> House:
    """Read every module of the package below `root`."""
    package = root / NAME
    paths = {
        path.relative_to(package).with_suffix("").as_posix(): path for path in sorted(package.rglob("*.py"))
    }
    house = House()
    for module, path in paths.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        house.lines[module] = len(code_lines(text, tree))
        house.imports[module], house.libraries[module] = imports_of(tree, paths)
        house.imports[module].discard(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                house.classes.setdefault(node.name, []).append(module)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                house.functions.append((f"{module}:{node.name}", *size_of(node)))
    return house


def imports_of(tree: ast.Module, modules: Mapping[str, Path]) -> tuple[set[str], set[str]]:
    """Return (modules of the package, libraries) that a file imports, also inside functions and for types."""
    ours: set[str] = set()
    libraries: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != NAME:
                libraries.add(top)
            elif module := _module(rest, modules):
                ours.add(module)
    return ours, libraries - set(sys.stdlib_module_names)


def _module(dotted: str, modules: Mapping[str, Path]) -> str | None:
    """Cut `upload.run.upload` down to the module that holds it."""
    parts = dotted.split(".")
    while parts:
        path = "/".join(parts)
        if path in modules:
            return path
        if f"{path}/__init__" in modules:
            return f"{path}/__init__"
        parts.pop()
    return None


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that are code."""
    told: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                told.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    numbered = enumerate(text.splitlines(), start=1)
    return {n for n, line in numbered if n not in told and line.strip() and not line.lstrip().startswith("#")}


def size_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    """Return (lines, parameters) of a function."""
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    counted = [argument for argument in named if argument.arg not in ("self", "cls")]
    return (node.end_lineno or node.lineno) - node.lineno + 1, len(counted)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of nodes that reach each other, by Tarjan's walk."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            together = [stack.pop()]
            while together[-1] != node:
                together.append(stack.pop())
            if len(together) > 1:
                found.append(sorted(together))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def report(house: House) -> Iterator[str]:
    """Write down the figures, a line each."""
    rooms = house.rooms()
    size: Counter[str] = Counter()
    for module, count in house.lines.items():
        size[room_of(module)] += count
    yield f"{len(rooms)} rooms, {len(house.lines)} modules, {sum(map(len, rooms.values()))} arrows between rooms"
    yield f"{sum(size.values())} code lines, {sum(size.values()) - size['sandbox']} without the sandbox"
    for room, count in sorted(size.items()):
        yield f"  {room:14} {count:6}  uses {', '.join(sorted(rooms[room])) or 'no other'}"
    for what, graph in (("rooms", rooms), ("modules", house.imports)):
        rings = circles(graph)
        yield f"circles of {what}: {len(rings)}"
        for ring in rings:
            yield f"  {' '.join(ring)}"
    doubled = {name: places for name, places in sorted(house.classes.items()) if len(places) > 1}
    yield f"class names used more than once: {len(doubled)}"
    for name, places in doubled.items():
        yield f"  {name}: {', '.join(places)}"
    large = [one for one in house.functions if one[1] > LONGEST_FUNCTION or one[2] > MOST_PARAMETERS]
    yield f"functions over {LONGEST_FUNCTION} lines or {MOST_PARAMETERS} parameters: {len(large)}"
    for name, lines, parameters in sorted(large):
        yield f"  {name}: {lines} lines, {parameters} parameters"


if __name__ == "__main__":
    print("\n".join(report(look(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))))
