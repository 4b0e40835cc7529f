"""Which changes of a VM's disks an ESXi host refuses, that the simulator would make."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from pyVmomi import vim

from tests.vsphere import soap
from tests.vsphere.machines import Disk, Machine

_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"


def refusal(machine: Machine, request: soap.Request) -> Any:
    """The fault with which the host refuses; None if it does what it is asked."""
    for index, change in enumerate(request.all("spec", "deviceChange")):
        disk = machine.disks.get(int(soap.text(change, "device", "key") or 0))
        if disk is not None and soap.text(change, "operation") == "edit":
            fault = _edit_refusal(machine, disk, change, index)
            if fault is not None:
                return fault
    return None


def makes_files(request: soap.Request) -> bool:
    """Whether the change makes a new disk, which needs space."""
    return any(soap.text(change, "fileOperation") == "create" for change in request.all("spec", "deviceChange"))


def _edit_refusal(machine: Machine, disk: Disk, change: ET.Element, index: int) -> Any:
    path = soap.text(change, "device", "backing", "fileName")
    if path and path != disk.chain.live.path:
        return vim.fault.InvalidDeviceSpec(deviceIndex=index, property="backing", msg="The disk has another file.")
    capacity = int(soap.text(change, "device", "capacityInBytes") or 0)
    if not capacity:
        capacity = int(soap.text(change, "device", "capacityInKB") or 0) * 1024
    if capacity and capacity < disk.capacity:
        return vim.fault.InvalidDeviceSpec(deviceIndex=index, property="capacityInKB", msg="A disk does not shrink.")
    if capacity > disk.capacity and machine.snapshots:
        return vim.fault.InvalidDeviceOperation(
            badOp="edit", deviceIndex=index, msg="A disk with snapshots does not grow."
        )  # fmt: skip
    return None
