"""The replica VM's definition: the source's, under a new name and UUID, on the head layers, adapted to the target host.

Pure: XML and facts in, XML and warnings out. The MAC addresses stay, because networks know the VM by them. Whatever the
target host lacks is replaced by something that starts, and reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from understudy.platforms import ReplicaVmSpec
from understudy.platforms.foreign import disk_names, foreign_source
from understudy.platforms.libvirt.target_facts import TargetFacts, wants_secure_boot

METADATA_NAMESPACE = "https://understudy.example/xmlns/replica/1"

_DROPPED_DEVICES = {
    "hostdev": "host device",
    "filesystem": "shared directory",
    "shmem": "shared memory",
    "redirdev": "redirected USB device",
    "smartcard": "smart card",
    "lease": "lock lease",
}
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_HOST_BOUND = ("numatune", "resource", "blkiotune")


def replica_xml(spec: ReplicaVmSpec, facts: TargetFacts) -> tuple[str, list[str]]:
    """The replica VM's XML, and what the operator should know of it."""
    root = ET.fromstring(spec.definition)
    warnings = [
        *_identity(root, spec),
        *_foreign(root),
        *_hypervisor(root, facts),
        *_firmware(root, spec, facts),
        *_host_bound_settings(root),
        *_disks(root, spec, facts),
        *_nics(root, spec, facts),
        *_other_devices(root, facts),
    ]
    return _written(root), warnings


def _identity(root: ET.Element, spec: ReplicaVmSpec) -> Iterator[str]:
    _set_text(root, "name", spec.name)
    _set_text(root, "uuid", spec.uuid)
    generation = root.find("genid")
    if generation is not None:
        # A guest compares it to learn that it was copied; libvirt makes a new one for an empty element.
        generation.text = None
    for element in root.findall("seclabel"):
        root.remove(element)
    # SMBIOS may repeat the source's UUID, and libvirt refuses a contradiction.
    for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = spec.uuid
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    for old in metadata.findall(f"{{{METADATA_NAMESPACE}}}replica"):
        metadata.remove(old)
    ET.SubElement(metadata, f"{{{METADATA_NAMESPACE}}}replica", id=spec.replica_id)
    yield from ()


