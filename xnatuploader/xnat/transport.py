"""How requests travel: connections, certificates, proxies, and what it means when no answer comes.

Certificates are judged by the system's own store (through `truststore`, because that is where a hospital's
proxy puts its authority), by requests' bundle, and by the file that `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` or
`SSL_CERT_FILE` names.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.adapters
import requests.auth
import truststore
import urllib3.exceptions

import xnatuploader
from xnatuploader import errors

USER_AGENT = f"xnatuploader/{xnatuploader.__version__}"
"""Honest, and nothing like a browser's: XNAT asks browsers for CSRF tokens and sends them login pages."""

BLOCK = 1 << 20
"""Bytes per read from a file-like body; urllib3's own 16 KiB halves the rate on a fast link."""

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


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


class Adapter(requests.adapters.HTTPAdapter):
    """Connections for `jobs` threads that wait for each other rather than open and throw away more."""

    def __init__(self, jobs: int) -> None:
        self._context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        super().__init__(pool_connections=4, pool_maxsize=jobs + 2, pool_block=True, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Add the system's certificates and a large block size to the pools."""
        super().init_poolmanager(*args, **kwargs, blocksize=BLOCK, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """As above for connections through a proxy."""
        return super().proxy_manager_for(proxy, **kwargs, blocksize=BLOCK, ssl_context=self._context)


class NoOtherLogin(requests.auth.AuthBase):
    """Stands where requests would otherwise put a netrc entry of its own choice into the request."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Leave the request as it is."""
        return request


def prepare(session: requests.Session, jobs: int, environ: Mapping[str, str]) -> requests.Session:
    """Give `session` our connections, certificates and name. Raises `UsageError` for a CA file not there."""
    session.mount("https://", Adapter(jobs))
    session.mount("http://", Adapter(jobs))
    session.headers["User-Agent"] = USER_AGENT
    session.auth = NoOtherLogin()
    session.verify = certificates(environ) or True
    return session


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


@contextlib.contextmanager
def same_rules_for_others(environ: Mapping[str, str]) -> Iterator[None]:
    """Make a library that opens its own requests session follow our rules while the block runs.

    It trusts the system's certificates and the file the environment names, requests finds no netrc entry
    to add (on a redirect it would send one that we did not choose), and nothing is printed on standard
    output, which belongs to results. Only for the single thread that logs in.
    """
    changed = {"NETRC": os.devnull}
    if bundle := certificates(environ):
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


# --- when no answer comes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why no answer came. `passing`: it may be gone on another try. `reached`: the server may have got it."""

    message: str
    passing: bool
    reached: bool = False


def trouble(error: BaseException, url: str) -> Trouble:
    """Return what an exception of requests means for the server at `url`, without secrets or file names."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    causes = list(_causes(error))
    if isinstance(error, requests.exceptions.ProxyError):
        return _proxy_trouble(error, url)
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return _tls_trouble(cause, host)
    if isinstance(error, requests.exceptions.SSLError) and "EOF" not in str(error):
        return _tls_trouble(error, host)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Trouble(f"{host} did not answer in time. Check the network, VPN and address.", True)
    if isinstance(error, requests.exceptions.Timeout) or any(isinstance(c, TimeoutError) for c in causes):
        return Trouble(f"{host} took the request but did not answer in time.", True, reached=True)
    for cause in causes:
        if isinstance(cause, (urllib3.exceptions.NameResolutionError, socket.gaierror)):
            return Trouble(
                f"There is no computer called {urlsplit(url).hostname} on this network. "
                "Check the address for typing errors, and the network or VPN.",
                True,
            )
    for cause in causes:
        number = getattr(cause, "errno", None)
        if isinstance(cause, ConnectionRefusedError) or number == errno.ECONNREFUSED:
            return Trouble(
                f"{host} refuses connections: XNAT is not running there, or the port is wrong.", True
            )
        if number in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
            return Trouble(f"There is no way to {host}. Check the network cable, Wi-Fi or VPN.", True)
    if any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes):
        return Trouble(f"No connection to {host} could be made. Check the network and the address.", True)
    return Trouble(f"The connection to {host} was lost.", True, reached=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Walk over what an exception wraps; urllib3 keeps it in `reason` and in the arguments."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting.extend([getattr(one, "reason", None), one.__cause__, *one.args])


def _tls_trouble(error: BaseException, host: str) -> Trouble:
    text = str(error).lower()
    if "wrong_version_number" in text or "wrong version number" in text or "record layer failure" in text:
        return Trouble(f"{host} does not speak https on this port. Check http or https, and the port.", False)
    if "hostname mismatch" in text or "doesn't match" in text or "not valid for" in text:
        return Trouble(f"The certificate of {host} is for another name. Use the name it was made for.", False)
    if "expired" in text:
        return Trouble(
            f"The certificate of {host} has expired, or this computer's clock is wrong. Tell the server's "
            "administrator.",
            False,
        )
    if "certificate" in text or "self-signed" in text or "self signed" in text:
        return Trouble(
            f"The certificate of {host} is signed by an authority that this computer does not know. Ask for "
            "the authority's certificate as a .pem file and set REQUESTS_CA_BUNDLE to its path.",
            False,
        )
    return Trouble(f"No secure connection to {host} could be made; a firewall may be in between.", True)


def _proxy_trouble(error: BaseException, url: str) -> Trouble:
    proxy = requests.utils.get_environ_proxies(url, no_proxy=None).get(urlsplit(url).scheme, "")
    name = urlsplit(proxy).netloc.rpartition("@")[2] or "the proxy"
    host = urlsplit(url).netloc.rpartition("@")[2]
    code = re.search(r"(?:Tunnel connection failed|response status)\D*(\d{3})", str(error))
    if code and code.group(1) == "407":
        return Trouble(
            f"The proxy {name} asks for a login of its own. Set HTTPS_PROXY to http://user:password@{name}",
            False,
        )
    if code:
        passing = code.group(1).startswith("5")
        return Trouble(
            f"The proxy {name} does not let the connection to {host} through (status {code.group(1)}). "
            f"Ask your IT, or set NO_PROXY={urlsplit(url).hostname} if the server is inside your network.",
            passing,
        )
    return Trouble(
        f"The proxy {name} cannot be reached. Correct HTTPS_PROXY (HTTP_PROXY), "
        f"or set NO_PROXY={urlsplit(url).hostname}.",
        True,
    )
