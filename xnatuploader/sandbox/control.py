"""The sandbox's own URLs, below `/sandbox`: faults, switches, request log and state, for tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from aiohttp import web

from xnatuploader.sandbox import answers, faults, options, store
from xnatuploader.sandbox.calls import Site


async def handle(site: Site, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
    """Answer a control request; they are neither logged nor subject to faults and logins."""
    word = rest[0] if rest else ""
    if "Origin" in request.headers:  # pages in a browser must not control it
        return answers.as_json({"problem": "not for web pages"}, 403)
    answer = ANSWERS.get((request.method, word))
    if answer is None:
        known = sorted(f"{method} /sandbox/{one}" for method, one in ANSWERS)
        return answers.as_json({"problem": "unknown control request", "known": known}, 404)
    try:
        body = await request.json() if request.can_read_body else {}
        return answers.as_json(answer(site, request.query, body))
    except (ValueError, KeyError, TypeError, re.error) as error:
        return answers.as_json({"problem": str(error)}, 400)


def _add_faults(site: Site, query: Mapping[str, str], body: Any) -> Any:
    ready = [faults.make(one) for one in (body if isinstance(body, list) else [body])]
    site.faults.rules += ready
    return {"faults": len(site.faults.rules)}


def _clear_faults(site: Site, query: Mapping[str, str], body: Any) -> Any:
    site.faults.rules = []
    return {"faults": 0}


def _show_faults(site: Site, query: Mapping[str, str], body: Any) -> Any:
    return [one.as_record() for one in site.faults.rules]


def _show_requests(site: Site, query: Mapping[str, str], body: Any) -> Any:
    method, path = query.get("method", ""), re.compile(query.get("path", ""))
    since = int(query.get("since", "0"))
    chosen = [
        one
        for one in site.log
        if one.number > since and (not method or one.method == method) and path.search(one.path)
    ]
    if query.get("count"):
        return {"count": len(chosen), "last": site.counted}
    return [asdict(one) for one in chosen]


def _clear_requests(site: Site, query: Mapping[str, str], body: Any) -> Any:
    site.log.clear()
    return {"last": site.counted}


def _kill_sessions(site: Site, query: Mapping[str, str], body: Any) -> Any:
    return {"killed": site.end_logins(query.get("user") or None)}


def _show_settings(site: Site, query: Mapping[str, str], body: Any) -> Any:
    return asdict(site.settings)


def _change_settings(site: Site, query: Mapping[str, str], body: Any) -> Any:
    site.settings.change(body)
    return asdict(site.settings)


def _add_project(site: Site, query: Mapping[str, str], body: Any) -> Any:
    name = str(body["id"])
    project = site.store.projects.get(name) or store.StoredProject(name, {"name": name})
    project.code = int(body.get("code", project.code))
    site.store.save_project(project)
    return {"project": name}


def _add_user(site: Site, query: Mapping[str, str], body: Any) -> Any:
    user = options.User(**body)
    if {user.role, *user.roles.values()} - set(options.ROLES):
        raise ValueError(f"Roles are: {', '.join(options.ROLES)}.")
    known = site.users.get(user.name)
    if known is None:
        site.users[user.name] = user
    else:  # logins hold the account, so it is changed in place
        known.password, known.role, known.roles = user.password, user.role, user.roles
    site.failed_logins[user.name] = 0
    return {"user": user.name}


def _expire_tokens(site: Site, query: Mapping[str, str], body: Any) -> Any:
    for token in site.store.tokens.values():
        token.expires = 0.0
        site.store.save_token(token)
    return {"expired": len(site.store.tokens)}


def _show_state(site: Site, query: Mapping[str, str], body: Any) -> Any:
    """Show everything as one tree, from projects to files with size and digest."""
    kept = site.store
    tree: dict[str, Any] = {}
    for project in kept.projects.values():
        subjects = {
            subject.label: {
                one.label: _session_tree(kept, one) for one in kept.experiments_of(project.id, subject.id)
            }
            for subject in kept.subjects_of(project.id)
        }
        tree[project.id] = subjects
    return tree


def _session_tree(kept: store.Store, session: store.StoredExperiment) -> dict[str, Any]:
    scans = {
        scan.id: {**scan.fields, "xsi": scan.xsi, "resources": _resource_tree(kept, scan.key)}
        for scan in session.scans.values()
    }
    own = _resource_tree(kept, session.key)
    return {**session.fields, "id": session.id, "xsi": session.xsi, "scans": scans, "resources": own}


def _resource_tree(kept: store.Store, holder: str) -> dict[str, Any]:
    return {
        one.label: {
            "format": one.format,
            "content": one.content,
            "folder": one.folder,
            "files": {name: {"size": e.size, "digest": e.digest} for name, e in one.entries.items()},
        }
        for one in kept.resources_of(holder)
    }


ANSWERS = {
    ("GET", "faults"): _show_faults,
    ("POST", "faults"): _add_faults,
    ("DELETE", "faults"): _clear_faults,
    ("GET", "requests"): _show_requests,
    ("DELETE", "requests"): _clear_requests,
    ("POST", "kill-sessions"): _kill_sessions,
    ("POST", "expire-tokens"): _expire_tokens,
    ("GET", "settings"): _show_settings,
    ("POST", "settings"): _change_settings,
    ("POST", "projects"): _add_project,
    ("POST", "users"): _add_user,
    ("GET", "state"): _show_state,
}
"""By method and first word; tests add some."""
