"""A sandbox in its own process for tests: start it, add faults, count its requests, kill it, start it again."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.helpers import addresses, strict_xnat
from xnatuploader.sandbox import options, process


class Sandbox:
    """`with Sandbox(tmp_path / "xnat", projects=["P"]) as box:`, then `box.url`, `box.user`, `box.password`.

    Keyword arguments are those of `options.SandboxOptions` (users, projects, context, cert, key, settings, faults);
    those of `strict_xnat.Strict` say in what it differs from the package's sandbox, as `drops_tar=True`;
    any other one is a switch of `options.Settings`, as `checksums=False` or `latency=0.02`.
    """

    def __init__(self, folder: Path, **chosen: Any) -> None:
        self.folder = Path(folder)
        known = options.SandboxOptions.__slots__
        self.strict = {name: chosen.pop(name) for name in strict_xnat.Strict.__slots__ if name in chosen}
        settings = {name: chosen.pop(name) for name in list(chosen) if name not in known}
        chosen["settings"] = {**chosen.get("settings", {}), **settings}
        chosen["users"] = [
            options.parse_user(u) if isinstance(u, str) else u for u in chosen.get("users", ["demo:demo"])
        ]
        self.options = options.SandboxOptions(folder=str(self.folder), **chosen)
        self.user = self.options.users[0].name
        self.password = self.options.users[0].password
        self.running: process.SandboxProcess | None = None
        self.start()

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.running = process.start(self.options, strict_xnat.command(self.strict))
        # a restarted server keeps its port
        self.options.port = int(urllib.parse.urlsplit(self.url).port or 0)

    def stop(self) -> None:
        """Stop it. Raises `AssertionError` where the program made a request that fits none of its addresses."""
        if self.running is None:
            return
        try:
            strangers = addresses.strangers(self.requests(), self.options.context)
        finally:
            self.running.stop()
            self.running = None
        assert not strangers, f"fits no address in xnat/routes.py: {strangers[:10]}"

    def kill(self) -> None:
        """End it as a power cut does: it writes nothing any more."""
        if self.running is not None:
            self.running.kill()
            self.running = None

    def restart(self) -> None:
        """Stop it and start it again with the same port, folder and faults; logins are lost."""
        self.stop()
        self.start()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        assert self.running is not None, "the sandbox is stopped"
        return self.running.url

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    # -- control ---------------------------------------------------------------------------------------------

    def control(self, method: str, path: str, body: Any = None) -> Any:
        assert self.running is not None, "the sandbox is stopped"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.running.root}/sandbox/{path}", data=data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        context = None
        if self.options.cert:
            import ssl

            context = ssl._create_unverified_context()
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=60) as answer:
            return json.loads(answer.read())

    def fault(self, do: str, **values: Any) -> None:
        """`box.fault("status", method="PUT", path="/files/", first=3, times=1, status=503)`."""
        self.control("POST", "faults", {"do": do, **values})

    def clear_faults(self) -> None:
        self.control("DELETE", "faults")

    def faults(self) -> list[dict[str, Any]]:
        """Return the rules, with how many requests they `matched` and `struck`."""
        return list(self.control("GET", "faults"))

    def requests(self, method: str = "", path: str = "", since: int = 0) -> list[dict[str, Any]]:
        """Return the requests so far: number, method, path, status (0: no answer), received, sent, user, faults."""
        query = urllib.parse.urlencode({"method": method, "path": path, "since": since})
        return list(self.control("GET", f"requests?{query}"))

    def count(self, method: str = "", path: str = "", since: int = 0) -> int:
        query = urllib.parse.urlencode({"method": method, "path": path, "since": since, "count": 1})
        return int(self.control("GET", f"requests?{query}")["count"])

    def clear_requests(self) -> None:
        self.control("DELETE", "requests")

    def kill_sessions(self) -> None:
        self.control("POST", "kill-sessions")

    def expire_tokens(self) -> None:
        self.control("POST", "expire-tokens")

    def set(self, **switches: Any) -> None:
        """Change switches of `options.Settings` while it runs."""
        self.control("POST", "settings", switches)
        self.options.settings.update(switches)

    def add_project(self, name: str, code: int = -1) -> None:
        self.control("POST", "projects", {"id": name, "code": code})

    def add_user(self, name: str, password: str, role: str = "owner", **roles: str) -> None:
        """Add an account. Roles are admin, owner, member, reader, none; keywords give roles in single projects."""
        user = {"name": name, "password": password, "role": role, "roles": roles}
        self.control("POST", "users", user)
        others = [one for one in self.options.users if one.name != name]
        self.options.users = [*others, options.User(name, password, role, dict(roles))]

    def put_state(self, tree: Mapping[str, Any]) -> None:
        """Add records: {project: {subject: {session: {"xsi": .., "date": .., "UID": .., "scans": {id: {"type"}}}}}}."""
        self.control("POST", "state", tree)

    def state(self) -> dict[str, Any]:
        """Return the tree: state[project][subject][session]["scans"][id]["resources"][label]["files"][name]."""
        return dict(self.control("GET", "state"))

    def files(self, project: str = "") -> dict[str, str]:
        """Return every file in a catalog: `subject/session/scan/resource/name` -> digest."""
        found = {}
        for name, subjects in self.state().items():
            if project and name != project:
                continue
            for subject, sessions in subjects.items():
                for session, record in sessions.items():
                    for scan, values in record["scans"].items():
                        for label, resource in values["resources"].items():
                            for file, entry in resource["files"].items():
                                found[f"{subject}/{session}/{scan}/{label}/{file}"] = entry["digest"]
        return found

    def flush(self) -> None:
        """Have it write the catalog files now."""
        self.control("POST", "flush")
