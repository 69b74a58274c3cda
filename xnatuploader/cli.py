"""The entry point: argv to a command, errors to one message and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from xnatuploader import __version__, errors
from xnatuploader.commands import options
from xnatuploader.console import logs, report

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    _mend_streams()
    started = time.monotonic()
    try:
        args = options.parse(words)
    except errors.UsageError as error:
        result = _ended_by(error, logged=False)  # no log is open yet: logging would print it a second time
        if "--json" in words:
            _say(report.as_json("", "", time.monotonic() - started, result))
        return result.exit_code
    except (SystemExit, OSError):  # standard output is closed: `_say` handles that
        _say()  # argparse has shown help or the version
        return 0
    if args.operation is None:
        print(options.short_help(), file=sys.stderr)
        return 2
    with (
        _stopped_by_sigterm(),
        logs.opened(args.loglevel, debug=args.debug, folder=_log_folder(args)) as log,
    ):
        if log is not None:
            given = json.dumps(options.given(args), sort_keys=True, ensure_ascii=False)
            logger.info("xnatuploader %s: %s, options: %s", __version__, args.operation, given)
        code = _run(args, started)
        logger.info("Ended with exit code %d after %d seconds.", code, time.monotonic() - started)
        if code and log is not None:
            print(f"The log of this run: {log}", file=sys.stderr)
    return code


def _run(args: argparse.Namespace, started: float) -> int:
    """Run the command; say its result, or what ended it."""
    result = _result(args)
    if args.json:
        _say(report.as_json(args.operation, str(args.spreadsheet), time.monotonic() - started, result))
    elif result.text:
        _say(result.text)
    return int(result.exit_code)


def _result(args: argparse.Namespace) -> report.Result:
    try:
        # Only now: a command needs libraries that would make `--help` slow.
        command = importlib.import_module(f"xnatuploader.commands.{args.operation}")
        result: report.Result = command.run(args)
    except errors.XnatUploaderError as error:
        logger.debug("The run ended with this error:", exc_info=True)
        return _ended_by(error)
    except KeyboardInterrupt:
        return _ended_by(None)
    except Exception as fault:
        logger.debug("The run ended with a fault of the program:", exc_info=True)
        return _ended_by(errors.InternalError.of(fault))
    if result.files:
        counts = ", ".join(f"{count} {word}" for word, count in result.files.items())
        logger.info("Files in the workbook now: %s.", counts)
    return result


def _ended_by(error: errors.XnatUploaderError | None, *, logged: bool = True) -> report.Result:
    """Say what ended the run (None: the user did); return it as the run's result."""
    message = "Stopped. Nothing was changed." if error is None else str(error)
    problems = tuple(getattr(error, "problems", (message,)))
    for line in problems:
        print(f"xnatuploader: {line}", file=sys.stderr)
        if logged:
            logger.error("%s", line, extra={"on_screen": True})
    return report.Result(exit_code=130 if error is None else error.exit_code, problems=problems)


def _log_folder(args: argparse.Namespace) -> Path | None:
    if not options.OPERATIONS[args.operation].leaves_log:
        return None
    if args.logdir:
        return Path(args.logdir)
    workbooks_folder = Path(args.spreadsheet).absolute().parent
    return workbooks_folder / "logs" if workbooks_folder.is_dir() else None


def _say(text: str | None = None) -> None:
    """Print a result. The reader of standard output may be gone (`| head`): then later output goes nowhere.

    Windows reports EINVAL then, others EPIPE. Any other error there (a full disk) is told.
    """
    try:
        if text is not None:
            print(text)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EINVAL:
            print(f"xnatuploader: the result could not be written ({error.strerror}).", file=sys.stderr)
        with contextlib.suppress(OSError):  # a stream that is no file has nowhere to lead
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _mend_streams() -> None:
    """Make the standard streams usable whatever the program was started from.

    A service or `pythonw` gives none: they become the null device. A console whose code page lacks a
    character must not end a run: such characters are shown escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  (for good)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a run the way Ctrl-C does; `upload` handles it in its own way while it sends."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield  # not the main thread: whoever runs us there handles signals
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
