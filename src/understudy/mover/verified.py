"""How is what is known of a disk's health told as the outcome of a verification?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from understudy.model.extent import by_block
from understudy.model.health import DiskHealth, affected_points, health_of
from understudy.model.replica import PointDisk, RestorePoint
from understudy.mover.api import VerifiedDisk
from understudy.units import block_count

MOST_REPORTED = 1000


def verified_disk(
    known: Sequence[DiskHealth], point: RestorePoint, disk: PointDisk, problem: str = ""
) -> VerifiedDisk:
    """What is known of a disk of a point.

    :param known: of the whole replica.
    :param problem: why it could not be verified just now, or empty.
    """
    item = health_of(known, point.id, disk.name)
    indexes = islice((index for index, _ in by_block(item.bad, point.block_size)), MOST_REPORTED)
    return VerifiedDisk(
        disk.name, block_count(disk.size, point.block_size), item.bad_blocks, tuple(indexes), problem or item.problem,
        item.bad[:MOST_REPORTED], affected_points(known, point.id, disk.name), item.verified_at,
        item.digests_recomputed_at,
    )  # fmt: skip
