"""What a sandbox is started with, and the switches that can be changed while it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("admin", "owner", "member", "reader", "none")
"""A user's roles in a project: admin and owner may delete, member may add, reader may read, none may not see it."""


@dataclass(slots=True)
class Settings:
    """Switches of the site. All can be changed while the sandbox runs (`POST /sandbox/settings`)."""

    checksums: bool = True
    """XNAT's site preference; without it the digests in listings are empty."""
    session_timeout: float = 900.0
    """Seconds without a request after which a login has to be made again."""
    max_sessions: int = 1000
    """Logins of one user at a time; above it the next login is refused with 401."""
    max_failed_logins: int = 20
    """Wrong passwords after which the account is locked for an hour."""
    token_timeout: float = 172_800.0
    """Seconds that an alias token lives."""
    auto_archive: int = 4
    """Prearchive code of projects that have none of their own: 0 manual, 4 archive, 5 archive and replace."""
    builder_idle: float = 300.0
    """Seconds after the last file until the session builder takes a session in the prearchive."""
    builder_interval: float = 60.0
    """Seconds between two rounds of the session builder."""
    archive_seconds: float = 0.0
    """Seconds that archiving one session takes (a slow server)."""
    body_limit: int = 0
    """Bytes above which a proxy in front answers 413; 0 is no limit."""
    refuse_archives: int = 0
    """Status with which a proxy answers every request that says `extract=true`; 0 lets them through."""
    bandwidth: float = 0.0
    """Bytes per second of request bodies over all connections together; 0 is no limit."""
    latency: float = 0.0
    """Seconds that every request takes longer."""
    max_swallow: int = 2_097_152
    """Bytes of an unwanted body that are still read; above it the connection is dropped, as Tomcat does."""
    bad_label_status: int = 500
    """What a PUT with a label that XNAT cannot hold is answered with (newer releases may say 400)."""
    pull_changes_types: bool = True
    """Whether `pullDataFromHeaders` replaces a scan's type by its series description."""
    anonymize_imports: bool = True
    """Whether the site's anonymisation, as XNAT ships it, rewrites files of the import service (UIDs stay)."""
    version: str = "1.8.11"

    def change(self, values: Mapping[str, Any]) -> None:
        """Set the named switches; an unknown name or a value of the wrong kind is a ValueError."""
        kinds = {one.name: type(getattr(self, one.name)) for one in dataclasses.fields(self)}
        for name, value in values.items():
            if name not in kinds:
                raise ValueError(
                    f"There is no switch called {name}. Switches are: {', '.join(sorted(kinds))}."
                )
            setattr(self, name, _as_kind(kinds[name], name, value))


_YES, _NO = ("yes", "y", "true", "on", "1"), ("no", "n", "false", "off", "0")


def _as_kind(kind: type, name: str, value: Any) -> Any:
    if kind is bool:
        word = str(value).lower()
        if word not in (*_YES, *_NO):
            raise ValueError(f"The switch {name} needs yes or no, not {value!r}.")
        return word in _YES
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The switch {name} needs a number, not {value!r}.") from error


@dataclass(slots=True)
class User:
    """An account. `role` holds in every project that `roles` does not name."""

    name: str
    password: str
    role: str = "owner"
    roles: dict[str, str] = field(default_factory=dict)

    def in_project(self, project: str) -> str:
        """Return this user's role in a project."""
        return "admin" if self.role == "admin" else self.roles.get(project, self.role)


@dataclass(slots=True)
class SandboxOptions:
    """Everything a sandbox is started with."""

    folder: str
    """Folder of archive, prearchive and state. A sandbox started with it again continues with what it holds."""
    port: int = 0
    """0: the operating system chooses a free one."""
    context: str = ""
    """Context path, as `/xnat`."""
    users: list[User] = field(default_factory=lambda: [User("demo", "demo")])
    projects: list[str] = field(default_factory=lambda: ["DEMO"])
    cert: str = ""
    """PEM file of a certificate; with it the sandbox serves https."""
    key: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"There is no port {self.port}. Ports are numbers from 1 to 65535.")

    def as_json(self) -> str:
        """Return one line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SandboxOptions:
        """Read what `as_json` wrote."""
        values = json.loads(text)
        values["users"] = [User(**one) for one in values.get("users", [])]
        return cls(**values)


def parse_user(text: str) -> User:
    """Read `name:password[:role[@project]...]`, as the command line takes it."""
    name, _, rest = text.partition(":")
    password, _, roles = rest.partition(":")
    if not name or not password:
        raise ValueError(f"A user is given as name:password or name:password:role, not {text!r}.")
    user = User(name, password)
    for one in filter(None, roles.split(",")):
        role, _, project = one.partition("@")
        if role not in ROLES:
            raise ValueError(f"There is no role {role!r}. Roles are: {', '.join(ROLES)}.")
        if project:
            user.roles[project] = role
        else:
            user.role = role
    return user
