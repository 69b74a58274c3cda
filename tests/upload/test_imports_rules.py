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


def sent(name: str, md5: str = "", size: int = 10, uid: str = "") -> Sent:
    return Sent(Row(name, filename=name, resource="DICOM", sop_instance_uid=uid or f"uid {name}"), size, md5)


def held(name: str, digest: str = "", size: int = 10, scan: str = "2") -> xnat.RemoteFile:
    return xnat.RemoteFile(name, size, digest, "DICOM", scan)


def none(places: Collection[tuple[str, str]]) -> Mapping[str, str]:
    return {}


def test_md5s_are_compared_whatever_the_names() -> None:
    found = confirm.compare(
        [sent("a", "1"), sent("b", "2")], [held("x", "1", scan="4"), held("y", "3")], none
    )
    assert found == {"a": Found("md5", "4")}


def test_sizes_are_compared_where_the_site_keeps_no_md5() -> None:
    found = confirm.compare([sent("a", "1"), sent("b", "2", 11)], [held("a"), held("b")], none)
    assert found == {"a": Found("size", "2")}


def test_uids_are_asked_for_only_where_something_differs() -> None:
    asked: list[Collection[tuple[str, str]]] = []

    def uids(places: Collection[tuple[str, str]]) -> Mapping[str, str]:
        asked.append(places)
        return {"uid b": "2"}

    files = [sent("a", "1"), sent("b", "2"), sent("c", "3")]
    assert confirm.compare(files[:1], [held("a", "1")], uids) == {"a": Found("md5", "2")}
    assert asked == []
    found = confirm.compare(files, [held("a", "1"), held("b", "9"), held("c", "8")], uids, alone=True)
    assert found == {"a": Found("md5", "2"), "b": Found("uid", "2")}
    assert asked == [[("2", "DICOM")]]


def test_only_the_number_is_left_where_the_uids_changed_too() -> None:
    files = [sent("a", "1"), sent("b", "2")]
    there = [held("x", "8"), held("y", "9")]
    assert confirm.compare(files, there, none, alone=True) == {"a": Found("count"), "b": Found("count")}
    assert confirm.compare(files, there[:1], none, alone=True) == {}, "one is missing"
    assert confirm.compare(files, there, none) == {}, "others' files may be among them"
