"""The qcow2 store: one replica's restore points, head and record. This page delegates; see the modules beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from understudy.errors import NotFound, Refused, ReplicaError
from understudy.model.exclusion import Exclusion
from understudy.model.health import DiskHealth
from understudy.model.replica import Conversion, PointDisk, Replica, ReplicaIdentity, ReplicaState
from understudy.storage.files import datastore_errors, make_directory
from understudy.storage.qcow2 import check, head, merge
from understudy.storage.qcow2.draft import Qcow2Draft
from understudy.storage.qcow2.inuse import in_use, used
from understudy.storage.qcow2.manifest import REBUILD, Record, load_record, record_problem, save_record
from understudy.storage.qcow2.names import Place
from understudy.storage.qcow2.salvage import Qcow2Salvage, ReadDigest
from understudy.storage.qcow2.shared import spread
from understudy.storage.qcow2.sweep import find_leftovers, remove_unneeded
from understudy.storage.records.contents import load_definition
from understudy.storage.records.exclusions import load_exclusions
from understudy.storage.records.health import alone, change_health, load_health
from understudy.storage.records.lock import last_attempt, own
from understudy.storage.records.losses import losses
from understudy.storage.records.making import refuse_another, refuse_strays
from understudy.storage.records.place import directory_name
from understudy.storage.records.removal import remove_everything
from understudy.storage.values import HeadFacts, NewDisk, StoreLeftovers


class Qcow2Store:
    """One replica in a datastore directory; a :class:`understudy.storage.ReplicaStore`.

    Verbs that change something need the lock, taken through this same object.
    """

    holds_images = True

    def __init__(self, datastore: Path, replica: str) -> None:
        self._place = Place(datastore.absolute() / directory_name(replica), replica)
        self._lock: int | None = None
        self._draft: Qcow2Draft | None = None

    def exists(self) -> bool:
        """Whether the replica has been made."""
        with datastore_errors(f"look for {self._place.what}"):
            return self._place.record.is_file()

    def load(self) -> Replica:
        """The replica's record."""
        return load_record(self._place).replica

    def problem(self) -> str:
        """Why the record cannot be used though files of restore points are there; else empty."""
        return record_problem(self._place)

    def salvage(self, read_digest: ReadDigest, known: ReplicaIdentity | None) -> Qcow2Salvage:
        """Look at the files of a replica whose record is lost or damaged."""
        self._owned()
        return Qcow2Salvage(self._place, read_digest, known, self._require_lock)

    @contextmanager
    def lock(self, attempt: int) -> Iterator[None]:
        """Own the replica for attempt number ``attempt`` (S11); leaving the context gives it back."""
        with own(self._place, attempt) as fd:
            self._lock = fd
            try:
                yield
            finally:
                self._lock = None

    def last_attempt(self) -> int:
        """The highest attempt number seen, 0 if none."""
        return last_attempt(self._place)

    def create(self, identity: ReplicaIdentity) -> Replica:
        """Make an empty replica; the same identity (by its id) again is no error and changes nothing."""
        self._owned()
        what = f"create {self._place.what}"
        if self.exists():
            replica = self.load()
            refuse_another(what, replica, identity)
            return replica
        with datastore_errors(what):
            refuse_strays(what, self._place, REBUILD)
            for directory in self._directories():
                make_directory(directory)
        return save_record(self._place, Record(Replica(identity, ReplicaState.READY, ()))).replica

    def leftovers(self) -> StoreLeftovers:
        """What a sweep would find now."""
        return find_leftovers(self._place, load_record(self._place))

    def sweep(self, *, keep_continuable: bool = True) -> list[str]:
        """Remove leftovers of dead sessions and finish an interrupted merge; say what was done.

        Layers in the making that a later session can continue stay, unless they are not wanted.
        A merge whose layers are in use waits for the next sweep: the points are readable as they are.
        """
        lock = self._owned()
        self._no_draft("sweep")
        if not self.exists():
            return []
        record = load_record(self._place)
        try:
            record, done = merge.finish_merge(self._place, record, lock)
        except Refused as exc:
            done = [f"left a merge for later: {exc}"]
        removed = remove_unneeded(self._place, record, keep_continuable=keep_continuable)
        return done + [f"removed {name}" for name in removed]

    def begin_point(self, point_id: str, disks: tuple[NewDisk, ...]) -> Qcow2Draft:
        """Start a restore point with a layer for each of ``disks``; one at a time."""
        self._owned()
        self._no_draft("begin another restore point")
        self._draft = Qcow2Draft(self._place, point_id, disks, self._require_lock)
        return self._draft

    def resume_point(self, point_id: str, disks: tuple[NewDisk, ...]) -> Qcow2Draft:
        """Go on with a restore point whose draft ended with its process; one at a time."""
        self._owned()
        self._no_draft("resume a restore point")
        self._draft = Qcow2Draft(self._place, point_id, disks, self._require_lock, resume=True)
        return self._draft

    def damage(self, point_id: str) -> list[str]:
        """Cheap check of a point: the layers that are missing, cut or not chained as recorded; empty if none."""
        record = load_record(self._place)
        return check.damage(self._place, record, record.replica.point(point_id))

    def losses(self, point_id: str) -> list[str]:
        """Files of a point other than layers that are missing or were altered."""
        return losses(self._place, self.load().point(point_id))

    def image(self, point_id: str, disk: str) -> Path:
        """Absolute path of the layer that shows ``disk`` at that point."""
        return self._place.layers / self._point_disk(point_id, disk).layer

    def digest_path(self, point_id: str, disk: str) -> Path:
        """Absolute path of the digest file."""
        return self._place.digests / self._point_disk(point_id, disk).digest

    def definition(self, point_id: str) -> str:
        """The VM definition stored with the point.

        :raises ReplicaError: if the file is missing or damaged.
        """
        return load_definition(self._place, self.load().point(point_id))

    def exclusions(self, point_id: str) -> tuple[Exclusion, ...]:
        """What the disks of the point leave out."""
        return load_exclusions(self._place, self.load().point(point_id))

    def retire(self, point_ids: tuple[str, ...]) -> Replica:
        """Remove these points, which must be the oldest, keeping the content of all others at every instant."""
        lock = self._owned()
        self._no_draft("retire restore points")
        return merge.retire(self._place, load_record(self._place), point_ids, lock).replica

    def forget(self, point_ids: tuple[str, ...]) -> NoReturn:
        """Points here never vanish by themselves.

        :raises Refused: always.
        """
        raise Refused(f"forget restore points {', '.join(point_ids)} of {self._place.what}",
                      "their disks are files here, which stay until they are merged", "retire the oldest ones")

    def health(self) -> tuple[DiskHealth, ...]:
        """What verifying has found out, of the points that are there; damage shows at every point that reads it."""
        record = load_record(self._place)
        return load_health(self._place, record.replica, functools.partial(spread, self._place, record))

    def verifying(self) -> AbstractContextManager[None]:
        """Nobody else verifies the replica, and no layers are merged, inside the context."""
        return alone(self._place, f"verify {self._place.what}")

    def change_health(self, point_id: str, disk: str, change: Callable[[DiskHealth], DiskHealth]) -> None:
        """Remember of a disk what ``change`` makes of what is remembered, durably; the replica's lock is not needed."""
        change_health(self._place, self.load, point_id, disk, change)

    def head(self) -> HeadFacts:
        """Facts about the head."""
        return head.head_facts(self._place, load_record(self._place))

    def bind_head(self, point_id: str) -> HeadFacts:
        """Make a new, empty head on a point, dropping the old one. The replica VM must not run."""
        self._owned()
        record = load_record(self._place)
        record = head.bind_head(self._place, record, record.replica.point(point_id))
        return head.head_facts(self._place, record)

    def set_conversion(self, conversion: Conversion) -> HeadFacts:
        """Record what was done to the head."""
        self._owned()
        record = head.set_conversion(self._place, load_record(self._place), conversion)
        return head.head_facts(self._place, record)

    def set_state(self, state: ReplicaState) -> Replica:
        """Record the replica's state."""
        self._owned()
        record = load_record(self._place)
        return save_record(self._place, replace(record, replica=replace(record.replica, state=state))).replica

    def set_identity(self, identity: ReplicaIdentity) -> Replica:
        """Record a changed identity."""
        self._owned()
        record = load_record(self._place)
        return save_record(self._place, replace(record, replica=replace(record.replica, identity=identity))).replica

    def remove(self) -> None:
        """Delete every file of the replica, and its directory.

        The record goes last, so that an interrupted removal can be repeated.

        :raises Refused: if a file is in use; nothing is deleted then.
        :raises ReplicaError: if the directory holds files that are not ours; these stay.
        """
        self._owned()
        self._no_draft("remove the replica")
        what = f"remove {self._place.what}"
        with datastore_errors(what), alone(self._place, what):
            files = self._place.own_files()
            for path in files:
                if in_use(path):
                    raise used(what, path)
            remove_everything(self._place, what, files, self._directories())

    def _directories(self) -> tuple[Path, ...]:
        return self._place.layers, self._place.digests, self._place.points, self._place.head

    def _point_disk(self, point_id: str, disk: str) -> PointDisk:
        found = self.load().point(point_id).disk(disk)
        if found is None:
            raise NotFound(f"disk {disk!r} of restore point {point_id!r} of {self._place.what}",
                           "the VM had no such disk then")
        return found

    def _owned(self) -> int:
        if self._lock is None:
            raise ReplicaError(f"change {self._place.what}", "its lock is not held")
        return self._lock

    def _require_lock(self) -> None:
        self._owned()

    def _no_draft(self, act: str) -> None:
        if self._draft is not None and self._draft.open:
            raise ReplicaError(f"{act} in {self._place.what}", "a restore point is in the making")
