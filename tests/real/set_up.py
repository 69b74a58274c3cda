"""Set up a new XNAT for the tests: site, project, its owner, and a user of a group of its own.

`python tests/real/set_up.py [URL]`, by default http://localhost:8080. It waits until a login works, which is later than
the first answer of a new server. What is there already is left as it is, so it may be run again.
"""

from __future__ import annotations

import sys
import time

import requests

ADMIN = ("admin", "admin")
"""The account that every new XNAT has."""
PROJECT = "REAL"
OWNER, GROUP_USER = "realowner", "realgroup"
PASSWORD = "real-tests-only"
GROUP = "Uploaders"
"""Its members may read subjects and make sessions, but not change subjects."""
SITE = {
    "siteId": "XNAT",
    "adminEmail": "admin@example.org",
    **{
        f"{name}Path": f"/data/xnat/{name}"
        for name in ("archive", "prearchive", "cache", "build", "ftp", "pipeline", "inbox")
    },
    "requireLogin": True,
    "userRegistration": False,
    "initialized": True,
}
"""What a site needs before it counts as set up (SiteConfigPreferences); everything else stays as XNAT is shipped."""
READ, EDIT = "_R", "_E"
RIGHTS = {
    "xnat:subjectData": (READ,),
    **{
        f"xnat:{kind}SessionData": (READ, EDIT)
        for kind in ("mr", "ct", "pet", "petmr", "cr", "dx", "mg", "us", "nm", "xa", "rf", "otherDicom")
    },
}


class SetUpError(Exception):
    """The server did not do what it was asked; the text says what."""


class Xnat:
    """The server as its administrator sees it."""

    def __init__(self, url: str, seconds: float = 900.0, pause: float = 5.0) -> None:
        self.url, self.seconds, self.pause = url.rstrip("/"), seconds, pause
        self.session = requests.Session()
        self.session.auth = ADMIN

    def ask(self, method: str, path: str, **more: object) -> requests.Response:
        return self.session.request(method, self.url + path, allow_redirects=False, timeout=120, **more)  # type: ignore[arg-type]

    def do(self, method: str, path: str, *also: int, **more: object) -> requests.Response:
        """Ask, and raise `SetUpError` for any answer but 200, 201 and those of `also`."""
        answer = self.ask(method, path, **more)
        if answer.status_code not in (200, 201, *also):
            raise SetUpError(f"{method} {path}: {answer.status_code}\n{answer.text[:500]}")
        return answer

    def wait_for_login(self) -> bool:
        """Wait until the login is accepted; tell whether the site is set up: if not, XNAT redirects to /setup."""
        end = time.monotonic() + self.seconds
        said = "no answer"
        while time.monotonic() < end:
            try:
                answer = self.ask("GET", "/data/auth")
            except requests.ConnectionError as error:
                said = str(error)
            else:
                if answer.status_code == 200 and "is logged in" in answer.text:
                    return True
                if answer.is_redirect and answer.headers["Location"].rstrip("/").endswith("/setup"):
                    return False
                said = f"{answer.status_code} {answer.text[:200]}"
            time.sleep(self.pause)
        raise SetUpError(f"No login at {self.url} after {self.seconds:.0f} s. Last: {said}")

    def set_up_site(self) -> None:
        """Give a new site what it needs."""
        self.do("POST", "/xapi/siteConfig", json={**SITE, "siteUrl": self.url})
        end = time.monotonic() + self.seconds
        while not self.wait_for_login():
            if time.monotonic() > end:
                raise SetUpError("The site still says that it was not set up.")
            time.sleep(self.pause)

    def add_user(self, name: str) -> None:
        """Add an account, enabled and verified."""
        if self.ask("GET", f"/xapi/users/{name}").status_code == 200:
            return
        user = {
            "username": name,
            "firstName": "Test",
            "lastName": name,
            "email": f"{name}@example.org",
            "password": PASSWORD,
            "enabled": True,
            "verified": True,
        }
        self.do("POST", "/xapi/users", json=user)

    def add_project(self) -> None:
        """Add the project, with its owner and its group."""
        kind = "xnat:projectData"
        if self.ask("GET", f"/data/projects/{PROJECT}?format=json").status_code != 200:
            fields = {f"{kind}/{name}": PROJECT for name in ("ID", "name", "secondary_ID")}
            self.do(
                "PUT", f"/data/projects/{PROJECT}", params={"xsiType": kind, "req_format": "qs", **fields}
            )
        self.do("PUT", f"/data/projects/{PROJECT}/users/Owners/{OWNER}")
        group = f"{PROJECT}_{GROUP}"
        named = {"ID": group, "displayName": GROUP, "tag": PROJECT}
        rights = {
            f"{element}_{element}/project_{PROJECT}{right}": "1"
            for element, given in RIGHTS.items()
            for right in given
        }
        self.do(
            "PUT",
            f"/data/projects/{PROJECT}/groups/{group}",
            params={**{f"xdat:userGroup/{name}": value for name, value in named.items()}, **rights},
        )
        self.do("PUT", f"/data/projects/{PROJECT}/users/{group}/{GROUP_USER}")


def set_up(xnat: Xnat) -> dict[str, str]:
    """Set the server up; return the variables that the tests read."""
    if not xnat.wait_for_login():
        xnat.set_up_site()
    for name in (OWNER, GROUP_USER):
        xnat.add_user(name)
    xnat.add_project()
    xnat.do("DELETE", "/data/JSESSION")
    return {
        "XNAT_HOST": xnat.url,
        "XNAT_USER": OWNER,
        "XNAT_PASS": PASSWORD,
        "XNAT_PROJECT": PROJECT,
        "XNAT_GROUP_USER": GROUP_USER,
        "XNAT_GROUP_PASS": PASSWORD,
    }


def main(words: list[str]) -> int:
    """Set up the server that is named, and print the lines that tell the tests of it."""
    url = words[0] if words else "http://localhost:8080"
    try:
        variables = set_up(Xnat(url))
    except (SetUpError, requests.RequestException) as error:
        print(f"{url} could not be set up. {error}", file=sys.stderr)
        return 1
    for name, value in variables.items():
        print(f"export {name}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
