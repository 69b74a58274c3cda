"""The prearchive: sessions on their way into the archive, received and built."""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xnatuploader.sandbox import answers, dicomfacts, site_script, store
from xnatuploader.sandbox.calls import Actor
from xnatuploader.sandbox.dicomfacts import Facts

UNASSIGNED = "Unassigned"
RESTING = ("RECEIVING", "READY", "CONFLICT", "ERROR")
"""States in which a session takes more files."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an import was told to go; empty means that the headers decide."""

    project: str = ""
    subject: str = ""
    session: str = ""
    autoarchive: str = ""
    """`true`, `false`, or empty: not said."""
    rename: bool = False
    prevent_anon: bool = False
    """Whether the sender anonymised the files already, so that the site does not."""
    prevent_auto_commit: bool = False
    source: str = ""
    fresh: bool = False
    """Whether a new entry is begun rather than an old one joined (SI)."""
    key: str = ""
    """`{project}/{timestamp}/{folder}` of an entry to be added to."""


def folder_of(actor: Actor, waiting: store.PrearchiveSession) -> Path:
    """Return the folder of a session in the prearchive."""
    return actor.store.prearchive / waiting.project / waiting.timestamp / waiting.folder


def uri_of(waiting: store.PrearchiveSession) -> str:
    """Return a session's URL as tables show it: without `/data`."""
    return f"/prearchive/projects/{waiting.project}/{waiting.timestamp}/{waiting.folder}"


def find(actor: Actor, project: str, timestamp: str, folder: str) -> store.PrearchiveSession:
    """Find an entry by its URL's parts; one that is not there, or not for this user, is a Refusal 404."""
    found = actor.store.waiting.get(f"{project}/{timestamp}/{folder}")
    if found is None or not may_see(actor, found):
        raise answers.Refusal(404, "Unable to find the specified prearchive session")
    return found


def may_see(actor: Actor, waiting: store.PrearchiveSession) -> bool:
    """Tell whether the user may see an entry: editors of the project; for Unassigned, administrators and owners."""
    if waiting.project == UNASSIGNED:
        return actor.user.role in ("admin", "owner")
    return actor.can(waiting.project, "edit")


# -- receiving -----------------------------------------------------------------------------------------------


def receive(actor: Actor, source: Path, name: str, target: Target) -> store.PrearchiveSession:
    """Move one DICOM object from `source` into the prearchive; anything else is a Refusal 400."""
    try:
        facts = dicomfacts.read(source)
    except ValueError as error:
        raise answers.Refusal(400, str(error)) from error
    if not facts.get("SOPClassUID") or not facts.get("SOPInstanceUID") or not facts.get("StudyInstanceUID"):
        raise answers.Refusal(400, f"unable to read DICOM object {name}")
    waiting = _entry_for(actor, facts, target)
    path = _path_for(waiting, facts, name.rsplit("/", 1)[-1], target.rename)
    final = folder_of(actor, waiting) / path
    final.parent.mkdir(parents=True, exist_ok=True)
    source.replace(final)
    if actor.settings.anonymize_imports and not waiting.prevent_anon:
        facts = _anonymized(final, facts, waiting)
    actor.store.save_waiting_file(waiting, path, facts)
    waiting.lastmod = time.time()
    if waiting.status != "RECEIVING" or waiting.built:
        waiting.status, waiting.built = "RECEIVING", False
        actor.store.save_waiting(waiting)
    return waiting


def _entry_for(actor: Actor, facts: Facts, target: Target) -> store.PrearchiveSession:
    project = _project_for(actor, facts, target)
    subject = target.subject or dicomfacts.assigned(facts, "Subject") or facts.get("PatientName", "")
    label = (
        target.session
        or dicomfacts.assigned(facts, "Session")
        or facts.get("PatientID", "")
        or "dicom_upload"
    )
    study, label = facts["StudyInstanceUID"], dicomfacts.clean(label)
    for waiting in actor.store.waiting.values():
        named = target.key in ("", waiting.key)
        same = (waiting.project, waiting.tag, waiting.name) == (project, study, label)
        if named and same and waiting.status in RESTING and not target.fresh:
            return waiting
    return _new_entry(actor, project, subject, label, facts, target)


def _project_for(actor: Actor, facts: Facts, target: Target) -> str:
    for name in (target.project, *dicomfacts.projects_named(facts)):
        if name in actor.store.projects and actor.can(name, "edit"):
            return name
    return UNASSIGNED


def _new_entry(
    actor: Actor, project: str, subject: str, label: str, facts: Facts, target: Target
) -> store.PrearchiveSession:
    moment = time.time()
    stamp = datetime.datetime.now()
    while f"{project}/{_stamp(stamp)}/{label}" in actor.store.waiting:
        stamp += datetime.timedelta(milliseconds=1)
    date = facts.get("StudyDate", "")
    waiting = store.PrearchiveSession(
        key=f"{project}/{_stamp(stamp)}/{label}",
        project=project,
        timestamp=_stamp(stamp),
        folder=label,
        name=label,
        subject=dicomfacts.clean(subject),
        tag=facts["StudyInstanceUID"],
        autoarchive=_autoarchive(actor, project, facts),
        lastmod=moment,
        uploaded=moment,
        scan_date=f"{date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 else "",
        scan_time=facts.get("StudyTime", "")[:6],
        prevent_anon=target.prevent_anon,
        prevent_auto_commit=target.prevent_auto_commit,
        source=target.source,
    )
    actor.store.save_waiting(waiting)
    return waiting


