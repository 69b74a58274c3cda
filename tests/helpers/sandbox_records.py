"""Control requests that only tests make: records without files, catalogs written at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xnatuploader.sandbox import fields, store
from xnatuploader.sandbox.calls import Site


def _flush(site: Site, query: Mapping[str, str], body: Any) -> Any:
    return {"catalogs": site.store.write_catalogs()}


def _put_state(site: Site, query: Mapping[str, str], body: Any) -> Any:
    """Make records without files: {project: {subject: {session: {"xsi", fields, "scans": {id: {...}}}}}}."""
    made = 0
    for project, subjects in body.items():
        if project not in site.store.projects:
            site.store.save_project(store.StoredProject(project, {"name": project}))
        for label, sessions in subjects.items():
            subject = site.store.subject(project, label) or site.store.new_subject(project, label, {})
            for name, record in sessions.items():
                _new_session(site, subject, name, dict(record))
                made += 1
    return {"sessions": made}


def _new_session(site: Site, subject: store.StoredSubject, label: str, record: dict[str, Any]) -> None:
    kept = site.store
    scans, xsi = record.pop("scans", {}), record.pop("xsi", "xnat:ctSessionData")
    if xsi not in fields.KNOWN_SESSIONS:
        raise ValueError(f"{xsi} is not a type of session")
    known = kept.experiment(subject.project, label)
    number = known.id if known else f"XNAT_E{kept.next_number('experiment'):05d}"
    texts = {name: str(value) for name, value in record.items()}
    session = store.StoredExperiment(number, subject.project, subject.id, label, xsi, texts)
    kept.save_experiment(session)
    for scan_id, values in scans.items():
        values = {name: str(value) for name, value in values.items()}
        scan_xsi = values.pop("xsi", "xnat:ctScanData")
        kept.save_scan(store.StoredScan(str(scan_id), session.id, scan_xsi, kept.next_number("row"), values))


ANSWERS = {("POST", "state"): _put_state, ("POST", "flush"): _flush}
"""What they are answered by, as `sandbox.control.ANSWERS` has it."""
