"""What an import is asked to do: destinations and options, and what each handler supports (pure).

XNAT ignores a parameter that a handler does not know, without a word. So every combination of which it would ignore
a part is refused here, before anything is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from xnatuploader import errors
from xnatuploader.console import report
from xnatuploader.records import IMPORT_HANDLERS, SessionPlan
from xnatuploader.upload import tar_body
from xnatuploader.xnat import routes

ZIP, SI, GRADUAL, XAR, INBOX = IMPORT_HANDLERS


@dataclass(frozen=True, slots=True)
class Destination:
    """Where sessions are to end; parts that are '' are left to the rows."""

    archive: bool = True
    """False: they are to wait in the prearchive."""
    project: str = ""
    subject: str = ""
    session: str = ""
    """Label of the session (archive), or name of its folder (prearchive)."""
    timestamp: str = ""
    """Folder of an entry in the prearchive, such as `20200312_101112123`."""

    def refuses(self, session: SessionPlan) -> str:
        """Say why a session of the workbook cannot go there; '' if it can."""
        if self.subject and self.subject != session.subject:
            return f"--dest names subject {self.subject}, and this session is of {session.subject}."
        if self.archive and self.session and self.session != session.session_label:
            return f"--dest names session {self.session}, and this one is {session.session_label}."
        return ""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a run imports."""

    handler: str = ZIP
    dest: Destination = Destination()
    by_headers: bool = False
    """XNAT decides by the DICOM headers where a session goes."""
    overwrite: str = "none"
    """`none`: refuse a session that exists; `append`: add files to it; `delete`: replace files as well."""
    quarantine: bool = False
    rename: bool = False
    """XNAT names the files."""
    pipelines: bool = True
    via_cache: bool = False
    inbox_folder: str = ""
    """The folder on the server that holds what `--dir` holds here (handler inbox)."""
    part_bytes: int = tar_body.PART_BYTES
    part_files: int = tar_body.PART_FILES


def parse_destination(text: str) -> Destination:
    """Read `--dest`. Raises `UsageError` for what is none of XNAT's forms."""
    if text in ("archive", "prearchive"):
        return Destination(archive=text == "archive")
    found = routes.destination_parts(text)
    if found is None:
        raise errors.UsageError(
            f"--dest '{report.address(text)}' is not a destination that XNAT knows. Give archive, prearchive, "
            f"{routes.DESTINATIONS}."
        )
    return Destination(found[0], **found[1])


def chosen(
    handler: str | None, dest: str | None, given: ImportOptions, *, commit: bool = False
) -> ImportOptions | None:
    """Return what the command line asks for, None without a handler. Raises `UsageError`.

    `given` are the other options. With `commit` `--import-overwrite` is for what waits, and needs no handler.
    """
    if handler is None:
        flags = {
            "--dest": dest is not None,
            "--dest-by-headers": given.by_headers,
            "--import-overwrite": given.overwrite != "none" and not commit,
            "--quarantine": given.quarantine,
            "--rename": given.rename,
            "--via-cache": given.via_cache,
        }
        lonely = [flag for flag, there in flags.items() if there]
        if lonely:
            raise errors.UsageError(
                f"{lonely[0]} belongs to XNAT's import service: give --import-handler too (most often DICOM-zip)."
            )
        return None
    if handler == INBOX:
        made = replace(given, handler=handler, inbox_folder=_inbox_folder(dest))
    else:
        made = replace(given, handler=handler, dest=parse_destination(dest or "archive"))
    refusal = _refusal(made)
    if refusal:
        raise errors.UsageError(refusal)
    return made


def _inbox_folder(dest: str | None) -> str:
    if not dest or not re.match(r"(/|[A-Za-z]:[\\/])", dest):
        raise errors.UsageError(
            "With --import-handler inbox, --dest names the folder on the server that holds what --dir holds here, "
            "such as /data/xnat/inbox/PROJECT/batch1."
        )
    return dest.rstrip("/\\") or dest


def _refusal(asked: ImportOptions) -> str:
    """Return why XNAT would not do what is asked for; '' if it would."""
    handler, dest = asked.handler, asked.dest
    if asked.quarantine and not (handler == SI and dest.archive):
        return (
            f"{handler} does not support --quarantine{'' if dest.archive else ' into the prearchive'}, so sessions "
            "would not be quarantined. Use --import-handler SI with --dest archive."
        )
    if asked.rename and handler not in (ZIP, GRADUAL, INBOX):
        return f"{handler} does not support --rename. Use DICOM-zip, gradual-DICOM or inbox."
    if not asked.pipelines and handler == XAR:
        return "XAR does not support --nopipeline. Use --import-handler SI."
    if asked.via_cache and handler == INBOX:
        return "--via-cache uploads files, and with inbox they are on the server already. Leave it out."
    if asked.overwrite != "none" and handler in (XAR, INBOX):
        return (
            f"{handler} cannot add to a session that exists, so --import-overwrite {asked.overwrite} has no "
            "meaning there. Use DICOM-zip or SI."
        )
    if asked.overwrite == "delete" and not dest.archive:
        return (
            "--import-overwrite delete acts when a session is archived, and with --dest prearchive it only waits. "
            "Give it with --commit later, or use --dest archive."
        )
    if handler == XAR and not dest.archive:
        return "XAR goes straight into the archive. Leave --dest out, or use DICOM-zip for the prearchive."
    if asked.by_headers and handler in (XAR, INBOX):
        return f"{handler} names the session itself, so --dest-by-headers has no meaning there."
    if asked.by_headers and (dest.subject or dest.session):
        return "--dest names a session and --dest-by-headers leaves it to XNAT. Give one of the two."
    return ""


def check_project(asked: ImportOptions, project: str, given: str) -> None:
    """Raise `UsageError` where `--dest` names another project than the run's (ID `project`, typed `given`)."""
    if asked.dest.project and asked.dest.project not in (project, given):
        raise errors.UsageError(
            f"--dest names project {asked.dest.project}, but this upload goes to {project}. Correct one of them."
        )
