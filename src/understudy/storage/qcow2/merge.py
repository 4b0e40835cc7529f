"""How do the oldest restore points go, without a harm to the others at any instant?

The record drops the points and notes which layers are to be merged; from then on nothing but this module needs the
old layers. ``qemu-img commit`` copies the clusters of a layer into the one below. While it does, the points above read
those clusters from the upper layer and all others, which it does not touch, from the lower one. Killed anywhere, it can
be done again from the start. Then the layers above are bound to the lower one, the record follows, and the upper one is
deleted.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from understudy.errors import DatastoreError, Refused, ReplicaError
from understudy.faults import fault_point
from understudy.model.replica import Replica, RestorePoint
from understudy.storage.files import datastore_errors, fsync_path
from understudy.storage.qcow2.chains import MergingDisk, retired, top_layer
from understudy.storage.qcow2.check import disk_damage
from understudy.storage.qcow2.format import CLUSTER, check_maps, read_header, rebind
from understudy.storage.qcow2.head import head_backing
from understudy.storage.qcow2.inuse import in_use, kept_from_qemu, used
from understudy.storage.qcow2.manifest import Record, save_record
from understudy.storage.qcow2.names import Place
from understudy.storage.qcow2.shared import spread
from understudy.storage.qcow2.sweep import remove_unneeded
from understudy.storage.records.health import alone, carry_over


def retire(place: Place, record: Record, point_ids: tuple[str, ...], lock: int) -> Record:
    """Remove the oldest points, which must be ``point_ids``.

    :param lock: descriptor that carries the replica's lock.
    :raises Refused: if they are not the oldest, the newest is among them, the head lies on one, a layer is in use, or
        the replica is being verified.
    :raises ReplicaError: if a layer that must be merged is damaged; nothing is changed then.
    """
    act = f"retire restore points of {place.what}"
    record, _ = finish_merge(place, record, lock)
    if not point_ids:
        return record
    first = _first_to_stay(act, record.replica, point_ids)
    replica, merging, unlisted = retired(record.replica, first, record.unlisted)
    for item in merging:
        for problem in disk_damage(place, record, first, item.disk):
            raise ReplicaError(act, problem, "use another restore point, and replicate again")
    after = replace(record, replica=replica, merging=merging, unlisted=unlisted)
    unproved = {item.file for item in record.unlisted}
    with alone(place, act):
        _refuse_used(place, act, record, after)
        for item in merging:
            if item.below[0] in unproved:
                _repair(act, place.layers / item.below[0], lock)  # a merge into it may have been stopped before
        carry_over(place, record.replica, replica, functools.partial(spread, place, record))
        record = save_record(place, after)
        fault_point("retire.recorded")
        record = _merge_all(place, record, lock)
        remove_unneeded(place, record)
    fault_point("retire.dropped")
    return record


def finish_merge(place: Place, record: Record, lock: int) -> tuple[Record, list[str]]:
    """Finish what a killed process left of a merge; the new record, and what was done.

    :raises Refused: if a layer is in use; the points stay readable, and the merge can be finished later.
    """
    if not record.merging:
        return record, []
    act = f"finish the merge of {place.what}"
    with alone(place, act):
        _refuse_used(place, act, record, record)
        for item in record.merging:
            for problem in disk_damage(place, record, record.replica.points[0], item.disk):
                raise ReplicaError(act, problem, "use another restore point, and replicate again")
            _repair(act, place.layers / item.below[0], lock)
        done = [f"merged {len(item.below) + 1} layers of disk {item.disk}" for item in record.merging]
        return _merge_all(place, record, lock), done


def _first_to_stay(act: str, replica: Replica, point_ids: tuple[str, ...]) -> RestorePoint:
    ids = [point.id for point in replica.points]
    count = len(point_ids)
    if len(set(point_ids)) != count or set(ids[:count]) != set(point_ids):
        raise Refused(act, f"{', '.join(point_ids)} are not the oldest restore points")
    if count == len(ids):
        raise Refused(act, "the newest restore point must stay", "remove the replica instead")
    if replica.head_point in point_ids:
        raise Refused(act, f"the replica VM lies on restore point {replica.head_point!r}",
                      "end the failover, or bind the replica VM to a newer point first")
    return replica.points[count]


def _refuse_used(place: Place, act: str, before: Record, after: Record) -> None:
    """A layer that is going to be merged or deleted must not be open.

    Whoever opens one later meets the locks of ``qemu-img``, or makes it fail, both without harm.
    """
    points = after.replica.points
    untouched = {disk.layer for point in points for disk in point.disks if not (point is points[0] and disk.backing)}
    untouched |= {item.file for item in after.unlisted}
    layers = {disk.layer for point in before.replica.points for disk in point.disks}
    layers |= {item.file for item in before.unlisted} | {name for item in before.merging for name in item.below}
    with datastore_errors(act):
        for name in sorted(layers - untouched):
            if in_use(place.layers / name):
                raise used(act, place.layers / name)


def _merge_all(place: Place, record: Record, lock: int) -> Record:
    act = f"merge layers of {place.what}"
    with ExitStack() as guards:
        for item in record.merging:
            head = _head_above(place, record, item.disk)
            if head is not None:
                with datastore_errors(act):
                    guards.enter_context(kept_from_qemu(head, act))
        while record.merging:
            record = _merge_lowest(place, record, lock)
    return record


def _merge_lowest(place: Place, record: Record, lock: int) -> Record:
    """Merge the two lowest layers of the first disk that waits."""
    item = record.merging[0]
    base = item.below[0]
    top = top_layer(record.replica, item.disk)
    layer = item.below[1] if len(item.below) > 1 else top
    _commit(place, layer, base, lock)
    fault_point("retire.committed")
    uppers = _uppers(place, record, item, layer)
    for path, prefix in uppers:
        _rebind(path, prefix + layer, prefix + base)
    fault_point("retire.rebased")
    if layer != top:
        return save_record(place, _shortened(record, item))
    return save_record(place, _merged(place, record, item.disk, base))


def _uppers(place: Place, record: Record, item: MergingDisk, layer: str) -> list[tuple[Path, str]]:
    """Files that lie on ``layer``, each with what comes before a layer's name in its header."""
    top = top_layer(record.replica, item.disk)
    chain = (*item.below, top)
    if layer != top:
        return [(place.layers / chain[chain.index(layer) + 1], "")]
    found = [(place.layers / disk.layer, "") for point in record.replica.points[1:2] for disk in point.disks
             if disk.backing == top]
    found += [(place.layers / above.file, "") for above in record.unlisted if above.backing == top]
    head = _head_above(place, record, item.disk)
    return found if head is None else [*found, (head, head_backing(""))]


