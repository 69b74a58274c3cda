"""Where user and password come from, and this host's entry in the netrc file.

Order: 1. `XNAT_USER` and `XNAT_PASS`; 2. the netrc file (`$NETRC`, `~/.netrc`, on Windows `~/_netrc`), by
host:port, then host, then `default`; 3. a prompt, if there is a terminal. Nothing here ever puts a secret,
or any word of a netrc file that might be one, into a message.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from xnatuploader import errors, paths

MARK = "# xnatuploader:"
"""Begins the comment that remembers until when a saved token works. Its words must not be netrc keywords."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password (or an alias and its secret), and where they were found."""

    user: str
    password: str = field(repr=False)
    source: str
    """For messages: `XNAT_USER and XNAT_PASS`, `netrc file ~/.netrc, entry host:port`, `prompt`."""
    expires: datetime | None = None
    """When the token stops working (aware), where it was remembered."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user, for example that others can read the netrc file."""

    @property
    def from_prompt(self) -> bool:
        """Tell whether a person typed them in this run."""
        return self.source == "prompt"


@dataclass(frozen=True, slots=True)
class Search:
    """What a look at the environment and the netrc file gave."""

    credentials: Credentials | None
    file: Path
    """The netrc file that was read, or that should be made."""
    warnings: tuple[str, ...] = ()


def find(
    url: str,
    environ: Mapping[str, str] | None = None,
    *,
    windows: bool | None = None,
    home: Path | None = None,
) -> Credentials | None:
    """Return the credentials for the server at `url` without asking anybody, or None."""
    return search(url, environ, windows=windows, home=home).credentials


def search(
    url: str,
    environ: Mapping[str, str] | None = None,
    *,
    windows: bool | None = None,
    home: Path | None = None,
) -> Search:
    """Look for credentials as `find` does; tell also which netrc file counts and what is wrong with it."""
    variables = os.environ if environ is None else environ
    on_windows = paths.is_windows() if windows is None else windows
    path = netrc_path(variables, windows=on_windows, home=home)
    user, password = variables.get("XNAT_USER", ""), variables.get("XNAT_PASS", "")
    if user and password:
        return Search(Credentials(user, password, "XNAT_USER and XNAT_PASS"), path)
    warnings: list[str] = []
    if user or password:
        there, lacking = ("XNAT_USER", "XNAT_PASS") if user else ("XNAT_PASS", "XNAT_USER")
        warnings.append(f"{there} is set, but {lacking} is not, so both are left out of account.")
    shown = _shown(path, home)
    content, trouble = _read(path, shown)
    if trouble:
        return Search(None, path, (*warnings, trouble))
    parsed = parse_netrc(content)
    entry = choose(parsed.entries, url)
    warnings.extend(f"The netrc file {shown}: {problem}" for problem in parsed.problems)
    if entry is None:
        return Search(None, path, tuple(warnings))
    if not on_windows and (loose := _permission_warning(path, shown)):
        warnings.append(loose)
    named = entry.machine or "default"
    found = Credentials(
        entry.login, entry.password, f"netrc file {shown}, entry {named}", entry.expires, tuple(warnings)
    )
    return Search(found, path, tuple(warnings))


def netrc_path(environ: Mapping[str, str], *, windows: bool, home: Path | None = None) -> Path:
    """Return the netrc file to read, or, where there is none yet, the one to make."""
    if environ.get("NETRC"):
        return Path(environ["NETRC"])
    folder = Path.home() if home is None else home
    if not windows:
        return folder / ".netrc"
    # Git and curl on Windows use either name; `_netrc` is what the XNAT clients read, so it comes first.
    usual, other = folder / "_netrc", folder / ".netrc"
    return other if other.is_file() and not usual.is_file() else usual


# --- the netrc format


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a netrc file; `start` and `end` are offsets of its text, our comment included."""

    machine: str
    """Empty for `default`."""
    login: str
    password: str = field(repr=False)
    start: int
    end: int
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Netrc:
    """What a netrc file holds: whole entries, and a sentence for each broken one, never quoting its words."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    """Each names its line."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    start: int
    end: int
    line: int
    quoted: bool = False


_KEYWORDS = ("machine", "default", "login", "user", "account", "password", "macdef")


