"""Restore points that are snapshots of a replica VM: take one, go back to one, remove some; whose is which?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from understudy.context import Context
from understudy.errors import NotFound, PlatformError, Refused
from understudy.model.inventory import VmState
from understudy.model.snapshot import TAGGED
from understudy.platforms.vsphere import properties, trees
from understudy.platforms.vsphere.devices import VirtualDisk, read_devices
from understudy.platforms.vsphere.machine import Machine, snapshot_disks
from understudy.platforms.vsphere.removal import merge_left, remove_tagged
from understudy.platforms.vsphere.replica_devices import Owned, Present, raw_by_key, removal
from understudy.platforms.vsphere.replica_errors import LONGEST_CHAIN, run, too_many
from understudy.platforms.vsphere.replica_mark import ReplicaVm

#: How the names of such snapshots begin; the id of the point follows.
POINT = f"{TAGGED}point-"
_DEVICES = "config.hardware.device"
_POWER = "runtime.powerState"
_OFF = "poweredOff"


@dataclass(frozen=True)
class Taken:
    """A snapshot of a replica VM.

    :ivar created: when, by the server's clock.
    :ivar depth: how many snapshots it stands on, with itself.
    :ivar current: the VM's disks are written above it.
    """

    name: str
    moref: str
    created: str
    depth: int
    current: bool

    @property
    def point(self) -> str:
        """The id of the point; empty if it is none of ours."""
        return self.name.removeprefix(POINT) if self.name.startswith(POINT) else ""


def taken(machine: Machine) -> tuple[Taken, ...]:
    """The snapshots of the VM, oldest first; a tree with several branches has them all.

    :raises NotFound: if the VM is gone.
    """
    return tree_of(machine.get("snapshot").get("snapshot"))


def tree_of(info: Any) -> tuple[Taken, ...]:
    """The same of a VM's property ``snapshot``, which is not set if there are none."""
    if info is None:
        return ()
    current = "" if info.currentSnapshot is None else str(info.currentSnapshot._moId)
    found = list(_walk(info.rootSnapshotList or (), 1, current))
    # Stable: of two of the same second, the parent is the older one.
    return tuple(sorted(found, key=lambda item: item.created))


def _walk(listed: Any, depth: int, current: str) -> Iterator[Taken]:
    waiting = [(tree, depth) for tree in reversed(listed)]
    while waiting:
        tree, depth = waiting.pop()
        moref = str(tree.snapshot._moId)
        yield Taken(tree.name, moref, tree.createTime.isoformat(), depth, moref == current)
        waiting += [(child, depth + 1) for child in reversed(tree.childSnapshotList or ())]


def the_point(machine: Machine, point: str) -> Taken:
    """The snapshot of a point.

    :raises NotFound: if there is none.
    :raises PlatformError: if several have its name.
    """
    found = [item for item in taken(machine) if item.name == POINT + point]
    what = f"restore point {point} of replica VM {machine.name!r}"
    if not found:
        raise NotFound(what, "its snapshot is gone", "see 'understudy replica points'")
    if len(found) > 1:
        raise PlatformError(what, f"{len(found)} snapshots have its name: somebody has made another one",
                            "remove the one that Understudy has not made")  # fmt: skip
    return found[0]


def take(ctx: Context, vm: ReplicaVm, point: str, text: str) -> None:
    """Make the leaf a point. What a call did before whose answer was lost is found, and not done twice.

    :raises Refused: if the VM runs.
    :raises PlatformError: if there are too many snapshots.
    """
    machine, what = vm.machine, f"restore point {point} of replica VM {vm.machine.name!r}"
    there = taken(machine)
    if any(item.name == POINT + point for item in there):
        if not the_point(machine, point).current:
            raise PlatformError(what, "there is one already, and the VM stands on another", "run the job again")
        return
    if vm.state is not VmState.SHUT_OFF:
        raise Refused(what, f"the VM is {vm.state}", "power it off, or run 'understudy failover undo'")
    depth = next((item.depth for item in there if item.current), 0)
    if depth >= LONGEST_CHAIN:
        raise too_many(what, depth)
    made = run(ctx, machine.connection, what, lambda: machine.ref.CreateSnapshot_Task(
        name=POINT + point, description=text, memory=False, quiesce=False))  # fmt: skip
    found = the_point(machine, point)
    if found.moref != str(made._moId) or not found.current:
        raise PlatformError(what, "another snapshot came in between", "run the job again")


