"""Where user and password come from, and this host's entry in the netrc file.

Order: 1. `XNAT_USER` and `XNAT_PASS`; 2. the netrc file (`$NETRC`, or `~/.netrc`; on Windows `~/_netrc`, or `~/.netrc`
where that is missing), by host:port, then host, then `default`; 3. a prompt, if there is a terminal. No message holds a
secret, or any word of a netrc file that might be one.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from xnatuploader import errors, paths
from xnatuploader.console import terminal

MARK = "# xnatuploader:"
"""Begins the comment that remembers until when a saved token works. Its words must not be netrc keywords."""
_UNTIL = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password (or an alias and its secret), and where they were found."""

    user: str
    password: str = field(repr=False)
    source: str
    """For messages: `XNAT_USER and XNAT_PASS`, `netrc file ~/.netrc, entry host:port`, `prompt`."""
    expires: datetime | None = None
    """When the token stops working (aware), where that is known."""

    @property
    def from_prompt(self) -> bool:
        """Tell whether a person typed them in this run."""
        return self.source == "prompt"


@dataclass(frozen=True, slots=True)
class Search:
    """What was found in the environment and the netrc file."""

    credentials: Credentials | None
    file: Path
    """The netrc file that was read, or that should be made."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user, for example that others can read the netrc file."""


def search(url: str, environ: Mapping[str, str]) -> Search:
    """Look for credentials for the server at `url` without asking anybody."""
    path = _netrc_path(environ)
    user, password = environ.get("XNAT_USER", ""), environ.get("XNAT_PASS", "")
    if user and password:
        return Search(Credentials(user, password, "XNAT_USER and XNAT_PASS"), path)
    warnings = []
    if user or password:
        there, lacking = ("XNAT_USER", "XNAT_PASS") if user else ("XNAT_PASS", "XNAT_USER")
        warnings.append(f"{there} is set, but {lacking} is not, so {there} is not used.")
    shown = _shown(path)
    content, unusable = _read(path, shown)
    if unusable:
        return Search(None, path, (*warnings, unusable))
    netrc = Netrc(content)
    warnings.extend(f"The netrc file {shown}: {problem}" for problem in netrc.problems)
    entry = netrc.entry_for(url)
    if entry is None:
        return Search(None, path, tuple(warnings))
    if not paths.is_windows() and _others_can_read(path):
        warnings.append(f"Others on this computer can read the netrc file {shown}. Run: chmod 600 {shown}")
    source = f"netrc file {shown}, entry {entry.machine or 'default'}"
    return Search(Credentials(entry.login, entry.password, source, entry.expires), path, tuple(warnings))


def _netrc_path(environ: Mapping[str, str]) -> Path:
    """Return the netrc file to read, or, where there is none yet, the one to make."""
    if environ.get("NETRC"):
        return Path(environ["NETRC"])
    if not paths.is_windows():
        return Path.home() / ".netrc"
    # Git and curl on Windows use either name; `_netrc` is what the XNAT clients read, so it comes first.
    usual, other = Path.home() / "_netrc", Path.home() / ".netrc"
    return other if other.is_file() and not usual.is_file() else usual


# --- the netrc format


@dataclass(frozen=True, slots=True)
class NetrcEntry:
    """One entry of a netrc file; `start` and `end` are offsets of its text, our comment included."""

    machine: str
    """Empty for `default`."""
    login: str
    password: str = field(repr=False)
    start: int
    end: int
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Word:
    text: str = field(repr=False)
    start: int
    end: int
    line: int
    quoted: bool = False


@dataclass(slots=True)
class _Draft:
    """The entry that is being read."""

    machine: str
    line: int
    start: int
    end: int
    fields: dict[str, str] = field(default_factory=dict, repr=False)
    marks: list[str] = field(default_factory=list)
    """The comments in which a run noted until when a token works."""


_KEYWORDS = ("machine", "default", "login", "user", "account", "password", "macdef")
_WORD = re.compile(
    r'[ \t\r\n\f\ufeff\x00]*("(?P<quoted>(?:\\.|[^"\\\n])*)"|[^ \t\r\n\f\ufeff\x00][^ \t\r\n\f\x00]*)'
)
_LINE_END = re.compile(r"\n")
_MACRO_END = re.compile(r"\r?\n[ \t]*\r?\n")
"""A macro reaches to the first empty line, as in ftp."""


