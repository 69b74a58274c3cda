"""XNAT's projects, subjects, sessions, scans, resources and files: what is there, and making what is not.

Everything is asked for inside one project, so that nothing of another project is ever seen or changed.
Labels, IDs and names are percent-encoded here; callers hand over plain text.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from xnatuploader import errors
from xnatuploader.xnat import credentials as login_details
from xnatuploader.xnat import entrance, http, login, messages, patience, tables, transport

logger = logging.getLogger(__name__)

_PULL = "Pulled Data from DICOM"
"""What XNAT's history calls a pull (EventUtils.DICOM_PULL)."""


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


OnToken = Callable[[str, str, "datetime | None"], None]
"""Gets alias, secret and expiry of a token that may be saved."""


class Server:
    """A logged-in XNAT; every method may be called from several threads."""

    def __init__(
        self, reach: http.Connection, found: login_details.Credentials, login_until: datetime | None
    ) -> None:
        self._connection = reach
        self.url = reach.base
        self.user = reach.user
        self.source = found.source
        """Where the credentials came from, for messages."""
        self.login_until = login_until
        """When the token in use stops working (aware), None for a password or if unknown."""
        self._lock = threading.Lock()
        self._subject_labels: dict[str, dict[str, str]] = {}
        self._uids: dict[str, dict[str, str]] = {}

    def __repr__(self) -> str:
        return f"Server({self.url!r}, user={self.user!r})"

    # --- login ---------------------------------------------------------------------------------------------

    @classmethod
    def connect(
        cls,
        url: str,
        credentials: login_details.Credentials | None,
        *,
        environ: Mapping[str, str] | None = None,
        interactive: bool = False,
        jobs: int = 4,
        wait: float = 0,
        on_token: OnToken | None = None,
        ask: Callable[[], login_details.Credentials] | None = None,
        timeouts: transport.Timeouts | None = None,
        clock: patience.Clock | None = None,
        stop: threading.Event | None = None,
    ) -> Server:
        """Log in at `url`. Without `credentials`, or when a netrc entry is refused, ask if `interactive`.

        `wait` is how many seconds to keep trying while the server is away. After a prompted login
        `on_token` gets a token that works in place of the password. Raises `LoginRefused`,
        `ServerUnreachable`, or `UsageError` for an address that is none.
        """
        variables = os.environ if environ is None else environ
        chosen, watch = timeouts or transport.Timeouts(), clock or patience.Clock()
        doors = entrance.Entrance(variables, jobs, chosen, watch, stop or threading.Event(), wait)
        base = doors.settle(login.normalize(url))
        asking = ask or (lambda: login_details.prompt(base, environ=variables))
        found, accepted = doors.log_in(base, credentials, asking if interactive else None)
        reach = doors.connect(base, found, accepted)
        token = entrance.issue_token(reach) if found.from_prompt else None
        until = token.expires if token else found.expires
        if token is not None and on_token is not None:
            on_token(token.alias, token.secret, token.expires)
        elif until is None and login.is_alias(found.user):
            until = entrance.token_expiry(reach, found.user)
        return cls(reach, found, until)

    @property
    def requests_sent(self) -> int:
        """How many requests were sent since the login."""
        return self._connection.requests_sent

    def close(self) -> None:
        """Log out."""
        self._connection.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what is there -------------------------------------------------------------------------------------

    def checksums(self) -> bool | None:
        """Tell whether the site keeps MD5s of its files, None if it does not say."""
        try:
            answer = self.request("GET", "/xapi/siteConfig/checksums").text.strip().strip('"').lower()
        except messages.RequestFailed:
            return None
        return {"true": True, "false": False}.get(answer)

    def open_project(self, project: str) -> str:
        """Return the project's ID (an alias is accepted). Raises `ProjectRefused` if nothing may be added."""
        path = f"/data/projects/{tables.quoted(project)}"
        try:
            answer = self.request("GET", path, {"format": "json"}, as_json=True)
        except messages.RequestFailed as error:
            if error.status in (400, 403, 404):
                raise errors.ProjectRefused(
                    f"There is no project {project} on {self.url}, or the account {self.user} may not see "
                    "it. Check Project in the Configuration sheet (capitals count), or ask for access."
                ) from None
            raise errors.ServerUnreachable(
                f"Project {project} could not be opened. {error.message}"
            ) from None
        fields = tables.item(answer)
        identifier = str(fields.get("ID") or project)
        if self._surely_read_only(identifier):
            raise errors.ProjectRefused(
                f"The account {self.user} may look at project {identifier} but not add to it. "
                "Ask an owner of the project to make it a member."
            )
        return identifier

    def _surely_read_only(self, project: str) -> bool:
        """Tell whether the server leaves no doubt; in doubt the first record to be made shows it."""
        try:
            query = {"permissions": "edit", "dataType": "xnat:subjectData", "format": "json"}
            rows = tables.rows(self.request("GET", "/data/projects", query, as_json=True))
        except messages.RequestFailed:
            return False
        if any(tables.cell(row, "id") == project for row in rows):
            return False
        # An administrator may write everywhere without standing in a project's lists.
        known = False
        for kind in ("roles", "groups"):
            try:
                names = self.request("GET", f"/xapi/users/{tables.quoted(self.user)}/{kind}").json()
            except (messages.RequestFailed, ValueError):
                continue
            known = True
            if any("admin" in str(name).lower() for name in names):
                return False
        return known

    def subjects(self, project: str) -> dict[str, str]:
        """Return the project's subjects: label to ID."""
        path = f"/data/projects/{tables.quoted(project)}/subjects"
        rows = tables.rows(self.request("GET", path, {"columns": "ID,label", "format": "json"}, as_json=True))
        found = {tables.cell(row, "label"): tables.cell(row, "ID") for row in rows if tables.cell(row, "ID")}
        with self._lock:
            self._subject_labels[project] = {identifier: label for label, identifier in found.items()}
        return found

    def sessions(self, project: str) -> list[RemoteSession]:
        """Return everything in the project that bears a session label (XNAT's experiments of any type).

        Subject labels are those of `subjects` where that was called before, which are the project's own: a subject
        that is shared into it may have another one where it comes from.
        """
        path = f"/data/projects/{tables.quoted(project)}/experiments"
        # Only fields of every experiment: a list rooted at the image sessions would hide other holders of
        # a label.
        query = {"columns": "ID,label,xsiType,date,subject_ID,subject_label,project", "format": "json"}
        with self._lock:
            labels = dict(self._subject_labels.get(project, {}))
        return [
            RemoteSession(
                id=tables.cell(row, "ID"),
                label=tables.cell(row, "label"),
                subject_id=tables.cell(row, "subject_ID"),
                subject_label=labels.get(tables.cell(row, "subject_ID")) or tables.cell(row, "subject_label"),
                xsi_type=tables.cell(row, "xsiType"),
                date=tables.cell(row, "date"),
                uid=tables.cell(row, "UID"),
            )
            for row in tables.rows(self.request("GET", path, query, as_json=True))
            if tables.cell(row, "ID")
        ]

    def session_id(self, project: str, label: str) -> str:
        """Return the ID of the project's session with this label, '' if it has none."""
        path = f"/data/projects/{tables.quoted(project)}/experiments/{tables.quoted(label)}"
        try:
            answer = self.request("GET", path, {"format": "json"}, as_json=True)
        except messages.RequestFailed as failure:
            if failure.status == 404:
                return ""
            raise
        return str(tables.item(answer).get("ID") or label)

    def session_uid(self, project: str, session: RemoteSession | str) -> str:
        """Return the session's StudyInstanceUID, '' if it has none.

        The first call asks for those of the whole project at once; only what that leaves open is asked one
        by one.
        """
        if isinstance(session, RemoteSession) and session.uid:
            return session.uid
        identifier = _id(session)
        with self._lock:
            if project not in self._uids:
                self._uids[project] = self._all_uids(project)
            known = self._uids[project].get(identifier, "")
        if known:
            return known
        path = f"/data/projects/{tables.quoted(project)}/experiments/{tables.quoted(identifier)}"
        return str(tables.item(self.request("GET", path, {"format": "json"}, as_json=True)).get("UID") or "")

    def _all_uids(self, project: str) -> dict[str, str]:
        path = f"/data/projects/{tables.quoted(project)}/experiments"
        query = {"xsiType": "xnat:imageSessionData", "columns": "ID,UID", "format": "json"}
        try:
            rows = tables.rows(self.request("GET", path, query, as_json=True))
        except messages.RequestFailed:
            return {}
        return {tables.cell(row, "ID"): tables.cell(row, "UID") for row in rows if tables.cell(row, "UID")}

    def scans(self, session_id: str) -> list[RemoteScan]:
        """Return the scans of a session.

        XNAT lists them below the session's ID, not below `/projects/P/experiments` (XNATApplication.addRoutes).
        """
        path = f"{tables.session_by_id(session_id)}/scans"
        query = {"columns": "ID,type,xsiType,UID,series_description", "format": "json"}
        return [
            RemoteScan(
                id=tables.cell(row, "ID"),
                type=tables.cell(row, "type"),
                xsi_type=tables.cell(row, "xsiType"),
                uid=tables.cell(row, "UID"),
                series_description=tables.cell(row, "series_description"),
            )
            for row in tables.rows(self.request("GET", path, query, as_json=True))
            if tables.cell(row, "ID")
        ]

    def has_scan(self, session_id: str, scan_id: str) -> bool:
        """Tell whether a session has a scan of this ID."""
        path = f"{tables.session_by_id(session_id)}/scans/{tables.quoted(scan_id)}"
        try:
            self.request("GET", path, {"format": "json"}, as_json=True)
        except messages.RequestFailed as failure:
            if failure.status == 404:
                return False
            raise
        return True

    def files(
        self, project: str, subject: str, session: str, scan_id: str, resource: str
    ) -> dict[str, tables.RemoteFile]:
        """Return the files of a resource by name; empty also where there is no such scan or resource."""
        path = f"{tables.resource_path(project, subject, session, scan_id, resource)}/files"
        rows = tables.rows(
            self.request("GET", path, {"format": "json"}, as_json=True, timeout=self._listing_time)
        )
        return {file.name: file for file in (tables.remote_file(row) for row in rows) if file.name}

    def scan_files(
        self, project: str, subject: str, session: str, scan_id: str
    ) -> dict[str, dict[str, tables.RemoteFile]]:
        """Return the files of all resources of a scan: resource to name to file."""
        path = f"{tables.scan_path(project, subject, session, scan_id)}/files"
        rows = tables.rows(
            self.request("GET", path, {"format": "json"}, as_json=True, timeout=self._listing_time)
        )
        found: dict[str, dict[str, tables.RemoteFile]] = {}
        for row in rows:
            # XNAT takes the scan's part of the address for an ID or a type: leave out scans of that type.
            if tables.scan_of(row) != scan_id:
                continue
            file = tables.remote_file(row)
            if file.name:
                found.setdefault(tables.cell(row, "collection"), {})[file.name] = file
        return found

    @property
    def _listing_time(self) -> float:
        return self._connection.timeouts.send

    # --- making what is not --------------------------------------------------------------------------------

    def create_subject(self, project: str, label: str) -> str:
        """Make the subject, or find it, and return its ID."""
        path = f"/data/projects/{tables.quoted(project)}/subjects/{tables.quoted(label)}"
        return tables.made(self._record(path, {}), label)

    def create_session(
        self, project: str, subject: str, label: str, xsi_type: str, fields: Mapping[str, str]
    ) -> str:
        """Make the session, or set fields of the one that is there, and return its ID.

        `fields` are named as in XNAT's schema below `xsi_type`: `date` (YYYY-MM-DD), `UID`, `modality`,
        `scanner/manufacturer`, `scanner/model`. Empty ones are left out. A session with this label under
        another subject would be moved by XNAT, so look at `sessions` before.
        """
        query = {"xsiType": xsi_type, **tables.fields(xsi_type, fields)}
        return tables.made(self._record(tables.session_path(project, subject, label), query), label)

    def create_scan(
        self,
        project: str,
        subject: str,
        session: str,
        scan_id: str,
        xsi_type: str,
        fields: Mapping[str, str],
    ) -> None:
        """Make the scan, or set fields (`type`, `UID`, `series_description`) of the one that is there."""
        query = {"xsiType": xsi_type, **tables.fields(xsi_type, fields)}
        self._record(tables.scan_path(project, subject, session, scan_id), query)

    def create_resource(
        self,
        project: str,
        subject: str,
        session: str,
        scan_id: str,
        resource: str,
        format: str = "DICOM",
        content: str = "RAW",
    ) -> None:
        """Make the resource; that it exists already is fine."""
        path = tables.resource_path(project, subject, session, scan_id, resource)
        try:
            self._record(path, {"format": format, "content": content})
        except messages.RequestFailed as error:
            if error.status != 409:
                raise

    def _record(self, path: str, query: Mapping[str, str]) -> http.Answer:
        return self.request("PUT", path, query, repeats=http.Repeats(record=True))

    # --- files ---------------------------------------------------------------------------------------------

    def put_archive(
        self,
        project: str,
        subject: str,
        session: str,
        scan_id: str,
        resource: str,
        body: http.BodyFactory,
        archive_name: str,
        overwrite: bool,
    ) -> tuple[str, ...]:
        """Send an archive to be unpacked into the resource; return the names XNAT left as they were.

        `archive_name` decides the format by its ending (.zip, .tar, .tgz, .tar.gz). `body` makes the body
        afresh for each attempt and knows its length. From the second attempt on files are overwritten:
        XNAT keeps what a broken attempt has stored, without listing it.
        """
        path = f"{tables.resource_path(project, subject, session, scan_id, resource)}/files"
        answer = self.request(
            "PUT",
            f"{path}/{tables.quoted(archive_name)}",
            {"extract": "true", **({"overwrite": "true"} if overwrite else {})},
            body,
            headers={"Content-Type": tables.archive_type(archive_name)},
            repeats=http.Repeats(then={"overwrite": "true"}),
            archive=True,
        )
        return tables.duplicates(answer)

    def put_file(
        self,
        project: str,
        subject: str,
        session: str,
        scan_id: str,
        resource: str,
        name: str,
        body: http.BodyFactory,
        overwrite: bool,
    ) -> tuple[str, ...]:
        """Send one file; return its name if XNAT already had one of that name and left it."""
        folder = f"{tables.resource_path(project, subject, session, scan_id, resource)}/files"
        query = {"overwrite": "true"} if overwrite else {}
        repeats = http.Repeats(then={"overwrite": "true"})
        path = f"{folder}/{tables.quoted_path(name)}"
        if len(body()) == 0:
            # XNAT takes no raw body of length zero; a part of a form may be empty.
            part = {"file": (name.rpartition("/")[2], b"", "application/octet-stream")}
            return tables.duplicates(self.request("PUT", path, query, files=part, repeats=repeats))
        headers = {"Content-Type": "application/octet-stream"}
        return tables.duplicates(self.request("PUT", path, query, body, headers=headers, repeats=repeats))

    # --- steps after the upload ----------------------------------------------------------------------------
    #
    # Each is a request of its own, since XNAT starts no pipelines after a pull that failed, and by the session's ID,
    # since a PUT below the subject clears the session's visit and protocol (SubjAssessmentResource.handlePut). None
    # is repeated when no answer comes in time: XNAT goes on with it, and pipelines would start twice.

    def pull_session(self, session_id: str) -> None:
        """Have XNAT fill in a session and its scans from the headers of all its files.

        Only for sessions whose scans were all made over REST: scans that came by the prearchive lose their catalog
        by it (PullSessionDataFromHeaders.call), and list no files any more.
        """
        self._trigger(tables.session_by_id(session_id), {"pullDataFromHeaders": "true"})

    def pull_scan(self, session_id: str, scan_id: str, xsi_type: str) -> None:
        """Have XNAT fill in one scan, made over REST, from the headers of its files."""
        path = f"{tables.session_by_id(session_id)}/scans/{tables.quoted(scan_id)}"
        # Without the kind of scan older XNATs answer 417 (ScanResource.handlePut).
        kind = {"xsiType": xsi_type} if xsi_type else {}
        self._trigger(path, {**kind, "pullDataFromHeaders": "true"})

    def fix_scan_types(self, session_id: str) -> None:
        """Have XNAT give a type to the scans of a session that have none."""
        self._trigger(tables.session_by_id(session_id), {"fixScanTypes": "true"})

    def start_pipelines(self, session_id: str) -> None:
        """Have XNAT start the pipelines that it runs by itself when a session was archived."""
        self._trigger(tables.session_by_id(session_id), {"triggerPipelines": "true"})

    def pull_under_way(self, session_id: str) -> bool:
        """Tell whether XNAT is still at a pull: after a lost answer it goes on. False where it does not say."""
        try:
            history = self.request("GET", f"{tables.session_by_id(session_id)}/history", as_json=True).json()
            pulls = [one for one in history["events"] if one.get("event_action") == _PULL]
            newest = max(pulls, key=lambda one: int(one["event_id"]), default=None)
        except (messages.RequestFailed, ValueError, KeyError, TypeError, AttributeError):
            return False
        return newest is not None and not str(newest.get("event_status")).startswith(("Complete", "Failed"))

    def _trigger(self, path: str, query: Mapping[str, str]) -> None:
        once = http.Repeats(once=True)
        self.request("PUT", path, query, repeats=once, timeout=self._connection.timeouts.finish)

    # --- addresses for people ------------------------------------------------------------------------------

    def link(self, session_id: str, project: str = "") -> str:
        """Return the address of a session's page in the browser."""
        inside = f"/projects/{tables.quoted(project)}" if project else ""
        return f"{self.url}/data{inside}/experiments/{tables.quoted(session_id)}?format=html"

    def request(self, *args: Any, **keywords: Any) -> http.Answer:
        """Send any request: see `Connection.request`."""
        return self._connection.request(*args, **keywords)


def _id(session: RemoteSession | str) -> str:
    return session.id if isinstance(session, RemoteSession) else session
