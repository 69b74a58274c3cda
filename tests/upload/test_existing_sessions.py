"""Adding to sessions that exist, whoever made them: exit 0, the right bytes, and everything else as it was."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import builders
from tests.helpers.http_client import Client, zip_of
from tests.helpers.journeys import BOOK, LABEL, STEPS, STUDY, VISIT, Journey, one_visit
from tests.helpers.runs import Runner
from tests.helpers.sandbox_process import Sandbox
from xnatuploader import xnat
from xnatuploader.records import Status
from xnatuploader.upload import after as finishing
from xnatuploader.upload import direct, journal

SECOND = "Doe^John-0001/20200312/Neck CT/b{}.dcm"
"""The files of a second series of the same study, scan 3."""


@pytest.fixture(autouse=True)
def bytes_stay(site: Sandbox) -> None:
    """Switch the site's anonymisation off, so that bytes show what went where; a test may switch it on again."""
    site.set(anonymize_imports=False)


def by_this_tool(journey: Journey) -> None:
    """Have the session made by an earlier run of this workbook."""
    one_visit(journey)
    journey.scan()
    assert journey.upload().code == 0


def by_another_client(journey: Journey) -> None:
    """Have it made over REST by somebody else, with a scan that the workbook does not list."""
    client = Client(journey.site)
    session = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}"
    scan = f"{session}/scans/9"
    fields = f"xsiType=xnat:ctSessionData&xnat:ctSessionData/UID={STUDY}&xnat:ctSessionData/date=2020-03-12"
    client("PUT", f"{session}?{fields}")
    uid = builders.uid("series somebody else's")
    client("PUT", f"{scan}?xsiType=xnat:ctScanData&type=Theirs&xnat:ctScanData/UID={uid}&note=seen")
    client("PUT", f"{scan}/resources/DICOM?format=DICOM&content=RAW")
    for number in range(2):
        data = builders.dicom_bytes(
            study="Doe^John-0001 20200312", series="somebody else's", instance=str(number), SeriesNumber="9"
        )
        assert client("PUT", f"{scan}/resources/DICOM/files/their{number}.dcm", data).status_code == 200


def by_an_import(journey: Journey) -> None:
    """Have it made by XNAT's import service, by way of the prearchive."""
    one_visit(journey)
    journey.scan()
    assert journey.upload("--import-handler", "DICOM-zip").code == 0


def by_an_import_that_changed_it(journey: Journey) -> None:
    """The same on a site as it is shipped: its anonymisation changes every file on arrival."""
    journey.site.set(anonymize_imports=True)
    by_an_import(journey)


def below_a_shared_subject(journey: Journey) -> None:
    """Have it made by another client below a subject that is shared into the project: nobody may change that."""
    by_another_client(journey)
    subject = f"/projects/{journey.project}/subjects/0001([?]|$)"
    journey.site.fault("status", method="PUT", path=subject, status=403)


MADE = {
    "this tool": by_this_tool,
    "another client": by_another_client,
    "an import": by_an_import,
    "an import that changed it": by_an_import_that_changed_it,
    "another client, shared subject": below_a_shared_subject,
}


def session_of(journey: Journey) -> dict[str, Any]:
    return copy.deepcopy(journey.state()["0001"][LABEL])


@pytest.mark.slow
@pytest.mark.parametrize("maker", MADE)
@pytest.mark.parametrize("visit", [False, True])
def test_a_series_is_added_and_everything_else_stays(journey: Journey, maker: str, visit: bool) -> None:
    MADE[maker](journey)
    if visit:
        full = "xsiType=xnat:ctSessionData&xnat:ctSessionData/visit=v1&xnat:ctSessionData/protocol=p1"
        path = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}?{full}"
        assert Client(journey.site)("PUT", path).status_code == 200
    before, number = session_of(journey), journey.site.requests()[-1]["number"]
    assert before.get("visit", "") == ("v1" if visit else "")
    for name in range(3):
        journey.file(SECOND.format(name))
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert all(status is Status.SUCCESS for status in journey.statuses())

    after = session_of(journey)
    added = after["scans"].pop("3")
    assert after == before, "fields of the session, its scans, their files and digests"
    sent = {name: one["digest"] for name, one in added["resources"]["DICOM"]["files"].items()}
    assert sent == {
        row.filename: builders.md5((journey.data / row.file).read_bytes())
        for row in journey.rows()
        if row.scan_id == "3"
    }
    assert len(sent) == 3
    assert added["type"] == "Neck CT"
    assert int(added["frames"]) == 3, "XNAT has read the headers of what was added"
    puts = journey.site.requests("PUT", f"/projects/{journey.project}/|/data/experiments/", since=number)
    records = [one["path"].partition(f"/{journey.project}/")[2].partition("?")[0] for one in puts]
    assert not {"subjects/0001", f"subjects/0001/experiments/{LABEL}"} & set(records), "made again"
    steps = ["/scans/3?xsiType=xnat%3ActScanData&pullDataFromHeaders=true", *STEPS[1:]]
    assert journey.steps()[-3:] == steps
    pipelines = "/data/experiments/.*triggerPipelines=true"
    assert journey.site.count("PUT", pipelines, since=number) == 1