def _set_text(root: ET.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = ET.SubElement(root, tag)
    element.text = text


def _foreign(root: ET.Element) -> Iterator[str]:
    """What is to be known of a VM of another platform; and its guest reads the UUID that it knows.

    The domain's UUID has to be the replica's own. libvirt lets no SMBIOS setting contradict it, so QEMU is told.
    """
    source = foreign_source(root)
    if source is None:
        return
    yield from source.notices
    if source.smbios_uuid:
        command = ET.SubElement(root, f"{{{_QEMU_NAMESPACE}}}commandline")
        for word in ("-smbios", f"type=1,uuid={source.smbios_uuid}"):
            ET.SubElement(command, f"{{{_QEMU_NAMESPACE}}}arg", value=word)


def _hypervisor(root: ET.Element, facts: TargetFacts) -> Iterator[str]:
    _drop(root, "devices", "emulator")  # its path differs between distributions; libvirt finds the target's own
    if root.get("type") == "kvm" and not facts.accelerated:
        root.set("type", "qemu")
        cpu = root.find("cpu")
        if cpu is not None:
            root.remove(cpu)
        # These are KVM's own.
        _drop(root, "features", "hyperv")
        _drop(root, "clock", "timer[@name='hypervclock']")
        yield "the target host has no KVM: the replica runs under emulation, many times slower"
    elif facts.cpu_problem:
        yield f"CPU: {facts.cpu_problem}; the replica may not start"
    os_type = root.find("os/type")
    machine = "" if os_type is None else os_type.get("machine", "")
    if os_type is not None and machine and machine not in facts.machines:
        family = "q35" if "q35" in machine else "pc" if "i440fx" in machine else ""
        if family in facts.machines:
            os_type.set("machine", family)
            yield f"machine type {machine!r} is unknown on the target host: {family!r} is used"
        else:
            yield f"machine type {machine!r} is unknown on the target host: the replica will not start"


def _firmware(root: ET.Element, spec: ReplicaVmSpec, facts: TargetFacts) -> Iterator[str]:
    os_element = root.find("os")
    if os_element is None:
        return
    nvram = os_element.find("nvram")
    if nvram is None and spec.nvram:
        # The source's firmware was chosen by libvirt, which names the file only in the definition of the running VM.
        nvram = ET.SubElement(os_element, "nvram")
    if nvram is not None:
        for child in list(nvram):
            nvram.remove(child)
        nvram.attrib.pop("type", None)
        nvram.text = spec.nvram or f"{spec.head_dir}/nvram.fd"
        if not spec.nvram:
            yield "the VM has no UEFI variables yet: the replica starts with fresh ones from the template"
    wanted = os_element.find("firmware")
    if wanted is not None and wants_secure_boot(root) and not facts.secure_boot:
        os_element.remove(wanted)
        yield "the target host has no UEFI firmware with secure boot: the replica starts without it"
    uefi = os_element.get("firmware") == "efi" or nvram is not None
    if uefi and not facts.uefi:
        yield "the target host has no UEFI firmware: the replica will not start"


def _host_bound_settings(root: ET.Element) -> Iterator[str]:
    """Settings that name CPUs, NUMA nodes or device numbers of the source host mean nothing elsewhere."""
    dropped = [tag for tag in _HOST_BOUND if _drop(root, ".", tag)]
    vcpu = root.find("vcpu")
    if vcpu is not None and "cpuset" in vcpu.attrib:
        del vcpu.attrib["cpuset"]
        dropped.append("vcpu cpuset")
    for pin in ("vcpupin", "emulatorpin", "iothreadpin"):
        if _drop(root, "cputune", pin):
            dropped.append(pin)
    if dropped:
        yield f"settings bound to the source host were left out: {', '.join(dropped)}"


def _drop(root: ET.Element, parent: str, tag: str) -> bool:
    holder = root.find(parent)
    found = [] if holder is None else holder.findall(tag)
    for element in found:
        assert holder is not None
        holder.remove(element)
    return bool(found)


def _disks(root: ET.Element, spec: ReplicaVmSpec, facts: TargetFacts) -> Iterator[str]:
    devices, names = _devices(root), disk_names(root)
    if spec.converted:
        _drop(root, "devices", "controller[@type='scsi']")
    for disk in devices.findall("disk"):
        target = disk.find("target")
        device = "" if target is None else target.get("dev", "")
        name = names.get(device, device)
        if disk.get("device", "disk") in ("cdrom", "floppy"):
            yield from _eject(disk, name)
        elif name not in spec.disks:
            devices.remove(disk)
            yield f"disk {name} is not replicated: the replica has no such disk"
        else:
            _use_head(disk, spec.disks[name])
            if spec.converted:
                _attach(disk, "vd", "virtio")
            bus = "" if target is None else target.get("bus", "")
            if bus and facts.disk_buses and bus not in facts.disk_buses:
                yield f"disk {name}: bus {bus!r} is unknown on the target host"


def _devices(root: ET.Element) -> ET.Element:
    devices = root.find("devices")
    return ET.SubElement(root, "devices") if devices is None else devices


def _eject(disk: ET.Element, name: str) -> Iterator[str]:
    source = disk.find("source")
    if source is not None:
        disk.remove(source)
        disk.set("type", "file")
        yield f"drive {name}: the medium was ejected, media are not replicated"


def _use_head(disk: ET.Element, head: str) -> None:
    disk.set("type", "file")
    disk.set("device", "disk")
    for tag in ("source", "backingStore", "mirror", "auth", "encryption"):
        for element in disk.findall(tag):
            disk.remove(element)
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver", name="qemu")
        disk.insert(0, driver)
    driver.set("type", "qcow2")
    # Direct I/O and its companions were chosen for the source's storage and may not exist on the target's.
    for attribute in ("cache", "io"):
        driver.attrib.pop(attribute, None)
    disk.insert(1, ET.Element("source", file=head))


def _attach(disk: ET.Element, prefix: str, bus: str) -> None:
    """The disk on another bus, under the letter that it has."""
    target = disk.find("target")
    if target is not None:
        target.set("dev", prefix + target.get("dev", "")[2:])
        target.set("bus", bus)
    for address in disk.findall("address"):
        disk.remove(address)  # a place on a controller that is not the disk's any more


def on_sata(xml: str) -> str:
    """The replica of a VM of another platform for a host whose QEMU lacks the controllers that its guest knows."""
    root = ET.fromstring(xml)
    source = foreign_source(root)  # and its metadata are written as they were
    assert source is not None
    for disk in root.iterfind("devices/disk"):
        if disk.find("target[@bus='scsi']") is not None:
            _attach(disk, "sd", "sata")
    _drop(root, "devices", "controller[@type='scsi']")
    return _written(root)


def _written(root: ET.Element) -> str:
    ET.register_namespace("understudy", METADATA_NAMESPACE)
    ET.register_namespace("qemu", _QEMU_NAMESPACE)
    return ET.tostring(root, encoding="unicode")


def _nics(root: ET.Element, spec: ReplicaVmSpec, facts: TargetFacts) -> Iterator[str]:
    for nic in _devices(root).findall("interface"):
        if spec.converted:
            for model in nic.findall("model"):
                model.set("type", "virtio")
        for tag in ("target", "portid", "bandwidth") if nic.get("type") != "user" else ():
            for element in nic.findall(tag):
                nic.remove(element)
        if nic.get("type") == "null":
            _disconnect(nic)
            continue
        missing = _missing_network(nic, facts)
        if missing:
            mac = nic.find("mac")
            address = "?" if mac is None else mac.get("address", "?")
            _disconnect(nic)
            yield f"network card {address}: {missing}; it is connected to nothing on the replica"


def _missing_network(nic: ET.Element, facts: TargetFacts) -> str:
    kind, source = nic.get("type", ""), nic.find("source")
    if kind == "network":
        name = "" if source is None else source.get("network", "")
        return "" if name in facts.networks else f"the target host has no network {name!r}"
    if kind in ("bridge", "direct"):
        name = "" if source is None else source.get("bridge") or source.get("dev") or ""
        if facts.interfaces is not None and name not in facts.interfaces:
            return f"the target host has no interface {name!r}"
        return ""
    if kind in ("user", "ethernet"):
        return ""
    return f"a card of type {kind!r} belongs to the source host"


def _disconnect(nic: ET.Element) -> None:
    """A card that is connected to nothing, with the address and model that the guest knows.

    A tap device in no bridge, its link down. Type ``null`` says it plainer, but libvirtd 9.0.0 ends by SIGSEGV when it
    starts such a VM.
    """
    nic.set("type", "ethernet")
    nic.attrib.pop("managed", None)
    for element in list(nic):
        if element.tag not in ("mac", "model", "address", "boot", "alias", "rom", "mtu"):
            nic.remove(element)
    ET.SubElement(nic, "link", state="down")


def _other_devices(root: ET.Element, facts: TargetFacts) -> Iterator[str]:
    devices = _devices(root)
    for tag, word in _DROPPED_DEVICES.items():
        found = devices.findall(tag)
        for element in found:
            devices.remove(element)
        if found:
            yield f"{len(found)} x {word} left out: it belongs to the source host"
    yield from _tpm(devices, facts)
    for tag in ("serial", "console", "parallel", "channel"):
        for element in devices.findall(tag):
            _detach_from_host(element)
    for graphics in devices.findall("graphics"):
        # A fixed port may be taken on the target host.
        if graphics.get("autoport") == "no":
            graphics.set("autoport", "yes")
            graphics.attrib.pop("port", None)
            graphics.attrib.pop("tlsPort", None)


def _tpm(devices: ET.Element, facts: TargetFacts) -> Iterator[str]:
    for tpm in devices.findall("tpm"):
        backend = tpm.find("backend")
        emulated = backend is not None and backend.get("type") == "emulator"
        if emulated and facts.tpm:
            yield "the state of the emulated TPM is not replicated: the replica starts with an empty TPM"
        else:
            devices.remove(tpm)
            yield "the TPM was left out: the target host cannot provide it"


def _detach_from_host(element: ET.Element) -> None:
    """Character devices that lead to a file, socket or device of the source host become ones that always start."""
    source, kind = element.find("source"), element.get("type", "")
    for log in element.findall("log"):
        element.remove(log)
    if kind == "unix" and element.tag == "channel":
        if source is not None:
            element.remove(source)  # libvirt chooses the path
    elif kind in ("file", "dev", "pipe", "unix", "tcp", "udp"):
        element.set("type", "pty")
        for child in list(element):
            if child.tag in ("source", "protocol"):
                element.remove(child)
