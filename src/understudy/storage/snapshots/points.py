"""Which restore points stay when others go, and does a record tell them without contradiction? Pure decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from understudy.errors import Refused
from understudy.model.replica import PointDisk, Replica, RestorePoint
from understudy.storage.records.place import digest_name
from understudy.storage.snapshots.names import layer_name


def newest_layer(replica: Replica, disk: str) -> str:
    """What holds ``disk`` at the newest point; empty if nothing does."""
    newest = replica.newest
    part = newest.disk(disk) if newest else None
    return part.layer if part else ""


def retired(act: str, replica: Replica, point_ids: tuple[str, ...]) -> Replica:
    """The replica without its oldest points.

    :raises Refused: if they are not the oldest, or the newest or the one under the head is among them.
    """
    ids = [point.id for point in replica.points]
    count = len(point_ids)
    if len(set(point_ids)) != count or set(ids[:count]) != set(point_ids):
        raise Refused(act, "only the oldest points can be retired", f"oldest first: {', '.join(ids)}")
    if count and count == len(ids):
        raise Refused(act, "the newest restore point must stay", "remove the replica if you do not need it")
    if replica.head_point in point_ids:
        raise Refused(act, f"the replica VM is at point {replica.head_point!r}", "end the failover first")
    return without(replica, point_ids)


def without(replica: Replica, point_ids: Collection[str]) -> Replica:
    """The replica without these points, whichever they are; those that it does not have are no matter.

    What lay on one of them lies on the point before it now, for the platform keeps the content of every snapshot.
    """
    present: dict[str, str] = {}  # by disk: what stays of the points so far that is below it
    points = []
    for point in replica.points:
        below = {disk.name: present.get(disk.name, "") if disk.backing else "" for disk in point.disks}
        if point.id in point_ids:
            present = below
            continue
        disks = tuple(replace(disk, backing=below[disk.name]) for disk in point.disks)
        points.append(replace(point, disks=disks))
        present = {disk.name: disk.layer for disk in disks}
    head = replica.head_point if replica.head_point not in point_ids else ""
    return replace(replica, points=tuple(points), head_point=head)


def contradictions(replica: Replica) -> str:
    """The first thing that cannot be true of a replica, or empty."""
    return next(_contradictions(replica), "")


def _contradictions(replica: Replica) -> Iterator[str]:
    yield from _repeated("restore point", [point.id for point in replica.points])
    before: RestorePoint | None = None
    for point in replica.points:
        yield from _repeated(f"disk of point {point.id}", [disk.name for disk in point.disks])
        for disk in point.disks:
            yield from _wrong(point, disk, before)
        before = point
    if replica.head_point and all(point.id != replica.head_point for point in replica.points):
        yield f"the head lies on point {replica.head_point!r}, which is not there"


def _wrong(point: RestorePoint, disk: PointDisk, before: RestorePoint | None) -> Iterator[str]:
    if disk.layer != layer_name(disk.name, point.id):
        yield f"{disk.layer} is not disk {disk.name} at point {point.id}"
    if disk.digest != digest_name(disk.name, point.id):
        yield f"{disk.digest} holds no digests of disk {disk.name} at point {point.id}"
    if not disk.backing:
        return
    below = before.disk(disk.name) if before else None
    if below is None or below.layer != disk.backing:
        yield f"{disk.layer} lies on {disk.backing}, which is not the point before"
    elif below.size != disk.size:
        yield f"{disk.layer} is of another size than what it lies on"


def _repeated(kind: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{kind} {name!r} occurs {count} times"
