"""The command line: every option, what help says about it, and the table of exit codes."""

from __future__ import annotations

import argparse
import datetime
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from xnatuploader import __version__, errors
from xnatuploader.console import report

DESCRIPTION = "Upload folders of DICOM files to XNAT, steered by a spreadsheet."

EXIT_CODES: Mapping[int, str] = {
    0: "everything asked for is done (scan: unmatched, skipped, review, duplicate and missing rows are no failure)",
    1: "the run finished, but: upload, a selected file failed, conflicts or is not on disk; scan, a row is conflict",
    2: "usage, configuration or workbook problem, or another run holds the workbook; nothing was sent",
    3: "login refused, or no credentials and no terminal to ask on",
    4: "server unreachable or failing",
    5: "project missing, or no right to add to it",
    6: "the workbook could not be written (open in Excel); results are safe in the journal",
    130: "stopped by the user (Ctrl-C, SIGTERM)",
}  # fmt: skip
"""What the process returns, and when: the same table as in docs/uploading.md."""

PRIORITY = (130, 3, 4, 5, 6, 1)
"""Where several apply, the first of these."""

REFRESH = "checksum,delete,append,populateStats"
"""XNAT's options for a catalog refresh."""


class Command(Protocol):
    """What a module of `commands` offers to the command line."""

    SUMMARY: str
    DESCRIPTION: str
    EXAMPLE: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this operation has."""


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


def _refresh(text: str) -> str:
    wrong = [word for word in text.split(",") if word not in REFRESH.split(",")]
    if wrong:
        # Written before the operation, the option takes the operation's name for its value.
        raise argparse.ArgumentTypeError(
            f"'{wrong[0]}' is none of {REFRESH} (without these, write it after the operation)"
        )
    return text


# ---- the options -------------------------------------------------------------------------------------------

_BOOK, _SCAN, _UPLOAD, _IMPORT, _TELL = (
    "workbook, data and server",
    "init and scan",
    "upload",
    "upload through XNAT's import service",
    "what is said, and where",
)
_ALL = ("init", "scan", "upload", "check")


@dataclass(frozen=True, slots=True)
class Option:
    """One option; it is accepted before and after every operation, as users of 1.x type them."""

    flag: str
    group: str
    help: str
    operations: Sequence[str] = _ALL
    """Those whose help shows it."""
    default: Any = None
    words: Mapping[str, Any] = field(default_factory=dict)
    """What argparse wants to know besides."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """Operation -> what its own help says in place of `help`."""

    @property
    def name(self) -> str:
        """Return the attribute of the parsed arguments that holds it."""
        return self.flag.removeprefix("--").replace("-", "_")


def _flag(flag: str, group: str, help: str, operations: Sequence[str]) -> Option:
    return Option(flag, group, help, operations, False, {"action": "store_true"})


OPTIONS: tuple[Option, ...] = (
    Option("--spreadsheet", _BOOK, "the workbook (default: files.xlsx)", default="files.xlsx",
        words={"metavar": "FILE"}),
    Option("--dir", _BOOK, "scan: folder to search (default: the current one); upload: folder that the File column "
        "is relative to (default: the current one, then the one that was scanned)", ("scan", "upload", "check"),
        words={"metavar": "DIR"}, instead={
            "scan": "folder to search (default: the current folder)",
            "upload": "folder that the File column is relative to (default: the current folder, then the one that was "
            "scanned)",
            "check": "folder that the files are in (default: the one that was scanned)"}),
    Option("--server", _BOOK, "address of the XNAT server; beats the Configuration sheet", ("upload", "check"),
        words={"metavar": "URL"}),
    Option("--project", _BOOK, "ID of the XNAT project; beats the Configuration sheet", ("upload", "check"),
        words={"metavar": "ID"}),
    _flag("--force", _SCAN, "init: write over an existing workbook", ("init",)),
    _flag("--unmatched", _SCAN, "scan: also list each file that no pattern matched, with the reason", ("scan",)),
    _flag("--strict", _SCAN, "scan: a Dataset that holds more than one series is a conflict", ("scan",)),
    _flag("--restart", _SCAN, "scan: begin a new list; the old one is kept as sheet 'Files old'", ("scan",)),
    _flag("--test", _UPLOAD, "print what would be sent where, without a login; change nothing", ("upload",)),
    _flag("--verify", _UPLOAD, "list the server again for rows that say success; what is gone or differs becomes "
        "failed or conflict", ("upload",)),
    _flag("--overwrite", _UPLOAD, "look again at files already uploaded, and replace those that differ on the server",
        ("upload",)),
    _flag("--anonymize", _UPLOAD, "upload de-identified copies; the files themselves stay as they are", ("upload",)),
    _flag("--nopipeline", _UPLOAD, "skip the steps after the upload (headers, scan types, pipelines)", ("upload",)),
    Option("--until", _UPLOAD, "stop cleanly at that time of day; what is left is 'interrupted'", ("upload",),
        words={"metavar": "HH:MM", "type": time_of_day}),
    Option("--max-duration", _UPLOAD, "stop cleanly after that many hours and minutes", ("upload",),
        words={"metavar": "H:MM", "type": duration}),
    Option("--wait", _UPLOAD, "keep trying that many hours and minutes when the server is away, at the start too "
        "(default: give up after 2 minutes)", ("upload", "check"), 0.0, {"metavar": "H:MM", "type": duration}),
    Option("--jobs", _UPLOAD, "upload: scans in flight at once; scan: files in flight (default: 4)",
        ("scan", "upload"), 4, {"metavar": "N", "type": _jobs},
        {"scan": "files in flight at once (default: 4)", "upload": "scans in flight at once (default: 4)"}),
    Option("--import-handler", _IMPORT, "send each session through the import service: DICOM-zip, SI, gradual-DICOM, "
        "XAR or inbox", ("upload",),
        words={"metavar": "H", "choices": ["DICOM-zip", "SI", "gradual-DICOM", "XAR", "inbox"]}),
    Option("--dest", _IMPORT, "archive, prearchive, or a destination such as /prearchive/projects/P", ("upload",),
        words={"metavar": "DEST"}),
    _flag("--dest-by-headers", _IMPORT, "let the server decide by the DICOM headers", ("upload",)),
    Option("--import-overwrite", _IMPORT, "what to do with a session that exists (default: none, refuse)",
        ("upload",), "none", {"choices": ["none", "append", "delete"]}),
    _flag("--quarantine", _IMPORT, "put what arrives into quarantine", ("upload",)),
    _flag("--rename", _IMPORT, "let XNAT name the files", ("upload",)),
    _flag("--via-cache", _IMPORT, "upload to the user cache first, then import in the background", ("upload",)),
    _flag("--commit", _IMPORT, "archive the sessions of this workbook that wait in the prearchive", ("upload",)),
    Option("--refresh-catalog", _IMPORT, f"have XNAT refresh the catalogs of the workbook's sessions ({REFRESH})",
        ("upload",), words={"metavar": "OPTIONS", "nargs": "?", "const": REFRESH, "type": _refresh}),
    _flag("--json", _TELL, "print one JSON object at the end, and nothing else, on stdout", _ALL),
    Option("--logdir", _TELL, "folder for the log file of this run (default: logs beside the workbook)",
        ("scan", "upload", "check"), words={"metavar": "DIR"}),
    Option("--loglevel", _TELL, "debug, info, warning or error (default: info); debug shows file paths",
        words={"metavar": "L", "type": str.lower, "choices": ["debug", "info", "warning", "error"]}),
    Option("--debug", _TELL, "scan: only the first 10 files, and log every matching step; show tracebacks; implies "
        "--loglevel debug", _ALL, False, {"action": "store_true"},
        dict.fromkeys(("init", "upload", "check"), "show tracebacks; implies --loglevel debug")),
)  # fmt: skip
"""Every option of the contract, in the order of the help."""


# ---- parsing -----------------------------------------------------------------------------------------------


class _Help(argparse.HelpFormatter):
    """Wraps descriptions, and leaves texts that have lines of their own (examples) as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one message and end the run in the same place as all others."""

    def error(self, message: str) -> NoReturn:
        operation = self.prog.removeprefix("xnatuploader").strip()
        where = f"xnatuploader help {operation}" if operation else "xnatuploader --help"
        stray = message.removeprefix("unrecognized arguments: ")
        if stray != message:
            # A word behind an option that does not exist may be a password: only options are repeated.
            options = [word.partition("=")[0] for word in stray.split() if word.startswith("-")]
            message = (
                f"there is no option {' '.join(options)}" if options else f"'{stray}' is one word too many"
            )
            if any(word.startswith(("--pass", "--user", "-p", "-u")) for word in options):
                message += "; user name and password stand in XNAT_USER and XNAT_PASS or in the netrc file"
        raise errors.UsageError(f"{message[:1].upper()}{message[1:]}. See `{where}`.")


def _add_options(parser: argparse.ArgumentParser, operation: str | None) -> None:
    """Add all options to `parser`; those that mean nothing to `operation` are accepted and not shown."""
    groups: dict[str, Any] = {}
    for option in OPTIONS:
        shown = operation is None or operation in option.operations
        # argparse shows the heading of a group even where all its options are hidden.
        title = option.group if operation is None else "options"
        if title not in groups:
            groups[title] = parser if title == "options" else parser.add_argument_group(title)
        words = option.instead.get(operation or "", option.help)
        words = words.removeprefix(f"{operation}: ")
        groups[title].add_argument(
            option.flag,
            default=argparse.SUPPRESS,
            help=words if shown else argparse.SUPPRESS,
            **option.words,
        )


def exit_codes(width: int = 78) -> str:
    """Return the table of exit codes as help shows it."""
    lines = ["exit status:"]
    for code, meaning in EXIT_CODES.items():
        lines += textwrap.wrap(
            meaning, width, initial_indent=f"  {code:<5}", subsequent_indent=" " * 7, break_long_words=False
        )
    return "\n".join([*lines, f"Where several apply, the first of {', '.join(map(str, PRIORITY))}."])


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Build the one parser: options before or after the operation."""
    operations = [*[*commands][:4], "help", *[*commands][4:]]
    choice = "{" + ",".join(operations) + "}"
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
    for operation, command in commands.items():
        subparser = subparsers.add_parser(
            operation,
            usage=f"xnatuploader {operation} [options]",
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLE,
            formatter_class=_Help,
        )
        _add_options(subparser, operation)
        command.add_options(subparser)
    helper = subparsers.add_parser(
        "help", usage="xnatuploader help [operation]", help="explain an operation, with an example",
        description="Explain an operation, with an example; without one, the whole program.",
    )  # fmt: skip
    helper.add_argument("topic", nargs="?", metavar="operation", choices=operations, help=", ".join(commands))
    _add_options(parser, None)
    return parser


