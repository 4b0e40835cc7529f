"""Claims: what an earlier attempt at the same layer brought already, so that it need not travel again.

An unfinished layer that is continued lies on the same point as before, but the source may have changed since. So each
block that the layer has is looked at again: with a known digest it travels only if it differs, else always.
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.model.extent import Extent, merge, span
from understudy.mover.base import BaseDigests
from understudy.mover.blocks import BlockSet
from understudy.mover.digest import ZERO_DIGEST
from understudy.units import block_count


class Claims:
    """What is known of the replica's content with an unfinished layer on top; a :class:`BaseDigests`.

    :param base: what is known of the content below the unfinished layer.
    :param size, block_size: of the disk, in bytes.
    :param read: digest of a claimed block.
    """

    def __init__(self, base: BaseDigests, size: int, block_size: int, read: Callable[[int], bytes]) -> None:
        blocks = block_count(size, block_size)
        self.touched = BlockSet(blocks)
        self.claimed = BlockSet(blocks)
        self._base = base
        self._size = size
        self._block_size = block_size
        self._read = read

    def known(self, index: int) -> bytes | None:
        """Digest of block ``index`` as the unfinished layer shows it, or None if it must be taken as different."""
        if index not in self.touched:
            return self._base.known(index)
        return self._read(index) if index in self.claimed else None

    def nonzero(self, run: Extent) -> list[Extent]:
        """The parts of ``run``, whole blocks, that are not known to be zero."""
        found = [part for gap in self._gaps(run) for part in self._base.nonzero(gap)]
        for index in self._indexes(run):
            if self.known(index) != ZERO_DIGEST:
                found.append(self._extent(index, 1))
        return merge(sorted(found, key=lambda part: part.start))

    def kept(self, run: Extent) -> list[Extent]:
        """The blocks in ``run`` that the unfinished layer has, in whatever state."""
        first, end = run.start // self._block_size, block_count(run.end, self._block_size)
        return [self._extent(start, count) for start, count in self.touched.runs(first, end)]

    def doubtful(self, run: Extent) -> list[Extent]:
        """As below: what the unfinished layer has is looked at anyway."""
        return self._base.doubtful(run)

    def _indexes(self, run: Extent) -> list[int]:
        first, end = run.start // self._block_size, block_count(run.end, self._block_size)
        return [index for start, count in self.touched.runs(first, end) for index in range(start, start + count)]

    def _gaps(self, run: Extent) -> list[Extent]:
        gaps, position = [], run.start
        for part in self.kept(run):
            if part.start > position:
                gaps.append(span(position, part.start))
            position = max(position, part.end)
        if position < run.end:
            gaps.append(span(position, run.end))
        return gaps

    def _extent(self, first: int, count: int) -> Extent:
        start = first * self._block_size
        return Extent(start, min(count * self._block_size, self._size - start))
