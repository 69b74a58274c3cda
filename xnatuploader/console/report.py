"""What a run says at its end: a summary for people, one JSON object for programs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xnatuploader.records import Row, Status


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. The keys of `--json` are these fields, and are stable."""

    exit_code: int = 0
    text: str = ""
    """What a person reads on stdout."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Status word (`not tried` for an empty one) -> rows of the workbook."""
    sessions: int = 0
    scans: int = 0
    bytes: int = 0
    """Of the files that are to travel (scan) or that were sent (upload)."""
    problems: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    """Further keys that only some commands have (`check`: its lines)."""


def as_json(command: str, spreadsheet: str, seconds: float, result: Result) -> str:
    """Return the one line that `--json` prints."""
    return json.dumps(
        {
            "command": command,
            "exit_code": result.exit_code,
            "spreadsheet": spreadsheet,
            "seconds": round(seconds, 3),
            "files": dict(result.files),
            "sessions": result.sessions,
            "scans": result.scans,
            "bytes": result.bytes,
            "problems": list(result.problems),
            **result.details,
        },
        ensure_ascii=True,
    )


def count_statuses(rows: Iterable[Row]) -> dict[str, int]:
    """Count rows by status word, in the order of `Status`; an empty status counts as `not tried`."""
    return in_words(Counter(row.status for row in rows))


def in_words(counts: Mapping[Status, int]) -> dict[str, int]:
    """Name counts by status word, as `count_statuses`."""
    return {status.value or "not tried": counts[status] for status in Status if counts.get(status)}


def human_bytes(count: int) -> str:
    """Write a number of bytes as people read it: `512 bytes`, `1.5 MB` (powers of 1,000)."""
    if count < 1000:
        return f"{count} bytes"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def address(url: str) -> str:
    """Return a server's address without the login that somebody may have written into it, rightly or wrongly."""
    return re.sub(r"^(\w+://)?.*@", lambda found: f"{found[1] or ''}***@", url)


def plural(count: int, noun: str) -> str:
    """Write `1 file`, `2 files`, `1,200 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
