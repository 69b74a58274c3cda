"""The door: argv to a command, logging set up, troubles to one message and an exit code."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from xnatuploader import __version__, errors, paths, progress, report
from xnatuploader.commands import check, demo, init, sandbox, scan, upload

COMMANDS = {"init": init, "scan": scan, "upload": upload, "check": check, "demo": demo, "sandbox": sandbox}
LOGGED = ("scan", "upload", "check")
"""Operations that leave a log file."""

DESCRIPTION = "Upload folders of DICOM files to XNAT, steered by a spreadsheet."
EXIT_CODES = """exit status:
  0    everything asked for is done (scan: unmatched, skipped, review, duplicate and missing rows are no failure)
  1    the run finished, but: upload, a selected file failed, conflicts or is not on disk; scan, a row is a conflict
  2    usage, configuration or workbook problem, or another run holds the workbook; nothing was sent
  3    login refused, or no credentials and no terminal to ask on
  4    server unreachable or failing
  5    project missing, or no right to add to it
  6    the workbook could not be written (open in Excel); results are safe in the journal
  130  stopped by the user (Ctrl-C, SIGTERM)
Where several apply, the first of 130, 3, 4, 5, 6, 1."""

logger = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one message and end the run in the same place as all others."""

    def error(self, message: str) -> NoReturn:
        operation = self.prog.removeprefix("xnatuploader").strip()
        where = f"xnatuploader help {operation}" if operation else "xnatuploader --help"
        raise errors.UsageError(f"{message[:1].upper()}{message[1:]}. See `{where}`.")


def _time_of_day(text: str) -> datetime.time:
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time of day such as 06:30")
    return datetime.time(int(match[1]), int(match[2]))


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+):([0-5]\d)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration such as 8:00 (hours:minutes)")
    return int(match[1]) * 3600.0 + int(match[2]) * 60.0


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 64")
    return int(text)


_ALL = ("init", "scan", "upload", "check")
_SEND = ("upload", "check")
_OPTIONS: tuple[tuple[str, Any, tuple[str, ...], dict[str, Any]], ...] = (
    # flag, default, operations whose help shows it, argparse's words
    ("--dir", None, ("scan", *_SEND), {"metavar": "DIR", "help": "scan: folder to search; upload: folder that the "
        "File column is relative to (default: the current folder)"}),
    ("--spreadsheet", "files.xlsx", _ALL, {"metavar": "FILE", "help": "the workbook (default: files.xlsx)"}),
    ("--server", None, _SEND, {"metavar": "URL", "help": "XNAT server; beats the Configuration sheet"}),
    ("--project", None, _SEND, {"metavar": "ID", "help": "XNAT project ID; beats the Configuration sheet"}),
    ("--loglevel", None, _ALL, {"metavar": "L", "choices": ["debug", "info", "warning", "error"],
        "help": "debug, info, warning or error (default: info)"}),
    ("--logdir", None, ("scan", *_SEND), {"metavar": "DIR",
        "help": "folder for the log file of this run (default: logs beside the workbook)"}),
    ("--debug", False, _ALL, {"action": "store_true", "help": "scan only the first 10 files and log every matching "
        "step; tracebacks; implies --loglevel debug"}),
    ("--test", False, ("upload",), {"action": "store_true",
        "help": "print what would be sent where, without a login; change nothing"}),
    ("--unmatched", False, ("scan",), {"action": "store_true",
        "help": "also list each file that no pattern matched, with the reason"}),
    ("--overwrite", False, ("upload",), {"action": "store_true", "help": "look again at files already uploaded, and "
        "replace those that differ on the server"}),
    ("--verify", False, ("upload",), {"action": "store_true", "help": "list the server again for rows that say "
        "success; what is gone or differs becomes failed or conflict"}),
    ("--strict", False, ("scan",), {"action": "store_true",
        "help": "a Dataset that holds more than one series is a conflict"}),
    ("--nopipeline", False, ("upload",), {"action": "store_true",
        "help": "skip the steps after the upload (headers, scan types, pipelines)"}),
    ("--anonymize", False, ("upload",), {"action": "store_true", "help": "upload de-identified copies"}),
    ("--force", False, ("init",), {"action": "store_true", "help": "write over an existing workbook"}),
    ("--restart", False, ("scan",), {"action": "store_true",
        "help": "begin a new list; the old one is kept as sheet 'Files old'"}),
    ("--jobs", 4, ("scan", "upload"), {"metavar": "N", "type": _jobs,
        "help": "upload: scans in flight at once; scan: files in flight (default: 4)"}),
    ("--json", False, _ALL, {"action": "store_true",
        "help": "print one JSON object at the end, and nothing else, on stdout"}),
    ("--until", None, ("upload",), {"metavar": "HH:MM", "type": _time_of_day,
        "help": "stop cleanly at that time; what is left is 'interrupted'"}),
    ("--max-duration", None, ("upload",), {"metavar": "H:MM", "type": _duration,
        "help": "stop cleanly after that long"}),
    ("--wait", 0.0, _SEND, {"metavar": "H:MM", "type": _duration,
        "help": "keep trying that long when the server is away"}),
    ("--import-handler", None, ("upload",), {"metavar": "H",
        "choices": ["DICOM-zip", "SI", "gradual-DICOM", "XAR", "inbox"],
        "help": "send through XNAT's import service: DICOM-zip, SI, gradual-DICOM, XAR or inbox"}),
    ("--dest", None, ("upload",), {"metavar": "DEST",
        "help": "import service: archive, prearchive or a destination such as /prearchive/projects/P"}),
    ("--dest-by-headers", False, ("upload",), {"action": "store_true",
        "help": "import service: let the server decide by the DICOM headers"}),
    ("--import-overwrite", "none", ("upload",), {"choices": ["none", "append", "delete"],
        "help": "import service: what to do with a session that exists (default: none, refuse)"}),
    ("--quarantine", False, ("upload",), {"action": "store_true", "help": "import service: put into quarantine"}),
    ("--rename", False, ("upload",), {"action": "store_true",
        "help": "import service: let XNAT name the files"}),
    ("--via-cache", False, ("upload",), {"action": "store_true",
        "help": "import service: upload to the user cache first, then import in the background"}),
    ("--commit", False, ("upload",), {"action": "store_true",
        "help": "import service: archive sessions of this workbook that wait in the prearchive"}),
    ("--refresh-catalog", None, ("upload",), {"metavar": "OPTIONS", "nargs": "?",
        "const": "checksum,delete,append,populateStats",
        "help": "have XNAT refresh the catalogs of the workbook's sessions (checksum,delete,append,populateStats)"}),
)  # fmt: skip
"""Every option of the contract, accepted before and after every operation, as users of 1.x type them."""


