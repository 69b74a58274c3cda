"""What XNAT takes from the headers of files it holds: `pullDataFromHeaders`, `fixScanTypes` (REST facts 8)."""

from __future__ import annotations

from xnatuploader.sandbox import store
from xnatuploader.sandbox.world import Call


async def pull(call: Call, experiment: store.Experiment, only: str = "") -> None:
    """Merge what the headers say into a session; see the second version."""


def fix_scan_types(call: Call, experiment: store.Experiment) -> None:
    """Give scans without a type the one their series description suggests."""
