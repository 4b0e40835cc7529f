"""The replication of one VM, in eight steps."""

from __future__ import annotations

import datetime
import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import GuestError, PlatformError, TransferError, UnderstudyError
from understudy.model.inventory import Vm
from understudy.model.replica import ReplicaIdentity, RestorePoint, SourceGeneration
from understudy.model.session import Step, StepState
from understudy.model.snapshot import SnapshotRequest, Tag
from understudy.model.transfer import DiskPlan
from understudy.mover import api
from understudy.replication import guest_side as guest
from understudy.replication import source_side as source
from understudy.replication import target_side as target
from understudy.replication.base_digests import provide_base_digests
from understudy.replication.deciding import decide
from understudy.replication.draft import HeldDraft, held_draft, open_draft
from understudy.replication.held import Excluding, HeldTask, TransferSpec, Works
from understudy.replication.power import power_change
from understudy.replication.site import Lease, Place, Site, Task, TaskOutcome
from understudy.replication.source_images import look_at_images, remove_orphans
from understudy.replication.surveying import surveyed
from understudy.replication.transfer import Copying, copy_disks, send_seconds
from understudy.storage.values import DatastoreFacts, NewDisk, PointMeta


def replicate_vm(ctx: Context, task: Task, place: Place) -> TaskOutcome:
    """Make a new restore point of one VM; try twice if the first fails because the VM was powered off or restarted.

    :raises UnderstudyError: if no point was made; everything that was begun is undone, all older points are intact.
    """
    before = place.source.describe_vm(task.called)
    try:
        return replicate_once(ctx, task, place)
    except (TransferError, PlatformError, GuestError) as exc:
        change = power_change(ctx, place.source, before)
        if not change:
            raise
        place.journal.warn(f"VM {task.vm!r} was planned anew, because {change} while it was replicated ({exc})")
    return replicate_once(ctx, task, place)


def replicate_once(ctx: Context, task: Task, place: Place) -> TaskOutcome:
    """Make a new restore point of one VM.

    Plans from facts, never from memory: it may be called again after any interruption. The order of the last acts is
    what keeps data safe: data durable, point published, baseline moved (the point's record names it), source snapshot
    committed, old baseline removed.

    :raises UnderstudyError: if no point was made; everything that was begun is undone, all older points are intact.
    """
    journal, job = place.journal, task.job
    with ExitStack() as undo:
        with journal.step(Step.SETTINGS):  # 1 settings and resources
            wanted = place.source.describe_vm(task.called)
            reserving = place.resources.reserve(ctx, job, wanted, source.replicated_disks(wanted, job))
            lease = undo.enter_context(reserving)
            site = place.with_proxies(lease)
            space = target.check_datastore(site)
            facts = target.inspect(task, site)
            source.prepare_scratch(site)
        with journal.step(Step.INVENTORY):  # 2 inventory, and what dead sessions left
            found = site.source.describe_vm(task.called)
            processing = undo.enter_context(guest.guest_processing(ctx, task, site, found))
            ready = prepare(ctx, task, site, found, facts, space)
            begin = target.draft_request(task, site, facts, ready.layers, ready.identity, ready.spec.point)
            draft = undo.enter_context(open_draft(ctx, site, begin))
            target.take_over(task, site, facts, ready.identity, draft.id)
            plans = provide_base_digests(ctx, site, target.replica_ref(task, site), ready.spec, ready.plans)
        snapshot_held = held_until_published(ctx, site, undo, ready.vm, ready.request.tag, ready.spec, ready.baselines)
        with ExitStack() as frozen:
            with journal.step(Step.GUEST_PROCESSING):  # 3 guest processing
                ctx.check()
                quiescing = frozen.enter_context(guest.quiesced(processing))
            with journal.step(Step.SNAPSHOT):  # 4 source snapshot; leaving the outer block thaws
                holding = source.held_snapshot(ctx, site.source, ready.vm, job, ready.request, plans)
                snapshot, plans = snapshot_held.enter_context(holding)
        snapshot = source.with_baseline_facts(
            site, ready.vm, snapshot, ready.request.checkpoint, ready.spec.point, ready.baselines.newest
        )
        for warning in quiescing.warnings:
            journal.warn(warning)
        held = HeldTask(
            spec=ready.spec, source_proxy=lease.source_proxy.name, target_proxy=lease.target_proxy.name, vm=ready.vm,
            request=ready.request, plans=plans, snapshot=snapshot, begin=begin, draft=draft.id,
            consistency=source.consistency(ready.vm, quiescing), frozen_ms=quiescing.frozen_ms,
            generation=ready.generation, applications=quiescing.applications, excluding=ready.excluding,
        )
        held = undo.enter_context(surveyed(ctx, site, held))
        outcome = _complete(ctx, task, site, lease, held, draft, ready.baselines, snapshot_held)
        if processing is not None:
            processing.committed()
        return outcome


