"""Sessions and their progress, as they happen: one transaction per function.

Reports are read by :mod:`understudy.controller.reports`. A session is queued, claimed by the one controller, and
ended by it; what a controller left behind when it died is the matter of :mod:`understudy.controller.interrupted`.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from understudy.controller.clock import now_iso, seconds_since
from understudy.controller.database import Database
from understudy.controller.jobs import job_row, job_value, unfinished_session
from understudy.controller.records import ClaimedSession, Estimates
from understudy.controller.schema import DiskTransferRow, JobRow, SessionRow, StepRow, TaskRow
from understudy.errors import DatabaseError, NotFound, Refused, UsageError
from understudy.model.estimate import DiskEstimate
from understudy.model.guest import GuestReport
from understudy.model.session import DiskReport, SessionKind, SessionState, Step, StepState, session_state
from understudy.mover.protocol import encode
from understudy.replication.held import HeldTask

# The legal moves of a session and of a task; an end is final.
TRANSITIONS = {
    SessionState.QUEUED: frozenset({SessionState.RUNNING, SessionState.FAILED, SessionState.CANCELLED}),
    SessionState.RUNNING: frozenset(
        {SessionState.SUCCESS, SessionState.WARNING, SessionState.FAILED, SessionState.CANCELLED}
    ),
}

_VERBS = {SessionKind.REPLICATE: "run", SessionKind.ESTIMATE: "estimate"}

# How a step that was not ended by its task ends with it.
_STEP_END = {SessionState.FAILED: StepState.FAILED, SessionState.CANCELLED: StepState.CANCELLED}


def insert_session(
    database: Database, job: str, full_scan: bool = False, kind: SessionKind = SessionKind.REPLICATE, vm: str = ""
) -> int:
    """Queue a session of the job called ``job``, with a task per VM; its id.

    :param vm: only this one; empty for all.
    :raises NotFound: if there is no such job.
    :raises Refused: if the job is disabled, or has a session that has not ended.
    :raises UsageError: if the job has no such VM.
    """
    what = f"{_VERBS[kind]} job {job!r}"
    with database.transaction() as session:
        found = job_row(session, job, lock=True)
        vms = [item.vm for item in found.vms if vm in ("", item.vm)]
        if not vms:
            raise UsageError(what, f"it has no VM {vm!r}", "see 'understudy job show'")
        if not found.enabled:
            raise Refused(what, "the job is disabled", f"enable it: understudy job enable {job!r}")
        active = unfinished_session(session, found.id)
        if active is not None:
            raise Refused(what, f"its session {active} has not ended",
                          f"wait for it, or 'understudy session stop {active}'")
        row = SessionRow(job_id=found.id, job=job, state=SessionState.QUEUED.value, full_scan=full_scan,
                         kind=kind.value, cancel_requested=False, queued_at=now_iso())
        row.tasks = [TaskRow(vm=name, state=SessionState.QUEUED.value, warnings=[]) for name in vms]
        session.add(row)
        session.flush()
        return row.id


def claim_session(database: Database) -> ClaimedSession | None:
    """Take the oldest queued session and call it running; None if nothing is queued."""
    # A controller asks many times a second: it must not take SQLite's only write lock each time.
    if not has_session(database, running=False):
        return None
    oldest = select(SessionRow).filter_by(state=SessionState.QUEUED.value).order_by(SessionRow.id).limit(1)
    with database.transaction() as session:
        row = session.scalar(oldest.with_for_update(skip_locked=True))
        if row is None:
            return None
        job = session.get(JobRow, row.job_id)
        if job is None:
            raise DatabaseError(f"start session {row.id}", f"its job {row.job!r} is missing", "stop the session")
        _move(row, SessionState.RUNNING, f"session {row.id}")
        row.started_at = now_iso()
        wanted = replace(job_value(job), vms=tuple(task.vm for task in row.tasks))
        return ClaimedSession(row.id, wanted, row.full_scan, kind=SessionKind(row.kind))


def has_session(database: Database, *, running: bool) -> bool:
    """Whether a session is running, or else whether one is queued."""
    state = SessionState.RUNNING if running else SessionState.QUEUED
    with database.reading() as session:
        return session.scalar(select(SessionRow.id).filter_by(state=state.value).limit(1)) is not None


def request_cancel(database: Database, session_id: int) -> SessionState:
    """Ask for the end of a session; a queued one ends here. The state after that.

    :raises NotFound: if there is no such session.
    :raises Refused: if it has ended.
    """
    with database.transaction() as session:
        row = session_row(session, session_id, lock=True)
        state = SessionState(row.state)
        if state.ended:
            raise Refused(f"stop session {session_id}", f"it has ended ({state})", "nothing is to be stopped")
        row.cancel_requested = True
        if state is SessionState.QUEUED:
            for task in row.tasks:
                _end_task(task, SessionState.CANCELLED)
            _end_session(row, SessionState.CANCELLED)
        return SessionState(row.state)


def has_ended(database: Database, session_id: int) -> bool:
    """Whether a session has ended.

    :raises NotFound: if there is no such session.
    """
    state, _cancel = _glance(database, session_id)
    return state.ended


def is_cancel_requested(database: Database, session_id: int) -> bool:
    """Whether the operator asked for the end of the session.

    :raises NotFound: if there is no such session.
    """
    _state, cancel = _glance(database, session_id)
    return cancel


def is_queued(database: Database, session_id: int, vm: str) -> bool:
    """Whether the session's task for ``vm`` was never started."""
    with database.reading() as session:
        task = session.scalar(select(TaskRow).filter_by(session_id=session_id, vm=vm))
        return task is not None and task.state == SessionState.QUEUED.value


