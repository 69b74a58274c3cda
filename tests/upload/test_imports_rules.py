"""What an import may be asked, what its answers mean, and how the archive's list is compared with what was sent."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent import futures
from pathlib import Path
from unittest import mock

import pytest

from xnatuploader import errors, xnat
from xnatuploader.records import Row, SessionPlan
from xnatuploader.sandbox import dicomfacts
from xnatuploader.upload.files import SendContext
from xnatuploader.upload.imports import confirm, options
from xnatuploader.upload.imports.confirm import Seen as Found
from xnatuploader.upload.imports.confirm import Sent
from xnatuploader.upload.imports.options import ImportOptions
from xnatuploader.upload.imports.shared import ImportRun

# ---- records


def test_a_subject_of_two_sessions_is_made_once() -> None:
    """XNAT makes no record only where there is none: two requests at a time may make two."""
    server = mock.Mock(xnat.Server)
    server.create_subject.side_effect = lambda project, label: time.sleep(0.05) or "XNAT_S1"
    run = ImportRun(SendContext(server, "P", lambda row: Path(), lambda outcome: None), ImportOptions())
    with futures.ThreadPoolExecutor(2) as threads:
        assert set(threads.map(run.subject_id, ["0001", "0001"])) == {"XNAT_S1"}
    server.create_subject.assert_called_once_with("P", "0001")


# ---- destinations and options


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("archive", (True, "", "", "", "")),
        ("prearchive", (False, "", "", "", "")),
        ("/archive", (True, "", "", "", "")),
        ("/prearchive", (False, "", "", "", "")),
        ("/data/prearchive/projects/P", (False, "P", "", "", "")),
        ("/prearchive/projects/P/20200101_1", (False, "P", "", "", "20200101_1")),
        ("/prearchive/projects/P/20200101_1/S_CT", (False, "P", "", "S_CT", "20200101_1")),
        ("/archive/projects/P", (True, "P", "", "", "")),
        ("/archive/projects/P/subjects/S", (True, "P", "S", "", "")),
        ("/archive/projects/P/subjects/S/experiments/E/", (True, "P", "S", "E", "")),
    ],
)
def test_every_form_of_destination_is_read(text: str, wanted: tuple[object, ...]) -> None:
    made = options.parse_destination(text)
    assert (made.archive, made.project, made.subject, made.session, made.timestamp) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "/", "there", "archive/projects/P", "/archive/P", "/archive/projects", "/archive/projects/P/subjects",
     "/archive/projects/P/experiments/E", "/archive/subjects/S/projects/P", "/prearchive/P", "/prearchive/projects",
     "/prearchive/projects/P/1/2/3", "/archive/projects/P Q", "/archive/projects/P/subjects/S/experiments/E/scans/1"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(errors.UsageError, match="/prearchive/projects/PROJECT"):
        options.parse_destination(text)


def test_a_destination_keeps_other_sessions_out() -> None:
    session = SessionPlan("S1", "S1_CT1", "xnat:ctSessionData")
    for text, word in (
        ("/archive/projects/P/subjects/S2", "subject S2"),
        ("/archive/projects/P/subjects/S1/experiments/S1_CT2", "session S1_CT2"),
    ):
        assert word in options.parse_destination(text).refuses(session)
    assert (
        options.parse_destination("/archive/projects/P/subjects/S1/experiments/S1_CT1").refuses(session) == ""
    )


def test_headers_and_names_exclude_each_other() -> None:
    with pytest.raises(errors.UsageError, match="Give one of the two"):
        options.chosen("SI", "/archive/projects/P/subjects/S", ImportOptions(by_headers=True))


def test_delete_into_the_prearchive_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="--commit later"):
        options.chosen("DICOM-zip", "prearchive", ImportOptions(overwrite="delete"))


def test_without_a_handler_nothing_is_imported() -> None:
    assert options.chosen(None, None, ImportOptions()) is None
    assert options.chosen(None, None, ImportOptions(overwrite="append"), commit=True) is None


# ---- comparing


def sent(name: str, md5: str = "", size: int = 10, uid: str = "", scan: str = "2") -> Sent:
    row = Row(name, filename=name, resource="DICOM", sop_instance_uid=uid or f"uid {name}")
    return Sent(row, size, md5, scan)


def held(name: str, digest: str = "", size: int = 10, scan: str = "2") -> xnat.RemoteFile:
    return xnat.RemoteFile(name, size, digest, "DICOM", scan)


def none(places: Collection[tuple[str, str]]) -> Mapping[str, str]:
    return {}


def test_md5s_are_compared_whatever_the_names() -> None:
    found = confirm.compare(
        [sent("a", "1"), sent("b", "2")], [held("x", "1", scan="4"), held("y", "3")], none
    )
    assert found == {"a": Found("md5", "4")}


def test_of_two_files_with_the_same_bytes_the_one_in_the_planned_scan_counts() -> None:
    there = [held("a", "1", scan="3"), held("a", "1", scan="2")]
    found = confirm.compare([sent("a", "1"), sent("b", "1", scan="3")], there, none)
    assert found == {"a": Found("md5", "2"), "b": Found("md5", "3")}


def test_sizes_are_compared_where_neither_md5s_nor_uids_are_listed() -> None:
    found = confirm.compare([sent("a", "1"), sent("b", "2", 11)], [held("a"), held("b")], none)
    assert found == {"a": Found("size", "2")}
    assert confirm.compare([sent("a", "1")], [held("a")], none, by_size=False) == {}
    assert confirm.compare([sent("a", "1", scan="3")], [held("a")], none) == {}, "in another scan"


def test_a_file_of_the_same_size_is_not_there_when_its_scan_lists_other_uids() -> None:
    found = confirm.compare(
        [sent("a"), sent("b")], [held("a"), held("b")], lambda _: {"uid a": "2", "other": "2"}
    )
    assert found == {"a": Found("size", "2")}


def test_uids_are_asked_for_only_where_something_differs() -> None:
    asked: list[Collection[tuple[str, str]]] = []

    def uids(places: Collection[tuple[str, str]]) -> Mapping[str, str]:
        asked.append(places)
        return {"uid b": "2", "uid d": "2"}

    files = [sent("a", "1"), sent("b", "2"), sent("c", "3")]
    assert confirm.compare(files[:1], [held("a", "1")], uids) == {"a": Found("md5", "2")}
    assert asked == []
    found = confirm.compare(files, [held("a", "1"), held("b", "9"), held("c", "8")], uids)
    assert found == {"a": Found("md5", "2"), "b": Found("uid", "2")}, "as many files, and not this image"
    assert asked == [[("2", "DICOM")]]


def test_an_image_counts_where_its_uid_is_whatever_its_name_and_scan() -> None:
    found = confirm.compare([sent("a", "1")], [held("x", "9", scan="2-CT1")], lambda _: {"uid a": "2-CT1"})
    assert found == {"a": Found("uid", "2-CT1")}


@pytest.mark.parametrize("first", ["", "1"])
def test_of_two_files_with_one_uid_none_is_told_by_it(first: str) -> None:
    """Also where the other one is known by its MD5: the UID in the catalog is that one's."""
    files = [sent("a", first, uid="same"), sent("b", "2", uid="same")]
    there = [held("a", "1"), held("b", "9")]
    found = confirm.compare(files, there, lambda _: {"same": "2"})
    assert found == ({"a": Found("md5", "2")} if first else {})


