"""The hardware of a VM as VMware tells it, and the definition with which a KVM host runs its replica.

Pure. The definition is a libvirt domain XML in which VMware's own words stand as metadata, so that a vSphere target can
build the VM again. Disks keep VMware's names (``scsi0:1``) everywhere else; see :mod:`understudy.platforms.foreign`.
"""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from string import ascii_lowercase
from xml.etree import ElementTree as ET

from understudy.errors import ReplicaError
from understudy.platforms.foreign import ForeignSource, add_source, source_of
from understudy.units import KIB

PLATFORM = "vsphere"


class Firmware(enum.StrEnum):
    """What starts the guest, in VMware's word."""

    BIOS = "bios"
    EFI = "efi"


class DiskController(enum.StrEnum):
    """What a virtual disk is attached to."""

    PVSCSI = "pvscsi"
    LSI_LOGIC = "lsilogic"
    LSI_LOGIC_SAS = "lsilogicsas"
    BUS_LOGIC = "buslogic"
    SATA = "sata"
    NVME = "nvme"
    IDE = "ide"


class NicModel(enum.StrEnum):
    """What a network card looks like to the guest."""

    VMXNET3 = "vmxnet3"
    VMXNET2 = "vmxnet2"
    E1000 = "e1000"
    E1000E = "e1000e"
    PCNET32 = "pcnet32"
    SRIOV = "sriov"


# What libvirt calls the same controller, and how many disks QEMU's has room for.
_SCSI_MODELS = {DiskController.PVSCSI: ("vmpvscsi", 64), DiskController.LSI_LOGIC_SAS: ("lsisas1068", 8)}
# What QEMU calls the card; any other model becomes the oldest one that every system knows.
_NIC_FALLBACK = "e1000"
_NIC_MODELS = {NicModel.VMXNET3: "vmxnet3", NicModel.E1000: "e1000", NicModel.E1000E: "e1000e",
               NicModel.PCNET32: "pcnet"}


@dataclass(frozen=True)
class HardwareDisk:
    """One virtual disk.

    :ivar name: controller and place on it as a VMX file calls them, ``scsi0:1``: the disk's name in ``Vm.disks``.
    :ivar bus: number of the controller among those of its kind; :ivar unit: place on it.
    :ivar capacity: in bytes.
    :ivar key: VMware's key of the device in this VM.
    :ivar label: what people call it: ``Hard disk 1``.
    """

    name: str
    controller: DiskController
    bus: int
    unit: int
    capacity: int
    key: int = 0
    label: str = ""


@dataclass(frozen=True)
class HardwareNic:
    """One network card.

    :ivar network: name of the network or distributed port group; empty if there is none.
    :ivar connected: whether it is connected when the VM starts.
    """

    mac: str
    model: NicModel
    network: str = ""
    connected: bool = True
    key: int = 0
    label: str = ""


@dataclass(frozen=True)
class HardwareDrive:
    """One CD or DVD drive.

    :ivar name: as that of a disk, ``sata0:0``.
    :ivar medium: what lies in it (``[datastore] path.iso``), or empty.
    """

    name: str
    medium: str = ""


@dataclass(frozen=True)
class VmHardware:
    """A VM as its configuration tells it.

    :ivar instance_uuid: what the vCenter knows the VM by; ``Vm.uuid``.
    :ivar bios_uuid: ``config.uuid``, in the order in which VMware writes it; see :attr:`smbios_uuid`.
    :ivar version: of the virtual hardware, ``vmx-19``.
    :ivar guest_id: ``config.guestId``, such as ``windows2019srv_64Guest`` or ``debian11_64Guest``.
    :ivar disks: all virtual disks in the order of their controllers, the first of them usually the one that boots.
    :ivar boot_disk: name of the disk that boots by the VM's boot order; empty: the first.
    :ivar video_bytes: memory of the video card; 0 if unknown.
    :ivar facts: what else a vSphere target needs to build the VM again, a JSON object. Never a secret.
    """

    name: str
    instance_uuid: str
    bios_uuid: str
    version: str
    guest_id: str
    memory_bytes: int
    vcpus: int
    cores_per_socket: int = 1
    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    tpm: bool = False
    disks: tuple[HardwareDisk, ...] = ()
    nics: tuple[HardwareNic, ...] = ()
    drives: tuple[HardwareDrive, ...] = ()
    boot_disk: str = ""
    video_bytes: int = 0
    annotation: str = ""
    facts: str = "{}"

    @property
    def windows(self) -> bool:
        """Whether the guest is a Windows, by the kind of guest that was chosen for the VM."""
        return self.guest_id.lower().startswith("win")

    @property
    def smbios_uuid(self) -> str:
        """The UUID that the guest reads in SMBIOS, as QEMU has to be told it.

        VMware puts the sixteen bytes into the table in the order in which it writes them; QEMU turns the first three
        fields round, as the standard has it since version 2.6. The same bytes in the table need them turned here.
        """
        return str(uuid.UUID(bytes=uuid.UUID(self.bios_uuid).bytes_le))


