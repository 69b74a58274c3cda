"""Where the login comes from; the netrc file is read in every form and only ever changed in one entry."""

from __future__ import annotations

import contextlib
import getpass
import io
import netrc
import os
import stat
import string
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.waiting import time_is
from xnatuploader import errors, paths
from xnatuploader.console import terminal
from xnatuploader.xnat import credentials

URL = "https://xnat.example.org"
SECRET = "s3cr#t-Planted"


def home_with(tmp_path, text, name=".netrc", mode=0o600):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return tmp_path


@contextlib.contextmanager
def computer(home, windows=False):
    """Let the block run as on a computer of this system, for a user with this home folder."""
    with (
        mock.patch.object(paths, "is_windows", return_value=windows),
        mock.patch.object(Path, "home", return_value=home),
    ):
        yield


def look(tmp_path, url=URL, environ=None, windows=False):
    with computer(tmp_path, windows):
        return credentials.search(url, environ or {})


def refusal(tmp_path, url=URL, environ=None, windows=False):
    with computer(tmp_path, windows):
        return str(credentials.missing(url, environ or {}))


def typed(monkeypatch, user, password):
    """Ask for a login, answered by the two functions."""
    monkeypatch.setattr(terminal, "ask", user)
    monkeypatch.setattr(getpass, "getpass", password)
    return credentials.prompt(URL)


# --- the order ---


def test_the_environment_comes_before_the_netrc_file(tmp_path):
    home_with(tmp_path, "machine xnat.example.org login a password b\n")
    found = look(tmp_path, environ={"XNAT_USER": "u", "XNAT_PASS": "p"}).credentials
    assert (found.user, found.password, found.source) == ("u", "p", "XNAT_USER and XNAT_PASS")


def test_half_of_the_environment_is_left_out_and_said(tmp_path):
    home_with(tmp_path, "machine xnat.example.org login a password b\n")
    found = look(tmp_path, environ={"XNAT_USER": "u"})
    assert found.credentials.user == "a"
    assert "XNAT_PASS is not" in found.warnings[0]


def test_nothing_found_is_none(tmp_path):
    assert look(tmp_path).credentials is None


def test_a_password_is_in_no_repr(tmp_path):
    home_with(tmp_path, f"machine xnat.example.org login a password {SECRET}\n")
    search = look(tmp_path)
    assert search.credentials.password == SECRET
    assert SECRET not in repr(search)
    parsed = credentials.Netrc(f"machine h login a password {SECRET}")
    assert SECRET not in repr(parsed)


# --- forms of the file ---

FORMS = {
    "one line": "machine xnat.example.org login ann password pw\n",
    "several lines": "machine xnat.example.org\n  login ann\n  password pw\n",
    "xnatutils' user": "machine xnat.example.org\nuser ann\npassword pw\n",
    "password first": "machine xnat.example.org password pw login ann",
    "account": "machine xnat.example.org login ann account x password pw\n",
    "tabs and CRLF": "machine\txnat.example.org\r\n\tlogin\tann\r\n\tpassword\tpw\r\n",
    "comments": "# about\nmachine xnat.example.org # mine\n# in between\nlogin ann\npassword pw # end\n",
    "comment without space": "#machine x login no\nmachine xnat.example.org login ann password pw",
    "quoted": 'machine "xnat.example.org" login "ann" password "pw"\n',
    "byte order mark": "\ufeffmachine xnat.example.org login ann password pw\n",
    "after a macro": "macdef x\nmachine a login b\n\nmachine xnat.example.org login ann password pw\n",
    "after another": "machine a login b password c\nmachine xnat.example.org login ann password pw\n",
    "default": "machine a login b password c\ndefault login ann password pw\n",
    "capitals": "machine XNAT.Example.ORG login ann password pw\n",
    "before default": "machine xnat.example.org login ann password pw\ndefault login no password no\n",
    "default before it": "default login no password no\nmachine xnat.example.org login ann password pw\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path, form):
    search = look(home_with(tmp_path, FORMS[form]))
    assert (search.credentials.user, search.credentials.password) == ("ann", "pw")
    assert not search.warnings


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ('"with space"', "with space"),
        (r'"quote \" and \\ slash"', 'quote " and \\ slash'),
        ("#begins", "#begins"),
        ("in#side", "in#side"),
        ('in"side', 'in"side'),
        ("login", "login"),
        ("pässwörd", "pässwörd"),
        ('"open', '"open'),
    ],
)
def test_odd_passwords_are_read(tmp_path, written, password):
    found = look(home_with(tmp_path, f"machine xnat.example.org login ann password {written}\n")).credentials
    assert found.password == password


