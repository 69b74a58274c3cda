"""Plain HTTP to a sandbox: a client, bodies, requests that break off."""

from __future__ import annotations

import io
import socket
import tarfile
import time
import zipfile
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.helpers.sandbox_process import Sandbox

SCAN = "/data/projects/P/subjects/S1/experiments/E1/scans/3"
FILES = f"{SCAN}/resources/DICOM/files"
OCTETS = {"Content-Type": "application/octet-stream"}


class Client:
    """A logged-in HTTP client that does not follow redirects."""

    def __init__(self, box: Sandbox, user: str = "demo", password: str = "demo") -> None:
        self.box = box
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.auth = (user, password)

    def __call__(self, method: str, path: str, data: Any = None, **rest: Any) -> requests.Response:
        rest.setdefault("headers", OCTETS if data is not None and "files" not in rest else {})
        rest.setdefault("allow_redirects", False)
        rest.setdefault("timeout", 20)
        return self.session.request(method, self.box.url + path, data=data, **rest)

    def rows(self, path: str) -> list[dict[str, str]]:
        return list(self("GET", path).json()["ResultSet"]["Result"])

    def names(self) -> dict[str, str]:
        """Return name -> digest of the files of `FILES`."""
        return {row["Name"]: row["digest"] for row in self.rows(FILES)}


def tar_of(files: dict[str, bytes], mode: str = "w", kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def head_of(path: str, length: int, method: str = "PUT", kind: str = OCTETS["Content-Type"]) -> bytes:
    """Return the head of a request by the user demo."""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ZGVtbzpkZW1v\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def send_part(box: Sandbox, head: bytes, data: bytes) -> None:
    """Send a request whose body breaks off: the connection is closed after `data`."""
    place = urlsplit(box.url)
    with socket.create_connection((place.hostname or "", place.port or 0)) as line:
        line.sendall(head + data)
        time.sleep(0.3)
