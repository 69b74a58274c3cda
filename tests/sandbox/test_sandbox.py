"""The sandbox answers as XNAT does: codes, oddities, expiry, misbehaviour on order, life across restarts."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
import pytest
import requests

from tests.helpers.builders import md5
from tests.helpers.http_client import FILES, OCTETS, SCAN, Client, head_of, send_part, tar_of, zip_of
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.waiting import eventually
from xnatuploader import errors
from xnatuploader.sandbox import app, auth, faults, options, process


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    users = [
        "demo:demo:owner",
        "boss:boss:admin",
        "reader:reader:reader",
        "nobody:nobody:none",
        "lab:lab:member",
    ]
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P", "Q"], users=users) as running:
        yield running


@pytest.fixture
def box(shared: Sandbox) -> Iterator[Sandbox]:
    """The shared sandbox, emptied before and without faults and changed switches after each test."""
    from dataclasses import asdict

    admin = Client(shared, "boss", "boss")
    for name in ("P", "Q"):
        for subject in admin.rows(f"/data/projects/{name}/subjects"):
            admin("DELETE", f"/data/projects/{name}/subjects/{subject['ID']}")
        shutil.rmtree(shared.archive / name, ignore_errors=True)
    shared.clear_requests()
    yield shared
    shared.clear_faults()
    shared.set(**asdict(options.Settings()))


@pytest.fixture
def client(box: Sandbox) -> Client:
    return Client(box)


@pytest.fixture
def scan(client: Client) -> Client:
    """A client, and a scan 3 of type `Head` with an empty resource `DICOM`."""
    client("PUT", "/data/projects/P/subjects/S1/experiments/E1?xsiType=xnat:ctSessionData")
    client("PUT", f"{SCAN}?xsiType=xnat:ctScanData&type=Head")
    client("PUT", f"{SCAN}/resources/DICOM?format=DICOM&content=RAW")
    return client


# -- codes of creation ---------------------------------------------------------------------------------------


def test_a_subject_is_201_with_its_id_and_200_the_second_time(client: Client) -> None:
    first = client("PUT", "/data/projects/P/subjects/S1")
    second = client("PUT", "/data/projects/P/subjects/S1?gender=female")
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.text == second.text
    assert first.text.startswith("XNAT_S")
    assert client.rows("/data/projects/P/subjects?columns=ID,label,gender")[0]["gender"] == "female"


def test_a_label_parameter_renames_a_subject_and_leaves_the_body_empty(client: Client) -> None:
    client("PUT", "/data/projects/P/subjects/S1")
    client("PUT", "/data/projects/P/subjects/S2")
    renamed = client("PUT", "/data/projects/P/subjects/S1?label=S9")
    assert (renamed.status_code, renamed.text) == (200, "")
    assert client("PUT", "/data/projects/P/subjects/S9?label=S2").status_code == 409
    assert [row["label"] for row in client.rows("/data/projects/P/subjects")] == ["S9", "S2"]


def test_a_subject_in_a_missing_project_is_422_and_its_get_404(client: Client) -> None:
    answer = client("PUT", "/data/projects/NOPE/subjects/S1")
    assert answer.status_code == 422
    assert "<h3>Submitted subject record must include the project attribute.</h3>" in answer.text
    assert client("GET", "/data/projects/NOPE/subjects/S1").status_code == 404


def test_labels_that_xnat_cannot_hold_are_500(client: Client) -> None:
    assert client("PUT", "/data/projects/P/subjects/S%201").status_code == 500
    session = "/data/projects/P/subjects/S1/experiments/E.1?xsiType=xnat:ctSessionData"
    assert client("PUT", session).status_code == 500
    assert client("PUT", "/data/projects/bad.id").status_code == 417


def test_a_session_needs_a_type_once(client: Client) -> None:
    url = "/data/projects/P/subjects/S1/experiments/E1"
    assert client("PUT", url).status_code == 417
    assert client("PUT", f"{url}?xsiType=xnat:nonsense").status_code == 400
    made = client("PUT", f"{url}?xsiType=xnat:ctSessionData&date=2020-03-12")
    assert made.status_code == 201
    changed = client("PUT", f"{url}?xnat:ctSessionData/note=seen")  # the path names the type
    assert (changed.status_code, changed.text) == (200, made.text)
    assert client("PUT", f"{url}?xsiType=xnat:ctSessionData&date=yesterday").status_code == 400
    record = client("GET", f"{url}?format=json").json()["items"][0]
    assert record["meta"]["xsi:type"] == "xnat:ctSessionData"
    assert record["data_fields"]["date"] == "2020-03-12"
    assert record["data_fields"]["note"] == "seen"


def test_a_session_put_under_another_subject_moves_there(client: Client) -> None:
    client("PUT", "/data/projects/P/subjects/S1/experiments/E1?xsiType=xnat:ctSessionData")
    moved = client("PUT", "/data/projects/P/subjects/S2/experiments/E1")
    assert moved.status_code == 200
    assert client.rows("/data/projects/P/subjects/S1/experiments") == []
    assert [row["label"] for row in client.rows("/data/projects/P/subjects/S2/experiments")] == ["E1"]


def test_the_same_label_may_stand_in_two_projects(client: Client) -> None:
    for project in ("P", "Q"):
        url = f"/data/projects/{project}/subjects/S1/experiments/E1?xsiType=xnat:ctSessionData"
        assert client("PUT", url).status_code == 201
    rows = client.rows("/data/experiments?columns=ID,label,project,subject_ID")
    assert sorted(row["project"] for row in rows if row["label"] == "E1") == ["P", "Q"]


def test_a_scan_is_always_200_with_an_empty_body(scan: Client) -> None:
    again = scan("PUT", f"{SCAN}?xsiType=xnat:ctScanData&quality=questionable")
    assert (again.status_code, again.text) == (200, "")
    assert scan("PUT", f"{SCAN}?xsiType=xnat:mrScanData").status_code == 409
    assert scan("PUT", SCAN.replace("/3", "/4")).status_code == 417
    assert scan("PUT", SCAN.replace("/3", "/4") + "?xsiType=xnat:imageScanData").status_code == 400
    assert scan("PUT", SCAN.replace("E1", "E9") + "?xsiType=xnat:ctScanData").status_code == 404


def test_a_field_of_another_type_is_ignored(scan: Client) -> None:
    assert scan("PUT", f"{SCAN}?xnat:mrScanData/note=lost&xnat:ctScanData/condition=kept").status_code == 200
    fields = scan("GET", f"{SCAN}?format=json").json()["items"][0]["data_fields"]
    assert fields["condition"] == "kept"
    assert "note" not in fields


def test_values_come_back_with_entities(scan: Client) -> None:
    scan("PUT", f"{SCAN}?series_description=a%26b")
    assert scan.rows(SCAN[:-2])[0]["series_description"] == "a&amp;b"


def test_a_resource_is_200_then_409(scan: Client) -> None:
    assert scan("PUT", f"{SCAN}/resources/other").status_code == 200
    assert scan("PUT", f"{SCAN}/resources/other").status_code == 409
    assert scan("PUT", SCAN.replace("/3", "/8") + "/resources/DICOM").status_code == 404


def test_a_scan_is_found_by_id_or_type_if_that_is_one(scan: Client) -> None:
    by_type = SCAN.replace("/3", "/Head") + "/resources/DICOM/files"
    assert scan("PUT", f"{by_type}/a.dcm", b"x").status_code == 200
    scan("PUT", SCAN.replace("/3", "/4") + "?xsiType=xnat:ctScanData&type=Head")
    answer = scan("PUT", f"{by_type}/b.dcm", b"x")
    assert answer.status_code == 404
    assert "Unable to identify scan" in answer.text


def test_missing_parents_are_404_to_write_and_nothing_to_read(scan: Client) -> None:
    assert scan("PUT", FILES.replace("/3/", "/9/") + "/a", b"x").status_code == 404
    assert scan.rows(FILES.replace("/3/", "/9/")) == []
    assert scan.rows(FILES.replace("DICOM", "NONE")) == []
    assert scan("GET", FILES.replace("/P/", "/NOPE/")).status_code == 404


# -- rights --------------------------------------------------------------------------------------------------


def test_a_reader_is_told_403_but_a_file_put_is_200_and_lost(scan: Client, box: Sandbox) -> None:
    reader = Client(box, "reader", "reader")
    for url in ("/data/projects/P/subjects/S5", f"{SCAN}?type=x", f"{SCAN}/resources/new"):
        assert reader("PUT", url).status_code == 403
    answer = reader("PUT", f"{FILES}/a.dcm", b"bytes")
    assert (answer.status_code, answer.text) == (200, "")
    assert scan.names() == {}
    assert reader("DELETE", SCAN).status_code == 403


def test_a_project_one_may_not_read_is_not_there(box: Sandbox) -> None:
    nobody = Client(box, "nobody", "nobody")
    assert nobody.rows("/data/projects") == []
    assert nobody("GET", "/data/projects/P/experiments").status_code == 404
    assert nobody("PUT", "/data/projects/P/subjects/S1").status_code == 422


def test_a_member_adds_but_does_not_delete(scan: Client, box: Sandbox) -> None:
    member = Client(box, "lab", "lab")
    assert member("PUT", f"{FILES}/a.dcm", b"x").status_code == 200
    assert member("DELETE", "/data/projects/P/subjects/S1").status_code == 403
    assert "a.dcm" in scan.names()


# -- login ---------------------------------------------------------------------------------------------------


def test_wrong_passwords_are_401_with_a_page(box: Sandbox) -> None:
    answer = Client(box, "demo", "wrong")("GET", "/data/auth")
    assert answer.status_code == 401
    assert "<h3>" in answer.text
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


def test_twenty_wrong_passwords_lock_the_account(box: Sandbox) -> None:
    box.add_user("hasty", "right")
    box.set(max_failed_logins=3)
    for _ in range(3):
        Client(box, "hasty", "wrong")("GET", "/data/auth")
    assert Client(box, "hasty", "right")("GET", "/data/auth").status_code == 401


def test_a_cookie_keeps_the_login_and_tells_its_end(client: Client) -> None:
    answer = client("GET", "/data/auth")
    assert answer.text == "User 'demo' is logged in"
    moment, limit = answer.cookies["SESSION_EXPIRATION_TIME"].strip('"').split(",")
    assert int(limit) == 900_000
    assert abs(int(moment) / 1000 - time.time()) < 60
    client.session.auth = None
    assert client("GET", "/data/JSESSION").text == client.session.cookies["JSESSIONID"]
    assert client("DELETE", "/data/JSESSION").status_code == 200
    assert client("GET", "/data/auth").status_code == 401


def test_a_login_ends_without_requests_and_slides_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox runs in this process, so that the test can set its clock."""
    now = [1000.0]
    monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))

    async def statuses(*pauses: float) -> list[int]:
        chosen = options.SandboxOptions(str(tmp_path), settings={"session_timeout": 60})
        async with app.started(chosen) as (url, _), aiohttp.ClientSession() as client:
            login = {"Authorization": "Basic ZGVtbzpkZW1v"}
            async with client.get(f"{url}/data/auth", headers=login) as answer:
                found = [answer.status]
                cookies = {"JSESSIONID": answer.cookies["JSESSIONID"].value}
            for pause in pauses:
                now[0] += pause
                async with client.get(f"{url}/data/auth", cookies=cookies) as answer:
                    found.append(answer.status)
            return found

    assert asyncio.run(statuses(59.0, 59.0, 60.0, 61.0, 0.0)) == [200, 200, 200, 200, 401, 401]


