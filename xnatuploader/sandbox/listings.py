"""Tables and single records of the hierarchy, as GET shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import answers, store
from xnatuploader.sandbox.addresses import Address
from xnatuploader.sandbox.calls import Call

# fmt: off
_PARAMETERS = frozenset((
    "format", "columns", "sortBy", "sortOrder", "limit", "offset", "xsiType", "XNAT_CSRF",
    "req_format", "owner", "member", "accessible", "collaborator", "recent", "favorite",
    "permissions", "restrict", "dataType", "all",
))
# fmt: on


def read(call: Call, address: Address) -> web.StreamResponse:
    """Answer a GET of a collection or of one record."""
    if address.missing == "projects":
        raise answers.Refusal(404, "Unable to find the specified project")
    return _READERS[address.last](call, address)


def _matching(call: Call, rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Filter by parameters that are named like a column; % and * are wildcards."""
    wanted = {key.lower(): value for key, value in call.query.items() if key not in _PARAMETERS}
    kept = []
    for row in rows:
        lower = {key.lower(): value for key, value in row.items()}
        if all(_like(lower[key], value) for key, value in wanted.items() if key in lower):
            kept.append(row)
    return kept


def _like(value: str, pattern: str) -> bool:
    if "%" not in pattern and "*" not in pattern:
        return value == pattern

    return bool(re.fullmatch(re.escape(pattern).replace("%", ".*").replace(r"\*", ".*"), value))


def _with_paths(row: dict[str, str], columns: Iterable[str]) -> dict[str, str]:
    """Fill columns asked for by full path from the row's short names."""
    lower = {key.lower(): value for key, value in row.items()}
    for column in columns:
        if ":" in column and column not in row:
            row[column] = lower.get(column.partition("/")[2], "")
        elif column not in row:
            row[column] = lower.get(column.lower(), "")
    return row


# -- projects ------------------------------------------------------------------------------------------------

_PROJECT_COLUMNS = ("ID", "secondary_ID", "name", "description", "pi_firstname", "pi_lastname", "URI")


def _projects(call: Call, address: Address) -> web.StreamResponse:
    if not address.is_listing:
        assert address.project is not None
        record = {"ID": address.project.id, "secondary_ID": address.project.id, **address.project.fields}
        return answers.single(call.query, answers.item("xnat:projectData", record))
    right = "edit" if "edit" in call.query.get("permissions", call.query.get("restrict", "")) else "read"
    seen = [one for one in call.store.projects.values() if call.can(one.id, right)]
    rows = [_project_row(one) for one in seen]
    searched = any(
        name in call.query
        for name in ("accessible", "owner", "member", "collaborator", "recent", "permissions")
    )
    if searched:
        rows = [{key.lower(): value for key, value in row.items()} for row in rows]
        return answers.table(call.query, ("id", "name", "description", "secondary_id", "uri"), rows)
    columns = answers.chosen_columns(call.query, _PROJECT_COLUMNS)
    return answers.table(call.query, columns, [_with_paths(row, columns) for row in _matching(call, rows)])


def _project_row(project: store.StoredProject) -> dict[str, str]:
    row = {"secondary_ID": project.id, "insert_date": project.insert_date, **project.fields}
    return {**row, "ID": project.id, "URI": f"/data/projects/{project.id}"}


# -- subjects ------------------------------------------------------------------------------------------------

_SUBJECT_COLUMNS = ("ID", "project", "label", "insert_date", "insert_user", "URI")


def _subjects(call: Call, address: Address) -> web.StreamResponse:
    if not address.is_listing:
        if address.subject is None:
            raise answers.Refusal(404, "Unable to find the specified subject")
        return answers.single(call.query, _subject_item(call, address.subject))
    if address.project is not None:
        found = call.store.subjects_of(address.project.id)
    else:
        found = [one for one in call.store.subjects.values() if call.can(one.project, "read")]
    columns = answers.chosen_columns(call.query, _SUBJECT_COLUMNS)
    rows = _matching(call, (_subject_row(one) for one in found))
    return answers.table(call.query, columns, [_with_paths(row, columns) for row in rows])


