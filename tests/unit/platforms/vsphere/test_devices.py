"""Devices of VMs, read from trees as a server writes them."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from understudy.platforms.vsphere.definition import DiskController, NicModel
from understudy.platforms.vsphere.devices import Devices, VirtualDisk, base_of, read_devices

XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
FLAT = "VirtualDiskFlatVer2BackingInfo"


def read(*devices: str) -> Devices:
    return read_devices(ET.fromstring(f"<val {XSI}>{''.join(devices)}</val>"))


def device(kind: str, body: str) -> str:
    return f'<VirtualDevice xsi:type="{kind}">{body}</VirtualDevice>'


def controller(kind: str, key: int, bus: int, shared: str = "noSharing") -> str:
    return device(kind, f"<key>{key}</key><busNumber>{bus}</busNumber><sharedBus>{shared}</sharedBus>")


def disk(key: int, on: int, unit: int, backing: str = "", kind: str = FLAT, size: int = 1 << 30) -> str:
    backing = backing or "<fileName>[ds1] web/web.vmdk</fileName><diskMode>persistent</diskMode>"
    return device("VirtualDisk", f"<key>{key}</key><deviceInfo><label>Hard disk 1</label></deviceInfo>"
                  f'<backing xsi:type="{kind}">{backing}</backing><controllerKey>{on}</controllerKey>'
                  f"<unitNumber>{unit}</unitNumber><capacityInKB>1</capacityInKB>"
                  f"<capacityInBytes>{size}</capacityInBytes>")  # fmt: skip


def one(backing: str, kind: str = FLAT, shared: str = "noSharing") -> VirtualDisk:
    return read(controller("ParaVirtualSCSIController", 1000, 0, shared), disk(2000, 1000, 0, backing, kind)).disks[0]


def test_disks_are_named_by_controller_and_place() -> None:
    found = read(
        disk(2065, 1001, 15), disk(16000, 15000, 0), disk(31000, 31000, 2), disk(3001, 201, 1), disk(2000, 1000, 0),
        controller("ParaVirtualSCSIController", 1000, 0), controller("VirtualLsiLogicSASController", 1001, 1),
        controller("VirtualAHCIController", 15000, 3), controller("VirtualNVMEController", 31000, 0),
        controller("VirtualIDEController", 201, 1),
    )  # fmt: skip
    assert {item.key: item.name for item in found.disks} == {
        2065: "scsi1:15", 16000: "sata3:0", 31000: "nvme0:2", 3001: "ide1:1", 2000: "scsi0:0",
    }  # fmt: skip
    assert not any(item.obstacle for item in found.disks)
    assert [item.name for item in found.disks] == ["scsi0:0", "scsi1:15", "ide1:1", "sata3:0", "nvme0:2"]
    assert len({item.name for item in found.disks}) == 5


def test_what_a_disk_tells() -> None:
    found = one("<fileName>[ds1] web/web.vmdk</fileName><datastore type='Datastore'>datastore-7</datastore>"
                "<diskMode>persistent</diskMode><thinProvisioned>true</thinProvisioned>"
                "<changeId>52 3a 00/4</changeId>")  # fmt: skip
    assert (found.capacity, found.label, found.thin, found.eager) == (1 << 30, "Hard disk 1", True, False)
    assert (found.file, found.datastore, found.change_id) == ("[ds1] web/web.vmdk", "datastore-7", "52 3a 00/4")
    assert found.controller is DiskController.PVSCSI


def test_a_capacity_in_bytes_is_exact_and_one_in_kilobytes_is_taken_without_it() -> None:
    scsi = controller("ParaVirtualSCSIController", 1000, 0)
    assert read(scsi, disk(2000, 1000, 0, size=1536)).disks[0].capacity == 1536
    assert read(scsi, disk(2000, 1000, 0, size=0)).disks[0].capacity == 1024


@pytest.mark.parametrize(
    ("backing", "kind", "words"),
    [
        ("<diskMode>independent_persistent</diskMode>", FLAT, "independent"),
        ("<diskMode>independent_nonpersistent</diskMode>", FLAT, "independent"),
        ("<diskMode>nonpersistent</diskMode>", FLAT, "does not last"),
        ("<diskMode>persistent</diskMode><sharing>sharingMultiWriter</sharing>", FLAT, "multi-writer"),
        ("<diskMode>persistent</diskMode><keyId><keyId>k</keyId></keyId>", FLAT, "encrypted"),
        ("<compatibilityMode>physicalMode</compatibilityMode>", "VirtualDiskRawDiskMappingVer1BackingInfo",
         "physical compatibility mode"),
        ("<diskMode>persistent</diskMode>", "VirtualDiskPartitionedRawDiskVer2BackingInfo", "unknown kind"),
        ("<diskMode>persistent</diskMode>", "VirtualDiskOfTheFutureBackingInfo", "OfTheFuture"),
    ],
)  # fmt: skip
def test_a_disk_that_cannot_be_replicated_says_why(backing: str, kind: str, words: str) -> None:
    assert words in one(backing, kind).obstacle


@pytest.mark.parametrize(
    ("backing", "kind"),
    [
        ("<diskMode>persistent</diskMode><sharing>sharingNone</sharing>", FLAT),
        ("<diskMode>persistent</diskMode>", "VirtualDiskSeSparseBackingInfo"),
        ("<diskMode>persistent</diskMode><compatibilityMode>virtualMode</compatibilityMode>",
         "VirtualDiskRawDiskMappingVer1BackingInfo"),
    ],
)  # fmt: skip
def test_a_disk_that_can_be_replicated_has_no_obstacle(backing: str, kind: str) -> None:
    assert one(backing, kind).obstacle == ""


@pytest.mark.parametrize("shared", ["virtualSharing", "physicalSharing"])
def test_a_shared_bus_is_an_obstacle_for_each_of_its_disks(shared: str) -> None:
    assert "shares the bus" in one("<diskMode>persistent</diskMode>", shared=shared).obstacle


def test_a_disk_on_an_unknown_controller_is_listed_with_an_obstacle() -> None:
    (found,) = read(device("VirtualFancyController", "<key>5</key><busNumber>0</busNumber>"), disk(2000, 5, 0)).disks
    assert (found.name, found.controller) == ("disk2000", None)
    assert "controller is of an unknown kind" in found.obstacle


def test_a_disk_without_a_backing_is_listed_with_an_obstacle() -> None:
    found = read(controller("ParaVirtualSCSIController", 1000, 0),
                 device("VirtualDisk", "<key>2000</key><controllerKey>1000</controllerKey><unitNumber>0</unitNumber>"))
    assert found.disks[0].obstacle == "its backing is of an unknown kind (none)"


def test_a_disk_with_snapshots_keeps_the_name_of_its_base() -> None:
    chain = ("<fileName>[ds1] web/web-000002.vmdk</fileName><diskMode>persistent</diskMode><parent>"
             "<fileName>[ds1] web/web-000001.vmdk</fileName><parent><fileName>[ds1] web/web.vmdk</fileName></parent>"
             "</parent>")  # fmt: skip
    found = one(chain)
    assert (found.file, found.base) == ("[ds1] web/web-000002.vmdk", "[ds1] web/web.vmdk")


@pytest.mark.parametrize(
    ("chain", "base"),
    [
        (["[ds1] web/web.vmdk"], "[ds1] web/web.vmdk"),
        (["[ds1] web/web-000007.vmdk"], "[ds1] web/web.vmdk"),
        (["[fast] delta/web-000002.vmdk", "[fast] delta/web-000001.vmdk", "[ds1] web/web.vmdk"], "[ds1] web/web.vmdk"),
        (["[ds1] clone/clone.vmdk", "[ds1] master/master-000001.vmdk", "[ds1] master/master.vmdk"],
         "[ds1] clone/clone.vmdk"),
        (["[ds1] clone/clone-000001.vmdk", "[ds1] clone/clone.vmdk", "[ds1] master/master.vmdk"],
         "[ds1] clone/clone.vmdk"),
        (["[ds1] web/disk-2021.vmdk"], "[ds1] web/disk-2021.vmdk"),
        ([""], ""),
    ],
)  # fmt: skip
def test_the_base_of_a_chain(chain: list[str], base: str) -> None:
    assert base_of(chain) == base


def test_network_cards_tell_what_they_are_connected_to() -> None:
    def card(kind: str, backing: str, body: str) -> str:
        return device(kind, f'<key>4000</key><backing xsi:type="{backing}">{body}</backing>'
                      "<connectable><startConnected>false</startConnected></connectable>"
                      "<macAddress>00:50:56:AA:BB:CC</macAddress>")  # fmt: skip

    found = read(
        card("VirtualVmxnet3", "VirtualEthernetCardNetworkBackingInfo",
             "<deviceName>VM Network</deviceName><network>network-7</network>"),
        card("VirtualE1000e", "VirtualEthernetCardDistributedVirtualPortBackingInfo",
             "<port><portgroupKey>dvportgroup-9</portgroupKey></port>"),
        card("VirtualSriovEthernetCard", "VirtualEthernetCardOpaqueNetworkBackingInfo",
             "<opaqueNetworkId>x-1</opaqueNetworkId>"),
        card("VirtualNovelCard", "VirtualEthernetCardRemoteDeviceBackingInfo", "<deviceName>eth0</deviceName>"),
    ).nics  # fmt: skip
    assert [(nic.kind, nic.network, nic.network_name) for nic in found] == [
        ("network", "network-7", "VM Network"), ("dvportgroup", "dvportgroup-9", ""), ("opaque", "x-1", ""),
        ("", "", "eth0"),
    ]  # fmt: skip
    assert [nic.model for nic in found] == [NicModel.VMXNET3, NicModel.E1000E, NicModel.SRIOV, None]
    assert {nic.mac for nic in found} == {"00:50:56:aa:bb:cc"}
    assert not any(nic.connected for nic in found)


def test_devices_of_the_host_are_noticed_but_a_part_of_a_graphics_card_is_none() -> None:
    shared = device("VirtualPCIPassthrough", '<backing xsi:type="VirtualPCIPassthroughVmiopBackingInfo"/>')
    whole = device("VirtualPCIPassthrough", '<backing xsi:type="VirtualPCIPassthroughDeviceBackingInfo"/>')
    assert read(shared).passed_through == ()
    assert read(whole, device("VirtualSCSIPassthrough", "")).passed_through == (
        "VirtualPCIPassthrough", "VirtualSCSIPassthrough",
    )  # fmt: skip


def test_drives_and_the_rest() -> None:
    found = read(
        controller("VirtualAHCIController", 15000, 0),
        device("VirtualCdrom", "<key>16000</key><controllerKey>15000</controllerKey><unitNumber>0</unitNumber>"
               "<backing><fileName>[iso] debian.iso</fileName></backing>"),
        device("VirtualMachineVideoCard", "<videoRamSizeInKB>4096</videoRamSizeInKB>"), device("VirtualTPM", ""),
    )  # fmt: skip
    assert [(drive.name, drive.medium) for drive in found.drives] == [("sata0:0", "[iso] debian.iso")]
    assert (found.video_bytes, found.tpm) == (4 << 20, True)
    assert read_devices(None) == Devices()
