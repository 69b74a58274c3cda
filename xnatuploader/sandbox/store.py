"""What the sandbox holds: projects to files, kept in memory and in a state file beside the archive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from xnatuploader.sandbox import statefile


def now_text(moment: float | None = None) -> str:
    """Return a time as XNAT's tables show it."""
    stamp = time.time() if moment is None else moment
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stamp)) + f".{int(stamp * 10) % 10}"


@dataclass(slots=True)
class StoredProject:
    """A project; `code` is its prearchive code, -1 means the site's default."""

    id: str
    fields: dict[str, str] = field(default_factory=dict)
    code: int = -1
    insert_date: str = field(default_factory=now_text)

    @property
    def key(self) -> str:
        """Return the key under which its resources are held."""
        return f"project:{self.id}"


@dataclass(slots=True)
class StoredSubject:
    """A subject of one project."""

    id: str
    project: str
    label: str
    fields: dict[str, str] = field(default_factory=dict)
    insert_date: str = field(default_factory=now_text)
    insert_user: str = ""

    @property
    def key(self) -> str:
        """Return the key under which its resources are held."""
        return f"subject:{self.id}"


@dataclass(slots=True)
class StoredScan:
    """A scan of one session; `fields` has `type`, `UID`, `series_description` and the like."""

    id: str
    experiment: str
    xsi: str
    number: int
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the key under which its resources are held (by row number: scan IDs can change)."""
        return f"scan:{self.experiment}:{self.number}"


@dataclass(slots=True)
class StoredExperiment:
    """A session. Its files lie below `{archive}/{project}/arc001/{label}`."""

    id: str
    project: str
    subject: str
    label: str
    xsi: str
    fields: dict[str, str] = field(default_factory=dict)
    insert_date: str = field(default_factory=now_text)
    insert_user: str = ""
    scans: dict[str, StoredScan] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the key under which its resources are held."""
        return f"experiment:{self.id}"

    @property
    def folder(self) -> str:
        """Return its folder, relative to the archive."""
        return f"{self.project}/arc001/{self.label}"

    def scan_folder(self, scan: StoredScan) -> str:
        """Return the folder of one of its scans, relative to the archive."""
        return f"{self.folder}/SCANS/{scan.id}"


@dataclass(slots=True)
class CatalogEntry:
    """A file as a catalog knows it; `digest` is its MD5 in lower-case hex, or empty."""

    size: int
    digest: str
    format: str = ""
    content: str = ""
    tags: str = ""
    uid: str = ""
    """SOPInstanceUID, in catalogs that the session builder has written (prearchive) or that came in a XAR."""


@dataclass(slots=True)
class StoredResource:
    """A folder of files. `holder` is the key of what it belongs to, `folder` relative to the archive."""

    number: int
    holder: str
    label: str
    folder: str
    format: str = ""
    content: str = ""
    description: str = ""
    tags: str = ""
    catalog: str = ""
    """Name of the catalog file."""
    entries: dict[str, CatalogEntry] = field(default_factory=dict)
    generation: int = 0
    """Counts the writes of the catalog; a request that finds it changed since it began is refused."""
    present: bool = True


@dataclass(slots=True)
class PrearchiveSession:
    """A session in the prearchive; its folder is `{prearchive}/{project}/{timestamp}/{folder}`."""

    key: str
    project: str
    timestamp: str
    folder: str
    name: str
    subject: str
    tag: str
    """StudyInstanceUID."""
    status: str = "RECEIVING"
    autoarchive: str = ""
    lastmod: float = 0.0
    uploaded: float = 0.0
    scan_date: str = ""
    scan_time: str = ""
    prevent_anon: bool = False
    prevent_auto_commit: bool = False
    source: str = ""
    logs: list[str] = field(default_factory=list)
    built: bool = False
    xsi: str = ""
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """Path below the session folder -> what its header says."""


@dataclass(slots=True)
class AliasToken:
    """An alias token."""

    alias: str
    secret: str
    user: str
    expires: float
    number: int
    valid: bool = True