@pytest.mark.parametrize(
    ("url", "machine"),
    [
        ("https://h:8443", "h:8443"),
        ("https://h:8443", "h"),
        ("https://h", "h:443"),
        ("http://h", "h:80"),
        ("http://h/xnat", "h"),
        ("http://h/xnat", "h/xnat"),
        ("http://h:8080/xnat", "h:8080/xnat"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("h", "h"),
        ("h:8080/xnat", "h:8080"),
    ],
)
def test_an_entry_is_found_by_its_name(url, machine):
    netrc = credentials.Netrc(f"machine {machine} login a password b")
    assert netrc.entry_for(url).login == "a"


@pytest.mark.parametrize(
    ("url", "machine"), [("https://h:8443", "h:9"), ("https://hh", "h"), ("https://h", "h:8080")]
)
def test_an_entry_of_another_server_is_not_taken(url, machine):
    netrc = credentials.Netrc(f"machine {machine} login a password b")
    assert netrc.entry_for(url) is None


def test_host_and_port_come_before_the_host():
    text = "machine h login host password p\nmachine h:8443 login port password p\n"
    assert credentials.Netrc(text).entry_for("https://h:8443").login == "port"
    assert credentials.Netrc(text).entry_for("https://h:1").login == "host"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"machine xnat.example.org login ann password two {SECRET}\n", "line 1 holds a word"),
        (f"machine xnat.example.org\nlogin\npassword {SECRET}\n", "line 2 says login without a value"),
        (f"machine xnat.example.org\nlogin ann\npasswd {SECRET}\n", "line 3 holds a word"),
        (f"machine\nlogin ann password {SECRET}\n", "line 1 says machine without"),
        ("machine xnat.example.org login ann\n", "no password"),
        ("machine xnat.example.org", "no login and password"),
        (f"{SECRET}\n", "line 1 holds a word"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_without_quoting_it(tmp_path, text, words):
    search = look(home_with(tmp_path, text))
    said = " ".join(search.warnings)
    assert words in said
    assert "~/.netrc" in said
    assert SECRET not in said


def test_a_broken_entry_does_not_hide_a_whole_one(tmp_path):
    home_with(tmp_path, "machine a login b\nmachine xnat.example.org login ann password pw\n")
    assert look(tmp_path).credentials.user == "ann"


def test_a_file_saved_as_utf_16_is_named_as_that(tmp_path):
    home_with(tmp_path, "machine xnat.example.org login a password b".encode("utf-16"))
    search = look(tmp_path)
    assert search.credentials is None
    assert "UTF-8" in search.warnings[0]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / ".netrc").mkdir()
    assert "cannot be read" in look(tmp_path).warnings[0]


@given(st.text(alphabet=string.printable + 'ü\ufeff\x00#"\\', max_size=200))
def test_no_text_breaks_the_reader_and_no_word_of_it_is_quoted(text):
    marked = text + f"\nmachine h password Zq9{'x' * 5}\n"
    parsed = credentials.Netrc(marked)
    assert all("Zq9" not in problem for problem in parsed.problems)
    for entry in parsed.entries:
        assert 0 <= entry.start < entry.end <= len(marked)


WORDS = st.text(
    alphabet=string.ascii_letters + string.digits + "!$%&/()=?+*~-_.:,;<>|@#'", min_size=1, max_size=12
)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4), st.sampled_from([" ", "\n", "\n  "]))
def test_plain_files_are_read_as_python_reads_them(tmp_path_factory, rows, gap):
    plain = [
        row
        for row in rows
        if not any(word in credentials._KEYWORDS or word.startswith("#") for word in row)
        and '"' not in str(row)
    ]
    text = "".join(f"machine {m}{gap}login {u}{gap}password {p}\n" for m, u, p in plain)
    path = tmp_path_factory.mktemp("n") / "netrc"
    path.write_text(text)
    path.chmod(0o600)
    theirs = {name: (login, password) for name, (login, _, password) in netrc.netrc(str(path)).hosts.items()}
    ours = {entry.machine: (entry.login, entry.password) for entry in credentials.Netrc(text).entries}
    assert ours == theirs


# --- where the file is, and who can read it ---


def test_windows_reads_its_own_name_first(tmp_path):
    home_with(tmp_path, "machine xnat.example.org login unix password p\n")
    assert look(tmp_path, windows=True).credentials.user == "unix"
    home_with(tmp_path, "machine xnat.example.org login windows password p\n", "_netrc")
    assert look(tmp_path, windows=True).credentials.user == "windows"
    assert look(tmp_path, windows=False).credentials.user == "unix"


