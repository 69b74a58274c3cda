"""Requests are repeated where that helps and only there; an expired session is renewed once for all."""

from __future__ import annotations

import concurrent.futures
import json
import threading

import pytest

from tests.helpers.logins import Bytes, NoTime, connect
from tests.helpers.scripted_server import DROP, Reply, Scripted, Seen, Xnat
from xnatuploader import errors, xnat
from xnatuploader.records import ScanAddress
from xnatuploader.xnat import http

EMPTY = '{"ResultSet":{"Result":[]}}'
ROWS = Reply(200, EMPTY)
PAGE = Reply(200, "<html><title>Corporate gateway</title></html>", {"Content-Type": "text/html"})
LOGIN_PAGE = Reply(
    200, "<html><form action='/app/template/Login.vm'></form></html>", {"Content-Type": "text/html"}
)


class Replies:
    """Gives its replies one after the other, then `last` for ever."""

    def __init__(self, *replies: Reply, last: Reply = ROWS) -> None:
        self.replies = list(replies)
        self.last = last
        self.lock = threading.Lock()

    def __call__(self, seen) -> Reply:
        with self.lock:
            return self.replies.pop(0) if self.replies else self.last


PUT = (ScanAddress("P", "S", "E", "3"), "DICOM")


@pytest.fixture
def clock():
    return NoTime()


# --- repeats ---


@pytest.mark.parametrize(
    "trouble", [Reply(500), Reply(502), Reply(503), Reply(504), Reply(429), Reply(423), DROP]
)
def test_a_passing_trouble_is_tried_five_times(trouble, clock):
    handler = Xnat(Replies(*[trouble] * 4))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        assert found.subjects("P") == {}
    assert site.count("GET", "/subjects") == 5
    assert clock.waits == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 413, 417, 422])
def test_a_lasting_trouble_is_not_repeated(status, clock):
    handler = Xnat(Replies(Reply(status)))
    with (
        Scripted(handler) as site,
        connect(site.url, clock=clock) as found,
        pytest.raises(xnat.RequestFailed) as caught,
    ):
        found.subjects("P")
    assert caught.value.status == status
    assert site.count("GET", "/subjects") == 1
    assert clock.waits == []


def test_a_500_on_a_record_is_tried_twice(clock):
    handler = Xnat(lambda _: Reply(500))
    with (
        Scripted(handler) as site,
        connect(site.url, clock=clock) as found,
        pytest.raises(xnat.RequestFailed, match="only A-Z"),
    ):
        found.create_subject("P", "S")
    assert site.count("PUT", "/subjects/S") == 2


def test_a_503_on_a_record_is_tried_five_times(clock):
    handler = Xnat(Replies(*[Reply(503)] * 4, last=Reply(201, "XNAT_S00001")))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        assert found.create_subject("P", "S") == "XNAT_S00001"
    assert site.count("PUT", "/subjects/S") == 5


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("900", 60.0), ("0", 0.5)])
def test_the_server_may_say_how_long_to_wait(asked, waited, clock):
    handler = Xnat(Replies(Reply(503, "", {"Retry-After": asked})))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        found.subjects("P")
    assert clock.waits == [waited]


def test_a_file_is_sent_again_over_what_a_broken_attempt_left(clock):
    handler = Xnat(Replies(Reply(500, "<h3>Another thread or process modified</h3>"), last=Reply(200)))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        assert found.put_archive(*PUT, lambda: Bytes(b"archive"), "a.tar", False) == ()
    sent = [one for one in site.seen if "/files/" in one.path]
    assert ["overwrite" in one.path for one in sent] == [False, True]
    assert [one.body for one in sent] == [b"archive", b"archive"]
    assert {one.headers["Content-Length"] for one in sent} == {"7"}
    assert not any("Transfer-Encoding" in one.headers for one in sent)


def test_a_renewed_login_alone_does_not_overwrite(clock):
    handler = Xnat(lambda _: Reply(200))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        handler.sessions.clear()
        found.put_archive(*PUT, lambda: Bytes(b"archive"), "a.tar", False)
    sent = [one for one in site.seen if "/files/" in one.path]
    assert ["overwrite" in one.path for one in sent] == [False, False]


