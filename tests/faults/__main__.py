"""Run all faults and print the table: `python -m tests.faults [--kills 100] [--repeats 3] [--only WORD]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import cases
from tests.faults.trial import Scene, Tally

HEAD = ("fault", "runs", "faults injected", "files", "lost", "sent twice", "wrong", "seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=cases.FULL.kills)
    parser.add_argument("--repeats", type=int, default=cases.FULL.repeats)
    parser.add_argument("--seed", type=int, default=cases.FULL.seed)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    asked = parser.parse_args()
    scale = cases.Scale(asked.kills, asked.repeats, asked.seed)
    print(line(HEAD), line(["---"] * len(HEAD)), sep="\n", flush=True)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), sessions=3, scans=2, files=40)
        try:
            for name, case in cases.CASES.items():
                if asked.only in name:
                    bad += not one(scene, name, case, scale)
        finally:
            scene.close()
    return 1 if bad else 0


def one(scene: Scene, name: str, case: cases.Case, scale: cases.Scale) -> bool:
    """Run one case and print its line; False if anything was lost, sent twice or wrong."""
    tally = Tally(name)
    scene.fresh_server()
    begun = time.monotonic()
    case(scene, tally, scale)
    seconds = time.monotonic() - begun
    twice = f"{tally.twice} ({tally.hidden} hidden)" if tally.hidden else tally.twice
    cells = [name, tally.runs, tally.injected, tally.files, tally.lost, twice, tally.wrong, f"{seconds:.0f}"]
    print(line(cells), flush=True)
    for problem in tally.problems[:5]:
        print(f"    {problem}", file=sys.stderr)
    return not (tally.lost or tally.twice or tally.wrong)


def line(cells: list[object] | tuple[str, ...]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main())