class Store:
    """Holds all records. Whoever changes one calls the `save_` method of its kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "archive"
        self.prearchive = folder / "prearchive"
        self.cache = folder / "cache"
        self.inbox = folder / "inbox"
        self.scratch = folder / "tmp"
        for one in (self.archive, self.prearchive, self.cache, self.inbox, self.scratch):
            one.mkdir(parents=True, exist_ok=True)
        self.projects: dict[str, StoredProject] = {}
        self.subjects: dict[str, StoredSubject] = {}
        self.experiments: dict[str, StoredExperiment] = {}
        self.resources: dict[int, StoredResource] = {}
        self.waiting: dict[str, PrearchiveSession] = {}
        self.tokens: dict[str, AliasToken] = {}
        self._subject_labels: dict[tuple[str, str], str] = {}
        self._experiment_labels: dict[tuple[str, str], str] = {}
        self._label_of: dict[str, tuple[str, str]] = {}
        self._held: dict[str, list[int]] = {}
        self._counters: dict[str, int] = {}
        self._dirty: set[int] = set()
        self._state_file = statefile.StateFile(folder / "state.jsonl")
        self._open()

    # -- state file ------------------------------------------------------------------------------------------

    def _open(self) -> None:
        for record in self._state_file.read():
            self._replay(record)
        self._state_file.rewrite(self._all_records())
        self._dirty.update(self.resources)

    def close(self) -> None:
        """Write the changed catalogs and close the state file."""
        self.write_catalogs()
        self._state_file.close()

    def _all_records(self) -> Iterator[list[Any]]:
        yield ["counters", "", self._counters]
        for project in self.projects.values():
            yield ["project", project.id, asdict(project)]
        for subject in self.subjects.values():
            yield ["subject", subject.id, asdict(subject)]
        for experiment in self.experiments.values():
            yield ["experiment", experiment.id, _experiment_record(experiment)]
            for scan in experiment.scans.values():
                yield ["scan", [experiment.id, scan.id], asdict(scan)]
        for resource in self.resources.values():
            yield ["resource", resource.number, _resource_record(resource)]
            yield ["entries", resource.number, {name: _packed(one) for name, one in resource.entries.items()}]
        for waiting in self.waiting.values():
            yield ["waiting", waiting.key, _waiting_record(waiting)]
            for path, facts in waiting.files.items():
                yield ["waiting-file", [waiting.key, path], facts]
        for token in self.tokens.values():
            yield ["token", token.alias, asdict(token)]

    def _replay(self, record: list[Any]) -> None:
        kind, key, value = record
        if kind == "counters":
            self._counters.update(value)
        elif kind == "entries":
            entries = self.resources[key].entries
            for name, packed in value.items():
                if packed is None:
                    entries.pop(name, None)
                else:
                    entries[name] = CatalogEntry(*packed)
        elif value is None:
            self._forget(kind, key)
        else:
            self._remember(kind, key, value)

    def _remember(self, kind: str, key: Any, value: dict[str, Any]) -> None:
        if kind == "project":
            self.projects[key] = StoredProject(**value)
        elif kind == "subject":
            self._index_subject(StoredSubject(**value))
        elif kind == "experiment":
            old = self.experiments.get(key)
            self._index_experiment(StoredExperiment(**value, scans=old.scans if old else {}))
        elif kind == "scan":
            self.experiments[key[0]].scans[key[1]] = StoredScan(**value)
        elif kind == "resource":
            known = self.resources.get(key)
            self._index_resource(StoredResource(**value, entries=known.entries if known else {}))
        elif kind == "waiting":
            before = self.waiting.get(key)
            self.waiting[key] = PrearchiveSession(**value, files=before.files if before else {})
        elif kind == "waiting-file":
            self.waiting[key[0]].files[key[1]] = value
        elif kind == "token":
            self.tokens[key] = AliasToken(**value)

    def _forget(self, kind: str, key: Any) -> None:
        if kind == "project":
            self.projects.pop(key, None)
        elif kind == "subject" and key in self.subjects:
            del self.subjects[key]
            self._drop_label(self._subject_labels, key)
        elif kind == "experiment" and key in self.experiments:
            del self.experiments[key]
            self._drop_label(self._experiment_labels, key)
        elif kind == "scan":
            self.experiments[key[0]].scans.pop(key[1], None)
        elif kind == "resource" and key in self.resources:
            resource = self.resources.pop(key)
            resource.present = False
            self._held[resource.holder].remove(key)
        elif kind == "waiting":
            self.waiting.pop(key, None)

    def _index_subject(self, subject: StoredSubject) -> None:
        self._drop_label(self._subject_labels, subject.id)
        self.subjects[subject.id] = subject
        self._subject_labels[(subject.project, subject.label)] = subject.id
        self._label_of[subject.id] = (subject.project, subject.label)

    def _index_experiment(self, experiment: StoredExperiment) -> None:
        self._drop_label(self._experiment_labels, experiment.id)
        self.experiments[experiment.id] = experiment
        self._experiment_labels[(experiment.project, experiment.label)] = experiment.id
        self._label_of[experiment.id] = (experiment.project, experiment.label)

    def _drop_label(self, labels: dict[tuple[str, str], str], key: str) -> None:
        known = self._label_of.pop(key, None)
        if known is not None:
            labels.pop(known, None)

    def _index_resource(self, resource: StoredResource) -> None:
        self.resources[resource.number] = resource
        held = self._held.setdefault(resource.holder, [])
        if resource.number not in held:
            held.append(resource.number)

    # -- changes ---------------------------------------------------------------------------------------------

    def next_number(self, name: str) -> int:
        """Return the next number of a counter: `subject`, `experiment`, `row` (numbers of resources and scans)."""
        number = self._counters.get(name, 0) + 1
        self._counters[name] = number
        self._state_file.append(["counters", "", {name: number}])
        return number

    def save_project(self, project: StoredProject) -> None:
        """Save a project."""
        self.projects[project.id] = project
        self._state_file.append(["project", project.id, asdict(project)])

    def save_subject(self, subject: StoredSubject) -> None:
        """Save a subject, under its present label."""
        self._index_subject(subject)
        self._state_file.append(["subject", subject.id, asdict(subject)])

    def save_experiment(self, experiment: StoredExperiment) -> None:
        """Save a session's own fields (its scans have `save_scan`)."""
        self._index_experiment(experiment)
        self._state_file.append(["experiment", experiment.id, _experiment_record(experiment)])

    def save_scan(self, scan: StoredScan) -> None:
        """Save a scan."""
        self.experiments[scan.experiment].scans[scan.id] = scan
        self._state_file.append(["scan", [scan.experiment, scan.id], asdict(scan)])

    def save_resource(self, resource: StoredResource) -> None:
        """Save a resource's own fields (its entries have `save_entries`)."""
        self._index_resource(resource)
        self._state_file.append(["resource", resource.number, _resource_record(resource)])
        self._dirty.add(resource.number)

    def save_entries(self, resource: StoredResource, changed: Mapping[str, CatalogEntry | None]) -> None:
        """Write the catalog: add or replace the entries, delete those that are None."""
        for name, entry in changed.items():
            if entry is None:
                resource.entries.pop(name, None)
            else:
                resource.entries[name] = entry
        resource.generation += 1
        packed = {name: None if one is None else _packed(one) for name, one in changed.items()}
        self._state_file.append(["entries", resource.number, packed])
        self._dirty.add(resource.number)

    def save_waiting(self, waiting: PrearchiveSession) -> None:
        """Save a session of the prearchive (its files have `save_waiting_file`)."""
        self.waiting[waiting.key] = waiting
        self._state_file.append(["waiting", waiting.key, _waiting_record(waiting)])

    def save_waiting_file(self, waiting: PrearchiveSession, path: str, facts: Mapping[str, str]) -> None:
        """Save a file of a session in the prearchive, and what its header says."""
        waiting.files[path] = dict(facts)
        self._state_file.append(["waiting-file", [waiting.key, path], waiting.files[path]])

    def save_token(self, token: AliasToken) -> None:
        """Save an alias token."""
        self.tokens[token.alias] = token
        self._state_file.append(["token", token.alias, asdict(token)])

    def delete(self, kind: str, key: Any) -> None:
        """Delete a `project`, `subject`, `experiment`, `scan` (experiment, scan), `resource`, `waiting`."""
        if kind == "scan":
            key = list(key)
        self._forget(kind, key)
        self._state_file.append([kind, key, None])

    # -- new records -----------------------------------------------------------------------------------------

    def new_subject(self, project: str, label: str, fields: dict[str, str], user: str = "") -> StoredSubject:
        """Make a subject and save it."""
        number = f"XNAT_S{self.next_number('subject'):05d}"
        subject = StoredSubject(number, project, label, fields, insert_user=user)
        self.save_subject(subject)
        return subject

    def new_scan(self, experiment: StoredExperiment, scan_id: str, xsi: str) -> StoredScan:
        """Make a scan of usable quality, without saving it yet."""
        return StoredScan(scan_id, experiment.id, xsi, self.next_number("row"), {"quality": "usable"})

    def new_resource(
        self, holder: str, label: str, folder: str, format: str = "", content: str = "", catalog: str = ""
    ) -> StoredResource:
        """Make an empty resource and save it."""
        number = self.next_number("row")
        catalog = catalog or f"{label}_catalog.xml"
        resource = StoredResource(number, holder, label, folder, format, content, catalog=catalog)
        self.save_resource(resource)
        return resource

    # -- looking up ------------------------------------------------------------------------------------------

    def subject(self, project: str, name: str) -> StoredSubject | None:
        """Find a project's subject by label or ID, exact in case."""
        found = self.subjects.get(self._subject_labels.get((project, name), name))
        return found if found is not None and found.project == project else None

    def experiment(self, project: str, name: str) -> StoredExperiment | None:
        """Find a project's session by label or ID, exact in case."""
        found = self.experiments.get(self._experiment_labels.get((project, name), name))
        return found if found is not None and found.project == project else None

    def subjects_of(self, project: str) -> list[StoredSubject]:
        """Return a project's subjects in the order of creation."""
        return [one for one in self.subjects.values() if one.project == project]

    def experiments_of(self, project: str, subject: str = "") -> list[StoredExperiment]:
        """Return a project's sessions, or those of one of its subjects (by ID)."""
        return [
            one
            for one in self.experiments.values()
            if one.project == project and (not subject or one.subject == subject)
        ]

    def resources_of(self, holder: str) -> list[StoredResource]:
        """Return the resources of a holder's key (see `scan_key` and its like)."""
        return [self.resources[number] for number in self._held.get(holder, [])]

    def resource(self, holder: str, label: str) -> StoredResource | None:
        """Find the resource of that label among those of a holder's key."""
        return next((one for one in self.resources_of(holder) if one.label == label), None)

    # -- catalogs on disk ------------------------------------------------------------------------------------

    def write_catalogs(self) -> int:
        """Write the catalog files of resources that changed since the last call; return how many."""
        dirty, self._dirty = self._dirty, set()
        written = 0
        for number in dirty:
            resource = self.resources.get(number)
            if resource is None:
                continue
            target = self.archive / resource.folder / resource.catalog
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(catalog_text(resource), encoding="utf-8")
            written += 1
        return written


