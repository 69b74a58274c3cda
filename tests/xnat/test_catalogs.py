"""What XNAT's catalogs tell, and how they are refreshed."""

from __future__ import annotations

from tests.helpers.scripted_server import Reply, Scripted, Seen, Xnat
from xnatuploader import xnat
from xnatuploader.records import ScanAddress
from xnatuploader.xnat import catalogs, credentials

CATALOG = """<?xml version="1.0"?><cat:DCMCatalog UID="1.2" xmlns:cat="http://nrg.wustl.edu/catalog"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><cat:entries>
 <cat:entry URI="a.dcm" UID="1.2.3" xsi:type="cat:dcmEntry"/><cat:entry URI="b.dcm"/></cat:entries></cat:DCMCatalog>"""


def test_uids_come_from_the_catalogs_and_broken_ones_give_none() -> None:
    def answer(seen: Seen) -> Reply:
        if "/scans/2/" in seen.path:
            return Reply(200, CATALOG, {"Content-Type": "text/xml"})
        return (
            Reply(200, "<cat:broken", {"Content-Type": "text/xml"})
            if "/scans/3/" in seen.path
            else Reply(404)
        )

    with Scripted(Xnat(answer)) as site:
        found = credentials.Credentials("ann", "pw", "test")
        with xnat.connect(site.url, found, environ={}) as connection:
            places = [("2", "DICOM"), ("3", "DICOM"), ("4", "DICOM")]
            assert connection.object_uids("E", places) == {"1.2.3": "2"}
        assert any("/data/experiments/E/scans/2/resources/DICOM?format=xml" in one.path for one in site.seen)


def test_a_refresh_names_the_resource_without_data() -> None:
    with Scripted(Xnat(lambda _: Reply(200))) as site:
        found = credentials.Credentials("ann", "pw", "test")
        with xnat.connect(site.url, found, environ={}) as connection:
            catalogs.repair_scan(connection, ScanAddress("P", "S", "E", "3"))
        path = next(one.path for one in site.seen if "/services/refresh/catalog" in one.path)
    assert "resource=%2Farchive%2Fprojects%2FP%2Fsubjects%2FS%2Fexperiments%2FE%2Fscans%2F3&" in path
    assert "options=append%2Cchecksum%2CpopulateStats" in path
