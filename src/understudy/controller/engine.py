"""The local engine: executes sessions with a thread per task, in this process."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from understudy.context import CancelToken, Context
from understudy.controller import journal
from understudy.controller.database import Database
from understudy.controller.records import ClaimedSession, ResumedTask
from understudy.controller.replicas import list_replicas, save_replica
from understudy.controller.sites import SiteBuilder
from understudy.controller.task_journal import DatabaseJournal
from understudy.controller.whereabouts import job_there
from understudy.errors import Cancelled, UnderstudyError
from understudy.model.session import SessionKind, SessionState
from understudy.mover import api
from understudy.replication.estimate import estimate_vm
from understudy.replication.run import replicate_vm, resume_vm
from understudy.replication.site import Task
from understudy.replication.target_side import replica_ref

LOG = logging.getLogger(__name__)
_TASK_THREADS = 16


class Engine(Protocol):
    """Who executes sessions."""

    def submit(self, session: ClaimedSession) -> None:
        """Begin to execute a session; returns at once."""

    def cancel(self, session_id: int) -> None:
        """Ask for the end of a session; unknown ones are no error."""

    def active(self) -> frozenset[int]:
        """Sessions that have not ended."""

    def wait_end(self, timeout_s: float) -> None:
        """Wait until a session has ended since the last call, or for that time."""


class LocalEngine:
    """Executes sessions in threads of this process."""

    def __init__(self, database: Database, sites: SiteBuilder) -> None:
        self._database = database
        self._sites = sites
        self._tokens: dict[int, CancelToken] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def submit(self, session: ClaimedSession) -> None:
        """Begin to execute a session in a thread of its own."""
        with self._lock:
            self._tokens[session.id] = CancelToken()
        threading.Thread(target=self._run_session, args=(session,), name=f"session-{session.id}").start()

    def cancel(self, session_id: int) -> None:
        """Ask for the end of a session."""
        with self._lock:
            token = self._tokens.get(session_id)
        if token is not None:
            token.cancel()

    def active(self) -> frozenset[int]:
        """Sessions that have not ended."""
        with self._lock:
            return frozenset(self._tokens)

    def wait_end(self, timeout_s: float) -> None:
        """Wait until a session has ended since the last call, or for that time."""
        if self._ended.wait(timeout_s):
            self._ended.clear()

    def _run_session(self, session: ClaimedSession) -> None:
        token = self._tokens[session.id]
        try:
            self._sites.warm_up(session.job)
            with ThreadPoolExecutor(min(_TASK_THREADS, len(session.job.vms)), f"session-{session.id}") as pool:
                list(pool.map(lambda vm: self._run_task(token, session, vm), session.job.vms))
        except UnderstudyError as exc:
            LOG.warning("session=%s %s", session.id, exc)
        finally:
            try:
                journal.end_session(self._database, session.id)
            finally:
                with self._lock:
                    del self._tokens[session.id]
                self._ended.set()

    def _run_task(self, token: CancelToken, session: ClaimedSession, vm: str) -> None:
        """One task from its first to its last row; whatever goes wrong ends in that last row."""
        resumed = next((item for item in session.resumed if item.vm == vm), None)
        if resumed is None and token.cancelled:
            return  # the end of the session cancels it
        if resumed is None and session.resumed and not journal.is_queued(self._database, session.id, vm):
            return  # it ended, or was lost, with the controller before
        task_id = journal.start_task(self._database, session.id, vm) if resumed is None else resumed.id
        rows = DatabaseJournal(self._database, task_id, session.id)
        ctx = Context(token, {"session": session.id, "vm": vm})
        try:
            task = self._task(session, vm, resumed)
            rows.host = task.job.source
            place = self._sites.build(task.job, rows)
            if session.kind is SessionKind.ESTIMATE:
                journal.store_estimate(self._database, task_id, estimate_vm(ctx, task, place))
                journal.end_task(self._database, task_id, _good_end(rows), warnings=tuple(rows.warnings))
                return
            if resumed is None:
                outcome = replicate_vm(ctx, task, place)
            else:
                rows.warn("the controller was started again while the disks were under way, and went on with them")
                outcome = resume_vm(ctx, task, place, resumed.held)
            self._remember(task, rows)
            journal.end_task(
                self._database, task_id, _good_end(rows), restore_point=outcome.point, consistency=outcome.consistency,
                frozen_ms=outcome.frozen_ms, warnings=tuple(rows.warnings),
            )
        except Cancelled:
            journal.end_task(self._database, task_id, SessionState.CANCELLED, warnings=tuple(rows.warnings))
        except UnderstudyError as exc:
            ctx.log(__name__).error("%s", exc)
            self._fail(task_id, rows, str(exc))
        except Exception as exc:  # noqa: BLE001 - a defect must end in the task's row too, not in a dead thread
            ctx.log(__name__).exception("a defect ended the task")
            self._fail(task_id, rows, f"{session.kind} {vm!r}: internal error: {exc!r}; see the log, and report it")

    def _task(self, session: ClaimedSession, vm: str, resumed: ResumedTask | None) -> Task:
        """The task, with the VM where it is now; one that is gone on with stays where its snapshot is."""
        known = list_replicas(self._database)
        # Replicas that no job of this controller keeps: a job for the same VM and place may take them over.
        adoptable = tuple(item.replica.identity.id for item in known if item.job is None)
        if resumed is not None:
            held = resumed.held
            return Task(held.spec.job, vm, held.vm.name, session.id, session.full_scan, adoptable)
        job = session.job
        uuids = [item.replica.identity.source_uuid for item in known
                 if item.job == job.name and item.datastore == job.datastore and item.name == job.replica_name(vm)]
        found = self._sites.locate(job, vm, uuids[0] if uuids else "")
        return Task(job_there(job, vm, found), vm, found.name, session.id, session.full_scan, adoptable)

    def _fail(self, task_id: int, rows: DatabaseJournal, error: str) -> None:
        journal.end_task(self._database, task_id, SessionState.FAILED, error=error, warnings=tuple(rows.warnings))

    def _remember(self, task: Task, rows: DatabaseJournal) -> None:
        """Copy the replica's record into the database; the point is published, whatever happens here."""
        try:
            # Asked for anew: a proxy that died meanwhile is started again.
            place = self._sites.build(task.job, rows)
            mover = self._sites.mover_at(task.job.target, task.job.target_proxy)
            facts = mover.call(api.InspectReplica(replica_ref(task, place)), api.ReplicaFacts)
            if facts.replica is not None:
                save_replica(self._database, facts.replica, place.datastore.name, place.target_host.name)
        except UnderstudyError as exc:
            rows.warn(f"note the new restore point of replica {task.replica_name!r}: {exc}")


def _good_end(rows: DatabaseJournal) -> SessionState:
    return SessionState.WARNING if rows.warnings else SessionState.SUCCESS
