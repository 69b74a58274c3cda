"""The papers of the project agree with each other and with the package."""

from __future__ import annotations

import re

import pytest

import xnatuploader
from tests.helpers.papers import PROJECT
from tests.house import ROOT

PAPERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_names_this_version_licence_and_address() -> None:
    facts = dict(re.findall(r"^([a-z-]+): (.+)$", text_of("CITATION.cff"), re.MULTILINE))
    assert facts["version"] == xnatuploader.__version__
    assert facts["license"] == PROJECT["license"]
    assert facts["repository-code"] == PROJECT["urls"]["Source"]
    assert facts["title"] == PROJECT["name"]


def test_the_changelog_begins_with_what_is_unreleased_and_has_this_version() -> None:
    headings = re.findall(r"^## (.+)$", text_of("docs/changelog.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert xnatuploader.__version__ in headings


def test_readme_names_the_answer_of_this_version() -> None:
    assert f"`xnatuploader {xnatuploader.__version__}`" in text_of("README.md")


@pytest.mark.parametrize("paper", PAPERS)
def test_the_links_of_a_paper_lead_to_files_of_the_repository(paper: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text_of(paper)) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).is_file()] == []


@pytest.mark.parametrize("paper", PAPERS)
def test_the_paths_that_a_paper_quotes_are_there(paper: str) -> None:
    quoted = re.findall(r"(?:(?:tests|docs|\.ci)/[\w./-]*\w|pyproject\.toml)", text_of(paper))
    assert [path for path in quoted if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["Documentation", "Source", "Changelog", "Issues"])
def test_the_project_says_where_it_lives(name: str) -> None:
    url = PROJECT["urls"][name]
    assert url.startswith(PROJECT["urls"]["Source"])
    _, in_repository, path = url.partition("/blob/main/")
    assert not in_repository or (ROOT / path).is_file()


def test_the_hooks_before_a_commit_are_the_checks_of_the_suite() -> None:
    hooks = re.findall(r"entry: python -m (.+)$", text_of(".pre-commit-config.yaml"), re.MULTILINE)
    style = re.findall(r'^ +\("(ruff|mypy)"(.*)\),$', text_of("tests/project/test_style.py"), re.MULTILINE)
    checks = [" ".join([tool, *re.findall(r'"([^"]+)"', words)]) for tool, words in style]
    assert hooks == checks
