"""How fast uploads are: `python -m tests.benchmarks.bench_upload [--rounds 1] [--only small,large,...]`.

Prints Markdown tables. Contenders take turns in one run against sandboxes on this machine: ours; 1.1.9, whose
executable the variable XNATUPLOADER_PEER names; xnatpy's `upload_dir`; and curl sending ready archives over as
many connections, into records that were made before. Ours, 1.1.9 and xnatpy are timed as whole processes, from
their start to their end, login and workbook included. A contender that takes longer than `--patience` seconds is
stopped, and the table says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from tests.helpers import builders
from tests.helpers.runs import BOOK, ROOT, in_own_process
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.upload import tar_body

JOBS = 4
PEER = os.environ.get("XNATUPLOADER_PEER", "")
XNATPY = """
import sys, time, xnat
url, project, data = sys.argv[1:4]
with xnat.connect(url, user="demo", password="demo", loglevel="ERROR") as session:
    subject = session.classes.SubjectData(parent=session.projects[project], label="0001")
    visit = session.classes.CtSessionData(parent=subject, label="V")
    import pathlib
    for number, folder in enumerate(sorted(pathlib.Path(data).glob("*/*/*")), 1):
        scan = session.classes.CtScanData(parent=visit, id=str(number), type=folder.name)
        scan.create_resource("DICOM").upload_dir(str(folder), method="tgz_file")