def hardware_text(hardware: VmHardware) -> str:
    """The hardware as a JSON object."""
    return json.dumps(asdict(hardware))


def read_hardware(text: str) -> VmHardware:
    """The hardware in a JSON object of :func:`hardware_text`.

    :raises ReplicaError: if it is none.
    """
    try:
        fields = json.loads(text)
        fields["firmware"] = Firmware(fields["firmware"])
        fields["disks"] = tuple(HardwareDisk(**{**disk, "controller": DiskController(disk["controller"])})
                                for disk in fields["disks"])
        fields["nics"] = tuple(HardwareNic(**{**nic, "model": NicModel(nic["model"])}) for nic in fields["nics"])
        fields["drives"] = tuple(HardwareDrive(**drive) for drive in fields["drives"])
        return VmHardware(**fields)
    except (KeyError, TypeError, ValueError) as exc:
        raise ReplicaError("hardware of a VM from vSphere", f"its description is damaged: {exc}",
                           "use another restore point") from exc


def domain_definition(hardware: VmHardware) -> str:
    """The domain that runs a replica of the VM with devices for which its guest has drivers, without any conversion."""
    root = ET.Element("domain", type="kvm")
    ET.SubElement(root, "name").text = "".join(char if char.isprintable() else "?" for char in hardware.name)
    ET.SubElement(root, "uuid").text = hardware.instance_uuid
    targets = {f"sd{drive_letters(index)}": disk.name for index, disk in enumerate(hardware.disks)}
    add_source(root, ForeignSource(PLATFORM, targets, hardware_text(hardware), hardware.smbios_uuid,
                                   tuple(_notices(hardware))))
    ET.SubElement(root, "memory", unit="KiB").text = str(hardware.memory_bytes // KIB)
    ET.SubElement(root, "vcpu").text = str(hardware.vcpus)
    _add_boot(root, hardware)
    _add_features(root, hardware)
    _add_processor(root, hardware)
    _add_clock(root, hardware)
    devices = ET.SubElement(root, "devices")
    _add_disks(devices, hardware, targets)
    _add_nics(devices, hardware)
    _add_console(devices, hardware)
    return ET.tostring(root, encoding="unicode")


def hardware_of(definition: str) -> VmHardware | None:
    """The hardware that a definition was made from; None if it is not one of a VM from vSphere.

    :raises ReplicaError: if it is damaged.
    """
    source = source_of(definition)
    return None if source is None or source.platform != PLATFORM else read_hardware(source.hardware)


def drive_letters(index: int) -> str:
    """What Linux calls the disk of that number: ``a`` to ``z``, ``aa`` ..."""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, len(ascii_lowercase))
        letters = ascii_lowercase[letter] + letters
    return letters


def _notices(hardware: VmHardware) -> Iterator[str]:
    if hardware.firmware is Firmware.EFI:
        yield ("the boot entries in the VM's UEFI firmware do not come along: it starts what lies at the default place "
               r"of its system partition (\EFI\BOOT)")
    if hardware.secure_boot:
        yield "secure boot begins with the firmware's own keys: keys that were enrolled in the VM are not among them"
    if hardware.tpm:
        yield ("the content of the VM's virtual TPM does not come along: where BitLocker or other keys depend on it, "
               "have the recovery key at hand")
    for nic in hardware.nics:
        if nic.model not in _NIC_MODELS:
            yield f"network card {nic.mac}: a card of type {nic.model.value} becomes one of type {_NIC_FALLBACK}"


def _add_boot(root: ET.Element, hardware: VmHardware) -> None:
    boot = ET.SubElement(root, "os")
    ET.SubElement(boot, "type", arch="x86_64", machine="q35").text = "hvm"
    if hardware.firmware is not Firmware.EFI:
        return
    boot.set("firmware", "efi")
    if hardware.secure_boot:
        firmware = ET.SubElement(boot, "firmware")
        ET.SubElement(firmware, "feature", enabled="yes", name="secure-boot")
        ET.SubElement(firmware, "feature", enabled="yes", name="enrolled-keys")
    ET.SubElement(boot, "nvram")  # the replica's own, below its head, so that undo drops it


