"""XNAT's projects, subjects, sessions, scans, resources and files: what is there, and making what is not.

Everything is asked for inside one project, so that nothing of another project is ever seen or changed.
Labels, IDs and names are percent-encoded here; callers hand over plain text.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

import requests

from xnatuploader import credentials as login_details
from xnatuploader import errors
from xnatuploader.server import connection, login, messages, transport

logger = logging.getLogger(__name__)

PROMPTS = 2
"""How often a person may type; with a refused netrc entry that makes three, and sites lock after few."""

_FIELD_LENGTH = 255
"""XNAT's text columns hold no more."""


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


OnToken = Callable[[str, str, "datetime | None"], None]
"""Gets alias, secret and expiry of a token that may be saved."""


class Server:
    """A logged-in XNAT; every method may be called from several threads."""

    def __init__(
        self, reach: connection.Connection, found: login_details.Credentials, login_until: datetime | None
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
        clock: connection.Clock | None = None,
        stop: threading.Event | None = None,
    ) -> Server:
        """Log in at `url`. Without `credentials`, or when a netrc entry is refused, ask if `interactive`.

        `wait` is how many seconds to keep trying while the server is away. After a prompted login
        `on_token` gets a token that works in place of the password. Raises `LoginRefused`,
        `ServerUnreachable`, or `UsageError` for an address that is none.
        """
        variables = os.environ if environ is None else environ
        doors = _Doors(
            variables,
            jobs,
            timeouts or transport.Timeouts(),
            clock or connection.Clock(),
            stop or threading.Event(),
            wait,
        )
        base = doors.settle(login.normalize(url))
        asking = ask or (lambda: login_details.prompt(base, environ=variables))
        found, accepted = doors.log_in(base, credentials, asking if interactive else None)
        reach = doors.connect(base, found, accepted)
        token = _issue(reach) if found.from_prompt else None
        until = token.expires if token else found.expires
        if token is not None and on_token is not None:
            on_token(token.alias, token.secret, token.expires)
        elif until is None and login.is_alias(found.user):
            until = _expiry(reach, found.user)
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
        path = f"/data/projects/{_quoted(project)}"
        try:
            answer = self.request("GET", path, {"format": "json"})
        except messages.RequestFailed as error:
            if error.status in (400, 403, 404):
                raise errors.ProjectRefused(
                    f"There is no project {project} on {self.url}, or the account {self.user} may not see "
                    "it. Check Project in the Configuration sheet (capitals count), or ask for access."
                ) from None
            raise errors.ServerUnreachable(
                f"Project {project} could not be opened. {error.message}"
            ) from None
        fields = _item(answer)
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
            rows = _rows(self.request("GET", "/data/projects", query))
        except messages.RequestFailed:
            return False
        if any(_cell(row, "id") == project for row in rows):
            return False
        # An administrator may write everywhere without standing in a project's lists.
        known = False
        for kind in ("roles", "groups"):
            try:
                names = self.request("GET", f"/xapi/users/{_quoted(self.user)}/{kind}").json()
            except (messages.RequestFailed, ValueError):
                continue
            known = True
            if any("admin" in str(name).lower() for name in names):
                return False
        return known

    def subjects(self, project: str) -> dict[str, str]:
        """Return the project's subjects: label to ID."""
        path = f"/data/projects/{_quoted(project)}/subjects"
        rows = _rows(self.request("GET", path, {"columns": "ID,label", "format": "json"}))
        found = {_cell(row, "label"): _cell(row, "ID") for row in rows if _cell(row, "ID")}
        with self._lock:
            self._subject_labels[project] = {identifier: label for label, identifier in found.items()}
        return found

    def sessions(self, project: str) -> list[RemoteSession]:
        """Return everything in the project that bears a session label (XNAT's experiments of any type).

        Subject labels come from the list, or from `subjects` where that was called before.
        """
        path = f"/data/projects/{_quoted(project)}/experiments"
        # Only fields of every experiment: a list rooted at the image sessions would hide other holders of
        # a label.
        query = {"columns": "ID,label,xsiType,date,subject_ID,subject_label,project", "format": "json"}
        with self._lock:
            labels = dict(self._subject_labels.get(project, {}))
        return [
            RemoteSession(
                id=_cell(row, "ID"),
                label=_cell(row, "label"),
                subject_id=_cell(row, "subject_ID"),
                subject_label=_cell(row, "subject_label") or labels.get(_cell(row, "subject_ID"), ""),
                xsi_type=_cell(row, "xsiType"),
                date=_cell(row, "date"),
                uid=_cell(row, "UID"),
            )
            for row in _rows(self.request("GET", path, query))
            if _cell(row, "ID")
        ]

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
        path = f"/data/projects/{_quoted(project)}/experiments/{_quoted(identifier)}"
        return str(_item(self.request("GET", path, {"format": "json"})).get("UID") or "")

    def _all_uids(self, project: str) -> dict[str, str]:
        path = f"/data/projects/{_quoted(project)}/experiments"
        query = {"xsiType": "xnat:imageSessionData", "columns": "ID,UID", "format": "json"}
        try:
            rows = _rows(self.request("GET", path, query))
        except messages.RequestFailed:
            return {}
        return {_cell(row, "ID"): _cell(row, "UID") for row in rows if _cell(row, "UID")}

    def scans(self, project: str, session: RemoteSession | str) -> list[RemoteScan]:
        """Return the scans of a session."""
        path = f"/data/projects/{_quoted(project)}/experiments/{_quoted(_id(session))}/scans"
        query = {"columns": "ID,type,xsiType,UID,series_description", "format": "json"}
        return [
            RemoteScan(
                id=_cell(row, "ID"),
                type=_cell(row, "type"),
                xsi_type=_cell(row, "xsiType"),
                uid=_cell(row, "UID"),
                series_description=_cell(row, "series_description"),
            )
            for row in _rows(self.request("GET", path, query))
            if _cell(row, "ID")
        ]

    def files(
        self, project: str, subject: str, session: str, scan_id: str, resource: str
    ) -> dict[str, RemoteFile]:
        """Return the files of a resource by name; empty also where there is no such scan or resource."""
        path = f"{_scan_path(project, subject, session, scan_id)}/resources/{_quoted(resource)}/files"
        rows = _rows(self.request("GET", path, {"format": "json"}, timeout=self._listing_time))
        return {file.name: file for file in (_file(row) for row in rows) if file.name}

    def scan_files(
        self, project: str, subject: str, session: str, scan_id: str
    ) -> dict[str, dict[str, RemoteFile]]:
        """Return the files of all resources of a scan: resource to name to file."""
        path = f"{_scan_path(project, subject, session, scan_id)}/files"
        rows = _rows(self.request("GET", path, {"format": "json"}, timeout=self._listing_time))
        found: dict[str, dict[str, RemoteFile]] = {}
        for row in rows:
            # XNAT takes the scan's part of the address for an ID or a type: leave out scans of that type.
            if f"/scans/{_quoted(scan_id)}/" not in _cell(row, "URI"):
                continue
            file = _file(row)
            if file.name:
                found.setdefault(_cell(row, "collection"), {})[file.name] = file
        return found

    @property
    def _listing_time(self) -> float:
        return self._connection.timeouts.send

    # --- making what is not --------------------------------------------------------------------------------

    def create_subject(self, project: str, label: str) -> str:
        """Make the subject, or find it, and return its ID."""
        path = f"/data/projects/{_quoted(project)}/subjects/{_quoted(label)}"
        return _made(self._record(path, {}), label)

    def create_session(
        self, project: str, subject: str, label: str, xsi_type: str, fields: Mapping[str, str]
    ) -> str:
        """Make the session, or set fields of the one that is there, and return its ID.

        `fields` are named as in XNAT's schema below `xsi_type`: `date` (YYYY-MM-DD), `UID`, `modality`,
        `scanner/manufacturer`, `scanner/model`. Empty ones are left out. A session with this label under
        another subject would be moved by XNAT, so look at `sessions` before.
        """
        query = {"xsiType": xsi_type, **_fields(xsi_type, fields)}
        return _made(self._record(_session_path(project, subject, label), query), label)

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
        query = {"xsiType": xsi_type, **_fields(xsi_type, fields)}
        self._record(_scan_path(project, subject, session, scan_id), query)

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
        path = f"{_scan_path(project, subject, session, scan_id)}/resources/{_quoted(resource)}"
        try:
            self._record(path, {"format": format, "content": content})
        except messages.RequestFailed as error:
            if error.status != 409:
                raise

    def _record(self, path: str, query: Mapping[str, str]) -> connection.Answer:
        return self.request("PUT", path, query, repeats=connection.Repeats(record=True))

    # --- files ---------------------------------------------------------------------------------------------

    def put_archive(
        self,
        project: str,
        subject: str,
        session: str,
        scan_id: str,
        resource: str,
        body: connection.BodyFactory,
        archive_name: str,
        overwrite: bool,
    ) -> tuple[str, ...]:
        """Send an archive to be unpacked into the resource; return the names XNAT left as they were.

        `archive_name` decides the format by its ending (.zip, .tar, .tgz, .tar.gz). `body` makes the body
        afresh for each attempt and knows its length. From the second attempt on files are overwritten:
        XNAT keeps what a broken attempt has stored, without listing it.
        """
        path = f"{_scan_path(project, subject, session, scan_id)}/resources/{_quoted(resource)}/files"
        answer = self.request(
            "PUT",
            f"{path}/{_quoted(archive_name)}",
            {"extract": "true", **({"overwrite": "true"} if overwrite else {})},
            body,
            headers={"Content-Type": _archive_type(archive_name)},
            repeats=connection.Repeats(then={"overwrite": "true"}),
            archive=True,
        )
        return _duplicates(answer)

    def put_file(
        self,
        project: str,
        subject: str,
        session: str,
        scan_id: str,
        resource: str,
        name: str,
        body: connection.BodyFactory,
        overwrite: bool,
    ) -> tuple[str, ...]:
        """Send one file; return its name if XNAT already had one of that name and left it."""
        folder = f"{_scan_path(project, subject, session, scan_id)}/resources/{_quoted(resource)}/files"
        query = {"overwrite": "true"} if overwrite else {}
        repeats = connection.Repeats(then={"overwrite": "true"})
        path = f"{folder}/{_quoted_path(name)}"
        if len(body()) == 0:
            # XNAT takes no raw body of length zero; a part of a form may be empty.
            part = {"file": (name.rpartition("/")[2], b"", "application/octet-stream")}
            return _duplicates(self.request("PUT", path, query, files=part, repeats=repeats))
        headers = {"Content-Type": "application/octet-stream"}
        return _duplicates(self.request("PUT", path, query, body, headers=headers, repeats=repeats))

    def finish(
        self,
        project: str,
        subject: str,
        session: str,
        *,
        pull: bool = True,
        fix: bool = True,
        pipelines: bool = True,
    ) -> None:
        """Have XNAT read the headers, fix scan types and start its pipelines, in one request.

        It is not repeated when no answer comes in time: XNAT goes on with it, and pipelines would start
        twice.
        """
        steps = {"pullDataFromHeaders": pull, "fixScanTypes": fix, "triggerPipelines": pipelines}
        query = {name: "true" for name, wanted in steps.items() if wanted}
        if not query:
            return
        self.request(
            "PUT",
            _session_path(project, subject, session),
            query,
            repeats=connection.Repeats(once=True),
            timeout=self._connection.timeouts.finish,
        )

    def link(self, session_id: str, project: str = "") -> str:
        """Return the address of a session's page in the browser."""
        inside = f"/projects/{_quoted(project)}" if project else ""
        return f"{self.url}/data{inside}/experiments/{_quoted(session_id)}?format=html"

    def request(self, *args: Any, **keywords: Any) -> connection.Answer:
        """Send any request: see `Connection.request`."""
        return self._connection.request(*args, **keywords)