def test_an_attempt_that_was_only_put_off_does_not_overwrite(clock):
    handler = Xnat(Replies(Reply(429), last=Reply(200)))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        found.put_archive(*PUT, lambda: Bytes(b"archive"), "a.tar", False)
    assert ["overwrite" in one.path for one in site.seen if "/files/" in one.path] == [False, False]


def test_a_body_that_cannot_be_read_is_the_callers_matter(clock):
    class Gone(OSError):
        pass

    handler = Xnat(lambda _: Reply(200))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        with pytest.raises(Gone):
            found.put_archive(*PUT, lambda: Bytes(b"archive", Gone("vanished")), "a.tar", False)
        assert clock.waits == []
        assert found.create_subject("P", "S") == "S"


def test_a_dropped_body_is_sent_again_after_asking_for_the_login(clock):
    # Tomcat closes the connection on a big body it refuses, so that the 401 is never read.
    handler = Xnat(lambda _: Reply(200))

    def tomcat(seen):
        return DROP if seen.method == "PUT" and seen.session not in handler.sessions else handler(seen)

    with Scripted(tomcat) as site, connect(site.url, clock=clock) as found:
        handler.sessions.clear()
        found.put_archive(*PUT, lambda: Bytes(b"archive"), "a.tar", False)
    assert site.count("PUT", "/files/") == 2
    assert handler.numbers == 2


@pytest.mark.parametrize("page", [PAGE, Reply(200, EMPTY[:20]), Reply(200, EMPTY, {}, length=500)])
def test_half_an_answer_or_a_page_in_its_place_is_asked_again(page, clock):
    handler = Xnat(Replies(page, page))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        assert found.subjects("P") == {}
    assert site.count("GET", "/subjects") == 3


def test_a_page_that_stays_is_named(clock):
    handler = Xnat(lambda _: PAGE)
    with (
        Scripted(handler) as site,
        connect(site.url, clock=clock) as found,
        pytest.raises(xnat.RequestFailed, match="Corporate gateway"),
    ):
        found.put_archive(*PUT, lambda: Bytes(b"archive"), "a.tar", False)


def test_a_session_is_below_the_label_that_its_subject_has_in_this_project(clock):
    """A subject that is shared into it may be called otherwise where it comes from."""

    def answer(seen: Seen) -> Reply:
        row = {"ID": "XNAT_S1", "label": "S-77"}
        if "/experiments" in seen.path:
            row = {"ID": "XNAT_E1", "label": "V1", "subject_ID": "XNAT_S1", "subject_label": "0001"}
        return Reply(200, json.dumps({"ResultSet": {"Result": [row]}}), {"Content-Type": "application/json"})

    with Scripted(Xnat(answer)) as site, connect(site.url, clock=clock) as found:
        assert found.sessions("P")[0].subject_label == "0001"
        found.subjects("P")
        assert found.sessions("P")[0].subject_label == "S-77"


def test_duplicates_labelled_as_a_page_are_read(clock):
    said = Reply(200, json.dumps({"duplicates": ["a.dcm", "b%20c.dcm"]}), {"Content-Type": "text/html"})
    with Scripted(Xnat(lambda _: said)) as site, connect(site.url, clock=clock) as found:
        assert found.put_archive(*PUT, lambda: Bytes(b"archive"), "a.tar", False) == ("a.dcm", "b c.dcm")


def test_a_redirect_is_not_followed(clock):
    handler = Xnat(lambda _: Reply(303, "", {"Location": "/data/elsewhere"}))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        with pytest.raises(xnat.RequestFailed, match="another address"):
            found.subjects("P")
        answer = found.request(http.Request("POST", "/data/services/archive", accept=(200, 303)))
        assert (answer.status, answer.headers["Location"]) == (303, "/data/elsewhere")
    assert site.count("GET", "elsewhere") == 0


@pytest.mark.parametrize("trouble", [DROP, Reply(504), Reply(500), Reply(503)])
def test_the_closing_steps_are_sent_once(trouble, clock):
    with (
        Scripted(Xnat(lambda _: trouble)) as site,
        connect(site.url, clock=clock) as found,
        pytest.raises(xnat.RequestFailed),
    ):
        found.start_pipelines("XNAT_E1")
    assert site.count("PUT", "/data/experiments/XNAT_E1?triggerPipelines=true") == 1