"""


@dataclass(frozen=True, slots=True)
class Took:
    """The result of one contender."""

    seconds: float
    requests: int = 0
    stopped: bool = False
    peak: float = 0.0
    """MB of its largest process."""
    sending: float = 0.0
    """Seconds from the first body to the last answer to one."""
    stored: int = 0
    """Files on the server afterwards."""


@dataclass(slots=True)
class Tree:
    """Files, and the workbooks that list them."""

    folder: Path
    scans: int
    files: int
    """In each scan."""
    size: int
    peer_too: bool = False
    _number: int = field(default=0)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def count(self) -> int:
        return self.scans * self.files

    def make(self) -> Tree:
        """Write the files and scan them, untimed."""
        self.folder.mkdir(parents=True)
        mark, series_mark = "1.2.826.0.1.1000000000000", "1.2.826.0.2.1000000"
        for scan in range(1, self.scans + 1):
            data = builders.dicom_bytes(
                SOPInstanceUID=mark, SeriesInstanceUID=series_mark, SeriesNumber=str(scan),
                SeriesDescription=f"Series {scan}", pixels=max(100, self.size - 1200), InstanceNumber="1",
            )  # fmt: skip
            data = data.replace(series_mark.encode(), f"1.2.826.0.2.1{scan:06}".encode())
            place = self.data / "Doe-0001" / "20200312" / f"Series {scan:03}"
            place.mkdir(parents=True)
            for number in range(self.files):
                uid = f"1.2.826.0.1.1{scan:06}{number:06}"
                (place / f"im{number:06}.dcm").write_bytes(data.replace(mark.encode(), uid.encode()))
        in_own_process(self.folder, "init", "--spreadsheet", BOOK)
        in_own_process(self.folder, "scan", "--dir", "data", "--spreadsheet", BOOK)
        shutil.copy(self.folder / BOOK, self.folder / "ours.xlsx")
        if self.peer_too and PEER:
            place = self.folder / "peer"
            place.mkdir()
            _peer(place, "init", "--spreadsheet", BOOK)
            _peer(place, "scan", "--spreadsheet", BOOK, "--dir", str(self.data))
            shutil.copy(place / BOOK, place / "scanned.xlsx")
        return self

    def archives(self) -> list[tuple[int, Path]]:
        """Write the archives that ours sends, for curl: (scan, file)."""
        made = []
        for scan in range(1, self.scans + 1):
            place = self.data / "Doe-0001" / "20200312" / f"Series {scan:03}"
            files = [
                tar_body.Outgoing(path.name, path.name, path.stat().st_size, path)
                for path in sorted(place.iterdir())
            ]
            for number, part in enumerate(tar_body.plan_parts(files)):
                target = self.folder / f"archive{scan}-{number}.tar"
                with target.open("wb") as stream:
                    for chunk in part:
                        stream.write(chunk)
                made.append((scan, target))
        return made


class Bench:
    """A sandbox per measurement, and the contenders."""

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder = folder
        self.patience = patience
        self._count = 0

    def sandbox(self, **switches: float) -> Sandbox:
        self._count += 1
        return Sandbox(self.folder / f"xnat{self._count}", projects=["P"], **switches)

    def ours(self, tree: Tree, *more: str, **switches: float) -> Took:
        """`upload` with its defaults."""
        shutil.copy(tree.folder / "ours.xlsx", tree.folder / BOOK)
        with self.sandbox(**switches) as box:
            return self._timed(box, [*_OURS, *_upload_words(box), *more], tree.folder, tree.count)

    def again(self, tree: Tree) -> Took:
        """A second run, with nothing to do (after `ours`)."""
        with self.sandbox() as box:
            return self._timed(box, [*_OURS, *_upload_words(box)], tree.folder, 0)

    def peer(self, tree: Tree, **switches: float) -> Took | None:
        if not PEER or not tree.peer_too:
            return None
        place = tree.folder / "peer"
        shutil.copy(place / "scanned.xlsx", place / BOOK)
        with self.sandbox(**switches) as box:
            netrc = place / ".netrc"
            netrc.write_text(
                f"machine {urlsplit(box.url).netloc}\nuser {box.user}\npassword {box.password}\n"
            )
            netrc.chmod(0o600)
            words = [PEER, "upload", "--spreadsheet", BOOK, "--project", "P", "--server", box.url]
            return self._timed(box, words, place, tree.count, {"HOME": str(place)})

    def xnatpy(self, tree: Tree, **switches: float) -> Took:
        with self.sandbox(**switches) as box:
            words = [sys.executable, "-c", XNATPY, box.url, "P", str(tree.data)]
            return self._timed(box, words, tree.folder, tree.count)

    def curl(self, tree: Tree, archives: Sequence[tuple[int, Path]], **switches: float) -> Took:
        """Send ready archives with `curl --parallel`, one after the other within a scan."""
        with self.sandbox(**switches) as box:
            box.set(latency=0.0)
            base = f"{box.url}/data/projects/P/subjects/S/experiments/V"
            session = requests.Session()
            session.auth = (box.user, box.password)
            session.put(f"{base}?xsiType=xnat:ctSessionData", timeout=60).raise_for_status()
            for scan in range(1, tree.scans + 1):
                session.put(f"{base}/scans/{scan}?xsiType=xnat:ctScanData", timeout=60).raise_for_status()
                session.put(
                    f"{base}/scans/{scan}/resources/DICOM?format=DICOM", timeout=60
                ).raise_for_status()
            box.set(**{"latency": 0.0, **switches})
            lanes: list[list[str]] = [[] for _ in range(JOBS)]
            for scan, path in archives:
                url = f"{base}/scans/{scan}/resources/DICOM/files/{path.name}?extract=true&inbody=true"
                lanes[scan % JOBS] += ["-T", str(path), url]
            script = " & ".join(
                f"curl -sS -o /dev/null -H 'Expect:' -b JSESSIONID={session.cookies['JSESSIONID']} "
                + " ".join(f"'{word}'" for word in lane)
                for lane in lanes
                if lane
            )
            return self._timed(box, ["sh", "-c", f"{script} & wait"], tree.folder, tree.count)

    def _timed(
        self, box: Sandbox, words: list[str], folder: Path, count: int, environ: dict[str, str] | None = None
    ) -> Took:
        """Run a contender to its end, or stop it after `patience` seconds."""
        box.clear_requests()
        variables = {
            **os.environ, "PYTHONPATH": str(ROOT) if words[0] != PEER else "", "HOME": str(folder),
            "XNAT_USER": box.user, "XNAT_PASS": box.password, **(environ or {}),
        }  # fmt: skip
        begun = time.monotonic()
        process = subprocess.Popen(
            words, cwd=folder, env=variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        peak = _Peak(process.pid)
        try:
            output, _ = process.communicate(timeout=self.patience)
            stopped = False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            output, stopped = b"", True
        seconds = time.monotonic() - begun
        high = peak.stop()
        seen = box.requests()
        stored = len(box.files("P"))
        if not stopped and (process.returncode != 0 or stored != count):
            raise SystemExit(
                f"{words[:4]} ended with {process.returncode}, {stored} files:\n{output.decode()[-2000:]}"
            )
        bodies = [one for one in seen if one["received"] > 1000 and one["method"] in ("PUT", "POST")]
        sending = 0.0
        if bodies:
            first = min(one["time"] for one in bodies)
            sending = max(one["time"] + one["seconds"] for one in bodies) - first
        return Took(seconds, sum(not _is_login(one["path"]) for one in seen), stopped, high, sending, stored)


class _Peak:
    """Watches the memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        self.high = 0.0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.high = max([self.high, *map(_resident, _family(self._pid))])

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self.high


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:
            continue
    return found


