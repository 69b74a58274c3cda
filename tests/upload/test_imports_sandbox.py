"""Sessions through the import service for real: every handler, over HTTP to the sandbox."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import builders
from tests.helpers.importing import Study
from tests.helpers.sandbox_process import Sandbox
from xnatuploader import errors, xnat
from xnatuploader.records import Status
from xnatuploader.upload import files
from xnatuploader.upload.imports import inbox, parts
from xnatuploader.upload.state import onto
from xnatuploader.xnat import prearchive
from xnatuploader.xnat.imports import AnswerLost, ImportService

ARCHIVING = ("DICOM-zip", "SI", "gradual-DICOM", "XAR")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    users = ["demo:demo:owner", "reader:reader:reader"]
    with Sandbox(tmp_path_factory.mktemp("xnat"), projects=["P"], users=users) as sandbox:
        yield sandbox


@pytest.fixture
def study(shared: Sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Study]:
    label = "".join(c if c.isalnum() else "_" for c in request.node.name)[-60:]
    shared.set(anonymize_imports=False)  # bytes stay, so that digests show what went where
    yield Study(shared, tmp_path, label)
    shared.clear_faults()
    shared.set(body_limit=0, checksums=True)


@pytest.mark.parametrize("handler", ARCHIVING)
def test_a_session_is_archived_byte_for_byte(study: Study, handler: str) -> None:
    study.series(2, 4)
    study.series(3, 3)
    study.go(handler)
    assert study.statuses() == ["success"], study.messages()
    assert study.messages() == {"Archived by XNAT's import service, with the same MD5."}
    assert study.archived() == study.expected()
    assert study.waiting() == []
    assert {one.md5 for one in study.outcomes.values()} == set(study.expected().values())
    scans = study.sandbox.state()["P"]["S1"][study.label]["scans"]
    assert {scan: values["type"] for scan, values in scans.items()} == {"2": "Dataset 2", "3": "Dataset 3"}


# ---- parts, names, caches


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI"])
def test_a_large_session_travels_in_parts_and_ends_as_one(study: Study, handler: str) -> None:
    study.series(2, 7)
    study.go(handler, sizes={"part_files": 2})
    assert study.statuses() == ["success"], study.messages()
    assert study.imports() == 4
    asked = [one["path"] for one in study.sandbox.requests("POST", "/services/import")]
    assert all("inbody=true" in path for path in asked)
    if handler == "DICOM-zip":
        assert all("prevent_auto_commit=true" in path for path in asked), (
            "else it is archived when half is there"
        )
    assert study.archived() == study.expected()
    assert study.waiting() == []


@pytest.mark.parametrize("handler", [*ARCHIVING])
def test_by_way_of_the_user_cache(study: Study, handler: str) -> None:
    study.series(2, 3)
    study.go(handler, via_cache=True)
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()
    puts = study.sandbox.requests("PUT", "/user/cache/resources/")
    assert len({one["path"].split("/resources/")[1].split("/")[0] for one in puts}) == len(puts)
    assert all("inbody=true" in one["path"] for one in puts)
    followed = study.sandbox.count("GET", "/data/status/") > 0
    assert followed == (handler != "gradual-DICOM"), (
        "of which XNAT says nothing, so each file is answered for"
    )
    assert study.sandbox.count("DELETE", "/user/cache/") == 2 * len(puts), "its 404 is no reason to ask again"
    left = study.sandbox.folder / "cache"
    assert not [path for path in left.rglob("*") if path.is_file()]


def test_a_large_file_is_streamed_into_a_zip(study: Study) -> None:
    study.image(2, 1, pixels=3_000_001 * 2)
    study.image(2, 2)
    study.go("DICOM-zip")
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()


@pytest.mark.parametrize("handler", ["DICOM-zip", "gradual-DICOM"])
def test_xnat_names_the_files_when_asked(study: Study, handler: str) -> None:
    study.series(2, 3)
    study.go(handler, rename=True)
    assert study.statuses() == ["success"], study.messages()
    names = {key.rpartition("/")[2] for key in study.archived()}
    assert all(name.startswith(study.rows[0].study_instance_uid) for name in names)
    assert sorted(study.archived().values()) == sorted(study.expected().values())


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM"])
@pytest.mark.parametrize("code", [0, 4, 5])
def test_every_kind_of_project_ends_where_it_was_told(study: Study, handler: str, code: int) -> None:
    study.project = f"C{code}"
    study.sandbox.add_project(study.project, code)
    study.series(2, 3)
    study.go(handler, dest="prearchive", sizes={"part_files": 2})
    assert study.statuses() == ["success"], study.messages()
    assert [one["status"] for one in study.waiting()] == ["READY"]
    assert study.archived() == {}
    study.go(handler, sizes={"part_files": 2})
    assert study.statuses() == ["success"], study.messages()
    assert study.imports() == 0, "what waits is gone on with, not sent again"
    assert (study.archived(), study.waiting()) == (study.expected(), [])


def test_si_carries_quarantine(study: Study) -> None:
    study.series(2, 2)
    study.go("SI", quarantine=True)
    assert study.statuses() == ["success"], study.messages()
    sent = study.sandbox.requests("POST", "/services/import")
    assert all("quarantine=true" in one["path"] for one in sent)


def test_pipelines_are_switched_off_where_a_handler_takes_it(study: Study) -> None:
    study.series(2, 2)
    study.go("SI", pipelines=False)
    assert "triggerPipelines=false" in study.sandbox.requests("POST", "/services/import")[0]["path"]


def test_a_large_session_by_si_is_gathered_before_any_of_it_is_archived(study: Study) -> None:
    study.series(2, 5)
    study.go("SI", sizes={"part_files": 2})
    assert study.statuses() == ["success"], study.messages()
    asked = [one["path"] for one in study.sandbox.requests("POST", "/services/import")]
    assert all("dest=%2Fprearchive" in path for path in asked)
    assert study.sandbox.count("POST", "/services/archive") == 1
    assert study.archived() == study.expected()


def test_a_large_session_for_quarantine_stays_in_one_body(study: Study) -> None:
    study.series(2, 5)
    study.go("SI", sizes={"part_files": 2}, quarantine=True)
    assert study.statuses() == ["success"], study.messages()
    assert study.imports() == 1


def test_copies_travel_in_place_of_files(study: Study) -> None:
    rows = study.series(2, 3)
    copies = {row.file: builders.dicom_bytes(study=study.label, series="2", instance=row.instance_number,
                                             SeriesNumber="2", PatientName="Nobody") for row in rows}  # fmt: skip
    study.copy = lambda row, path: copies[row.file]
    study.go("DICOM-zip")
    assert study.statuses() == ["success"], study.messages()
    digests = {hashlib.md5(data).hexdigest() for data in copies.values()}
    assert set(study.archived().values()) == digests


def test_inbox_takes_originals_and_so_refuses_copies(study: Study) -> None:
    study.series(2, 1)
    study.copy = lambda row, path: b""
    with pytest.raises(errors.UsageError, match="nothing is de-identified"):
        study.go("inbox", dest="/inbox/P/x")


# ---- the inbox


def put_into_inbox(study: Study) -> str:
    folder = study.sandbox.folder / "inbox" / "P" / "batch"
    shutil.copytree(study.folder, folder, dirs_exist_ok=True)
    return str(folder)


def test_a_session_in_the_inbox_is_imported_and_its_originals_stay(study: Study) -> None:
    study.series(2, 3)
    study.series(3, 2)
    folder = put_into_inbox(study)
    study.go("inbox", dest=folder)
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()
    assert len(list(Path(folder, study.label).rglob("*.dcm"))) == 5
    assert study.sandbox.count("GET", "/xapi/dicom/") > 0


def test_a_folder_that_holds_other_files_too_is_not_imported(study: Study) -> None:
    study.series(2, 3)
    builders.write_dicom(study.folder / study.label / "2" / "somebody_else.dcm", study="other")
    folder = put_into_inbox(study)
    study.go("inbox", dest=folder)
    assert study.statuses() == ["failed"]
    assert "holds 1 file that this run does not send" in next(iter(study.messages()))
    assert study.imports() == 0


def test_paths_of_the_file_column_are_read_as_their_files_are_found(study: Study) -> None:
    """1.x wrote `./` before some paths, and backslashes on Windows."""
    study.series(2, 3)
    study.rows = [replace(study.rows[0], file=f"./{study.rows[0].file}"), *study.rows[1:]]
    folder = put_into_inbox(study)
    study.go("inbox", dest=folder)
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()
    facts = (study.folder / study.rows[0].file).stat()
    items = [
        files.Item(
            replace(row, file=row.file.replace("/", "\\")),
            study.folder / row.file,
            facts.st_size,
            facts.st_mtime_ns,
        )
        for row in study.rows
    ]
    assert inbox.common_folder(items) == f"{study.label}/2"


@pytest.mark.parametrize("count", [1, 3])
def test_full_paths_in_the_file_column_name_no_folder_of_the_inbox(study: Study, count: int) -> None:
    study.series(2, 3)
    folder = put_into_inbox(study)
    study.rows = [
        replace(row, file=str(study.folder / row.file)) if index < count else row
        for index, row in enumerate(study.rows)
    ]
    study.go("inbox", dest=folder)
    assert study.statuses() == ["failed"]
    assert "by a full path" in next(iter(study.messages())), study.messages()
    assert study.imports() == 0


def test_paths_that_lead_out_of_dir_name_no_folder_of_the_inbox(study: Study) -> None:
    study.series(2, 3)
    folder = put_into_inbox(study)
    study.rows = [replace(row, file=f"../{study.folder.name}/{row.file}") for row in study.rows]
    study.go("inbox", dest=folder)
    assert study.statuses() == ["failed"]
    assert "below --dir" in next(iter(study.messages())), study.messages()
    assert study.imports() == 0


def test_an_inbox_folder_that_the_server_does_not_find_says_so(study: Study) -> None:
    study.series(2, 3)
    study.go("inbox", dest=str(study.sandbox.folder / "inbox" / "P" / "nowhere"))
    assert study.statuses() == ["failed"]
    assert study.archived() == {}


# ---- what exists


@pytest.mark.parametrize("handler", [*ARCHIVING])
def test_none_adds_nothing_to_a_session_that_exists(study: Study, handler: str) -> None:
    study.series(2, 3)
    study.go("DICOM-zip")
    study.image(2, 9)
    study.go(handler)
    assert [study.outcomes[row.file].status.value for row in study.rows] == ["success"] * 3 + ["conflict"]
    assert study.imports() == 0
    assert "Was in the archive already, with the same MD5." in study.messages()


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM"])
def test_append_adds_files_and_replaces_none(study: Study, handler: str) -> None:
    study.series(2, 3)
    study.go("DICOM-zip")
    before = study.expected()
    changed = study.rows[0]
    del study.rows[0]
    study.image(2, 1, PatientName="Changed")
    study.image(2, 9)
    study.image(3, 1)
    study.go(handler, overwrite="append")
    said = {study.outcomes[row.file].filename or row.filename: study.outcomes[row.file] for row in study.rows}
    assert study.outcomes[changed.file].status.value == "duplicate"
    assert "--import-overwrite delete" in study.outcomes[changed.file].message
    assert len(study.archived()) == 5
    assert study.archived()["2/DICOM/IM001.dcm"] == before["2/DICOM/IM001.dcm"]
    assert sorted(one.status.value for one in study.outcomes.values()) == ["duplicate", *["success"] * 4], (
        said
    )
    archived = [one["path"] for one in study.sandbox.requests("POST", "/services/archive")]
    assert not any("overwrite" in path for path in archived), "there XNAT takes append for leave to override"


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM"])
def test_delete_replaces_what_differs(study: Study, handler: str) -> None:
    study.series(2, 3)
    study.go("DICOM-zip")
    del study.rows[0]
    study.image(2, 1, PatientName="Changed")
    study.go(handler, overwrite="delete")
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()
    assert study.imports() == 1, "what is there already is not sent again"
    asked = "/services/import" if handler == "SI" else "/services/archive"
    assert "overwrite=delete" in study.sandbox.requests("POST", asked)[0]["path"]


def somebody_elses(study: Study) -> None:
    """Have somebody else import another series under the same label."""
    other = Study(study.sandbox, study.folder / "other", study.label)
    other.series(3, 1)
    other.go("DICOM-zip")


@pytest.mark.parametrize("handler", [*ARCHIVING])
def test_a_session_that_came_to_be_since_the_plan_was_made_is_not_merged_into(
    study: Study, handler: str
) -> None:
    study.series(2, 3)
    with study.connect() as connection:
        plan = study.planned(connection)
    study.planned = lambda _: plan  # type: ignore[method-assign]
    somebody_elses(study)
    study.go(handler)
    assert study.statuses() == ["conflict"]
    assert study.imports() == 0
    assert len(study.archived()) == 1


@pytest.mark.parametrize("handler", ["DICOM-zip", "gradual-DICOM"])
def test_a_session_that_came_to_be_while_files_went_is_not_merged_into(
    study: Study, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`services/archive` always merges, so that the last look comes just before it."""
    study.series(2, 3)
    send = parts.BodySender.send

    def meanwhile(sender: parts.BodySender, going: Sequence[files.Item]) -> bool:
        monkeypatch.setattr(parts.BodySender, "send", send)
        somebody_elses(study)
        return send(sender, going)

    monkeypatch.setattr(parts.BodySender, "send", meanwhile)
    study.go(handler)
    assert study.statuses() == ["conflict"]
    assert "/data/prearchive/projects/P/" in next(iter(study.messages()))
    assert len(study.archived()) == 1


