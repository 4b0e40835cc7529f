"""What of ours do the VMs of a server have, whoever of us made it?"""

from __future__ import annotations

from understudy.model.inventory import VmState
from understudy.model.snapshot import TAGGED
from understudy.platforms import VmTraces
from understudy.platforms.vsphere import properties
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.inventory import STATES
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.machine import snapshots_in
from understudy.platforms.vsphere.removal import NEEDED, by_hand, merge_by_hand
from understudy.platforms.vsphere.replica_points import POINT

_PATHS = ("config.instanceUuid", "config.uuid", "runtime.powerState", "snapshot", NEEDED)


def traces_of(connection: Connection, lookup: Lookup) -> tuple[VmTraces, ...]:
    """The traces on all VMs, by name; asked of all at once."""
    directory = lookup.directory()
    called = {place.moref: directory.called(place) for place in directory.places}
    entries = properties.collect(connection, "VirtualMachine", _PATHS)
    found = [_traces(entry, called[entry.moref]) for entry in entries if entry.moref in called]
    return tuple(sorted((item for item in found if item.uuid), key=lambda item: item.name))


def _traces(entry: properties.Entry, name: str) -> VmTraces:
    """Those on one VM; its UUID is empty if the server cannot tell anything of it, because its host is away.

    Restore points of a replica are no traces, although the ids in their names look like the mark of a session.
    """
    found = [item.name for item in snapshots_in(entry.get("snapshot"))]
    unmerged = bool(entry.get(NEEDED))
    commands = {"merge": (merge_by_hand(name),)} if unmerged else {}
    names = tuple(item for item in found if item.startswith(TAGGED) and not item.startswith(POINT))
    return VmTraces(
        name=name,
        uuid=entry.get("config.instanceUuid") or entry.get("config.uuid", ""),
        active=STATES.get(str(entry.get("runtime.powerState"))) not in (None, VmState.SHUT_OFF),
        checkpoints=(),
        backup="",
        deltas=(),
        images=(),
        snapshots=names,
        unmerged=unmerged,
        by_hand=commands | {item: (by_hand(name, item),) for item in names},
    )
