"""A session as XNAT's own XML, and the archive that holds it with its files (pure).

XarImporter moves the folders beside the XML into the session's folder, but what is *in* a folder that stands
alone; so a second folder, empty, keeps `SCANS` in its place. The catalogs carry no MD5s: XNAT works them out
by a refresh afterwards, so that what is compared is what lies on its disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from xnatuploader.dicom import xnattypes
from xnatuploader.records import Row, ScanPlan, SessionPlan
from xnatuploader.upload import tar_body

_SPACES = 'xmlns:xnat="http://nrg.wustl.edu/xnat" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
_FOLDER = "RESOURCES/"


def name_of(scan_id: str, row: Row) -> str:
    """Return a file's path inside the archive."""
    return f"SCANS/{scan_id}/{row.resource or 'DICOM'}/{row.filename}"


def members(
    session: SessionPlan, project: str, subject_id: str, rows: Sequence[tuple[str, Row]]
) -> list[tar_body.Outgoing]:
    """Return what stands in the archive beside the files of `rows` ((scan ID, row)): document and catalogs."""
    resources: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for scan_id, row in rows:
        resources[scan_id, row.resource or "DICOM"].append(row)
    scans = [scan for scan in session.scans if any(scan.scan_id == one for one, _ in resources)]
    made = [
        (_FOLDER, b""),
        (f"{session.session_label}.xml", _document(session, scans, project, subject_id, resources)),
    ]
    for (scan_id, label), inside in resources.items():
        made.append((f"SCANS/{scan_id}/{label}/{label}_catalog.xml", _catalog(label, inside)))
    return [tar_body.Outgoing("", name, len(data), data) for name, data in made]


def element_of(xsi_type: str) -> str:
    """Return the root element for a session's type: `xnat:ctSessionData` gives `CTSession`."""
    kind = xsi_type.removeprefix("xnat:").removesuffix("SessionData")
    return f"{'OtherDicom' if kind == 'otherDicom' else kind.upper()}Session"


def _document(
    session: SessionPlan,
    scans: Sequence[ScanPlan],
    project: str,
    subject_id: str,
    resources: dict[tuple[str, str], list[Row]],
) -> bytes:
    root = f"xnat:{element_of(session.xsi_type)}"
    given = {
        "project": project,
        "label": session.session_label,
        "modality": session.modality,
        "UID": session.uid,
    }
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<{root} {_attributes(given)} {_SPACES}>"]
    if session.date:
        lines.append(f"<xnat:date>{escape(session.date)}</xnat:date>")
    lines.append(f"<xnat:subject_ID>{escape(subject_id)}</xnat:subject_ID>")
    scanner = _attributes({"manufacturer": session.manufacturer, "model": session.model})
    if scanner:
        lines.append(f"<xnat:scanner {scanner}/>")
    lines.append("<xnat:scans>")
    for scan in scans:
        lines += _scan(scan, [label for one, label in resources if one == scan.scan_id])
    lines += ["</xnat:scans>", f"</{root}>", ""]
    return "\n".join(lines).encode()


def _scan(scan: ScanPlan, labels: Sequence[str]) -> list[str]:
    given = {"ID": scan.scan_id, "type": scan.scan_type, "UID": scan.series_uid, "xsi:type": scan.xsi_type}
    lines = [f"<xnat:scan {_attributes(given)}>", "<xnat:quality>usable</xnat:quality>"]
    if scan.series_description:
        lines.append(f"<xnat:series_description>{_text(scan.series_description)}</xnat:series_description>")
    for label in labels:
        content = xnattypes.resource_content(label)
        uri = f"SCANS/{scan.scan_id}/{label}/{label}_catalog.xml"
        resource = {"label": label, "URI": uri, "format": "DICOM", "content": content,
                    "xsi:type": "xnat:resourceCatalog"}  # fmt: skip
        lines.append(f"<xnat:file {_attributes(resource)}/>")
    return [*lines, "</xnat:scan>"]


def _catalog(label: str, rows: Sequence[Row]) -> bytes:
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<cat:Catalog ID={quoteattr(label)} xmlns:cat="http://nrg.wustl.edu/catalog" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">',
        "<cat:entries>",
    ]
    for row in rows:
        given = {"URI": row.filename, "name": row.filename, "ID": row.filename, "format": "DICOM",
                 "UID": row.sop_instance_uid, "xsi:type": "cat:dcmEntry"}  # fmt: skip
        lines.append(f"<cat:entry {_attributes(given)}/>")
    return "\n".join([*lines, "</cat:entries>", "</cat:Catalog>", ""]).encode()


def _attributes(values: dict[str, str]) -> str:
    return " ".join(f"{name}={quoteattr(_clean(value))}" for name, value in values.items() if value)


def _text(value: str) -> str:
    return escape(_clean(value))


def _clean(value: str) -> str:
    """Leave out what XML cannot hold, and shorten to what XNAT's columns hold."""
    kept = "".join(
        c for c in value if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )
    return kept[:255]
