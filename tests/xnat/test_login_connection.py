"""One login, one session: its cookies on every request, no redirect with it, and logged out at every end."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
import trustme

from tests.helpers.logins import ANN, connect, write_login
from tests.helpers.runs import BOOK, Ran, Runner, upload_words, variables
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.scripted_server import Reply, Scripted, Seen, Xnat
from xnatuploader import errors, xnat
from xnatuploader.xnat import credentials, http

TYPED = credentials.Credentials("ann", "pw", "prompt")
REDIRECTS = (301, 302, 303, 307, 308)
SECRET = "pl4nted-S3cret"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in (
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
        ):
            monkeypatch.delenv(name)


# ---- what a login asks


def test_a_login_asks_for_the_front_page_and_for_the_login_and_nothing_else(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "x", projects=["P"]) as box:
        with xnat.connect(box.url, credentials.Credentials("demo", "demo", "prompt"), environ={}):
            pass
        asked = [f"{one['method']} {one['path']}" for one in box.requests()]
    assert [one for one in asked if "tokens" not in one] == [
        "GET /",
        "GET /data/auth",
        "DELETE /data/JSESSION",
    ]


def test_the_connection_is_one_of_xnatpy_that_xnatutils_hands_on(capfd: pytest.CaptureFixture[str]) -> None:
    from xnat.session import BaseXNATSession

    before = set(threading.enumerate())
    with Scripted(Xnat()) as site, connect(site.url) as found:
        connected = found._connection._connected
        assert isinstance(connected, BaseXNATSession)
        assert (connected.logged_in_user, connected.server) == ("ann", site.url)
        assert connected.get("/data/projects").json() == {"ResultSet": {"Result": []}}
        assert connected.interface is found._connection._session
        names = {one.name for one in set(threading.enumerate()) - before}
        assert "XNATpyKeepAliveThread" not in names
    assert connected.interface is None
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


# ---- cookies of balancers


class Balanced:
    """Two XNATs behind a balancer that knows them apart by a cookie of its own; without it each goes to the other."""

    def __init__(self) -> None:
        self.nodes = (Xnat(), Xnat())
        self._turns = itertools.cycle("01")

    def __call__(self, seen: Seen) -> Reply:
        cookies = SimpleCookie(seen.headers.get("Cookie", ""))
        chosen = cookies["SERVERID"].value if "SERVERID" in cookies else next(self._turns)
        reply = self.nodes[int(chosen)](seen)
        if "SERVERID" in cookies or "Set-Cookie" not in reply.headers:
            return reply
        # the server of these tests sends one header of a name
        both = f"{reply.headers['Set-Cookie']}\r\nSet-Cookie: SERVERID={chosen}; Path=/"
        return Reply(reply.status, reply.body, {**reply.headers, "Set-Cookie": both})

    def logged_in(self) -> int:
        return self.nodes[0].numbers + self.nodes[1].numbers


def test_a_balancers_cookie_goes_with_every_request() -> None:
    handler = Balanced()
    with Scripted(handler) as site, connect(site.url) as found:
        for _ in range(4):
            assert found.subjects("P") == {}
            found._connection._connected.get("/data/projects")
    assert handler.logged_in() == 1
    begun = next(number for number, one in enumerate(site.seen) if one.basic)
    assert all("SERVERID=" in one.headers.get("Cookie", "") for one in site.seen[begun + 1 :])


def test_a_balancers_cookie_goes_with_another_login_and_the_old_session_does_not() -> None:
    handler = Balanced()
    with Scripted(handler) as site, connect(site.url) as found:
        for node in handler.nodes:
            node.sessions.clear()
        assert found.subjects("P") == {}
    again = [one for one in site.seen if one.basic][1]
    assert "SERVERID=" in again.headers["Cookie"]
    assert again.session == ""
    assert handler.logged_in() == 2


# ---- redirects


def asks(found: xnat.Server) -> None:
    """Send a request of every kind, ours and those of xnatpy."""
    for method in ("GET", "PUT", "POST", "DELETE"):
        with contextlib.suppress(xnat.RequestFailed):
            found.request(http.Request(method, "/data/projects/P", repeats=http.Repeats(once=True)))
        with contextlib.suppress(ValueError):
            getattr(found._connection._connected, method.lower())("/data/projects/P")


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize(
    "where",
    [
        "GET /",
        "GET /data/auth",
        "PUT /data/services/auth",
        "GET /data/JSESSION",
        "GET /data/services/tokens/issue",
        "GET /data/projects/P",
        "PUT /data/projects/P",
        "POST /data/projects/P",
        "DELETE /data/projects/P",
        "DELETE /data/JSESSION",
    ],
)
def test_another_host_never_hears_of_the_login(where: str, status: int, tmp_path: Path) -> None:
    handler = Xnat()
    with Scripted(Xnat()) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")

        def answers(seen: Seen) -> Reply:
            if f"{seen.method} {seen.path.partition('?')[0]}" == where:
                return Reply(status, "", {"Location": elsewhere + seen.path})
            return handler(seen)

        # an entry that the libraries would add by themselves, were they to follow
        write_login(Path(os.environ["HOME"]) / ".netrc", elsewhere, "ann", SECRET)
        with (
            Scripted(answers) as site,
            contextlib.suppress(errors.ServerUnreachable),
            connect(site.url, None, ask=lambda base: TYPED) as found,
        ):
            asks(found)
    assert other.seen == []


@pytest.mark.parametrize("status", REDIRECTS)
def test_another_port_of_the_host_never_hears_of_a_session(status: int) -> None:
    """A cookie knows no ports: a request that is sent on would carry it there."""
    handler = Xnat()
    with Scripted(Xnat()) as other:

        def answers(seen: Seen) -> Reply:
            if seen.session:
                return Reply(status, "", {"Location": other.url + seen.path})
            return handler(seen)

        with (
            Scripted(answers) as site,
            contextlib.suppress(errors.ServerUnreachable),
            connect(site.url) as found,
        ):
            asks(found)
    assert other.seen == []


# ---- what other programs' settings may not do


def test_no_request_takes_a_login_from_the_netrc_file_by_itself(nobodys_home: Path) -> None:
    """As requests does for every request without a login of its own, by the host's name alone."""
    (nobodys_home / ".netrc").write_text(f"machine 127.0.0.1 login bob password {SECRET}\n")
    with Scripted(Xnat()) as site, connect(site.url) as found:
        asks(found)
    assert {one.basic for one in site.seen} == {"", "ann:pw"}