def _subject_row(subject: store.StoredSubject) -> dict[str, str]:
    return {
        **subject.fields,
        "ID": subject.id,
        "project": subject.project,
        "label": subject.label,
        "insert_date": subject.insert_date,
        "insert_user": subject.insert_user,
        "xsiType": "xnat:subjectData",
        "URI": f"/data/subjects/{subject.id}",
    }


def _subject_item(call: Call, subject: store.StoredSubject) -> dict[str, Any]:
    record = {"ID": subject.id, "label": subject.label, "project": subject.project, **subject.fields}
    sessions = [_experiment_fields(one) for one in call.store.experiments_of(subject.project, subject.id)]
    children = []
    if sessions:
        items = [answers.item(xsi, values) for xsi, values in sessions]
        children.append({"field": "experiments/experiment", "items": items})
    return answers.item("xnat:subjectData", record, children)


# -- sessions ------------------------------------------------------------------------------------------------

_EXPERIMENT_COLUMNS = ("ID", "project", "date", "xsiType", "label", "insert_date", "URI")
_SITE_COLUMNS = (*_EXPERIMENT_COLUMNS, "subject_ID", "subject_label")


def _experiments(call: Call, address: Address) -> web.StreamResponse:
    if not address.is_listing:
        if address.experiment is None:
            raise answers.Refusal(404, "Unable to find the specified experiment.")
        return answers.single(call.query, _experiment_item(call, address.experiment))
    if address.missing == "subjects":
        raise answers.Refusal(404, "Unable to find the specified subject")
    if address.project is not None:
        found = call.store.experiments_of(address.project.id, address.subject.id if address.subject else "")
    else:
        found = [one for one in call.store.experiments.values() if call.can(one.project, "read")]
        if address.subject is not None:
            found = [one for one in found if one.subject == address.subject.id]
    types = [one for one in call.query.get("xsiType", "").split(",") if one]
    general = ("xnat:imageSessionData", "xnat:experimentData", "xnat:subjectAssessorData")
    if types and not any(one in general for one in types):
        found = [one for one in found if one.xsi in types]
    default = _EXPERIMENT_COLUMNS if address.project is not None else _SITE_COLUMNS
    root = types[0] if len(types) == 1 else "xnat:subjectAssessorData"
    columns = [*answers.chosen_columns(call.query, default), f"{root}/id".lower()]
    rows = _matching(call, (_experiment_row(call, one) for one in found))
    return answers.table(call.query, columns, [_with_paths(row, columns) for row in rows])


def _experiment_row(call: Call, experiment: store.StoredExperiment) -> dict[str, str]:
    subject = call.store.subjects.get(experiment.subject)
    return {
        **experiment.fields,
        "ID": experiment.id,
        "project": experiment.project,
        "date": experiment.fields.get("date", ""),
        "xsiType": experiment.xsi,
        "label": experiment.label,
        "insert_date": experiment.insert_date,
        "insert_user": experiment.insert_user,
        "subject_ID": experiment.subject,
        "subject_label": subject.label if subject else "",
        "URI": f"/data/experiments/{experiment.id}",
    }


def _experiment_fields(experiment: store.StoredExperiment) -> tuple[str, dict[str, str]]:
    record = {
        "ID": experiment.id,
        "label": experiment.label,
        "project": experiment.project,
        "subject_ID": experiment.subject,
        **experiment.fields,
    }
    return experiment.xsi, record


def _experiment_item(call: Call, experiment: store.StoredExperiment) -> dict[str, Any]:
    xsi, record = _experiment_fields(experiment)
    scans = [_scan_item(call, one) for one in experiment.scans.values()]
    children = [{"field": "scans/scan", "items": scans}] if scans else []
    resources = _resource_items(call, experiment.key)
    if resources:
        children.append({"field": "resources/resource", "items": resources})
    return answers.item(xsi, record, children)


# -- scans ---------------------------------------------------------------------------------------------------

_SCAN_COLUMNS = (
    "xnat_imagescandata_id",
    "ID",
    "type",
    "quality",
    "xsiType",
    "note",
    "series_description",
    "URI",
)


