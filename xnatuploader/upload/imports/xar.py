"""How a XAR travels: one zip for the whole session, with the session as XNAT's own XML, straight into the archive.

XarImporter moves the folders beside the XML into the session's folder; of a single folder it moves the content.
So a second folder, empty, is put beside `SCANS`. The catalogs carry no MD5s: XNAT calculates them by a refresh
afterwards, so that what is compared is what is on its disk.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from collections import defaultdict
from collections.abc import Mapping, Sequence

from xnatuploader.dicom import xnattypes
from xnatuploader.records import Row, SessionPlan, Status
from xnatuploader.upload import tar_body, zip_body
from xnatuploader.upload.files import Item
from xnatuploader.upload.imports import options
from xnatuploader.upload.imports.parts import BodySender
from xnatuploader.upload.imports.session import Session, SessionRefused

_SPACES = {
    "xnat": "http://nrg.wustl.edu/xnat",
    "cat": "http://nrg.wustl.edu/catalog",
    "xsi": "http://www.w3.org/2001/XMLSchema-instance",
}
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST = 255
"""Characters that XNAT's columns hold."""
_FOLDER = "RESOURCES/"


def by_xar(session: Session, going: Sequence[Item]) -> None:
    """Import a session as a XAR. Raises `SessionRefused`, `RequestFailed`."""
    if session.plan.exists:
        raise SessionRefused(
            "XAR cannot add to a session that exists. Use DICOM-zip or SI for it.", Status.CONFLICT
        )
    sender = _Xar(session, session.run.subject_id(session.plan.subject))
    sender.send(going)
    if session.sent:
        session.repair_catalogs(session.label)
        session.confirm(session.label)


class _Xar(BodySender):
    """One zip with all files of a session."""

    one_body = True
    divisible = False
    tells_end = True

    def __init__(self, session: Session, subject_id: str) -> None:
        super().__init__(session)
        self._subject_id = subject_id

    def bodies_of(self, sent: Sequence[tar_body.Outgoing]) -> list[tar_body.Part]:
        """As in `BodySender`."""
        listed = [(self.session.scan_of[file.file], self.row_of[file.file]) for file in sent]
        rest = members(self.session.plan, self.run.project, self._subject_id, listed)
        return [zip_body.Zip(sent, rest)]

    def query(self) -> dict[str, str]:
        """Return the parameters of the import."""
        return {"import-handler": options.XAR}

    def became_of(self, body: tar_body.Part) -> list[str]:
        """As in `BodySender`: the session is there, or it is sent again."""
        return [self.session.label] if self.run.find(self.session.label) else []

    def took(self, body: tar_body.Part, uris: Sequence[str]) -> None:
        """As in `BodySender`; the archive tells where the files are."""
        self.note(body)


# ---- the documents


def members(
    session: SessionPlan, project: str, subject_id: str, rows: Sequence[tuple[str, Row]]
) -> list[tar_body.Outgoing]:
    """Return what is in the archive beside the files of `rows` ((scan ID, row)): document and catalogs."""
    resources: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for scan_id, row in rows:
        resources[scan_id, row.resource or "DICOM"].append(row)
    made = [
        (_FOLDER, b""),
        (f"{session.session_label}.xml", _document(session, project, subject_id, resources)),
    ]
    for (scan_id, label), inside in resources.items():
        made.append((_catalog_path(scan_id, label), _catalog(label, inside)))
    return [tar_body.Outgoing("", name, len(data), data) for name, data in made]


def element_of(xsi_type: str) -> str:
    """Return the root element for a session's type: `xnat:ctSessionData` gives `CTSession`."""
    kind = xsi_type.removeprefix("xnat:").removesuffix("SessionData")
    return f"{'OtherDicom' if kind == 'otherDicom' else kind.upper()}Session"


def _catalog_path(scan_id: str, label: str) -> str:
    return f"SCANS/{scan_id}/{label}/{label}_catalog.xml"


def _document(
    session: SessionPlan, project: str, subject_id: str, resources: Mapping[tuple[str, str], Sequence[Row]]
) -> bytes:
    root = xml.Element(f"xnat:{element_of(session.xsi_type)}")
    _set(root, project=project, label=session.session_label, modality=session.modality, UID=session.uid)
    if session.date:
        _add(root, "xnat:date", session.date)
    _add(root, "xnat:subject_ID", subject_id)
    if session.manufacturer or session.model:
        _add(root, "xnat:scanner", manufacturer=session.manufacturer, model=session.model)
    scans = _add(root, "xnat:scans")
    for scan in session.scans:
        labels = [label for one, label in resources if one == scan.scan_id]
        if labels:
            element = _add(scans, "xnat:scan", ID=scan.scan_id, type=scan.scan_type, UID=scan.series_uid)
            element.set("xsi:type", scan.xsi_type)
            _add(element, "xnat:quality", "usable")
            if scan.series_description:
                _add(element, "xnat:series_description", scan.series_description)
        for label in labels:
            content = xnattypes.resource_content(label)
            uri = _catalog_path(scan.scan_id, label)
            file = _add(element, "xnat:file", label=label, URI=uri, format="DICOM", content=content)
            file.set("xsi:type", "xnat:resourceCatalog")
    return _bytes_of(root)


def _catalog(label: str, rows: Sequence[Row]) -> bytes:
    root = xml.Element("cat:Catalog", ID=label)
    entries = _add(root, "cat:entries")
    for row in rows:
        name, uid = row.filename, row.sop_instance_uid
        entry = _add(entries, "cat:entry", URI=name, name=name, ID=name, format="DICOM", UID=uid)
        entry.set("xsi:type", "cat:dcmEntry")
    return _bytes_of(root)


def _add(parent: xml.Element, tag: str, text: str = "", **attributes: str) -> xml.Element:
    made = xml.SubElement(parent, tag)
    made.text = _clean(text)
    _set(made, **attributes)
    return made


def _set(element: xml.Element, **attributes: str) -> None:
    """Set the attributes that have a value."""
    for name, value in attributes.items():
        if value:
            element.set(name, _clean(value))


def _clean(value: str) -> str:
    """Leave out what XML cannot hold, and shorten to what XNAT's columns hold."""
    return _NOT_IN_XML.sub("", value)[:_LONGEST]


def _bytes_of(root: xml.Element) -> bytes:
    for prefix, address in _SPACES.items():
        root.set(f"xmlns:{prefix}", address)
    made: bytes = xml.tostring(root, "utf-8", xml_declaration=True)
    return made