def _head_above(place: Place, record: Record, disk: str) -> Path | None:
    """The head's file for ``disk`` if it is there and lies on the oldest point."""
    if record.replica.head_point != record.replica.points[0].id:
        return None
    path = place.head_file(disk)
    return path if path.is_file() else None


def _rebind(path: Path, old: str, new: str) -> None:
    backing = read_header(path).backing
    if backing == new:
        return  # done before a crash
    if backing != old:
        raise ReplicaError(f"bind {path} to {new}", f"it lies on {backing or 'nothing'} instead of {old}")
    rebind(path, new)


def _shortened(record: Record, item: MergingDisk) -> Record:
    """The record once the second layer of ``item`` is merged into the lowest, and is not needed any more."""
    shorter = MergingDisk(item.disk, (item.below[0], *item.below[2:]))
    first, *others = record.replica.points
    first = replace(first, disks=tuple(
        replace(part, backing=shorter.below[-1]) if part.name == item.disk else part for part in first.disks))
    return replace(record, replica=replace(record.replica, points=(first, *others)),
                   merging=(shorter, *record.merging[1:]))


def _merged(place: Place, record: Record, disk: str, base: str) -> Record:
    """The record once the oldest point shows ``disk`` by the layer ``base`` alone."""
    with datastore_errors(f"merge layers of {place.what}"):
        length = (place.layers / base).stat().st_size
    old = top_layer(record.replica, disk)
    first, *others = record.replica.points
    points = [replace(first, disks=tuple(
        replace(part, layer=base, backing="", file_bytes=length) if part.layer == old else part
        for part in first.disks))]
    points += [replace(point, disks=tuple(
        replace(part, backing=base) if part.backing == old else part for part in point.disks)) for point in others]
    unlisted = tuple(replace(above, backing=base) if above.backing == old else above for above in record.unlisted)
    return replace(record, replica=replace(record.replica, points=tuple(points)), merging=record.merging[1:],
                   unlisted=unlisted)


