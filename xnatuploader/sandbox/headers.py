"""What XNAT takes from headers of files it holds: `pullDataFromHeaders`, `fixScanTypes`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from xnatuploader.sandbox import answers, dicomfacts, store
from xnatuploader.sandbox.calls import Call
from xnatuploader.sandbox.dicomfacts import Facts

PULL = "Pulled Data from DICOM"
"""Its name in the history (EventUtils.DICOM_PULL)."""


def add_event(call: Call, experiment: store.StoredExperiment, action: str) -> dict[str, str]:
    """Add an event to a session's history, queued, and return it."""
    event = {
        "event_id": str(call.store.next_number("event")),
        "event_action": action,
        "event_status": "Queued",
    }
    call.site.history.setdefault(experiment.id, []).append(event)
    return event


async def pull(call: Call, experiment: store.StoredExperiment, only: str = "") -> None:
    """Merge what the headers say into a session and its scans; scans that only the headers know are added.

    With `only`, that scan alone is changed and keeps its ID (PullScanDataFromHeaders). A failure is a 500, and
    the record stays as it was.
    """
    event = add_event(call, experiment, PULL)
    try:
        await _pull(call, experiment, only)
    except answers.Refusal:
        event["event_status"] = "Failed"
        raise
    event["event_status"] = "Complete"


async def _pull(call: Call, experiment: store.StoredExperiment, only: str) -> None:
    paths = list(_files(call, experiment, only))
    if not paths:
        raise answers.Refusal(500, "Unable to derive session directory")
    found = await asyncio.to_thread(read_all, paths)
    if not found:
        raise answers.Refusal(500, "Unable to locate DICOM or ECAT files")
    series = dicomfacts.by_series(found)
    if only and len(series) > 1:
        raise answers.Refusal(500, "")  # MultipleScanException has no message
    ids = dict.fromkeys(series, only) if only else dicomfacts.scan_ids(series)
    for uid, files in series.items():
        _check_scan(call, experiment, ids[uid], list(files.values()))
    for uid, files in series.items():
        _merge_scan(call, experiment, ids[uid], list(files.values()))
    if not only:
        experiment.fields.update(dicomfacts.session_fields(list(found.values())))
        call.store.save_experiment(experiment)
    for scan_id in ids.values():
        _lose_catalog(call, experiment.scans[scan_id])


def _lose_catalog(call: Call, scan: store.StoredScan) -> None:
    """Delete the catalog if the session builder wrote it, as it does for scans that come by the prearchive.

    Such a scan lists no files until a refresh with `append`; the files stay (PullSessionDataFromHeaders.call).
    """
    for resource in call.store.resources_of(scan.key):
        if resource.catalog == f"scan_{scan.id}_catalog.xml":
            call.store.save_entries(resource, dict.fromkeys(list(resource.entries)))


def _files(call: Call, experiment: store.StoredExperiment, only: str) -> Iterable[Path]:
    for scan in experiment.scans.values():
        if not only or scan.id == only:
            for resource in call.store.resources_of(scan.key):
                for name in resource.entries:
                    yield call.store.archive / resource.folder / name


def read_all(paths: Iterable[Path]) -> dict[str, Facts]:
    """Return path -> what its header says, for those files that are DICOM."""
    found: dict[str, Facts] = {}
    for path in paths:
        try:
            found[str(path)] = dicomfacts.read(path)
        except (ValueError, OSError):
            continue  # not DICOM, or gone: XNAT skips it
    return found


def _check_scan(call: Call, experiment: store.StoredExperiment, scan_id: str, files: list[Facts]) -> None:
    known = experiment.scans.get(scan_id)
    if known is None:
        return
    kind = dicomfacts.scan_type(files)
    if known.xsi != kind:
        raise answers.Refusal(500, f"Modification of scan modality ({known.xsi} to {kind}) not supported.")
    if not call.store.resources_of(known.key):
        raise answers.Refusal(500, "Index: 0, Size: 0")


def _merge_scan(call: Call, experiment: store.StoredExperiment, scan_id: str, files: list[Facts]) -> None:
    scan = experiment.scans.get(scan_id)
    if scan is None:
        scan = call.store.new_scan(experiment, scan_id, dicomfacts.scan_type(files))
    given = dicomfacts.scan_fields(files)
    if not call.settings.pull_changes_types and scan.fields.get("type"):
        given.pop("type", None)
    scan.fields.update(given)
    call.store.save_scan(scan)


def fix_scan_types(call: Call, experiment: store.StoredExperiment) -> None:
    """Give scans without a type the one that scans of that series description have in the project."""
    known = {
        scan.fields["series_description"]: scan.fields["type"]
        for other in call.store.experiments_of(experiment.project)
        for scan in other.scans.values()
        if scan.fields.get("series_description") and scan.fields.get("type")
    }
    for scan in experiment.scans.values():
        if not scan.fields.get("type"):
            description = scan.fields.get("series_description", "")
            scan.fields["type"] = known.get(description, description) or "Unknown"
            call.store.save_scan(scan)
