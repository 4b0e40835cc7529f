"""Groups: where do the bitmaps and inode tables lie, and which blocks are metadata by the layout alone?"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from understudy.model.extent import Extent, merge
from understudy.units import KIB
from understudy.volumes import Image, Unfit
from understudy.volumes.ext import superblock as sb
from understudy.volumes.ext.checksums import crc16, crc32c
from understudy.volumes.ext.superblock import Superblock

_SUM_AT = 0x1E
_INODE_UNINIT, _BLOCK_UNINIT = 0x1, 0x2
_WIDE_SIZE = 64


class Group(NamedTuple):
    """One group descriptor; places in blocks.

    :ivar free: clusters that hold nothing.
    :ivar blocks_known: its block bitmap is valid.
    :ivar inodes_known: its inode table is valid.
    :ivar bitmap_sum: checksum of the block bitmap, of ``sum_bits`` bits.
    """

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free: int
    blocks_known: bool
    inodes_known: bool
    bitmap_sum: int
    sum_bits: int


class Groups:
    """All block groups of a file system; descriptors are verified whenever they are looked at."""

    def __init__(self, image: Image, layout: Superblock) -> None:
        self.layout = layout
        self._per_block = layout.block_size // layout.descriptor_size
        self._gdt_blocks = -(-layout.groups // self._per_block)
        self._raw = self._read_table(image)
        self._has_sums = bool(layout.ro_compat & (sb.METADATA_CSUM | sb.GDT_CSUM))

    def group(self, number: int) -> Group:
        """One descriptor.

        :raises Unfit: if there is none of this number, its checksum is wrong, or it points out of the volume.
        """
        layout = self.layout
        if not 0 <= number < layout.groups:
            raise Unfit(f"there is no block group {number}")
        raw = self._raw[number * layout.descriptor_size : (number + 1) * layout.descriptor_size]
        if self._has_sums and self._sum(number, raw) != struct.unpack_from("<H", raw, _SUM_AT)[0]:
            raise Unfit(f"the checksum of the descriptor of block group {number} is wrong")
        found = _group(raw, has_flags=self._has_sums)
        table_blocks = self.table_blocks
        for place, length in ((found.block_bitmap, 1), (found.inode_bitmap, 1), (found.inode_table, table_blocks)):
            if not layout.first_block < place or place + length > layout.blocks:
                raise Unfit(f"the metadata of block group {number} lies outside of the volume")
        return found

    @property
    def table_blocks(self) -> int:
        """Blocks of one inode table."""
        return -(-self.layout.inodes_per_group * self.layout.inode_size // self.layout.block_size)

    def first_block(self, number: int) -> int:
        """The first block of a group."""
        return self.layout.first_block + number * self.layout.blocks_per_group

    def clusters(self, number: int) -> int:
        """Clusters in a group; the last one may have fewer."""
        first = self.first_block(number)
        return -(-min(self.layout.blocks_per_group, self.layout.blocks - first) // self.layout.ratio)

    def metadata(self) -> list[Extent]:
        """A range list of superblocks, descriptors (also those to come), bitmaps and inode tables.

        :raises Unfit: if a descriptor is damaged.
        """
        block_size = self.layout.block_size
        blocks = sorted(self._metadata_blocks())
        return merge(Extent(first * block_size, count * block_size) for first, count in blocks)

    def _metadata_blocks(self) -> Iterator[tuple[int, int]]:
        # The boot block belongs to nobody.
        yield 0, self._superblock_block + 1
        for number in range(self.layout.groups):
            found = self.group(number)
            yield found.block_bitmap, 1
            yield found.inode_bitmap, 1
            yield found.inode_table, self.table_blocks
            head = self._head_blocks(number)
            if head:
                first = self.first_block(number)
                yield first, min(head, self.layout.blocks - first)

    def _head_blocks(self, number: int) -> int:
        """Blocks of the superblock's copy and of descriptors with which a group begins."""
        layout = self.layout
        has_copy = self._has_copy(number)
        # With clusters, blocks of 1 KiB begin with the boot block.
        boot = self._superblock_block - layout.first_block if number == 0 else 0
        if layout.incompat & sb.META_BG and number // self._per_block >= layout.first_meta_group:
            has_descriptors = number % self._per_block in {0, 1, self._per_block - 1}
            return boot + has_copy + has_descriptors
        if not has_copy:
            return 0
        table = layout.first_meta_group if layout.incompat & sb.META_BG else self._gdt_blocks
        return boot + 1 + table + layout.reserved_gdt

    @property
    def _superblock_block(self) -> int:
        return 1 if self.layout.block_size == KIB else 0

    def _has_copy(self, number: int) -> bool:
        layout = self.layout
        if number == 0:
            return True
        if layout.compat & sb.SPARSE_SUPER2:
            return number in layout.backups
        if number == 1 or not layout.ro_compat & sb.SPARSE_SUPER:
            return True
        return any(_is_power(number, base) for base in (3, 5, 7))

    def _read_table(self, image: Image) -> bytes:
        layout = self.layout
        plain = min(self._gdt_blocks, layout.first_meta_group) if layout.incompat & sb.META_BG else self._gdt_blocks
        if self._superblock_block + 1 + self._gdt_blocks > layout.blocks:
            raise Unfit("the group descriptors lie outside of the volume")
        parts = [image.read((self._superblock_block + 1) * layout.block_size, plain * layout.block_size)]
        for index in range(plain, self._gdt_blocks):
            number = index * self._per_block
            place = self.first_block(number) + self._has_copy(number)
            if number == 0 and self._superblock_block > layout.first_block:
                place += 1
            parts.append(image.read(place * layout.block_size, layout.block_size))
        return b"".join(parts)

    def _sum(self, number: int, raw: bytes) -> int:
        le_number = struct.pack("<I", number)
        if self.layout.summed:
            # The sum's own place counts as zeros.
            whole = b"".join((le_number, raw[:_SUM_AT], b"\0\0", raw[_SUM_AT + 2 :]))
            return crc32c(self.layout.seed, whole) & 0xFFFF
        rest = raw[_SUM_AT + 2 :] if self.layout.incompat & sb.WIDE else b""
        return crc16(0xFFFF, b"".join((self.layout.uuid, le_number, raw[:_SUM_AT], rest)))


def _group(raw: bytes, *, has_flags: bool) -> Group:
    block_bitmap, inode_bitmap, inode_table, free = struct.unpack_from("<IIIH", raw)
    flags, _, bitmap_sum = struct.unpack_from("<HIH", raw, 0x12)
    sum_bits = 16
    if len(raw) >= _WIDE_SIZE:
        high = struct.unpack_from("<IIIH", raw, 0x20)
        block_bitmap, inode_bitmap, inode_table = (
            block_bitmap | high[0] << 32, inode_bitmap | high[1] << 32, inode_table | high[2] << 32,
        )  # fmt: skip
        free |= high[3] << 16
        bitmap_sum |= struct.unpack_from("<H", raw, 0x38)[0] << 16
        sum_bits = 32
    return Group(
        block_bitmap, inode_bitmap, inode_table, free,
        not (has_flags and flags & _BLOCK_UNINIT), not (has_flags and flags & _INODE_UNINIT), bitmap_sum, sum_bits,
    )  # fmt: skip


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
