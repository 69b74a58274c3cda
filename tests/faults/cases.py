"""The faults: each case causes one, runs the program again as a user would, and counts the results."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.faults.nursery import KILLED, Nursery
from tests.faults.trial import Scene, Tally, Trial, md5_of
from xnatuploader.records import Status


@dataclass(frozen=True, slots=True)
class Scale:
    """How often each case is repeated."""

    kills: int = 100
    repeats: int = 3
    seed: int = 20
    boost: int = 1
    """Faults are so many times as frequent: a short run has to meet some too."""


FULL = Scale()
SHORT = Scale(kills=3, repeats=1, boost=4)

Case = Callable[[Scene, Tally, Scale], None]


# ---- SIGKILL


def killed(scene: Scene, tally: Tally, scale: Scale) -> None:
    """SIGKILL at a random moment, then a run to the end."""
    chance = random.Random(scale.seed)
    usual = scene.trial()
    begun = time.monotonic()
    assert usual.run({"save_every": 0.2}) == 0, usual.last.said()
    lasts = time.monotonic() - begun
    while tally.injected < scale.kills:
        if tally.injected % 20 == 19:
            scene.fresh_server()
        trial = scene.trial()
        run = trial.start({"save_every": 0.2})
        time.sleep(chance.uniform(0.0, 0.9 * lasts))
        run.kill()
        tally.injected += run.wait() == KILLED
        if not trial.is_whole():
            tally.complain("the workbook is damaged after a kill")
        _go_on(trial, tally)


def _go_on(trial: Trial, tally: Tally) -> None:
    """Run to the end after a kill: what the server holds is not sent again."""
    held = _held(trial)
    mark = trial.mark()
    code = trial.run({})
    if code != 0:
        tally.complain(f"the run after a kill ended with {code}: {trial.last.said()[-300:]}")
    sent = trial.files_sent(mark)
    tally.twice += max(0, sent - (trial.scene.count - len(held)))
    trial.judge(tally)


def _held(trial: Trial) -> dict[str, str]:
    """Return what the server holds, once it has noticed that its client is gone."""
    held = trial.on_server()
    for _ in range(20):
        time.sleep(0.05)
        now = trial.on_server()
        if now == held:
            break
        held = now
    return held


def killed_while_saving(scene: Scene, tally: Tally, scale: Scale) -> None:
    """SIGKILL while results are written into the workbook, again and again in one trial."""
    chance = random.Random(scale.seed + 1)
    for _ in range(scale.repeats):
        trial = scene.trial()
        assert trial.run({}) == 0
        begun = time.monotonic()
        assert trial.run({"save_every": 0.0}, "--verify") == 0
        lasts = time.monotonic() - begun
        for _ in range(max(3, scale.kills // 10)):
            run = trial.start({"save_every": 0.0}, "--verify")
            time.sleep(chance.uniform(0.2, 0.9) * lasts)
            run.kill()
            tally.injected += run.wait() == KILLED
            if not trial.is_whole():
                tally.complain("the workbook is damaged after a kill")
        mark = trial.mark()
        if trial.run({}) != 0:
            tally.complain(trial.last.said()[-300:])
        tally.twice += trial.files_sent(mark)
        trial.judge(tally)


# ---- what the server and the network do


def _with_rules(
    *rules: dict[str, Any],
    conditions: dict[str, Any] | None = None,
    calm_after: int = 4,
    sends_again: bool = False,
) -> Case:
    """Return a case with these rules: the program runs until it has sent all, without them after `calm_after` runs.

    `sends_again`: the fault hides from the client what was stored, so that it has to be sent again.
    """

    def case(scene: Scene, tally: Tally, scale: Scale) -> None:
        for repeat in range(scale.repeats):
            trial = scene.trial()
            for number, rule in enumerate(rules):
                scene.box.fault(**_boosted(rule, scale), seed=scale.seed + 100 * repeat + number)
            code = 1
            for run in range(calm_after + 2):
                if run == calm_after:
                    tally.injected += _struck(scene)
                code = trial.run({"part_files": 3, **(conditions or {})})
                if code == 0:
                    break
                if code not in (1, 4):
                    tally.complain(f"ended with {code}: {trial.last.said()[-300:]}")
            tally.injected += _struck(scene)
            if code != 0:
                tally.complain(f"did not send everything: {trial.last.said()[-300:]}")
            again = max(0, trial.files_sent() - scene.count)
            tally.twice += 0 if sends_again else again
            tally.hidden += again if sends_again else 0
            trial.judge(tally)

    return case


def _boosted(rule: dict[str, Any], scale: Scale) -> dict[str, Any]:
    ready = dict(rule)
    if "probability" in rule:
        ready["probability"] = rule["probability"] * scale.boost
    if "times" not in rule and "every" in rule:
        ready["every"] = max(5, rule["every"] // scale.boost)
    return ready


def _struck(scene: Scene) -> int:
    count = sum(int(rule["struck"]) for rule in scene.box.faults())
    scene.box.clear_faults()
    return count


def _five_percent(do: str, **values: Any) -> dict[str, Any]:
    return {"do": do, "probability": 0.05, **values}


def _errors(when: str) -> list[dict[str, Any]]:
    return [
        {"do": "status", "status": status, "when": when, "probability": 0.0125}
        for status in (500, 502, 503, 429)
    ]


def server_away(scene: Scene, tally: Tally, scale: Scale) -> None:
    """The server does not come back: exit 4 after two minutes (of a fast clock), the rest `interrupted`."""
    for _ in range(scale.repeats):
        trial = scene.trial()
        with _slow(scene, 0.05):
            run = trial.start({"fast_clock": 60.0, "part_files": 3})
            _after_puts(trial, 3)
            scene.box.kill()
            tally.injected += 1
            code = run.wait()
        if code != 4:
            tally.complain(f"ended with {code} instead of 4: {run.said()[-300:]}")
        if not {Status.SUCCESS, Status.INTERRUPTED} >= {row.status for row in trial.rows()}:
            tally.complain("a row has a status that it cannot have")
        scene.box.options.settings["latency"] = 0.0
        scene.box.start()
        scene.box.add_project(trial.project)
        _go_on(trial, tally)


def server_restarts(scene: Scene, tally: Tally, scale: Scale) -> None:
    """The server is killed in the middle of the upload and comes back: the run goes on by itself."""
    for _ in range(scale.repeats):
        trial = scene.trial()
        with _slow(scene, 0.05):
            run = trial.start({"fast_clock": 4.0, "part_files": 3})
            _after_puts(trial, 3)
            scene.box.kill()
            tally.injected += 1
            scene.box.options.settings["latency"] = 0.0
            time.sleep(0.5)
            scene.box.start()
            code = run.wait()
        if code != 0:
            tally.complain(f"ended with {code}: {run.said()[-500:]}")
        trial.judge(tally)


def server_disk_full(scene: Scene, tally: Tally, scale: Scale) -> None:
    """The server's disk is full: one message, exit 4, and the next run goes on."""
    for repeat in range(scale.repeats):
        trial = scene.trial()
        scene.box.fault("disk-full", method="PUT", path="/files/", first=3 + repeat)
        code = trial.run()
        tally.injected += _struck(scene)
        if code != 4:
            tally.complain(f"ended with {code} instead of 4: {trial.last.said()[-300:]}")
        _go_on(trial, tally)


