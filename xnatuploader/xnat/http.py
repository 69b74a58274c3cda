"""Requests to one XNAT, from many threads: connections, retries, deadlines, and logging in again.

Five attempts per request on lost connections, time-outs, 429 and 5xx (two for a 500 on a record). A 401
makes one thread log in again while the others wait; only a 401 to that login ends the run. While the
server is away altogether every thread waits, and after two minutes (or `Patience.wait`) the run ends with one message.

Certificates are checked against the system's own store (through `truststore`, because that is where a hospital's
proxy puts its authority), requests' bundle, and the file that `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` or
`SSL_CERT_FILE` names.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import requests
import requests.adapters
import requests.auth
import truststore

import xnatuploader
from xnatuploader import errors
from xnatuploader.xnat import messages, routes
from xnatuploader.xnat.credentials import Credentials

logger = logging.getLogger(__name__)

USER_AGENT = f"xnatuploader/{xnatuploader.__version__}"
"""Honest, and nothing like a browser's: XNAT asks browsers for CSRF tokens and sends them login pages."""

AWAY_AFTER = 120.0
"""Seconds without any answer after which the server counts as away."""

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the five attempts of a request."""

NO_ANSWER = (requests.exceptions.RequestException, OSError)
"""What requests raises where no whole answer comes."""

_BLOCK = 1 << 20
"""Bytes per read from a file-like body; urllib3's own 16 KiB halves the rate on a fast link."""

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_TRANSIENT = frozenset({423, 429, 500, 502, 503, 504})
_AWAY = frozenset({0, 429, 502, 503, 504})
_SERIES = 4
"""How often a request may start again after the server was away."""

_INCOMPLETE = "XNAT's answer was incomplete. Try again."

_LARGE = 1_000_000
"""Bytes from which a body that is cut off each time points to a proxy's limit (nginx: 1 MB by default)."""

_LOGINS = 8
"""Logins that one request may cause: more means that the server accepts the login and still answers 401."""


# --- time --------------------------------------------------------------------------------------------------


class Clock:
    """Time, so that tests need not wait."""

    def now(self) -> float:
        """Return seconds that only ever grow."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Sleep, but not longer than until `event` is set; return whether it is."""
        return event.wait(seconds)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection, and for the next bytes of an answer, by the kind of request."""

    connect: float = 15
    small: float = 90
    """Lists and records."""
    send: float = 300
    """Bodies: XNAT answers only after it has unpacked and hashed them."""
    finish: float = 3600
    """`pullDataFromHeaders` reads every file of the session."""
    login: float = 12


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a run waits for the server, and what ends its waiting."""

    wait: float = 0
    """Seconds to keep trying while the server is away."""
    timeouts: Timeouts = field(default_factory=lambda: Timeouts())
    clock: Clock = field(default_factory=lambda: Clock())
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends every pause once it is set."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks for (a number or a date), at most 60, None without it."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return min(float(value), 60.0)
    seconds = seconds_until(value)
    return None if seconds is None else min(max(seconds, 0.0), 60.0)


