"""The devices of a VM, or of one of its snapshots, as values. Pure: trees in, values out.

A disk is called by its controller and its place on it, as a VMX file calls it: ``scsi0:1``. Its file is told by the
base of the chain of snapshots, so that it does not change while other snapshots come and go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from understudy.platforms.vsphere.definition import DiskController, NicModel
from understudy.platforms.vsphere.trees import kind_of, truth

CONTROLLERS = {
    "ParaVirtualSCSIController": DiskController.PVSCSI,
    "VirtualLsiLogicController": DiskController.LSI_LOGIC,
    "VirtualLsiLogicSASController": DiskController.LSI_LOGIC_SAS,
    "VirtualBusLogicController": DiskController.BUS_LOGIC,
    "VirtualAHCIController": DiskController.SATA,
    "VirtualNVMEController": DiskController.NVME,
    "VirtualIDEController": DiskController.IDE,
}
_BUS_NAMES = {DiskController.SATA: "sata", DiskController.NVME: "nvme", DiskController.IDE: "ide"}
_BOOT_RANKS = ("scsi", "ide", "sata", "nvme")
_NICS = {
    "VirtualVmxnet3": NicModel.VMXNET3,
    "VirtualVmxnet3Vrdma": NicModel.VMXNET3,
    "VirtualVmxnet2": NicModel.VMXNET2,
    "VirtualVmxnet": NicModel.VMXNET2,
    "VirtualE1000": NicModel.E1000,
    "VirtualE1000e": NicModel.E1000E,
    "VirtualPCNet32": NicModel.PCNET32,
    "VirtualSriovEthernetCard": NicModel.SRIOV,
}
_FILE_BACKINGS = frozenset({"VirtualDiskFlatVer2BackingInfo", "VirtualDiskSeSparseBackingInfo"})
_RDM = "VirtualDiskRawDiskMappingVer1BackingInfo"
_PASSED_THROUGH = frozenset({"VirtualPCIPassthrough", "VirtualSCSIPassthrough"})
_FREE_MODES = frozenset({"", "persistent"})
_UNSHARED_BUS = frozenset({"", "noSharing"})
_DELTA = re.compile(r"-\d{6}(?=\.vmdk$)")


@dataclass(frozen=True)
class Controller:
    """What disks are attached to; ``shared`` if other VMs may be attached to the same bus."""

    kind: DiskController
    bus: int
    shared: bool


@dataclass(frozen=True)
class VirtualDisk:
    """One virtual disk.

    :ivar name: ``scsi0:1``; ``disk2000``, by the key, if its controller is unknown.
    :ivar file: where it is written now: the end of the chain of snapshots; of a snapshot, what the snapshot holds.
    :ivar base: the file at which the chain begins, or began before this VM was cloned from another.
    :ivar change_id: where the changes since now begin; empty without changed block tracking.
    :ivar datastore: moref.
    :ivar obstacle: why it cannot be replicated, or empty.
    """

    name: str
    key: int
    controller: DiskController | None
    bus: int
    unit: int
    label: str
    capacity: int
    file: str
    base: str
    change_id: str
    datastore: str
    mode: str
    thin: bool
    eager: bool
    obstacle: str


@dataclass(frozen=True)
class VirtualNic:
    """One network card.

    :ivar kind: ``network`` (of a host), ``dvportgroup``, ``opaque``, or empty if it is connected to none.
    :ivar network: moref, key or id of it, as the device tells it; see ``network_name``.
    :ivar network_name: its name, where the device itself tells it.
    """

    key: int
    label: str
    mac: str
    model: NicModel | None
    device: str
    kind: str
    network: str
    network_name: str
    connected: bool


@dataclass(frozen=True)
class VirtualDrive:
    """One CD or DVD drive, and the image file in it."""

    name: str
    medium: str


@dataclass(frozen=True)
class Devices:
    """What of a VM's devices matters here.

    :ivar passed_through: kinds of devices of the host that are passed through to the guest.
    """

    disks: tuple[VirtualDisk, ...] = ()
    nics: tuple[VirtualNic, ...] = ()
    drives: tuple[VirtualDrive, ...] = ()
    tpm: bool = False
    video_bytes: int = 0
    passed_through: tuple[str, ...] = ()


def read_devices(listed: ET.Element | None) -> Devices:
    """The devices in a tree of ``config.hardware.device``."""
    devices = [] if listed is None else list(listed)
    controllers = dict(_controllers(devices))
    disks = [_disk(device, controllers) for device in devices if kind_of(device) == "VirtualDisk"]
    video = next((device for device in devices if kind_of(device) == "VirtualMachineVideoCard"), None)
    return Devices(
        disks=tuple(sorted(disks, key=_order)),
        nics=tuple(_nic(device) for device in devices if device.find("macAddress") is not None),
        drives=tuple(_drive(device, controllers) for device in devices if kind_of(device) == "VirtualCdrom"),
        tpm=any(kind_of(device) == "VirtualTPM" for device in devices),
        video_bytes=0 if video is None else _number(video, "videoRamSizeInKB") << 10,
        passed_through=tuple(kind_of(device) for device in devices if _passed_through(device)),
    )


def _passed_through(device: ET.Element) -> bool:
    """A device of the host. A part of a graphics card is none: a VM with it can have snapshots."""
    backing = device.find("backing")
    shared = backing is not None and kind_of(backing) == "VirtualPCIPassthroughVmiopBackingInfo"
    return kind_of(device) in _PASSED_THROUGH and not shared


def _controllers(devices: list[ET.Element]) -> Iterator[tuple[int, Controller]]:
    for device in devices:
        kind = CONTROLLERS.get(kind_of(device))
        if kind is not None:
            shared = device.findtext("sharedBus", "") not in _UNSHARED_BUS
            yield _number(device, "key"), Controller(kind, _number(device, "busNumber"), shared)


def place_name(kind: DiskController, bus: int, unit: int) -> str:
    """What a place on a controller is called: ``scsi0:1``."""
    return f"{_bus_name(kind)}{bus}:{unit}"


def _bus_name(kind: DiskController) -> str:
    return _BUS_NAMES.get(kind, "scsi")


def _order(disk: VirtualDisk) -> tuple[int, int, int, int]:
    """The order in which a VM without a boot order of its own looks for a disk that boots, as far as is known."""
    bus_name = "" if disk.controller is None else _bus_name(disk.controller)
    return (*_BOOT_RANKS, "").index(bus_name), disk.bus, disk.unit, disk.key


def _disk(device: ET.Element, controllers: dict[int, Controller]) -> VirtualDisk:
    key, unit = _number(device, "key"), _number(device, "unitNumber")
    controller = controllers.get(_number(device, "controllerKey"))
    backing = device.find("backing")
    if backing is None:
        backing = ET.Element("backing")
    file = backing.findtext("fileName", "")
    return VirtualDisk(
        name=f"disk{key}" if controller is None else place_name(controller.kind, controller.bus, unit),
        key=key,
        controller=None if controller is None else controller.kind,
        bus=0 if controller is None else controller.bus,
        unit=unit,
        label=device.findtext("deviceInfo/label", ""),
        capacity=_number(device, "capacityInBytes") or _number(device, "capacityInKB") << 10,
        file=file,
        base=base_of([file, *_parents(backing)]),
        change_id=backing.findtext("changeId", ""),
        datastore=backing.findtext("datastore", ""),
        mode=backing.findtext("diskMode", ""),
        thin=truth(backing.findtext("thinProvisioned")),
        eager=truth(backing.findtext("eagerlyScrub")),
        obstacle=_obstacle(backing, controller),
    )


def _parents(backing: ET.Element) -> Iterator[str]:
    parent = backing.find("parent")
    while parent is not None:
        yield parent.findtext("fileName", "")
        parent = parent.find("parent")


def base_of(chain: list[str]) -> str:
    """The file that a disk had before it had snapshots, by its chain from the present file to the first.

    A linked clone goes on in files of another VM, which many share: there the chain is left.
    """
    base = chain[0]
    for file in chain[1:]:
        if _directory(file) != _directory(base) and _stem(file) != _stem(base):
            break
        base = file
    # A delta as the end of a chain: the server has not told what is below it.
    return _DELTA.sub("", base)


def _directory(file: str) -> str:
    return file.rpartition("/")[0]


def _stem(file: str) -> str:
    return _DELTA.sub("", file.rpartition("/")[2])


def _obstacle(backing: ET.Element, controller: Controller | None) -> str:
    """Why a disk cannot be replicated: no snapshot takes it, other VMs write to it, or it cannot be read."""
    kind, mode = kind_of(backing), backing.findtext("diskMode", "")
    if controller is None:
        return "its controller is of an unknown kind"
    if mode.startswith("independent"):
        return f"it is independent ({mode}): no snapshot takes it"
    if mode not in _FREE_MODES:
        return f"its mode is {mode}: what is written to it does not last"
    if controller.shared:
        return "its controller shares the bus with other VMs"
    if backing.findtext("sharing", "sharingNone") != "sharingNone":
        return "it is shared with other VMs (multi-writer)"
    if backing.find("keyId") is not None:
        return "it is encrypted"
    if kind == _RDM:
        physical = backing.findtext("compatibilityMode", "") != "virtualMode"
        return "it is a raw device in physical compatibility mode: no snapshot takes it" if physical else ""
    if kind not in _FILE_BACKINGS:
        return f"its backing is of an unknown kind ({kind or 'none'})"
    return ""


def _nic(device: ET.Element) -> VirtualNic:
    backing = device.find("backing")
    kind, network = ("", "") if backing is None else _network(backing)
    return VirtualNic(
        key=_number(device, "key"),
        label=device.findtext("deviceInfo/label", ""),
        mac=device.findtext("macAddress", "").lower(),
        model=_NICS.get(kind_of(device)),
        device=kind_of(device),
        kind=kind,
        network=network,
        network_name="" if backing is None else backing.findtext("deviceName", ""),
        connected=truth(device.findtext("connectable/startConnected", "true")),
    )


def _network(backing: ET.Element) -> tuple[str, str]:
    match kind_of(backing):
        case "VirtualEthernetCardDistributedVirtualPortBackingInfo":
            return "dvportgroup", backing.findtext("port/portgroupKey", "")
        case "VirtualEthernetCardOpaqueNetworkBackingInfo":
            return "opaque", backing.findtext("opaqueNetworkId", "")
        case "VirtualEthernetCardNetworkBackingInfo":
            return "network", backing.findtext("network", "")
    return "", ""


def _drive(device: ET.Element, controllers: dict[int, Controller]) -> VirtualDrive:
    controller, key = controllers.get(_number(device, "controllerKey")), _number(device, "key")
    unit = _number(device, "unitNumber")
    name = f"cdrom{key}" if controller is None else place_name(controller.kind, controller.bus, unit)
    return VirtualDrive(name, device.findtext("backing/fileName", ""))


def _number(element: ET.Element, path: str) -> int:
    return int(element.findtext(path) or 0)
