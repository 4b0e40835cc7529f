"""Estimate: a transfer's plan, summed up instead of carried out; only block status is asked for, nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from understudy.model import extent
from understudy.model.estimate import Sums
from understudy.model.extent import PART, Extent, clip, having, round_in, round_out, span, within
from understudy.model.transfer import TransferMode
from understudy.mover.base import BaseDigests
from understudy.mover.plan import DIRTY_WINDOW, WINDOW, PlanSpec, ReadBlock, StatusSource, plan_disk
from understudy.nbd import DIRTY_FLAG, ZERO_FLAG


def sum_transfer(
    spec: PlanSpec, source: StatusSource, base: BaseDigests, left_out: Sequence[Extent],
    check: Callable[[], None] = lambda: None,
) -> Sums:
    """Sum up what carrying out the plan would do; see :class:`understudy.model.estimate.Sums`.

    :param source: what is left out reads as zeros in it.
    :param left_out: E, sorted and disjoint.
    :param check: called now and then; may raise.
    """
    content = _Content(spec.size, source, left_out, check)
    read = send = 0
    for item in plan_disk(spec, source, base):
        if isinstance(item, ReadBlock):
            read += item.block.length
            send += content.data(item.block, item.wanted)
    content.finish()
    tracked = spec.mode is TransferMode.INCREMENTAL
    return Sums(content.used, content.zero, _changed(spec, source, check) if tracked else None, read, send)


class _Content:
    """What is allocated in a disk that is walked through once, window by window (S12)."""

    def __init__(
        self, size: int, source: StatusSource, left_out: Sequence[Extent], check: Callable[[], None]
    ) -> None:
        self._size = size
        self._source = source
        self._left_out = left_out
        self._check = check
        self._position = 0
        self._zeros: list[Extent] = []
        self.used = 0
        self.zero = 0

    def data(self, block: Extent, wanted: Sequence[Extent]) -> int:
        """Bytes of ``wanted``, in ``block``, but for 64 KiB parts that are known to be zero.

        Blocks come in order, and a border between windows is one between blocks.
        """
        while self._position < block.end:
            self._advance()
        zeros = round_in(within(self._zeros, block.start, block.end), PART, block.end)
        return extent.total(extent.subtract(wanted, zeros))

    def finish(self) -> None:
        """Walk to the end of the disk."""
        while self._position < self._size:
            self._advance()

    def _advance(self) -> None:
        self._check()
        window = span(self._position, min(self._position + WINDOW, self._size))
        known = having(self._source.allocation(window), ZERO_FLAG)
        self._zeros = clip(known, window.start, window.end)
        apart = extent.subtract(self._zeros, within(self._left_out, window.start, window.end))
        self.zero += extent.total(apart)
        self.used += window.length - extent.total(self._zeros)
        self._position = window.end


def _changed(spec: PlanSpec, source: StatusSource, check: Callable[[], None]) -> int:
    """Bytes of the 64 KiB parts that the dirty map tells of."""
    position = found = 0
    while position < spec.size:
        check()
        length = min(DIRTY_WINDOW, spec.size - position)
        known, statuses = source.statuses(position, length, min(PART, length))
        end = position + known
        if end < spec.size:
            # Whole parts only, so that none is counted twice.
            end = end // PART * PART
        dirty = clip(having(statuses[spec.dirty_context], DIRTY_FLAG), position, end)
        found += extent.total(round_out(dirty, PART, spec.size))
        position = end
    return found