def resume_vm(ctx: Context, task: Task, place: Place, held: HeldTask) -> TaskOutcome:
    """Go on with a task whose controller died while its disks were under way; no byte travels twice because of that.

    :raises UnderstudyError: as :func:`replicate_vm`; for example if the snapshot or a draft is gone.
    """
    with ExitStack() as undo:
        # The proxies that have the task's works, whatever would be chosen today.
        job = replace(held.spec.job, source_proxy=held.source_proxy, target_proxy=held.target_proxy)
        disks = tuple(held.vm.disk(plan.name) for plan in held.plans)
        lease = undo.enter_context(place.resources.reserve(ctx, job, held.vm, disks))
        site = place.with_proxies(lease)
        draft = undo.enter_context(held_draft(ctx, site, held.begin, held.draft))
        replica = target.inspect(task, site).replica
        tag = held.request.tag
        baselines = resumed_baselines(site, held, replica.points if replica else ())
        snapshot_held = held_until_published(ctx, site, undo, held.vm, tag, held.spec, baselines)
        holding = site.source.hold_again(ctx, held.vm, held.request, held.snapshot)
        if baselines.newest is not None and baselines.newest.id == held.spec.point:
            cleanup(ctx, site, lambda: snapshot_held.enter_context(holding))  # the point is published without it
        else:
            snapshot_held.enter_context(holding)
            # The record has no definition; it is not of the snapshot's instant then, but of now.
            definition = site.source.describe_vm(held.vm.name).definition
            held = replace(held, vm=replace(held.vm, definition=definition))
        if held.applications:
            ctx.log(__name__).info("the applications in the guest are not told that their point was published")
        return _complete(ctx, task, site, lease, held, draft, baselines, snapshot_held)


def held_until_published(
    ctx: Context, site: Site, undo: ExitStack, vm: Vm, tag: Tag, spec: TransferSpec, baselines: Baselines
) -> ExitStack:
    """For the source snapshot: closed once, when the point is published, or with ``undo`` when the task goes wrong."""
    snapshot_held = ExitStack()
    tidy = functools.partial(source.remove_snapshot_files, site, vm.name, tag)
    snapshot_held.callback(cleanup, ctx, site, tidy)
    undo.callback(cleanup, ctx, site, baselines.settle)
    undo.callback(cleanup, ctx, site, snapshot_held.close)
    undo.callback(cleanup, ctx, site, lambda: source.settle_digests(site, spec, baselines.newest))
    undo.callback(cleanup, ctx, site, lambda: site.journal.holding(None))
    return snapshot_held


def _complete(
    ctx: Context, task: Task, site: Site, lease: Lease, held: HeldTask, draft: HeldDraft, baselines: Baselines,
    snapshot_held: ExitStack,
) -> TaskOutcome:
    """Steps 5 to 8: from a snapshot that is held to a published point, unless the controller died after publishing."""
    journal, point = site.journal, baselines.newest
    if point is None or point.id != held.spec.point:
        point = _copy_and_publish(ctx, task, site, lease, held, draft, baselines)
    with journal.step(Step.COMMIT):  # 8 commit the source snapshot; then retention
        journal.holding(None)
        cleanup(ctx, site, snapshot_held.close)
        cleanup(ctx, site, baselines.settle)
        cleanup(ctx, site, lambda: target.renew_replica_vm(task, site, draft.id, point))
        # The point is published, so a late wish to cancel must not leave the rest half done.
        steady = Context(fields=ctx.fields)
        cleanup(ctx, site, lambda: target.retire(steady, task, site, draft.id))
    return TaskOutcome(point.id, point.consistency.value, held.frozen_ms)


def _copy_and_publish(
    ctx: Context, task: Task, site: Site, lease: Lease, held: HeldTask, draft: HeldDraft, baselines: Baselines
) -> RestorePoint:
    """Steps 5 to 7."""
    journal = site.journal

    # The definition may hold passwords, which the configuration database never gets.
    public = replace(held, vm=replace(held.vm, definition=""))

    def note(works: Mapping[str, Works]) -> None:
        journal.holding(replace(public, draft=draft.id, works=works))

    with journal.step(Step.READ):  # 5 read, 6 compress and send, 7 decompress and write: one pipeline
        copying = Copying(held, draft, note)
        reports = copy_disks(ctx, site, copying, lease)
    journal.step_took(Step.SEND, StepState.SKIPPED if site.same_mover else StepState.SUCCESS, send_seconds(reports))
    with journal.step(Step.WRITE):  # everything is durable: publish
        ctx.check()
        point = publish(site, task, held, draft.id)
        baselines.published(point)
    return point


@dataclass(frozen=True)
class Prepared:
    """Everything that is decided before the guest is touched."""

    vm: Vm
    plans: tuple[DiskPlan, ...]
    layers: tuple[NewDisk, ...]
    request: SnapshotRequest
    identity: ReplicaIdentity
    spec: TransferSpec
    baselines: Baselines
    generation: SourceGeneration | None
    excluding: Excluding


