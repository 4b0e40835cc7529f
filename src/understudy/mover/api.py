"""The values of the control protocol between controller and mover; each operation is a request and a response.

Long operations answer with a work id; :class:`WorkStatus` tells how far it is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from understudy.model.job import Compression
from understudy.model.replica import Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.model.transfer import TransferMode
from understudy.storage import DatastoreFacts, HeadFacts, NewDisk, PointMeta


@dataclass(frozen=True)
class ReplicaRef:
    """Where a replica lies: store kind, datastore directory, replica name."""

    kind: str
    datastore: str
    name: str


@dataclass(frozen=True)
class About:
    """Ask who answers; see :class:`MoverInfo`."""


@dataclass(frozen=True)
class MoverInfo:
    """Who answers: versions of everything that touches data, for the record of each point."""

    name: str
    pid: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Nothing:
    """No values."""


# --- source side ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrepareScratch:
    """Make ``directory`` (parents too) so that the emulator, user ``uid`` and group ``gid``, can write there."""

    directory: str
    uid: int
    gid: int


@dataclass(frozen=True)
class ScratchFacts:
    """Space in the scratch directory."""

    free_bytes: int


@dataclass(frozen=True)
class ProbeImage:
    """Ask what an image file is; it may be in use."""

    image: str
    image_format: str


@dataclass(frozen=True)
class ImageFacts:
    """What an image file is.

    :ivar can_track: it can hold dirty bitmaps (qcow2 version 3).
    :ivar bitmaps: the consistent bitmaps in it; those of a running VM are in its memory and do not show.
    """

    can_track: bool
    bitmaps: tuple[str, ...]


@dataclass(frozen=True)
class ReadNvram:
    """Read the file with a VM's UEFI variables."""

    path: str


@dataclass(frozen=True)
class NvramContent:
    """UEFI variables in base64; empty if the VM was never started and so has no file yet."""

    content: str


@dataclass(frozen=True)
class OpenExport:
    """Serve an image read-only with qemu-nbd: a powered-off VM's disk, or the base below a snapshot delta.

    :ivar bitmap: dirty bitmap in the image to export, or empty.
    """

    image: str
    image_format: str
    bitmap: str
    tag: str


@dataclass(frozen=True)
class NbdSource:
    """Where to read one disk.

    :ivar socket: Unix socket of the NBD server.
    :ivar export: export name.
    :ivar dirty_context: NBD meta context that tells dirty areas, or empty: no tracking, everything may have changed.
    """

    socket: str
    export: str
    dirty_context: str


@dataclass(frozen=True)
class OpenedExport:
    """An export that :class:`CloseExport` ends."""

    id: str
    source: NbdSource


@dataclass(frozen=True)
class CloseExport:
    """End an export of :class:`OpenExport`; unknown ids are no error."""

    id: str


@dataclass(frozen=True)
class RemoveTagged:
    """Remove plain files and sockets in ``directory`` whose name contains ``tag``, but not one of ``keep``."""

    directory: str
    tag: str
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Removed:
    """Paths that were removed."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class DigestRef:
    """A source side digest copy: which replica, disk and point. As a request: answered by :class:`DigestHolding`."""

    replica_id: str
    disk: str
    point: str


@dataclass(frozen=True)
class DigestHolding:
    """Whether the source mover holds a usable digest copy of the point."""

    usable: bool


@dataclass(frozen=True)
class KeepDigests:
    """The point was published: keep the source side digest copies that its transfers made, drop those of older points.

    Again is no error. :class:`~understudy.errors.NotFound` if a disk has no copy of this point.
    """

    replica_id: str
    point: str
    disks: tuple[str, ...]


@dataclass(frozen=True)
class DropDigests:
    """Remove source side digest copies, unfinished ones too: of one ``point``, or all of the replica if it is empty."""

    replica_id: str
    point: str = ""


# --- target side ------------------------------------------------------------------------------------------------------


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
    """

    replica: Replica | None
    head: HeadFacts | None
    last_attempt: int
    damage: dict[str, list[str]]
    images: dict[str, dict[str, str]]
    digests: dict[str, dict[str, str]]
    head_definition: str = ""


