"""Which of the program's own addresses a request went to."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from xnatuploader.xnat import http, routes


@functools.cache
def templates() -> dict[str, str]:
    """Return the addresses of `routes`, by the names of their constants."""
    return {
        name: value
        for name, value in vars(routes).items()
        if name.isupper() and isinstance(value, str) and value.startswith("/") and " " not in value
    }


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(
        re.compile("".join("[^/]+" if part.startswith("{") else re.escape(part) for part in pieces))
        for pieces in (re.split(r"(\{\w+\})", template) for template in templates().values())
    )


def strangers(requests: Iterable[Mapping[str, Any]], context: str) -> list[str]:
    """Return the requests of this program that fit no template exactly; `context` is the server's context path."""
    found = []
    for one in requests:
        if not one["agent"].startswith(http.USER_AGENT.partition("/")[0] + "/"):
            continue
        path = urlsplit(one["path"]).path.removeprefix(context)
        if not any(pattern.fullmatch(path) for pattern in _patterns()):
            found.append(f"{one['method']} {path}")
    return found
