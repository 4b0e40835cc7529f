"""Image: how are the bytes of a volume read from the disks that hold it, and where on them do its ranges lie?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.errors import TransferError
from understudy.model.extent import Extent
from understudy.units import KIB, MIB
from understudy.volumes import Image, Unfit

#: What is read at once where reads are scattered, and at most where they follow each other.
BLOCK = 64 * KIB
MOST_AHEAD = MIB
CACHE_BYTES = 32 * MIB


class Reading(Protocol):
    """Where a disk is read, see :class:`understudy.nbd.NbdClient`."""

    def read(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from ``offset`` on.

        :raises TransferError: if that fails.
        """


class CachedDisk:
    """An :class:`Image` of a disk that keeps what was read last, and reads ahead where reads follow each other.

    :param size: of the disk in bytes.
    :param most: bytes kept.
    """

    def __init__(self, source: Reading, size: int, most: int = CACHE_BYTES) -> None:
        self._source = source
        self._size = size
        self._most_blocks = max(most, MOST_AHEAD) // BLOCK
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next = -1
        self._ahead = 1

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` on.

        :raises Unfit: if they lie outside, or cannot be read.
        """
        check_inside(offset, length, self._size)
        if not length:
            return b""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        begin = offset - first * BLOCK
        if first == last:
            return self._block(first, last)[begin : begin + length]
        found = b"".join([self._block(index, last) for index in range(first, last + 1)])
        return found[begin : begin + length]

    def _block(self, index: int, last: int) -> bytes:
        if index in self._blocks:
            self._blocks.move_to_end(index)
        else:
            self._fetch(index, last)
        return self._blocks[index]

    def _fetch(self, index: int, last: int) -> None:
        """Read a block that is missing, with what is wanted behind it; twice as much as the last time if it follows."""
        self._ahead = min(self._ahead * 2, MOST_AHEAD // BLOCK) if index == self._next else 1
        count = min(max(self._ahead, last - index + 1), MOST_AHEAD // BLOCK)
        start = index * BLOCK
        data = bytearray(min(count * BLOCK, self._size - start))
        try:
            self._source.read(memoryview(data), start)
        except TransferError as exc:
            raise Unfit(f"it cannot be read at {start}: {exc.why}") from exc
        for position in range(0, len(data), BLOCK):
            key = index + position // BLOCK
            self._blocks[key] = bytes(data[position : position + BLOCK])
            self._blocks.move_to_end(key)
        self._next = index + count
        # The block that was asked for is the first to be forgotten among those of one fetch: it is asked for last.
        self._blocks.move_to_end(index)
        while len(self._blocks) > self._most_blocks:
            self._blocks.popitem(last=False)


@dataclass(frozen=True)
class Piece:
    """``length`` bytes from ``start`` of a disk.

    :ivar disk: its name.
    :ivar image: its bytes.
    """

    disk: str
    image: Image
    start: int
    length: int


class Pieces:
    """An :class:`Image` made of parts of disks, one after the other: a partition, or a linear logical volume."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self._size = sum(piece.length for piece in pieces)

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` on.

        :raises Unfit: if they lie outside, or cannot be read.
        """
        check_inside(offset, length, self._size)
        if len(self.pieces) == 1:
            (piece,) = self.pieces
            return piece.image.read(piece.start + offset, length)
        return b"".join([piece.image.read(piece.start, piece.length) for piece in self.part(offset, length)])

    def part(self, offset: int, length: int) -> list[Piece]:
        """Where on the disks ``length`` bytes from ``offset`` on lie, in the order of the volume."""
        found: list[Piece] = []
        begin = 0
        for piece in self.pieces:
            start, end = max(offset, begin), min(offset + length, begin + piece.length)
            if start < end:
                found.append(Piece(piece.disk, piece.image, piece.start + start - begin, end - start))
            begin += piece.length
        return found

    def on_disks(self, ranges: Iterable[Extent]) -> list[tuple[str, Extent]]:
        """Where on the disks ranges of the volume lie, in the order of the ranges."""
        return [(piece.disk, Extent(piece.start, piece.length))
                for item in ranges for piece in self.part(item.start, item.length)]


def check_inside(offset: int, length: int, size: int) -> None:
    """Whether a read is one of an image of ``size`` bytes.

    :raises Unfit: if not.
    """
    if offset < 0 or length < 0 or offset + length > size:
        raise Unfit(f"{length} bytes at {offset} lie outside of a volume of {size} bytes")
