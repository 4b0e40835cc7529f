"""Gate: may these ranges of a volume be left out? Whatever the reason for a wrong range is, it must not come through.

One violation condemns the whole volume. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from understudy.model.extent import Extent, intersect, merge
from understudy.volumes import Unfit


def checked(found: Iterable[Extent], size: int, unit: int, forbidden: Sequence[Extent]) -> tuple[Extent, ...]:
    """The ranges, sorted and merged.

    :param size: of the volume in bytes.
    :param unit: every range begins and ends at a multiple of it: the file system's block or cluster.
    :param forbidden: a range list of the places where metadata lies.
    :raises Unfit: if a range is empty, lies outside, is not aligned, overlaps another one, or metadata.
    """
    ranges = sorted(found, key=lambda item: item.start)
    end = 0
    for item in ranges:
        if item.length <= 0 or item.start % unit or item.length % unit:
            raise Unfit(f"a range of {item.length} bytes at {item.start} is not made of blocks of {unit} bytes")
        if item.start < end:
            raise Unfit(f"two files claim the block at {item.start}")
        end = item.end
    if end > size:
        raise Unfit(f"a file claims a block at {end - unit}, behind the end of the volume")
    merged = merge(ranges)
    hit = intersect(merged, forbidden)
    if hit:
        raise Unfit(f"a file claims the metadata at {hit[0].start}")
    return tuple(merged)