def parse_netrc(text: str) -> Netrc:
    r"""Read a netrc file: one-line and several-line entries, `default`, comments, quoted words, macros.

    Comments begin with `#` where a keyword is expected; elsewhere `#` is part of a word, so that a
    password may begin with it. A word in double quotes may hold spaces, and `\"` and `\\`, as curl and
    Python read it.
    """
    reader = _NetrcReader(text)
    reader.read()
    return Netrc(tuple(reader.entries), tuple(reader.problems))


class _NetrcReader:
    """Walks over a netrc file once. Holds the entry that is being read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.entries: list[Entry] = []
        self.problems: list[str] = []
        self._fields: dict[str, str] = {}
        self._machine: str | None = None
        self._start = 0
        self._end = 0
        self._line = 0
        self._marks: list[str] = []

    def read(self) -> None:
        while (token := self._next()) is not None:
            if token.text.startswith("#") and not token.quoted:
                self._comment(token)
            elif token.text in ("machine", "default") and not token.quoted:
                self._finish()
                self._begin(token)
            elif token.text == "macdef" and not token.quoted:
                self._finish()
                self._skip_macro()
            elif token.text in ("login", "user", "password", "account") and not token.quoted:
                self._value(token)
            else:
                self.problems.append(
                    f"line {token.line} holds a word where machine, login or password was expected. "
                    "A password with spaces needs double quotes around it."
                )
                self._skip_line()
        self._finish()

    def _next(self) -> _Token | None:
        blank = re.compile(r"[ \t\r\n\f\ufeff\x00]*").match(self.text, self.position)
        start = blank.end() if blank else self.position
        if start >= len(self.text):
            self.position = len(self.text)
            return None
        line = self.text.count("\n", 0, start) + 1
        if self.text[start] == '"':
            quoted = re.compile(r'"((?:\\.|[^"\\\n])*)"').match(self.text, start)
            if quoted:
                self.position = quoted.end()
                word = re.sub(r"\\(.)", r"\1", quoted.group(1))
                return _Token(word, start, self.position, line, quoted=True)
        word_match = re.compile(r"[^ \t\r\n\f\x00]+").match(self.text, start)
        assert word_match is not None  # `start` stands on a character that is not blank
        self.position = word_match.end()
        return _Token(word_match.group(), start, self.position, line)

    def _begin(self, token: _Token) -> None:
        self._start, self._end, self._line = token.start, token.end, token.line
        self._fields, self._marks = {}, []
        if token.text == "default":
            self._machine = ""
            return
        name = self._next()
        if name is None or (name.text in _KEYWORDS and not name.quoted):
            self.problems.append(f"line {token.line} says machine without the name of a server.")
            self._machine = None
            self.position = name.start if name is not None else self.position
            return
        self._machine, self._end = name.text, name.end

    def _value(self, token: _Token) -> None:
        value = self._next()
        # A keyword on the next line means that the value was left out; on the same line it is the value.
        left_out = value is None or (
            not value.quoted
            and value.line != token.line
            and (value.text in _KEYWORDS or value.text[0] == "#")
        )
        if left_out:
            self.problems.append(f"line {token.line} says {token.text} without a value.")
            self.position = value.start if value is not None else self.position
            return
        assert value is not None
        if self._machine is None:
            return  # the trouble with its machine line has been told
        key = "login" if token.text == "user" else token.text
        self._fields[key] = value.text
        self._end = value.end

    def _comment(self, token: _Token) -> None:
        end = self.text.find("\n", token.start)
        end = len(self.text) if end < 0 else end
        comment = self.text[token.start : end].rstrip("\r")
        self.position = end
        if comment.startswith(MARK) and self._machine is not None:
            self._marks.append(comment)
            self._end = token.start + len(comment)

    def _skip_line(self) -> None:
        end = self.text.find("\n", self.position)
        self.position = len(self.text) if end < 0 else end

    def _skip_macro(self) -> None:
        """Go past a macro: it reaches to the first empty line, as ftp has it."""
        gap = re.compile(r"\r?\n[ \t]*\r?\n").search(self.text, self.position)
        self.position = gap.end() if gap else len(self.text)

    def _finish(self) -> None:
        if self._machine is None:
            return
        login, password = self._fields.get("login", ""), self._fields.get("password", "")
        if login and password:
            expires = _expiry_from(self._marks, login)
            self.entries.append(Entry(self._machine, login, password, self._start, self._end, expires))
        else:
            lacking = " and ".join(word for word in ("login", "password") if not self._fields.get(word))
            self.problems.append(f"the entry that begins in line {self._line} has no {lacking}.")
        self._machine = None


def choose(entries: tuple[Entry, ...], url: str) -> Entry | None:
    """Return the entry for `url`: by host:port and path, by host:port, by host, else `default`."""
    for name in _names(url):
        for entry in entries:
            if entry.machine.lower() == name:
                return entry
    return next((entry for entry in entries if not entry.machine), None)


def entry_name(url: str) -> str:
    """Return the name under which a login for `url` is saved: host:port as written in it, else the host."""
    return _split(url).netloc.rpartition("@")[2].lower()


def _split(url: str) -> SplitResult:
    """Split an address, also one without a scheme, as users write it."""
    return urlsplit(url.strip() if "://" in url else f"https://{url.strip()}")


def _names(url: str) -> list[str]:
    parts = _split(url)
    netloc = entry_name(url)
    host = (parts.hostname or "").lower()
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme.lower(), 443)
    names = [netloc, f"{host}:{port}", host]
    path = parts.path.strip("/").lower()
    if path:
        # Two XNATs may live below one host; their entries can then name the context path as well.
        names = [f"{name}/{path}" for name in names] + names
    return list(dict.fromkeys(names))


def _expiry_from(marks: list[str], login: str) -> datetime | None:
    for mark in marks:
        found = re.match(rf"{re.escape(MARK)} (\S+) works until (\S+)$", mark.strip())
        # The mark belongs to one alias: an entry that was edited by hand since must not inherit its date.
        if found and login.startswith(found.group(1)):
            with contextlib.suppress(ValueError):
                return datetime.strptime(found.group(2), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return None


# --- asking


def terminal_there(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether a person can be asked: standard input and error are both a terminal.

    Git Bash and other MinTTY windows give a native Windows Python pipes, where a prompt for a password
    would not be seen and the program would seem to hang, so they count as none.
    """
    try:
        return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed, or a service without standard streams
        return False


