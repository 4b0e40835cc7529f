"""Machines: what the front knows of each VM beyond the simulator: disk contents, snapshots, changed block tracking.

The simulator stays the one that answers for a VM: names of backing files, parents and change ids of its live disks
are written into its inventory by an ordinary reconfiguration. Only what a snapshot keeps is remembered here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.vsphere.chain import DiskChain, Locked, Node, flat_file, locked
from tests.vsphere.client import Client
from tests.vsphere.facts import DiskFact
from tests.vsphere.restoring import restoring
from tests.vsphere.simulator import SimulatedDatastore
from tests.vsphere.tracking import ChangeTracker

#: The simulator's properties that a Machine is made of.
_ASKED = ("name", "config.hardware.device", "config.changeTrackingEnabled", "runtime.powerState")
RUNNING = "poweredOn"
OFF = "poweredOff"


@dataclass(eq=False)
class Disk:
    """A virtual disk of a VM."""

    key: int
    chain: DiskChain
    capacity: int
    independent: bool = False
    tracker: ChangeTracker = field(default_factory=ChangeTracker)

    @property
    def file(self) -> Path:
        """The local file with the bytes that the guest sees now."""
        return self.chain.file(self.chain.live)


@dataclass(frozen=True)
class Kept:
    """One disk in a snapshot: where its tracking stood, and how large it was. Its file is in the disk's chain."""

    disk: Disk
    change_id: str
    capacity: int


@dataclass(eq=False)
class Snapshot:
    """A snapshot of a VM."""

    moref: str
    parent: Snapshot | None
    disks: dict[int, Kept]

    @property
    def depth(self) -> int:
        """How many snapshots the VM stands on, with this one."""
        return 1 if self.parent is None else 1 + self.parent.depth


@dataclass(eq=False)
class Machine:
    """A VM that somebody has touched."""

    moref: str
    name: str = ""
    power: str = OFF
    tracking: bool = False
    disks: dict[int, Disk] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    current: Snapshot | None = None

    def stun(self) -> None:
        """The moment at which changed block tracking is switched as the configuration says."""
        for disk in self.disks.values():
            if self.tracking and not disk.tracker.active and not disk.independent:
                disk.tracker.start(complete=not self.snapshots)
            elif not self.tracking and disk.tracker.active:
                disk.tracker.stop()

    def freeze(self, moref: str) -> None:
        """A snapshot was taken."""
        kept = {}
        for disk in self.disks.values():
            if not disk.independent:
                disk.chain.freeze(moref)
                kept[disk.key] = Kept(disk, disk.tracker.freeze(), disk.capacity)
        self.current = self.snapshots[moref] = Snapshot(moref, self.current, kept)

    def revert(self, moref: str) -> None:
        """The VM stands on that snapshot again; what was tracked of its disks is worth nothing any more."""
        self.current = self.snapshots[moref]
        for key, kept in self.current.disks.items():
            disk = self.disks[key] = kept.disk
            disk.chain.revert(moref)
            disk.capacity = kept.capacity
            if disk.tracker.active:
                disk.tracker.start(complete=False)

    def forget(self, morefs: Iterable[str]) -> None:
        """These snapshots were removed; their files stay until `merge`."""
        for moref in morefs:
            gone = self.snapshots.pop(moref)
            for other in self.snapshots.values():
                if other.parent is gone:
                    other.parent = gone.parent
            if self.current is gone:
                self.current = gone.parent
            for kept in gone.disks.values():
                tip = kept.disk.chain.frozen[moref]
                kept.disk.chain.forget(moref)
                kept.disk.chain.discard([tip])

    def merge(self) -> None:
        """Merge what no snapshot needs.

        :raises Locked: if the disk library has one of the files open.
        """
        for disk in self.disks.values():
            disk.chain.merge()

    def copies_of(self, original: Machine) -> list[tuple[Disk, Disk]]:
        """The disks of this clone, each with that of the original: both have them in one order."""
        ours, theirs = ([disks[key] for key in sorted(disks)] for disks in (self.disks, original.disks))
        return list(zip(ours, theirs, strict=True))

    @property
    def consolidation_needed(self) -> bool:
        """Whether there are files that no snapshot needs."""
        return any(disk.chain.superfluous for disk in self.disks.values())

    def tree(self, moref: str) -> list[str]:
        """A snapshot and all that were taken after it, the youngest first."""
        below = [other.moref for other in self.snapshots.values() if _stands_on(other, self.snapshots[moref])]
        return sorted(below, key=lambda other: self.snapshots[other].depth, reverse=True)

    @property
    def open_elsewhere(self) -> str:
        """The live file that the disk library has open, if any."""
        for disk in self.disks.values():
            try:
                with locked([disk.file]):
                    pass
            except Locked as exc:
                return str(exc)
        return ""

    def facts(self, in_use: set[Path]) -> list[DiskFact]:
        """What the disk library may open, if running VMs use the files `in_use`."""
        kept = [held.disk for snapshot in self.snapshots.values() for held in snapshot.disks.values()]
        found = [
            DiskFact(self.moref, disk.chain.live.path, str(disk.file), "", disk.file not in in_use)
            for disk in self.disks.values()
        ]
        for disk in dict.fromkeys([*self.disks.values(), *kept]):
            found += [
                DiskFact(self.moref, node.path, str(disk.chain.file(node)), snapshot, writable=False)
                for snapshot, node in disk.chain.frozen.items()
            ]
        return found


def _stands_on(snapshot: Snapshot | None, other: Snapshot) -> bool:
    while snapshot is not None and snapshot is not other:
        snapshot = snapshot.parent
    return snapshot is other


