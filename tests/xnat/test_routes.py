"""Every address of this program stands in XNAT's own table, and no other module builds one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import house
from tests.helpers import addresses
from tests.helpers.sandbox_process import Sandbox
from xnatuploader.records import ScanAddress
from xnatuploader.sandbox import routing
from xnatuploader.xnat import routes
from xnatuploader.xnat.messages import RequestFailed

READ_BEHIND = {
    "ProjectResource": {("prearchive_code",)},
    "ExperimentResource": {("history",)},
    "PrearcSessionResource": {("logs", "last")},
    "FileList": {("{FILE}",)},
}
"""What is left over behind an address, and is read by the class that serves it: `filepath` there."""

XAPI = {
    routes.BUILD_INFO: "SiteConfigApi.getBuildInfo",
    routes.CHECKSUMS: "SiteConfigApi.getSpecificSiteConfigProperty",
    routes.SITE_SCRIPT: "SiteConfigApi.getSpecificSiteConfigProperty",
    routes.SITE_SCRIPT_ENABLED: "AnonymizeApi.isSiteScriptEnabled",
    routes.PROJECT_SCRIPT_ENABLED: "AnonymizeApi.isProjectScriptEnabled",
    routes.USER_ROLES: "UsersApi.getUserRoles",
    routes.USER_GROUPS: "UsersApi.getUserGroups",
    routes.INBOX_ACTIVE: "DicomTransactionApi.getOutstandingDicomInboxImportRequests",
    routes.INBOX_IMPORT: "DicomInboxImportRequestApi; the answer of DicomInboxImporter.call names it",
}
"""Addresses that Spring serves; the table is that of Restlet."""

PARAMETERS = {
    "/archive", "/archive/projects/P", "/archive/projects/P/experiments/E",
    "/archive/projects/P/subjects/S/experiments/E", "/archive/projects/P/subjects/S/experiments/E/scans/1",
    "/prearchive", "/prearchive/projects/P", "/prearchive/projects/P/T", "/prearchive/projects/P/T/F",
}  # fmt: skip
"""Addresses in parameters as URIManager's templates have them, with single letters for the parts."""

SCAN = ScanAddress("P", "S", "E", "1")
TEMPLATES = addresses.templates()


@pytest.mark.parametrize("template", sorted(TEMPLATES.values()))
def test_a_template_stands_in_the_table_of_xnat(template: str) -> None:
    if template in XAPI or template == routes.FRONT_PAGE:
        return
    parts = template.removeprefix("/data/").split("/")
    found = routing.match(parts)
    assert found is not None, f"XNAT has no {template}"
    assert not found.rest or found.rest in READ_BEHIND.get(found.route.served_by, ()), (
        f"{template} is answered by {found.route.served_by}, which does not read {found.rest}"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "/data/projects/{PROJECT_ID}/experiments/{EXPT_ID}/scans",
        "/data/projects/{PROJECT_ID}/experiments/{EXPT_ID}/files",
        "/data/version",
    ],
)
def test_an_address_that_xnat_does_not_have_would_be_seen(wrong: str) -> None:
    with pytest.raises(AssertionError):
        test_a_template_stands_in_the_table_of_xnat(wrong)


def test_addresses_in_parameters_are_templates_of_uri_manager() -> None:
    built = {
        routes.to_archive(), routes.to_archive("P"), routes.to_archive("P", "S", "E"), routes.to_prearchive(),
        routes.to_prearchive("P"), routes.to_prearchive("P", "T"), routes.to_prearchive("P", "T", "F"),
        routes.prearchived("P", "T", "F"), routes.archived(routes.at_scan(routes.SCAN, SCAN)),
        routes.archived(routes.at(routes.PROJECT_SESSION, "P", "E")),
        routes.archived(routes.at(routes.SESSION, "P", "S", "E")),
    }  # fmt: skip
    assert built <= PARAMETERS
    assert (
        routes.source(routes.at(routes.CACHE_FILE, "X", "upload.zip"))
        == "/user/cache/resources/X/files/upload.zip"
    )


def test_parts_are_encoded_and_counted() -> None:
    assert routes.at(routes.SUBJECT, "P", "a/b c#d") == "/data/projects/P/subjects/a%2Fb%20c%23d"
    assert routes.at_scan(routes.RESOURCE, SCAN, "DICOM").endswith("/experiments/E/scans/1/resources/DICOM")
    for part in ("", ".", ".."):
        with pytest.raises(RequestFailed):
            routes.at(routes.SUBJECT, "P", part)
    with pytest.raises(ValueError, match="takes 2 parts"):
        routes.at(routes.SUBJECT, "P")


def test_answers_are_read_with_and_without_data_host_and_words() -> None:
    assert routes.uris("/data/prearchive/projects/P/1/S\r\n") == ["/prearchive/projects/P/1/S"]
    assert routes.uris("Archive:/archive/projects/P/subjects/S/experiments/E;") == [
        "/archive/projects/P/subjects/S/experiments/E"
    ]
    assert routes.uris("/xapi/dicom/7") == ["/xapi/dicom/7"]
    assert routes.uris("Submitted for prearchival") == []
    named = routes.archive_parts("https://x.org/xnat/data/archive/projects/P/subjects/S/experiments/E")
    assert named == ("P", "S", "E")
    assert routes.archive_parts("/archive/experiments/XNAT_E1") is None


# ---- who may build one

PACKAGE = house.ROOT / house.NAME
OTHERS = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] != "sandbox" and path.name != "routes.py"
]
_PATH = re.compile(r"/(data|xapi|REST|archive|prearchive|user/cache)(/|$)|.*/(projects|experiments|scans)/")


def paths_in(path: Path) -> Iterator[str]:
    """Name each text, documentation apart, that begins as a path of XNAT's or holds a piece of one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in told else None
        if isinstance(text, str) and " " not in text and _PATH.match(text):
            yield f"line {node.lineno}: {text}"


def test_no_other_module_builds_an_address() -> None:
    found = [f"{path.relative_to(PACKAGE).as_posix()} {one}" for path in OTHERS for one in paths_in(path)]
    assert found == []


@pytest.mark.parametrize(
    "path",
    [path for path in OTHERS if path.relative_to(PACKAGE).parts[0] != "xnat"],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_a_room_above_sends_no_request_of_its_own(path: Path) -> None:
    calls = [
        node.func
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert not [one.lineno for one in calls if isinstance(one, ast.Attribute) and one.attr == "request"]


def test_an_address_elsewhere_would_be_seen() -> None:
    assert len(list(paths_in(PACKAGE / "xnat" / "routes.py"))) > 20


# ---- the recorder


def test_the_sandbox_refuses_to_end_well_after_a_request_that_fits_no_template(tmp_path: Path) -> None:
    import urllib.request

    box = Sandbox(tmp_path / "xnat")
    asked = urllib.request.Request(
        f"{box.url}/data/projects/DEMO/experiments/E/scans", headers={"User-Agent": "xnatuploader/x"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(asked, timeout=20)
    with pytest.raises(AssertionError, match="fits no address"):
        box.stop()
    box.stop()
