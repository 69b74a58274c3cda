"""The login: the server's real address, whether it accepts the credentials, and the connecting itself.

One request of our own (`GET /data/auth` with Basic) settles whether the login is accepted: only its 401,
or a 403 that says a token has expired, counts as refused. Then `xnatutils` connects, with explicit
credentials, so that its own prompts and its rewriting of the netrc file never run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import requests.auth

from xnatuploader import errors
from xnatuploader.xnat import credentials as login_details
from xnatuploader.xnat import messages, patience, transport

logger = logging.getLogger(__name__)


class Refused(Exception):
    """The server does not accept these credentials. `expired`: it said that the token is too old."""

    def __init__(self, message: str, *, expired: bool = False) -> None:
        self.expired = expired
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server's yes: the account's name, and the session cookie ('' if it gave none)."""

    user: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """An alias token as XNAT issues it: serves as user and password until it expires."""

    alias: str
    secret: str = field(repr=False)
    expires: datetime | None


# --- the address -------------------------------------------------------------------------------------------


def normalize(url: str) -> str:
    """Return the server's base URL from what a user wrote or copied from a browser.

    Without a scheme it becomes https: a password must not travel openly because somebody left it out. Raises
    `UsageError` for what cannot be an address.
    """
    text = url.strip()
    if not text:
        raise errors.UsageError(
            "No server is given. Write its address beside Server in the Configuration sheet, or use --server."
        )
    if "://" not in text:
        text = "https://" + text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise errors.UsageError(
            f"{url.strip()} is no address of a server. Write it as https://xnat.example.org"
        ) from None
    if parts.username is not None or parts.password is not None:
        raise errors.UsageError(
            "The server's address holds a user name or password. Take it out; see the help on logging in."
        )
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or re.search(r"\s", text):
        raise errors.UsageError(f"{text} is no address of a server. Write it as https://xnat.example.org")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    return f"{parts.scheme.lower()}://{netloc}{_context_path(parts.path)}"


def _context_path(path: str) -> str:
    """Cut a path at XNAT's own pages: `/xnat/app/template/Login.vm` is below `/xnat`."""
    return re.split(r"/(?:app|data|xapi|REST)(?:/|$)", path + "/", maxsplit=1)[0].rstrip("/")


def settle(session: requests.Session, base: str, timeouts: transport.Timeouts) -> str:
    """Return the base URL that the server itself uses: follows redirects of `/` without ever sending a login.

    Only http to https and a context path on the same host are followed; another host gets no password of this
    one's. Raises `Unclear`.
    """
    address = base
    for _ in range(6):
        try:
            response = session.get(
                address + "/", allow_redirects=False, timeout=(timeouts.connect, timeouts.login), stream=True
            )
            response.close()
        except (requests.exceptions.RequestException, OSError) as error:
            found = transport.trouble(error, address)
            raise patience.Unclear(found.message, passing=found.passing) from None
        target = response.headers.get("Location", "")
        if response.status_code not in (301, 302, 303, 307, 308) or not target:
            return address
        moved = _moved(address, urljoin(address + "/", target))
        if moved == address:
            return address
        logger.info("The server %s sends on to %s; using that.", address, moved)
        address = moved
    raise patience.Unclear(
        f"{base} sends requests round in circles. Check the server's address.", passing=False
    )


def _moved(address: str, target: str) -> str:
    """Return the base URL that a redirect of `address` to `target` means."""
    old, new = urlsplit(address), urlsplit(target)
    if (new.hostname or "").lower() != (old.hostname or "").lower():
        if old.scheme == "https":
            return address  # single sign-on sends browsers elsewhere; XNAT's own answers are still here
        host = f"{new.scheme}://{new.netloc}"
        raise patience.Unclear(
            f"{address} sends on to another server, {host}. If that is right, write it beside Server in the "
            "Configuration sheet.",
            passing=False,
        )
    if old.scheme == "https" and new.scheme == "http":
        # A proxy that does not tell XNAT about https makes it answer so; the https address keeps working.
        return f"https://{old.netloc}{_context_path(new.path)}"
    return f"{new.scheme}://{new.netloc}{_context_path(new.path)}"


