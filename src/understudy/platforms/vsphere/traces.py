"""What of ours do the VMs of a server have, whoever of us made it?"""

from __future__ import annotations

from understudy.model.snapshot import TAGGED
from understudy.platforms import VmTraces
from understudy.platforms.vsphere import properties
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.machine import snapshots_in
from understudy.platforms.vsphere.removal import by_hand

_PATHS = ("name", "config.instanceUuid", "runtime.powerState", "snapshot")


def traces_of(connection: Connection) -> tuple[VmTraces, ...]:
    """The traces on all VMs, by name; asked of all at once."""
    found = [_traces(entry) for entry in properties.collect(connection, "VirtualMachine", _PATHS)]
    return tuple(sorted((item for item in found if item is not None), key=lambda item: item.name))


def _traces(entry: properties.Entry) -> VmTraces | None:
    """Those on one VM; None of one that the server cannot tell anything of, for example because its host is away."""
    name, uuid = entry.get("name", ""), entry.get("config.instanceUuid", "")
    if not uuid:
        return None
    names = tuple(item.name for item in snapshots_in(entry.get("snapshot")) if item.name.startswith(TAGGED))
    return VmTraces(
        name=name,
        uuid=uuid,
        active=str(entry.get("runtime.powerState")) != "poweredOff",
        checkpoints=(),
        backup="",
        deltas=(),
        images=(),
        snapshots=names,
        by_hand={item: (by_hand(name, item),) for item in names},
    )
