"""Which layers make up a restore point, and does a record tell it without contradiction? Pure decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from understudy.model.replica import Conversion, PointDisk, Replica, RestorePoint
from understudy.storage.records.place import digest_name, disk_token


@dataclass(frozen=True)
class MergingDisk:
    """A disk of the oldest point whose layer shall be merged with those below it, left by retired points.

    :ivar below: layer files below the point's own, the lowest first; all are merged into that one.
    """

    disk: str
    below: tuple[str, ...]


@dataclass(frozen=True)
class UnlistedLayer:
    """A layer that points on record lie on, of a point that is not: a rebuilt record could not prove that one.

    :ivar backing: file of the layer below, or empty; :ivar file_bytes: length of the file when it was found.
    """

    disk: str
    file: str
    size: int
    backing: str
    file_bytes: int


@dataclass(frozen=True)
class ChainLayer:
    """A layer as it must be found.

    :ivar size: virtual size, or None if a merge may be changing it.
    :ivar backings: names of the layer below that its header may have; one, except during a merge.
    :ivar file_bytes: length of the file, or None if a merge may be changing it.
    """

    file: str
    size: int | None
    backings: frozenset[str]
    file_bytes: int | None


def chain(replica: Replica, merging: tuple[MergingDisk, ...], point: RestorePoint, disk: str,
          unlisted: tuple[UnlistedLayer, ...] = ()) -> tuple[ChainLayer, ...]:
    """The layers that show ``disk`` at ``point``, the top one first; empty if the VM had no such disk then."""
    found: list[ChainLayer] = []
    wanted = ""
    for older in reversed(replica.points[:replica.points.index(point) + 1]):
        part = older.disk(disk)
        if part is None or (wanted and part.layer != wanted):
            return tuple(found)
        backings = backings_like(replica, merging, disk, part.backing)
        found.append(ChainLayer(part.layer, part.size, backings, part.file_bytes))
        between, wanted = _through(unlisted, disk, part.backing)
        found += [ChainLayer(item.file, item.size, backings_like(replica, merging, disk, item.backing), item.file_bytes)
                  for item in between]
        if not wanted:
            return tuple(found)
    below = next((item.below for item in merging if item.disk == disk), ())
    return tuple(found + [_merging_layer(below, index) for index in reversed(range(len(below)))])


def _through(unlisted: tuple[UnlistedLayer, ...], disk: str, layer: str) -> tuple[list[UnlistedLayer], str]:
    """The unlisted layers from ``layer`` downwards, and the first one below them that is none; empty if none is."""
    by_file = {item.file: item for item in unlisted if item.disk == disk}
    found = []
    while layer in by_file:
        found.append(by_file.pop(layer))
        layer = found[-1].backing
    return found, layer


def backings_like(replica: Replica, merging: tuple[MergingDisk, ...], disk: str, layer: str) -> frozenset[str]:
    """``layer`` and, while it is merged, the one that it is merged into: both have the content then."""
    for item in merging:
        if item.disk == disk and layer in (*item.below, top_layer(replica, disk)):
            return frozenset((layer, item.below[0]))
    return frozenset((layer,))


def top_layer(replica: Replica, disk: str) -> str:
    """The layer of ``disk`` at the oldest point, or empty."""
    part = replica.points[0].disk(disk) if replica.points else None
    return part.layer if part else ""


def _merging_layer(below: tuple[str, ...], index: int) -> ChainLayer:
    if index == 0:
        return ChainLayer(below[0], None, frozenset(("",)), None)
    return ChainLayer(below[index], None, frozenset((below[index - 1], below[0])), None)


def referenced(replica: Replica, merging: tuple[MergingDisk, ...],
               unlisted: tuple[UnlistedLayer, ...] = ()) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the layer files and of the digest files that the record needs."""
    disks = [disk for point in replica.points for disk in point.disks]
    layers = {disk.layer for disk in disks} | {name for item in merging for name in item.below}
    layers |= {item.file for item in unlisted}
    return frozenset(layers), frozenset(disk.digest for disk in disks)


