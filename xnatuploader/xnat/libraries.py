"""The connection as xnatpy and xnatutils know it, on the session that our own login has opened.

xnatpy's session class takes a requests session that is logged in already; that is all that is used of it.
`xnat.connect(jsession=...)` would open one of its own and send three requests before it can be given anything: without
a balancer's cookies, so that they may reach an XNAT that does not know the session, without the system's
certificates, and following redirects with the session's cookie.
"""

from __future__ import annotations

import logging

import requests
import xnatutils.base
from xnat.session import BaseXNATSession


def connected(base: str, session: requests.Session, user: str, token: str) -> BaseXNATSession:
    """Return the connection to the XNAT at `base` by `session`, where `user` is logged in with the cookie `token`.

    No request is sent. It is over when `disconnect` is called; that does not log out.
    """
    own = _Connected(base, _Silent("xnatpy"), session, logged_in_user=user, jsession=token)
    with xnatutils.base.connect(connection=own) as handed_on:  # its exit leaves the connection open
        return handed_on


class _Connected(BaseXNATSession):  # type: ignore[misc]  # xnatpy tells no types
    """xnatpy's session without its heartbeat: that dies with a traceback on the first lost connection."""

    session_expiration_time = None
    """Only the heartbeat needs it; xnatpy cannot read it where two cookies have this name."""

    def connect(self, *_: object, **__: object) -> None:
        """Do nothing: xnatpy would begin with the heartbeat here."""


class _Silent(logging.Logger):
    """A log that nobody reads: every error is told where it occurs."""

    def __init__(self, name: str) -> None:
        super().__init__(name, logging.CRITICAL + 1)

    def verbose(self, *_: object, **__: object) -> None:
        """Do nothing: xnatpy's own level, which only `xnat.connect` would add to Python's loggers."""
