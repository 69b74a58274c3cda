"""The bodies of an import: archives and forms that others read, of the length that was promised."""

from __future__ import annotations

import email
import xml.etree.ElementTree as xml

import pytest

from tests.helpers.outgoing import held, of_sizes
from xnatuploader.records import ResourcePlan, Row, ScanPlan, SessionPlan
from xnatuploader.upload import tar_body, zip_body
from xnatuploader.upload.imports import bodies, xar

XNAT = "{http://nrg.wustl.edu/xnat}"


@pytest.mark.parametrize("tar", [True, False])
def test_files_are_divided_by_size_and_number(tar: bool) -> None:
    files = of_sizes(60, 60, 60, 10, 10, 10, 500, 5)
    made = bodies.archives(files, 130, 3, tar=tar)
    assert [[file.size for file in body.files] for body in made] == [[60, 60], [60, 10, 10], [10], [500], [5]]
    assert {type(body) for body in made} == {tar_body.Part if tar else zip_body.Zip}


def test_what_a_plain_tar_cannot_hold_travels_in_a_zip() -> None:
    long = held(f"SCANS/1/DICOM/{'n' * 100}.dcm", b"1")
    huge = tar_body.Outgoing("h", "h.dcm", 9 * 2**30, b"")
    made = bodies.archives([held("a.dcm", b"2"), long, huge], 10_000, 1, tar=True)
    assert [type(body) for body in made] == [tar_body.Part, zip_body.Zip, zip_body.Zip]


def test_a_form_carries_the_name_and_the_bytes() -> None:
    body = bodies.Form(held("SCANS/3/DICOM/IM1.dcm", b"\r\n--bytes--\r\n"))
    data = b"".join(body)
    assert len(data) == len(body)
    message = email.message_from_bytes(b"Content-Type: " + body.content_type.encode() + b"\r\n\r\n" + data)
    (part,) = message.get_payload()  # type: ignore[misc]
    assert (part.get_filename(), part.get_payload(decode=True)) == ("IM1.dcm", b"\r\n--bytes--\r\n")  # type: ignore[union-attr]


# ---- XAR


def plan(**given: str) -> SessionPlan:
    row = Row("f", filename="a.dcm", resource="DICOM", sop_instance_uid="1.2.3")
    inside = ResourcePlan("DICOM", (row,))
    scan = ScanPlan("2", 'a "type" & more', "xnat:ctScanData", "1.2", "Chest <5mm>\x00", (inside,))
    values = {"xsi_type": "xnat:ctSessionData", "date": "2020-03-12", "uid": "1.1", "modality": "CT", **given}
    return SessionPlan("S", "S_CT1", scans=(scan,), **values)  # type: ignore[arg-type]


def test_a_xar_names_session_scans_and_catalogs() -> None:
    session = plan()
    row = session.scans[0].resources[0].rows[0]
    made = {one.name: one.source for one in xar.members(session, "P", "XNAT_S00001", [("2", row)])}
    root = xml.fromstring(made["S_CT1.xml"])  # type: ignore[arg-type]
    assert root.tag == f"{XNAT}CTSession"
    assert (root.get("project"), root.get("label"), root.get("UID")) == ("P", "S_CT1", "1.1")
    assert root.findtext(f"{XNAT}subject_ID") == "XNAT_S00001"
    scan = root.find(f"{XNAT}scans/{XNAT}scan")
    assert scan is not None
    assert scan.get("type") == 'a "type" & more'
    assert scan.findtext(f"{XNAT}series_description") == "Chest <5mm>"
    uri = scan.find(f"{XNAT}file").get("URI")  # type: ignore[union-attr]
    catalog = xml.fromstring(made[str(uri)])  # type: ignore[arg-type]
    (entry,) = catalog.iter("{http://nrg.wustl.edu/catalog}entry")
    assert (entry.get("URI"), entry.get("UID"), entry.get("digest")) == ("a.dcm", "1.2.3", None)
    tops = {name.split("/")[0] for name in made if "/" in name}
    assert len(tops) == 2, "a folder that stands alone would be taken off the paths"


@pytest.mark.parametrize(
    ("xsi_type", "element"),
    [
        ("xnat:petSessionData", "PETSession"),
        ("xnat:petmrSessionData", "PETMRSession"),
        ("xnat:otherDicomSessionData", "OtherDicomSession"),
    ],
)
def test_root_elements_are_xnats(xsi_type: str, element: str) -> None:
    assert xar.element_of(xsi_type) == element
