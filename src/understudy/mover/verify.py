"""Verify: recompute the digests of what a replica holds, to compare them or to write them anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from understudy.context import Context
from understudy.errors import TransferError
from understudy.faults import fault_point
from understudy.model.extent import Extent, span
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource
from understudy.mover.base import NothingKnown, PointDigests
from understudy.mover.blocks import BlockSet
from understudy.mover.digest import ZERO_DIGEST, DigestHeader, DigestReader, DigestWriter, sync_directory
from understudy.mover.filters import content_digest
from understudy.mover.meter import Meter
from understudy.mover.pace import Pace
from understudy.mover.plan import Conclusion, Item, Plan, PlanSpec, ReadBlock, StatusSource, ZeroRun
from understudy.mover.reader import Source, read_plan
from understudy.nbd import ALLOCATION, ZERO_FLAG
from understudy.storage.records.place import partial
from understudy.units import GIB, block_count

#: What a pass has found is told to whoever remembers it after so long, or so many bytes.
SAVE_S = 5.0
SAVE_BYTES = GIB


@dataclass(frozen=True)
class Found:
    """How far a pass over a disk has come, and what is known of its blocks.

    :ivar position: all blocks before it, in bytes of the disk, were looked at.
    :ivar bad: ranges in bytes, at block borders, that do not match their digests: sorted and merged.
    :ivar bad_blocks: how many blocks that are.
    """

    position: int
    bad: tuple[Extent, ...]
    bad_blocks: int


@dataclass(frozen=True)
class Pass:
    """How to look at a disk.

    :ivar position: where an earlier call of the same pass stopped, in bytes; blocks before are not read again.
    :ivar bad: what was bad before; a block that is good now is bad no more, unless ``keep_bad``.
    :ivar pace: lets reads pass.
    :ivar save: told every few seconds what was found, and a last time at the end, whatever ends it.
    """

    position: int = 0
    bad: tuple[Extent, ...] = ()
    keep_bad: bool = False
    pace: Pace = field(default_factory=lambda: Pace(0))
    save: Callable[[Found], None] = lambda _: None


def verify_disk(ctx: Context, where: NbdSource, digests: DigestReader, meter: Meter, wanted: Pass) -> Found:
    """Compare the blocks that ``where`` serves with their digests.

    :param meter: gets what is done; its total is the caller's.
    :raises TransferError: if it cannot be read.
    """
    header = digests.header
    findings = _Findings(PointDigests(digests, header.size), header, wanted)
    source = Source(where, header.size)
    own = Meter(header.size)
    meter.include(own)
    try:
        plan = _Remaining(ctx, source, header, own, wanted)
        try:
            read_plan(ctx, source, plan, own, lambda _: _Examiner(plan, findings))
        except TransferError:
            plan.uncount()
            raise
        finally:
            findings.save()
    finally:
        source.close()
    return findings.found()


def block_matches(where: NbdSource, digests: DigestReader, index: int) -> bool:
    """Whether one block can be read and is what its digest says.

    A server that found its image corrupt may refuse everything from then on: ``where`` is for this block alone.

    :raises TransferError: if there is nobody to read it from.
    """
    header = digests.header
    start = index * header.block_size
    view = memoryview(bytearray(min(header.block_size, header.size - start)))
    source = Source(where, header.size)
    try:
        source.planner.read(view, start)
    except TransferError:
        Source(where, header.size).close()
        return False
    finally:
        source.close()
    return content_digest(view) == PointDigests(digests, header.size).known(index)


def rebuild_digests(ctx: Context, where: NbdSource, header: DigestHeader, path: Path, meter: Meter) -> None:
    """Write the digest file at ``path`` anew, from what ``where`` serves; it is replaced only when complete.

    :raises TransferError: if it cannot be read.
    """
    # The name that it had while its point was in the making: if we are killed here, the next session sweeps it.
    unfinished = partial(path)
    try:
        with DigestWriter(unfinished, header) as writer:
            _read_all(ctx, where, header, meter, _Recorder(writer))
            writer.finish()
        fault_point("digests.rebuilt")
        unfinished.replace(path)
        sync_directory(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


class _Blocks(Protocol):
    """What is done with every block of a disk; shared by all threads."""

    def block(self, item: ReadBlock, view: memoryview) -> None:
        """A block was read."""

    def zeros(self, item: ZeroRun) -> None:
        """Blocks are zero."""


class _Remaining(Plan):
    """The blocks behind the position of a pass; those before it are done without being read."""

    def __init__(self, ctx: Context, source: Source, header: DigestHeader, meter: Meter, wanted: Pass) -> None:
        self._own = meter.counters()
        super().__init__(_everything(header), _Behind(source, wanted.position), NothingKnown(), self._own)
        self._ctx = ctx
        self._wanted = wanted

    def take(self) -> Item | None:
        """The next item that is left; reads wait for their turn."""
        item = super().take()
        while isinstance(item, ReadBlock | ZeroRun) and _end(item) <= self._wanted.position:
            self._own.saved += _end(item) - _start(item)
            self.done([item])
            item = super().take()
        if isinstance(item, ReadBlock):
            self._wanted.pace.wait(self._ctx, item.block.length)
        return item

    def uncount(self) -> None:
        """It failed; whoever goes on counts what was done as done before."""
        self._own.processed = self._own.saved = self._own.zero = 0


class _Behind:
    """Block status behind a position; what lies before it is not asked for, for the server may refuse to tell."""

    def __init__(self, source: StatusSource, position: int) -> None:
        self._source = source
        self._position = position

    def allocation(self, run: Extent) -> list[Extent]:
        """As of the source."""
        return self._source.allocation(run)

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """As of the source; before the position all is one run, which is skipped."""
        known = min(length, self._position - start)
        if known > 0:
            return known, {ALLOCATION: [Extent(start, known, ZERO_FLAG)]}
        return self._source.statuses(start, length, at_least)


def _everything(header: DigestHeader) -> PlanSpec:
    # Full mode with zeros wanted: every block of the disk comes to the consumer, read or known to be zero.
    return PlanSpec(header.size, header.block_size, TransferMode.FULL, write_zeros=True)


def _start(item: ReadBlock | ZeroRun) -> int:
    return item.block.start if isinstance(item, ReadBlock) else item.run.start


def _end(item: ReadBlock | ZeroRun) -> int:
    return item.block.end if isinstance(item, ReadBlock) else item.run.end


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
        own = Meter(header.size)
        meter.include(own)
        plan = Plan(_everything(header), source, NothingKnown(), own.counters())
        read_plan(ctx, source, plan, own, lambda _: _Examiner(plan, blocks))
    finally:
        source.close()


class _Findings:
    """Which blocks are not what their digests say, and up to where all were looked at; shared by all threads."""

    def __init__(self, expected: PointDigests, header: DigestHeader, wanted: Pass) -> None:
        self._expected = expected
        self._header = header
        self._wanted = wanted
        self._lock = threading.Lock()
        self._bad = BlockSet(header.blocks)
        for part in wanted.bad:
            self._bad.add(part.start // header.block_size, block_count(part.length, header.block_size))
        self._position = self._saved_position = wanted.position
        self._saved_at = time.monotonic()
        self._ahead: dict[int, int] = {}  # what was looked at behind the position: end by start

    def block(self, item: ReadBlock, view: memoryview) -> None:
        good = content_digest(view) == self._expected.known(item.index)
        self._note(item.block, [] if good else [item.block])

    def zeros(self, item: ZeroRun) -> None:
        self._note(item.run, self._expected.nonzero(item.run))

    def found(self) -> Found:
        """What was found so far."""
        with self._lock:
            return self._found()

    def save(self) -> None:
        """Tell what was found, for the last time."""
        with self._lock:
            self._wanted.save(self._found())

    def _note(self, seen: Extent, bad: list[Extent]) -> None:
        with self._lock:
            if not self._wanted.keep_bad:
                self._bad.discard(*self._blocks(seen))
            for part in bad:
                self._bad.add(*self._blocks(part))
            # A run of zeros may begin before the position of an earlier call, which had another window.
            self._ahead[max(seen.start, self._position)] = seen.end
            self._advance()
            if self._is_due():
                self._saved_at, self._saved_position = time.monotonic(), self._position
                self._wanted.save(self._found())
                fault_point("verify.position")

    def _advance(self) -> None:
        """The plan gives out a window's zero runs before its blocks, and several threads work on it."""
        while (end := self._ahead.pop(self._position, 0)):
            self._position = end

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= SAVE_S or self._position - self._saved_position >= SAVE_BYTES

    def _blocks(self, part: Extent) -> tuple[int, int]:
        return part.start // self._header.block_size, block_count(part.length, self._header.block_size)

    def _found(self) -> Found:
        size, block_size = self._header.size, self._header.block_size
        bad = tuple(span(first * block_size, min((first + count) * block_size, size))
                    for first, count in self._bad.runs(0, self._header.blocks))
        return Found(self._position, bad, len(self._bad))


class _Recorder:
    """Writes digests; those of zero blocks are there already."""

    def __init__(self, writer: DigestWriter) -> None:
        self._writer = writer

    def block(self, item: ReadBlock, view: memoryview) -> None:
        digest = content_digest(view)
        if digest != ZERO_DIGEST:
            self._writer.put(item.index, digest)

    def zeros(self, item: ZeroRun) -> None:
        """Nothing: a new digest file is zero."""
