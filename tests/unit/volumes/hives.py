"""Hives: the smallest registry of Windows that has one key with values."""

from __future__ import annotations

import struct
from collections.abc import Mapping

BASE = 4096
HEADER = 32  # of a bin


class _Cells:
    """Cells of one bin, one after the other."""

    def __init__(self) -> None:
        self.data = bytearray(HEADER)

    def add(self, content: bytes) -> int:
        """Its place."""
        place = len(self.data)
        size = -(-(len(content) + 4) // 8) * 8
        self.data += struct.pack("<i", -size) + content.ljust(size - 4, b"\0")
        return place


def hive(
    keys: Mapping[str, Mapping[str, bytes]], *, list_kind: bytes = b"lh", sequences: tuple[int, int] = (1, 1)
) -> bytes:
    """A hive whose root has these keys with these values; names of values are UTF-16 if they must be."""
    cells = _Cells()
    root = cells.add(_key("ROOT", 0x2C))
    places = [_add_key(cells, name, values, root) for name, values in keys.items()]
    listed = _add_list(cells, places, list_kind)
    struct.pack_into("<I", cells.data, root + 4 + 20, len(places))
    struct.pack_into("<I", cells.data, root + 4 + 28, listed)
    size = -(-len(cells.data) // 4096) * 4096
    rest = size - len(cells.data)
    if rest:
        cells.data += struct.pack("<i", rest).ljust(rest, b"\0")
    struct.pack_into("<4sII8xQI", cells.data, 0, b"hbin", 0, size, 0, 0)
    head = bytearray(BASE)
    struct.pack_into("<4sIIQIIIIIII", head, 0, b"regf", *sequences, 0, 1, 5, 0, 1, root, size, 1)
    return summed(bytes(head)) + bytes(cells.data)


def summed(head: bytes) -> bytes:
    """A base block with its checksum."""
    checksum = 0
    for word in struct.unpack_from("<127I", head):
        checksum ^= word
    return head[:508] + struct.pack("<I", checksum) + head[512:]


def _key(name: str, flags: int) -> bytes:
    none = 0xFFFFFFFF
    return struct.pack("<2sHQII II II II II IIIII HH", b"nk", flags, 0, 0, 0, 0, 0, none, none, 0, none, none, none,
                       0, 0, 0, 0, 0, len(name), 0) + name.encode("latin-1")  # fmt: skip


def _add_key(cells: _Cells, name: str, values: Mapping[str, bytes], parent: int) -> int:
    key = cells.add(_key(name, 0x20))
    struct.pack_into("<I", cells.data, key + 4 + 16, parent)
    if values:
        places = [cells.add(_value(cells, title, data)) for title, data in values.items()]
        listed = cells.add(struct.pack(f"<{len(places)}I", *places))
        struct.pack_into("<II", cells.data, key + 4 + 36, len(places), listed)
    return key


def _value(cells: _Cells, name: str, data: bytes) -> bytes:
    raw, flags = (name.encode("latin-1"), 1) if name.isascii() else (name.encode("utf-16-le"), 0)
    length = len(data) | 1 << 31 if len(data) <= 4 else len(data)
    place = int.from_bytes(data.ljust(4, b"\0"), "little") if len(data) <= 4 else cells.add(data)
    return struct.pack("<2sHIIIHH", b"vk", len(raw), length, place, 3, flags, 0) + raw


def _add_list(cells: _Cells, places: list[int], kind: bytes) -> int:
    if kind == b"ri":
        inner = [cells.add(struct.pack("<2sHII", b"lh", 1, place, 0)) for place in places]
        return cells.add(struct.pack(f"<2sH{len(inner)}I", b"ri", len(inner), *inner))
    if kind == b"li":
        return cells.add(struct.pack(f"<2sH{len(places)}I", b"li", len(places), *places))
    pairs = [number for place in places for number in (place, 0)]
    return cells.add(struct.pack(f"<2sH{len(pairs)}I", kind, len(places), *pairs))
