"""The command line: every operation and every option, and what help says about them."""

from __future__ import annotations

import argparse
import datetime
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from xnatuploader import __version__, errors, paths, records
from xnatuploader.config.lines import near
from xnatuploader.console import report

DESCRIPTION = "Upload folders of DICOM files to XNAT, steered by a spreadsheet."


@dataclass(frozen=True, slots=True)
class Operation:
    """What help says about one operation. The module of that name in `commands` runs it."""

    summary: str
    description: str
    example: str
    leaves_log: bool = False


OPERATIONS: Mapping[str, Operation] = {
    "init": Operation(
        "create a new workbook with a Configuration sheet",
        "Create a new workbook with one sheet, Configuration. An existing file is left alone.",
        """\
example:
  xnatuploader init --spreadsheet study.xlsx
then open study.xlsx, read the lines at the top of its Configuration sheet, and fill in Project and Server.""",
    ),
    "scan": Operation(
        "list the DICOM files of a folder in the workbook",
        "Search a folder for DICOM files, work out from their paths and headers where each belongs, and list them in "
        "the workbook: one row per file in Files, one per visit in Sessions. Nothing is sent. A second scan keeps "
        "what you edited and what was uploaded.",
        """\
example:
  xnatuploader scan --spreadsheet study.xlsx --dir data_files
then open study.xlsx, look through the sheets Sessions and Files, and set Upload to N for what should not be sent.""",
        leaves_log=True,
    ),
    "upload": Operation(
        "send the listed files to XNAT",
        "Send the files that the workbook lists to an XNAT project, verify that they arrived, and write each file's "
        "status back. Run it again to go on after an interruption: what is on the server is not sent again.",
        """\
example:
  xnatuploader upload --spreadsheet study.xlsx --dir data_files --test
shows what would be sent where. Leave out --test to send it. Server and project are taken from the Configuration
sheet, or from --server https://xnat.example.org --project Test001.""",
        leaves_log=True,
    ),
    "check": Operation(
        "check that everything is ready for an upload",
        "Check the workbook, the folder, the login, the server and the project. Each gets one line: ok, or the problem "
        "and what to do. Nothing is sent. In a terminal it asks for a login where none is saved, and saves it as "
        "upload does. The exit status is that of the first problem.",
        """\
examples:
  xnatuploader check --spreadsheet study.xlsx --dir data_files
  xnatuploader check --server https://xnat.example.org --project Test001
The second one needs no workbook.""",
        leaves_log=True,
    ),
    "demo": Operation(
        "try init, scan and upload on example files, without a server",
        "Make a small tree of DICOM files in ./xnatuploader-demo, then run init, scan and upload on it against a "
        "throw-away XNAT on this computer. Nothing leaves the computer.",
        """\
example:
  xnatuploader demo""",
    ),
    "sandbox": Operation(
        "run a throw-away XNAT on this computer, to try things out",
        "Run a throw-away XNAT on this computer, for trying the program, for training and for tests. Only this "
        "computer can reach it (127.0.0.1), and you should keep nothing in it that you need.",
        """\
examples:
  xnatuploader sandbox
      serve project DEMO for user demo, password demo; files go to the folder xnat-sandbox
  xnatuploader sandbox --projects P1,P2 --user anna:secret --user guest:guest:reader
  xnatuploader sandbox --latency 0.05 --fault "status method=PUT path=/files/ every=20 status=503"
  xnatuploader sandbox --set checksums=no --set session_timeout=30

A fault is written as WHAT name=value ..., where WHAT is one of status, latency, drop, hang, html, lose,
corrupt, silent-corrupt, lying-digest, race, disk-full, truncate, cut-listing, kill-session, refuse-import,
and the names are method, path (regular expressions), first, every, times, probability, when (before,
during, after the body), status, seconds, retry_after, message, keep, seed.
""",
    ),
}


# ---- values ------------------------------------------------------------------------------------------------


