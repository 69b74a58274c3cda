"""A request: what it asks, who makes it, and the running sandbox that answers it."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import faults, options, store

LOG_LENGTH = 200_000
"""Number of requests that the log keeps."""


@dataclass(slots=True)
class LoggedRequest:
    """One line of the request log."""

    number: int
    time: float
    method: str
    path: str
    """Path and query as sent, context path included."""
    user: str = ""
    status: int = 0
    """0: no answer was sent."""
    received: int = 0
    """Bytes of the body that were read."""
    sent: int = 0
    """Bytes of the answer, as far as known."""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    agent: str = ""


@dataclass(slots=True)
class Login:
    """A server-side login (JSESSIONID)."""

    id: str
    user: options.User
    last_used: float
    csrf: str
    listeners: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Progress messages kept for `/data/status/{id}`; lost with the login."""


class Throttle:
    """Limits the bytes per second of all connections together."""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def take(self, count: int, rate: float) -> None:
        """Wait until `count` bytes may have passed at `rate` bytes per second."""
        if rate <= 0:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 0.05) + count / rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class Site:
    """A running sandbox: its options, records, logins and request log."""

    def __init__(self, chosen: options.SandboxOptions, kept: store.Store) -> None:
        self.options = chosen
        self.settings = options.Settings()
        self.settings.change(chosen.settings)
        self.users = {one.name: one for one in chosen.users}
        self.store = kept
        self.faults = faults.Faults()
        self.faults.rules = [faults.make(one) for one in chosen.faults]
        self.log: collections.deque[LoggedRequest] = collections.deque(maxlen=LOG_LENGTH)
        self.counted = 0
        self.logins: dict[str, Login] = {}
        self.failed_logins: collections.Counter[str] = collections.Counter()
        self.throttle = Throttle()
        self.background: set[asyncio.Task[Any]] = set()
        self.inbox: dict[int, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, str]]] = {}
        """Session ID -> what was done to it, as `/history` lists it."""
        for name in chosen.projects:
            if name not in kept.projects:
                kept.save_project(store.StoredProject(name, {"name": name}))

    def end_logins(self, user: str | None = None) -> list[str]:
        """End a user's logins, or everybody's; return their keys."""
        ended = [key for key, one in self.logins.items() if user in (None, one.user.name)]
        for key in ended:
            del self.logins[key]
        return ended

    def spawn(self, work: Any) -> None:
        """Run a coroutine in the background; a task without a reference could be collected."""
        task = asyncio.ensure_future(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)


@dataclass(slots=True, kw_only=True)
class Actor:
    """Whoever changes a sandbox: the user of a request, or the sandbox itself."""

    site: Site
    plan: faults.FaultPlan
    login: Login | None = None

    @property
    def store(self) -> store.Store:
        """Return the records."""
        return self.site.store

    @property
    def settings(self) -> options.Settings:
        """Return the switches."""
        return self.site.settings

    @property
    def user(self) -> options.User:
        """Return who is logged in."""
        assert self.login is not None
        return self.login.user

    def prearchive_code(self, project: str) -> int:
        """Return a project's prearchive code: the site's default where it has none, 0 for no project."""
        known = self.store.projects.get(project)
        if known is None:
            return 0
        return known.code if known.code >= 0 else self.settings.auto_archive

    def can(self, project: str, what: str) -> bool:
        """Tell whether the user may `read`, `edit` or `delete` in a project."""
        role = self.user.in_project(project)
        return role in {
            "read": ("admin", "owner", "member", "reader"),
            "edit": ("admin", "owner", "member"),
            "delete": ("admin", "owner"),
        }.get(what, ())


@dataclass(slots=True, kw_only=True)
class Call(Actor):
    """One request, and who makes it."""

    request: web.BaseRequest
    logged: LoggedRequest
    segments: list[str]
    """Parts of the path, still percent-encoded."""
    form: Mapping[str, str] | None = None
    """Fields of a multipart body that are parameters too."""
    by_proxy: bool = False
    """Whether a proxy answers instead of XNAT: a proxy reads the rest of the body, Tomcat breaks the connection."""

    @property
    def query(self) -> Mapping[str, str]:
        """Return the query parameters (the first of each name)."""
        return self.request.query

    def flag(self, name: str, default: bool = False) -> bool:
        """Read a yes-or-no parameter as XNAT does: all but `false` and `0` is yes, even an empty value."""
        value = self.request.query.get(name)
        if value is None and self.form is not None:
            value = self.form.get(name)
        return default if value is None else value.lower() not in ("false", "0")
