"""De-identification on the whole path of a row: labels and names, copies, what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import openpyxl
import pydicom
import pytest

from tests.helpers import builders
from tests.helpers.runs import BOOK, Ran, Runner, configure, rows, set_cells, upload
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.config.sheet import Config
from xnatuploader.deidentify.profile import Policy
from xnatuploader.deidentify.rows import Deidentifier
from xnatuploader.records import DICOM_FIELDS, Status


@pytest.fixture
def anonymous(seed_tree: Path, run: Runner) -> Path:
    """Scan the example tree with Anonymize yes."""
    run("init", "--spreadsheet", BOOK)
    configure("Anonymize", "yes")
    ran = run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    assert ran.code == 0, ran.err
    return seed_tree


def stored(box: Sandbox) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(box.archive.rglob("*.dcm"))]


def test_labels_are_built_from_what_is_kept(anonymous: Path) -> None:
    assert {row.session_label for row in rows()} == {"0001_1_CT", "0342_1_CT", "0342_2_CT"}
    assert all(row.filename.startswith("2.25.") for row in rows())


def test_cleaned_copies_arrive_and_nothing_of_the_patient(anonymous: Path, run: Runner, box: Sandbox) -> None:
    ran = upload(run, box)
    assert ran.code == 0, ran.err
    assert {row.status for row in rows()} == {Status.SUCCESS}
    copies = stored(box)
    assert len(copies) == 14
    originals = {row.sop_instance_uid for row in rows()}
    for copy in copies:
        assert copy.PatientIdentityRemoved == "YES"
        assert str(copy.PatientName) == str(copy.PatientID)
        assert copy.PatientID in {"0001", "0342"}
        assert copy.SOPInstanceUID not in originals
        with io.BytesIO() as buffer:
            copy.save_as(buffer)
            content = buffer.getvalue()
        assert b"Doe^John" not in content
        assert b"Roe^Jane" not in content
        assert b"20200312" not in content
    for subject in box.state()["P"].values():
        for label, session in subject.items():
            assert "2020" not in label
            assert not session.get("date")
    assert not list((box.archive / "P").rglob("*Doe*"))


@pytest.mark.slow
def test_a_second_run_sends_nothing_and_emptied_cells_neither(
    anonymous: Path, run: Runner, box: Sandbox
) -> None:
    upload(run, box)
    set_cells("Status", None)
    box.clear_requests()
    assert upload(run, box).code == 0
    assert box.count("PUT", "/files") == 0, "the same key gives the same copies"


@pytest.mark.slow
def test_the_configuration_is_the_rule_for_every_run(anonymous: Path, run: Runner, box: Sandbox) -> None:
    """Nothing on the command line switches it off."""
    upload(run, box, "--overwrite")
    assert all(copy.PatientIdentityRemoved == "YES" for copy in stored(box))


def test_a_scan_is_described_to_xnat_as_in_its_copies(here: Path, run: Runner, box: Sandbox) -> None:
    """Descriptions lose the names of physicians and the institution too, which no column of the sheet holds."""
    folder = here / "data_files"
    builders.seed_tree(
        folder, ReferringPhysicianName="Smith^Ada", SeriesDescription="Neck Smith General Hospital"
    )
    run("init", "--spreadsheet", BOOK)
    configure("Anonymize", "yes")
    configure("CleanDescriptors", "yes")
    run("scan", "--spreadsheet", BOOK, "--dir", folder)
    ran = upload(run, box)
    assert ran.code == 0, ran.out + ran.err
    assert {copy.SeriesDescription for copy in stored(box)} == {"Neck"}
    sent = [request["path"] for request in box.requests("PUT", "/scans/")]
    assert any("series_description=Neck&" in f"{path}&" for path in sent)
    assert not [path for path in sent if "Smith" in path or "Hospital" in path]


def refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2, ran.out + ran.err
    for word in words:
        assert word in ran.err


def test_a_label_that_holds_a_removed_date_is_refused_and_its_mapping_named(
    seed_tree: Path, run: Runner, box: Sandbox
) -> None:
    run("init", "--spreadsheet", BOOK)
    run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    refused(upload(run, box, "--anonymize"), "SessionLabel", "{Session}")
    assert box.count("PUT") == 0


@pytest.mark.slow
def test_a_label_that_holds_the_patients_name_is_refused_and_its_mapping_named(
    seed_tree: Path, run: Runner, box: Sandbox
) -> None:
    run("init", "--spreadsheet", BOOK)
    configure("Anonymize", "yes")
    configure("SessionLabel", "{SubjectName}_{Visit}_{Modality}")
    run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    ran = upload(run, box)
    refused(ran, "{SubjectName}")
    assert "Doe" not in ran.err, "the message does not tell what it found"
    assert box.count("PUT") == 0


@pytest.mark.slow
@pytest.mark.parametrize("field", ["PatientID", "0010,0020"])
def test_a_subject_taken_from_a_removed_element_is_refused(
    seed_tree: Path, run: Runner, box: Sandbox, field: str
) -> None:
    run("init", "--spreadsheet", BOOK)
    configure("Anonymize", "yes")
    configure("Subject", f"DICOM:{field}")
    run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    ran = upload(run, box)
    refused(ran, "Subject", field)
    assert "AllowFields" not in ran.err, "PatientID cannot be kept"


def test_a_removed_date_in_a_label_counts_the_visits_also_where_its_tag_is_written(
    seed_tree: Path, run: Runner
) -> None:
    run("init", "--spreadsheet", BOOK)
    configure("Anonymize", "yes")
    configure("SessionLabel", "{Subject}_{DICOM:0008,0020}")
    assert run("scan", "--spreadsheet", BOOK, "--dir", seed_tree).code == 0
    assert {row.session_label for row in rows()} == {"0001_1", "0342_1", "0342_2"}


def test_a_field_that_cannot_be_kept_is_refused_by_scan_and_upload(
    anonymous: Path, run: Runner, box: Sandbox
) -> None:
    configure("AllowFields", "PatientName")
    ran = run("scan", "--spreadsheet", BOOK, "--dir", anonymous)
    refused(ran, "Configuration C", ": AllowFields: 'PatientName' cannot be kept")
    refused(upload(run, box), "AllowFields", "'PatientName' cannot be kept")
    assert box.count("PUT") == 0


@pytest.mark.usefixtures("anonymous")
def test_a_row_is_sent_with_the_values_of_its_copy_kept_uids_included() -> None:
    row = rows()[0]
    policy = Policy("shifted", allow_fields=("SeriesInstanceUID",))
    deidentifier = Deidentifier(cast(Config, policy))
    copy = deidentifier.copy(row, Path("data_files", row.file))
    assert isinstance(copy, bytes)
    values = pydicom.dcmread(io.BytesIO(copy))
    sent = deidentifier.as_sent(row)
    assert sent.series_instance_uid == row.series_instance_uid
    for keyword, field in DICOM_FIELDS.items():
        assert getattr(sent, field) == str(values.get(keyword) or ""), keyword


@pytest.mark.slow
def test_a_file_that_cannot_be_cleaned_is_not_sent(anonymous: Path, run: Runner, box: Sandbox) -> None:
    victim = anonymous / rows()[2].file
    data = victim.read_bytes()
    victim.write_bytes(data[:-40])
    assert upload(run, box).code == 1
    statuses = [row.status for row in rows()]
    assert statuses.count(Status.SUCCESS) == 13
    assert statuses.count(Status.FAILED) == 1
    assert len(stored(box)) == 13


@pytest.mark.slow
def test_what_was_sent_without_it_is_reported_and_not_mixed(
    seed_tree: Path, run: Runner, box: Sandbox
) -> None:
    run("init", "--spreadsheet", BOOK)
    configure("SessionLabel", "{Subject}_{Visit}_{Modality}")
    run("scan", "--spreadsheet", BOOK, "--dir", seed_tree)
    set_cells("Upload", "N", lambda row: str(row["File"]).endswith("scan0001.dcm"))
    assert upload(run, box).code == 0
    plain = box.files()
    set_cells("Upload", "Y")
    configure("Anonymize", "yes")
    ran = upload(run, box)
    assert ran.code == 1
    assert "without de-identification" in ran.err
    assert box.files() == plain


def test_review_files_stay_out_until_somebody_says_yes(here: Path, run: Runner, box: Sandbox) -> None:
    builders.write_seed_file(
        here / "data_files", "Doe^John-0001/20200312/Chest/a.dcm", BurnedInAnnotation="YES"
    )
    run("init", "--spreadsheet", BOOK)
    configure("Anonymize", "yes")
    run("scan", "--spreadsheet", BOOK, "--dir", "data_files")
    assert [row.status for row in rows()] == [Status.REVIEW]
    upload(run, box)
    assert box.files() == {}


def test_the_test_option_writes_the_de_identified_sheet(anonymous: Path, run: Runner) -> None:
    ran = run("upload", "--spreadsheet", BOOK, "--dir", "data_files", "--test", "--anonymize")
    assert ran.code == 0, ran.err
    sheet = openpyxl.load_workbook(BOOK)["De-identified"]
    lines = list(sheet.iter_rows(values_only=True))
    assert lines[0][:7] == ("SessionLabel", "ScanID", "Tag", "Keyword", "Before", "After", "Note")
    names = [line for line in lines if line[3] == "PatientName"]
    assert len(names) == 4, "one file per series"
    assert {line[4] for line in names} == {"Doe^John", "Roe^Jane"}
    assert {line[5] for line in names} == {"0001", "0342"}
