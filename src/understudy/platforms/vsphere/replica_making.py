"""Make a replica VM on its server, or make it fit what its source is now, keeping its points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.context import Context
from understudy.errors import NotFound, PlatformError, Refused
from understudy.model.inventory import VmState
from understudy.platforms.snapshot_target import SnapshotVmSpec
from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.definition import VmHardware
from understudy.platforms.vsphere.hardware import DESCRIBED, vm_hardware
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.replica_devices import (
    NEWBORN,
    additions,
    cards,
    removals,
    to_connect,
    together,
)
from understudy.platforms.vsphere.replica_errors import run
from understudy.platforms.vsphere.replica_mark import ReplicaVm, find, marks, require
from understudy.platforms.vsphere.replica_place import (
    TargetNetwork,
    datastore,
    networks_of_host,
    placement,
)
from understudy.platforms.vsphere.replica_points import held_files, owned_files, present_devices, reconfigure, taken
from understudy.platforms.vsphere.replica_vm import (
    check_disks,
    creation,
    difference,
    hardware_for,
    inventory_name,
    notices,
)

_TRACKING = "config.changeTrackingEnabled"


def make(ctx: Context, connection: Connection, lookup: Lookup, spec: SnapshotVmSpec) -> list[str]:
    """Make the VM, or make it fit; what the operator should know.

    May be repeated: what an interrupted call made is found by its mark, and disks that are to be new are new again.

    :raises Refused: if it runs, is not ours, or the server has another VM of its name.
    """
    hardware = hardware_for(spec)
    found, warnings = find(connection, lookup, spec.identity), []
    if found is None:
        _create(ctx, connection, lookup, spec, hardware)
        found = require(connection, lookup, spec.identity)
    else:
        if found.state is not VmState.SHUT_OFF:
            raise Refused(f"replica VM {spec.identity.name!r}", f"it is {found.state}",
                          "power it off, or run 'understudy failover undo'; what it wrote is dropped then")  # fmt: skip
        warnings = _clear(ctx, found, spec, hardware)
    return [*warnings, *_complete(ctx, found, spec, hardware), *_strangers(found), *_elsewhere(connection, found, spec)]


def _create(
    ctx: Context, connection: Connection, lookup: Lookup, spec: SnapshotVmSpec, hardware: VmHardware
) -> None:
    what = f"make replica VM {spec.identity.name!r}"
    if chained := spec.disks.keys() - spec.anew:
        raise PlatformError(what, f"it is gone, and with it what disk {', '.join(sorted(chained))} had",
                            "run the job again: it copies all anew")  # fmt: skip
    _refuse_name(lookup, spec)
    where = placement(connection, spec.place, [nic.network for nic in hardware.nics])
    store = connection.managed("Datastore", where.store.moref)
    changes = together([additions(NEWBORN, hardware, spec.disks, store), cards(NEWBORN, hardware, where.networks)])
    config = creation(spec, hardware, changes, to_connect(hardware, where.networks), where.store.name)
    run(ctx, connection, what, lambda: where.folder.CreateVM_Task(config=config, pool=where.pool, host=where.host))


def _refuse_name(lookup: Lookup, spec: SnapshotVmSpec) -> None:
    name = inventory_name(spec.identity.name)
    if paths := [place.path for place in lookup.directory().places if place.name == name]:
        raise Refused(f"make replica VM {spec.identity.name!r}",
                      f"the server has another VM of that name: {', '.join(sorted(paths))}",
                      "rename or remove it, or use another --suffix")  # fmt: skip


def _clear(ctx: Context, vm: ReplicaVm, spec: SnapshotVmSpec, hardware: VmHardware) -> list[str]:
    """Take off the VM the disks that are not to stay. Nothing else is done before all that are to stay are seen."""
    present = present_devices(vm.machine)
    check_disks(spec, _sizes(present.disks), whole=False)
    leave = spec.disks.keys() - spec.anew
    changes = removals(present, hardware, leave, owned_files(vm))
    reconfigure(ctx, vm.machine, list(changes.changes))
    return list(changes.warnings)


def _complete(ctx: Context, vm: ReplicaVm, spec: SnapshotVmSpec, hardware: VmHardware) -> list[str]:
    """Give the VM what it lacks, and see that it has it."""
    machine, networks = vm.machine, _networks(vm)
    tree = trees.of(machine.connection, machine.ref, (*DESCRIBED, _TRACKING))
    now, present = vm_hardware(tree, {}, ""), present_devices(machine)
    parts = [additions(present, hardware, spec.disks, None), cards(present, hardware, networks)]
    marked = (vm.marks, marks(spec.identity, to_connect(hardware, networks), spec.disks))
    keys = {name: disk.key for name, disk in present.disks.items()}
    changes = together(parts)
    settings = difference(spec, hardware, now, marked, keys, tracked=tree.flag(_TRACKING))
    reconfigure(ctx, machine, list(changes.changes), settings)
    _check(vm, spec)
    return [*notices(hardware, now), *changes.warnings]


def _check(vm: ReplicaVm, spec: SnapshotVmSpec) -> None:
    """A leaf that is not as it should be would be written all the same: see it, whatever the server answered.

    :raises PlatformError: if a disk is missing, too many, of another size, or not new.
    """
    present, held = present_devices(vm.machine).disks, held_files(vm.machine)
    check_disks(spec, _sizes(present), whole=True)
    what = f"replica VM {vm.machine.name!r}"
    if too_many := present.keys() - spec.disks.keys():
        raise PlatformError(what, f"disk {', '.join(sorted(too_many))} is still on it", "take it off by hand")
    if old := [name for name in sorted(spec.anew) if present[name].base in held]:
        raise PlatformError(what, f"disk {', '.join(old)} did not get a new file", "run the job again")


def _sizes(disks: Mapping[str, Any]) -> dict[str, int]:
    return {name: disk.capacity for name, disk in disks.items()}


def _networks(vm: ReplicaVm) -> Mapping[str, TargetNetwork]:
    return {} if vm.host is None else networks_of_host(vm.machine.connection, vm.host)


def _strangers(vm: ReplicaVm) -> list[str]:
    names = ", ".join(repr(item.name) for item in taken(vm.machine) if not item.point)
    return [f"it has snapshots that others made ({names}): they take space, and stay"] if names else []


def _elsewhere(connection: Connection, vm: ReplicaVm, spec: SnapshotVmSpec) -> list[str]:
    """Somebody may have moved the VM: it is left there."""
    try:
        store = datastore(connection, spec.place).name
    except NotFound:
        store = spec.place
    home = vm.home.partition("]")[0].removeprefix("[")
    return [] if home == store else [f"its files are on datastore {home!r}, not on {store!r}: they stay there"]
