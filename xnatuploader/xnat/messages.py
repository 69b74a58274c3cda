"""What XNAT's and a proxy's error answers mean, and what it means that none came: one line for the user (pure).

XNAT answers errors with HTML pages: Restlet puts the sentence into the first `<h3>`, Tomcat into a row called
Message, a proxy only into the title. Many sentences mislead a user (a missing right is a 404, a
label with a space a bare 500), so the known ones are put in other words, with what to do.
"""

from __future__ import annotations

import errno
import html
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

KINDS = frozenset(
    {
        "permission",
        "missing",
        "conflict",
        "busy",
        "too-large",
        "archive-refused",
        "server",
        "connection",
        "duplicate-scan",
        "other",
    }
)
"""What a caller may have to tell apart; only the message is more precise."""


class RequestFailed(Exception):
    """One request failed, after its retries; never ends a run by itself.

    `status` is the HTTP status, 0 where no answer came. `message` is one line: what it means and what to do.
    `kind` is one of `KINDS`. `reached`: the server may have started with it, whatever it answered.
    """

    def __init__(self, status: int, message: str, kind: str, *, reached: bool = True) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of failure {kind!r}")
        self.status = status
        self.message = message
        self.kind = kind
        self.reached = reached
        super().__init__(message)


_BUSY = "XNAT is still working on this session. Wait some minutes and run upload again."
_NO_REASON = (
    "XNAT had an internal error and gave no reason; most often a label, ID or field holds a character that it "
    "does not accept (only A-Z a-z 0-9 _ - are safe)."
)
_NO_PROJECT = (
    "XNAT has no such project, or this account may not see it. Check Project in the Configuration sheet."
)

_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"unable to identify scan",
        "duplicate-scan",
        "XNAT cannot tell which scan is meant: none has this ID, or a second scan has it as its ID or type. "
        "Look at the session's scans in XNAT and rename or delete the wrong one.",
    ),
    (
        r"unable to identify (image )?session|must reference a valid image session",
        "missing",
        "The session is not in the project, or this account may not see it. Run upload again to create it.",
    ),
    (
        r"duplicate experiment label",
        "conflict",
        "The project already has an entry with this session label. Change SessionLabel in the Files sheet.",
    ),
    (
        r"specified xsitype differs",
        "conflict",
        "The session already has a scan with this ID, but of another type (other modality). "
        "Give the rows another ScanID, or delete the scan in XNAT.",
    ),
    (
        r"modification of scan modality",
        "conflict",
        "XNAT reads another modality from the files than the scan was made with, so it changed nothing. "
        "Check the scan's type in XNAT.",
    ),
    (
        r"unable to (derive session directory|locate dicom or ecat)",
        "missing",
        "XNAT found no DICOM files in the session to read the headers from.",
    ),
    (
        r"another thread or process modified|concurrentmodification",
        "server",
        "Another program changed the scan's file list at the same time. Run upload again.",
    ),
    # PrearcSessionArchiver.preventConcurrentArchiving and .lock, Archiver, PrearcSessionResource, PrearcImporterHelper
    (
        r"session processing .{0,20}in progress|concurrent modification is discouraged|duplicate archive attempt"
        r"|destination session in use|already in progress|is locked|document locked",
        "busy",
        _BUSY,
    ),
    (r"must include the project attribute", "missing", _NO_PROJECT),
    (
        r"event_reason|change justification|justification",
        "other",
        "This XNAT asks for a reason with every change, and xnatuploader gives none. "
        "Ask its administrator to switch `requireChangeJustification` off for uploads.",
    ),
    (
        r"token has expired|token .{0,40}(invalid|expired)",
        "permission",
        "The login token has expired. Log in again.",
    ),
    (
        r"need put contents",
        "other",
        "XNAT was not told the type of the new record. This is a bug in xnatuploader; please report it.",
    ),
)
"""Patterns of XNAT's sentences, each with the kind of failure and what to tell the user."""

_NO_NEWS = re.compile(
    r"(http status )?\d{3}\b.{0,60}$|internal server error$|not found$|forbidden$|conflict$|bad request$"
    r"|the server (encountered an unexpected condition|has not found anything|understood the request"
    r"|answered \d{3})|the request could not be (completed due to a conflict|understood by the server)",
    re.IGNORECASE,
)
"""What Restlet, Tomcat and proxies say when they tell no more than the status."""

_DISK_FULL = re.compile(r"no space left|disk (is )?full|not enough (disk )?space|disk quota", re.IGNORECASE)