# --- the question ------------------------------------------------------------------------------------------


def basic(found: login_details.Credentials) -> requests.auth.HTTPBasicAuth:
    """Return the Basic login; XNAT decodes it as UTF-8, where requests would write Latin-1."""
    return requests.auth.HTTPBasicAuth(found.user.encode(), found.password.encode())


def ask(
    session: requests.Session, base: str, found: login_details.Credentials, timeouts: transport.Timeouts
) -> Accepted:
    """Ask the server whether it accepts `found`. Raises `Refused`, or `Unclear` with what to do about it."""
    try:
        response = session.get(
            base + "/data/auth",
            auth=basic(found),
            headers={"Cookie": ""},  # a session left over would answer for another login
            allow_redirects=False,
            timeout=(timeouts.connect, timeouts.login),
        )
        body = response.text
    except (requests.exceptions.RequestException, OSError) as error:
        reason = transport.trouble(error, base)
        raise patience.Unclear(reason.message, passing=reason.passing) from None
    if response.status_code == 200:
        named = re.match(r"\s*User '(?P<user>.+)' is logged in", body)
        if named and named["user"].lower() != "guest":
            return Accepted(named["user"], response.cookies.get("JSESSIONID") or "")
        if named:
            raise Refused("the server let the login in as a guest only")
    raise _no(response.status_code, response.headers, body, base)


def _no(
    status: int, headers: Mapping[str, str], body: str, base: str
) -> Refused | patience.Unclear | errors.LoginRefused:
    """Return what an answer to the login question other than yes means."""
    said = messages.headline(body)
    if status == 401:
        return Refused("the server refused the user name or password", expired="expired" in said.lower())
    if status == 403 and re.search(r"token.*(expired|invalid)|expired.*token", said, re.IGNORECASE):
        return Refused("the login token has expired", expired=True)
    if 300 <= status < 400:
        return _redirected(headers.get("Location", ""), base)
    if status == 407:
        return patience.Unclear(messages.failure(407, body).message, passing=False)
    if status == 429 or status >= 500:
        seconds = patience.retry_after(headers)
        failed = messages.failure(status, body)
        return patience.Unclear(
            f"{base} answered the login with status {status}: {failed.message}",
            passing=True,
            retry_after=seconds,
        )
    if status == 403:
        return patience.Unclear(
            f"{base} answered the login with status 403 (forbidden): {said or 'no reason given'}. "
            "Ask the server's administrator.",
            passing=False,
        )
    if messages.looks_like_login_page(body):
        return _only_browsers(base)
    return patience.Unclear(
        f"No XNAT answers at {base} (status {status}). Check the address, and whether it needs a path "
        f"such as {base}/xnat",
        passing=False,
        not_xnat=True,
    )


def _redirected(location: str, base: str) -> patience.Unclear | errors.LoginRefused:
    """Return what it means that the login was sent elsewhere; mostly it takes a person with a browser."""
    if "UpdateUser" in location:
        return errors.LoginRefused(
            f"The password for {base} has expired. Log in there with a browser, set a new one, and run again."
        )
    if "InactiveAccount" in location:
        return errors.LoginRefused(
            f"The account on {base} is not active (waiting for approval or switched off). "
            "Ask the server's administrator."
        )
    if re.search(r"login|saml|oauth|openid", location, re.IGNORECASE):
        return _only_browsers(base)
    return patience.Unclear(
        f"{base} sends requests on to {location.split('?')[0] or 'another address'}. Write the address that "
        "works in a browser beside Server in the Configuration sheet.",
        passing=False,
    )


def _only_browsers(base: str) -> errors.LoginRefused:
    return errors.LoginRefused(
        f"{base} sends the login on to a page for browsers (single sign-on). Make an alias token on XNAT's "
        "page (your name, Manage Alias Tokens) and use its alias and secret as user and password."
    )


def below_xnat(session: requests.Session, base: str, timeouts: transport.Timeouts) -> bool:
    """Tell whether an XNAT answers at `base`/xnat, by a page that needs no login."""
    with contextlib.suppress(requests.exceptions.RequestException, OSError, ValueError):
        response = session.get(
            base + "/xnat/xapi/siteConfig/buildInfo",
            allow_redirects=False,
            timeout=(timeouts.connect, timeouts.login),
        )
        return response.status_code == 200 and "version" in response.json()
    return False