def start_task(database: Database, session_id: int, vm: str) -> int:
    """Call the session's task for ``vm`` running; its id.

    :raises NotFound: if the session has no such VM.
    :raises Refused: if the task was started before.
    """
    with database.transaction() as session:
        task = session.scalar(select(TaskRow).filter_by(session_id=session_id, vm=vm))
        if task is None:
            raise NotFound(f"session {session_id}", f"it has no VM {vm!r}")
        _move(task, SessionState.RUNNING, f"task {task.id}")
        return task.id


def start_step(database: Database, task_id: int, step: Step) -> None:
    """Note that a step of a task begins; a step that was done before begins again."""
    with database.transaction() as session:
        row = _step(session, task_id, step)
        if row is None:
            row = StepRow(task_id=task_id, name=step.value)
            session.add(row)
        row.state = StepState.RUNNING.value
        row.started_at = now_iso()
        row.seconds = None


def end_step(
    database: Database, task_id: int, step: Step, state: StepState = StepState.SUCCESS, seconds: float | None = None
) -> None:
    """Note the end of a step; one that was never started is noted whole (a skipped one, for example).

    :param seconds: how long it took; measured from its start if None.
    """
    with database.transaction() as session:
        row = _step(session, task_id, step)
        if row is None:
            row = StepRow(task_id=task_id, name=step.value, started_at=now_iso(), seconds=0.0)
            session.add(row)
        row.state = state.value
        row.seconds = seconds_since(row.started_at) if seconds is None else seconds


def update_disk(database: Database, task_id: int, report: DiskReport) -> None:
    """Store how far a disk transfer is. At most about once a second for each disk, please: each call is a commit."""
    with database.transaction() as session:
        row = session.scalar(select(DiskTransferRow).filter_by(task_id=task_id, name=report.name))
        if row is None:
            row = DiskTransferRow(task_id=task_id, name=report.name)
            session.add(row)
        row.mode, row.reason, row.bottleneck = report.mode.value, report.reason.value, report.bottleneck
        row.size, row.processed_bytes, row.seconds = report.size, report.processed_bytes, report.seconds
        row.read_bytes, row.sent_bytes = report.read_bytes, report.sent_bytes
        row.wire_bytes, row.zero_bytes = report.wire_bytes, report.zero_bytes
        row.transport, row.busy, row.rate = report.transport.value, report.busy, report.rate
        row.resumed_bytes, row.reconnects, row.waiting = report.resumed_bytes, report.reconnects, report.waiting
        row.checked_blocks, row.mismatched_blocks = report.checked_blocks, report.mismatched_blocks
        row.excluded, row.notes = report.excluded, list(report.notes)


def task_warnings(database: Database, task_id: int) -> tuple[str, ...]:
    """The warnings of a task that are stored: those of another controller, if it was begun by one."""
    with database.reading() as session:
        return tuple(session.get_one(TaskRow, task_id).warnings)


def store_warnings(database: Database, task_id: int, warnings: tuple[str, ...]) -> None:
    """Store all warnings of a task so far, so that they are not lost with the controller."""
    with database.transaction() as session:
        session.get_one(TaskRow, task_id).warnings = list(warnings)


def store_waiting(database: Database, task_id: int, reason: str) -> None:
    """Store why a task waits; an empty text says that it goes on."""
    with database.transaction() as session:
        session.get_one(TaskRow, task_id).waiting = reason


