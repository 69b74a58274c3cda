"""The way in: from what a user wrote and may type to a connection that the run can use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import requests

from xnatuploader import errors
from xnatuploader.xnat import credentials as login_details
from xnatuploader.xnat import http, login, messages, patience, transport

logger = logging.getLogger(__name__)

PROMPTS = 2
"""How often a person may type; with a refused netrc entry that makes three, and sites lock after few."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """Everything that a login needs beside address and credentials."""

    environ: Mapping[str, str]
    jobs: int
    timeouts: transport.Timeouts
    clock: patience.Clock
    stop: threading.Event
    wait: float

    def settle(self, base: str) -> str:
        """Return the address the server itself uses; raises `ServerUnreachable` if none answers."""
        session = self._session()
        try:
            return patience.with_patience(
                lambda: login.settle(session, base, self.timeouts), self.clock, self.stop, self.wait
            )
        except patience.Unclear as error:
            raise errors.ServerUnreachable(str(error)) from None
        finally:
            session.close()

    def log_in(
        self,
        base: str,
        given: login_details.Credentials | None,
        asking: Callable[[], login_details.Credentials] | None,
    ) -> tuple[login_details.Credentials, login.Accepted]:
        """Return credentials that the server accepts, with its answer."""
        if given is None and asking is None:
            raise login_details.missing(base, self.environ)
        prompts = PROMPTS if asking is not None else 0
        found = given
        while True:
            if found is None:
                assert asking is not None  # nothing is left to try without asking, and that was seen above
                found, prompts = asking(), prompts - 1
            try:
                return found, self._question(base, found)
            except login.Refused as error:
                trouble = login.refused(found, base, error)
                may_ask = found.from_prompt or found.source.startswith("netrc")
                if prompts <= 0 or not may_ask:
                    raise trouble from None
                logger.warning("%s", trouble)
                found = None

    def _question(self, base: str, found: login_details.Credentials) -> login.Accepted:
        session = self._session()
        try:
            return patience.with_patience(
                lambda: login.ask(session, base, found, self.timeouts), self.clock, self.stop, self.wait
            )
        except patience.Unclear as error:
            hint = ""
            if error.not_xnat and login.below_xnat(session, base, self.timeouts):
                hint = f" There is one at {base}/xnat: write that address."
            raise errors.ServerUnreachable(f"{error}{hint}") from None
        finally:
            session.close()

    def connect(
        self, base: str, found: login_details.Credentials, accepted: login.Accepted
    ) -> http.Connection:
        """Open the connection that the run will use."""
        connected = login.connect(base, found, self.environ)
        if connected is None:
            session = self._session()
        else:
            session = transport.prepare(connected.interface, self.jobs, self.environ)
            token = session.cookies.get_dict().get("JSESSIONID", "")
            if token:
                self._end(base, accepted.token)
                accepted = login.Accepted(accepted.user, token)
        return http.Connection(
            base,
            session,
            found,
            accepted,
            connected=connected,
            wait=self.wait,
            timeouts=self.timeouts,
            clock=self.clock,
            stop=self.stop,
        )

    def _end(self, base: str, token: str) -> None:
        """End the session that the login question opened; the connection has one of its own."""
        session = self._session()
        try:
            cookie = {"Cookie": f"JSESSIONID={token}"}
            session.delete(base + "/data/JSESSION", headers=cookie, timeout=(3, 5), allow_redirects=False)
        except (requests.exceptions.RequestException, OSError):
            pass  # it ends by itself
        finally:
            session.close()

    def _session(self) -> requests.Session:
        return transport.prepare(requests.Session(), self.jobs, self.environ)


def issue_token(reach: http.Connection) -> login.Token | None:
    """Have the server issue a token that can be saved in place of the password; None if it does not."""
    try:
        return login.read_token(reach.request("GET", "/data/services/tokens/issue").text)
    except messages.RequestFailed as error:
        logger.info("The server issued no token to save (%s); the next run has to ask again.", error.message)
        return None


def token_expiry(reach: http.Connection, alias: str) -> datetime | None:
    """Ask the server when the token `alias` expires; None if it does not say."""
    try:
        return login.expiry_of(alias, reach.request("GET", "/data/services/tokens/show").text)
    except messages.RequestFailed:
        return None
