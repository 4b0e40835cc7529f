"""Estimate: the steps of a session up to the first byte that would be read, and back; nothing is copied or kept.

It is told like :mod:`understudy.replication.run` and by the same parts, so that its figures are the session's. But the
guest is left alone, no marker is made on the source, no point is begun at the target, and the source is held by a
backup job whatever the job says: should this process die, a delta would cost the next session its tracking.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import DatastoreError, MoverError, Refused, TrackingLost
from understudy.guests.freezing import Quiescing
from understudy.model.estimate import DiskEstimate, Sums
from understudy.model.exclusion import exclusion_of
from understudy.model.inventory import Vm
from understudy.model.job import SnapshotMode
from understudy.model.replica import ReplicaIdentity
from understudy.model.session import Step
from understudy.model.snapshot import SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import DiskPlan, Reason, TransferMode
from understudy.mover import api
from understudy.replication import source_side as source
from understudy.replication import target_side as target
from understudy.replication.base_digests import provide_base_digests
from understudy.replication.deciding import Decided, decide
from understudy.replication.disk_transfer import read_spec
from understudy.replication.held import HeldTask, TransferSpec
from understudy.replication.planning import without_tracking
from understudy.replication.run import cleanup, new_point_id
from understudy.replication.site import Lease, Place, Site, Task
from understudy.replication.source_images import look_at_images
from understudy.replication.surveying import surveyed
from understudy.replication.transfer import Exports
from understudy.replication.work import finish
from understudy.storage.values import DatastoreFacts


def estimate_vm(ctx: Context, task: Task, place: Place) -> tuple[DiskEstimate, ...]:
    """What a session would do with each disk of a VM.

    :raises UnderstudyError: if it cannot be said; a session would mostly fail for the same reason.
    """
    journal, job = place.journal, task.job
    with ExitStack() as undo:
        with journal.step(Step.SETTINGS):
            wanted = place.source.describe_vm(task.called)
            lease = undo.enter_context(
                place.resources.reserve(ctx, job, wanted, source.replicated_disks(wanted, job)))
            site = place.with_proxies(lease)
            space = target.check_datastore(site)
            facts = target.inspect(task, site)
            source.prepare_scratch(site)
        with journal.step(Step.INVENTORY):
            ready = _prepare(ctx, task, site, facts, space)
        with journal.step(Step.SNAPSHOT):
            ctx.check()
            holding = _snapshot(ctx, site, task, ready)
            snapshot_held = undo.enter_context(ExitStack())
            snapshot, plans = snapshot_held.enter_context(holding)
        with journal.step(Step.READ):
            held = _held(task, site, facts, ready, lease, snapshot, plans)
            estimates = _estimates(ctx, site, held)
        with journal.step(Step.COMMIT):
            snapshot_held.close()
        return estimates


@dataclass(frozen=True)
class _Prepared:
    vm: Vm
    decided: Decided
    plans: tuple[DiskPlan, ...]
    request: SnapshotRequest
    identity: ReplicaIdentity
    spec: TransferSpec


def _prepare(ctx: Context, task: Task, site: Site, facts: api.ReplicaFacts, space: DatastoreFacts) -> _Prepared:
    """As for a session; what dead sessions left is swept, but nothing on which tracking depends is touched."""
    vm = site.source.describe_vm(task.called)
    target.check_same_vm(task, vm, facts.replica)
    source.check_transport(site, vm, task.job, source.replicated_disks(vm, task.job))
    tag = Tag(task.job.id, vm.uuid, task.session)
    if source.on_delta(vm, tag):
        # The merge would hide from the next session that the dirty map may have a gap.
        raise Refused(f"estimate VM {vm.name!r}", "a dead session left it on a snapshot delta",
                      f"run 'understudy job run {task.job.name}'")
    vm = source.sweep_source(ctx, site, vm, tag, facts.replica.identity.id if facts.replica else "")
    disks = source.replicated_disks(vm, task.job)
    decided = decide(task, site, vm, facts, disks, look_at_images(site, disks), left=False)
    try:
        target.check_space(site, space, decided.disks, decided.plans)
    except DatastoreError as exc:
        site.journal.warn(f"a session would fail: {exc}")
    newest = facts.replica.newest if facts.replica else None
    identity = target.identity(task, vm, facts.replica)
    spec = TransferSpec(task.job, identity.id, newest.id if newest else "", new_point_id())
    plans = provide_base_digests(ctx, site, target.replica_ref(task, site), spec, decided.plans)
    request = source.snapshot_request(site, vm, tag, decided.disks, plans, newest)
    return _Prepared(vm, decided, plans, replace(request, checkpoint="", tracked=()), identity, spec)


@contextmanager
def _snapshot(
    ctx: Context, site: Site, task: Task, ready: _Prepared
) -> Iterator[tuple[SourceSnapshot, tuple[DiskPlan, ...]]]:
    """Hold the source; what cannot be removed afterwards becomes a warning."""
    job = replace(task.job, snapshot_mode=SnapshotMode.BACKUP)
    with ExitStack() as held:
        tidy = functools.partial(source.remove_snapshot_files, site, ready.vm.name, ready.request.tag)
        held.callback(cleanup, ctx, site, tidy)
        snapshot = held.enter_context(ExitStack())
        held.callback(cleanup, ctx, site, snapshot.close)
        yield snapshot.enter_context(
            source.held_snapshot(ctx, site.source, ready.vm, job, ready.request, ready.plans))


def _held(
    task: Task, site: Site, facts: api.ReplicaFacts, ready: _Prepared, lease: Lease, snapshot: SourceSnapshot,
    plans: tuple[DiskPlan, ...],
) -> HeldTask:
    """What the survey and the exports want to know of a task; no draft is opened for it."""
    return HeldTask(
        spec=ready.spec, source_proxy=lease.source_proxy.name, target_proxy=lease.target_proxy.name, vm=ready.vm,
        request=ready.request, plans=plans, snapshot=snapshot, draft="",
        begin=target.draft_request(task, site, facts, (), ready.identity, ready.spec.point),
        consistency=source.consistency(ready.vm, Quiescing()), frozen_ms=None, excluding=ready.decided.excluding,
    )


def _estimates(ctx: Context, site: Site, held: HeldTask) -> tuple[DiskEstimate, ...]:
    with ExitStack() as reading:
        held = reading.enter_context(surveyed(ctx, site, held))
        exports = Exports(site, held)
        reading.callback(exports.close_all)
        return tuple(_estimate(ctx, site, held, plan, exports) for plan in held.plans)


def _estimate(ctx: Context, site: Site, held: HeldTask, plan: DiskPlan, exports: Exports) -> DiskEstimate:
    """The estimate of one disk; if its dirty map cannot be used, of a scan, as in a session (S5)."""
    opened, excluding = exports.open(plan.name, restarted=False), held.excluding
    try:
        sums = _sums(ctx, site, read_spec(held.spec, plan, excluding, opened))
    except TrackingLost as exc:
        if plan.mode is not TransferMode.INCREMENTAL:
            raise
        site.journal.warn(f"disk {plan.name}: {exc.why}; every block would be compared with its digest instead")
        (plan,) = without_tracking((plan,), Reason(exc.reason))
        sums = _sums(ctx, site, read_spec(held.spec, plan, excluding, opened))
    left_out, notes = exclusion_of(excluding.now, plan.name).by_kind, excluding.notes.get(plan.name, ())
    return DiskEstimate(plan.name, plan.mode, plan.reason, plan.size, sums, left_out, notes)


def _sums(ctx: Context, site: Site, read: api.ReadSpec) -> Sums:
    sums = finish(ctx, site.source_mover, api.EstimateTransfer(read)).sums
    if sums is None:
        raise MoverError(f"estimate disk {read.disk!r}", "the proxy did not say what came of it", "see its log")
    return sums