def test_the_closing_steps_are_sent_again_after_a_401(clock):
    handler = Xnat(lambda _: Reply(200))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        handler.sessions.clear()
        found.pull_scan("XNAT_E1", "3", "xnat:ctScanData")
    asked = "/data/experiments/XNAT_E1/scans/3?xsiType=xnat%3ActScanData&pullDataFromHeaders=true"
    assert [one.path for one in site.seen if "/experiments/" in one.path] == [asked] * 2


def test_a_full_disk_ends_the_run_for_everybody(clock):
    handler = Xnat(lambda _: Reply(500, "<h3>No space left on device</h3>"))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        for _ in range(2):
            with pytest.raises(errors.ServerUnreachable, match="disk is full"):
                found.put_archive(*PUT, lambda: Bytes(b"archive"), "a.tar", False)
        assert site.count("PUT", "/files/") == 1


def test_a_body_cut_each_time_by_a_server_that_is_there_is_too_large(clock):
    handler = Xnat(lambda seen: DROP if seen.method == "PUT" else ROWS)
    with (
        Scripted(handler) as site,
        connect(site.url, clock=clock) as found,
        pytest.raises(xnat.RequestFailed) as caught,
    ):
        found.put_archive(*PUT, lambda: Bytes(b"x" * 2_000_000), "a.tar", False)
    assert caught.value.kind == "too-large"
    assert site.count("PUT", "/files/") == 5


def test_stopping_ends_the_pauses(clock):
    stop = threading.Event()
    handler = Xnat(lambda _: Reply(503))
    with Scripted(handler) as site, connect(site.url, clock=clock, stop=stop) as found:
        stop.set()
        with pytest.raises(xnat.RequestFailed):
            found.subjects("P")
    assert site.count("GET", "/subjects") == 1


# --- logging in again ---


def test_an_expired_session_is_renewed_by_one_login(clock):
    handler = Xnat()
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        before = len(site.seen)
        handler.sessions.clear()
        assert found.subjects("P") == {}
        new = [(one.method, one.path.split("?")[0]) for one in site.seen[before:]]
    assert new == [
        ("GET", "/data/projects/P/subjects"),
        ("DELETE", "/data/JSESSION"),  # a 401 may come from a proxy: then the session is still open
        ("GET", "/data/auth"),
        ("GET", "/data/projects/P/subjects"),
    ]
    assert clock.waits == []


def test_a_login_page_in_place_of_an_answer_is_an_expired_session(clock):
    for page in (LOGIN_PAGE, Reply(302, "", {"Location": "/app/template/Login.vm"})):
        handler = Xnat(Replies(page))
        with Scripted(handler) as site, connect(site.url, clock=clock) as found:
            assert found.subjects("P") == {}
        assert handler.numbers == 2


def test_many_threads_renew_an_expired_session_once(clock):
    handler = Xnat()
    with Scripted(handler) as site, connect(site.url, clock=clock, jobs=8) as found:
        handler.sessions.clear()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: found.subjects("P"), range(40))) == [{}] * 40
    assert handler.numbers == 2


def test_a_stray_cookie_of_another_answer_does_not_log_out(clock):
    handler = Xnat(lambda _: Reply(200, EMPTY, {"Set-Cookie": "JSESSIONID=anonymous; Path=/"}))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        for _ in range(3):
            found.subjects("P")
    assert handler.numbers == 1


def test_the_cookies_of_a_load_balancer_are_kept(clock):
    handler = Xnat(lambda _: Reply(200, EMPTY, {"Set-Cookie": "ROUTE=node2; Path=/"}))
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        found.subjects("P")
        found.subjects("P")
    last = [one for one in site.seen if "/subjects" in one.path][-1]
    assert "ROUTE=node2" in last.headers["Cookie"]
    assert last.session


def test_only_a_refused_login_ends_the_run_and_then_for_all(clock):
    handler = Xnat()
    with Scripted(handler) as site, connect(site.url, clock=clock, jobs=4) as found:
        handler.sessions.clear()
        handler.login = "ann:changed"
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            ends = [pool.submit(found.subjects, "P") for _ in range(12)]
            assert all(isinstance(one.exception(), errors.LoginRefused) for one in ends)
    logins = [one for one in site.seen if one.basic]
    assert len(logins) == 2  # the one at the start and the refused one: wrong passwords lock accounts