def catalog_text(resource: StoredResource) -> str:
    """Return a resource's catalog as XNAT writes it, an XML document."""
    kind = "DCMCatalog" if any(one.uid for one in resource.entries.values()) else "Catalog"
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<cat:{kind} ID={_quoted(resource.label)} xmlns:cat="http://nrg.wustl.edu/catalog"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">',
        "<cat:entries>",
    ]
    for name, entry in resource.entries.items():
        more = f' digest="{entry.digest}"' if entry.digest else ""
        if entry.uid:
            more += f' UID={_quoted(entry.uid)} xsi:type="cat:dcmEntry"'
        lines.append(
            f"<cat:entry URI={_quoted(name)} name={_quoted(name.rsplit('/', 1)[-1])} ID={_quoted(name)}"
            f" format={_quoted(entry.format)} content={_quoted(entry.content)}{more}>"
            f'<cat:metaFields><cat:metaField name="SIZE">{entry.size}</cat:metaField></cat:metaFields>'
            "</cat:entry>"
        )
    lines += ["</cat:entries>", f"</cat:{kind}>", ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return '"' + escape(text, {'"': "&quot;"}) + '"'


def _packed(entry: CatalogEntry) -> list[Any]:
    return [entry.size, entry.digest, entry.format, entry.content, entry.tags, entry.uid]


def _experiment_record(experiment: StoredExperiment) -> dict[str, Any]:
    return {name: getattr(experiment, name) for name in StoredExperiment.__slots__ if name != "scans"}


def _waiting_record(waiting: PrearchiveSession) -> dict[str, Any]:
    return {name: getattr(waiting, name) for name in PrearchiveSession.__slots__ if name != "files"}


def _resource_record(resource: StoredResource) -> dict[str, Any]:
    skipped = ("entries", "generation", "present")
    return {name: getattr(resource, name) for name in StoredResource.__slots__ if name not in skipped}
