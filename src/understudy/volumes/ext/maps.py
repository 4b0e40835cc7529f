"""Maps: in which blocks does the data of an inode lie? By extent trees, and by the block maps of ext2 and ext3."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from understudy.volumes import Image, Unfit
from understudy.volumes.ext.checksums import crc32c
from understudy.volumes.ext.inodes import EXTENTS, Inode
from understudy.volumes.ext.superblock import Superblock

_MAGIC = 0xF30A
_HEADER = _ENTRY = 12
_DEEPEST = 5
_LONGEST = 1 << 15
_END = 1 << 32
_DIRECT = 12


class Run(NamedTuple):
    """As many blocks of a file from its block ``logical`` on, which lie from ``block`` on.

    :ivar written: False if they read as zeros whatever they hold.
    """

    logical: int
    block: int
    blocks: int
    written: bool


class Maps:
    """Reads the maps of inodes, and remembers where these lie.

    :ivar nodes: the inode that each block of a map belongs to.
    """

    def __init__(self, image: Image, layout: Superblock) -> None:
        self._image = image
        self._layout = layout
        self.nodes: dict[int, int] = {}

    def runs(self, inode: Inode) -> list[Run]:
        """The places of its data, in the order of the file; holes are left out.

        :param inode: a regular file or a directory, with plain data.
        :raises Unfit: if the map is damaged, or claims more than the inode says that it holds.
        """
        found = self._tree(inode) if inode.flags & EXTENTS else self._block_map(inode)
        claimed = sum(run.blocks for run in found)
        if claimed > self._layout.blocks or claimed * self._layout.block_size > inode.held:
            raise Unfit(f"the inode {inode.number} claims more blocks than it says that it holds")
        return found

    def _node(self, inode: Inode, block: int, visited: set[int]) -> bytes:
        """A block of a map, which belongs to one file and is read once for it."""
        if not self._layout.first_block < block < self._layout.blocks:
            raise Unfit(f"the map of the inode {inode.number} lies outside of the volume")
        if block in visited or self.nodes.setdefault(block, inode.number) != inode.number:
            raise Unfit(f"two maps claim the block {block}")
        visited.add(block)
        return self._image.read(block * self._layout.block_size, self._layout.block_size)

    def _tree(self, inode: Inode) -> list[Run]:
        runs: list[Run] = []
        self._walk_tree(inode, inode.map, None, (0, _END), set(), runs)
        return runs

    def _walk_tree(
        self, inode: Inode, raw: bytes, depth: int | None, bounds: tuple[int, int], visited: set[int], runs: list[Run]
    ) -> None:
        """Read one node and all below; ``bounds`` are the blocks of the file that it may speak of."""
        magic, count, most, level = struct.unpack_from("<HHHH", raw)
        room = (len(raw) - _HEADER) // _ENTRY
        if magic != _MAGIC or count > most or most > room or level != (level if depth is None else depth):
            raise Unfit(f"the extent tree of the inode {inode.number} is damaged")
        if level > _DEEPEST or (depth is not None and not count):
            raise Unfit(f"the extent tree of the inode {inode.number} is damaged")
        if depth is not None and self._layout.summed:
            tail = _HEADER + _ENTRY * most
            if tail + 4 > len(raw) or crc32c(inode.seed, raw[:tail]) != struct.unpack_from("<I", raw, tail)[0]:
                raise Unfit(f"the checksum of an extent block of the inode {inode.number} is wrong")
        entries = struct.iter_unpack("<IIHH" if level else "<IHHI", raw[_HEADER : _HEADER + _ENTRY * count])
        if not level:
            _add_leaf(inode, entries, bounds, runs)
            return
        children = [(first, low | high << 32) for first, low, high, _ in entries]
        ends = [first for first, _ in children[1:]] + [bounds[1]]
        for (first, block), end in zip(children, ends, strict=True):
            if not bounds[0] <= first < end:
                raise Unfit(f"the extent tree of the inode {inode.number} is not in order")
            self._walk_tree(inode, self._node(inode, block, visited), level - 1, (first, end), visited, runs)

    def _block_map(self, inode: Inode) -> list[Run]:
        places = struct.unpack("<15I", inode.map)
        per_block = self._layout.block_size // 4
        runs: list[Run] = []
        visited: set[int] = set()
        _add_blocks(0, places[:_DIRECT], runs)
        logical = _DIRECT
        for depth in (1, 2, 3):
            self._walk_map(inode, places[_DIRECT + depth - 1], depth, logical, visited, runs)
            logical += per_block**depth
        return runs

    def _walk_map(self, inode: Inode, block: int, depth: int, logical: int, visited: set[int], runs: list[Run]) -> None:
        """A block number of 0 is a hole, of whatever size it would be the map."""
        if not block:
            return
        per_block = self._layout.block_size // 4
        places = struct.unpack(f"<{per_block}I", self._node(inode, block, visited))
        if depth == 1:
            _add_blocks(logical, places, runs)
            return
        for index, place in enumerate(places):
            self._walk_map(inode, place, depth - 1, logical + index * per_block ** (depth - 1), visited, runs)


def _add_leaf(inode: Inode, entries: Iterator[tuple[int, ...]], bounds: tuple[int, int], runs: list[Run]) -> None:
    """Add the entries of a leaf: extents longer than 32768 blocks do not exist, the length then says "unwritten"."""
    at = bounds[0]
    for logical, length, high, low in entries:
        written = length <= _LONGEST
        count = length if written else length - _LONGEST
        if logical < at or not count or logical + count > bounds[1]:
            raise Unfit(f"the extents of the inode {inode.number} are not in order")
        runs.append(Run(logical, low | high << 32, count, written))
        at = logical + count


def _add_blocks(logical: int, places: tuple[int, ...], runs: list[Run]) -> None:
    for offset, block in enumerate(places):
        if not block:
            continue
        last = runs[-1] if runs else None
        if last and last.logical + last.blocks == logical + offset and last.block + last.blocks == block:
            runs[-1] = last._replace(blocks=last.blocks + 1)
        else:
            runs.append(Run(logical + offset, block, 1, True))