def time_of_day(text: str) -> datetime.time:
    """Read `06:30`."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time of day such as 06:30")
    return datetime.time(int(match[1]), int(match[2]))


def duration(text: str) -> float:
    """Read `8:00` (hours:minutes) as seconds."""
    match = re.fullmatch(r"(\d{1,5}):([0-5]\d)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration such as 8:00 (hours:minutes)")
    return int(match[1]) * 3600.0 + int(match[2]) * 60.0


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 64")
    return int(text)


def refresh_words(text: str) -> tuple[str, ...]:
    """Read the words of `--refresh-catalog`; XNAT takes a request with unknown words for one of *all*."""
    known = {word.lower(): word for word in records.REFRESH_WORDS}
    words = [word.strip().lower() for word in text.split(",")]
    for word in words:
        if word not in known:
            # Written before the operation, the option takes the operation's name for its value.
            raise argparse.ArgumentTypeError(
                f"'{word}' is none of {_REFRESH} (without these, write it after the operation)"
            )
    return tuple(known[word] for word in words)


_REFRESH = ",".join(records.REFRESH_WORDS)


# ---- the options -------------------------------------------------------------------------------------------

_BOOK, _INIT, _SCAN, _UPLOAD, _IMPORT, _TELL, _SANDBOX = (
    "workbook, data and server",
    "init",
    "scan",
    "upload",
    "upload through XNAT's import service",
    "messages and log",
    "sandbox",
)


@dataclass(frozen=True, slots=True)
class Option:
    """One option; it is accepted before and after every operation, as users of 1.x type them."""

    flag: str
    group: str
    help: Mapping[str, str]
    """Operation -> what its help says about the option; the help of others does not show it."""
    default: Any = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """What argparse needs to know besides."""

    @property
    def name(self) -> str:
        """The attribute of the parsed arguments that holds it."""
        return self.flag.removeprefix("--").replace("-", "_")

    def help_for(self, operation: str | None) -> str:
        """Return what the help of one operation (None: of the whole program) says."""
        if operation is not None or self.group == _SANDBOX:
            return self.help.get(operation or "", argparse.SUPPRESS)
        operations: dict[str, list[str]] = {}
        for name, text in self.help.items():
            operations.setdefault(text, []).append(name)
        if len(operations) == 1:
            return next(iter(operations))
        return "; ".join(f"{', '.join(names)}: {text}" for text, names in operations.items())


def _for(operations: str, text: str) -> Mapping[str, str]:
    return dict.fromkeys(operations.split(), text)


def _flag(flag: str, group: str, operations: str, text: str) -> Option:
    return Option(flag, group, _for(operations, text), False, {"action": "store_true"})


_ALL = "init scan upload check"

OPTIONS: tuple[Option, ...] = (
    Option("--spreadsheet", _BOOK, _for(_ALL, "the workbook (default: files.xlsx)"), "files.xlsx",
        {"metavar": "FILE"}),
    Option("--dir", _BOOK, details={"metavar": "DIR"}, help={
        "scan": "folder to search (default: the current folder)",
        "upload": "folder that the File column is relative to (default: the current folder, then the one that was "
        "scanned)",
        "check": "folder that holds the files (default: the folder that was scanned)"}),
    Option("--server", _BOOK, _for("upload check", "address of the XNAT server; takes precedence over the "
        "Configuration sheet"), details={"metavar": "URL"}),
    Option("--project", _BOOK, _for("upload check", "ID of the XNAT project; takes precedence over the Configuration "
        "sheet"), details={"metavar": "ID"}),
    _flag("--force", _INIT, "init", "write over an existing workbook"),
    _flag("--unmatched", _SCAN, "scan", "also list each file that no pattern matched, with the reason"),
    _flag("--strict", _SCAN, "scan", "treat a Dataset that holds more than one series as a conflict"),
    _flag("--restart", _SCAN, "scan", "begin a new list; the old sheets are kept as 'Files old' and 'Sessions old'"),
    _flag("--test", _UPLOAD, "upload", "print what would be sent where; this sends nothing and needs no login"),
    _flag("--verify", _UPLOAD, "upload", "check the server again for rows that say success; files that are gone or "
        "differ become failed or conflict"),
    _flag("--overwrite", _UPLOAD, "upload", "look again at files already uploaded, and replace those that differ on "
        "the server"),
    _flag("--anonymize", _UPLOAD, "upload", "upload de-identified copies; the files themselves are not changed"),
    _flag("--nopipeline", _UPLOAD, "upload", "skip the steps after the upload (headers, scan types, pipelines)"),
    Option("--until", _UPLOAD, _for("upload", "stop cleanly at this time of day; the rest becomes 'interrupted'"),
        details={"metavar": "HH:MM", "type": time_of_day}),
    Option("--max-duration", _UPLOAD, _for("upload", "stop cleanly after this time, in hours and minutes"),
        details={"metavar": "H:MM", "type": duration}),
    Option("--wait", _UPLOAD, _for("upload check", "keep trying for this long while the server is away, also at the "
        "start (default: 2 minutes, at the start 20 seconds)"), 0.0, {"metavar": "H:MM", "type": duration}),
    Option("--jobs", _UPLOAD, default=4, details={"metavar": "N", "type": _jobs}, help={
        "scan": "files to read at the same time (default: 4)",
        "upload": "scans to send at the same time (default: 4)"}),
    Option("--import-handler", _IMPORT, _for("upload", "send each session through the import service: "
        f"{', '.join(records.IMPORT_HANDLERS[:-1])} or {records.IMPORT_HANDLERS[-1]}"),
        details={"metavar": "H", "choices": records.IMPORT_HANDLERS}),
    Option("--dest", _IMPORT, _for("upload", "archive, prearchive, or a destination such as /prearchive/projects/P"),
        details={"metavar": "DEST"}),
    _flag("--dest-by-headers", _IMPORT, "upload", "let the server choose project, subject and "
        "session by the DICOM headers"),
    Option("--import-overwrite", _IMPORT, _for("upload", "what to do with a session that exists (default: none, "
        "which refuses it)"), "none", {"choices": ["none", "append", "delete"]}),
    _flag("--quarantine", _IMPORT, "upload", "put the imported sessions into quarantine"),
    _flag("--rename", _IMPORT, "upload", "let XNAT name the files"),
    _flag("--via-cache", _IMPORT, "upload", "upload to the user cache first, then import in the background"),
    _flag("--commit", _IMPORT, "upload", "archive this workbook's sessions that wait in the prearchive"),
    Option("--refresh-catalog", _IMPORT, _for("upload", "have XNAT refresh the catalogs of the workbook's sessions "
        f"({_REFRESH})"), (), {"metavar": "OPTIONS", "nargs": "?", "const": records.REFRESH_WORDS,
        "type": refresh_words}),
    _flag("--json", _TELL, _ALL, "print one JSON object at the end, and nothing else, on stdout"),
    Option("--logdir", _TELL, _for("scan upload check", "folder for the log file of this run (default: logs beside "
        "the workbook)"), details={"metavar": "DIR"}),
    Option("--loglevel", _TELL, _for(_ALL, "debug, info, warning or error (default: info); debug shows file paths"),
        details={"metavar": "L", "type": str.lower, "choices": ["debug", "info", "warning", "error"]}),
    Option("--debug", _TELL, default=False, details={"action": "store_true"}, help={
        "scan": "scan only the first 10 files and log every matching step; show tracebacks; implies --loglevel debug",
        **_for("init upload check", "show tracebacks; implies --loglevel debug")}),
)  # fmt: skip
"""Every option but the sandbox's, in the order of the help."""

