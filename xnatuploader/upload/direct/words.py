"""The sentences that stand in Message after an upload."""

from __future__ import annotations

CHECKED = "On the server, with the same MD5."
CHECKED_SIZE = "On the server, with the same size (there is no MD5 to compare)."
THERE = "Was on the server already, with the same MD5."
THERE_SIZE = "Was on the server already, with the same size (there is no MD5 to compare)."
STOPPED = "The run was stopped before this file was sent and checked. Run upload again to go on."
CHANGED = "The file changed or went away while it was being sent. Run upload again when nothing writes to it."
NOTHING_STORED = (
    "XNAT answered that all was well and stored nothing: this account may not add files to such a session. "
    "Ask an owner of the project for the right to edit."
)
NOT_LISTED = "XNAT took the file and does not list it, also after a second time. Run upload again."
GONE = "It is not on the server any more. Run upload again to send it."
SESSION_MEANWHILE = (
    "A session of this label has come into the project since this run began. Run upload again, which looks at what it "
    "holds first."
)
SCAN_MEANWHILE = (
    "A scan of this ID has come into the session since this run began. Run upload again, which looks at what it holds "
    "first."
)
BAD_NAME = "Filename may hold only letters, digits and . _ - for XNAT. Correct the cell."
SAME_NAME = "Another row of this scan has the same Filename. Change one of them."


def unreadable(error: Exception) -> str:
    """Say why a file cannot be read."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"The file cannot be read ({reason}). See that it is not open elsewhere and that you may read it."
