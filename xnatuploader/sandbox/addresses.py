"""What a URL of XNAT's hierarchy points at: from projects down to a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_plus

from xnatuploader.sandbox import answers, routing, store
from xnatuploader.sandbox.calls import Call

COLLECTIONS = ("projects", "subjects", "experiments", "scans", "resources", "files")
VALID_LABEL = re.compile(r"[A-Za-z0-9_-]+")
"""All that XNAT takes in labels and IDs."""


@dataclass(slots=True)
class Address:
    """An address in the hierarchy: the names in the URL, and the records found for them."""

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
    """What follows the template in the address, decoded, as `prearchive_code/4`; XNAT mostly ignores it."""
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
        """Return the ID of the project whose roles apply here, or empty."""
        if self.project is not None:
            return self.project.id
        if self.experiment is not None:
            return self.experiment.project
        return self.subject.project if self.subject is not None else ""

    def holder(self) -> tuple[str, str]:
        """Return key and folder (relative to the archive) of what resources here belong to."""
        if self.scan is not None and self.experiment is not None:
            folder = self.experiment.scan_folder(self.scan)
            return self.scan.key, folder
        if self.experiment is not None:
            return self.experiment.key, f"{self.experiment.folder}/RESOURCES"
        if self.subject is not None:
            return self.subject.key, f"{self.subject.project}/subjects/{self.subject.label}"
        if self.project is not None:
            return self.project.key, f"{self.project.id}/resources"
        raise answers.Refusal(404, "Unable to identify the parent of this resource")

    def prefix(self) -> str:
        """Return the URL of session, subject or project in file listings, with the parents that were named."""
        parts = ["/data"]
        if "projects" in self.names and self.project is not None:
            parts.append(f"projects/{self.project.id}")
        if "subjects" in self.names and self.subject is not None:
            parts.append(f"subjects/{self.subject.id}")
        if self.experiment is not None:
            parts.append(f"experiments/{self.experiment.id}")
        return "/".join(parts)


def from_route(found: routing.Match) -> Address:
    """Read an address by its template; one of a part of XNAT that the sandbox does not have is a Refusal 404."""
    address = Address(served_by=found.route.served_by)
    for part, given in zip(found.route.template, found.segments, strict=True):
        if part.startswith("{"):
            address.names[address.last] = unquote(given)
            address.is_listing = False
        elif part not in COLLECTIONS:
            raise answers.Refusal(404, f"The sandbox has no {part}")
        else:
            address.last, address.is_listing = part, part != "files"
    left_over = "/".join(found.rest)
    if address.last == "files":
        address.is_listing = not left_over
        address.file = _file_name(left_over)
    else:
        address.rest = unquote(left_over).strip("/")
    return address


def from_uri(segments: Sequence[str]) -> Address:
    """Read a URI as XNAT's services take it (URIManager); one of another shape is a Refusal 400."""
    address = Address()
    pairs = [(segments[at], unquote(segments[at + 1])) for at in range(0, len(segments) - 1, 2)]
    for collection, name in pairs:
        if collection not in COLLECTIONS or collection in address.names:
            raise answers.Refusal(400, f"Invalid Resource URI: {'/'.join(segments)}")
        address.names[collection], address.last = name, collection
    return address


def uri_parts(uri: str) -> list[str]:
    """Split a URI that names something of XNAT, without the `/data` or `/REST` that it may begin with."""
    parts = [one for one in uri.split("/") if one]
    return parts[1:] if parts[:1] in (["data"], ["REST"]) else parts


def _file_name(raw: str) -> str:
    """Decode as XNAT does: only where %20 or %2B stands in the name, then fully."""
    if "%20" in raw or "%2B" in raw or "%2b" in raw:
        return unquote_plus(raw)
    return raw


def resolve(call: Call, address: Address) -> Address:
    """Find the records. What is missing is noted, not refused; a project that the user may not read is missing."""
    names, kept = address.names, call.store
    if "projects" in names:
        address.project = kept.projects.get(names["projects"])
        if address.project is not None and not call.can(address.project.id, "read"):
            address.project = None
        if address.project is None:
            address.missing = "projects"
            return address
    if "subjects" in names and not _find_subject(call, address, names["subjects"]):
        address.missing = "subjects"
    if "experiments" in names and not _find_experiment(call, address, names["experiments"]):
        address.missing = address.missing or "experiments"
    if "scans" in names and not _find_scan(address, names["scans"]):
        address.missing = address.missing or "scans"
    if "resources" in names and not _find_resource(call, address, names["resources"]):
        address.missing = address.missing or "resources"
    return address


def _find_subject(call: Call, address: Address, name: str) -> bool:
    if address.project is not None:
        address.subject = call.store.subject(address.project.id, name)
    else:
        found = call.store.subjects.get(name)
        address.subject = found if found is not None and call.can(found.project, "read") else None
    return address.subject is not None


def _find_experiment(call: Call, address: Address, name: str) -> bool:
    if address.project is not None:
        address.experiment = call.store.experiment(address.project.id, name)
    else:
        found = call.store.experiments.get(name)
        address.experiment = found if found is not None and call.can(found.project, "read") else None
    return address.experiment is not None


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


def _find_scan(address: Address, name: str) -> bool:
    if address.experiment is None:
        return False
    if address.last == "scans":  # the scan itself is addressed by its ID (ScanResource.queryForScan)
        address.scan = address.experiment.scans.get(name)
        return address.scan is not None
    address.scans = scans_named(address.experiment, name)
    address.scan = address.scans[0] if len(address.scans) == 1 else None
    return address.scan is not None


def _find_resource(call: Call, address: Address, name: str) -> bool:
    if address.missing:
        return False
    held = call.store.resources_of(address.holder()[0])
    by_label = [one for one in held if one.label == name]
    by_number = [one for one in held if str(one.number) == name]
    address.resource = next(iter(by_label or by_number), None)
    return address.resource is not None


def require_parents(call: Call, address: Address) -> None:
    """Refuse a write below something that is not there."""
    sentences = {
        "projects": "Unable to identify project",
        "subjects": "Unable to identify subject",
        "experiments": "Unable to identify image session",
        "scans": "Unable to identify scan",
    }
    if address.missing in sentences:
        raise answers.Refusal(404, sentences[address.missing])


def clean_path(path: str, reserved: bool = True) -> str:
    """Return a path below a resource with `/`; one that leads out of it, or is reserved, is a Refusal 400."""
    parts = [one for one in path.replace("\\", "/").split("/") if one not in ("", ".")]
    if not parts or ".." in parts or any("\0" in one or (len(one) > 1 and one[1] == ":") for one in parts):
        raise answers.Refusal(400, "The path is not inside the resource")
    if reserved and parts[-1].endswith("_catalog.xml"):
        raise answers.Refusal(400, "A catalog cannot be uploaded as a file")
    return "/".join(parts)