_STATUS: dict[int, tuple[str, str]] = {
    400: ("other", "XNAT could not use the request"),
    401: ("permission", "XNAT did not accept the login for this request. Run upload again."),
    403: (
        "permission",
        "XNAT refuses this to the account in use. Ask an owner of the project to make it a member.",
    ),
    404: (
        "missing",
        "XNAT cannot find it, or this account may not see it (XNAT does not tell which). "
        "Check the project and whether the session still exists.",
    ),
    405: ("other", "The server does not allow this kind of request; a proxy in front of XNAT may block it."),
    407: ("connection", "The proxy asks for a login of its own. Put user and password into HTTPS_PROXY."),
    409: ("conflict", "XNAT says that this conflicts with something it already has"),
    412: ("conflict", "It exists on the server already."),
    417: ("other", "XNAT lacks something that it needs to create this record"),
    422: ("missing", _NO_PROJECT),
    423: ("busy", _BUSY),
    429: ("connection", "The server asks for fewer requests. Try again later, with a smaller --jobs."),
    502: ("connection", "The proxy in front of XNAT could not reach it. Try again later."),
    503: ("connection", "XNAT is not available at the moment (restart or maintenance). Try again later."),
    504: (
        "connection",
        "The proxy in front of XNAT did not wait any longer; XNAT itself may go on working. Try again later.",
    ),
    507: ("server", "The server's disk is full. Its administrator has to make room."),
}


def failure(status: int, body: str, *, sent: int = 0, archive: bool = False) -> RequestFailed:
    """Return what an answer with `status` and `body` means.

    `sent` is the number of bytes of the request's body (for messages on limits), `archive` whether that
    body was an archive to unpack.
    """
    said = headline(body)
    if _NO_NEWS.match(said):
        said = ""
    if disk_full(status, body):
        return RequestFailed(status, _STATUS[507][1], "server")
    if status == 413:
        return RequestFailed(status, too_large(sent), "too-large")
    for pattern, kind, message in _KNOWN:
        if re.search(pattern, said, re.IGNORECASE):
            return RequestFailed(status, message, kind)
    if archive and status in (400, 405, 406, 415, 501):
        message = "The server or a proxy did not accept the archive; the files are sent one by one."
        return RequestFailed(status, _with_quote(message, said), "archive-refused")
    kind, message = _STATUS.get(status, ("", ""))
    if not kind and 300 <= status < 400:
        return RequestFailed(
            status,
            "The server sent the request on to another address. Check Server in the Configuration sheet "
            "(http or https, host, path).",
            "other",
        )
    if not kind:
        kind, message = "other", f"XNAT answered with status {status}"
        if status >= 500:
            kind, message = "server", "XNAT had an internal error" if said else _NO_REASON
    return RequestFailed(status, _with_quote(message, said), kind)


def too_large(sent: int) -> str:
    """Return the sentence for a body that a proxy does not let through."""
    size = f" of {_megabytes(sent)}" if sent else ""
    return (
        f"A request{size} is larger than the proxy in front of XNAT allows. "
        "Ask the server's administrator to raise its limit (nginx: client_max_body_size)."
    )


def disk_full(status: int, body: str) -> bool:
    """Tell whether the answer says that the server has no room left; every further file would meet it."""
    return status == 507 or (status >= 500 and bool(_DISK_FULL.search(body)))


def headline(body: str, limit: int = 200) -> str:
    """Return the one sentence that an error page is about, without markup; '' where there is none."""
    text = body.strip()
    if not text:
        return ""
    for pattern in (
        r"<h3[^>]*>(.*?)</h3>",
        r"<b>\s*message\s*</b>(.*?)</p>",
        r"<title[^>]*>(.*?)</title>",
        r"<h1[^>]*>(.*?)</h1>",
    ):
        for found in re.findall(pattern, text[:20000], re.IGNORECASE | re.DOTALL):
            plain = _plain(found)
            if plain and plain.lower() not in ("status page", "error"):
                return _cut(plain, limit)
    without_code = re.sub(r"<(script|style)\b.*?</\1>", " ", text[:20000], flags=re.IGNORECASE | re.DOTALL)
    return _cut(_plain(without_code), limit)


def looks_like_html(content_type: str, body: str) -> bool:
    """Tell whether an answer is a web page. XNAT labels its duplicates JSON as HTML, so the text decides."""
    start = body.lstrip("\ufeff \t\r\n")[:200].lower()
    if start.startswith(("{", "[")):
        return False
    return start.startswith(("<!doctype html", "<html", "<head", "<body")) or (
        "text/html" in content_type.lower() and start.startswith("<")
    )


def looks_like_login_page(body: str) -> bool:
    """Tell whether a page is XNAT's own login page (what an expired session gets from some set-ups)."""
    start = body[:50000].lower()
    return "login.vm" in start or 'name="login_attempt"' in start or "xdatloginuser" in start


