"""The configuration and the devices of a replica VM on vSphere: one test per rule, on values alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from pyVmomi import vim

from understudy.errors import PlatformError, Refused, ReplicaError
from understudy.model.replica import ReplicaIdentity
from understudy.platforms.snapshot_target import SnapshotVmSpec
from understudy.platforms.vsphere.definition import (
    DiskController,
    Firmware,
    HardwareDisk,
    HardwareDrive,
    HardwareNic,
    NicModel,
    VmHardware,
    domain_definition,
)
from understudy.platforms.vsphere.devices import read_devices
from understudy.platforms.vsphere.replica_devices import (
    NEWBORN,
    Changes,
    Owned,
    Present,
    additions,
    cards,
    connections,
    removals,
    to_connect,
)
from understudy.platforms.vsphere.replica_mark import CONNECTED, DISKS, OWNER
from understudy.platforms.vsphere.replica_place import TargetNetwork
from understudy.platforms.vsphere.replica_vm import (
    check_disks,
    creation,
    difference,
    hardware_for,
    inventory_name,
    notices,
)
from understudy.units import GIB, KIB

IDENTITY = ReplicaIdentity("id-1", "web/1_replica", "job-1", "nightly", "web/1", "uuid-1",
                           "99999999-8888-4777-8666-555555555555")  # fmt: skip
HARDWARE = VmHardware(
    name="web", instance_uuid="5012aaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", bios_uuid="564d3ca2-9f01-1b22-8f2f-6a0a5f1e2d3c",
    version="vmx-19", guest_id="debian11_64Guest", memory_bytes=4 * GIB, vcpus=4, cores_per_socket=2,
    firmware=Firmware.EFI, secure_boot=True, tpm=True,
    disks=(HardwareDisk("scsi0:0", DiskController.PVSCSI, 0, 0, 10 * GIB, 2000),
           HardwareDisk("scsi0:3", DiskController.PVSCSI, 0, 3, GIB + 512, 2003),
           HardwareDisk("scsi1:0", DiskController.LSI_LOGIC_SAS, 1, 0, GIB, 2016),
           HardwareDisk("nvme0:1", DiskController.NVME, 0, 1, GIB, 33000),
           HardwareDisk("sata0:2", DiskController.SATA, 0, 2, GIB, 16000),
           HardwareDisk("ide1:1", DiskController.IDE, 1, 1, GIB, 3003)),
    nics=(HardwareNic("00:50:56:AA:bb:cc", NicModel.VMXNET3, "Production", True, 4000),
          HardwareNic("00:50:56:00:00:02", NicModel.E1000E, "Elsewhere", True, 4001),
          HardwareNic("00:50:56:00:00:03", NicModel.SRIOV, "Segment", False, 4002)),
    drives=(HardwareDrive("sata0:0", "[ds1] install.iso"),), annotation="The web server.",
    facts=json.dumps({"cpu_hot_add": True, "memory_hot_add": False}),
)  # fmt: skip
SIZES = {disk.name: disk.capacity for disk in HARDWARE.disks}
LAN = TargetNetwork("Backup", vim.Network("network-1"))
PORTS = TargetNetwork("Production", vim.dvs.DistributedVirtualPortgroup("dvportgroup-1"), "50 11 22", "dvportgroup-1")
OPAQUE = TargetNetwork("Segment", vim.OpaqueNetwork("network-o9"), opaque=("nsx.LogicalSwitch", "switch-9"))
NETWORKS = {network.name: network for network in (LAN, PORTS, OPAQUE)}
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
HOME = "[ds1] web_replica"
NOTHING = Owned((), (), HOME)


def spec(hardware: VmHardware = HARDWARE, anew: frozenset[str] = frozenset(SIZES)) -> SnapshotVmSpec:
    return SnapshotVmSpec(IDENTITY, domain_definition(hardware), SIZES, anew, "ds1")


def made(changes: Changes) -> list[Any]:
    assert all(change.operation == "add" for change in changes.changes)
    return [change.device for change in changes.changes]


def present(*disks: tuple[str, int, str], kind: str = "ParaVirtualSCSIController") -> Present:
    """A VM with a SCSI controller, with (name, key, file) of its disks on it, and a card on the LAN."""
    controller = getattr(vim.vm.device, kind)(key=1000, busNumber=0, sharedBus="noSharing")
    card = vim.vm.device.VirtualVmxnet3(key=4000, macAddress="00:50:56:aa:bb:cc")
    raw: dict[int, Any] = {1000: controller, 4000: card}
    listed = [f'<d xsi:type="{kind}"><key>1000</key><busNumber>0</busNumber><sharedBus>noSharing</sharedBus></d>',
              '<d xsi:type="VirtualVmxnet3"><key>4000</key><macAddress>00:50:56:aa:bb:cc</macAddress><backing '
              'xsi:type="VirtualEthernetCardNetworkBackingInfo"><network>network-1</network></backing><connectable>'
              "<startConnected>true</startConnected></connectable></d>"]  # fmt: skip
    for name, key, file in disks:
        raw[key] = vim.vm.device.VirtualDisk(key=key, controllerKey=1000)
        listed.append(f'<d xsi:type="VirtualDisk"><key>{key}</key><controllerKey>1000</controllerKey>'
                      f"<unitNumber>{name[-1]}</unitNumber><capacityInBytes>{GIB}</capacityInBytes>"
                      f'<backing xsi:type="VirtualDiskFlatVer2BackingInfo"><fileName>{file}</fileName></backing></d>')
    return Present(read_devices(ET.fromstring(f"<val {XSI}>{''.join(listed)}</val>")), raw)


def test_disks_of_a_new_vm_are_thin_and_on_controllers_and_places_as_at_the_source() -> None:
    devices = made(additions(NEWBORN, HARDWARE, SIZES, vim.Datastore("datastore-1")))
    kinds = [type(device).__name__.rpartition(".")[2] for device in devices]
    assert kinds == ["ParaVirtualSCSIController", "VirtualDisk", "VirtualDisk", "VirtualLsiLogicSASController",
                     "VirtualDisk", "VirtualNVMEController", "VirtualDisk", "VirtualAHCIController", "VirtualDisk",
                     "VirtualDisk"]  # fmt: skip
    controllers = {device.key: device for device in devices if not isinstance(device, vim.vm.device.VirtualDisk)}
    disks: list[Any] = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    assert [(disk.unitNumber, disk.capacityInBytes) for disk in disks] == [
        (disk.unit, disk.capacity) for disk in HARDWARE.disks]  # fmt: skip
    assert disks[1].capacityInKB == GIB // KIB + 1
    assert [disk.controllerKey in controllers for disk in disks] == [True] * 5 + [False]
    assert disks[5].controllerKey == 201  # IDE controllers are there from birth
    assert {disk.backing.thinProvisioned for disk in disks} == {True}
    keys = [device.key for device in devices]
    assert len(set(keys)) == len(keys)
    assert max(keys) < 0


def test_cards_are_on_networks_of_the_same_name_and_connected_to_none() -> None:
    found = cards(NEWBORN, HARDWARE, NETWORKS)
    first, second, third = made(found)
    assert {card.connectable.startConnected for card in (first, second, third)} == {False}
    assert [card.macAddress for card in (first, second, third)] == [nic.mac.lower() for nic in HARDWARE.nics]
    kinds = [type(card).__name__.rpartition(".")[2] for card in (first, second, third)]
    assert kinds == ["VirtualVmxnet3", "VirtualE1000e", "VirtualVmxnet3"]
    assert (first.backing.port.switchUuid, first.backing.port.portgroupKey) == ("50 11 22", "dvportgroup-1")
    assert (second.backing.deviceName, second.backing.network._moId) == ("Backup", "network-1")
    assert (third.backing.opaqueNetworkType, third.backing.opaqueNetworkId) == OPAQUE.opaque
    assert len(found.warnings) == 2
    assert "Elsewhere" in found.warnings[0]
    assert "sriov" in found.warnings[1]
    # Never one that is on some network only because it has to be on one, and none that the source has not connected.
    assert to_connect(HARDWARE, NETWORKS) == {"00:50:56:aa:bb:cc"}


def test_without_any_network_there_is_no_card() -> None:
    found = cards(NEWBORN, HARDWARE, {})
    assert found.changes == ()
    assert all("no network" in text or "sriov" in text for text in found.warnings)


def test_a_card_on_another_network_or_connected_is_put_right_and_others_are_taken_off() -> None:
    there = present()
    (change,) = cards(there, replace(HARDWARE, nics=HARDWARE.nics[:1]), NETWORKS).changes
    assert (change.operation, change.device.key, change.device.connectable.startConnected) == ("edit", 4000, False)
    assert change.device.backing.port.portgroupKey == "dvportgroup-1"
    (change,) = cards(present(), replace(HARDWARE, nics=()), NETWORKS).changes
    assert (change.operation, change.device.key) == ("remove", 4000)
    other = replace(HARDWARE.nics[0], model=NicModel.E1000)
    old, new = cards(present(), replace(HARDWARE, nics=(other,)), NETWORKS).changes
    assert (old.operation, new.operation) == ("remove", "add")
    assert connections(present(), {"00:50:56:aa:bb:cc"}) == ()
    (change,) = connections(present(), set())
    assert not change.device.connectable.startConnected


def test_the_file_of_a_disk_is_deleted_only_if_no_snapshot_has_it_and_it_lies_with_the_vm() -> None:
    there = present(("scsi0:0", 2000, f"{HOME}/a.vmdk"), ("scsi0:1", 2001, f"{HOME}/b-000002.vmdk"),
                    ("scsi0:2", 2002, "[ds1] database/c.vmdk"), ("scsi0:3", 2003, f"{HOME}/d.vmdk"))  # fmt: skip
    owned = Owned({"scsi0:0", "scsi0:1", "scsi0:2"}, {f"{HOME}/b.vmdk"}, HOME)
    found = removals(there, HARDWARE, set(), owned)
    assert {change.device.key: change.fileOperation for change in found.changes} == {
        2000: "destroy", 2001: None, 2002: None, 2003: None}  # fmt: skip
    assert len(found.warnings) == 1
    assert f"{HOME}/d.vmdk" in found.warnings[0]
    found = removals(there, HARDWARE, {"scsi0:0", "scsi0:1", "scsi0:3"}, owned)
    assert [change.device.key for change in found.changes] == [2002]
    assert found.warnings == ()


def test_a_controller_of_another_kind_is_exchanged_when_all_of_its_disks_are_new() -> None:
    there = present(("scsi0:0", 2000, f"{HOME}/a.vmdk"), kind="VirtualLsiLogicController")
    removed = removals(there, HARDWARE, set(), NOTHING).changes
    assert [change.device.key for change in removed] == [2000, 1000]
    kept = removals(there, HARDWARE, {"scsi0:0"}, NOTHING).changes
    assert kept == ()
    added = additions(there, HARDWARE, {"scsi0:0": GIB, "scsi0:3": GIB}, None)
    assert [change.device.controllerKey for change in added.changes] == [1000]
    assert len(added.warnings) == 1
    assert "lsilogic" in added.warnings[0]


def test_the_vm_has_its_mark_from_birth_and_the_sources_hardware() -> None:
    found = creation(spec(), HARDWARE, Changes(), {"00:50:56:aa:bb:cc"}, "ds1")
    assert {option.key: option.value for option in found.extraConfig} == {
        OWNER: "id-1", CONNECTED: "00:50:56:aa:bb:cc", DISKS: ",".join(sorted(SIZES))}  # fmt: skip
    assert (found.name, found.instanceUuid, found.uuid) == (
        "web%2f1_replica", IDENTITY.domain_uuid, HARDWARE.bios_uuid)  # fmt: skip
    assert (found.memoryMB, found.numCPUs, found.numCoresPerSocket, found.version) == (4096, 4, 2, "vmx-19")
    assert (found.firmware, found.bootOptions.efiSecureBootEnabled) == ("efi", True)
    assert (found.changeTrackingEnabled, found.cpuHotAddEnabled, found.memoryHotAddEnabled) == (False, True, None)
    assert found.files.vmPathName == "[ds1]"
    assert found.annotation.startswith("Replica of VM 'web/1'")
    assert found.annotation.endswith("The web server.")
    told = list(notices(HARDWARE))
    assert len(told) == 3
    assert any("TPM" in text for text in told)
    assert any("install.iso" in text for text in told)


def test_only_what_differs_is_changed() -> None:
    annotation = creation(spec(), HARDWARE, Changes(), (), "ds1").annotation
    same = replace(HARDWARE, name="web%2f1_replica", annotation=annotation)
    assert difference(spec(), HARDWARE, same, ({}, {}), {}, tracked=False) is None
    marked = ({OWNER: "id-1"}, {OWNER: "id-1", CONNECTED: "aa"})
    found = difference(spec(), replace(HARDWARE, vcpus=8), same, marked, {}, tracked=True)
    assert found is not None
    assert (found.numCPUs, found.memoryMB, found.changeTrackingEnabled, found.bootOptions) == (8, None, False, None)
    assert {option.key: option.value for option in found.extraConfig} == {OWNER: "id-1", CONNECTED: "aa"}
    boots = replace(HARDWARE, boot_disk="scsi1:0")
    found = difference(spec(), boots, same, ({}, {}), {"scsi1:0": 2016}, tracked=False)
    assert found is not None
    assert [item.deviceKey for item in found.bootOptions.bootOrder] == [2016]
    assert found.bootOptions.efiSecureBootEnabled
    assert any("never changed" in text for text in notices(HARDWARE, replace(same, version="vmx-13")))


@pytest.mark.parametrize(("name", "wanted"), [
    ("web", "web"), ("a/b\\c", "a%2fb%5cc"), ("100%", "100%25"), ("a%2fb", "a%2fb"), ("50%2", "50%252"),
])  # fmt: skip
def test_names_are_escaped_once(name: str, wanted: str) -> None:
    assert inventory_name(name) == wanted
    assert inventory_name(wanted) == wanted


def test_sources_of_other_platforms_and_definitions_without_a_disk_are_refused() -> None:
    assert hardware_for(spec()) == HARDWARE
    with pytest.raises(Refused, match="not of VMware vSphere"):
        hardware_for(replace(spec(), definition="<domain/>"))
    with pytest.raises(ReplicaError, match="nvme9:9"):
        hardware_for(replace(spec(), disks={"nvme9:9": 1}))


def test_disks_that_are_written_on_are_there_and_of_their_size() -> None:
    one = replace(spec(), disks={"scsi0:0": GIB}, anew=frozenset())
    check_disks(one, {"scsi0:0": GIB}, whole=True)
    for sizes, words in (({}, "is gone"), ({"scsi0:0": GIB - 512}, "bytes")):
        with pytest.raises(PlatformError, match=words):
            check_disks(one, sizes, whole=False)
        check_disks(replace(one, anew=frozenset({"scsi0:0"})), sizes, whole=False)
        with pytest.raises(PlatformError, match=words):
            check_disks(replace(one, anew=frozenset({"scsi0:0"})), sizes, whole=True)
