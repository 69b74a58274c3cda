"""An older or stricter XNAT than the package's sandbox, run in its place: `python -m tests.helpers.strict_xnat`.

The first argument is a JSON record of `Strict`. Each switch has a function below, which stands around every answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.helpers import sandbox_records
from xnatuploader.sandbox import __main__ as sandbox
from xnatuploader.sandbox import answers, app, bodies, control, faults
from xnatuploader.sandbox.calls import Call, Login

PASSING = (
    "Session processing may already be in progress.",
    "Concurrent modification is discouraged.",
    "Duplicate archive attempt.",
    "Destination session in use.",
)
"""What an import is refused with while somebody else is busy with its session (seen on 1.9.2.1)."""


@dataclass(frozen=True, slots=True)
class Strict:
    """In what a test's XNAT differs."""

    drops_tar: bool = False
    """As before 1.8: a tar to be extracted is answered with 200, and nothing of it is stored."""
    keeps_history: bool = False
    """Files that an archive replaces (`extract` with `overwrite`) are kept in `cache/.history` of its folder."""
    shares: bool = False
    """`PUT .../subjects/S/projects/Q` shares a subject into a project, where nobody may change it then."""
    custom_groups: Mapping[str, str] = field(default_factory=dict)
    """User -> the only type of session that the user may make. These users may not make or change subjects."""
    import_refusals: int = 0
    """How many imports are refused at first, with a 400 that passes."""
    silent_imports: bool = False
    """An import in the background never says that it has ended."""
    never_set_up: bool = False
    """Only `/xapi/siteConfig` answers; everything else leads to `/setup`."""
    no_single_entries: bool = False
    """As in 1.7.0 to 1.7.2: an entry of the prearchive has no address to read it at."""


def command(chosen: Mapping[str, Any]) -> list[str]:
    """Return the module and its argument that `process.start` runs."""
    Strict(**chosen)  # an unknown switch fails here, not in the other process
    return [__name__, json.dumps(chosen)]


