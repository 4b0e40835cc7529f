"""Hypervisor platforms: what Understudy asks of a source and of a target host.

A platform is one package below this one; :func:`open_platform` imports it by the scheme of the host's URI, lazily. All
verbs are control calls that the controller makes; no disk data passes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from understudy.context import Context
from understudy.errors import UsageError
from understudy.model.access import HostAccess, ServerCertificate
from understudy.model.guest_operations import GuestLogin, GuestOperations
from understudy.model.inventory import HostFacts, Sighting, Vm, VmState
from understudy.model.job import LIBRARY_SCHEMES, SnapshotMode
from understudy.model.preflight import Preflight
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, LibraryExport, SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import Reason


@dataclass(frozen=True)
class ReplicaVmSpec:
    """The replica VM to define.

    :ivar definition: the source VM's definition at the restore point.
    :ivar nvram: the head's copy of the UEFI variables, or empty.
    :ivar disks: absolute head file per disk name; disks that are missing here are left out of the replica VM.
    :ivar replica_id: goes into the definition's metadata as our tag.
    :ivar converted: the guest on the head was given drivers for virtio devices, and gets such.
    """

    name: str
    uuid: str
    replica_id: str
    definition: str
    disks: Mapping[str, str]
    head_dir: str
    nvram: str
    converted: bool = False


@dataclass(frozen=True)
class CommitPatience:
    """How long the merge of a snapshot delta is tried, while its VM goes on running.

    :ivar pauses: seconds before each further try.
    :ivar stalled_s: a merge without any progress for so long has failed.
    """

    pauses: tuple[float, ...] = (5.0, 15.0, 45.0, 135.0)
    stalled_s: float = 600.0

    @property
    def once(self) -> CommitPatience:
        """The same without further tries."""
        return replace(self, pauses=())


@dataclass(frozen=True)
class VmTraces:
    """What of ours a VM has, whatever job or session made it: names only.

    :ivar active: whether it runs, or is paused.
    :ivar checkpoints: names of checkpoints that begin as ours do.
    :ivar backup: the name in a running backup job that begins as ours do, or empty.
    :ivar deltas: ``(disk, file)`` of disks that write to a snapshot delta of ours.
    :ivar images: ``(file, format)`` of the active image of each disk.
    :ivar snapshots: names of snapshots that begin as ours do, where a snapshot has a name of its own.
    :ivar copied: disks of which another program makes a copy just now, so that nothing can be merged.
    :ivar unmerged: the VM has deltas that no snapshot needs, where the platform says so; whose they are it does not.
    :ivar by_hand: what an administrator types, by the name of what is to be removed; and for ``thaw`` and ``merge``.
    """

    name: str
    uuid: str
    active: bool
    checkpoints: tuple[str, ...]
    backup: str
    deltas: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str], ...]
    copied: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    unmerged: bool = False
    by_hand: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class SourcePlatform(Protocol):
    """A host as a source of replication."""

    def facts(self) -> HostFacts:
        """What the host says of itself."""

    def list_vms(self) -> tuple[Vm, ...]:
        """All VMs, by name; a platform may leave out their definitions."""

    def sighting(self, name: str, uuid: str) -> Sighting | None:
        """The VM with that UUID; if ``uuid`` is empty, or no VM has it, the one of that name; None if there is none."""

    def describe_vm(self, name: str) -> Vm:
        """One VM with its disks.

        :raises NotFound: if the host has no VM of that name.
        """

    def tracking(self, vm: Vm, baseline: Baseline) -> dict[str, Reason]:
        """Per disk of ``vm``: whether changes since ``baseline`` are known (``Reason.NONE``), or why not."""

    def snapshot(
        self, ctx: Context, vm: Vm, mode: SnapshotMode, request: SnapshotRequest
    ) -> AbstractContextManager[SourceSnapshot]:
        """Hold one consistent instant of all disks; leaving the context commits the snapshot.

        :raises TrackingLost: if only the incremental part was refused.
        :raises GuestError: if the platform has to quiesce the guest, and cannot.
        :raises PlatformError: if the platform refused.
        """

    def hold_again(
        self, ctx: Context, vm: Vm, request: SnapshotRequest, snapshot: SourceSnapshot
    ) -> AbstractContextManager[SourceSnapshot]:
        """Take over a snapshot that a dead controller holds; leaving the context commits it.

        :raises PlatformError: if it is not held any more.
        """

    def library_export(self, disk: LibraryDisk) -> LibraryExport:
        """How a proxy reaches a disk of a snapshot that is held, and which areas of it changed.

        :raises TrackingLost: if the platform does not tell the areas any more.
        :raises PlatformError: if it refuses, or knows no such disks.
        """

    def markers(self, vm: Vm) -> dict[str, str]:
        """All markers of changes on ``vm``, also those of others: by name, when made, in the platform's words."""

    def remove_orphan(self, vm: Vm, name: str, disks: tuple[str, ...]) -> str:
        """Remove what is left of a marker in these disks of a running VM, after the platform forgot the marker itself.

        :return: why it could not be removed, or empty.
        """

    def keep_baseline(self, vm: Vm, tag: Tag, keep: str, former: str) -> list[str]:
        """Remove the job's markers on ``vm``, and ``former``, except ``keep`` (S3); says what could not be removed.

        ``former`` is the baseline that the replica's record names: another job's, if this one took the replica over.
        """

    def sweep(self, ctx: Context, vm: Vm, tag: Tag) -> list[str]:
        """End snapshots that dead sessions of the job left on ``vm``; says what was done (S7).

        Each is tried once: the caller may hold what others wait for.

        :raises PlatformError: if one stays.
        """

    def traces(self) -> tuple[VmTraces, ...]:
        """What of ours every VM has, by name; changes nothing."""

    def freeze(self, vm_uuid: str, timeout_s: float) -> int:
        """Freeze the guest's file systems; how many.

        :raises GuestError: if the agent refuses, or does not answer within ``timeout_s``.
        """

    def thaw(self, vm_uuid: str, timeout_s: float) -> int:
        """Thaw the guest's file systems; how many were frozen until now. A VM that is off or gone has none.

        :raises GuestError: if the agent refuses, or does not answer within ``timeout_s``.
        """

    def agent_command(self, vm_uuid: str, command: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
        """What the guest agent returns for one command.

        :raises GuestError: if there is no agent, it refuses, or it does not answer within ``timeout_s``.
        """

    def guest_operations(self, vm_uuid: str, login: GuestLogin) -> GuestOperations:
        """Work inside the guest as a user of it, by the platform's own way; nothing is tried yet with the login.

        :raises GuestError: if the platform has no such way, or the guest is not ready for it.
        """


class TargetPlatform(Protocol):
    """A host as a target of replication."""

    def facts(self) -> HostFacts:
        """What the host says of itself."""

    def define_replica(self, spec: ReplicaVmSpec) -> list[str]:
        """Define the replica VM, or define it again; says what the host lacks and how the definition got along.

        :raises Refused: if the host has another VM of that name.
        """

    def replica_state(self, uuid: str) -> VmState | None:
        """Power state of the replica VM, or None if it is not defined."""

    def replica_disks(self, uuid: str) -> set[str]:
        """Paths of the disks in the replica VM's definition, and of those it runs on; empty if it is not defined."""

    def start_replica(self, uuid: str) -> None:
        """Start the replica VM."""

    def stop_replica(self, uuid: str) -> None:
        """Power the replica VM off at once; no error if it is off or not defined."""

    def undefine_replica(self, uuid: str) -> None:
        """Remove the definition; no error if there is none. The VM must be off."""


class Platform(SourcePlatform, TargetPlatform, Protocol):
    """A host in both roles."""

    def preflight(self) -> Preflight | None:
        """What must be known before VMs are replicated from it; None where its facts and its VMs tell all."""

    def close(self) -> None:
        """Give the connection back."""


def open_platform(access: HostAccess, patience: CommitPatience | None = None) -> Platform:
    """Connect to a host.

    :param patience: with merges of snapshot deltas.
    :raises UsageError: if no platform has the scheme of its URI, or what the platform needs is not installed.
    :raises HostUnreachable: if the host does not answer, or is not the one that the administrator has confirmed.
    """
    scheme = access.uri.split(":", 1)[0].split("+", 1)[0]
    if scheme == "qemu":
        from understudy.platforms.libvirt.host import LibvirtHost

        return LibvirtHost(access.uri, patience or CommitPatience())
    if scheme in LIBRARY_SCHEMES:
        try:
            from understudy.platforms.vsphere.host import VsphereHost
        except ModuleNotFoundError as exc:
            raise UsageError("VMware vSphere", f"a part of Understudy for it is not installed here: {exc.name}",
                             "install it: pip install pyvmomi") from exc  # fmt: skip

        return VsphereHost(access, patience or CommitPatience())
    raise UsageError("host URI", f"unknown scheme {scheme!r}",
                     "use a libvirt URI such as qemu:///system, or vpx:// or esx:// for VMware vSphere")  # fmt: skip


def server_certificate(uri: str) -> ServerCertificate:
    """Who the server at a host's address says that it is; nobody logs in, nothing is sent.

    :raises UsageError: if the scheme is not of VMware vSphere.
    :raises HostUnreachable: if nothing answers there.
    """
    if uri.split(":", 1)[0] in LIBRARY_SCHEMES:
        from understudy.platforms.vsphere.address import parse_address
        from understudy.platforms.vsphere.trust import fetch_certificate

        address = parse_address(uri)
        return fetch_certificate(address.host, address.port)
    raise UsageError(f"host URI {uri!r}", "its server has no certificate that could be asked for")
