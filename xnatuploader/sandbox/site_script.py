"""The site's anonymisation as XNAT is shipped: switched on, and applied to every DICOM file that an import brings.

GradualDicomImporter applies it as each file arrives (DICOM-zip and the inbox hand their files to it), the session
importer as it puts the files into the prearchive (MergePrearchiveSessions). A XAR goes past the prearchive and
keeps its bytes, as do files that are PUT into a resource.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from xnatuploader.sandbox import answers
from xnatuploader.sandbox.calls import Call

SCRIPT = """version "6.1"
project != "Unassigned" ? (0008,1030) := project
(0010,0010) := subject
(0010,0020) := session
"""
"""What a fresh XNAT holds as the script of the site, in the language DicomEdit."""


def changes(project: str, subject: str, session: str) -> dict[str, str]:
    """Return the elements that the script sets, by keyword; a session of no project keeps its StudyDescription."""
    names = {"PatientName": subject, "PatientID": session}
    return names if project == "Unassigned" else {"StudyDescription": project, **names}


def apply(path: Path, changed: dict[str, str]) -> None:
    """Rewrite a DICOM file with these elements; UIDs and pixels stay. A file that cannot be read is a ValueError."""
    import pydicom

    try:
        made = pydicom.dcmread(path, force=True)
        for keyword, value in changed.items():
            setattr(made, keyword, value)
        made.save_as(path)
    except (TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise ValueError(f"unable to read DICOM object {path.name}") from error


async def shown(call: Call, rest: list[str]) -> web.StreamResponse:
    """/xapi/anonymize/...: the script of the site and whether it is on; no project has one of its own.

    `enabled` is a bare true or false; for a project that does not exist it is 500 where the user may see every
    project (AnonymizeApi, running servers).
    """
    on = call.settings.anonymize_imports
    if rest in (["default"], ["site"]):
        return answers.text(SCRIPT)
    if rest == ["site", "enabled"]:
        return answers.as_json(on)
    if rest[:1] != ["projects"] or rest[2:] not in ([], ["enabled"]) or len(rest) < 2:
        raise answers.Refusal(404, "")
    if not call.can(rest[1], "read"):
        raise answers.Refusal(403, "")
    if rest[1] not in call.store.projects:
        raise answers.Refusal(500, f"There is no project {rest[1]}")
    return answers.as_json(False) if rest[2:] else web.Response(status=204)
