"""XNAT's projects, subjects, sessions, scans, resources and files: listing them and creating them.

Everything is asked for inside one project, so that nothing of another project is ever seen or changed.
Labels, IDs and names are percent-encoded here; callers hand over plain text.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import xml.etree.ElementTree as xml
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from xnatuploader import errors
from xnatuploader.records import ScanAddress
from xnatuploader.xnat import http, messages, routes
from xnatuploader.xnat.credentials import Credentials
from xnatuploader.xnat.http import Repeats, Request, cell

logger = logging.getLogger(__name__)

_PULL = "Pulled Data from DICOM"
"""What XNAT's history calls a pull (EventUtils.DICOM_PULL)."""

_PIPELINES = "AutoRun"
"""What it calls the pipelines of `start_pipelines` (xnat_tools/AutoRun.xml: DefaultPipelineServiceImpl)."""

COMMON_SESSIONS = ("xnat:mrSessionData", "xnat:ctSessionData", "xnat:petSessionData")
"""Types of sessions that are asked about where it is not known which are to be made."""

_FIELD_LENGTH = 255
"""XNAT's text columns hold no more."""

_CATALOG = "{http://nrg.wustl.edu/catalog}"


@dataclass(frozen=True, slots=True)
class RemoteSession:
    """A session (XNAT experiment) of the project. Fields that the list does not tell are ''."""

    id: str
    label: str
    subject_id: str
    subject_label: str = ""
    xsi_type: str = ""
    date: str = ""
    """`YYYY-MM-DD`."""
    uid: str = ""
    """StudyInstanceUID; the list of sessions seldom tells it: `Server.session_uid`."""


