"""The login of a run: the server's real address, credentials found or asked for, and what the server says to them.

One request of our own (`GET /data/auth` with Basic) decides whether the login is accepted: only its 401,
or a 403 that says a token has expired, counts as refused. xnatpy and xnatutils are handed the session that it opens:
they get no password, so their own prompts and their rewriting of the netrc file never run. A login that a person
typed is saved as a token, and a run is told in time when its login ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests

from xnatuploader import errors
from xnatuploader.console import progress
from xnatuploader.xnat import credentials, http, messages, routes
from xnatuploader.xnat.archive import Server
from xnatuploader.xnat.credentials import Credentials

logger = logging.getLogger(__name__)

SECONDS_UNTIL_IT_IS_WAITING = 20.0
"""Seconds of a login with `--wait` after which the run says that it is waiting for the server."""

SOON = timedelta(hours=1)
"""How long before its end a login is called short."""

_PROMPTS = 2
"""How often a person may type; with a refused netrc entry that makes three, and sites lock after few."""
_ATTEMPTS = 3
_SECONDS = 20.0

_TOO_MANY = (
    "this account has too many open logins (each ends after 15 unused minutes, or an administrator ends it)"
)
"""XNAT answers 401 to that, as to a wrong password (ConcurrentSessionControlAuthenticationStrategy)."""

_SET_UP = (
    "The XNAT at {base} was never set up. Its administrator has to open that address in a browser, log in, and finish "
    "the set-up; then run again."
)

_T = TypeVar("_T")


class CredentialsRefused(Exception):
    """The server does not accept these credentials. `expired`: it said that the token is too old."""

    def __init__(self, message: str, *, expired: bool = False) -> None:
        self.expired = expired
        super().__init__(message)


class LoginUnanswered(Exception):
    """The server did not say whether the login is accepted. `passing`: another try may help."""

    def __init__(self, message: str, *, passing: bool = False, retry_after: float | None = None) -> None:
        self.passing = passing
        self.retry_after = retry_after
        super().__init__(message)


# --- the login of one run ----------------------------------------------------------------------------------


def sign_in(
    address: str,
    environ: Mapping[str, str],
    *,
    interactive: bool,
    jobs: int = 4,
    wait: float = 0.0,
    stop: threading.Event | None = None,
    warn: Callable[[str], object] = logger.warning,
) -> Server:
    """Log in, and save the token that the server gives for a login that a person typed.

    Says until when the login works; `warn` gets what is wrong with the netrc file. Raises `LoginRefused`,
    `ServerUnreachable` or `UsageError`.
    """
    found = credentials.search(address, environ)
    for warning in found.warnings:
        warn(warning)
    patience = http.Patience(wait=wait, stop=stop or threading.Event())
    ask = credentials.prompt if interactive else None
    with _saying_that_it_waits(wait if found.credentials else 0.0):
        server = connect(address, found.credentials, environ=environ, jobs=jobs, patience=patience, ask=ask)
    with contextlib.ExitStack() as ending:
        ending.enter_context(server)  # Ctrl-C may come before the caller has it
        if server.issued_token is not None:
            _save(address, server.issued_token, environ)
        logger.info("Logged in to %s as %s (%s).", server.url, server.user, server.source)
        until = credentials.expiry_sentence(server.login_until)
        if until:
            _say(until)
        ending.pop_all()
    return server


def _save(address: str, token: Credentials, environ: Mapping[str, str]) -> None:
    try:
        file = credentials.save(address, token, environ)
    except OSError as error:
        reason = error.strerror or str(error)
        logger.warning("The login could not be saved (%s): the next run will ask again.", reason)
        return
    _say(f"The login was saved in {file}: until it expires, no run will ask for a password.")


@contextlib.contextmanager
def _saying_that_it_waits(seconds: float) -> Iterator[None]:
    """Say once that the server is waited for, if the block takes long; with 0 seconds to wait say nothing."""
    ends = datetime.now() + timedelta(seconds=seconds)
    sentence = f"The server does not answer yet. The program keeps trying until {ends:%A %H:%M}."
    timer = threading.Timer(SECONDS_UNTIL_IT_IS_WAITING, _say, [sentence])
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(sentence: str) -> None:
    """Say something that is not a warning, on the screen and in the log."""
    progress.write(sentence)
    logger.info("%s", sentence)


def connect(
    url: str,
    given: Credentials | None,
    *,
    environ: Mapping[str, str],
    jobs: int = 4,
    patience: http.Patience | None = None,
    ask: Callable[[str], Credentials] | None = None,
) -> Server:
    """Log in at `url`. Without credentials `given`, or when a netrc entry is refused, `ask` gives them.

    Raises `LoginRefused`, `ServerUnreachable`, or `UsageError` for an address that is none.
    """
    address = normalize(url)
    from xnatuploader.xnat import libraries  # only now: xnatpy would make `--help` slow

    with contextlib.ExitStack() as ending:  # nothing stays open where the login fails
        session = ending.enter_context(http.Transport(jobs, environ))
        login = _Login(session, patience or http.Patience())
        try:
            base = login.patiently(login.real_address, address)
            if given is None and ask is None:
                raise credentials.missing(base, environ)
            accepted = login.accepted(base, given, ask)
        except LoginUnanswered as error:
            raise errors.ServerUnreachable(str(error)) from None
        connected = libraries.connected(base, session, accepted.user, accepted.token)
        log_in_again = functools.partial(login.again, base, accepted.credentials)
        connection = http.Connection(base, connected, accepted, log_in_again, login.patience)
        ending.callback(connection.close)
        server = _with_token(connection)
        ending.pop_all()
    return server


def _with_token(connection: http.Connection) -> Server:
    """Return the server, with a token for a login that was typed, and with the end of the login."""
    used = connection.credentials
    token = _issue_token(connection) if used.from_prompt else None
    until = token.expires if token else used.expires
    if until is None and token is None and is_alias(used.user):
        until = _token_expiry(connection, used.user)
    return Server(connection, until, token)


@dataclass(frozen=True, slots=True)
class _Login:
    """The requests of a login, all by one session."""

    session: requests.Session
    patience: http.Patience

    def real_address(self, base: str) -> str:
        """Return the base URL that the server itself uses: follows redirects of `/` without ever sending a login.

        Only http to https and a context path on the same host are followed; another host never gets this host's
        password. Raises `LoginUnanswered`.
        """
        address = base
        for _ in range(6):
            with self._get(address, routes.FRONT_PAGE, stream=True) as response:
                target = response.headers.get("Location", "")
            if response.status_code not in (301, 302, 303, 307, 308) or not target:
                return address
            if _never_set_up(target):
                raise LoginUnanswered(_SET_UP.format(base=address))
            moved = _moved(address, urljoin(address + "/", target))
            if moved == address:
                return address
            logger.info("The server %s redirects to %s; that address is used.", address, moved)
            address = moved
        raise LoginUnanswered(f"{base} redirects in circles. Check the server's address.")

    def accepted(
        self, base: str, given: Credentials | None, ask: Callable[[str], Credentials] | None
    ) -> http.Accepted:
        """Return a login that the server accepts; without `ask` only the one `given` is tried."""
        prompts = _PROMPTS if ask is not None else 0
        found = given
        while True:
            if found is None:
                assert ask is not None  # without it there is nothing left to try, and that was seen before
                found, prompts = ask(base), prompts - 1
            try:
                return self.patiently(self._ask_server, base, found)
            except CredentialsRefused as error:
                refusal = _refusal(found, base, error)
                may_ask = found.from_prompt or found.source.startswith("netrc")
                if prompts <= 0 or not may_ask:
                    raise refusal from None
                logger.warning("%s", refusal)
                found = None

    def again(self, base: str, found: Credentials) -> http.Accepted:
        """Log in when the session has ended. Raises `LoginRefused`, or `RequestFailed` where no answer comes."""
        at_once = replace(self, patience=replace(self.patience, wait=0))
        try:
            return at_once.patiently(at_once._ask_server, base, found)
        except CredentialsRefused as error:
            raise _refusal(found, base, error) from None
        except LoginUnanswered as error:
            raise messages.RequestFailed(0, str(error), "connection") from None

    def patiently(self, ask: Callable[..., _T], *arguments: object) -> _T:
        """Ask up to three times within 20 s, or as long as `patience.wait` while nothing answers."""
        clock, wait = self.patience.clock, self.patience.wait
        begin = clock.now()
        pause = http.PAUSES[0]
        attempt = 0
        while True:
            attempt += 1
            try:
                return ask(*arguments)
            except LoginUnanswered as error:
                spent = clock.now() - begin
                pause = max(pause, error.retry_after or 0.0)
                enough = spent + pause >= (wait or _SECONDS) or (attempt >= _ATTEMPTS and not wait)
                if not error.passing or enough or clock.wait(self.patience.stop, pause):
                    raise
                pause = min(pause * 2, 30.0)

    def _ask_server(self, base: str, found: Credentials) -> http.Accepted:
        """Ask whether `found` is accepted. Raises `CredentialsRefused`, `LoginUnanswered` or `LoginRefused`."""
        response = self._get(base, routes.AUTH, auth=functools.partial(http.with_login, found))
        token = response.cookies.get_dict().get("JSESSIONID", "")
        named = re.match(r"\s*User '(?P<user>.+)' is logged in", response.text)
        if response.status_code == 200 and named and named["user"].lower() != "guest":
            return http.Accepted(found, named["user"], token)
        if response.status_code != 401:
            # With the right password XNAT opens a session also where it then answers otherwise.
            http.log_out(self.session, base, token)
        if response.status_code == 200 and named:
            raise CredentialsRefused("it accepts the user name and password only as a guest")
        refused = _no(response, base)
        if refused is not None:
            raise refused
        said = f"No XNAT answers at {base} (status {response.status_code})"
        if self._below_xnat(base):
            raise LoginUnanswered(
                f"{said}, but one does at {base}/xnat: give that address, in the Configuration sheet beside Server or "
                "with --server."
            )
        raise LoginUnanswered(f"{said}. Check the address, and whether it needs a path such as {base}/xnat")

    def _below_xnat(self, base: str) -> bool:
        """Tell whether an XNAT answers at `base`/xnat, by a page that needs no login."""
        with contextlib.suppress(LoginUnanswered, ValueError, TypeError):
            response = self._get(f"{base}/xnat", routes.BUILD_INFO)
            return response.status_code == 200 and "version" in response.json()
        return False

    def _get(self, base: str, path: str, **more: Any) -> requests.Response:
        """Send one request of the login. Raises `LoginUnanswered` if no answer comes."""
        timeout = (self.patience.timeouts.connect, self.patience.timeouts.login)
        try:
            return self.session.get(base + path, allow_redirects=False, timeout=timeout, **more)
        except http.NO_ANSWER as error:
            reason = messages.no_answer(error, base)
            raise LoginUnanswered(reason.message, passing=reason.passing) from None


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
            f"{url.strip()} is not the address of a server. Write it as https://xnat.example.org"
        ) from None
    if parts.username is not None or parts.password is not None:
        raise errors.UsageError(
            "The server's address holds a user name or password. Take it out, and give them in XNAT_USER and "
            "XNAT_PASS or in the netrc file."
        )
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or re.search(r"\s", text):
        raise errors.UsageError(
            f"{text} is not the address of a server. Write it as https://xnat.example.org"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    return f"{parts.scheme.lower()}://{netloc}{_context_path(parts.path)}"


def _context_path(path: str) -> str:
    """Cut a path at XNAT's own pages: `/xnat/app/template/Login.vm` is below `/xnat`."""
    return re.split(r"/(?:app|data|xapi|REST)(?:/|$)", path + "/", maxsplit=1)[0].rstrip("/")


