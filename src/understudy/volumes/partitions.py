"""Partitions: where on a disk do file systems and swap areas lie?

A table that is damaged, ambiguous, or belongs to something that spreads volumes over disks condemns the whole disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from understudy.units import KIB
from understudy.volumes import Image, Unfit, gpt
from understudy.volumes.clipped import clipped

_SECTOR = 512
_IDENTITY_AT, _TABLE_AT, _ENTRY_LENGTH, _ENTRIES = 440, 446, 16, 4
_FIRST_LOGICAL = 5
_BOOT_SIGNATURE = b"\x55\xaa"
_PROTECTIVE, _LDM = 0xEE, 0x42
_EXTENDED = (0x05, 0x0F, 0x85)
_MOST_LOGICAL = 128
_MD_MAGICS = (b"\xfc\x4e\x2b\xa9", b"\xa9\x2b\x4e\xfc")
#: What stands at byte 3 of sector 0 where a file system, not a table, begins: its boot code fills the table's place.
_BOOT_SECTORS = (b"NTFS    ", b"-FVE-FS-", b"EXFAT   ", b"ReFS\0\0\0\0", b"MSDOS5.0", b"MSWIN4.1", b"mkfs.fat")


@dataclass(frozen=True)
class Partition:
    """``length`` bytes from ``start`` of a disk.

    :ivar type: a GPT type in lower case; ``0x83`` for MBR; empty for a whole disk without a table.
    :ivar number: as the guest's kernel counts partitions, from 1 on; 0 for a whole disk.
    :ivar uuid: what Linux calls PARTUUID, in lower case; empty if it has none.
    :ivar label: what Linux calls PARTLABEL; MBRs have none.
    """

    start: int
    length: int
    type: str
    number: int = 0
    uuid: str = ""
    label: str = ""


@dataclass(frozen=True)
class _Entry:
    """Of an MBR, in sectors; ``number`` is its place in the table, from 1 on."""

    type: int
    start: int
    length: int
    number: int


def partitions(image: Image) -> tuple[Partition, ...]:
    """The partitions of a disk by place; the whole disk as one if it has no table.

    :raises Unfit: if nothing of the disk may be left out.
    """
    if is_md_member(image):
        raise Unfit("the disk is a member of a software RAID")
    sector = clipped(image, 0, _SECTOR)
    headers = [size for size in gpt.SECTOR_SIZES if gpt.has_header(image, size)]
    entries = _table(sector)
    if entries is None:
        if headers or gpt.has_backup(image):
            raise Unfit("the disk has a GPT, but no protective MBR")
        return (Partition(0, image.size, ""),)
    kinds = {entry.type for entry in entries}
    if _LDM in kinds:
        raise Unfit("the disk is a Windows dynamic disk")
    if _PROTECTIVE in kinds:
        if len(entries) != 1 or len(headers) != 1:
            raise Unfit("the disk's partition table is a hybrid one, or its GPT is damaged")
        found = [Partition(*entry) for entry in gpt.entries(image, headers[0])]
    elif headers:
        raise Unfit("the disk has an MBR and a GPT")
    else:
        found = list(_all_of(image, entries, struct.unpack_from("<I", sector, _IDENTITY_AT)[0]))
    return _sane(found, image.size)


def is_md_member(image: Image) -> bool:
    """Whether a superblock of Linux software RAID lies at one of its four places."""
    size = image.size
    places = [0, 4 * KIB, (size // _SECTOR - 16) // 8 * 8 * _SECTOR, size // (64 * KIB) * 64 * KIB - 64 * KIB]
    return any(clipped(image, place, 4) in _MD_MAGICS for place in places if place >= 0)


def _table(sector: bytes) -> list[_Entry] | None:
    """The used entries of an MBR; None if the sector is none, or holds an empty one.

    :raises Unfit: if it looks like one and makes no sense.
    """
    if sector[510:512] != _BOOT_SIGNATURE:
        return None
    raw = [sector[_TABLE_AT + i * _ENTRY_LENGTH :][:_ENTRY_LENGTH] for i in range(_ENTRIES)]
    entries = [_entry(item, number) for number, item in enumerate(raw, 1)]
    used = [item for item in entries if item.type]
    plausible = all(item[0] in (0, 0x80) for item in raw) and all(item.start and item.length for item in used)
    if sector[3:11] in _BOOT_SECTORS:
        if plausible and used:
            raise Unfit("the disk begins with a file system and with a partition table")
        return None
    if not plausible:
        raise Unfit("the disk's partition table makes no sense")
    return used or None


def _entry(raw: bytes, number: int) -> _Entry:
    kind, start, length = struct.unpack_from("<4xB3xII", raw)
    return _Entry(kind, start, length, number)


def _all_of(image: Image, primary: Iterable[_Entry], disk: int) -> Iterable[Partition]:
    """Primary and logical partitions. Sectors have 512 bytes: an MBR does not say, and no other size is in use.

    :param disk: its identity; 0 if it has none.
    """
    extended = [entry for entry in primary if entry.type in _EXTENDED]
    if len(extended) > 1:
        raise Unfit("the disk has two extended partitions")
    for entry in primary:
        if entry.type not in _EXTENDED:
            yield _partition(entry, 0, entry.number, disk)
    for entry in extended:
        yield from _logical(image, entry, disk)


def _partition(entry: _Entry, base: int, number: int, disk: int) -> Partition:
    identity = f"{disk:08x}-{number:02x}" if disk else ""
    return Partition((base + entry.start) * _SECTOR, entry.length * _SECTOR, f"0x{entry.type:02x}", number, identity)


def _logical(image: Image, extended: _Entry, disk: int) -> Iterable[Partition]:
    """The chain of tables in an extended partition: each names one partition, and the next table."""
    table, number = extended.start, _FIRST_LOGICAL
    for _ in range(_MOST_LOGICAL):
        sector = clipped(image, table * _SECTOR, _SECTOR)
        if sector[510:512] != _BOOT_SIGNATURE:
            raise Unfit("a table of the disk's extended partition is damaged")
        own, following = (_entry(sector[_TABLE_AT + i * _ENTRY_LENGTH :][:_ENTRY_LENGTH], i) for i in range(2))
        if own.type:
            if own.start == 0 or table + own.start + own.length > extended.start + extended.length:
                raise Unfit("a logical partition lies outside the extended one")
            if own.type == _LDM:
                raise Unfit("the disk is a Windows dynamic disk")
            yield _partition(own, table, number, disk)
            number += 1
        if not following.type:
            return
        if following.type not in _EXTENDED or not 0 < following.start < extended.length:
            raise Unfit("a table of the disk's extended partition is damaged")
        table = extended.start + following.start
    raise Unfit("the disk's extended partition has too many partitions")


def _sane(found: list[Partition], size: int) -> tuple[Partition, ...]:
    ordered = tuple(sorted(found, key=lambda item: item.start))
    end = 0
    for item in ordered:
        if item.length <= 0 or item.start < max(end, _SECTOR) or item.start + item.length > size:
            raise Unfit("two partitions overlap, or one does not lie on the disk")
        end = item.start + item.length
    return ordered