def _resident(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


_OURS = [sys.executable, "-m", "xnatuploader"]


def _upload_words(box: Sandbox) -> list[str]:
    return ["upload", "--spreadsheet", BOOK, "--dir", "data", "--server", box.url, "--project", "P"]


def _peer(folder: Path, *words: str) -> None:
    environ = {**os.environ, "PYTHONPATH": "", "HOME": str(folder)}
    subprocess.run([PEER, *words], cwd=folder, env=environ, stdin=subprocess.DEVNULL, check=True,
                   capture_output=True)  # fmt: skip


def _is_login(path: str) -> bool:
    words = ("/JSESSION", "/data/auth", "/version", "/tokens", "/xapi", "/search/elements", "/data/services")
    return path == "/" or any(word in path for word in words)


# ---- the tables


def table(title: str, head: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n| {' | '.join(['---'] * len(head))} |")
    for line in lines:
        print(f"| {' | '.join(str(cell) for cell in line)} |")
    sys.stdout.flush()


def typical(measure: Callable[[], Took | None], rounds: int) -> Took | None:
    """Take the median of the rounds by seconds."""
    took = [one for one in (measure() for _ in range(rounds)) if one is not None]
    if not took:
        return None
    middle = statistics.median_low([one.seconds for one in took])
    return next(one for one in took if one.seconds == middle)


def words_for(took: Took | None) -> str:
    if took is None:
        return "-"
    if took.stopped:
        return f"stopped after {took.seconds:.0f} s, {took.stored:,} files sent"
    return f"{took.seconds:.1f} s"


def ratio(ours: Took | None, other: Took | None) -> str:
    if ours is None or other is None:
        return "-"
    if other.stopped:
        return f"> {other.seconds / ours.seconds:.0f} x"
    return f"{other.seconds / ours.seconds:.1f} x"


def small(bench: Bench, asked: argparse.Namespace) -> None:
    """One scan of small files, with several delays per request."""
    lines = []
    for count in asked.counts:
        tree = Tree(bench.folder / f"small{count}", 1, count, 10_000, peer_too=True).make()
        for latency in (0.0, 0.005, 0.02):
            ours = typical(lambda: bench.ours(tree, latency=latency), asked.rounds)  # noqa: B023
            bench.patience = asked.patience if count <= 1000 else asked.long
            slow = (
                count > 1000 and latency < 0.02
            )  # its time grows with the square of the files: once is enough
            peer = None if slow else typical(lambda: bench.peer(tree, latency=latency), 1)  # noqa: B023
            bench.patience = max(asked.patience, 120.0)
            xnatpy = typical(lambda: bench.xnatpy(tree, latency=latency), asked.rounds)  # noqa: B023
            assert ours is not None
            lines.append(
                (
                    f"{count:,}", f"{latency * 1000:.0f} ms", words_for(ours), ours.requests, words_for(peer),
                    peer.requests if peer else "-", ratio(ours, peer), words_for(xnatpy),
                )
            )  # fmt: skip
    head = (
        "files of 10 kB",
        "delay per request",
        "ours",
        "requests",
        "1.1.9",
        "requests",
        "ours faster",
        "xnatpy",
    )
    table("One scan of small files", head, lines)


def large(bench: Bench, asked: argparse.Namespace) -> None:
    """Large files, against curl with the same archives."""
    tree = Tree(bench.folder / "large", 4, asked.large, 512_000).make()
    archives = tree.archives()
    size = tree.count * 0.512
    lines = []
    for name, switches in (("100 MB/s", {"bandwidth": 1e8}), ("none", {})):
        for _ in range(asked.rounds):
            curl = bench.curl(tree, archives, **switches)
            ours = bench.ours(tree, "--nopipeline", **switches)  # nor does curl ask XNAT to read the headers
            lines.append(
                (
                    name, f"{ours.seconds:.1f} s", f"{ours.sending:.1f} s", f"{size / ours.sending:.0f} MB/s",
                    f"{curl.seconds:.1f} s", f"{curl.sending:.1f} s", f"{size / curl.sending:.0f} MB/s",
                    f"{ours.sending / curl.sending:.2f}", f"{ours.seconds / curl.seconds:.2f}",
                )
            )  # fmt: skip
    head = ("throttle", "ours, whole run", "ours, sending", "rate", "curl, whole run", "curl, sending", "rate",
            "sending, ours / curl", "whole run, ours / curl")  # fmt: skip
    table(f"{tree.count:,} files of 512 kB over 4 scans, {JOBS} connections", head, lines)


def many(bench: Bench, asked: argparse.Namespace) -> None:
    """Many small scans."""
    tree = Tree(bench.folder / "many", 40, 25, 10_000, peer_too=True).make()
    lines = []
    for latency in (0.0, 0.02):
        ours = bench.ours(tree, latency=latency)
        peer = bench.peer(tree, latency=latency)
        xnatpy = bench.xnatpy(tree, latency=latency)
        lines.append(
            (f"{latency * 1000:.0f} ms", words_for(ours), ours.requests, words_for(peer),
             peer.requests if peer else "-", ratio(ours, peer), words_for(xnatpy), xnatpy.requests)
        )  # fmt: skip
    head = ("delay per request", "ours", "requests", "1.1.9", "requests", "ours faster", "xnatpy", "requests")
    table("40 scans of 25 files of 10 kB", head, lines)


def growth(bench: Bench, asked: argparse.Namespace) -> None:
    """Ten times the files; peak memory; the run after, with nothing to do."""
    lines = []
    before: Took | None = None
    for count in asked.growth:
        tree = Tree(bench.folder / f"growth{count}", max(1, count // 1000), min(count, 1000), 1_500).make()
        ours = bench.ours(tree, "--nopipeline")  # the steps afterwards are the server's work
        again = bench.again(tree)
        times = f"{ours.seconds / before.seconds:.1f} x" if before else "-"
        lines.append(
            (f"{count:,}", f"{ours.seconds:.1f} s", f"{count / ours.seconds:,.0f} files/s", times,
             f"{ours.peak:.0f} MB", f"{again.seconds:.1f} s", f"{again.peak:.0f} MB")
        )  # fmt: skip
        before = ours
        shutil.rmtree(tree.folder)
    head = ("files of 1.5 kB, 1,000 in a scan", "upload", "rate", "times the line above", "peak memory",
            "second run, nothing to do", "its peak memory")  # fmt: skip
    table("Growth", head, lines)


def capacity(bench: Bench, asked: argparse.Namespace) -> None:
    """How much the sandbox itself can take."""
    lines = []
    tree = Tree(bench.folder / "capacity", 4, 125, 512_000).make()
    curl = bench.curl(tree, tree.archives())
    lines.append(("archives of 512 kB files, 4 connections", f"{tree.count * 0.512 / curl.sending:.0f} MB/s"))
    tree = Tree(bench.folder / "capacity2", 4, 1000, 10_000).make()
    curl = bench.curl(tree, tree.archives())
    lines.append(("archives of 10 kB files, 4 connections", f"{tree.count / curl.sending:,.0f} files/s"))
    with bench.sandbox() as box:
        words = ["curl", "-s", "-o", "/dev/null", "-u", "demo:demo", f"{box.url}/data/auth?[1-500]"]
        begun = time.monotonic()
        subprocess.run(words, check=True)
        rate = 500 / (time.monotonic() - begun)
    lines.append(("small requests, 1 connection", f"{rate:,.0f} requests/s"))
    table("The sandbox's own limits", ("what", "rate"), lines)


SECTIONS = {"capacity": capacity, "small": small, "large": large, "many": many, "growth": growth}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for one measurement")
    parser.add_argument("--long", type=float, default=600.0, help="the same for 1.1.9 and thousands of files")
    parser.add_argument("--counts", type=int, nargs="*", default=[100, 800, 5000])
    parser.add_argument("--large", type=int, default=250, help="files of 512 kB in each of 4 scans")
    parser.add_argument("--growth", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--only", default=",".join(SECTIONS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.patience)
        for name in asked.only.split(","):
            SECTIONS[name](bench, asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
