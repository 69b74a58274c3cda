"""Other XNAT clients, unmodified, against the sandbox: xnatpy, xnatutils, pyxnat, xnatctl and 1.1.9 of this tool.

Whatever a client asks for has to be an address that XNAT has, to its last part: XNAT answers longer ones with the
record of what they begin with, which would pass for an answer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pydicom
import pytest

from tests.helpers import builders
from tests.helpers.builders import md5
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.waiting import eventually
from xnatuploader.sandbox import routing

pytestmark = [pytest.mark.interop, pytest.mark.slow]

FILES = {"im0.dcm": b"first" * 900, "im1.dcm": b"second" * 900, "sub/a.dcm": b"third" * 10}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "xnat", projects=["TEST"], builder_idle=1.0, builder_interval=0.3) as running:
        yield running
        assert misdirected(running) == [], "\n".join(misdirected(running))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


READ_ON = {
    "ProjectResource": "(prearchive_code|accessibility)(/[^/]+)?",
    "SubjectResource": "status|history|projects(/[^/]+)?",
    "ExperimentResource": "status|history|projects(/[^/]+)?",
    "PrearcSessionListResource": "projects",
    "PrearcSessionResource": "logs(/[^/]+)?",
    "PrearcSessionResourceFiles": ".*",
    "FileList": ".*",
}
"""What some classes of XNAT read behind the address that leads to them; the others ignore what is left over."""
ELSEWHERE = ("data/version", "data/services/auth")
"""How 1.6 told its version, which clients still try; an address that a class brings itself (AuthenticationRestlet)."""


def misdirected(box: Sandbox) -> list[str]:
    """Requests below /data that no address of XNAT's table fits to its last part."""
    found = []
    for one in box.requests():
        path = urlsplit(one["path"]).path.strip("/")
        top, *parts = path.split("/")
        if top not in ("data", "REST") or path in ELSEWHERE:
            continue
        match = routing.match(parts)
        rest = "/".join(match.rest) if match is not None else path
        if rest and not (match and re.fullmatch(READ_ON.get(match.route.served_by, ""), rest)):
            found.append(f"{one['method']} {one['path']}")
    return found


def refused(box: Sandbox) -> list[str]:
    """Requests that a client made and the sandbox did not understand."""
    return [
        f"{one['method']} {one['path']} {one['status']}"
        for one in box.requests()
        if one["status"] >= 400 and "/data/version" not in one["path"]
    ]


def test_xnatpy_creates_uploads_lists_and_deletes(box: Sandbox, tree: Path) -> None:
    import xnat

    with xnat.connect(box.url, user=box.user, password=box.password, loglevel="ERROR") as session:
        project = session.projects["TEST"]
        subject = session.classes.SubjectData(parent=project, label="S1")
        visit = session.classes.CtSessionData(parent=subject, label="S1_CT1")
        scan = session.classes.CtScanData(parent=visit, id="7", type="Head")
        resource = scan.create_resource("DICOM")
        resource.upload(str(tree / "im0.dcm"), "im0.dcm", verbose=False)
        resource.upload_dir(str(tree), method="tgz_file")
        listed = {name: file.digest for name, file in resource.files.items()}
        assert listed == {name: md5(data) for name, data in FILES.items()}
        assert int(resource.files["im1.dcm"].size) == len(FILES["im1.dcm"])
        resource.files["im1.dcm"].delete()
        resource.clearcache()
        assert sorted(resource.files.keys()) == ["im0.dcm", "sub/a.dcm"]
        session.clearcache()
        project.clearcache()
        assert project.experiments["S1_CT1"].scans["7"].type == "Head"
        target = tree / "back.dcm"
        session.download(resource.files["im0.dcm"].uri, str(target), verbose=False)
        assert target.read_bytes() == FILES["im0.dcm"]
    assert refused(box) == []
    assert box.state()["TEST"]["S1"]["S1_CT1"]["xsi"] == "xnat:ctSessionData"