# ---- conflicts and refusals


def test_a_conflict_is_told_with_xnats_reason_and_the_place(study: Study) -> None:
    study.series(2, 3)
    study.sandbox.fault("refuse-import", path="/services/archive", times=1)
    study.go("DICOM-zip")
    assert study.statuses() == ["failed"]
    message = next(iter(study.messages()))
    assert "as ERROR" in message
    assert "A fault was set for this request: the session could not be archived" in message
    assert "/data/prearchive/projects/P/" in message
    study.go("DICOM-zip")
    assert study.statuses() == ["success"], study.messages()
    assert study.imports() == 0
    assert study.waiting() == []


def test_si_tells_a_conflict_too_and_adds_no_second_entry(study: Study) -> None:
    study.series(2, 3)
    study.sandbox.fault("refuse-import", path="/services/import", times=1)
    study.go("SI")
    assert study.statuses() == ["failed"]
    assert "A fault was set for this request: the session could not be archived" in next(
        iter(study.messages())
    )
    assert len(study.waiting()) == 1
    study.go("SI")
    assert study.statuses() == ["success"], study.messages()
    assert study.waiting() == []


def test_several_studies_in_one_session_are_refused(study: Study) -> None:
    study.series(2, 2)
    study.image(3, 1, study="another")
    study.go("DICOM-zip")
    assert study.statuses() == ["failed"]
    assert "several studies" in next(iter(study.messages()))
    assert study.imports() == 0


