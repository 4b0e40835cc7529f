"""The hardware of a VM, complete: what it takes to build the VM again, here or on another platform."""

from __future__ import annotations

import json
from collections.abc import Mapping

from understudy.platforms.vsphere.definition import (
    Firmware,
    HardwareDisk,
    HardwareDrive,
    HardwareNic,
    NicModel,
    VmHardware,
)
from understudy.platforms.vsphere.devices import Devices, VirtualDisk, VirtualNic, read_devices
from understudy.platforms.vsphere.inventory import LISTED, network_name, vm_uuid
from understudy.platforms.vsphere.networks import Network
from understudy.platforms.vsphere.trees import Tree, truth

#: What the description of one VM needs.
DESCRIBED = (
    *LISTED, "recentTask", "config.annotation", "config.bootOptions", "config.guestId", "config.guestFullName",
    "config.hardware.numCoresPerSocket", "config.cpuHotAddEnabled", "config.memoryHotAddEnabled",
    "config.nestedHVEnabled",
)  # fmt: skip
# Every kind of card that VMware ever had is known here. One that comes later is told to a new host as the most common.
_FALLBACK_NIC = NicModel.VMXNET3


def vm_hardware(tree: Tree, known: Mapping[str, Network], path: str) -> VmHardware:
    """The hardware in a tree with :data:`DESCRIBED`, without disks whose controller is unknown.

    :param known: networks, as :func:`understudy.platforms.vsphere.networks.networks` gives them.
    :param path: the VM's inventory path.
    """
    devices = read_devices(tree.values.get("config.hardware.device"))
    return VmHardware(
        name=tree.text("name"),
        instance_uuid=vm_uuid(tree),
        bios_uuid=tree.text("config.uuid") or vm_uuid(tree),
        version=tree.text("config.version"),
        guest_id=tree.text("config.guestId"),
        memory_bytes=tree.number("config.hardware.memoryMB") << 20,
        vcpus=tree.number("config.hardware.numCPU"),
        cores_per_socket=max(1, tree.number("config.hardware.numCoresPerSocket")),
        firmware=Firmware.EFI if tree.text("config.firmware") == "efi" else Firmware.BIOS,
        secure_boot=_secure_boot(tree),
        tpm=devices.tpm,
        disks=tuple(disk for listed in devices.disks if (disk := _disk(listed)) is not None),
        nics=tuple(_nic(nic, known) for nic in devices.nics),
        drives=tuple(HardwareDrive(drive.name, drive.medium) for drive in devices.drives),
        boot_disk=_boot_disk(tree, devices),
        video_bytes=devices.video_bytes,
        annotation=tree.text("config.annotation"),
        facts=json.dumps(_facts(tree, devices, path), sort_keys=True),
    )


def _disk(disk: VirtualDisk) -> HardwareDisk | None:
    if disk.controller is None:
        return None
    return HardwareDisk(disk.name, disk.controller, disk.bus, disk.unit, disk.capacity, disk.key, disk.label)


def _nic(nic: VirtualNic, known: Mapping[str, Network]) -> HardwareNic:
    model = nic.model or _FALLBACK_NIC
    return HardwareNic(nic.mac, model, network_name(nic, known), nic.connected, nic.key, nic.label)


def _secure_boot(tree: Tree) -> bool:
    options = tree.values.get("config.bootOptions")
    return options is not None and truth(options.findtext("efiSecureBootEnabled"))


def _boot_disk(tree: Tree, devices: Devices) -> str:
    """The first disk in the VM's boot order, if it has one."""
    options = tree.values.get("config.bootOptions")
    keys = [] if options is None else [item.findtext("deviceKey") for item in options.iterfind("bootOrder")]
    names = {str(disk.key): disk.name for disk in devices.disks if disk.controller is not None}
    return next((names[key] for key in keys if key in names), "")


def _facts(tree: Tree, devices: Devices, path: str) -> dict[str, object]:
    """What only a vSphere target can use."""
    return {
        "path": path,
        "guest": tree.text("config.guestFullName"),
        "cpu_hot_add": tree.flag("config.cpuHotAddEnabled"),
        "memory_hot_add": tree.flag("config.memoryHotAddEnabled"),
        "nested_virtualisation": tree.flag("config.nestedHVEnabled"),
        "disks": {
            disk.name: {"file": disk.base, "mode": disk.mode, "thin": disk.thin, "eager": disk.eager}
            for disk in devices.disks
        },
        "nics": {nic.mac: nic.device for nic in devices.nics},
    }
