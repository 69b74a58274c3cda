"""What a URL of XNAT's hierarchy points at: from projects down to a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_plus

from xnatuploader.sandbox import routing, store, tables
from xnatuploader.sandbox.world import Call

COLLECTIONS = ("projects", "subjects", "experiments", "scans", "resources", "files")
VALID_LABEL = re.compile(r"[A-Za-z0-9_-]+")
"""All that XNAT takes in labels and IDs."""


@dataclass(slots=True)
class Place:
    """A place in the hierarchy: the names in the URL, and the records found for them."""

    names: dict[str, str] = field(default_factory=dict)
    """Collection -> name, decoded."""
    last: str = ""
    """The last collection named in the URL."""
    is_listing: bool = False
    """Whether the URL ends at the collection itself."""
    file: str = ""
    """Path behind `/files/`, decoded by XNAT's own rule."""
    served_by: str = ""
    """Name of the class of XNAT that answers."""
    rest: str = ""
    """What the address has behind its template, decoded, as `prearchive_code/4`; XNAT mostly ignores it."""
    project: store.StoredProject | None = None
    subject: store.StoredSubject | None = None
    experiment: store.StoredExperiment | None = None
    scan: store.StoredScan | None = None
    scans: list[store.StoredScan] = field(default_factory=list)
    """Every scan that the URL means: `ALL` is all, a type may be that of several."""
    resource: store.StoredResource | None = None
    missing: str = ""
    """The first collection whose name was not found."""

    @property
    def project_id(self) -> str:
        """Return the ID of the project that rules the rights here, or empty."""
        if self.project is not None:
            return self.project.id
        if self.experiment is not None:
            return self.experiment.project
        return self.subject.project if self.subject is not None else ""

    def holder(self) -> tuple[str, str]:
        """Return key and folder (relative to the archive) of what resources here belong to."""
        if self.scan is not None and self.experiment is not None:
            folder = f"{store.session_folder(self.experiment)}/SCANS/{self.scan.id}"
            return store.scan_key(self.scan), folder
        if self.experiment is not None:
            return store.experiment_key(self.experiment), f"{store.session_folder(self.experiment)}/RESOURCES"
        if self.subject is not None:
            return store.subject_key(self.subject), f"{self.subject.project}/subjects/{self.subject.label}"
        if self.project is not None:
            return store.project_key(self.project), f"{self.project.id}/resources"
        raise tables.Refusal(404, "Unable to identify the parent of this resource")

    def prefix(self) -> str:
        """Return the URL of the session, subject or project as file listings show it, the way one asked."""
        parts = ["/data"]
        if "projects" in self.names and self.project is not None:
            parts.append(f"projects/{self.project.id}")
        if "subjects" in self.names and self.subject is not None:
            parts.append(f"subjects/{self.subject.id}")
        if self.experiment is not None:
            parts.append(f"experiments/{self.experiment.id}")
        return "/".join(parts)


def addressed(found: routing.Match) -> Place:
    """Read an address by its template; one of a part of XNAT that the sandbox does not have is a Refusal 404."""
    place = Place(served_by=found.route.served_by)
    for part, given in zip(found.route.template, found.segments, strict=True):
        if part.startswith("{"):
            place.names[place.last] = unquote(given)
            place.is_listing = False
        elif part not in COLLECTIONS:
            raise tables.Refusal(404, f"The sandbox has no {part}")
        else:
            place.last, place.is_listing = part, part != "files"
    left_over = "/".join(found.rest)
    if place.last == "files":
        place.is_listing = not left_over
        place.file = _file_name(left_over)
    else:
        place.rest = unquote(left_over).strip("/")
    return place


def parse(segments: Sequence[str]) -> Place:
    """Read a URI as XNAT's services take it (URIManager); one of another shape is a Refusal 400."""
    place = Place()
    pairs = [(segments[at], unquote(segments[at + 1])) for at in range(0, len(segments) - 1, 2)]
    for collection, name in pairs:
        if collection not in COLLECTIONS or collection in place.names:
            raise tables.Refusal(400, f"Invalid Resource URI: {'/'.join(segments)}")
        place.names[collection], place.last = name, collection
    return place