def test_a_file_that_is_no_dicom_fails_alone(study: Study) -> None:
    study.series(2, 8)
    bad = study.rows[5]
    (study.folder / bad.file).write_bytes(b"not DICOM at all" * 40)
    study.go("DICOM-zip")
    assert [study.outcomes[row.file].status.value for row in study.rows] == ["success"] * 5 + ["failed"] + [
        "success"
    ] * 2, study.messages()
    assert len(study.archived()) == 7


def test_a_file_that_is_gone_is_missing_and_the_others_go(study: Study) -> None:
    study.series(2, 3)
    (study.folder / study.rows[1].file).unlink()
    study.go("DICOM-zip")
    assert study.outcomes[study.rows[1].file].status.value == "missing"
    assert len(study.archived()) == 2


def test_a_body_that_a_proxy_does_not_let_through_is_halved(study: Study) -> None:
    study.series(2, 4, pixels=40_000)
    study.image(3, 1, pixels=400_000)
    study.sandbox.set(body_limit=100_000)
    study.go("DICOM-zip")
    assert [study.outcomes[row.file].status.value for row in study.rows] == ["success"] * 4 + ["failed"]
    assert "too large" in study.outcomes[study.rows[4].file].message


def test_a_reader_stores_nothing_and_is_told_so(study: Study) -> None:
    study.series(2, 2)
    study.go("DICOM-zip", user="reader")
    assert study.statuses() == ["failed"]
    assert study.archived() == {}


