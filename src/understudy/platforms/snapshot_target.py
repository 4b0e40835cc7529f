"""Targets whose restore points are snapshots of the replica VM itself, made and removed by the platform.

The disks of such a replica VM are written in place: at its leaf, above its newest snapshot, through the vendor's disk
library, while it is powered off. Nothing below a snapshot ever changes, so a published point is immutable (S1); what a
failed or dead session wrote at the leaf is dropped by reverting. The platform's verbs are control calls of the
controller; what a point says of itself is in the record of a store of kind ``model.job.SNAPSHOTS``, beside a proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from understudy.context import Context
from understudy.model.inventory import VmState
from understudy.model.replica import ReplicaIdentity
from understudy.model.snapshot import LibraryExport


@dataclass(frozen=True)
class SnapshotReplica:
    """A replica VM as its platform has it.

    :ivar disks: size in bytes by disk name, of the leaf.
    :ivar points: ids of the restore points that are there as snapshots, oldest first.
    :ivar strangers: names of snapshots that are not ours.
    """

    name: str
    state: VmState
    disks: Mapping[str, int]
    points: tuple[str, ...]
    strangers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SnapshotVmSpec:
    """The replica VM to make, or to make fit.

    :ivar definition: the source VM's definition at the restore point.
    :ivar disks: size in bytes by disk name; others that the VM has are taken from it, their files stay with the points
        that need them.
    :ivar anew: of these, the disks that get a new, empty file, whatever the VM has there.
    :ivar place: the platform's name of the datastore.
    """

    identity: ReplicaIdentity
    definition: str
    disks: Mapping[str, int]
    anew: frozenset[str]
    place: str


@dataclass(frozen=True)
class PlaceSpace:
    """Space of a datastore of the platform, in bytes; ``writable`` is false while it is in maintenance or lost."""

    total_bytes: int
    free_bytes: int
    writable: bool


@runtime_checkable
class SnapshotTarget(Protocol):
    """What such a target can do besides :class:`understudy.platforms.TargetPlatform`. The VM is known by our mark.

    Every verb raises PlatformError if the platform refuses, and Refused if the VM is not ours.
    """

    def place_space(self, place: str) -> PlaceSpace:
        """Space of a datastore.

        :raises NotFound: if there is none of that name.
        """

    def snapshot_replica(self, identity: ReplicaIdentity) -> SnapshotReplica | None:
        """The replica VM; None if there is none."""

    def make_snapshot_replica(self, ctx: Context, spec: SnapshotVmSpec) -> list[str]:
        """Make the replica VM, powered off, its cards connected to nothing; or make it fit, keeping its points.

        :return: what the operator should know.
        :raises Refused: if it runs, or the target has another VM of that name.
        """

    def leaf_export(self, identity: ReplicaIdentity, disk: str) -> LibraryExport:
        """How a proxy writes to a disk's leaf, by the file that the VM uses at this moment."""

    def point_export(self, identity: ReplicaIdentity, disk: str, point: str) -> LibraryExport:
        """How a proxy reads a disk as it was at a point."""

    def take_point(self, ctx: Context, identity: ReplicaIdentity, point: str, text: str) -> None:
        """Make the leaf a restore point; ``text`` says what it is to somebody who looks at the snapshot."""

    def revert_to_point(self, ctx: Context, identity: ReplicaIdentity, point: str) -> None:
        """Drop what was written at the leaf since; the VM is powered off afterwards."""

    def remove_points(self, ctx: Context, identity: ReplicaIdentity, points: tuple[str, ...]) -> list[str]:
        """Remove snapshots of ours, keeping what all others show; those that are not there are no error.

        :return: what could not be done, by point.
        """

    def remove_snapshot_replica(self, ctx: Context, identity: ReplicaIdentity) -> None:
        """Remove the powered-off VM with all its disks; no error if there is none."""
