"""XNAT's REST interface: the one login, requests with their retries, and the project's hierarchy.

`http` sends requests and logs in again, `archive` knows XNAT's records and files, `login` and `transport` are what
`http` stands on, `messages` says what an error answer means.
"""

from __future__ import annotations

from xnatuploader.xnat.archive import RemoteScan, RemoteSession, Server
from xnatuploader.xnat.http import Answer, Connection
from xnatuploader.xnat.login import Token, normalize
from xnatuploader.xnat.messages import RequestFailed
from xnatuploader.xnat.patience import Clock
from xnatuploader.xnat.tables import RemoteFile
from xnatuploader.xnat.transport import Timeouts

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
