"""What of a layer in the making is durable, and what may be said of it after a crash?

The journal beside the layer is a row of records, each ``length of body | body | XXH3-64 of both``. A checksum is seeded
with that of the record before, so that no record counts in another place or another journal. The first record is the
header, in JSON: what the layer was begun as. Every other one is a checkpoint: how many clusters the layer had, the L2
tables new since the record before, and the ranges of the disk that the caller calls complete. It is written after what
it tells is durable, and only for the point named in the header: a draft that takes a layer over begins a new journal.

Reading ends without an error at the first record that is cut or damaged: what follows was never confirmed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from understudy.errors import ReplicaError
from understudy.model.extent import Extent, merge
from understudy.storage.files import pwrite_all
from understudy.storage.qcow2.format import CLUSTER, SECTOR, first_clusters, l1_entries
from understudy.storage.qcow2.names import Place
from understudy.storage.records.fields import Fields, Malformed, parse_object
from understudy.storage.records.place import check_point_id

FORMAT = 1

_LENGTH = struct.Struct(">I")
_CHECK = struct.Struct(">Q")
_COUNTS = struct.Struct(">QII")
_PAIR = struct.Struct(">QQ")


@dataclass(frozen=True)
class JournalHeader:
    """What a layer was begun as.

    :ivar point: id of the restore point that it was begun, or taken over, for.
    :ivar size: of the disk.
    :ivar backing: name of the layer below, or empty if it stands alone.
    :ivar mark: see :class:`understudy.storage.values.NewDisk`.
    """

    point: str
    size: int
    backing: str
    mark: str


@dataclass(frozen=True)
class Recorded:
    """What a journal says.

    :ivar clusters: of the layer file at the last checkpoint.
    :ivar tables: place in the layer file of each L2 table then, by L1 index.
    :ivar complete: ranges of the disk that were called complete, sorted and merged.
    :ivar end: first byte of the journal behind its last good record.
    :ivar checksum: of that record.
    """

    header: JournalHeader
    clusters: int
    tables: Mapping[int, int]
    complete: tuple[Extent, ...]
    end: int
    checksum: int


class Journal:
    """A journal open for appending, by one thread at a time.

    Its methods raise OSError; after one in :meth:`append` it is unknown whether the record counts, and no other may
    follow.
    """

    def __init__(self, fd: int, end: int, checksum: int) -> None:
        self._fd = fd
        self._end = end
        self._checksum = checksum

    @classmethod
    def begin(cls, path: Path, header: JournalHeader) -> Journal:
        """Make the journal ``path``, which must not exist; the header becomes durable with the first record."""
        journal = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), 0, 0)
        try:
            journal._write(json.dumps({"format": FORMAT} | asdict(header)).encode())
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def resume(cls, path: Path, recorded: Recorded) -> Journal:
        """Go on with the journal ``path`` behind what was read of it; the rest is cut off, durably."""
        journal = cls(os.open(path, os.O_RDWR), recorded.end, recorded.checksum)
        try:
            os.ftruncate(journal._fd, recorded.end)
            os.fsync(journal._fd)
        except BaseException:
            journal.close()
            raise
        return journal

    def append(self, clusters: int, tables: Mapping[int, int], complete: Iterable[Extent]) -> None:
        """Record a checkpoint, durably.

        :param tables: those new since the last record.
        :param complete: sorted and merged; those recorded before stay complete.
        """
        ranges = [(item.start, item.length) for item in complete]
        pairs = b"".join(_PAIR.pack(*pair) for pair in (*sorted(tables.items()), *ranges))
        self._write(_COUNTS.pack(clusters, len(tables), len(ranges)) + pairs)
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, body: bytes) -> None:
        record = _LENGTH.pack(len(body)) + body
        self._checksum = xxhash.xxh3_64_intdigest(record, seed=self._checksum)
        record += _CHECK.pack(self._checksum)
        pwrite_all(self._fd, record, self._end)
        self._end += len(record)


def read_journal(path: Path) -> Recorded | None:
    """What the journal says up to its last good record; None if there is none, or its header is not good.

    :raises OSError: if it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    record = _record(data, 0, 0)
    header = None if record is None else _header(record[0])
    if record is None or header is None:
        return None
    state = _State(header)
    _, end, checksum = record
    while (record := _record(data, end, checksum)) is not None and state.take(record[0]):
        _, end, checksum = record
    complete = merge(sorted(state.complete, key=lambda item: item.start))
    return Recorded(header, state.clusters, state.tables, tuple(complete), end, checksum)


def _record(data: bytes, start: int, seed: int) -> tuple[bytes, int, int] | None:
    """Body, end and checksum of the record at ``start``; None if it is cut or damaged."""
    if len(data) - start < _LENGTH.size:
        return None
    body_end = start + _LENGTH.size + _LENGTH.unpack_from(data, start)[0]
    if len(data) < body_end + _CHECK.size:
        return None
    checksum = xxhash.xxh3_64_intdigest(memoryview(data)[start:body_end], seed=seed)
    if _CHECK.unpack_from(data, body_end)[0] != checksum:
        return None
    return data[start + _LENGTH.size:body_end], body_end + _CHECK.size, checksum


def _header(body: bytes) -> JournalHeader | None:
    try:
        fields = Fields("header", parse_object(body))
        form = fields.number("format", 1)
        if form != FORMAT:
            return None
        header = JournalHeader(
            fields.text("point"), fields.number("size", SECTOR, SECTOR),
            fields.text("backing", lambda name: not name or Place.is_layer(name)), fields.text("mark"))
        fields.end()
        check_point_id(header.point)
    except (Malformed, ReplicaError):
        return None
    return header


class _State:
    """What the records read so far say together."""

    def __init__(self, header: JournalHeader) -> None:
        self._size = header.size
        self.clusters = first_clusters(header.size)
        self.tables: dict[int, int] = {}
        self.complete: list[Extent] = []

    def take(self, body: bytes) -> bool:
        """Add a record; False, and nothing is added, if it cannot be true."""
        if len(body) < _COUNTS.size:
            return False
        clusters, tables, ranges = _COUNTS.unpack_from(body)
        if len(body) != _COUNTS.size + (tables + ranges) * _PAIR.size or clusters < self.clusters:
            return False
        pairs = list(_PAIR.iter_unpack(body[_COUNTS.size:]))
        complete = [Extent(start, length) for start, length in pairs[tables:]]
        if not all(self._is_table(index, place, clusters) for index, place in pairs[:tables]):
            return False
        if not all(item.length and item.end <= self._size for item in complete):
            return False
        self.clusters = clusters
        self.tables.update(pairs[:tables])
        self.complete += complete
        return True

    def _is_table(self, index: int, place: int, clusters: int) -> bool:
        """Whether a new L2 table can be there: appended since the record before."""
        return (index < l1_entries(self._size) and index not in self.tables
                and place % CLUSTER == 0 and self.clusters <= place // CLUSTER < clusters)