# ---- refusals that pass, and others

IN_PROGRESS = (
    "Session processing may already be in progress: Image Folder. Concurrent modification is discouraged."
)
PASSING = (
    ("DICOM-zip", "/services/import", 400, IN_PROGRESS),
    ("gradual-DICOM", "/services/import", 423, "Duplicate archive attempt.  Destination session in use."),
    ("XAR", "/services/import", 400, IN_PROGRESS),
    ("SI", "/services/import", 409, IN_PROGRESS),
    ("DICOM-zip", "action=build", 409, "session document locked"),
    ("DICOM-zip", "/services/archive", 500, f"FAILED: {IN_PROGRESS}"),
    (
        "DICOM-zip",
        "/services/archive",
        423,
        "Duplicate archive attempt. Prearchive session already archiving.",
    ),
    ("DICOM-zip", "/services/archive", 403, "Operation already in progress on this prearchive entry."),
)
"""Handler, request, status, and XNAT's sentence while somebody else is busy with the session."""


@pytest.mark.parametrize(
    ("handler", "path", "status", "said"),
    PASSING,
    ids=[f"{one[0]}-{one[1][-8:]}-{one[2]}" for one in PASSING],
)
def test_a_refusal_that_passes_is_waited_for(
    study: Study, handler: str, path: str, status: int, said: str
) -> None:
    study.series(2, 3)
    study.sandbox.fault("status", method="POST", path=path, status=status, message=said, times=3)
    study.go(handler)
    assert study.sandbox.faults()[0]["struck"] == 3
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()
    assert study.waiting() == []