def test_a_browser_is_sent_to_the_login_page(box: Sandbox) -> None:
    url = f"{box.url}/data/projects"
    browser = {"User-Agent": "Mozilla/5.0 (X11)"}
    answer = requests.get(url, headers=browser, allow_redirects=False, timeout=20)
    assert answer.status_code == 302
    assert answer.headers["Location"].endswith("/app/template/Login.vm")
    assert requests.get(url, headers=browser, timeout=20).status_code == 200
    assert requests.get(url, timeout=20).status_code == 401


def test_a_browser_needs_the_csrf_token(client: Client) -> None:
    browser = {"User-Agent": "Mozilla/5.0"}
    assert client("PUT", "/data/projects/P/subjects/S1", headers=browser).status_code == 500
    said = client("GET", "/data/JSESSION?CSRF=true").text
    token = said.split("XNAT_CSRF=")[1]
    url = f"/data/projects/P/subjects/S1?XNAT_CSRF={token}"
    assert client("PUT", url, headers=browser).status_code == 201


def test_alias_tokens_log_in_until_they_expire_or_are_invalidated(box: Sandbox, client: Client) -> None:
    token = client("GET", "/data/services/tokens/issue").json()
    assert token["xdatUserId"] == "demo"
    assert token["estimatedExpirationTime"] / 1000 - time.time() > 170_000
    alias = Client(box, token["alias"], token["secret"])
    assert alias("GET", "/data/auth").text == "User 'demo' is logged in"
    secret = f"{token['alias']}/{token['secret']}"
    assert client("GET", f"/data/services/tokens/validate/{secret}").json() == {"valid": "demo"}
    client("GET", f"/data/services/tokens/invalidate/{token['alias']}")
    assert Client(box, token["alias"], token["secret"])("GET", "/data/auth").status_code == 401
    late = client("GET", "/data/services/tokens/issue").json()
    box.expire_tokens()
    answer = Client(box, late["alias"], late["secret"])("GET", "/data/auth")
    assert answer.status_code == 403
    assert "expired" in answer.text