class Netrc:
    r"""What a netrc file holds: complete entries, and a sentence for each broken one, never quoting its words.

    Reads one-line and several-line entries, `default`, comments, quoted words, macros. Comments begin with `#`
    where a keyword is expected; elsewhere `#` is part of a word, so that a password may begin with it. A word in
    double quotes may hold spaces, and `\"` and `\\`, as curl and Python read it.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._draft: _Draft | None = None
        self.entries: list[NetrcEntry] = []
        self.problems: list[str] = []
        """Each names its line."""
        while (word := self._next()) is not None:
            self._read(word)
        self._finish()

    def _next(self) -> _Word | None:
        found = _WORD.match(self._text, self._position)
        if found is None:
            return None
        self._position = found.end()
        quoted = found["quoted"] is not None
        text = re.sub(r"\\(.)", r"\1", found["quoted"]) if quoted else found[1]
        line = self._text.count("\n", 0, found.start(1)) + 1
        return _Word(text, found.start(1), found.end(1), line, quoted)

    def _read(self, word: _Word) -> None:
        keyword = "" if word.quoted else word.text
        if keyword.startswith("#"):
            self._comment(word)
        elif keyword in ("machine", "default"):
            self._finish()
            self._begin(word)
        elif keyword == "macdef":
            self._finish()
            self._skip_to(_MACRO_END)
        elif keyword in ("login", "user", "password", "account"):
            self._value(word)
        else:
            self.problems.append(
                f"line {word.line} holds a word where machine, login or password was expected. "
                "A password with spaces needs double quotes around it."
            )
            self._skip_to(_LINE_END)

    def _begin(self, word: _Word) -> None:
        if word.text == "default":
            self._draft = _Draft("", word.line, word.start, word.end)
            return
        name = self._next()
        if name is None or (name.text in _KEYWORDS and not name.quoted):
            self.problems.append(f"line {word.line} says machine without the name of a server.")
            self._read_again(name)
        else:
            self._draft = _Draft(name.text, word.line, word.start, name.end)

    def _value(self, word: _Word) -> None:
        value = self._next()
        # A keyword on the next line means that the value was left out; on the same line it is the value.
        if value is None or (
            not value.quoted
            and value.line != word.line
            and (value.text in _KEYWORDS or value.text.startswith("#"))
        ):
            self.problems.append(f"line {word.line} says {word.text} without a value.")
            self._read_again(value)
        elif self._draft is not None:  # otherwise the problem with its machine line has been reported
            self._draft.fields["login" if word.text == "user" else word.text] = value.text
            self._draft.end = value.end

    def _comment(self, word: _Word) -> None:
        self._skip_to(_LINE_END)
        comment = self._text[word.start : self._position].rstrip("\r\n")
        if comment.startswith(MARK) and self._draft is not None:
            self._draft.marks.append(comment)
            self._draft.end = word.start + len(comment)

    def _read_again(self, word: _Word | None) -> None:
        if word is not None:
            self._position = word.start

    def _skip_to(self, end: re.Pattern[str]) -> None:
        found = end.search(self._text, self._position)
        self._position = found.end() if found else len(self._text)

    def _finish(self) -> None:
        draft, self._draft = self._draft, None
        if draft is None:
            return
        lacking = [word for word in ("login", "password") if not draft.fields.get(word)]
        if lacking:
            self.problems.append(
                f"the entry that begins in line {draft.line} has no {' and '.join(lacking)}."
            )
            return
        login, password = draft.fields["login"], draft.fields["password"]
        expires = _expiry_from(draft.marks, login)
        self.entries.append(NetrcEntry(draft.machine, login, password, draft.start, draft.end, expires))

    def entry_for(self, url: str) -> NetrcEntry | None:
        """Return the entry for `url`: by host:port and path, by host:port, by host, else `default`."""
        return next((entry for name in (*_names(url), "") if (entry := self._named(name))), None)

    def _named(self, name: str) -> NetrcEntry | None:
        """Return the first entry of a machine; '' for `default`."""
        return next((entry for entry in self.entries if entry.machine.lower() == name), None)

    def with_entry(self, name: str, lines: list[str]) -> str:
        """Return the text with the entry of `name` replaced, or put in before `default`, or at the end."""
        text = self._text
        newline = "\r\n" if "\r\n" in text else "\n"
        entry = newline.join(lines)
        old = self._named(name)
        if old is not None:
            # Where another entry goes on in the same line, ours must not swallow it.
            rest = text[old.end :]
            gap = newline if rest[:1] in (" ", "\t") and rest.split("\n", 1)[0].strip() else ""
            return text[: old.start] + entry + gap + rest
        default = self._named("")
        if default is not None:  # readers stop at `default`, so ours has to be above it
            return text[: default.start] + entry + newline + text[default.start :]
        # A macro at the end reaches to an empty line.
        gap = "" if not text else newline if text.endswith("\n") else newline * 2
        return text + gap + entry + newline


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
                return datetime.strptime(found.group(2), _UNTIL).replace(tzinfo=timezone.utc)
    return None


# --- asking


def prompt(url: str) -> Credentials:
    """Ask for user and password on the terminal. Raises `LoginRefused` if none is typed."""
    host = entry_name(url)
    try:
        user = terminal.ask(f"User name on {host}: ").strip()
        password = getpass.getpass(f"Password of {user} on {host}: ") if user else ""
    except EOFError:
        user = password = ""
    if not user or not password:
        raise errors.LoginRefused(f"No user name or password was given for {host}. Run the command again.")
    return Credentials(user, password, "prompt")


def missing(url: str, environ: Mapping[str, str]) -> errors.LoginRefused:
    """Return the error that there are no credentials and nobody to ask, with the lines to add and where."""
    found = search(url, environ)
    sentences = [f"There is no login for {entry_name(url)}, and no terminal to ask on."]
    sentences.extend(found.warnings)
    if paths.is_windows() and (environ.get("MSYSTEM") or environ.get("TERM_PROGRAM") == "mintty"):
        sentences.append("(In Git Bash put winpty in front of the command, or use the Anaconda prompt.)")
    sentences.append(
        f"Add these lines to the file {found.file}, or set XNAT_USER and XNAT_PASS:\n"
        f"  machine {entry_name(url)}\n  login YOUR-USER-NAME\n  password YOUR-PASSWORD"
    )
    return errors.LoginRefused(" ".join(sentences))


# --- saving


def save(host: str, token: Credentials, environ: Mapping[str, str]) -> Path:
    """Write `token` as the netrc entry of `host` (host:port or URL), and return the file.

    Every other byte of the file stays. It is written beside, mode 0600, and moved into place. Call it only
    with a token that has just worked. Raises OSError if the file cannot be written, or cannot be read as
    text, in which case it is left alone.
    """
    path = Path(os.path.realpath(_netrc_path(environ)))  # a netrc file that is a link stays a link
    text, unusable = _read(path, str(path))
    if unusable:
        raise OSError(unusable)
    # Three lines: the form that xnatutils reads too (it takes the last word of the `machine` line as the
    # host).
    name = entry_name(host)
    lines = [f"machine {name}", f"login {_quoted(token.user)}", f"password {_quoted(token.password)}"]
    if token.expires is not None:
        until = token.expires.astimezone(timezone.utc).strftime(_UNTIL)
        lines.append(f"{MARK} {token.user[:8]} works until {until}")
    _replace_file(path, Netrc(text).with_entry(name, lines).encode("utf-8", "surrogateescape"))
    return path


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


def _others_can_read(path: Path) -> bool:
    try:
        return stat.S_IMODE(path.stat().st_mode) & 0o077 != 0
    except OSError:
        return False


def _shown(path: Path) -> str:
    try:
        return "~/" + path.relative_to(Path.home()).as_posix()
    except ValueError:
        return str(path)


# --- expiry


def expiry_sentence(expires: datetime | None) -> str:
    """Say until when the login works, in local time, or that it has expired; '' if that is not known."""
    if expires is None:
        return ""
    local, now = expires.astimezone(), datetime.now(timezone.utc)
    if expires <= now:
        return f"The login token expired on {local:%A, %d %B, at %H:%M}. Log in again to get a new one."
    if expires - now < timedelta(days=6):
        return f"The login works until {local:%A %H:%M}."
    return f"The login works until {local:%A, %d %B %Y, %H:%M}."
