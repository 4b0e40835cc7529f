"""What of a block that was read must travel: zero parts are told from data, 64 KiB at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from understudy.model.extent import PART, Extent
from understudy.mover.digest import ZERO_DIGEST, block_digest

# bytearray == memoryview, in this order, compares with memcmp and ends at the first difference; memoryview == anything
# unpacks every byte.
_ZEROS = bytearray(PART)


def zero_parts(view: memoryview) -> list[bool]:
    """For each 64 KiB part of ``view`` (the last may be shorter) whether it is all zero."""
    whole = range(0, len(view) - PART + 1, PART)
    flags = [_ZEROS == view[start : start + PART] for start in whole]  # noqa: SIM300 - the order matters, see above
    rest = len(view) % PART
    if rest:
        flags.append(bytearray(rest) == view[-rest:])
    return flags


def content_digest(view: memoryview) -> bytes:
    """Digest of a block, whatever it holds."""
    return ZERO_DIGEST if all(zero_parts(view)) else block_digest(view)


def pieces(flags: Sequence[bool], block: Extent, wanted: Sequence[Extent]) -> Iterator[tuple[Extent, bool]]:
    """The ``wanted`` areas of ``block`` as long runs, each with whether it is all zero.

    :param flags: of the block's parts, from :func:`zero_parts`.
    :param wanted: absolute areas inside the block, at 64 KiB borders of the block, or ending with it.
    """
    for area in wanted:
        start = area.start
        while start < area.end:
            zero = flags[(start - block.start) // PART]
            end = start
            while end < area.end and flags[(end - block.start) // PART] == zero:
                end = min(end + PART, area.end)
            yield Extent(start, end - start), zero
            start = end
