"""Requests to one XNAT, from many threads: their repeats, and logging in again when the session has expired.

Five attempts per request on lost connections, time-outs, 429 and 5xx (two for a 500 on a record). A 401
makes one thread log in again while the others wait; only a 401 to that login ends the run. While the
server is away altogether every thread waits, and after two minutes (or `wait`) the run ends with one message.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import requests
import requests.auth

from xnatuploader import errors
from xnatuploader.xnat import credentials as login_details
from xnatuploader.xnat import login, messages, patience, transport

logger = logging.getLogger(__name__)

AWAY_AFTER = 120.0
"""Seconds without any answer after which the server counts as away."""

_TRANSIENT = frozenset({423, 429, 500, 502, 503, 504})
_AWAY = frozenset({0, 429, 502, 503, 504})
_OK = frozenset({200, 201, 202, 204})
_SERIES = 4
"""How often a request may begin afresh after the server was away."""

_LARGE = 1_000_000
"""Bytes from which a body that is cut off each time points to a proxy's limit (nginx: 1 MB by default)."""

_RELOGINS = 8
"""Logins that one request may cause: more means that the server takes the login and still answers 401."""


class Body(Sized, Protocol):
    """A request's body: its length in bytes, and its blocks, once."""

    def __iter__(self) -> Iterator[bytes]: ...


BodyFactory = Callable[[], Body]
"""Makes the body afresh for each attempt."""


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


@dataclass(frozen=True, slots=True)
class Repeats:
    """How a request may be repeated."""

    record: bool = False
    """It writes a record: a 500 comes from its contents, so it is tried only twice."""
    once: bool = False
    """The server goes on with it after a time-out: repeated only if it cannot have begun."""
    then: Mapping[str, str] | None = None
    """Query parameters added once an attempt may have left something on the server (`overwrite=true`)."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """One attempt that failed."""

    failure: messages.RequestFailed
    again: bool
    """Another attempt may help."""
    retry_after: float | None = None
    reached: bool = True
    """The server may have begun with it."""
    cut: bool = False
    """The connection broke while a body was on its way."""
    logged_out: bool = False


@dataclass(slots=True)
class _Tries:
    """The attempts of one request so far."""

    attempts: int = 0
    logins: int = 0
    series: int = 1
    """Times it was begun afresh because the server had been away."""
    cuts: int = 0
    first_failure: float = float("inf")
    last_failure: float = 0.0

    @property
    def exhausted(self) -> bool:
        return self.attempts > len(patience.PAUSES)

    def count(self, result: _Failed, now: float) -> None:
        """Take in a failed attempt."""
        self.attempts += 1
        self.cuts += result.cut
        self.first_failure, self.last_failure = min(self.first_failure, now), now

    def begin_anew(self) -> None:
        """Start another series."""
        self.attempts, self.cuts, self.first_failure = 0, 0, float("inf")
        self.series += 1

    def may_repeat(self, result: _Failed, repeats: Repeats) -> bool:
        """Tell whether another attempt of this series is due."""
        if not result.again or self.exhausted or (repeats.once and result.reached):
            return False
        return not (repeats.record and result.failure.status == 500 and self.attempts >= 2)

    def pause(self, result: _Failed) -> float:
        """Return the seconds until then."""
        return max(patience.PAUSES[self.attempts - 1], result.retry_after or 0.0)


class _Guarded:
    """A body that remembers what went wrong while it was read: a local file's trouble, not the network's."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise


