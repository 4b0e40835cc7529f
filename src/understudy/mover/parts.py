"""Parts: which 64 KiB parts of a block that changed are different? Sets of parts are numbers, one bit a part. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from understudy.model.extent import PART, Extent, merge
from understudy.mover.digest import DIGEST_BYTES, ZERO_DIGEST, block_digest
from understudy.mover.filters import zero_parts
from understudy.mover.plan import ReadBlock
from understudy.units import block_count


def part_digests(view: memoryview) -> bytes:
    """Digests of the parts of a block, the last of which may be shorter."""
    pieces = zip(zero_parts(view), range(0, len(view), PART), strict=True)
    return b"".join(ZERO_DIGEST if zero else block_digest(view[start : start + PART]) for zero, start in pieces)


def every_part(length: int) -> int:
    """All parts of a block of ``length`` bytes."""
    return (1 << block_count(length, PART)) - 1


def different_digests(one: bytes, other: bytes) -> int:
    """The parts whose digests differ; both have the digests of as many parts."""
    starts = range(0, len(one), DIGEST_BYTES)
    return _set(one[start : start + DIGEST_BYTES] != other[start : start + DIGEST_BYTES] for start in starts)


def different_content(one: bytearray, view: memoryview) -> int:
    """The parts whose bytes differ; ``one`` may be longer than ``view``."""
    # The order matters, see understudy.mover.filters.
    return _set(one[start : min(start + PART, len(view))] != view[start : start + PART]
                for start in range(0, len(view), PART))


def _set(flags: Iterator[bool]) -> int:
    return sum(1 << number for number, flag in enumerate(flags) if flag)


def narrowed(item: ReadBlock, parts: int) -> ReadBlock:
    """``item``, of which only ``parts`` are wanted.

    If there are none, all of it is: then the base is not what its digests say, and the layer gets a whole block.
    """
    block = item.block
    parts = parts or every_part(block.length)
    starts = [block.start + number * PART for number in range(parts.bit_length()) if parts >> number & 1]
    wanted = merge(Extent(start, min(PART, block.end - start)) for start in starts)
    return replace(item, wanted=tuple(wanted), vague=False)