def test_xnatpy_says_that_a_password_is_wrong(box: Sandbox) -> None:
    import xnat
    from xnat.exceptions import XNATLoginFailedError

    with pytest.raises(XNATLoginFailedError, match="Authentication failed"):
        xnat.connect(box.url, user=box.user, password="wrong", loglevel="CRITICAL")


def test_xnatpy_logs_in_with_an_alias_token(box: Sandbox) -> None:
    import requests
    import xnat

    url = f"{box.url}/data/services/tokens/issue"
    token = requests.get(url, auth=(box.user, box.password), timeout=30).json()
    with xnat.connect(box.url, user=token["alias"], password=token["secret"], loglevel="ERROR") as session:
        assert session.logged_in_user == box.user


def test_xnatutils_puts_a_folder_as_one_archive(box: Sandbox, tmp_path: Path) -> None:
    import xnatutils

    # real DICOM: it has the server read the headers afterwards
    tree = tmp_path / "series"
    data = {
        f"im{n}.dcm": builders.dicom_bytes(instance=str(n), Modality="MR", SeriesNumber="3") for n in (1, 2)
    }
    tree.mkdir()
    for name, one in data.items():
        (tree / name).write_bytes(one)
    with xnatutils.base.connect(
        box.url, user=box.user, password=box.password, use_netrc=False, loglevel="ERROR"
    ) as connection:
        xnatutils.put(
            "S2_MR_MR01",
            "T1w",
            str(tree),
            resource_name="DICOM",
            project_id="TEST",
            subject_id="S2",
            scan_id="3",
            create_session=True,
            connection=connection,
        )
    assert refused(box) == []
    assert box.files() == {f"S2/S2_MR_MR01/3/DICOM/{name}": md5(one) for name, one in data.items()}
    assert box.state()["TEST"]["S2"]["S2_MR_MR01"]["date"] == "2020-03-12"


def test_xnatutils_asks_for_an_alias_token_after_a_prompt(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xnatutils

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setattr("xnatutils.base.input", lambda *_: box.user)
    monkeypatch.setattr("xnatutils.base.getpass.getpass", lambda *_: box.password)
    for _ in range(2):  # the second time with what the first one saved
        with xnatutils.base.connect(box.url, loglevel="ERROR") as connection:
            assert connection.logged_in_user == box.user
    assert box.count(path="tokens/issue") == 1


@pytest.fixture
def visit(tmp_path: Path) -> Path:
    """A zip of two slices, and the same in a folder beside it."""
    folder = tmp_path / "visit"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"im{number}.dcm").write_bytes(builders.dicom_bytes(instance=str(number)))
    return Path(shutil.make_archive(str(folder), "zip", folder))


def test_xnatpy_imports_into_the_archive(box: Sandbox, visit: Path) -> None:
    import xnat

    with xnat.connect(box.url, user=box.user, password=box.password, loglevel="ERROR") as session:
        made = session.services.import_(
            str(visit), project="TEST", subject="S1", experiment="S1_CT1", destination="/archive"
        )
        assert made.label == "S1_CT1"
        assert made.scans["2"].type == "Axial 5mm"
        resource = made.scans["2"].resources["DICOM"]
        assert len(resource.files) == 2
        (box.archive / "TEST/arc001/S1_CT1/SCANS/2/DICOM/im1.dcm").unlink()
        session.services.refresh_catalog(resource, delete=True)
        resource.clearcache()
        assert list(resource.files.keys()) == ["im2.dcm"]
    assert refused(box) == []


