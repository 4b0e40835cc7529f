"""Log: is the metadata on disk the truth, or does the log hold a newer one?

The log is a ring of 512-byte sectors, each marked with the number of the *cycle* that wrote it. Its head is where the
cycle falls; the last record before it says where the tail is. All that lies between may be newer than the metadata. An
unmounted file system has nothing there but a record that says so; a frozen or idle one only superblocks, by which it
makes sure that a crash is noticed. If a single inode was changed before that, kernels leave its change there as well
(they take it for one of these superblocks), although it is on disk: the inode there says up to which place in the log
its changes are in it. Nothing of the log is ever applied: whatever else is found makes the log *dirty*.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from google_crc32c import extend, value

from understudy.volumes import Image, Unfit
from understudy.volumes.xfs.geometry import COUNTERS, Geometry
from understudy.volumes.xfs.inodes import written_by

_SECTOR = 512
_MAGIC = 0xFEEDBABE
_UNMOUNT_BYTES = b"\x6e\x55"  # "Un" as a little-endian number
_HEADER_DATA = 32 * 1024  # bytes of a record for which one header sector has place for the first words
#: Eight writes of 256 KiB are on their way at most: farther from the head, order is certain.
_UNORDERED = (2 << 20) // _SECTOR
_LONGEST = (4 << 20) // _SECTOR  # sectors between tail and head that are worth reading
_HEADER_SIZES = (328, 324)  # as computed by kernels of 64 and of 32 bits
_LITTLE_ENDIAN = 1
_START, _COMMIT, _UNMOUNT = 1, 2, 0x20
_TRANSACTION, _BUFFER, _INODE = 0x5452414E, 0x123C, 0x123B
_INODE_FORM = 56  # bytes of it, as written by kernels of 64 bits
_CHUNK = 128  # bytes of a buffer that one bit of its map stands for
_CANCEL = 2


class _Dirty(Exception):
    """The log is not one that may be passed over; the message says why."""


@dataclass(frozen=True)
class _Record:
    """A proved log record.

    :ivar start, end: sectors of the log; ``end`` may lie behind the log's end, whence it goes on at the begin.
    :ivar body: what was logged, with the first words of its sectors in place.
    """

    start: int
    end: int
    cycle: int
    tail: int
    operations: int
    body: bytes

    @property
    def lsn(self) -> int:
        """What it is called by what it changed."""
        return self.cycle << 32 | self.start


def dirt(image: Image, geometry: Geometry) -> str:
    """Why the metadata on disk is not the truth; empty if it is.

    :raises Unfit: if the log cannot be read.
    """
    try:
        _Log(image, geometry).prove()
    except _Dirty as exc:
        return str(exc)
    return ""


class _Log:
    def __init__(self, image: Image, geometry: Geometry) -> None:
        self._image = image
        self._geometry = geometry
        self._start = geometry.log.start
        self._sectors = geometry.log.length // _SECTOR

    def prove(self) -> None:
        """Raise :class:`_Dirty` unless only what may be passed over lies between tail and head."""
        head, cycle = self._head()
        self._prove_order(head, cycle)
        last = self._last_record(head, cycle)
        if last.operations == 1 and _is_unmount(last.body):
            return
        at, tail_cycle = last.tail & 0xFFFFFFFF, last.tail >> 32
        behind = (head - at) % self._sectors or self._sectors
        if at >= self._sectors or tail_cycle != (cycle if at < head else cycle - 1) or behind > _LONGEST:
            raise _Dirty("its log holds changes that are not on disk yet")
        while behind:
            record = self._record(at, cycle if at < head else cycle - 1, must_sum=True)
            behind -= record.end - record.start
            if behind < 0:
                raise _Dirty("its log is torn")
            self._prove_harmless(record, last.lsn)
            at = record.end % self._sectors

    def _prove_harmless(self, record: _Record, newest: int) -> None:
        """Nothing but superblocks that say what the one on disk says, and inodes whose change is on disk."""
        waiting = iter(_regions(record))
        for region in waiting:
            if len(region) == 16 and int.from_bytes(region[:4], "little") == _TRANSACTION:
                continue
            kind, count = struct.unpack_from("<HH", region) if len(region) >= 4 else (0, 0)
            parts = [next(waiting, b"") for _ in range(count - 1)]
            if kind == _INODE and len(region) == _INODE_FORM and all(parts):
                (number,) = struct.unpack_from("<Q", region, 16)
                harmless = record.lsn <= self._written_by(number) <= newest
            else:
                harmless = kind == _BUFFER and _is_superblock(region, parts, self._geometry)
            if not harmless:
                raise _Dirty("its log holds changes that are not on disk yet")

    def _written_by(self, inode: int) -> int:
        try:
            return written_by(self._image, self._geometry, inode)
        except Unfit:
            return 0

    def _read(self, at: int, count: int) -> bytes:
        """Sectors of the ring; ``at`` is any number."""
        at %= self._sectors
        here = min(count, self._sectors - at)
        data = self._image.read(self._start + at * _SECTOR, here * _SECTOR)
        return data + self._read(0, count - here) if here < count else data

    def _cycles(self, at: int, count: int) -> list[int]:
        return [_cycle(item) for item in struct.iter_unpack(">II504x", self._read(at, count))]

    def _head(self) -> tuple[int, int]:
        """The sector behind the newest one, and the cycle of the sectors before it."""
        first, last = self._cycles(0, 1)[0], self._cycles(self._sectors - 1, 1)[0]
        if first == 0 or last not in (first, first - 1):
            raise _Dirty("its log is empty or torn")
        if last == first:
            return 0, first + 1
        low, high = 0, self._sectors - 1  # the cycle is `first` at `low`, and is not at `high`
        while high - low > 1:
            middle = (low + high) // 2
            if self._cycles(middle, 1)[0] == first:
                low = middle
            else:
                high = middle
        return high, first

    def _prove_order(self, head: int, cycle: int) -> None:
        """Writes that were overtaken by later ones leave holes around the head."""
        count = min(_UNORDERED, self._sectors // 2)
        for begin in (head - count, head):
            for number, found in enumerate(self._cycles(begin, count)):
                if found != (cycle if (begin + number) % self._sectors < head else cycle - 1):
                    raise _Dirty("its log is being written")

    def _last_record(self, head: int, cycle: int) -> _Record:
        """The record that ends at the head; with the head at 0, it was written by the cycle before."""
        count = min(_UNORDERED, self._sectors)
        words = [item for (item,) in struct.iter_unpack(">I508x", self._read(head - count, count))]
        for back in range(1, count + 1):
            if words[-back] == _MAGIC:
                at = (head - back) % self._sectors
                record = self._record(at, cycle if at < head else cycle - 1)
                if (record.end - head) % self._sectors:
                    raise _Dirty("its log is torn")
                return record
        raise _Dirty("its log has no record before its head")

    def _record(self, at: int, cycle: int, *, must_sum: bool = False) -> _Record:
        """The record that begins at a sector.

        :param must_sum: it must have a checksum; what mkfs and repair programs write has none.
        """
        head = self._read(at, 1)
        (magic, own_cycle, version, length, lsn, tail, _sum, _previous,
         operations) = struct.unpack_from(">IIIIQQIII", head)  # fmt: skip
        form, user, size = struct.unpack_from(">I16sI", head, 300)
        if (magic, own_cycle, version, lsn) != (_MAGIC, cycle, 2, cycle << 32 | at) or form != _LITTLE_ENDIAN:
            raise _Dirty("its log is torn")
        if user not in (self._geometry.uuid.bytes, self._geometry.meta_uuid):
            raise _Dirty("its log is another file system's")
        # Programs of xfsprogs write a record for an unmount that is as long as they like, and a wrong size.
        headers = -(-max(size, 1) // _HEADER_DATA) if operations != 1 or size >= length else 1
        sectors = -(-length // _SECTOR)
        if not 0 < length <= 256 * 1024 or not 0 < headers <= 8 or headers + sectors > self._sectors:
            raise _Dirty("its log is torn")
        raw = self._read(at, headers + sectors)
        body = raw[headers * _SECTOR :][:length]
        if not _sum_is_right(raw[: headers * _SECTOR], body, may_lack=operations == 1 and not must_sum):
            raise _Dirty("its log is torn")
        return _Record(at, at + headers + sectors, cycle, tail, operations, _unpacked(raw[: headers * _SECTOR], body))


def _cycle(words: tuple[int, ...]) -> int:
    return words[1] if words[0] == _MAGIC else words[0]


def _sum_is_right(headers: bytes, body: bytes, *, may_lack: bool) -> bool:
    stored = int.from_bytes(headers[32:36], "little")
    if stored == 0 and may_lack:
        return True
    for size in _HEADER_SIZES:
        found = extend(extend(value(headers[:32]), bytes(4)), headers[36:size])
        # A header has place for the words of 64 sectors; more headers count only as far as the record needs them.
        for number in range(1, -(-len(body) // _HEADER_DATA)):
            found = extend(found, headers[number * _SECTOR : number * _SECTOR + 260])
        if extend(found, body) == stored:
            return True
    return False


def _unpacked(headers: bytes, body: bytes) -> bytes:
    """The body with the first word of each sector back in its place, which the cycle took."""
    whole = bytearray(body)
    for sector in range(len(body) // _SECTOR):
        number, inside = divmod(sector, 64)
        at = number * _SECTOR + 4 + inside * 4 if number else 44 + inside * 4
        whole[sector * _SECTOR : sector * _SECTOR + 4] = headers[at : at + 4]
    return bytes(whole)


def _is_unmount(body: bytes) -> bool:
    """Whether the only operation of a record is an unmount; the kernel leaves its length at 0."""
    return len(body) >= 14 and bool(body[9] & _UNMOUNT) and body[12:14] == _UNMOUNT_BYTES


def _regions(record: _Record) -> list[bytes]:
    """What was logged, in order; a header of 16 bytes begins each transaction, and a description each item of it."""
    at, regions = 0, list[bytes]()
    for _ in range(record.operations):
        if at + 12 > len(record.body):
            raise _Dirty("its log is torn")
        length, _client, flags = struct.unpack_from(">IBB", record.body, at + 4)
        data = record.body[at + 12 : at + 12 + length]
        at += 12 + length
        if at > len(record.body) or flags & ~(_START | _COMMIT):
            raise _Dirty("its log holds changes that are not on disk yet")
        if data:
            regions.append(data)
    return regions


def _is_superblock(form: bytes, parts: list[bytes], geometry: Geometry) -> bool:
    """Whether a logged buffer is the superblock, and differs from that on disk in nothing but counters."""
    if len(form) < 24:
        return False
    flags, length, place, words = struct.unpack_from("<HHqI", form, 4)
    if flags & _CANCEL or place != 0 or length * _SECTOR != geometry.sector or len(form) < 20 + 4 * words:
        return False
    bits = int.from_bytes(form[20 : 20 + 4 * words], "little")
    chunks = [number for number in range(geometry.sector // _CHUNK) if bits >> number & 1]
    logged = b"".join(parts)
    if bits >> geometry.sector // _CHUNK or not chunks or len(logged) != len(chunks) * _CHUNK:
        return False
    after = bytearray(geometry.raw)
    for position, number in enumerate(chunks):
        after[number * _CHUNK : (number + 1) * _CHUNK] = logged[position * _CHUNK : (position + 1) * _CHUNK]
    for counters in COUNTERS:
        after[counters] = geometry.raw[counters]
    return bytes(after) == geometry.raw
