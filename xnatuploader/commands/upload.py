"""`upload`: what the command line asks for, as one record of options."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

from xnatuploader import errors, paths
from xnatuploader.console import report
from xnatuploader.upload.imports import options
from xnatuploader.upload.options import RunOptions, deadline
from xnatuploader.upload.run import upload


def run(args: argparse.Namespace) -> report.Result:
    """Run `upload` as the command line asks for it."""
    spreadsheet = Path(args.spreadsheet)
    folder = paths.data_folder(args.dir, spreadsheet) if args.dir else None
    if folder is not None and not folder.is_dir():
        raise errors.UsageError(paths.why_no_folder(folder))
    return upload(
        RunOptions(
            spreadsheet=spreadsheet,
            folder=folder,
            server=args.server,
            project=args.project,
            test=args.test,
            overwrite=args.overwrite,
            verify=args.verify,
            pipeline=not args.nopipeline,
            anonymize=args.anonymize,
            jobs=args.jobs,
            deadline=deadline(args.until, args.max_duration, datetime.datetime.now()),
            wait_seconds=args.wait,
            **_import_options(args),
        )
    )


def _import_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is asked of XNAT's import service. Raises `UsageError` for what XNAT would not carry."""
    given = options.ImportOptions(
        by_headers=args.dest_by_headers,
        overwrite=args.import_overwrite,
        quarantine=args.quarantine,
        rename=args.rename,
        pipelines=not args.nopipeline,
        via_cache=args.via_cache,
    )
    chosen = options.chosen(args.import_handler, args.dest, given, commit=args.commit)
    if chosen is not None and args.overwrite:
        raise errors.UsageError(
            "--overwrite is for uploads scan by scan. With --import-handler say --import-overwrite delete."
        )
    commit = options.ImportOptions(overwrite=args.import_overwrite, pipelines=not args.nopipeline)
    return {
        "importing": chosen,
        "commit": commit if args.commit else None,
        "refresh": args.refresh_catalog,
    }
