"""The set-up of a real XNAT, against a server that answers as a new one does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.helpers.scripted_server import Reply, Scripted, Seen
from tests.real import set_up

SETUP = Reply(302, headers={"Location": "http://xnat/setup"})


class NewServer:
    """Refuses logins at first, as XNAT does while it boots; then redirects to /setup until it is set up."""

    def __init__(self) -> None:
        self.booting = 2
        self.ready = False
        self.users: set[str] = set()
        self.projects: set[str] = set()

    def answer(self, seen: Seen) -> Reply:
        path = urlsplit(seen.path).path
        if self.booting:
            self.booting -= 1
            return Reply(401, "<html>Login failed</html>")
        if path == "/xapi/siteConfig" and seen.method == "POST":
            self.ready = json.loads(seen.body)["initialized"]
            return Reply()
        if not self.ready:
            return SETUP
        if path == "/data/auth":
            return Reply(200, "User 'admin' is logged in")
        known = self.users if "/users" in path else self.projects
        if seen.method == "GET":
            return Reply(200 if path.rpartition("/")[2] in known else 404)
        if path == "/xapi/users":
            self.users.add(json.loads(seen.body)["username"])
            return Reply(201)
        if path == f"/data/projects/{set_up.PROJECT}":
            self.projects.add(set_up.PROJECT)
        return Reply()


@pytest.fixture
def site() -> Iterator[Scripted]:
    with Scripted(NewServer().answer) as running:
        yield running


def test_a_new_server_is_waited_for_and_set_up_once(site: Scripted) -> None:
    first = set_up.set_up(set_up.Xnat(site.url, pause=0.0))
    assert (first["XNAT_HOST"], first["XNAT_USER"], first["XNAT_PROJECT"]) == (site.url, "realowner", "REAL")
    made = [f"{one.method} {urlsplit(one.path).path}" for one in site.seen if one.method != "GET"]
    assert made == [
        "POST /xapi/siteConfig",
        "POST /xapi/users",
        "POST /xapi/users",
        "PUT /data/projects/REAL",
        "PUT /data/projects/REAL/users/Owners/realowner",
        "PUT /data/projects/REAL/groups/REAL_Uploaders",
        "PUT /data/projects/REAL/users/REAL_Uploaders/realgroup",
        "DELETE /data/JSESSION",
    ]
    before = len(site.seen)
    assert set_up.set_up(set_up.Xnat(site.url, pause=0.0)) == first
    again = [f"{one.method} {urlsplit(one.path).path}" for one in site.seen[before:]]
    assert not [one for one in again if one.startswith("POST") or one == "PUT /data/projects/REAL"]


def test_the_group_may_make_sessions_and_only_read_subjects(site: Scripted) -> None:
    set_up.set_up(set_up.Xnat(site.url, pause=0.0))
    (group,) = [one for one in site.seen if "/groups/" in one.path]
    asked = parse_qs(urlsplit(group.path).query)
    # the names that ProjectGroupResource.handlePut reads: element, field, project, right
    subjects = "xnat:subjectData_xnat:subjectData/project_REAL"
    assert (f"{subjects}_R" in asked, f"{subjects}_E" in asked) == (True, False)
    assert "xnat:ctSessionData_xnat:ctSessionData/project_REAL_E" in asked


def test_a_server_that_never_lets_anybody_in_is_said() -> None:
    with (
        Scripted(lambda _: Reply(401, "Login failed")) as site,
        pytest.raises(set_up.SetUpError, match=r"No login at .* Last: 401"),
    ):
        set_up.set_up(set_up.Xnat(site.url, seconds=0.2, pause=0.01))


def test_what_the_server_refused_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(seen: Seen) -> Reply:
        return Reply(200, "User 'admin' is logged in") if seen.path == "/data/auth" else Reply(500, "no")

    with Scripted(answer) as site:
        assert set_up.main([site.url]) == 1
    assert "could not be set up. POST /xapi/users: 500" in capsys.readouterr().err