def test_where_the_uids_changed_too_nothing_is_told_by_the_number_of_files() -> None:
    files = [sent("a", "1"), sent("b", "2")]
    there = [held("x", "8"), held("y", "9")]
    assert confirm.compare(files, there, none) == {}
    assert confirm.compare(files, there, lambda _: {"new a": "2", "new b": "2"}) == {}


# ---- what is listed in the prearchive


def test_in_the_prearchive_a_file_is_known_by_its_name() -> None:
    assert confirm.waiting([sent("a.dcm"), sent("b.dcm")], ["a.dcm"]) == {"a.dcm": "name"}
    assert confirm.waiting([sent("a.dcm")], []) == {}


def test_a_name_of_the_sites_own_tells_the_image() -> None:
    uids = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SOPInstanceUID": "1.2.3.4"}
    name = dicomfacts.template_name(
        {"StudyInstanceUID": "1.9", "SeriesNumber": "2", "InstanceNumber": "7", **uids}
    )
    row = Row(
        "a", filename="a.dcm", sop_class_uid=uids["SOPClassUID"], sop_instance_uid=uids["SOPInstanceUID"]
    )
    assert confirm.waiting([Sent(row, 10, ""), sent("b.dcm")], [name]) == {"a": "name"}


def test_where_a_site_names_files_its_own_way_their_number_is_left() -> None:
    files = [sent("a.dcm"), sent("b.dcm")]
    assert confirm.waiting(files, ["1.dcm", "2.dcm"]) == {"a.dcm": "number", "b.dcm": "number"}
    assert confirm.waiting(files, ["1.dcm"]) == {}
    assert confirm.waiting(files, ["1.dcm", "2.dcm", "3.dcm"]) == {}, "others are among them"