def _commit(place: Place, layer: str, base: str, lock: int) -> None:
    """Copy what ``layer`` has into ``base``, durably; a larger layer makes the base grow."""
    act = f"merge layer {layer} of {place.what} into {base}"
    upper, lower = place.layers / layer, place.layers / base
    header = read_header(upper)
    if header.backing != base:
        raise ReplicaError(act, f"it lies on {header.backing or 'nothing'}")
    _qemu_img(act, ["commit", "-q", "-d", _image(upper, lower)], lock)
    with datastore_errors(act):
        fsync_path(lower)
    size = read_header(lower).size
    if size != header.size:
        raise ReplicaError(act, f"the merged layer shows {size} bytes instead of {header.size}")


def _repair(act: str, base: Path, lock: int) -> None:
    """Make the counts of a file right into which a merge was stopped.

    A killed one leaves clusters that are counted but not used. One that met a full datastore can leave clusters that
    are used but not counted: the next merge would overwrite them. The tables are the truth; they are checked first,
    because ``qemu-img`` would mend an impossible entry by zeros.
    """
    check_maps(base)
    _qemu_img(act, ["check", "-q", "-r", "all", _image(base)], lock)


def _image(path: Path, backing: Path | None = None) -> str:
    """QEMU's name of an image, independent of what the file is called.

    With ``discard`` and ``detect-zeroes`` zeros give the base's space back instead of being written as data.
    """
    image: dict[str, object] = {"driver": "qcow2", "discard": "unmap", "detect-zeroes": "unmap",
                                "file": {"driver": "file", "filename": str(path), "discard": "unmap"}}
    if backing is None:
        return "json:" + json.dumps(image)
    lower = json.loads(_image(backing).removeprefix("json:"))
    return "json:" + json.dumps(image | {"backing": lower})


def _is_full(fd: int) -> bool:
    """Whether the file system of ``fd`` has no space left to work with; qemu-img often calls that an I/O error."""
    facts = os.fstatvfs(fd)
    return facts.f_bavail * facts.f_frsize < CLUSTER


def _qemu_img(act: str, arguments: list[str], lock: int) -> None:
    """Run qemu-img; it keeps the replica locked if this process is killed."""
    try:
        done = subprocess.run(["qemu-img", *arguments], pass_fds=(lock,), stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}, check=False)
    except OSError as exc:
        raise DatastoreError(act, f"qemu-img cannot be run: {exc.strerror}", "install qemu-utils on this host") from exc
    if done.returncode == 0:
        return
    why = done.stderr.strip() or done.stdout.strip() or f"qemu-img ended with status {done.returncode}"
    if "No space left" in why or _is_full(lock):
        raise DatastoreError(act, "the datastore is full", "free space on it; no restore point is lost")
    if "Failed to get" in why and "lock" in why:
        raise Refused(act, "a layer is in use by a virtual machine or another reader", "stop the replica VM")
    raise ReplicaError(act, why)