def store_held(database: Database, task_id: int, held: HeldTask | None) -> None:
    """Store what a task holds, so that another controller can go on with it."""
    with database.transaction() as session:
        session.get_one(TaskRow, task_id).held = None if held is None else encode(held).decode()


def store_guest(database: Database, task_id: int, report: GuestReport) -> None:
    """Store what guest processing of a task did so far."""
    with database.transaction() as session:
        session.get_one(TaskRow, task_id).guest = encode(report).decode()


def store_estimate(database: Database, task_id: int, disks: tuple[DiskEstimate, ...]) -> None:
    """Store what an estimate of a task found."""
    with database.transaction() as session:
        session.get_one(TaskRow, task_id).estimate = encode(Estimates(disks)).decode()


def end_task(
    database: Database,
    task_id: int,
    state: SessionState,
    *,
    restore_point: str | None = None,
    consistency: str | None = None,
    frozen_ms: float | None = None,
    error: str | None = None,
    warnings: tuple[str, ...] | None = None,
) -> None:
    """Store the outcome of a task; steps that still run end with it.

    :param warnings: all of them; None keeps those of :func:`store_warnings`.
    :raises Refused: if the task has ended, or never ran and is said to be a success.
    """
    with database.transaction() as session:
        task = session.get_one(TaskRow, task_id)
        _end_task(task, state, error)
        task.restore_point, task.consistency, task.frozen_ms = restore_point, consistency, frozen_ms
        if warnings is not None:
            task.warnings = list(warnings)


def end_session(database: Database, session_id: int) -> SessionState:
    """End a session by the outcome of its tasks; the state that it got.

    A task that has not ended was not done: it is cancelled if the operator asked for that, else failed.

    :raises NotFound: if there is no such session.
    :raises Refused: if it has ended.
    """
    with database.transaction() as session:
        row = session_row(session, session_id, lock=True)
        return close(row, "the session ended before this VM was done")


def session_row(session: Session, session_id: int, lock: bool = False) -> SessionRow:
    """For the controller package: the session's row, or NotFound."""
    row = session.get(SessionRow, session_id, with_for_update=lock or None)
    if row is None:
        raise _no_session(session_id)
    return row


def _glance(database: Database, session_id: int) -> tuple[SessionState, bool]:
    """The state of a session, and whether it is to end; asked many times a second, so nothing else is read."""
    asked = select(SessionRow.state, SessionRow.cancel_requested).filter_by(id=session_id)
    with database.reading() as session:
        found = session.execute(asked).one_or_none()
    if found is None:
        raise _no_session(session_id)
    return SessionState(found.state), found.cancel_requested


def _no_session(session_id: int) -> NotFound:
    return NotFound(f"session {session_id}", "no such session", "see 'understudy session list'")


def close(row: SessionRow, why: str) -> SessionState:
    """For the controller package: end a session and those of its tasks that have not ended."""
    for task in row.tasks:
        if SessionState(task.state).ended:
            continue
        if row.cancel_requested:
            _end_task(task, SessionState.CANCELLED)
        else:
            fail_task(task, why)
    state = session_state(tuple(SessionState(task.state) for task in row.tasks))
    _end_session(row, state)
    return state


def fail_task(task: TaskRow, why: str) -> None:
    """For the controller package: end a task that was not done."""
    todo = "run the job again" if task.session.kind == SessionKind.REPLICATE else "estimate again"
    _end_task(task, SessionState.FAILED, f"{task.session.kind} {task.vm!r}: {why}; {todo}")


def _end_session(row: SessionRow, state: SessionState) -> None:
    _move(row, state, f"session {row.id}")
    row.ended_at = now_iso()


def _end_task(task: TaskRow, state: SessionState, error: str | None = None) -> None:
    _move(task, state, f"task {task.id}")
    task.error, task.waiting, task.held = error, "", None
    for disk in task.disks:
        disk.rate, disk.waiting = 0.0, ""
    for step in task.steps:
        if step.state == StepState.RUNNING.value:
            step.state = _STEP_END.get(state, StepState.SUCCESS).value
            step.seconds = seconds_since(step.started_at)


def _move(row: SessionRow | TaskRow, state: SessionState, what: str) -> None:
    """Change a state along :data:`TRANSITIONS` only."""
    if state not in TRANSITIONS.get(SessionState(row.state), frozenset()):
        raise Refused(what, f"it is {row.state} and cannot become {state}")
    row.state = state.value


def _step(session: Session, task_id: int, step: Step) -> StepRow | None:
    return session.scalar(select(StepRow).filter_by(task_id=task_id, name=step.value))