class _Cookie(requests.auth.AuthBase):
    """Puts the session's cookie into a request, in place of whatever other answers left in the jar."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        others = [one for one in request.headers.get("Cookie", "").split("; ") if one]
        kept = [one for one in others if not one.startswith("JSESSIONID=")]
        request.headers["Cookie"] = "; ".join([*kept, f"JSESSIONID={self._token}"])
        return request


class Connection:
    """A logged-in connection; safe for many threads."""

    def __init__(
        self,
        base: str,
        session: requests.Session,
        found: login_details.Credentials,
        accepted: login.Accepted,
        *,
        connected: Any | None = None,
        wait: float = 0,
        timeouts: transport.Timeouts | None = None,
        clock: patience.Clock | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.base = base
        self.user = accepted.user
        self.requests_sent = 0
        self.stop = stop or threading.Event()
        self._session = session
        self._connected = connected  # xnatpy's object ends its session when it is collected, so it is kept
        self._found = found
        self.timeouts = timeouts or transport.Timeouts()
        self._clock = clock or patience.Clock()
        self._patience = max(AWAY_AFTER, wait)
        self._state = (0, accepted.token)  # generation and token in one object: read together without a lock
        self._login_lock = threading.Lock()
        self._away_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._over: errors.XnatUploaderError | None = None
        self._silence_lock = threading.Lock()
        self._last_answer = self._clock.now()
        self._silent_since: float | None = None  # first failure since the last answer to anybody
        self._last_silence = (0.0, 0.0)

    def __repr__(self) -> str:
        return f"Connection({self.base!r}, user={self.user!r})"

    # --- requests ------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        data: BodyFactory | bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        accept: Iterable[int] = _OK,
        repeats: Repeats = Repeats(),
        timeout: float | None = None,
        html: bool = False,
        as_json: bool = False,
        archive: bool = False,
    ) -> Answer:
        """Send a request and return its answer, after repeats and logins as needed.

        Redirects are not followed.

        `path` is percent-encoded and begins with `/data` or `/xapi`. `timeout` is in seconds per wait for
        bytes. A success that is a web page is a failure unless `html`: a login page or a proxy said it,
        not XNAT. So is, with `as_json`, one that is no whole JSON. `archive` matters to messages only.

        Raises `RequestFailed`, or what ends the run: `LoginRefused`, `ServerUnreachable`. An exception of
        the body itself passes through unchanged.
        """
        work = _Work(self, method, path, dict(params or {}), data, headers, files, frozenset(accept), timeout)
        work.html, work.as_json, work.archive = html, as_json, archive
        tries = _Tries()
        while True:
            self._raise_if_over()
            generation, token = self._state
            result = work.attempt(token)
            if isinstance(result, Answer):
                return result
            if result.logged_out and tries.logins < _RELOGINS:
                tries.logins += 1
                unable = self._log_in_again(generation)
                if unable is None:
                    continue
                result = unable
            tries.count(result, self._clock.now())
            if result.failure.status in _AWAY:
                self._unanswered(tries.last_failure)
            logger.debug("Attempt %d of %s failed: %s", tries.attempts, method, result.failure.message)
            if result.reached and repeats.then:
                work.params.update(repeats.then)
            if not tries.may_repeat(result, repeats):
                self._give_up_unless_away(work.size, tries, result, repeats)
                tries.begin_anew()
                continue
            if self._clock.wait(self.stop, tries.pause(result)):
                raise result.failure
            # A server that refuses a big body early drops the connection, so the 401 is never seen: ask.
            if result.cut and self._ping() == 401:
                self._log_in_again(generation)

    def _give_up_unless_away(self, size: int, tries: _Tries, result: _Failed, repeats: Repeats) -> None:
        """Raise the failure, except when the server was away for everybody and has come back."""
        if (
            not tries.exhausted
            or repeats.once
            or tries.series >= _SERIES
            or result.failure.status not in _AWAY
        ):
            raise result.failure
        if tries.cuts == tries.attempts and size >= _LARGE and self._ping() not in _AWAY:
            raise messages.RequestFailed(0, messages.cut_short(size), "too-large")
        if not self._server_was_away(tries.first_failure, tries.last_failure):
            raise result.failure

    def send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        token: str,
        *,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        files: Any = None,
        timeout: tuple[float, float],
    ) -> requests.Response:
        """Send one request once, with the cookie `token`. Raises what requests raises."""
        with self._count_lock:
            self.requests_sent += 1
        auth = _Cookie(token) if token else login.basic(self._found)
        return self._session.request(
            method,
            self.base + path,
            params=params,
            data=data,
            headers=headers,
            files=files,
            auth=auth,
            timeout=timeout,
            allow_redirects=False,
        )

    # --- logging in again ----------------------------------------------------------------------------------

    def _log_in_again(self, generation: int) -> _Failed | None:
        """Log in by one request, unless another thread has since `generation`.

        Returns why it could not, if so.

        Raises `LoginRefused` if the server refuses the login: nobody can go on then.
        """
        with self._login_lock:
            self._raise_if_over()
            if self._state[0] != generation:
                return None
            try:
                accepted = self._try_login()
            except login.Refused as error:
                self._over = login.refused(self._found, self.base, error)
                raise self._over from None
            except errors.LoginRefused as error:
                self._over = error
                raise
            except patience.Unclear as error:
                failure = messages.RequestFailed(0, str(error), "connection")
                return _Failed(failure, again=True, reached=False)
            logger.debug("The session had ended; logged in again.")
            self._state = (generation + 1, accepted.token)
            self.answered()
            return None

    def _try_login(self) -> login.Accepted:
        return patience.with_patience(
            lambda: login.ask(self._session, self.base, self._found, self.timeouts),
            self._clock,
            self.stop,
        )

    # --- a server that is away -----------------------------------------------------------------------------

    def _server_was_away(self, first: float, last: float) -> bool:
        """Tell whether nobody got an answer from `first` to `last`; if so, wait for the server's return.

        Raises `ServerUnreachable` when patience is over; the other threads get the same.
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
                if silent >= self._patience:
                    raise self.end_run(
                        errors.ServerUnreachable(
                            f"The server {self.base} has not answered for {round(silent / 60)} minutes. Run "
                            "upload again when it is back; what was sent need not be sent again."
                        )
                    )
                if self._clock.wait(self.stop, pause):
                    return False
                pause = min(pause * 2, 10.0)
            return True

    def _ping(self) -> int:
        """Return the status of a small question, 0 if no answer came."""
        timeout = (self.timeouts.connect, self.timeouts.login)
        try:
            status = self.send("GET", "/data/auth", None, self._state[1], timeout=timeout).status_code
        except (requests.exceptions.RequestException, OSError):
            return 0
        if status not in _AWAY:
            self.answered()
        return status

    def answered(self) -> None:
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

    def end_run(self, error: errors.XnatUploaderError) -> errors.XnatUploaderError:
        """Make every further request raise `error`, and return it."""
        self._over = error
        return error

    def close(self) -> None:
        """End the session on the server, as far as it can be reached, and the connections."""
        try:
            if self._over is None and self._state[1]:
                self.send("DELETE", "/data/JSESSION", None, self._state[1], timeout=(3, 5))
        except (requests.exceptions.RequestException, OSError):
            pass  # it expires by itself
        if self._connected is not None:
            login.disconnect(self._connected)
        self._session.close()