def _autoarchive(actor: Actor, project: str, facts: Facts) -> str:
    """Decide as PrearcDatabase.eitherGetOrCreateSession does: by the header's comments, else by the project.

    What a request says (`AA`) counts only where it has the session archived there and then.
    """
    said = dicomfacts.assigned(facts, "AA").lower()
    if said in ("true", "false"):
        return said
    return "true" if actor.prearchive_code(project) >= 4 else ""


def is_automatic(actor: Actor, waiting: store.PrearchiveSession) -> bool:
    """Tell whether an entry is archived without anybody's asking once it is built (PrearcSession.isAutoArchive)."""
    if waiting.project == UNASSIGNED or waiting.autoarchive == "false":
        return False
    return waiting.autoarchive == "true" or actor.prearchive_code(waiting.project) >= 4


def is_held(waiting: store.PrearchiveSession) -> bool:
    """Tell whether the session builder leaves an entry alone, unbuilt, for ever (SessionXMLRebuilder.runTask)."""
    return waiting.prevent_auto_commit or waiting.source == "uploader"


def _stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y%m%d_%H%M%S") + f"{moment.microsecond // 1000:03d}"


def _path_for(waiting: store.PrearchiveSession, facts: Facts, name: str, rename: bool) -> str:
    base = f"SCANS/{dicomfacts.scan_folder(facts)}/{dicomfacts.resource_label(facts)}"
    template = f"{base}/{dicomfacts.template_name(facts)}"
    if rename:
        return template
    taken = waiting.files.get(f"{base}/{name}")
    other = taken is not None and taken.get("SOPInstanceUID") != facts.get("SOPInstanceUID")
    return template if other else f"{base}/{name}"


def _anonymized(path: Path, facts: dict[str, str], waiting: store.PrearchiveSession) -> dict[str, str]:
    """Apply the site's script to a file that arrived; return what its header says then."""
    changed = site_script.changes(waiting.project, waiting.subject, waiting.folder)
    try:
        site_script.apply(path, changed)
    except ValueError as error:
        path.unlink()
        raise answers.Refusal(400, str(error)) from error
    return {**facts, **changed}


# -- building ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BuiltScan:
    """A scan of a built session: its files by path below the session folder."""

    id: str
    xsi: str
    files: Mapping[str, Facts]

    def by_label(self) -> dict[str, dict[str, Facts]]:
        """Return its files by the resource that they belong into."""
        found: dict[str, dict[str, Facts]] = {}
        for path, facts in self.files.items():
            found.setdefault(dicomfacts.resource_label(facts), {})[path] = facts
        return found


def scans_of(waiting: store.PrearchiveSession) -> list[BuiltScan]:
    """Return the scans that the headers of an entry's files make."""
    series = dicomfacts.by_series(waiting.files)
    ids = dicomfacts.scan_ids(series)
    return [
        BuiltScan(ids[uid], dicomfacts.scan_type(list(files.values())), files)
        for uid, files in series.items()
    ]


def build(actor: Actor, waiting: store.PrearchiveSession) -> None:
    """Make the session document; the entry is READY then."""
    if not waiting.files:
        set_status(actor, waiting, "ERROR", "The session holds no files")
        raise answers.Refusal(500, "The session holds no files")
    waiting.xsi = dicomfacts.session_type(list(waiting.files.values()))
    waiting.built = True
    document = folder_of(actor, waiting).with_suffix(".xml")
    record = {"label": waiting.name, "project": waiting.project, "subject_ID": waiting.subject}
    fields = dicomfacts.session_fields(list(waiting.files.values()))
    text = answers.record_xml(answers.item(waiting.xsi, {**record, **fields}))
    document.write_text(text, encoding="utf-8")
    set_status(actor, waiting, "READY")


def set_status(actor: Actor, waiting: store.PrearchiveSession, status: str, reason: str = "") -> None:
    """Set an entry's status, and write the reason into its log."""
    waiting.status = status
    if reason:
        waiting.logs.append(f"{store.now_text()}: {reason}")
    actor.store.save_waiting(waiting)


def remove(actor: Actor, waiting: store.PrearchiveSession) -> None:
    """Remove an entry and its files from the prearchive."""
    actor.store.delete("waiting", waiting.key)
    folder = folder_of(actor, waiting)
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".xml").unlink(missing_ok=True)
    try:
        folder.parent.rmdir()
    except OSError:
        pass  # another session has the same time stamp


def move(actor: Actor, waiting: store.PrearchiveSession, project: str) -> store.PrearchiveSession:
    """Move an entry to another project."""
    if project not in actor.store.projects or not actor.can(project, "edit"):
        raise answers.Refusal(403, f"Unable to move the session to project {project}")
    before = folder_of(actor, waiting)
    actor.store.delete("waiting", waiting.key)
    files, waiting.files = waiting.files, {}
    waiting.project = project
    waiting.key = f"{project}/{waiting.timestamp}/{waiting.folder}"
    after = folder_of(actor, waiting)
    after.parent.mkdir(parents=True, exist_ok=True)
    before.rename(after)
    if before.with_suffix(".xml").exists():
        before.with_suffix(".xml").rename(after.with_suffix(".xml"))
    actor.store.save_waiting(waiting)
    for path, facts in files.items():
        actor.store.save_waiting_file(waiting, path, facts)
    return waiting
