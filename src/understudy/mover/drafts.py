"""Drafts: restore points in the making that this mover holds, each with the lock of its replica."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from understudy.errors import NotFound, Refused, UsageError
from understudy.model.snapshot import LibraryExport
from understudy.mover import api
from understudy.mover.arriving import Arrival, ArrivingDisk
from understudy.mover.exports import Exports
from understudy.mover.leaves import Held, Leaves
from understudy.storage import PointDraft, ReplicaStore, open_store
from understudy.storage.values import NewDisk

#: A controller asks for its drafts every few seconds. Who does not for so long is dead; another one, started again, has
#: that long to go on with them.
ORPHANED_S = 120.0


def store_of(ref: api.ReplicaRef) -> ReplicaStore:
    """The store of a replica.

    :raises UsageError: if its kind is unknown.
    """
    return open_store(ref.kind, Path(ref.datastore), ref.name)


@dataclass
class Draft:
    """A draft and what became of its disks.

    :ivar base_point: the newest point when the draft began: what chained layers lie on.
    :ivar arriving: disks of which something may have come, by name.
    :ivar busy: disks that a transfer writes now; one at a time.
    :ivar complete: disks whose transfer succeeded.
    :ivar leaves: where its disks are written, if its store holds no images.
    :ivar works: transfers that were begun for it.
    :ivar asked_at: when its controller was last heard of (monotonic).
    """

    id: str
    ref: api.ReplicaRef
    attempt: int
    store: ReplicaStore
    point: PointDraft
    point_id: str
    base_point: str
    replica_id: str
    disks: dict[str, NewDisk]
    held: ExitStack
    arriving: dict[str, ArrivingDisk] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)
    leaves: Leaves = field(default_factory=Leaves)
    works: list[str] = field(default_factory=list)
    ended: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _acts: threading.Lock = field(default_factory=threading.Lock)

    def disk(self, name: str, size: int) -> NewDisk:
        """The disk called ``name``.

        :raises UsageError: if the draft has no such disk, or of another size.
        """
        disk = self.disks.get(name)
        if disk is None or disk.size != size:
            raise UsageError(f"disk {name!r} of draft {self.id}", f"no such disk of {size} bytes")
        return disk

    @contextmanager
    def writing(self, name: str, block_size: int) -> Iterator[ArrivingDisk]:
        """The disk ``name`` as far as it has come, for one transfer; complete if the context ends without an error.

        :raises Refused: if another transfer writes to it, or has completed it.
        """
        with self.lock:
            if self.ended or name in self.busy or name in self.complete:
                why = "another transfer writes to its layer" if name in self.busy else "nothing may be written any more"
                raise Refused(f"write disk {name!r} of draft {self.id}", why, "begin a new restore point")
            self.busy.add(name)
        try:
            yield self._arriving(name, block_size)
            self.complete.add(name)
        finally:
            with self.lock:
                self.busy.discard(name)

    def _arriving(self, name: str, block_size: int) -> ArrivingDisk:
        if name not in self.arriving:
            disk = self.disks[name]
            layer = self.leaves.layer(name, self.point.layer(name))
            self.arriving[name] = ArrivingDisk(Arrival(
                name, self.point_id, disk.size, block_size, layer, self.point.digest_path(name), self.point.kept(name),
            ))
        return self.arriving[name]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Change the replica, by publishing for example; one act at a time, and the draft's end waits for it.

        Ended in the middle of a publish, a draft would remove the layers that the record is just going to name; ended
        in the middle of any act, it would give the lock back too early.

        :raises NotFound: if the draft has ended.
        """
        with self._acts:
            if self.ended:
                raise NotFound(f"draft {self.id!r}", "it has ended")
            yield

    def attach(self, exports: Exports, leaves: Sequence[LibraryExport]) -> None:
        """Write the disks to leaves of the replica VM; once, before any transfer.

        :raises Refused: if it is too late for that, or the store holds images.
        """
        act = f"attach disks to draft {self.id}"
        if self.store.holds_images:
            raise Refused(act, "its layers are files of the datastore")
        with self.acting():
            if self.leaves.attached or self.arriving or self.busy:
                raise Refused(act, "its disks are attached, or being written, already", "begin a new restore point")
            held = [Held(self.store, self.point, disk, self.base_point) for disk in self.disks.values()]
            self.held.callback(self.leaves.close)
            self.leaves.attach(exports, held, leaves, f"leaf of draft {self.id}")

    def seal(self) -> None:
        """Every disk is complete and durable: let go of the leaves; again is no error.

        :raises Refused: if a disk is not complete, or no leaves are attached.
        """
        act = f"seal draft {self.id}"
        with self.acting():
            unfinished = self.unfinished()
            if unfinished:
                raise Refused(act, f"disks without a successful transfer: {', '.join(unfinished)}")
            if not self.leaves.attached:
                raise Refused(act, "its disks are not written to leaves")
            self.leaves.seal()

    def end(self, *, keep: bool) -> None:
        """Nothing is written any more; abandon what was not published, or leave it to be continued, if ``keep``."""
        with self.lock:
            self.ended = True
        with self._acts, self.held:
            for disk in self.arriving.values():
                disk.close()
            if keep:
                self.point.keep()
            else:
                self.point.abandon()

    def unfinished(self) -> list[str]:
        """Disks without a successful transfer."""
        return sorted(self.disks.keys() - self.complete)