def refused(found: login_details.Credentials, base: str, error: Refused) -> errors.LoginRefused:
    """Return the trouble that the server does not take these credentials, with what to do."""
    if error.expired or (found.expires is not None and is_alias(found.user)):
        reason = "The login token has expired or was withdrawn"
    else:
        reason = f"{base} refused the login: {error}"
    advice = (
        "Run the command in a terminal to log in anew."
        if found.source.startswith("netrc")
        else "Check both; XNAT locks an account after several wrong tries."
    )
    return errors.LoginRefused(f"{reason} (login from: {found.source}). {advice}")


# --- the connecting ----------------------------------------------------------------------------------------


def connect(base: str, found: login_details.Credentials, environ: Mapping[str, str]) -> Any | None:
    """Connect through `xnatutils` and return xnatpy's session, None if that fails though the login is good.

    What can fail there (the parsing of an unusual site's schemas, above all) is nothing that an upload needs.
    """
    import xnatutils.base

    silent = logging.Logger("xnatpy, silenced", logging.CRITICAL + 1)
    silent.addHandler(logging.NullHandler())
    with transport.same_rules_for_others(environ), _without_data_model():
        try:
            connected = xnatutils.base.connect(
                base,
                user=found.user,
                password=found.password,
                use_netrc=False,
                loglevel="CRITICAL",
                logger=silent,
            )
        except Exception as error:
            # xnatutils dies of an UnboundLocalError when xnatpy raises; the reason is its context.
            reason = error.__context__ if isinstance(error, UnboundLocalError) else error
            logger.debug("xnatpy could not connect (%s); going on without it.", type(reason).__name__)
            _end_leftovers(error)
            return None
    # Its heartbeat would die with a traceback on the first lost connection; a 401 is handled where it occurs.
    connected.keepalive = False
    return connected


@contextlib.contextmanager
def _without_data_model() -> Iterator[None]:
    """Keep xnatpy from fetching the site's schemas and building classes of them while the block runs.

    An upload needs none of them, they take some fifty requests, and xnatutils has no way to pass the option on.
    """
    import xnat

    before = xnat.connect
    xnat.connect = functools.partial(before, no_parse_model=True)
    try:
        yield
    finally:
        xnat.connect = before


def disconnect(connected: Any) -> None:
    """End xnatpy's session object and its thread without a request (its own way raises if that fails)."""
    from xnat.session import BaseXNATSession

    with contextlib.suppress(Exception):
        BaseXNATSession.disconnect(connected)


def _end_leftovers(error: BaseException) -> None:
    """End what a failed connect left running: its session object is only reachable through the traceback."""
    from xnat.session import BaseXNATSession

    for one in _chain(error):
        for frame, _ in traceback.walk_tb(one.__traceback__):
            for value in list(frame.f_locals.values()):
                if isinstance(value, BaseXNATSession):
                    disconnect(value)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# --- tokens ------------------------------------------------------------------------------------------------


def is_alias(user: str) -> bool:
    """Tell whether a user name is the alias of a token (XNAT makes them as UUIDs)."""
    return re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", user) is not None


def read_token(body: str) -> Token | None:
    """Return the token in the answer of `/data/services/tokens/issue`, None if it holds none."""
    try:
        answer = json.loads(body)
        return Token(str(answer["alias"]), str(answer["secret"]), _from_epoch(answer))
    except (ValueError, KeyError, TypeError):
        return None


def expiry_of(alias: str, body: str) -> datetime | None:
    """Return when the token `alias` expires by the answer of `/data/services/tokens/show`."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    for one in answer if isinstance(answer, list) else [answer]:
        if isinstance(one, dict) and one.get("alias") == alias:
            return _from_epoch(one)
    return None


def _from_epoch(answer: Mapping[str, Any]) -> datetime | None:
    """Read `estimatedExpirationTime`, milliseconds since 1970."""
    try:
        return datetime.fromtimestamp(float(answer["estimatedExpirationTime"]) / 1000, timezone.utc)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
