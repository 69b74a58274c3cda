"""What the code imports is what pyproject.toml declares: nothing comes by luck with another library."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from tests import house
from tests.helpers.papers import PROJECT

NOT_IMPORTED: dict[str, str] = {}
"""A dependency of the package that no module imports -> the reason why it is declared."""
TOOLS = {
    "mypy": "tests/project/test_style.py runs it",
    "ruff": "tests/project/test_style.py runs it",
    "pytest-cov": ".ci/run has it measure the coverage",
    "pytest-timeout": "the setting timeout in pyproject.toml",
    "pytest-xdist": "python -m pytest -n 2",
    "types-openpyxl": "mypy reads it",
    "types-requests": "mypy reads it",
    "types-tqdm": "mypy reads it",
    "nibabel": "pyxnat imports it without saying so",
    "pandas": "pyxnat imports it without saying so",
}
"""What the extra `test` installs and no test imports -> who uses it."""


def normal(name: str) -> str:
    """Write a distribution's name as every tool compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {normal(name.group()) for name in names if name}


def distributions(imports: Iterable[str]) -> set[str]:
    """Return the distributions that bring what is imported; a name that nothing here brings stands for itself."""
    return {normal(brought().get(name, [name])[0]) for name in imports}


@functools.cache
def brought() -> Mapping[str, list[str]]:
    """Return what brings each name that can be imported here."""
    return metadata.packages_distributions()


def imported_by_the_package() -> set[str]:
    libraries = house.look().libraries.values()
    return distributions(name for names in libraries for name in names)


def imported_by_the_tests() -> set[str]:
    found: set[str] = set()
    for path in Path(house.ROOT, "tests").rglob("*.py"):
        found |= house.imports_of(ast.parse(path.read_text(encoding="utf-8")), {})[1]
    return distributions(found - {"tests"})


@pytest.mark.slow
def test_every_library_that_the_package_imports_is_declared() -> None:
    assert imported_by_the_package() - declared(PROJECT["dependencies"]) == set()


@pytest.mark.slow
def test_every_declared_dependency_is_imported_or_says_why_not() -> None:
    assert declared(PROJECT["dependencies"]) - imported_by_the_package() == set(NOT_IMPORTED)


@pytest.mark.slow
def test_every_library_that_the_tests_import_is_declared() -> None:
    extra = PROJECT["optional-dependencies"]["test"]
    known = declared(PROJECT["dependencies"]) | declared(extra)
    assert imported_by_the_tests() - known == set()


@pytest.mark.slow
def test_everything_in_the_extra_test_is_used() -> None:
    extra = declared(PROJECT["optional-dependencies"]["test"])
    assert extra - imported_by_the_tests() == set(TOOLS)


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_dependency_has_a_lower_bound(requirement: str) -> None:
    """Without one a computer keeps the old version that it happens to have."""
    assert ">=" in requirement or "==" in requirement
