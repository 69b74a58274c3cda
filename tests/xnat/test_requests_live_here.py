"""Every request to XNAT is made in xnat/: the other rooms send none and know no path of its REST interface."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import house

PACKAGE = house.ROOT / house.NAME
OTHERS = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("xnat", "sandbox")
]


def requests_in(path: Path) -> Iterator[str]:
    """Name each call of `.request(` and each text that begins as a path of XNAT's REST interface."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "request"
        ):
            yield f"line {node.lineno}: .request("
        if isinstance(node, ast.Constant) and re.match("/(data|xapi)(/|$)", str(node.value)):
            yield f"line {node.lineno}: {node.value}"


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_above_sends_no_request_of_its_own(path: Path) -> None:
    assert list(requests_in(path)) == []


def test_a_request_would_be_seen() -> None:
    assert len(list(requests_in(PACKAGE / "xnat" / "archive.py"))) > 20
