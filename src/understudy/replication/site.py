"""Who takes part in the replication of one VM: what :func:`understudy.replication.run.replicate_vm` is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from understudy.context import Context
from understudy.guests.freezing import Watchdog
from understudy.guests.ssh import SshAccess
from understudy.model.guest import GuestReport
from understudy.model.inventory import Disk, Vm
from understudy.model.job import Datastore, Host, Job, Proxy, ProxyKind
from understudy.model.session import DiskReport, Step, StepState
from understudy.model.transfer import TransportMode
from understudy.mover.client import MoverClient
from understudy.platforms import SourcePlatform, TargetPlatform
from understudy.platforms.snapshot_target import SnapshotTarget, snapshot_target
from understudy.replication.held import HeldTask


@dataclass(frozen=True)
class Lease:
    """What a task has reserved: the VM, its source snapshot, two proxies (or one), and a slot for its first disk.

    :ivar transport: how the source proxy reaches the disks.
    :ivar take: ask before each disk: empty if it may run now, else what is in its way, in words; then ask again later.
    :ivar give_back: to be called when a disk that was taken has ended, however it did.
    """

    source_proxy: Proxy
    target_proxy: Proxy
    source_mover: MoverClient
    target_mover: MoverClient
    transport: TransportMode
    take: Callable[[], str]
    give_back: Callable[[], None]


class TaskJournal(Protocol):
    """Where a task tells what it does; what it says is durable when the call returns."""

    def step(self, step: Step) -> AbstractContextManager[None]:
        """A step that lasts while the context does; an exception marks it failed or cancelled."""

    def step_took(self, step: Step, state: StepState, seconds: float) -> None:
        """A step that ran inside another one."""

    def disk(self, report: DiskReport, final: bool) -> None:
        """How far a disk transfer is; ``final`` when it has ended."""

    def warn(self, text: str) -> None:
        """Something the operator should know; the task goes on."""

    def waiting(self, reason: str) -> None:
        """The task waits, and why; an empty reason ends the wait."""

    def holding(self, held: HeldTask | None) -> None:
        """What the task holds now, for a controller that goes on with it; None if there is nothing to go on with."""

    def freezing(self, vm_uuid: str, deadline_s: float, frozen: bool) -> None:
        """The guest is about to be frozen, for ``deadline_s`` at the longest, or was thawed (S9)."""

    def guest(self, report: GuestReport) -> None:
        """What guest processing did so far."""


class Resources(Protocol):
    """Task slots of proxies, limits of datastores, and the right to work on a VM."""

    def reserve(self, ctx: Context, job: Job, vm: Vm, disks: Sequence[Disk]) -> AbstractContextManager[Lease]:
        """Choose proxies for a task, and wait until all that it needs to begin is free; nothing is held before.

        :raises MoverError: if no proxy can do it.
        """

    def sending(self, source: Proxy, target: Proxy) -> AbstractContextManager[tuple[str, ...]]:
        """Inside the context a disk is sent between two proxies; gives the keys of the rate limits that hold for it.

        :raises MoverError: if the source proxy could not be told a limit.
        """

    def restarted(self, source: Proxy) -> None:
        """A source proxy was started again, and has forgotten its rate limits."""


class Guests(Protocol):
    """Starts watchdogs, and knows who may log in to guests."""

    def watchdog(self, vm_uuid: str) -> Watchdog:
        """A thaw watchdog for a VM of the source host."""

    def access(self, job: Job, vm: Vm) -> SshAccess | None:
        """How the guest of ``vm`` is reached by SSH; None if the job has no credential for it."""


@dataclass(frozen=True)
class Place:
    """The two ends of a task, before it has proxies."""

    source_host: Host
    target_host: Host
    datastore: Datastore
    source: SourcePlatform
    target: TargetPlatform
    journal: TaskJournal
    resources: Resources
    guests: Guests

    @property
    def snapshots(self) -> SnapshotTarget | None:
        """The target, if its datastore keeps restore points as snapshots of the replica VM; else None.

        :raises Refused: if the host cannot keep such a datastore.
        """
        return snapshot_target(self.datastore.kind, self.target)

    def with_proxies(self, lease: Lease) -> Site:
        """The same place with the proxies of ``lease``."""
        return Site(
            self.source_host, self.target_host, self.datastore, self.source, self.target, self.journal, self.resources,
            self.guests, lease.source_mover, lease.target_mover,
            lease.source_proxy.name == lease.target_proxy.name, lease.transport, lease.source_proxy, lease.target_proxy,
        )  # fmt: skip


@dataclass(frozen=True)
class Site(Place):
    """The two ends of a task.

    :ivar same_mover: source and target mover are one process, so there is no wire between them.
    :ivar transport: how the source mover reaches the disks; it can touch files of the source host only if it is local.
    """

    source_mover: MoverClient
    target_mover: MoverClient
    same_mover: bool
    transport: TransportMode
    source_proxy: Proxy
    target_proxy: Proxy

    @property
    def sees_files(self) -> bool:
        """Whether the source proxy is on the source host, so that it can touch files there."""
        return self.transport is TransportMode.LOCAL

    @property
    def by_library(self) -> bool:
        """Whether the disks are read through the vendor's disk library, out of snapshots that the platform names."""
        return self.transport is TransportMode.LIBRARY

    @property
    def by_socket(self) -> bool:
        """Whether the proxies reach each other by a Unix socket: both are children of this controller."""
        return {self.source_proxy.kind, self.target_proxy.kind} == {ProxyKind.CHILD}

    @property
    def one_machine(self) -> bool:
        """Whether both proxies are on the same machine."""
        host = self.source_proxy.host
        return self.by_socket or (bool(host) and host == self.target_proxy.host)


@dataclass(frozen=True)
class Task:
    """One VM to replicate in one session.

    :ivar job: as it holds for this VM: its source is the host where the VM is now.
    :ivar vm: how the job calls the VM.
    :ivar called: how the VM is called on its host now.
    :ivar full_scan: compare every block, whatever tracking says.
    :ivar may_adopt: UUIDs of replicas without a job, which this job may take over.
    """

    job: Job
    vm: str
    called: str
    session: int
    full_scan: bool = False
    may_adopt: tuple[str, ...] = ()

    @property
    def replica_name(self) -> str:
        """Name of the replica VM and of the replica."""
        return self.job.replica_name(self.vm)


@dataclass(frozen=True)
class TaskOutcome:
    """What came of a task."""

    point: str
    consistency: str
    frozen_ms: float | None
