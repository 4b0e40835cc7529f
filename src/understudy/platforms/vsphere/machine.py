"""A VM on its server while it is replicated: its disks, its snapshots, and its tracking, as they are now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.platforms.vsphere import properties, trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.devices import VirtualDisk, read_devices
from understudy.platforms.vsphere.tracking import TrackingState, tracking_state

_DEVICES = "config.hardware.device"
_FLAG, _OPTIONS = "config.changeTrackingEnabled", "config.extraConfig"


@dataclass(frozen=True)
class Machine:
    """A VM on its server; ``ref`` is pyVmomi's object, ``name`` is for messages."""

    connection: Connection
    ref: Any
    name: str

    @property
    def moref(self) -> str:
        """The server's reference of the VM."""
        return str(self.ref._moId)

    def get(self, *paths: str) -> properties.Entry:
        """Properties of the VM.

        :raises NotFound: if it is gone.
        """
        return properties.of(self.connection, self.ref, paths)


@dataclass(frozen=True)
class TreeSnapshot:
    """A snapshot that a VM has.

    :ivar quiesced: the platform was asked to quiesce the guest for it, and did not fail.
    """

    name: str
    moref: str
    quiesced: bool


def tracking_of(machine: Machine) -> TrackingState:
    """What the VM's configuration says of changed block tracking."""
    seen = machine.get(_FLAG, _OPTIONS)
    change_ids = {name: disk.change_id for name, disk in _disks(machine.connection, machine.ref).items()}
    return tracking_state(seen.get(_FLAG), seen.get(_OPTIONS, ()), change_ids)


def snapshots_of(machine: Machine) -> tuple[TreeSnapshot, ...]:
    """The snapshots of the VM, parents first."""
    return snapshots_in(machine.get("snapshot").get("snapshot"))


def snapshots_in(info: Any) -> tuple[TreeSnapshot, ...]:
    """The snapshots in a VM's property ``snapshot``, which is not set if there are none."""
    return tuple(_walk(info.rootSnapshotList if info is not None else ()))


def _walk(trees: Sequence[Any]) -> Iterator[TreeSnapshot]:
    waiting = list(reversed(trees or ()))
    while waiting:
        tree = waiting.pop()
        yield TreeSnapshot(tree.name, str(tree.snapshot._moId), bool(tree.quiesced))
        waiting += reversed(tree.childSnapshotList or ())


def snapshot_disks(machine: Machine, snapshot: str) -> Mapping[str, VirtualDisk]:
    """The disks of the VM as they were at a snapshot, by name.

    :raises NotFound: if the snapshot is gone.
    """
    return _disks(machine.connection, machine.connection.managed("VirtualMachineSnapshot", snapshot))


def _disks(connection: Connection, item: Any) -> Mapping[str, VirtualDisk]:
    devices = trees.of(connection, item, (_DEVICES,)).values.get(_DEVICES)
    return {disk.name: disk for disk in read_devices(devices).disks}
