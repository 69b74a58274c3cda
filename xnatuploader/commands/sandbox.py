"""`sandbox`: serve a throw-away XNAT on this computer, for trying, training and tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnatuploader import errors
from xnatuploader.console import report

if TYPE_CHECKING:
    from xnatuploader.sandbox import options

SUMMARY = "serve a throw-away XNAT on this computer, to try things out"
DESCRIPTION = (
    "Serve a throw-away XNAT on this computer. It is for trying the program, for training and for tests: nothing "
    "but this computer can reach it (127.0.0.1), and it keeps no data safe."
)
EXAMPLE = """\
examples:
  xnatuploader sandbox
      serve project DEMO for user demo, password demo; files go to the folder xnat-sandbox
  xnatuploader sandbox --projects P1,P2 --user anna:secret --user guest:guest:reader
  xnatuploader sandbox --latency 0.05 --fault "status method=PUT path=/files/ every=20 status=503"
  xnatuploader sandbox --set checksums=no --set session_timeout=30

faults are written as: WHAT name=value ..., where WHAT is one of status, latency, drop, hang, html, lose,
corrupt, silent-corrupt, lying-digest, race, disk-full, truncate, cut-listing, kill-session, refuse-import,
and the names are method, path (regular expressions), first, every, times, probability, when (before,
during, after the body), status, seconds, retry_after, message, keep, seed.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this operation has."""
    group = parser.add_argument_group("sandbox")
    group.add_argument(
        "--folder", default="xnat-sandbox", help="where it keeps its files (default: xnat-sandbox)"
    )
    group.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    group.add_argument("--context", default="", help="context path of the server, as /xnat")
    group.add_argument(
        "--user",
        action="append",
        metavar="NAME:PASSWORD[:ROLE]",
        help="an account; roles are admin, owner, member, reader, none, also for one project as reader@P1"
        " (default: demo:demo)",
    )
    group.add_argument("--fault", action="append", metavar="FAULT", help="let requests go wrong, see below")
    group.add_argument("--set", action="append", metavar="NAME=VALUE", help="change a switch of the site")
    group.add_argument("--latency", type=float, default=0.0, help="seconds that every request takes longer")
    group.add_argument("--cert", default="", help="certificate (PEM): serve https")
    group.add_argument("--key", default="", help="private key (PEM) of the certificate")
    group.add_argument(
        "--projects", default="", metavar="P1,P2", help="its projects, with commas between (default: DEMO)"
    )


def run(args: argparse.Namespace) -> report.Result:
    """Serve until Ctrl-C."""
    import asyncio

    from xnatuploader.sandbox import app

    chosen = chosen_options(args)

    def ready(url: str) -> None:
        print(_welcome(url, chosen), flush=True)

    try:
        asyncio.run(app.serve(chosen, ready))
    except KeyboardInterrupt:
        print("The sandbox has stopped. Its files are still there; start it again to go on with them.")
    except OSError as error:
        raise errors.UsageError(
            f"The sandbox could not start: {error}. Choose another --port or --folder."
        ) from error
    return report.Result()


def chosen_options(args: argparse.Namespace) -> options.SandboxOptions:
    """Return what the command line asks for; a UsageError names the word that is wrong."""
    from xnatuploader.sandbox import faults, options

    try:
        users = [options.parse_user(one) for one in args.user or []]
        ready = options.SandboxOptions(
            folder=str(Path(args.folder).resolve()),
            port=args.port,
            context="/" + args.context.strip("/") if args.context.strip("/") else "",
            projects=_projects(args),
            cert=args.cert,
            key=args.key,
            settings=_settings(args.set or [], args.latency),
            faults=[faults.parse(one) for one in args.fault or []],
        )
        options.Settings().change(ready.settings)
    except ValueError as error:
        raise errors.UsageError(str(error)) from error
    if users:
        ready.users = users
    return ready


def _projects(args: argparse.Namespace) -> list[str]:
    named = [one.strip() for one in args.projects.split(",") if one.strip()]
    if args.project:
        named.insert(0, args.project)
    return named or ["DEMO"]


def _settings(words: list[str], latency: float) -> dict[str, Any]:
    settings: dict[str, Any] = {"latency": latency} if latency else {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {word!r}.")
        settings[name] = value
    return settings


def _welcome(url: str, chosen: options.SandboxOptions) -> str:
    lines = [
        "A throw-away XNAT is running, for trying, training and tests only.",
        "Nothing outside this computer can reach it, and nothing in it is safe.",
        "",
        f"  server    {url}",
    ]
    lines += [f"  user      {user.name}    password  {user.password}" for user in chosen.users]
    lines += [f"  project   {', '.join(chosen.projects)}", f"  files in  {chosen.folder}", ""]
    lines.append("Stop it with Ctrl-C." if sys.stdin.isatty() else "Stop it by ending this process.")
    return "\n".join(lines)