def test_xnatpy_works_through_the_prearchive(box: Sandbox, visit: Path) -> None:
    import xnat

    box.set(auto_archive=0)  # elsewhere XNAT archives them all the same (seen on 1.9.2.1)
    box.add_project("OTHER")
    with xnat.connect(box.url, user=box.user, password=box.password, loglevel="ERROR") as session:
        for label in ("A", "B"):
            session.services.import_(
                str(visit), project="TEST", subject="S1", experiment=label, destination="/prearchive"
            )
        waiting = {one.label: one for one in session.prearchive.sessions(project="TEST")}
        assert sorted(waiting) == ["A", "B"]
        first = waiting["A"]
        assert (first.subject, first.status, str(first.scan_date)) == ("S1", "READY", "2020-03-12")
        assert [scan.series_description for scan in first.scans.values()] == ["Axial 5mm"]
        files = first.scans["2"].files
        assert sorted(one.name for one in files) == ["im1.dcm", "im2.dcm"]
        assert first.scans["2"].read_dicom().PatientID == "A"  # the site's anonymisation sets the label
        first.rebuild()
        archived = first.archive(subject="S1", experiment="A")
        assert archived.label == "A"
        waiting["B"].move("OTHER")
        moved = session.prearchive.find(project="OTHER", session="B")
        assert len(moved) == 1
        moved[0].delete()
        assert session.prearchive.sessions() == []
    assert refused(box) == []