class Machines:
    """All VMs that somebody has touched, kept equal with the simulator's inventory."""

    def __init__(
        self, client: Client, datastores: tuple[SimulatedDatastore, ...], publish: Callable[[], None]
    ) -> None:  # fmt: skip
        self._client = client
        self._datastores = datastores
        self._folders = {store.moref: store.folder for store in datastores}
        self._publish = publish
        self.known: dict[str, Machine] = {}

    def adopt(self, moref: str) -> Machine:
        """The VM as it is in the simulator now; new disks get a file of their capacity."""
        vm = vim.VirtualMachine(moref, self._client.stub)
        found = self._client.properties(vm, *_ASKED)
        machine = self.known.setdefault(moref, Machine(moref))
        machine.name, machine.power = found["name"], str(found["runtime.powerState"])
        machine.tracking = bool(found.get("config.changeTrackingEnabled"))
        devices = {device.key: device for device in _virtual_disks(found["config.hardware.device"])}
        for key in machine.disks.keys() - devices.keys():
            del machine.disks[key]
        for device in devices.values():
            self._adopt_disk(machine, device)
        return machine

    def _adopt_disk(self, machine: Machine, device: Any) -> None:
        """Know a disk: a new one, one that was attached again, or one that grew."""
        capacity = device.capacityInBytes or device.capacityInKB * 1024
        known = machine.disks.get(device.key)
        if known is None or known.chain.live.path != device.backing.fileName:
            chain = DiskChain(device.backing.fileName, self._folders[device.backing.datastore._moId])
            known = machine.disks[device.key] = Disk(device.key, chain, capacity)
        known.independent = str(device.backing.diskMode).startswith("independent")
        # An attached file has the capacity that it had before, whatever the request said of it.
        known.capacity = max(capacity, known.file.stat().st_size)
        if known.file.stat().st_size < known.capacity:
            with known.file.open("r+b") as file:
                file.truncate(known.capacity)

    def file_at(self, path: str, datacenter: str | None) -> Path:
        """The local file with the bytes of the disk at a datastore path in the datacenter with that moref."""
        name = path.partition("]")[0].removeprefix("[")
        stores = [store for store in self._datastores if store.name == name]
        if len(stores) > 1:
            center = self._client.properties(vim.Datacenter(datacenter, self._client.stub), "name")["name"]
            stores = [store for store in stores if store.datacenter == center]
        return flat_file(stores[0].folder, path)

    def restore(self, machine: Machine, moref: str) -> None:
        """Give a VM that was reverted the devices and settings that it had at the snapshot."""
        asked = ("config.hardware", "config.changeTrackingEnabled")
        vm, snapshot = vim.VirtualMachine(machine.moref, self._client.stub), vim.vm.Snapshot(moref, self._client.stub)
        now, kept = self._client.properties(vm, *asked), self._client.properties(snapshot, *asked)
        for device in _virtual_disks(kept["config.hardware"].device):
            if device.key in machine.disks:
                write_into(device, machine.disks[device.key])
        self._client.wait(vm.ReconfigVM_Task(restoring(now, kept)))
        self.adopt(machine.moref)

    def of_snapshot(self, moref: str) -> Machine | None:
        """The VM that has the snapshot."""
        return next((machine for machine in self.known.values() if moref in machine.snapshots), None)

    def forget(self, moref: str) -> None:
        """The VM was unregistered or destroyed."""
        self.known.pop(moref, None)
        self._publish()

    def facts(self) -> tuple[DiskFact, ...]:
        """What the disk library may open."""
        running = [machine for machine in self.known.values() if machine.power != OFF]
        in_use = {disk.file for machine in running for disk in machine.disks.values()}
        return tuple(fact for machine in self.known.values() for fact in machine.facts(in_use))

    def settle(self, machine: Machine) -> None:
        """Write the state of a VM's disks into the simulator's inventory, then publish the facts."""
        vm = vim.VirtualMachine(machine.moref, self._client.stub)
        found = self._client.properties(vm, "config.hardware.device", "runtime.consolidationNeeded")
        changes = []
        for device in _virtual_disks(found["config.hardware.device"]):
            disk = machine.disks.get(device.key)
            if disk is not None and write_into(device, disk):
                changes.append(vim.vm.device.VirtualDeviceSpec(operation="edit", device=device))
        needed = machine.consolidation_needed
        settings = []
        if needed != found["runtime.consolidationNeeded"]:
            settings = [
                vim.option.OptionValue(key=f"SET.{where}runtime.consolidationNeeded", value=needed)
                for where in ("", "summary.")
            ]
        if changes or settings:
            spec = vim.vm.ConfigSpec(deviceChange=changes, extraConfig=settings)
            self._client.wait(vm.ReconfigVM_Task(spec))
        self._publish()


def _virtual_disks(devices: Iterable[Any]) -> list[Any]:
    return [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]


def write_into(device: Any, disk: Disk) -> bool:
    """Give the simulator's device the state of `disk`; False if it has it already."""
    parent = backing_of(disk.chain.live.parent)
    now = (disk.chain.live.path, disk.tracker.change_id or None, _paths(parent), disk.capacity)
    before = (
        device.backing.fileName, device.backing.changeId or None, _paths(device.backing.parent),
        device.capacityInBytes,
    )  # fmt: skip
    if now == before:
        return False
    device.backing.fileName, device.backing.changeId, device.backing.parent = now[0], now[1], parent
    device.capacityInBytes, device.capacityInKB = disk.capacity, -(-disk.capacity // 1024)
    return True


def backing_of(node: Node | None) -> Any:
    """The backing that the simulator shows as a parent."""
    if node is None:
        return None
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=node.path, diskMode="persistent", parent=backing_of(node.parent)
    )


def _paths(backing: Any) -> list[str]:
    paths = []
    while backing is not None:
        paths.append(backing.fileName)
        backing = backing.parent
    return paths