def test_the_file_to_make_has_the_systems_name(tmp_path):
    assert look(tmp_path, windows=True).file.name == "_netrc"
    assert look(tmp_path, windows=False).file.name == ".netrc"


def test_netrc_variable_beats_the_home_folder(tmp_path):
    home_with(tmp_path, "machine xnat.example.org login home password p\n")
    home_with(tmp_path, "machine xnat.example.org login other password p\n", "elsewhere")
    found = look(tmp_path, environ={"NETRC": str(tmp_path / "elsewhere")}).credentials
    assert found.user == "other"


@pytest.mark.skipif(os.name == "nt", reason="modes mean something else there")
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_others_can_read_is_a_warning_and_still_used(tmp_path, mode, warned):
    home_with(tmp_path, "machine xnat.example.org login a password b\n", mode=mode)
    found = look(tmp_path)
    assert found.credentials.user == "a"
    assert any("chmod 600 ~/.netrc" in warning for warning in found.warnings) is warned
    assert not look(tmp_path, windows=True).warnings


# --- asking ---


def test_a_prompt_asks_for_both(monkeypatch):
    asked = []
    found = typed(
        monkeypatch,
        lambda question: asked.append(question) or " ann ",
        lambda question: asked.append(question) or "p w",
    )
    assert (found.user, found.password, found.source) == ("ann", "p w", "prompt")
    assert "xnat.example.org" in asked[0]
    assert "ann" in asked[1]


def test_without_a_terminal_the_file_and_its_lines_are_named(tmp_path):
    said = refusal(tmp_path, URL + ":8443", windows=True)
    assert str(tmp_path / "_netrc") in said
    assert "machine xnat.example.org:8443" in said
    assert "winpty" not in said


def test_git_bash_is_told_about_winpty(tmp_path):
    assert "winpty" in refusal(tmp_path, environ={"MSYSTEM": "MINGW64"}, windows=True)


def test_a_broken_netrc_file_is_part_of_the_refusal(tmp_path):
    home_with(tmp_path, f"machine xnat.example.org login a passwort {SECRET}\n")
    said = refusal(tmp_path)
    assert "line 1" in said
    assert SECRET not in said


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("a", ""), ("  ", "x")])
def test_nothing_typed_is_a_refusal(monkeypatch, user, password):
    with pytest.raises(errors.LoginRefused, match="No user name or password"):
        typed(monkeypatch, lambda _: user, lambda _: password)


def test_the_end_of_input_is_a_refusal(monkeypatch):
    def gone(_):
        raise EOFError

    with pytest.raises(errors.LoginRefused):
        typed(monkeypatch, gone, gone)


def test_the_question_goes_to_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ann\n"))
    typed(monkeypatch, terminal.ask, lambda _: "p")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "User name" in printed.err


def test_pipes_and_missing_streams_are_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert not terminal.there()
    monkeypatch.setattr(sys, "stdin", None)
    assert not terminal.there()


# --- saving ---

ALIAS = "1b9e0c1a-6b0a-4c86-8f8e-0d4c6f1f2a3b"
UNTIL = datetime(2026, 11, 24, 14, 0, tzinfo=timezone.utc)


def save(tmp_path, host="xnat.example.org", expires=UNTIL):
    token = credentials.Credentials(ALIAS, "S" * 64, "token", expires)
    with computer(tmp_path):
        return credentials.save(host, token, environ={})


@pytest.mark.parametrize("form", FORMS)
def test_saving_changes_only_this_hosts_entry(tmp_path, form):
    home_with(tmp_path, FORMS[form])
    save(tmp_path)
    found = look(tmp_path).credentials
    assert (found.user, found.password, found.expires) == (ALIAS, "S" * 64, UNTIL)
    before = {e.machine.lower(): (e.login, e.password) for e in credentials.Netrc(FORMS[form]).entries}
    text = (tmp_path / ".netrc").read_text("utf-8")
    after = {e.machine.lower(): (e.login, e.password) for e in credentials.Netrc(text).entries}
    before.pop("xnat.example.org", None)
    after.pop("xnat.example.org")
    assert after == before


def test_everything_else_stays_byte_for_byte(tmp_path):
    head = b"# k\xfcmmert euch\r\nmachine a login b password c\r\nmacdef x\r\n  y\r\n\r\n"
    tail = b" # mine\r\nmachine z\r\n\tlogin q account w password e\r\ndefault login d password d\r\n"
    home_with(tmp_path, head + b"machine xnat.example.org login old password gone" + tail)
    save(tmp_path)
    content = (tmp_path / ".netrc").read_bytes()
    assert content.startswith(head)
    assert content.endswith(tail.lstrip(b" "))
    assert b"gone" not in content
    assert b"\n" not in content.replace(b"\r\n", b"")


