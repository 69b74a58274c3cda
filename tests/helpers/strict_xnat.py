"""An older or stricter XNAT than the package's sandbox, run in its place: `python -m tests.helpers.strict_xnat`.

The first argument is a JSON record of `Strict`. Each switch has a function below, which stands around every answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import __main__ as sandbox
from xnatuploader.sandbox import app, faults
from xnatuploader.sandbox.calls import Call


@dataclass(frozen=True, slots=True)
class Strict:
    """In what a test's XNAT differs."""

    drops_tar: bool = False
    """As before 1.8: a tar to be extracted is answered with 200, and nothing of it is stored."""


def command(chosen: Mapping[str, Any]) -> list[str]:
    """Return the module and its argument that `process.start` runs; the package's own where nothing differs."""
    Strict(**chosen)  # an unknown switch fails here, not in the other process
    return [__name__, json.dumps(chosen)] if chosen else ["xnatuploader.sandbox"]


class StrictXnat:
    """Stands around the sandbox's answers."""

    def __init__(self, strict: Strict) -> None:
        self.strict = strict
        rules = {"drops_tar": self._tar}
        self._rules = [rule for name, rule in rules.items() if getattr(strict, name)]

    async def around(self, call: Call, answer: app.Answer) -> web.StreamResponse:
        """Answer as the first rule says that has an answer; else as the sandbox does."""
        for rule in self._rules:
            early = await rule(call)
            if early is not None:
                return early
        return await answer(call)

    async def _tar(self, call: Call) -> web.StreamResponse | None:
        """CatalogUtils.storeCatalogEntry of 1.7.6."""
        if call.request.method == "PUT" and call.request.path.endswith(".tar") and call.flag("extract"):
            call.plan = faults.FaultPlan([*call.plan.faults, faults.Fault("lose")])
        return None


if __name__ == "__main__":
    sys.exit(sandbox.main(StrictXnat(Strict(**json.loads(sys.argv[1]))).around))
