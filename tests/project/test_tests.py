"""How the tests are laid out: what several modules share lies in tests/helpers/, and no module borrows from a test."""

from __future__ import annotations

import re
from pathlib import Path

from tests import house

BORROWED = re.compile(r"^\W*(?:from|import) .*\b(?:test_\w+|conftest)\b", re.MULTILINE)
"""An import from a test module or conftest.py; also one in the text of a script that a test starts."""


def test_no_module_imports_from_a_test_module() -> None:
    borrowed = {
        path.relative_to(house.ROOT).as_posix(): BORROWED.findall(path.read_text(encoding="utf-8"))
        for path in sorted((house.ROOT / "tests").rglob("*.py"))
        if path != Path(__file__).resolve()
    }
    assert {path: found for path, found in borrowed.items() if found} == {}


def test_such_an_import_would_be_seen() -> None:
    for line in (
        "from tests.scan.test_find import make",
        "    import tests.conftest",
        "from tests.scan import test_find",
        '        "from tests.dicom.test_pool import slow_open\\n"',
    ):
        assert BORROWED.search(line), line
