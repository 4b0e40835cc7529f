"""How is a layer written? An append-only qcow2 writer at the speed of plain writes.

Clusters are appended as they come. Kept in memory is the L1 table alone (8 bytes for each 512 MiB of disk); L2 entries
live in the file. The header is written last: until :meth:`Qcow2LayerWriter.finish` returned, the file is no valid
image. What a crash leaves is told by the journal; see :mod:`understudy.storage.qcow2.reopen` for why that is sound.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from understudy.errors import DatastoreError, ReplicaError
from understudy.faults import fault_point
from understudy.model.extent import Extent, merge
from understudy.storage import Buffer
from understudy.storage.files import datastore_error, datastore_errors, pwrite_all
from understudy.storage.qcow2.format import (
    CLUSTER,
    COPIED,
    ENTRIES_PER_TABLE,
    OFFSET_MASK,
    REFCOUNTS_PER_BLOCK,
    SECTOR,
    ZERO,
    build_header,
    first_clusters,
    l1_entries,
)
from understudy.storage.qcow2.journal import Journal
from understudy.storage.qcow2.reopen import Reopened

_ZERO_ENTRY = ZERO.to_bytes(8, "big")


class Qcow2LayerWriter:
    """Writes one new layer file; a :class:`understudy.storage.LayerWriter`.

    The lock covers the choice of places and the L2 entries; data is written outside it, so that threads overlap. Of
    two calls for the same cluster at the same time it is undefined which one wins.

    :param path: the file to make; it must not exist, unless it was reopened.
    :param size: virtual size in bytes, a multiple of 512.
    :param backing: name of the layer below, relative to the file's directory, or empty.
    :param journal: where checkpoints are recorded; this object closes it.
    :param reopened: the state of the file that is continued.
    """

    def __init__(self, path: Path, size: int, backing: str = "", *, journal: Journal | None = None,
                 reopened: Reopened | None = None) -> None:
        if size <= 0 or size % SECTOR:
            raise ReplicaError(f"layer {path}", f"a disk of {size} bytes cannot be kept: no multiple of {SECTOR}")
        self._path = path
        self._size = size
        self._backing = backing
        self._lock = threading.Lock()
        self._journal = journal
        self._l1 = array("Q", bytes(8 * l1_entries(size)))
        self._clusters = first_clusters(size)
        if reopened is not None:
            self._clusters = reopened.clusters
            for index, place in reopened.tables.items():
                self._l1[index] = place
        self._new_tables: dict[int, int] = {}
        self._changed = False
        self._writing = 0
        self._state = "open"
        self._cause = ""
        with datastore_errors(f"make layer {path}"):
            self._fd = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if reopened is None else 0), 0o600)

    @property
    def finished(self) -> bool:
        """Whether the layer is complete and durable."""
        return self._state == "finished"

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset``; see :class:`understudy.storage.LayerWriter`."""
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        with self._call():
            for host, start, end in self._places(offset // CLUSTER, len(view)):
                pwrite_all(self._fd, view[start:end], host)
            self._changed = True

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; see :class:`understudy.storage.LayerWriter`."""
        self._check_range(offset, length)
        with self._call():
            for table, first, count in _tables(offset // CLUSTER, _clusters(length)):
                with self._lock:
                    try:
                        self._zero_entries(table, first, count)
                    except BaseException as exc:
                        self._fail(exc)
                        raise
            self._changed = True

    def checkpoint(self, complete: Sequence[Extent]) -> None:
        """Make durable, and record, what was written; see :class:`understudy.storage.LayerWriter`."""
        if self._journal is None:
            raise ReplicaError(f"layer {self._path}", "it has no journal")
        ranges = merge(sorted(complete, key=lambda item: item.start))
        if ranges and (ranges[0].start < 0 or ranges[-1].end > self._size):
            raise ReplicaError(f"layer {self._path}", f"a complete range is outside the disk of {self._size}")
        with self._call():
            with self._lock:
                if not self._changed and not ranges:
                    return
                self._changed = False
                clusters, tables = self._clusters, self._new_tables
                self._new_tables = {}
            fault_point("checkpoint.begun")
            os.fdatasync(self._fd)
            fault_point("checkpoint.synced")
            self._journal.append(clusters, tables, ranges)
            fault_point("checkpoint.recorded")

    def finish(self) -> None:
        """Complete the file: counts and tables, durable, then the header, durable.

        :raises ReplicaError: if it was finished or closed before, or a write is still under way.
        :raises DatastoreError: if a write failed before, or now.
        """
        with self._lock:
            self._check_open()
            if self._writing:
                raise ReplicaError(f"finish layer {self._path}", "a write is still under way")
            self._state = "closed"
        try:
            with datastore_errors(f"finish layer {self._path}"):
                self._write_tables()
        finally:
            self._close_files()
        self._state = "finished"

    def close(self) -> None:
        """Give the file up as it is; nothing happens if it was finished or closed."""
        with self._lock:
            if self._state in ("open", "failed"):
                self._state = "abandoned"
                self._close_when_idle()

    def _close_when_idle(self) -> None:
        """Close once no thread writes: else the number could be another file's when its write begins."""
        if self._state == "abandoned" and not self._writing:
            self._state = "closed"
            self._close_files()

    def _close_files(self) -> None:
        os.close(self._fd)
        if self._journal is not None:
            self._journal.close()

    def _check_range(self, offset: int, length: int) -> None:
        end = offset + length
        if offset < 0 or length < 0 or end > self._size:
            raise ReplicaError(f"layer {self._path}", f"bytes {offset} to {end} are outside the disk of {self._size}")
        if offset % CLUSTER or (end % CLUSTER and end != self._size):
            raise ReplicaError(f"layer {self._path}", f"bytes {offset} to {end} are not whole clusters of {CLUSTER}")

    def _check_open(self) -> None:
        if self._state == "failed":
            raise DatastoreError(f"layer {self._path}", f"an earlier write to it failed{self._cause}")
        if self._state != "open":
            raise ReplicaError(f"layer {self._path}", "it was finished or closed already")

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Count the calls under way; after a failed one the layer can never be finished."""
        with self._lock:
            self._check_open()
            self._writing += 1
        try:
            yield
        except BaseException as exc:
            with self._lock:
                self._fail(exc)
            if isinstance(exc, OSError):
                raise datastore_error(f"write layer {self._path}", exc) from exc
            raise
        finally:
            with self._lock:
                self._writing -= 1
                self._close_when_idle()

    def _places(self, first: int, length: int) -> list[tuple[int, int, int]]:
        """Map the clusters from ``first`` on; pieces ``(file offset, start, end)`` of the ``length`` bytes to write."""
        parts = list(_tables(first, _clusters(length)))
        with self._lock:
            try:
                for table, _, _ in parts:  # before the data, so that its clusters are contiguous
                    self._table(table)
                hosts = [host for table, index, count in parts for host in self._map(table, index, count)]
            except BaseException as exc:
                self._fail(exc)
                raise
        return _pieces(hosts, length)

    def _fail(self, cause: BaseException) -> None:
        """Note a failure before the lock is given back, so that no checkpoint sees half of what was to be mapped.

        Its cause is kept for the other threads: theirs may be the error that the operator sees.
        """
        if self._state == "open":
            self._state = "failed"
            what = f"layer {self._path}"
            self._cause = f": {datastore_error(what, cause).why}" if isinstance(cause, OSError) else ""

    def _map(self, table: int, index: int, count: int) -> list[int]:
        """Give each of ``count`` clusters a place and an entry that says so; the places, in order."""
        old = self._read_entries(table, index, count)
        hosts = [entry & OFFSET_MASK or self._append() for entry in old]
        new = tuple(host | COPIED for host in hosts)
        if new != old:
            pwrite_all(self._fd, struct.pack(f">{count}Q", *new), self._l1[table] + index * 8)
        return hosts

    def _zero_entries(self, table: int, index: int, count: int) -> None:
        if not self._l1[table]:
            if not self._backing:
                return  # without a layer below, what is not mapped reads as zeros
            new = _ZERO_ENTRY * count
            self._table(table)
        else:
            unmapped = ZERO if self._backing else 0
            old = self._read_entries(table, index, count)
            # A place once taken is kept below the zero flag: giving it back would need counts in memory.
            new = struct.pack(f">{count}Q", *(entry | ZERO if entry else unmapped for entry in old))
        pwrite_all(self._fd, new, self._l1[table] + index * 8)

    def _read_entries(self, table: int, index: int, count: int) -> tuple[int, ...]:
        raw = os.pread(self._fd, count * 8, self._l1[table] + index * 8)
        return struct.unpack(f">{count}Q", raw.ljust(count * 8, b"\0"))  # the file may not reach the table's end yet

    def _table(self, index: int) -> None:
        """Have an L2 table for the L1 entry ``index``; without holes, see :meth:`_write_tables`."""
        if not self._l1[index]:
            place = self._append()
            pwrite_all(self._fd, bytes(CLUSTER), place)
            self._l1[index] = place
            self._new_tables[index] = place

    def _append(self) -> int:
        """The file offset of a new cluster; it reads as zeros, for nothing was ever written there."""
        self._clusters += 1
        return (self._clusters - 1) * CLUSTER

    def _write_tables(self) -> None:
        """Write counts, their table, the L1 table and at last the header.

        No table has holes: a later merge into this file must not run out of space in the middle of changing one.
        """
        blocks_at = self._clusters
        blocks, table = _refcount_clusters(blocks_at)
        total = blocks_at + blocks + table
        os.ftruncate(self._fd, total * CLUSTER)
        for block in range(blocks):
            count = min(REFCOUNTS_PER_BLOCK, total - block * REFCOUNTS_PER_BLOCK)
            pwrite_all(self._fd, (b"\0\1" * count).ljust(CLUSTER, b"\0"), (blocks_at + block) * CLUSTER)
        offsets = array("Q", ((blocks_at + block) * CLUSTER for block in range(blocks)))
        pwrite_all(self._fd, _big_endian(offsets).ljust(table * CLUSTER, b"\0"), (blocks_at + blocks) * CLUSTER)
        pwrite_all(self._fd, _big_endian(array("Q", (offset and offset | COPIED for offset in self._l1))), CLUSTER)
        os.fsync(self._fd)
        header = build_header(self._size, self._backing, CLUSTER, (blocks_at + blocks) * CLUSTER, table)
        pwrite_all(self._fd, header, 0)
        os.fsync(self._fd)


def _clusters(length: int) -> int:
    return -(-length // CLUSTER)


def _tables(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut guest clusters into ``(L1 index, first entry, number of entries)``."""
    while count:
        table, index = divmod(first, ENTRIES_PER_TABLE)
        part = min(count, ENTRIES_PER_TABLE - index)
        yield table, index, part
        first += part
        count -= part


def _pieces(hosts: list[int], length: int) -> list[tuple[int, int, int]]:
    """Pieces ``(file offset, start, end)`` of ``length`` bytes whose clusters have these places."""
    pieces: list[tuple[int, int, int]] = []
    done = 0
    for host in hosts:
        end = min(done + CLUSTER, length)
        if pieces and pieces[-1][0] + (done - pieces[-1][1]) == host:
            pieces[-1] = (pieces[-1][0], pieces[-1][1], end)
        else:
            pieces.append((host, done, end))
        done = end
    return pieces


def _refcount_clusters(used: int) -> tuple[int, int]:
    """Clusters for refcount blocks and the refcount table that count ``used`` clusters and themselves."""
    blocks = table = 0
    while True:
        wanted = -(-(used + blocks + table) // REFCOUNTS_PER_BLOCK)
        if wanted == blocks:
            return blocks, table
        blocks, table = wanted, _clusters(wanted * 8)


def _big_endian(values: array[int]) -> bytes:
    if sys.byteorder == "little":
        values = array("Q", values)
        values.byteswap()
    return values.tobytes()
