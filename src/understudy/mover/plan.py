"""Plan: which blocks of a disk are read, which are known to be zero, which are left alone; in windows (S12).

The items of a plan tile the disk from start to end: every byte is read, zero, or skipped, and is counted once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.model import extent
from understudy.model.extent import PART, Extent, clip, having, round_in, round_out
from understudy.model.transfer import TransferMode
from understudy.mover.base import BaseDigests
from understudy.mover.meter import Counters
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import GIB

WINDOW = GIB
#: The dirty map alone is told much faster than what is allocated. A request must stay below 4 GiB.
DIRTY_WINDOW = 3 * GIB
#: In an incremental, runs of so many changed blocks are looked at for zeros before they are read: trim makes long ones.
#: For shorter ones reading costs less than asking, for a server may have to look into the image's file for each answer.
LONG_RUN_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class ReadBlock:
    """Read a whole block; at most ``wanted``, ranges at 64 KiB borders, need to travel.

    :ivar kept: the layer has something there already, from an earlier attempt.
    :ivar vague: which of its parts may have changed is not known: if its digest differs, that is to be found out.
    """

    block: Extent
    index: int
    wanted: tuple[Extent, ...]
    kept: bool = False
    vague: bool = False


@dataclass(frozen=True, slots=True)
class ZeroRun:
    """Whole blocks that are known to be zero without reading and must become zero on the target."""

    run: Extent


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Everything else is complete: say so to the other side."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Bytes that need nothing: unchanged, or zero in a layer that reads as zero anyway."""

    unchanged: int
    zero: int


Work = ReadBlock | ZeroRun | Conclusion
Item = Work | Skipped


