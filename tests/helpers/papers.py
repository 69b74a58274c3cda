"""The project's entry in pyproject.toml."""

from __future__ import annotations

import importlib
import sys

from tests import house

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

PROJECT = tomllib.loads((house.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
