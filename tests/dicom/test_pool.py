import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers import builders
from tests.helpers.openers import KILLER, SLOW_OPEN, deadly_open, refusing_open, slow_open
from xnatuploader import records
from xnatuploader.dicom import header, pool, reader
from xnatuploader.scan import find

RULES = reader.Rules()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Make 600 files in three folders, all of one study, each its own instance."""
    root = tmp_path_factory.mktemp("tree")
    data = builders.dicom_bytes(instance="1", SOPInstanceUID="1.2.3.0001")
    for number in range(600):
        path = root / f"series{number // 200}" / f"scan{number:04}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.replace(b"1.2.3.0001", f"1.2.3.{number:04}".encode()))
    return root


def read(root, files=None, **options):
    found = list(find.list_files(root)) if files is None else files
    return list(pool.read_all(root, found, ["PatientName"], RULES, **options))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("jobs", [1, 4])
def test_every_file_is_read_once_and_in_order(tree, workers, jobs):
    files = list(find.list_files(tree))
    got = read(tree, files, workers=workers, jobs=jobs)
    assert [found for found, _ in got] == files
    assert [one.values["SOPInstanceUID"] for _, one in got] == [f"1.2.3.{number:04}" for number in range(600)]
    assert {one.values["PatientName"] for _, one in got} == {"Doe^John"}
    assert {one.status for _, one in got} == {records.Status.EMPTY}


def test_no_files_give_nothing(tmp_path):
    assert read(tmp_path, [], workers=2) == []
    assert read(tmp_path, []) == []


def test_files_with_an_error_keep_their_order_and_are_not_opened(tree):
    files = list(find.list_files(tree))[:40]
    files.insert(3, records.FoundFile("pipe", 0, "", "Not an ordinary file."))
    files.append(records.FoundFile("closed", 0, "", "No right."))
    for workers in (0, 1):
        got = read(tree, files, workers=workers)
        assert [found for found, _ in got] == files
        assert (got[3][1].status, got[3][1].message) == (records.Status.SKIPPED, "Not an ordinary file.")
        assert (got[-1][1].status, got[-1][1].message) == (records.Status.SKIPPED, "No right.")
        assert got[4][1].status is records.Status.EMPTY


def test_a_file_that_vanished_since_the_listing_is_missing(tree):
    files = [records.FoundFile("gone.dcm", 10, ""), *find.list_files(tree)][:5]
    assert [one.status.value for _, one in read(tree, files)] == ["missing", "", "", "", ""]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_files_of_slow_storage_come_in_order_too(tree, workers):
    files = list(find.list_files(tree))
    got = read(tree, files, workers=workers, opener=slow_open)
    assert [found for found, _ in got] == files
    assert {one.status for _, one in got} == {records.Status.EMPTY}


def test_one_job_has_one_file_in_flight(tree):
    flying, most = [0], [0]
    lock, here, enough = threading.Lock(), threading.current_thread(), threading.Event()

    def counted(path):
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
            if most[0] >= 16:
                enough.set()
        time.sleep(SLOW_OPEN)
        if threading.current_thread() is not here:
            enough.wait(0.2)
        with lock:
            flying[0] -= 1
        return header.open_file(path)

    files = list(find.list_files(tree))
    read(tree, files[:60], jobs=1, opener=counted)
    assert most[0] == 1
    read(tree, files, jobs=4, opener=counted, workers=0)
    assert most[0] >= 16


@pytest.mark.slow
@pytest.mark.parametrize("at", [20, 599])
def test_a_file_that_kills_its_worker_is_the_only_one_lost(tree, tmp_path, at):
    files = list(find.list_files(tree))
    killer = tree / "series0" / KILLER
    killer.write_bytes(builders.dicom_bytes())
    files.insert(at, records.FoundFile(f"series0/{KILLER}", 10, ""))
    got = read(tree, files, workers=2, opener=deadly_open)
    killer.unlink()
    assert [found for found, _ in got] == files
    assert [found.file for found, one in got if one.status is records.Status.SKIPPED] == [f"series0/{KILLER}"]
    assert "could not be read" in got[at][1].message


@pytest.mark.slow
def test_two_killers_are_the_only_ones_lost(tree):
    files = list(find.list_files(tree))
    for at in (50, 400):
        files.insert(at, records.FoundFile(f"nowhere{at}/{KILLER}", 10, ""))
    got = read(tree, files, workers=2, opener=deadly_open)
    assert [at for at, (_, one) in enumerate(got) if one.status is records.Status.SKIPPED] == [50, 400]


def test_where_no_worker_can_be_started_this_process_reads(tree, monkeypatch):
    def refuse(*arguments):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(pool._Worker, "__init__", refuse)
    got = read(tree, workers=2)
    assert {one.status for _, one in got} == {records.Status.EMPTY}


@pytest.mark.slow
def test_every_file_without_right_has_its_row(tree):
    got = read(tree, workers=2, opener=refusing_open)
    assert {(one.status, one.message) for _, one in got} == {
        (
            records.Status.SKIPPED,
            "You may not read this file. Ask its owner for the right to read it, then scan again.",
        )
    }


def test_closing_early_leaves_no_process_and_no_thread_behind(tree):
    before = set(threading.enumerate())
    results = pool.read_all(tree, list(find.list_files(tree)), [], RULES, workers=2)
    assert len(list(itertools.islice(results, 3))) == 3
    results.close()
    assert multiprocessing.active_children() == []
    assert set(threading.enumerate()) <= before


def test_the_first_result_does_not_wait_for_the_workers(tree, monkeypatch):
    has_result = threading.Event()

    def start_late(worker):
        assert has_result.wait(60)
        raise OSError

    monkeypatch.setattr(pool._Worker, "__init__", start_late)
    results = pool.read_all(tree, list(find.list_files(tree)), [], RULES, workers=2)
    next(results)
    has_result.set()
    assert len(list(results)) == 599


@pytest.mark.parametrize(
    ("jobs", "processors", "workers"), [(4, 1, 0), (1, 8, 0), (4, 2, 2), (2, 4, 4), (4, 64, 8)]
)
def test_workers_are_few(monkeypatch, jobs, processors, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)), raising=False)
    assert pool.worker_count(jobs) == workers


def test_workers_are_started_only_for_much_work(tree, monkeypatch):
    started = []

    def start(worker):
        started.append(worker)
        raise OSError

    monkeypatch.setattr(pool._Worker, "__init__", start)
    monkeypatch.setattr(pool, "worker_count", lambda jobs: 2)
    read(tree)
    assert not started
    monkeypatch.setattr(pool, "WORKERS_PAY", 1e-6)
    assert len(read(tree)) == 600
    assert started


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C as POSIX does")
def test_ctrl_c_ends_reading_at_once_and_quietly(tree, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "from xnatuploader.scan import find\n"
        "from xnatuploader.dicom import pool, reader\n"
        "from tests.helpers.openers import slow_open\n"
        "if __name__ == '__main__':\n"
        "    root = pathlib.Path(sys.argv[1])\n"
        "    files = list(find.list_files(root)) * 200\n"
        "    try:\n"
        "        got = pool.read_all(root, files, [], reader.Rules(), workers=2, opener=slow_open)\n"
        "        for found, _ in got:\n"
        "            print(found.file, flush=True)\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, script, tree],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert process.stdout is not None
    for _ in range(300):
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.endswith("stopped\n")
    assert err == ""
    assert process.returncode == 0
