"""Operations of the target side."""

from __future__ import annotations

from dataclasses import dataclass, field

from understudy.model.exclusion import Exclusion
from understudy.model.health import DiskHealth
from understudy.model.replica import Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.model.snapshot import LibraryExport
from understudy.mover.api.common import ReplicaRef
from understudy.storage.values import DatastoreFacts, HeadFacts, NewDisk, PointMeta


@dataclass(frozen=True)
class CheckDatastore:
    """Ask for facts about a datastore directory, trying a write."""

    path: str


@dataclass(frozen=True)
class DatastoreAnswer:
    """Facts about the datastore."""

    facts: DatastoreFacts


@dataclass(frozen=True)
class ListReplicas:
    """Ask which replicas a datastore holds."""

    kind: str
    datastore: str


@dataclass(frozen=True)
class ReplicaNames:
    """Names of replicas."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class InspectReplica:
    """Ask for everything known of one replica."""

    ref: ReplicaRef


@dataclass(frozen=True)
class ReplicaFacts:
    """What the target knows of a replica.

    :ivar replica: None if it does not exist.
    :ivar head_definition: the definition stored with the point on which the head lies, or empty.
    :ivar damage: damaged layers per point id, points without damage left out.
    :ivar images: absolute path per (point id, disk name), as nested dicts.
    :ivar digests: the same for digest files.
    :ivar health: what verifying has found out, see :meth:`understudy.storage.ReplicaStore.health`.
    :ivar problem: why the record cannot be used (lost, damaged) though files of restore points are there; else empty.
    :ivar losses: files other than layers that a point lost or that were altered, per point id, as in ``damage``.
    """

    replica: Replica | None
    head: HeadFacts | None
    last_attempt: int
    damage: dict[str, list[str]]
    images: dict[str, dict[str, str]]
    digests: dict[str, dict[str, str]]
    head_definition: str = ""
    health: tuple[DiskHealth, ...] = ()
    problem: str = ""
    losses: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadExclusions:
    """Ask what the disks of a point leave out."""

    ref: ReplicaRef
    point: str


@dataclass(frozen=True)
class PointExclusions:
    """What the disks of a point leave out; a disk that is not among them leaves out nothing."""

    exclusions: tuple[Exclusion, ...]


@dataclass(frozen=True)
class BeginPoint:
    """Lock the replica for an attempt, make it if new, sweep it, and start a restore point.

    The mover keeps the draft and the lock until it is released, until an attempt with a higher number comes, or until
    its own end. Layers that an earlier attempt left unfinished are continued where that is possible.

    :ivar resume: the draft of this same attempt was lost with the proxy that held it: go on with its files.
    """

    ref: ReplicaRef
    identity: ReplicaIdentity
    attempt: int
    point_id: str
    disks: tuple[NewDisk, ...]
    resume: bool = False


@dataclass(frozen=True)
class DraftOpened:
    """A draft, and what the sweep of the store removed or finished."""

    draft: str
    swept: tuple[str, ...]


@dataclass(frozen=True)
class AttachDisks:
    """Say where the disks of a draft are written whose store keeps no layers in files: at leaves of the replica VM.

    To be told once, before any transfer, when the platform has reverted the replica VM to the newest point; the proxy
    opens and holds them until :class:`SealPoint` or the draft's end. A disk that is not chained has a new, empty file.
    """

    draft: str
    leaves: tuple[LibraryExport, ...]


@dataclass(frozen=True)
class SealPoint:
    """Every disk of the draft is complete: let go of the leaves, so that the platform can make them a restore point."""

    draft: str


@dataclass(frozen=True)
class DraftQuery:
    """Ask whether a draft is held."""

    draft: str


@dataclass(frozen=True)
class DraftHolding:
    """Whether the mover holds the draft."""

    held: bool


@dataclass(frozen=True)
class PublishPoint:
    """Publish a draft; the replica's lock stays held until :class:`ReleaseDraft`."""

    draft: str
    meta: PointMeta


@dataclass(frozen=True)
class PublishedPoint:
    """The point as recorded."""

    point: RestorePoint


@dataclass(frozen=True)
class ReleaseDraft:
    """End with a draft: abandon it if it was not published, give the lock back. Unknown drafts are no error.

    :ivar keep: leave the files of a draft that was not published, so that the next session can continue them.
    """

    draft: str
    keep: bool = False


@dataclass(frozen=True)
class OwnedReplica:
    """An act on a replica: under a draft's lock if ``draft`` is given, else under an own lock for ``attempt``."""

    ref: ReplicaRef
    draft: str = ""
    attempt: int = 0


@dataclass(frozen=True)
class RetirePoints:
    """Retire points (long); the result is in the next inspection."""

    owner: OwnedReplica
    points: tuple[str, ...]


@dataclass(frozen=True)
class ForgetPoints:
    """Take points out of a replica's record whose content the platform does not have any more, or is about to remove.

    Only for stores that keep no layers in files.
    """

    owner: OwnedReplica
    points: tuple[str, ...]


@dataclass(frozen=True)
class BindHead:
    """Make a new head on a point."""

    owner: OwnedReplica
    point: str


@dataclass(frozen=True)
class HeadBound:
    """The new head, and the definition stored with its point."""

    head: HeadFacts
    definition: str


@dataclass(frozen=True)
class ProbeConversion:
    """Ask whether heads can be converted here."""


@dataclass(frozen=True)
class ConversionFacts:
    """The program that converts, or empty if there is none."""

    program: str


@dataclass(frozen=True)
class ConvertHead:
    """Give the guest on an empty head drivers for virtio devices (long); what was done is a fact of the head.

    :ivar timeout_s: the program is ended after so long.
    """

    owner: OwnedReplica
    timeout_s: float


@dataclass(frozen=True)
class SetState:
    """Record the replica's state."""

    owner: OwnedReplica
    state: ReplicaState


@dataclass(frozen=True)
class SetIdentity:
    """Record a changed identity."""

    owner: OwnedReplica
    identity: ReplicaIdentity


@dataclass(frozen=True)
class RemoveReplica:
    """Delete the replica's files."""

    owner: OwnedReplica


@dataclass(frozen=True)
class VerifyPoint:
    """Recompute digests of a point from its layers and compare (long); the outcome is remembered beside the replica.

    A pass that was stopped goes on where it was; disks that it had done already are not read again.

    :ivar rate: bytes a second to read at most; 0 for no limit.
    :ivar restart: begin a new pass, whatever was done of one.
    :ivar exports: how each disk is read, if the store keeps no layers in files.
    """

    ref: ReplicaRef
    point: str
    rate: int = 0
    restart: bool = False
    exports: tuple[LibraryExport, ...] = ()


@dataclass(frozen=True)
class RebuildReplica:
    """Make the record of a replica again from its files, every point proved by its digests (long).

    The result is :attr:`WorkStatus.rebuilt`.

    :ivar known: whose replica it is, if the controller knows.
    :ivar dry_run: say what would be recorded, and record nothing.
    """

    ref: ReplicaRef
    attempt: int
    known: ReplicaIdentity | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class MarkDatastore:
    """Give a datastore directory a marker file; one that it has stays."""

    path: str


@dataclass(frozen=True)
class DatastoreMarker:
    """What the marker file says."""

    marker: str


@dataclass(frozen=True)
class RebuildDigests:
    """Recompute the digest file of a point's disk from its layers (long), when both copies are lost or damaged.

    :ivar export: how it is read, if the store keeps no layers in files.
    """

    ref: ReplicaRef
    point: str
    disk: str
    export: LibraryExport | None = None