def test_saving_twice_leaves_one_entry_and_one_comment(tmp_path):
    save(tmp_path)
    first = (tmp_path / ".netrc").read_bytes()
    save(tmp_path)
    assert (tmp_path / ".netrc").read_bytes() == first
    assert first.count(b"works until") == 1


def test_a_new_entry_stands_before_default(tmp_path):
    home_with(tmp_path, "machine a login b password c\ndefault login d password e\n")
    save(tmp_path)
    text = (tmp_path / ".netrc").read_text()
    assert text.index("machine xnat.example.org") < text.index("default")


def test_a_url_is_saved_by_host_and_port(tmp_path):
    save(tmp_path, "https://xnat.example.org:8443/xnat")
    save(tmp_path, "xnat.example.org:8443/xnat")
    assert (tmp_path / ".netrc").read_text().count("machine") == 1
    assert "machine xnat.example.org:8443\n" in (tmp_path / ".netrc").read_text()


@pytest.mark.skipif(os.name == "nt", reason="modes mean something else there")
def test_the_saved_file_is_private(tmp_path):
    home_with(tmp_path, "machine a login b password c\n", mode=0o644)
    path = save(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [".netrc"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "kept").mkdir()
    home_with(tmp_path / "kept", "machine a login b password c\n")
    (tmp_path / ".netrc").symlink_to(tmp_path / "kept" / ".netrc")
    save(tmp_path)
    assert (tmp_path / ".netrc").is_symlink()
    assert "xnat.example.org" in (tmp_path / "kept" / ".netrc").read_text()


def test_a_file_that_is_no_text_is_left_alone(tmp_path):
    content = "machine a login b password c".encode("utf-16")
    home_with(tmp_path, content)
    with pytest.raises(OSError, match="UTF-8"):
        save(tmp_path)
    assert (tmp_path / ".netrc").read_bytes() == content


def test_a_failing_save_leaves_the_file_and_nothing_beside(tmp_path, monkeypatch):
    home_with(tmp_path, "machine a login b password c\n")

    def fails(*_):
        raise PermissionError("in use")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(PermissionError):
        save(tmp_path)
    assert (tmp_path / ".netrc").read_text() == "machine a login b password c\n"
    assert [one.name for one in tmp_path.iterdir()] == [".netrc"]


def test_what_is_saved_is_read_by_python_and_by_xnatutils_rule(tmp_path):
    home_with(tmp_path, "machine a login b password c\n")
    path = save(tmp_path, "h:8080")
    assert netrc.netrc(str(path)).authenticators("h:8080") == (ALIAS, "", "S" * 64) or netrc.netrc(
        str(path)
    ).authenticators("h:8080") == (ALIAS, None, "S" * 64)
    machines = [line.split()[-1] for line in path.read_text().split("\n") if line.startswith("machine")]
    assert "h:8080" in machines


@given(
    st.text(alphabet=string.printable + 'ü#"\\', max_size=120),
    st.sampled_from(["xnat.example.org", "h:8080"]),
)
def test_a_saved_entry_is_found_again_in_any_file(tmp_path_factory, text, host):
    folder = tmp_path_factory.mktemp("h")
    (folder / ".netrc").write_bytes(text.encode())
    before = credentials.Netrc(text).entries
    save(folder, host, None)
    after = credentials.Netrc((folder / ".netrc").read_bytes().decode()).entries
    mine = [entry for entry in after if entry.machine == host]
    others = [(e.machine, e.login, e.password) for e in before if e.machine.lower() != host]
    if "macdef" not in text and '"' not in text:
        assert mine[0].password == "S" * 64
        assert [(e.machine, e.login, e.password) for e in after if e.machine.lower() != host] == others


# --- expiry ---


def test_the_expiry_belongs_to_its_alias(tmp_path):
    save(tmp_path)
    path = tmp_path / ".netrc"
    path.write_text(path.read_text().replace(f"login {ALIAS}", "login ann"))
    assert look(tmp_path).credentials.expires is None


def test_the_expiry_is_said_by_day_and_hour():
    now = datetime(2026, 11, 22, 16, 0, tzinfo=timezone.utc)
    with time_is(now, credentials):
        here = f"{UNTIL.astimezone():%A %H:%M}"
        assert credentials.expiry_sentence(UNTIL) == f"The login works until {here}."
        assert "expired" in credentials.expiry_sentence(now - timedelta(hours=1))
        assert "December 2026" in credentials.expiry_sentence(now + timedelta(days=20))
        assert credentials.expiry_sentence(None) == ""
