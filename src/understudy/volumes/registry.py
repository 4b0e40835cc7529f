"""Registry: which values does a key of a hive of Windows have? As far as drive letters need it. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from understudy.volumes import Unfit

_BASE = 4096
_MAGIC, _BIN = b"regf", b"hbin"
_MOST_ITEMS = 100_000
_ASCII_KEY, _ASCII_VALUE = 0x20, 1
_INLINE = 1 << 31
_LONGEST_DATA = 16_344  # more lies in several pieces


def values_of(hive: bytes, path: Sequence[str], *, latest: bool = True) -> dict[str, bytes]:
    """The values of the key at ``path`` below the root, by name; none if there is no such key.

    :param latest: whether the hive must have them all as they are now; that of a Windows that runs seldom does, for its
        latest changes are in the hive's log.
    :raises Unfit: if the hive is damaged, or with ``latest``, if it was being written.
    """
    try:
        return _Hive(hive, latest=latest).values(path)
    except (struct.error, IndexError) as exc:
        raise Unfit("the registry is damaged") from exc


class _Hive:
    """Cells by their distance from the base block; each begins with its size, negative if it is in use."""

    def __init__(self, raw: bytes, *, latest: bool) -> None:
        self._raw = raw
        first, second, _, major, minor, kind, _, self._root, length = struct.unpack_from("<IIQIIIIII", raw, 4)
        if raw[:4] != _MAGIC or (latest and not _is_summed(raw)) or raw[_BASE : _BASE + 4] != _BIN:
            raise Unfit("the registry is damaged")
        if latest and first != second:
            raise Unfit("the registry was being written")
        if major != 1 or not 3 <= minor <= 6 or kind or _BASE + length > len(raw):
            raise Unfit("the registry is of an unknown kind")

    def values(self, path: Sequence[str]) -> dict[str, bytes]:
        key = self._cell(self._root, b"nk")
        for name in path:
            found = (each for each in self._keys(key) if _name(each, 2, 72, 76, _ASCII_KEY).lower() == name.lower())
            key = next(found, b"")
            if not key:
                return {}
        count, place = struct.unpack_from("<II", key, 36)
        if not count:
            return {}
        if count > _MOST_ITEMS:
            raise Unfit("the registry is damaged")
        cells = (self._cell(at, b"vk") for at in struct.unpack_from(f"<{count}I", self._cell(place)))
        return {_name(cell, 16, 2, 20, _ASCII_VALUE): self._data(cell) for cell in cells}

    def _keys(self, key: bytes) -> Iterator[bytes]:
        count, place = struct.unpack_from("<I4xI", key, 20)
        if count:
            for at in self._listed(place, deeper=True):
                yield self._cell(at, b"nk")

    def _listed(self, place: int, *, deeper: bool) -> Iterator[int]:
        """Places in a list, which may be one of lists."""
        cell = self._cell(place)
        kind, count = struct.unpack_from("<2sH", cell)
        if kind == b"ri" and deeper:
            for inner in struct.unpack_from(f"<{count}I", cell, 4):
                yield from self._listed(inner, deeper=False)
        elif kind == b"li":
            yield from struct.unpack_from(f"<{count}I", cell, 4)
        elif kind in (b"lf", b"lh"):
            yield from struct.unpack_from(f"<{2 * count}I", cell, 4)[::2]
        else:
            raise Unfit("the registry is damaged")

    def _data(self, value: bytes) -> bytes:
        length, place = struct.unpack_from("<II", value, 4)
        if length & _INLINE:
            return value[8 : 8 + min(length & ~_INLINE, 4)]
        data = self._cell(place) if length else b""
        if length > _LONGEST_DATA or length > len(data):
            return b""  # of no value that is wanted here
        return data[:length]

    def _cell(self, place: int, kind: bytes = b"") -> bytes:
        at = _BASE + place
        (size,) = struct.unpack_from("<i", self._raw, at)
        cell = self._raw[at + 4 : at - size] if size < -4 else b""
        if len(cell) != -size - 4 or not cell.startswith(kind):
            raise Unfit("the registry is damaged")
        return cell


def _is_summed(raw: bytes) -> bool:
    checksum = 0
    for word in struct.unpack_from("<127I", raw):
        checksum ^= word
    return bool(struct.unpack_from("<I", raw, 508)[0] == checksum)


def _name(cell: bytes, flags_at: int, length_at: int, at: int, ascii_flag: int) -> str:
    (flags,), (length,) = struct.unpack_from("<H", cell, flags_at), struct.unpack_from("<H", cell, length_at)
    raw = cell[at : at + length]
    if len(raw) != length:
        raise Unfit("the registry is damaged")
    return raw.decode("latin-1") if flags & ascii_flag else raw.decode("utf-16-le", errors="replace")