@dataclass(frozen=True)
class BeginPoint:
    """Lock the replica for an attempt, make it if new, sweep it, and start a restore point.

    The mover keeps the draft and the lock until publish, abandon, or its own end.
    """

    ref: ReplicaRef
    identity: ReplicaIdentity
    attempt: int
    point_id: str
    disks: tuple[NewDisk, ...]


@dataclass(frozen=True)
class DraftOpened:
    """A draft, and what the sweep of the store removed or finished."""

    draft: str
    swept: tuple[str, ...]


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
    """End with a draft: abandon it if it was not published, give the lock back. Unknown drafts are no error."""

    draft: str


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
    """Recompute digests of a point from its layers and compare (long); see :class:`VerifyReport`."""

    ref: ReplicaRef
    point: str


@dataclass(frozen=True)
class VerifiedDisk:
    """Outcome for one disk: ``bad_blocks`` are block indexes whose content does not match, at most 1000 of them."""

    name: str
    blocks: int
    bad_count: int
    bad_blocks: tuple[int, ...]
    problem: str


@dataclass(frozen=True)
class RebuildDigests:
    """Recompute the digest file of a point's disk from its layers (long), when both copies are lost or damaged."""

    ref: ReplicaRef
    point: str
    disk: str


# --- transfer ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadSpec:
    """How the source side processes one disk.

    :ivar base_point: the point whose digests tell what the replica has, or empty.
    :ivar chained: zeros must be written, because a layer below may have data there (S6).
    :ivar replica_id, point, disk: name the digest copy that the source side keeps.
    """

    source: NbdSource
    disk: str
    size: int
    mode: TransferMode
    block_size: int
    chained: bool
    replica_id: str
    base_point: str
    point: str


@dataclass(frozen=True)
class CopyDisk:
    """Read and write in this one mover, no wire (long)."""

    read: ReadSpec
    draft: str


@dataclass(frozen=True)
class ReceiveDisk:
    """Start the target side of a transfer (long); the answer tells where the source side must connect."""

    draft: str
    disk: str
    size: int
    block_size: int


@dataclass(frozen=True)
class ReceiveStarted:
    """The target side listens on a Unix ``socket`` and expects ``ticket`` first."""

    work: str
    socket: str
    ticket: str


@dataclass(frozen=True)
class SendDisk:
    """Start the source side of a transfer (long)."""

    read: ReadSpec
    socket: str
    ticket: str
    compression: Compression


# --- work -------------------------------------------------------------------------------------------------------------


class WorkState(enum.StrEnum):
    """State of a long operation."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class WorkStarted:
    """A long operation was started."""

    work: str


@dataclass(frozen=True)
class WorkQuery:
    """Ask for progress, waiting up to ``wait_s`` seconds for the end."""

    work: str
    wait_s: float = 0.0


@dataclass(frozen=True)
class CancelWork:
    """Stop a long operation and wait for its end; unknown ids are no error."""

    work: str


@dataclass(frozen=True)
class Progress:
    """Completed work in bytes, and the busy seconds of each part so far (``source``, ``source_proxy``, ...)."""

    total: int = 0
    processed: int = 0
    read: int = 0
    sent: int = 0
    wire: int = 0
    zero: int = 0
    busy: dict[str, float] | None = None


@dataclass(frozen=True)
class ErrorFields:
    """An error on its way between processes."""

    code: str
    what: str
    why: str
    todo: str


@dataclass(frozen=True)
class WorkStatus:
    """How far a long operation is; ``verified`` is filled by :class:`VerifyPoint` alone."""

    state: WorkState
    seconds: float
    progress: Progress
    error: ErrorFields | None = None
    verified: tuple[VerifiedDisk, ...] = ()