def retired(replica: Replica, first: RestorePoint, unlisted: tuple[UnlistedLayer, ...] = ()) -> tuple[
        Replica, tuple[MergingDisk, ...], tuple[UnlistedLayer, ...]]:
    """The record after all points older than ``first`` are gone, what must be merged for that, what stays unlisted."""
    index = replica.points.index(first)
    merging = []
    for disk in first.disks:
        if disk.backing:
            layers = chain(replica, (), first, disk.name, unlisted)
            merging.append(MergingDisk(disk.name, tuple(layer.file for layer in reversed(layers[1:]))))
    after = replace(replica, points=replica.points[index:])
    found = (_through(unlisted, disk.name, disk.backing)[0] for point in after.points[1:] for disk in point.disks)
    needed = {item.file for between in found for item in between} - {name for item in merging for name in item.below}
    return after, tuple(merging), tuple(item for item in unlisted if item.file in needed)


def contradictions(replica: Replica, merging: tuple[MergingDisk, ...],
                   unlisted: tuple[UnlistedLayer, ...] = ()) -> str:
    """The first thing that cannot be true of a record, or empty."""
    return next(_contradictions(replica, merging, unlisted), "")


def _contradictions(replica: Replica, merging: tuple[MergingDisk, ...],
                    unlisted: tuple[UnlistedLayer, ...]) -> Iterator[str]:
    disks = [disk for point in replica.points for disk in point.disks]
    yield from _repeated("restore point", [point.id for point in replica.points])
    yield from _repeated("layer", [disk.layer for disk in disks] + [name for item in merging for name in item.below]
                         + [item.file for item in unlisted])
    yield from _repeated("digest", [disk.digest for disk in disks])
    yield from _repeated("merging disk", [item.disk for item in merging])
    for point in replica.points:
        yield from _repeated(f"disk of point {point.id}", [disk.name for disk in point.disks])
    if replica.head_point and all(point.id != replica.head_point for point in replica.points):
        yield f"the head lies on point {replica.head_point!r}, which is not there"
    if replica.conversion is not Conversion.NONE and not replica.head_point:
        yield "a head is converted, and there is none"
    yield from _foreign_files(replica, merging)
    lower = {item.disk: item.below[-1] if item.below else "" for item in merging}
    merged = {item.disk: item for item in merging}
    for number, point in enumerate(replica.points):
        for disk in point.disks:
            yield from _broken_link(replica, number, disk, lower, unlisted)
    names = {item.file for item in unlisted}
    oldest = {disk.name for disk in replica.points[0].disks if disk.backing and disk.backing not in names} \
        if replica.points else set()
    if set(merged) != oldest:
        yield "the disks being merged are not those of the oldest point that lie on another layer"


def _broken_link(replica: Replica, number: int, disk: PointDisk, lower: dict[str, str],
                 unlisted: tuple[UnlistedLayer, ...]) -> Iterator[str]:
    between, backing = _through(unlisted, disk.name, disk.backing)
    sizes = [disk.size, *(item.size for item in between)]
    if sizes != sorted(sizes, reverse=True):
        yield f"layer {disk.layer} is smaller than the layer below"
    if not backing:
        return
    if number == 0:
        if between or lower.get(disk.name) != backing:
            yield f"layer {disk.layer} lies on {backing}, which is not there"
        return
    below = replica.points[number - 1].disk(disk.name)
    if below is None or below.layer != backing:
        yield f"layer {disk.layer} lies on {backing}, which is not the point before"
    elif below.size > sizes[-1]:
        yield f"layer {disk.layer} is smaller than the layer below"


def _foreign_files(replica: Replica, merging: tuple[MergingDisk, ...]) -> Iterator[str]:
    """Files of another disk: with as many bytes and a disk as large, nothing but their names would tell them."""
    layers = [(disk.name, disk.layer) for point in replica.points for disk in point.disks]
    layers += [(item.disk, name) for item in merging for name in item.below]
    for disk, name in layers:
        if not name.startswith(f"{disk_token(disk)}-"):
            yield f"{name} is no layer of disk {disk}"
    for point in replica.points:
        for part in point.disks:
            if part.digest != digest_name(part.name, point.id):
                yield f"{part.digest} holds no digests of disk {part.name} at point {point.id}"


def _repeated(kind: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{kind} {name!r} occurs {count} times"