@dataclass(frozen=True, slots=True)
class _Doors:
    """The way in: everything that a login needs beside address and credentials."""

    environ: Mapping[str, str]
    jobs: int
    timeouts: transport.Timeouts
    clock: connection.Clock
    stop: threading.Event
    wait: float

    def settle(self, base: str) -> str:
        """Return the address the server itself uses; raises `ServerUnreachable` if none answers."""
        session = self._session()
        try:
            return connection.with_patience(
                lambda: login.settle(session, base, self.timeouts), self.clock, self.stop, self.wait
            )
        except login.Unclear as error:
            raise errors.ServerUnreachable(str(error)) from None
        finally:
            session.close()

    def log_in(
        self,
        base: str,
        given: login_details.Credentials | None,
        asking: Callable[[], login_details.Credentials] | None,
    ) -> tuple[login_details.Credentials, login.Accepted]:
        """Return credentials that the server accepts, with its answer."""
        if given is None and asking is None:
            raise login_details.missing(base, self.environ)
        prompts = PROMPTS if asking is not None else 0
        found = given
        while True:
            if found is None:
                assert asking is not None  # nothing is left to try without asking, and that was seen above
                found, prompts = asking(), prompts - 1
            try:
                return found, self._question(base, found)
            except login.Refused as error:
                trouble = connection.refused(found, base, error)
                may_ask = found.from_prompt or found.source.startswith("netrc")
                if prompts <= 0 or not may_ask:
                    raise trouble from None
                logger.warning("%s", trouble)
                found = None

    def _question(self, base: str, found: login_details.Credentials) -> login.Accepted:
        session = self._session()
        try:
            return connection.with_patience(
                lambda: login.ask(session, base, found, self.timeouts), self.clock, self.stop, self.wait
            )
        except login.Unclear as error:
            hint = ""
            if error.not_xnat and login.below_xnat(session, base, self.timeouts):
                hint = f" There is one at {base}/xnat: write that address."
            raise errors.ServerUnreachable(f"{error}{hint}") from None
        finally:
            session.close()

    def connect(
        self, base: str, found: login_details.Credentials, accepted: login.Accepted
    ) -> connection.Connection:
        """Open the connection that the run will use."""
        connected = login.connect(base, found, self.environ)
        if connected is None:
            session = self._session()
        else:
            session = transport.prepare(connected.interface, self.jobs, self.environ)
            token = session.cookies.get_dict().get("JSESSIONID", "")
            if token:
                self._end(base, accepted.token)
                accepted = login.Accepted(accepted.user, token)
        return connection.Connection(
            base,
            session,
            found,
            accepted,
            connected=connected,
            wait=self.wait,
            timeouts=self.timeouts,
            clock=self.clock,
            stop=self.stop,
        )

    def _end(self, base: str, token: str) -> None:
        """End the session that the login question opened; the connection has one of its own."""
        session = self._session()
        try:
            cookie = {"Cookie": f"JSESSIONID={token}"}
            session.delete(base + "/data/JSESSION", headers=cookie, timeout=(3, 5), allow_redirects=False)
        except (requests.exceptions.RequestException, OSError):
            pass  # it ends by itself
        finally:
            session.close()

    def _session(self) -> requests.Session:
        return transport.prepare(requests.Session(), self.jobs, self.environ)