def _add_options(parser: argparse.ArgumentParser, operation: str | None) -> None:
    """Add all options to `parser`; those that mean nothing to `operation` are accepted and not shown."""
    for flag, _, operations, words in _OPTIONS:
        shown = operation is None or operation in operations
        parser.add_argument(
            flag,
            default=argparse.SUPPRESS,
            **{**words, "help": words["help"] if shown else argparse.SUPPRESS},
        )


def build_parser() -> argparse.ArgumentParser:
    """Build the one parser: options before or after the operation."""
    parser = _Parser(
        prog="xnatuploader",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"xnatuploader {__version__}")
    _add_options(parser, None)
    subparsers = parser.add_subparsers(dest="operation", metavar="{init,scan,upload,check,help,demo,sandbox}")
    for operation, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            operation,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_options(subparser, operation)
        command.add_options(subparser)
    helper = subparsers.add_parser("help", help="explain an operation, with an example")
    helper.add_argument("topic", nargs="?", choices=[*COMMANDS], default=None)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse `argv`; raise `UsageError` where it makes no sense."""
    args = build_parser().parse_args(argv)
    for flag, default, _, _ in _OPTIONS:
        name = flag.removeprefix("--").replace("-", "_")
        if not hasattr(args, name):
            setattr(args, name, default)
    args.loglevel = args.loglevel or ("debug" if args.debug else "info")
    if args.debug:
        args.loglevel = "debug"
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    _speak_utf8()
    started = time.monotonic()
    try:
        args = parse(words)
    except errors.UsageError as trouble:
        return _complain(trouble, None, "--json" in words, started)
    if args.operation is None:
        print(_short_help(), file=sys.stderr)
        return 2
    if args.operation == "help":
        _help(args.topic)
        return 0
    _stop_on_sigterm()
    with _Logging(args):
        return _run(args, started)


def _run(args: argparse.Namespace, started: float) -> int:
    try:
        result = COMMANDS[args.operation].run(args)
    except errors.XnatUploaderError as trouble:
        logger.debug("The run ended by this trouble:", exc_info=True)
        return _complain(trouble, args, args.json, started)
    except KeyboardInterrupt:
        return _complain(None, args, args.json, started)
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if args.json:
        print(report.as_json(args.operation, str(args.spreadsheet), time.monotonic() - started, result))
    elif result.text:
        print(result.text)
    logger.info("Ended with exit code %d.", result.exit_code)
    return int(result.exit_code)


def _complain(
    trouble: errors.XnatUploaderError | None, args: argparse.Namespace | None, as_json: bool, started: float
) -> int:
    """Say what ended the run (None: the user did); return the exit code."""
    message = "Stopped. Nothing was changed." if trouble is None else str(trouble)
    code = 130 if trouble is None else trouble.exit_code
    problems = tuple(getattr(trouble, "problems", (message,)))
    for line in problems:
        print(f"xnatuploader: {line}", file=sys.stderr)
        logger.error("%s", line, extra={"on_screen": True})
    if as_json:
        operation = getattr(args, "operation", None) or ""
        spreadsheet = str(getattr(args, "spreadsheet", ""))
        result = report.Result(exit_code=code, problems=problems)
        print(report.as_json(operation, spreadsheet, time.monotonic() - started, result))
    return code


def _short_help() -> str:
    lines = [DESCRIPTION, "", "Say what to do:"]
    lines += [f"  xnatuploader {name:<8} {command.SUMMARY}" for name, command in COMMANDS.items()]
    lines += ["", "More: xnatuploader --help, or xnatuploader help scan"]
    return "\n".join(lines)


def _help(topic: str | None) -> None:
    if topic is None:
        build_parser().print_help()
    else:
        parse_one = build_parser()
        try:
            parse_one.parse_args([topic, "--help"])
        except SystemExit:
            pass  # argparse leaves after it has printed the help of one operation


def _speak_utf8() -> None:
    """Keep a console whose code page lacks a character from ending a run: such characters are shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _stop_on_sigterm() -> None:
    """Let SIGTERM end a run the way Ctrl-C does; `upload` asks for more than that while it sends."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        pass  # not the main thread: whoever runs us there looks after signals


class _Screen(logging.Handler):
    """Warnings and worse, one line each, above any bar that is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_screen", False):
            return
        text = record.getMessage()
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: "
        progress.writer()(f"{prefix}{text}")


