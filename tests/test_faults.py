"""The faults of `python -m tests.faults` in short: a small tree, and each of them once."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

if sys.platform == "win32":
    pytest.skip("the runs are forked", allow_module_level=True)

from tests.faults import cases
from tests.faults.trial import Scene, Tally

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("faults"), sessions=2, scans=1, files=25)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def undisturbed(scene: Scene) -> Iterator[None]:
    yield
    scene.box.clear_faults()


@pytest.mark.parametrize("name", cases.CASES)
def test_nothing_is_lost_sent_twice_or_untrue(
    scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "XNAT_USER", "XNAT_PASS", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, "")  # a trial sets them; this puts them back
    tally = Tally(name)
    cases.CASES[name](scene, tally, cases.SHORT)
    assert (tally.lost, tally.twice, tally.wrong) == (0, 0, 0), tally.problems[:5]
    assert tally.injected > 0
