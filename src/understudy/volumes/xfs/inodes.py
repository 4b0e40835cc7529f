"""Inodes: what is behind an XFS inode number, and which blocks does it have?"""

from __future__ import annotations

import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from understudy.model.extent import Extent
from understudy.volumes import Image, Unfit
from understudy.volumes.xfs.btree import Form, Tree
from understudy.volumes.xfs.geometry import Geometry, verified
from understudy.volumes.xfs.groups import Group

_CORE = 176  # bytes of a version 3 inode before its contents
_LSN = 112
_HELD = 256  # pieces of inode space that stay in memory
_PIECE = 64 * 1024
_MAP = Form(b"BMA3", 72, 8, 8, 16)
_LOCAL, _EXTENTS, _BTREE = 1, 2, 3
_REALTIME, _REFLINK, _BIG_COUNTS = 1, 1 << 1, 1 << 4
_UNWRITTEN = 1 << 63


@dataclass(frozen=True)
class Piece:
    """Consecutive blocks of a file that lie side by side.

    :ivar first: number of the first block in the file.
    :ivar place: where they lie in the volume, in bytes.
    :ivar unwritten: they read as zeros, whatever they hold.
    """

    first: int
    place: Extent
    unwritten: bool


@dataclass(frozen=True)
class Inode:
    """A proved inode.

    :ivar blocks: all that it occupies, its tree and attributes too.
    :ivar shared: it shares, or shared, blocks with another file.
    """

    number: int
    mode: int
    links: int
    size: int
    blocks: int
    format: int
    extents: int
    realtime: bool
    shared: bool
    fork: bytes

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def local(self) -> bytes | None:
        """Its contents, if they lie in the inode itself."""
        if self.format != _LOCAL:
            return None
        if self.size > len(self.fork):
            raise Unfit(f"the XFS inode {self.number} is larger than its place")
        return self.fork[: self.size]


@dataclass
class Inodes:
    """All inodes of a file system, read in large pieces.

    :ivar trees: where the trees lie that were met while reading files.
    """

    image: Image
    geometry: Geometry
    groups: Mapping[int, Group]
    trees: list[Extent] = field(default_factory=list)
    _pieces: OrderedDict[int, bytes] = field(default_factory=OrderedDict)

    def get(self, number: int) -> Inode:
        """The inode of that number.

        :raises Unfit: if it is not in use, or damaged, or none that a directory may name.
        """
        group, inside = _split(number, self.geometry)
        if number in self.geometry.hidden or group not in self.groups or not self.groups[group].holds(inside):
            raise Unfit(f"a directory names the XFS inode {number}, which is no file's")
        start = _place(number, self.geometry)
        return _parse(self._read(start), number, start, self.geometry)

    def pieces(self, inode: Inode) -> list[Piece]:
        """Where the blocks of a file or directory lie, in the order of the file.

        :raises Unfit: if its map is damaged, or claims more than the inode occupies.
        """
        if inode.format == _LOCAL:
            return []
        found: list[Piece] = []
        end, claimed, tree = 0, 0, None
        if inode.format == _BTREE:
            tree = Tree(self.image, self.geometry, _MAP, inode.number, inode.blocks)
        for records in self._leaves(inode, tree):
            for high, low in struct.iter_unpack(">QQ", records):
                first, count = high >> 9 & (1 << 54) - 1, low & (1 << 21) - 1
                if first < end or not count:
                    raise Unfit(f"the map of XFS inode {inode.number} is not in order")
                group, block = self.geometry.split((high & 511) << 43 | low >> 21)
                found.append(Piece(first, self.geometry.extent(group, block, count), bool(high & _UNWRITTEN)))
                end, claimed = first + count, claimed + count
        if len(found) != inode.extents or claimed + (len(tree.blocks) if tree else 0) > inode.blocks:
            raise Unfit(f"the map of XFS inode {inode.number} does not agree with its counts")
        if tree:
            self.trees.extend(tree.blocks)
        return found

    def _leaves(self, inode: Inode, tree: Tree | None) -> Iterator[bytes]:
        if tree is None:
            if inode.extents * 16 > len(inode.fork):
                raise Unfit(f"the XFS inode {inode.number} has more extents than place for them")
            yield inode.fork[: inode.extents * 16]
            return
        level, count = struct.unpack_from(">HH", inode.fork)
        most = (len(inode.fork) - 4) // 16
        if not 0 < count <= most or not level:
            raise Unfit(f"the map of XFS inode {inode.number} is damaged")
        for root in struct.unpack_from(f">{count}Q", inode.fork, 4 + most * 8):
            yield from tree.leaves(root, level)

    def _read(self, start: int) -> bytes:
        base = start // _PIECE * _PIECE
        if base in self._pieces:
            self._pieces.move_to_end(base)
        else:
            self._pieces[base] = self.image.read(base, min(_PIECE, self.image.size - base))
            if len(self._pieces) > _HELD:
                self._pieces.popitem(last=False)
        return self._pieces[base][start - base : start - base + self.geometry.inode_size]


