"""Interrupted sessions: what did a controller that died leave running, and how does that end?

One transaction per function, as in :mod:`understudy.controller.journal`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from sqlalchemy import select

from understudy.controller.database import Database
from understudy.controller.jobs import job_row, job_value, unfinished_session
from understudy.controller.journal import close, fail_task, session_row
from understudy.controller.records import ClaimedSession, ResumedTask, RunningSession
from understudy.controller.schema import JobRow, SessionRow, TaskRow
from understudy.errors import UsageError
from understudy.model.session import SessionState
from understudy.mover.protocol import decode
from understudy.replication.held import HeldTask

LOG = logging.getLogger(__name__)

CONTROLLER_DIED = "controller ended unexpectedly"


def held_sessions(database: Database) -> tuple[ClaimedSession, ...]:
    """Sessions that a dead controller left running with tasks that hold something to go on with.

    What another version of this program wrote may mean nothing to this one: it is as if nothing was held.
    """
    with database.reading() as session:
        rows = session.scalars(select(SessionRow).filter_by(state=SessionState.RUNNING.value)).all()
        found = []
        for row in rows:
            job = session.get(JobRow, row.job_id)
            running = [task for task in row.tasks if task.state == SessionState.RUNNING.value]
            resumed = tuple(task for task in map(_resumed_task, running) if task is not None)
            if job is not None and resumed:
                found.append(ClaimedSession(row.id, job_value(job), row.full_scan, resumed))
        return tuple(found)


def idle_jobs(database: Database, session_ids: Collection[int]) -> tuple[str, ...]:
    """Ids of the jobs of some sessions, of jobs that have no session now that is queued or running."""
    with database.reading() as session:
        query = select(SessionRow.job_id).where(SessionRow.id.in_(session_ids), SessionRow.job_id.is_not(None))
        found = {job_id for job_id in session.scalars(query) if job_id is not None}
        return tuple(sorted(job_id for job_id in found if unfinished_session(session, job_id) is None))


def running_sessions(database: Database) -> tuple[RunningSession, ...]:
    """Sessions that run, or that ran when their controller died, the oldest first."""
    query = select(SessionRow).filter_by(state=SessionState.RUNNING.value).order_by(SessionRow.id)
    with database.reading() as session:
        return tuple(RunningSession(row.id, row.job_id or "", tuple(task.vm for task in row.tasks))
                     for row in session.scalars(query))


def session_of(database: Database, job: str) -> int | None:
    """The running session of a job; for a home without a controller, which so has died.

    :raises NotFound: if there is no such job.
    """
    with database.reading() as session:
        found = unfinished_session(session, job_row(session, job).id)
        return found if found is not None and session_row(session, found).state == SessionState.RUNNING.value else None


def fail_lost_tasks(database: Database, session_id: int, kept: Collection[str]) -> None:
    """End the tasks of a session that ran when its controller died, but for the VMs in ``kept``."""
    with database.transaction() as session:
        for task in session_row(session, session_id, lock=True).tasks:
            if task.state == SessionState.RUNNING.value and task.vm not in kept:
                fail_task(task, CONTROLLER_DIED)


def fail_dead_sessions(database: Database, kept: Collection[int] = ()) -> tuple[int, ...]:
    """End what a dead controller left running, but for ``kept``; the ids. Only for who has just got the lock."""
    with database.transaction() as session:
        running = session.scalars(select(SessionRow).filter_by(state=SessionState.RUNNING.value)).all()
        rows = [row for row in running if row.id not in kept]
        for row in rows:
            # A dead controller may have died before it could obey; then the cancellation was not done either.
            row.cancel_requested = False
            close(row, CONTROLLER_DIED)
        return tuple(row.id for row in rows)


def _resumed_task(row: TaskRow) -> ResumedTask | None:
    if not row.held:
        return None
    try:
        return ResumedTask(row.id, row.vm, decode(HeldTask, row.held.encode()))
    except UsageError as exc:
        LOG.warning("session=%s vm=%s cannot be gone on with: %s", row.session_id, row.vm, exc)
        return None