SANDBOX_OPTIONS: tuple[Option, ...] = (
    Option("--folder", _SANDBOX, _for("sandbox", "folder for its files (default: xnat-sandbox)"), "xnat-sandbox"),
    Option("--port", _SANDBOX, _for("sandbox", "port to listen on (default: a free one)"), 0, {"type": int}),
    Option("--context", _SANDBOX, _for("sandbox", "context path of the server, such as /xnat"), ""),
    Option("--user", _SANDBOX, _for("sandbox", "an account; roles are admin, owner, member, reader and none, also for "
        "one project as in reader@P1 (default: demo:demo)"), (),
        {"action": "append", "metavar": "NAME:PASSWORD[:ROLE]"}),
    Option("--fault", _SANDBOX, _for("sandbox", "make requests go wrong, see below"), (), {"action": "append"}),
    Option("--set", _SANDBOX, _for("sandbox", "change a setting of the site"), (),
        {"action": "append", "metavar": "NAME=VALUE"}),
    Option("--latency", _SANDBOX, _for("sandbox", "seconds added to every request"), 0.0, {"type": float}),
    Option("--cert", _SANDBOX, _for("sandbox", "certificate (PEM): serve https"), ""),
    Option("--key", _SANDBOX, _for("sandbox", "private key (PEM) of the certificate"), ""),
    Option("--projects", _SANDBOX, _for("sandbox", "its projects, separated by commas (default: DEMO)"), "",
        {"metavar": "P1,P2"}),
)  # fmt: skip


