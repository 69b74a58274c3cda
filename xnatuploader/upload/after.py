"""What is done when files are there: steps after the upload, sessions archived that wait, catalogs refreshed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from xnatuploader import xnat
from xnatuploader.console import report
from xnatuploader.records import NOT_SELECTED, TRIED_AT_UPLOAD, Row, ScanAddress, SessionPlan, Status
from xnatuploader.scan import sessions
from xnatuploader.upload import plan, state
from xnatuploader.upload.current import CurrentUpload
from xnatuploader.upload.imports.importer import Importer
from xnatuploader.upload.imports.options import ImportOptions
from xnatuploader.xnat import catalogs

READ = "The files are there, but XNAT could not read their headers into the session."
FIXED = "The files are there, but XNAT could not fill in missing scan types."
PASSING = frozenset({"connection", "server"})
"""Kinds of failures after which the next run may have better luck."""
LOST_ANSWER = frozenset({0, 502, 503, 504})
"""With these XNAT may be at work even so."""
PULL_SECONDS, PAUSE_SECONDS = 1800.0, 5.0
"""How long to wait for a pull whose answer was lost, and between two looks."""
STARTED = "The files are there, but the project's pipelines could not be started."


class Finisher:
    """Looks after the sessions of one upload; `finish_session` may be called by several threads."""

    def __init__(
        self,
        current: CurrentUpload,
        make_importer: Callable[[ImportOptions], Importer],
        session_id: Callable[[str], str],
    ) -> None:
        self.current = current
        self.state = current.state
        self.options = current.options
        self.server = current.server
        self.make_importer = make_importer
        self.session_id = session_id
        """Gives XNAT's ID of a session by its label, '' where it has none."""
        self.gate = sessions.Gate(current.state.session_rows)

    def after_all(self) -> None:
        """Do what was asked for besides sending, for every session of the workbook that says yes."""
        if self.options.commit is not None and not self.current.is_stopped:
            self._commit(self.options.commit)
        if self.options.refresh and not self.current.is_stopped:
            self._refresh(self.options.refresh)

    def _listed_sessions(self) -> dict[str, list[Row]]:
        """Return the rows of every session that were sent or travel, as they are sent, with their outcomes."""
        rows, _ = self.current.ready.as_sent()
        found: dict[str, list[Row]] = defaultdict(list)
        for row in state.applied(rows, self.state.outcomes):
            sent = row.status is Status.SUCCESS and self.gate.open(row)
            if row.session_label and row.scan_id and (sent or self.gate(row)):
                found[row.session_label].append(row)
        return found

    def _commit(self, chosen: ImportOptions) -> None:
        """Archive the sessions that wait in the prearchive, unless some of their files are still to be sent."""
        committer = self.make_importer(chosen)
        done = left_alone = 0
        for label, rows in self._listed_sessions().items():
            self.current.stopping.ask_if_wanted()
            if self.current.is_stopped:
                return
            if any(row.status in (Status.EMPTY, Status.INTERRUPTED) for row in rows):
                left_alone += 1
                continue
            for session in plan.build(rows, rows).sessions:
                if committer.commit_session(session):
                    done += 1
                    for scan in session.scans:
                        self.state.tell_failures(session, scan)
                    if session_id := committer.session_id(label):  # none where it was not archived
                        self.state.link(label, self.server.link(session_id, self.current.project))
        waiting = report.plural(done, "session") if done else "No session of this workbook"
        self.state.notes.append(f"{waiting} {'were' if done > 1 else 'was'} waiting in the prearchive.")
        if left_alone:
            alone = report.plural(left_alone, "session")
            self.state.notes.append(f"Not archived yet, because files are still to be sent: {alone}.")

    def _refresh(self, words: Sequence[str]) -> None:
        """Have XNAT refresh the catalogs of the sessions that it has."""
        there = {remote.label for remote in self.server.sessions(self.current.project)}
        done = 0
        for label in self._listed_sessions():
            self.current.stopping.ask_if_wanted()
            if self.current.is_stopped:
                return
            if label not in there:
                continue
            try:
                catalogs.refresh(self.server, catalogs.session_resource(self.current.project, label), words)
                done += 1
            except xnat.RequestFailed as failure:
                self.state.warn(label, f"Its catalogs could not be refreshed: {failure.message}")
        self.state.notes.append(f"The catalogs of {report.plural(done, 'session')} were refreshed.")

    # ---- after the last file of a session

    def finish_leftovers(self, planned: Collection[str]) -> None:
        """Send the steps after the upload for sessions that an earlier run filled and could not finish."""
        for label in sorted(self.state.touched - self.state.finished - set(planned)):
            if self.current.is_stopped:
                return
            if not any(self._is_due(row) for row in self.state.rows_of(label)):
                self._finish_leftover(label)

    def _is_due(self, row: Row) -> bool:
        """Tell whether a file is still to be sent, be its session's own Upload N at the moment."""
        outcome = self.state.outcomes.get(row.file)
        wanted = row.upload and not (outcome and outcome.upload == NOT_SELECTED)
        return wanted and self.state.status_of(row) in TRIED_AT_UPLOAD

    def _finish_leftover(self, label: str) -> None:
        rows, _ = self.current.ready.as_sent()
        sent = [
            row
            for row in state.applied(rows, self.state.outcomes)
            if row.session_label == label and row.status is Status.SUCCESS
        ]
        sessions_sent = plan.build(sent, sent).sessions
        for session in sessions_sent:
            self.finish_session(replace(session, exists=self.session_id(label)))
        if not sessions_sent:
            self.state.finish(label)  # nothing of it was sent, or it is not in the workbook any more

    def finish_session(self, session: SessionPlan) -> None:
        """Send the steps after the upload of a session, once all of its files are there."""
        label = session.session_label
        if label not in self.state.touched or not self._complete(label):
            return  # nothing went there, or not everything yet
        if self.options.pipeline and not self._steps(session, self.session_id(label)):
            return  # they cannot have begun: the next run sends them
        self.state.finish(label)

    def _complete(self, label: str) -> bool:
        """Tell whether every selected file of a session is on the server, be it in changed form."""
        return all(
            self.state.status_of(row) in (Status.SUCCESS, Status.DUPLICATE)
            for row in self.state.rows_of(label)
            if self.gate(row) or row.file in self.state.outcomes
        )

    def _steps(self, session: SessionPlan, session_id: str) -> bool:
        """Have XNAT read the headers, fix scan types and start its pipelines; False if it was not to be reached.

        A step that fails is reported, and the others are done even so.
        """
        label = session.session_label
        if not session_id:
            self.state.warn(
                label, "The steps after the upload were not sent: the session is not on XNAT any more."
            )
            return True
        asked = state.PIPELINES in self.state.made_in(label, session_id)
        if asked and not self._has_outcomes(label):  # an earlier run ended at it, with all other steps done
            return self.server.pipelines_started(session_id) or self._start_pipelines(label, session_id)
        if session.post_steps:
            reached = self._pull(session, session_id)
        else:
            reached = True
            self.state.warn(label, f"XNAT was not asked to read the headers: {session.post_steps_reason}.")
        reached = reached and self._step(label, FIXED, self.server.fix_scan_types, session_id)
        if reached:
            self._look_after_scans(session, session_id)
        if not reached:
            return False
        self.state.made_scan(label, session_id, state.PIPELINES)
        return self._start_pipelines(label, session_id)

    def _has_outcomes(self, label: str) -> bool:
        """Tell whether this run has done something to a session's files."""
        return any(row.file in self.state.outcomes for row in self.state.rows_of(label))

    def _step(self, label: str, failed: str, send: Callable[..., None], *names: str) -> bool:
        """Send one step; False if the server was not to be reached, so that it cannot have begun."""
        try:
            send(*names)
        except xnat.RequestFailed as failure:
            self.state.warn(label, f"{failed} {failure.message}")
            return failure.reached
        return True

    def _start_pipelines(self, label: str, session_id: str) -> bool:
        """Have XNAT start the pipelines, as in `_step`; where the answer was lost it is asked whether it has."""
        try:
            self.server.start_pipelines(session_id)
        except xnat.RequestFailed as failure:
            if failure.status not in LOST_ANSWER or not self.server.pipelines_started(session_id):
                self.state.warn(label, f"{STARTED} {failure.message}")
            return failure.reached
        return True

    def _pull(self, session: SessionPlan, session_id: str) -> bool:
        """Have XNAT read the headers of what this workbook's runs sent; False if the other steps have to wait.

        The whole session at once only where they made every scan of it: scans that came by the prearchive would
        lose their catalogs by it, and list no files any more (PullSessionDataFromHeaders).
        """
        label = session.session_label
        if label in self.state.unfinished and self.server.pull_under_way(session_id):
            # An earlier run was left at it; what this run has added is read after that.
            if not self._pull_has_ended(label, session_id):
                return False
            if not self._has_outcomes(label):
                return True
        try:
            there = {scan.id: scan.xsi_type for scan in self.server.scans(session_id)}
        except xnat.RequestFailed as failure:
            self.state.warn(label, f"{READ} {failure.message}")
            return failure.kind not in PASSING
        made = self.state.made_in(label, session_id)
        if there and there.keys() <= made:
            pulls: list[tuple[Callable[..., None], tuple[str, ...]]] = [
                (self.server.pull_session, (session_id,))
            ]
        else:
            pulls = [
                (self.server.pull_scan, (session_id, scan, there[scan]))
                for scan in sorted(made & there.keys())
            ]
        return all(self._pulled(label, session_id, pull, names) for pull, names in pulls)

    def _pulled(self, label: str, session_id: str, pull: Callable[..., None], names: Sequence[str]) -> bool:
        """Send one pull, as in `_step`; where the answer was lost it is waited for, and its history tells the end."""
        try:
            pull(*names)
        except xnat.RequestFailed as failure:
            lost = failure.reached and failure.status in LOST_ANSWER
            if lost and not self._pull_has_ended(label, session_id):
                return False
            if not lost or not self.server.pull_is_complete(session_id):
                self.state.warn(label, f"{READ} {failure.message}")
            return failure.reached
        return True

    def _pull_has_ended(self, label: str, session_id: str) -> bool:
        """Wait for a pull whose answer was lost: XNAT goes on, and pipelines want what it reads."""
        until = time.monotonic() + PULL_SECONDS
        while self.server.pull_under_way(session_id):
            if time.monotonic() > until or self.current.stopping.stop.wait(PAUSE_SECONDS):
                self.state.warn(
                    label, "XNAT is still reading headers. Run upload again to have the other steps done."
                )
                return False
        return True

    def _look_after_scans(self, session: SessionPlan, session_id: str) -> None:
        """List the scans once after XNAT worked on them: types of ours stay, further scans are told."""
        made = self.state.made_in(session.session_label, session_id)
        try:
            scans = self.server.scans(session_id)
            wanted = {scan.scan_id: scan for scan in session.scans if scan.scan_id in made}
            known = {row.scan_id for row in self.state.rows_of(session.session_label)}
            for there in scans:
                ours = wanted.get(there.id)
                if ours is not None and ours.scan_type and there.type != ours.scan_type:
                    address = ScanAddress(
                        self.current.project, session.subject, session.session_label, there.id
                    )
                    self.server.create_scan(
                        address, there.xsi_type or ours.xsi_type, {"type": ours.scan_type}
                    )
            extra = sorted(there.id for there in scans if there.id not in known and not session.exists)
            if extra:
                self.state.warn(
                    session.session_label, f"XNAT has more scans in this session: {', '.join(extra)}."
                )
        except xnat.RequestFailed as failure:
            self.state.warn(
                session.session_label, f"The scans could not be listed afterwards: {failure.message}"
            )
