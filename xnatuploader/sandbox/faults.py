"""Faults: rules that say which requests go wrong, and how."""

from __future__ import annotations

import dataclasses
import random
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ACTIONS: Mapping[str, str] = {
    "status": "answer with `status` (and `retry_after`); `when` before, or after the work was done",
    "latency": "answer `seconds` later",
    "drop": "break the connection, `when` before, during or after the body",
    "hang": "do not answer for `seconds`, `when` before, during or after the body",
    "html": "answer 200 with a web page and do nothing",
    "lose": "answer a file PUT with 200 and store nothing",
    "corrupt": "store altered bytes; the digest is that of what was stored",
    "lying-digest": "store the right bytes and list a digest that is not theirs",
    "silent-corrupt": "store altered bytes and list the digest of those sent",
    "race": "store the bytes, then answer 500 as XNAT does when two requests write one catalog",
    "disk-full": "store half of the bytes, then answer 500; answer an import with `status` (507) and store nothing",
    "truncate": "list only the first `keep` files",
    "cut-listing": "send the first half of a listing's text as if it were complete",
    "kill-session": "end the login of the request, which is then answered as one without a login",
    "refuse-import": "fail to archive an import, which stays in the prearchive with status ERROR",
}
"""Everything a fault can do."""

WHEN = ("before", "during", "after")


@dataclass(slots=True)
class Fault:
    """One rule. It counts the requests that match it, and strikes some of them."""

    do: str
    method: str = ""
    """Regular expression for the whole method; empty matches all."""
    path: str = ""
    """Regular expression searched in path and query as sent; empty matches all."""
    first: int = 1
    """The first matching request that is struck."""
    every: int = 1
    """From then on, every n-th one is struck."""
    times: int = 0
    """How many requests it strikes at most; 0 is no limit."""
    probability: float = 1.0
    seed: int = 0
    when: str = "before"
    status: int = 0
    seconds: float = 0.0
    retry_after: str = ""
    message: str = ""
    keep: int = 0
    matched: int = 0
    struck: int = 0
    _method: re.Pattern[str] = field(init=False, repr=False)
    _path: re.Pattern[str] = field(init=False, repr=False)
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.do not in ACTIONS:
            raise ValueError(f"There is no fault {self.do!r}. Faults are: {', '.join(ACTIONS)}.")
        if self.when not in WHEN:
            raise ValueError(
                f"The fault's when must be before, during or after (the body), not {self.when!r}."
            )
        self._method = _compiled("method", self.method)
        self._path = _compiled("path", self.path)
        self._chance = random.Random(self.seed)

    def strikes(self, method: str, path: str) -> bool:
        """Tell whether this request is one that goes wrong, and count it."""
        if self.method and not self._method.fullmatch(method):
            return False
        if self.path and not self._path.search(path):
            return False
        self.matched += 1
        past = self.matched - self.first
        if past < 0 or past % max(1, self.every) or (self.times and self.struck >= self.times):
            return False
        if self.probability < 1.0 and self._chance.random() >= self.probability:
            return False
        self.struck += 1
        return True

    def as_record(self) -> dict[str, Any]:
        """Return what the control URL shows."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name[0] != "_"}


_ORDERED = (
    *("method", "path", "first", "every", "times", "probability", "seed"),
    *("when", "status", "seconds", "retry_after", "message", "keep"),
)
"""What can be given with a fault, beside what it does."""


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"The fault's {name} is not a regular expression: {error}.") from error


def make(values: Mapping[str, Any]) -> Fault:
    """Make a rule from loosely typed values (JSON or the command line); a ValueError names what is wrong."""
    kinds = {one.name: one.type for one in dataclasses.fields(Fault) if one.init}
    ready: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"A fault has no setting {name!r}. Its settings are: {', '.join(_ORDERED)}.")
        try:
            ready[name] = {"int": int, "float": float}.get(str(kinds[name]), str)(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The fault's {name} needs a number, not {value!r}.") from error
    if "do" not in ready:
        raise ValueError(f"A fault needs a value for do, one of: {', '.join(ACTIONS)}.")
    return Fault(**ready)


def parse(text: str) -> dict[str, Any]:
    """Read `status method=PUT path=/files/ first=3 times=1 status=503`, as the command line takes it."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"The fault {text!r} cannot be read: {error}.") from error
    if not words:
        raise ValueError(
            "The fault is empty. For example: status method=PUT path=/files/ first=3 status=503."
        )
    values: dict[str, Any] = {"do": words[0]}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"In the fault {text!r}, {word!r} is not of the form name=value.")
        values[name] = value
    make(values)
    return values


@dataclass(slots=True)
class FaultPlan:
    """What goes wrong with one request."""

    faults: list[Fault] = field(default_factory=list)

    def find(self, do: str, when: str = "") -> Fault | None:
        """Return the fault of that kind, if it strikes here."""
        for fault in self.faults:
            if fault.do == do and (not when or fault.when == when):
                return fault
        return None

    def names(self) -> list[str]:
        """Return what its faults do, for the request log."""
        return [fault.do for fault in self.faults]


NOTHING = FaultPlan()


class Faults:
    """All rules in force."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []

    def plan(self, method: str, path: str) -> FaultPlan:
        """Ask every rule about a request."""
        if not self.rules:
            return NOTHING
        return FaultPlan([rule for rule in self.rules if rule.strikes(method, path)])