def _with_quote(message: str, said: str) -> str:
    """Add the server's own sentence, where it says more than the status."""
    if not said:
        return message if message.endswith(".") else message + "."
    return f"{message.rstrip('.')}. The server says: {said.rstrip('.')}."


def _plain(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def cut_short(sent: int) -> str:
    """Return the sentence for a body that was cut off each time while small requests came through."""
    return (
        f"The connection was cut each time while {_megabytes(sent)} were being sent, though the server was "
        "running. A proxy in front of XNAT may limit the size of a request; ask the server's administrator."
    )


def web_page(body: str) -> str:
    """Return the sentence for a success that is a web page where XNAT would have sent data."""
    said = headline(body, 80)
    title = f" ({said})" if said else ""
    return (
        f"A web page{title} came instead of XNAT's answer, from a proxy or a login page. "
        "Open the server's address in a browser to see it."
    )


# --- when no answer comes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why no answer came. `passing`: another try may help. `reached`: the server may have received the request."""

    message: str
    passing: bool
    reached: bool = False


def no_answer(error: BaseException, url: str) -> NoAnswer:
    """Return what an exception of requests means for the server at `url`, without secrets or file names."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    causes = list(_causes(error))
    if isinstance(error, requests.exceptions.ProxyError):
        return _no_way_through_proxy(error, url)
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return _no_secure_connection(cause, host)
    if isinstance(error, requests.exceptions.SSLError) and "EOF" not in str(error):
        return _no_secure_connection(error, host)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return NoAnswer(f"{host} did not answer in time. Check the network, VPN and address.", True)
    if isinstance(error, requests.exceptions.Timeout) or any(isinstance(c, TimeoutError) for c in causes):
        return NoAnswer(f"{host} took the request but did not answer in time.", True, reached=True)
    if any(isinstance(cause, (urllib3.exceptions.NameResolutionError, socket.gaierror)) for cause in causes):
        return NoAnswer(
            f"There is no computer called {urlsplit(url).hostname} on this network. "
            "Check the address for typing errors, and the network or VPN.",
            True,
        )
    numbers = {getattr(cause, "errno", None) for cause in causes}
    if errno.ECONNREFUSED in numbers or any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return NoAnswer(f"{host} refuses connections: XNAT is not running there, or the port is wrong.", True)
    if numbers & {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}:
        return NoAnswer(f"The network does not reach {host}. Check the network cable, Wi-Fi or VPN.", True)
    if any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes):
        return NoAnswer(f"No connection to {host} could be made. Check the network and the address.", True)
    return NoAnswer(f"The connection to {host} was lost.", True, reached=True)


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


_TLS = (
    (
        r"wrong.version.number|record layer failure",
        "{host} does not speak https on this port. Check http or https, and the port.",
    ),
    (
        r"hostname mismatch|doesn't match|not valid for",
        "The certificate of {host} was issued for another name. Use the name that it was issued for.",
    ),
    (
        r"expired",
        "The certificate of {host} has expired, or this computer's clock is wrong. Tell the server's administrator.",
    ),
    (
        r"certificate|self.signed",
        "The certificate of {host} is signed by an authority that this computer does not know. Ask for "
        "the authority's certificate as a .pem file and set REQUESTS_CA_BUNDLE to its path.",
    ),
)
"""Patterns of what OpenSSL says, each with what to tell the user."""


def _no_secure_connection(error: BaseException, host: str) -> NoAnswer:
    for pattern, message in _TLS:
        if re.search(pattern, str(error), re.IGNORECASE):
            return NoAnswer(message.format(host=host), False)
    return NoAnswer(f"No secure connection to {host} could be made; a firewall may be in between.", True)


def _no_way_through_proxy(error: BaseException, url: str) -> NoAnswer:
    proxy = requests.utils.get_environ_proxies(url, no_proxy=None).get(urlsplit(url).scheme, "")
    name = urlsplit(proxy).netloc.rpartition("@")[2] or "the proxy"
    host = urlsplit(url).netloc.rpartition("@")[2]
    code = re.search(r"(?:Tunnel connection failed|response status)\D*(\d{3})", str(error))
    if code and code.group(1) == "407":
        return NoAnswer(
            f"The proxy {name} asks for a login of its own. Set HTTPS_PROXY to http://user:password@{name}",
            False,
        )
    if code:
        passing = code.group(1).startswith("5")
        return NoAnswer(
            f"The proxy {name} does not let the connection to {host} through (status {code.group(1)}). "
            f"Ask your IT, or set NO_PROXY={urlsplit(url).hostname} if the server is inside your network.",
            passing,
        )
    return NoAnswer(
        f"The proxy {name} cannot be reached. Correct HTTPS_PROXY (HTTP_PROXY), "
        f"or set NO_PROXY={urlsplit(url).hostname}.",
        True,
    )