def test_a_failing_renewal_is_a_passing_trouble(clock):
    handler = Xnat()
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        handler.sessions.clear()
        replies = [Reply(503)] * 4
        handler.on_login = lambda _: replies.pop(0) if replies else handler.yes()
        assert found.subjects("P") == {}


def test_a_request_that_is_always_logged_out_fails_alone(clock):
    handler = Xnat(lambda seen: Reply(401) if "/subjects" in seen.path else ROWS)
    with Scripted(handler) as site, connect(site.url, clock=clock) as found:
        with pytest.raises(xnat.RequestFailed) as caught:
            found.subjects("P")
        assert caught.value.kind == "permission"
        assert found.sessions("P") == []
    assert handler.numbers < 12


# --- a server that is away ---


class Away:
    """Stops answering at a time of the clock, and is back at another."""

    def __init__(self, clock: NoTime, handler: Xnat, back: float) -> None:
        self.clock, self.handler, self.back = clock, handler, back
        self.gone = False

    def __call__(self, seen):
        if self.gone and self.clock.time < self.back:
            return Reply(503)
        return self.handler(seen)


def test_a_server_away_for_a_minute_is_waited_for(clock):
    away = Away(clock, Xnat(), 60)
    with Scripted(away) as site, connect(site.url, clock=clock, jobs=4) as found:
        away.gone = True
        assert found.subjects("P") == {}
    assert 60 <= clock.time < 120


def test_every_thread_goes_on_when_the_server_is_back(clock):
    away = Away(clock, Xnat(), 60)
    with Scripted(away) as site, connect(site.url, clock=clock, jobs=4) as found:
        away.gone = True
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: found.subjects("P"), range(8))) == [{}] * 8


def test_a_server_away_for_two_minutes_ends_the_run_for_all_threads(clock):
    away = Away(clock, Xnat(), 1e9)
    with Scripted(away) as site, connect(site.url, clock=clock, jobs=4) as found:
        away.gone = True
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            ends = [pool.submit(found.subjects, "P") for _ in range(8)]
            assert all(isinstance(one.exception(), errors.ServerUnreachable) for one in ends)
        assert "2 minutes" in str(ends[0].exception())


def test_a_longer_wait_is_kept(clock):
    away = Away(clock, Xnat(), 1000)
    with Scripted(away) as site, connect(site.url, clock=clock, wait=1800) as found:
        away.gone = True
        assert found.subjects("P") == {}
    assert 1000 <= clock.time < 1100


def test_one_requests_trouble_does_not_count_as_a_server_away():
    class OthersGoOn(NoTime):
        def wait(self, event, seconds):
            found.sessions("P")
            return super().wait(event, seconds)

    clock = OthersGoOn()
    handler = Xnat(lambda seen: Reply(503) if "/subjects" in seen.path else ROWS)
    with (
        Scripted(handler) as site,
        connect(site.url, clock=clock) as found,
        pytest.raises(xnat.RequestFailed) as caught,
    ):
        found.subjects("P")
    assert caught.value.kind == "connection"
    assert site.count("GET", "/subjects") == 5


def test_a_server_that_answers_small_questions_only_does_not_hold_a_request_for_ever(clock):
    handler = Xnat(lambda seen: Reply(503) if "/subjects" in seen.path else ROWS)
    with (
        Scripted(handler) as site,
        connect(site.url, clock=clock) as found,
        pytest.raises(xnat.RequestFailed),
    ):
        found.subjects("P")
    assert site.count("GET", "/subjects") <= 25


def test_a_hanging_request_is_given_up_and_repeated(clock):
    asked, repeated = [], threading.Event()

    def hangs(seen):
        asked.append(seen)
        if len(asked) > 1:
            repeated.set()
        repeated.wait(30)
        return ROWS

    quick = http.Timeouts(connect=20, small=1, send=1, finish=1, login=20)
    with Scripted(Xnat(hangs)) as site, connect(site.url, clock=clock, timeouts=quick) as found:
        assert found.subjects("P") == {}
    assert site.count("GET", "/subjects") == 2


# --- the rest ---


def test_closing_a_server_that_is_gone_is_quiet(capfd):
    with Scripted(Xnat()) as site:
        found = connect(site.url)
    found.close()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_an_answer_is_read_as_json_only_when_it_is():
    assert http.Answer(200, {}, '{"a": 1}').json() == {"a": 1}
    with pytest.raises(ValueError):
        http.Answer(200, {}, "<html>").json()