@dataclass(frozen=True, slots=True)
class RemoteScan:
    """A scan of a session. Fields that the list does not tell are ''."""

    id: str
    type: str = ""
    xsi_type: str = ""
    uid: str = ""
    """SeriesInstanceUID."""
    series_description: str = ""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a resource."""

    name: str
    """Path inside the resource, decoded."""
    size: int
    """Bytes; -1 where the server does not say."""
    digest: str = ""
    """MD5 in lower-case hex; '' where the site keeps no checksums."""
    resource: str = ""
    """Label; '' where the list is of a single resource."""
    scan: str = ""
    """ID of the scan; '' where it belongs to none."""


class Server:
    """A logged-in XNAT; every method may be called from several threads."""

    def __init__(
        self,
        connection: http.Connection,
        login_until: datetime | None = None,
        issued_token: Credentials | None = None,
    ) -> None:
        self._connection = connection
        self.url = connection.base
        self.user = connection.user
        self.source = connection.credentials.source
        """Where the credentials came from, for messages."""
        self.login_until = login_until
        """When the token in use stops working (aware), None for a password or if unknown."""
        self.issued_token = issued_token
        """An alias token that may be saved in place of a password that a person typed, where XNAT issued one."""
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._version: str | None = None
        self._subject_labels: dict[str, dict[str, str]] = {}
        self._uids: dict[str, dict[str, str]] = {}

    def close(self) -> None:
        """Log out."""
        self._connection.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- requests of this room -----------------------------------------------------------------------------

    def request(self, request: Request) -> http.Answer:
        """Send any request: see `Connection.request`."""
        return self._connection.request(request)

    def rows(
        self, path: str, query: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> list[Mapping[str, Any]]:
        """Ask for a table; return its rows."""
        asked = {**(query or {}), "format": "json"}
        return self.request(Request("GET", path, asked, as_json=True, timeout=timeout)).rows()

    def _record_at(self, path: str) -> Mapping[str, Any]:
        """Ask for a record; return its fields."""
        return self.request(Request("GET", path, {"format": "json"}, as_json=True)).item()

    def _record_or_none(self, path: str) -> Mapping[str, Any] | None:
        """Return a record's fields; None if there is no such record."""
        try:
            return self._record_at(path)
        except messages.RequestFailed as failure:
            if failure.status == 404:
                return None
            raise

    # --- the site ------------------------------------------------------------------------------------------

    def about(self) -> tuple[str, str]:
        """Return the version of XNAT, and the server's clock as the header `Date` has it; '' where not told."""
        try:
            # No run waits long for what it can do without.
            answer = self.request(Request("GET", routes.BUILD_INFO, timeout=self._connection.timeouts.login))
        except messages.RequestFailed:
            return "", ""
        version = ""
        with contextlib.suppress(ValueError, AttributeError):
            version = str(answer.json().get("version", ""))
        return version, answer.headers.get("Date", "")

    def version(self) -> str:
        """Return the version of XNAT, such as `1.8.11`, '' where it is not told; it is asked for once."""
        with self._asking:
            if self._version is None:
                self._version, _ = self.about()
            return self._version

    def is_older_than(self, *version: int) -> bool:
        """Tell whether XNAT is surely older than a version, as in `is_older_than(1, 8)`."""
        numbers = re.match(r"\d+(\.\d+)*", self.version())
        return numbers is not None and tuple(map(int, numbers[0].split("."))) < version

    def checksums(self) -> bool | None:
        """Tell whether the site keeps MD5s of its files, None if it does not say."""
        return self._switch(routes.CHECKSUMS)

    def script_enabled(self, project: str = "") -> bool | None:
        """Tell whether the anonymisation script of a project, or of the site, is switched on; None if unknown.

        Each is asked for at two addresses, because versions of XNAT differ in which one they answer.
        """
        paths = [routes.SITE_SCRIPT, routes.SITE_SCRIPT_ENABLED]
        if project:
            paths = [
                routes.at(routes.PROJECT_SCRIPT_ENABLED, project),
                routes.at(routes.PROJECT_SCRIPT_STATUS, project, "status"),
            ]
        return next((state for state in map(self._switch, paths) if state is not None), None)

    def _switch(self, path: str) -> bool | None:
        """Read a setting that is `true`, `"true"`, or the table with which the config service answers."""
        try:
            answer = self.request(Request("GET", path))
            said = answer.text.strip().strip('"').lower()
            if said not in ("true", "false"):
                rows = answer.rows()
                # DicomEdit has no row for a project without a script.
                said = str(rows[0].get("edit", rows[0].get("status", ""))).lower() if rows else "false"
        except messages.RequestFailed:
            return None
        return {"true": True, "false": False}.get(said)

    def prearchive_code(self, project: str) -> str:
        """Return the code for what becomes of a project's imports (PrearchiveCode), '' if it is not told."""
        try:
            answer = self.request(Request("GET", routes.at(routes.PREARCHIVE_CODE, project)))
        except messages.RequestFailed:
            return ""
        return answer.text.strip()

    # --- what is there -------------------------------------------------------------------------------------

    def open_project(
        self, project: str, session_types: Callable[[], Collection[str]] = lambda: COMMON_SESSIONS
    ) -> str:
        """Return the project's ID (an alias is accepted). Raises `ProjectRefused` if nothing may be added.

        `session_types` gives the types of the sessions to be made, such as `xnat:ctSessionData`; it is called where the
        account may not edit subjects: in a group of the project's own it may make sessions even so.
        """
        try:
            record = self._record_at(routes.at(routes.PROJECT, project))
        except messages.RequestFailed as failure:
            if failure.status in (400, 403, 404):
                raise errors.ProjectRefused(
                    f"There is no project {project} on {self.url}, or the account {self.user} may not see "
                    "it. Check Project in the Configuration sheet (capitals count), or ask for access."
                ) from None
            raise errors.ServerUnreachable(
                f"Project {project} could not be opened. {failure.message}"
            ) from None
        identifier = str(record.get("ID") or project)

        def types() -> Iterator[str]:
            yield "xnat:subjectData"
            yield from session_types() or COMMON_SESSIONS

        if self.may_not_add(identifier, types()):
            raise errors.ProjectRefused(
                f"The account {self.user} may read project {identifier} but not add to it. "
                "Ask an owner of the project to make it a member."
            )
        return identifier

    def may_not_add(self, project: str, types: Iterable[str]) -> bool:
        """Tell whether this account certainly may add records of none of these types to a project.

        XNAT lists the projects in which it may (PermissionsProjectHandler), a group of the project's own included. In
        doubt it is False, and the first new record shows it.
        """
        for kind in types:
            try:
                editable = self.rows(routes.PROJECTS, {"permissions": "edit", "dataType": kind})
            except messages.RequestFailed:
                return False
            if any(cell(row, "id") == project for row in editable):
                return False
        return self._surely_no_administrator()

    def _surely_no_administrator(self) -> bool:
        """Tell whether this account is certainly none; an administrator may write without being in a list."""
        known = False
        for template in (routes.USER_ROLES, routes.USER_GROUPS):
            try:
                names = self.request(Request("GET", routes.at(template, self.user))).json()
            except (messages.RequestFailed, ValueError):
                continue
            known = True
            if any("admin" in str(name).lower() for name in names):
                return False
        return known

    def subjects(self, project: str) -> dict[str, str]:
        """Return the project's subjects: label to ID.

        One that is shared into the project without a label goes by its ID there.
        """
        rows = self.rows(routes.at(routes.SUBJECTS, project), {"columns": "ID,label"})
        found = {cell(row, "label") or cell(row, "ID"): cell(row, "ID") for row in rows if cell(row, "ID")}
        with self._lock:
            self._subject_labels[project] = {identifier: label for label, identifier in found.items()}
        return found

    def sessions(self, project: str) -> list[RemoteSession]:
        """Return everything in the project that bears a session label (XNAT's experiments of any type).

        Subject labels are those of `subjects` where that was called before, which are the project's own: a subject
        that is shared into it may have another one where it comes from.
        """
        # Only fields of every experiment: a list rooted at the image sessions would hide other holders of
        # a label.
        columns = "ID,label,xsiType,date,subject_ID,subject_label,project"
        with self._lock:
            labels = dict(self._subject_labels.get(project, {}))
        return [
            RemoteSession(
                id=cell(row, "ID"),
                label=cell(row, "label"),
                subject_id=cell(row, "subject_ID"),
                subject_label=labels.get(cell(row, "subject_ID")) or cell(row, "subject_label"),
                xsi_type=cell(row, "xsiType"),
                date=cell(row, "date"),
                uid=_uid(cell(row, "UID")),
            )
            for row in self.rows(routes.at(routes.PROJECT_SESSIONS, project), {"columns": columns})
            if cell(row, "ID")
        ]

    def session_id(self, project: str, label: str) -> str:
        """Return the ID of the project's session with this label, '' if it has none."""
        record = self._record_or_none(routes.at(routes.PROJECT_SESSION, project, label))
        return "" if record is None else str(record.get("ID") or label)

    def session_uid(self, project: str, session: RemoteSession) -> str:
        """Return the session's StudyInstanceUID, '' if it has none.

        Sessions whose UID `study_uids` does not tell are asked for one by one.
        """
        known = session.uid or self.study_uids(project).get(session.id, "")
        if known:
            return known
        record = self._record_at(routes.at(routes.PROJECT_SESSION, project, session.id))
        return _uid(str(record.get("UID") or ""))

    def study_uids(self, project: str, *, again: bool = False) -> Mapping[str, str]:
        """Return session ID -> StudyInstanceUID of the project's sessions, as far as their list tells.

        XNAT is asked once, unless it is to be asked `again`. Where it cannot list them, nothing is known of any;
        `RequestFailed` is raised where it does not answer.
        """
        query = {"xsiType": "xnat:imageSessionData", "columns": "ID,UID"}
        with self._lock:
            if again or project not in self._uids:
                try:
                    rows = self.rows(routes.at(routes.PROJECT_SESSIONS, project), query)
                except messages.RequestFailed as failure:
                    if failure.kind == "connection":
                        raise
                    logger.warning(
                        "XNAT did not list which studies the project holds, so a study that is there under another "
                        "label is sent a second time. %s",
                        failure.message,
                    )
                    rows = []
                self._uids[project] = {
                    cell(row, "ID"): uid for row in rows if (uid := _uid(cell(row, "UID")))
                }
            return self._uids[project]

    def scans(self, session_id: str) -> list[RemoteScan]:
        """Return the scans of a session.

        XNAT lists them below the session's ID, not below `/projects/P/experiments` (XNATApplication.addRoutes).
        """
        columns = ("ID", "type", "xsiType", "UID", "series_description")  # as the fields of `RemoteScan`
        rows = self.rows(routes.at(routes.SCANS_BY_ID, session_id), {"columns": ",".join(columns)})
        found = [RemoteScan(*(cell(row, name) for name in columns)) for row in rows if cell(row, "ID")]
        return [replace(scan, uid=_uid(scan.uid)) for scan in found]

    def has_scan(self, session_id: str, scan_id: str) -> bool:
        """Tell whether a session has a scan of this ID."""
        return self._record_or_none(routes.at(routes.SCAN_BY_ID, session_id, scan_id)) is not None

    def scan_files(self, address: ScanAddress) -> dict[str, dict[str, RemoteFile]]:
        """Return the files of all resources of a scan: resource to name to file; empty if there is no such scan."""
        rows = self.rows(routes.at_scan(routes.SCAN_FILES, address), timeout=self._connection.timeouts.send)
        found: dict[str, dict[str, RemoteFile]] = {}
        for row in rows:
            file = remote_file(row)
            # XNAT takes the scan's part of the address for an ID or a type: leave out scans of that type.
            if file.name and file.scan == address.scan:
                found.setdefault(file.resource, {})[file.name] = file
        return found

    def session_files(self, session_id: str) -> list[RemoteFile]:
        """List every file of a session's scans."""
        path = routes.at(routes.SCAN_FILES_BY_ID, session_id, routes.ALL_SCANS)
        request = Request(
            "GET", path, {"format": "json"}, as_json=True, timeout=300.0, repeats=Repeats(record=True)
        )
        try:
            rows = self.request(request).rows()
        except messages.RequestFailed as failure:
            # XNAT answers so where there is no scan at all (FileList.handleMultipleCatalogs).
            if failure.status == 500 and not self.scans(session_id):
                return []
            raise
        return [file for file in map(remote_file, rows) if file.scan and file.name]

    def images(self, session_id: str, resources: Iterable[tuple[str, str]]) -> dict[str, RemoteFile]:
        """Return SOPInstanceUID -> file, as the catalogs of (scan, resource) list them; one request each.

        Scans that came by the prearchive have the UIDs (cat:dcmEntry), files that were PUT have none, so that of
        those nothing is told. Raises `RequestFailed` where a catalog cannot be read.
        """
        found: dict[str, RemoteFile] = {}
        for scan, resource in resources:
            for uid, file in self._catalog(session_id, scan, resource).items():
                found.setdefault(uid, file)
        return found

    def object_uids(self, session_id: str, resources: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return SOPInstanceUID -> scan, as `images` does; a catalog that cannot be read tells nothing."""
        found: dict[str, str] = {}
        for scan, resource in resources:
            with contextlib.suppress(messages.RequestFailed):
                found.update(dict.fromkeys(self._catalog(session_id, scan, resource), scan))
        return found

    def _catalog(self, session_id: str, scan: str, resource: str) -> dict[str, RemoteFile]:
        path = routes.at(routes.RESOURCE_BY_ID, session_id, scan, resource)
        try:
            root = xml.fromstring(self.request(Request("GET", path, {"format": "xml"})).text)
        except messages.RequestFailed as failure:
            if failure.status == 404:
                return {}
            raise
        except xml.ParseError:
            raise messages.RequestFailed(
                0, f"XNAT's catalog of scan {scan} ({resource}) cannot be read. Run upload again.", "other"
            ) from None
        return {
            uid: RemoteFile(entry.get("URI", ""), -1, entry.get("digest", "").lower(), resource, scan)
            for entry in root.iter(f"{_CATALOG}entry")
            if (uid := entry.get("UID"))
        }

    # --- creating records ----------------------------------------------------------------------------------

    def create_subject(self, project: str, label: str) -> str:
        """Create the subject, or find it, and return its ID."""
        return _made(self._create(routes.at(routes.SUBJECT, project, label), {}), label)

    def create_session(
        self, project: str, subject: str, label: str, xsi_type: str, fields: Mapping[str, str]
    ) -> str:
        """Create the session, or set fields of the one that is there, and return its ID.

        `fields` are named as in XNAT's schema below `xsi_type`: `date` (YYYY-MM-DD), `UID`, `modality`,
        `scanner/manufacturer`, `scanner/model`. Empty ones are left out. A session with this label under
        another subject would be moved by XNAT, so look at `sessions` before.
        """
        path = routes.at(routes.SESSION, project, subject, label)
        return _made(self._create(path, {"xsiType": xsi_type, **_fields(xsi_type, fields)}), label)

    def create_scan(self, address: ScanAddress, xsi_type: str, fields: Mapping[str, str]) -> None:
        """Create the scan, or set fields (`type`, `UID`, `series_description`) of the one that is there."""
        self._create(routes.at_scan(routes.SCAN, address), {"xsiType": xsi_type, **_fields(xsi_type, fields)})

    def create_resource(
        self, address: ScanAddress, resource: str, format: str = "DICOM", content: str = "RAW"
    ) -> None:
        """Create the resource; it may exist already."""
        try:
            path = routes.at_scan(routes.RESOURCE, address, resource)
            self._create(path, {"format": format, "content": content})
        except messages.RequestFailed as failure:
            if failure.status != 409:
                raise

    def _create(self, path: str, query: Mapping[str, str]) -> http.Answer:
        return self.request(Request("PUT", path, query, repeats=Repeats(record=True)))

    # --- files ---------------------------------------------------------------------------------------------

    def put_archive(
        self,
        address: ScanAddress,
        resource: str,
        body: http.BodyFactory,
        archive_name: str,
        overwrite: bool,
    ) -> tuple[str, ...]:
        """Send an archive to be unpacked into the resource; return the names XNAT left as they were.

        `archive_name` ends in .tar or .zip, by which XNAT tells the format. Only since 1.8.0 it unpacks tar
        (CatalogUtils.storeCatalogEntry); before, it answers 200 and stores nothing of it. `body` makes the body
        afresh for each attempt and knows its length.
        """
        path = routes.at_scan(routes.RESOURCE_FILE, address, resource, archive_name)
        kind = "application/zip" if archive_name.endswith(".zip") else "application/x-tar"
        headers = {"Content-Type": kind}
        return self._put(Request("PUT", path, {"extract": "true"}, body, headers, archive=True), overwrite)

    def put_file(
        self, address: ScanAddress, resource: str, name: str, body: http.BodyFactory, overwrite: bool
    ) -> tuple[str, ...]:
        """Send one file; return its name if XNAT already had one of that name and left it."""
        path = routes.at_scan(routes.RESOURCE_FILE, address, resource, name)
        kind = "application/octet-stream"
        if len(body()) > 0:
            request = Request("PUT", path, body=body, headers={"Content-Type": kind})
        else:
            # XNAT takes no raw body of length zero; a part of a form may be empty.
            request = Request("PUT", path, form={"file": (name, b"", kind)})
        return self._put(request, overwrite)

    def _put(self, request: Request, overwrite: bool) -> tuple[str, ...]:
        """Send files; return the names in XNAT's `duplicates` answer (JSON, labelled as HTML).

        From the second attempt on files are overwritten: XNAT keeps what a broken attempt has stored, without
        listing it.
        """
        replacing = {"overwrite": "true"}
        query = {**request.query, **(replacing if overwrite else {})}
        answer = self.request(replace(request, query=query, repeats=Repeats(then=replacing)))
        try:
            found = answer.json()
        except ValueError:
            return ()
        names = found.get("duplicates") if isinstance(found, dict) else None
        return tuple(unquote(str(name)) for name in names or ())

    # --- steps after the upload ----------------------------------------------------------------------------
    #
    # Each is a request of its own, since XNAT starts no pipelines after a pull that failed, and by the session's ID,
    # since a PUT below the subject clears the session's visit and protocol (SubjAssessmentResource.handlePut). None
    # is repeated when no answer comes in time: XNAT goes on with it, and pipelines would start twice.

    def pull_session(self, session_id: str) -> None:
        """Have XNAT fill in a session and its scans from the headers of all its files.

        Only for sessions whose scans were all created over REST: scans that came through the prearchive lose their
        catalog by it (PullSessionDataFromHeaders.call), and list no files any more.
        """
        self._trigger(routes.at(routes.SESSION_BY_ID, session_id), {"pullDataFromHeaders": "true"})

    def pull_scan(self, session_id: str, scan_id: str, xsi_type: str) -> None:
        """Have XNAT fill in one scan, created over REST, from the headers of its files."""
        # Without the scan's type older XNATs answer 417 (ScanResource.handlePut).
        kind = {"xsiType": xsi_type} if xsi_type else {}
        self._trigger(
            routes.at(routes.SCAN_BY_ID, session_id, scan_id), {**kind, "pullDataFromHeaders": "true"}
        )

    def fix_scan_types(self, session_id: str) -> None:
        """Have XNAT give a type to the scans of a session that have none."""
        self._trigger(routes.at(routes.SESSION_BY_ID, session_id), {"fixScanTypes": "true"})

    def start_pipelines(self, session_id: str) -> None:
        """Have XNAT start the pipelines that it runs by itself when a session was archived."""
        self._trigger(routes.at(routes.SESSION_BY_ID, session_id), {"triggerPipelines": "true"})

    def pull_under_way(self, session_id: str) -> bool:
        """Tell whether XNAT is still busy with a pull: after a lost answer it goes on. False where it does not say."""
        number, status = self._newest_event(session_id, _PULL)
        return number > 0 and not status.startswith(("Complete", "Failed"))

    def pull_is_complete(self, session_id: str) -> bool:
        """Tell whether the newest pull of a session came to its end without an error. False where it does not say."""
        return self._newest_event(session_id, _PULL)[1].startswith("Complete")

    def pipelines_started(self, session_id: str) -> bool:
        """Tell whether XNAT has started pipelines since it read the headers last. False where it does not say."""
        return self._newest_event(session_id, _PIPELINES)[0] > self._newest_event(session_id, _PULL)[0]

    def _newest_event(self, session_id: str, action: str) -> tuple[int, str]:
        """Return number and status of the newest event of a kind in a session's history; (0, '') for none."""
        request = Request("GET", routes.at(routes.HISTORY, session_id), as_json=True)
        try:
            events = self.request(request).json()["events"]
            found = [
                (int(one["event_id"]), str(one.get("event_status")))
                for one in events
                if action in str(one.get("event_action"))
            ]
        except (messages.RequestFailed, ValueError, KeyError, TypeError, AttributeError):
            return 0, ""
        return max(found, default=(0, ""))

    def _trigger(self, path: str, query: Mapping[str, str]) -> None:
        once = Repeats(once=True)
        self.request(Request("PUT", path, query, repeats=once, timeout=self._connection.timeouts.finish))

    # --- addresses for people ------------------------------------------------------------------------------

    def link(self, session_id: str, project: str) -> str:
        """Return the address of a session's page in the browser."""
        return f"{self.url}{routes.at(routes.PROJECT_SESSION, project, session_id)}?format=html"


# --- what requests and answers hold ------------------------------------------------------------------------


def _fields(xsi_type: str, values: Mapping[str, str]) -> dict[str, str]:
    """Name each field by its full path: short names exist only for some."""
    return {f"{xsi_type}/{name}": value[:_FIELD_LENGTH] for name, value in values.items() if value}


def _uid(text: str) -> str:
    """Return a UID; '' where a script wrote what its language calls nothing (Python's None)."""
    return "" if text.lower() in ("none", "null") else text


def _made(answer: http.Answer, label: str) -> str:
    """Return the ID in a create's answer; where the body is empty the label serves as well."""
    text = answer.text.strip()
    return text.rpartition("/")[2] if text and "\n" not in text and len(text) < 200 else label


def remote_file(row: Mapping[str, Any]) -> RemoteFile:
    """Read a row of a file list: the encoded URI holds the path inside the resource, `Name` does not."""
    uri, size = cell(row, "URI"), cell(row, "Size")
    scan, inside = routes.file_parts(uri)
    return RemoteFile(
        inside or cell(row, "Name"),
        int(size) if size.isdigit() else -1,
        cell(row, "digest").lower(),
        cell(row, "collection"),
        scan,
    )
