"""What is known of the replica's content before a transfer: the digests of its newest point."""

from __future__ import annotations

from typing import Protocol

from understudy.model.extent import Extent, merge
from understudy.mover.digest import CHUNK, DIGEST_BYTES, ZERO_DIGEST, DigestReader


class BaseDigests(Protocol):
    """Digests of the blocks as the replica has them now."""

    def known(self, index: int) -> bytes | None:
        """Digest of block ``index``, or None if it must be taken as different from everything."""

    def nonzero(self, run: Extent) -> list[Extent]:
        """The parts of ``run``, whole blocks, that are not known to be zero."""

    def kept(self, run: Extent) -> list[Extent]:
        """The blocks in ``run`` that the layer that is to be written has already, from an earlier attempt."""


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

    def _block(self, index: int, run: Extent) -> Extent:
        start = index * self._block_size
        return Extent(start, min(self._block_size, run.end - start))


def _is_zero(digests: bytes, position: int) -> bool:
    return digests[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES] == ZERO_DIGEST