def test_build_info_is_open_and_version_does_not_exist(box: Sandbox, client: Client) -> None:
    answer = requests.get(f"{box.url}/xapi/siteConfig/buildInfo", timeout=20)
    assert answer.json()["version"] == "1.8.11"
    assert client("GET", "/data/version").status_code == 404
    assert requests.get(f"{box.url}/xapi/siteConfig/checksums", timeout=20).status_code == 401
    assert client("GET", "/xapi/siteConfig/checksums").json() is True
    assert client("GET", "/xapi/siteConfig/requireLogin").status_code == 403
    assert client("GET", "/xapi/siteConfig/nonsense").status_code == 404
    assert client("GET", "/xapi/users/username").text == "demo"


# -- tables --------------------------------------------------------------------------------------------------


def test_tables_have_text_cells_and_the_columns_asked_for(scan: Client) -> None:
    path = "/data/projects/P/experiments?format=json&columns=ID,label,xnat:imageSessionData/UID,nonsense"
    result = scan("GET", path).json()["ResultSet"]
    assert result["totalRecords"] == "1"
    row = result["Result"][0]
    assert row["label"] == "E1"
    assert row["xnat:imagesessiondata/uid"] == ""
    assert row["nonsense"] == ""
    assert row["URI"] == f"/data/experiments/{row['ID']}"


def test_tables_come_as_csv_and_are_filtered(scan: Client) -> None:
    text = scan("GET", "/data/projects/P/subjects?format=csv&columns=ID,label").text
    assert text.splitlines()[0] == '"ID","label","URI"'
    assert scan.rows("/data/projects/P/experiments?label=E%25")
    assert scan.rows("/data/projects/P/experiments?label=X*") == []
    assert scan.rows("/data/projects/P/experiments?xsiType=xnat:mrSessionData") == []
    limited = scan("GET", "/data/projects/P/experiments?limit=1").json()["ResultSet"]
    assert "totalRecords" not in limited