@pytest.mark.parametrize("secured", [False, True], ids=["http", "https"])
def test_settings_of_other_programs_change_nothing(
    secured: bool, scanned: Path, here: Path, nobodys_home: Path, tmp_path: Path
) -> None:
    """A run of its own, with what xnatpy and xnatutils would read: their variables and another user's netrc entry."""
    chosen = {}
    more = {}
    if secured:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        one = authority.issue_cert("127.0.0.1")
        one.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        for number, part in enumerate(one.cert_chain_pems):
            part.write_to_path(str(tmp_path / "cert.pem"), append=number > 0)
        chosen = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
        more = {"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")}
    users = [f"ann:{SECRET}", "bob:bobs"]
    with Sandbox(tmp_path / "xnat", projects=["P"], users=users, max_sessions=1, **chosen) as box:
        write_login(nobodys_home / ".netrc", box.url, "bob", "bobs")
        before = (nobodys_home / ".netrc").read_bytes()
        environ = {
            "XNAT_USER": "ann", "XNAT_PASS": SECRET, "XNAT_HOST": "https://nowhere.invalid",
            "XNATPY_HOST": "https://nowhere.invalid", "XNATPY_USER": "bob", "XNATPY_PASS": "bobs",
            "XNAT_DATA": str(here), "NETRC": str(nobodys_home / ".netrc"), **more,
        }  # fmt: skip
        done = in_own_process(upload_words(box.url, "--debug"), environ)
        assert done.code == 0, done.err
        assert {one["user"] for one in box.requests()} - {""} == {"ann"}
        assert open_sessions(box) == 0
    assert (nobodys_home / ".netrc").read_bytes() == before
    assert SECRET not in done.out + done.err


def in_own_process(words: list[str], environ: dict[str, str]) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "xnatuploader", *words], env=variables(**environ), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


# ---- logged out at every end


def open_sessions(box: Sandbox) -> int:
    """Return how many sessions are open on the server; it ends them."""
    return len(box.control("POST", "kill-sessions")["killed"])