def _issue(reach: connection.Connection) -> login.Token | None:
    try:
        return login.read_token(reach.request("GET", "/data/services/tokens/issue").text)
    except messages.RequestFailed as error:
        logger.info("The server issued no token to save (%s); the next run has to ask again.", error.message)
        return None


def _expiry(reach: connection.Connection, alias: str) -> datetime | None:
    try:
        return login.expiry_of(alias, reach.request("GET", "/data/services/tokens/show").text)
    except messages.RequestFailed:
        return None


# --- addresses and answers ---------------------------------------------------------------------------------


def _session_path(project: str, subject: str, session: str) -> str:
    return f"/data/projects/{_quoted(project)}/subjects/{_quoted(subject)}/experiments/{_quoted(session)}"


def _scan_path(project: str, subject: str, session: str, scan_id: str) -> str:
    return f"{_session_path(project, subject, session)}/scans/{_quoted(scan_id)}"


def _quoted(part: str) -> str:
    """Encode one part of a path. Raises `RequestFailed` for what no encoding can carry."""
    if part in ("", ".", ".."):
        raise messages.RequestFailed(0, f"'{part}' cannot be the name of anything on XNAT.", "other")
    return quote(part, safe="")


def _quoted_path(name: str) -> str:
    return "/".join(_quoted(part) for part in name.split("/"))


