"""The bodies of an import: zips and forms that others read, of the length that was promised."""

from __future__ import annotations

import email
import errno
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as xml
import zipfile
from pathlib import Path

import pytest

from xnatuploader import xnat
from xnatuploader.records import ResourcePlan, Row, ScanPlan, SessionPlan
from xnatuploader.upload import tar_body
from xnatuploader.upload.imports import bodies, xar

SIZES = (0, 1, 65535, 65536, 1 << 20, (1 << 20) + 1, 65535 * 17, 3_000_000)
XNAT = "{http://nrg.wustl.edu/xnat}"


def outgoing(name: str, data: bytes) -> tar_body.Outgoing:
    return tar_body.Outgoing(f"row {name}", name, len(data), data)


def members(sizes: tuple[int, ...] = SIZES) -> list[tar_body.Outgoing]:
    return [outgoing(f"SCANS/{n}/DICOM/im ü{n}.dcm", os.urandom(size)) for n, size in enumerate(sizes)]


def read_back(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def test_a_zip_holds_every_file_and_is_as_long_as_it_said() -> None:
    files = members()
    body = bodies.Zip(files)
    for _ in range(2):  # a body may be sent a second time
        data = b"".join(body)
        assert len(data) == len(body)
        assert read_back(data) == {file.name: file.source for file in files}
        assert body.digests == {file.name: hashlib.md5(file.source).hexdigest() for file in files}  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "many"), [(0xFFFFFFFF, 3), (200_000, 0xFFFF), (200_000, 3)])
def test_a_zip_too_large_for_the_plain_format_uses_zip64(
    monkeypatch: pytest.MonkeyPatch, limit: int, many: int
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", many)
    files = members((1000, 150_000, 150_000, 1000, 70))
    body = bodies.Zip(files)
    data = b"".join(body)
    assert b"PK\x06\x06" in data
    assert len(data) == len(body)
    assert read_back(data) == {file.name: file.source for file in files}


JAVA = """
import java.io.*; import java.util.zip.*;
public class Z { public static void main(String[] a) throws Exception {
  ZipInputStream z = new ZipInputStream(new FileInputStream(a[0])); ZipEntry e; byte[] b = new byte[65536];
  while ((e = z.getNextEntry()) != null) { long n = 0; int r; while ((r = z.read(b)) > 0) n += r;
    System.out.println(n); } } }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java, as XNAT does")
def test_java_reads_a_zip_as_it_arrives(tmp_path: Path) -> None:
    (tmp_path / "Z.java").write_text(JAVA)
    (tmp_path / "a.zip").write_bytes(b"".join(bodies.Zip(members())))
    said = subprocess.run(
        ["java", "Z.java", "a.zip"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert [int(line) for line in said.stdout.split()] == list(SIZES), said.stderr


def test_a_zip_for_which_there_is_no_room_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile, "ZipFile", full)
    with pytest.raises(xnat.RequestFailed, match="No space left on device"):
        bodies.Zip(members()).make()


def test_a_file_that_changes_on_the_way_breaks_the_zip_off(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"x" * 500)
    body = bodies.Zip([outgoing("b", b"1"), tar_body.Outgoing("a", "a", 600, path)])
    with pytest.raises(tar_body.FileChanged, match="changed"):
        list(body)


def test_files_are_divided_by_size_and_number() -> None:
    files = members((60, 60, 60, 10, 10, 10, 500, 5))
    made = bodies.archives(files, 130, 3)
    assert [[file.size for file in body.files] for body in made] == [[60, 60], [60, 10, 10], [10], [500], [5]]


def test_a_file_too_large_for_a_zip_travels_in_a_tar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_LIMIT", 1000)
    files = [outgoing("SCANS/1/DICOM/a.dcm", b"a" * 10), outgoing("SCANS/1/DICOM/b.dcm", b"b" * 2000)]
    made = bodies.archives(files, 10_000, 10)
    tar = next(body for body in made if body.content_type == "application/x-tar")
    data = b"".join(tar)
    assert len(data) == len(tar)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        assert opened.getnames() == ["SCANS/1/DICOM/b.dcm"]


def test_a_form_carries_the_name_and_the_bytes() -> None:
    body = bodies.Form(outgoing("SCANS/3/DICOM/IM1.dcm", b"\r\n--bytes--\r\n"))
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
