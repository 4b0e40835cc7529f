"""A record of the MFT: which attributes does a file have, and in which clusters do they lie? Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from understudy.volumes import Unfit
from understudy.volumes.ntfs.boot import SECTOR

STANDARD_INFORMATION, ATTRIBUTE_LIST, FILE_NAME, VOLUME_INFORMATION = 0x10, 0x20, 0x30, 0x70
DATA, REPARSE_POINT = 0x80, 0xC0
_END = 0xFFFFFFFF

COMPRESSED, ENCRYPTED, SPARSE = 0x00FF, 0x4000, 0x8000  # flags of an attribute
DOS_NAME = 2

_IN_USE, _DIRECTORY = 1, 2
_MOST_RUN_BYTES = 8
_NUMBER_BITS = 48


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` clusters from ``first`` of the volume; ``first`` is None for a hole."""

    first: int | None
    count: int


class Attribute(NamedTuple):
    """One attribute, or the part of one that lies in this record.

    :ivar value: of a resident one.
    :ivar first: the number in the file of the first cluster of ``runs``.
    :ivar allocated: bytes, with holes; ``stored`` without; both and ``size`` of the whole attribute, and known in its
        first part only.
    """

    type: int
    name: str
    flags: int
    number: int
    resident: bool
    value: bytes = b""
    runs: tuple[Run, ...] = ()
    first: int = 0
    size: int = 0
    allocated: int = 0
    stored: int = 0

    @property
    def after(self) -> int:
        """The number in the file of the first cluster behind ``runs``."""
        return self.first + sum(run.count for run in self.runs)


class Record(NamedTuple):
    """A record that is in use.

    :ivar base: reference of the record that this one continues; 0 for none.
    :ivar links: names of the file, its DOS names counted.
    """

    number: int
    sequence: int
    links: int
    base: int
    is_directory: bool
    attributes: tuple[Attribute, ...]

    @property
    def reference(self) -> int:
        """As directories write it."""
        return self.sequence << _NUMBER_BITS | self.number


@dataclass(frozen=True, slots=True)
class FileName:
    """One name of a file, and the reference of the directory that it stands in."""

    parent: int
    space: int
    name: str


def number_of(reference: int) -> int:
    """The number of the record that a reference speaks of."""
    return reference & ((1 << _NUMBER_BITS) - 1)


def parse_record(raw: bytes, number: int) -> Record | None:
    """The record, None if it is not in use.

    :raises Unfit: if it is damaged.
    """
    data = fixed_up(raw, b"FILE")
    sequence, links, at, flags, used = struct.unpack_from("<HHHHI", data, 16)
    (base,) = struct.unpack_from("<Q", data, 32)
    if not flags & _IN_USE:
        return None
    if used > len(data) or at % 8 or at < 42:
        raise Unfit(f"record {number} of the MFT is damaged")
    try:
        attributes = tuple(_attributes(data[:used], at))
    except (struct.error, IndexError, UnicodeDecodeError) as exc:
        raise Unfit(f"record {number} of the MFT is damaged") from exc
    return Record(number, sequence, links, base, bool(flags & _DIRECTORY), attributes)


def fixed_up(raw: bytes, magic: bytes) -> bytes:
    """A record as it was before its sectors were marked: the last two bytes of each stand in a list at its begin.

    :raises Unfit: if the marks differ: not all of it was written.
    """
    data = bytearray(raw)
    at, count = struct.unpack_from("<HH", raw, 4)
    if raw[:4] != magic or count != len(raw) // SECTOR + 1 or at < 8 or at + 2 * count > SECTOR - 2:
        raise Unfit("a record of the NTFS is damaged")
    mark = raw[at : at + 2]
    for sector in range(1, count):
        end = sector * SECTOR
        if raw[end - 2 : end] != mark:
            raise Unfit("a record of the NTFS is damaged")
        data[end - 2 : end] = raw[at + 2 * sector : at + 2 * sector + 2]
    return bytes(data)


def file_name(attribute: Attribute) -> FileName:
    """What a FILE_NAME says.

    :raises Unfit: if it is damaged.
    """
    value = attribute.value
    if not attribute.resident or len(value) < 66 or len(value) < 66 + 2 * value[64]:
        raise Unfit("a name of a file is damaged")
    (parent,) = struct.unpack_from("<Q", value)
    return FileName(parent, value[65], value[66 : 66 + 2 * value[64]].decode("utf-16-le", errors="surrogatepass"))


def _attributes(data: bytes, at: int) -> Iterator[Attribute]:
    while True:
        kind, length = struct.unpack_from("<II", data, at)
        if kind == _END:
            return
        if length < 24 or length % 8 or at + length > len(data):
            raise Unfit("a record of the MFT is damaged")
        yield _attribute(data[at : at + length], kind)
        at += length


def _attribute(raw: bytes, kind: int) -> Attribute:
    elsewhere, name_length, name_at, flags, number = struct.unpack_from("<BBHHH", raw, 8)
    if name_at + 2 * name_length > len(raw):
        raise Unfit("an attribute of a file is damaged")
    name = raw[name_at : name_at + 2 * name_length].decode("utf-16-le", errors="surrogatepass")
    if not elsewhere:
        length, at = struct.unpack_from("<IH", raw, 16)
        if at + length > len(raw):
            raise Unfit("an attribute of a file is damaged")
        return Attribute(kind, name, flags, number, resident=True, value=raw[at : at + length], size=length)
    first, last, at, _, allocated, size = struct.unpack_from("<QQHHxxxxQQ", raw, 16)
    stored = allocated
    if first == 0 and flags & (COMPRESSED | SPARSE):
        (stored,) = struct.unpack_from("<Q", raw, 64)
    runs = tuple(_runs(raw, at))
    found = Attribute(kind, name, flags, number, resident=False, runs=runs, first=first, size=size,
                      allocated=allocated, stored=stored)  # fmt: skip
    # An attribute without clusters ends before its begin.
    if found.after != (last + 1) & (1 << 64) - 1:
        raise Unfit("the clusters of an attribute are not those it says")
    return found


def _runs(raw: bytes, at: int) -> Iterator[Run]:
    """Each run: a byte with the lengths of what follows, the number of clusters, and how far its first cluster is from
    that of the run before."""
    place = 0
    while raw[at]:
        count_bytes, place_bytes = raw[at] & 15, raw[at] >> 4
        end = at + 1 + count_bytes + place_bytes
        if not 0 < count_bytes <= _MOST_RUN_BYTES or place_bytes > _MOST_RUN_BYTES or end >= len(raw):
            raise Unfit("the clusters of an attribute make no sense")
        count = int.from_bytes(raw[at + 1 : at + 1 + count_bytes], "little", signed=True)
        place += int.from_bytes(raw[at + 1 + count_bytes : end], "little", signed=True)
        if count <= 0 or place < 0:
            raise Unfit("the clusters of an attribute make no sense")
        yield Run(place if place_bytes else None, count)
        at = end
