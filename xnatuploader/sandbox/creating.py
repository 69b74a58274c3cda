"""PUT of subjects, sessions and scans: what it makes and changes, with XNAT's status codes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from xnatuploader.sandbox import addresses, answers, fields, headers, store
from xnatuploader.sandbox.addresses import Address
from xnatuploader.sandbox.calls import Actor, Call


def _check_label(actor: Actor, label: str) -> None:
    if not addresses.VALID_LABEL.fullmatch(label):
        raise answers.Refusal(actor.settings.bad_label_status, "")


def _has_new_label(call: Call) -> bool:
    return "label" in call.query


async def put_subject(call: Call, address: Address) -> web.StreamResponse:
    """Create (201) or change (200) a subject; the body is its ID, or empty where `label=` was given."""
    if address.project is None:
        raise answers.Refusal(422, "Submitted subject record must include the project attribute.")
    if not call.can(address.project.id, "edit"):
        raise answers.Refusal(403, "Specified user account has insufficient create privileges for subjects.")
    given = fields.given("subject", "xnat:subjectData", call.query)
    existing = address.subject
    if existing is None:
        subject = new_subject(call, address.project, address.names["subjects"], given)
        return answers.text(subject.id, 201)
    existing.fields.update(given)
    if _has_new_label(call):
        _rename_subject(call, existing, call.query["label"])
    call.store.save_subject(existing)
    return answers.text("" if _has_new_label(call) else existing.id)


def new_subject(
    actor: Actor, project: store.StoredProject, label: str, given: dict[str, str]
) -> store.StoredSubject:
    """Make a subject; a label that XNAT cannot hold is refused."""
    _check_label(actor, label)
    return actor.store.new_subject(project.id, label, given, actor.user.name)


def _rename_subject(call: Call, subject: store.StoredSubject, label: str) -> None:
    other = call.store.subject(subject.project, label)
    if other is not None and other is not subject:
        raise answers.Refusal(409, "The label is in use already")
    _check_label(call, label)
    subject.label = label


async def put_experiment(call: Call, address: Address) -> web.StreamResponse:
    """Create (201) or change (200) a session. A PUT below another subject moves the session there."""
    existing = address.experiment
    project = address.project or (call.store.projects.get(existing.project) if existing else None)
    if project is None:
        raise answers.Refusal(404, "Unable to identify project")
    if not call.can(project.id, "edit"):
        raise answers.Refusal(403, "Specified user account has insufficient create privileges for sessions.")
    xsi = call.query.get("xsiType", "")
    if xsi and xsi not in fields.KNOWN_SESSIONS:
        raise answers.Refusal(400, f"Unknown data type: {xsi}")
    if existing is None and not xsi:
        raise answers.Refusal(417, "Need PUT Contents")
    given = fields.given("experiment", xsi or (existing.xsi if existing else ""), call.query)
    subject = _subject_of(call, address, project, existing)
    status = 200
    if existing is None:
        existing = new_experiment(call, project, subject, address.names["experiments"], xsi, given)
        status = 201
    else:
        if not _fills(call, address):
            given = {}
        existing.subject = subject.id
        if address.served_by == "SubjAssessmentResource":
            _unset_visit(existing, given)
        existing.fields.update(given)
        if _has_new_label(call):
            await _rename_experiment(call, existing, call.query["label"])
        call.store.save_experiment(existing)
    await _run_triggers(call, existing)
    return answers.text("" if _has_new_label(call) and status == 200 else existing.id, status)


def _fills(call: Call, address: Address) -> bool:
    """Tell whether a PUT on an existing session stores the fields that it names; if not, it is 200 all the same.

    XNAT takes the type from `xsiType` or from a full path (`xnat:ctSessionData/note`); with short names alone
    there is nothing to fill, and at `/data/experiments/ID` never (seen on 1.9.2.1).
    """
    typed = "xsiType" in call.query or any(":" in key for key in call.query)
    return typed and address.names.keys() != {"experiments"}


def _unset_visit(existing: store.StoredExperiment, given: Mapping[str, str]) -> None:
    """Clear visit and protocol unless one of them is given for the first time (unsetOldVisitAndSubtype)."""
    if not any(name in given and name not in existing.fields for name in ("visit", "protocol")):
        existing.fields.pop("visit", None)
        existing.fields.pop("protocol", None)


def _subject_of(
    call: Call, address: Address, project: store.StoredProject, existing: store.StoredExperiment | None
) -> store.StoredSubject:
    """Find the subject in the URL or in `subject_ID`, creating it where it is missing."""
    if address.subject is not None:
        return address.subject
    name = address.names.get("subjects") or call.query.get("subject_ID", "")
    if name:
        return call.store.subject(project.id, name) or new_subject(call, project, name, {})
    if existing is not None:
        return call.store.subjects[existing.subject]
    raise answers.Refusal(422, "Submitted session record must include the subject.")


def new_experiment(
    actor: Actor,
    project: store.StoredProject,
    subject: store.StoredSubject,
    label: str,
    xsi: str,
    given: dict[str, str],
) -> store.StoredExperiment:
    """Make a session; a label that XNAT cannot hold is refused."""
    _check_label(actor, label)
    experiment = store.StoredExperiment(
        id=f"XNAT_E{actor.store.next_number('experiment'):05d}",
        project=project.id,
        subject=subject.id,
        label=label,
        xsi=xsi,
        fields=given,
        insert_user=actor.user.name,
    )
    actor.store.save_experiment(experiment)
    return experiment


async def _rename_experiment(call: Call, experiment: store.StoredExperiment, label: str) -> None:
    """Give a session another label; its folder moves along."""
    if label == experiment.label:
        return
    if call.store.experiment(experiment.project, label) is not None:
        raise answers.Refusal(409, "Conflict: Duplicate experiment label")
    _check_label(call, label)
    before = experiment.folder
    experiment.label = label
    after = experiment.folder
    source, target = call.store.archive / before, call.store.archive / after
    if source.exists():
        await asyncio.to_thread(source.rename, target)
    held = [experiment.key, *(one.key for one in experiment.scans.values())]
    for key in held:
        for resource in call.store.resources_of(key):
            resource.folder = after + resource.folder[len(before) :]
            call.store.save_resource(resource)


async def _run_triggers(call: Call, experiment: store.StoredExperiment) -> None:
    """Do what `pullDataFromHeaders` and `fixScanTypes` ask for; pipelines only get their line in the history."""
    action = call.query.get("action", "")
    if call.flag("fixScanTypes") or action == "fixScanTypes":
        headers.fix_scan_types(call, experiment)
    if call.flag("pullDataFromHeaders") or action == "pullDataFromHeaders":
        await headers.pull(call, experiment)
    if call.flag("triggerPipelines") or action == "triggerPipelines":
        headers.add_event(call, experiment, "AutoRun")  # XNAT's pipeline xnat_tools/AutoRun.xml


async def put_scan(call: Call, address: Address) -> web.StreamResponse:
    """Create or change a scan: always 200 with an empty body."""
    if address.experiment is None:
        raise answers.Refusal(404, "Unable to identify image session")
    experiment = address.experiment
    if not call.can(experiment.project, "edit"):
        raise answers.Refusal(
            403, "Specified user account has insufficient edit privileges for this session."
        )
    xsi = call.query.get("xsiType", "")
    if xsi and xsi not in fields.KNOWN_SCANS:
        raise answers.Refusal(400, f"Not a type of scan: {xsi}")
    name = address.names["scans"]
    existing = experiment.scans.get(name)
    given = fields.given("scan", xsi or (existing.xsi if existing else ""), call.query)
    scan_id = given.pop("ID", name)
    existing = experiment.scans.get(scan_id, existing)
    if existing is None:
        if not xsi:
            raise answers.Refusal(417, "Need PUT Contents")
        if not addresses.VALID_LABEL.fullmatch(scan_id):
            raise answers.Refusal(call.settings.bad_label_status, "")
        existing = call.store.new_scan(experiment, scan_id, xsi)
    elif xsi and xsi != existing.xsi:
        raise answers.Refusal(409, "Specified xsiType differs from existing xsiType")
    existing.fields.update(given)
    call.store.save_scan(existing)
    if call.flag("pullDataFromHeaders"):
        await headers.pull(call, experiment, only=existing.id)
    return answers.text()
