"""What is the state of the head, the throw-away layer that the replica VM uses, and how is a new one made?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from understudy.errors import Refused, ReplicaError
from understudy.faults import fault_point
from understudy.model.replica import Conversion, PointDisk, RestorePoint
from understudy.storage.files import datastore_errors, fsync_path, remove_files, write_durable
from understudy.storage.qcow2.chains import backings_like
from understudy.storage.qcow2.check import damage
from understudy.storage.qcow2.format import layer_is_empty, read_header
from understudy.storage.qcow2.inuse import in_use, used
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.storage.qcow2.manifest import Record, save_record
from understudy.storage.qcow2.names import Place
from understudy.storage.records.place import PARTIAL, partial
from understudy.storage.values import HeadFacts

_TO_LAYERS = "../layers/"


def head_backing(layer: str) -> str:
    """The name that a head's file has for the layer below."""
    return _TO_LAYERS + layer


def head_facts(place: Place, record: Record) -> HeadFacts:
    """Facts about the head; if a file of it is missing there is no head.

    A file that is damaged, or not the one that was made, counts as written to.
    """
    if not record.replica.head_point:
        return HeadFacts("", True, {})
    disks = record.replica.point(record.replica.head_point).disks
    files = {disk.name: place.head_file(disk.name) for disk in disks}
    present = {disk.name for disk in disks if files[disk.name].is_file()}
    empty = all(_is_untouched(place, record, disk) for disk in disks if disk.name in present)
    if len(present) < len(disks):
        return HeadFacts("", empty, {})
    nvram = str(place.head_nvram) if record.replica.point(record.replica.head_point).nvram else ""
    return HeadFacts(record.replica.head_point, empty, {name: str(path) for name, path in files.items()}, nvram,
                     record.replica.conversion)


def _is_untouched(place: Place, record: Record, disk: PointDisk) -> bool:
    path = place.head_file(disk.name)
    backings = backings_like(record.replica, record.merging, disk.name, disk.layer)
    try:
        header = read_header(path)
        return (header.size == disk.size and header.backing in map(head_backing, backings) and layer_is_empty(path))
    except ReplicaError:
        return False


def used_head_file(place: Place) -> Path | None:
    """A file of the head that a QEMU process has open, or None."""
    with datastore_errors(f"look at the head of {place.what}"):
        files = place.head.iterdir() if place.head.is_dir() else []
        return next((path for path in sorted(files) if path.is_file() and in_use(path)), None)


def bind_head(place: Place, record: Record, point: RestorePoint) -> Record:
    """Make a new, empty head on ``point`` in place of the old one.

    In between there is no head on record and no file of it: a replica VM started then fails instead of running on a
    mixture of two points.

    :raises Refused: if the old head is in use.
    :raises ReplicaError: if the point is damaged.
    """
    act = f"make a head of {place.what} on restore point {point.id!r}"
    busy = used_head_file(place)
    if busy is not None:
        raise used(act, busy)
    for problem in damage(place, record, point):
        raise ReplicaError(act, problem, "use another restore point")
    fresh = [_make_file(place, disk) for disk in point.disks]
    if point.nvram:
        fresh.append(_copy_nvram(place, point))
    record = save_record(place, replace(record, replica=replace(record.replica, head_point="",
                                                                  conversion=Conversion.NONE)))
    with datastore_errors(act):
        remove_files([path for path in place.own_files() if path.parent == place.head and path not in fresh])
        fault_point("head.dropped")
        for path in fresh:
            path.rename(path.with_name(path.name.removesuffix(PARTIAL)))
        fsync_path(place.head)
    fault_point("head.renamed")
    return save_record(place, replace(record, replica=replace(record.replica, head_point=point.id)))


def set_conversion(place: Place, record: Record, conversion: Conversion) -> Record:
    """Record what was done to the head.

    :raises Refused: if there is no head.
    """
    if not head_facts(place, record).point:
        raise Refused(f"convert the head of {place.what}", "it has no head", "start its failover")
    return save_record(place, replace(record, replica=replace(record.replica, conversion=conversion)))


def _copy_nvram(place: Place, point: RestorePoint) -> Path:
    """The replica VM writes to its UEFI variables, so that it gets a copy."""
    path = partial(place.head_nvram)
    try:
        content = (place.points / point.nvram).read_bytes()
    except FileNotFoundError as exc:
        raise ReplicaError(f"UEFI variables of restore point {point.id!r} of {place.what}", "the file is missing",
                           "use another restore point") from exc
    with datastore_errors(f"make {path}"):
        path.unlink(missing_ok=True)
        write_durable(path, content, 0o600)
    return path


def _make_file(place: Place, disk: PointDisk) -> Path:
    path = partial(place.head_file(disk.name))
    with datastore_errors(f"make {path}"):
        path.unlink(missing_ok=True)
    writer = Qcow2LayerWriter(path, disk.size, head_backing(disk.layer))
    try:
        writer.finish()
    finally:
        writer.close()
    return path
