"""How does a restore point come into being? Written beside the others, made durable, renamed, recorded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from understudy.errors import NotFound, ReplicaError
from understudy.faults import fault_point
from understudy.model.replica import PointDisk, RestorePoint
from understudy.storage import LayerWriter, NewDisk, PointMeta
from understudy.storage.qcow2.check import disk_damage
from understudy.storage.qcow2.files import datastore_errors, fsync_path, write_durable
from understudy.storage.qcow2.format import read_header
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.storage.qcow2.manifest import Record, load_record, save_record
from understudy.storage.qcow2.names import Place, check_point_id, digest_name, layer_name, nvram_name, partial
from understudy.storage.qcow2.sweep import remove_files


class Qcow2Draft:
    """A restore point in the making; a :class:`understudy.storage.PointDraft`.

    :param require_lock: raises when the replica's lock is not held any more.
    """

    def __init__(self, place: Place, point_id: str, disks: tuple[NewDisk, ...],
                 require_lock: Callable[[], None]) -> None:
        self._place = place
        self._id = point_id
        self._what = f"restore point {point_id!r} of {place.what}"
        self._disks = {disk.name: disk for disk in disks}
        self._require_lock = require_lock
        self._open = True
        record = load_record(place)
        self._check(record, disks)
        self._backings = {disk.name: _newest_layer(record, disk.name) if disk.chained else "" for disk in disks}
        self._writers: dict[str, Qcow2LayerWriter] = {}
        with ExitStack() as undo:
            undo.callback(self.abandon)
            for disk in disks:
                path = partial(self._layer(disk.name))
                self._writers[disk.name] = Qcow2LayerWriter(path, disk.size, self._backings[disk.name])
            undo.pop_all()

    @property
    def open(self) -> bool:
        """Whether it was neither published nor abandoned."""
        return self._open

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

    def publish(self, meta: PointMeta) -> RestorePoint:
        """Make the point visible (S2); see :class:`understudy.storage.PointDraft`."""
        self._require_lock()
        record = load_record(self._place)
        self._check_complete(record, meta)
        point = RestorePoint(meta.id, meta.created_at, meta.consistency, meta.session, meta.block_size,
                             tuple(self._measure(disk) for disk in self._disks.values()), meta.baseline,
                             dict(meta.versions), nvram_name(self._id) if meta.nvram else "")
        with datastore_errors(f"publish {self._what}"):
            self._make_durable(meta)
            fault_point("publish.layers_durable")
            self._rename(with_nvram=bool(meta.nvram))
        fault_point("publish.renamed")
        replica = replace(record.replica, points=(*record.replica.points, point))
        save_record(self._place, replace(record, replica=replica))
        fault_point("publish.recorded")
        self._open = False
        return point

    def abandon(self) -> None:
        """Remove everything of the draft; does nothing after publish, even one that failed after it was recorded."""
        if not self._open:
            return
        self._require_lock()
        for writer in self._writers.values():
            writer.close()
        if all(point.id != self._id for point in load_record(self._place).replica.points):
            finals = [*self._finals(), self._place.nvram(self._id)]
            with datastore_errors(f"abandon {self._what}"):
                remove_files([partial(path) for path in finals] + finals)
        self._open = False

    def _layer(self, disk: str) -> Path:
        return self._place.layers / layer_name(disk, self._id)

    def _digest(self, disk: str) -> Path:
        return self._place.digests / digest_name(disk, self._id)

    def _finals(self) -> list[Path]:
        """Every file that each point has, under its final name."""
        files = [path for disk in self._disks for path in (self._layer(disk), self._digest(disk))]
        return [*files, self._place.definition(self._id)]

    def _known(self, disk: str) -> NewDisk:
        if disk not in self._disks:
            raise NotFound(f"disk {disk!r} of {self._what}", "the draft has no such disk")
        return self._disks[disk]

    def _check(self, record: Record, disks: tuple[NewDisk, ...]) -> None:
        """Refuse what could not be published, before any file is made."""
        check_point_id(self._id)
        if not disks or len(self._disks) != len(disks):
            raise ReplicaError(self._what, "it needs disks, each with a name of its own")
        for path in self._finals():
            if path.exists() or partial(path).exists():
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
            raise ReplicaError(f"publish {self._what}", "it was published or abandoned already")
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

    def _make_durable(self, meta: PointMeta) -> None:
        for disk in self._disks:
            for path, mode in ((partial(self._layer(disk)), 0o400), (self.digest_path(disk), 0o600)):
                path.chmod(mode)
                fsync_path(path)
        write_durable(partial(self._place.definition(self._id)), meta.definition.encode(), 0o600)
        if meta.nvram:
            write_durable(partial(self._place.nvram(self._id)), _decoded(self._what, meta.nvram), 0o600)
        self._sync_directories()

    def _rename(self, *, with_nvram: bool) -> None:
        extra = [self._place.nvram(self._id)] if with_nvram else []
        for path in self._finals() + extra:
            partial(path).rename(path)
        self._sync_directories()

    def _sync_directories(self) -> None:
        for directory in (self._place.layers, self._place.digests, self._place.points):
            fsync_path(directory)


def _decoded(what: str, nvram: str) -> bytes:
    try:
        return base64.b64decode(nvram, validate=True)
    except binascii.Error as exc:
        raise ReplicaError(f"publish {what}", "the UEFI variables are no base64 text") from exc


def _newest_layer(record: Record, disk: str) -> str:
    newest = record.replica.newest
    below = newest.disk(disk) if newest else None
    return below.layer if below else ""
