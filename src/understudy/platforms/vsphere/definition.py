"""The hardware of a VM as VMware tells it, and the definition with which a KVM host runs its replica.

Pure. The definition is a libvirt domain XML in which VMware's own words stand as metadata, so that a vSphere target can
build the VM again. Disks keep VMware's names (``scsi0:1``) everywhere else; see :mod:`understudy.platforms.foreign`.
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass


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
