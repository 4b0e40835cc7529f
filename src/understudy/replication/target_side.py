"""The target end of a task: the replica's facts, the draft of a new point, the replica VM, retention."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from understudy.context import Context
from understudy.errors import DatastoreError, Refused, ReplicaError
from understudy.model.health import suspect_disks
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.job import Datastore
from understudy.model.replica import Conversion, Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.model.transfer import DiskPlan
from understudy.mover import api
from understudy.platforms import ReplicaVmSpec
from understudy.replication.planning import required_bytes, with_suspects
from understudy.replication.retention import points_to_retire
from understudy.replication.site import Place, Site, Task
from understudy.replication.work import finish
from understudy.storage.values import DatastoreFacts, NewDisk
from understudy.units import format_size


def replica_ref(task: Task, place: Place) -> api.ReplicaRef:
    """Where the task's replica lies."""
    return api.ReplicaRef(place.datastore.kind, place.datastore.path, task.replica_name)


def check_datastore(site: Site) -> DatastoreFacts:
    """Facts about the target datastore.

    :raises DatastoreError: if it is missing, cannot be written, or is not the one that was added.
    """
    facts = site.target_mover.call(api.CheckDatastore(site.datastore.path), api.DatastoreAnswer).facts
    check_marker(site.datastore, facts)
    what = f"datastore {site.datastore.name!r}"
    if not facts.writable:
        raise DatastoreError(what, f"directory {facts.path} is not writable", "check its permissions and mount options")
    return facts


def check_marker(datastore: Datastore, facts: DatastoreFacts) -> None:
    """:raises DatastoreError: if the directory is missing, or not the datastore that was added."""
    what = f"datastore {datastore.name!r}"
    if not facts.exists:
        raise DatastoreError(what, f"directory {facts.path} does not exist", "mount or create it")
    if datastore.marker and facts.marker != datastore.marker:
        found = "has another marker file" if facts.marker else "has no marker file"
        raise DatastoreError(what, f"this is not the datastore that was added: is it mounted? ({facts.path} {found})",
                             f"mount it; if it lies elsewhere now, or is empty on purpose, see 'understudy datastore "
                             f"set {datastore.name} --help'")


def check_space(site: Site, facts: DatastoreFacts, disks: Sequence[Disk], plans: Sequence[DiskPlan]) -> None:
    """:raises DatastoreError: if the datastore has less free space than the plans need."""
    required = required_bytes(disks, plans)
    if facts.free_bytes < required:
        raise DatastoreError(
            f"datastore {site.datastore.name!r}",
            f"{format_size(facts.free_bytes)} free, {format_size(required)} needed",
            "free some space, or keep fewer points",
        )


def inspect(task: Task, site: Site) -> api.ReplicaFacts:
    """What the target knows of the replica.

    :raises Refused: if the replica is in failover, or belongs to another job.
    :raises ReplicaError: if its record is lost or damaged.
    """
    facts = site.target_mover.call(api.InspectReplica(replica_ref(task, site)), api.ReplicaFacts)
    refuse_unreadable(facts, f"{site.datastore.name}/{task.replica_name}")
    if facts.replica is None:
        return facts
    what = f"replica {task.replica_name!r}"
    identity = facts.replica.identity
    if identity.job_id != task.job.id and identity.id not in task.may_adopt:
        raise Refused(what, f"it belongs to job {identity.job_name!r}",
                      f"use another --suffix, or 'understudy replica adopt {site.datastore.name}/{task.replica_name}'")
    if facts.replica.state is not ReplicaState.READY:
        raise Refused(what, "it is in failover", "run 'understudy failover undo' first")
    return replace(facts, damage=facts.damage | _exposed(site, facts.replica))


