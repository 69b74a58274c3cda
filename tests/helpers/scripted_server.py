"""A tiny HTTP(S) server whose answers a test writes, for what the sandbox does not do.

A handler returns a `Reply`, or `DROP` to close the connection without an answer; it may also sleep. The
server keeps all requests.
"""

from __future__ import annotations

import base64
import http.server
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def basic(self) -> str:
        """`user:password` of a Basic login, else ''."""
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        return base64.b64decode(value).decode() if kind == "Basic" else ""

    @property
    def session(self) -> str:
        """The JSESSIONID that came with it, else ''."""
        for one in self.headers.get("Cookie", "").split("; "):
            if one.startswith("JSESSIONID="):
                return one.partition("=")[2]
        return ""


@dataclass
class Reply:
    """One answer."""

    status: int = 200
    body: str | bytes = ""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """Content-Length to claim, where it is not the body's."""


DROP = Reply(0)
Handler = Callable[[Seen], Reply]


class Scripted:
    """`with Scripted(handler) as site:`, then `site.url` and `site.seen`."""

    def __init__(self, handler: Handler, certificate: ssl.SSLContext | None = None) -> None:
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        site = self

        class _Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                seen = Seen(self.command, self.path, self.headers, body)  # type: ignore[arg-type]
                with site._lock:
                    site.seen.append(seen)
                reply = handler(seen)
                if reply is DROP:
                    self.close_connection = True
                    return
                payload = reply.body.encode() if isinstance(reply.body, str) else reply.body
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header(
                    "Content-Length", str(len(payload) if reply.length is None else reply.length)
                )
                self.end_headers()
                self.wfile.write(payload)
                if reply.length is not None:
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_CONNECT = _any

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            self._server.socket = certificate.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, method: str, path: str) -> int:
        """Return how many requests of `method` had `path` in their address."""
        return sum(one.method == method and path in one.path for one in self.seen)


class Xnat:
    """A handler that logs in as XNAT does and hands everything else to `answer`."""

    def __init__(self, answer: Handler | None = None, password: str = "pw", user: str = "ann") -> None:
        self.answer = answer or (lambda _: Reply(200, '{"ResultSet":{"Result":[]}}'))
        self.login = f"{user}:{password}"
        self.user = user
        self.sessions: set[str] = set()
        self.numbers = 0
        self.on_login: Handler | None = None
        self._lock = threading.Lock()

    def __call__(self, seen: Seen) -> Reply:
        path = seen.path.split("?")[0]
        if path == "/":
            return Reply(200, "<html><h1>XNAT</h1></html>")
        if path in ("/data/auth", "/data/JSESSION") and seen.method == "GET":
            return self._auth(seen)
        if path == "/data/services/auth":
            return Reply(404)  # xnatpy then connects without this service
        if seen.session not in self.sessions:
            return Reply(
                401, "<html><h3>Unauthorized</h3></html>", {"WWW-Authenticate": 'Basic realm="XNAT"'}
            )
        return self.answer(seen)

    def _auth(self, seen: Seen) -> Reply:
        if seen.basic and self.on_login is not None:
            return self.on_login(seen)
        if seen.basic and seen.basic != self.login:
            return Reply(401, "<html><h3>no</h3></html>")
        if seen.basic:
            return self.yes()
        if seen.session in self.sessions:
            return Reply(200, f"User '{self.user}' is logged in")
        return Reply(401)

    def yes(self) -> Reply:
        """Open a session."""
        with self._lock:
            self.numbers += 1
            session = f"S{self.numbers:031d}"
            self.sessions.add(session)
        headers = {"Set-Cookie": f"JSESSIONID={session}; Path=/; HttpOnly"}
        return Reply(200, f"User '{self.user}' is logged in", headers)