def parse(argv: Sequence[str], commands: Mapping[str, Command]) -> argparse.Namespace:
    """Parse `argv`; raise `UsageError` where it makes no sense."""
    args = build_parser(commands).parse_args(argv)
    for option in OPTIONS:
        if not hasattr(args, option.name):
            setattr(args, option.name, option.default)
    args.loglevel = "debug" if args.debug else args.loglevel or "info"
    return args


def short_help(commands: Mapping[str, Command]) -> str:
    """Return what is said to somebody who typed the program's name only."""
    lines = [DESCRIPTION, "", "Say what to do:"]
    lines += [f"  xnatuploader {name:<8} {command.SUMMARY}" for name, command in commands.items()]
    lines += ["", "More: xnatuploader --help, or xnatuploader help scan"]
    return "\n".join(lines)


def help_text(topic: str | None, commands: Mapping[str, Command]) -> str:
    """Return the help of one operation, or of the whole program."""
    parser = build_parser(commands)
    if topic is not None:
        (subparsers,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        parser = subparsers.choices[topic]
    return parser.format_help().rstrip()


def asked(args: argparse.Namespace) -> dict[str, str]:
    """Return the options that were given, for the log; no login that stands in an address is among them."""
    return {
        option.name: report.address(str(value)) if option.name == "server" else str(value)
        for option in OPTIONS
        if (value := getattr(args, option.name, option.default)) != option.default
    }
