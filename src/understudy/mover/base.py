"""What is known of the replica's content before a transfer: the digests of its newest point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from understudy.model.extent import Extent, clip, merge, unite
from understudy.mover.blocks import BlockSet
from understudy.mover.digest import CHUNK, DIGEST_BYTES, ZERO_DIGEST, DigestReader
from understudy.units import block_count


class BaseDigests(Protocol):
    """Digests of the blocks as the replica has them now."""

    def known(self, index: int) -> bytes | None:
        """Digest of block ``index``, or None if it must be taken as different from everything."""

    def nonzero(self, run: Extent) -> list[Extent]:
        """The parts of ``run``, whole blocks, that are not known to be zero."""

    def kept(self, run: Extent) -> list[Extent]:
        """The blocks in ``run`` that the layer that is to be written has already, from an earlier attempt."""

    def doubtful(self, run: Extent) -> list[Extent]:
        """The blocks in ``run`` that must be looked at whole, whatever the dirty map says of them."""


class NothingKnown:
    """No digests: every block may hold anything."""

    def known(self, index: int) -> None:
        """Nothing."""

    def nonzero(self, run: Extent) -> list[Extent]:
        """All of it."""
        return [run]

    def kept(self, run: Extent) -> list[Extent]:  # noqa: ARG002 - the protocol's signature
        """None."""
        return []

    def doubtful(self, run: Extent) -> list[Extent]:  # noqa: ARG002 - the protocol's signature
        """None more than others."""
        return []


class PointDigests:
    """Digests of a point, for a disk that now has ``size`` bytes.

    A block that lies behind the old end reads as zeros in the replica. A block whose length changed, the last of the
    old or of the new size, is unknown: its digest was made of another number of bytes.
    """

    def __init__(self, reader: DigestReader, size: int) -> None:
        self._reader = reader
        self._block_size = reader.header.block_size
        self._blocks = reader.header.blocks
        self._changed = -1
        if size != reader.header.size:
            shorter = min(size, reader.header.size)
            self._changed = shorter // self._block_size if shorter % self._block_size else -1

    def known(self, index: int) -> bytes | None:
        """Digest of block ``index``, or None if unknown."""
        if index == self._changed:
            return None
        return self._reader.read(index, 1) if index < self._blocks else ZERO_DIGEST

    def nonzero(self, run: Extent) -> list[Extent]:
        """The blocks of ``run`` whose digest is unknown or not zero, as ranges."""
        found: list[Extent] = []
        first, end = run.start // self._block_size, -(-run.end // self._block_size)
        step = CHUNK // DIGEST_BYTES
        for start in range(first, min(end, self._blocks), step):
            count = min(step, end - start, self._blocks - start)
            digests = self._reader.read(start, count)
            if digests == bytes(len(digests)) and not start <= self._changed < start + count:
                continue
            found.extend(self._block(index, run) for index in range(start, start + count)
                         if index == self._changed or not _is_zero(digests, index - start))
        return merge(found)

    def kept(self, run: Extent) -> list[Extent]:  # noqa: ARG002 - the protocol's signature
        """None: the layer is new."""
        return []

    def doubtful(self, run: Extent) -> list[Extent]:
        """The block whose length changed."""
        start = self._changed * self._block_size
        return [self._block(self._changed, run)] if run.start <= start < run.end else []

    def _block(self, index: int, run: Extent) -> Extent:
        start = index * self._block_size
        return Extent(start, min(self._block_size, run.end - start))


class Doubted:
    """What is known, less what must not be relied on.

    :param known: what there is to know.
    :param size, block_size: of the disk, in bytes.
    :param suspect: ranges where the replica does not hold what its digests say: the blocks there are unknown.
    :param points: digests of the base point and of the point since which changes are tracked, if that is another one.
        Changes between the two may be missing in the dirty map, so blocks in which they differ are doubtful.
    """

    def __init__(
        self, known: BaseDigests, size: int, block_size: int, suspect: Sequence[Extent],
        points: tuple[DigestReader, DigestReader] | None = None,
    ) -> None:
        self._known = known
        self._size = size
        self._block_size = block_size
        self._points = points
        self._suspect = BlockSet(block_count(size, block_size))
        for area in clip(suspect, 0, size):
            first = area.start // block_size
            self._suspect.add(first, block_count(area.end, block_size) - first)

    def known(self, index: int) -> bytes | None:
        """Digest of block ``index``, or None if unknown or suspect."""
        return None if index in self._suspect else self._known.known(index)

    def nonzero(self, run: Extent) -> list[Extent]:
        """The parts of ``run``, whole blocks, that are not known to be zero."""
        return unite(self._known.nonzero(run), self._suspected(run))

    def kept(self, run: Extent) -> list[Extent]:
        """The blocks in ``run`` that the layer has already."""
        return self._known.kept(run)

    def doubtful(self, run: Extent) -> list[Extent]:
        """The blocks in ``run`` that are suspect, or in which the two points differ."""
        found = unite(self._known.doubtful(run), self._suspected(run))
        return unite(found, self._differing(run)) if self._points else found

    def _suspected(self, run: Extent) -> list[Extent]:
        first, end = run.start // self._block_size, block_count(run.end, self._block_size)
        return [self._blocks(start, count) for start, count in self._suspect.runs(first, end)]

    def _differing(self, run: Extent) -> list[Extent]:
        found: list[Extent] = []
        first, end = run.start // self._block_size, block_count(run.end, self._block_size)
        step = CHUNK // DIGEST_BYTES
        for start in range(first, end, step):
            count = min(step, end - start)
            ours, theirs = (reader.read(start, count) for reader in self._points or ())
            if ours != theirs:
                found += [self._blocks(start + position, 1) for position in range(count)
                          if _digest_at(ours, position) != _digest_at(theirs, position)]
        return merge(found)

    def _blocks(self, first: int, count: int) -> Extent:
        start = first * self._block_size
        return Extent(start, min(count * self._block_size, self._size - start))


def _is_zero(digests: bytes, position: int) -> bool:
    return _digest_at(digests, position) == ZERO_DIGEST


def _digest_at(digests: bytes, position: int) -> bytes:
    return digests[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES]
