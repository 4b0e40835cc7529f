"""Overlay: the volume as it will be when its journal has been replayed, without writing to it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from understudy.volumes import Image


class Overlay:
    """An image some of whose blocks lie elsewhere in it.

    :param moved: where a block's newest content lies, by the block's number.
    :param restored: blocks whose first bytes are to be replaced by these.
    """

    def __init__(self, image: Image, block_size: int, moved: Mapping[int, int], restored: Mapping[int, bytes]) -> None:
        self._image = image
        self._block_size = block_size
        self._moved = moved
        self._restored = restored
        self._order = sorted(moved)

    @property
    def size(self) -> int:
        """In bytes."""
        return self._image.size

    def read(self, offset: int, length: int) -> bytes:
        """As :meth:`Image.read`."""
        size = self._block_size
        first = bisect_left(self._order, offset // size)
        after = bisect_left(self._order, -(-(offset + length) // size))
        data = self._image.read(offset, length)
        if first == after:
            return data
        patched = bytearray(data)
        for block in self._order[first:after]:
            start, end = max(offset, block * size), min(offset + length, (block + 1) * size)
            patched[start - offset : end - offset] = self._content(block)[start - block * size : end - block * size]
        return bytes(patched)

    def _content(self, block: int) -> bytes:
        data = self._image.read(self._moved[block] * self._block_size, self._block_size)
        head = self._restored.get(block, b"")
        return head + data[len(head) :]
