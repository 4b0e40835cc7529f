"""Directories: which names does an XFS directory hold? Its entries are read, its search tree is not needed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from understudy.volumes import Unfit
from understudy.volumes.xfs.geometry import Geometry, verified
from understudy.volumes.xfs.inodes import Inode, Inodes

_HEADER = 64
_DATA_END = 32 << 30  # entries lie below this offset in the directory, its search tree above
_UNUSED = 0xFFFF
_ONE_BLOCK, _ONE_OF_MANY = b"XDB3", b"XDD3"
_FILE, _DIRECTORY = 1, 2


@dataclass(frozen=True)
class Entry:
    """A name in a directory; bytes that are not UTF-8 are kept as surrogates."""

    name: str
    inode: int
    kind: int

    @property
    def is_file(self) -> bool:
        """Whether a regular file has the name."""
        return self.kind == _FILE

    @property
    def is_directory(self) -> bool:
        """Whether a directory has the name."""
        return self.kind == _DIRECTORY


def entries(inodes: Inodes, directory: Inode) -> Iterator[Entry]:
    """All names but ``.`` and ``..``.

    :raises Unfit: if the directory is damaged.
    """
    local = directory.local
    if local is not None:
        yield from _short(local, directory.number)
        return
    for block, place in _blocks(inodes, directory):
        yield from _long(block, place, directory.number, inodes.geometry)


def _entry(name: bytes, inode: int, kind: int, directory: int) -> Entry:
    if not name or b"/" in name or b"\0" in name:
        raise Unfit(f"the XFS directory {directory} has an impossible name")
    return Entry(name.decode(errors="surrogateescape"), inode, kind)


def _short(data: bytes, directory: int) -> Iterator[Entry]:
    """Entries that lie in the inode: a count, then length, offset, name, kind and number of each."""
    if len(data) < 6:
        raise Unfit(f"the XFS directory {directory} is damaged")
    wide = 8 if data[1] else 4
    at = 2 + wide
    for _ in range(data[0]):
        length = data[at] if at < len(data) else 0
        end = at + 3 + length
        if end + 1 + wide > len(data):
            raise Unfit(f"the XFS directory {directory} is damaged")
        yield _entry(data[at + 3 : end], int.from_bytes(data[end + 1 : end + 1 + wide], "big"), data[end], directory)
        at = end + 1 + wide
    if at != len(data):
        raise Unfit(f"the XFS directory {directory} is damaged")


def _blocks(inodes: Inodes, directory: Inode) -> Iterator[tuple[bytes, int]]:
    """The directory's blocks of entries, each with the place where it begins."""
    geometry = inodes.geometry
    whole = geometry.directory_block // geometry.block_size
    parts: list[bytes] = []
    begin = place = 0
    for piece in inodes.pieces(directory):
        if piece.first * geometry.block_size >= _DATA_END:
            return
        if piece.unwritten or (piece.first + piece.place.length // geometry.block_size) * geometry.block_size > (
            directory.size
        ):
            raise Unfit(f"the XFS directory {directory.number} is damaged")
        for number in range(piece.place.length // geometry.block_size):
            first, start = piece.first + number, piece.place.start + number * geometry.block_size
            if first % whole == 0:
                parts, begin, place = [], first, start
            if first != begin + len(parts):
                raise Unfit(f"the XFS directory {directory.number} is damaged")
            parts.append(inodes.image.read(start, geometry.block_size))
            if len(parts) == whole:
                yield b"".join(parts), place


def _long(block: bytes, place: int, directory: int, geometry: Geometry) -> Iterator[Entry]:
    verified(block, 4, place)
    where, _lsn, user, owner = struct.unpack_from(">QQ16sQ", block, 8)
    if (where * 512, user, owner) != (place, geometry.meta_uuid, directory):
        raise Unfit(f"the XFS metadata at {place} is not a block of directory {directory}")
    end = len(block)
    if block[:4] == _ONE_BLOCK:
        count = int.from_bytes(block[-8:-4], "big")
        end -= 8 + 8 * count
    elif block[:4] != _ONE_OF_MANY:
        raise Unfit(f"the XFS metadata at {place} is not a block of entries")
    at = _HEADER
    while at < end:
        tag, length = struct.unpack_from(">HH", block, at)
        if tag == _UNUSED:
            if length < 8 or length % 8 or at + length > end:
                raise Unfit(f"the XFS directory {directory} is damaged")
            at += length
            continue
        inode, size = struct.unpack_from(">QB", block, at) if at + 16 <= end else (0, 255)
        length = -(-(12 + size) // 8) * 8
        if at + length > end or int.from_bytes(block[at + length - 2 : at + length], "big") != at:
            raise Unfit(f"the XFS directory {directory} is damaged")
        name = block[at + 9 : at + 9 + size]
        if name not in (b".", b".."):
            yield _entry(name, inode, block[at + 9 + size], directory)
        at += length
    if at != end:
        raise Unfit(f"the XFS directory {directory} is damaged")
