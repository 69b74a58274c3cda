"""The sandbox's import service, prearchive, archiving, catalog refresh and user cache answer as XNAT's do."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pydicom
import pytest

from tests.helpers import builders
from tests.helpers.http_client import Client, head_of, send_part, tar_of, zip_of
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.waiting import eventually
from xnatuploader.sandbox import dicomfacts, options

IMPORT = "/data/services/import"
ZIP = {"Content-Type": "application/zip"}
DICOM = {"Content-Type": "application/dicom"}
NAMED = "PROJECT_ID=P&SUBJECT_ID=S1&EXPT_LABEL=E1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    users = ["demo:demo:owner", "reader:reader:reader"]
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P", "Q"], users=users) as running:
        yield running


@pytest.fixture
def box(shared: Sandbox) -> Iterator[Sandbox]:
    import shutil

    client = Client(shared)
    for row in client.rows("/data/prearchive"):
        client("DELETE", f"/data{row['url']}")
    for name in ("P", "Q"):
        for subject in client.rows(f"/data/projects/{name}/subjects"):
            client("DELETE", f"/data/projects/{name}/subjects/{subject['ID']}")
        shutil.rmtree(shared.archive / name, ignore_errors=True)
        shared.add_project(name)
    shared.clear_requests()
    # bytes stay, so that digests show what went where; the script of the site has tests of its own
    shared.set(anonymize_imports=False)
    yield shared
    shared.clear_faults()
    shared.set(**asdict(options.Settings()))


@pytest.fixture
def client(box: Sandbox) -> Client:
    return Client(box)


def slices(count: int = 2, first: int = 1, **elements: Any) -> dict[str, bytes]:
    return {
        f"im{n}.dcm": builders.dicom_bytes(instance=str(n), **elements) for n in range(first, first + count)
    }


def code(client: Client, number: int) -> None:
    assert client("PUT", f"/data/projects/P/prearchive_code/{number}").status_code == 200


def waiting(client: Client) -> dict[str, str]:
    rows = client.rows("/data/prearchive")
    assert len(rows) == 1, rows
    return rows[0]


def digests(data: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(one).hexdigest() for name, one in data.items()}


def archived(box: Sandbox) -> dict[str, str]:
    return {name.rsplit("/", 1)[-1]: digest for name, digest in box.files().items()}


# -- DICOM-zip -----------------------------------------------------------------------------------------------


def test_a_zip_without_dest_waits_in_the_prearchive(client: Client) -> None:
    answer = client("POST", f"{IMPORT}?{NAMED}", zip_of(slices()), headers=ZIP)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/uri-list")
    row = waiting(client)
    assert answer.text == f"/data{row['url']}\r\n"
    assert (row["project"], row["subject"], row["name"], row["status"]) == ("P", "S1", "E1", "RECEIVING")
    assert row["tag"] == builders.uid("study study")
    assert client.rows("/data/projects/P/experiments") == []


@pytest.mark.parametrize("kind", ["application/zip", "application/x-tar", "application/x-gtar"])
def test_a_dest_in_the_archive_commits_in_the_request(client: Client, box: Sandbox, kind: str) -> None:
    data = slices(3)
    body = {"zip": zip_of(data), "tar": tar_of(data), "gtar": tar_of(data, "w:gz")}[
        kind.split("/")[1].removeprefix("x-")
    ]
    url = f"{IMPORT}?import-handler=DICOM-zip&dest=/archive&{NAMED}"
    answer = client("POST", url, body, headers={"Content-Type": kind})
    assert answer.text == "/data/archive/projects/P/subjects/S1/experiments/E1\r\n"
    assert archived(box) == digests(data)
    session = box.state()["P"]["S1"]["E1"]
    assert (session["xsi"], session["date"], session["modality"]) == (
        "xnat:ctSessionData",
        "2020-03-12",
        "CT",
    )
    scan = session["scans"]["2"]
    assert (scan["type"], scan["UID"]) == ("Axial 5mm", builders.uid("series study/series"))
    box.flush()
    assert (box.archive / "P/arc001/E1/SCANS/2/DICOM/scan_2_catalog.xml").exists()
    assert client.rows("/data/prearchive") == []


def test_the_name_of_the_upload_decides_its_format(client: Client) -> None:
    body = zip_of(slices())
    octets = client("POST", f"{IMPORT}?import-handler=DICOM-zip", body)
    assert octets.status_code == 400
    assert "Unsupported format UNKNOWN" in octets.text
    gzip = {"Content-Type": "application/x-gzip"}
    assert client("POST", f"{IMPORT}?import-handler=DICOM-zip", body, headers=gzip).status_code == 400
    form = {"file": ("up.zip", body)}
    assert client("POST", f"{IMPORT}?import-handler=DICOM-zip", files=form).status_code == 200
    two = {"a": ("a.zip", body), "b": ("b.zip", body)}
    assert client("POST", IMPORT, files=two).status_code == 400
    assert client("POST", f"{IMPORT}?import-handler=XYZ", body, headers=ZIP).status_code == 404
    assert client("GET", IMPORT).status_code == 405


def test_a_member_that_is_not_dicom_is_400_after_others_were_stored(client: Client) -> None:
    body = zip_of({**slices(1), "note.txt": b"hello", **slices(1, first=5)})
    assert client("POST", f"{IMPORT}?{NAMED}", body, headers=ZIP).status_code == 400
    left = waiting(client)
    assert left["status"] == "RECEIVING"
    assert len(client.rows(f"/data{left['url']}/scans/2/resources/DICOM/files")) == 1
    lenient = f"{IMPORT}?{NAMED}&Ignore-Unparsable=true"
    assert client("POST", lenient, body, headers=ZIP).status_code == 200
    assert len(client.rows(f"/data{left['url']}/scans/2/resources/DICOM/files")) == 2


def test_a_conflict_of_a_committed_zip_hides_behind_400(client: Client) -> None:
    code(client, 0)
    url = f"{IMPORT}?import-handler=DICOM-zip&dest=/archive&{NAMED}"
    assert client("POST", url, zip_of(slices()), headers=ZIP).status_code == 200
    again = client("POST", url, zip_of(slices(1, first=9)), headers=ZIP)
    assert again.status_code == 400
    assert "unable to archive" in again.text
    row = waiting(client)
    assert row["status"] == "CONFLICT"
    assert "already exists" in client("GET", f"/data{row['url']}/logs/last").text


def test_new_files_merge_without_asking_on_an_auto_archive_project(client: Client, box: Sandbox) -> None:
    url = f"{IMPORT}?import-handler=DICOM-zip&dest=/archive&{NAMED}"
    client("POST", url, zip_of(slices()), headers=ZIP)
    assert client("POST", url, zip_of(slices(2, first=3)), headers=ZIP).status_code == 200
    assert len(archived(box)) == 4
    assert client("POST", url, zip_of(slices(1)), headers=ZIP).status_code == 400


def test_nested_archives_are_opened(client: Client) -> None:
    body = zip_of({"inner.zip": zip_of(slices(2)), "inner.tar": tar_of(slices(1, first=7))})
    assert client("POST", f"{IMPORT}?{NAMED}", body, headers=ZIP).status_code == 200
    assert len(client.rows(f"/data{waiting(client)['url']}/scans/2/resources/DICOM/files")) == 3


# -- routing -------------------------------------------------------------------------------------------------


def test_headers_route_where_nothing_is_named(client: Client) -> None:
    comments = slices(1, PatientComments="Project:P; Subject:Anna Session:Anna_1", study="a")
    client("POST", IMPORT, zip_of(comments), headers=ZIP)
    row = waiting(client)
    assert (row["project"], row["subject"], row["name"]) == ("P", "Anna", "Anna_1")
    described = slices(1, StudyDescription="Q", PatientName="Doe^John", PatientID="0001.2", study="b")
    client("POST", IMPORT, zip_of(described), headers=ZIP)
    row = client.rows("/data/prearchive/projects/Q")[0]
    assert (row["subject"], row["name"]) == ("Doe_John", "0001_2")
    client("POST", IMPORT, zip_of(slices(1, study="c")), headers=ZIP)
    assert [one["project"] for one in client.rows("/data/prearchive/projects/Unassigned")] == ["Unassigned"]


def test_a_project_without_the_right_to_create_is_unassigned(box: Sandbox, client: Client) -> None:
    box.add_user("half", "half", "owner", P="reader")
    Client(box, "half", "half")("POST", f"{IMPORT}?{NAMED}", zip_of(slices(1)), headers=ZIP)
    assert waiting(client)["project"] == "Unassigned"


# -- gradual-DICOM -------------------------------------------------------------------------------------------


def test_single_objects_gather_in_one_session(client: Client) -> None:
    url = f"{IMPORT}?import-handler=gradual-DICOM&rename=true&{NAMED}"
    uris = {client("POST", url, one, headers=DICOM).text for one in slices(3).values()}
    assert uris == {f"/data{waiting(client)['url']}\r\n"}
    names = [
        row["Name"] for row in client.rows(f"/data{waiting(client)['url']}/scans/2/resources/DICOM/files")
    ]
    assert len(set(names)) == 3
    assert all(name.startswith(builders.uid("study study") + "-2-") for name in names)
    assert client("POST", url, b"not dicom at all", headers=DICOM).status_code == 400


def test_gradual_objects_look_only_at_the_names_in_capitals(client: Client) -> None:
    url = f"{IMPORT}?import-handler=gradual-DICOM&project=P&subject=S1&session=E1"
    client("POST", url, slices(1)["im1.dcm"], headers=DICOM)
    assert waiting(client)["project"] == "Unassigned"


def test_raw_gradual_bodies_all_have_one_name(client: Client) -> None:
    url = f"{IMPORT}?import-handler=gradual-DICOM&{NAMED}"
    for one in slices(2).values():
        client("POST", url, one, headers=DICOM)
    names = [
        row["Name"] for row in client.rows(f"/data{waiting(client)['url']}/scans/2/resources/DICOM/files")
    ]
    assert "upload.dcm" in names
    assert len(names) == 2


# -- SI ------------------------------------------------------------------------------------------------------


def test_si_archives_in_the_request_and_refuses_a_second_time(client: Client, box: Sandbox) -> None:
    url = f"{IMPORT}?import-handler=SI&project=P&subject=S1&session=E1"
    first = client("POST", url, zip_of(slices()), headers=ZIP)
    assert first.text == "/data/archive/projects/P/subjects/S1/experiments/E1\r\n"
    for _ in range(2):
        second = client("POST", url, zip_of(slices(1, first=8)), headers=ZIP)
        assert second.status_code == 409
        assert "retry with overwrite enabled" in second.text
    assert [row["status"] for row in client.rows("/data/prearchive")] == ["CONFLICT", "CONFLICT"]
    assert len(archived(box)) == 2


@pytest.mark.parametrize(
    ("overwrite", "same", "status"),
    [("append", False, 200), ("append", True, 409), ("none", False, 200), ("delete", True, 200)],
)
def test_si_merges_by_overwrite(
    client: Client, box: Sandbox, overwrite: str, same: bool, status: int
) -> None:
    url = f"{IMPORT}?import-handler=SI&dest=/archive/projects/P/subjects/S1/experiments/E1"
    client("POST", url, zip_of(slices()), headers=ZIP)
    changed = slices(2, first=1 if same else 3, SeriesDescription="later")
    assert client("POST", f"{url}&overwrite={overwrite}", zip_of(changed), headers=ZIP).status_code == status
    if status == 200:
        assert digests(changed).items() <= archived(box).items()


def test_other_studies_subjects_and_modalities_conflict(client: Client) -> None:
    url = f"{IMPORT}?import-handler=SI&overwrite=append&project=P&session=E1&subject="
    client("POST", url + "S1", zip_of(slices()), headers=ZIP)
    study = client("POST", url + "S1", zip_of(slices(1, study="other")), headers=ZIP)
    assert study.status_code == 409
    assert "session UID" in study.text
    subject = client("POST", url + "S2", zip_of(slices(1, first=9)), headers=ZIP)
    assert "Already Exists for another Subject" in subject.text
    kind = client("POST", url + "S1", zip_of(slices(1, first=9, Modality="MR")), headers=ZIP)
    assert "modality" in kind.text
    assert client("POST", url + "s1", zip_of(slices(1, first=9)), headers=ZIP).status_code == 200


def test_a_series_with_a_taken_number_is_renumbered(client: Client, box: Sandbox) -> None:
    url = f"{IMPORT}?import-handler=SI&overwrite=append&project=P&session=E1&subject=S1"
    client("POST", url, zip_of(slices()), headers=ZIP)
    assert client("POST", url, zip_of(slices(1, series="new")), headers=ZIP).status_code == 200
    assert sorted(box.state()["P"]["S1"]["E1"]["scans"]) == ["2", "2-CT1"]
    moved = client("POST", url, zip_of(slices(1, first=7, SeriesNumber="9")), headers=ZIP)
    assert "different number (2)" in moved.text


def test_quarantine_is_kept_by_si_and_dropped_by_a_zip(client: Client, box: Sandbox) -> None:
    for handler, session in (("SI", "E1"), ("DICOM-zip", "E2")):
        names = f"PROJECT_ID=P&SUBJECT_ID=S1&EXPT_LABEL={session}"
        url = f"{IMPORT}?import-handler={handler}&dest=/archive&quarantine=true&{names}"
        client("POST", url, zip_of(slices()), headers=ZIP)
    sessions = box.state()["P"]["S1"]
    assert [sessions[one].get("quarantine_status") for one in ("E1", "E2")] == ["quarantine", None]


def test_several_studies_are_refused_by_si_but_wait(client: Client) -> None:
    body = zip_of({**slices(1), "other.dcm": builders.dicom_bytes(study="two")})
    answer = client("POST", f"{IMPORT}?import-handler=SI&project=P", body, headers=ZIP)
    assert answer.status_code == 400
    assert "multiple imaging sessions" in answer.text
    assert len(client.rows("/data/prearchive")) == 2
    nothing = client("POST", f"{IMPORT}?import-handler=SI", zip_of({"a.txt": b"x"}), headers=ZIP)
    assert "parsable" in nothing.text


@pytest.mark.parametrize(
    ("handler", "asked", "archived_in_the_end"),
    [
        ("DICOM-zip", "AA=false&action=commit", True),
        ("DICOM-zip", "dest=/prearchive/projects/P", True),
        ("gradual-DICOM", "AA=false&auto-archive=false", True),
        ("gradual-DICOM", "prevent_auto_commit=true", False),
        ("DICOM-zip", "SOURCE=uploader", False),
        ("SI", "AA=false", False),
    ],
)
def test_what_holds_a_session_of_an_auto_archiving_project(
    client: Client, box: Sandbox, handler: str, asked: str, archived_in_the_end: bool
) -> None:
    box.set(builder_idle=0.1, builder_interval=0.1)
    data = slices(1)["im1.dcm"]
    names = "project=P&subject=S1&session=E1" if handler == "SI" else NAMED
    url = f"{IMPORT}?import-handler={handler}&{names}&{asked}"
    if handler == "gradual-DICOM":
        assert client("POST", url, data, headers=DICOM).status_code == 200
    else:
        assert client("POST", url, zip_of({"im1.dcm": data}), headers=ZIP).status_code == 200
    if archived_in_the_end:
        assert eventually(lambda: len(archived(box)) == 1)
        assert client.rows("/data/prearchive") == []
    else:
        assert not eventually(lambda: archived(box), seconds=1.5)
        assert waiting(client)["status"] == ("READY" if handler == "SI" else "RECEIVING")


# -- prearchive ----------------------------------------------------------------------------------------------


def in_prearchive(client: Client, **elements: Any) -> str:
    url = f"{IMPORT}?import-handler=SI&dest=/prearchive/projects/P&subject=S1&session=E1"
    return client("POST", url, zip_of(slices(**elements)), headers=ZIP).text.strip()


def test_a_waiting_session_is_archived_by_service_with_303_or_200(client: Client) -> None:
    uri = in_prearchive(client)
    assert waiting(client)["status"] == "READY"
    answer = client("POST", f"/data/services/archive?src={uri}")
    assert answer.status_code == 303
    assert answer.headers["Location"].endswith("/data/archive/projects/P/subjects/S1/experiments/E1")
    code(client, 0)
    answer = client("POST", f"/data/services/archive?src={in_prearchive(client, first=5)}")
    assert answer.status_code == 200
    assert answer.text == "/data/archive/projects/P/subjects/S1/experiments/E1\r\n"
    assert client("POST", "/data/services/archive").status_code == 404
    assert client("POST", "/data/services/archive?src=/archive/projects/P").status_code == 400
    assert client("POST", f"/data/services/archive?src={uri}").status_code == 404


def test_an_entry_that_is_gone_is_an_empty_table(client: Client) -> None:
    """As PrearcSessionResource answers after archiving: 200, and no row."""
    uri = in_prearchive(client)
    assert len(client.rows(f"{uri}?format=json")) == 1
    client("POST", f"/data/services/archive?src={uri}")
    answer = client("GET", f"{uri}?format=json")
    assert (answer.status_code, answer.json()["ResultSet"]["Result"]) == (200, [])
    assert client("GET", uri).status_code == 404


def test_a_refresh_of_checksums_corrects_wrong_ones(client: Client, box: Sandbox) -> None:
    client("PUT", "/data/projects/P/subjects/S1/experiments/E1?xsiType=xnat:ctSessionData")
    scan = "/data/projects/P/subjects/S1/experiments/E1/scans/2"
    client("PUT", f"{scan}?xsiType=xnat:ctScanData")
    client("PUT", f"{scan}/resources/DICOM/files/a.dcm?inbody=true", b"before")
    path = next(box.archive.rglob("a.dcm"))
    path.write_bytes(b"after!")
    assert archived(box) == digests({"a.dcm": b"before"})  # a list never looks at the disk
    uri = "/archive" + scan.removeprefix("/data")
    client("POST", f"/data/services/refresh/catalog?resource={uri}&options=checksum")
    assert archived(box) == digests({"a.dcm": b"after!"})


def test_failures_of_the_archive_service_are_500(client: Client) -> None:
    client("POST", f"/data/services/archive?src={in_prearchive(client)}")
    answer = client("POST", f"/data/services/archive?src={in_prearchive(client)}")
    assert answer.status_code == 500
    assert waiting(client)["status"] == "CONFLICT"
    client("POST", f"{IMPORT}?{NAMED.replace('E1', 'E2')}", zip_of(slices(1)), headers=ZIP)
    unbuilt = next(one for one in client.rows("/data/prearchive") if one["status"] == "RECEIVING")
    assert client("POST", f"/data/services/archive?src={unbuilt['url']}").status_code == 500


def test_append_at_the_archive_service_overrides(client: Client, box: Sandbox) -> None:
    client("POST", f"/data/services/archive?src={in_prearchive(client)}")
    uri = in_prearchive(client, study="other")
    assert client("POST", f"/data/services/archive?overwrite=append&src={uri}").status_code == 303
    assert len(box.state()["P"]["S1"]["E1"]["scans"]) == 2


def test_commit_answers_301_with_the_uri_in_the_body(client: Client) -> None:
    uri = in_prearchive(client)
    answer = client("POST", f"{uri}?action=commit&AA=true")
    assert (answer.status_code, "Location" in answer.headers) == (301, False)
    assert answer.text == "/data/archive/projects/P/subjects/S1/experiments/E1"
    again = client("POST", f"{in_prearchive(client)}?action=commit&AA=true")
    assert again.status_code == 500
    assert "FAILED" in again.text
    code(
        client, 0
    )  # elsewhere AA=false is not heeded: the entry has the project's code (PrearcSession.isAutoArchive)
    client("DELETE", f"/data{waiting(client)['url']}")
    stays = client("POST", f"{in_prearchive(client)}?action=commit&AA=false")
    assert stays.status_code == 200
    assert stays.text.startswith("/prearchive/projects/P/")


def test_actions_on_a_waiting_session(client: Client) -> None:
    uri = in_prearchive(client)
    moved = client("POST", f"{uri}?action=move&newProject=Q")
    assert moved.status_code == 301
    uri = "/data" + moved.text
    assert client.rows(f"{uri}?format=json")[0]["project"] == "Q"
    assert client("GET", uri).text.startswith("<?xml")
    assert client("POST", f"{uri}?action=set-status&status=ERROR").status_code == 200
    assert waiting(client)["status"] == "ERROR"
    assert client("POST", f"{uri}?action=build").status_code == 200
    assert client("POST", f"{uri}?action=dance").status_code == 400
    assert client("DELETE", uri).status_code == 200
    assert client("GET", uri).status_code == 404


def test_a_session_on_its_way_is_locked(client: Client, box: Sandbox) -> None:
    import threading

    box.set(archive_seconds=0.8)
    uri = in_prearchive(client)
    slow = threading.Thread(target=Client(box), args=("POST", f"/data/services/archive?src={uri}"))
    slow.start()
    assert eventually(lambda: waiting(client)["status"] == "ARCHIVING")
    assert client("POST", f"/data/services/archive?src={uri}").status_code == 403
    assert client("POST", f"{uri}?action=commit").status_code == 409
    slow.join()
    assert len(archived(box)) == 2


def test_the_session_builder_takes_idle_sessions(client: Client, box: Sandbox) -> None:
    client("POST", f"{IMPORT}?{NAMED}", zip_of(slices()), headers=ZIP)
    box.set(builder_idle=0.1, builder_interval=0.1)
    assert eventually(lambda: len(archived(box)) == 2)
    assert client.rows("/data/prearchive") == []


@pytest.mark.slow
def test_a_prearchive_survives_a_kill(tmp_path: Path) -> None:
    with Sandbox(tmp_path, projects=["P"]) as box:
        in_prearchive(Client(box))
        box.kill()
        box.start()
        client = Client(box)
        assert client("POST", f"/data/services/archive?src={waiting(client)['url']}").status_code == 303
        assert len(archived(box)) == 2


# -- the site's anonymisation, which is on as XNAT is shipped (META-INF/xnat/defaults/id.das)


@pytest.mark.parametrize("handler", ["SI", "DICOM-zip", "gradual-DICOM"])
def test_what_arrives_is_changed_by_the_site(client: Client, box: Sandbox, handler: str) -> None:
    box.set(anonymize_imports=True)
    data = slices(1)["im1.dcm"]
    names = "PROJECT_ID=P&SUBJECT_ID=S1&EXPT_LABEL=E1"
    if handler == "gradual-DICOM":
        client("POST", f"{IMPORT}?import-handler={handler}&{names}", data, headers=DICOM)
    else:
        query = f"{IMPORT}?import-handler={handler}&dest=/prearchive/projects/P&prevent_auto_commit=true"
        client("POST", f"{query}&project=P&subject=S1&session=E1", zip_of({"im1.dcm": data}), headers=ZIP)
    stored = next(box.folder.rglob("*.dcm"))
    assert stored.read_bytes() != data
    now, before = pydicom.dcmread(stored), pydicom.dcmread(io.BytesIO(data))
    changed = {one.keyword for one in before if now.get(one.keyword) != one.value}
    assert changed | {"StudyDescription"} == {"StudyDescription", "PatientName", "PatientID"}
    assert (now.StudyDescription, now.PatientName, now.PatientID) == ("P", "S1", "E1")
    assert now.PixelData == before.PixelData


def test_what_came_by_the_prearchive_is_cataloged_with_its_uids_and_what_was_put_is_not(
    client: Client, box: Sandbox
) -> None:
    url = f"{IMPORT}?import-handler=DICOM-zip&dest=/archive&{NAMED}"
    assert client("POST", url, zip_of(slices(1)), headers=ZIP).status_code == 200
    resource = "/data/projects/P/subjects/S1/experiments/E1/scans/2/resources/DICOM"
    catalog = ElementTree.fromstring(client("GET", resource).content)
    assert catalog.tag.endswith("}DCMCatalog")
    assert [one.get("UID") for one in catalog[0]] == [builders.uid("instance study/series/1")]
    data = slices(1, first=2)["im2.dcm"]
    client("PUT", f"{resource}/files/im2.dcm?inbody=true", data)
    catalog = ElementTree.fromstring(client("GET", resource).content)
    assert [one.get("UID") for one in catalog[0]] == [builders.uid("instance study/series/1"), None]


def test_an_upload_to_no_project_keeps_its_study_description(client: Client, box: Sandbox) -> None:
    box.set(anonymize_imports=True)
    data = builders.dicom_bytes(StudyDescription="Chest", PatientName="Doe^John", PatientID="42")
    client("POST", f"{IMPORT}?import-handler=gradual-DICOM", data, headers=DICOM)
    facts = dicomfacts.read(next(box.folder.rglob("*.dcm")))
    assert facts["StudyDescription"] == "Chest"
    assert (facts["PatientName"], facts["PatientID"]) == ("Doe_John", "42")


def test_a_sender_that_anonymised_can_keep_the_bytes_and_the_session_importer_cannot(
    client: Client, box: Sandbox
) -> None:
    box.set(anonymize_imports=True)
    data = slices(1)
    query = f"{IMPORT}?project=P&subject=S1&prevent_anon=true"
    for handler, kept in (("DICOM-zip", True), ("SI", False)):
        url = f"{query}&import-handler={handler}&session={handler}&dest=/archive/projects/P"
        assert client("POST", url, zip_of(data), headers=ZIP).status_code == 200
        stored = next((box.archive / "P" / "arc001" / handler).rglob("im1.dcm"))
        assert (stored.read_bytes() == data["im1.dcm"]) == kept


def test_whether_scripts_are_on_is_a_bare_word(client: Client, box: Sandbox) -> None:
    box.set(anonymize_imports=True)
    assert client("GET", "/xapi/siteConfig/enableSitewideAnonymizationScript").json() is True
    assert client("GET", "/xapi/anonymize/site/enabled").json() is True
    assert client("GET", "/xapi/anonymize/projects/P/enabled").json() is False
    assert client("GET", "/xapi/anonymize/projects/P").status_code == 204
    assert client("GET", "/xapi/anonymize/projects/NOPE/enabled").status_code == 500
    assert "(0010,0020) := session" in client("GET", "/xapi/anonymize/site").text


# -- other ways in -------------------------------------------------------------------------------------------


def test_a_xar_brings_its_own_records(client: Client, box: Sandbox) -> None:
    data = slices(1)["im1.dcm"]
    digest = hashlib.md5(data).hexdigest()
    session = """<xnat:CTSession xmlns:xnat="http://nrg.wustl.edu/xnat" project="P" label="E1" UID="1.2"
      xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><xnat:subject_ID>S1</xnat:subject_ID>
      <xnat:date>2020-03-12</xnat:date><xnat:scans><xnat:scan ID="2" type="Chest" UID="1.2.3"
      xsi:type="xnat:ctScanData"><xnat:file xsi:type="xnat:resourceCatalog" label="DICOM" format="DICOM"
      content="RAW" URI="SCANS/2/DICOM/cat_catalog.xml"/></xnat:scan></xnat:scans></xnat:CTSession>"""
    catalog = f"""<cat:Catalog xmlns:cat="http://nrg.wustl.edu/catalog"><cat:entries>
      <cat:entry URI="im1.dcm" digest="{digest}"/></cat:entries></cat:Catalog>"""
    files = {"SCANS/2/DICOM/cat_catalog.xml": catalog.encode(), "SCANS/2/DICOM/im1.dcm": data}
    body = zip_of({"s.xml": session.encode(), **{f"E1/{name}": one for name, one in files.items()}})
    url = f"{IMPORT}?import-handler=XAR"
    assert client("POST", url, body, headers=ZIP).status_code == 400  # the subject has to exist
    client("PUT", "/data/projects/P/subjects/S1")
    alone = client("POST", url, zip_of({"s.xml": session.encode(), **files}), headers=ZIP)
    assert "does not hold SCANS" in alone.text  # a lone folder is taken off the paths
    answer = client("POST", url, body, headers=ZIP)
    assert answer.text.startswith("/archive/experiments/XNAT_E")
    assert archived(box) == {"im1.dcm": digest}
    assert box.state()["P"]["S1"]["E1"]["scans"]["2"]["type"] == "Chest"
    assert client("POST", url, zip_of({"a": b"x"}), headers=ZIP).status_code == 400


@pytest.mark.parametrize("keep", [True, False])
def test_the_inbox_imports_in_the_background(client: Client, box: Sandbox, keep: bool) -> None:
    folder = box.folder / "inbox" / "P" / f"visit-{keep}"
    folder.mkdir(parents=True)
    for name, data in slices(2).items():
        (folder / name).write_bytes(data)
    url = f"{IMPORT}?import-handler=inbox&{NAMED}" + ("&cleanupAfterImport=false" if keep else "")
    answer = client("POST", f"{url}&path={folder}")
    place = answer.text.strip()
    assert place.startswith("/xapi/dicom/")
    assert eventually(lambda: client("GET", place).json()["status"] == "Completed")
    assert eventually(lambda: folder.exists() == keep)
    assert len(archived(box)) == 2
    assert client("POST", f"{IMPORT}?import-handler=inbox&{NAMED}&path=/etc").status_code == 400
    again = client("POST", f"{url}&path={folder.parent}")
    assert again.status_code == 409


def test_the_user_cache_feeds_an_import_in_the_background(client: Client, box: Sandbox) -> None:
    cached = "/data/user/cache/resources/x1"
    assert client("PUT", cached).status_code == 200
    assert client("PUT", cached).status_code == 412
    assert client("PUT", f"{cached}/files/up.zip?inbody=true", zip_of(slices())).status_code == 200
    src = "src=/user/cache/resources/x1/files/up.zip&http-session-listener=job1"
    answer = client("POST", f"{IMPORT}?{src}&dest=/archive&{NAMED}")
    assert answer.text == "Submitted for prearchival"

    def ended() -> Any:
        last = client("GET", "/data/status/job1?format=json").json()["msgs"][0][-1]
        return last if last["terminal"] else None

    last = eventually(ended)
    assert last["status"] == "COMPLETED"
    assert last["msg"] == "Archive:/archive/projects/P/subjects/S1/experiments/E1"
    assert len(archived(box)) == 2
    assert Client(box)("GET", "/data/status/job1").status_code == 404  # another login knows nothing of it
    assert client("POST", f"{IMPORT}?src=/user/cache/resources/x1/files/no.zip").status_code == 404
    assert client("POST", f"{IMPORT}?src=/elsewhere").status_code == 400


def test_the_user_cache_has_its_inverted_flag(client: Client) -> None:
    cached = "/data/user/cache/resources/y"
    client("PUT", f"{cached}/files/a.zip?inbody=true", b"x")
    client("PUT", f"{cached}/files/b.zip?inbody=true", b"x")
    assert client("GET", f"{cached}/files").status_code == 404
    assert [row["Name"] for row in client.rows(f"{cached}/files/a.zip")] == ["a.zip", "b.zip"]
    assert client("DELETE", cached).status_code == 404
    assert client("DELETE", f"{cached}/files/a.zip").status_code == 200
    assert client("GET", f"{cached}/files/b.zip").json()["ResultSet"]["Result"] == []


# -- catalog refresh -----------------------------------------------------------------------------------------

SCAN = "/data/projects/P/subjects/S1/experiments/E1/scans/3"


@pytest.fixture
def untidy(client: Client, box: Sandbox) -> Path:
    """A resource with one file that only the catalog knows and one that only the disk knows."""
    client("PUT", "/data/projects/P/subjects/S1/experiments/E1?xsiType=xnat:ctSessionData")
    client("PUT", f"{SCAN}?xsiType=xnat:ctScanData")
    for name in ("kept", "lost"):
        client("PUT", f"{SCAN}/resources/DICOM/files/{name}", name.encode())
    folder = box.archive / "P/arc001/E1/SCANS/3/DICOM"
    (folder / "lost").unlink()
    (folder / "stray").write_bytes(b"stray")
    return folder


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("&options=append", ["kept", "lost", "stray"]),
        ("&options=delete", ["kept"]),
        ("&options=delete&options=append,checksum", ["kept", "stray"]),
        ("&append=true", ["kept", "lost", "stray"]),
        ("", ["kept", "stray"]),
        ("&options=nonsense", ["kept", "stray"]),
    ],
)
def test_a_refresh_does_what_is_asked_or_all(
    client: Client, untidy: Path, chosen: str, names: list[str]
) -> None:
    uri = "/archive" + SCAN.removeprefix("/data") + "/resources/DICOM"
    answer = client("POST", f"/data/services/refresh/catalog?resource={uri}{chosen}")
    assert (answer.status_code, answer.text) == (200, "")
    assert sorted(row["Name"] for row in client.rows(f"{SCAN}/resources/DICOM/files")) == names


def test_a_refresh_takes_a_session_and_refuses_nonsense(client: Client, box: Sandbox, untidy: Path) -> None:
    session = client.rows("/data/projects/P/experiments")[0]["ID"]
    url = "/data/services/refresh/catalog?resource="
    assert client("POST", f"{url}/archive/experiments/{session}").status_code == 200
    assert client("POST", f"{url}/nonsense").status_code == 400
    assert client("POST", f"{url}/archive/experiments/NOPE").status_code == 400
    reader = Client(box, "reader", "reader")
    assert reader("POST", f"{url}/archive/experiments/{session}").status_code == 403


# -- headers -------------------------------------------------------------------------------------------------

SESSION = "/data/projects/P/subjects/S1/experiments/E1"


def put_scan(client: Client, scan: str, data: dict[str, bytes], xsi: str = "xnat:ctScanData") -> None:
    client("PUT", f"{SESSION}?xsiType=xnat:ctSessionData")
    client("PUT", f"{SESSION}/scans/{scan}?xsiType={xsi}&type=Chosen")
    archive = {"Content-Type": "application/x-tar"}
    client("PUT", f"{SESSION}/scans/{scan}/resources/DICOM/files?extract=true", tar_of(data), headers=archive)


def test_pulled_headers_fill_the_session_and_rename_types(client: Client, box: Sandbox) -> None:
    put_scan(client, "2", slices(3))
    assert client("PUT", f"{SESSION}?pullDataFromHeaders=true").status_code == 200
    session = box.state()["P"]["S1"]["E1"]
    assert (session["date"], session["UID"]) == ("2020-03-12", builders.uid("study study"))
    assert session["scanner/manufacturer"] == "ACME"
    assert (session["scans"]["2"]["type"], session["scans"]["2"]["frames"]) == ("Axial 5mm", "3")
    box.set(pull_changes_types=False)
    client("PUT", f"{SESSION}/scans/2?type=Chosen")
    client("PUT", f"{SESSION}?pullDataFromHeaders=true")
    assert box.state()["P"]["S1"]["E1"]["scans"]["2"]["type"] == "Chosen"


def test_pulled_headers_make_extra_scans_and_refuse_other_modalities(client: Client, box: Sandbox) -> None:
    put_scan(client, "7", slices(1))
    assert client("PUT", f"{SESSION}?pullDataFromHeaders=true").status_code == 200
    assert sorted(box.state()["P"]["S1"]["E1"]["scans"]) == ["2", "7"]
    client("DELETE", f"{SESSION}/scans/2")
    put_scan(client, "2", slices(1, Modality="MR"))
    answer = client("PUT", f"{SESSION}?pullDataFromHeaders=true")
    assert answer.status_code == 500
    assert "Modification of scan modality" in answer.text


def test_headers_cannot_be_pulled_from_nothing(client: Client) -> None:
    client("PUT", f"{SESSION}?xsiType=xnat:ctSessionData")
    assert "session directory" in client("PUT", f"{SESSION}?pullDataFromHeaders=true").text
    put_scan(client, "2", {"a.txt": b"text"})
    answer = client("PUT", f"{SESSION}?pullDataFromHeaders=true")
    assert (answer.status_code, "Unable to locate DICOM" in answer.text) == (500, True)


def test_fixed_scan_types_follow_the_description(client: Client, box: Sandbox) -> None:
    client("PUT", f"{SESSION}?xsiType=xnat:ctSessionData")
    client("PUT", f"{SESSION}/scans/1?xsiType=xnat:ctScanData&type=T1&series_description=d")
    client("PUT", f"{SESSION}/scans/2?xsiType=xnat:ctScanData&series_description=d")
    client("PUT", f"{SESSION}/scans/3?xsiType=xnat:ctScanData&series_description=e")
    assert client("PUT", f"{SESSION}?fixScanTypes=true&triggerPipelines=true").status_code == 200
    scans = box.state()["P"]["S1"]["E1"]["scans"]
    assert [scans[one]["type"] for one in "123"] == ["T1", "T1", "e"]


@pytest.mark.parametrize("syntax", list(builders.SYNTAXES))
@pytest.mark.parametrize("meta", [True, False])
def test_headers_are_read_in_every_transfer_syntax(tmp_path: Path, syntax: str, meta: bool) -> None:
    if not meta and syntax != "implicit":
        return  # without file meta a reader can only guess the default
    path = tmp_path / "a.dcm"
    path.write_bytes(builders.dicom_bytes(transfer_syntax=syntax, meta=meta, private=20))
    facts = dicomfacts.read(path)
    assert facts["StudyInstanceUID"] == builders.uid("study study")
    assert (facts["SeriesNumber"], facts["PatientName"], facts["Modality"]) == ("2", "Doe^John", "CT")


@pytest.mark.parametrize(
    ("modalities", "session", "scan"),
    [
        (["CT"], "ct", "ct"),
        (["PT", "CT"], "pet", "pet"),
        (["PT", "MR"], "petmr", "pet"),
        (["CT", "SEG", "SC"], "ct", "ct"),
        (["SEG"], "otherDicom", "seg"),
        (["RTSTRUCT"], "otherDicom", "rtImage"),
        (["SR"], "sr", "sr"),
        (["OT"], "otherDicom", "sc"),
        (["KO"], "otherDicom", "otherDicom"),
    ],
)
def test_types_follow_the_leading_object(modalities: list[str], session: str, scan: str) -> None:
    facts = [{"SOPClassUID": builders.SOP_CLASSES[one], "Modality": one} for one in modalities]
    assert dicomfacts.session_type(facts) == f"xnat:{session}SessionData"
    assert dicomfacts.scan_type(facts) == f"xnat:{scan}ScanData"


def test_a_broken_import_leaves_half_a_session(client: Client, box: Sandbox) -> None:
    body = zip_of(slices(3, pixels=20_000), zipfile.ZIP_STORED)
    head = head_of(f"{IMPORT}?{NAMED}", len(body), "POST", "application/zip")
    send_part(box, head, body[: len(body) // 2])
    assert eventually(lambda: client.rows("/data/prearchive"))
    assert len(client.rows(f"/data{waiting(client)['url']}/scans/2/resources/DICOM/files")) == 1