def _moved(address: str, target: str) -> str:
    """Return the base URL that a redirect of `address` to `target` means."""
    old, new = urlsplit(address), urlsplit(target)
    if (new.hostname or "").lower() != (old.hostname or "").lower():
        if old.scheme == "https":
            return address  # single sign-on sends browsers elsewhere; XNAT's own answers are still here
        host = f"{new.scheme}://{new.netloc}"
        raise LoginUnanswered(
            f"{address} redirects to another server, {host}. If that is right, write it beside Server in the "
            "Configuration sheet.",
        )
    if old.scheme == "https" and new.scheme == "http":
        # A proxy that does not tell XNAT about https makes it answer so; the https address keeps working.
        return f"https://{old.netloc}{_context_path(new.path)}"
    return f"{new.scheme}://{new.netloc}{_context_path(new.path)}"


# --- what the server says to the login ---------------------------------------------------------------------


def _no(response: requests.Response, base: str) -> Exception | None:
    """Return what an answer other than yes to the login means; None where it is not XNAT's."""
    status, headers, body = response.status_code, response.headers, response.text
    said = messages.headline(body)
    if status == 401:
        return CredentialsRefused(
            f"wrong user name or password, or {_TOO_MANY}", expired="expired" in said.lower()
        )
    if status == 403 and re.search(r"token.*(expired|invalid)|expired.*token", said, re.IGNORECASE):
        return CredentialsRefused("the login token has expired", expired=True)
    if 300 <= status < 400:
        return _redirected(headers.get("Location", ""), base)
    if status == 407:
        return LoginUnanswered(messages.failure(407, body).message)
    if status == 429 or status >= 500:
        said = f"{base} answered the login with status {status}: {messages.failure(status, body).message}"
        return LoginUnanswered(said, passing=True, retry_after=http.retry_after(headers))
    if status == 403 and "not yet been configured" in said:
        return LoginUnanswered(_SET_UP.format(base=base))
    if status == 403 and "password has expired" in said.lower():
        return _password_expired(base)
    if status == 403:
        return LoginUnanswered(
            f"{base} answered the login with status 403 (forbidden): {said or 'no reason given'}. "
            "Ask the server's administrator.",
        )
    return _only_browsers(base) if messages.looks_like_login_page(body) else None


