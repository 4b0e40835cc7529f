"""Superblock: is this an ext file system whose every feature the reader knows, and how is it laid out?"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from understudy.units import KIB
from understudy.volumes import Image, Unfit
from understudy.volumes.ext.checksums import START, crc32c

_OFFSET = _SIZE = KIB
_MAGIC = struct.pack("<H", 0xEF53)
_CRC32C_TYPE = 1
_LARGEST_LOG_BLOCK = 6

#: Bits of the compatible features.
HAS_JOURNAL, SPARSE_SUPER2, FAST_COMMIT = 0x4, 0x200, 0x400
#: Bits of the incompatible features.
FILETYPE, RECOVER, META_BG, EXTENTS, WIDE, CSUM_SEED = 0x2, 0x4, 0x10, 0x40, 0x80, 0x2000
#: Bits of the features that only a writer must know.
SPARSE_SUPER, HUGE_FILE, GDT_CSUM, BIGALLOC, METADATA_CSUM = 0x1, 0x8, 0x10, 0x200, 0x400

_COMPAT = {
    0x1: "dir_prealloc", 0x2: "imagic_inodes", HAS_JOURNAL: "has_journal", 0x8: "ext_attr", 0x10: "resize_inode",
    0x20: "dir_index", SPARSE_SUPER2: "sparse_super2", FAST_COMMIT: "fast_commit", 0x800: "stable_inodes",
    0x1000: "orphan_file",
}  # fmt: skip
_INCOMPAT = {
    FILETYPE: "filetype", RECOVER: "needs_recovery", META_BG: "meta_bg", EXTENTS: "extent", WIDE: "64bit",
    0x200: "flex_bg", CSUM_SEED: "metadata_csum_seed", 0x4000: "large_dir", 0x8000: "inline_data",
}  # fmt: skip
_RO_COMPAT = {
    SPARSE_SUPER: "sparse_super", 0x2: "large_file", HUGE_FILE: "huge_file", GDT_CSUM: "uninit_bg",
    0x20: "dir_nlink", 0x40: "extra_isize", 0x100: "quota", BIGALLOC: "bigalloc", METADATA_CSUM: "metadata_csum",
    0x1000: "read-only", 0x2000: "project", 0x8000: "verity", 0x10000: "orphan_present",
}  # fmt: skip
#: Known by name, so that an administrator is told more than a number.
_REFUSED = {
    "compat": {0x40: "lazy_bg", 0x80: "exclude_inode", 0x100: "exclude_bitmap"},
    "incompat": {
        0x1: "compression", 0x8: "journal_dev", 0x100: "mmp", 0x400: "ea_inode", 0x1000: "dirdata",
        0x10000: "encrypt", 0x20000: "casefold",
    },
    "ro_compat": {0x4: "btree_dir", 0x80: "has_snapshot", 0x800: "replica", 0x4000: "shared_blocks"},
}  # fmt: skip
_EXT3_INCOMPAT = FILETYPE | RECOVER | META_BG
_EXT3_RO_COMPAT = SPARSE_SUPER | 0x2 | 0x4


@dataclass(frozen=True)
class Superblock:
    """The layout of one file system; sizes of blocks and inodes in bytes, places in blocks.

    :ivar ratio: blocks in a cluster, which is what a bit of a block bitmap stands for.
    :ivar seed: what checksums of metadata start from.
    """

    block_size: int
    blocks: int
    first_block: int
    ratio: int
    blocks_per_group: int
    inodes: int
    inodes_per_group: int
    inode_size: int
    first_inode: int
    descriptor_size: int
    reserved_gdt: int
    first_meta_group: int
    backups: tuple[int, int]
    compat: int
    incompat: int
    ro_compat: int
    state: int
    journal_inode: int
    seed: int
    uuid: bytes
    label: str

    @property
    def groups(self) -> int:
        """Number of block groups."""
        return -(-(self.blocks - self.first_block) // self.blocks_per_group)

    @property
    def summed(self) -> bool:
        """Whether every block of metadata has a checksum."""
        return bool(self.ro_compat & METADATA_CSUM)

    @property
    def kind(self) -> str:
        """``ext2``, ``ext3`` or ``ext4``, as blkid and fstab call it."""
        if self.incompat & ~_EXT3_INCOMPAT or self.ro_compat & ~_EXT3_RO_COMPAT:
            return "ext4"
        return "ext3" if self.compat & HAS_JOURNAL else "ext2"

    @property
    def uuid_text(self) -> str:
        """As in fstab; empty if there is none."""
        return str(uuid.UUID(bytes=self.uuid)) if any(self.uuid) else ""


def read_superblock(image: Image) -> Superblock:
    """The primary superblock.

    :raises Unfit: if it is damaged, contradicts itself, or has a feature that the reader does not know.
    """
    if image.size < _OFFSET + _SIZE or image.read(_OFFSET + 0x38, 2) != _MAGIC:
        raise Unfit("it is no ext file system")
    raw = image.read(_OFFSET, _SIZE)
    found = _parsed(raw)
    _check_features(found)
    if found.summed:
        stored: int = struct.unpack_from("<I", raw, 0x3FC)[0]
        if raw[0x175] != _CRC32C_TYPE or crc32c(START, raw[:0x3FC]) != stored:
            raise Unfit("the checksum of the superblock is wrong")
    _check_layout(found, image.size, struct.unpack_from("<I", raw, 0x24)[0])
    return found


def _parsed(raw: bytes) -> Superblock:
    def u32(offset: int) -> int:
        return int.from_bytes(raw[offset : offset + 4], "little")

    def u16(offset: int) -> int:
        return int.from_bytes(raw[offset : offset + 2], "little")

    dynamic = u32(0x4C) > 0
    compat, incompat, ro_compat = (u32(0x5C), u32(0x60), u32(0x64)) if dynamic else (0, 0, 0)
    log_block, log_cluster = u32(0x18), u32(0x1C)
    if log_block > _LARGEST_LOG_BLOCK:
        raise Unfit("the superblock has an impossible size of blocks")
    if ro_compat & BIGALLOC and not 0 <= log_cluster - log_block <= 16:
        raise Unfit("the superblock has an impossible size of clusters")
    identity = raw[0x68:0x78]
    return Superblock(
        block_size=KIB << log_block,
        blocks=u32(0x4) | (u32(0x150) << 32 if incompat & WIDE else 0),
        first_block=u32(0x14),
        ratio=1 << log_cluster - log_block if ro_compat & BIGALLOC else 1,
        blocks_per_group=u32(0x20),
        inodes=u32(0x0),
        inodes_per_group=u32(0x28),
        inode_size=u16(0x58) if dynamic else 128,
        first_inode=u32(0x54) if dynamic else 11,
        descriptor_size=u16(0xFE) if incompat & WIDE else 32,
        reserved_gdt=u16(0xCE) if dynamic else 0,
        first_meta_group=u32(0x104) if incompat & META_BG else 0,
        backups=(u32(0x24C), u32(0x250)),
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        state=u16(0x3A),
        journal_inode=u32(0xE0) if compat & HAS_JOURNAL else 0,
        seed=u32(0x270) if incompat & CSUM_SEED else crc32c(START, identity),
        uuid=identity,
        label=raw[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
    )


def _check_features(found: Superblock) -> None:
    for word, known, name in (
        (found.incompat, _INCOMPAT, "incompat"),
        (found.ro_compat, _RO_COMPAT, "ro_compat"),
        (found.compat, _COMPAT, "compat"),
    ):
        unknown = word & ~sum(known)
        if unknown:
            bit = unknown & -unknown
            raise Unfit(f"it uses the feature {_REFUSED[name].get(bit, f'{name} {bit:#x}')}, which is not supported")
    if found.ro_compat & METADATA_CSUM and found.ro_compat & GDT_CSUM:
        raise Unfit("it has both metadata_csum and uninit_bg, which exclude each other")


def _check_layout(found: Superblock, size: int, clusters_per_group: int) -> None:
    bits = 8 * found.block_size
    good = (
        found.blocks > found.first_block
        and found.blocks * found.block_size <= size
        and found.first_block == (1 if found.block_size == KIB and found.ratio == 1 else 0)
        and found.blocks_per_group > 0
        and found.blocks_per_group % (8 * found.ratio) == 0
        and found.blocks_per_group // found.ratio <= bits
        and (found.ratio == 1 or clusters_per_group == found.blocks_per_group // found.ratio)
        and 0 < found.inodes_per_group <= bits
        and found.inodes == found.inodes_per_group * found.groups
        and found.inode_size in {128 << shift for shift in range(10)}
        and found.inode_size <= found.block_size
        and found.first_inode >= 11
        and found.descriptor_size in ({64, 128, 256, 512, 1024} if found.incompat & WIDE else {32})
    )
    if not good:
        raise Unfit("the superblock contradicts itself, or the file system is larger than its volume")