def _id(session: RemoteSession | str) -> str:
    return session.id if isinstance(session, RemoteSession) else session


def _fields(xsi_type: str, fields: Mapping[str, str]) -> dict[str, str]:
    """Name each field by its full path: short names exist only for some."""
    return {f"{xsi_type}/{name}": value[:_FIELD_LENGTH] for name, value in fields.items() if value}


def _made(answer: connection.Answer, label: str) -> str:
    """Return the ID in a create's answer; where the body is empty the label serves as well."""
    text = answer.text.strip()
    return text.rpartition("/")[2] if text and "\n" not in text and len(text) < 200 else label


def _rows(answer: connection.Answer) -> list[Mapping[str, Any]]:
    """Return the rows of a table. Raises `RequestFailed` if the answer is none."""
    try:
        rows = answer.json()["ResultSet"]["Result"]
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            return rows
    except (ValueError, KeyError, TypeError):
        pass
    raise messages.RequestFailed(answer.status, "XNAT's list came incomplete. Try again.", "server")


def _item(answer: connection.Answer) -> Mapping[str, Any]:
    """Return the fields of a single record. Raises `RequestFailed` if the answer is none."""
    try:
        fields = answer.json()["items"][0]["data_fields"]
        if isinstance(fields, dict):
            return fields
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    raise messages.RequestFailed(answer.status, "XNAT's answer came incomplete. Try again.", "server")