@pytest.mark.parametrize("maker", ["this tool", "an import"])
def test_what_is_there_is_not_sent_again_by_a_fresh_workbook(
    journey: Journey, maker: str, run: Runner
) -> None:
    MADE[maker](journey)
    before = session_of(journey)
    assert run("init", "--spreadsheet", "study.xlsx", "--force").code == 0
    journey.scan()
    puts = journey.puts()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()
    assert journey.puts() == puts
    assert session_of(journey) == before


def test_a_run_that_was_killed_after_it_made_a_scan_pulls_it_later(journey: Journey) -> None:
    """What was made is in the journal, so that the next run knows the session for its own."""
    one_visit(journey, 4)
    journey.scan()
    journey.site.fault("status", method="PUT", path=f"/projects/{journey.project}/.*/files/", status=403)
    assert journey.upload().code == 5
    journey.site.clear_faults()
    assert journey.upload().code == 0
    assert journey.whole()
    assert journey.steps() == STEPS


def test_files_are_added_to_a_scan_that_exists(journey: Journey) -> None:
    by_this_tool(journey)
    before = session_of(journey)
    for number in (2, 3):
        journey.file(VISIT.format(number))
    journey.scan()
    assert journey.upload().code == 0
    assert journey.whole()
    after = session_of(journey)
    files = after["scans"]["2"]["resources"]["DICOM"]["files"]
    for name, entry in before["scans"]["2"]["resources"]["DICOM"]["files"].items():
        assert files[name] == entry


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["DICOM-zip", "SI", "gradual-DICOM", "XAR"])
@pytest.mark.parametrize("cache", [False, True])
def test_every_handler_archives_and_is_verified(journey: Journey, handler: str, cache: bool) -> None:
    one_visit(journey)
    journey.file(SECOND.format(1))
    journey.scan()
    ran = journey.upload("--import-handler", handler, *(["--via-cache"] if cache else []))
    assert ran.code == 0, ran.err
    assert {row.message for row in journey.rows()} == {
        "Archived by XNAT's import service, with the same MD5."
    }
    assert journey.whole()


def test_a_subject_that_is_shared_into_the_project_is_not_made_again(journey: Journey) -> None:
    """XNAT refuses to change it with 403, though sessions below it may be made (TestSharing)."""
    one_visit(journey)
    client = Client(journey.site)
    subject = f"/data/projects/{journey.project}/subjects/0001"
    assert client("PUT", subject).status_code == 201
    journey.site.fault("status", method="PUT", path=f"{subject}$", status=403)
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole()


# ---- whose scans they are


def files_listed(journey: Journey, scan: str = "2") -> int:
    return len(session_of(journey)["scans"][scan]["resources"]["DICOM"]["files"])


def refuse_files(journey: Journey) -> None:
    """Have a run that makes the session and its scan, and is refused then."""
    journey.site.fault("status", method="PUT", path=f"/projects/{journey.project}/.*/files/", status=403)
    assert journey.upload().code == 5
    journey.site.clear_faults()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["this workbook", "somebody else"])
