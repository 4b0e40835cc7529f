"""Bitmaps: which blocks are in use?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from understudy.model.extent import Extent
from understudy.volumes import Image, Unfit
from understudy.volumes.ext.checksums import crc32c
from understudy.volumes.ext.groups import Groups

#: More pieces of free space than this are not worth their memory.
_MOST_RANGES = 400_000
_FREE = re.compile("0+")


def require_allocated(image: Image, groups: Groups, ranges: Sequence[Extent]) -> None:
    """Refuse files whose blocks the bitmaps do not know.

    :param ranges: a range list of bytes of the volume, made of blocks.
    :raises Unfit: if a block is marked free, or a bitmap is damaged.
    """
    layout = groups.layout
    known, bits = -1, 0
    for item in ranges:
        block, end = item.start // layout.block_size, item.end // layout.block_size
        while block < end:
            number, offset = divmod(block - layout.first_block, layout.blocks_per_group)
            upto = min(end, groups.first_block(number + 1))
            if number != known:
                known, bits = number, _in_use(image, groups, number)
            first, last = offset // layout.ratio, (offset + upto - block - 1) // layout.ratio
            mask = (1 << last - first + 1) - 1
            if bits >> first & mask != mask:
                raise Unfit(f"a file claims blocks from {block} on, which are marked as free")
            block = upto


def used_bytes(groups: Groups) -> int:
    """What the group descriptors say is in use.

    :raises Unfit: if a descriptor is damaged, or says that more is free than there is.
    """
    used = 0
    for number in range(groups.layout.groups):
        rest = groups.clusters(number) - groups.group(number).free
        if rest < 0:
            raise Unfit(f"more blocks are free in block group {number} than it has")
        used += rest
    layout = groups.layout
    return min(layout.first_block + used * layout.ratio, layout.blocks) * layout.block_size


def free_ranges(image: Image, groups: Groups) -> list[Extent] | None:
    """A range list of the blocks that hold nothing; groups whose bitmap was never written count as in use.

    None if there are too many pieces. For file systems without clusters.

    :raises Unfit: if a bitmap is damaged, or does not agree with its group's descriptor.
    """
    size = groups.layout.block_size
    found: list[Extent] = []
    for number in range(groups.layout.groups):
        group = groups.group(number)
        if not group.blocks_known or not group.free:
            continue
        count = groups.clusters(number)
        bits = _in_use(image, groups, number) & (1 << count) - 1
        if count - bits.bit_count() != group.free:
            raise Unfit(f"the block bitmap of group {number} and its descriptor do not agree")
        first = groups.first_block(number)
        text = f"{bits:0{count}b}"[::-1]
        found += [
            Extent((first + run.start()) * size, (run.end() - run.start()) * size) for run in _FREE.finditer(text)
        ]
        if len(found) > _MOST_RANGES:
            return None
    return found


def _in_use(image: Image, groups: Groups, number: int) -> int:
    """The bitmap of a group, the first block being the lowest bit."""
    layout, group = groups.layout, groups.group(number)
    if not group.blocks_known:
        # Nothing but metadata lies in a group that was never written to.
        return 0
    raw = image.read(group.block_bitmap * layout.block_size, layout.blocks_per_group // layout.ratio // 8)
    if layout.summed and crc32c(layout.seed, raw) & (1 << group.sum_bits) - 1 != group.bitmap_sum:
        raise Unfit(f"the checksum of the block bitmap of group {number} is wrong")
    return int.from_bytes(raw, "little")
