"""What a run says of itself: no login that somebody typed into an address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xnatuploader.console import report


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("https://xnat.example.org/path", "https://xnat.example.org/path"),
        ("https://ann:secret@xnat.example.org", "https://***@xnat.example.org"),
        ("https://ann:se@cret@xnat.example.org", "https://***@xnat.example.org"),
        ("https://ann:se/cret@xnat.example.org/x", "https://***@xnat.example.org/x"),
        ("ann:secret@xnat.example.org", "***@xnat.example.org"),
        ("https://ann:se cret@xnat.example.org", "https://***@xnat.example.org"),
    ],
)
def test_an_address_is_shown_without_the_login_in_it(typed: str, shown: str) -> None:
    assert report.address(typed) == shown


@pytest.mark.parametrize(
    "typed", ["https://ann:se@cret@h.example.org", "ann:secret@h.example.org", "https://a:se/cret@h.org"]
)
def test_a_mistyped_address_leaves_no_password_in_the_log(
    here: Path, run: Callable[..., object], typed: str
) -> None:
    run("init", "--spreadsheet", "study.xlsx")
    run("check", "--spreadsheet", "study.xlsx", "--server", typed, "--project", "P")
    logs = [path.read_text(encoding="utf-8") for path in (here / "logs").iterdir()]
    assert logs
    assert not [text for text in logs if "cret" in text]


def test_other_options_are_logged_as_they_were_typed(here: Path, run: Callable[..., object]) -> None:
    (here / "ann@work").mkdir()
    run("init", "--spreadsheet", "study.xlsx")
    run("scan", "--spreadsheet", "study.xlsx", "--dir", "ann@work")
    assert [path for path in (here / "logs").iterdir() if "ann@work" in path.read_text(encoding="utf-8")]