def _redirected(location: str, base: str) -> LoginUnanswered | errors.LoginRefused:
    """Return what a redirect of the login means; mostly a person has to open a browser."""
    if _never_set_up(location):
        return LoginUnanswered(_SET_UP.format(base=base))
    if "UpdateUser" in location:
        return _password_expired(base)
    if "InactiveAccount" in location:
        return errors.LoginRefused(
            f"The account on {base} is not active (it waits for approval or was disabled). "
            "Ask the server's administrator."
        )
    if re.search(r"login|saml|oauth|openid", location, re.IGNORECASE):
        return _only_browsers(base)
    return LoginUnanswered(
        f"{base} redirects to {location.split('?')[0] or 'another address'}. Write the address that "
        "works in a browser beside Server in the Configuration sheet.",
    )


def _never_set_up(location: str) -> bool:
    """Tell whether a redirect leads where XNAT sends everybody until its set-up is finished (XnatInitCheckFilter)."""
    return re.search(r"/(setup/?|Unconfigured\.vm)$", urlsplit(location).path) is not None


def _password_expired(base: str) -> errors.LoginRefused:
    return errors.LoginRefused(
        f"The password for {base} has expired. Log in there with a browser, set a new one, and run again."
    )


def _only_browsers(base: str) -> errors.LoginRefused:
    return errors.LoginRefused(
        f"{base} redirects the login to a page for browsers (single sign-on). Make an alias token on XNAT's "
        "page (your name, Manage Alias Tokens) and use its alias and secret as user and password."
    )


