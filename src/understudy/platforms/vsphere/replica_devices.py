"""The devices of a replica VM, as its server is told them: what is to be removed, added and changed. Pure.

Disks are where they are at the source, controllers and places alike; network cards have the source's MAC addresses, and
are never connected here. A disk's file is only deleted if we made it and no snapshot of the VM needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from understudy.platforms.vsphere.definition import DiskController, HardwareDisk, HardwareNic, NicModel, VmHardware
from understudy.platforms.vsphere.devices import CONTROLLERS, Devices, VirtualDisk, VirtualNic, place_name
from understudy.platforms.vsphere.replica_place import TargetNetwork

_DEVICE = vim.vm.device
_SCSI = {
    DiskController.PVSCSI: _DEVICE.ParaVirtualSCSIController,
    DiskController.LSI_LOGIC: _DEVICE.VirtualLsiLogicController,
    DiskController.LSI_LOGIC_SAS: _DEVICE.VirtualLsiLogicSASController,
    DiskController.BUS_LOGIC: _DEVICE.VirtualBusLogicController,
}
_OTHER = {
    DiskController.SATA: _DEVICE.VirtualAHCIController,
    DiskController.NVME: _DEVICE.VirtualNVMEController,
    DiskController.IDE: _DEVICE.VirtualIDEController,
}
_NICS = {
    NicModel.VMXNET3: _DEVICE.VirtualVmxnet3,
    NicModel.VMXNET2: _DEVICE.VirtualVmxnet2,
    NicModel.E1000: _DEVICE.VirtualE1000,
    NicModel.E1000E: _DEVICE.VirtualE1000e,
    NicModel.PCNET32: _DEVICE.VirtualPCNet32,
}
# A card that a part of the host's own is given to the guest by cannot be had on another host.
_NIC_FALLBACK = NicModel.VMXNET3
# Every VM has two of them, and always with these keys.
_IDE_KEYS = {"ide0": 200, "ide1": 201}


@dataclass(frozen=True)
class Controller:
    """A controller that the VM has: what it is, and its key."""

    kind: DiskController
    key: int


@dataclass(frozen=True)
class Present:
    """The devices that a VM has.

    :ivar raw: pyVmomi's objects by key, as the server gave them.
    """

    devices: Devices
    raw: Mapping[int, Any]

    @property
    def controllers(self) -> Mapping[str, Controller]:
        """The controllers of disks, by the beginning of the names of what is on them: ``scsi0``."""
        found = {}
        for device in self.raw.values():
            kind = CONTROLLERS.get(type(device)._wsdlName)
            if kind is not None:
                found[_bus(kind, device.busNumber)] = Controller(kind, device.key)
        return found

    @property
    def disks(self) -> Mapping[str, VirtualDisk]:
        """The disks, by name."""
        return {disk.name: disk for disk in self.devices.disks}


@dataclass(frozen=True)
class Owned:
    """What says whether the file of a VM's disk may be deleted.

    :ivar names: of the disks that we gave it.
    :ivar held: the files at which the chains of disks in the VM's snapshots begin.
    :ivar home: the directory of the VM's files.
    """

    names: Collection[str]
    held: Collection[str]
    home: str

    def may_delete(self, disk: VirtualDisk) -> bool:
        """Whether we made the file, for this VM, and no snapshot needs it."""
        at_home = disk.file.rpartition("/")[0] == self.home
        return at_home and disk.name in self.names and disk.base not in self.held


#: What a VM has from birth that is not made yet.
NEWBORN = Present(Devices(), {key: _DEVICE.VirtualIDEController(key=key, busNumber=key - 200)
                              for key in _IDE_KEYS.values()})  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """Changes of devices, in their order, and what the operator should know of them."""

    changes: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()


def removals(
    present: Present, hardware: VmHardware, leave: Collection[str], owned: Owned
) -> Changes:
    """Take off the disks that are not to stay, and controllers that the source has as another kind.

    :param leave: names of the disks that stay.
    """
    gone = [disk for name, disk in present.disks.items() if name not in leave]
    changes = [removal(present, disk, owned) for disk in gone]
    changes += [_change("remove", present.raw[key]) for key in _misfits(present, hardware, leave)]
    warnings = [f"disk {disk.name}, which somebody else has given it, was taken off it; its file stays: {disk.file}"
                for disk in gone if disk.name not in owned.names]  # fmt: skip
    return Changes(tuple(changes), tuple(warnings))


def removal(present: Present, disk: VirtualDisk, owned: Owned) -> Any:
    """Take a disk off the VM, and delete its file if it is ours and nothing else needs it."""
    return _change("remove", present.raw[disk.key], "destroy" if owned.may_delete(disk) else None)


def _misfits(present: Present, hardware: VmHardware, leave: Collection[str]) -> Iterator[int]:
    """Keys of controllers of the wrong kind that have no disk any more."""
    used = {_prefix(name) for name in leave}
    wanted = {_prefix(disk.name): disk.controller for disk in hardware.disks}
    for prefix, controller in present.controllers.items():
        if prefix in wanted and prefix not in used and wanted[prefix] is not controller.kind:
            yield controller.key


def additions(present: Present, hardware: VmHardware, sizes: Mapping[str, int], store: Any | None) -> Changes:
    """Give the VM the disks that it has not, each with a new, empty file, and the controllers for them.

    :param store: pyVmomi's object of the datastore; None: where the VM itself is.
    """
    controllers, keys = dict(present.controllers), itertools.count(-101, -1)
    changes: list[Any] = []
    warnings: list[str] = []
    for disk in (disk for disk in hardware.disks if disk.name in sizes):
        prefix = _prefix(disk.name)
        if prefix not in controllers:
            controllers[prefix] = Controller(disk.controller, next(keys))
            changes.append(_change("add", _new_controller(disk, controllers[prefix].key)))
        elif controllers[prefix].kind is not disk.controller:
            warnings.append(f"controller {prefix} of the replica is of type {controllers[prefix].kind.value}, at the "
                            f"source it is {disk.controller.value}: the guest may not start from it")  # fmt: skip
        if disk.name not in present.disks:
            added = _new_disk(disk, sizes[disk.name], controllers[prefix].key, next(keys), store)
            changes.append(_change("add", added, "create"))
    return Changes(tuple(changes), tuple(dict.fromkeys(warnings)))


def cards(present: Present, hardware: VmHardware, networks: Mapping[str, TargetNetwork]) -> Changes:
    """Make the network cards those of the source, on networks of the same names, connected to none of them."""
    there = {nic.mac: nic for nic in present.devices.nics}
    wanted = {nic.mac.lower(): nic for nic in hardware.nics}
    changes = [_change("remove", present.raw[nic.key]) for mac, nic in there.items() if mac not in wanted]
    warnings: list[str] = []
    keys = itertools.count(-501, -1)
    for mac, nic in wanted.items():
        warnings += _about(nic, networks)
        network = networks.get(nic.network) or next(iter(networks.values()), None)
        if network is None:
            changes += [_change("remove", present.raw[there[mac].key])] if mac in there else []
        elif mac not in there or there[mac].model is not _model(nic):
            changes += [_change("remove", present.raw[there[mac].key])] if mac in there else []
            changes.append(_change("add", _new_card(nic, network, next(keys))))
        elif there[mac].connected or not _is_on(there[mac], network):
            changes.append(_change("edit", _altered(present.raw[there[mac].key], network)))
    return Changes(tuple(changes), tuple(warnings))


def to_connect(hardware: VmHardware, networks: Mapping[str, TargetNetwork]) -> frozenset[str]:
    """MAC addresses of the cards that a failover connects: those that are at the source, to a network of that name."""
    return frozenset(nic.mac.lower() for nic in hardware.nics if nic.connected and nic.network in networks)


def connections(present: Present, macs: Collection[str]) -> tuple[Any, ...]:
    """Connect these cards, and no others."""
    changes = []
    for nic in present.devices.nics:
        if nic.connected is not (nic.mac in macs):
            changes.append(_change("edit", _connected(present.raw[nic.key], connect=nic.mac in macs)))
    return tuple(changes)


def _about(nic: HardwareNic, networks: Mapping[str, TargetNetwork]) -> Iterator[str]:
    if not networks:
        yield f"network card {nic.mac}: the target host has no network: the replica is without it"
    elif nic.network not in networks:
        yield (f"network card {nic.mac}: the target host has no network {nic.network!r}: a failover leaves it "
               "disconnected")  # fmt: skip
    if nic.model not in _NICS:
        yield f"network card {nic.mac}: a card of type {nic.model.value} becomes one of type {_NIC_FALLBACK.value}"


def _model(nic: HardwareNic) -> NicModel:
    return nic.model if nic.model in _NICS else _NIC_FALLBACK


def _is_on(card: VirtualNic, network: TargetNetwork) -> bool:
    return card.network == (network.port_group or network.opaque[1] or network.ref._moId)


def _new_card(nic: HardwareNic, network: TargetNetwork, key: int) -> Any:
    return _NICS[_model(nic)](
        key=key, macAddress=nic.mac.lower(), addressType="manual", wakeOnLanEnabled=True, backing=_backing(network),
        connectable=_DEVICE.VirtualDevice.ConnectInfo(startConnected=False, connected=False, allowGuestControl=True),
    )  # fmt: skip


def _backing(network: TargetNetwork) -> Any:
    card = _DEVICE.VirtualEthernetCard
    if network.port_group:
        port = vim.dvs.PortConnection(switchUuid=network.switch, portgroupKey=network.port_group)
        return card.DistributedVirtualPortBackingInfo(port=port)
    if network.opaque[1]:
        return card.OpaqueNetworkBackingInfo(opaqueNetworkType=network.opaque[0], opaqueNetworkId=network.opaque[1])
    return card.NetworkBackingInfo(deviceName=network.name, network=network.ref)


def _altered(device: Any, network: TargetNetwork) -> Any:
    device.backing = _backing(network)
    return _connected(device, connect=False)


def _connected(device: Any, *, connect: bool) -> Any:
    if device.connectable is None:
        device.connectable = _DEVICE.VirtualDevice.ConnectInfo(allowGuestControl=True)
    # Of a VM that is off, only how it starts can be said.
    device.connectable.startConnected, device.connectable.connected = connect, False
    return device


def _new_controller(disk: HardwareDisk, key: int) -> Any:
    if disk.controller in _SCSI:
        return _SCSI[disk.controller](key=key, busNumber=disk.bus, sharedBus="noSharing", hotAddRemove=True)
    return _OTHER[disk.controller](key=key, busNumber=disk.bus)


def _new_disk(disk: HardwareDisk, size: int, controller: int, key: int, store: Any | None) -> Any:
    backing = _DEVICE.VirtualDisk.FlatVer2BackingInfo(
        fileName="", diskMode="persistent", thinProvisioned=True, datastore=store
    )
    return _DEVICE.VirtualDisk(key=key, controllerKey=controller, unitNumber=disk.unit, capacityInBytes=size,
                               capacityInKB=-(-size // 1024), backing=backing)  # fmt: skip


def _change(operation: str, device: Any, file: str | None = None) -> Any:
    return _DEVICE.VirtualDeviceSpec(operation=operation, fileOperation=file, device=device)


def _bus(kind: DiskController, bus: int) -> str:
    return _prefix(place_name(kind, bus, 0))


def _prefix(name: str) -> str:
    """The controller in a disk's name: ``scsi0`` of ``scsi0:1``."""
    return name.partition(":")[0]


def together(parts: Iterable[Changes]) -> Changes:
    """All of them, one after the other."""
    listed = list(parts)
    return Changes(tuple(item for part in listed for item in part.changes),
                   tuple(item for part in listed for item in part.warnings))  # fmt: skip


def raw_by_key(devices: Sequence[Any]) -> Mapping[int, Any]:
    """pyVmomi's objects by their keys."""
    return {device.key: device for device in devices}
