"""The target end of a task whose restore points are snapshots of the replica VM; see platforms/snapshot_target.py.

The disks are written at the VM's leaf, so the order that keeps data safe is: leaf back at the newest point, leaves
given to the proxy, everything durable, leaves given back, snapshot made, point recorded. A snapshot that no record
names is none of our points, and is removed by the next attempt; a point whose snapshot is gone is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import Refused
from understudy.faults import fault_point
from understudy.model.inventory import VmState
from understudy.model.replica import Replica, ReplicaIdentity, RestorePoint
from understudy.model.snapshot import LibraryExport
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms.snapshot_target import SnapshotReplica, SnapshotTarget, SnapshotVmSpec
from understudy.replication.site import Site
from understudy.storage.values import DatastoreFacts, NewDisk


@dataclass(frozen=True)
class Leaves:
    """What the leaves of a new point are made of.

    :ivar definition: the source VM's definition.
    :ivar points: the points on record, oldest first; the chained disks lie on the newest.
    :ivar place: the platform's name of the datastore.
    """

    identity: ReplicaIdentity
    definition: str
    disks: tuple[NewDisk, ...]
    points: tuple[str, ...]
    place: str


def with_space(target: SnapshotTarget, facts: DatastoreFacts, place: str) -> DatastoreFacts:
    """The facts of the directory, with the space of the platform's datastore, where the data goes."""
    space = target.place_space(place)
    return replace(facts, total_bytes=space.total_bytes, free_bytes=space.free_bytes,
                   writable=facts.writable and space.writable)


def lost_points(target: SnapshotTarget, replica: Replica) -> tuple[str, ...]:
    """The points on record whose snapshots are gone: removed by hand, or with the whole VM."""
    there = target.snapshot_replica(replica.identity)
    present = set(there.points) if there else set()
    return tuple(point.id for point in replica.points if point.id not in present)


def without_points(facts: api.ReplicaFacts, lost: Sequence[str]) -> api.ReplicaFacts:
    """The facts as if the record named the lost points no more."""
    if facts.replica is None or not lost:
        return facts
    kept = tuple(point for point in facts.replica.points if point.id not in lost)
    return replace(facts, replica=replace(facts.replica, points=kept))


def forget_points(mover: MoverClient, ref: api.ReplicaRef, facts: api.ReplicaFacts, lost: Sequence[str]) -> None:
    """Take lost points out of the record, in an attempt of its own.

    :raises Fenced: if a session works on the replica.
    """
    owner = api.OwnedReplica(ref, attempt=facts.last_attempt + 1)
    mover.call(api.ForgetPoints(owner, tuple(lost)), api.Nothing)


def make_ready(ctx: Context, site: Site, target: SnapshotTarget, leaves: Leaves, draft: str) -> None:
    """The VM as it was at the newest point, its hardware as the source's, its leaves in the hands of the proxy.

    May be repeated; whatever an attempt before wrote is dropped.

    :raises Refused: if the replica VM runs, or is not ours.
    """
    there = target.snapshot_replica(leaves.identity)
    if there is not None:
        _refuse_running(there)
        if leaves.points:
            target.revert_to_point(ctx, leaves.identity, leaves.points[-1])
        stray = tuple(point for point in there.points if point not in leaves.points)
        for problem in target.remove_points(ctx, leaves.identity, stray) if stray else ():
            site.journal.warn(f"replica VM {there.name!r}: {problem}")
    fault_point("leaves.reverted")
    spec = SnapshotVmSpec(
        leaves.identity, leaves.definition, {disk.name: disk.size for disk in leaves.disks},
        frozenset(disk.name for disk in leaves.disks if not disk.chained), leaves.place,
    )
    for warning in target.make_snapshot_replica(ctx, spec):
        site.journal.warn(f"replica VM {leaves.identity.name!r}: {warning}")
    fault_point("leaves.made")
    exports = tuple(target.leaf_export(leaves.identity, disk.name) for disk in leaves.disks)
    site.target_mover.call(api.AttachDisks(draft, exports), api.Nothing)


def _refuse_running(there: SnapshotReplica) -> None:
    if there.state is not VmState.SHUT_OFF:
        raise Refused(f"replica VM {there.name!r}", f"it is {there.state}, so nothing can be written to its disks",
                      "power it off, or run 'understudy failover undo'; what it wrote is dropped then")


def take_point(
    ctx: Context, site: Site, target: SnapshotTarget, identity: ReplicaIdentity, draft: str, point: str, text: str
) -> None:
    """Make the leaves, which are complete, a snapshot. Nobody knows it as a point before it is recorded."""
    site.target_mover.call(api.SealPoint(draft), api.Nothing)
    fault_point("point.sealed")
    target.take_point(ctx, identity, point, text)
    fault_point("point.taken")


def retire(
    ctx: Context, site: Site, target: SnapshotTarget, identity: ReplicaIdentity, owner: api.OwnedReplica,
    surplus: tuple[str, ...],
) -> None:
    """Forget points, then remove their snapshots; those that stay are removed by the next attempt."""
    site.target_mover.call(api.ForgetPoints(owner, surplus), api.Nothing)
    fault_point("retire.forgotten")
    for problem in target.remove_points(ctx, identity, surplus):
        site.journal.warn(f"retention of replica VM {identity.name!r}: {problem}")


def verify_exports(
    target: SnapshotTarget, identity: ReplicaIdentity, point: RestorePoint
) -> tuple[LibraryExport, ...]:
    """How the disks of a point are read for verifying."""
    return tuple(target.point_export(identity, disk.name, point.id) for disk in point.disks)


def refuse_lost(what: str, target: SnapshotTarget, replica: Replica, point: str) -> None:
    """:raises Refused: if the snapshot of a point is gone."""
    if point in lost_points(target, replica):
        raise Refused(what, f"the snapshot of restore point {point} is gone", "see 'understudy replica points'")