class StrictXnat:
    """Stands around the sandbox's answers."""

    def __init__(self, strict: Strict) -> None:
        self.strict = strict
        self.refused = 0
        self.shared: set[tuple[str, str]] = set()
        """Project and label of the subjects that are shared into it."""
        rules = {
            "never_set_up": self._never_set_up,
            "drops_tar": self._tar,
            "shares": self._shares,
            "custom_groups": self._custom_groups,
            "import_refusals": self._busy,
            "no_single_entries": self._no_entry,
        }
        self._rules = [rule for name, rule in rules.items() if getattr(strict, name)]

    async def around(self, call: Call, answer: app.Answer) -> web.StreamResponse:
        """Answer as the first rule says that has an answer; else as the sandbox does."""
        for rule in self._rules:
            early = await rule(call)
            if early is not None:
                return early
        before = _stored(call) if self.strict.keeps_history and _replaces(call) else {}
        response = await answer(call)
        if before:
            _keep(call, before)
        if self.strict.silent_imports and isinstance(response, web.Response):
            _without_end(call, response)
        return response

    async def _never_set_up(self, call: Call) -> web.StreamResponse | None:
        """XnatInitCheckFilter."""
        if _parts(call)[:2] == ["xapi", "siteConfig"]:
            return None
        raise answers.Refusal(302, "", {"Location": f"{call.site.options.context}/setup"})

    async def _tar(self, call: Call) -> web.StreamResponse | None:
        """CatalogUtils.storeCatalogEntry of 1.7.6."""
        if call.request.method == "PUT" and call.request.path.endswith(".tar") and call.flag("extract"):
            call.plan = faults.FaultPlan([*call.plan.faults, faults.Fault("lose")])
        return None

    async def _shares(self, call: Call) -> web.StreamResponse | None:
        """SubjectResource: a group only reads what is shared into its project; sharing again is a conflict."""
        if call.request.method != "PUT" or _login(call) is None:
            return None
        match _parts(call):
            case ["data", "projects", project, "subjects", name, "projects", into]:
                subject = call.store.subject(project, name)
                assert subject is not None
                label = call.query.get("label", subject.id)
                if (into, label) in self.shared or call.store.subject(into, label) is not None:
                    raise answers.Refusal(409, "Already assigned to project")
                self.shared.add((into, label))
                call.store.new_subject(into, label, {})
                return answers.text()
            case ["data", "projects", project, "subjects", name] if (project, name) in self.shared:
                raise answers.Refusal(403, "User account has insufficient edit privileges for this subject.")
        return None

    async def _custom_groups(self, call: Call) -> web.StreamResponse | None:
        """PermissionsProjectHandler lists projects by type of record; each record's own class refuses."""
        login = _login(call)
        may = self.strict.custom_groups.get(login.user.name) if login is not None else None
        if may is None:
            return None
        kind = call.query.get("dataType", "")
        match (call.request.method, _parts(call)):
            case ("GET", ["data", "projects"]) if kind and kind != may:
                return answers.table(call.query, ("id", "name"), [])
            case ("PUT", ["data", "projects", _, "subjects", _]):
                raise answers.Refusal(403, "Specified user account has insufficient privileges for subjects.")
            case ("PUT", ["data", "projects", _, "subjects", _, "experiments", _]):
                if call.query.get("xsiType", may) != may:
                    raise answers.Refusal(403, "Specified user account has insufficient create privileges.")
        return None

    async def _busy(self, call: Call) -> web.StreamResponse | None:
        """Refuse the first imports, each with another sentence."""
        if call.request.method != "POST" or _parts(call) != ["data", "services", "import"]:
            return None
        if self.refused >= self.strict.import_refusals or _login(call) is None:
            return None
        self.refused += 1
        await bodies.discard(call)
        raise answers.Refusal(400, PASSING[self.refused % len(PASSING)])

    async def _no_entry(self, call: Call) -> web.StreamResponse | None:
        """XNAT 1.7.0 to 1.7.2 read entries in lists only (no PrearcSessionResource for GET)."""
        match _parts(call):
            case ["data", "prearchive", "projects", _, _, _] if call.request.method == "GET":
                raise answers.unknown_address()
        return None


def _parts(call: Call) -> list[str]:
    """Return the decoded parts of the path, without the context path."""
    return call.request.path.removeprefix(call.site.options.context).strip("/").split("/")


def _login(call: Call) -> Login | None:
    """Return the login of the request's cookie; a request without one is the sandbox's to refuse."""
    return call.site.logins.get(call.request.cookies.get("JSESSIONID", ""))


def _replaces(call: Call) -> bool:
    return call.request.method == "PUT" and call.flag("extract") and call.flag("overwrite")


def _stored(call: Call) -> dict[Path, tuple[int, bytes]]:
    """Return every file of the archive with its time and its bytes; a test holds few."""
    files = (one for one in call.store.archive.rglob("*") if one.is_file() and one.suffix != ".xml")
    return {one: (one.stat().st_mtime_ns, one.read_bytes()) for one in files}


def _keep(call: Call, before: Mapping[Path, tuple[int, bytes]]) -> None:
    """Keep what was replaced, as TarUtils and ZipUtils do even where `maintainFileHistory` is off."""
    kept = Path(call.site.options.folder) / "cache" / ".history"
    for path, (time, data) in before.items():
        if path.stat().st_mtime_ns != time:
            copy = kept / path.relative_to(call.store.archive)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)


def _without_end(call: Call, response: web.Response) -> None:
    """Leave out the last message of an import in the background."""
    if _parts(call)[:2] == ["data", "status"] and response.status == 200 and isinstance(response.body, bytes):
        (messages,) = json.loads(response.body)["msgs"]
        response.body = json.dumps({"msgs": [[one for one in messages if not one["terminal"]]]}).encode()


if __name__ == "__main__":
    control.ANSWERS.update(sandbox_records.ANSWERS)
    sys.exit(sandbox.main(StrictXnat(Strict(**json.loads(sys.argv[1]))).around))