def _exposed(site: Site, replica: Replica) -> dict[str, list[str]]:
    """Damage that must be feared at the newest point: somebody defined the replica VM on layers instead of the head."""
    newest = replica.newest
    if newest is None:
        return {}
    used = {PurePosixPath(path).name for path in site.target.replica_disks(replica.identity.domain_uuid)
            if PurePosixPath(path).parent.name == "layers"}
    shown = {disk.name: set(layers_below(replica, disk.name)) & used for disk in newest.disks}
    for disk, layers in shown.items():
        for layer in sorted(layers):
            site.journal.warn(f"replica VM {replica.identity.name!r} was defined by hand on layer {layer}, which must "
                              f"never be written to: disk {disk} is replicated anew; check the older points by "
                              f"'understudy replica verify'")
    found = [f"disk {disk}: layer {layer} was given to the replica VM" for disk in shown for layer in shown[disk]]
    return {newest.id: found} if found else {}


def layers_below(replica: Replica, disk: str) -> list[str]:
    """The layers on record that show ``disk`` at the newest point, the top one first."""
    found: list[str] = []
    for point in reversed(replica.points):
        part = point.disk(disk)
        if part is None or (found and part.layer != found[-1]):
            break
        found[-1:] = [part.layer, part.backing]
        if not part.backing:
            break
    return [layer for layer in found if layer]


def refuse_unreadable(facts: api.ReplicaFacts, full_name: str) -> None:
    """:raises ReplicaError: if the replica's record is lost or damaged though its files are there."""
    if facts.problem:
        raise ReplicaError(f"replica {full_name!r}", facts.problem, f"run 'understudy replica rebuild {full_name}'")


def check_same_vm(task: Task, vm: Vm, replica: Replica | None) -> None:
    """:raises Refused: if the replica was made from another VM that had the same name."""
    if replica is not None and replica.identity.source_uuid != vm.uuid:
        raise Refused(f"replica {task.replica_name!r}", f"its source was a VM with UUID {replica.identity.source_uuid}",
                      "remove the replica, or use another --suffix")


def damaged_disks(facts: api.ReplicaFacts) -> frozenset[str]:
    """Disks whose layers at the newest point are damaged."""
    if facts.replica is None or facts.replica.newest is None:
        return frozenset()
    names = {disk.name for disk in facts.replica.newest.disks}
    damaged: set[str] = set()
    for problem in facts.damage.get(facts.replica.newest.id, []):
        # A layer below, of another point, may be meant: only the disk's own name tells. Without one, all are suspect.
        damaged |= {name for name in names if problem.startswith(f"disk {name}: ")} or names
    return frozenset(damaged)


def with_repairs(
    site: Site, facts: api.ReplicaFacts, plans: tuple[DiskPlan, ...], block_size: int
) -> tuple[DiskPlan, ...]:
    """The plans; blocks that verifying found damaged in the newest point are read from the source and sent."""
    newest = facts.replica.newest if facts.replica else None
    if newest is None:
        return plans
    suspect = suspect_disks(facts.health, newest.id)
    repaired = with_suspects(plans, {name: item.bad for name, item in suspect.items()}, block_size)
    for plan in repaired:
        if plan.suspect:
            count, found_at = suspect[plan.name].bad_blocks, suspect[plan.name].found_at
            blocks, verb = ("block", "is") if count == 1 else ("blocks", "are")
            site.journal.warn(f"{count} damaged {blocks} of disk {plan.name}, found by verify at {found_at}, {verb} "
                              "repaired from the source")
    return repaired


def draft_request(
    task: Task, site: Site, facts: api.ReplicaFacts, disks: tuple[NewDisk, ...], owner: ReplicaIdentity, point_id: str
) -> api.BeginPoint:
    """What opens the draft of a new point, with an attempt number above all that were seen."""
    return api.BeginPoint(replica_ref(task, site), owner, facts.last_attempt + 1, point_id, disks)


def identity(task: Task, vm: Vm, replica: Replica | None) -> ReplicaIdentity:
    """Whose replica it is: as recorded, under this job; a new one for the first run."""
    if replica is not None:
        return replace(replica.identity, job_id=task.job.id, job_name=task.job.name, source_vm=vm.name)
    return ReplicaIdentity(
        id=str(uuid.uuid4()), name=task.replica_name, job_id=task.job.id, job_name=task.job.name,
        source_vm=vm.name, source_uuid=vm.uuid, domain_uuid=str(uuid.uuid4()),
    )


