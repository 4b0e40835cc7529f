"""B+trees: what do the leaves of an XFS tree hold, and which blocks does it lie in?

A tree's blocks are proved one by one: checksum, place, owner, level, count of records, order of the keys.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from understudy.model.extent import Extent
from understudy.volumes import Image, Unfit
from understudy.volumes.xfs.geometry import Geometry, verified

#: No file system that can be written has a deeper tree.
_DEEPEST = 12


@dataclass(frozen=True)
class Form:
    """How the blocks of one kind of tree look.

    :ivar header: bytes before the first record or key.
    :ivar key, pointer, record: bytes of each.
    """

    magic: bytes
    header: int
    key: int
    pointer: int
    record: int


@dataclass
class Tree:
    """One tree of an AG (``owner`` is its number, pointers count in it) or of an inode (``owner`` is its number).

    :ivar limit: blocks that the tree can have at most.
    :ivar blocks: where its blocks lie that were read so far.
    """

    image: Image
    geometry: Geometry
    form: Form
    owner: int
    limit: int
    blocks: list[Extent] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def leaves(self, root: int, levels: int) -> Iterator[bytes]:
        """The records of each leaf, from the first to the last.

        :param root: block number, as the pointers of this tree count.
        :param levels: of the root and below, at least 1.
        :raises Unfit: if a block is damaged or is not one of this tree.
        """
        if not 1 <= levels <= _DEEPEST:
            raise Unfit(f"an XFS tree has {levels} levels")
        pending = [(root, levels - 1)]
        while pending:
            number, level = pending.pop()
            block, count = self._read(number, level)
            if level == 0:
                yield block[self.form.header : self.form.header + count * self.form.record]
                continue
            most = (self.geometry.block_size - self.form.header) // (self.form.key + self.form.pointer)
            start = self.form.header + most * self.form.key
            pointers = struct.unpack_from(f">{count}{'I' if self.form.pointer == 4 else 'Q'}", block, start)
            pending.extend((pointer, level - 1) for pointer in reversed(pointers))

    def _read(self, number: int, level: int) -> tuple[bytes, int]:
        """A block, proved, and how many records or keys it has."""
        if number in self._seen or len(self._seen) >= self.limit:
            raise Unfit(f"an XFS tree of {self.owner} runs in a circle")
        self._seen.add(number)
        short = self.form.pointer == 4
        place = (
            self.geometry.extent(self.owner, number) if short else self.geometry.extent(*self.geometry.split(number))
        )
        block = self.image.read(place.start, place.length)
        at = 8 + 2 * self.form.pointer  # behind magic, level, count, and the neighbours
        verified(block, at + 36 if short else at + 40, place.start)
        found_level, count = struct.unpack_from(">HH", block, 4)
        owner = int.from_bytes(block[at + 32 : at + (36 if short else 40)], "big")
        where = int.from_bytes(block[at : at + 8], "big") * 512
        named = (block[:4], found_level, owner, where, block[at + 16 : at + 32])
        if named != (self.form.magic, level, self.owner, place.start, self.geometry.meta_uuid):
            raise Unfit(f"the XFS metadata at {place.start} is not the tree block that belongs there")
        item = self.form.key + self.form.pointer if level else self.form.record
        if count > (self.geometry.block_size - self.form.header) // item or (level and not count):
            raise Unfit(f"the XFS metadata at {place.start} has an impossible number of records")
        self.blocks.append(place)
        return block, count