# ---- parsing -----------------------------------------------------------------------------------------------


class _Help(argparse.HelpFormatter):
    """Wraps descriptions, and leaves texts that have lines of their own (examples) as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one message and end the run in the same place as all others."""

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument [^-].*?: invalid choice: (['\"])(.*?)\1[ ,]", message)
        if wrong:
            message = _about_operation(wrong[2])
        message = re.sub(r"^argument (?=-)", "option ", message)
        message = message.replace("expected one argument", "a value is missing")
        raise _mistake(message, self.prog.removeprefix("xnatuploader").strip())


def _mistake(message: str, operation: str) -> errors.UsageError:
    where = f"xnatuploader help {operation}" if operation in OPERATIONS else "xnatuploader --help"
    end = "" if message.endswith("?") else "."
    return errors.UsageError(f"{message[:1].upper()}{message[1:]}{end} See `{where}`.")


def _about_operation(word: str) -> str:
    if word.startswith("-"):
        return _about_options(_names([word]), ())
    if word.endswith(".xlsx"):
        return f"there is no operation '{word}'. Did you mean: scan --spreadsheet {paths.typed(word)} ?"
    meant = near(word, [*OPERATIONS, "help"])
    advice = f"did you mean {meant}?" if meant else f"the operations are {', '.join(OPERATIONS)} and help"
    return f"there is no operation '{word}'; {advice}"


def _about_options(names: Sequence[str], flags: Sequence[str]) -> str:
    logins = [name for name in names if name.startswith(("--pass", "--pw", "--user", "-p", "-u"))]
    if logins:  # what follows may be a password that begins with a dash
        advice = "give user name and password in XNAT_USER and XNAT_PASS or in the netrc file"
        return f"there is no option {' '.join(logins)}; {advice}"
    meant = " and ".join(filter(None, (near(name, flags, cutoff=0.66) for name in names)))
    return f"there is no option {' '.join(names)}{f'; did you mean {meant}?' if meant else ''}"


def _names(words: Iterable[str]) -> list[str]:
    """Return the names of options among `words`; what is written behind a name may be a password."""
    return [
        word.partition("=")[0] if word.startswith("--") else word[:2]
        for word in words
        if word.startswith("-")
    ]


def _add_options(parser: argparse.ArgumentParser, operation: str | None) -> None:
    """Add all options to `parser`; those that mean nothing to `operation` are accepted and not shown."""
    groups: dict[str, Any] = {}
    for option in (*OPTIONS, *(SANDBOX_OPTIONS if operation in (None, "sandbox") else ())):
        # argparse shows the heading of a group even where all its options are hidden.
        title = option.group if operation is None and option in OPTIONS else ""
        if title not in groups:
            groups[title] = parser.add_argument_group(title) if title else parser
        # Without a default of its own, an operation's parser leaves alone what stood before the operation.
        groups[title].add_argument(
            option.flag, default=argparse.SUPPRESS, help=option.help_for(operation), **option.details
        )


def exit_codes() -> str:
    """Return the table of exit codes as help shows it."""
    lines = ["exit status:"]
    for code, meaning in errors.EXIT_CODES.items():
        lines += textwrap.wrap(
            meaning, 78, initial_indent=f"  {code:<5}", subsequent_indent=" " * 7, break_long_words=False
        )
    order = (str(code) for code in errors.EXIT_CODE_ORDER if code != errors.UsageError.exit_code)
    return "\n".join([*lines, f"Where several apply, the first of {', '.join(order)}."])


def build_parser() -> argparse.ArgumentParser:
    """Build the one parser: options before or after the operation."""
    names = [*[*OPERATIONS][:4], "help", *[*OPERATIONS][4:]]
    choice = "{" + ",".join(names) + "}"
    parser = _Parser(
        prog="xnatuploader",
        usage=f"xnatuploader [options] {choice} [options]",
        description=DESCRIPTION,
        epilog=exit_codes(),
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"xnatuploader {__version__}")
    subparsers = parser.add_subparsers(
        dest="operation", title="operations", metavar=choice, prog="xnatuploader"
    )
    for name, operation in OPERATIONS.items():
        subparser = subparsers.add_parser(
            name,
            usage=f"xnatuploader {name} [options]",
            help=operation.summary,
            description=operation.description,
            epilog=operation.example,
            formatter_class=_Help,
        )
        _add_options(subparser, name)
    helper = subparsers.add_parser(
        "help", usage="xnatuploader help [operation]", help="explain an operation, with an example",
        description="Explain an operation, with an example; without one, the whole program.",
    )  # fmt: skip
    helper.add_argument("topic", nargs="?", metavar="operation", choices=names, help=", ".join(OPERATIONS))
    _add_options(parser, None)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse `argv`. Raises `UsageError` where it makes no sense, and SystemExit where help was printed."""
    operation = next((word for word in argv if word in OPERATIONS), "")
    flags = ["-h", "--help", "--version", *(option.flag for option in (*OPTIONS, *SANDBOX_OPTIONS))]
    # Before argparse, which would take the word behind an option that it does not know for the operation.
    # A number, or a word with a blank, may be a value.
    names = _names(word for word in argv if not re.match(r"-(\d|[^=]*\s)", word))
    if unknown := [name for name in names if not any(flag.startswith(name) for flag in flags)]:
        own = OPTIONS if operation != "sandbox" else (*OPTIONS, *SANDBOX_OPTIONS)
        raise _mistake(_about_options(unknown, [option.flag for option in own]), operation)
    parser = build_parser()
    args, unexpected = parser.parse_known_args(argv)
    others = () if args.operation == "sandbox" else SANDBOX_OPTIONS
    if unknown := _names(unexpected) or [option.flag for option in others if hasattr(args, option.name)]:
        raise _mistake(_about_options(unknown, ()), operation)
    if unexpected:
        words = " ".join(unexpected)
        hint = f". Did you mean: --spreadsheet {paths.typed(words)} ?" if words.endswith(".xlsx") else ""
        raise _mistake(f"unexpected argument '{words}'{hint}", operation)
    if args.operation == "help":
        parser.parse_args([*filter(None, [args.topic]), "--help"])
    for option in (*OPTIONS, *SANDBOX_OPTIONS):
        if not hasattr(args, option.name):
            setattr(args, option.name, option.default)
    args.loglevel = "debug" if args.debug else args.loglevel or "info"
    return args


def short_help() -> str:
    """Return what a person reads who typed the program's name only."""
    lines = [DESCRIPTION, "", "Say what to do:"]
    lines += [f"  xnatuploader {name:<8} {operation.summary}" for name, operation in OPERATIONS.items()]
    lines += ["", "More: xnatuploader --help, or xnatuploader help scan"]
    return "\n".join(lines)


def given(args: argparse.Namespace) -> dict[str, str]:
    """Return the options that were given, for the log; no login that stands in an address is among them."""
    return {
        option.name: report.address(str(value)) if option.name in ("server", "dest") else str(value)
        for option in OPTIONS
        if (value := getattr(args, option.name, option.default)) != option.default
    }
