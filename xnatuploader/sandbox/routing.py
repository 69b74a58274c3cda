"""Which of XNAT's resources answers an address.

`routes.tsv` holds the addresses that XNAT attaches (XNATApplication.addRoutes, the same in 1.7.0 to 1.8.11). Its
router takes the longest template that an address begins with and hands what is left over to that resource, which
mostly ignores it: so `/data/projects/P/experiments/E/scans` is answered with the record of the session.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("routes.tsv")


@dataclass(frozen=True, slots=True)
class RestRoute:
    """One address that XNAT has, below `/data`."""

    template: tuple[str, ...]
    """Parts of the path; those in braces stand for any text."""
    served_by: str
    """Name of XNAT's class."""
    below_archive: bool
    """Whether the address works below `/data/archive` too."""

    def fits(self, segments: Sequence[str]) -> bool:
        """Tell whether an address begins with this template."""
        if len(segments) < len(self.template):
            return False
        return all(
            bool(given) if part.startswith("{") else part == given
            for part, given in zip(self.template, segments, strict=False)
        )


@dataclass(frozen=True, slots=True)
class Match:
    """How an address is answered."""

    route: RestRoute
    segments: tuple[str, ...]
    """The part of the address that the template covers, as sent."""
    rest: tuple[str, ...]
    """What is left over, as sent."""


@functools.cache
def routes() -> tuple[RestRoute, ...]:
    """Return XNAT's addresses in the order of the table."""
    with TABLE.open(encoding="utf-8", newline="") as source:
        return tuple(
            RestRoute(
                tuple(row["template"].strip("/").split("/")),
                row["served_by"],
                row["also_below_archive"] == "yes",
            )
            for row in csv.DictReader(source, delimiter="\t")
        )


@functools.cache
def _by_first() -> dict[str, tuple[RestRoute, ...]]:
    found: dict[str, list[RestRoute]] = {}
    for route in sorted(routes(), key=lambda route: -len(route.template)):
        found.setdefault(route.template[0], []).append(route)
    return {word: tuple(group) for word, group in found.items()}


def match(segments: Sequence[str]) -> Match | None:
    """Find the resource for the parts of a path behind `/data`; None where XNAT has none."""
    below_archive = len(segments) > 0 and segments[0] == "archive"
    parts = segments[1:] if below_archive else segments
    for route in _by_first().get(parts[0], ()) if parts else ():
        if route.fits(parts) and (route.below_archive or not below_archive):
            length = len(route.template)
            return Match(route, tuple(parts[:length]), tuple(parts[length:]))
    return None
