"""The login: what counts as refused, what every other failure says, and that nothing secret gets out."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import ssl
from datetime import datetime, timezone

import pytest
import trustme

from tests.helpers.logins import NoTime, connect
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.scripted_server import DROP, Reply, Scripted, Xnat
from tests.helpers.waiting import time_is
from xnatuploader import errors, xnat
from xnatuploader.xnat import credentials, http, login

SECRET = "pl4nted-S3cret"
FROM_NETRC = credentials.Credentials("ann", "old", "netrc file ~/.netrc, entry h")
TYPED = credentials.Credentials("ann", "pw", "prompt")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(autouse=True)
def no_proxy_and_no_netrc_of_ours(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in (
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)


# --- addresses ---


@pytest.mark.parametrize(
    ("written", "base"),
    [
        ("https://xnat.example.org", "https://xnat.example.org"),
        (" https://xnat.example.org/ ", "https://xnat.example.org"),
        ("xnat.example.org", "https://xnat.example.org"),
        ("xnat.example.org:8080/xnat/", "https://xnat.example.org:8080/xnat"),
        ("HTTP://XNAT.example.org", "http://xnat.example.org"),
        ("https://h/xnat/app/template/Login.vm?x=1#y", "https://h/xnat"),
        ("https://h/data/projects/P", "https://h"),
        ("https://h/database", "https://h/database"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_is_taken_as_users_write_it(written, base):
    assert login.normalize(written) == base


@pytest.mark.parametrize("written", ["", "  ", "ftp://h", "http://", "http://h:port", "http://a b/"])
def test_what_is_no_address_is_a_usage_error(written):
    with pytest.raises(errors.UsageError):
        login.normalize(written)


def test_a_password_in_the_address_is_refused_without_repeating_it():
    with pytest.raises(errors.UsageError) as caught:
        login.normalize(f"https://ann:{SECRET}@h")
    assert SECRET not in str(caught.value)


# --- yes ---


@pytest.mark.slow
def test_a_context_path_works(tmp_path):
    with Sandbox(tmp_path / "x", projects=["P"], users=["demo:demo"], context="/xnat") as box:
        found = credentials.Credentials("demo", "demo", "prompt")
        with xnat.connect(box.url, found, environ={}) as site:
            assert site.url.endswith("/xnat")
            assert site.open_project("P") == "P"


def test_user_and_password_travel_as_utf_8():
    with (
        Scripted(Xnat(password="pä$$:wörd")) as site,
        connect(site.url, credentials.Credentials("ann", "pä$$:wörd", "prompt")) as found,
    ):
        assert found.user == "ann"


def test_our_name_is_honest_and_no_browsers():
    with Scripted(Xnat()) as site, connect(site.url) as found:
        found.subjects("P")
    assert site.seen[-1].method == "DELETE"
    agents = {one.headers["User-Agent"] for one in site.seen if "/data/projects" in one.path}
    assert agents == {http.USER_AGENT}
    assert http.USER_AGENT.startswith("xnatuploader/")


# --- no ---


def test_a_401_is_a_refusal_and_asked_once():
    handler = Xnat(password="other")
    with Scripted(handler) as site, pytest.raises(errors.LoginRefused, match="XNAT_USER and XNAT_PASS"):
        connect(site.url)
    assert site.count("GET", "/data/auth") == 1


def test_no_credentials_and_nobody_to_ask_names_the_lines(tmp_path):
    with Scripted(Xnat()) as site, pytest.raises(errors.LoginRefused, match=r"machine 127\.0\.0\.1"):
        connect(site.url, None)
    assert site.count("GET", "/data/auth") == 0


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(401, "<h3>x</h3>"), errors.LoginRefused, "refused"),
        (
            Reply(403, "<h3>Your security token has expired or is invalid</h3>"),
            errors.LoginRefused,
            "expired",
        ),
        (Reply(403, "<h3>Site is not initialized</h3>"), errors.ServerUnreachable, "403"),
        (Reply(404, "<html><title>nginx</title></html>"), errors.ServerUnreachable, "/xnat"),
        (Reply(200, "<html><h1>It works!</h1></html>"), errors.ServerUnreachable, "No XNAT answers"),
        (Reply(200, "User 'guest' is logged in"), errors.LoginRefused, "guest"),
        (
            Reply(200, "<html><form action='/app/template/Login.vm'></html>"),
            errors.LoginRefused,
            "alias token",
        ),
        (Reply(500, "<h3>boom</h3>"), errors.ServerUnreachable, "500"),
        (Reply(503), errors.ServerUnreachable, "not available"),
        (
            Reply(302, "", {"Location": "/app/template/XDATScreen_UpdateUser.vm"}),
            errors.LoginRefused,
            "password for",
        ),
        (Reply(302, "", {"Location": "/app/template/InactiveAccount.vm"}), errors.LoginRefused, "not active"),
        (Reply(302, "", {"Location": "https://idp.example/saml2"}), errors.LoginRefused, "single sign-on"),
        (Reply(302, "", {"Location": "/elsewhere?secret=1"}), errors.ServerUnreachable, "redirects to"),
        (DROP, errors.ServerUnreachable, "lost"),
    ],
)
def test_each_other_answer_has_its_own_message_and_code(reply, kind, words):
    handler = Xnat()
    handler.on_login = lambda _: reply
    with Scripted(handler) as site, pytest.raises(kind, match=words) as caught:
        connect(site.url)
    assert type(caught.value) is kind
    assert "secret=1" not in str(caught.value)


def test_a_server_error_at_login_is_tried_three_times():
    handler = Xnat()
    replies = [Reply(502), Reply(503), handler.yes()]
    handler.on_login = lambda _: replies.pop(0)
    clock = NoTime()
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        assert found.user == "ann"
    assert len(clock.waits) == 2
    assert clock.time <= 20


def test_waiting_for_a_server_goes_on_for_as_long_as_asked():
    handler = Xnat()
    handler.on_login = lambda _: Reply(503)
    clock = NoTime()
    with Scripted(handler) as site, pytest.raises(errors.ServerUnreachable):
        connect(site.url, clock=clock, wait=600)
    assert 540 <= clock.time <= 600


def test_a_server_below_xnat_is_found_and_named():
    def handler(seen):
        if seen.path.startswith("/xnat/xapi/siteConfig/buildInfo"):
            assert not seen.basic
            return Reply(200, '{"version": "1.8.10"}')
        return Reply(200, "<html><h1>It works!</h1></html>")

    with (
        Scripted(handler) as site,
        pytest.raises(errors.ServerUnreachable, match=f"one does at {site.url}/xnat"),
    ):
        connect(site.url)


@pytest.mark.parametrize("body", ["5", "null", "true", "[]", '"x"', "<html>"])
def test_what_is_below_xnat_and_no_xnat_is_not_named(body):
    def handler(seen):
        return Reply(200, body if "buildInfo" in seen.path else "<html><h1>It works!</h1></html>")

    with Scripted(handler) as site, pytest.raises(errors.ServerUnreachable, match="whether it needs a path"):
        connect(site.url)


# --- no answer ---


def test_a_refused_connection_says_so():
    with pytest.raises(errors.ServerUnreachable, match="refuses connections"):
        connect(f"http://127.0.0.1:{free_port()}")


def test_an_unknown_host_says_so():
    with pytest.raises(errors.ServerUnreachable, match=r"no computer called nowhere\.invalid"):
        connect("https://nowhere.invalid")


def test_a_silent_server_says_so():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(errors.ServerUnreachable, match="in time"):
            connect(url, timeouts=http.Timeouts(connect=0.2, login=0.2))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def certified(authority, *names) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_an_unknown_authority_names_the_variable(authority):
    with (
        Scripted(Xnat(), certified(authority, "127.0.0.1")) as site,
        pytest.raises(errors.ServerUnreachable, match="REQUESTS_CA_BUNDLE"),
    ):
        connect(site.url)
    assert site.seen == []


def test_a_certificate_for_another_name_says_so(authority, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        Scripted(Xnat(), certified(authority, "other.example")) as site,
        pytest.raises(errors.ServerUnreachable, match="another name"),
    ):
        connect(site.url, environ={"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")})
    assert site.seen == []


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_named_authority_is_trusted_in_every_request(authority, tmp_path, variable):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        Scripted(Xnat(), certified(authority, "127.0.0.1")) as site,
        connect(site.url, environ={variable: str(tmp_path / "ca.pem")}) as found,
    ):
        assert found.subjects("P") == {}
        assert found._connection._connected.get("/data/projects").status_code == 200  # xnatpy's requests too


def test_the_systems_store_is_trusted(authority, tmp_path, monkeypatch):
    # OpenSSL's own default file stands for the system's store, which a test must not change.
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with Scripted(Xnat(), certified(authority, "127.0.0.1")) as site, connect(site.url, environ={}) as found:
        assert found.subjects("P") == {}
        assert found._connection._connected.get("/data/projects").status_code == 200


def test_a_missing_bundle_is_a_usage_error(tmp_path):
    with pytest.raises(errors.UsageError, match="does not exist"):
        connect("https://127.0.0.1", environ={"REQUESTS_CA_BUNDLE": str(tmp_path / "gone.pem")})


def test_https_asked_of_a_plain_port_says_so():
    with Scripted(Xnat()) as site, pytest.raises(errors.ServerUnreachable, match="does not speak https"):
        connect(site.url.replace("http://", "https://"))


def test_a_proxy_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:{SECRET}@127.0.0.1:{free_port()}")
    with pytest.raises(errors.ServerUnreachable, match=r"proxy 127\.0\.0\.1") as caught:
        connect("https://xnat.example.org")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"), [(407, "login of its own"), (403, "does not let"), (502, "does not let")]
)
def test_a_proxy_that_refuses_is_told_apart(monkeypatch, status, words):
    with Scripted(lambda _: Reply(status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://u:{SECRET}@127.0.0.1:{proxy.port}")
        with pytest.raises(errors.ServerUnreachable, match=words) as caught:
            connect("https://xnat.example.org")
    assert SECRET not in str(caught.value)


def test_requests_go_through_a_proxy(monkeypatch):
    handler = Xnat()

    def proxy(seen):
        seen.path = seen.path.removeprefix("http://xnat.example.org")
        return handler(seen)

    with Scripted(proxy) as site:
        monkeypatch.setenv("HTTP_PROXY", site.url)
        with connect("http://xnat.example.org") as found:
            assert found.subjects("P") == {}


# --- redirects ---


def test_http_is_left_for_https_before_any_password_is_sent(authority, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Scripted(Xnat(), certified(authority, "127.0.0.1")) as secure:
        to_https = Reply(301, "", {"Location": secure.url + "/"})
        with (
            Scripted(lambda _: to_https) as plain,
            connect(plain.url, environ={"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")}) as found,
        ):
            assert found.url == secure.url
    assert not any(one.basic or one.body for one in plain.seen)


def test_the_login_page_as_front_page_is_no_other_address():
    handler = Xnat()

    def answers(seen):
        if seen.path == "/":
            return Reply(302, "", {"Location": "/app/template/Login.vm"})
        return handler(seen)

    with Scripted(answers) as site, connect(site.url) as found:
        assert found.url == site.url


def test_a_context_path_is_followed():
    handler = Xnat()

    def answers(seen):
        if seen.path == "/":
            return Reply(302, "", {"Location": "/xnat/"})
        if seen.path.startswith("/xnat/"):
            seen.path = seen.path.removeprefix("/xnat")
            return handler(seen)
        return Reply(404)

    with Scripted(answers) as site, connect(site.url) as found:
        assert found.url == site.url + "/xnat"


def test_another_host_gets_no_password():
    with Scripted(Xnat()) as other:
        away = Reply(301, "", {"Location": other.url.replace("127.0.0.1", "localhost") + "/"})
        with (
            Scripted(lambda _: away) as site,
            pytest.raises(errors.ServerUnreachable, match="another server"),
        ):
            connect(site.url)
    assert other.seen == []


def test_a_circle_of_redirects_ends():
    turns = iter(range(100))
    with (
        Scripted(lambda _: Reply(302, "", {"Location": f"/x{next(turns)}/"})) as site,
        pytest.raises(errors.ServerUnreachable, match="circles"),
    ):
        connect(site.url)


# --- typing it in, and tokens ---


@pytest.mark.slow
def test_a_refused_entry_may_be_typed_anew_and_the_token_is_handed_over(tmp_path):
    with Sandbox(tmp_path / "x", projects=["P"], users=["demo:demo"]) as box:
        typed = credentials.Credentials("demo", "demo", "prompt")
        with xnat.connect(box.url, FROM_NETRC, environ={}, ask=lambda base: typed) as site:
            token, until = site.issued_token, site.login_until
        alias, secret = token.user, token.password
        assert token.expires == until
        assert until > datetime.now(timezone.utc)
        assert login.is_alias(alias)
        by_token = credentials.Credentials(alias, secret, "XNAT_USER and XNAT_PASS")
        with xnat.connect(box.url, by_token, environ={}) as site:
            assert site.user == "demo"
            assert abs((site.login_until - until).total_seconds()) < 1
        box.expire_tokens()
        old = credentials.Credentials(alias, secret, FROM_NETRC.source, expires=until)
        with pytest.raises(errors.LoginRefused, match="token has expired"):
            xnat.connect(box.url, old, environ={})


def test_nobody_is_asked_when_not_interactive(tmp_path, monkeypatch):
    def ask(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr(credentials, "prompt", ask)
    with Scripted(Xnat()) as site:
        (tmp_path / "netrc").write_text(f"machine {site.url[7:]} login ann password old\n")
        with pytest.raises(errors.LoginRefused):
            login.sign_in(site.url, {"NETRC": str(tmp_path / "netrc")}, interactive=False)


def test_wrong_passwords_are_asked_for_twice_and_then_it_ends():
    asked = []
    wrong = credentials.Credentials("ann", "no", "prompt")
    with Scripted(Xnat()) as site, pytest.raises(errors.LoginRefused):
        connect(site.url, FROM_NETRC, ask=lambda base: asked.append(1) or wrong)
    assert len(asked) == 2
    assert site.count("GET", "/data/auth") == 3


def test_wrong_credentials_in_the_environment_are_not_replaced_by_a_prompt():
    wrong = credentials.Credentials("ann", "no", "XNAT_USER and XNAT_PASS")
    with Scripted(Xnat()) as site, pytest.raises(errors.LoginRefused):
        connect(site.url, wrong, ask=lambda base: TYPED)


def test_a_site_that_issues_no_token_is_no_failure():
    handler = Xnat(lambda seen: Reply(403) if "tokens" in seen.path else Reply(200, "{}"))
    with Scripted(handler) as site, connect(site.url, None, ask=lambda base: TYPED) as found:
        assert found.login_until is None
        assert found.issued_token is None


# --- a saved login survives, and nothing secret gets out ---


@pytest.mark.parametrize("status", [401, 403, 404, 500, 502, 503])
def test_a_saved_login_survives_every_failure(tmp_path, status):
    handler = Xnat()
    handler.on_login = lambda _: Reply(status)
    with Scripted(handler) as site:
        content = f"machine {site.url[7:]} login ann password old\n"
        (tmp_path / ".netrc").write_text(content)
        found = credentials.search(site.url, {"NETRC": str(tmp_path / ".netrc")}).credentials
        with pytest.raises(errors.XnatUploaderError):
            connect(site.url, found)
    assert (tmp_path / ".netrc").read_text() == content


def test_the_netrc_file_is_never_read_by_the_libraries(tmp_path):
    handler = Xnat()

    def answers(seen):
        if seen.path == "/":
            return Reply(302, "", {"Location": "/app/template/Login.vm"})
        if seen.path.startswith("/app"):
            return Reply(200, "<html></html>")
        return handler(seen)

    with Scripted(answers) as site:
        (tmp_path / ".netrc").write_text(
            f"machine {site.url[7:]} login x password {SECRET}\nmachine 127.0.0.1 login x password {SECRET}\n"
        )
        with connect(site.url) as found:
            found.subjects("P")
    assert not any(SECRET in one.basic for one in site.seen)
    assert "NETRC" not in os.environ


def test_nothing_secret_is_logged_printed_or_shown(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    shown = io.StringIO()
    with Sandbox(tmp_path / "x", projects=["P"], users=[f"demo:{SECRET}"]) as box:
        found = credentials.Credentials("demo", SECRET, "prompt")
        site = xnat.connect(box.url, found, environ={})
        box.kill_sessions()
        site.subjects("P")
        site._connection._connected.get("/data/projects")  # xnatpy logs more than we do
        with contextlib.suppress(ValueError):
            site._connection._connected.get("/data/projects/NONE")
        print(site, found, site._connection, site._connection._connected, site.__dict__, file=shown)
        token = site._connection._state[1]
        site.close()
        wrong = credentials.Credentials("demo", SECRET + "x", "prompt")
        with contextlib.suppress(errors.LoginRefused):
            xnat.connect(box.url, wrong, environ={})
    printed = capfd.readouterr()
    everything = printed.out + printed.err + caplog.text + shown.getvalue()
    for secret in (SECRET, site.issued_token.password, token):
        assert secret not in everything


def test_a_token_is_read_with_its_expiry():
    token = login.read_token('{"alias": "a", "secret": "b", "estimatedExpirationTime": 1764000000000}')
    assert token.expires == datetime(2025, 11, 24, 16, 0, tzinfo=timezone.utc)
    assert "'b'" not in repr(token)
    assert login.read_token("<html>") is None
    assert login.read_token('{"alias": "a", "secret": "b"}').expires is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3), ("1000", 60), ("", None), ("soon", None), ("Sun, 22 Nov 2026 16:00:30 GMT", 30)],
)
def test_retry_after_is_read_as_seconds_or_date(value, seconds):
    with time_is(datetime(2026, 11, 22, 16, 0, tzinfo=timezone.utc), http):
        assert http.retry_after({"Retry-After": value}) == seconds
