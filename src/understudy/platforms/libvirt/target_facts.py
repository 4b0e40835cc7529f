"""What a target host can offer a replica VM."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

import libvirt

from understudy.platforms.libvirt.connection import error_text, libvirt_errors


@dataclass(frozen=True)
class TargetFacts:
    """Answers of one host about one architecture.

    :ivar machines: machine types, aliases included.
    :ivar networks: libvirt networks.
    :ivar interfaces: network interfaces of the host (bridges too), or None if the host does not tell.
    :ivar disk_buses, tpm, uefi: from the domain capabilities.
    :ivar secure_boot: whether secure boot is wanted, and there is firmware for it.
    :ivar cpu_problem: why the wanted CPU does not fit, or empty.
    """

    accelerated: bool
    machines: frozenset[str]
    networks: frozenset[str]
    interfaces: frozenset[str] | None
    disk_buses: frozenset[str]
    tpm: bool
    uefi: bool
    secure_boot: bool
    cpu_problem: str


def target_facts(conn: libvirt.virConnect, definition: str) -> TargetFacts:
    """Ask the host about what ``definition``, a domain XML, needs."""
    root = ET.fromstring(definition)
    os_type = root.find("os/type")
    arch = "" if os_type is None else os_type.get("arch", "")
    with libvirt_errors("capabilities of the target host"):
        capabilities = ET.fromstring(conn.getCapabilities())
        guest = next((item for item in capabilities.iterfind("guest/arch") if item.get("name") == arch), None)
        virt_types = set() if guest is None else {item.get("type") for item in guest.iterfind("domain")}
        virt_type = "kvm" if "kvm" in virt_types and root.get("type") == "kvm" else "qemu"
        offered = ET.fromstring(conn.getDomainCapabilities(None, arch or None, None, virt_type, 0))
        networks = conn.listAllNetworks() if _has_networks(conn) else []
    return TargetFacts(
        accelerated="kvm" in virt_types,
        machines=frozenset() if guest is None else _machines(guest),
        networks=frozenset(network.name() for network in networks),
        interfaces=_interfaces(conn),
        disk_buses=frozenset(
            item.text or "" for item in offered.iterfind("devices/disk/enum[@name='bus']/value")
        ),
        tpm=_supported(offered, "devices/tpm"),
        uefi=any(item.text == "efi" for item in offered.iterfind("os/enum[@name='firmware']/value")),
        secure_boot=wants_secure_boot(root) and _has_secure_boot(conn, arch, virt_type),
        cpu_problem=_cpu_problem(conn, root, arch, virt_type),
    )


def wants_secure_boot(root: ET.Element) -> bool:
    """Whether a domain asks for firmware with secure boot."""
    features = root.iterfind("os/firmware/feature[@name='secure-boot']")
    return any(feature.get("enabled") == "yes" for feature in features)


def _has_secure_boot(conn: libvirt.virConnect, arch: str, virt_type: str) -> bool:
    """Whether there is such firmware, which is for one type of machine only."""
    with libvirt_errors("capabilities of the target host"):
        offered = ET.fromstring(conn.getDomainCapabilities(None, arch or None, "q35", virt_type, 0))
    return any(item.text == "yes" for item in offered.iterfind("os/loader/enum[@name='secure']/value"))


def _machines(arch: ET.Element) -> frozenset[str]:
    names = set()
    for element in arch.iter("machine"):
        names.update({element.text or "", element.get("canonical", "")})
    return frozenset(names - {""})


def _supported(offered: ET.Element, path: str) -> bool:
    element = offered.find(path)
    return element is not None and element.get("supported") == "yes"


def _has_networks(conn: libvirt.virConnect) -> bool:
    """Whether the daemon has a network driver at all; a host without one has no networks."""
    try:
        conn.numOfNetworks()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_NO_CONNECT):
            return False
        raise
    return True


def _interfaces(conn: libvirt.virConnect) -> frozenset[str] | None:
    try:
        devices = conn.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET)
        names = {ET.fromstring(device.XMLDesc(0)).findtext("capability/interface", "") for device in devices}
    except libvirt.libvirtError:
        # The node device driver is optional (it needs udev); then a missing bridge shows at the start only.
        return None
    return frozenset(names - {""}) or None


def _cpu_problem(conn: libvirt.virConnect, root: ET.Element, arch: str, virt_type: str) -> str:
    cpu = root.find("cpu")
    if cpu is None or cpu.get("mode") != "custom":
        return ""
    try:
        result = conn.compareHypervisorCPU(None, arch or None, None, virt_type, ET.tostring(cpu, encoding="unicode"), 0)
    except libvirt.libvirtError as exc:
        return error_text(exc)
    return "" if result > 0 else f"the host lacks features of CPU model {cpu.findtext('model', '?')}"
