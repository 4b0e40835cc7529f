"""VMs and their hardware, from trees as a server writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from understudy.errors import NotFound
from understudy.model.inventory import VmState
from understudy.platforms.vsphere import trees
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.hardware import vm_hardware
from understudy.platforms.vsphere.inventory import move_under_way, read_vm
from understudy.platforms.vsphere.networks import Network
from understudy.platforms.vsphere.trees import Tree

XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
UUID, BIOS = "50010203-0405-0607-0809-0a0b0c0d0e0f", "42010203-0405-0607-0809-0a0b0c0d0e0f"
DEVICES = f"""<val {XSI}>
<VirtualDevice xsi:type="ParaVirtualSCSIController"><key>1000</key><busNumber>0</busNumber></VirtualDevice>
<VirtualDevice xsi:type="VirtualDisk"><key>2000</key><controllerKey>1000</controllerKey><unitNumber>0</unitNumber>
<capacityInBytes>1024</capacityInBytes><backing xsi:type="VirtualDiskFlatVer2BackingInfo">
<fileName>[ds] a/a.vmdk</fileName><diskMode>persistent</diskMode></backing></VirtualDevice>
<VirtualDevice xsi:type="VirtualDisk"><key>2001</key><controllerKey>1000</controllerKey><unitNumber>1</unitNumber>
<capacityInBytes>2048</capacityInBytes><backing xsi:type="VirtualDiskFlatVer2BackingInfo">
<fileName>[ds] a/b.vmdk</fileName><diskMode>independent_persistent</diskMode></backing></VirtualDevice>
<VirtualDevice xsi:type="VirtualVmxnet3"><key>4000</key><macAddress>00:50:56:00:00:01</macAddress>
<backing xsi:type="VirtualEthernetCardDistributedVirtualPortBackingInfo">
<port><portgroupKey>dvportgroup-3</portgroupKey></port></backing></VirtualDevice></val>"""
BOOT = ("<val><efiSecureBootEnabled>true</efiSecureBootEnabled><bootOrder/><bootOrder><deviceKey>2001</deviceKey>"
        "</bootOrder></val>")  # fmt: skip
NETWORKS = {"dvportgroup-3": Network("dvportgroup-3", "Production", "dvportgroup")}
PLAIN = {
    "name": "web", "config.instanceUuid": UUID, "config.uuid": BIOS, "config.firmware": "efi",
    "config.version": "vmx-19",
    "config.hardware.memoryMB": "2048", "config.hardware.numCPU": "4", "config.hardware.numCoresPerSocket": "2",
    "runtime.powerState": "poweredOn", "runtime.bootTime": "2026-01-02T03:04:05Z", "config.guestId": "debian11_64Guest",
    "runtime.connectionState": "connected", "capability.changeTrackingSupported": "true",
}  # fmt: skip


def tree(unreadable: Mapping[str, str] | None = None, without: str = "", **values: Any) -> Tree:
    texts = {**PLAIN, **{name.replace("__", "."): text for name, text in values.items()}}
    found = {path: ET.fromstring(f"<val>{text}</val>") for path, text in texts.items()}
    found |= {"config.hardware.device": ET.fromstring(DEVICES), "config.bootOptions": ET.fromstring(BOOT)}
    found.pop(without, None)
    return Tree("VirtualMachine", "vm-1", found, unreadable or {})


def test_a_vm_as_the_server_tells_it() -> None:
    vm = read_vm(tree(), NETWORKS)
    assert (vm.name, vm.uuid, vm.state, vm.firmware) == ("web", UUID, VmState.RUNNING, "uefi")
    assert (vm.memory_bytes, vm.vcpus, vm.machine) == (2 << 30, 4, "vmx-19")
    assert [(disk.name, disk.tracked, bool(disk.obstacle)) for disk in vm.disks] == [
        ("scsi0:0", True, False), ("scsi0:1", False, True),
    ]  # fmt: skip
    assert [(nic.mac, nic.kind, nic.source, nic.model) for nic in vm.nics] == [
        ("00:50:56:00:00:01", "dvportgroup", "Production", "vmxnet3")
    ]
    assert (vm.obstacle, vm.run) == ("", "2026-01-02T03:04:05Z")


def test_a_vm_that_was_started_again_has_another_run_and_one_that_is_off_has_none() -> None:
    again = read_vm(tree(runtime__bootTime="2026-01-03T00:00:00Z"), NETWORKS)
    assert again.run != read_vm(tree(), NETWORKS).run
    off = read_vm(tree(runtime__powerState="poweredOff", runtime__cleanPowerOff="true"), NETWORKS)
    assert (off.run, off.clean_shutdown) == ("", True)
    assert not read_vm(tree(runtime__powerState="poweredOff"), NETWORKS).clean_shutdown


def test_without_tracking_on_the_server_no_disk_is_tracked() -> None:
    vm = read_vm(tree(capability__changeTrackingSupported="false"), NETWORKS)
    assert not any(disk.tracked for disk in vm.disks)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"config__template": "true"}, "it is a template"),
        ({"runtime__connectionState": "disconnected"}, "it is disconnected"),
        ({"runtime__faultToleranceState": "running"}, "Fault Tolerance"),
    ],
)
def test_what_keeps_a_vm_from_replication(values: dict[str, Any], words: str) -> None:
    assert words in read_vm(tree(**values), NETWORKS).obstacle


def test_a_vm_whose_configuration_is_not_told_is_never_taken_for_one_without_disks() -> None:
    hidden = read_vm(tree({"config.hardware.device": "NoPermission"}, without="config.hardware.device"), NETWORKS)
    assert hidden.obstacle == "the server does not tell its config.hardware.device (NoPermission)"
    missing = read_vm(tree(without="config.hardware.device"), NETWORKS)
    assert missing.obstacle == "the server does not tell its configuration"


def test_the_hardware_is_complete() -> None:
    hardware = vm_hardware(tree(), NETWORKS, "DC/vm/web")
    assert (hardware.instance_uuid, hardware.bios_uuid, hardware.guest_id) == (UUID, BIOS, "debian11_64Guest")
    assert (hardware.vcpus, hardware.cores_per_socket, hardware.firmware.value) == (4, 2, "efi")
    assert (hardware.secure_boot, hardware.tpm, hardware.boot_disk) == (True, False, "scsi0:1")
    assert [(disk.name, disk.capacity, disk.key) for disk in hardware.disks] == [
        ("scsi0:0", 1024, 2000), ("scsi0:1", 2048, 2001),
    ]  # fmt: skip
    assert [(nic.network, nic.connected) for nic in hardware.nics] == [("Production", True)]
    assert json.loads(hardware.facts)["disks"]["scsi0:1"]["mode"] == "independent_persistent"


@pytest.mark.parametrize(
    ("description", "state", "moved"),
    [
        ("VirtualMachine.relocate", "running", True),
        ("Drm.ExecuteVMotionLRO", "queued", True),
        ("VirtualMachine.migrate", "success", False),
        ("VirtualMachine.createSnapshot", "running", False),
        ("", "", False),
    ],
)
def test_a_vm_that_is_being_moved_is_left_alone(
    description: str, state: str, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(_connection: Any, _task: Any, _paths: Any) -> Tree:
        if not description:
            raise NotFound("read Task task-9", "the server has it no more")
        texts = {"info.descriptionId": description, "info.state": state}
        return Tree("Task", "task-9", {path: ET.fromstring(f"<val>{text}</val>") for path, text in texts.items()})

    monkeypatch.setattr(trees, "of", of)
    server = cast(Connection, SimpleNamespace(managed=lambda kind, moref: (kind, moref)))
    recent = ET.fromstring("<val><ManagedObjectReference>task-9</ManagedObjectReference></val>")
    seen = Tree("VirtualMachine", "vm-1", {"recentTask": recent})
    assert bool(move_under_way(server, seen)) == moved
