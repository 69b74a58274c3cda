"""XNAT's REST interface: the one login, requests with their retries, and the project's hierarchy.

`connection` sends requests and logs in again, `hierarchy` knows XNAT's records and files, `login` and
`transport` are what `connection` stands on, `messages` says what an error answer means.
"""

from __future__ import annotations

from xnatuploader.server.connection import Answer, Connection
from xnatuploader.server.hierarchy import RemoteScan, RemoteSession, Server
from xnatuploader.server.login import Token, normalize
from xnatuploader.server.messages import RequestFailed
from xnatuploader.server.patience import Clock
from xnatuploader.server.tables import RemoteFile
from xnatuploader.server.transport import Timeouts

__all__ = [
    "Answer",
    "Clock",
    "Connection",
    "RemoteFile",
    "RemoteScan",
    "RemoteSession",
    "RequestFailed",
    "Server",
    "Timeouts",
    "Token",
    "normalize",
]