def prompt(
    url: str,
    ask_user: Callable[[str], str] | None = None,
    ask_password: Callable[[str], str] | None = None,
    *,
    terminal: bool | None = None,
    environ: Mapping[str, str] | None = None,
    windows: bool | None = None,
    home: Path | None = None,
) -> Credentials:
    """Ask for user and password. Raises `LoginRefused`, naming what to put where, if nobody can be asked."""
    there = terminal_there(environ) if terminal is None else terminal
    if not there:
        raise missing(url, environ, windows=windows, home=home)
    host = entry_name(url)
    try:
        user = (ask_user or _ask_on_stderr)(f"User name on {host}: ").strip()
        password = (ask_password or getpass.getpass)(f"Password of {user} on {host}: ") if user else ""
    except EOFError:
        user = password = ""
    if not user or not password:
        raise errors.LoginRefused(f"No user name or password was given for {host}. Run the command again.")
    return Credentials(user, password, "prompt")


def missing(
    url: str,
    environ: Mapping[str, str] | None = None,
    *,
    windows: bool | None = None,
    home: Path | None = None,
) -> errors.LoginRefused:
    """Return the trouble that there are no credentials and nobody to ask, with the lines to add and where."""
    looked = search(url, environ, windows=windows, home=home)
    variables = os.environ if environ is None else environ
    on_windows = paths.is_windows() if windows is None else windows
    sentences = [f"There is no login for {entry_name(url)}, and no terminal to ask on."]
    sentences.extend(looked.warnings)
    if on_windows and (variables.get("MSYSTEM") or variables.get("TERM_PROGRAM") == "mintty"):
        sentences.append("(In Git Bash put winpty in front of the command, or use the Anaconda prompt.)")
    lines = how_to_save(url)
    sentences.append(
        f"Add these lines to the file {looked.file}, or set XNAT_USER and XNAT_PASS:\n" + "\n".join(lines)
    )
    return errors.LoginRefused(" ".join(sentences))


def how_to_save(url: str) -> tuple[str, ...]:
    """Return the netrc lines a user has to write for the server at `url`."""
    return (f"  machine {entry_name(url)}", "  login YOUR-USER-NAME", "  password YOUR-PASSWORD")


def _ask_on_stderr(question: str) -> str:
    """Ask as `input` does, but on standard error: standard output belongs to results."""
    sys.stderr.write(question)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


# --- saving


