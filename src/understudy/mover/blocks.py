"""Sets of blocks of a disk: one bit a block, 8 MiB of memory for 64 TiB in blocks of 1 MiB."""

from __future__ import annotations

from collections.abc import Iterator

_CHUNK = 4096
_NOTHING = bytes(_CHUNK)


class BlockSet:
    """Which of ``blocks`` blocks are in the set; not for use by several threads at once."""

    def __init__(self, blocks: int) -> None:
        self._bits = bytearray(-(-blocks // 8))
        self._count = 0

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] >> (index & 7) & 1)

    def __len__(self) -> int:
        return self._count

    def add(self, first: int, count: int = 1) -> None:
        """Put ``count`` blocks from ``first`` on into the set."""
        self._change(first, count, present=True)

    def discard(self, first: int, count: int = 1) -> None:
        """Take ``count`` blocks from ``first`` on out of the set."""
        self._change(first, count, present=False)

    def _change(self, first: int, count: int, *, present: bool) -> None:
        end = first + count
        while first < end and (first & 7 or end - first < 8):
            self._change_one(first, present=present)
            first += 1
        whole = (end - first) // 8
        if whole > 0:
            begin = first >> 3
            before = int.from_bytes(self._bits[begin : begin + whole], "little").bit_count()
            self._bits[begin : begin + whole] = (b"\xff" if present else b"\0") * whole
            self._count += whole * 8 - before if present else -before
            first += whole * 8
        while first < end:
            self._change_one(first, present=present)
            first += 1

    def _change_one(self, index: int, *, present: bool) -> None:
        if (index in self) != present:
            self._bits[index >> 3] ^= 1 << (index & 7)
            self._count += 1 if present else -1

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of blocks in the set among ``first`` to before ``end``: first block and count of each."""
        start = -1
        index = first
        while index < end:
            if start < 0 and not index & 7 and not self._bits[index >> 3]:
                index = self._next_nonzero(index >> 3) << 3
                continue
            if index in self:
                start = index if start < 0 else start
            elif start >= 0:
                yield start, index - start
                start = -1
            index += 1
        if start >= 0:
            yield start, end - start

    def _next_nonzero(self, position: int) -> int:
        """Position of the first byte at or after ``position`` that is not zero, or the length."""
        bits = self._bits
        while position < len(bits):
            chunk = bits[position : position + _CHUNK]
            if chunk != _NOTHING[: len(chunk)]:
                return position + len(chunk) - len(chunk.lstrip(b"\0"))
            position += len(chunk)
        return position
