"""The addresses of XNAT that this program uses: the only module that builds a path, or reads one in an answer.

XNAT's router takes the longest address that a request begins with, and mostly ignores what is left over: a path that
it does not have is answered with 200 and another record (XNATApplication.addRoutes). So every request goes to one of
the templates below, and every one of them stands in XNAT's own table. Parts in braces have XNAT's names.

Behind some addresses the class that serves them reads a last part itself: `prearchive_code` (ProjectResource),
`history` (ExperimentResource), `logs/last` (PrearcSessionResource) and a file's name (FileList).
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from xnatuploader.records import ScanAddress
from xnatuploader.xnat import messages

# --- the login and the site --------------------------------------------------------------------------------

FRONT_PAGE = "/"
AUTH = "/data/auth"
JSESSION = "/data/JSESSION"
ISSUE_TOKEN = "/data/services/tokens/issue"
SHOW_TOKENS = "/data/services/tokens/show"
BUILD_INFO = "/xapi/siteConfig/buildInfo"
CHECKSUMS = "/xapi/siteConfig/checksums"
SITE_SCRIPT = "/xapi/siteConfig/enableSitewideAnonymizationScript"
SITE_SCRIPT_ENABLED = "/xapi/anonymize/site/enabled"
PROJECT_SCRIPT_ENABLED = "/xapi/anonymize/projects/{projectId}/enabled"
PROJECT_SCRIPT_STATUS = "/data/config/edit/projects/{PROJECT_ID}/image/dicom/{RESOURCE}"
USER_ROLES = "/xapi/users/{username}/roles"
USER_GROUPS = "/xapi/users/{username}/groups"

# --- the archive -------------------------------------------------------------------------------------------

PROJECTS = "/data/projects"
PROJECT = f"{PROJECTS}/{{PROJECT_ID}}"
PREARCHIVE_CODE = f"{PROJECT}/prearchive_code"
SUBJECTS = f"{PROJECT}/subjects"
SUBJECT = f"{SUBJECTS}/{{SUBJECT_ID}}"
PROJECT_SESSIONS = f"{PROJECT}/experiments"
PROJECT_SESSION = f"{PROJECT_SESSIONS}/{{EXPT_ID}}"
"""By label or ID. Scans are not listed below it."""
SESSION = f"{SUBJECT}/experiments/{{EXPT_ID}}"
SCAN = f"{SUBJECT}/experiments/{{ASSESSED_ID}}/scans/{{SCAN_ID}}"
SCAN_FILES = f"{SCAN}/files"
RESOURCE = f"{SCAN}/resources/{{RESOURCE_ID}}"
RESOURCE_FILE = f"{RESOURCE}/files/{{FILE}}"
SESSION_BY_ID = "/data/experiments/{EXPT_ID}"
HISTORY = f"{SESSION_BY_ID}/history"
SCANS_BY_ID = "/data/experiments/{ASSESSED_ID}/scans"
SCAN_BY_ID = f"{SCANS_BY_ID}/{{SCAN_ID}}"
SCAN_FILES_BY_ID = f"{SCAN_BY_ID}/files"
RESOURCE_BY_ID = f"{SCAN_BY_ID}/resources/{{RESOURCE_ID}}"
ALL_SCANS = "ALL"
"""In the place of a scan's ID: the files of every scan (XNATTemplate)."""

# --- services, prearchive, user cache ----------------------------------------------------------------------

IMPORT = "/data/services/import"
ARCHIVE = "/data/services/archive"
REFRESH = "/data/services/refresh/catalog"
STATUS = "/data/status/{TRANSACTION_ID}"
INBOX_IMPORT = "/xapi/dicom/{id}"
INBOX_ACTIVE = "/xapi/dicom/list/active"
PREARCHIVE = "/data/prearchive"
PREARCHIVE_PROJECT = f"{PREARCHIVE}/projects/{{PROJECT_ID}}"
PREARCHIVE_ENTRY = f"{PREARCHIVE_PROJECT}/{{SESSION_TIMESTAMP}}/{{SESSION_LABEL}}"
PREARCHIVE_LOG = f"{PREARCHIVE_ENTRY}/logs/last"
PREARCHIVE_SCANS = f"{PREARCHIVE_ENTRY}/scans"
PREARCHIVE_RESOURCES = f"{PREARCHIVE_SCANS}/{{SCAN_ID}}/resources"
PREARCHIVE_FILES = f"{PREARCHIVE_RESOURCES}/{{RESOURCE_ID}}/files"
CACHE_FOLDER = "/data/user/cache/resources/{XNAME}"
CACHE_FILE = f"{CACHE_FOLDER}/files/{{FILE}}"


