"""What verifying has found out about restore points; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from understudy.model.extent import Extent, intersect


@dataclass(frozen=True)
class DiskHealth:
    """What is known of one disk of a restore point; times are ISO 8601 in UTC, all of one form, empty for never.

    :ivar started_at: when the pass under way began; empty if none is.
    :ivar position: how far that pass has come, in bytes of the disk.
    :ivar verified_at: when the last complete pass ended, whatever it found.
    :ivar bad: ranges of the disk in bytes, at block borders, that are not what their digests say; sorted. If there are
        too many, the last one is coarse and holds good blocks too.
    :ivar bad_blocks: how many blocks are bad.
    :ivar found_at: when a bad block was found last.
    :ivar problem: why the disk could not be verified; empty if it could.
    :ivar digests_recomputed_at: when its digests were made anew from the replica itself. They tell only what changed
        since; blocks that were bad before stay so.
    """

    point: str
    disk: str
    started_at: str = ""
    position: int = 0
    verified_at: str = ""
    bad: tuple[Extent, ...] = ()
    bad_blocks: int = 0
    found_at: str = ""
    problem: str = ""
    digests_recomputed_at: str = ""

    @property
    def damaged(self) -> bool:
        """Whether something is wrong with it."""
        return bool(self.bad or self.problem)


def health_of(known: Iterable[DiskHealth], point: str, disk: str) -> DiskHealth:
    """What is known of a disk of a point; nothing, if it is not among ``known``."""
    return next((item for item in known if (item.point, item.disk) == (point, disk)), DiskHealth(point, disk))


def affected_points(known: Iterable[DiskHealth], point: str, disk: str) -> tuple[str, ...]:
    """The other points in which blocks of ``disk`` are bad that are bad in ``point``, in the order of ``known``."""
    known = tuple(known)
    bad = health_of(known, point, disk).bad
    return tuple(item.point for item in known
                 if item.disk == disk and item.point != point and intersect(item.bad, bad))


def last_verified(known: Iterable[DiskHealth], point: str, disks: Sequence[str]) -> str:
    """When the last of ``disks`` was verified whose turn was longest ago; empty if one never was."""
    known = tuple(known)
    return min((health_of(known, point, disk).verified_at for disk in disks), default="")


def suspect_disks(known: Iterable[DiskHealth], point: str) -> Mapping[str, DiskHealth]:
    """The disks of ``point`` that have bad blocks, with what is known of each."""
    return {item.disk: item for item in known if item.point == point and item.bad}
