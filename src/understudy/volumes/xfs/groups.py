"""Allocation groups: which blocks are free, which inodes exist, and where does the metadata of both lie?"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from understudy.model.extent import Extent, merge
from understudy.volumes import Image, Unfit
from understudy.volumes.xfs.btree import Form, Tree
from understudy.volumes.xfs.geometry import Geometry, verified

_FREE = Form(b"AB3B", 56, 8, 4, 8)
_INODES = Form(b"IAB3", 56, 4, 4, 16)
_CHUNK = 64  # inodes of one record
_MOST_RANGES = 2_000_000


@dataclass(frozen=True)
class Group:
    """One AG.

    :ivar free: ranges of free blocks, sorted.
    :ivar free_blocks: how many its header counts.
    :ivar metadata: bytes of its headers, trees, reserve and inodes; sorted.
    """

    free: list[Extent]
    free_blocks: int
    metadata: list[Extent]
    _starts: array[int]
    _used: array[int]

    def holds(self, inode: int) -> bool:
        """Whether the AG's inode of that number is in use."""
        position = bisect_right(self._starts, inode) - 1
        if position < 0 or inode - self._starts[position] >= _CHUNK:
            return False
        return bool(self._used[position] >> (inode - self._starts[position]) & 1)


def read_group(image: Image, geometry: Geometry, number: int) -> Group:
    """Read an AG's headers, its free blocks by position, and its inodes.

    :raises Unfit: if any of it is damaged, or the free blocks are not as many as the header says.
    """
    start, sector = geometry.place(number, 0), geometry.sector
    raw = image.read(start + sector, 3 * sector)
    space, inodes, reserve = (raw[at : at + sector] for at in (0, sector, 2 * sector))
    for header, magic, crc, user in ((space, b"XAGF", 216, 64), (inodes, b"XAGI", 312, 296), (reserve, b"XAFL", 32, 8)):
        verified(header, crc, start)
        if header[:4] != magic or header[user : user + 16] != geometry.meta_uuid:
            raise Unfit(f"the headers of XFS group {number} are not its own")
    if struct.unpack_from(">II", reserve, 0)[1] != number:
        raise Unfit(f"the headers of XFS group {number} are not its own")
    for header in (space, inodes):
        if struct.unpack_from(">III", header, 4) != (1, number, geometry.length_of(number)):
            raise Unfit(f"the headers of XFS group {number} are not its own")
    free, free_blocks, trees = _free_blocks(image, geometry, number, space)
    starts, used, chunks, more_trees = _inodes(image, geometry, number, inodes)
    kept = [geometry.extent(number, block) for block in (*_reserve(geometry, space, reserve),
                                                         *_other_roots(geometry, space, inodes))]  # fmt: skip
    metadata = merge(sorted((*trees, *more_trees, *chunks, *kept), key=lambda item: item.start))
    return Group(free, free_blocks, metadata, starts, used)


def _free_blocks(
    image: Image, geometry: Geometry, number: int, header: bytes
) -> tuple[list[Extent], int, list[Extent]]:
    root, levels = (struct.unpack_from(">I", header, at)[0] for at in (16, 28))
    expected = struct.unpack_from(">I", header, 52)[0]
    tree = Tree(image, geometry, _FREE, number, geometry.length_of(number))
    free: list[Extent] = []
    end, found = 0, 0
    for leaf in tree.leaves(root, levels):
        for block, count in struct.iter_unpack(">II", leaf):
            if block < end:
                raise Unfit(f"the free blocks of XFS group {number} overlap")
            free.append(geometry.extent(number, block, count))
            end, found = block + count, found + count
        if len(free) > _MOST_RANGES:
            raise Unfit(f"the free space of XFS group {number} is in too many pieces")
    if found != expected:
        raise Unfit(f"XFS group {number} has {found} free blocks, but its header counts {expected}")
    return free, found, tree.blocks


def _inodes(
    image: Image, geometry: Geometry, number: int, header: bytes
) -> tuple[array[int], array[int], list[Extent], list[Extent]]:
    """First inode numbers of the chunks, masks of those in use, where they lie, and the tree's blocks."""
    root, levels = struct.unpack_from(">II", header, 20)
    tree = Tree(image, geometry, _INODES, number, geometry.length_of(number))
    starts, used = array("Q"), array("Q")
    chunks: list[Extent] = []
    end = 0
    for leaf in tree.leaves(root, levels):
        for first, holes, _count, _free, free in struct.iter_unpack(">IHBBQ", leaf):
            if first < end or first % min(_CHUNK, 1 << geometry.inode_bits):
                raise Unfit(f"the inodes of XFS group {number} overlap")
            end = first + _CHUNK
            holes = holes if geometry.sparse_inodes else 0
            starts.append(first)
            used.append(~(free | _widened(holes)) & (1 << _CHUNK) - 1)
            chunks.extend(_chunk(geometry, number, first, holes))
    return starts, used, chunks, tree.blocks


def _widened(holes: int) -> int:
    """A mask of inodes from one of which each bit stands for four."""
    return sum(15 << 4 * bit for bit in range(16) if holes >> bit & 1) if holes else 0


def _chunk(geometry: Geometry, number: int, first: int, holes: int) -> Iterable[Extent]:
    """Where the inodes of a chunk lie that are not holes."""
    if not holes:
        return [geometry.extent(number, first >> geometry.inode_bits, max(_CHUNK >> geometry.inode_bits, 1))]
    there = sorted({first + 4 * bit + each >> geometry.inode_bits
                    for bit in range(16) if not holes >> bit & 1 for each in range(4)})  # fmt: skip
    return [geometry.extent(number, block) for block in there]


def _reserve(geometry: Geometry, space: bytes, reserve: bytes) -> list[int]:
    """Blocks that are kept for the AG's trees: in use, and in no tree."""
    most = (geometry.sector - 36) // 4
    first, last, count = struct.unpack_from(">III", space, 40)
    if first >= most or last >= most or count > most or (count and (last - first) % most + 1 != count):
        raise Unfit("the reserve of an XFS group contradicts itself")
    blocks = struct.unpack_from(f">{most}I", reserve, 36)
    return [blocks[(first + each) % most] for each in range(count)]


def _other_roots(geometry: Geometry, space: bytes, inodes: bytes) -> list[int]:
    """Roots of the trees that are not read: free space by size, owners, reference counts, free inodes."""
    wanted = [(space, 20)]
    if geometry.reverse_map:
        wanted.append((space, 24))
    if geometry.reference_counts:
        wanted.append((space, 88))
    if geometry.free_inodes:
        wanted.append((inodes, 328))
    return [struct.unpack_from(">I", header, at)[0] for header, at in wanted]