@pytest.fixture
def one_session(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sandbox]:
    """A server that lets an account have one open session: a run that opens a second one is refused."""
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], users=["ann:pw"], max_sessions=1) as box:
        monkeypatch.setenv("XNAT_USER", "ann")
        monkeypatch.setenv("XNAT_PASS", "pw")
        yield box


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (None, 0),
        ({"do": "kill-session", "every": 6, "path": "/data/projects"}, 0),
        ({"do": "status", "path": r"/data/projects/P(\?|$)", "status": 404}, 5),
        ({"do": "status", "path": r"/data/projects/P(\?|$)", "status": 500}, 4),
        ({"do": "disk-full", "method": "PUT", "path": "/files/"}, 4),
        ({"do": "html", "path": "/data/projects"}, 4),
        ({"do": "status", "path": "/data/services/tokens", "status": 500}, 0),
        ({"do": "status", "path": "/data/projects", "status": 401, "first": 3, "times": 1}, 0),
    ],
    ids=str,
)
def test_no_session_is_left_open(
    fault: dict[str, object] | None, code: int, scanned: Path, run: Runner, one_session: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(http.Clock, "wait", lambda self, event, seconds: event.is_set())
    if fault is not None:
        one_session.fault(**fault)  # type: ignore[arg-type]
    ran = run(*upload_words(one_session.url))
    assert ran.code == code, ran.err
    assert open_sessions(one_session) == 0


def test_no_session_is_left_open_by_check(scanned: Path, run: Runner, one_session: Sandbox) -> None:
    for project in ("P", "NONE"):
        run("check", "--spreadsheet", BOOK, "--server", one_session.url, "--project", project)
        assert open_sessions(one_session) == 0


def test_no_session_is_left_open_by_a_crash(
    scanned: Path, run: Runner, one_session: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xnatuploader.upload import preflight

    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(preflight, "clear", crash)
    assert run(*upload_words(one_session.url)).code == 1
    assert open_sessions(one_session) == 0


@pytest.mark.parametrize(
    "fault", [KeyboardInterrupt, ZeroDivisionError, errors.ServerUnreachable("away")], ids=repr
)
def test_no_session_is_left_open_where_the_login_itself_ends_the_run(
    fault: BaseException, scanned: Path, run: Runner, one_session: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has accepted, and Ctrl-C comes before the run begins."""
    from xnatuploader.xnat import login

    def interrupted(*_: object) -> None:
        raise fault

    for name in ("_with_token", "_say"):
        with monkeypatch.context() as patched:
            patched.setattr(login, name, interrupted)
            patched.setattr(credentials, "expiry_sentence", lambda until: "It works.")
            assert run(*upload_words(one_session.url)).code in (1, 4, 130)
        assert open_sessions(one_session) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows gets no signal of its own")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_session_is_left_open_by_ctrl_c(
    number: signal.Signals, scanned: Path, one_session: Sandbox
) -> None:
    one_session.set(latency=0.2)
    process = subprocess.Popen(
        [sys.executable, "-m", "xnatuploader", *upload_words(one_session.url)], env=variables(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        for _ in range(600):
            if one_session.count("PUT", "/data/projects/P/subjects"):
                break
            threading.Event().wait(0.05)
        process.send_signal(number)
        assert process.wait(60) == 130, process.communicate()
    assert open_sessions(one_session) == 0


@pytest.mark.parametrize("status", [302, 403, 404, 500])
def test_a_login_that_is_not_accepted_leaves_no_session(status: int) -> None:
    """XNAT opens a session for a right password also where it then refuses: an expired one, a site not set up."""
    handler = Xnat()

    def refused(seen: Seen) -> Reply:
        cookie = handler.yes().headers
        return Reply(status, "", {**cookie, "Location": "/app/template/XDATScreen_UpdateUser.vm"})

    def answer(seen: Seen) -> Reply:
        if (seen.method, seen.path) == ("DELETE", "/data/JSESSION"):
            handler.sessions.discard(seen.session)
        return Reply(200)

    handler.on_login, handler.answer = refused, answer
    with Scripted(handler) as site, pytest.raises((errors.LoginRefused, errors.ServerUnreachable)):
        connect(site.url)
    assert handler.numbers > 0
    assert handler.sessions == set()


def test_too_many_sessions_are_named_beside_a_wrong_password(one_session: Sandbox) -> None:
    with (
        xnat.connect(one_session.url, ANN, environ={}),
        pytest.raises(errors.LoginRefused, match=r"too many open logins") as caught,
    ):
        xnat.connect(one_session.url, ANN, environ={})
    assert "password" in str(caught.value)
    assert "15 unused minutes" in str(caught.value)


# ---- a server that was never set up


@pytest.mark.parametrize("location", ["/setup", "http://{host}/setup/", "/app/template/Unconfigured.vm"])
@pytest.mark.parametrize("where", ["/", "/data/auth"])
def test_a_server_that_was_never_set_up_says_so(where: str, location: str) -> None:
    handler = Xnat()

    def answers(seen: Seen) -> Reply:
        if seen.path == where:
            host = seen.headers["Host"]
            return Reply(302, "", {"Location": location.format(host=host)})
        return handler(seen)

    with Scripted(answers) as site, pytest.raises(errors.ServerUnreachable) as caught:
        connect(site.url)
    said = str(caught.value)
    assert f"{site.url} was never set up" in said
    assert "browser" in said
    assert "administrator" in said
    assert "Configuration sheet" not in said


def test_a_refusal_as_long_as_the_set_up_is_open_says_so() -> None:
    """What XnatInitCheckFilter answers to a Basic login that it has not accepted."""
    handler = Xnat()
    handler.on_login = lambda _: Reply(403, "<h3>Site has not yet been configured.</h3>")
    with Scripted(handler) as site, pytest.raises(errors.ServerUnreachable, match="was never set up"):
        connect(site.url)


def test_a_password_that_has_expired_is_no_matter_of_rights() -> None:
    handler = Xnat()
    handler.on_login = lambda _: Reply(403, "<h3>Your password has expired. Please change it.</h3>")
    with Scripted(handler) as site, pytest.raises(errors.LoginRefused, match="set a new one"):
        connect(site.url)
