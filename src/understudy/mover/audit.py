"""Audit: how many of all the blocks that tracking calls unchanged have changed, counted while a digest scan reads them.

It stands between the plan and the server that tells block status, and hears the digest of every block that is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

from understudy.model.extent import Extent, clip, having, intersect, round_in, round_out, span, subtract, unite
from understudy.model.transfer import TransferMode
from understudy.mover.api import ReadSpec
from understudy.mover.base import BaseDigests
from understudy.mover.blocks import BlockSet
from understudy.mover.digest import DigestReader
from understudy.mover.meter import Meter
from understudy.mover.plan import StatusSource
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import block_count


class TellingSource(StatusSource, Protocol):
    """An export that says what it can tell."""

    def has(self, context: str) -> bool:
        """Whether block status tells of the context."""


class TrackingAudit:
    """A :class:`~understudy.mover.plan.StatusSource` that counts; usable by several threads.

    :param source: must have the dirty context.
    :param below: digests of the base point; blocks that are doubtful by it are left out.
    """

    def __init__(self, read: ReadSpec, source: StatusSource, below: BaseDigests, meter: Meter) -> None:
        self._size, self._block_size = read.size, read.block_size
        self._dirty_context = read.source.dirty_context
        self._source = source
        self._below = below
        self._counters = meter.counters()
        self._lock = threading.Lock()
        # Called unchanged, and not compared so far: a block that is read again after a lost connection counts once.
        self._pending = BlockSet(block_count(read.size, read.block_size))

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """See :meth:`understudy.nbd.NbdClient.statuses`; each part of the disk is asked for once."""
        known, statuses = self._source.statuses(start, length, at_least)
        end = start + known
        if end < self._size:
            end = end // self._block_size * self._block_size  # of the block behind, the plan asks again
        self._window(span(start, end), statuses)
        return known, statuses

    def allocation(self, run: Extent) -> list[Extent]:
        """See :class:`understudy.mover.plan.StatusSource`."""
        return self._source.allocation(run)

    def _window(self, window: Extent, statuses: dict[str, list[Extent]]) -> None:
        dirty = clip(having(statuses[self._dirty_context], DIRTY_FLAG), window.start, window.end)
        excluded = unite(round_out(dirty, self._block_size, self._size), self._below.doubtful(window))
        clean = subtract([window], excluded)
        zeros = clip(having(statuses.get(ALLOCATION, []), ZERO_FLAG), window.start, window.end)
        unread = intersect(clean, round_in(zeros, self._block_size, self._size))
        changed = [part for run in unread for part in self._below.nonzero(run)]
        with self._lock:
            self._counters.checked += self._blocks(unread)
            self._counters.mismatched += self._blocks(changed)
            for run in subtract(clean, unread):
                self._pending.add(run.start // self._block_size, block_count(run.length, self._block_size))

    def _blocks(self, runs: Iterable[Extent]) -> int:
        return sum(block_count(run.length, self._block_size) for run in runs)

    def block(self, index: int, digest: bytes) -> None:
        """Block ``index`` was read and has this digest."""
        with self._lock:
            if index not in self._pending:
                return
            self._pending.discard(index)
            self._counters.checked += 1
            self._counters.mismatched += digest != self._below.known(index)


def audit_of(
    read: ReadSpec, source: TellingSource, base: DigestReader | None, below: BaseDigests, meter: Meter
) -> TrackingAudit | None:
    """An audit if this is a digest scan of a disk whose dirty map is served all the same, else None.

    :param base: digests of the base point; without them nothing is known of what changed.
    """
    if base is None or read.mode is not TransferMode.DIGEST_SCAN or not source.has(read.source.dirty_context):
        return None
    return TrackingAudit(read, source, below, meter)
