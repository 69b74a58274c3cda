"""The images that a session on XNAT holds, by SOPInstanceUID: what MD5 and name do not tell.

XNAT changes what comes by the prearchive (its site-wide anonymisation is on as it is shipped), and a scanner's files
have other names, so that the same image has neither the MD5 nor the name of the file on disk. The catalogs of such
scans list the images' UIDs. Those of files that were PUT list none: about them nothing is known.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

from xnatuploader import xnat
from xnatuploader.records import Row, ScanPlan

Listing = Mapping[str, Mapping[str, xnat.RemoteFile]]
"""Resource -> file name -> what the server says of it."""
Images = Mapping[str, xnat.RemoteFile]
"""SOPInstanceUID -> file."""


class UntoldScans:
    """The images in scans of which XNAT does not say of which series they are; each is asked for once a run.

    For many threads.
    """

    def __init__(self, server: xnat.Server) -> None:
        self._server = server
        self._guard = threading.Lock()
        self._guards: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._resources: dict[str, set[tuple[str, str]]] = {}
        """Session ID -> scan and resource of its files."""
        self._found: dict[tuple[str, str], Images] = {}
        """Session ID and scan ID -> its images."""

    def images(self, session_id: str, scans: tuple[str, ...]) -> Images:
        """Return the images in these scans of a session. Raises `RequestFailed`."""
        if not scans:
            return {}
        with self._guard:
            guard = self._guards[session_id]
        with guard:
            if session_id not in self._resources:
                files = self._server.session_files(session_id)
                self._resources[session_id] = {(file.scan, file.resource) for file in files}
            for scan in scans:
                if (session_id, scan) not in self._found:
                    places = sorted(place for place in self._resources[session_id] if place[0] == scan)
                    self._found[session_id, scan] = self._server.images(session_id, places)
            return {uid: file for scan in scans for uid, file in self._found[session_id, scan].items()}


class HeldImages:
    """The images among which those of one planned scan may be; XNAT is asked when the first one is looked up."""

    def __init__(
        self, server: xnat.Server, untold: UntoldScans, session_id: str, scan: ScanPlan, listed: Listing
    ) -> None:
        self._server = server
        self._untold = untold
        self._session_id = session_id
        self._scan = scan
        self._listed = listed
        self._images: Images | None = None

    def find(self, row: Row) -> xnat.RemoteFile | None:
        """Return the file there that is the row's image; None where there is none, or no way to tell.

        Raises `RequestFailed`.
        """
        if not self._session_id or not row.sop_instance_uid:
            return None
        if self._images is None:
            places = [(self._scan.scan_id, resource) for resource in sorted(self._listed)]
            own = self._server.images(self._session_id, places)
            self._images = {**self._untold.images(self._session_id, self._scan.untold), **own}
        found = self._images.get(row.sop_instance_uid)
        if found is None or found.scan != self._scan.scan_id:
            return found
        return self._listed.get(found.resource, {}).get(
            found.name, found
        )  # with its size, and the digest as it is now
