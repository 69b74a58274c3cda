"""The errors that can end a run, each with its exit code; one file's error is never one of these.

Every message is one or two whole sentences: what is wrong (with the file, cell or URL), and what to do next.
They are caught once, in `cli.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXIT_CODES: Mapping[int, str] = {
    0: "everything asked for is done (scan: unmatched, skipped, review, duplicate and missing rows are no failure)",
    1: "the run finished, but a selected file failed, conflicts or is not on disk (upload), a row is conflict (scan)",
    2: "usage, configuration or workbook problem, or another run holds the workbook; nothing was sent",
    3: "login refused, or no credentials and no terminal to ask on",
    4: "server unreachable or failing",
    5: "project missing, or no right to add to it",
    6: "the workbook could not be written (open in Excel); results are safe in the journal",
    130: "stopped by the user (Ctrl-C, SIGTERM)",
}
"""What the process returns, and when: the same table as in docs/uploading.md."""

EXIT_CODE_ORDER = (130, 3, 4, 5, 6, 2, 1)
"""Where several apply, the first of these."""


class XnatUploaderError(Exception):
    """Base of all errors that end a run. `exit_code` is what the process returns."""

    exit_code = 2


class UsageError(XnatUploaderError):
    """The command line asks for something that cannot be done."""


class ConfigurationError(XnatUploaderError):
    """The Configuration sheet holds mistakes: `problems` has one sentence for each, with its cell."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class SpreadsheetError(XnatUploaderError):
    """The workbook is missing, is not a workbook, or lacks a sheet."""


class WorkbookInUse(XnatUploaderError):
    """Another run of this program holds the workbook."""


class SpreadsheetLocked(XnatUploaderError):
    """The workbook could not be written, most often because Excel has it open."""

    exit_code = 6


class LoginRefused(XnatUploaderError):
    """The server refused the credentials, or there are none and no terminal to ask on."""

    exit_code = 3


class ServerUnreachable(XnatUploaderError):
    """The server cannot be reached, is not an XNAT, or keeps failing."""

    exit_code = 4


class ProjectRefused(XnatUploaderError):
    """The project does not exist, or this user may not add to it."""

    exit_code = 5


class KeyUnusable(XnatUploaderError):
    """The de-identification key cannot be read, is damaged, or cannot be made."""


class InternalError(XnatUploaderError):
    """A fault of the program itself. Its own message may hold paths, so only the traceback shows it."""

    exit_code = 1

    @classmethod
    def of(cls, fault: BaseException) -> InternalError:
        """Return what to say about an exception that nobody expected."""
        kind = type(fault).__name__
        reason = getattr(fault, "strerror", None) if isinstance(fault, OSError) else None
        return cls(
            f"Something unexpected ended the run ({f'{kind}: {reason}' if reason else kind}). Run it again; if it "
            "happens again, run it with --debug and report the last lines."
        )
