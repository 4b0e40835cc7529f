"""How does a restore point come into being? Its disks are written at the leaf, the rest beside the record, then named.

The platform makes the snapshot between the last write and :meth:`SnapshotDraft.publish`. A snapshot that the record
does not name is no restore point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from understudy.errors import NotFound, ReplicaError
from understudy.faults import fault_point
from understudy.model.replica import PointDisk, Replica, RestorePoint
from understudy.nbd import ALLOCATION, NbdClient
from understudy.storage import LayerWriter
from understudy.storage.files import datastore_errors, fsync_path, remove_files, write_durable
from understudy.storage.records.contents import point_contents
from understudy.storage.records.exclusions import worth_storing
from understudy.storage.records.place import check_point_id, digest_name, excluded_name, partial
from understudy.storage.records.points import SECTOR
from understudy.storage.snapshots.leaf import Holds, LeafWriter
from understudy.storage.snapshots.manifest import load_record, save_record
from understudy.storage.snapshots.names import Place, layer_name
from understudy.storage.snapshots.points import newest_layer
from understudy.storage.values import KeptLayer, NewDisk, PointMeta

_MODE = 0o600


class SnapshotDraft:
    """A restore point in the making; a :class:`understudy.storage.PointDraft`.

    :param require_lock: raises when the replica's lock is not held any more.
    """

    def __init__(
        self, place: Place, point_id: str, disks: tuple[NewDisk, ...], require_lock: Callable[[], None]
    ) -> None:
        self._place = place
        self._id = point_id
        self._what = f"restore point {point_id!r} of {place.what}"
        self._disks = {disk.name: disk for disk in disks}
        self._require_lock = require_lock
        self._open = True
        replica = load_record(place)
        self._check(replica, disks)
        self._backings = {disk.name: newest_layer(replica, disk.name) if disk.chained else "" for disk in disks}
        self._writers: dict[str, LeafWriter] = {}
        with datastore_errors(f"begin {self._what}"):
            remove_files(place.partial_files())

    @property
    def open(self) -> bool:
        """Whether it was neither published nor abandoned."""
        return self._open

    def attach(self, disk: str, socket: str, export: str, holds: Holds) -> LeafWriter:
        """Write ``disk`` to an NBD export from now on; see :class:`understudy.storage.PointDraft`."""
        new, what = self._known(disk), f"write disk {disk!r} of {self._what}"
        if not self._open or disk in self._writers:
            raise ReplicaError(what, "it has its leaf already" if self._open else "the draft has ended")
        writer = LeafWriter(what, new.size, NbdClient(socket, export, (ALLOCATION,)), holds)
        self._writers[disk] = writer
        if not new.chained:
            writer.refuse_content()
        return writer

    def layer(self, disk: str) -> LayerWriter:
        """The writer of ``disk``.

        :raises ReplicaError: if it was not attached.
        """
        self._known(disk)
        if disk not in self._writers:
            raise ReplicaError(f"write disk {disk!r} of {self._what}", "it is not known at which leaf")
        return self._writers[disk]

    def digest_path(self, disk: str) -> Path:
        """The partial digest file of ``disk``."""
        self._known(disk)
        return partial(self._digest(disk))

    def base_digest_path(self, disk: str) -> Path | None:
        """The digest file of the newest published point for ``disk`` if it lies on that and the file exists."""
        if not self._known(disk).chained:
            return None
        newest = load_record(self._place).newest
        below = newest.disk(disk) if newest else None
        path = self._place.digests / below.digest if below else None
        return path if path is not None and path.is_file() else None

    def kept(self, disk: str) -> KeptLayer:
        """Nothing: the platform has reverted the leaf before this draft began."""
        self._known(disk)
        return KeptLayer()

    def publish(self, meta: PointMeta) -> RestorePoint:
        """Make the point visible (S2); see :class:`understudy.storage.PointDraft`."""
        self._require_lock()
        replica = load_record(self._place)
        self._check_complete(replica, meta)
        point = RestorePoint(meta.id, meta.created_at, meta.consistency, meta.session, meta.block_size,
                             tuple(self._recorded(disk) for disk in self._disks.values()), meta.baseline,
                             dict(meta.versions), "", meta.generation,
                             excluded_name(self._id) if worth_storing(meta.exclusions) else "", meta.applications)
        with datastore_errors(f"publish {self._what}"):
            finals = self._make_durable(meta, point, replica)
            fault_point("publish.layers_durable")
            for path in finals:
                partial(path).rename(path)
                fault_point("publish.renaming")
            self._sync_directories()
        fault_point("publish.renamed")
        save_record(self._place, replace(replica, points=(*replica.points, point)))
        fault_point("publish.recorded")
        self._open = False
        return point

    def keep(self) -> None:
        """As :meth:`abandon`: nothing that was written at a leaf can be continued."""
        self.abandon()

    def abandon(self) -> None:
        """Remove everything of the draft; does nothing after publish, even one that failed after it was recorded."""
        if not self._open:
            return
        self._require_lock()
        for writer in self._writers.values():
            writer.close()
        replica = load_record(self._place)
        if all(point.id != self._id for point in replica.points):
            with datastore_errors(f"abandon {self._what}"):
                finals = [*self._finals(), self._place.excluded(self._id)]
                remove_files([*map(partial, finals), *finals])
        self._open = False

    def _digest(self, disk: str) -> Path:
        return self._place.digests / digest_name(disk, self._id)

    def _finals(self) -> list[Path]:
        """Every file that each point has, under its final name."""
        digests = [self._digest(disk) for disk in self._disks]
        return [*digests, self._place.definition(self._id), self._place.sidecar(self._id)]

    def _known(self, disk: str) -> NewDisk:
        if disk not in self._disks:
            raise NotFound(f"disk {disk!r} of {self._what}", "the draft has no such disk")
        return self._disks[disk]

    def _check(self, replica: Replica, disks: tuple[NewDisk, ...]) -> None:
        """Refuse what could not be published, before anything is written."""
        check_point_id(self._id)
        if not disks or len(self._disks) != len(disks):
            raise ReplicaError(self._what, "it needs disks, each with a name of its own")
        for path in self._finals():
            if path.exists():
                raise ReplicaError(self._what, f"{path.name} exists already",
                                   "sweep the replica, or use another point id")
        newest = replica.newest
        for disk in disks:
            if disk.size <= 0 or disk.size % SECTOR:
                raise ReplicaError(self._what, f"a disk of {disk.size} bytes cannot be kept")
            below = newest.disk(disk.name) if newest else None
            if disk.chained and below is None:
                raise ReplicaError(self._what, f"the newest restore point has no disk {disk.name!r} to lie on")
            if disk.chained and below is not None and below.size != disk.size:
                raise ReplicaError(self._what, f"disk {disk.name!r} has another size, it needs a file of its own")

    def _check_complete(self, replica: Replica, meta: PointMeta) -> None:
        act = f"publish {self._what}"
        if not self._open:
            raise ReplicaError(act, "it was published or abandoned already")
        if meta.id != self._id:
            raise ReplicaError(act, f"the values are those of point {meta.id!r}")
        if meta.nvram:
            raise ReplicaError(act, "UEFI variables of a file cannot be given to a VM of this platform")
        for name, disk in self._disks.items():
            if name not in self._writers or not self._writers[name].finished:
                raise ReplicaError(act, f"disk {name!r} is not finished")
            if not self.digest_path(name).is_file():
                raise ReplicaError(act, f"the digest file of disk {name!r} is missing")
            if disk.chained and newest_layer(replica, name) != self._backings[name]:
                raise ReplicaError(act, f"what disk {name!r} lies on is the newest no more")

    def _recorded(self, disk: NewDisk) -> PointDisk:
        # What the platform's files take it alone knows; the disk's own size is true of every snapshot of it.
        return PointDisk(disk.name, disk.size, layer_name(disk.name, self._id), self._backings[disk.name],
                         digest_name(disk.name, self._id), disk.size, disk.source_path)

    def _make_durable(self, meta: PointMeta, point: RestorePoint, replica: Replica) -> list[Path]:
        """Have all files of the point, under their partial names; the final ones, the sidecar last."""
        digests = [self._digest(disk) for disk in self._disks]
        for path in map(partial, digests):
            path.chmod(_MODE)
            fsync_path(path)
        contents = point_contents(self._place, replica.identity, point, meta)
        for path, content in contents.items():
            write_durable(partial(path), content, _MODE)
        self._sync_directories()
        return [*digests, *contents]

    def _sync_directories(self) -> None:
        for directory in self._place.directories:
            fsync_path(directory)
