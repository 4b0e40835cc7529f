"""Who takes part in the replication of one VM: what :func:`understudy.replication.run.replicate_vm` is given."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from understudy.context import Context
from understudy.guests.processing import Watchdog
from understudy.model.job import Datastore, Host, Job
from understudy.model.session import DiskReport, Step, StepState
from understudy.mover.client import MoverClient
from understudy.platforms import SourcePlatform, TargetPlatform


@dataclass(frozen=True)
class Lease:
    """Reserved resources; ``parallel`` disks may be transferred at the same time."""

    parallel: int


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

    def freezing(self, vm_uuid: str, frozen: bool) -> None:
        """The guest is about to be frozen, or was thawed (S9)."""


class Resources(Protocol):
    """Task slots of proxies, and the right to work on a VM."""

    def reserve(self, ctx: Context, job: Job, vm: str, disks: int) -> AbstractContextManager[Lease]:
        """Wait for slots on the job's proxies and for exclusive use of the VM."""


class Guests(Protocol):
    """Starts watchdogs."""

    def watchdog(self, vm_uuid: str) -> Watchdog:
        """A thaw watchdog for a VM of the source host."""


@dataclass(frozen=True)
class Site:
    """The two ends of a task.

    :ivar same_mover: source and target mover are one process, so there is no wire between them.
    """

    source_host: Host
    target_host: Host
    datastore: Datastore
    source: SourcePlatform
    target: TargetPlatform
    source_mover: MoverClient
    target_mover: MoverClient
    same_mover: bool
    journal: TaskJournal
    resources: Resources
    guests: Guests


@dataclass(frozen=True)
class Task:
    """One VM to replicate in one session.

    :ivar full_scan: compare every block, whatever tracking says.
    :ivar may_adopt: UUIDs of replicas without a job, which this job may take over.
    """

    job: Job
    vm: str
    session: int
    full_scan: bool = False
    may_adopt: tuple[str, ...] = ()

    @property
    def replica_name(self) -> str:
        """Name of the replica VM and of the replica."""
        return self.vm + self.job.suffix


@dataclass(frozen=True)
class TaskOutcome:
    """What came of a task."""

    point: str
    consistency: str
    frozen_ms: float | None
