"""Extents of a disk: pure functions on sorted, disjoint ranges; every one is a single linear walk, or less.

A *status list* tiles an area: each extent carries the flags that the NBD server reported. A *range list* holds only the
areas that have some property, with flags 0. Both are sorted by start and never overlap.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from understudy.units import KIB

#: Granularity of what travels inside a changed block, and of what a layer writer accepts.
PART = 64 * KIB


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes from ``start``; ``flags`` as the NBD meta context defines them."""

    start: int
    length: int
    flags: int = 0

    @property
    def end(self) -> int:
        """First byte behind the extent."""
        return self.start + self.length


def span(start: int, end: int) -> Extent:
    """The range from ``start`` to before ``end``."""
    return Extent(start, end - start)


def merge(ranges: Iterable[Extent]) -> list[Extent]:
    """``ranges`` (sorted by start, overlaps allowed), disjoint, adjacent ones joined; flags are dropped."""
    merged: list[Extent] = []
    last: Extent | None = None
    for item in ranges:
        if item.length == 0:
            continue
        if last is None or item.start > last.end:
            if last is not None:
                merged.append(last)
            # Mostly nothing is to be joined, and making an object costs more than all the rest.
            last = Extent(item.start, item.length) if item.flags else item
        elif item.end > last.end:
            last = span(last.start, item.end)
    if last is not None:
        merged.append(last)
    return merged


def having(statuses: Iterable[Extent], mask: int) -> list[Extent]:
    """The areas of a status list whose flags contain a bit of ``mask``, as a range list."""
    return merge(item for item in statuses if item.flags & mask)


def clip(ranges: Iterable[Extent], start: int, end: int) -> list[Extent]:
    """What of ``ranges`` lies in ``start..end``; flags are kept."""
    clipped: list[Extent] = []
    for item in ranges:
        first, last = max(item.start, start), min(item.end, end)
        if first < last:
            clipped.append(item if last - first == item.length else Extent(first, last - first, item.flags))
    return clipped


def within(ranges: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """As :func:`clip`, for few of many ranges: looks at no others."""
    first = bisect_right(ranges, start, key=lambda item: item.end)
    last = bisect_right(ranges, end - 1, lo=first, key=lambda item: item.start)
    return clip(ranges[first:last], start, end)


def round_out(ranges: Iterable[Extent], unit: int, limit: int) -> list[Extent]:
    """``ranges`` grown to multiples of ``unit``; nothing passes ``limit``, the end of the disk."""
    return merge(span(item.start // unit * unit, min(-(-item.end // unit) * unit, limit)) for item in ranges)


def round_in(ranges: Iterable[Extent], unit: int, limit: int) -> list[Extent]:
    """``ranges`` shrunk to multiples of ``unit``; ``limit``, the end of the disk, counts as a multiple."""
    shrunk: list[Extent] = []
    for item in ranges:
        start = -(-item.start // unit) * unit
        end = limit if item.end >= limit else item.end // unit * unit
        if start < end:
            shrunk.append(span(start, end))
    return shrunk


def intersect(left: Sequence[Extent], right: Sequence[Extent]) -> list[Extent]:
    """What lies in both range lists."""
    common: list[Extent] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i].start, right[j].start), min(left[i].end, right[j].end)
        if start < end:
            common.append(span(start, end))
        if left[i].end <= right[j].end:
            i += 1
        else:
            j += 1
    return common


def unite(left: Sequence[Extent], right: Sequence[Extent]) -> list[Extent]:
    """What lies in either range list."""
    return merge(heapq.merge(left, right, key=lambda item: item.start)) if right else list(left)


def subtract(left: Sequence[Extent], right: Sequence[Extent]) -> list[Extent]:
    """What lies in ``left`` and not in ``right``; flags are kept, so that ``left`` may be a status list."""
    if not right:
        return list(left)
    rest: list[Extent] = []
    j = 0
    for item in left:
        start = item.start
        while j < len(right) and right[j].end <= start:
            j += 1
        k = j
        while k < len(right) and right[k].start < item.end:
            if right[k].start > start:
                rest.append(Extent(start, right[k].start - start, item.flags))
            start = max(start, right[k].end)
            k += 1
        if start < item.end:
            rest.append(Extent(start, item.end - start, item.flags))
        j = max(j, k - 1)
    return rest


def total(ranges: Iterable[Extent]) -> int:
    """Bytes covered."""
    return sum(item.length for item in ranges)


def by_block(ranges: Iterable[Extent], block_size: int) -> Iterator[tuple[int, tuple[Extent, ...]]]:
    """Group ``ranges`` by block: block index and the pieces in it, ascending; ranges are cut at block borders."""
    index = -1
    pieces: list[Extent] = []
    for item in ranges:
        start = item.start
        while start < item.end:
            block = start // block_size
            end = min((block + 1) * block_size, item.end)
            if block != index:
                if pieces:
                    yield index, tuple(pieces)
                index, pieces = block, []
            pieces.append(span(start, end))
            start = end
    if pieces:
        yield index, tuple(pieces)
