"""`sandbox`: run a throw-away XNAT on this computer, for trying, training and tests."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from xnatuploader import errors
from xnatuploader.console import report
from xnatuploader.sandbox import app, faults, options


def run(args: argparse.Namespace) -> report.Result:
    """Serve until Ctrl-C."""
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
    try:
        users = [options.parse_user(one) for one in args.user]
        ready = options.SandboxOptions(
            folder=str(Path(args.folder).resolve()),
            port=args.port,
            context="/" + args.context.strip("/") if args.context.strip("/") else "",
            projects=_projects(args),
            cert=args.cert,
            key=args.key,
            settings=_settings(args.set, args.latency),
            faults=[faults.parse(one) for one in args.fault],
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
        "Only this computer can reach it, and you should keep nothing in it that you need.",
        "",
        f"  server    {url}",
    ]
    lines += [f"  user      {user.name}    password  {user.password}" for user in chosen.users]
    lines += [f"  project   {', '.join(chosen.projects)}", f"  files in  {chosen.folder}", ""]
    lines.append("Stop it with Ctrl-C." if sys.stdin.isatty() else "Stop it by ending this process.")
    return "\n".join(lines)
