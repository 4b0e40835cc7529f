"""Replica stores: where restore points live on a target datastore.

A store kind is one module or package below this one; :func:`open_store` imports it by kind, lazily. All verbs run on
the target proxy, next to the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from understudy.errors import UsageError
from understudy.model.exclusion import Exclusion
from understudy.model.extent import Extent
from understudy.model.health import DiskHealth
from understudy.model.job import LAYERS, SNAPSHOTS
from understudy.model.replica import Conversion, PointDisk, Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.storage.records.place import replica_names
from understudy.storage.values import (
    DigestFacts,
    HeadFacts,
    KeptLayer,
    NewDisk,
    PointMeta,
    RebuiltReplica,
    StoreLeftovers,
)

Buffer = bytes | bytearray | memoryview
KINDS = (LAYERS, SNAPSHOTS)


class LayerWriter(Protocol):
    """Writes one disk's new layer. Positions are guest offsets; calls may come from several threads."""

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset``; both multiples of 64 KiB except that the last piece ends with the disk.

        :raises DatastoreError: if the datastore is full or fails.
        """

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, whatever a layer below has there; alignment as in :meth:`write_at`."""

    def checkpoint(self, complete: Sequence[Extent]) -> None:
        """Make durable what was written by calls that have returned, then record it and ``complete``.

        A crash loses nothing of that; the layer can be continued from the last checkpoint. One thread calls this,
        others may write meanwhile. Does nothing if there is nothing new.

        :param complete: ranges of the disk whose content, by the caller's word, is final and written: nothing is
            written there again. Those of earlier checkpoints stay complete and need not be told again.
        :raises DatastoreError: if the datastore is full or fails, now or before; the layer can then not be finished.
        """

    def finish(self) -> None:
        """Complete the layer's metadata and make it durable; no write may follow."""


class LeafReader(Protocol):
    """Reads what the leaf of a replica VM holds while it is written; usable by several threads."""

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what is there from ``offset`` on, where nobody writes just now.

        :raises UnderstudyError: if that fails; then nothing more can be written.
        """

    def stop(self) -> None:
        """Whoever reads, writes or waits gives up, from now on, and nothing more can be written."""


class PointDraft(Protocol):
    """A restore point in the making; nobody sees it until :meth:`publish` returned."""

    def attach(
        self, disk: str, socket: str, export: str, holds: Callable[[Extent], Sequence[Extent]]
    ) -> LeafReader:
        """Write ``disk`` to an NBD export on a Unix socket from now on; once, before :meth:`layer` is asked for.

        Only for stores that hold no images.

        :param holds: what of a range of the disk may hold anything but zeros before anything is written; elsewhere
            zeros need not be written.
        :raises Refused: if the store holds images itself.
        :raises ReplicaError: if the export does not fit the disk, or one that is not chained holds something already.
        """

    def layer(self, disk: str) -> LayerWriter:
        """The writer of ``disk``'s layer."""

    def digest_path(self, disk: str) -> Path:
        """The partial digest file of ``disk``; the caller makes it, complete, before publish."""

    def base_digest_path(self, disk: str) -> Path | None:
        """The digest file of the newest published point for ``disk`` if the layer is chained and the file exists."""

    def kept(self, disk: str) -> KeptLayer:
        """What the layer of ``disk`` held when this draft began or was resumed."""

    def publish(self, meta: PointMeta) -> RestorePoint:
        """Make the point visible: everything durable, renamed, then recorded in one rename (S2).

        :raises ReplicaError: if a layer was not finished or a digest file is missing.
        """

    def keep(self) -> None:
        """End the draft, but leave each layer that a later session can continue, as of its last checkpoint.

        Layers of disks without a mark, and those that nothing was written to, are removed. Does nothing after publish.
        """

    def abandon(self) -> None:
        """Remove everything of the draft; does nothing after publish or :meth:`keep`."""


class Salvage(Protocol):
    """A replica whose record is lost or damaged, as its files tell it. The lock must be held."""

    def points(self) -> tuple[RestorePoint, ...]:
        """Restore points that the files may show, oldest first; none of them is proved.

        A refutation may change what shows the others: ask again after each.
        """

    def image(self, disk: PointDisk) -> Path:
        """Absolute path of the layer that may show a disk of one of them."""

    def digest_path(self, disk: PointDisk) -> Path:
        """Absolute path of the digest file with which that must agree."""

    def refute(self, point_id: str, why: str) -> None:
        """The digests of a point are not those of what was to show it: it is none of :meth:`points` any more."""

    def rebuilt(self, *, write: bool) -> RebuiltReplica:
        """The replica with exactly the present :meth:`points`, each proved by the caller; recorded if ``write``.

        :raises ReplicaError: if no point is left.
        """