def reader(scene: Scene, tally: Tally, scale: Scale) -> None:
    """An account that may only read: exit 5 and one message, nothing sent, nothing called success."""
    trial = scene.trial()
    code = trial.run({}, user="reader")
    tally.injected += 1
    if code != 5 or trial.puts() or Status.SUCCESS in {row.status for row in trial.rows()}:
        tally.complain(f"ended with {code}: {trial.last.said()[-300:]}")
    if trial.last.said().lower().count("right") > 4:
        tally.complain("the message about rights came more than once")
    _go_on(trial, tally)


# ---- what happens on this computer


def client_disk_full(scene: Scene, tally: Tally, scale: Scale) -> None:
    """No room for journal and workbook: exit 6, the workbook as it was, and the next run writes the results."""
    size = scene.template.stat().st_size
    for limit in (2_000, size // 2, size - 500)[: max(1, scale.repeats)]:
        trial = scene.trial()
        code = trial.run({"largest_file": limit})
        tally.injected += 1
        if code != 6:
            tally.complain(f"ended with {code} instead of 6: {trial.last.said()[-300:]}")
        if not trial.is_whole():
            tally.complain("the workbook is damaged")
        _go_on(trial, tally)


def workbook_held(scene: Scene, tally: Tally, scale: Scale) -> None:
    """Excel holds the workbook to the end: exit 6, and the next run takes the results from the journal."""
    for _ in range(scale.repeats):
        trial = scene.trial()
        code = trial.run({"workbook_held": 99})
        tally.injected += 1
        if code != 6 or not list(trial.folder.glob("*.journal")):
            tally.complain(f"ended with {code} instead of 6: {trial.last.said()[-300:]}")
        mark = trial.mark()
        if trial.run() != 0:
            tally.complain(trial.last.said()[-300:])
        tally.twice += trial.files_sent(mark)
        trial.judge(tally)


def workbook_deleted(scene: Scene, tally: Tally, scale: Scale) -> None:
    """Somebody deletes the workbook during the upload, and later puts an older copy in its place."""
    _workbook_replaced(scene, tally, scale, lambda trial: trial.book.unlink())


def workbook_replaced(scene: Scene, tally: Tally, scale: Scale) -> None:
    """Somebody restores an older copy of the workbook during the upload."""
    _workbook_replaced(scene, tally, scale, lambda trial: shutil.copy(scene.template, trial.book))


def workbook_spoilt(scene: Scene, tally: Tally, scale: Scale) -> None:
    """Something that is no workbook stands in its place."""
    _workbook_replaced(scene, tally, scale, lambda trial: trial.book.write_bytes(b"not a workbook"))


def _workbook_replaced(scene: Scene, tally: Tally, scale: Scale, harm: Callable[[Trial], object]) -> None:
    for _ in range(scale.repeats):
        trial = scene.trial()
        with _slow(scene, 0.03):
            run = trial.start({"save_every": 0.3})
            _after_puts(trial, 2)
            harm(trial)
            tally.injected += 1
            code = run.wait()
        if code not in (0, 6):
            tally.complain(f"ended with {code}: {run.said()[-300:]}")
        if code == 6:
            shutil.copy(scene.template, trial.book)
        mark = trial.mark()
        if trial.run() != 0:
            tally.complain(trial.last.said()[-300:])
        tally.twice += trial.files_sent(mark)
        trial.judge(tally)


def files_change(scene: Scene, tally: Tally, scale: Scale) -> None:
    """Files are rewritten, cut and removed during the upload: no half file is sent, no `success` is untrue."""
    chance = random.Random(scale.seed)
    for _ in range(scale.repeats):
        trial = scene.trial(own_data=True)
        files = sorted(trial.data.rglob("*.dcm"))
        with _slow(scene, 0.03):
            run = trial.start({"part_files": 3})
            _after_puts(trial, 1)
            for path in chance.sample(files, 20):
                _change(path, chance)
                tally.injected += 1
                time.sleep(0.01)
            code = run.wait()
        if code not in (0, 1):
            tally.complain(f"ended with {code}: {run.said()[-300:]}")
        trial.run()  # records the files that are changed or gone
        _compare_changed(trial, tally)


def _change(path: Any, chance: random.Random) -> None:
    data = path.read_bytes()
    how = chance.choice(("rewrite", "cut", "remove"))
    if how == "remove":
        path.unlink()
    elif how == "cut":  # the padding becomes shorter: still the same image
        path.write_bytes(data[:-100])
    else:
        path.write_bytes(data[:-1000] + bytes([chance.randrange(1, 255)]) * 1000)


def _compare_changed(trial: Trial, tally: Tally) -> None:
    """Every `success` is true for what was sent; with --overwrite everything is as on this disk."""
    trial.judge(tally, (Status.SUCCESS, Status.MISSING, Status.CONFLICT))
    trial.run({}, "--overwrite")
    listed = trial.on_server()
    for row in trial.rows():
        key = f"{row.subject}/{row.session_label}/{row.scan_id}/{row.resource}/{row.filename}"
        local = md5_of(trial.data / row.file)
        if local and not (row.status is Status.SUCCESS and listed.get(key) == local == row.md5):
            tally.complain(f"{row.file}: {row.status} {row.message}")


def two_runs(scene: Scene, tally: Tally, scale: Scale) -> None:
    """A second run on the same workbook is refused at once and sends nothing."""
    with Nursery() as other:
        other.start(["--version"], scene.folder, {}, scene.folder / "warm.txt").wait()
        for _ in range(scale.repeats):
            trial = scene.trial()
            with _slow(scene, 0.03):
                first = trial.start({})
                _after_puts(trial, 1)
                second = trial.start({}, nursery=other)
                tally.injected += 1
                code = second.wait()
                if code != 2 or "in use" not in second.said():
                    tally.complain(f"the second ended with {code}: {second.said()[-300:]}")
                if first.wait() != 0:
                    tally.complain(first.said()[-300:])
            tally.twice += max(0, trial.files_sent() - scene.count)
            trial.judge(tally)


def clock_jumps(scene: Scene, tally: Tally, scale: Scale) -> None:
    """The computer's clock jumps back and forth by a day, also between runs after a kill."""
    for repeat in range(scale.repeats):
        trial = scene.trial()
        run = trial.start({"clock_jumps": 86_400.0, "save_every": 0.2})
        time.sleep(0.4 + 0.2 * repeat)
        run.kill()
        run.wait()
        tally.injected += 1
        held = _held(trial)
        mark = trial.mark()
        if trial.run({"clock_jumps": -86_400.0}) != 0:
            tally.complain(trial.last.said()[-300:])
        tally.twice += max(0, trial.files_sent(mark) - (scene.count - len(held)))
        trial.judge(tally)


@contextlib.contextmanager
def _slow(scene: Scene, seconds: float) -> Iterator[None]:
    """Make every request take longer, so that there is time to cause the fault."""
    scene.box.set(latency=seconds)
    try:
        yield
    finally:
        if scene.box.running is not None:
            scene.box.set(latency=0.0)


def _after_puts(trial: Trial, count: int) -> None:
    """Wait until so many parts were sent."""
    ends = time.monotonic() + 30.0
    while len(trial.puts()) < count:
        assert time.monotonic() < ends, "no part was sent"
        threading.Event().wait(0.01)


CASES: dict[str, Case] = {
    "SIGKILL at a random moment": killed,
    "SIGKILL while the workbook is saved": killed_while_saving,
    "500, 502, 503 or 429 instead of carrying out 5 % of the requests": _with_rules(*_errors("before")),
    "500, 502, 503 or 429 after carrying out 5 % of the requests": _with_rules(*_errors("after")),
    "connection dropped before the body": _with_rules(_five_percent("drop", when="before")),
    "connection dropped during the body": _with_rules(_five_percent("drop", when="during")),
    "connection dropped after the body": _with_rules(_five_percent("drop", when="after")),
    "requests that hang, with a time-out of 1 s": _with_rules(
        *(
            {"do": "hang", "when": when, "seconds": 5.0, "probability": 0.02}
            for when in ("before", "during", "after")
        ),
        conditions={"short_timeouts": 1.0},
    ),
    "login ended every 50 requests": _with_rules({"do": "kill-session", "every": 50}),
    "login ended every 7 requests, but never while logging in": _with_rules(
        {"do": "kill-session", "every": 7, "path": "^(?!.*/data/(auth|JSESSION))"}
    ),
    "500 because another request wrote the catalog, 10 % of the parts": _with_rules(
        {"do": "race", "method": "PUT", "path": "/files/", "probability": 0.1}
    ),
    "200 but nothing stored, 5 % of the parts": _with_rules(
        _five_percent("lose", method="PUT", path="/files/")
    ),
    "200 with a web page, 5 % of the requests": _with_rules(_five_percent("html")),
    "altered bytes stored, 5 % of the parts": _with_rules(
        _five_percent("corrupt", method="PUT", path="/files/")
    ),
    "wrong MD5 listed, 5 % of the parts": _with_rules(
        _five_percent("lying-digest", method="PUT", path="/files/")
    ),
    "list of files that leaves some out": _with_rules(
        {"do": "truncate", "method": "GET", "path": "/files", "keep": 7, "every": 2, "times": 3},
        sends_again=True,
    ),
    "list of files that breaks off in the middle": _with_rules(
        {"do": "cut-listing", "method": "GET", "path": "/files", "every": 2, "times": 3}
    ),
    "server's disk is full": server_disk_full,
    "server away for more than two minutes": server_away,
    "server killed and started again": server_restarts,
    "account that may only read": reader,
    "this computer's disk is full": client_disk_full,
    "workbook open in Excel": workbook_held,
    "workbook deleted": workbook_deleted,
    "workbook replaced by an older copy": workbook_replaced,
    "workbook replaced by something else": workbook_spoilt,
    "files changed and removed": files_change,
    "two runs at once": two_runs,
    "clock jumps by a day": clock_jumps,
}
