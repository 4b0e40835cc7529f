"""What a revert changes in a VM's configuration besides the contents of its disks."""

from __future__ import annotations

from typing import Any

from pyVmomi import SoapAdapter, vim

#: Devices that a revert brings back; the simulator does not let go of the others.
_BROUGHT_BACK = (vim.vm.device.VirtualEthernetCard, vim.vm.device.VirtualDisk)


def restoring(now: dict[str, Any], kept: dict[str, Any]) -> Any:
    """The reconfiguration that gives a VM back the network cards, disks, CPUs, memory and tracking of a snapshot.

    :param now: the VM's `config.hardware` and `config.changeTrackingEnabled`.
    :param kept: the same of the snapshot; its disks have the file that the VM is to write to.
    """
    hardware = kept["config.hardware"]
    return vim.vm.ConfigSpec(
        deviceChange=_changes(_devices(now["config.hardware"].device), _devices(hardware.device)),
        numCPUs=hardware.numCPU,
        memoryMB=hardware.memoryMB,
        changeTrackingEnabled=bool(kept.get("config.changeTrackingEnabled")),
    )


def _changes(now: dict[int, Any], kept: dict[int, Any]) -> list[Any]:
    change = vim.vm.device.VirtualDeviceSpec
    removed = [change(operation="remove", device=now[key]) for key in now.keys() - kept.keys()]
    added = [change(operation="add", device=kept[key]) for key in kept.keys() - now.keys()]
    edited = [
        change(operation="edit", device=kept[key])
        for key in kept.keys() & now.keys()
        if SoapAdapter.SerializeToStr(kept[key]) != SoapAdapter.SerializeToStr(now[key])
    ]
    return removed + added + edited


def _devices(devices: list[Any]) -> dict[int, Any]:
    return {device.key: device for device in devices if isinstance(device, _BROUGHT_BACK)}
