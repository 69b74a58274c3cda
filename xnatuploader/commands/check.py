"""`check`: is everything ready for an upload? One line for each check, and what to do where it failed."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from xnatuploader import __version__, errors, paths, xnat
from xnatuploader.config import sheet
from xnatuploader.console import report, terminal
from xnatuploader.upload import journal
from xnatuploader.workbook import book, lock
from xnatuploader.xnat import credentials, http

logger = logging.getLogger(__name__)

FREE_SPACE = 1_000_000_000
"""Bytes that should be free for temporary files."""

CLOCKS_APART = 300.0
"""Seconds between this computer's clock and the server's from which on a note is shown."""


@dataclass(frozen=True, slots=True)
class Line:
    """The result of one check."""

    subject: str
    ok: bool
    text: str
    exit_code: int = 0

    def __str__(self) -> str:
        return f"{'ok     ' if self.ok else 'problem'}  {self.subject}: {self.text}"


@dataclass(slots=True)
class _Findings:
    lines: list[Line] = field(default_factory=list)

    def ok(self, subject: str, *sentences: str) -> None:
        self.lines.append(Line(subject, True, " ".join(filter(None, sentences))))

    def problem(self, subject: str, text: str, exit_code: int) -> None:
        self.lines.append(Line(subject, False, text, exit_code))


def run(args: argparse.Namespace) -> report.Result:
    """Run `check` as the command line asks for it."""
    found = _Findings()
    _versions(found)
    _temporary_space(found)
    opened, settings = _workbook(found, args)
    _folder(found, args.dir, Path(args.spreadsheet), opened)
    address, project = _address(found, args, settings)
    if address:
        anonymize = settings is not None and settings.anonymize
        _server(found, address, project, anonymize, dict(os.environ), args.wait)
    for line in found.lines:
        logger.log(logging.INFO if line.ok else logging.ERROR, "%s", line, extra={"on_screen": True})
    problems = [line for line in found.lines if not line.ok]
    return report.Result(
        exit_code=problems[0].exit_code if problems else 0,
        text="\n".join(str(line) for line in found.lines),
        problems=tuple(f"{line.subject}: {line.text}" for line in problems),
        details={
            "checks": [{"subject": line.subject, "ok": line.ok, "text": line.text} for line in found.lines]
        },
    )


# ---- this computer


def _versions(found: _Findings) -> None:
    parts = [f"{name} {metadata.version(name)}" for name in ("xnatutils", "xnat", "pydicom", "openpyxl")]
    found.ok(
        "versions", f"xnatuploader {__version__}, Python {platform.python_version()}, {', '.join(parts)}"
    )


def _temporary_space(found: _Findings) -> None:
    advice = "or set TMPDIR (Windows: TEMP) to another folder."
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = error.strerror or "no folder can be written"
        found.problem("temporary files", f"none can be created ({reason}): free some space, {advice}", 2)
        return
    if free < FREE_SPACE:
        text = f"only {report.human_bytes(free)} free in {folder}: free some space there, {advice}"
        found.problem("temporary files", text, 2)
    else:
        found.ok("temporary files", f"{report.human_bytes(free)} free in {folder}")


# ---- the workbook and its files


def _workbook(found: _Findings, args: argparse.Namespace) -> tuple[book.Book | None, sheet.Config | None]:
    """Check the workbook; without --spreadsheet none is needed where server and project are given."""
    spreadsheet = Path(args.spreadsheet)
    if not spreadsheet.exists() and args.spreadsheet == "files.xlsx" and args.server and args.project:
        found.ok("workbook", "none was given, so only server and project are checked")
        return None, None
    try:
        opened = book.Book.open(spreadsheet)
        lines = opened.configuration()
    except errors.XnatUploaderError as error:
        found.problem("workbook", str(error), error.exit_code)
        return None, None
    _writable(found, spreadsheet, opened)
    try:
        settings = sheet.parse(lines)
    except errors.ConfigurationError as error:
        for problem in error.problems:
            found.problem("Configuration", problem, error.exit_code)
        return opened, None
    sets, mappings = len(settings.matcher.sets), len(settings.mappings)
    found.ok("Configuration", f"{report.plural(sets, 'pattern set')}, {report.plural(mappings, 'mapping')}")
    return opened, settings


def _writable(found: _Findings, spreadsheet: Path, opened: book.Book) -> None:
    """Check whether the workbook can be written, and whether another run has it or left something behind."""
    try:
        with lock.hold(spreadsheet):
            book.probe(spreadsheet)
    except (errors.SpreadsheetLocked, errors.WorkbookInUse) as error:
        found.problem("workbook", str(error), error.exit_code)
        return
    waiting = len(journal.read(spreadsheet).outcomes)
    files = sum(1 for _ in opened.columns("Upload"))
    first = f"The results of {report.plural(waiting, 'file')} of an earlier run go into it first."
    listed = f"{spreadsheet} can be written; {report.plural(files, 'file')} listed."
    found.ok("workbook", listed, first if waiting else "")


def _folder(found: _Findings, given: str | None, spreadsheet: Path, opened: book.Book | None) -> None:
    remembered = opened.folder if opened is not None else ""
    if not given and not remembered:
        return
    folder = paths.data_folder(given, spreadsheet) if given else Path(remembered)
    if not folder.is_dir():
        found.problem("folder", paths.why_no_folder(folder), 2)
        return
    first = [row.file for row in itertools.islice(opened.rows(), 20)] if remembered and opened else []
    if first and not any(Path(paths.joined(folder, file)).exists() for file in first):
        text = "does not hold the files that the workbook lists: give the scanned folder with --dir."
        found.problem("folder", f"{folder} {text}", 1)
    else:
        found.ok("folder", str(folder))


# ---- the server


def _address(found: _Findings, args: argparse.Namespace, settings: sheet.Config | None) -> tuple[str, str]:
    """Return server and project; where they are not known, say so once and return nothing."""
    fallback = os.environ.get("XNAT_HOST", "")
    if settings is None:
        return args.server or fallback, args.project or ""
    try:
        settings = settings.with_options(args.server, args.project).with_fallback_server(fallback)
        return settings.require_server_and_project()
    except errors.ConfigurationError as error:
        for problem in error.problems:
            found.problem("server and project", problem, error.exit_code)
        return "", ""


def _server(
    found: _Findings, address: str, project: str, anonymize: bool, environ: Mapping[str, str], wait: float
) -> None:
    _proxy(found, address)
    notes: list[str] = []
    try:
        connection = xnat.sign_in(
            address, environ, interactive=terminal.there(), wait=wait, jobs=1, warn=notes.append
        )
    except errors.XnatUploaderError as error:
        found.problem("login" if error.exit_code == 3 else "server", str(error), error.exit_code)
        return
    with connection:
        _site(found, connection)
        until = credentials.expiry_sentence(connection.login_until)
        found.ok("login", f"{connection.user}, from {connection.source}.", until, *notes)
        if project:
            _project(found, connection, project, anonymize)
        compared = {True: "on: files are compared by MD5", False: "off: only sizes can be compared"}
        on = connection.checksums()
        found.ok("checksums", "the server does not say" if on is None else compared[on])


def _proxy(found: _Findings, address: str) -> None:
    proxies = get_environ_proxies(address)
    proxy = proxies.get(urlsplit(address).scheme) or proxies.get("all", "")
    found.ok("proxy", (proxy.rpartition("@")[2] if proxy else "none"))


def _site(found: _Findings, connection: xnat.Server) -> None:
    """Tell the server's real address, its version, whether it uses TLS, and whether the clocks agree."""
    version, date = connection.about()
    secured = "TLS, valid certificate" if connection.url.startswith("https") else "without TLS"
    apart = abs(http.seconds_until(date) or 0.0)
    note = (
        f"This computer's clock and the server's are {report.plural(round(apart / 60), 'minute')} apart: correct this "
        "computer's clock, or the time at which a login ends will be shown wrongly."
    )
    found.ok(
        "server",
        f"{connection.url}, XNAT{f' {version}' if version else ''}, {secured}.",
        note if apart > CLOCKS_APART else "",
    )


