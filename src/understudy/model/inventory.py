"""What a platform reports about its VMs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class VmState(enum.StrEnum):
    """Power state of a VM."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUT_OFF = "shut_off"


@dataclass(frozen=True)
class Sighting:
    """That a host has a VM, and how it is called there."""

    name: str
    uuid: str
    state: VmState


@dataclass(frozen=True)
class Disk:
    """One virtual disk of a VM.

    :ivar name: the platform's stable name inside the VM (libvirt: target device, ``vda``).
    :ivar path: absolute path or volume of the active image on the source host.
    :ivar image_format: ``qcow2``, ``raw``, ...
    :ivar size: virtual size in bytes.
    :ivar allocated: bytes that the image takes on the source, as far as the platform knows.
    :ivar tracked: whether the image can hold changed block tracking.
    :ivar obstacle: why this disk cannot be replicated, or empty (shared, pass-through, network disk ...).
    """

    name: str
    path: str
    image_format: str
    size: int
    allocated: int = 0
    bus: str = "virtio"
    tracked: bool = False
    obstacle: str = ""


@dataclass(frozen=True)
class Nic:
    """One network card: its MAC address, and what it is connected to."""

    mac: str
    kind: str
    source: str = ""
    model: str = ""


@dataclass(frozen=True)
class Vm:
    """One VM as the platform reports it.

    :ivar clean_shutdown: it is off because the guest shut itself down.
    :ivar definition: the platform's own full definition (libvirt: inactive XML). May hold secrets: never log it.
    :ivar obstacle: why this VM cannot be replicated at all, or empty.
    :ivar nvram: path of its UEFI variables on the source host, or empty.
    :ivar run: another text whenever it was started; empty while it is off.
    :ivar notes: what the operator should know of it, though it is no obstacle.
    """

    name: str
    uuid: str
    state: VmState
    arch: str
    machine: str
    firmware: str
    memory_bytes: int
    vcpus: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    has_agent_channel: bool
    agent_connected: bool
    definition: str = field(repr=False)
    obstacle: str = ""
    clean_shutdown: bool = False
    nvram: str = ""
    run: str = ""
    notes: tuple[str, ...] = ()

    def disk(self, name: str) -> Disk:
        """The disk called ``name``.

        :raises KeyError: if there is none.
        """
        for disk in self.disks:
            if disk.name == name:
                return disk
        raise KeyError(name)


@dataclass(frozen=True)
class HostFacts:
    """What a host says of itself.

    :ivar emulator_user: numeric user and group that open disk images, as ``(uid, gid)``; None where no file of a disk
        is opened by us.
    :ivar notes: what the operator should know of it.
    """

    hostname: str
    platform_version: str
    hypervisor_version: str
    cpus: int
    memory_bytes: int
    emulator_user: tuple[int, int] | None
    notes: tuple[str, ...] = ()
