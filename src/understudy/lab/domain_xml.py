"""The libvirt definition of a lab guest: values in, XML out."""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.lab.errors import LabUnavailable

ACCEL_VARIABLE = "UNDERSTUDY_LAB_ACCEL"


@dataclass(frozen=True)
class VmDisk:
    """One disk as the hypervisor sees it."""

    target: str
    path: Path
    format: str


@dataclass(frozen=True)
class VmShape:
    """All that a definition says about a lab guest."""

    name: str
    disks: Sequence[VmDisk]
    mac: str
    memory_mib: int
    console_log: Path


def domain_type() -> str:
    """`qemu` (pure emulation) unless UNDERSTUDY_LAB_ACCEL=kvm asks for KVM."""
    # A /dev/kvm that exists may still hang guests (nested virtualisation), so KVM is never guessed.
    accel = os.environ.get(ACCEL_VARIABLE, "tcg")
    if accel not in ("tcg", "kvm"):
        raise LabUnavailable(f"{ACCEL_VARIABLE}={accel}", "must be tcg or kvm")
    return "kvm" if accel == "kvm" else "qemu"


def mac_of(name: str) -> str:
    """A MAC address that follows from the name, in QEMU's range."""
    tail = hashlib.sha256(name.encode()).digest()[:3]
    return "52:54:00:" + tail.hex(":")


def domain_xml(shape: VmShape) -> str:
    """The definition of one lab guest."""
    domain = ET.Element("domain", type=domain_type())
    ET.SubElement(domain, "name").text = shape.name
    ET.SubElement(domain, "memory", unit="MiB").text = str(shape.memory_mib)
    ET.SubElement(domain, "vcpu").text = "1"
    system = ET.SubElement(domain, "os")
    # q35 reaches the guest agent a second sooner than pc without KVM.
    ET.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
    ET.SubElement(system, "boot", dev="hd")
    ET.SubElement(ET.SubElement(domain, "features"), "acpi")
    ET.SubElement(domain, "clock", offset="utc")
    devices = ET.SubElement(domain, "devices")
    for disk in shape.disks:
        _add_disk(devices, disk)
    _add_channels(devices, shape)
    return ET.tostring(domain, encoding="unicode")


def _add_disk(devices: ET.Element, disk: VmDisk) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type=disk.format, discard="unmap")
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=disk.target, bus="virtio")


def _add_channels(devices: ET.Element, shape: VmShape) -> None:
    """Network card, console log, agent channel; none of them needs anything outside the guest's own host."""
    nic = ET.SubElement(devices, "interface", type="user")
    ET.SubElement(nic, "mac", address=shape.mac)
    ET.SubElement(nic, "model", type="virtio")
    ET.SubElement(nic, "rom", enabled="no")
    console = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(console, "source", path=str(shape.console_log), append="on")
    agent = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(agent, "target", type="virtio", name="org.qemu.guest_agent.0")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
