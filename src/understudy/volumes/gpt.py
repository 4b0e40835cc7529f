"""GPT: which partitions does the table name, if both of its copies say the same?"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from understudy.units import KIB, MIB
from understudy.volumes import Image, Unfit
from understudy.volumes.clipped import clipped

SECTOR_SIZES = (512, 4 * KIB)

_SIGNATURE = b"EFI PART"
_HEADER = struct.Struct("<8s4sIII QQQQ 16s QIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MOST_ENTRIES, _ENTRY_LENGTH = 1024, 128
_SPREAD = {
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "a Windows dynamic disk",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "a Windows dynamic disk",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "part of Windows Storage Spaces",
}


class Entry(NamedTuple):
    """A partition: place in bytes, type and identity in lower case, number from 1 on."""

    start: int
    length: int
    type: str
    number: int
    uuid: str
    label: str


@dataclass(frozen=True)
class _Header:
    """Places are in sectors. ``shared`` is what both copies must say."""

    own: int
    other: int
    first: int
    last: int
    disk: bytes
    table: int
    count: int
    length: int
    table_crc: int

    @property
    def shared(self) -> tuple[object, ...]:
        return self.first, self.last, self.disk, self.count, self.length, self.table_crc


def has_header(image: Image, sector_size: int) -> bool:
    """Whether a GPT header, valid or not, begins the second sector."""
    return clipped(image, sector_size, len(_SIGNATURE)) == _SIGNATURE


def has_backup(image: Image) -> bool:
    """Whether a GPT header, valid or not, begins the last sector."""
    return any(clipped(image, image.size - size, len(_SIGNATURE)) == _SIGNATURE for size in SECTOR_SIZES)


def entries(image: Image, sector_size: int) -> Iterator[Entry]:
    """The partitions, in the order of the table.

    :raises Unfit: if a copy of the table is damaged, they differ, or the partitions are pieces of something else.
    """
    primary, table = _copy(image, sector_size, 1)
    backup, _ = _copy(image, sector_size, primary.other)
    if backup.shared != primary.shared or backup.other != 1:
        raise Unfit("the two copies of the disk's GPT differ")
    for number, at in enumerate(range(0, len(table), primary.length), 1):
        kind, own, first, last, _, label = _ENTRY.unpack_from(table, at)
        if not any(kind):
            continue
        name = str(uuid.UUID(bytes_le=kind))
        if name in _SPREAD:
            raise Unfit(f"the disk is {_SPREAD[name]}")
        if not primary.first <= first <= last <= primary.last:
            raise Unfit("a partition lies outside the usable part of the disk")
        yield Entry(first * sector_size, (last - first + 1) * sector_size, name, number,
                    str(uuid.UUID(bytes_le=own)), _text(label))


def _text(raw: bytes) -> str:
    """A name of UTF-16, up to its first zero."""
    return raw.decode("utf-16-le", errors="replace").split("\0")[0]


def _copy(image: Image, sector_size: int, place: int) -> tuple[_Header, bytes]:
    """One copy of header and table, its checksums verified."""
    raw = clipped(image, place * sector_size, sector_size)
    if len(raw) < sector_size or not raw.startswith(_SIGNATURE):
        raise Unfit("a copy of the disk's GPT is missing")
    _, revision, length, crc, _, *fields = _HEADER.unpack_from(raw)
    if not _HEADER.size <= length <= sector_size or revision != b"\0\0\1\0":
        raise Unfit("a copy of the disk's GPT has an unknown version")
    header = _Header(*fields)
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != crc or header.own != place:
        raise Unfit("a header of the disk's GPT is damaged")
    _check_shape(header, image.size // sector_size)
    table = clipped(image, header.table * sector_size, header.count * header.length)
    if zlib.crc32(table) != header.table_crc:
        raise Unfit("a table of the disk's GPT is damaged")
    return header, table


def _check_shape(header: _Header, sectors: int) -> None:
    sizes = header.length % _ENTRY_LENGTH == 0 and 0 < header.length <= 4 * KIB and header.count <= _MOST_ENTRIES
    if not sizes or header.count * header.length > MIB or not 1 < header.first <= header.last < sectors:
        raise Unfit("a header of the disk's GPT makes no sense")
