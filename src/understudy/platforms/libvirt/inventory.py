"""Domains as values: what libvirt's XML says of a VM, and what of it stands in the way of replication."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import libvirt

from understudy.model.inventory import Disk, Nic, Vm, VmState
from understudy.platforms.libvirt.connection import connection_lost, error_text, libvirt_errors

AGENT_CHANNEL = "org.qemu.guest_agent.0"

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: VmState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: VmState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: VmState.RUNNING,
    libvirt.VIR_DOMAIN_PMSUSPENDED: VmState.PAUSED,
    libvirt.VIR_DOMAIN_PAUSED: VmState.PAUSED,
}


def vm_state(domain: libvirt.virDomain) -> VmState:
    """Power state of a domain."""
    return _STATES.get(domain.state()[0], VmState.SHUT_OFF)


def describe(domain: libvirt.virDomain) -> Vm:
    """The VM behind a domain, with disk sizes.

    Definition is the persistent one where there is one: it is what a replica must be made from. Disks come from the
    live XML of a running domain, because a snapshot delta shows only there.
    """
    with libvirt_errors(f"describe VM {domain.name()!r}"):
        flags = libvirt.VIR_DOMAIN_XML_SECURE
        if domain.isPersistent():
            flags |= libvirt.VIR_DOMAIN_XML_INACTIVE
        definition = domain.XMLDesc(flags)
        live = ET.fromstring(domain.XMLDesc(0))
        sizes, unreadable = _sizes(domain, live)
        state, clean = vm_state(domain), _shut_down_cleanly(domain)
        run = str(domain.ID()) if domain.isActive() else ""
    vm = parse(definition, live, state, sizes, clean)
    disks = (replace(disk, obstacle=disk.obstacle or unreadable.get(disk.name, "")) for disk in vm.disks)
    return replace(vm, disks=tuple(disks), run=run)


def _sizes(domain: libvirt.virDomain, live: ET.Element) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Virtual size and allocation per disk, or else why its image cannot be read: one bad disk must not hide a VM."""
    sizes, unreadable = {}, {}
    for name in _sized_disks(live):
        try:
            size, allocated = domain.blockInfo(name)[:2]
        except libvirt.libvirtError as exc:
            if connection_lost(exc) or exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise
            unreadable[name] = f"its image cannot be read: {error_text(exc)}"
        else:
            sizes[name] = (size, allocated)
    return sizes, unreadable


def _shut_down_cleanly(domain: libvirt.virDomain) -> bool:
    state, reason = domain.state()
    return bool(state == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)


def _sized_disks(root: ET.Element) -> list[str]:
    return [
        _target(disk)
        for disk in root.iterfind("devices/disk")
        if _is_disk(disk) and disk.get("type") in ("file", "block") and disk.find("source") is not None
    ]


def parse(
    definition: str, live: ET.Element, state: VmState, sizes: dict[str, tuple[int, int]], clean_shutdown: bool
) -> Vm:
    """The VM that XML tells.

    :param definition: XML to make the replica from.
    :param live: parsed XML of the present state.
    :param sizes: virtual size and allocation in bytes per disk name.
    """
    type_element = live.find("os/type")
    agent = [item for item in live.iterfind("devices/channel/target") if item.get("name") == AGENT_CHANNEL]
    return Vm(
        name=live.findtext("name", ""),
        uuid=live.findtext("uuid", ""),
        state=state,
        arch="" if type_element is None else type_element.get("arch", ""),
        machine="" if type_element is None else type_element.get("machine", ""),
        firmware=_firmware(live),
        memory_bytes=_memory(live),
        vcpus=int(live.findtext("vcpu", "1")),
        disks=tuple(_disk(disk, sizes) for disk in live.iterfind("devices/disk") if _is_disk(disk)),
        nics=tuple(_nic(nic) for nic in live.iterfind("devices/interface")),
        has_agent_channel=bool(agent),
        agent_connected=any(target.get("state") == "connected" for target in agent),
        definition=definition,
        obstacle=_vm_obstacle(live),
        clean_shutdown=clean_shutdown,
        nvram=_nvram(live),
    )


def _firmware(root: ET.Element) -> str:
    os_element = root.find("os")
    if os_element is None:
        return "bios"
    loader = os_element.find("loader")
    if os_element.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash"):
        return "uefi"
    return "bios"


def _nvram(root: ET.Element) -> str:
    source = root.find("os/nvram/source")
    return (root.findtext("os/nvram", "") if source is None else source.get("file", "")).strip()


_MEMORY_UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20,
                 "MiB": 1 << 20, "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "T": 1 << 40, "TiB": 1 << 40}


def _memory(root: ET.Element) -> int:
    element = root.find("memory")
    if element is None or not element.text:
        return 0
    return int(element.text) * _MEMORY_UNITS.get(element.get("unit", "KiB"), 1 << 10)


def _is_disk(element: ET.Element) -> bool:
    return element.get("device", "disk") in ("disk", "lun")


def _target(element: ET.Element) -> str:
    target = element.find("target")
    return "" if target is None else target.get("dev", "")


def _disk(element: ET.Element, sizes: dict[str, tuple[int, int]]) -> Disk:
    source, driver, target = element.find("source"), element.find("driver"), element.find("target")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    image_format = "raw" if driver is None else driver.get("type", "raw")
    name = _target(element)
    return Disk(
        name=name,
        path=path,
        image_format=image_format,
        size=sizes.get(name, (0, 0))[0],
        allocated=sizes.get(name, (0, 0))[1],
        bus="" if target is None else target.get("bus", ""),
        tracked=image_format == "qcow2",
        obstacle=_disk_obstacle(element),
    )


def _disk_obstacle(element: ET.Element) -> str:
    """Why a disk cannot be replicated: other writers, or no image that we could read at one instant."""
    if element.get("device") == "lun":
        return "it is passed through to the guest as a SCSI LUN"
    if element.find("shareable") is not None:
        return "it is shared with other VMs"
    if element.find("transient") is not None:
        return "it is transient"
    if element.get("type") not in ("file", "block"):
        return f"its source is of type {element.get('type')!r}, only files and block devices are supported"
    if element.find("source") is None:
        return "it has no source"
    return ""


def _vm_obstacle(root: ET.Element) -> str:
    for device in root.iterfind("devices/hostdev"):
        if device.get("type") in ("scsi", "scsi_host"):
            return "a SCSI disk of the host is passed through to it"
    return ""


def _nic(element: ET.Element) -> Nic:
    mac, source, model = element.find("mac"), element.find("source"), element.find("model")
    names = ("network", "bridge", "dev")
    return Nic(
        mac="" if mac is None else mac.get("address", ""),
        kind=element.get("type", ""),
        source="" if source is None else next((source.get(key, "") for key in names if source.get(key)), ""),
        model="" if model is None else model.get("type", ""),
    )
