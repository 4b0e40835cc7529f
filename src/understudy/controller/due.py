"""Which restore points are due to be verified? Pure.

The newest point is due when nothing of its replica was verified for as long as the job says: it shows every block that
the next failover would use. A point that was verified once is due again when that is as long ago; so is one whose
pass was stopped. Others were checked block by block when they arrived, and are verified when the operator asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from understudy.model.health import DiskHealth, health_of, last_verified
from understudy.model.replica import Replica, RestorePoint


@dataclass(frozen=True)
class DuePoint:
    """A point to verify.

    :ivar last: when it was verified last, or its replica if it never was; empty for never.
    :ivar begun: a pass over it was stopped, and goes on.
    """

    point: str
    last: str
    begun: bool

    @property
    def turn(self) -> tuple[bool, str]:
        """Sorts those first whose pass is under way, then those that wait longest."""
        return not self.begun, self.last


def due_points(replica: Replica, health: Iterable[DiskHealth], every_s: int, now: datetime) -> list[DuePoint]:
    """The points of a replica that are due, whose turn is first first.

    :param every_s: how long a verification counts, in seconds.
    :param now: with a zone.
    """
    health = tuple(health)
    last = {point.id: last_verified(health, point.id, [disk.name for disk in point.disks]) for point in replica.points}
    of_replica = max(last.values(), default="")
    found = []
    for point in replica.points:
        begun = _begun(health, point)
        since = of_replica if point is replica.newest and not last[point.id] else last[point.id]
        is_old = (since or point is replica.newest) and _is_older(since, every_s, now)
        if begun or is_old:
            found.append(DuePoint(point.id, since, begun))
    return sorted(found, key=lambda item: item.turn)


def _begun(health: Sequence[DiskHealth], point: RestorePoint) -> bool:
    return any(health_of(health, point.id, disk.name).started_at for disk in point.disks)


def _is_older(since: str, every_s: int, now: datetime) -> bool:
    return not since or datetime.fromisoformat(since) + timedelta(seconds=every_s) <= now
