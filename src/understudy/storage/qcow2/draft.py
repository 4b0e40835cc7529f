"""How does a restore point come into being? Written beside the others, made durable, renamed, recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from understudy.errors import NotFound, Refused, ReplicaError
from understudy.faults import fault_point
from understudy.model.extent import Extent
from understudy.model.replica import PointDisk, RestorePoint
from understudy.storage import LayerWriter
from understudy.storage.files import datastore_errors, fsync_path, remove_files, write_durable
from understudy.storage.qcow2.check import disk_damage
from understudy.storage.qcow2.format import read_header
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.storage.qcow2.leftovers import continuable
from understudy.storage.qcow2.manifest import Record, load_record, save_record
from understudy.storage.qcow2.names import DraftFiles, Place, layer_name
from understudy.storage.qcow2.takeover import Opened, inherited_layer, new_layer, own_layer
from understudy.storage.records.contents import point_contents
from understudy.storage.records.exclusions import worth_storing
from understudy.storage.records.place import PARTIAL, check_point_id, digest_name, excluded_name, nvram_name, partial
from understudy.storage.values import KeptLayer, NewDisk, PointMeta


class Qcow2Draft:
    """A restore point in the making; a :class:`understudy.storage.PointDraft`.

    :param require_lock: raises when the replica's lock is not held any more.
    :param resume: go on with the files of this same point.
    """

    def __init__(self, place: Place, point_id: str, disks: tuple[NewDisk, ...], require_lock: Callable[[], None], *,
                 resume: bool = False) -> None:
        self._place = place
        self._id = point_id
        self._what = f"restore point {point_id!r} of {place.what}"
        self._disks = {disk.name: disk for disk in disks}
        self._require_lock = require_lock
        self._open = True
        record = load_record(place)
        self._check(record, disks, resume=resume)
        self._backings = {disk.name: _newest_layer(record, disk.name) if disk.chained else "" for disk in disks}
        self._writers: dict[str, Qcow2LayerWriter] = {}
        self._kept: dict[str, KeptLayer] = {}
        with ExitStack() as undo, datastore_errors(f"begin {self._what}"):
            undo.callback(self.keep)
            for disk in disks:
                self._writers[disk.name], self._kept[disk.name] = self._open_layer(disk, resume=resume)
            self._remove_others()
            undo.pop_all()

    @property
    def open(self) -> bool:
        """Whether it was neither published nor kept nor abandoned."""
        return self._open

    def attach(
        self, disk: str, socket: str, export: str, holds: Callable[[Extent], Sequence[Extent]]  # noqa: ARG002
    ) -> NoReturn:
        """Layers are files here.

        :raises Refused: always.
        """
        raise Refused(f"write disk {disk!r} of {self._what} to {export!r}", "its layer is a file of the datastore")

    def layer(self, disk: str) -> LayerWriter:
        """The writer of ``disk``'s layer."""
        self._known(disk)
        return self._writers[disk]

    def digest_path(self, disk: str) -> Path:
        """The partial digest file of ``disk``."""
        self._known(disk)
        return partial(self._digest(disk))

    def base_digest_path(self, disk: str) -> Path | None:
        """The digest file of the newest published point for ``disk`` if the layer is chained and the file exists."""
        if not self._known(disk).chained:
            return None
        newest = load_record(self._place).replica.newest
        below = newest.disk(disk) if newest else None
        path = self._place.digests / below.digest if below else None
        return path if path is not None and path.is_file() else None

    def kept(self, disk: str) -> KeptLayer:
        """What the layer of ``disk`` held when this draft began or was resumed."""
        self._known(disk)
        return self._kept[disk]

    def publish(self, meta: PointMeta) -> RestorePoint:
        """Make the point visible (S2); see :class:`understudy.storage.PointDraft`."""
        self._require_lock()
        record = load_record(self._place)
        self._check_complete(record, meta)
        point = RestorePoint(meta.id, meta.created_at, meta.consistency, meta.session, meta.block_size,
                             tuple(self._measure(disk) for disk in self._disks.values()), meta.baseline,
                             dict(meta.versions), nvram_name(self._id) if meta.nvram else "", meta.generation,
                             excluded_name(self._id) if worth_storing(meta.exclusions) else "", meta.applications)
        with datastore_errors(f"publish {self._what}"):
            self._make_durable(meta, point, record)
            fault_point("publish.layers_durable")
            for files in self._files():
                files.journal.unlink(missing_ok=True)
                files.claims.unlink(missing_ok=True)
            self._rename(point)
        fault_point("publish.renamed")
        replica = replace(record.replica, points=(*record.replica.points, point))
        save_record(self._place, replace(record, replica=replica))
        fault_point("publish.recorded")
        self._open = False
        return point

    def keep(self) -> None:
        """End the draft, but leave what a later session can continue; see :class:`understudy.storage.PointDraft`."""
        self._end(f"keep {self._what}", keep=True)

    def abandon(self) -> None:
        """Remove everything of the draft; does nothing after publish, even one that failed after it was recorded."""
        self._end(f"abandon {self._what}", keep=False)

    def _end(self, act: str, *, keep: bool) -> None:
        if not self._open:
            return
        self._require_lock()
        for writer in self._writers.values():
            writer.close()
        record = load_record(self._place)
        if all(point.id != self._id for point in record.replica.points):
            with datastore_errors(act):
                stay = {path for files in self._files() if keep and continuable(files, record) for path in files.all()}
                finals = [*self._finals(), self._place.nvram(self._id), self._place.excluded(self._id)]
                ours = [*map(partial, finals), *finals, *(path for files in self._files() for path in files.all())]
                remove_files([path for path in ours if path not in stay])
        self._open = False

    def _open_layer(self, disk: NewDisk, *, resume: bool) -> Opened:
        files = self._place.draft_files(disk.name, self._id)
        backing = self._backings[disk.name]
        if resume:
            return own_layer(files, disk, backing)
        return inherited_layer(self._place, files, disk, backing) or new_layer(files, disk, backing)

    def _remove_others(self) -> None:
        """Remove what earlier drafts left and this one did not take over; its own new files become durable."""
        ours = {path for files in self._files() for path in files.all()}
        drafts = (self._place.layers, self._place.digests)
        remove_files([path for path in self._place.own_files()
                      if path.parent in drafts and path.name.endswith(PARTIAL) and path not in ours])
        for directory in drafts:
            fsync_path(directory)

    def _files(self) -> list[DraftFiles]:
        return [self._place.draft_files(disk, self._id) for disk in self._disks]

    def _layer(self, disk: str) -> Path:
        return self._place.layers / layer_name(disk, self._id)

    def _digest(self, disk: str) -> Path:
        return self._place.digests / digest_name(disk, self._id)

    def _finals(self) -> list[Path]:
        """Every file that each point has, under its final name."""
        files = [path for disk in self._disks for path in (self._layer(disk), self._digest(disk))]
        return [*files, self._place.definition(self._id), self._place.sidecar(self._id)]

    def _known(self, disk: str) -> NewDisk:
        if disk not in self._disks:
            raise NotFound(f"disk {disk!r} of {self._what}", "the draft has no such disk")
        return self._disks[disk]

    def _check(self, record: Record, disks: tuple[NewDisk, ...], *, resume: bool) -> None:
        """Refuse what could not be published, before any file is made."""
        check_point_id(self._id)
        if not disks or len(self._disks) != len(disks):
            raise ReplicaError(self._what, "it needs disks, each with a name of its own")
        partials = [path for files in self._files() for path in files.all()] if not resume else []
        for path in [*self._finals(), *partials]:
            if path.exists():
                raise ReplicaError(self._what, f"{path.name} exists already",
                                   "sweep the replica, or use another point id")
        newest = record.replica.newest
        for disk in disks:
            if not disk.chained:
                continue
            below = newest.disk(disk.name) if newest else None
            if newest is None or below is None:
                raise ReplicaError(self._what, f"the newest restore point has no disk {disk.name!r} to lie on")
            if below.size > disk.size:
                raise ReplicaError(self._what, f"disk {disk.name!r} shrank, its layer must stand alone")
            for problem in disk_damage(self._place, record, newest, disk.name):
                raise ReplicaError(self._what, f"the layer to lie on is damaged: {problem}")

    def _check_complete(self, record: Record, meta: PointMeta) -> None:
        if not self._open:
            raise ReplicaError(f"publish {self._what}", "it was published, kept or abandoned already")
        if meta.id != self._id:
            raise ReplicaError(f"publish {self._what}", f"the values are those of point {meta.id!r}")
        for name, writer in self._writers.items():
            if not writer.finished:
                raise ReplicaError(f"publish {self._what}", f"the layer of disk {name!r} is not finished")
            if not self.digest_path(name).is_file():
                raise ReplicaError(f"publish {self._what}", f"the digest file of disk {name!r} is missing")
            if self._disks[name].chained and _newest_layer(record, name) != self._backings[name]:
                raise ReplicaError(f"publish {self._what}", f"the layer below disk {name!r} is the newest no more")

    def _measure(self, disk: NewDisk) -> PointDisk:
        """What the file that was written says of itself; it must be what was asked for."""
        path = partial(self._layer(disk.name))
        header = read_header(path)
        if (header.size, header.backing) != (disk.size, self._backings[disk.name]):
            raise ReplicaError(f"publish {self._what}", f"the layer of disk {disk.name!r} is not as it was begun")
        with datastore_errors(f"publish {self._what}"):
            length = path.stat().st_size
        return PointDisk(disk.name, disk.size, layer_name(disk.name, self._id), header.backing,
                         digest_name(disk.name, self._id), length, disk.source_path)

    def _make_durable(self, meta: PointMeta, point: RestorePoint, record: Record) -> None:
        for disk in self._disks:
            for path, mode in ((partial(self._layer(disk)), 0o400), (self.digest_path(disk), 0o600)):
                path.chmod(mode)
                fsync_path(path)
        contents = point_contents(self._place, record.replica.identity, point, meta)
        for path, content in contents.items():
            write_durable(partial(path), content, 0o600)
        self._sync_directories()

    def _rename(self, point: RestorePoint) -> None:
        extra = [self._place.points / name for name in (point.nvram, point.excluded) if name]
        for path in self._finals() + extra:
            partial(path).rename(path)
        self._sync_directories()

    def _sync_directories(self) -> None:
        for directory in (self._place.layers, self._place.digests, self._place.points):
            fsync_path(directory)


def _newest_layer(record: Record, disk: str) -> str:
    newest = record.replica.newest
    below = newest.disk(disk) if newest else None
    return below.layer if below else ""
