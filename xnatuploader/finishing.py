"""What is done when files are there: steps after the upload, sessions archived that wait, catalogs refreshed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from xnatuploader import catalogs, importer, interrupts, plan, report, results, server, sessions
from xnatuploader.ledger import Ledger
from xnatuploader.preparing import Prepared
from xnatuploader.records import Row, SessionPlan, Status


class Finisher:
    """Looks after the sessions of one upload; `finish_session` may be called by several threads."""

    def __init__(
        self,
        ledger: Ledger,
        connection: server.Server,
        project: str,
        ready: Prepared,
        stopping: interrupts.Interrupts,
        make_importer: Callable[[importer.Options], importer.Importer],
    ) -> None:
        self.ledger = ledger
        self.asked = ledger.asked
        self.connection = connection
        self.project = project
        self.ready = ready
        self.stopping = stopping
        self.make_importer = make_importer
        self.gate = sessions.Gate(ledger.session_rows)

    def after_all(self) -> None:
        """Do what was asked for besides sending, for every session of the workbook that says yes."""
        if self.asked.commit is not None and not self.stopping.stop.is_set():
            self._commit(self.asked.commit)
        if self.asked.refresh and not self.stopping.stop.is_set():
            self._refresh(self.asked.refresh)

    def _listed_sessions(self) -> dict[str, list[Row]]:
        """Return the rows of every session that were sent or travel, as they are sent, with their outcomes."""
        rows, _ = self.ready.as_sent()
        found: dict[str, list[Row]] = defaultdict(list)
        for row in results.applied(rows, self.ledger.outcomes):
            sent = row.status is Status.SUCCESS and self.gate.open(row)
            if row.session_label and row.scan_id and (sent or self.gate(row)):
                found[row.session_label].append(row)
        return found

    def _commit(self, chosen: importer.Options) -> None:
        """Archive the sessions that wait in the prearchive, unless some of their files are still to be sent."""
        committer = self.make_importer(chosen)
        done = left_alone = 0
        for label, rows in self._listed_sessions().items():
            self.stopping.ask_if_wanted()
            if self.stopping.stop.is_set():
                return
            if any(row.status in (Status.EMPTY, Status.INTERRUPTED) for row in rows):
                left_alone += 1
                continue
            for session in plan.build(rows, rows).sessions:
                if committer.commit_session(session):
                    done += 1
                    for scan in session.scans:
                        self.ledger.tell_failures(session, scan)
                    self.ledger.link(label, self.connection.link(committer.session_id(label), self.project))
        waited = f"{report.plural(done, 'session')} waited" if done else "No session of this workbook waits"
        self.ledger.notes.append(f"{waited} in the prearchive.")
        if left_alone:
            alone = report.plural(left_alone, "session")
            self.ledger.notes.append(f"Left alone, because files are still to be sent: {alone}.")

    def _refresh(self, words: Sequence[str]) -> None:
        """Have XNAT refresh the catalogs of the sessions that it has."""
        there = {remote.label for remote in self.connection.sessions(self.project)}
        done = 0
        for label in self._listed_sessions():
            self.stopping.ask_if_wanted()
            if self.stopping.stop.is_set():
                return
            if label not in there:
                continue
            try:
                catalogs.refresh(self.connection, catalogs.session_resource(self.project, label), words)
                done += 1
            except server.RequestFailed as trouble:
                self.ledger.warn(label, f"Its catalogs could not be refreshed: {trouble.message}")
        self.ledger.notes.append(f"The catalogs of {report.plural(done, 'session')} were refreshed.")

    # ---- after the last file of a session

    def finish_leftovers(self, planned: Collection[str]) -> None:
        """Send the steps after the upload for sessions that an earlier run filled and could not finish."""
        for label in sorted(self.ledger.touched - self.ledger.finished):
            if label not in planned:
                rows = [row for row in self.ledger.rows_of(label) if row.scan_id]
                if rows:
                    reason = plan.why_not_pulled(rows)
                    self.finish_session(
                        SessionPlan(
                            rows[0].subject, label, "", post_steps=not reason, post_steps_reason=reason
                        )
                    )

    def finish_session(self, session: SessionPlan) -> None:
        """Send the steps after the upload of a session, once all of its files are there."""
        label = session.session_label
        if label not in self.ledger.touched or not self._complete(label):
            return  # nothing went there, or not everything yet
        if self.asked.pipeline:
            try:
                self.connection.finish(self.project, session.subject, label, pull=session.post_steps)
            except server.RequestFailed as trouble:
                self.ledger.warn(label, f"The steps after the upload did not work: {trouble.message}")
                if not trouble.reached:
                    return  # they cannot have begun: the next run sends them
            if session.post_steps:
                self._look_after_scans(session)
            else:
                self.ledger.warn(label, f"Headers were not pulled: {session.post_steps_reason}.")
        self.ledger.finish(label)

    def _complete(self, label: str) -> bool:
        """Tell whether every selected file of a session is on the server."""
        return all(
            self.ledger.status_of(row) is Status.SUCCESS
            for row in self.ledger.rows_of(label)
            if self.gate(row) or row.file in self.ledger.outcomes
        )

    def _look_after_scans(self, session: SessionPlan) -> None:
        """List the scans once after XNAT worked on them: types stay ours, further scans are told."""
        try:
            scans = self.connection.scans(self.project, session.session_label)
            wanted = {scan.scan_id: scan for scan in session.scans}
            known = {row.scan_id for row in self.ledger.rows_of(session.session_label)}
            for there in scans:
                ours = wanted.get(there.id)
                if ours is not None and ours.scan_type and there.type != ours.scan_type:
                    self.connection.create_scan(
                        self.project, session.subject, session.session_label, there.id,
                        there.xsi_type or ours.xsi_type, {"type": ours.scan_type},
                    )  # fmt: skip
            extra = sorted(there.id for there in scans if there.id not in known and not session.exists)
            if extra:
                self.ledger.warn(session.session_label, f"XNAT has further scans there: {', '.join(extra)}.")
        except server.RequestFailed as trouble:
            self.ledger.warn(
                session.session_label, f"The scans could not be listed afterwards: {trouble.message}"
            )