class StatusSource(Protocol):
    """Who tells block status: an export."""

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """Block status from ``start``: of the dirty map if the export is read incrementally, else of what is allocated.

        See :meth:`understudy.nbd.NbdClient.statuses`.
        """

    def allocation(self, run: Extent) -> list[Extent]:
        """Block status of what is allocated in exactly ``run``, which is shorter than 4 GiB."""


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
    """The items of one disk, to be taken by several threads; block status is asked for as they go.

    What was taken is done, or given back to be taken again, for example when the connection on which it went is lost.

    :param counters: get what is complete; for this plan alone.
    :param concluded: the last item is a :class:`Conclusion`, given out when all others are done.
    """

    def __init__(
        self, spec: PlanSpec, source: StatusSource, base: BaseDigests, counters: Counters, *, concluded: bool = False
    ) -> None:
        self._changed = threading.Condition()
        self._items = plan_disk(spec, source, base)
        self._returned: deque[Work] = deque()
        self.block_size = spec.block_size
        self._size = spec.size
        self._counters = counters
        self._to_conclude = concluded
        self._exhausted = False
        self._covered = 0
        self._open = 0

    def take(self) -> Item | None:
        """The next item; None if there is none now. Errors of the source come out here."""
        with self._changed:
            if self._returned:
                return self._returned.popleft()
            item = None if self._exhausted else next(self._items, None)
            if item is None:
                self._exhausted = True
                item = self._conclusion()
            if isinstance(item, Skipped):
                self._covered += item.unchanged + item.zero
                self._counters.processed += item.unchanged + item.zero
                self._counters.zero += item.zero
            elif item is not None:
                self._covered += _length(item)
                self._open += 1
            return item

    def _conclusion(self) -> Conclusion | None:
        # When asking for block status failed, the rest of the disk was never planned.
        if not self._to_conclude or self._open or self._covered != self._size:
            return None
        self._to_conclude = False
        return Conclusion()

    def done(self, items: Iterable[Work]) -> None:
        """These items, taken before, are complete."""
        with self._changed:
            for item in items:
                self._open -= 1
                self._counters.processed += _length(item)
                if isinstance(item, ZeroRun):
                    self._counters.zero += item.run.length
            self._changed.notify_all()

    def give_back(self, items: Iterable[Work]) -> None:
        """These items, taken before, must be taken again."""
        with self._changed:
            self._returned.extend(items)
            self._changed.notify_all()

    def finish(self) -> None:
        """The other side has everything: the conclusion, the last that was taken, is done."""
        with self._changed:
            self._returned.clear()
            self._open = 0
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Whether everything is complete."""
        with self._changed:
            return self._exhausted and not self._open and not self._to_conclude

    def wait(self, timeout_s: float) -> None:
        """Wait until an item was done or given back."""
        with self._changed:
            if not self._returned and not (self._exhausted and not self._open):
                self._changed.wait(timeout_s)

    def imbalance(self) -> str:
        """Why the completed work is not the whole disk, or an empty string."""
        if not self._exhausted or self._covered != self._size:
            return f"only {self._covered} of {self._size} bytes were planned"
        if self._open or self._counters.processed != self._size:
            return f"{self._counters.processed} of {self._size} bytes were completed"
        return ""


def _length(item: Work) -> int:
    match item:
        case ReadBlock():
            return item.block.length
        case ZeroRun():
            return item.run.length
        case Conclusion():
            return 0


def plan_disk(spec: PlanSpec, source: StatusSource, base: BaseDigests) -> Iterator[Item]:
    """The items of the whole disk, in order."""
    position = 0
    window = DIRTY_WINDOW if spec.mode is TransferMode.INCREMENTAL else WINDOW
    while position < spec.size:
        length = min(window, spec.size - position)
        known, statuses = source.statuses(position, length, min(spec.block_size, length))
        end = position + known
        if end < spec.size:
            # Whole blocks only: what is known of the block behind is asked again with the next window.
            end = end // spec.block_size * spec.block_size
        yield from _plan_window(spec, Extent(position, end - position), statuses, source, base)
        position = end


def _plan_window(
    spec: PlanSpec, window: Extent, statuses: dict[str, list[Extent]], source: StatusSource, base: BaseDigests
) -> Iterator[Item]:
    """The items of one window, which starts at a block border and ends at one or with the disk."""
    kept = base.kept(window)
    wanted = [window]
    if spec.mode is TransferMode.INCREMENTAL:
        dirty = clip(having(statuses[spec.dirty_context], DIRTY_FLAG), window.start, window.end)
        # What an earlier attempt wrote is looked at whole, as is what is doubtful, whatever the dirty map says of it.
        wanted = extent.unite(round_out(dirty, PART, spec.size), extent.unite(kept, base.doubtful(window)))
        touched = round_out(wanted, spec.block_size, spec.size)
        allocation = [status for run in touched if run.length >= LONG_RUN_BLOCKS * spec.block_size
                      for status in source.allocation(run)]
    else:
        touched = wanted
        allocation = clip(statuses.get(ALLOCATION, []), window.start, window.end)
    zero_runs = extent.intersect(touched, round_in(having(allocation, ZERO_FLAG), spec.block_size, spec.size))
    written = _zeros_to_write(spec, zero_runs, base, kept)
    for run in written:
        yield ZeroRun(run)
    rewritten = {index for index, _ in extent.by_block(kept, spec.block_size)}
    for index, parts in extent.by_block(extent.subtract(wanted, zero_runs), spec.block_size):
        start = index * spec.block_size
        block = Extent(start, min(spec.block_size, spec.size - start))
        vague = spec.mode is TransferMode.DIGEST_SCAN and index not in rewritten and block.length > PART
        yield ReadBlock(block, index, parts, index in rewritten, vague)
    yield Skipped(unchanged=window.length - extent.total(touched), zero=extent.total(zero_runs) - extent.total(written))


def _zeros_to_write(
    spec: PlanSpec, runs: Sequence[Extent], base: BaseDigests, kept: Sequence[Extent]
) -> list[Extent]:
    # Of kept blocks the other side must hear even if they are zero there already: its digests are of the layer below.
    again = extent.intersect(runs, kept)
    if not spec.write_zeros:
        return again
    if spec.mode is TransferMode.DIGEST_SCAN:
        return extent.unite(again, [part for run in runs for part in base.nonzero(run)])
    return list(runs)