class ReplicaStore(Protocol):
    """One replica in a datastore."""

    @property
    def holds_images(self) -> bool:
        """Whether the disks are files here, see :meth:`image`; else a platform has them, and there is no image."""

    def exists(self) -> bool:
        """Whether the replica has been made."""

    def problem(self) -> str:
        """Why the record cannot be used though files of restore points are there (lost, damaged); else empty.

        :raises ReplicaError: if the record is of a newer format.
        """

    def salvage(
        self, read_digest: Callable[[Path], DigestFacts | None], known: ReplicaIdentity | None
    ) -> Salvage:
        """Look at the files of a replica that has a :meth:`problem`. The lock must be held.

        :param read_digest: what a digest file says; None if it is damaged.
        :param known: whose replica it is, if the caller knows; else the files must tell.
        :raises Refused: if there is no problem, or nothing tells whose replica it is.
        """

    def load(self) -> Replica:
        """The replica's record.

        :raises NotFound: if there is no replica.
        :raises ReplicaError: if the record is damaged or of a newer format.
        """

    def lock(self, attempt: int) -> AbstractContextManager[None]:
        """Own the replica for attempt number ``attempt`` (S11); leaving the context gives it back.

        :raises Fenced: if another process owns it, or ``attempt`` is lower than one seen before.
        """

    def last_attempt(self) -> int:
        """The highest attempt number seen, 0 if none."""

    def create(self, identity: ReplicaIdentity) -> Replica:
        """Make an empty replica; the same identity again is no error.

        :raises Refused: if the place holds a replica of another identity.
        """

    def leftovers(self) -> StoreLeftovers:
        """What :meth:`sweep` would find now. The lock need not be held: while a session works, its own files show.

        :raises NotFound: if there is no replica.
        """

    def sweep(self, *, keep_continuable: bool = True) -> list[str]:
        """Remove leftovers of dead sessions (partial files) and finish an interrupted merge; say what was done.

        :param keep_continuable: partial layers that a later :meth:`begin_point` can continue stay, with what belongs to
            them.
        """

    def begin_point(self, point_id: str, disks: tuple[NewDisk, ...]) -> PointDraft:
        """Start a restore point with a layer for each of ``disks``. The lock must be held.

        A layer that an earlier point id left is continued if disk size, layer below and mark are equal; if there are
        several, the one with the most in it. All others are removed. See :meth:`PointDraft.kept`.
        """

    def resume_point(self, point_id: str, disks: tuple[NewDisk, ...]) -> PointDraft:
        """Go on with a restore point whose draft ended with its process; ``disks`` as when it was begun.

        A disk whose layer is missing, or cannot be continued, gets a new one. Partial layers of other point ids are
        removed. The lock must be held.
        """

    def damage(self, point_id: str) -> list[str]:
        """Cheap check of a point: the layers that are missing, cut or not chained as recorded; empty if none.

        Each text begins with ``disk <name>: ``, so that only that disk is sent again.
        """

    def losses(self, point_id: str) -> list[str]:
        """Files of a point other than layers that are missing or were altered: its definition, digests; else empty."""

    def image(self, point_id: str, disk: str) -> Path:
        """Absolute path of the layer that shows ``disk`` at that point.

        :raises Refused: if the store holds no images.
        """

    def digest_path(self, point_id: str, disk: str) -> Path:
        """Absolute path of the digest file."""

    def definition(self, point_id: str) -> str:
        """The VM definition stored with the point."""

    def exclusions(self, point_id: str) -> tuple[Exclusion, ...]:
        """What the disks of the point leave out; those that are not among them leave out nothing.

        :raises ReplicaError: if the record names a file for that, and it is missing or damaged.
        """

    def retire(self, point_ids: tuple[str, ...]) -> Replica:
        """Remove these points, which must be the oldest, keeping the content of all others at every instant.

        What is known of the health of the others stays right.

        :raises Refused: if the newest point, or the point under the head, is among them, if a layer is in use, or if
            the replica is being verified.
        """

    def forget(self, point_ids: tuple[str, ...]) -> Replica:
        """Take points out of the record whose content the platform does not have any more, or is about to remove.

        Any of them, also the newest and the one under the head; those that are not there are no error.

        :raises Refused: if the store holds images itself.
        """

    def health(self) -> tuple[DiskHealth, ...]:
        """What verifying has found out, by point and disk, of the points that are there.

        What is damaged in one point shows at every other that reads it, unless that one was found good since. Nothing
        is known where what was remembered is missing or damaged.
        """

    def verifying(self) -> AbstractContextManager[None]:
        """Nobody else verifies the replica, and no layers are merged, inside the context. The lock is not needed.

        :raises Refused: if somebody does.
        """

    def change_health(self, point_id: str, disk: str, change: Callable[[DiskHealth], DiskHealth]) -> None:
        """Remember of a disk what ``change`` makes of what is remembered, durably. The lock is not needed.

        :raises NotFound: if there is no such point, any more, or the VM had no such disk then.
        """

    def head(self) -> HeadFacts:
        """Facts about the head."""

    def bind_head(self, point_id: str) -> HeadFacts:
        """Make a new, empty head on a point, dropping the old one. The replica VM must not run."""

    def set_conversion(self, conversion: Conversion) -> HeadFacts:
        """Record, durably, what was done to the head; :meth:`bind_head` forgets it.

        :raises Refused: if there is no head.
        """

    def set_state(self, state: ReplicaState) -> Replica:
        """Record the replica's state."""

    def set_identity(self, identity: ReplicaIdentity) -> Replica:
        """Record a changed identity: another controller or job took the replica over, or its VM was defined again."""

    def remove(self) -> None:
        """Delete every file of the replica."""


def open_store(kind: str, datastore: Path, replica: str) -> ReplicaStore:
    """The store of ``replica`` (a VM name: any characters) in a datastore directory of ``kind``.

    :raises UsageError: if the kind is unknown.
    """
    if kind == LAYERS:
        from understudy.storage.qcow2.store import Qcow2Store

        return Qcow2Store(datastore, replica)
    if kind == SNAPSHOTS:
        from understudy.storage.snapshots.store import SnapshotStore

        return SnapshotStore(datastore, replica)
    raise _unknown(kind, datastore)


def list_replicas(kind: str, datastore: Path) -> tuple[str, ...]:
    """Names of the replicas in a datastore.

    :raises UsageError: if the kind is unknown.
    """
    if kind not in KINDS:
        raise _unknown(kind, datastore)
    return replica_names(datastore)


def _unknown(kind: str, datastore: Path) -> UsageError:
    return UsageError(f"datastore {datastore}", f"unknown kind {kind!r}", f"known kinds: {', '.join(KINDS)}")
