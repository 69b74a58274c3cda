"""`check`: is everything ready for an upload? One line for each thing, and what to do where it is not."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnatuploader import __version__, errors, report

if TYPE_CHECKING:
    from xnatuploader import config as configuration
    from xnatuploader import server as remote

SUMMARY = "look whether everything is ready for an upload"
DESCRIPTION = (
    "Look at the workbook, the login, the server and the project, one line each: ok, or the problem and what to "
    "do. Nothing is sent or changed."
)
EXAMPLE = """example:
  xnatuploader check --spreadsheet study.xlsx --dir data_files"""

FREE_SPACE = 1_000_000_000
"""Bytes that should be free for temporary files."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    subject: str
    ok: bool
    text: str
    exit_code: int = 0

    def __str__(self) -> str:
        return f"{'ok     ' if self.ok else 'problem'}  {self.subject}: {self.text}"


@dataclass(slots=True)
class _Findings:
    lines: list[Line] = field(default_factory=list)

    def ok(self, subject: str, text: str) -> None:
        self.lines.append(Line(subject, True, text))

    def problem(self, subject: str, text: str, exit_code: int) -> None:
        self.lines.append(Line(subject, False, text, exit_code))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this operation has: none."""


def run(args: argparse.Namespace) -> report.Result:
    """Run `check` as the command line asks for it."""
    found = _Findings()
    _versions(found)
    _temporary_space(found)
    settings = _workbook(found, Path(args.spreadsheet))
    if args.dir is not None:
        _folder(found, args.dir, Path(args.spreadsheet))
    if settings is not None:
        settings = settings.with_options(args.server, args.project)
    if settings is not None:
        try:
            address, project = settings.require_server_and_project()
        except errors.ConfigurationError as trouble:
            found.problem("server and project", str(trouble), trouble.exit_code)
        else:
            _server(found, address, project, settings, dict(os.environ), args.wait)
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
    from importlib import metadata

    parts = [f"{name} {metadata.version(name)}" for name in ("xnatutils", "xnat", "pydicom", "openpyxl")]
    found.ok(
        "versions", f"xnatuploader {__version__}, Python {platform.python_version()}, {', '.join(parts)}"
    )


def _temporary_space(found: _Findings) -> None:
    folder = tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as trouble:
        found.problem("temporary files", f"{folder} cannot be used ({trouble.strerror}). Set TMPDIR (Windows: TEMP) "
                      "to a folder that can be written.", 2)  # fmt: skip
        return
    if free < FREE_SPACE:
        found.problem("temporary files", f"only {report.human_bytes(free)} free in {folder}: make room there, or set "
                      "TMPDIR (Windows: TEMP) to another folder.", 2)  # fmt: skip
    else:
        found.ok("temporary files", f"{report.human_bytes(free)} free in {folder}")


def _workbook(found: _Findings, spreadsheet: Path) -> configuration.Config | None:
    from xnatuploader import config, dicom
    from xnatuploader.workbook import book

    try:
        opened = book.Book.open(spreadsheet)
        lines = opened.configuration()
    except errors.XnatUploaderError as trouble:
        found.problem("workbook", str(trouble), trouble.exit_code)
        return None
    settings = None
    try:
        settings = config.parse(lines, dicom.keyword_known)
        found.ok(
            "Configuration", f"{len(settings.pattern_sets)} pattern sets, {len(settings.mappings)} mappings"
        )
    except errors.ConfigurationError as trouble:
        for problem in trouble.problems:
            found.problem("Configuration", problem, trouble.exit_code)
    try:
        book.probe(spreadsheet)
        found.ok("workbook", f"{spreadsheet} can be written; {sum(opened.tally().values()):,} files listed")
    except errors.SpreadsheetLocked as trouble:
        found.problem("workbook", str(trouble), trouble.exit_code)
    return settings


def _folder(found: _Findings, given: str, spreadsheet: Path) -> None:
    from xnatuploader import paths

    folder = paths.data_folder(given, spreadsheet)
    if folder.is_dir():
        found.ok("folder", str(folder))
    else:
        found.problem("folder", paths.why_no_folder(folder), 2)


# ---- the server


def _server(
    found: _Findings,
    address: str,
    project: str,
    settings: configuration.Config,
    environ: Mapping[str, str],
    wait: float,
) -> None:
    from xnatuploader import credentials, server

    _proxy(found, address)
    looked = credentials.search(address, environ)
    for warning in looked.warnings:
        found.problem("login", warning, 3)
    try:
        if looked.credentials is None:
            raise credentials.missing(address, environ)
        connection = server.Server.connect(address, looked.credentials, environ=environ, wait=wait)
    except errors.XnatUploaderError as trouble:
        found.problem("login" if trouble.exit_code == 3 else "server", str(trouble), trouble.exit_code)
        return
    with connection:
        secured = "TLS certificate verified" if connection.url.startswith("https") else "without TLS"
        found.ok("server", f"{connection.url}, {_version(connection)}, {secured}")
        until = credentials.expiry_sentence(connection.login_until)
        found.ok("login", f"{connection.user}, from {connection.source}. {until}".rstrip())
        _project(found, connection, project, settings)


def _proxy(found: _Findings, address: str) -> None:
    from urllib.parse import urlsplit

    from requests.utils import get_environ_proxies

    proxies = get_environ_proxies(address)
    proxy = proxies.get(urlsplit(address).scheme) or proxies.get("all", "")
    found.ok("proxy", (proxy.rpartition("@")[2] if proxy else "none"))


def _project(
    found: _Findings, connection: remote.Server, project: str, settings: configuration.Config
) -> None:
    from urllib.parse import quote

    try:
        identifier = connection.open_project(project)
    except errors.XnatUploaderError as trouble:
        found.problem("project", str(trouble), trouble.exit_code)
        return
    found.ok("project", f"{identifier}: {connection.user} may add to it")
    path = f"/data/projects/{quote(identifier, safe='')}"
    code = _ask(connection, f"{path}/prearchive_code", lambda answer: answer.text.strip())
    meaning = {"0": "imports wait in the prearchive", "4": "imports are archived", "5": "imports are archived and "
               "replace files"}.get(code, "the server does not say")  # fmt: skip
    found.ok("prearchive", f"code {code or '?'}: {meaning} (only with --import-handler)")
    _anonymisation(found, connection, identifier, settings)
    checksums = connection.checksums()
    words = {True: "on: files are compared by MD5", False: "off: only sizes can be compared", None: "the server "
             "does not say"}  # fmt: skip
    found.ok("checksums", words[checksums])


def _anonymisation(
    found: _Findings, connection: remote.Server, project: str, settings: configuration.Config
) -> None:
    """Tell about XNAT's own anonymisation, which files that are uploaded directly do not pass through."""
    site = _ask(
        connection, "/xapi/siteConfig/enableSitewideAnonymizationScript", lambda answer: answer.text.strip()
    )
    own = _ask(connection, f"/data/config/edit/projects/{project}/image/dicom/status", _script_enabled)
    active = [name for name, value in (("the site", site), ("the project", own)) if value.lower() == "true"]
    if not active:
        found.ok("anonymisation", "no script of site or project is switched on, as far as the server says")
        return
    text = (
        f"{' and '.join(active)} would anonymise imports, but files that are uploaded directly do not pass through "
        "these scripts: use --anonymize, or send through --import-handler DICOM-zip."
    )
    if settings.anonymize:
        found.ok("anonymisation", f"Anonymize is yes in the Configuration; {text}")
    else:
        found.ok("anonymisation", f"note: {text}")


def _script_enabled(answer: Any) -> str:
    rows = answer.json()["ResultSet"]["Result"]
    return str(rows[0].get("edit", rows[0].get("status", ""))) if rows else ""


def _version(connection: remote.Server) -> str:
    version = _ask(
        connection, "/xapi/siteConfig/buildInfo", lambda answer: str(answer.json().get("version", ""))
    )
    return f"XNAT {version}" if version else "XNAT"


def _ask(connection: remote.Server, path: str, read: Callable[[Any], str]) -> str:
    """Return what `read` makes of the answer; '' where the server does not tell this user."""
    from xnatuploader import server

    try:
        return read(connection.request("GET", path))
    except (server.RequestFailed, ValueError, KeyError, IndexError, TypeError):
        return ""