def _refusal(found: Credentials, base: str, error: CredentialsRefused) -> errors.LoginRefused:
    """Return the error for credentials that the server does not accept, with what to do."""
    ends = found.expires if is_alias(found.user) else None
    if error.expired or (ends is not None and ends <= datetime.now(timezone.utc)):
        reason = "The login token has expired or was withdrawn"
    elif ends is not None:
        reason = f"{base} refused the login: the token was withdrawn, or {_TOO_MANY}"
    else:
        reason = f"{base} refused the login: {error}"
    advice = (
        "Run the command in a terminal to log in again."
        if found.source.startswith("netrc")
        else "Check user name and password first: XNAT locks an account after several wrong tries."
    )
    return errors.LoginRefused(f"{reason} (login from: {found.source}). {advice}")


# --- tokens ------------------------------------------------------------------------------------------------


def is_alias(user: str) -> bool:
    """Tell whether a user name is the alias of a token (XNAT makes them as UUIDs)."""
    return re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", user) is not None


def read_token(body: str) -> Credentials | None:
    """Return the token in the answer of `/data/services/tokens/issue`, None if it holds none."""
    try:
        answer = json.loads(body)
        return Credentials(
            str(answer["alias"]), str(answer["secret"]), "token issued by XNAT", _from_epoch(answer)
        )
    except (ValueError, KeyError, TypeError):
        return None


def _issue_token(connection: http.Connection) -> Credentials | None:
    """Have the server issue a token that can be saved in place of the password; None if it does not."""
    try:
        return read_token(connection.request(http.Request("GET", routes.ISSUE_TOKEN)).text)
    except messages.RequestFailed as error:
        logger.info("The server issued no token to save (%s); the next run will ask again.", error.message)
        return None


def _token_expiry(connection: http.Connection, alias: str) -> datetime | None:
    """Ask the server when the token `alias` expires; None if it does not say."""
    try:
        answer = connection.request(http.Request("GET", routes.SHOW_TOKENS)).json()
    except (messages.RequestFailed, ValueError):
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


# --- the end of a login ------------------------------------------------------------------------------------


class Forecast:
    """Tells when a login will end before the work does: once when that is seen, once more an hour before."""

    def __init__(self, until: datetime | None) -> None:
        self.until = until
        self._said_long_before = self._said_soon = False

    def warning(self, seconds_left: float | None) -> str:
        """Return the sentence to say now, '' for none. `seconds_left`: of the work, None if not known yet."""
        if self.until is None or self._said_soon:
            return ""
        time_left = self.until - datetime.now(timezone.utc)
        soon = time_left <= SOON
        lasts = not soon if seconds_left is None else timedelta(seconds=seconds_left) < time_left
        if lasts or (self._said_long_before and not soon):
            return ""
        self._said_soon, self._said_long_before = soon, True
        left = "" if seconds_left is None else f", and about {_hours(seconds_left)} of work are left"
        return (
            f"The login ends on {self.until.astimezone():%A at %H:%M}{left}. Files that are not sent by then "
            "are left for a later run; before that run, log in again with `xnatuploader check` in a terminal."
        )


def _hours(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"
