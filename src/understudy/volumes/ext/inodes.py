"""Inodes: what kind of file is this, and is its record intact?"""

from __future__ import annotations

import stat
import struct
from collections import OrderedDict
from typing import NamedTuple

from understudy.units import KIB
from understudy.volumes import Image, Unfit
from understudy.volumes.ext import superblock as sb
from understudy.volumes.ext.checksums import crc32c
from understudy.volumes.ext.groups import Groups

ROOT = 2

#: Bits of an inode's flags.
INDEX, EXTENTS, INLINE = 0x1000, 0x80000, 0x10000000
_ENCRYPTED, _HUGE, _EA_INODE = 0x800, 0x40000, 0x200000

_OLD_SIZE = 128
_SUM_LOW, _SUM_HIGH = 0x7C, 0x82
_PIECE = 64 * KIB
_MOST_PIECES = 64


class Inode(NamedTuple):
    """One inode.

    :ivar held: bytes of the volume that it holds, its own metadata included.
    :ivar seed: what the checksums of its metadata start from.
    :ivar map: where its data lies, or the data itself.
    """

    number: int
    mode: int
    links: int
    flags: int
    size: int
    held: int
    seed: int
    map: bytes

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def has_plain_data(self) -> bool:
        """Whether its map says where its data lies, and the data means what it says."""
        return not self.flags & (INLINE | _ENCRYPTED | _EA_INODE)


class Inodes:
    """The inode tables, read in pieces of many inodes."""

    def __init__(self, image: Image, groups: Groups) -> None:
        self._image = image
        self._groups = groups
        self._pieces: OrderedDict[int, bytes] = OrderedDict()

    def inode(self, number: int) -> Inode:
        """One inode.

        :raises Unfit: if there is none of this number, or its checksum is wrong.
        """
        layout = self._groups.layout
        if not 0 < number <= layout.inodes:
            raise Unfit(f"a directory names the inode {number}, which does not exist")
        raw = self._raw(number)
        seed = 0
        if layout.summed:
            seed = crc32c(layout.seed, struct.pack("<I", number) + raw[0x64:0x68])
            _verify(number, raw, seed)
        mode, links, flags = (
            int.from_bytes(raw[0:2], "little"), int.from_bytes(raw[0x1A:0x1C], "little"),
            int.from_bytes(raw[0x20:0x24], "little"),
        )  # fmt: skip
        size = int.from_bytes(raw[4:8], "little") | int.from_bytes(raw[0x6C:0x70], "little") << 32
        held = int.from_bytes(raw[0x1C:0x20], "little")
        unit = 512
        if layout.ro_compat & sb.HUGE_FILE:
            held |= int.from_bytes(raw[0x74:0x76], "little") << 32
            unit = layout.block_size if flags & _HUGE else unit
        return Inode(number, mode, links, flags, size, held * unit, seed, raw[0x28:0x64])

    def _raw(self, number: int) -> bytes:
        layout = self._groups.layout
        group_number, index = divmod(number - 1, layout.inodes_per_group)
        group = self._groups.group(group_number)
        if not group.inodes_known:
            raise Unfit(f"a directory names the inode {number}, which was never written")
        within = index * layout.inode_size
        start = group.inode_table * layout.block_size
        piece_offset = within // _PIECE * _PIECE
        key = start + piece_offset
        piece = self._pieces.get(key)
        if piece is None:
            length = min(_PIECE, self._groups.table_blocks * layout.block_size - piece_offset)
            piece = self._image.read(key, length)
            self._pieces[key] = piece
            if len(self._pieces) > _MOST_PIECES:
                self._pieces.popitem(last=False)
        return piece[within - piece_offset : within - piece_offset + layout.inode_size]


def _verify(number: int, raw: bytes, seed: int) -> None:
    """The sum's own two places count as zeros; old and small inodes have only the first."""
    stored = int.from_bytes(raw[_SUM_LOW : _SUM_LOW + 2], "little")
    bits = 16
    summed = raw[:_SUM_LOW] + b"\0\0" + raw[_SUM_LOW + 2 :]
    if len(raw) > _OLD_SIZE and int.from_bytes(raw[0x80:0x82], "little") >= _SUM_HIGH + 2 - _OLD_SIZE:
        stored |= int.from_bytes(raw[_SUM_HIGH : _SUM_HIGH + 2], "little") << 16
        bits = 32
        summed = summed[:_SUM_HIGH] + b"\0\0" + summed[_SUM_HIGH + 2 :]
    if crc32c(seed, summed) & (1 << bits) - 1 != stored:
        raise Unfit(f"the checksum of the inode {number} is wrong")
