"""Starting a replica from a restore point, and going back."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.context import Context
from understudy.errors import NotFound, Refused, ReplicaError
from understudy.faults import fault_point
from understudy.model.inventory import VmState
from understudy.model.replica import ConversionWish, Replica, ReplicaState
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import TargetPlatform
from understudy.platforms.foreign import source_of
from understudy.platforms.snapshot_target import SnapshotTarget, snapshot_target
from understudy.replication.conversion import Converting, convert
from understudy.replication.snapshot_points import refuse_lost
from understudy.replication.target_side import replica_vm_spec


@dataclass(frozen=True)
class FailoverSite:
    """Where a replica is: its place, the proxy next to its files, and the host that runs it."""

    ref: api.ReplicaRef
    mover: MoverClient
    target: TargetPlatform

    @property
    def snapshots(self) -> SnapshotTarget | None:
        """The target, if restore points are snapshots of the replica VM there; else None."""
        return snapshot_target(self.ref.kind, self.target)


@dataclass(frozen=True)
class FailoverOutcome:
    """What was done: the replica VM's name, the restore point it is on, and what the operator should know.

    :ivar note: whether a guest from another platform was converted; empty for others.
    """

    vm: str
    point: str
    warnings: tuple[str, ...]
    note: str = ""


def start_failover(
    ctx: Context, site: FailoverSite, point: str = "", wish: ConversionWish = ConversionWish.AUTO
) -> FailoverOutcome:
    """Start the replica VM on ``point``, by default the newest.

    The state is recorded before the VM starts: a crash in between leaves a replica in failover that is off, which undo
    mends, and never a running replica that a session takes for an idle one.

    :param wish: whether a guest from another platform is converted.
    :raises Refused: if the replica is in failover, has no point, was changed by hand or runs; or if a conversion is
        wished and its VM is of the target's own platform.
    :raises Cancelled: if the operator ends the conversion; the replica is as it was then.
    """
    facts, replica = _inspect(site)
    what = f"failover of replica {replica.identity.name!r}"
    if replica.state is ReplicaState.FAILOVER:
        raise Refused(what, "it is in failover already", "run 'understudy failover undo' first")
    if replica.newest is None:
        raise Refused(what, "it has no restore point", "run its job first")
    if site.target.replica_state(replica.identity.domain_uuid) in (VmState.RUNNING, VmState.PAUSED):
        raise Refused(what, "the replica VM runs already, started outside of Understudy",
                      "run 'understudy failover undo' to stop it and drop its changes")
    if facts.head is not None and facts.head.point and not facts.head.empty:
        raise Refused(what, "the replica VM was started by hand and has changes of its own",
                      "run 'understudy failover undo' to drop them")
    chosen = replica.point(point) if point else replica.newest
    if site.snapshots is not None:
        refuse_lost(what, site.snapshots, replica, chosen.id)
    problems = obstacles(facts, chosen.id)
    if problems:
        good = [item.id for item in replica.points if not obstacles(facts, item.id)]
        raise ReplicaError(what, f"restore point {chosen.id} is damaged: {'; '.join(problems)}",
                           f"the newest undamaged one is {good[-1]}: --point {good[-1]}" if good
                           else "no restore point is undamaged")
    owner = _owner(site, facts)
    own = Refused(what, "it cannot be converted: its VM is of the target's own platform", "leave --convert out")
    if site.snapshots is not None and wish is ConversionWish.ALWAYS:
        raise own
    bound = _bound(site, owner, replica, chosen.id)
    foreign = site.snapshots is None and source_of(bound.definition) is not None
    if not foreign and wish is ConversionWish.ALWAYS:
        raise own
    warnings = _define(site, replica, bound)
    site.mover.call(api.SetState(owner, ReplicaState.FAILOVER), api.Nothing)
    fault_point("failover.recorded")
    converting = Converting(site.mover, site.target, replica.identity, owner, bound)
    note = convert(ctx, converting, wish) if foreign else ""
    site.target.start_replica(replica.identity.domain_uuid)
    return FailoverOutcome(replica.identity.name, chosen.id, tuple(warnings), note)


def undo_failover(site: FailoverSite) -> FailoverOutcome:
    """Stop the replica VM, drop what it changed, and put it on the newest point again.

    It also cleans up after a start by hand, and may be repeated after an interruption.

    :raises Refused: if there is nothing to undo.
    """
    facts, replica = _inspect(site)
    uuid = replica.identity.domain_uuid
    running = site.target.replica_state(uuid) in (VmState.RUNNING, VmState.PAUSED)
    dirty = facts.head is not None and bool(facts.head.point) and not facts.head.empty
    if replica.state is not ReplicaState.FAILOVER and not running and not dirty:
        raise Refused(f"undo failover of replica {replica.identity.name!r}", "it is not in failover", "")
    if replica.newest is None:
        raise ReplicaError(f"replica {replica.identity.name!r}", "it has no restore point", "see 'replica show'")
    site.target.stop_replica(uuid)
    fault_point("undo.stopped")
    owner = _owner(site, facts)
    warnings = _define(site, replica, _bound(site, owner, replica, replica.newest.id))
    fault_point("undo.bound")
    site.mover.call(api.SetState(owner, ReplicaState.READY), api.Nothing)
    return FailoverOutcome(replica.identity.name, replica.newest.id, tuple(warnings))


def _bound(site: FailoverSite, owner: api.OwnedReplica, replica: Replica, point: str) -> api.HeadBound:
    """Put the disks of the replica VM, which is off, on a point, dropping what it changed."""
    if site.snapshots is not None:
        site.snapshots.revert_to_point(Context(), replica.identity, point)
    return site.mover.call(api.BindHead(owner, point), api.HeadBound)


def _define(site: FailoverSite, replica: Replica, bound: api.HeadBound) -> list[str]:
    """Have the replica VM use a head; a VM whose snapshots are the points has its disks already."""
    return [] if site.snapshots is not None else site.target.define_replica(replica_vm_spec(replica.identity, bound))


def obstacles(facts: api.ReplicaFacts, point: str) -> list[str]:
    """Why the replica VM cannot run from a point, by its files; a lost digest file is no matter for that."""
    losses = [text for text in facts.losses.get(point, []) if not text.startswith("disk ")]
    return [*facts.damage.get(point, []), *losses]


def define_adopted(site: FailoverSite, facts: api.ReplicaFacts) -> None:
    """Define the VM of a replica that was found, if it is missing or its disks are elsewhere; a running one stays.

    A VM whose snapshots are the points cannot be defined again: without it there is nothing to adopt.
    """
    replica, head = facts.replica, facts.head
    if replica is None or replica.newest is None:
        return
    if site.snapshots is not None:
        refuse_lost(f"adopt replica {replica.identity.name!r}", site.snapshots, replica, replica.newest.id)
        return
    uuid = replica.identity.domain_uuid
    state = site.target.replica_state(uuid)
    files = set(head.files.values()) if head else set()
    if state in (VmState.RUNNING, VmState.PAUSED) or (state and files and site.target.replica_disks(uuid) == files):
        return
    if head is not None and head.point and not head.empty and facts.head_definition:
        bound = api.HeadBound(head, facts.head_definition)  # what was written to it stays
    else:
        bound = site.mover.call(api.BindHead(_owner(site, facts), replica.newest.id), api.HeadBound)
    site.target.define_replica(replica_vm_spec(replica.identity, bound))


def _inspect(site: FailoverSite) -> tuple[api.ReplicaFacts, Replica]:
    facts = site.mover.call(api.InspectReplica(site.ref), api.ReplicaFacts)
    if facts.problem:
        raise ReplicaError(f"replica {site.ref.name!r}", facts.problem, "run 'understudy replica rebuild'")
    if facts.replica is None:
        raise NotFound(f"replica {site.ref.name!r}", f"datastore directory {site.ref.datastore} has no such replica",
                       "see 'understudy replica list'")
    return facts, facts.replica


def _owner(site: FailoverSite, facts: api.ReplicaFacts) -> api.OwnedReplica:
    """Own the replica act by act; a running session holds the lock, and then each act is refused as fenced."""
    return api.OwnedReplica(site.ref, attempt=facts.last_attempt + 1)