def test_a_session_that_was_deleted_and_came_by_an_import_is_nobodys_own(journey: Journey, how: str) -> None:
    one_visit(journey)
    journey.scan()
    refuse_files(journey)
    client = Client(journey.site)
    deleted = client("DELETE", f"/data/projects/{journey.project}/subjects/0001?removeFiles=true")
    assert deleted.status_code == 200
    if how == "this workbook":
        assert journey.upload("--import-handler", "DICOM-zip").code == 0
    else:
        body = zip_of({f"a{n}.dcm": (journey.data / VISIT.format(n)).read_bytes() for n in range(2)})
        names = f"PROJECT_ID={journey.project}&SUBJECT_ID=0001&EXPT_LABEL={LABEL}"
        path = f"/data/services/import?import-handler=DICOM-zip&dest=/archive&{names}"
        assert client("POST", path, body, headers={"Content-Type": "application/zip"}).status_code == 200
    for name in range(3):
        journey.file(SECOND.format(name))
    journey.scan()
    ran = journey.upload()
    assert ran.code == 0, ran.err
    assert journey.whole(), "the imported scan lists its files as before"
    assert "?pullDataFromHeaders=true" not in journey.steps()


@pytest.mark.slow
def test_what_was_made_on_another_server_is_not_believed_here(
    journey: Journey, run: Runner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two servers count sessions alike, and a project may bear the same name on both."""
    one_visit(journey)
    journey.scan()
    folder = tmp_path_factory.mktemp("other")
    with Sandbox(folder, projects=[journey.project], anonymize_imports=False) as other:
        there = ("--spreadsheet", "study.xlsx", "--dir", journey.data, "--project", journey.project)
        by_an_import(journey)
        number = session_of(journey)["id"]
        with journal.Journal(BOOK) as left:
            note = {"server": other.url, "project": journey.project, "session": LABEL}
            left.note("touched", **note)
            left.note("made", **note, id=number, scan="2")
        journey.file(VISIT.format(9))
        journey.scan()
        assert run("upload", *there, "--server", journey.site.url).code == 0
    assert journey.whole()
    assert files_listed(journey) == 3


def test_a_session_that_comes_while_the_run_is_at_work_stays_as_it_came(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_visit(journey)
    journey.scan()
    real = xnat.Server.create_subject

    def somebody_is_faster(self: xnat.Server, project: str, label: str) -> str:
        client = Client(journey.site)
        path = f"/data/projects/{project}/subjects/{label}/experiments/{LABEL}"
        full = "xsiType=xnat:ctSessionData&xnat:ctSessionData/visit=v1&xnat:ctSessionData/protocol=p1"
        client("PUT", f"{path}?{full}")
        return real(self, project, label)

    with monkeypatch.context() as patched:
        patched.setattr(xnat.Server, "create_subject", somebody_is_faster)
        assert journey.upload().code == 1
    assert {row.message for row in journey.rows()} == {direct.SESSION_MEANWHILE}
    assert (session_of(journey)["visit"], session_of(journey)["protocol"]) == ("v1", "p1")


def test_the_type_of_a_scan_that_somebody_else_made_stays(journey: Journey) -> None:
    one_visit(journey)
    scans = {"2": {"type": "Theirs", "UID": builders.uid("series Doe^John-0001 20200312/Chest CT")}}
    journey.there("0001", LABEL, UID=STUDY, date="2020-03-12", scans=scans)
    journey.scan()
    assert journey.upload().code == 0
    assert session_of(journey)["scans"]["2"]["type"] == "Theirs"


def test_a_list_of_scans_that_comes_empty_does_not_make_the_session_ours(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_an_import(journey)
    journey.file(VISIT.format(7))
    journey.scan()
    real, calls = xnat.Server.scans, iter(range(9))

    def once(self: xnat.Server, session: str) -> list[xnat.RemoteScan]:
        return real(self, session) if next(calls) == 0 else []

    monkeypatch.setattr(xnat.Server, "scans", once)
    assert journey.upload().code == 0
    assert "?pullDataFromHeaders=true" not in journey.steps()


# ---- steps that are due


def test_steps_of_a_session_that_was_set_to_n_are_sent_and_then_over(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(xnat.Server, "scans", unreachable)
        assert journey.upload().code == 0
    assert journey.steps() == []
    journey.put("Upload", "N", sheet="Sessions")
    assert journey.upload().code == 0
    assert journey.steps() == STEPS
    asked = journey.site.requests()[-1]["number"]
    assert journey.upload().out.startswith("Nothing to do")
    assert journey.site.requests()[-1]["number"] == asked, "not even a login"


def unreachable(self: xnat.Server, session: str) -> list[xnat.RemoteScan]:
    raise xnat.RequestFailed(0, "No answer came.", "connection", reached=False)


def test_pipelines_wait_for_a_pull_whose_answer_was_lost(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("status", method="PUT", path="pullDataFromHeaders", status=504, when="after", times=1)
    looks: list[int] = []

    def under_way(self: xnat.Server, session: str) -> bool:
        looks.append(len(journey.steps()))
        return len(looks) < 3

    monkeypatch.setattr(xnat.Server, "pull_under_way", under_way)
    monkeypatch.setattr(finishing, "PAUSE_SECONDS", 0.01)
    assert journey.upload().code == 0
    assert looks == [1, 1, 1], "nothing more is asked for meanwhile"
    assert journey.steps() == STEPS


@pytest.mark.parametrize("ended", ["Complete", "Failed"])
def test_a_pull_whose_answer_was_lost_is_a_failure_only_where_the_history_says_so(
    journey: Journey, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("status", method="PUT", path="pullDataFromHeaders", status=504, when="after", times=1)
    if ended == "Failed":
        monkeypatch.setattr(xnat.Server, "_newest_event", lambda self, session, action: (1, ended))
    ran = journey.upload()
    assert ran.code == 0
    assert ("could not read their headers" in ran.err) == (ended == "Failed")
    assert journey.steps() == STEPS


def test_a_pull_that_never_ends_leaves_the_other_steps_to_the_next_run(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("status", method="PUT", path="pullDataFromHeaders", status=504, when="after", times=1)
    with monkeypatch.context() as patched:
        patched.setattr(xnat.Server, "pull_under_way", lambda self, session: True)
        patched.setattr(finishing, "PULL_SECONDS", 0.0)
        ran = journey.upload()
        assert ran.code == 0
        assert "still reading headers" in ran.err
    assert journey.steps() == STEPS[:1]
    assert journey.upload().code == 0
    assert journey.steps() == [STEPS[0], *STEPS]


@pytest.mark.parametrize("added", [False, True])
def test_a_pull_that_an_earlier_run_left_under_way_is_not_sent_again(
    journey: Journey, monkeypatch: pytest.MonkeyPatch, added: bool
) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("status", method="PUT", path="pullDataFromHeaders", status=504, when="after", times=1)
    with monkeypatch.context() as patched:
        patched.setattr(xnat.Server, "pull_under_way", lambda self, session: True)
        patched.setattr(finishing, "PULL_SECONDS", 0.0)
        assert journey.upload().code == 0
    if added:
        journey.file(SECOND.format(1))
        journey.scan()
    looks = iter([True, True, False])
    monkeypatch.setattr(xnat.Server, "pull_under_way", lambda self, session: next(looks))
    monkeypatch.setattr(finishing, "PAUSE_SECONDS", 0.01)
    assert journey.upload().code == 0
    assert journey.steps() == ([STEPS[0], *STEPS] if added else STEPS), "what was added is read after it"


@pytest.mark.parametrize("when", ["after", "before"])
def test_pipelines_whose_answer_was_lost_are_called_started_where_xnat_says_so(
    journey: Journey, when: str
) -> None:
    one_visit(journey)
    journey.scan()
    journey.site.fault("status", method="PUT", path="triggerPipelines", status=504, when=when)
    ran = journey.upload()
    assert ran.code == 0
    assert journey.steps() == STEPS
    assert ("could not be started" in ran.err) == (when == "before")


def test_pulls_of_several_scans_do_not_cross(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    by_an_import(journey)
    for series, number in (("Neck CT", "3"), ("Head CT", "4")):
        journey.file(f"Doe^John-0001/20200312/{series}/b.dcm", SeriesNumber=number)
    journey.scan()
    journey.site.fault("status", method="PUT", path="pullDataFromHeaders", status=504, when="after", times=2)
    looks: list[int] = []

    def under_way(self: xnat.Server, session: str) -> bool:
        looks.append(len(journey.steps()))
        return len(looks) % 2 == 1

    monkeypatch.setattr(xnat.Server, "pull_under_way", under_way)
    monkeypatch.setattr(finishing, "PAUSE_SECONDS", 0.01)
    assert journey.upload().code == 0
    assert looks == [1, 1, 2, 2]


def test_a_scan_that_was_deleted_meanwhile_is_not_made_by_its_pull(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_visit(journey)
    journey.file(SECOND.format(1))
    journey.scan()
    with monkeypatch.context() as patched:
        patched.setattr(xnat.Server, "scans", unreachable)
        assert journey.upload().code == 0
    client = Client(journey.site)
    session = f"/data/projects/{journey.project}/subjects/0001/experiments/{LABEL}"
    assert client("DELETE", f"{session}/scans/3").status_code == 200
    client(
        "PUT", f"{session}/scans/9?xsiType=xnat:ctScanData"
    )  # somebody's, so that scans are pulled one by one
    assert journey.upload().code == 0
    assert set(session_of(journey)["scans"]) == {"2", "9"}
    assert journey.steps() == ["/scans/2?xsiType=xnat%3ActScanData&pullDataFromHeaders=true", *STEPS[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True])
def test_a_session_sent_by_half_and_set_to_n_waits_for_its_steps(journey: Journey, back: bool) -> None:
    one_visit(journey)
    journey.file(SECOND.format(1))
    journey.scan()
    journey.site.fault(
        "status", method="PUT", path=f"/projects/{journey.project}/.*/scans/3/.*/files/", status=403
    )
    assert journey.upload().code == 1
    journey.site.clear_faults()
    journey.put("Upload", "N", sheet="Sessions")
    assert journey.upload().code == 0
    assert journey.steps() == []
    if back:
        journey.put("Upload", "Y", sheet="Sessions")
        assert journey.upload().code == 0
        assert journey.steps() == STEPS, "it is still known for this workbook's own"


def test_a_session_of_which_nothing_is_wanted_any_more_is_due_no_longer(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    refuse_files(journey)
    journey.put("Upload", "N")
    assert journey.upload().code == 0
    assert journey.steps() == []
    assert journey.upload().out.startswith("Nothing to do")


@pytest.mark.slow
def test_steps_that_are_due_on_another_server_wait_for_it(
    journey: Journey, run: Runner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one_visit(journey)
    journey.scan()
    refuse_files(journey)
    with Sandbox(tmp_path_factory.mktemp("other"), projects=["P"]) as other:
        there = (
            "--spreadsheet",
            "study.xlsx",
            "--dir",
            journey.data,
            "--project",
            "NOPE",
            "--server",
            other.url,
        )
        assert run("upload", *there).code == 5
    assert run(
        "upload", "--spreadsheet", "study.xlsx", "--dir", journey.data, "--project", journey.project,
        "--server", journey.site.url.upper().replace("HTTP", "http") + "/",
    ).code == 0  # fmt: skip
    assert journey.steps() == STEPS


ENDS_AT_PIPELINES = """
import os, sys
from xnatuploader import cli, xnat
start = xnat.Server.start_pipelines
def ends(self, session):
    if sys.argv[1] == "arrived":
        start(self, session)
    os._exit(9)
xnat.Server.start_pipelines = ends
cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize("request_word", ["arrived", "never sent"])
def test_a_run_that_ended_while_it_asked_for_pipelines_starts_them_once(
    journey: Journey, request_word: str
) -> None:
    one_visit(journey)
    journey.scan()
    words = ["upload", "--spreadsheet", BOOK, "--dir", journey.data, "--server", journey.site.url]
    command = [sys.executable, "-c", ENDS_AT_PIPELINES, request_word, *words, "--project", journey.project]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 9
    assert journey.steps() == (STEPS if request_word == "arrived" else STEPS[:-1])
    assert journey.upload().code == 0
    assert journey.steps() == STEPS, "none of the steps is asked for twice"
    assert journey.upload().out.startswith("Nothing to do")


def test_what_is_sent_after_pipelines_were_asked_for_gets_all_steps(journey: Journey) -> None:
    one_visit(journey)
    journey.scan()
    assert journey.upload().code == 0
    session = journey.state()["0001"][LABEL]["id"]
    here = {"server": journey.site.url, "project": journey.project, "session": LABEL}
    with journal.Journal(BOOK, here) as left:
        left.note("touched", **here)
        left.note("made", **here, id=session, scan="")
    journey.file(SECOND.format(1))
    journey.scan()
    assert journey.upload().code == 0
    asked = journey.steps()[len(STEPS) :]
    assert [step.rpartition("?")[2] for step in asked] == [
        "xsiType=xnat%3ActScanData&pullDataFromHeaders=true",
        *(step[1:] for step in STEPS[1:]),
    ]


def test_the_history_tells_of_a_pull_and_of_pipelines(journey: Journey) -> None:
    by_this_tool(journey)
    number = session_of(journey)["id"]
    events = Client(journey.site)("GET", f"/data/experiments/{number}/history").json()["events"]
    assert [(one["event_action"], one["event_status"]) for one in events] == [
        ("Pulled Data from DICOM", "Complete"),
        ("AutoRun", "Queued"),
    ]
