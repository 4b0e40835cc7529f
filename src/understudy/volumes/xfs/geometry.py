"""Geometry: how big is an XFS file system, where do its parts lie, and is it one that we know? (On-disk format 5.)"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from google_crc32c import extend, value

from understudy.model.extent import Extent
from understudy.volumes import Image, Unfit

_MAGIC = b"XFSB"
#: Sectors of the superblock, and of the headers of free space, of inodes and of the reserve, in each allocation group.
HEADER_SECTORS = 4
#: The superblock's only parts that change while a file system is used: counters; position in the log and checksum.
COUNTERS = (slice(128, 160), slice(176, 178), slice(224, 228), slice(240, 248))

_LEAST, _CRC = 264, 224
# Attributes, link counts, quota, alignment (2), log 2, big sectors, unwritten extents, directories 2, more bits.
_VERSION_BITS = 0x0010 | 0x0020 | 0x0040 | 0x0080 | 0x0100 | 0x0400 | 0x0800 | 0x1000 | 0x2000 | 0x8000
# Lazy counters, attributes 2, project numbers of 32 bits, checksums, file types.
_MORE_BITS = 0x0002 | 0x0008 | 0x0080 | 0x0100 | 0x0200
_RO_FINOBT, _RO_RMAPBT, _RO_REFLINK, _RO_INOBTCNT = 1, 2, 4, 8
_FTYPE, _SPARSE, _META_UUID, _BIGTIME, _NREXT64 = 1, 2, 4, 8, 32
_NEEDS_REPAIR = 16
_MOST_GROUPS = 1 << 17
_HEAD = struct.Struct(">4sIQQQ16sQQQQIIIIIHHHH12s8B")


def verified(block: bytes, at: int, place: int) -> None:
    """Prove the checksum of a piece of metadata, which lies at ``at`` in it.

    :param place: of the piece in the volume, for the message.
    :raises Unfit: if it is wrong.
    """
    if extend(extend(value(block[:at]), bytes(4)), block[at + 4 :]) != int.from_bytes(block[at : at + 4], "little"):
        raise Unfit(f"the XFS metadata at {place} has a wrong checksum")


@dataclass(frozen=True)
class Geometry:
    """What the superblock says; a file system block is a *block*, counted from its allocation group's (AG's) begin.

    :ivar uuid: as users see it; ``meta_uuid`` is in every piece of metadata.
    :ivar log_start, log_blocks: the internal log, ``log_start`` as a volume-wide block number.
    :ivar hidden: numbers of the inodes that hold metadata and are in no directory.
    :ivar raw: the superblock's sector.
    """

    block_size: int
    blocks: int
    group_blocks: int
    group_count: int
    group_bits: int
    sector: int
    inode_size: int
    inode_bits: int
    directory_block: int
    root: int
    uuid: uuid.UUID
    meta_uuid: bytes
    label: str
    log_start: int
    log_blocks: int
    sparse_inodes: bool
    big_counts: bool
    reverse_map: bool
    reference_counts: bool
    free_inodes: bool
    hidden: frozenset[int]
    raw: bytes

    def length_of(self, group: int) -> int:
        """Blocks of an AG; the last one is shorter."""
        return min(self.group_blocks, self.blocks - group * self.group_blocks)

    def place(self, group: int, block: int) -> int:
        """Where a block of an AG begins, in bytes."""
        return (group * self.group_blocks + block) * self.block_size

    def extent(self, group: int, block: int, count: int = 1) -> Extent:
        """The bytes of blocks of an AG.

        :raises Unfit: if the AG has no such blocks.
        """
        if not (0 <= group < self.group_count and block >= 0 and 0 < count <= self.length_of(group) - block):
            raise Unfit(f"an XFS file system points to {count} blocks at {block} of group {group}, which it lacks")
        return Extent(self.place(group, block), count * self.block_size)

    def split(self, number: int) -> tuple[int, int]:
        """AG and block of a volume-wide block number, whose lower bits count in the AG: not the distance from 0."""
        return number >> self.group_bits, number & ((1 << self.group_bits) - 1)

    @property
    def log(self) -> Extent:
        """Where the log lies."""
        return self.extent(*self.split(self.log_start), self.log_blocks)

    @property
    def headers(self) -> list[Extent]:
        """The headers of all AGs, as blocks: what shares a block with them is no file either."""
        blocks = -(-HEADER_SECTORS * self.sector // self.block_size)
        return [self.extent(group, 0, blocks) for group in range(self.group_count)]


def read_geometry(image: Image) -> Geometry:
    """Read and prove the superblock.

    :raises Unfit: if it is damaged, or says something that this reader does not know.
    """
    raw = image.read(0, 512)
    if raw[:4] != _MAGIC:
        raise Unfit("there is no XFS file system")
    if int.from_bytes(raw[100:102], "big") & 15 != 5:
        raise Unfit("the XFS file system is of an old format, without checksums (V4)")
    sector = int.from_bytes(raw[102:104], "big")
    if sector not in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        raise Unfit("the XFS superblock is damaged")
    raw = image.read(0, sector)
    verified(raw, _CRC, 0)
    _refuse_features(raw)
    found = _parse(raw)
    _refuse_sizes(found, raw, image.size)
    return found


def _refuse_features(raw: bytes) -> None:
    version = int.from_bytes(raw[100:102], "big")
    more, _bad, compatible, read_only, incompatible, in_log = struct.unpack_from(">6I", raw, 200)
    known_ro = _RO_FINOBT | _RO_RMAPBT | _RO_REFLINK | _RO_INOBTCNT
    known = _FTYPE | _SPARSE | _META_UUID | _BIGTIME | _NREXT64
    if incompatible & _NEEDS_REPAIR:
        raise Unfit("the XFS file system must be repaired")
    unknown = ((version & ~15) & ~_VERSION_BITS, more & ~_MORE_BITS, compatible, read_only & ~known_ro,
               incompatible & ~known, in_log)  # fmt: skip
    if any(unknown):
        raise Unfit("the XFS file system has features that are not known here: " + ":".join(f"{f:x}" for f in unknown))
    if not incompatible & _FTYPE or not version & 0x0400 or not version & 0x2000:
        raise Unfit("the XFS file system lacks features of every V5 file system")
    if raw[126]:
        raise Unfit("the XFS file system was never completed")
    if any(raw[16:32]):
        raise Unfit("the XFS file system has a realtime part")
    if not any(raw[48:56]):
        raise Unfit("the XFS file system has its log on another device")


def _parse(raw: bytes) -> Geometry:
    (_magic, block_size, blocks, _rt, _rtx, user, log_start, root, rt_map, rt_sum, _rtsize, group_blocks, group_count,
     _rtmap, log_blocks, _version, sector, inode_size, _per_block, label, block_bits, sector_bits, inode_log,
     inode_bits, group_bits, _rtxlog, _progress, _most) = _HEAD.unpack_from(raw, 0)  # fmt: skip
    read_only, incompatible = struct.unpack_from(">II", raw, 212)
    directory_bits = raw[192]
    if directory_bits > 7 or block_bits > 16 or block_size != 1 << block_bits or sector != 1 << sector_bits:
        raise Unfit("the XFS superblock contradicts itself")
    if inode_size != 1 << inode_log or block_size != inode_size << inode_bits:
        raise Unfit("the XFS superblock contradicts itself")
    return Geometry(
        block_size=block_size, blocks=blocks, group_blocks=group_blocks, group_count=group_count,
        group_bits=group_bits, sector=sector, inode_size=inode_size, inode_bits=inode_bits,
        directory_block=block_size << directory_bits, root=root, uuid=uuid.UUID(bytes=user),
        meta_uuid=raw[248:264] if incompatible & _META_UUID else user,
        label=label.rstrip(b"\0").decode(errors="replace"), log_start=log_start, log_blocks=log_blocks,
        sparse_inodes=bool(incompatible & _SPARSE), big_counts=bool(incompatible & _NREXT64),
        reverse_map=bool(read_only & _RO_RMAPBT), reference_counts=bool(read_only & _RO_REFLINK),
        free_inodes=bool(read_only & _RO_FINOBT),
        hidden=frozenset((rt_map, rt_sum, *struct.unpack_from(">QQ", raw, 160), *struct.unpack_from(">Q", raw, 232))),
        raw=raw,
    )  # fmt: skip


def _refuse_sizes(found: Geometry, raw: bytes, size: int) -> None:
    if not (found.block_size >= 1024 and 512 <= found.inode_size <= 2048 and found.directory_block <= 65536):
        raise Unfit("the XFS superblock has impossible sizes")
    if len(raw) < _LEAST or found.sector > found.block_size:
        raise Unfit("the XFS superblock has impossible sizes")
    if found.blocks * found.block_size > size:
        raise Unfit("the XFS file system is larger than its volume")
    if not (64 <= found.group_blocks <= 1 << found.group_bits <= 1 << 31 and 0 < found.group_count <= _MOST_GROUPS):
        raise Unfit("the XFS superblock has impossible sizes")
    if not 0 < found.blocks - (found.group_count - 1) * found.group_blocks <= found.group_blocks:
        raise Unfit("the XFS superblock has impossible sizes")
    if found.length_of(found.group_count - 1) < 64:
        raise Unfit("the XFS superblock has impossible sizes")
    if found.log.start < HEADER_SECTORS * found.sector:
        raise Unfit("the XFS log lies on a header")
