"""The checks that every commit passes: ruff's rules, ruff's format, mypy strict."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


CHECKS = [
    ("ruff", "check", "xnatuploader", "tests"),
    ("ruff", "format", "--check", "xnatuploader", "tests"),
    ("mypy",),
]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=[pytest.mark.slow] if words == ("mypy",) else [], id=" ".join(words))
        for words in CHECKS
    ],
)
def test_the_tree_passes(words: tuple[str, ...]) -> None:
    if importlib.util.find_spec(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed: pip install -e '.[test]'")
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
