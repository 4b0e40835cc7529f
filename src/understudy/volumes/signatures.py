"""Signatures: what is on a volume? Readers are asked only where exactly one thing they read says that it is there."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.units import KIB, MIB
from understudy.volumes import Image, Unfit
from understudy.volumes.clipped import clipped
from understudy.volumes.partitions import is_md_member
from understudy.volumes.swap import is_swap

#: Names of what there are readers for.
EXT, XFS, NTFS, SWAP, LVM = "ext", "xfs", "ntfs", "swap", "lvm"
EMPTY, UNKNOWN = "empty", "unknown"

_LOOKED_AT_FOR_EMPTY = MIB
_LUKS2_SECOND_HEADERS = tuple(16 * KIB << shift for shift in range(9))


@dataclass(frozen=True)
class _Signature:
    name: str
    offset: int
    magic: bytes


_SIGNATURES = (
    _Signature(EXT, 1080, b"\x53\xef"),
    _Signature(XFS, 0, b"XFSB"),
    _Signature(NTFS, 3, b"NTFS    "),
    *(_Signature(LVM, sector * 512, b"LABELONE") for sector in range(4)),
    _Signature("LUKS", 0, b"LUKS\xba\xbe"),
    *(_Signature("LUKS", place, b"SKUL\xba\xbe") for place in _LUKS2_SECOND_HEADERS),
    _Signature("BitLocker", 3, b"-FVE-FS-"),
    _Signature("btrfs", 64 * KIB + 64, b"_BHRfS_M"),
    _Signature("ReFS", 3, b"ReFS\0\0\0\0"),
    _Signature("APFS", 32, b"NXSB"),
    _Signature("vfat", 54, b"FAT12   "),
    _Signature("vfat", 54, b"FAT16   "),
    _Signature("vfat", 82, b"FAT32   "),
    _Signature("exfat", 3, b"EXFAT   "),
    _Signature("bcache", 4 * KIB + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    _Signature("bcachefs", 4 * KIB + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    _Signature("VDO", 0, b"dmvdo001"),
    _Signature("Stratis", 516, b"!Stra0tis"),
    _Signature("Stratis", 4 * KIB + 516, b"!Stra0tis"),
    _Signature("dm-integrity", 0, b"integrt\0"),
    _Signature("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    _Signature("HFS+", 1024, b"H+\0\4"),
    _Signature("HFS+", 1024, b"HX\0\5"),
    _Signature("JFS", 32 * KIB, b"JFS1"),
    _Signature("ReiserFS", 64 * KIB + 52, b"ReIsEr"),
    _Signature("GFS2", 64 * KIB, b"\x01\x16\x19\x70"),
    _Signature("UFS", 8 * KIB + 1372, b"\x54\x19\x01\x00"),
    _Signature("UFS", 64 * KIB + 1372, b"\x19\x01\x54\x19"),
    _Signature("squashfs", 0, b"hsqs"),
    _Signature("iso9660", 32 * KIB + 1, b"CD001"),
    _Signature("BlueStore", 0, b"bluestore block device"),
    _Signature("VMFS", MIB, b"\x0d\xd0\x01\xc0"),
)

_UBERBLOCKS_AT, _UBERBLOCKS_LENGTH, _UBERBLOCK = 128 * KIB, 128 * KIB, KIB
_UBERBLOCK_MAGICS = (b"\x0c\xb1\xba\x00\0\0\0\0", b"\0\0\0\0\x00\xba\xb1\x0c")


def recognise(image: Image) -> str:
    """The name of what is on a volume: one of this module's constants, or of something that nobody here reads.

    :raises Unfit: if there are signatures of several things: one of them may be a remainder, and nobody knows which.
    """
    found = {item.name for item in _SIGNATURES if clipped(image, item.offset, len(item.magic)) == item.magic}
    if is_md_member(image):
        found.add("md member")
    if _is_zfs(image):
        found.add("ZFS")
    if is_swap(image):
        found.add(SWAP)
    if len(found) > 1:
        raise Unfit(f"there are signatures of {' and '.join(sorted(found))}")
    if found:
        return found.pop()
    return UNKNOWN if any(clipped(image, 0, _LOOKED_AT_FOR_EMPTY)) else EMPTY


def _is_zfs(image: Image) -> bool:
    blocks = clipped(image, _UBERBLOCKS_AT, _UBERBLOCKS_LENGTH)
    return any(blocks[at : at + 8] in _UBERBLOCK_MAGICS for at in range(0, len(blocks), _UBERBLOCK))
