"""Who makes a request: passwords, alias tokens, logins that expire, the login page for browsers."""

from __future__ import annotations

import base64
import re
import secrets
import time
import uuid
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from xnatuploader.sandbox import answers, options, store
from xnatuploader.sandbox.calls import Call, Login, Site

REALM = "XNAT"
BROWSER = re.compile(r"MSIE|Mozilla|AppleWebKit|Opera")
"""User-Agents that XNAT takes for a web browser."""


def is_browser(request: web.BaseRequest) -> bool:
    """Tell whether the request says that it comes from a web browser."""
    return bool(BROWSER.search(request.headers.get("User-Agent", "")))


def identify(call: Call) -> Login | None:
    """Find the login a request belongs to, or make one from its Basic credentials; None is a guest.

    A valid cookie is enough: the password is not checked again. Wrong credentials are a
    Refusal 401, an expired alias token 403.
    """
    site, request = call.site, call.request
    login = _known(site, request.cookies.get("JSESSIONID", ""))
    header = request.headers.get("Authorization", "")
    if login is not None and (not header or _names(call, header, login)):
        login.last_used = time.monotonic()
        return login
    if not header:
        return None
    if not header.startswith("Basic "):
        raise challenge(call)
    return open_login(call, *_credentials(header))


def _credentials(header: str) -> tuple[str, str]:
    try:
        name, _, password = base64.b64decode(header[6:]).decode().partition(":")
    except ValueError as error:
        raise answers.Refusal(500, "The Basic authentication header could not be read") from error
    return name, password


def _names(call: Call, header: str, login: Login) -> bool:
    """Tell whether Basic credentials name the user of a login, directly or by an alias."""
    name, _ = _credentials(header)
    token = call.store.tokens.get(name)
    return (token.user if token is not None else name.rpartition("/")[2]) == login.user.name


def _known(site: Site, key: str) -> Login | None:
    login = site.logins.get(key)
    if login is None:
        return None
    if time.monotonic() - login.last_used > site.settings.session_timeout:
        del site.logins[key]
        return None
    return login


def open_login(call: Call, name: str, password: str) -> Login:
    """Check credentials and begin a login."""
    site = call.site
    user = _check(call, name, password)
    mine = sum(1 for one in site.logins.values() if one.user is user)
    if mine >= site.settings.max_sessions:
        raise challenge(call, "Too many logins of this user")
    login = Login(secrets.token_hex(16).upper(), user, time.monotonic(), str(uuid.uuid4()))
    site.logins[login.id] = login
    return login


def _check(call: Call, name: str, password: str) -> options.User:
    site = call.site
    token = site.store.tokens.get(name)
    if token is not None and token.valid and secrets.compare_digest(token.secret, password):
        if time.time() > token.expires:
            raise answers.Refusal(403, "Your security token has expired or is invalid. Please log in again.")
        return site.users[token.user]
    user = site.users.get(name.rpartition("/")[2])
    locked = user is not None and site.failed_logins[user.name] >= site.settings.max_failed_logins
    if user is None or locked or not secrets.compare_digest(user.password.encode(), password.encode()):
        if user is not None:
            site.failed_logins[user.name] += 1
        raise challenge(
            call, "Your login attempt failed because the username and password combination was wrong"
        )
    site.failed_logins[user.name] = 0
    return user


def challenge(call: Call, message: str = "Login attempt failed. Please try again.") -> answers.Refusal:
    """Return the refusal for a request without a login: 401 for programs, the login page for browsers."""
    if is_browser(call.request) and "Authorization" not in call.request.headers:
        location = f"{call.site.options.context}/app/template/Login.vm"
        return answers.Refusal(302, "Please log in", {"Location": location})
    return answers.Refusal(401, message, {"WWW-Authenticate": f'Basic realm="{REALM}"'})


def check_csrf(call: Call) -> None:
    """Refuse, with a 500, a change by a browser that does not send the login's token."""
    agent = call.request.headers.get("User-Agent", "")
    if call.request.method not in ("PUT", "POST", "DELETE") or "java" in agent.lower():
        return
    if is_browser(call.request) and call.login and call.query.get("XNAT_CSRF") != call.login.csrf:
        raise answers.Refusal(500, "Invalid submit value: the XNAT_CSRF token is missing or wrong")


