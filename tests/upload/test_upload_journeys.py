"""Uploads as they go wrong and right in a hospital: each through the program, against the sandbox."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import openpyxl
import pytest
from openpyxl.chart import BarChart, Reference
from openpyxl.comments import Comment
from openpyxl.formatting.rule import CellIsRule
from openpyxl.styles import PatternFill
from openpyxl.worksheet.datavalidation import DataValidation

from tests.helpers import builders
from tests.helpers.journeys import BOOK, LABEL, SERIES, STEPS, STUDY, VISIT, Journey, one_visit
from tests.helpers.workbook_samples import parts
from xnatuploader import xnat
from xnatuploader.records import Status
from xnatuploader.upload import journal
from xnatuploader.workbook import lock

# ---- guards: nothing is moved, mixed or renumbered


def test_a_label_under_another_subject_is_a_conflict_and_nothing_moves(journey: Journey) -> None:
    one_visit(journey)
    journey.there("Other", LABEL, UID=STUDY)
    journey.scan()
    ran = journey.upload()
    assert ran.code == 1
    assert journey.statuses() == [Status.CONFLICT] * 2
    assert "Other" in journey.rows()[0].message
    assert set(journey.state()) == {"Other"}
    assert not journey.site.requests("PUT", f"/projects/{journey.project}/")


def test_another_study_under_the_label_is_a_conflict_until_join_says_yes(journey: Journey) -> None:
    one_visit(journey)
    journey.there("0001", LABEL, UID="1.2.3", date="2020-03-12")
    journey.scan()
    assert journey.upload().code == 1
    assert journey.statuses() == [Status.CONFLICT] * 2
    assert "Join" in journey.rows()[0].message
    assert journey.puts() == 0
    journey.put("Join", "Y", lambda row: row["SessionLabel"] == LABEL, "Sessions")
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()


def test_a_session_without_study_and_of_the_same_date_is_added_to_with_a_warning(journey: Journey) -> None:
    one_visit(journey)
    journey.there("0001", LABEL, date="2020-03-12")
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert "does not say which study" in ran.err
    assert "does not say which study" in journey.session(LABEL).warnings
    assert journey.whole()


def test_a_session_without_study_and_of_another_date_is_a_conflict(journey: Journey) -> None:
    one_visit(journey)
    journey.there("0001", LABEL, date="2019-01-01")
    journey.scan()
    assert journey.upload().code == 1
    assert journey.statuses() == [Status.CONFLICT] * 2
    assert "2019-01-01" in journey.rows()[0].message


def test_a_conflict_over_a_visit_names_the_next_free_number(journey: Journey) -> None:
    journey.configure("SessionLabel", "{Subject}_{Modality}{Visit}")
    one_visit(journey)
    journey.there("0001", "0001_CT1", UID="1.2.3")
    journey.there("0001", "0001_CT2", UID="1.2.4")
    journey.scan()
    assert journey.upload().code == 1
    assert "0001_CT3" in journey.rows()[0].message


def test_a_label_that_differs_only_in_case_is_a_conflict(journey: Journey) -> None:
    one_visit(journey)
    journey.there("0001", LABEL.lower(), UID=STUDY)
    journey.scan()
    assert journey.upload().code == 1
    assert journey.statuses() == [Status.CONFLICT] * 2


def test_a_series_that_is_there_under_another_id_keeps_that_id(journey: Journey) -> None:
    one_visit(journey)
    journey.there("0001", LABEL, UID=STUDY, scans={"77": {"type": "Chest", "UID": SERIES}})
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert {row.scan_id for row in journey.rows()} == {"77"}
    assert set(journey.state()["0001"][LABEL]["scans"]) == {"77"}
    assert journey.whole()


def test_a_scan_id_that_another_series_has_becomes_a_further_one_and_stays(journey: Journey) -> None:
    one_visit(journey)
    journey.there("0001", LABEL, UID=STUDY, scans={"2": {"type": "Scout", "UID": "1.2.9"}})
    journey.scan()
    assert journey.upload().code == 0
    assert {row.scan_id for row in journey.rows()} == {"2-CT1"}
    scans = journey.state()["0001"][LABEL]["scans"]
    assert (scans["2"]["UID"], scans["2"]["type"]) == ("1.2.9", "Scout")
    assert journey.whole()
    journey.file(VISIT.format(9))
    journey.scan()
    assert journey.upload().code == 0
    assert {row.scan_id for row in journey.rows()} == {"2-CT1"}, "the newcomer joins its series"


# ---- labels, names and types stay as they are


def visits(journey: Journey) -> None:
    journey.configure("SessionLabel", "{Subject}_{Modality}{Visit}")
    for date in ("20200312", "20200413", "20200514"):
        journey.file(f"Doe^John-0001/{date}/Chest CT/a.dcm")
    journey.scan()


def test_what_is_left_to_do_never_renumbers_visits(journey: Journey) -> None:
    """Lesson C1: selecting, failing and re-scanning change what is left, not what a visit is called."""
    visits(journey)
    labels = {row.file: row.session_label for row in journey.rows()}
    assert sorted(labels.values()) == ["0001_CT1", "0001_CT2", "0001_CT3"]
    journey.put("Upload", "N", lambda row: "20200413" not in row["File"])
    assert journey.upload().code == 0
    assert set(journey.state()["0001"]) == {"0001_CT2"}
    journey.put("Upload", "Y")
    journey.file("Doe^John-0001/20200101/Chest CT/a.dcm")
    journey.scan()
    assert journey.upload().code == 0
    now = {row.file: row.session_label for row in journey.rows()}
    assert {file: now[file] for file in labels} == labels
    assert now["Doe^John-0001/20200101/Chest CT/a.dcm"] == "0001_CT4"
    assert journey.whole()


def test_files_of_one_name_in_two_folders_both_arrive(journey: Journey) -> None:
    """Lesson C5."""
    for part in ("1", "2"):
        builders.write_dicom(
            journey.data / f"Doe^John-0001/20200312/Head{part}/IM0.dcm", series="one", instance=part
        )
    journey.configure("Dataset", "DICOM:SeriesDescription")
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    rows = journey.rows()
    assert len({row.filename for row in rows}) == 2
    assert len({row.scan_id for row in rows}) == 1
    assert journey.whole()


def test_two_series_of_one_dataset_are_two_scans_of_one_type(journey: Journey) -> None:
    journey.file(VISIT.format(0))
    journey.file(VISIT.format(1), series="another", SeriesNumber="4")
    journey.scan()
    assert journey.upload().code == 0
    scans = journey.state()["0001"][LABEL]["scans"]
    assert {name: scan["type"] for name, scan in scans.items()} == {"2": "Chest CT", "4": "Chest CT"}


def test_a_type_that_equals_a_scan_id_is_written_so_that_urls_stay_plain(journey: Journey) -> None:
    journey.file("Doe^John-0001/20200312/4/a.dcm")
    journey.file("Doe^John-0001/20200312/Chest/b.dcm", SeriesNumber="4")
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    scans = journey.state()["0001"][LABEL]["scans"]
    assert {name: scan["type"] for name, scan in scans.items()} == {"2": "Series 4", "4": "Chest"}
    assert journey.whole()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modalities", "session", "scans"),
    [
        (("PT",), "xnat:petSessionData", {"xnat:petScanData"}),
        (("PT", "CT"), "xnat:petSessionData", {"xnat:petScanData", "xnat:ctScanData"}),
        (("PT", "MR"), "xnat:petmrSessionData", {"xnat:petScanData", "xnat:mrScanData"}),
        (("MR", "SEG"), "xnat:mrSessionData", {"xnat:mrScanData", "xnat:segScanData"}),
        (("US",), "xnat:usSessionData", {"xnat:usScanData"}),
    ],
)
def test_types_are_those_of_xnats_table(
    journey: Journey, modalities: tuple[str, ...], session: str, scans: set[str]
) -> None:
    """Lesson C23."""
    for number, modality in enumerate(modalities, 2):
        journey.file(
            f"Doe^John-0001/20200312/{modality}/a.dcm", Modality=modality, SeriesNumber=str(number),
            SOPClassUID=builders.SOP_CLASSES[modality],
        )  # fmt: skip
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    (made,) = journey.state()["0001"].values()
    assert made["xsi"] == session
    assert {scan["xsi"] for scan in made["scans"].values()} == scans


def test_names_that_need_escaping_arrive(journey: Journey) -> None:
    """Lesson C25: what XNAT cannot hold is changed in labels and names, and nothing gets lost on the way."""
    for name in ("a b.dcm", "a#b.dcm", "a%20b.dcm", "ä?b.dcm", "a&b=c+d.dcm"):
        builders.write_dicom(
            journey.data / "Müller O'Neil-00 1#/20200312/T2 (a%2Fb)" / name,
            instance=name, SeriesDescription="T2", PatientID="00 1#",
        )  # fmt: skip
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    (subject,) = journey.state()
    assert all(c.isalnum() or c in "_-" for c in subject)
    listed = journey.site.files(journey.project)
    assert len(listed) == 5
    digests = {hashlib.md5((journey.data / row.file).read_bytes()).hexdigest() for row in journey.rows()}
    assert set(listed.values()) == digests
    assert journey.statuses() == [Status.SUCCESS] * 5


def test_a_zero_byte_file_goes_when_a_person_says_so(journey: Journey) -> None:
    one_visit(journey)
    (journey.data / VISIT.format("empty")).write_bytes(b"")
    journey.scan()
    lacking = next(row for row in journey.rows() if row.status is Status.SKIPPED)
    like = next(row for row in journey.rows() if row.status is Status.EMPTY)
    for heading, value in (
        ("Upload", "Y"), ("SessionLabel", LABEL), ("ScanID", like.scan_id), ("Filename", "empty.dcm"),
        ("Resource", "DICOM"), ("Subject", "0001"), ("Session", like.session), ("Dataset", like.dataset),
    ):  # fmt: skip
        journey.put(heading, value, lambda row: row["File"] == lacking.file)
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()


def test_review_files_travel_when_their_session_is_released(journey: Journey) -> None:
    one_visit(journey)
    journey.file(VISIT.format("burnt"), BurnedInAnnotation="YES", instance="9")
    journey.scan()
    assert journey.upload().code == 0
    assert sorted(str(status) for status in journey.statuses()) == ["review", "success", "success"]
    journey.put("Release review", "Y", lambda row: row["SessionLabel"] == LABEL, "Sessions")
    assert journey.upload().code == 0
    assert journey.whole()


# ---- the steps after the upload


def test_steps_are_sent_once_per_session_and_not_by_a_second_run(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    journey.upload()
    assert journey.steps() == STEPS
    journey.upload()
    journey.upload("--verify")
    assert journey.steps() == STEPS


def test_steps_wait_for_the_last_file(journey: Journey) -> None:
    """Lesson C38."""
    one_visit(journey)
    journey.scan()
    lost = journey.data / VISIT.format(1)
    kept = lost.read_bytes()
    lost.unlink()
    assert journey.upload().code == 1
    assert journey.steps() == []
    lost.write_bytes(kept)
    assert journey.upload().code == 0
    assert journey.steps() == STEPS
    assert journey.whole()


def test_steps_that_a_killed_run_did_not_come_to_are_sent_by_the_next(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    assert journey.upload("--nopipeline").code == 0
    with journal.Journal(BOOK) as left:
        left.note("touched", project=journey.project, session=LABEL)
        session = journey.state()["0001"][LABEL]["id"]
        left.note(
            "made", server=journey.site.url, project=journey.project, session=LABEL, id=session, scan="2"
        )
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.steps() == STEPS
    assert journey.state()["0001"][LABEL]["scans"]["2"]["type"] == "Chest CT", "which the pull had changed"
    assert not journal.beside(BOOK).exists()


@pytest.mark.parametrize("reached", [False, True])
def test_steps_that_cannot_have_begun_are_sent_by_the_next_run_and_others_are_not(
    journey: Journey, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    one_visit(journey)
    journey.scan()

    def fail(*_: object, **__: object) -> None:
        raise xnat.RequestFailed(0, "No answer came.", "connection", reached=reached)

    with monkeypatch.context() as patched:
        patched.setattr(xnat.Server, "pull_session", fail)
        assert "No answer came" in journey.upload().err
    assert journey.statuses() == [Status.SUCCESS] * 2
    assert journey.steps() == (STEPS[1:] if reached else []), (
        "a pull that failed keeps no pipelines from starting"
    )
    assert journey.upload().code == 0
    assert journey.steps() == (STEPS[1:] if reached else STEPS)


@pytest.mark.parametrize("why", ["renumbered", "several studies"])
def test_headers_are_not_pulled_where_xnat_would_split_the_session(journey: Journey, why: str) -> None:
    one_visit(journey)
    if why == "renumbered":
        journey.file("Doe^John-0001/20200312/Other/b.dcm", SeriesNumber="2")
    else:
        journey.file("Doe^John-0001/20200312/Other/b.dcm", study="second of the day", SeriesNumber="5")
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert not any("pullDataFromHeaders" in step for step in journey.steps())
    assert "not asked to read the headers" in journey.session(LABEL).warnings


def test_a_type_that_the_steps_changed_is_set_again(journey: Journey) -> None:
    one_visit(journey, SeriesDescription="what the scanner called it")
    journey.scan()
    assert journey.upload().code == 0
    assert journey.steps() == STEPS
    assert journey.state()["0001"][LABEL]["scans"]["2"]["type"] == "Chest CT"


# ---- what servers and proxies do


def test_a_login_that_ends_in_mid_run_is_made_again(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("kill-session", method="PUT", path=f"/projects/{journey.project}/", every=2, times=3)
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()


def test_a_missing_right_is_said_once_and_ends_with_5(journey: Journey) -> None:
    for number in range(6):
        journey.file(f"Doe^John-000{number}/20200312/Chest CT/a.dcm")
    journey.scan()
    journey.site.fault("status", method="PUT", path=f"/projects/{journey.project}/", status=403)
    ran = journey.upload("--jobs", "1")
    assert ran.code == 5
    assert Status.SUCCESS not in journey.statuses()
    assert journey.puts() == 0
    assert journey.site.count("PUT", f"/projects/{journey.project}/") == 6, "once per subject"


def test_a_subject_that_is_refused_stops_none_of_the_others(journey: Journey) -> None:
    for number in range(3):
        journey.file(f"Doe^John-000{number}/20200312/Chest CT/a.dcm")
    journey.scan()
    journey.site.fault("status", method="PUT", path=f"/projects/{journey.project}/subjects/0001$", status=403)
    ran = journey.upload("--jobs", "1")
    assert ran.code == 1
    failed = [row.subject for row in journey.rows() if row.status is Status.FAILED]
    assert failed == ["0001"]
    assert sorted(str(status) for status in journey.statuses()) == ["failed", "success", "success"]


def test_a_scan_that_is_refused_stops_no_other_session_of_its_type(journey: Journey) -> None:
    for number in range(3):
        journey.file(f"Doe^John-000{number}/20200312/Chest CT/a.dcm")
    journey.scan()
    journey.site.fault(
        "status", method="PUT", path=f"/projects/{journey.project}/.*/scans/2\\?", status=403, times=1
    )
    assert journey.upload("--jobs", "1").code == 1
    assert sorted(str(status) for status in journey.statuses()) == ["failed", "success", "success"]


def test_a_part_that_is_too_large_is_halved(journey: Journey) -> None:
    one_visit(journey, 8, pixels=20_000)
    journey.file(VISIT.format("huge"), pixels=400_000, instance="99")
    journey.scan()
    journey.site.set(body_limit=100_000)
    ran = journey.upload()
    assert ran.code == 1
    bad = {row.file: row.message for row in journey.rows() if row.status is not Status.SUCCESS}
    assert set(bad) == {VISIT.format("huge")}
    assert "too large" in bad[VISIT.format("huge")]


def test_where_archives_are_refused_single_files_go(journey: Journey) -> None:
    one_visit(journey, 5)
    journey.scan()
    journey.site.set(refuse_archives=415)
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()
    assert journey.puts() == 6


def test_a_run_whose_workbook_was_taken_over_stops_and_leaves_it_alone(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def hold(workbook: Path) -> Iterator[SimpleNamespace]:
        lost = threading.Event()
        lost.set()
        yield SimpleNamespace(lost=lost)

    for number in range(5):
        journey.file(f"Doe^John-000{number}/20200312/Chest CT/a.dcm")
    journey.scan()
    before = BOOK.read_bytes()
    journey.site.fault("hang", method="PUT", path=f"/projects/{journey.project}/", seconds=0.3)
    with monkeypatch.context() as patched:
        patched.setattr(lock, "hold", hold)
        ran = journey.upload("--jobs", "1")
    assert ran.code == 2
    assert "took this spreadsheet over" in ran.err
    assert BOOK.read_bytes() == before
    journey.site.clear_faults()
    assert journey.upload().code == 0, "what the journal holds is taken in"
    assert journey.whole()


# ---- what people put into the workbook


def decorate(opened: openpyxl.Workbook) -> None:
    """Add what people add: a rule, a chart, a comment, a drop-down, a sheet of their own."""
    sheet = opened["Files"]
    yellow = PatternFill("solid", bgColor="FFFF00")
    sheet.conditional_formatting.add(
        "E2:E99", CellIsRule(operator="equal", formula=['"failed"'], fill=yellow)
    )
    sheet["B2"].comment = Comment("ask Jane", "me")
    own = opened.create_sheet("Mine")
    for number in range(1, 6):
        own.append([f"week {number}", number])
    choice = DataValidation(type="list", formula1='"yes,no,later"')
    own.add_data_validation(choice)
    choice.add("C1:C5")
    chart = BarChart()
    chart.add_data(Reference(own, min_col=2, min_row=1, max_row=5))
    own.add_chart(chart, "E2")
    own["A7"] = "=SUM(B1:B5)"


def test_an_upload_changes_statuses_and_nothing_else_in_the_workbook(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    journey.edit(decorate)
    before = parts(BOOK)
    assert journey.upload().code == 0
    after = parts(BOOK)
    changed = {name for name in before if before[name] != after.get(name)}
    assert set(after) >= set(before)
    assert changed <= {
        "xl/worksheets/sheet2.xml", "xl/worksheets/sheet3.xml", "xl/worksheets/_rels/sheet3.xml.rels",
        "[Content_Types].xml", "xl/styles.xml", "docProps/core.xml",
    }  # fmt: skip
    for part in ("charts/chart", "comments", "worksheets/sheet4"):
        assert any(part in name and before[name] == after[name] for name in before), part
    files = after["xl/worksheets/sheet2.xml"].decode()
    for kept in ("<conditionalFormatting", "<dataValidation", "legacyDrawing"):
        assert kept in files
    assert journey.statuses() == [Status.SUCCESS] * 2


def test_the_sessions_sheet_links_to_what_was_made(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    journey.upload()
    row = journey.session(LABEL)
    assert (row.done, row.failed, row.left) == (2, 0, 0)
    assert row.link.startswith(journey.site.url)


def test_the_count_of_requests_is_within_the_budget(journey: Journey) -> None:
    for series in ("2", "3", "4"):
        for number in range(4):
            journey.file(f"Doe^John-0001/20200312/Series {series}/a{number}.dcm", SeriesNumber=series)
            journey.file(f"Roe^Jane-0002/20200312/Series {series}/a{number}.dcm", SeriesNumber=series)
    journey.scan()
    before = journey.site.control("GET", "requests?count=1")["last"]
    assert json.loads(journey.upload("--json").out)["files"] == {"success": 24}
    seen = [one for one in journey.site.requests(since=before) if not _is_login(one["path"])]
    assert len(seen) <= 6 + 2 * 5 + 6 * 5 + 6, [one["path"] for one in seen]


def _is_login(path: str) -> bool:
    words = ("/JSESSION", "/auth", "/version", "/services/tokens", "/xapi", "/data/search/elements")
    return path == "/" or any(word in path for word in words)