def prepare(
    ctx: Context, task: Task, site: Site, vm: Vm, facts: api.ReplicaFacts, space: DatastoreFacts
) -> Prepared:
    """Sweep what dead sessions left, then decide for each disk how its changes are found.

    :raises UnderstudyError: if something stands in the way; nothing was changed then but the sweep.
    """
    target.check_same_vm(task, vm, facts.replica)
    source.check_transport(site, vm, task.job, source.replicated_disks(vm, task.job))
    tag = Tag(task.job.id, vm.uuid, task.session)
    left = source.on_delta(vm, tag)
    vm = source.sweep_source(ctx, site, vm, tag, facts.replica.identity.id if facts.replica else "")
    newest = facts.replica.newest if facts.replica else None
    baselines = Baselines(site, vm, tag, newest)
    baselines.settle()
    disks = source.replicated_disks(vm, task.job)
    images = remove_orphans(site, vm, look_at_images(site, disks), tag, checkpoint_of(newest))
    decided = decide(task, site, vm, facts, disks, images, left=left)
    target.check_space(site, space, decided.disks, decided.plans)
    identity = target.identity(task, vm, facts.replica)
    return Prepared(
        vm=vm,
        plans=decided.plans,
        layers=tuple(new_disk(task, vm, plan) for plan in decided.plans),
        request=source.snapshot_request(site, vm, tag, decided.disks, decided.plans, newest),
        identity=identity,
        spec=TransferSpec(task.job, identity.id, newest.id if newest else "", new_point_id()),
        baselines=baselines,
        generation=decided.generation,
        excluding=decided.excluding,
    )


def new_disk(task: Task, vm: Vm, plan: DiskPlan) -> NewDisk:
    """The layer that a disk gets; an unfinished one is continued if its blocks have the same size."""
    mark = f"blocks of {task.job.block_size}"
    return NewDisk(plan.name, plan.size, plan.chained, vm.disk(plan.name).path, mark)


def new_point_id() -> str:
    """An id that sorts by creation and is unique in a replica even if the clock stands still."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Baselines:
    """Keeps exactly the baseline that the newest published point names, and removes our others (S3).

    The record of a point and the name of its baseline become visible in one rename, so there is no instant at which
    the two disagree; settling only removes what no point needs.
    """

    def __init__(self, site: Site, vm: Vm, tag: Tag, newest: RestorePoint | None) -> None:
        self._site = site
        self._vm = vm
        self._tag = tag
        self._former = checkpoint_of(newest)
        self.newest = newest

    def published(self, point: RestorePoint) -> None:
        """From now on ``point`` is the newest."""
        self.newest = point

    def settle(self) -> None:
        """Remove what no point needs; what cannot be removed becomes a warning."""
        keep = checkpoint_of(self.newest)
        for warning in self._site.source.keep_baseline(self._vm, self._tag, keep, self._former):
            self._site.journal.warn(warning)


def resumed_baselines(site: Site, held: HeldTask, points: Sequence[RestorePoint]) -> Baselines:
    """The baselines of a task that another controller began, which may have published its point before it died."""
    older = [point for point in points if point.id != held.spec.point]
    baselines = Baselines(site, held.vm, held.request.tag, older[-1] if older else None)
    for point in points:
        if point.id == held.spec.point:
            baselines.published(point)
    return baselines


def checkpoint_of(point: RestorePoint | None) -> str:
    """The marker that a point's record names as its baseline, or empty."""
    return point.baseline.checkpoint if point is not None and point.baseline is not None else ""


def publish(site: Site, task: Task, held: HeldTask, draft: str) -> RestorePoint:
    """Publish the draft: one rename, after which the point and its baseline are what the next run starts from."""
    meta = PointMeta(
        id=held.spec.point,
        created_at=held.snapshot.taken_at,
        consistency=held.consistency,
        session=task.session,
        block_size=held.spec.job.block_size,
        baseline=held.snapshot.baseline,
        versions=versions(site),
        definition=held.vm.definition,
        nvram=source.uefi_variables(site, held.vm),
        generation=held.generation,
        exclusions=held.excluding.now,
        applications=held.applications,
    )
    return site.target_mover.call(api.PublishPoint(draft, meta), api.PublishedPoint).point


def versions(site: Site) -> dict[str, str]:
    """Versions of everything that touched the data, for the point's record (P39)."""
    facts = site.source.facts()
    found = {"libvirt": facts.platform_version, "hypervisor": facts.hypervisor_version}
    for side, mover in (("source", site.source_mover), ("target", site.target_mover)):
        about = mover.call(api.About(), api.MoverInfo)
        found.update({f"{side}_{name}": version for name, version in about.versions.items()})
    return found


def cleanup(ctx: Context, site: Site, act: Callable[[], object]) -> None:
    """Do ``act``; its error must neither hide another one nor undo a point: it becomes a warning."""
    try:
        act()
    except UnderstudyError as exc:
        ctx.log(__name__).warning("cleanup: %s", exc)
        site.journal.warn(str(exc))
