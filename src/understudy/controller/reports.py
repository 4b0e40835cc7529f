"""What the journal tells of sessions: lists and full reports. Nothing here writes."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import selectinload

from understudy.controller.clock import seconds_since
from understudy.controller.database import Database
from understudy.controller.jobs import job_row
from understudy.controller.journal import session_row
from understudy.controller.records import Estimates, SessionSummary
from understudy.controller.schema import DiskTransferRow, SessionRow, StepRow, TaskRow
from understudy.model.guest import GuestReport
from understudy.model.session import (
    DiskReport,
    SessionKind,
    SessionReport,
    SessionState,
    Step,
    StepReport,
    StepState,
    TaskReport,
)
from understudy.model.transfer import Reason, TransferMode, TransportMode
from understudy.mover.protocol import decode


def list_sessions(database: Database, job: str | None = None) -> tuple[SessionSummary, ...]:
    """Sessions, newest first; of the job called ``job`` only, if given. A deleted job's sessions are still found.

    :raises NotFound: if nothing is known of such a job.
    """
    query = select(SessionRow).order_by(SessionRow.id.desc())
    with database.reading() as session:
        rows = session.scalars(query if job is None else query.filter_by(job=job)).all()
        if job is not None and not rows:
            job_row(session, job)
        return tuple(
            SessionSummary(row.id, row.job, SessionState(row.state), row.started_at or row.queued_at, row.ended_at,
                           SessionKind(row.kind))
            for row in rows
        )


def session_report(database: Database, session_id: int) -> SessionReport:
    """Everything known of a session, also while it runs.

    :raises NotFound: if there is no such session.
    """
    with database.reading() as session:
        row = session_row(session, session_id)
        tasks = session.scalars(
            select(TaskRow).filter_by(session_id=row.id).order_by(TaskRow.id)
            .options(selectinload(TaskRow.steps), selectinload(TaskRow.disks))
        )  # fmt: skip
        return SessionReport(
            id=row.id,
            job=row.job,
            state=SessionState(row.state),
            started_at=row.started_at or row.queued_at,
            ended_at=row.ended_at,
            tasks=tuple(_task(task) for task in tasks),
            kind=SessionKind(row.kind),
        )


def _task(row: TaskRow) -> TaskReport:
    return TaskReport(
        vm=row.vm,
        state=SessionState(row.state),
        restore_point=row.restore_point,
        consistency=row.consistency,
        frozen_ms=row.frozen_ms,
        error=row.error,
        warnings=tuple(row.warnings),
        waiting=row.waiting,
        steps=tuple(_step(step) for step in row.steps),
        disks=tuple(_disk(disk) for disk in row.disks),
        guest=None if row.guest is None else decode(GuestReport, row.guest.encode()),
        estimate=() if row.estimate is None else decode(Estimates, row.estimate.encode()).disks,
    )


def _step(row: StepRow) -> StepReport:
    seconds = seconds_since(row.started_at) if row.seconds is None else row.seconds
    return StepReport(Step(row.name), StepState(row.state), round(seconds, 3))


def _disk(row: DiskTransferRow) -> DiskReport:
    return DiskReport(
        name=row.name,
        mode=TransferMode(row.mode),
        reason=Reason(row.reason),
        size=row.size,
        read_bytes=row.read_bytes,
        sent_bytes=row.sent_bytes,
        wire_bytes=row.wire_bytes,
        zero_bytes=row.zero_bytes,
        processed_bytes=row.processed_bytes,
        seconds=row.seconds,
        bottleneck=row.bottleneck,
        transport=TransportMode(row.transport),
        busy=row.busy,
        rate=row.rate,
        resumed_bytes=row.resumed_bytes,
        reconnects=row.reconnects,
        waiting=row.waiting,
        checked_blocks=row.checked_blocks,
        mismatched_blocks=row.mismatched_blocks,
        excluded=dict(row.excluded),
        notes=tuple(row.notes),
    )