def _project(found: _Findings, connection: xnat.Server, project: str, anonymize: bool) -> None:
    try:
        identifier = connection.open_project(project)
    except errors.XnatUploaderError as error:
        found.problem("project", str(error), error.exit_code)
        return
    found.ok("project", f"{identifier}: {connection.user} may add to it")
    code = connection.prearchive_code(identifier)
    meanings = {"0": "imports wait in the prearchive", "4": "imports are archived", "5": "imports are archived and "
                "replace files"}  # fmt: skip
    said = f"code {code}: {meanings.get(code, 'unknown')}" if code else "the server does not say"
    found.ok("prearchive", f"{said} (matters with --import-handler only)")
    _anonymisation(found, connection, identifier, anonymize)


def _anonymisation(found: _Findings, connection: xnat.Server, project: str, anonymize: bool) -> None:
    """Tell about XNAT's own anonymisation, which files that are uploaded directly do not pass through."""
    states = {"the site": connection.script_enabled(), "the project": connection.script_enabled(project)}
    on = [name for name, state in states.items() if state]
    unknown = [name for name, state in states.items() if state is None]
    sentences = []
    if on:
        sentences.append(
            f"the script of {' and '.join(on)} is switched on, but files that are uploaded directly are not run "
            "through it: use --anonymize, or send through --import-handler DICOM-zip."
        )
    elif not unknown:
        sentences.append("no script of site or project is switched on.")
    if unknown:
        sentences.append(f"The server does not say whether {' and '.join(unknown)} has a script.")
    if anonymize:
        sentences.append("Anonymize is yes in the Configuration sheet: cleaned copies are sent.")
    found.ok("anonymisation", *sentences)