def test_resources_and_catalog_are_shown(scan: Client, box: Sandbox) -> None:
    scan("PUT", f"{FILES}/sub/a.dcm", b"abc")
    row = scan.rows(f"{SCAN}/resources")[0]
    assert (row["label"], row["file_count"], row["file_size"]) == ("DICOM", "1", "3")
    assert "ID" not in row
    shown = scan("GET", f"{SCAN}/resources/DICOM").text
    assert shown.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<cat:Catalog')
    box.flush()
    on_disk = box.archive / "P/arc001/E1/SCANS/3/DICOM/DICOM_catalog.xml"
    assert on_disk.read_text() == shown
    assert md5(b"abc") in shown


# -- files ---------------------------------------------------------------------------------------------------


def test_a_file_is_stored_listed_and_read_back(scan: Client, box: Sandbox) -> None:
    answer = scan("PUT", f"{FILES}/sub/a.dcm?format=DICOM&content=RAW", b"some bytes")
    assert (answer.status_code, answer.text) == (200, "")
    row = scan.rows(FILES)[0]
    assert (row["Name"], row["Size"], row["digest"]) == ("a.dcm", "10", md5(b"some bytes"))
    assert row["URI"].endswith(f"/resources/{row['cat_ID']}/files/sub/a.dcm")
    assert row["collection"] == "DICOM"
    back = scan("GET", row["URI"])
    assert back.content == b"some bytes"
    assert scan("HEAD", row["URI"]).headers["Content-Length"] == "10"
    assert (box.archive / "P/arc001/E1/SCANS/3/DICOM/sub/a.dcm").read_bytes() == b"some bytes"


def test_an_existing_file_is_kept_and_called_a_duplicate_with_200(scan: Client) -> None:
    scan("PUT", f"{FILES}/a.dcm", b"old")
    answer = scan("PUT", f"{FILES}/a.dcm", b"new")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert json.loads(answer.text) == {"duplicates": ["a.dcm"]}
    assert scan.names() == {"a.dcm": md5(b"old")}
    assert scan("PUT", f"{FILES}/a.dcm?overwrite=true", b"new").text == ""
    assert scan.names() == {"a.dcm": md5(b"new")}


def test_booleans_are_true_unless_false_or_0(scan: Client) -> None:
    scan("PUT", f"{FILES}/a.dcm", b"old")
    for word in ("false", "0", "FALSE"):
        assert "duplicates" in scan("PUT", f"{FILES}/a.dcm?overwrite={word}", b"new").text
    assert scan("PUT", f"{FILES}/a.dcm?overwrite=no", b"new").text == ""


def test_empty_and_chunked_raw_bodies_are_refused_but_not_in_a_form(scan: Client) -> None:
    assert scan("PUT", f"{FILES}/a.dcm", b"", headers=OCTETS).status_code == 500
    assert scan("PUT", f"{FILES}/a.dcm", iter([b"x", b"y"])).status_code == 500
    assert scan.names() == {}
    form = {"file": ("empty.dcm", b"", "application/octet-stream")}
    assert scan("PUT", f"{FILES}/empty.dcm", files=form).status_code == 200
    assert scan.names() == {"empty.dcm": md5(b"")}


def test_the_content_type_decides_what_a_body_is(scan: Client) -> None:
    def put(kind: str, more: str = "") -> int:
        headers = {"Content-Type": kind} if kind else {}
        return scan("PUT", f"{FILES}/x?overwrite=true{more}", b"x", headers=headers).status_code

    assert put("application/dicom") == 200
    assert put("application/strange") == 400
    assert put("") == 400
    assert put("application/strange", "&inbody=true") == 200
    assert put("multipart/form-data; boundary=b", "&inbody=true") == 406
    assert put("application/x-www-form-urlencoded") == 500


def test_several_parts_of_a_form_are_several_files(scan: Client) -> None:
    parts = [("a", ("one.dcm", b"1\r\n--x\r\n")), ("b", ("dir/two.dcm", b"22"))]
    assert scan("POST", FILES, files=parts).status_code == 200
    assert scan.names() == {"one.dcm": md5(b"1\r\n--x\r\n"), "two.dcm": md5(b"22")}


def test_names_are_decoded_only_where_a_blank_or_plus_is_escaped(scan: Client) -> None:
    scan("PUT", f"{FILES}/a%23b.dcm", b"x")
    scan("PUT", f"{FILES}/c%20d%23.dcm", b"x")
    assert sorted(scan.names()) == ["a%23b.dcm", "c d#.dcm"]