def test_pyxnat_puts_and_lists(box: Sandbox, tree: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyxnat

        interface = pyxnat.Interface(server=box.url, user=box.user, password=box.password)
        assert interface.select.projects().get() == ["TEST"]
        scan = interface.select.project("TEST").subject("S3").experiment("S3_MR1").scan("1")
        file = scan.resource("DICOM").file("im0.dcm")
        file.put(str(tree / "im0.dcm"), experiments="xnat:mrSessionData", scans="xnat:mrScanData")
        assert scan.resource("DICOM").files().get() == ["im0.dcm"]
        assert Path(file.get(str(tree / "back.dcm"))).read_bytes() == FILES["im0.dcm"]
        assert interface.select.project("TEST").subject("S3").label() == "S3"
        interface.disconnect()
    assert box.files() == {"S3/S3_MR1/1/DICOM/im0.dcm": md5(FILES["im0.dcm"])}


# -- xnatctl, in an environment of its own -------------------------------------------------------------------


@pytest.fixture
def control(box: Sandbox, xnatctl: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs xnatctl, logged in at the sandbox, and returns what it printed."""
    home = tmp_path / "home"
    home.mkdir()
    variables = {
        **{name: str(home) for name in ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA")},
        "XNAT_URL": box.url, "XNAT_USER": box.user, "XNAT_PASS": box.password, "PYTHONPATH": "", "PYTHONUTF8": "1",
    }  # fmt: skip

    def run(*words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [str(xnatctl), *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    run("config", "init", "--url", box.url, "--no-login")
    run("auth", "login")
    return run


def instance(path: Path) -> str:
    """Return an image's SOPInstanceUID."""
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


@pytest.mark.parametrize("mode", ["tar", "zip", "gradual"])
def test_xnatctl_uploads_lists_and_downloads(
    box: Sandbox, control: Callable[..., str], visit: Path, tmp_path: Path, mode: str
) -> None:
    folder = visit.with_suffix("")
    named = ("-P", "TEST", "-S", "S1", "-E", "S1_CT1")
    # two workers: two archives, or two requests at a time, for one session
    control("session", "upload", folder, *named, "--mode", mode, "--workers", "2")
    # it asks for Direct-Archive; there is no answer that waits for the session to be in the archive
    assert eventually(lambda: "S1_CT1" in box.state()["TEST"].get("S1", {}))
    one = ("-P", "TEST", "-E", "S1_CT1")
    assert [row["label"] for row in json.loads(control("session", "list", "-P", "TEST", "-o", "json"))] == [
        "S1_CT1"
    ]
    assert json.loads(control("session", "show", *one, "-o", "json"))["xsi_type"] == "xnat:ctSessionData"
    assert [row["id"] for row in json.loads(control("scan", "list", *one, "-o", "json"))] == ["2"]
    sent = {instance(path): path.name for path in folder.iterdir()}
    for workers in ("1", "2"):  # one zip of the session, or one of each scan
        target = tmp_path / workers
        control("session", "download", *one, "--out", target, "--extract", "--workers", workers)
        got = {instance(path): path.name for path in target.rglob("*.dcm")}
        assert got.keys() == sent.keys()  # the site's anonymisation leaves the UIDs
        if mode != "gradual":  # which sends single objects, without their names
            assert got == sent
    assert refused(box) == []


def test_xnatctl_works_through_the_prearchive(box: Sandbox, control: Callable[..., str], visit: Path) -> None:
    box.add_project("HOLD", code=0)  # elsewhere XNAT archives by itself, whatever --prearchive asks
    for label in ("A", "B", "C"):
        control(
            "session", "upload", visit.with_suffix(""), "-P", "HOLD", "-S", "S1", "-E", label, "--prearchive"
        )

    def waiting() -> dict[str, dict[str, str]]:
        rows = json.loads(control("prearchive", "list", "--project", "HOLD", "-o", "json"))
        return {row["name"]: row for row in rows}

    assert eventually(lambda: [row["status"] for row in waiting().values()] == ["READY"] * 3)
    times = {name: row["timestamp"] for name, row in waiting().items()}
    control("prearchive", "archive", "HOLD", times["A"], "A")
    control("prearchive", "move", "HOLD", times["B"], "B", "TEST")
    control("prearchive", "delete", "HOLD", times["C"], "C", "--yes")
    assert waiting() == {}
    assert list(box.state()["HOLD"]["S1"]) == ["A"]
    assert control("prearchive", "settings", "--project", "HOLD").count("manual") == 1
    assert refused(box) == []


def test_xnatctl_puts_a_folder_into_a_resource(box: Sandbox, control: Callable[..., str], tree: Path) -> None:
    box.put_state(
        {"TEST": {"S1": {"S1_CT1": {"xsi": "xnat:ctSessionData", "scans": {"2": {"type": "Head"}}}}}}
    )
    (session,) = json.loads(control("session", "list", "-P", "TEST", "-o", "json"))
    control("resource", "upload", session["id"], "DICOM", tree, "--scan", "2")
    assert box.files() == {f"S1/S1_CT1/2/DICOM/{name}": md5(data) for name, data in FILES.items()}
    assert refused(box) == []


def test_xnatctl_rebuild_asks_for_an_action_that_xnat_does_not_have(
    box: Sandbox, control: Callable[..., str], visit: Path
) -> None:
    # PrearcSessionResource.handlePost knows build, reset-status, move, commit and set-status; others are 400
    box.add_project("HOLD", code=0)
    control("session", "upload", visit.with_suffix(""), "-P", "HOLD", "-S", "S1", "-E", "A", "--prearchive")
    (row,) = json.loads(control("prearchive", "list", "--project", "HOLD", "-o", "json"))
    control("prearchive", "rebuild", "HOLD", row["timestamp"], "A", code=1)
    assert [one.partition("?")[2] for one in refused(box)] == ["action=rebuild 400"]


# -- 1.1.9 of this tool, in an environment of its own --------------------------------------------------------


def run_peer(peer: Path, folder: Path, *arguments: str) -> str:
    home = {"HOME": str(folder), "USERPROFILE": str(folder), "PYTHONPATH": "", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [str(peer), *arguments],
        cwd=folder,
        env={**os.environ, **home},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_1_1_9_uploads_the_example_tree(box: Sandbox, peer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    builders.seed_tree(folder / "data")
    host = urlsplit(box.url).netloc
    netrc = folder / ".netrc"
    netrc.write_text(f"machine {host}\nuser {box.user}\npassword {box.password}\n")
    netrc.chmod(0o600)
    run_peer(peer, folder, "init", "--spreadsheet", "files.xlsx")
    run_peer(peer, folder, "scan", "--spreadsheet", "files.xlsx", "--dir", "data")
    said = run_peer(
        peer,
        folder,
        "upload",
        "--spreadsheet",
        "files.xlsx",
        "--dir",
        "data",
        "--project",
        "TEST",
        "--server",
        box.url,
    )
    assert len(box.files()) == len(builders.SEED_FILES), said
    assert sorted(box.state()["TEST"]) == ["0001", "0342"]
    stored = {path.read_bytes() for path in box.archive.rglob("*.dcm")}
    assert stored == {(folder / "data" / name).read_bytes() for name in builders.SEED_FILES}
