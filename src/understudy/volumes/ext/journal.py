"""Journal: which blocks will its replay write, and with what? In three passes, as the kernel and e2fsck do it.

The answer must be theirs. Where they would stop at a wrong checksum and leave the rest to a repair, this refuses.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from understudy.volumes import Image, Unfit
from understudy.volumes.ext.checksums import START, crc32_be, crc32c
from understudy.volumes.ext.maps import Run
from understudy.volumes.ext.overlay import Overlay

_MAGIC = 0xC03B3998
_MAGIC_BYTES = struct.pack(">I", _MAGIC)
_DESCRIPTOR, _COMMIT, _SUPER_V1, _SUPER_V2, _REVOKE = 1, 2, 3, 4, 5
_HEADER = struct.Struct(">III")

_OLD_SUM = 0x1
_WIDE, _SUM_V2, _SUM_V3 = 0x2, 0x8, 0x10
_KNOWN = 0x1 | _WIDE | 0x4 | _SUM_V2 | _SUM_V3
_CRC32C_TYPE, _CRC32_TYPE = 4, 1

_ESCAPED, _SAME_UUID, _LAST = 0x1, 0x2, 0x8
_UUID_SIZE = 16
_TAIL = 4
_REVOKE_HEAD = 16
_COMMIT_SUM = 16


@dataclass(frozen=True)
class _Tag:
    """One block that a descriptor announces: its place, and the sum of what is in the log."""

    block: int
    flags: int
    checksum: int


@dataclass(frozen=True)
class _Transaction:
    """A transaction that was committed: places of its descriptors and revokes in the log."""

    number: int
    descriptors: tuple[int, ...]
    revokes: tuple[int, ...]


class _Log:
    """The journal as a ring of blocks; the superblock of the journal says what it is made of."""

    def __init__(self, image: Image, runs: Sequence[Run], block_size: int, blocks: int) -> None:
        self._image = image
        self._runs = runs
        self._starts = [run.logical for run in runs]
        self._block_size = block_size
        raw = self.read(0)
        magic, kind, _ = _HEADER.unpack_from(raw)
        self._first: int
        self.sequence: int
        self.start: int
        size, length, self._first, self.sequence, self.start, error = struct.unpack_from(">6I", raw, 12)
        compat, incompat, ro_compat = struct.unpack_from(">III", raw, 0x24) if kind == _SUPER_V2 else (0, 0, 0)
        if magic != _MAGIC or kind not in {_SUPER_V1, _SUPER_V2}:
            raise Unfit("the journal is damaged: its superblock is not there")
        if incompat & ~_KNOWN or compat & ~_OLD_SUM or ro_compat:
            raise Unfit("the journal has features that are not supported (fast_commit, for one)")
        if size != block_size or not 0 < self._first < length <= blocks or error:
            raise Unfit("the journal is damaged, or tells of an error that the guest has met")
        if self.start and not self._first <= self.start < length:
            raise Unfit("the journal is damaged: it does not begin within itself")
        self._length = length
        self.capacity: int = length - self._first
        self.wide = bool(incompat & _WIDE)
        self.version = 3 if incompat & _SUM_V3 else 2 if incompat & _SUM_V2 else 0
        self.old_sum = bool(compat & _OLD_SUM)
        self.seed = crc32c(START, raw[0x30:0x40])
        if self.version:
            self._verify_superblock(raw, incompat)

    def _verify_superblock(self, raw: bytes, incompat: int) -> None:
        summed = raw[:0xFC] + bytes(4) + raw[0x100:0x400]
        bad = self.old_sum or incompat & (_SUM_V2 | _SUM_V3) == _SUM_V2 | _SUM_V3 or raw[0x50] != _CRC32C_TYPE
        if bad or crc32c(START, summed) != struct.unpack_from(">I", raw, 0xFC)[0]:
            raise Unfit("the checksum of the journal's superblock is wrong")

    def place(self, index: int) -> int:
        """The block of the volume where block ``index`` of the journal lies."""
        position = bisect_right(self._starts, index) - 1
        run = self._runs[position] if position >= 0 else None
        if run is None or index >= run.logical + run.blocks or not run.written:
            raise Unfit("the journal has a hole")
        return run.block + index - run.logical

    def after(self, index: int, steps: int = 1) -> int:
        """The index of the block ``steps`` behind, in the ring."""
        return self._first + (index - self._first + steps) % self.capacity

    def read(self, index: int) -> bytes:
        """A block of the journal."""
        return self._image.read(self.place(index) * self._block_size, self._block_size)

    def holds(self, block: int) -> bool:
        """Whether a block of the volume belongs to the journal."""
        return any(run.block <= block < run.block + run.blocks for run in self._runs)


def is_empty(image: Image, runs: Sequence[Run], block_size: int, blocks: int) -> bool:
    """Whether nothing is left in the journal that a replay would write.

    :param runs: where the journal lies.
    :param blocks: blocks that its inode says it has.
    :raises Unfit: if it is damaged, or of an unknown kind.
    """
    return not _Log(image, runs, block_size, blocks).start


def replayed(image: Image, runs: Sequence[Run], block_size: int, blocks: int, volume_blocks: int) -> Overlay:
    """The volume as it will be after the replay.

    :param runs: where the journal lies.
    :param blocks: blocks that its inode says it has.
    :param volume_blocks: blocks of the file system.
    :raises Unfit: if a checksum is wrong, or the journal is of an unknown kind.
    """
    log = _Log(image, runs, block_size, blocks)
    transactions = list(_committed(log)) if log.start else []
    revoked = {block: item.number for item in transactions for index in item.revokes for block in _revokes(log, index)}
    moved: dict[int, int] = {}
    restored: dict[int, bytes] = {}
    for item in transactions:
        for tag, index in _writes(log, item):
            # A revoke speaks of its own transaction too, and of all before it.
            if revoked.get(tag.block, -1) >= item.number:
                continue
            if not 0 <= tag.block < volume_blocks or log.holds(tag.block):
                raise Unfit(f"the journal would write to the block {tag.block}, which is not its to write")
            _verify_data(log, item, tag, index)
            moved[tag.block] = log.place(index)
            if tag.flags & _ESCAPED:
                restored[tag.block] = _MAGIC_BYTES
            else:
                restored.pop(tag.block, None)
    return Overlay(image, block_size, moved, restored)


def _committed(log: _Log) -> Iterator[_Transaction]:
    """The first pass: transactions up to the first that was not committed."""
    index, number, read = log.start, 0, 0
    descriptors: list[int] = []
    revokes: list[int] = []
    running = START
    while True:
        raw = log.read(index)
        magic, kind, sequence = _HEADER.unpack_from(raw)
        if magic != _MAGIC or sequence != log.sequence + number & START or kind not in {_DESCRIPTOR, _COMMIT, _REVOKE}:
            return
        steps = 1
        if kind == _COMMIT:
            if not _commit_is_good(log, raw, running):
                raise Unfit("the checksum of a transaction in the journal is wrong")
            yield _Transaction(number, tuple(descriptors), tuple(revokes))
            number, running = number + 1, START
            descriptors, revokes = [], []
        else:
            _verify_tail(log, raw)
            (revokes if kind == _REVOKE else descriptors).append(index)
            if kind == _DESCRIPTOR:
                count = len(_tags(log, raw))
                if read + count < log.capacity:
                    running = _running_sum(log, raw, index, count, running)
                steps += count
        index, read = log.after(index, steps), read + steps
        if read > log.capacity:
            raise Unfit("the journal is damaged: it goes round in circles")


def _running_sum(log: _Log, raw: bytes, index: int, count: int, running: int) -> int:
    """What a commit block of the old kind sums up."""
    if log.old_sum:
        running = crc32_be(running, raw)
        for step in range(1, count + 1):
            running = crc32_be(running, log.read(log.after(index, step)))
    return running


def _commit_is_good(log: _Log, raw: bytes, running: int) -> bool:
    stored: int = struct.unpack_from(">I", raw, _COMMIT_SUM)[0]
    if log.version:
        return crc32c(log.seed, raw[:_COMMIT_SUM] + bytes(4) + raw[_COMMIT_SUM + 4 :]) == stored
    if log.old_sum:
        # A transaction from before the sums were switched on has none.
        return (raw[12], raw[13], stored) in {(_CRC32_TYPE, 4, running), (0, 0, 0)}
    return True


def _verify_tail(log: _Log, raw: bytes) -> None:
    stored = int.from_bytes(raw[-_TAIL:], "big")
    if log.version and crc32c(log.seed, raw[:-_TAIL] + bytes(_TAIL)) != stored:
        raise Unfit("the checksum of a block of the journal is wrong")


def _verify_data(log: _Log, item: _Transaction, tag: _Tag, index: int) -> None:
    if not log.version:
        return
    found = crc32c(crc32c(log.seed, struct.pack(">I", log.sequence + item.number & START)), log.read(index))
    if (found if log.version == 3 else found & 0xFFFF) != tag.checksum:
        raise Unfit(f"the checksum of the block {tag.block} in the journal is wrong")


def _writes(log: _Log, item: _Transaction) -> Iterator[tuple[_Tag, int]]:
    """What a transaction writes, and where in the log that lies."""
    for descriptor in item.descriptors:
        for step, tag in enumerate(_tags(log, log.read(descriptor)), 1):
            yield tag, log.after(descriptor, step)


def _tags(log: _Log, raw: bytes) -> list[_Tag]:
    size = 16 if log.version == 3 else 8 + (4 if log.wide else 0) + (2 if log.version == 2 else 0)
    end = len(raw) - (_TAIL if log.version else 0)
    tags: list[_Tag] = []
    offset = _HEADER.size
    while offset + size <= end:
        if log.version == 3:
            block, flags, high, checksum = struct.unpack_from(">IIII", raw, offset)
        else:
            block, checksum, flags = struct.unpack_from(">IHH", raw, offset)
            high = struct.unpack_from(">I", raw, offset + 8)[0] if log.wide else 0
        tags.append(_Tag(block | (high << 32 if log.wide else 0), flags, checksum))
        offset += size + (0 if flags & _SAME_UUID else _UUID_SIZE)
        if flags & _LAST:
            break
    return tags


def _revokes(log: _Log, index: int) -> Iterator[int]:
    raw = log.read(index)
    used: int = struct.unpack_from(">I", raw, _HEADER.size)[0]
    if not _REVOKE_HEAD <= used <= len(raw) - (_TAIL if log.version else 0):
        raise Unfit("the journal is damaged: a block of revokes is too long")
    size = 8 if log.wide else 4
    for offset in range(_REVOKE_HEAD, used - size + 1, size):
        yield int.from_bytes(raw[offset : offset + size], "big")
