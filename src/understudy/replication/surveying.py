"""What do the disks of a point leave out (S10), and what did those leave out that they are compared with?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from understudy.context import Context
from understudy.errors import Cancelled, ReplicaError, TransferError, UnderstudyError
from understudy.model.exclusion import DiskSurvey, Exclusion, excludable, exclusion_of, pack, ranges_of
from understudy.model.job import Job
from understudy.model.replica import Consistency, Replica
from understudy.model.session import Step
from understudy.model.transfer import DiskPlan, Reason, TransferMode
from understudy.mover import api
from understudy.replication.held import Excluding, HeldTask
from understudy.replication.planning import without_exclusions
from understudy.replication.site import Site
from understudy.replication.transfer import Exports
from understudy.replication.work import finish

#: The source snapshot is held meanwhile. A survey has limits of its own; this is for one that does not keep them.
SURVEY_S = 300.0


def former_exclusions(
    site: Site, ref: api.ReplicaRef, replica: Replica | None, plans: Sequence[DiskPlan]
) -> tuple[tuple[DiskPlan, ...], Excluding]:
    """What the newest point, and those since which changes are tracked, leave out.

    :return: the plans, and that; where it is lost, the disk is scanned: digests tell what the replica holds.
    """
    newest = replica.newest if replica else None
    if replica is None or newest is None:
        return tuple(plans), Excluding()
    wanted = {plan.since_point for plan in plans if plan.since_point} | {newest.id}
    found = {point: _read(site, ref, replica, point, newest.id) for point in wanted}
    lost = frozenset(plan.name for plan in plans if _needs(plan) and (
        found[newest.id] is None or (plan.since_point and found[plan.since_point] is None)))
    kept = without_exclusions(plans, lost)
    sized = {plan.name: plan.size for plan in plans}
    former = {item.disk: _fitting(item, sized[item.disk]) for item in found[newest.id] or () if item.disk in sized}
    once = {plan.name: exclusion_of(found[plan.since_point] or (), plan.name).packed
            for plan in kept if plan.since_point}
    before = tuple(replace(item, packed=former[item.disk]) for item in found[newest.id] or () if item.disk in former)
    return kept, Excluding(former=before, once={name: packed for name, packed in once.items() if packed})


def _needs(plan: DiskPlan) -> bool:
    """Whether the dirty map of the disk is given to the source side."""
    return plan.mode is TransferMode.INCREMENTAL or plan.reason is Reason.FORCED


def _read(site: Site, ref: api.ReplicaRef, replica: Replica, point: str, newest: str) -> tuple[Exclusion, ...] | None:
    """What a point leaves out; None if that is lost."""
    record = replica.point(point)
    if point != newest and record.baseline is None:
        # It was rebuilt without its sidecar, so nobody knows whether it left out something.
        site.journal.warn(f"what restore point {point} leaves out is lost with its record")
        return None
    if not record.excluded:
        return ()
    try:
        return site.target_mover.call(api.ReadExclusions(ref, point), api.PointExclusions).exclusions
    except ReplicaError as exc:
        site.journal.warn(f"what restore point {point} leaves out is lost, so blocks are compared with digests: {exc}")
        return None


def _fitting(item: Exclusion, size: int) -> str:
    """Its ranges for a disk that may have grown; a part at its old end counts as not left out."""
    return pack(excludable(item.ranges, size))


@contextmanager
def surveyed(ctx: Context, site: Site, held: HeldTask) -> Iterator[HeldTask]:
    """The held task with what its disks leave out.

    Images that were opened for that are read on by the transfers, which close them; if the context fails, they are
    closed here too, for the transfers may not have begun.
    """
    exports = Exports(site, held)
    try:
        surveys = _surveys(ctx, site, held, exports)
        now = tuple(item.exclusion for item in surveys)
        notes = {item.exclusion.disk: item.notes for item in surveys if item.notes}
        yield replace(held, excluding=replace(held.excluding, now=now, notes=notes), exports=dict(exports.opened))
    except BaseException:
        exports.close_all()
        raise


def _surveys(ctx: Context, site: Site, held: HeldTask, exports: Exports) -> tuple[DiskSurvey, ...]:
    """The surveys; of a survey that fails, whose step has failed then, that nothing is left out."""
    if not wants_survey(held.spec.job, held.vm.name):
        return ()
    try:
        with site.journal.step(Step.SURVEY):
            return _found(ctx, site, held, exports)
    except Cancelled:
        raise
    except UnderstudyError as exc:
        ctx.log(__name__).warning("survey: %s", exc)
        return tuple(_nothing(plan.name, f"nothing is left out: {exc}") for plan in held.plans)


def _found(ctx: Context, site: Site, held: HeldTask, exports: Exports) -> tuple[DiskSurvey, ...]:
    sources = {plan.name: replace(exports.open(plan.name, restarted=False), dirty_context="") for plan in held.plans}
    quiesced = held.consistency is not Consistency.CRASH
    job, vm = held.spec.job, held.vm.name
    return find_exclusions(ctx, site, job, vm, held.plans, sources, quiesced, held.excluding.former)


def wants_survey(job: Job, vm: str) -> bool:
    """Whether the job wants anything left out of a VM's disks."""
    return job.exclude_swap or job.exclude_free or bool(job.masks_of(vm))


def find_exclusions(
    ctx: Context, site: Site, job: Job, vm: str, plans: Sequence[DiskPlan],
    snapshot_sources: Mapping[str, api.NbdSource], quiesced: bool, former: tuple[Exclusion, ...],
) -> tuple[DiskSurvey, ...]:
    """Look into the volumes of the snapshot: what each disk leaves out, by the job's settings; one for each plan.

    :param job: as it holds for this VM.
    :param vm: as it is called on its host now.
    :param quiesced: its file systems were frozen, or it was off.
    :param former: what the newest point leaves out.
    :raises Cancelled: if the operator ends it.
    :raises UnderstudyError: if the survey failed or took too long; then nothing may be left out.
    """
    disks = tuple(api.SurveyedDisk(plan.name, snapshot_sources[plan.name], plan.size) for plan in plans)
    request = api.SurveyDisks(disks, job.exclude_swap, job.masks_of(vm), job.exclude_free, quiesced, former)
    deadline = time.monotonic() + SURVEY_S

    def in_time(_: api.Progress) -> None:
        if time.monotonic() > deadline:
            raise TransferError("look into the volumes", f"that took longer than {SURVEY_S:.0f} s")

    found = {item.exclusion.disk: item for item in finish(ctx, site.source_mover, request, in_time).surveyed}
    return tuple(_checked(found.get(plan.name), plan) for plan in plans)


def _checked(survey: DiskSurvey | None, plan: DiskPlan) -> DiskSurvey:
    """The survey of a disk; what makes no sense leaves out nothing."""
    if survey is None:
        return _nothing(plan.name, "nothing is left out: the survey does not tell of it")
    try:
        ranges_of(survey.exclusion.packed, plan.size)
    except ValueError as exc:
        return _nothing(plan.name, f"nothing is left out: the survey is wrong: {exc}")
    if min(survey.exclusion.by_kind.values(), default=0) < 0:
        return _nothing(plan.name, "nothing is left out: the survey is wrong")
    return survey


def _nothing(disk: str, note: str) -> DiskSurvey:
    return DiskSurvey(Exclusion(disk), notes=(note,))
