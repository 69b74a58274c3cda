"""The login of a run: the server's real address, credentials found or asked for, and what the server says to them.

One request of our own (`GET /data/auth` with Basic) decides whether the login is accepted: only its 401,
or a 403 that says a token has expired, counts as refused. Then `xnatutils` connects, with explicit
credentials, so that its own prompts and its rewriting of the netrc file never run. A login that a person typed is
saved as a token, and a run is told in time when its login ends.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import truststore

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
    if server.issued_token is not None:
        _save(address, server.issued_token, environ)
    logger.info("Logged in to %s as %s (%s).", server.url, server.user, server.source)
    until = credentials.expiry_sentence(server.login_until)
    if until:
        _say(until)
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
    with http.prepare(
        requests.Session(), jobs, environ
    ) as session:  # its end only closes what is open by then
        login = _Login(session, patience or http.Patience())
        try:
            base = login.patiently(login.real_address, address)
            if given is None and ask is None:
                raise credentials.missing(base, environ)
            accepted = login.accepted(base, given, ask)
        except LoginUnanswered as error:
            raise errors.ServerUnreachable(str(error)) from None
        connected = _through_xnatutils(base, accepted.credentials, environ)
        if connected is not None:
            used = http.prepare(connected.interface, jobs, environ)
            token = used.cookies.get_dict().get("JSESSIONID", "")
            if token:
                login.end(base, accepted.token)
                accepted = replace(accepted, token=token)
            login = replace(login, session=used)
    log_in_again = functools.partial(login.again, base, accepted.credentials)
    connection = http.Connection(base, login.session, accepted, log_in_again, login.patience, connected)
    return _with_token(connection)


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

    def end(self, base: str, token: str) -> None:
        """End the session of our own login request; the connection has another one."""
        cookie = {"Cookie": f"JSESSIONID={token}"}
        with contextlib.suppress(*http.NO_ANSWER):  # otherwise it ends by itself
            self.session.delete(base + routes.JSESSION, headers=cookie, timeout=(3, 5), allow_redirects=False)

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
        # A cookie of an earlier session would answer for another login.
        response = self._get(base, routes.AUTH, auth=http.basic(found), headers={"Cookie": ""})
        if response.status_code == 200:
            named = re.match(r"\s*User '(?P<user>.+)' is logged in", response.text)
            if named and named["user"].lower() != "guest":
                return http.Accepted(found, named["user"], response.cookies.get("JSESSIONID") or "")
            if named:
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
            "it does not accept the user name or password", expired="expired" in said.lower()
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
    if status == 403:
        return LoginUnanswered(
            f"{base} answered the login with status 403 (forbidden): {said or 'no reason given'}. "
            "Ask the server's administrator.",
        )
    return _only_browsers(base) if messages.looks_like_login_page(body) else None


def _redirected(location: str, base: str) -> LoginUnanswered | errors.LoginRefused:
    """Return what a redirect of the login means; mostly a person has to open a browser."""
    if "UpdateUser" in location:
        return errors.LoginRefused(
            f"The password for {base} has expired. Log in there with a browser, set a new one, and run again."
        )
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


def _only_browsers(base: str) -> errors.LoginRefused:
    return errors.LoginRefused(
        f"{base} redirects the login to a page for browsers (single sign-on). Make an alias token on XNAT's "
        "page (your name, Manage Alias Tokens) and use its alias and secret as user and password."
    )


def _refusal(found: Credentials, base: str, error: CredentialsRefused) -> errors.LoginRefused:
    """Return the error for credentials that the server does not accept, with what to do."""
    if error.expired or (found.expires is not None and is_alias(found.user)):
        reason = "The login token has expired or was withdrawn"
    else:
        reason = f"{base} refused the login: {error}"
    advice = (
        "Run the command in a terminal to log in again."
        if found.source.startswith("netrc")
        else "Check both; XNAT locks an account after several wrong tries."
    )
    return errors.LoginRefused(f"{reason} (login from: {found.source}). {advice}")


# --- the connection through xnatutils ----------------------------------------------------------------------


def _through_xnatutils(base: str, found: Credentials, environ: Mapping[str, str]) -> Any | None:
    """Connect through `xnatutils` and return xnatpy's session, None if that fails though the login is good.

    What can fail there (the parsing of an unusual site's schemas, above all) is nothing that an upload needs.
    """
    import xnatutils.base

    silent = logging.Logger("xnatpy, silenced", logging.CRITICAL + 1)
    silent.addHandler(logging.NullHandler())
    with _same_rules(environ), _without_data_model():
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
def _same_rules(environ: Mapping[str, str]) -> Iterator[None]:
    """Make a library that opens its own requests session follow our rules while the block runs.

    It trusts the system's certificates and the file the environment names, requests finds no netrc entry
    to add (on a redirect it would send one that we did not choose), and nothing is printed on standard
    output, which belongs to results. Only for the single thread that logs in.
    """
    changed = {"NETRC": os.devnull}
    if bundle := http.certificates(environ):
        changed["REQUESTS_CA_BUNDLE"] = bundle
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    truststore.inject_into_ssl()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        truststore.extract_from_ssl()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_data_model() -> Iterator[None]:
    """Keep xnatpy from fetching the site's schemas and building classes of them while the block runs.

    An upload needs none of them, they take some fifty requests, and xnatutils cannot pass the option on.
    """
    import xnat

    before = xnat.connect
    xnat.connect = functools.partial(before, no_parse_model=True)
    try:
        yield
    finally:
        xnat.connect = before


def _end_leftovers(error: BaseException) -> None:
    """End what a failed connect left running: its session object is only reachable through the traceback."""
    from xnat.session import BaseXNATSession

    for one in _chain(error):
        for frame, _ in traceback.walk_tb(one.__traceback__):
            for value in list(frame.f_locals.values()):
                if isinstance(value, BaseXNATSession):
                    http.disconnect(value)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