def test_a_session_that_si_could_not_archive_at_once_is_not_sent_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SI has made its entry by then (SessionImporter.call, FinishImageUpload); a second body would make a second."""
    study.series(2, 3)
    send = ImportService.send

    def busy(*given: Any) -> list[str]:
        monkeypatch.setattr(ImportService, "send", send)
        with pytest.raises(AnswerLost):
            send(*given)
        raise xnat.RequestFailed(409, IN_PROGRESS, "busy")

    monkeypatch.setattr(ImportService, "send", busy)
    study.sandbox.fault("refuse-import", path="/services/import", times=1)
    study.go("SI")
    assert study.statuses() == ["success"], study.messages()
    assert study.imports() == 1
    assert study.archived() == study.expected()
    assert study.waiting() == []


@pytest.mark.parametrize("path", ["/services/import", "/services/archive"])
def test_one_that_does_not_pass_is_a_failure_in_the_end(
    study: Study, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prearchive, "_BUSY_PAUSES", (0.1, 0.1, 0.1))
    study.series(2, 3)
    study.sandbox.fault("status", method="POST", path=path, status=423, message=IN_PROGRESS)
    study.counts = False
    study.go("DICOM-zip")
    assert study.sandbox.count("POST", path) == 4
    assert study.statuses() == ["failed"]
    (message,) = study.messages()
    assert "still working on this session" in message
    assert "un upload again" in message
    assert "--import-overwrite" not in message, "nothing is in the way but time"


@pytest.mark.parametrize("path", ["/services/import", "/services/archive"])
def test_the_wait_for_it_ends_when_the_run_is_to_stop(study: Study, path: str) -> None:
    study.series(2, 3)
    study.sandbox.fault("status", method="POST", path=path, status=423, message=IN_PROGRESS)

    class Pressed(threading.Event):
        """A Ctrl-C during the first pause."""

        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return True

    study.stop = Pressed()  # type: ignore[assignment]
    study.counts = False
    study.go("DICOM-zip")
    assert study.sandbox.count("POST", path) == 1
    assert study.statuses() == ["interrupted"], study.messages()


@pytest.mark.parametrize(
    "said",
    [
        "unable to deduce session label",
        "Unable to identify subject.",
        "not allowed to create new subjects",
        "Session already exists, retry with overwrite enabled",
        "Invalid modification of session UID via archive process.",
        "Session already contains a scan with the same UID, but a different number (3).",
    ],
)
@pytest.mark.parametrize("handler", ["DICOM-zip", "gradual-DICOM"])
def test_what_is_said_of_the_session_is_not_asked_again_for_each_file(
    study: Study, handler: str, said: str
) -> None:
    study.series(2, 4)
    study.sandbox.fault("status", method="POST", path="/services/import", status=400, message=said)
    study.counts = False
    study.go(handler)
    assert study.imports() == 1
    assert study.statuses() == ["failed"]
    assert said.rstrip(".") in next(iter(study.messages()))


def test_an_entry_without_an_address_of_its_own_is_found_in_the_list(study: Study) -> None:
    """XNAT 1.7.0 to 1.7.2 answer 404 to the address of one entry."""
    study.series(2, 3)
    study.go("DICOM-zip", dest="prearchive")
    study.sandbox.fault("status", method="GET", path=r"/prearchive/projects/P/\w+/\w+\?", status=404)
    study.sandbox.fault("drop", path="/services/archive", when="after", times=1)
    study.go("DICOM-zip")
    assert study.statuses() == ["success"], study.messages()
    assert study.imports() == 0
    assert study.archived() == study.expected()


def test_a_file_that_is_not_listed_in_the_prearchive_is_no_success(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.series(2, 3)
    files_of = prearchive.Prearchive.files

    def one_less(waiting: prearchive.Prearchive, entry: prearchive.PrearchiveEntry) -> dict[Any, int]:
        return dict(list(files_of(waiting, entry).items())[1:])

    monkeypatch.setattr(prearchive.Prearchive, "files", one_less)
    study.go("DICOM-zip", dest="prearchive")
    assert sorted(one.status.value for one in study.outcomes.values()) == ["failed", "success", "success"]
    assert any("does not list it in its prearchive" in message for message in study.messages())


# ---- answers that are lost


@pytest.mark.slow
@pytest.mark.parametrize("handler", [*ARCHIVING])
@pytest.mark.parametrize("fault", ["before", "during", "after", "503", "502"])
def test_a_lost_answer_leads_to_no_second_session(study: Study, handler: str, fault: str) -> None:
    study.series(2, 3, pixels=100_000)
    if fault.isdigit():
        study.sandbox.fault("status", path="/services/import", status=int(fault), when="after", times=1)
    else:
        study.sandbox.fault("drop", path="/services/import", when=fault, times=1)
    study.go(handler)
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()
    assert study.waiting() == []


def test_after_a_lost_answer_a_stopped_run_asks_no_more(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.series(2, 2)
    asked: list[int] = []

    def lost(*_: object) -> list[str]:
        asked.append(study.sandbox.count("GET", "/data/prearchive"))
        study.stop.set()
        raise AnswerLost(xnat.RequestFailed(0, "The connection was lost.", "connection"))

    monkeypatch.setattr(ImportService, "send", lost)
    study.counts = False
    study.go("DICOM-zip")
    assert study.statuses() == ["interrupted"]
    assert [study.sandbox.count("GET", "/data/prearchive")] == asked


@pytest.mark.parametrize("handler", ["DICOM-zip", "gradual-DICOM"])
def test_the_lost_answer_of_an_archiving_is_looked_after(study: Study, handler: str) -> None:
    study.series(2, 3)
    study.sandbox.fault("drop", path="/services/archive", when="after", times=1)
    study.go(handler)
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()
    assert study.sandbox.count("POST", "/services/archive") == 1


def test_a_login_that_ends_in_the_middle_costs_nothing(study: Study) -> None:
    study.series(2, 5)
    study.sandbox.fault("kill-session", every=4, times=5)
    study.go("gradual-DICOM")
    assert study.statuses() == ["success"], study.messages()
    assert study.archived() == study.expected()


# ---- stopping and going on


def test_a_stopped_run_leaves_what_was_sent_in_the_prearchive_and_the_next_goes_on(study: Study) -> None:
    study.series(2, 6)
    study.stop_after = 2
    study.go("gradual-DICOM")
    assert study.statuses() == ["interrupted"]
    assert any("waits in XNAT's prearchive" in message for message in study.messages())
    sent = study.imports()
    assert 2 <= sent < 6
    assert study.archived() == {}
    study.stop.clear()
    study.stop_after = 0
    study.go("gradual-DICOM")
    assert study.statuses() == ["success"], study.messages()
    assert study.imports() == 6 - sent
    assert study.archived() == study.expected()


# ---- what XNAT changed


def test_an_anonymising_import_is_checked_by_number_and_uids(study: Study) -> None:
    study.series(2, 3)
    study.sandbox.set(anonymize_imports=True)
    study.go("DICOM-zip")
    assert study.statuses() == ["success"], study.messages()
    assert all("changed the file" in message for message in study.messages())
    assert set(study.archived().values()).isdisjoint(study.expected().values())


def test_an_image_that_was_changed_in_the_archive_is_no_success_any_more(study: Study) -> None:
    """It came with the same MD5, and a `--verify` finds its SOPInstanceUID with another one."""
    study.series(2, 3)
    study.go("DICOM-zip")
    study.rows = [onto(row, study.outcomes[row.file]) for row in study.rows]
    study.rows[0] = replace(study.rows[0], md5="0" * 32)  # the archive lists another one now
    study.go("DICOM-zip")
    assert [study.outcomes[row.file].status.value for row in study.rows] == ["conflict", "success", "success"]
    assert "was changed there after it was sent" in study.outcomes[study.rows[0].file].message


def test_two_files_with_one_uid_are_no_success_where_xnat_changed_both(study: Study) -> None:
    study.sandbox.set(anonymize_imports=True)
    study.series(2, 2)
    study.image(2, 3, instance="1", PatientName="Another")
    study.go("DICOM-zip")
    assert [study.outcomes[row.file].status.value for row in study.rows] == [
        "conflict",
        "success",
        "conflict",
    ]
    assert (
        "another file that was sent has the same SOPInstanceUID" in study.outcomes[study.rows[0].file].message
    )


def test_where_the_site_changes_uids_nothing_is_told_to_be_there(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.sandbox.set(anonymize_imports=True)
    study.series(2, 2)
    monkeypatch.setattr(xnat.Server, "object_uids", lambda *_: {"1.2.3": "2", "1.2.4": "2"})
    study.go("DICOM-zip")
    assert study.statuses() == ["conflict"]
    assert "XNAT changed the file and its SOPInstanceUID" in next(iter(study.messages()))


def test_headers_decide_when_asked(study: Study) -> None:
    study.series(2, 3, PatientComments="Project:P Subject:FromHeader Session:FromHeader_1")
    study.go("DICOM-zip", by_headers=True)
    assert study.statuses() == ["success"], study.messages()
    assert any("named the session FromHeader_1" in message for message in study.messages())
    assert "FromHeader_1" in study.sandbox.state()["P"]["FromHeader"]


# ---- by hand: destinations of an entry that waits


@pytest.mark.parametrize("handler", ["DICOM-zip", "SI"])
def test_an_entry_of_the_prearchive_named_by_dest_is_added_to(study: Study, handler: str) -> None:
    study.series(2, 2)
    study.go("DICOM-zip", dest="prearchive")
    entry = study.waiting()[0]
    study.image(2, 9)
    study.go(handler, dest=entry["url"])
    assert study.statuses() == ["success"], study.messages()
    assert [one["url"] for one in study.waiting()] == [entry["url"]]
    study.go("DICOM-zip", commit=True)
    assert study.archived() == study.expected()


@pytest.mark.parametrize("failure", [
    xnat.RequestFailed(0, "The connection was lost.", "connection"),
    prearchive.NotArchived("XNAT is at it.", "ARCHIVING"),
])  # fmt: skip
def test_a_commit_that_is_stopped_leaves_rows_that_the_next_one_takes(
    study: Study, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.series(2, 2)
    study.go("DICOM-zip", dest="prearchive")

    def stopped(*_: object, **__: object) -> str:
        study.stop.set()
        raise failure

    monkeypatch.setattr(prearchive.Prearchive, "archive", stopped)
    study.go("DICOM-zip", commit=True)
    assert study.statuses() == ["failed"], (
        "an interrupted row is still to be sent, so its session is left alone"
    )
    assert study.messages() == {str(failure)}


def test_a_time_stamp_that_dicom_zip_cannot_follow_is_refused(study: Study) -> None:
    study.series(2, 2)
    study.go("DICOM-zip", dest="/prearchive/projects/P/20200101_101010101")
    assert study.statuses() == ["failed"]
    assert "Leave the time stamp out" in next(iter(study.messages()))
    assert study.imports() == 0


def test_dest_keeps_other_subjects_out(study: Study) -> None:
    study.series(2, 2)
    study.go("SI", dest="/archive/projects/P/subjects/SOMEBODY")
    assert study.statuses() == ["failed"]
    assert study.imports() == 0


def test_an_error_changes_no_row_that_is_only_looked_at(study: Study) -> None:
    study.series(2, 2)
    study.go("DICOM-zip")
    md5 = {row.file: study.outcomes[row.file].md5 for row in study.rows}
    study.rows = [replace(row, status=Status.SUCCESS, md5=md5[row.file]) for row in study.rows]
    study.sandbox.fault("status", path="/scans/ALL/files", status=403)
    study.counts = False
    study.go("DICOM-zip")
    assert study.outcomes == {}
    study.sandbox.clear_faults()
    study.go("DICOM-zip")
    assert study.messages() == {"Was in the archive already, with the same MD5."}