class Drafts:
    """The drafts by id."""

    def __init__(self) -> None:
        self._drafts: dict[str, Draft] = {}

    def begin(self, request: api.BeginPoint) -> tuple[Draft, list[str]]:
        """Lock the replica, make it if new, sweep it, begin a point or go on with one; also what the sweep did.

        :raises Fenced: if another attempt owns the replica.
        """
        store = store_of(request.ref)
        with ExitStack() as stack:
            stack.enter_context(store.lock(request.attempt))
            replica = store.create(request.identity)
            swept = store.sweep()
            newest = store.load().newest
            begin = store.resume_point if request.resume else store.begin_point
            point = begin(request.point_id, request.disks)
            draft = Draft(
                uuid.uuid4().hex, request.ref, request.attempt, store, point, request.point_id,
                newest.id if newest else "", replica.identity.id, {disk.name: disk for disk in request.disks},
                stack.pop_all(),
            )
        self._drafts[draft.id] = draft
        return draft, swept

    def get(self, key: str) -> Draft:
        """The draft called ``key``.

        :raises NotFound: if this mover holds no such draft.
        """
        draft = self._drafts.get(key)
        if draft is None:
            raise NotFound(f"draft {key!r}", "this proxy does not hold it", "the proxy may have been restarted")
        draft.asked_at = time.monotonic()
        return draft

    def is_held(self, key: str) -> bool:
        """Whether this mover holds the draft; its controller is alive then, for it asks."""
        draft = self._drafts.get(key)
        if draft is not None:
            draft.asked_at = time.monotonic()
        return draft is not None

    def orphaned(self) -> list[Draft]:
        """Drafts whose controller was not heard of for so long that it must be dead."""
        now = time.monotonic()
        return [draft for draft in list(self._drafts.values()) if now - draft.asked_at > ORPHANED_S]

    def release(self, key: str, *, keep: bool) -> None:
        """End the draft, see :meth:`Draft.end`, and give the lock back; unknown drafts are no error."""
        draft = self._drafts.pop(key, None)
        if draft is not None:
            draft.end(keep=keep)

    def superseded(self, ref: api.ReplicaRef, attempt: int) -> list[Draft]:
        """Drafts of the replica that are no longer wanted when ``attempt`` comes (S11)."""
        return [draft for draft in list(self._drafts.values()) if draft.ref == ref and draft.attempt < attempt]

    def stop_writing(self) -> None:
        """Whoever waits for a disk library to write something gives up."""
        for draft in list(self._drafts.values()):
            draft.leaves.stop()

    def ids(self) -> list[str]:
        """Ids of all drafts held."""
        return list(self._drafts)

    @contextmanager
    def owned(self, owner: api.OwnedReplica) -> Iterator[ReplicaStore]:
        """The store of a replica under a draft's lock, or under a lock of its own.

        :raises Fenced: if another attempt owns it.
        :raises UsageError: if the draft is one of another replica.
        """
        if owner.draft:
            draft = self.get(owner.draft)
            if draft.ref != owner.ref:
                raise UsageError(f"replica {owner.ref.name!r}", "the draft is of another replica")
            with draft.acting():
                yield draft.store
            return
        store = store_of(owner.ref)
        with store.lock(owner.attempt):
            yield store