def take_over(task: Task, site: Site, facts: api.ReplicaFacts, owner: ReplicaIdentity, draft: str) -> None:
    """Record this job as the owner of a replica that was adopted, and the name of a VM that was renamed."""
    if facts.replica is not None and facts.replica.identity != owner:
        former = facts.replica.identity.source_vm
        if former != owner.source_vm:
            site.journal.warn(f"VM {former!r} is called {owner.source_vm!r} now; job and replica keep its old name")
        owned = api.OwnedReplica(replica_ref(task, site), draft)
        site.target_mover.call(api.SetIdentity(owned, owner), api.Nothing)


def renew_replica_vm(task: Task, site: Site, draft: str, point: RestorePoint) -> None:
    """Put the replica VM on the new point, unless somebody uses it or has written to its head (S1)."""
    owner = api.OwnedReplica(replica_ref(task, site), draft)
    facts = site.target_mover.call(api.InspectReplica(owner.ref), api.ReplicaFacts)
    if facts.replica is None:
        raise ReplicaError(f"replica {task.replica_name!r}", "its record vanished", "see 'understudy replica show'")
    identity = facts.replica.identity
    state = site.target.replica_state(identity.domain_uuid)
    if state in (VmState.RUNNING, VmState.PAUSED):
        site.journal.warn(_left_alone(task, facts, "is running although no failover was started"))
        return
    if facts.head is not None and facts.head.point and not facts.head.empty:
        site.journal.warn(_left_alone(task, facts, "was started by hand and has changes of its own"))
        return
    previous = _definition_of_head(facts)
    bound = site.target_mover.call(api.BindHead(owner, point.id), api.HeadBound)
    # Its disks are others if somebody defined it again by hand, or the datastore lies elsewhere now.
    moved = site.target.replica_disks(identity.domain_uuid) != set(bound.head.files.values())
    if state is None or moved or previous != (bound.definition, tuple(sorted(bound.head.files))):
        spec = replica_vm_spec(identity, bound)
        for warning in site.target.define_replica(spec):
            site.journal.warn(f"replica VM {identity.name!r}: {warning}")


def _left_alone(task: Task, facts: api.ReplicaFacts, why: str) -> str:
    point = facts.head.point if facts.head else "?"
    return (f"replica VM {task.replica_name!r} {why}: it was left on point {point} and no restore point is touched; "
            "'understudy failover undo' drops its changes")


def _definition_of_head(facts: api.ReplicaFacts) -> tuple[str, tuple[str, ...]]:
    files = tuple(sorted(facts.head.files)) if facts.head else ()
    return facts.head_definition, files


def replica_vm_spec(identity: ReplicaIdentity, bound: api.HeadBound) -> ReplicaVmSpec:
    """The replica VM on a head."""
    return ReplicaVmSpec(
        name=identity.name, uuid=identity.domain_uuid, replica_id=identity.id, definition=bound.definition,
        disks=bound.head.files, head_dir=str(PurePosixPath(next(iter(bound.head.files.values()))).parent),
        nvram=bound.head.nvram, converted=bound.head.conversion is Conversion.VIRTIO,
    )


def retire(ctx: Context, task: Task, site: Site, draft: str) -> None:
    """Apply retention; points that cannot go now (the replica VM uses them) go after a later session."""
    ref = replica_ref(task, site)
    replica = site.target_mover.call(api.InspectReplica(ref), api.ReplicaFacts).replica
    surplus = points_to_retire([point.id for point in replica.points] if replica else [], task.job.points)
    if not surplus:
        return
    try:
        finish(ctx, site.target_mover, api.RetirePoints(api.OwnedReplica(ref, draft), surplus))
    except Refused as exc:
        site.journal.warn(f"retention postponed: {exc}")
