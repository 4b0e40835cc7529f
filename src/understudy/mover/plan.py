"""Plan: which blocks of a disk are read, which are known to be zero, which are left alone; in windows (S12).

The items of a plan tile the disk from start to end: every byte is read, zero, or skipped, and is counted once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.model import extent
from understudy.model.extent import PART, Extent, clip, having, round_in, round_out
from understudy.model.transfer import TransferMode
from understudy.mover.base import BaseDigests
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import GIB, block_count

WINDOW = GIB


@dataclass(frozen=True, slots=True)
class ReadBlock:
    """Read a whole block; at most ``wanted``, ranges at 64 KiB borders, need to travel."""

    block: Extent
    index: int
    wanted: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class ZeroRun:
    """Whole blocks that are known to be zero without reading and must become zero on the target."""

    run: Extent


@dataclass(frozen=True, slots=True)
class Skipped:
    """Bytes that need nothing: unchanged, or zero in a layer that reads as zero anyway."""

    unchanged: int
    zero: int


Item = ReadBlock | ZeroRun | Skipped


class StatusSource(Protocol):
    """Who tells block status: an NBD connection."""

    def has(self, context: str) -> bool:
        """Whether the context can be asked for."""

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """See :meth:`understudy.nbd.NbdClient.statuses`."""


@dataclass(frozen=True)
class PlanSpec:
    """What to plan.

    :ivar dirty_context: used by incremental mode alone.
    :ivar write_zeros: zeros must be written, because a layer below may have data there (S6).
    """

    size: int
    block_size: int
    mode: TransferMode
    write_zeros: bool
    dirty_context: str = ""


class Plan:
    """The items of one disk, to be taken by several threads; block status is asked for as they go."""

    def __init__(self, spec: PlanSpec, source: StatusSource, base: BaseDigests) -> None:
        self._lock = threading.Lock()
        self._items = plan_disk(spec, source, base)
        self.block_size = spec.block_size
        self._size = spec.size
        self._exhausted = False
        self._covered = 0
        self._blocks = 0

    def take(self) -> Item | None:
        """The next item, None at the end. Errors of the source come out here."""
        with self._lock:
            item = next(self._items, None)
            if item is None:
                self._exhausted = True
                return None
            if isinstance(item, Skipped):
                self._covered += item.unchanged + item.zero
            else:
                done = item.block if isinstance(item, ReadBlock) else item.run
                self._covered += done.length
                self._blocks += block_count(done.length, self.block_size)
            return item

    def imbalance(self, blocks: int, processed: int) -> str:
        """Why the completed work is not the planned work, or an empty string."""
        if not self._exhausted or self._covered != self._size:
            return f"only {self._covered} of {self._size} bytes were planned"
        if blocks != self._blocks or processed != self._size:
            return f"{blocks} of {self._blocks} blocks, {processed} of {self._size} bytes were completed"
        return ""


def plan_disk(spec: PlanSpec, source: StatusSource, base: BaseDigests) -> Iterator[Item]:
    """The items of the whole disk, in order."""
    position = 0
    while position < spec.size:
        length = min(WINDOW, spec.size - position)
        known, statuses = source.statuses(position, length, min(spec.block_size, length))
        end = position + known
        if end < spec.size:
            # Whole blocks only: what is known of the block behind is asked again with the next window.
            end = end // spec.block_size * spec.block_size
        yield from plan_window(spec, Extent(position, end - position), statuses, base)
        position = end


def plan_window(
    spec: PlanSpec, window: Extent, statuses: dict[str, list[Extent]], base: BaseDigests
) -> Iterator[Item]:
    """The items of one window, which starts at a block border and ends at one or with the disk."""
    wanted = [window]
    if spec.mode is TransferMode.INCREMENTAL:
        dirty = clip(having(statuses[spec.dirty_context], DIRTY_FLAG), window.start, window.end)
        wanted = round_out(dirty, PART, spec.size)
    zeros = round_in(clip(having(statuses.get(ALLOCATION, []), ZERO_FLAG), window.start, window.end),
                     spec.block_size, spec.size)
    touched = round_out(wanted, spec.block_size, spec.size)
    zero_runs = extent.intersect(touched, zeros)
    written = _zeros_to_write(spec, zero_runs, base)
    for run in written:
        yield ZeroRun(run)
    for index, parts in extent.by_block(extent.subtract(wanted, zero_runs), spec.block_size):
        start = index * spec.block_size
        yield ReadBlock(Extent(start, min(spec.block_size, spec.size - start)), index, parts)
    yield Skipped(unchanged=window.length - extent.total(touched), zero=extent.total(zero_runs) - extent.total(written))


def _zeros_to_write(spec: PlanSpec, runs: Sequence[Extent], base: BaseDigests) -> list[Extent]:
    if not spec.write_zeros:
        return []
    if spec.mode is TransferMode.DIGEST_SCAN:
        return [part for run in runs for part in base.nonzero(run)]
    return list(runs)