def test_paths_out_of_the_resource_are_refused(scan: Client, box: Sandbox) -> None:
    place = urlsplit(box.url)
    body = b"PUT %s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ZGVtbzpkZW1v\r\nConnection: close\r\n"
    body += b"Content-Type: application/octet-stream\r\nContent-Length: 1\r\n\r\nx"
    with socket.create_connection((place.hostname or "", place.port or 0)) as line:
        line.sendall(body % f"{FILES}/../../../../up.dcm".encode())
        answer = line.makefile("rb").readline()
    assert b" 400 " in answer
    assert scan("PUT", f"{FILES}/DICOM_catalog.xml", b"x").status_code == 400
    archive = tar_of({"../../evil.dcm": b"x"})
    assert scan("PUT", f"{FILES}/a.tar?extract=true", archive).status_code == 400
    assert not list(box.archive.rglob("evil.dcm"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("up.zip", zip_of({"a.dcm": b"A" * 9000, "sub/b.dcm": b"B", "empty": b""})),
        ("up.tar", tar_of({"a.dcm": b"A" * 9000, "./sub/b.dcm": b"B", "empty": b""})),
        ("up.tgz", tar_of({"a.dcm": b"A" * 9000, "sub/b.dcm": b"B", "empty": b""}, "w:gz")),
        ("up.tar.gz", tar_of({"a.dcm": b"A" * 9000, "sub/b.dcm": b"B", "empty": b""}, "w:gz")),
    ],
)
def test_archives_are_extracted_into_the_root_of_the_resource(scan: Client, name: str, data: bytes) -> None:
    assert scan("PUT", f"{FILES}/ignored/{name}?extract=true", data).status_code == 200
    paths = {row["URI"].split("/files/")[1]: row["digest"] for row in scan.rows(FILES)}
    assert paths == {"a.dcm": md5(b"A" * 9000), "sub/b.dcm": md5(b"B"), "empty": md5(b"")}


def test_an_extracted_archive_skips_and_names_what_is_there(scan: Client) -> None:
    scan("PUT", f"{FILES}/a.dcm", b"old")
    archive = tar_of({"a.dcm": b"new", "b.dcm": b"b"})
    answer = scan("PUT", f"{FILES}/up.tar?extract=true", archive)
    assert answer.json() == {"duplicates": ["a.dcm"]}
    assert scan.names() == {"a.dcm": md5(b"old"), "b.dcm": md5(b"b")}
    assert scan("PUT", f"{FILES}/up.tar?extract=true&overwrite=true", archive).text == ""
    assert scan.names() == {"a.dcm": md5(b"new"), "b.dcm": md5(b"b")}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_survive_a_tar(scan: Client, kind: int) -> None:
    long = "d" * 90 + "/" + "f" * 120 + "-é.dcm"
    assert scan("PUT", f"{FILES}/up.tar?extract=true", tar_of({long: b"x"}, kind=kind)).status_code == 200
    assert scan.rows(FILES)[0]["URI"].endswith(long)


def test_a_gz_is_one_file_and_other_names_are_stored_as_they_are(scan: Client) -> None:
    scan("PUT", f"{FILES}/a.dcm.gz?extract=true", gzip.compress(b"plain"))
    scan("PUT", f"{FILES}/a.TAR?extract=true", tar_of({"inside": b"x"}))
    assert scan.names()["a.dcm"] == md5(b"plain")
    assert "a.TAR" in scan.names()


def test_a_damaged_archive_is_500(scan: Client) -> None:
    archive = tar_of({"a.dcm": b"x" * 5000})
    assert scan("PUT", f"{FILES}/up.tar?extract=true", b"nonsense" * 200).status_code == 500
    assert scan("PUT", f"{FILES}/up.tar?extract=true", archive[:3000]).status_code == 500
    assert scan("PUT", f"{FILES}/up.zip?extract=true", b"PK nonsense").status_code == 500
    assert scan.names() == {}


def test_delete_matches_by_prefix(scan: Client, box: Sandbox) -> None:
    for name in ("IM1", "IM10", "IM1.dcm", "IM2"):
        scan("PUT", f"{FILES}/{name}", b"x")
    assert scan("DELETE", f"{FILES}/IM1").status_code == 200
    assert list(scan.names()) == ["IM2"]
    assert scan("DELETE", f"{FILES}/IM9").status_code == 404
    assert scan("DELETE", f"{FILES}/").status_code == 200
    assert scan.names() == {}
    assert not (box.archive / "P/arc001/E1/SCANS/3/DICOM/IM2").exists()


def test_two_writers_in_one_resource_cost_one_of_them_a_500_and_leave_its_bytes(
    scan: Client, box: Sandbox
) -> None:
    place = urlsplit(box.url)
    with socket.create_connection((place.hostname or "", place.port or 0)) as line:
        line.sendall(head_of(f"{FILES}/slow.dcm", 1000) + b"s" * 500)
        assert eventually(lambda: (box.archive / "P/arc001/E1/SCANS/3/DICOM/slow.dcm").exists())
        assert scan("PUT", f"{FILES}/quick.dcm", b"q").status_code == 200
        line.sendall(b"s" * 500)
        assert b" 500 " in line.makefile("rb").readline()
    assert list(scan.names()) == ["quick.dcm"]
    again = scan("PUT", f"{FILES}/slow.dcm", b"s" * 10)
    assert json.loads(again.text) == {"duplicates": ["slow.dcm"]}
    assert scan("PUT", f"{FILES}/slow.dcm?overwrite=true", b"s" * 10).text == ""
    assert scan.names()["slow.dcm"] == md5(b"s" * 10)


