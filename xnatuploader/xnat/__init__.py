"""Every request to XNAT: the login, requests with their retries, the archive, the import service, the prearchive.

From the ground up: `messages` says what an error answer means, `credentials` finds user and password, `http` sends
requests and repeats them, `archive` knows XNAT's records and files, `catalogs`, `prearchive` and `imports` XNAT's
services of these names, and `login` makes the connection of a run.
"""

from __future__ import annotations

from xnatuploader.xnat.archive import RemoteFile, RemoteScan, RemoteSession, Server
from xnatuploader.xnat.login import connect, sign_in
from xnatuploader.xnat.messages import RequestFailed

__all__ = [
    "RemoteFile",
    "RemoteScan",
    "RemoteSession",
    "RequestFailed",
    "Server",
    "connect",
    "sign_in",
]
