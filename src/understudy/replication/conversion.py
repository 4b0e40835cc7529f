"""Which devices does a guest from another platform get at failover: virtio after a conversion, or those that it knows?

Only the head is converted. Whatever happens on the way, restore points are as they were, and a new head drops it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import MoverError, Refused, UnderstudyError
from understudy.faults import fault_point
from understudy.model.replica import Conversion, ConversionWish, ReplicaIdentity, ReplicaState
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms import TargetPlatform
from understudy.replication.target_side import replica_vm_spec
from understudy.replication.work import finish

#: An appliance under emulation needs minutes, a guest with many packages some more.
TIMEOUT_S = 3600.0
_CONVERTED = "the guest was converted: its disks and network cards are virtio"
_AS_IT_IS = "the guest was not converted: its disks and network cards are such that it should have drivers for them"


@dataclass(frozen=True)
class Converting:
    """A replica in failover, its VM defined and off, on a fresh head."""

    mover: MoverClient
    target: TargetPlatform
    identity: ReplicaIdentity
    owner: api.OwnedReplica
    bound: api.HeadBound


def convert(ctx: Context, replica: Converting, wish: ConversionWish) -> str:
    """Convert the guest as wished, and define its VM anew; says what was done.

    Where it is only tried, and fails, the guest is not converted.

    :raises UnderstudyError: if it fails and is wished in any case, or cannot be taken back. If it could, the replica is
        ready, on a fresh head; else it is in failover, which undo mends.
    """
    if wish is ConversionWish.NEVER:
        return _AS_IT_IS
    try:
        _convert(ctx, replica)
    except BaseException as exc:
        if not _taken_back(ctx, replica):
            raise
        if wish is ConversionWish.AUTO and isinstance(exc, (MoverError, Refused)):
            return f"{_AS_IT_IS} ({exc.why})"
        replica.mover.call(api.SetState(replica.owner, ReplicaState.READY), api.Nothing)
        raise
    return _CONVERTED


def _convert(ctx: Context, replica: Converting) -> None:
    what = f"convert the guest of replica {replica.identity.name!r}"
    if not replica.mover.call(api.ProbeConversion(), api.ConversionFacts).program:
        raise Refused(what, "virt-v2v is not installed on the target proxy's host",
                      "install it there, or start the failover with '--convert never'")
    finish(ctx, replica.mover, api.ConvertHead(replica.owner, TIMEOUT_S))
    fault_point("failover.converted")
    converted = replace(replica.bound, head=replace(replica.bound.head, conversion=Conversion.VIRTIO))
    replica.target.define_replica(replica_vm_spec(replica.identity, converted))


def _taken_back(ctx: Context, replica: Converting) -> bool:
    """Give the VM a fresh head and the devices that its guest knows; whether that was possible."""
    try:
        bound = replica.mover.call(api.BindHead(replica.owner, replica.bound.head.point), api.HeadBound)
        replica.target.define_replica(replica_vm_spec(replica.identity, bound))
    except UnderstudyError as exc:
        ctx.log(__name__).warning("take back the conversion of replica %s: %s", replica.identity.name, exc)
        return False
    return True