def written_by(image: Image, geometry: Geometry, number: int) -> int:
    """The position in the log (LSN) up to which all changes of an inode are in it on the disk.

    :raises Unfit: if there is no such inode, or it is damaged.
    """
    place = _place(number, geometry)
    raw = image.read(place, geometry.inode_size)
    _verify(raw, number, place, geometry)
    return int.from_bytes(raw[_LSN : _LSN + 8], "big")


def _split(number: int, geometry: Geometry) -> tuple[int, int]:
    """The AG of an inode, and its number in there."""
    bits = geometry.group_bits + geometry.inode_bits
    return number >> bits, number & (1 << bits) - 1


def _place(number: int, geometry: Geometry) -> int:
    group, inside = _split(number, geometry)
    start = geometry.extent(group, inside >> geometry.inode_bits).start
    return start + (inside & (1 << geometry.inode_bits) - 1) * geometry.inode_size


def _verify(raw: bytes, number: int, place: int, geometry: Geometry) -> None:
    verified(raw, 100, place)
    own, user = struct.unpack_from(">Q16s", raw, 152)
    if (raw[:2], raw[4], own, user) != (b"IN", 3, number, geometry.meta_uuid):
        raise Unfit(f"the XFS metadata at {place} is not inode {number}")


def _parse(raw: bytes, number: int, place: int, geometry: Geometry) -> Inode:
    _verify(raw, number, place, geometry)
    mode, kind = struct.unpack_from(">HxB", raw, 2)
    (links,), (big,) = struct.unpack_from(">I", raw, 16), struct.unpack_from(">Q", raw, 24)
    size, blocks, _hint, extents, _attributes, fork = struct.unpack_from(">QQIIHB", raw, 56)
    flags, more = struct.unpack_from(">H", raw, 90)[0], struct.unpack_from(">Q", raw, 120)[0]
    if more & _BIG_COUNTS:
        if not geometry.big_counts:
            raise Unfit(f"the XFS inode {number} has counts of an unknown form")
        extents = big
    if more >> 5:
        raise Unfit(f"the XFS inode {number} has flags that are not known here")
    end = _CORE + fork * 8 if fork else geometry.inode_size
    if not _CORE < end <= geometry.inode_size or size >> 63:
        raise Unfit(f"the XFS inode {number} is damaged")
    if (stat.S_ISREG(mode) and kind not in (_EXTENTS, _BTREE)) or (
        stat.S_ISDIR(mode) and kind not in (_LOCAL, _EXTENTS, _BTREE)
    ):
        raise Unfit(f"the XFS inode {number} is damaged")
    return Inode(number, mode, links, size, blocks, kind, extents, bool(flags & _REALTIME),
                 bool(more & _REFLINK), raw[_CORE:end])  # fmt: skip
