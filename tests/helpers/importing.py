"""Runs of the importer against a sandbox without the command line: files on disk, rows, a plan, outcomes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from tests.helpers import builders
from tests.helpers.sandbox_process import Sandbox
from tests.helpers.waiting import QuickClock
from xnatuploader import xnat
from xnatuploader.records import Outcome, Row, SessionPlan
from xnatuploader.scan import placement
from xnatuploader.upload import plan
from xnatuploader.upload.files import SendContext
from xnatuploader.upload.imports import options
from xnatuploader.upload.imports.importer import Importer
from xnatuploader.upload.imports.options import ImportOptions
from xnatuploader.xnat import credentials, http


class Hasty(threading.Event):
    """An event for which nobody waits long."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(timeout and timeout * 0.02)


class Study:
    """One session's files below `folder`, and their outcomes."""

    def __init__(self, sandbox: Sandbox, folder: Path, label: str, project: str = "P") -> None:
        self.sandbox, self.folder, self.label, self.project = sandbox, folder, label, project
        self.rows: list[Row] = []
        self.outcomes: dict[str, Outcome] = {}
        self.outcome_count = 0
        self.files_counted = 0
        self.stop = Hasty()
        self.stop_after = 0
        """Files sent after which the run is stopped; 0: never."""
        self.copy: Any = None
        self.subject = "S1"
        self.counts = True
        """Whether the progress bar has to count every file."""

    def series(self, number: int = 2, count: int = 4, **elements: Any) -> list[Row]:
        """Add a series of `count` images."""
        made = []
        for index in range(1, count + 1):
            made.append(self.image(number, index, **elements))
        return made

    def image(self, number: int, index: int, **elements: Any) -> Row:
        """Add one image."""
        given = {
            "study": self.label, "series": str(number), "instance": str(index), "SeriesNumber": str(number),
            "PatientName": "Doe^John", "SeriesDescription": f"Series {number}", **elements,
        }  # fmt: skip
        file = f"{self.label}/{number}/IM{index:03}.dcm"
        path = builders.write_dicom(self.folder / file, **given)
        found = path.stat()
        header = builders.dataset(**given)
        row = Row(
            file, filename=f"IM{index:03}.dcm", upload=True, subject=self.subject, session="s",
            dataset=f"Dataset {number}", session_label=self.label, size=str(found.st_size),
            modified=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime)), modality="CT",
            study_date="20200312", series_number=str(number), series_description=f"Series {number}",
            instance_number=str(index), manufacturer="ACME", manufacturer_model_name="Scanner 1",
            study_instance_uid=str(header.StudyInstanceUID), series_instance_uid=str(header.SeriesInstanceUID),
            sop_instance_uid=str(header.SOPInstanceUID), sop_class_uid=str(header.SOPClassUID), resource="DICOM",
        )  # fmt: skip
        self.rows.append(row)
        return row

    def md5(self, row: Row) -> str:
        return builders.md5((self.folder / row.file).read_bytes())

    def connect(self, user: str = "demo") -> xnat.Server:
        found = credentials.Credentials(user, user, "test")
        patience = http.Patience(clock=QuickClock(), stop=self.stop)
        return xnat.connect(self.sandbox.url, found, environ={}, patience=patience)

    def planned(self, connection: xnat.Server) -> SessionPlan:
        from xnatuploader.upload import preflight

        rows = placement.place_scans(self.rows)
        session = plan.build(rows, rows).sessions[0]
        there = connection.sessions(self.project)
        judged = preflight.judge(
            session, rows, there,
            lambda one: (connection.session_uid(self.project, one), connection.scans(one.id)),
        )  # fmt: skip
        assert not judged.conflict, judged.conflict
        return judged.session

    def go(self, handler: str = "DICOM-zip", *, user: str = "demo", sizes: dict[str, Any] | None = None,
           commit: bool = False, **asked: Any) -> dict[str, Outcome]:  # fmt: skip
        """Import the session in a run of its own."""
        from dataclasses import replace

        self.outcomes, self.outcome_count, self.files_counted = {}, 0, 0
        chosen = options.chosen(handler, asked.pop("dest", None), ImportOptions(**asked))
        assert chosen is not None
        with self.connect(user) as connection:
            context = SendContext(
                connection, self.project, lambda row: self.folder / row.file, on_outcome=self.on_outcome,
                on_files=self.on_files, copy=self.copy, stop=self.stop,
            )  # fmt: skip
            made = Importer(context, replace(chosen, **(sizes or {})))
            session = self.planned(connection)
            self.sandbox.clear_requests()
            if commit:
                made.commit_session(session)
            else:
                made.send_session(session)
                assert not self.counts or self.files_counted == len(self.rows)
        return self.outcomes

    def on_outcome(self, outcome: Outcome) -> None:
        self.outcome_count += 1
        self.outcomes[outcome.file] = outcome

    def on_files(self, count: int) -> None:
        self.files_counted += count
        if self.stop_after and self.files_counted >= self.stop_after:
            self.stop.set()

    def statuses(self) -> list[str]:
        assert self.outcome_count == len(self.outcomes) == len(self.rows)
        return sorted({one.status.value for one in self.outcomes.values()})

    def messages(self) -> set[str]:
        return {one.message for one in self.outcomes.values()}

    def archived(self) -> dict[str, str]:
        """`scan/resource/name` -> digest of what the archive lists in this session."""
        subjects = self.sandbox.state().get(self.project, {})
        return {
            f"{scan}/{label}/{name}": entry["digest"]
            for sessions in subjects.values()
            for scan, values in sessions.get(self.label, {"scans": {}})["scans"].items()
            for label, resource in values["resources"].items()
            for name, entry in resource["files"].items()
        }

    def expected(self) -> dict[str, str]:
        return {f"{row.series_number}/DICOM/{row.filename}": self.md5(row) for row in self.rows}

    def waiting(self) -> list[dict[str, str]]:
        """The entries of this session in the prearchive."""
        with self.connect() as connection:
            rows = connection.rows(f"/data/prearchive/projects/{self.project}")
        return [dict(row) for row in rows if row["name"] == self.label]

    def imports(self) -> int:
        return self.sandbox.count("POST", "/services/import")
