"""What a task holds while its disks travel: values from which another controller can go on if this one dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from understudy.model.exclusion import Exclusion, exclusion_of
from understudy.model.guest import ApplicationResult
from understudy.model.inventory import Vm
from understudy.model.job import Job
from understudy.model.replica import Consistency, SourceGeneration
from understudy.model.snapshot import SnapshotRequest, SourceSnapshot
from understudy.model.transfer import DiskPlan, Reason
from understudy.mover import api


@dataclass(frozen=True)
class TransferSpec:
    """What the transfers of one task share.

    :ivar base_point: the point that the target has, or empty.
    """

    job: Job
    replica_id: str
    base_point: str
    point: str


@dataclass(frozen=True)
class LostTracking:
    """Why a disk that was to be incremental is scanned; the blocks that showed it, as in a disk's report."""

    reason: Reason
    checked_blocks: int = 0
    mismatched_blocks: int = 0


@dataclass(frozen=True)
class Works:
    """The ends of a transfer that are under way at the proxies, empty if there is none; and the export that is read.

    :ivar lost: set when the source side found that the dirty map cannot be used: the disk's plan is to be scanned now.
    """

    source: str = ""
    target: str = ""
    ticket: str = ""
    socket: str = ""
    export: api.OpenedExport | None = None
    lost: LostTracking | None = None


@dataclass(frozen=True)
class Excluding:
    """What the disks of a task leave out (S10), decided once: whoever goes on with the task leaves out the same.

    :ivar now: what the point in the making leaves out.
    :ivar former: what the newest point leaves out, in ranges of the disks as they are now.
    :ivar once: packed, by disk name: what the point in :attr:`DiskPlan.since_point` leaves out.
    :ivar notes: by disk name: what was not left out although it was wished for, and why.
    """

    now: tuple[Exclusion, ...] = ()
    former: tuple[Exclusion, ...] = ()
    once: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def applied(self, read: api.ReadSpec) -> api.ReadSpec:
        """How a disk is read, with what it leaves out."""
        return replace(
            read, excluded=exclusion_of(self.now, read.disk).packed,
            formerly_excluded=exclusion_of(self.former, read.disk).packed,
            once_excluded=self.once.get(read.disk, ""),
        )


@dataclass(frozen=True)
class HeldTask:
    """A task whose source snapshot is held and whose disks are under way.

    :ivar consistency: what the restore point will be, as guest processing achieved it.
    :ivar begin: the request that opened the draft; ``draft`` is its id.
    :ivar works: by disk name.
    :ivar generation: what the images were just before the snapshot.
    :ivar excluding: what its disks leave out.
    :ivar exports: images that were opened before the transfers, which close them; by disk name.
    :ivar applications: what guest processing achieved with the applications in the guest.
    """

    spec: TransferSpec
    source_proxy: str
    target_proxy: str
    vm: Vm
    request: SnapshotRequest
    plans: tuple[DiskPlan, ...]
    snapshot: SourceSnapshot
    consistency: Consistency
    frozen_ms: float | None
    begin: api.BeginPoint
    draft: str
    works: Mapping[str, Works] = field(default_factory=dict)
    generation: SourceGeneration | None = None
    excluding: Excluding = field(default_factory=Excluding)
    exports: Mapping[str, api.OpenedExport] = field(default_factory=dict)
    applications: tuple[ApplicationResult, ...] = ()