def cookies(call: Call) -> list[str]:
    """Return the Set-Cookie values of an answer: the time of expiry, and the login's key when it is new."""
    limit = int(call.settings.session_timeout * 1000)
    values = [f'SESSION_EXPIRATION_TIME="{int(time.time() * 1000)},{limit}"; Version=1; Path=/']
    if call.login is not None and call.request.cookies.get("JSESSIONID") != call.login.id:
        secure = "; Secure" if call.site.options.cert else ""
        path = call.site.options.context or "/"
        values.append(f"JSESSIONID={call.login.id}; Path={path}; HttpOnly{secure}")
    return values


async def auth_service(call: Call) -> web.StreamResponse:
    """PUT or POST /data/services/auth: log in with a form."""
    if call.request.method not in ("PUT", "POST"):
        raise answers.unknown_method()
    form = await call.request.post()
    name, password = form.get("username", form.get("u", "")), form.get("password", form.get("p", ""))
    try:
        call.login = open_login(call, str(name), str(password))
    except answers.Refusal as refusal:
        if refusal.status in (302, 401):
            raise answers.Refusal(401, "Authentication failed.") from refusal
        raise
    return answers.text(call.login.id)


async def jsession(call: Call) -> web.StreamResponse:
    """/data/JSESSION: return the login's key, or end the login. A guest gets a key that opens nothing."""
    if call.request.method == "DELETE":
        if call.login is not None:
            call.site.logins.pop(call.login.id, None)
            call.login = None
        return answers.text()
    if call.login is None:
        return answers.text(secrets.token_hex(16).upper())
    more = f"; XNAT_CSRF={call.login.csrf}" if call.flag("CSRF") else ""
    return answers.text(call.login.id + more)


async def who(call: Call) -> web.StreamResponse:
    """/data/auth: say who is logged in."""
    return answers.text(f"User '{call.user.name}' is logged in")


async def tokens(call: Call, rest: list[str]) -> web.StreamResponse:
    """/data/services/tokens/...: issue, show, validate and invalidate alias tokens."""
    action, arguments = rest[0] if rest else "", [unquote(one) for one in rest[1:]]
    if action == "issue":
        return _issue(call, arguments)
    if action == "show":
        mine = [one for one in call.store.tokens.values() if one.user == call.user.name and one.valid]
        return answers.as_json([_token_record(one) for one in mine])
    if action not in ("validate", "invalidate"):
        raise answers.Refusal(400, f"Unknown operation: {action}")
    token = call.store.tokens.get(arguments[0]) if arguments else None
    if token is None or not token.valid:
        raise answers.Refusal(404, "The alias token was not found")
    if action == "validate":
        if len(arguments) < 2:
            raise answers.Refusal(401, "You must specify both alias and secret")
        good = token.secret == arguments[1] and time.time() <= token.expires
        return answers.as_json({"valid": token.user} if good else {})
    if token.user != call.user.name and call.user.role != "admin":
        raise answers.Refusal(403, "This token belongs to somebody else")
    token.valid = False
    call.store.save_token(token)
    return answers.as_json({"result": "OK"})


def _issue(call: Call, arguments: list[str]) -> web.StreamResponse:
    name = call.user.name
    if len(arguments) == 2 and arguments[0] == "user":
        if call.user.role != "admin":
            raise answers.Refusal(403, "Only an administrator may issue tokens for others")
        name = arguments[1]
        if name not in call.site.users:
            raise answers.Refusal(404, "There is no such user")
    secret = "".join(
        secrets.choice("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789") for _ in range(64)
    )
    expires = time.time() + call.settings.token_timeout
    token = store.AliasToken(str(uuid.uuid4()), secret, name, expires, call.store.next_number("token"))
    call.store.save_token(token)
    return answers.as_json(_token_record(token))


def _token_record(token: store.AliasToken) -> dict[str, Any]:
    return {
        "alias": token.alias,
        "secret": token.secret,
        "estimatedExpirationTime": int(token.expires * 1000),
        "singleUse": False,
        "xdatUserId": token.user,
        "validIPAddresses": None,
        "id": token.number,
        "enabled": token.valid,
        "created": int(token.expires * 1000),
        "timestamp": int(token.expires * 1000),
        "disabled": 0,
    }