class _Logging:
    """The handlers of the package's logger, for as long as one run lasts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.logger = logging.getLogger("xnatuploader")
        self.handlers: list[logging.Handler] = []

    def __enter__(self) -> None:
        level = getattr(logging, self.args.loglevel.upper())
        self.logger.setLevel(level)
        self.logger.propagate = False
        screen = _Screen(level=logging.DEBUG if self.args.debug else max(level, logging.WARNING))
        self.handlers = [screen]
        if self.args.operation in LOGGED:
            self.handlers.append(_log_file(self.args, level))
        for handler in self.handlers:
            self.logger.addHandler(handler)
        if self.args.operation in LOGGED:
            logger.info(
                "xnatuploader %s: %s, asked for: %s", __version__, self.args.operation, _asked(self.args)
            )

    def __exit__(self, *trouble: object) -> None:
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            handler.close()


def _log_file(args: argparse.Namespace, level: int) -> logging.Handler:
    name = f"xnatuploader-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    beside = Path(args.spreadsheet).absolute().parent / "logs"
    wanted = Path(args.logdir) if args.logdir else beside
    try:
        handler = _open_log(wanted / name)
    except OSError as trouble:
        elsewhere = paths.state_folder() / "logs"
        progress.writer()(
            f"Warning: no log can be written in {wanted} ({trouble.strerror}); it is in {elsewhere}."
        )
        try:
            handler = _open_log(elsewhere / name)
        except OSError:
            return logging.NullHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    return handler


def _open_log(path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")


def _asked(args: argparse.Namespace) -> str:
    """Write the options of a run for its log (no option is secret: there is none for a password)."""
    defaults = {flag.removeprefix("--").replace("-", "_"): default for flag, default, _, _ in _OPTIONS}
    given = {
        name: value for name, value in vars(args).items() if name in defaults and value != defaults[name]
    }
    return json.dumps(given, default=str, sort_keys=True)