def test_a_connection_that_breaks_leaves_a_truncated_file(scan: Client, box: Sandbox) -> None:
    send_part(box, head_of(f"{FILES}/cut.dcm", 1000), b"x" * 400)
    left = box.archive / "P/arc001/E1/SCANS/3/DICOM/cut.dcm"
    assert eventually(lambda: left.exists() and left.stat().st_size == 400)
    assert scan.names() == {}
    assert "duplicates" in scan("PUT", f"{FILES}/cut.dcm", b"x" * 1000).text


@pytest.mark.parametrize("name", ["up.tar", "up.zip"])
def test_an_archive_that_breaks_off_leaves_members_without_catalog(
    scan: Client, box: Sandbox, name: str
) -> None:
    files = {"a.dcm": b"a" * 5000, "b.dcm": b"b" * 50_000}
    archive = tar_of(files) if name.endswith("tar") else zip_of(files, zipfile.ZIP_STORED)
    send_part(box, head_of(f"{FILES}/{name}?extract=true", len(archive)), archive[:20_000])
    folder = box.archive / "P/arc001/E1/SCANS/3/DICOM"
    assert eventually(lambda: (folder / "b.dcm").exists() and 0 < (folder / "b.dcm").stat().st_size < 50_000)
    assert (folder / "a.dcm").read_bytes() == files["a.dcm"]
    assert scan.names() == {}


def test_without_checksums_digests_are_empty_until_the_next_write(scan: Client, box: Sandbox) -> None:
    box.set(checksums=False)
    scan("PUT", f"{FILES}/a.dcm", b"a")
    assert scan.names() == {"a.dcm": ""}
    box.set(checksums=True)
    assert scan.names() == {"a.dcm": ""}
    scan("PUT", f"{FILES}/b.dcm", b"b")
    assert scan.names() == {"a.dcm": md5(b"a"), "b.dcm": md5(b"b")}


def test_deleting_a_session_leaves_its_files_unless_told(scan: Client, box: Sandbox) -> None:
    scan("PUT", f"{FILES}/a.dcm", b"a")
    scan("DELETE", "/data/projects/P/subjects/S1/experiments/E1")
    assert (box.archive / "P/arc001/E1/SCANS/3/DICOM/a.dcm").exists()
    assert scan.rows("/data/projects/P/experiments") == []


def test_a_renamed_session_takes_its_folder_along(scan: Client, box: Sandbox) -> None:
    scan("PUT", f"{FILES}/a.dcm", b"a")
    answer = scan("PUT", "/data/projects/P/subjects/S1/experiments/E1?label=E2")
    assert (answer.status_code, answer.text) == (200, "")
    assert (box.archive / "P/arc001/E2/SCANS/3/DICOM/a.dcm").read_bytes() == b"a"
    assert scan("GET", FILES.replace("E1", "E2") + "/a.dcm").content == b"a"


# -- misbehaviour --------------------------------------------------------------------------------------------


def test_a_fault_strikes_the_nth_matching_request(scan: Client, box: Sandbox) -> None:
    box.fault("status", method="PUT", path="/files/", first=2, times=1, status=503, retry_after="7")
    codes = [scan("PUT", f"{FILES}/{n}", b"x") for n in range(3)]
    assert [one.status_code for one in codes] == [200, 503, 200]
    assert codes[1].headers["Retry-After"] == "7"
    assert box.faults()[0]["struck"] == 1
    assert sorted(scan.names()) == ["0", "2"]


def test_a_fault_strikes_by_chance_and_by_count() -> None:
    chance = faults.make({"do": "status", "probability": 0.3, "seed": 1})
    struck = sum(chance.strikes("GET", "/") for _ in range(1000))
    assert 230 < struck < 370
    every = faults.make({"do": "kill-session", "every": 50})
    assert [n for n in range(1, 151) if every.strikes("GET", "/")] == [1, 51, 101]


def test_a_fault_is_written_as_words() -> None:
    assert faults.parse("status method=PUT status=500 path='/a b/'") == {
        "do": "status",
        "method": "PUT",
        "status": "500",
        "path": "/a b/",
    }
    for wrong in ("explode", "status nonsense=1", "status status=many", "status word", "", "drop when=later"):
        with pytest.raises(ValueError, match=r"."):
            faults.parse(wrong)


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_connection_drops_on_order(scan: Client, box: Sandbox, when: str) -> None:
    box.fault("drop", path="/files/", method="PUT", when=when, times=1)
    with pytest.raises(requests.exceptions.ConnectionError):
        scan("PUT", f"{FILES}/a.dcm", b"x" * 1000)
    left = box.archive / "P/arc001/E1/SCANS/3/DICOM/a.dcm"
    assert (left.stat().st_size if left.exists() else 0) == {"before": 0, "during": 500, "after": 1000}[when]
    assert list(scan.names()) == (["a.dcm"] if when == "after" else [])
    assert box.requests(method="PUT", path="/files/")[-1]["status"] == 0


def test_a_request_hangs_on_order(scan: Client, box: Sandbox) -> None:
    box.fault("hang", path="/files", method="GET", seconds=30)
    with pytest.raises(requests.exceptions.ReadTimeout):
        scan("GET", FILES, timeout=0.3)


