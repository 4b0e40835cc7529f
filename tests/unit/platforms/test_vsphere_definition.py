"""A VM of vSphere as a KVM host runs its replica: one test per rule, all results valid by libvirt's schema."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree as ET

import libvirt
import pytest

from understudy.errors import ReplicaError
from understudy.platforms import ReplicaVmSpec
from understudy.platforms.foreign import source_of
from understudy.platforms.libvirt.replica_vm import on_sata, replica_xml
from understudy.platforms.libvirt.target_facts import TargetFacts
from understudy.platforms.vsphere.definition import (
    DiskController,
    Firmware,
    HardwareDisk,
    HardwareDrive,
    HardwareNic,
    NicModel,
    VmHardware,
    domain_definition,
    drive_letters,
    hardware_of,
    hardware_text,
    read_hardware,
)
from understudy.units import GIB

BIOS_UUID = "564d3ca2-9f01-1b22-8f2f-6a0a5f1e2d3c"
HEAD = "/srv/replicas/db/head"
LINUX = VmHardware(
    name="db – Zürich <1>", instance_uuid="5012aaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", bios_uuid=BIOS_UUID, version="vmx-19",
    guest_id="debian11_64Guest", memory_bytes=4 * GIB, vcpus=4, cores_per_socket=2,
    disks=(HardwareDisk("scsi0:0", DiskController.PVSCSI, 0, 0, 10 * GIB, 2000, "Hard disk 1"),
           HardwareDisk("nvme0:1", DiskController.NVME, 0, 1, GIB, 33000, "Hard disk 2")),
    nics=(HardwareNic("00:50:56:AA:bb:cc", NicModel.VMXNET3, "VM Network", True, 4000, "Network adapter 1"),
          HardwareNic("00:50:56:00:00:02", NicModel.E1000E, "", False)),
    drives=(HardwareDrive("sata0:0", "[ds1] install.iso"),), facts=json.dumps({"folder": "Production"}),
)  # fmt: skip
WINDOWS = replace(LINUX, guest_id="windows2019srv_64Guest", firmware=Firmware.EFI, secure_boot=True, tpm=True)
FACTS = TargetFacts(True, frozenset({"q35", "pc-q35-7.2"}), frozenset({"VM Network"}), frozenset({"br0"}),
                    frozenset({"virtio", "sata", "scsi"}), True, True, True, "")  # fmt: skip
BARE_FACTS = TargetFacts(False, frozenset({"q35"}), frozenset(), frozenset({"lo"}), frozenset({"virtio", "sata"}),
                         False, True, False, "")  # fmt: skip


def spec(hardware: VmHardware, *, converted: bool = False) -> ReplicaVmSpec:
    heads = {disk.name: f"{HEAD}/{disk.name.replace(':', '%3A')}.qcow2" for disk in hardware.disks}
    return ReplicaVmSpec("db_replica", str(uuid.UUID(int=7)), "replica-1", domain_definition(hardware), heads, HEAD, "",
                         converted)


def made(hardware: VmHardware, facts: TargetFacts = FACTS, *, converted: bool = False) -> tuple[ET.Element, str]:
    xml, warnings = replica_xml(spec(hardware, converted=converted), facts)
    return ET.fromstring(xml), "\n".join(warnings)


def disks(root: ET.Element) -> list[tuple[str, str, str]]:
    """Target, bus and file of each disk."""
    return [(disk.find("target").get("dev", ""), disk.find("target").get("bus", ""),  # type: ignore[union-attr]
             "" if (source := disk.find("source")) is None else source.get("file", ""))
            for disk in root.iterfind("devices/disk")]


def test_the_guest_reads_the_same_bytes_in_smbios() -> None:
    # What VMware writes as 564d3ca2-9f01-1b22-... are the bytes of the table in that order.
    assert LINUX.smbios_uuid == "a23c4d56-019f-221b-8f2f-6a0a5f1e2d3c"
    assert uuid.UUID(LINUX.smbios_uuid).bytes_le == uuid.UUID(BIOS_UUID).bytes


def test_the_replica_has_a_uuid_of_its_own_and_the_guest_reads_the_one_that_it_knows() -> None:
    root, _ = made(LINUX)
    assert root.findtext("uuid") == str(uuid.UUID(int=7))
    qemu = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    words = [word.get("value") for word in root.iterfind(f"{qemu}commandline/{qemu}arg")]
    assert words == ["-smbios", "type=1,uuid=a23c4d56-019f-221b-8f2f-6a0a5f1e2d3c"]


def test_disks_are_found_by_the_names_that_vsphere_gives_them() -> None:
    root, warnings = made(LINUX)
    assert disks(root) == [("sda", "scsi", f"{HEAD}/scsi0%3A0.qcow2"), ("sdb", "sata", f"{HEAD}/nvme0%3A1.qcow2"),
                           ("sdc", "sata", "")]
    assert "is not replicated" not in warnings


def test_disks_are_on_the_controllers_that_the_guest_knows_as_far_as_qemu_has_them() -> None:
    kinds = [(DiskController.PVSCSI, 0), (DiskController.LSI_LOGIC_SAS, 1), (DiskController.LSI_LOGIC, 2),
             *[(DiskController.LSI_LOGIC_SAS, 1)] * 8, (DiskController.PVSCSI, 0), (DiskController.PVSCSI, 3)]
    hardware = replace(LINUX, disks=tuple(
        HardwareDisk(f"scsi{bus}:{unit}", kind, bus, unit, GIB) for unit, (kind, bus) in enumerate(kinds)))
    root, _ = made(hardware)
    assert [(item.get("index"), item.get("model")) for item in root.iterfind("devices/controller")] == [
        ("0", "vmpvscsi"), ("1", "lsisas1068"), ("2", "lsisas1068"), ("3", "vmpvscsi")]
    addresses = [(item.get("controller"), item.get("target")) for item in root.iterfind("devices/disk/address")]
    assert addresses == [("0", "0"), *[("1", str(place)) for place in range(8)], ("2", "0"), ("0", "1"), ("3", "0")]
    assert [target for target, bus, _ in disks(root) if bus == "sata"] == ["sdc", "sdn"]
    assert len(set(addresses)) == len(addresses)


def test_on_a_host_without_these_controllers_all_disks_are_on_sata_and_the_rest_is_as_it_was() -> None:
    before, _ = replica_xml(spec(LINUX), FACTS)
    root = ET.fromstring(on_sata(before))
    assert disks(root)[:2] == [("sda", "sata", f"{HEAD}/scsi0%3A0.qcow2"), ("sdb", "sata", f"{HEAD}/nvme0%3A1.qcow2")]
    assert root.find("devices/controller") is None
    assert hardware_of(on_sata(before)) == LINUX


def test_a_disk_without_a_head_is_left_out_and_called_by_its_own_name() -> None:
    known = spec(LINUX)
    xml, warnings = replica_xml(replace(known, disks={"scsi0:0": known.disks["scsi0:0"]}), FACTS)
    assert [target for target, _, file in disks(ET.fromstring(xml)) if file] == ["sda"]
    assert "disk nvme0:1 is not replicated: the replica has no such disk" in warnings


def test_the_disk_that_boots_is_the_one_of_the_boot_order() -> None:
    for boots, target in (("", "sda"), ("nvme0:1", "sdb")):
        root, _ = made(replace(LINUX, boot_disk=boots))
        ordered = [disk for disk in root.iterfind("devices/disk") if disk.find("boot") is not None]
        assert [disk.find("target").get("dev") for disk in ordered] == [target]  # type: ignore[union-attr]


def test_a_converted_guest_gets_virtio_disks_and_network_cards_and_keeps_their_addresses() -> None:
    root, _ = made(LINUX, converted=True)
    assert disks(root)[:2] == [("vda", "virtio", f"{HEAD}/scsi0%3A0.qcow2"),
                               ("vdb", "virtio", f"{HEAD}/nvme0%3A1.qcow2")]
    assert [model.get("type") for model in root.iterfind("devices/interface/model")] == ["virtio", "virtio"]
    assert [mac.get("address") for mac in root.iterfind("devices/interface/mac")] == [
        "00:50:56:aa:bb:cc", "00:50:56:00:00:02"]
    assert root.find("devices/controller") is None


def test_network_cards_are_of_the_model_that_the_guest_knows_on_a_network_of_the_same_name() -> None:
    root, warnings = made(LINUX)
    first, second = root.findall("devices/interface")
    assert first.find("source").get("network") == "VM Network"  # type: ignore[union-attr]
    assert [card.find("model").get("type") for card in (first, second)] == [  # type: ignore[union-attr]
        "vmxnet3", "e1000e"]
    assert second.find("link").get("state") == "down"  # type: ignore[union-attr]
    assert "network card" not in warnings
    _, warnings = made(LINUX, BARE_FACTS)
    assert "network card 00:50:56:aa:bb:cc: the target host has no network 'VM Network'" in warnings


def test_a_card_that_qemu_has_not_becomes_one_that_every_guest_knows_and_that_is_said() -> None:
    root, warnings = made(replace(LINUX, nics=(HardwareNic("00:50:56:00:00:01", NicModel.SRIOV, "VM Network"),)))
    assert [model.get("type") for model in root.iterfind("devices/interface/model")] == ["e1000"]
    assert "network card 00:50:56:00:00:01: a card of type sriov becomes one of type e1000" in warnings


def test_a_linux_guest_gets_its_clock_in_utc_and_a_windows_guest_in_local_time() -> None:
    clocks = [made(hardware)[0].find("clock").get("offset") for hardware in (LINUX, WINDOWS)]  # type: ignore[union-attr]
    assert clocks == ["utc", "localtime"]


def test_what_only_kvm_has_is_left_out_where_there_is_no_kvm() -> None:
    rich, bare = made(WINDOWS)[0], made(WINDOWS, BARE_FACTS)[0]
    for path in ("features/hyperv", "clock/timer[@name='hypervclock']", "cpu"):
        assert (rich.find(path) is not None, bare.find(path) is not None) == (True, False)
    assert bare.get("type") == "qemu"


def test_sockets_are_kept() -> None:
    topology = made(LINUX)[0].find("cpu/topology")
    assert topology is not None
    assert topology.attrib == {"sockets": "2", "cores": "2", "threads": "1"}


def test_a_guest_with_uefi_gets_fresh_variables_below_its_head_and_that_is_said() -> None:
    root, warnings = made(replace(WINDOWS, secure_boot=False, tpm=False))
    assert root.findtext("os/nvram") == f"{HEAD}/nvram.fd"
    assert root.find("os").get("firmware") == "efi"  # type: ignore[union-attr]
    assert r"boot entries in the VM's UEFI firmware do not come along" in warnings
    assert "secure boot" not in warnings
    assert "TPM" not in warnings


def test_secure_boot_is_kept_where_the_target_has_it_and_else_left_out_and_both_are_said() -> None:
    root, warnings = made(WINDOWS)
    assert [item.get("name") for item in root.iterfind("os/firmware/feature")] == ["secure-boot", "enrolled-keys"]
    assert "secure boot begins with the firmware's own keys" in warnings
    root, warnings = made(WINDOWS, replace(FACTS, secure_boot=False))
    assert root.find("os/firmware") is None
    assert "has no UEFI firmware with secure boot: the replica starts without it" in warnings


def test_a_virtual_tpm_is_an_empty_one_and_the_recovery_key_is_spoken_of() -> None:
    root, warnings = made(WINDOWS)
    assert root.find("devices/tpm/backend[@type='emulator']") is not None
    assert "BitLocker" in warnings
    assert "recovery key" in warnings


def test_the_hardware_comes_back_from_the_definition_unchanged() -> None:
    for hardware in (LINUX, WINDOWS, replace(LINUX, disks=(), nics=(), drives=(), annotation="a\x01b\n]]>&")):
        assert hardware_of(domain_definition(hardware)) == hardware
        assert hardware_of(replica_xml(spec(hardware), FACTS)[0]) == hardware


def test_a_name_with_control_characters_makes_no_broken_definition() -> None:
    hardware = replace(LINUX, name="a\x01b\uffff")
    assert ET.fromstring(domain_definition(hardware)).findtext("name") == "a?b?"
    assert hardware_of(domain_definition(hardware)) == hardware


def test_a_definition_of_libvirts_own_is_not_foreign() -> None:
    assert source_of("<domain><metadata/></domain>") is None
    assert source_of("") is None
    assert hardware_of("<domain/>") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", hardware_text(LINUX).replace("pvscsi", "floppy"),
                                  hardware_text(LINUX).replace('"vcpus"', '"surprise"')])
def test_damaged_hardware_is_an_error(text: str) -> None:
    with pytest.raises(ReplicaError, match="damaged"):
        read_hardware(text)


def test_drives_are_counted_as_linux_counts_them() -> None:
    assert [drive_letters(index) for index in (0, 25, 26, 51, 52, 701, 702)] == [
        "a", "z", "aa", "az", "ba", "zz", "aaa"]


@pytest.fixture(scope="module")
def schema() -> Iterator[libvirt.virConnect]:
    """libvirt's built-in test driver, which validates against the schema that a real host uses."""
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def schema_problem(schema: libvirt.virConnect, xml: str) -> str:
    """What the schema says against ``xml``; what only the test driver cannot do does not count."""
    try:
        schema.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
            return str(exc)
    return ""


@pytest.mark.parametrize("facts", [FACTS, BARE_FACTS], ids=["rich host", "bare host"])
@pytest.mark.parametrize("hardware", [LINUX, WINDOWS], ids=["linux", "windows"])
@pytest.mark.parametrize("converted", [False, True], ids=["as it is", "converted"])
def test_the_result_is_valid_by_libvirts_schema(
    schema: libvirt.virConnect, hardware: VmHardware, facts: TargetFacts, converted: bool
) -> None:
    assert schema_problem(schema, domain_definition(hardware)) == ""
    assert schema_problem(schema, replica_xml(spec(hardware, converted=converted), facts)[0]) == ""
    if not converted:
        assert schema_problem(schema, on_sata(replica_xml(spec(hardware), facts)[0])) == ""
    assert schema_problem(schema, domain_definition(hardware).replace("features>", "nonsense>")) != ""