def revert(ctx: Context, vm: ReplicaVm, point: str) -> None:
    """Put the VM, off, on a point again. Disks that it got since and that no snapshot has are deleted.

    :raises NotFound: if the snapshot of the point is gone.
    """
    machine, name = vm.machine, vm.machine.name
    chosen = the_point(machine, point)
    power_off(ctx, machine)
    _drop_new_disks(ctx, vm)
    item = machine.connection.managed("VirtualMachineSnapshot", chosen.moref)
    run(ctx, machine.connection, f"revert replica VM {name!r} to restore point {point}",
        lambda: item.RevertToSnapshot_Task(host=None, suppressPowerOn=True))  # fmt: skip
    power_off(ctx, machine)
    if not the_point(machine, point).current:
        raise PlatformError(f"revert replica VM {name!r} to restore point {point}", "it stands on another snapshot now",
                            "look who else works on the VM, and try again")  # fmt: skip


def power_off(ctx: Context, machine: Machine) -> None:
    """Power the VM off at once; no error if it is off."""
    if str(machine.get(_POWER).get(_POWER)) == _OFF:
        return
    try:
        run(ctx, machine.connection, f"power off replica VM {machine.name!r}", machine.ref.PowerOffVM_Task)
    except Refused:
        # It went off by itself in between.
        if str(machine.get(_POWER).get(_POWER)) != _OFF:
            raise


def _drop_new_disks(ctx: Context, vm: ReplicaVm) -> None:
    """Delete the disks that no snapshot has: a revert would take them off the VM, and leave their files behind."""
    owned, present = owned_files(vm), present_devices(vm.machine)
    fresh = [disk for disk in present.devices.disks if owned.may_delete(disk)]
    if fresh:
        reconfigure(ctx, vm.machine, [removal(present, disk, owned) for disk in fresh])


def owned_files(vm: ReplicaVm) -> Owned:
    """Which files of the VM's disks are ours to delete."""
    return Owned(vm.own_disks, held_files(vm.machine), vm.home)


def remove(ctx: Context, machine: Machine, points: tuple[str, ...]) -> list[str]:
    """Remove the snapshots of points, and merge what is left of them; what could not be done."""
    problems = []
    for point in points:
        _, problem = remove_tagged(ctx, machine, (POINT + point).__eq__)
        if problem is not None:
            problems.append(f"restore point {point}: {problem.why}")
    left = merge_left(ctx, machine)
    return [*problems, left.why] if left else problems


def point_disk(machine: Machine, point: str, disk: str) -> tuple[str, VirtualDisk]:
    """The snapshot of a point, and a disk in it.

    :raises NotFound: if there is no such point, or it has not the disk.
    """
    chosen = the_point(machine, point)
    found = snapshot_disks(machine, chosen.moref).get(disk)
    if found is None:
        raise NotFound(f"disk {disk} of replica VM {machine.name!r}", f"restore point {point} has it not",
                       "see 'understudy replica points'")  # fmt: skip
    return chosen.moref, found


def held_files(machine: Machine) -> frozenset[str]:
    """The files at which the chains of the disks in all snapshots begin, those of others included."""
    return frozenset(disk.base for item in taken(machine) for disk in snapshot_disks(machine, item.moref).values())


def present_devices(machine: Machine) -> Present:
    """The devices that the VM has now."""
    tree = trees.of(machine.connection, machine.ref, (_DEVICES,))
    raw = properties.of(machine.connection, machine.ref, (_DEVICES,)).get(_DEVICES) or ()
    return Present(read_devices(tree.values.get(_DEVICES)), raw_by_key(raw))


def reconfigure(ctx: Context, machine: Machine, changes: list[Any], settings: Any | None = None) -> None:
    """Change the VM's devices, and its settings; nothing is asked if nothing is to be changed."""
    spec = settings or vim.vm.ConfigSpec()
    spec.deviceChange = changes
    if changes or settings is not None:
        run(ctx, machine.connection, f"change replica VM {machine.name!r}", lambda: machine.ref.ReconfigVM_Task(spec))