def _file_name(raw: str) -> str:
    """Decode as XNAT does: only where %20 or %2B stands in the name, then fully."""
    if "%20" in raw or "%2B" in raw or "%2b" in raw:
        return unquote_plus(raw)
    return raw


def resolve(call: Call, place: Place) -> Place:
    """Find the records. An unreadable project is as good as missing; a missing one is noted, not refused."""
    names, kept = place.names, call.store
    if "projects" in names:
        place.project = kept.projects.get(names["projects"])
        if place.project is not None and not call.can(place.project.id, "read"):
            place.project = None
        if place.project is None:
            place.missing = "projects"
            return place
    if "subjects" in names and not _find_subject(call, place, names["subjects"]):
        place.missing = "subjects"
    if "experiments" in names and not _find_experiment(call, place, names["experiments"]):
        place.missing = place.missing or "experiments"
    if "scans" in names and not _find_scan(place, names["scans"]):
        place.missing = place.missing or "scans"
    if "resources" in names and not _find_resource(call, place, names["resources"]):
        place.missing = place.missing or "resources"
    return place


def _find_subject(call: Call, place: Place, name: str) -> bool:
    if place.project is not None:
        place.subject = call.store.subject(place.project.id, name)
    else:
        found = call.store.subjects.get(name)
        place.subject = found if found is not None and call.can(found.project, "read") else None
    return place.subject is not None


def _find_experiment(call: Call, place: Place, name: str) -> bool:
    if place.project is not None:
        place.experiment = call.store.experiment(place.project.id, name)
    else:
        found = call.store.experiments.get(name)
        place.experiment = found if found is not None and call.can(found.project, "read") else None
    return place.experiment is not None


def scans_named(experiment: store.StoredExperiment, name: str) -> list[store.StoredScan]:
    """Return the scans whose ID or type is one of the comma-separated names; all for `ALL` and `*`."""
    if name in ("ALL", "*"):
        return list(experiment.scans.values())
    wanted = {one.replace("[SLASH]", "/") for one in name.split(",")}
    return [
        scan
        for scan in experiment.scans.values()
        if scan.id in wanted or scan.fields.get("type", "") in wanted
    ]


def _find_scan(place: Place, name: str) -> bool:
    if place.experiment is None:
        return False
    if place.last == "scans":  # the scan itself is addressed by its ID (ScanResource.queryForScan)
        place.scan = place.experiment.scans.get(name)
        return place.scan is not None
    place.scans = scans_named(place.experiment, name)
    place.scan = place.scans[0] if len(place.scans) == 1 else None
    return place.scan is not None


def _find_resource(call: Call, place: Place, name: str) -> bool:
    if place.missing:
        return False
    held = call.store.resources_of(place.holder()[0])
    by_label = [one for one in held if one.label == name]
    by_number = [one for one in held if str(one.number) == name]
    place.resource = next(iter(by_label or by_number), None)
    return place.resource is not None


def require_parents(call: Call, place: Place) -> None:
    """Refuse a write below something that is not there."""
    sentences = {
        "projects": "Unable to identify project",
        "subjects": "Unable to identify subject",
        "experiments": "Unable to identify image session",
        "scans": "Unable to identify scan",
    }
    if place.missing in sentences:
        raise tables.Refusal(404, sentences[place.missing])


def clean_path(path: str, reserved: bool = True) -> str:
    """Return a path below a resource with `/`; one that leads out of it, or is reserved, is a Refusal 400."""
    parts = [one for one in path.replace("\\", "/").split("/") if one not in ("", ".")]
    if not parts or ".." in parts or any("\0" in one or (len(one) > 1 and one[1] == ":") for one in parts):
        raise tables.Refusal(400, "The path is not inside the resource")
    if reserved and parts[-1].endswith("_catalog.xml"):
        raise tables.Refusal(400, "A catalog cannot be uploaded as a file")
    return "/".join(parts)
