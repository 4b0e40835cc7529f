"""How is a layer put back into the state of its last checkpoint, after a crash left it in any?

Why that is sound. At a checkpoint's snapshot, under the writer's lock, every place given out so far is below the count
of clusters and has its L2 entry, or L1 entry, written: a place is chosen and written down under one hold of the lock.
The sync that follows makes all of it durable before the record that names the count.

After a crash an L2 entry has the value that it had then, or a later one. (Entries do not straddle sectors.) A place
once given to a cluster of the disk is never given to another, nor taken away. So

- an entry with a place below the count is right, and none of these is missing. Its data is what was written before the
  checkpoint, or over it since; of a call under way at the snapshot it may be missing, which nobody called complete;
- an entry with a place at or above the count was made after the snapshot. It and the file's end from the count on are
  dropped. Before, the cluster had no entry, or was zeros without a place; then it was written again since.

Every cluster below the count has exactly one owner, so none leaks; if the sum differs, the file is not the one that was
recorded. So it is if it ends before the data of a range that was called complete. The repair is durable before anything
is written anew, and when it is cut short it can be done again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from understudy.model.extent import Extent, intersect, merge, span
from understudy.storage.files import pwrite_all
from understudy.storage.qcow2.format import (
    CLUSTER,
    COPIED,
    ENTRIES_PER_TABLE,
    OFFSET_MASK,
    ZERO,
    first_clusters,
)
from understudy.storage.qcow2.journal import Recorded

_PART_ENTRIES = 512
_PART = struct.Struct(f">{_PART_ENTRIES}Q")


@dataclass(frozen=True)
class Reopened:
    """A layer file as it can be continued.

    :ivar clusters: its length in clusters.
    :ivar tables: place of each L2 table by L1 index.
    :ivar touched: ranges of the disk that have an L2 entry, or had one that was dropped; sorted and merged.
    """

    clusters: int
    tables: Mapping[int, int]
    touched: tuple[Extent, ...]


@dataclass
class _Scan:
    """What the L2 tables say.

    :ivar owners: clusters of the file that have an owner.
    :ivar dropped: where in the file the entries are that must go.
    :ivar rewritten: ranges of the disk that these entries are for.
    :ivar missing: ranges of the disk whose data would lie behind the end of the file, at ``length``.
    """

    owners: int
    length: int
    touched: list[Extent] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    rewritten: list[Extent] = field(default_factory=list)
    missing: list[Extent] = field(default_factory=list)


def reopen(path: Path, recorded: Recorded) -> Reopened | None:
    """Put the layer file ``path`` into the state of its last checkpoint, durably.

    None, and its content is left as it is, if the file is missing, is not the one that the journal tells of, or was
    written to where it had been called complete.

    :raises OSError: if it cannot be read or written.
    """
    try:
        path.chmod(0o600)  # it may have been on the way to be published
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        scan = _scan(fd, recorded)
        doubtful = [*merge(scan.rewritten), *merge(scan.missing)]
        doubtful = merge(sorted(doubtful, key=lambda item: item.start))
        if scan.owners != recorded.clusters or intersect(doubtful, recorded.complete):
            return None
        pwrite_all(fd, bytes(CLUSTER), 0)  # no header: the layer may have been finished after the checkpoint
        for place in scan.dropped:
            pwrite_all(fd, bytes(8), place)
        os.ftruncate(fd, recorded.clusters * CLUSTER)
        os.fsync(fd)
    finally:
        os.close(fd)
    return Reopened(recorded.clusters, recorded.tables, tuple(scan.touched))


def _scan(fd: int, recorded: Recorded) -> _Scan:
    size = recorded.header.size
    lowest = COPIED | first_clusters(size) * CLUSTER
    limit = COPIED | recorded.clusters * CLUSTER
    scan = _Scan(first_clusters(size) + len(recorded.tables), os.fstat(fd).st_size)
    # Behind it each entry is looked at by itself.
    whole = min(limit, COPIED | scan.length // CLUSTER * CLUSTER)
    for index, place in sorted(recorded.tables.items()):
        raw = os.pread(fd, CLUSTER, place).ljust(CLUSTER, b"\0")
        for at in range(0, CLUSTER, _PART.size):
            part = raw[at:at + _PART.size]
            start = (index * ENTRIES_PER_TABLE + at // 8) * CLUSTER
            if _is_full(part, lowest, whole) and start + _PART_ENTRIES * CLUSTER <= size:
                scan.owners += _PART_ENTRIES
                scan.touched.append(Extent(start, _PART_ENTRIES * CLUSTER))
            elif part.count(0) != len(part):
                _scan_part(scan, part, (lowest, limit), place + at, start, size)
    scan.touched = merge(scan.touched)
    return scan


def _is_full(part: bytes, lowest: int, limit: int) -> bool:
    """Whether every entry has a place that counts; at the speed of C, for most parts of a large disk are so."""
    low, flags = part[6::8], part[7::8]
    if low.count(0) != len(low) or flags.count(0) + flags.count(ZERO) != len(flags):
        return False
    entries: tuple[int, ...] = _PART.unpack(part)
    return lowest <= min(entries) and max(entries) < limit


def _scan_part(scan: _Scan, part: bytes, bounds: tuple[int, int], place: int, base: int, size: int) -> None:
    lowest, limit = bounds
    touched, rewritten, missing = [], [], []
    for number, entry in enumerate(_PART.unpack(part)):
        if not entry:
            continue
        start = base + number * CLUSTER
        inside = start < size
        if inside:
            touched.append(span(start, min(start + CLUSTER, size)))
        if inside and lowest <= entry < limit and entry & (CLUSTER - 1) <= ZERO:
            scan.owners += 1
            if not entry & ZERO and (entry & OFFSET_MASK) + touched[-1].length > scan.length:
                missing.append(touched[-1])
        elif entry != ZERO or not inside:
            scan.dropped.append(place + number * 8)
            rewritten += touched[-1:] if inside else []
    scan.touched += merge(touched)
    scan.rewritten += merge(rewritten)
    scan.missing += merge(missing)