def _scans(call: Call, address: Address) -> web.StreamResponse:
    if address.experiment is None:
        raise answers.Refusal(404, "Unable to find the specified experiment.")
    if not address.is_listing:
        if address.scan is None:
            raise answers.Refusal(404, "Unable to find the specified scan.")
        return answers.single(call.query, _scan_item(call, address.scan))
    columns = answers.chosen_columns(call.query, _SCAN_COLUMNS)
    rows = _matching(call, (_scan_row(one) for one in address.experiment.scans.values()))
    types = [one for one in call.query.get("xsiType", "").split(",") if one]
    if types and types != ["xnat:imageScanData"]:
        rows = [row for row in rows if row["xsiType"] in types]
    return answers.table(call.query, columns, [_with_paths(row, columns) for row in rows])


def _scan_row(scan: store.StoredScan) -> dict[str, str]:
    return {
        **scan.fields,
        "xnat_imagescandata_id": str(scan.number),
        "ID": scan.id,
        "type": scan.fields.get("type", ""),
        "xsiType": scan.xsi,
        "URI": f"/data/experiments/{scan.experiment}/scans/{scan.id}",
    }


def _scan_item(call: Call, scan: store.StoredScan) -> dict[str, Any]:
    record = {"ID": scan.id, "image_session_ID": scan.experiment, "xnat_imagescandata_id": str(scan.number)}
    resources = _resource_items(call, scan.key)
    children = [{"field": "file", "items": resources}] if resources else []
    return answers.item(scan.xsi, {**record, **scan.fields}, children)


# -- resources -----------------------------------------------------------------------------------------------

_RESOURCE_COLUMNS = (
    "xnat_abstractresource_id",
    "label",
    "element_name",
    "category",
    "cat_id",
    "cat_desc",
    "file_count",
    "file_size",
    "tags",
    "content",
    "format",
)


def _resources(call: Call, address: Address) -> web.StreamResponse:
    if not address.is_listing:
        if address.resource is None:
            raise answers.Refusal(404, "Unable to find the specified resource")
        return web.Response(text=store.catalog_text(address.resource), content_type="text/xml")
    if address.missing:
        return answers.table(call.query, _RESOURCE_COLUMNS, [])
    rows = [_resource_row(address, one) for one in call.store.resources_of(address.holder()[0])]
    if call.flag("all") and address.experiment is not None and address.scan is None:
        for scan in address.experiment.scans.values():
            for one in call.store.resources_of(scan.key):
                rows.append({**_resource_row(address, one), "category": "scans", "cat_id": scan.id})
    return answers.table(call.query, _RESOURCE_COLUMNS, rows)


def _resource_row(address: Address, resource: store.StoredResource) -> dict[str, str]:
    at_scan = address.scan is not None
    return {
        "xnat_abstractresource_id": str(resource.number),
        "label": resource.label,
        "element_name": "xnat:resourceCatalog",
        "category": "scans" if at_scan else "resources",
        "cat_id": address.scan.id if address.scan is not None else "",
        "cat_desc": address.scan.fields.get("type", "") if address.scan is not None else "",
        "file_count": str(len(resource.entries)),
        "file_size": str(sum(one.size for one in resource.entries.values())),
        "tags": resource.tags,
        "content": resource.content,
        "format": resource.format,
    }


def _resource_items(call: Call, holder: str) -> list[dict[str, Any]]:
    found = []
    for one in call.store.resources_of(holder):
        record = {
            "xnat_abstractresource_id": str(one.number),
            "label": one.label,
            "format": one.format,
            "content": one.content,
            "URI": str(call.store.archive / one.folder / one.catalog),
            "file_count": str(len(one.entries)),
            "file_size": str(sum(entry.size for entry in one.entries.values())),
        }
        found.append(answers.item("xnat:resourceCatalog", record))
    return found


_READERS = {
    "projects": _projects,
    "subjects": _subjects,
    "experiments": _experiments,
    "scans": _scans,
    "resources": _resources,
}
