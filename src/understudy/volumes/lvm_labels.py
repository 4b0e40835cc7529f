"""LVM's labels: which physical volume is this, and what does it say about its volume group?"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from understudy.units import MIB
from understudy.volumes import Image, Unfit
from understudy.volumes.clipped import clipped

_SECTOR, _LABEL_SECTORS = 512, 4
_LABEL, _TYPE = b"LABELONE", b"LVM2 001"
_CRC_START = 0xF597A6CF
_AREA_MAGIC = b" LVM2 x[5A%r0N*>"
_AREA_HEADER_LENGTH = 512
_IGNORED = 1
_MOST_AREAS, _LONGEST_TEXT = 16, 16 * MIB


@dataclass(frozen=True)
class Label:
    """What a physical volume says.

    :ivar id: without dashes.
    :ivar texts: the volume group's description, from each of its metadata areas that is in use and holds one.
    """

    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class _Text:
    """Where a description lies in its area, from the area's begin; ``flags`` are the area's."""

    offset: int
    length: int
    crc: int
    flags: int


def lvm_crc(data: bytes) -> int:
    """LVM's checksum: CRC-32 with a start of its own and without the final inversion."""
    return zlib.crc32(data, _CRC_START ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_label(image: Image) -> Label:
    """The label of a physical volume.

    :raises Unfit: if it is none, or anything of it is damaged or about to change.
    """
    head = clipped(image, 0, _LABEL_SECTORS * _SECTOR)
    places = [at for at in range(0, len(head), _SECTOR) if head[at : at + 8] == _LABEL]
    if len(places) != 1:
        raise Unfit("there is not exactly one LVM label")
    place = places[0]
    sector = head[place : place + _SECTOR]
    number, crc, offset, kind = struct.unpack_from("<8xQII8s", sector)
    if number != place // _SECTOR or kind != _TYPE or crc != lvm_crc(sector[20:]):
        raise Unfit("the LVM label is damaged")
    identity, areas = _header(sector[offset:])
    texts = (_text(image, start, length) for start, length in areas)
    return Label(identity, tuple(text for text in texts if text is not None))


def _header(raw: bytes) -> tuple[str, list[tuple[int, int]]]:
    """The identity, and start and length of the metadata areas, which follow the list of the data areas."""
    try:
        identity = raw[:32].decode("ascii")
        data, at = _areas(raw, 40)
        metadata, _ = _areas(raw, at)
    except (struct.error, UnicodeDecodeError) as exc:
        raise Unfit("the LVM label is damaged") from exc
    if len(data) != 1:
        raise Unfit("the LVM physical volume has several data areas")
    return identity, metadata


def _areas(raw: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    areas: list[tuple[int, int]] = []
    while len(areas) <= _MOST_AREAS:
        start, length = struct.unpack_from("<QQ", raw, at)
        at += 16
        if start == 0:
            return areas, at
        areas.append((start, length))
    raise Unfit("the LVM label is damaged")


def _text(image: Image, start: int, length: int) -> str | None:
    """The description in one metadata area; None if the area is not in use, or empty."""
    header = clipped(image, start, _AREA_HEADER_LENGTH)
    if len(header) < _AREA_HEADER_LENGTH or start + length > image.size:
        raise Unfit("an LVM metadata area lies outside the volume")
    crc, magic, version, own, size = struct.unpack_from("<I16sIQQ", header)
    if crc != lvm_crc(header[4:]) or magic != _AREA_MAGIC or version != 1 or (own, size) != (start, length):
        raise Unfit("the header of an LVM metadata area is damaged")
    committed, planned = (_Text(*struct.unpack_from("<QQII", header, 40 + 24 * i)) for i in range(2))
    if committed.offset == 0 or committed.flags & _IGNORED:
        return None
    if planned.offset:
        raise Unfit("the LVM volume group was being changed")
    return _wrapped(image, start, length, committed)


def _wrapped(image: Image, start: int, length: int, text: _Text) -> str:
    """The texts of an area follow each other in a circle behind its header."""
    if not _AREA_HEADER_LENGTH <= text.offset < length or not 0 < text.length <= length - _AREA_HEADER_LENGTH:
        raise Unfit("the header of an LVM metadata area is damaged")
    if text.length > _LONGEST_TEXT:
        raise Unfit("the LVM metadata is too long")
    first = min(text.length, length - text.offset)
    raw = image.read(start + text.offset, first)
    if first < text.length:
        raw += image.read(start + _AREA_HEADER_LENGTH, text.length - first)
    if lvm_crc(raw) != text.crc:
        raise Unfit("the LVM metadata is damaged")
    return raw.rstrip(b"\0").decode("utf-8", errors="replace")
