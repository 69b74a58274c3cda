"""Error answers of XNAT, Tomcat and proxies become one line that says what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnatuploader import xnat
from xnatuploader.xnat import messages

RESTLET = (
    "<html>\n<head>\n   <title>Status page</title>\n</head>\n<body>\n<h3>{}</h3>"
    '<p>You can get technical details <a href="http://www.w3.org/">here</a>.</p>\n</body>\n</html>'
)
TOMCAT = (
    "<!doctype html><html><head><title>HTTP Status 403 – Forbidden</title>"
    "<style>h1 {{color:red}}</style></head>"
    "<body><h1>HTTP Status 403 – Forbidden</h1><p><b>Type</b> Status Report</p>"
    "<p><b>Message</b> {}</p></body></html>"
)
NGINX = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n"
    "<center><h1>{0}</h1></center>\r\n</body>\r\n</html>"
)


@pytest.mark.parametrize(
    ("body", "headline"),
    [
        (RESTLET.format("Unable to identify scan"), "Unable to identify scan"),
        (RESTLET.format("a &amp; b\n  c"), "a & b c"),
        (TOMCAT.format("Bad &#39;thing&#39;"), "Bad 'thing'"),
        (NGINX.format("502 Bad Gateway"), "502 Bad Gateway"),
        ("plain words of xapi", "plain words of xapi"),
        ("", ""),
        ("<html><body><script>var a = 1;</script>Sorry</body></html>", "Sorry"),
    ],
)
def test_the_headline_is_the_sentence_the_page_is_about(body, headline):
    assert messages.headline(body) == headline


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (404, RESTLET.format("Unable to identify scan"), "duplicate-scan", "which scan"),
        (404, RESTLET.format("Unable to identify image session"), "missing", "Run upload again"),
        (404, RESTLET.format("Not Found"), "missing", "may not see"),
        (403, TOMCAT.format("Forbidden"), "permission", "make it a member"),
        (403, "", "permission", "make it a member"),
        (409, RESTLET.format("Conflict: Duplicate experiment label"), "conflict", "SessionLabel"),
        (
            409,
            RESTLET.format("Specified xsiType differs from existing xsiType"),
            "conflict",
            "other modality",
        ),
        (409, RESTLET.format("Odd thing"), "conflict", "The server says: Odd thing."),
        (413, NGINX.format("413 Request Entity Too Large"), "too-large", "12.0 MB"),
        (417, RESTLET.format("Need PUT Contents"), "other", "report"),
        (
            422,
            RESTLET.format("Submitted subject record must include the project attribute."),
            "missing",
            "Project",
        ),
        (423, "", "busy", "still working"),
        (429, "", "connection", "--jobs"),
        (500, "", "server", "only A-Z a-z 0-9 _ -"),
        (500, RESTLET.format("Another thread or process modified the catalog"), "server", "same time"),
        (500, RESTLET.format("java.lang.NullPointerException"), "server", "NullPointer"),
        (500, RESTLET.format("No space left on device"), "server", "disk is full"),
        (502, NGINX.format("502 Bad Gateway"), "connection", "proxy"),
        (503, NGINX.format("503 Service Temporarily Unavailable"), "connection", "maintenance"),
        (504, NGINX.format("504 Gateway Time-out"), "connection", "go on working"),
        (507, "", "server", "disk is full"),
        (302, "", "other", "another address"),
        (418, "I am a teapot", "other", "teapot"),
    ],
)
def test_a_failure_says_what_it_means_and_what_to_do(status, body, kind, words):
    failed = messages.failure(status, body, sent=12_000_000)
    assert (failed.kind, failed.status) == (kind, status)
    assert words in failed.message
    assert "\n" not in failed.message
    assert "<" not in failed.message
    assert str(failed) == failed.message


def test_only_an_archive_is_refused_as_an_archive():
    body = RESTLET.format("Unsupported format")
    assert messages.failure(400, body, archive=True).kind == "archive-refused"
    assert messages.failure(400, body).kind == "other"


def test_a_full_disk_is_not_seen_in_a_success():
    assert messages.disk_full(500, "No space left on device")
    assert not messages.disk_full(200, "No space left on device")


@pytest.mark.parametrize(
    ("content_type", "body", "page"),
    [
        ("text/html", '{"duplicates":["a.dcm"]}', False),
        ("text/html;charset=utf-8", "<!DOCTYPE html><html></html>", True),
        ("application/json", "\n <html>", True),
        ("text/xml", "<?xml version='1.0'?><cat:Catalog/>", False),
        ("text/html", "", False),
        ("text/plain", "XNAT_S00001", False),
    ],
)
def test_a_web_page_is_told_by_its_text(content_type, body, page):
    assert messages.looks_like_html(content_type, body) is page


def test_a_kind_that_nobody_knows_is_a_mistake():
    with pytest.raises(ValueError, match="unheard"):
        xnat.RequestFailed(500, "x", "unheard")


@given(st.integers(100, 599), st.text(max_size=300))
def test_any_answer_becomes_one_line(status, body):
    failed = messages.failure(status, body)
    assert failed.kind in messages.KINDS
    assert failed.message.strip()
    assert len(failed.message.splitlines()) == 1
    assert len(failed.message) < 500
