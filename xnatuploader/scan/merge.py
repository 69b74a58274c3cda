"""A new scan's rows merged with those in the sheet: what people decided stays, what the tool wrote is worked out anew.

Pure: rows in, rows out. The rules are those of `docs/spreadsheet.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xnatuploader import records
from xnatuploader.records import Row, Status

_WRITTEN_ANEW = ("size", "modified", *records.DICOM_FIELDS.values(), "sop_class_uid")
"""Fields that each scan writes again in rows that the sheet has already; any other stays as it is."""

CHANGED_AFTER_SENDING = (
    "The file on disk changed after it was sent: XNAT holds the earlier one. "
    "To replace it there, run upload --overwrite."
)

PERSONS_NO = "Upload was set to N in the sheet and stays N."
"""Note in Message that tells a person's N from the tool's."""


TAKEN_OUT = "This image was listed under another path with Upload N. To send it, set Upload to Y."
"""Message of a new row whose file is one that a person took out, moved or renamed since."""


def merge(
    previous: Sequence[Row],
    scanned: Sequence[Row],
    *,
    unlisted: Collection[str] = frozenset(),
    partial: bool = False,
    written_before: Callable[[Row], Mapping[str, str] | None] = lambda row: None,
) -> list[Row]:
    """Return the final rows: all of `previous` in their sequence, then the new ones in the order of the listing.

    `scanned` has a row for every file of this scan; those in `unlisted` get a new row only with `--unmatched`.
    `partial` (`--debug`): only some files were scanned, and rows of the others stay as they are.
    `written_before(row)` tells what the mappings gave when the row was written (mapping label -> text), so that a
    cell a person edited can be told from one the tool wrote; None where that is not known (1.x workbooks), and then
    every cell that holds something is taken as a person's.
    """
    found = {row.file: row for row in scanned}
    known = {row.file for row in previous}
    kept = []
    for old in previous:
        new = found.get(old.file)
        if new is not None:
            kept.append(_laid_over(old, new, written_before(old)))
        else:
            kept.append(old if partial else _gone(old))
    added = [row for row in scanned if row.file not in known and row.file not in unlisted]
    moved = {row.sop_instance_uid for row in previous if row.file not in found and _persons_no(row)} - {""}
    return [*kept, *(_as_before(row, moved) for row in added)]


def _as_before(row: Row, taken_out: Collection[str]) -> Row:
    """Leave out a new row whose image a person took out under the path it had: a moved folder brings nobody back."""
    if row.upload and row.sop_instance_uid in taken_out:
        return replace(row, upload=False, message=TAKEN_OUT)
    return row


def with_a_choice(previous: Sequence[Row]) -> list[Row]:
    """Return the rows in which a person chose what `keep_choices` may have to give back; the others are many."""
    return [
        row for row in previous if (row.upload and row.status in records.TOOLS_OWN_NO) or _persons_no(row)
    ]


def keep_choices(rows: Sequence[Row], previous: Sequence[Row]) -> list[Row]:
    """Give back what people chose where rules that run after the merge would have forgotten it.

    Duplicates and conflicts are found over all rows together, so that their N comes after `merge`; where the
    row had the same status and a Y before, that Y was a person's. A person's N is remembered in the message
    while a status stands there whose N is the tool's, so that nobody who was taken out comes back.
    """
    before = {row.file: row for row in previous}
    return [_with_choice(row, before.get(row.file)) for row in rows]


def _with_choice(row: Row, old: Row | None) -> Row:
    if old is None or row.status not in records.TOOLS_OWN_NO or row.upload:
        return row
    if old.upload and old.status is row.status:
        return replace(row, upload=True)
    if _persons_no(old) and PERSONS_NO not in row.message:
        return replace(row, message=f"{row.message} {PERSONS_NO}".strip())
    return row


def _persons_no(old: Row) -> bool:
    if old.upload or records.RELEASED in old.message:
        return False
    return old.status not in records.TOOLS_OWN_NO or PERSONS_NO in old.message


def _gone(old: Row) -> Row:
    if old.status is Status.SUCCESS:
        return old
    return replace(
        old, status=Status.MISSING, message="The file is no longer in the folder that was scanned."
    )


def _laid_over(old: Row, new: Row, written: Mapping[str, str] | None) -> Row:
    if old.status is Status.SUCCESS:
        return _sent(old, new)
    changed: dict[str, Any] = {
        "pattern": new.pattern or old.pattern,
        **{name: getattr(new, name) for name in _WRITTEN_ANEW},
        **_mapped(old, new, written),
        **_verdict(old, new),
    }
    return replace(old, **changed)


def _sent(old: Row, new: Row) -> Row:
    """Leave a row that was sent as it was sent; only gaps (columns 1.x did not have) are filled."""
    if (old.size and old.size != new.size) or (old.modified and old.modified != new.modified):
        return replace(old, message=CHANGED_AFTER_SENDING)
    gaps = {name: getattr(new, name) for name in ("pattern", *_WRITTEN_ANEW) if not getattr(old, name)}
    message = "" if old.message == CHANGED_AFTER_SENDING else old.message
    return replace(old, values={**new.values, **old.values}, message=message, **gaps)


def _mapped(old: Row, new: Row, written: Mapping[str, str] | None) -> dict[str, Any]:
    """Choose, mapping by mapping, between the cell in the sheet and what the mappings say now."""

    def choose(label: str, in_sheet: str, now: str) -> str:
        edited = bool(in_sheet) if written is None else in_sheet != written.get(label, in_sheet)
        return in_sheet if edited or not now else now

    chosen: dict[str, Any] = {
        field: choose(label, getattr(old, field), getattr(new, field))
        for label, field in records.MAPPED_COLUMNS.items()
    }
    further = set(written or ()) - set(records.MAPPED_COLUMNS)
    kept = {
        label: text
        for label in further
        if label in old.values
        and (text := choose(label, old.values[label], new.values.get(label, ""))) != new.values.get(label)
    }
    chosen["values"] = {**new.values, **kept} if kept else new.values
    moved = old.session_label and (chosen["subject"], chosen["session"]) != (old.subject, old.session)
    if moved and written is not None:
        # The mappings changed and nothing was sent under the old label: it belongs to another subject or visit.
        chosen |= {"session_label": "", "scan_id": "", "filename": "", "resource": ""}
    elif old.series_instance_uid and old.series_instance_uid != new.series_instance_uid:
        chosen |= {"scan_id": "", "filename": "", "resource": ""}
    return chosen


def _verdict(old: Row, new: Row) -> dict[str, Any]:
    """Work out Upload, Status and Message of a row that was not sent yet."""
    tools_no = not old.upload and not _persons_no(old)
    if new.status is not Status.EMPTY:
        # A Y counts as a person's answer to this status only if it was set while the row had it.
        upload = old.upload and old.status in (new.status, Status.MISSING)
        return {"upload": upload, "status": new.status, "message": new.message}
    if old.status is Status.DUPLICATE and tools_no and old.message.startswith(records.HELD):
        return {}  # an upload found it on XNAT, of which a scan knows nothing
    upload = new.upload if tools_no else old.upload
    answered_by_upload = old.status in (Status.FAILED, Status.INTERRUPTED) or (
        old.status is Status.CONFLICT and old.upload
    )
    if answered_by_upload:
        return {"upload": upload}
    return {"upload": upload, "status": Status.EMPTY, "message": new.message}