def save(
    host: str,
    alias: str,
    secret: str,
    expires: datetime | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    windows: bool | None = None,
    home: Path | None = None,
) -> Path:
    """Write `alias` and `secret` as the netrc entry of `host` (host:port or URL), and return the file.

    Every other byte of the file stays. It is written beside, mode 0600, and moved into place. Call it only
    with a token that has just worked. Raises OSError if the file cannot be written, or cannot be read as
    text, in which case it is left alone.
    """
    variables = os.environ if environ is None else environ
    on_windows = paths.is_windows() if windows is None else windows
    path = netrc_path(variables, windows=on_windows, home=home)
    path = Path(os.path.realpath(path))  # a netrc file that is a link stays a link
    name = entry_name(host)
    text, trouble = _read(path, str(path))
    if trouble:
        raise OSError(trouble)
    new_text = _with_entry(text, name, _entry_text(text, name, alias, secret, expires))
    _replace_file(path, new_text.encode("utf-8", "surrogateescape"))
    return path


def _entry_text(text: str, name: str, alias: str, secret: str, expires: datetime | None) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    # Three lines: the form that xnatutils reads too (it takes the last word of the `machine` line as the
    # host).
    lines = [f"machine {name}", f"login {_quoted(alias)}", f"password {_quoted(secret)}"]
    if expires is not None:
        until = expires.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines.append(f"{MARK} {alias[:8]} works until {until}")
    return newline.join(lines)


def _with_entry(text: str, name: str, entry_text: str) -> str:
    """Return `text` with the entry of `name` replaced, or put in before `default`, or at the end."""
    newline = "\r\n" if "\r\n" in text else "\n"
    entries = parse_netrc(text).entries
    old = next((entry for entry in entries if entry.machine.lower() == name), None)
    if old is not None:
        # Where another entry goes on in the same line, ours must not swallow it.
        rest = text[old.end :]
        gap = newline if rest[:1] in (" ", "\t") and rest.split("\n", 1)[0].strip() else ""
        return text[: old.start] + entry_text + gap + rest
    default = next((entry for entry in entries if not entry.machine), None)
    if default is not None:  # readers stop at `default`, so ours has to stand above it
        return text[: default.start] + entry_text + newline + text[default.start :]
    # A macro at the end reaches to an empty line.
    gap = "" if not text else newline if text.endswith("\n") else newline * 2
    return text + gap + entry_text + newline


def _quoted(word: str) -> str:
    if re.fullmatch(r"[^\s\"\\#]+", word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _replace_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=".netrc-", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)  # noqa: PTH105  (a str from mkstemp)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)  # noqa: PTH108
        raise


def _read(path: Path, shown: str) -> tuple[str, str]:
    """Return the text of the netrc file ('' if there is none), and a sentence if it cannot be used."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return "", f"The netrc file {shown} cannot be read ({reason}). Check its permissions."
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        # What `>` of Windows PowerShell makes.
        return "", f"The netrc file {shown} is saved as UTF-16 (Unicode). Save it as UTF-8 in the editor."
    # Undecodable bytes survive a rewrite this way; a password in another code page still works if it is
    # ASCII.
    return content.decode("utf-8", "surrogateescape"), ""


def _permission_warning(path: Path, shown: str) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""
    if mode & 0o077 == 0:
        return ""
    return f"Others on this computer can read the netrc file {shown}. Run: chmod 600 {shown}"


def _shown(path: Path, home: Path | None) -> str:
    folder = Path.home() if home is None else home
    try:
        return "~/" + path.relative_to(folder).as_posix()
    except ValueError:
        return str(path)


# --- expiry


def expiry_sentence(expires: datetime | None, now: datetime | None = None) -> str:
    """Say until when the login works, in local time, or that it has expired; '' if that is not known."""
    if expires is None:
        return ""
    present = datetime.now(timezone.utc) if now is None else now
    local = expires.astimezone(present.tzinfo if now is not None else None)
    if expires <= present:
        return f"The login token expired on {local:%A, %d %B, at %H:%M}. Log in again to get a new one."
    if expires - present < timedelta(days=6):
        return f"The login works until {local:%A %H:%M}."
    return f"The login works until {local:%A, %d %B %Y, %H:%M}."


def with_expiry(credentials: Credentials, expires: datetime | None) -> Credentials:
    """Return `credentials` with the time they stop working."""
    return replace(credentials, expires=expires)