def test_storage_lies_on_order(scan: Client, box: Sandbox) -> None:
    for number, kind in enumerate(
        ("lose", "corrupt", "silent-corrupt", "lying-digest", "disk-full", "race", "html")
    ):
        box.fault(kind, path=f"/files/{number}", times=1)
    answers = [scan("PUT", f"{FILES}/{number}", b"data") for number in range(7)]
    assert [one.status_code for one in answers] == [200, 200, 200, 200, 500, 500, 200]
    assert "No space left" in answers[4].text
    assert "modified" in answers[5].text
    names, folder = scan.names(), box.archive / "P/arc001/E1/SCANS/3/DICOM"
    assert sorted(names) == ["1", "2", "3"]
    assert names["1"] == md5((folder / "1").read_bytes()) != md5(b"data")
    assert names["2"] == md5(b"data") != md5((folder / "2").read_bytes())
    assert names["3"] != md5(b"data") == md5((folder / "3").read_bytes())
    assert (folder / "4").read_bytes() == b"da"
    assert (folder / "5").read_bytes() == b"data"


def test_listings_are_truncated_on_order(scan: Client, box: Sandbox) -> None:
    for name in "abc":
        scan("PUT", f"{FILES}/{name}", b"x")
    box.fault("truncate", path="/files", keep=2, times=1)
    assert list(scan.names()) == ["a", "b"]
    box.fault("cut-listing", path="/files", times=1)
    with pytest.raises(ValueError, match=r"."):
        scan("GET", FILES).json()
    assert len(scan.names()) == 3


def test_logins_are_killed_in_mid_batch(scan: Client, box: Sandbox) -> None:
    scan("GET", "/data/auth")
    scan.session.auth = None
    box.fault("kill-session", path="/files/", first=2, times=1)
    assert [scan("PUT", f"{FILES}/{n}", b"x").status_code for n in range(3)] == [200, 401, 401]
    fresh = Client(box)
    fresh("GET", "/data/auth")
    fresh.session.auth = None
    box.kill_sessions()
    assert fresh("GET", "/data/auth").status_code == 401


def test_a_proxy_refuses_large_bodies_and_archives(scan: Client, box: Sandbox) -> None:
    box.set(body_limit=1000, refuse_archives=403)
    large = scan("PUT", f"{FILES}/a.dcm", b"x" * 1001)
    assert large.status_code == 413
    assert "413 Request Entity Too Large" in large.text
    assert scan("PUT", f"{FILES}/a.dcm", b"x" * 1000).status_code == 200
    assert scan("PUT", f"{FILES}/a.tar?extract=true", b"x").status_code == 403


def test_requests_are_counted(client: Client, box: Sandbox) -> None:
    client("PUT", "/data/projects/P/subjects/S1?gender=male")
    seen = box.requests()[-1]
    assert (seen["method"], seen["status"], seen["user"]) == ("PUT", 201, "demo")
    assert seen["path"] == "/data/projects/P/subjects/S1?gender=male"
    assert box.count() == 1
    assert box.count(method="GET") == 0
    client("GET", "/data/auth")
    assert box.count(since=seen["number"]) == 1


def test_bandwidth_is_shared_by_all_connections(scan: Client, box: Sandbox) -> None:
    box.set(bandwidth=1_000_000)
    begun = time.monotonic()
    urls = [FILES.replace("DICOM", f"R{n}") + "/x" for n in range(3)]
    threads = [threading.Thread(target=Client(box), args=("PUT", url, b"x" * 300_000)) for url in urls]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert time.monotonic() - begun > 0.6  # 0.9 s at that rate; unthrottled a few hundredths


# -- life ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_sandbox_goes_on_with_what_it_acknowledged(tmp_path: Path) -> None:
    with Sandbox(tmp_path, projects=["P"]) as box:
        client = Client(box)
        client("PUT", "/data/projects/P/subjects/S1/experiments/E1?xsiType=xnat:ctSessionData")
        client("PUT", f"{SCAN}?xsiType=xnat:ctScanData&type=Head")
        client("PUT", f"{FILES}/a.dcm", b"one")
        client("PUT", f"{FILES}/gone.dcm", b"two")
        client("DELETE", f"{FILES}/gone.dcm")
        token = client("GET", "/data/services/tokens/issue").json()
        before, url = box.state(), box.url
        box.kill()
        with (tmp_path / "state.jsonl").open("ab") as torn:
            torn.write(b'["subject", "XNAT_S0')
        box.start()
        assert box.url == url
        assert box.state() == before
        fresh = Client(box, token["alias"], token["secret"])
        assert fresh.names() == {"a.dcm": md5(b"one")}
        assert fresh("PUT", "/data/projects/P/subjects/S2").text == "XNAT_S00002"


def test_state_can_be_laid_down(tmp_path: Path) -> None:
    with Sandbox(tmp_path, context="/xnat", projects=[]) as box:
        box.put_state(
            {"X": {"S1": {"E1": {"UID": "1.2.3", "scans": {"5": {"type": "T", "UID": "1.2.3.5"}}}}}}
        )
        client = Client(box)
        row = client.rows("/data/projects/X/experiments?columns=label,UID")[0]
        assert (row["label"], row["UID"]) == ("E1", "1.2.3")
        assert client.rows("/data/projects/X/subjects/S1/experiments/E1/scans")[0]["type"] == "T"
        assert requests.get(box.url[: -len("/xnat")] + "/data/auth", timeout=20).status_code == 404