def seconds_until(date: str) -> float | None:
    """Return the seconds from now until a date as headers have it, None for what is no date."""
    try:
        at = parsedate_to_datetime(date)
    except (ValueError, TypeError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return (at - datetime.now(timezone.utc)).total_seconds()


# --- connections -------------------------------------------------------------------------------------------


class _Adapter(requests.adapters.HTTPAdapter):
    """A pool of connections for `jobs` threads: a thread waits for a free one rather than open one more."""

    def __init__(self, jobs: int) -> None:
        self._context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        super().__init__(pool_connections=4, pool_maxsize=jobs + 2, pool_block=True, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Add the system's certificates and a large block size to the pools."""
        super().init_poolmanager(*args, **kwargs, blocksize=_BLOCK, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """As above for connections through a proxy."""
        return super().proxy_manager_for(proxy, **kwargs, blocksize=_BLOCK, ssl_context=self._context)


def _with_cookie(token: str, request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Put the session's cookie into a request, in place of what other answers left in the jar; '' puts none."""
    others = [one for one in request.headers.get("Cookie", "").split("; ") if one]
    kept = [one for one in others if not one.startswith("JSESSIONID=")]
    request.headers["Cookie"] = "; ".join([*kept, *([f"JSESSIONID={token}"] if token else [])])
    return request


def with_login(credentials: Credentials, request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Put user and password into a request, and take out an earlier session's cookie: that would answer for them.

    The other cookies stay: by them a balancer in front of several XNATs finds the one that holds the session.
    """
    basic(credentials)(request)
    return _with_cookie("", request)


def log_out(session: requests.Session, base: str, token: str) -> None:
    """End the session `token` on the server, if it answers; '' is none."""
    if not token:
        return
    own = functools.partial(_with_cookie, token)
    with contextlib.suppress(*NO_ANSWER):  # otherwise it ends by itself, after 15 minutes as XNAT is shipped
        session.delete(base + routes.JSESSION, auth=own, timeout=(3, 5), allow_redirects=False)


class Transport(requests.Session):
    """Our connections, certificates and name, for all requests of a run, those of libraries included.

    It follows no redirect, whoever sends the request: a login, a cookie or a body must not reach another address.
    Raises `UsageError` for a missing CA file.
    """

    def __init__(self, jobs: int, environ: Mapping[str, str]) -> None:
        super().__init__()
        self.mount("https://", _Adapter(jobs))
        self.mount("http://", _Adapter(jobs))
        self.headers["User-Agent"] = USER_AGENT
        self.auth = lambda request: request  # or requests would add a netrc entry of its own choice
        self.verify = certificates(environ) or True

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: no answer leads to another request."""


def certificates(environ: Mapping[str, str]) -> str:
    """Return the file with extra certificates that the environment names, '' if it names none."""
    for variable in _CA_VARIABLES:
        path = environ.get(variable, "")
        if path and not Path(path).exists():
            raise errors.UsageError(
                f"{variable} names {path}, which does not exist. Correct it or remove the variable."
            )
        if path:
            return path
    return ""


def basic(credentials: Credentials) -> requests.auth.HTTPBasicAuth:
    """Return the Basic login; XNAT decodes it as UTF-8, where requests would write Latin-1."""
    return requests.auth.HTTPBasicAuth(credentials.user.encode(), credentials.password.encode())


# --- requests and answers ----------------------------------------------------------------------------------


class Body(Sized, Protocol):
    """A request's body: its length in bytes, and its blocks, once."""

    def __iter__(self) -> Iterator[bytes]: ...


BodyFactory = Callable[[], Body]
"""Makes the body afresh for each attempt."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """How a request may be repeated."""

    record: bool = False
    """It writes a record: a 500 comes from its contents, so it is tried only twice."""
    once: bool = False
    """The server goes on with it after a time-out: repeated only if it cannot have started."""
    then: Mapping[str, str] | None = None
    """Query parameters added once an attempt may have left something on the server (`overwrite=true`)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and what counts as its success. Redirects are not followed."""

    method: str
    path: str
    """Percent-encoded, beginning with `/data` or `/xapi`."""
    query: Mapping[str, str] = field(default_factory=dict)
    body: BodyFactory | None = None
    headers: Mapping[str, str] | None = None
    form: Mapping[str, tuple[str, bytes, str]] | None = None
    """Parts of a form in place of a body: field to (file name, content, content type)."""
    accept: tuple[int, ...] = (200, 201, 202, 204)
    """The statuses of a success."""
    repeats: Repeats = Repeats()
    timeout: float | None = None
    """Seconds per wait for bytes of the answer."""
    html: bool = False
    """A web page may be the answer. Otherwise it is an error: a login page or a proxy sent it, not XNAT."""
    as_json: bool = False
    """An answer that is no complete JSON is an error."""
    archive: bool = False
    """The body is an archive to unpack; this changes error messages only."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]
    text: str
    parsed: Any = None
    """The body as JSON, where that was asked for."""

    def json(self) -> Any:
        """Return the parsed body. Raises ValueError if it is no JSON."""
        return json.loads(self.text) if self.parsed is None else self.parsed

    def rows(self) -> list[Mapping[str, Any]]:
        """Return the rows of a table. Raises `RequestFailed` if the answer is none."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = self.json()["ResultSet"]["Result"]
            if isinstance(found, list) and all(isinstance(row, dict) for row in found):
                return found
        raise messages.RequestFailed(self.status, _INCOMPLETE, "server")

    def item(self) -> Mapping[str, Any]:
        """Return the fields of a single record. Raises `RequestFailed` if the answer is none."""
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
            found = self.json()["items"][0]["data_fields"]
            if isinstance(found, dict):
                return found
        raise messages.RequestFailed(self.status, _INCOMPLETE, "server")


def cell(row: Mapping[str, Any], name: str) -> str:
    """Return a cell as text, whether XNAT heads its column by the short name or by a path in lower case."""
    value = row.get(name)
    if value is None:
        wanted = name.lower()
        for heading, candidate in row.items():
            if heading.lower() == wanted or heading.lower().rpartition("/")[2] == wanted:
                value = candidate
                break
    return "" if value is None else str(value)


class _LocalBody:
    """A body that remembers an error of reading it: that is the local file's, not the network's."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.error: Exception | None = None

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except Exception as error:
            self.error = error
            raise


@dataclass(frozen=True, slots=True)
class _Failed:
    """One attempt that failed."""

    failure: messages.RequestFailed
    again: bool
    """Another attempt may help."""
    retry_after: float | None = None
    reached: bool = True
    """The server may have started with it."""
    cut: bool = False
    """The connection broke while a body was being sent."""
    logged_out: bool = False
    sent: int = 0
    """Bytes of the body."""


@dataclass(slots=True)
class _Tries:
    """The attempts of one request so far."""

    attempts: int = 0
    logins: int = 0
    series: int = 1
    """Times it started again because the server had been away."""
    cuts: int = 0
    first_failure: float = float("inf")
    last_failure: float = 0.0

    @property
    def exhausted(self) -> bool:
        return self.attempts > len(PAUSES)

    def count(self, result: _Failed, now: float) -> None:
        """Count a failed attempt."""
        self.attempts += 1
        self.cuts += result.cut
        self.first_failure, self.last_failure = min(self.first_failure, now), now

    def start_again(self) -> None:
        """Begin another series of attempts."""
        self.attempts, self.cuts, self.first_failure = 0, 0, float("inf")
        self.series += 1

    def may_repeat(self, result: _Failed, repeats: Repeats) -> bool:
        """Tell whether another attempt of this series is due."""
        if not result.again or self.exhausted or (repeats.once and result.reached):
            return False
        return not (repeats.record and result.failure.status == 500 and self.attempts >= 2)


# --- the connection of a run -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """A login that the server accepted."""

    credentials: Credentials
    user: str
    """The account's name."""
    token: str = field(repr=False)
    """The session cookie, '' if the server gave none."""


class Connection:
    """A logged-in connection; safe for many threads."""

    def __init__(
        self,
        base: str,
        connected: Any,
        accepted: Accepted,
        log_in: Callable[[], Accepted],
        patience: Patience,
    ) -> None:
        """Send by `connected`, which is xnatpy's session of `libraries.connected`."""
        self.base = base
        self.credentials = accepted.credentials
        self.user = accepted.user
        self.timeouts = patience.timeouts
        self._connected = connected  # it closes the session when it is collected, so it is kept
        self._session: requests.Session = connected.interface
        self._log_in = log_in
        self._clock = patience.clock
        self._stop = patience.stop
        self._away_after = max(AWAY_AFTER, patience.wait)
        self._state = (0, accepted.token)  # generation and token in one object: read together without a lock
        self._login_lock = threading.Lock()
        self._away_lock = threading.Lock()
        self._over: errors.XnatUploaderError | None = None
        self._silence_lock = threading.Lock()
        self._last_answer = self._clock.now()
        self._silent_since: float | None = None  # first failure since the last answer to anybody
        self._last_silence = (0.0, 0.0)

    # --- requests ------------------------------------------------------------------------------------------

    def request(self, request: Request) -> Answer:
        """Send a request and return its answer, after repeats and logins as needed.

        Raises `RequestFailed`, or what ends the run: `LoginRefused`, `ServerUnreachable`. An exception of
        the body itself passes through unchanged.
        """
        tries = _Tries()
        while True:
            self._raise_if_over()
            generation, token = self._state
            result = self._attempt(request, token)
            if isinstance(result, Answer):
                return result
            if result.logged_out and tries.logins < _LOGINS:
                tries.logins += 1
                unable = self._log_in_again(generation)
                if unable is None:
                    continue
                result = unable
            tries.count(result, self._clock.now())
            if result.failure.status in _AWAY:
                self._unanswered(tries.last_failure)
            logger.debug(
                "Attempt %d of %s failed: %s", tries.attempts, request.method, result.failure.message
            )
            if result.reached and request.repeats.then:
                request = replace(request, query={**request.query, **request.repeats.then})
            if not tries.may_repeat(result, request.repeats):
                self._give_up_unless_away(tries, result, request.repeats)
                tries.start_again()
                continue
            pause = max(PAUSES[tries.attempts - 1], result.retry_after or 0.0)
            if self._clock.wait(self._stop, pause):
                raise result.failure
            # A server that refuses a big body early drops the connection, so the 401 is never seen: ask.
            if result.cut and self._ping() == 401:
                self._log_in_again(generation)

    def _give_up_unless_away(self, tries: _Tries, result: _Failed, repeats: Repeats) -> None:
        """Raise the failure, except when the server was away for everybody and has come back."""
        if (
            not tries.exhausted
            or repeats.once
            or tries.series >= _SERIES
            or result.failure.status not in _AWAY
        ):
            raise result.failure
        if tries.cuts == tries.attempts and result.sent >= _LARGE and self._ping() not in _AWAY:
            raise messages.RequestFailed(0, messages.cut_short(result.sent), "too-large")
        if not self._server_was_away(tries.first_failure, tries.last_failure):
            raise result.failure

    def _attempt(self, request: Request, token: str) -> Answer | _Failed:
        """Send a request once and judge the answer."""
        body = None if request.body is None else _LocalBody(request.body())
        sent = 0 if body is None else len(body)
        try:
            response = self.send(request, token, self._waits(request), body)
            answer = Answer(response.status_code, response.headers, response.text)
        except NO_ANSWER as error:
            if body is not None and body.error is not None:
                raise body.error from None
            return self._lost(error, sent)
        return self._judge(request, answer, sent)

    def _waits(self, request: Request) -> tuple[float, float]:
        """Return the seconds to wait for the connection and for bytes of the answer."""
        timeouts = self.timeouts
        sends = request.body is not None or request.form is not None
        # While a body is being sent on a new connection the connect time-out counts for each block.
        connect = max(timeouts.connect, 60.0) if sends and timeouts.send >= 60.0 else timeouts.connect
        return connect, request.timeout or (timeouts.send if sends else timeouts.small)

    def send(
        self, request: Request, token: str, timeout: tuple[float, float], body: Body | None = None
    ) -> requests.Response:
        """Send a request once, with the cookie `token`. Raises what requests raises."""
        return self._session.request(
            request.method,
            self.base + request.path,
            params=request.query,
            data=body,
            headers=request.headers,
            files=request.form,
            auth=functools.partial(_with_cookie, token) if token else basic(self.credentials),
            timeout=timeout,
            allow_redirects=False,
        )

    # --- what an answer means ------------------------------------------------------------------------------

    def _lost(self, error: BaseException, sent: int) -> _Failed:
        found = messages.no_answer(error, self.base)
        cut = found.reached and sent > 0 and not isinstance(error, requests.exceptions.Timeout)
        failure = messages.RequestFailed(0, found.message, "connection", reached=found.reached)
        return _Failed(failure, again=found.passing, reached=found.reached, cut=cut, sent=sent)

    def _judge(self, request: Request, answer: Answer, sent: int) -> Answer | _Failed:
        status, text = answer.status, answer.text
        if status not in _AWAY:
            self._answered()
        page = not request.html and messages.looks_like_html(answer.headers.get("Content-Type", ""), text)
        accepted = status in request.accept
        login_page = page and status == 200 and messages.looks_like_login_page(text)
        elsewhere = answer.headers.get("Location", "") if status in (302, 303, 307) and not accepted else ""
        if status == 401 or login_page or "login" in elsewhere.lower():
            return _Failed(messages.failure(401, ""), again=False, reached=False, logged_out=True)
        if accepted and not page:
            return _read(request, answer)
        if messages.disk_full(status, text):
            raise self._end_run(errors.ServerUnreachable(messages.failure(status, text).message))
        if accepted:
            return _Failed(messages.RequestFailed(status, messages.web_page(text), "server"), again=True)
        return _Failed(
            messages.failure(status, text, sent=sent, archive=request.archive),
            again=status in _TRANSIENT,
            retry_after=retry_after(answer.headers) if status in (429, 503) else None,
            reached=status != 429,
            sent=sent,
        )

    # --- logging in again ----------------------------------------------------------------------------------

    def _log_in_again(self, generation: int) -> _Failed | None:
        """Log in by one request, unless another thread has since `generation`.

        Returns why it could not, if so. Raises `LoginRefused` if the server refuses the login: nobody can
        go on then.
        """
        with self._login_lock:
            self._raise_if_over()
            if self._state[0] != generation:
                return None
            # First: a 401 may have come from elsewhere (a proxy), and an account has a limit of open sessions.
            log_out(self._session, self.base, self._state[1])
            try:
                accepted = self._log_in()
            except errors.LoginRefused as error:
                raise self._end_run(error) from None
            except messages.RequestFailed as failure:
                return _Failed(failure, again=True, reached=False)
            logger.debug("The session had ended; logged in again.")
            self._state = (generation + 1, accepted.token)
            self._answered()
            return None

    # --- a server that is away -----------------------------------------------------------------------------

    def _server_was_away(self, first: float, last: float) -> bool:
        """Tell whether nobody got an answer from `first` to `last`; if so, wait for the server's return.

        Raises `ServerUnreachable` when it has been away for too long; the other threads get the same.
        """
        with self._away_lock:
            self._raise_if_over()
            begin, end = self._last_silence
            if begin <= first and last <= end:
                return True  # it came back while this thread waited for the lock
            if self._silent_since is None or self._silent_since > first:
                return False
            pause = 1.0
            while self._ping() in _AWAY:
                silent = self._clock.now() - self._last_answer
                if silent >= self._away_after:
                    raise self._end_run(
                        errors.ServerUnreachable(
                            f"The server {self.base} has not answered for {round(silent / 60)} minutes. Run "
                            "upload again when it is back; what was sent need not be sent again."
                        )
                    )
                if self._clock.wait(self._stop, pause):
                    return False
                pause = min(pause * 2, 10.0)
            return True

    def _ping(self) -> int:
        """Return the status of a small question, 0 if no answer came."""
        timeout = (self.timeouts.connect, self.timeouts.login)
        try:
            status = self.send(Request("GET", routes.AUTH), self._state[1], timeout).status_code
        except NO_ANSWER:
            return 0
        if status not in _AWAY:
            self._answered()
        return status

    def _answered(self) -> None:
        """Note that the server is there: it ends a silence."""
        with self._silence_lock:
            self._last_answer = self._clock.now()
            if self._silent_since is not None:
                self._last_silence = (self._silent_since, self._last_answer)
                self._silent_since = None

    def _unanswered(self, now: float) -> None:
        with self._silence_lock:
            if self._silent_since is None:
                self._silent_since = now

    def _raise_if_over(self) -> None:
        if self._over is not None:
            raise self._over

    def _end_run(self, error: errors.XnatUploaderError) -> errors.XnatUploaderError:
        """Make every further request raise `error`, and return it."""
        self._over = error
        return error

    def close(self) -> None:
        """End the session on the server, whatever ended the run, and close the connections."""
        log_out(self._session, self.base, self._state[1])
        self._connected.disconnect()


def _read(request: Request, answer: Answer) -> Answer | _Failed:
    if not request.as_json:
        return answer
    try:
        return replace(answer, parsed=json.loads(answer.text))
    except ValueError:
        return _Failed(messages.RequestFailed(answer.status, _INCOMPLETE, "server"), again=True)
