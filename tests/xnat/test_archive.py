"""The project's hierarchy, against the sandbox: what is there is read, what is not is made, and nothing else."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace

import pytest

from tests.helpers.builders import md5
from tests.helpers.http_client import Client
from tests.helpers.logins import Bytes, connect
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.scripted_server import Reply, Scripted, Xnat
from xnatuploader import errors, xnat
from xnatuploader.records import ScanAddress
from xnatuploader.xnat import credentials, messages

USERS = ["demo:demo", "reader:pw:reader", "boss:pw:admin", "nobody:pw:none"]


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sandbox") / "x"
    with Sandbox(folder, projects=["P", "Q"], users=USERS) as running:
        yield running


@pytest.fixture(scope="module")
def site(box):
    with log_in(box, "demo", "demo") as found:
        yield found


@pytest.fixture(autouse=True)
def no_faults_left(box):
    yield
    box.clear_faults()
    box.set(checksums=True)


def log_in(box, user, password="pw"):
    return xnat.connect(
        box.url, credentials.Credentials(user, password, "XNAT_USER and XNAT_PASS"), environ={}
    )


@pytest.fixture
def address(site, request):
    """A scan with a resource of its own."""
    label = "E" + hashlib.md5(request.node.name.encode()).hexdigest()[:8]
    site.create_session("P", "S1", label, "xnat:ctSessionData", {"date": "2020-03-12", "UID": f"1.{label}"})
    address = ScanAddress("P", "S1", label, "3")
    site.create_scan(address, "xnat:ctScanData", {"type": "Head"})
    site.create_resource(address, "DICOM")
    return address


def files(site, address):
    """What XNAT lists in the resource DICOM."""
    return site.scan_files(address).get("DICOM", {})


def tarred(**files):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return lambda: Bytes(whole.getvalue())


# --- the project ---


def test_a_project_opens_for_those_who_may_add_to_it(box, site):
    assert site.open_project("P") == "P"
    with log_in(box, "boss") as boss:
        assert boss.open_project("P") == "P"


@pytest.mark.parametrize(("user", "words"), [("reader", "make it a member"), ("nobody", "no project P")])
def test_those_who_may_not_are_told(box, user, words):
    with log_in(box, user) as found, pytest.raises(errors.ProjectRefused, match=words):
        found.open_project("P")


def test_a_missing_project_is_named(site):
    with pytest.raises(errors.ProjectRefused, match="no project NOPE"):
        site.open_project("NOPE")


def test_a_project_whose_record_comes_incomplete_ends_with_a_sentence():
    odd = Xnat(lambda _: Reply(200, '{"items": []}', {"Content-Type": "application/json"}))
    with (
        Scripted(odd) as site,
        connect(site.url) as found,
        pytest.raises(errors.ServerUnreachable, match="Project P could not be opened"),
    ):
        found.open_project("P")


def test_a_project_that_only_an_administrator_may_write_is_left_to_the_first_record():
    def answer(seen):
        if "permissions=edit" in seen.path:
            return Reply(200, '{"ResultSet":{"Result":[]}}')
        if seen.path.endswith("/roles"):
            return Reply(200, '["Administrator"]')
        return Reply(200, '{"items":[{"data_fields":{"ID":"P"}}]}')

    with Scripted(Xnat(answer)) as scripted, connect(scripted.url) as found:
        assert found.open_project("alias") == "P"


def test_a_user_without_any_role_is_refused():
    def answer(seen):
        if "permissions=edit" in seen.path:
            return Reply(200, '{"ResultSet":{"Result":[{"id": "OTHER"}]}}')
        if "/xapi/users/" in seen.path:
            return Reply(200, "[]")
        return Reply(200, '{"items":[{"data_fields":{"ID":"P"}}]}')

    with (
        Scripted(Xnat(answer)) as scripted,
        connect(scripted.url) as found,
        pytest.raises(errors.ProjectRefused, match="make it a member"),
    ):
        found.open_project("P")


@pytest.mark.parametrize(("on", "answer"), [(True, True), (False, False)])
def test_the_checksum_setting_is_read(box, site, on, answer):
    box.set(checksums=on)
    assert site.checksums() is answer


def test_a_checksum_setting_that_is_kept_secret_is_unknown(box, site):
    box.fault("status", path="siteConfig/checksums", status=403)
    assert site.checksums() is None


SITE_SWITCHES = ("/xapi/siteConfig/enableSitewideAnonymizationScript", "/xapi/anonymize/site/enabled")
PROJECT_SWITCHES = ("/xapi/anonymize/projects/P/enabled", "/data/config/edit/projects/P/image/dicom/status")


@pytest.mark.parametrize("project", ["", "P"])
@pytest.mark.parametrize(
    "silent", [None, Reply(204), Reply(403), Reply(404), Reply(500), Reply(200, "<html></html>")]
)
@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (Reply(200, "true"), True),
        (Reply(200, "false"), False),
        (Reply(200, '"true"'), True),
        (Reply(200, '{"ResultSet":{"Result":[{"project":"P","edit":"true","id":"7"}]}}'), True),
        (Reply(200, '{"ResultSet":{"Result":[{"project":"P","edit":"false","id":"7"}]}}'), False),
        (Reply(200, '{"ResultSet":{"Result":[]}}'), False),  # DicomEdit has no row for what has no script
        (Reply(200, '{"ResultSet":{"Result":[{"other":"true"}]}}'), None),
        (Reply(200, "perhaps"), None),
        (Reply(204), None),
        (Reply(403), None),
        (Reply(500), None),
    ],
)
def test_an_anonymisation_switch_is_read_at_either_address(project, silent, reply, state):
    """The first address answers, or says nothing (`silent`) and the second does."""
    first, second = PROJECT_SWITCHES if project else SITE_SWITCHES
    answers = {first: reply, second: Reply(404)} if silent is None else {first: silent, second: reply}
    with (
        Scripted(Xnat(lambda seen: answers[seen.path.partition("?")[0]])) as scripted,
        connect(scripted.url) as found,
    ):
        assert found.script_enabled(project) is state
    asked = [one.path for one in scripted.seen if one.path.startswith((first, second))]
    assert second not in asked or silent is not None or state is None


# --- records ---


def test_records_are_made_with_their_fields_and_found_again(box, site):
    subject = site.create_subject("P", "S2")
    assert site.create_subject("P", "S2") == subject
    fields = {
        "date": "2020-03-12",
        "UID": "1.2.3",
        "modality": "CT",
        "scanner/manufacturer": "Maker & Sons",
        "scanner/model": "",
    }
    session = site.create_session("P", "S2", "S2_CT1", "xnat:ctSessionData", fields)
    scan = {"type": "Head #1 100%", "UID": "1.2.3.4", "series_description": "a+b ü" + "x" * 300}
    site.create_scan(ScanAddress("P", "S2", "S2_CT1", "5-CT1"), "xnat:ctScanData", scan)
    site.create_scan(ScanAddress("P", "S2", "S2_CT1", "5-CT1"), "xnat:ctScanData", scan)
    assert site.subjects("P")["S2"] == subject
    mine = next(one for one in site.sessions("P") if one.label == "S2_CT1")
    assert (mine.id, mine.subject_id, mine.subject_label) == (session, subject, "S2")
    assert (mine.xsi_type, mine.date) == ("xnat:ctSessionData", "2020-03-12")
    assert site.session_uid("P", mine) == "1.2.3"
    (found,) = site.scans(mine.id)
    assert (found.id, found.type, found.xsi_type, found.uid) == (
        "5-CT1",
        "Head #1 100%",
        "xnat:ctScanData",
        "1.2.3.4",
    )
    assert len(found.series_description) == 255
    assert site.link(session, "P").startswith(box.url + "/data/projects/P/experiments/" + session)


def test_each_list_is_one_request_inside_the_project(box, site):
    for ask in (site.subjects, site.sessions):
        begun = box.count()
        ask("P")
        assert box.count() == begun + 1
    assert not [
        one for one in box.requests() if one["path"].startswith(("/data/experiments?", "/data/subjects"))
    ]


def test_the_uids_of_many_sessions_are_one_request(box):
    with log_in(box, "demo", "demo") as fresh:
        for number in range(3):
            fresh.create_session("Q", "S", f"S_CT{number}", "xnat:ctSessionData", {"UID": f"1.{number}"})
        there = fresh.sessions("Q")
        begun = box.count()
        assert sorted(fresh.session_uid("Q", one) for one in there) == ["1.0", "1.1", "1.2"]
        assert box.count() == begun + 1


def test_a_session_without_a_uid_has_an_empty_one(site):
    made = site.create_session("P", "S1", "S1_NOUID", "xnat:mrSessionData", {})
    assert site.session_uid("P", xnat.RemoteSession(made, "S1_NOUID", "")) == ""


def test_a_label_xnat_cannot_hold_says_so(site):
    with pytest.raises(xnat.RequestFailed, match="only A-Z a-z 0-9"):
        site.create_subject("P", "a b")


def test_another_type_for_a_scan_is_a_conflict(site, address):
    with pytest.raises(xnat.RequestFailed, match="other modality") as caught:
        site.create_scan(address, "xnat:mrScanData", {})
    assert caught.value.kind == "conflict"


def test_a_scan_that_cannot_be_told_apart_is_a_kind_of_its_own(site, address):
    site.create_scan(replace(address, scan="4"), "xnat:ctScanData", {"type": "3"})
    with pytest.raises(xnat.RequestFailed) as caught:
        site.create_resource(address, "secondary")
    assert caught.value.kind == "duplicate-scan"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_change_the_address_never_leaves(site, name):
    with pytest.raises(xnat.RequestFailed):
        site.create_subject("P", name)
    with pytest.raises(xnat.RequestFailed):
        site.put_file(ScanAddress("P", "S1", "E", "3"), "DICOM", f"a/{name}/b", lambda: Bytes(b"x"), False)


# --- files ---


def test_an_archive_is_unpacked_and_listed(site, address):
    assert site.put_archive(address, "DICOM", tarred(a__dcm=b"one", b__dcm=b"two"), "part.tar", False) == ()
    assert files(site, address) == {
        "a.dcm": xnat.RemoteFile("a.dcm", 3, md5(b"one"), "DICOM", address.scan),
        "b.dcm": xnat.RemoteFile("b.dcm", 3, md5(b"two"), "DICOM", address.scan),
    }
    assert site.scan_files(address) == {"DICOM": files(site, address)}


def test_what_is_there_is_reported_and_replaced_only_when_asked(site, address):
    site.put_archive(address, "DICOM", tarred(a__dcm=b"one"), "part.tar", False)
    assert site.put_archive(address, "DICOM", tarred(a__dcm=b"new", b__dcm=b"two"), "part.tar", False) == (
        "a.dcm",
    )
    assert files(site, address)["a.dcm"].digest == md5(b"one")
    assert site.put_file(address, "DICOM", "a.dcm", lambda: Bytes(b"new"), False) == ("a.dcm",)
    assert site.put_archive(address, "DICOM", tarred(a__dcm=b"new"), "part.tar", True) == ()
    assert files(site, address)["a.dcm"].digest == md5(b"new")


@pytest.mark.parametrize("name", ["a.dcm", "empty.dcm", "sub/b.dcm", "c d#e%f+g.dcm", "ü.dcm", "a?b&c.dcm"])
def test_a_single_file_keeps_its_name(site, address, name):
    content = b"" if name.startswith("empty") else b"x" * 100_000
    assert site.put_file(address, "DICOM", name, lambda: Bytes(content), False) == ()
    assert files(site, address) == {
        name: xnat.RemoteFile(name, len(content), md5(content), "DICOM", address.scan)
    }


def test_a_site_without_checksums_lists_none(box, site, address):
    box.set(checksums=False)
    site.put_file(address, "DICOM", "a.dcm", lambda: Bytes(b"x"), False)
    assert files(site, address) == {"a.dcm": xnat.RemoteFile("a.dcm", 1, "", "DICOM", address.scan)}


def test_no_scan_and_no_resource_are_empty_lists(site, address):
    assert site.scan_files(address) == {}
    assert site.scan_files(replace(address, scan="99")) == {}


def test_files_of_a_scan_whose_type_is_the_id_are_not_mixed_in(site, address):
    other = replace(address, scan="4")
    site.create_scan(other, "xnat:ctScanData", {"type": "9"})
    site.create_resource(other, "DICOM")
    site.put_file(other, "DICOM", "a.dcm", lambda: Bytes(b"x"), False)
    assert site.scan_files(replace(address, scan="9")) == {}


def test_a_limit_names_it_and_the_proxy(box, site, address):
    box.set(body_limit=1000)
    try:
        with pytest.raises(xnat.RequestFailed, match="client_max_body_size") as caught:
            site.put_file(address, "DICOM", "a.dcm", lambda: Bytes(b"x" * 2000), False)
    finally:
        box.set(body_limit=0)
    assert caught.value.kind == "too-large"


def test_a_proxy_that_refuses_archives_is_a_kind_of_its_own(box, site, address):
    box.set(refuse_archives=415)
    try:
        with pytest.raises(xnat.RequestFailed) as caught:
            site.put_archive(address, "DICOM", tarred(a__dcm=b"one"), "part.tar", False)
    finally:
        box.set(refuse_archives=0)
    assert caught.value.kind == "archive-refused"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_connection_lost_around_the_body_costs_nothing(box, site, address, when):
    box.fault("drop", method="PUT", path="part.tar", times=1, when=when)
    content = b"z" * 3_000_000
    site.put_archive(address, "DICOM", tarred(a__dcm=content), "part.tar", False)
    assert files(site, address)["a.dcm"].digest == md5(content)


def test_a_catalog_race_is_repaired_by_the_second_attempt(box, site, address):
    box.fault("race", method="PUT", path="part.tar", times=1)
    site.put_archive(address, "DICOM", tarred(a__dcm=b"one"), "part.tar", False)
    assert files(site, address)["a.dcm"].digest == md5(b"one")


def test_half_a_listing_is_asked_for_again(box, site, address):
    site.put_archive(address, "DICOM", tarred(a__dcm=b"one", b__dcm=b"two"), "part.tar", False)
    box.fault("cut-listing", path="/files", times=1)
    assert len(files(site, address)) == 2


def test_a_session_killed_in_the_middle_is_renewed(box, site, address):
    box.fault("kill-session", method="PUT", path="part.tar", times=1)
    site.put_archive(address, "DICOM", tarred(a__dcm=b"x" * 5_000_000), "part.tar", False)
    assert list(files(site, address)) == ["a.dcm"]


def test_a_pull_that_gets_no_answer_is_not_repeated(box, site, address):
    begun = box.count("PUT", "pullDataFromHeaders")
    box.fault("status", method="PUT", path="pullDataFromHeaders", status=504)
    (session,) = [one.id for one in site.sessions(address.project) if one.label == address.session]
    with pytest.raises(xnat.RequestFailed, match="go on working"):
        site.pull_session(session)
    assert box.count("PUT", "pullDataFromHeaders") == begun + 1


def test_a_subject_without_a_label_goes_by_its_id():
    def answer(seen):
        return Reply(200, '{"ResultSet":{"Result":[{"ID": "XNAT_S00007", "label": ""}]}}')

    with Scripted(Xnat(answer)) as scripted, connect(scripted.url) as found:
        assert found.subjects("P") == {"XNAT_S00007": "XNAT_S00007"}


def test_a_version_that_does_not_come_keeps_no_file_waiting(site, monkeypatch):
    """What it would tell is found out from the first archive, too."""
    asked = []

    def request(one):
        asked.append(one)
        raise messages.RequestFailed(0, "No answer came.", "connection")

    monkeypatch.setattr(site._connection, "request", request)
    assert site.about() == ("", "")
    assert [one.timeout for one in asked] == [site._connection.timeouts.login]


def test_a_uid_that_a_script_wrote_as_none_is_none(box, site):
    path = "/data/projects/P/subjects/S1/experiments/E_None"
    session = "xsiType=xnat:ctSessionData&xnat:ctSessionData/UID=None"
    scan = "xsiType=xnat:ctScanData&xnat:ctScanData/UID=None"
    client = Client(box)
    assert client("PUT", f"{path}?{session}").status_code == 201
    assert client("PUT", f"{path}/scans/1?{scan}").status_code == 200
    (found,) = (one for one in site.sessions("P") if one.label == "E_None")
    assert [one.uid for one in site.scans(found.id)] == [""]
    assert site.session_uid("P", found) == ""
    assert found.id not in site.study_uids("P")


def test_a_refused_list_does_not_speak_of_writing(box, site):
    box.fault("status", method="GET", path="/data/projects/P/subjects", status=403)
    with pytest.raises(xnat.RequestFailed, match="XNAT refuses this to the account") as failed:
        site.subjects("P")
    assert failed.value.kind == "permission"
