"""Verify: recompute the digests of what a replica holds, to compare them or to write them anew."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Protocol

from understudy.context import Context
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource, VerifiedDisk
from understudy.mover.base import NothingKnown, PointDigests
from understudy.mover.digest import ZERO_DIGEST, DigestHeader, DigestReader, DigestWriter, block_digest, sync_directory
from understudy.mover.filters import zero_parts
from understudy.mover.meter import Meter
from understudy.mover.plan import Conclusion, Plan, PlanSpec, ReadBlock, ZeroRun
from understudy.mover.reader import Source, read_plan

MOST_REPORTED = 1000


def verify_disk(ctx: Context, name: str, where: NbdSource, digests: DigestReader, meter: Meter) -> VerifiedDisk:
    """Compare every block that ``where`` serves with its digest.

    :raises TransferError: if it cannot be read.
    """
    header = digests.header
    bad = _BadBlocks(PointDigests(digests, header.size), header.block_size)
    _read_all(ctx, where, header, meter, bad)
    return VerifiedDisk(name, header.blocks, bad.count, tuple(sorted(bad.found)), "")


def rebuild_digests(ctx: Context, where: NbdSource, header: DigestHeader, path: Path, meter: Meter) -> None:
    """Write the digest file at ``path`` anew, from what ``where`` serves; it is replaced only when complete.

    :raises TransferError: if it cannot be read.
    """
    partial = path.with_name(path.name + ".rebuild.partial")
    try:
        with DigestWriter(partial, header) as writer:
            _read_all(ctx, where, header, meter, _Recorder(writer))
            writer.finish()
        partial.replace(path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


class _Blocks(Protocol):
    """What is done with every block of a disk; shared by all threads."""

    def block(self, item: ReadBlock, view: memoryview) -> None:
        """A block was read."""

    def zeros(self, item: ZeroRun) -> None:
        """Blocks are zero."""


class _Examiner:
    """A consumer for which every item is done at once."""

    def __init__(self, plan: Plan, blocks: _Blocks) -> None:
        self._plan = plan
        self._blocks = blocks

    def block(self, item: ReadBlock, view: memoryview) -> None:
        self._blocks.block(item, view)
        self._plan.done([item])

    def zeros(self, item: ZeroRun) -> None:
        self._blocks.zeros(item)
        self._plan.done([item])

    def conclude(self, item: Conclusion) -> None:
        self._plan.done([item])

    def idle(self) -> None:
        """Nothing waits."""


def _read_all(ctx: Context, where: NbdSource, header: DigestHeader, meter: Meter, blocks: _Blocks) -> None:
    source = Source(where, header.size)
    try:
        meter.total += header.size
        # Full mode with zeros wanted: every block of the disk comes to the consumer, read or known to be zero.
        spec = PlanSpec(header.size, header.block_size, TransferMode.FULL, write_zeros=True)
        own = Meter(header.size)
        meter.include(own)
        plan = Plan(spec, source, NothingKnown(), own.counters())
        read_plan(ctx, source, plan, own, lambda _: _Examiner(plan, blocks))
    finally:
        source.close()


def _digest(view: memoryview) -> bytes:
    return ZERO_DIGEST if all(zero_parts(view)) else block_digest(view)


class _BadBlocks:
    """Counts the blocks whose content is not what the digests say, and keeps some; shared by all threads."""

    def __init__(self, expected: PointDigests, block_size: int) -> None:
        self._expected = expected
        self._block_size = block_size
        self._lock = threading.Lock()
        self.count = 0
        self.found: list[int] = []

    def block(self, item: ReadBlock, view: memoryview) -> None:
        if _digest(view) != self._expected.known(item.index):
            self._add(item.index, item.index + 1)

    def zeros(self, item: ZeroRun) -> None:
        for run in self._expected.nonzero(item.run):
            self._add(run.start // self._block_size, -(-run.end // self._block_size))

    def _add(self, first: int, end: int) -> None:
        with self._lock:
            self.count += end - first
            self.found.extend(range(first, min(end, first + MOST_REPORTED - len(self.found))))


class _Recorder:
    """Writes digests; those of zero blocks are there already."""

    def __init__(self, writer: DigestWriter) -> None:
        self._writer = writer

    def block(self, item: ReadBlock, view: memoryview) -> None:
        digest = _digest(view)
        if digest != ZERO_DIGEST:
            self._writer.put(item.index, digest)

    def zeros(self, item: ZeroRun) -> None:
        """Nothing: a new digest file is zero."""
