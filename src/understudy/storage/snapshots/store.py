"""The store of snapshots: one replica's restore points as its platform holds them, and their record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from understudy.errors import NotFound, Refused, ReplicaError
from understudy.faults import fault_point
from understudy.model.exclusion import Exclusion
from understudy.model.health import DiskHealth
from understudy.model.replica import Conversion, Replica, ReplicaIdentity, ReplicaState
from understudy.storage.files import datastore_errors, make_directory
from understudy.storage.records.contents import load_definition
from understudy.storage.records.exclusions import load_exclusions
from understudy.storage.records.health import Known, alone, change_health, load_health
from understudy.storage.records.lock import last_attempt, own
from understudy.storage.records.losses import losses
from understudy.storage.records.making import refuse_another, refuse_strays
from understudy.storage.records.place import directory_name
from understudy.storage.records.removal import remove_everything
from understudy.storage.snapshots.draft import SnapshotDraft
from understudy.storage.snapshots.manifest import ANEW, load_record, record_problem, save_record
from understudy.storage.snapshots.names import Place
from understudy.storage.snapshots.points import retired, without
from understudy.storage.snapshots.sweep import find_unneeded, remove_unneeded
from understudy.storage.values import DigestFacts, HeadFacts, NewDisk, StoreLeftovers


class SnapshotStore:
    """One replica without its disks; a :class:`understudy.storage.ReplicaStore`.

    Verbs that change something need the lock, taken through this same object.
    """

    holds_images = False

    def __init__(self, datastore: Path, replica: str) -> None:
        self._place = Place(datastore.absolute() / directory_name(replica), replica)
        self._locked = False
        self._draft: SnapshotDraft | None = None

    def exists(self) -> bool:
        """Whether the replica has been made."""
        with datastore_errors(f"look for {self._place.what}"):
            return self._place.record.is_file()

    def load(self) -> Replica:
        """The replica's record."""
        return load_record(self._place)

    def problem(self) -> str:
        """Why the record cannot be used though files of restore points are there; else empty."""
        return record_problem(self._place)

    def salvage(
        self, read_digest: Callable[[Path], DigestFacts | None], known: ReplicaIdentity | None  # noqa: ARG002
    ) -> NoReturn:
        """Nothing can be proved by files alone, for the disks are with the platform.

        :raises Refused: always.
        """
        raise Refused(f"rebuild the record of {self._place.what}",
                      "its disks are snapshots of the replica VM, and nothing in its directory proves what they hold",
                      ANEW)

    @contextmanager
    def lock(self, attempt: int) -> Iterator[None]:
        """Own the replica for attempt number ``attempt`` (S11); leaving the context gives it back."""
        with own(self._place, attempt):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

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
            refuse_strays(what, self._place, ANEW)
            for directory in self._place.directories:
                make_directory(directory)
        return save_record(self._place, Replica(identity, ReplicaState.READY, ()))

    def leftovers(self) -> StoreLeftovers:
        """What a sweep would find now."""
        return StoreLeftovers(unneeded=tuple(map(str, find_unneeded(self._place, self.load()))))

    def sweep(self, *, keep_continuable: bool = True) -> list[str]:  # noqa: ARG002 - nothing is ever continued
        """Remove leftovers of dead sessions; say what was done."""
        self._owned()
        self._no_draft("sweep")
        if not self.exists():
            return []
        return [f"removed {name}" for name in remove_unneeded(self._place, self.load())]

    def begin_point(self, point_id: str, disks: tuple[NewDisk, ...]) -> SnapshotDraft:
        """Start a restore point; one at a time. The platform has reverted the replica VM to the newest point."""
        self._owned()
        self._no_draft("begin another restore point")
        self._draft = SnapshotDraft(self._place, point_id, disks, self._owned)
        return self._draft

    def resume_point(self, point_id: str, disks: tuple[NewDisk, ...]) -> SnapshotDraft:
        """As :meth:`begin_point`: what an earlier draft wrote counts for nothing."""
        return self.begin_point(point_id, disks)

    def damage(self, point_id: str) -> list[str]:
        """Nothing: files tell nothing of what the platform holds. Whether a snapshot is there, it knows itself."""
        self.load().point(point_id)
        return []

    def losses(self, point_id: str) -> list[str]:
        """Files of a point that are missing or were altered."""
        return losses(self._place, self.load().point(point_id))

    def image(self, point_id: str, disk: str) -> NoReturn:
        """There is none.

        :raises Refused: always, except if there is no such point or disk.
        """
        self._check_disk(point_id, disk)
        raise Refused(f"read disk {disk!r} of restore point {point_id!r} of {self._place.what}",
                      "it is in a snapshot of the replica VM, not in a file", "read it through the platform")

    def digest_path(self, point_id: str, disk: str) -> Path:
        """Absolute path of the digest file."""
        return self._place.digests / self._check_disk(point_id, disk)

    def definition(self, point_id: str) -> str:
        """The VM definition stored with the point."""
        return load_definition(self._place, self.load().point(point_id))

    def exclusions(self, point_id: str) -> tuple[Exclusion, ...]:
        """What the disks of the point leave out."""
        return load_exclusions(self._place, self.load().point(point_id))

    def retire(self, point_ids: tuple[str, ...]) -> Replica:
        """Take the oldest points out of the record; the platform then removes their snapshots."""
        self._owned()
        self._no_draft("retire restore points")
        act = f"retire restore points of {self._place.what}"
        replica = self.load()
        if not point_ids:
            return replica
        after = retired(act, replica, point_ids)
        with alone(self._place, act):
            return self._drop_points(after)

    def forget(self, point_ids: tuple[str, ...]) -> Replica:
        """Take any points out of the record; see :class:`understudy.storage.ReplicaStore`."""
        self._owned()
        self._no_draft("forget restore points")
        replica = self.load()
        after = without(replica, point_ids)
        return self._drop_points(after) if after != replica else replica

    def _drop_points(self, after: Replica) -> Replica:
        save_record(self._place, after)
        fault_point("retire.recorded")
        remove_unneeded(self._place, after)
        return after

    def health(self) -> tuple[DiskHealth, ...]:
        """What verifying has found out, of the points that are there, each for itself; see :func:`_unshared`."""
        return load_health(self._place, self.load(), _unshared)

    def verifying(self) -> AbstractContextManager[None]:
        """Nobody else verifies the replica, and no points are retired, inside the context."""
        return alone(self._place, f"verify {self._place.what}")

    def change_health(self, point_id: str, disk: str, change: Callable[[DiskHealth], DiskHealth]) -> None:
        """Remember of a disk what ``change`` makes of what is remembered, durably; the replica's lock is not needed."""
        change_health(self._place, self.load, point_id, disk, change)

    def head(self) -> HeadFacts:
        """The point at which the replica VM is; what it wrote since, its platform knows."""
        return HeadFacts(self.load().head_point, True, {})

    def bind_head(self, point_id: str) -> HeadFacts:
        """Record the point at which the replica VM is; the platform has reverted it to that before."""
        self._owned()
        replica = self.load()
        save_record(self._place, replace(replica, head_point=replica.point(point_id).id))
        return self.head()

    def set_state(self, state: ReplicaState) -> Replica:
        """Record the replica's state."""
        self._owned()
        return save_record(self._place, replace(self.load(), state=state))

    def set_conversion(self, conversion: Conversion) -> NoReturn:  # noqa: ARG002 - the protocol's signature
        """No disk of a replica VM is ever converted: it is of the source's own platform."""
        raise Refused(f"convert {self._place.what}", "its disks are kept by the platform of its source")

    def set_identity(self, identity: ReplicaIdentity) -> Replica:
        """Record a changed identity."""
        self._owned()
        return save_record(self._place, replace(self.load(), identity=identity))

    def remove(self) -> None:
        """Delete every file of the replica, and its directory; the platform removes the VM with its disks.

        :raises ReplicaError: if the directory holds files that are not ours; these stay.
        """
        self._owned()
        self._no_draft("remove the replica")
        what = f"remove {self._place.what}"
        with datastore_errors(what), alone(self._place, what):
            remove_everything(self._place, what, self._place.own_files(), self._place.directories)

    def _check_disk(self, point_id: str, disk: str) -> str:
        """The name of its digest file."""
        found = self.load().point(point_id).disk(disk)
        if found is None:
            raise NotFound(f"disk {disk!r} of restore point {point_id!r} of {self._place.what}",
                           "the VM had no such disk then")
        return found.digest

    def _owned(self) -> None:
        if not self._locked:
            raise ReplicaError(f"change {self._place.what}", "its lock is not held")

    def _no_draft(self, act: str) -> None:
        if self._draft is not None and self._draft.open:
            raise ReplicaError(f"{act} in {self._place.what}", "a restore point is in the making")


def _unshared(known: Known) -> Known:
    """Damage of one point is told of no other: which blocks they share, the platform does not tell.

    Each point is known by its own verification alone; one that was not verified is neither good nor bad.
    """
    return known