class _Work:
    """One request and what is needed to send it again."""

    def __init__(
        self,
        connection: Connection,
        method: str,
        path: str,
        params: dict[str, str],
        data: BodyFactory | bytes | None,
        headers: Mapping[str, str] | None,
        files: Mapping[str, tuple[str, bytes, str]] | None,
        accept: frozenset[int],
        timeout: float | None,
    ) -> None:
        self._connection = connection
        self._method = method
        self._path = path
        self.params = params
        self._data = data
        self._headers = headers
        self._files = files
        self._accept = accept
        self._timeout = timeout
        self.html = False
        self.as_json = False
        self.archive = False
        self.size = 0

    def attempt(self, token: str) -> Answer | _Failed:
        """Send it once and judge the answer."""
        connection = self._connection
        data: Any = self._data
        guarded: _Guarded | None = None
        if callable(data):
            guarded = _Guarded(data())
            data, self.size = guarded, len(guarded)
        elif data is not None:
            self.size = len(data)
        try:
            response = connection.send(
                self._method,
                self._path,
                self.params,
                token,
                data=data,
                headers=self._headers,
                files=self._files,
                timeout=self._waits(),
            )
            text = response.text
        except (requests.exceptions.RequestException, OSError) as error:
            if guarded is not None and guarded.error is not None:
                raise guarded.error from None
            return self._lost(error)
        return self._judge(response.status_code, response.headers, text)

    def _waits(self) -> tuple[float, float]:
        timeouts = self._connection.timeouts
        sends = self._data is not None or self._files is not None
        # While a body is being sent on a new connection the connect time-out counts for each block.
        connect = max(timeouts.connect, 60.0) if sends and timeouts.send >= 60.0 else timeouts.connect
        return connect, self._timeout or (timeouts.send if sends else timeouts.small)

    def _lost(self, error: BaseException) -> _Failed:
        found = transport.trouble(error, self._connection.base)
        cut = found.reached and self.size > 0 and not isinstance(error, requests.exceptions.Timeout)
        failure = messages.RequestFailed(0, found.message, "connection", reached=found.reached)
        return _Failed(failure, again=found.passing, reached=found.reached, cut=cut)

    def _judge(self, status: int, headers: Mapping[str, str], text: str) -> Answer | _Failed:
        if status not in _AWAY:
            self._connection.answered()
        page = messages.looks_like_html(headers.get("Content-Type", ""), text)
        if status == 401 or self._login_page(status, headers, text, page):
            return _Failed(messages.failure(401, ""), again=False, reached=False, logged_out=True)
        if status in self._accept and not (page and not self.html):
            return self._read(status, headers, text)
        if messages.disk_full(status, text):
            raise self._connection.end_run(errors.ServerUnreachable(messages.failure(status, text).message))
        if status in self._accept:
            failure = messages.RequestFailed(status, messages.web_page(text), "server")
            return _Failed(failure, again=True)
        failure = messages.failure(status, text, sent=self.size, archive=self.archive)
        return _Failed(
            failure,
            again=status in _TRANSIENT,
            retry_after=patience.retry_after(headers) if status in (429, 503) else None,
            reached=status != 429,
        )

    def _read(self, status: int, headers: Mapping[str, str], text: str) -> Answer | _Failed:
        if not self.as_json:
            return Answer(status, headers, text)
        try:
            return Answer(status, headers, text, json.loads(text))
        except ValueError:
            failure = messages.RequestFailed(status, "XNAT's answer came incomplete. Try again.", "server")
            return _Failed(failure, again=True)

    def _login_page(self, status: int, headers: Mapping[str, str], text: str, page: bool) -> bool:
        if status in (302, 303, 307) and status not in self._accept:
            return "login" in headers.get("Location", "").lower()
        return status == 200 and page and not self.html and messages.looks_like_login_page(text)
