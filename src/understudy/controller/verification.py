"""Verifying restore points: one to its end or until the time is over, and what is due by the schedules of the jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from understudy.context import Context
from understudy.controller import control
from understudy.controller.due import due_points
from understudy.controller.records import DueAnswer, DueVerification, ReplicaRecord, VerifyAnswer, VerifyWish
from understudy.errors import Cancelled, UnderstudyError
from understudy.model.job import Job
from understudy.model.snapshot import LibraryExport
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.verified import verified_disk
from understudy.replication.work import finish


def verify_point(
    mover: MoverClient, ref: api.ReplicaRef, wish: VerifyWish, on_progress: Callable[[api.Progress], None],
    exports: tuple[LibraryExport, ...] = (),
) -> VerifyAnswer:
    """Verify a point at the target proxy.

    :param exports: how its disks are read where the proxy has no files of them.
    :raises Cancelled: after Ctrl-C.
    :raises UnderstudyError: if it cannot be verified.
    """
    ctx = Context()
    late = False

    def note(progress: api.Progress) -> None:
        nonlocal late
        on_progress(progress)
        if wish.until is not None and time.monotonic() >= wish.until and not ctx.cancel.cancelled:
            late = True
            ctx.cancel.cancel()

    request = api.VerifyPoint(ref, wish.point, wish.rate, wish.restart, exports)
    with control.cancel_on_interrupt(ctx.cancel):
        try:
            return VerifyAnswer(finish(ctx, mover, request, note).verified)
        except Cancelled as exc:
            if late:
                return VerifyAnswer(_known(mover, ref, wish.point), complete=False)
            raise Cancelled(f"verify restore point {wish.point!r} of replica {ref.name!r}", "stopped by the operator",
                            "the same command goes on where it was") from exc


def _known(mover: MoverClient, ref: api.ReplicaRef, point_id: str) -> tuple[api.VerifiedDisk, ...]:
    """What is known of a point whose pass was stopped."""
    facts = mover.call(api.InspectReplica(ref), api.ReplicaFacts)
    if facts.replica is None:
        return ()
    point = facts.replica.point(point_id)
    return tuple(verified_disk(facts.health, point, disk) for disk in point.disks)


def due_verifications(
    jobs: Sequence[Job], replicas: Sequence[ReplicaRecord], facts_of: Callable[[ReplicaRecord], api.ReplicaFacts]
) -> DueAnswer:
    """What is due of the replicas whose jobs have a schedule."""
    found, problems, now = [], [], datetime.now(UTC)
    scheduled = {job.name: job for job in jobs if job.verify_every_s}
    for record in replicas:
        job = scheduled.get(record.job or "")
        if job is None:
            continue
        try:
            facts = facts_of(record)
        except UnderstudyError as exc:
            problems.append(str(exc))
            continue
        if facts.replica is not None:
            newest = facts.replica.newest
            for item in due_points(facts.replica, facts.health, job.verify_every_s, now):
                is_newest = newest is not None and newest.id == item.point
                found.append((item.turn, DueVerification(record, item.point, is_newest, job.verify_rate)))
    found.sort(key=lambda item: item[0])
    return DueAnswer(tuple(item for _, item in found), tuple(problems))