def _cell(row: Mapping[str, Any], name: str) -> str:
    """Return a cell as text, whether XNAT heads its column by the short name or by a path in lower case."""
    value = row.get(name)
    if value is None:
        wanted = name.lower()
        for heading, cell in row.items():
            if heading.lower() == wanted or heading.lower().rpartition("/")[2] == wanted:
                value = cell
                break
    return "" if value is None else str(value)


def _file(row: Mapping[str, Any]) -> RemoteFile:
    """Read a row of a file list: the path inside the resource stands encoded in the URI, not in `Name`."""
    inside = _cell(row, "URI").partition("/files/")[2]
    size = _cell(row, "Size")
    return RemoteFile(
        unquote(inside) if inside else _cell(row, "Name"),
        int(size) if size.isdigit() else -1,
        _cell(row, "digest").lower(),
    )


def _duplicates(answer: connection.Answer) -> tuple[str, ...]:
    """Return the names in a `duplicates` answer (JSON, labelled as HTML)."""
    text = answer.text.strip()
    if not text.startswith("{"):
        return ()
    try:
        names = json.loads(text).get("duplicates", [])
    except ValueError:
        return ()
    return tuple(unquote(str(name)) for name in names)


def _archive_type(name: str) -> str:
    """Return the type by which XNAT would name a nameless body, so that both ways of telling agree."""
    if name.endswith(".zip"):
        return "application/zip"
    if name.endswith((".tgz", ".tar.gz")):
        return "application/x-gtar"
    return "application/x-tar"