def at(template: str, *parts: str) -> str:
    """Return the path of a template with `parts`, percent-encoded, in place of its braces.

    Raises `RequestFailed` for a part that no encoding can carry.
    """
    path = re.sub(r"\{\w+\}", "{}", template)
    if path.count("{}") != len(parts):
        raise ValueError(f"{template} takes {path.count('{}')} parts, not {len(parts)}")
    return path.format(*map(_quoted, parts))


def at_scan(template: str, scan: ScanAddress, *more: str) -> str:
    """Return the path of a template that begins with project, subject, session and scan."""
    return at(template, scan.project, scan.subject, scan.session, scan.scan, *more)


def _quoted(part: str) -> str:
    if part in ("", ".", ".."):
        raise messages.RequestFailed(0, f"'{part}' cannot be the name of anything on XNAT.", "other")
    return quote(part, safe="")


# --- addresses in parameters -------------------------------------------------------------------------------
#
# XNAT's services take these without /data, and know no others (URIManager).


def source(path: str) -> str:
    """Return the path of a request as a service takes it in `src`."""
    return path.removeprefix("/data")


def archived(path: str) -> str:
    """Return the path of a session or scan as the services take it: `/archive/projects/...`."""
    return f"/archive{source(path)}"


def prearchived(project: str, timestamp: str, folder: str) -> str:
    """Return what names an entry of the prearchive, as XNAT lists it."""
    return f"/prearchive/projects/{project}/{timestamp}/{folder}"


def to_prearchive(project: str = "", timestamp: str = "", folder: str = "") -> str:
    """Return the destination of an import that is to wait; parts that are '' are left to XNAT."""
    parts = ["projects", project, *filter(None, [timestamp, folder])] if project else []
    return "/".join(["/prearchive", *parts])


def to_archive(project: str = "", subject: str = "", session: str = "") -> str:
    """Return the destination of an import that goes into the archive; parts that are '' are left to XNAT."""
    named = (("projects", project), ("subjects", subject), ("experiments", session))
    return "/".join(["/archive", *(part for pair in named if pair[1] for part in pair)])


# --- addresses in answers, and typed ones ------------------------------------------------------------------

_URI = re.compile(r"(?:/data)?(/(?:archive|prearchive|xapi)/[^\s;,<>\"]+)")
_PREARCHIVED = re.compile(r"/prearchive/projects/([^/]+)/([^/]+)/([^/?#]+)")
_ARCHIVED = re.compile(r"/projects/([^/]+)/subjects/([^/]+)/experiments/([^/?#]+)")
_TO_PREARCHIVE = re.compile(
    r"(?:/data|/REST)?/prearchive"
    r"(?:/projects/(?P<project>[\w.-]+)(?:/(?P<timestamp>[\w.-]+)(?:/(?P<session>[\w.-]+))?)?)?/?",
    re.ASCII,
)
_TO_ARCHIVE = re.compile(
    r"(?:/data|/REST)?/archive(?:/projects/(?P<project>[\w.-]+)"
    r"(?:/subjects/(?P<subject>[\w.-]+)(?:/experiments/(?P<session>[\w.-]+))?)?)?/?",
    re.ASCII,
)
DESTINATIONS = (
    "/prearchive/projects/PROJECT[/TIMESTAMP[/SESSION]] or "
    "/archive/projects/PROJECT[/subjects/SUBJECT[/experiments/LABEL]]"
)
"""The destinations of an import, for messages."""


def uris(text: str) -> list[str]:
    """Return the URIs in an answer (one per line) or a progress message (`Archive:<uri>;...`), without `/data`."""
    return list(dict.fromkeys(_URI.findall(text)))


def prearchive_parts(uri: str) -> tuple[str, str, str] | None:
    """Read (project, time stamp, folder) from a URI, None if it names nothing in the prearchive."""
    found = _PREARCHIVED.search(uri)
    return (found[1], found[2], found[3]) if found else None


def archive_parts(uri: str) -> tuple[str, str, str] | None:
    """Read (project, subject, session) from a URI, None if it names no session in the archive."""
    found = _ARCHIVED.search(urlsplit(uri).path)
    return (found[1], found[2], found[3]) if found else None


def file_parts(uri: str) -> tuple[str, str]:
    """Read (scan, path inside the resource) from the URI in a list of files; '' for what it does not name."""
    # XNAT encodes IDs in some of its lists and not in others.
    scan = uri.partition("/scans/")[2].partition("/")[0]
    return unquote(scan), unquote(uri.partition("/files/")[2])


def destination_parts(text: str) -> tuple[bool, dict[str, str]] | None:
    """Read a destination as a person types it: whether it is the archive, and the parts it names; None if none."""
    for archive, form in ((True, _TO_ARCHIVE), (False, _TO_PREARCHIVE)):
        if found := form.fullmatch(text):
            return archive, {name: part or "" for name, part in found.groupdict().items()}
    return None