@pytest.mark.slow
def test_a_sandbox_speaks_tls(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    with Sandbox(tmp_path / "x", cert=str(cert), key=str(key)) as box:
        assert box.url.startswith("https://127.0.0.1:")
        answer = requests.get(f"{box.url}/data/auth", auth=("demo", "demo"), verify=str(cert), timeout=20)
        assert answer.status_code == 200


def self_signed(folder: Path) -> tuple[Path, Path]:
    import subprocess

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_a_sandbox_ends_with_its_parent(tmp_path: Path) -> None:
    running = process.start(options.SandboxOptions(str(tmp_path)))
    assert running.process.stdin is not None
    running.process.stdin.close()
    assert running.process.wait(10) == 0


def test_a_sandbox_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(errors.XnatUploaderError, match="did not start"):
        process.start(options.SandboxOptions(str(tmp_path), settings={"nonsense": 1}))


def test_users_and_switches_are_checked() -> None:
    made = options.parse_user("anna:s:reader,owner@P1")
    assert (made.in_project("P1"), made.in_project("P2")) == ("owner", "reader")
    for wrong in ("anna", "anna:s:king", ":x"):
        with pytest.raises(ValueError, match=r"."):
            options.parse_user(wrong)
    with pytest.raises(ValueError, match="needs a number"):
        options.Settings().change({"latency": "slow"})


# -- manners -------------------------------------------------------------------------------------------------


def test_a_client_that_waits_for_100_is_told_when_its_body_is_wanted(scan: Client, box: Sandbox) -> None:
    place = urlsplit(box.url)

    def begin(path: str) -> tuple[bytes, socket.socket]:
        line = socket.create_connection((place.hostname or "", place.port or 0), timeout=10)
        line.sendall(head_of(path, 4).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        return line.recv(100), line

    said, line = begin(f"{FILES}/a.dcm")
    with line:
        assert said.startswith(b"HTTP/1.1 100 ")
        line.sendall(b"body")
        assert b" 200 " in line.recv(1000)
    assert scan.names() == {"a.dcm": md5(b"body")}
    said, line = begin(FILES.replace("/3/", "/9/") + "/a.dcm")
    with line:
        assert b" 404 " in said


def test_tomcat_breaks_off_large_bodies_it_refuses_and_a_proxy_reads_on(scan: Client, box: Sandbox) -> None:
    missing = FILES.replace("/3/", "/9/") + "/a.dcm"
    large = b"x" * 20_000_000
    try:
        assert scan("PUT", missing, large).status_code == 404
    except requests.exceptions.ConnectionError:
        pass  # which of the two depends on when the client looks
    assert box.requests(method="PUT", path="scans/9")[-1]["status"] == 404
    assert box.requests(method="PUT", path="scans/9")[-1]["received"] == 0
    box.set(body_limit=1_000_000)
    assert scan("PUT", f"{FILES}/a.dcm", large).status_code == 413
    box.set(body_limit=0)
    box.fault("status", path="/files/", status=503, times=1)
    assert scan("PUT", f"{FILES}/a.dcm", large).status_code == 503


def test_other_credentials_beat_the_cookie(box: Sandbox, client: Client) -> None:
    client("GET", "/data/auth")
    client.session.auth = ("lab", "lab")
    assert client("GET", "/data/auth").text == "User 'lab' is logged in"
    client.session.auth = ("lab", "no longer looked at")
    assert client("GET", "/data/auth").status_code == 200


def test_an_administrator_ends_somebodys_logins(box: Sandbox, client: Client) -> None:
    client("GET", "/data/auth")
    client.session.auth = None
    assert Client(box, "lab", "lab")("DELETE", "/xapi/users/active/demo").status_code == 403
    assert Client(box, "boss", "boss")("DELETE", "/xapi/users/active/demo").json()
    assert client("GET", "/data/auth").status_code == 401


def test_a_pattern_that_cannot_be_read_is_refused(box: Sandbox) -> None:
    answer = requests.get(f"{box.url}/sandbox/requests?path=(", timeout=20)
    assert answer.status_code == 400


@pytest.mark.slow
def test_web_pages_cannot_steer_the_sandbox(box: Sandbox) -> None:
    answer = requests.post(f"{box.url}/sandbox/kill-sessions", headers={"Origin": "http://x"}, timeout=20)
    assert answer.status_code == 403


def test_fields_without_a_type_or_at_the_flat_address_are_200_and_not_stored(client: Client) -> None:
    address = "/data/projects/P/subjects/S1/experiments/E1"
    number = client("PUT", f"{address}?xsiType=xnat:ctSessionData&xnat:ctSessionData/note=first").text
    full = "xsiType=xnat:ctSessionData&xnat:ctSessionData/note=second"
    for url in (f"{address}?note=second", f"/data/experiments/{number}?{full}"):
        assert client("PUT", url).status_code == 200
        assert client.rows("/data/projects/P/experiments?columns=note")[0]["note"] == "first"
    assert client("PUT", f"{address}?{full}").status_code == 200
    assert client.rows("/data/projects/P/experiments?columns=note")[0]["note"] == "second"
