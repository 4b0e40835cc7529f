"""Directories: which names does one hold? Hashed ones are read like the old ones, as their format means it. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from understudy.volumes import Unfit
from understudy.volumes.ext import superblock as sb
from understudy.volumes.ext.checksums import crc32c
from understudy.volumes.ext.inodes import INDEX, Inode
from understudy.volumes.ext.superblock import Superblock

#: Kinds of entries; UNKNOWN says that only the inode knows.
UNKNOWN, REGULAR, DIRECTORY = 0, 1, 2

_HEADER = 8
_TAIL = struct.Struct("<IHBBI")
_TAIL_KIND = 0xDE
_ROOT_COUNT, _NODE_COUNT = 32, 8
_WHOLE_64K = 0xFFFF


class Entry(NamedTuple):
    """A name in a directory."""

    inode: int
    kind: int
    name: str


def entries(layout: Superblock, directory: Inode, blocks: Iterator[bytes]) -> Iterator[Entry]:
    """The names in a directory, without its own and its parent's.

    :raises Unfit: if a block is damaged, or its checksum is wrong.
    """
    has_kinds = bool(layout.incompat & sb.FILETYPE)
    for index, raw in enumerate(blocks):
        if layout.summed:
            _verify(directory, raw, first=index == 0)
        yield from _entries_of_block(directory, raw, has_kinds)


def _entries_of_block(directory: Inode, raw: bytes, has_kinds: bool) -> Iterator[Entry]:
    offset, size = 0, len(raw)
    while offset < size:
        if offset + _HEADER > size:
            raise _damaged(directory)
        inode, stored, name_length, kind = struct.unpack_from("<IHBB", raw, offset)
        length = _length(stored)
        if length < _HEADER + name_length or length % 4 or offset + length > size:
            raise _damaged(directory)
        if inode:
            name = raw[offset + _HEADER : offset + _HEADER + name_length]
            if not name or b"/" in name or b"\0" in name:
                raise _damaged(directory)
            if name not in {b".", b".."}:
                yield Entry(inode, kind if has_kinds else UNKNOWN, name.decode("utf-8", "surrogateescape"))
        offset += length


def _length(stored: int) -> int:
    """Lengths of 64 KiB do not fit into their field as they are."""
    if stored in {0, _WHOLE_64K}:
        return 1 << 16
    return (stored & 0xFFFC) | (stored & 3) << 16


def _verify(directory: Inode, raw: bytes, *, first: bool) -> None:
    count_at = _index_at(raw, first=first) if directory.flags & INDEX else None
    if count_at is None:
        zero, length, name_length, kind, stored = _TAIL.unpack_from(raw, len(raw) - _TAIL.size)
        good = (zero, length, name_length, kind) == (0, _TAIL.size, 0, _TAIL_KIND)
        good = good and crc32c(directory.seed, raw[: -_TAIL.size]) == stored
    else:
        limit, count = struct.unpack_from("<HH", raw, count_at)
        tail = count_at + limit * 8
        good = count <= limit and tail + 8 <= len(raw)
        if good:
            summed = raw[: count_at + count * 8] + raw[tail : tail + 4] + bytes(4)
            good = crc32c(directory.seed, summed) == struct.unpack_from("<I", raw, tail + 4)[0]
    if not good:
        raise Unfit(f"the checksum of a block of the directory with the inode {directory.number} is wrong")


def _index_at(raw: bytes, *, first: bool) -> int | None:
    """Where a block of a hashed directory has the size of its index; None if it holds names instead."""
    if first:
        return _ROOT_COUNT
    inode, stored = struct.unpack_from("<IH", raw)
    return _NODE_COUNT if not inode and _length(stored) == len(raw) else None


def _damaged(directory: Inode) -> Unfit:
    return Unfit(f"the directory with the inode {directory.number} is damaged")