def _add_features(root: ET.Element, hardware: VmHardware) -> None:
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if hardware.secure_boot:
        ET.SubElement(features, "smm", state="on")
    if hardware.windows:
        # A Windows that is held up for long takes its clock or a spinning CPU for broken, unless it knows of the host.
        hyperv = ET.SubElement(features, "hyperv")
        ET.SubElement(hyperv, "relaxed", state="on")
        ET.SubElement(hyperv, "vapic", state="on")
        ET.SubElement(hyperv, "spinlocks", state="on", retries="8191")


def _add_processor(root: ET.Element, hardware: VmHardware) -> None:
    cpu = ET.SubElement(root, "cpu", mode="host-model")
    sockets, rest = divmod(hardware.vcpus, max(1, hardware.cores_per_socket))
    if not rest:
        # Licences count sockets.
        ET.SubElement(cpu, "topology", sockets=str(sockets), cores=str(hardware.cores_per_socket), threads="1")


def _add_clock(root: ET.Element, hardware: VmHardware) -> None:
    clock = ET.SubElement(root, "clock", offset="localtime" if hardware.windows else "utc")
    ET.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    ET.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    if hardware.windows:
        ET.SubElement(clock, "timer", name="hypervclock", present="yes")


def _add_disks(devices: ET.Element, hardware: VmHardware, targets: Mapping[str, str]) -> None:
    """Each on a controller like its own if QEMU has one, and so the one for which the guest surely has a driver.

    The others on SATA, six to a controller, which libvirt adds.
    """
    boots = hardware.boot_disk or (hardware.disks[0].name if hardware.disks else "")
    places = _scsi_places(hardware.disks)
    for index, model in {index: model for index, _, model in places.values()}.items():
        ET.SubElement(devices, "controller", type="scsi", index=str(index), model=model)
    for target, name in targets.items():
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type="raw")
        ET.SubElement(disk, "target", dev=target, bus="scsi" if name in places else "sata")
        if name == boots:
            ET.SubElement(disk, "boot", order="1")
        if name in places:
            index, place, _ = places[name]
            ET.SubElement(disk, "address", type="drive", controller=str(index), bus="0", target=str(place), unit="0")
    for index in range(len(hardware.drives)):
        drive = ET.SubElement(devices, "disk", type="file", device="cdrom")
        ET.SubElement(drive, "target", dev=f"sd{drive_letters(len(targets) + index)}", bus="sata")
        ET.SubElement(drive, "readonly")


def _scsi_places(disks: tuple[HardwareDisk, ...]) -> dict[str, tuple[int, int, str]]:
    """Number of the controller, place on it and its model, per disk whose controller QEMU has; places close up."""
    places: dict[str, tuple[int, int, str]] = {}
    controllers: dict[tuple[DiskController, int, int], int] = {}
    taken: dict[tuple[DiskController, int], int] = {}
    for disk in disks:
        if disk.controller in _SCSI_MODELS:
            model, room = _SCSI_MODELS[disk.controller]
            part, place = divmod(taken.setdefault((disk.controller, disk.bus), 0), room)
            taken[disk.controller, disk.bus] += 1
            index = controllers.setdefault((disk.controller, disk.bus, part), len(controllers))
            places[disk.name] = index, place, model
    return places


def _add_nics(devices: ET.Element, hardware: VmHardware) -> None:
    for nic in hardware.nics:
        interface = ET.SubElement(devices, "interface", type="network" if nic.network else "null")
        ET.SubElement(interface, "mac", address=nic.mac.lower())
        if nic.network:
            ET.SubElement(interface, "source", network=nic.network)
        ET.SubElement(interface, "model", type=_NIC_MODELS.get(nic.model, _NIC_FALLBACK))
        if not nic.connected:
            ET.SubElement(interface, "link", state="down")


def _add_console(devices: ET.Element, hardware: VmHardware) -> None:
    ET.SubElement(devices, "serial", type="pty")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    ET.SubElement(devices, "input", type="tablet", bus="usb")
    ET.SubElement(devices, "graphics", type="vnc", autoport="yes")
    ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga")
    if hardware.tpm:
        tpm = ET.SubElement(devices, "tpm", model="tpm-crb")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    # Not a device of a VMware guest, and none of its drivers could do something with it.
    ET.SubElement(devices, "memballoon", model="none")
