"""Which restore points read the same cluster of the same layer? By the tables of the layers.

A cluster is read from the topmost layer, at or below that of the point, whose table has an entry for it. A block that
is damaged in one point is damaged in every other that reads one of its clusters from the same layer: which of its
clusters the damage is in, a digest does not tell. A layer whose tables cannot be read counts as having every cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from understudy.errors import UnderstudyError
from understudy.model.extent import Extent, by_block, clip, merge, round_out, total, unite
from understudy.model.health import DiskHealth
from understudy.model.replica import RestorePoint
from understudy.storage.qcow2.chains import chain
from understudy.storage.qcow2.format import CLUSTER, ENTRIES_PER_TABLE, OFFSET_MASK, read_header
from understudy.storage.qcow2.manifest import Record
from understudy.storage.qcow2.names import Place
from understudy.storage.records.health import Known
from understudy.units import block_count

#: With more bad blocks than that, points that have a layer in common are taken to share all of them.
EXACT_BLOCKS = 2000


def spread(place: Place, record: Record, known: Known) -> Known:
    """``known``, and what is damaged in one point also at every other that reads it.

    What a point's own pass has found good since does not become bad.
    """
    found = dict(known)
    for disk in sorted({item.disk for item in known.values() if item.bad}):
        with _Chains(place, record, disk) as chains:
            for item in [item for item in known.values() if item.disk == disk and item.bad]:
                for point in record.replica.points:
                    _spread(chains, record.replica.point(item.point), item, point, found)
    return found


def _spread(chains: _Chains, origin: RestorePoint, item: DiskHealth, point: RestorePoint, found: Known) -> None:
    part, own = point.disk(item.disk), found.get((point.id, item.disk)) or DiskHealth(point.id, item.disk)
    if point is origin or part is None or _knows_better(own, item):
        return
    ranges = clip(chains.shared(origin, item.bad, point), 0, part.size)
    bad = unite(own.bad, round_out(ranges, point.block_size, part.size))
    if tuple(bad) != own.bad:
        found[point.id, item.disk] = replace(
            own, bad=tuple(bad), bad_blocks=_blocks(bad, point.block_size), found_at=max(own.found_at, item.found_at))


def _knows_better(own: DiskHealth, item: DiskHealth) -> bool:
    """Whether a pass over the disk itself, by digests of what the source had, ended after the damage was found."""
    return own.verified_at > item.found_at and not own.digests_recomputed_at


def _blocks(ranges: Sequence[Extent], block_size: int) -> int:
    return sum(block_count(item.length, block_size) for item in ranges)


class _Chains:
    """The chains of one disk's layers; a context manager that closes them."""

    def __init__(self, place: Place, record: Record, disk: str) -> None:
        self._place = place
        self._record = record
        self._disk = disk
        self._held = ExitStack()
        self._maps: dict[str, _LayerMap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._held.close()

    def shared(self, left: RestorePoint, ranges: Sequence[Extent], right: RestorePoint) -> list[Extent]:
        """What of ``ranges``, whole blocks of ``left``, the other point reads, if only in part, from the same layer."""
        one, other = self._chain(left), self._chain(right)
        if not {layer.name for layer in one} & {layer.name for layer in other}:
            return []
        if total(ranges) > EXACT_BLOCKS * left.block_size:
            return list(ranges)
        return merge(Extent(pieces[0].start, pieces[-1].end - pieces[0].start)
                     for _, pieces in by_block(ranges, left.block_size) if _same(one, other, pieces))

    def _chain(self, point: RestorePoint) -> list[_LayerMap]:
        names = [layer.file for layer in chain(self._record.replica, self._record.merging, point, self._disk)]
        for name in names:
            if name not in self._maps:
                self._maps[name] = _LayerMap(self._place, name, self._held)
        return [self._maps[name] for name in names]


def _same(one: list[_LayerMap], other: list[_LayerMap], pieces: Sequence[Extent]) -> bool:
    """Whether a cluster of a block comes from the same layer in both chains; one that no layer has does not count.

    Unless no layer has any: then a table lost its entries, and who misses the same ones is affected too.
    """
    pairs = [(_owner(one, cluster), _owner(other, cluster)) for piece in pieces for cluster in _clusters(piece)]
    if not any(left for left, _ in pairs):
        return any(not right for _, right in pairs)
    return any(left and left == right for left, right in pairs)


def _clusters(piece: Extent) -> Iterator[int]:
    yield from range(piece.start // CLUSTER, block_count(piece.end, CLUSTER))


def _owner(layers: list[_LayerMap], cluster: int) -> str:
    return next((layer.name for layer in layers if layer.has(cluster)), "")


class _LayerMap:
    """Tells which clusters a layer has, even if only as zeros."""

    def __init__(self, place: Place, name: str, held: ExitStack) -> None:
        self.name = name
        self._table: tuple[int, bytes] = (-1, b"")
        self._l1: bytes | None = None
        path = place.layers / name
        try:
            header = read_header(path)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, self._fd)
            self._l1 = os.pread(self._fd, header.l1_entries * 8, header.l1_offset)
        except (UnderstudyError, OSError):
            self._l1 = None  # the cheap check of the point says what is wrong with it

    def has(self, cluster: int) -> bool:
        if self._l1 is None:
            return True
        number, entry = divmod(cluster, ENTRIES_PER_TABLE)
        place = int.from_bytes(self._l1[number * 8:number * 8 + 8], "big") & OFFSET_MASK
        if not place:
            return False
        if self._table[0] != place:
            try:
                self._table = place, os.pread(self._fd, CLUSTER, place)
            except OSError:
                self._table = place, b"\xff" * CLUSTER
        return any(self._table[1][entry * 8:entry * 8 + 8])
