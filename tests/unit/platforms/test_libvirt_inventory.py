"""Inventory: what libvirt's XML says of a VM, and what of it stands in the way of replication."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from understudy.model.inventory import Disk, Nic, Vm, VmState
from understudy.platforms.libvirt.inventory import parse
from understudy.units import GIB, MIB

SAMPLES = Path(__file__).parent / "samples"
BIOS = (SAMPLES / "bios.xml").read_text(encoding="utf-8")
UEFI = (SAMPLES / "uefi.xml").read_text(encoding="utf-8")


def vm_of(xml: str, sizes: dict[str, tuple[int, int]] | None = None, live: str = "") -> Vm:
    return parse(xml, ET.fromstring(live or xml), VmState.RUNNING, sizes or {}, clean_shutdown=False)


def domain(devices: str = "", os_part: str = "<type arch='x86_64' machine='q35'>hvm</type>", rest: str = "") -> str:
    return (
        f"<domain type='qemu'><name>x</name><uuid>u</uuid><memory unit='MiB'>64</memory>{rest}"
        f"<os>{os_part}</os><devices>{devices}</devices></domain>"
    )


def disk(source: str, attributes: str = "type='file' device='disk'", more: str = "") -> Disk:
    xml = domain(f"<disk {attributes}>{source}<target dev='vda' bus='virtio'/>{more}</disk>")
    (found,) = vm_of(xml).disks
    return found


def test_a_bios_vm_is_told_with_its_unicode_name() -> None:
    vm = vm_of(BIOS)
    assert (vm.name, vm.uuid) == ("wéb server 1 — Zürich", "6f7a7f2e-0e1b-4c3e-9d0b-1f3f3a1b2c3d")
    assert (vm.arch, vm.machine, vm.firmware, vm.nvram) == ("x86_64", "pc-i440fx-7.2", "bios", "")
    assert (vm.memory_bytes, vm.vcpus) == (2 * GIB, 2)
    assert (vm.state, vm.clean_shutdown, vm.obstacle) == (VmState.RUNNING, False, "")


def test_disks_on_several_buses_have_their_paths_formats_and_sizes() -> None:
    vm = vm_of(BIOS, {"vda": (10 * GIB, 3 * GIB), "sda": (5 * GIB, 5 * GIB)})
    assert vm.disks == (
        Disk("vda", "/var/lib/libvirt/images/wéb server 1.qcow2", "qcow2", 10 * GIB, 3 * GIB, "virtio", tracked=True),
        Disk("sda", "/dev/vg0/data", "raw", 5 * GIB, 5 * GIB, "scsi", tracked=False),
        Disk("hdb", "/srv/scratch.img", "raw", 0, 0, "ide", tracked=False),
    )


def test_drives_with_media_are_no_disks() -> None:
    assert not {"hdc", "fda"} & {item.name for item in vm_of(BIOS).disks}


def test_network_cards_are_told_with_what_they_are_connected_to() -> None:
    assert vm_of(BIOS).nics == (
        Nic("52:54:00:aa:bb:01", "network", "default", "virtio"),
        Nic("52:54:00:aa:bb:02", "network", "storage lan", "e1000"),
        Nic("52:54:00:aa:bb:03", "bridge", "br-prod", "virtio"),
        Nic("52:54:00:aa:bb:04", "direct", "eth7", "virtio"),
    )
    assert vm_of(UEFI).nics[0] == Nic("52:54:00:cc:dd:01", "user", "", "virtio")


def test_every_disk_that_cannot_be_read_at_one_instant_has_its_own_obstacle() -> None:
    obstacles = {item.name: item.obstacle for item in vm_of(UEFI).disks}
    assert obstacles == {
        "sda": "",
        "sdb": "it is shared with other VMs",
        "sdc": "it is passed through to the guest as a SCSI LUN",
        "vda": "its source is of type 'network', only files and block devices are supported",
        "vdb": "it is transient",
    }


def test_a_disk_without_driver_is_raw_and_untracked() -> None:
    shared = vm_of(UEFI).disk("sdb")
    assert (shared.image_format, shared.tracked) == ("raw", False)


@pytest.mark.parametrize("kind", ["network", "volume", "nvme", "vhostuser", "dir"])
def test_sources_other_than_files_and_block_devices_are_obstacles(kind: str) -> None:
    found = disk("<source pool='p' volume='v'/>", f"type='{kind}' device='disk'")
    assert f"of type '{kind}'" in found.obstacle


def test_a_disk_without_source_is_an_obstacle() -> None:
    assert disk("").obstacle == "it has no source"
    assert disk("").path == ""


def test_a_disk_element_without_device_attribute_is_a_disk() -> None:
    found = disk("<driver name='qemu' type='qcow2'/><source file='/x'/>", "type='file'")
    assert (found.path, found.tracked, found.obstacle) == ("/x", True, "")


@pytest.mark.parametrize("kind", ["scsi", "scsi_host"])
def test_a_passed_through_scsi_disk_is_an_obstacle_of_the_whole_vm(kind: str) -> None:
    assert vm_of(domain(f"<hostdev mode='subsystem' type='{kind}'/>")).obstacle
    assert vm_of(UEFI).obstacle == "a SCSI disk of the host is passed through to it"


def test_other_passed_through_devices_are_no_obstacle() -> None:
    assert vm_of(domain("<hostdev mode='subsystem' type='pci'/><hostdev mode='subsystem' type='usb'/>")).obstacle == ""


@pytest.mark.parametrize(
    ("os_part", "firmware", "nvram"),
    [
        ("<type>hvm</type>", "bios", ""),
        ("<type>hvm</type><loader type='rom'>/usr/share/seabios/bios.bin</loader>", "bios", ""),
        ("<type>hvm</type><loader type='pflash'>/c.fd</loader><nvram>/v.fd</nvram>", "uefi", "/v.fd"),
        ("<type>hvm</type><nvram type='file'>\n <source file='/n w.fd'/>\n</nvram><loader type='pflash'/>", "uefi",
         "/n w.fd"),
    ],
)  # fmt: skip
def test_firmware_and_its_variables_are_found_in_every_form(os_part: str, firmware: str, nvram: str) -> None:
    vm = vm_of(domain(os_part=os_part))
    assert (vm.firmware, vm.nvram) == (firmware, nvram)


def test_firmware_that_libvirt_chose_is_uefi() -> None:
    vm = vm_of(UEFI)
    assert (vm.firmware, vm.nvram) == ("uefi", "/var/lib/libvirt/qemu/nvram/win-2022_VARS.fd")
    chosen = domain().replace("<os>", "<os firmware='efi'>")
    assert vm_of(chosen).firmware == "uefi"
    assert vm_of(domain().replace("<os>", "<os firmware='bios'>")).firmware == "bios"


@pytest.mark.parametrize(
    ("unit", "size"), [("b", 64), ("KB", 64000), ("KiB", 64 << 10), ("MB", 64 * 10**6), ("MiB", 64 * MIB),
                       ("GiB", 64 * GIB), ("TiB", 64 * 1024 * GIB)],
)  # fmt: skip
def test_memory_is_in_bytes_whatever_its_unit(unit: str, size: int) -> None:
    assert vm_of(domain().replace("'MiB'", f"'{unit}'")).memory_bytes == size


def test_memory_without_unit_is_in_kib() -> None:
    assert vm_of(domain().replace(" unit='MiB'", "")).memory_bytes == 64 << 10


def test_an_agent_is_connected_only_if_the_running_vm_says_so() -> None:
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'{}/></channel>"
    for state, connected in (("", False), (" state='disconnected'", False), (" state='connected'", True)):
        vm = vm_of(domain(), live=domain(channel.format(state)))
        assert (vm.has_agent_channel, vm.agent_connected) == (True, connected)
    spice = "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0' state='connected'/></channel>"
    vm = vm_of(domain(spice))
    assert (vm.has_agent_channel, vm.agent_connected) == (False, False)


def test_disks_come_from_the_running_vm_and_the_definition_from_the_stored_one() -> None:
    stored = domain("<disk type='file'><source file='/base.qcow2'/><target dev='vda'/></disk>")
    live = domain("<disk type='file'><source file='/base.delta'/><target dev='vda'/></disk>")
    vm = vm_of(stored, live=live)
    assert vm.disk("vda").path == "/base.delta"
    assert vm.definition == stored
