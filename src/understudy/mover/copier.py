"""Copier: decides for each block what has to travel, and gives it to a sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.context import Context
from understudy.errors import Refused, TrackingLost
from understudy.model.extent import Extent
from understudy.model.transfer import TransferMode
from understudy.mover.api import ReadSpec
from understudy.mover.arriving import ArrivingDisk
from understudy.mover.audit import TrackingAudit
from understudy.mover.base import BaseDigests, Doubted, NothingKnown, PointDigests
from understudy.mover.below import Content
from understudy.mover.digest import ZERO_DIGEST, DigestReader, DigestWriter, block_digest
from understudy.mover.filters import pieces, zero_parts
from understudy.mover.meter import Counters, Meter
from understudy.mover.parts import different_content, narrowed
from understudy.mover.plan import Conclusion, Plan, PlanSpec, ReadBlock, ZeroRun
from understudy.mover.reader import THREADS, DiskSource, read_plan
from understudy.units import block_count


class Sink(Protocol):
    """Where changed data goes; one for each thread."""

    def deliver(self, item: ReadBlock | ZeroRun, give: Callable[[], None]) -> None:
        """Have all of ``item`` given by ``give``, which calls the verbs below; see that the plan hears of its end.

        ``give`` is called again if what it gave was lost on the way.
        """

    def narrow(self, item: ReadBlock, view: memoryview) -> ReadBlock | None:
        """``item``, whose content is ``view``, with what differs from the base wanted and no more.

        None if that is not known yet: the plan gives the item out again when it is.
        """

    def data(self, offset: int, view: memoryview) -> None:
        """Write ``view`` at ``offset``; it is only valid during the call."""

    def zero(self, extent: Extent) -> None:
        """Make the range read as zeros; whole blocks of it are complete then."""

    def digest(self, index: int, digest: bytes) -> None:
        """Block ``index`` is complete, and this is its digest."""

    def conclude(self, item: Conclusion) -> None:
        """Nothing more comes at all."""

    def idle(self) -> None:
        """Nothing is to be done now; called several times a second."""


SinkFactory = Callable[[Counters], Sink]


class DiskSink:
    """Writes straight into an arriving disk: source and target are the same mover.

    :param below: what the disk's layer lies on.
    """

    def __init__(self, disk: ArrivingDisk, plan: Plan, counters: Counters, below: Content | None = None) -> None:
        self._disk = disk
        self._plan = plan
        self._counters = counters
        self._below = below
        self._former = bytearray()

    def deliver(self, item: ReadBlock | ZeroRun, give: Callable[[], None]) -> None:
        """Write it."""
        give()
        self._plan.done([item])

    def narrow(self, item: ReadBlock, view: memoryview) -> ReadBlock:
        """Compare with the base; everything is wanted if that cannot be read."""
        started = time.monotonic()
        self._former = self._former or bytearray(self._plan.block_size)
        if self._below is not None and self._below.read(item.block.start, memoryview(self._former)[: len(view)]):
            item = narrowed(item, different_content(self._former, view))
        self._counters.target += time.monotonic() - started
        return item

    def data(self, offset: int, view: memoryview) -> None:
        """Write into the layer."""
        started = time.monotonic()
        self._disk.write_at(offset, view)
        self._counters.target += time.monotonic() - started

    def zero(self, extent: Extent) -> None:
        """Zero in the layer."""
        started = time.monotonic()
        self._disk.zero(extent.start, extent.length)
        self._counters.target += time.monotonic() - started

    def digest(self, index: int, digest: bytes) -> None:
        """Note the digest."""
        self._disk.put_digests(index, digest)

    def conclude(self, item: Conclusion) -> None:
        """Nobody is to be told."""
        self._plan.done([item])

    def idle(self) -> None:
        """Nothing waits."""


@dataclass(frozen=True)
class Copying:
    """What one disk's copying needs.

    :ivar base: what the replica has, by digests.
    :ivar digests: the source side's digest file of the new point, already holding the base's digests; None if the
        sink's own is enough.
    :ivar threads: how many read; each has a sink of its own.
    :ivar audit: counts blocks that tracking calls unchanged, or None.
    """

    read: ReadSpec
    source: DiskSource
    base: BaseDigests
    digests: DigestWriter | None
    meter: Meter
    threads: int = THREADS
    audit: TrackingAudit | None = None


def spec_of(read: ReadSpec) -> PlanSpec:
    """What is planned for a disk."""
    return PlanSpec(read.size, read.block_size, read.mode, read.chained, read.source.dirty_context)


def plan_of(copying: Copying, *, concluded: bool = False) -> Plan:
    """The plan of what has to be read."""
    copying.meter.total = copying.read.size
    status = copying.audit or copying.source
    return Plan(spec_of(copying.read), status, copying.base, copying.meter.counters(), concluded=concluded)


def copy_disk(
    ctx: Context, copying: Copying, plan: Plan, sink: SinkFactory, *,
    beside: Sequence[Callable[[], None]] = (), wake: Callable[[], None] = lambda: None,
) -> None:
    """Read what may have changed and give what did to sinks; returns when the plan is finished.

    :param beside, wake: see :func:`understudy.mover.reader.read_plan`.
    :raises TransferError: if reading fails.
    """

    def consumer(counters: Counters) -> _BlockCopier:
        return _BlockCopier(copying, sink(counters), counters)

    read_plan(ctx, copying.source, plan, copying.meter, consumer, threads=copying.threads, beside=beside, wake=wake)


def wants_base(read: ReadSpec) -> bool:
    """Whether digests of a base point are used: only a chained layer that is not rewritten has anything below it."""
    return bool(read.chained and read.base_point and read.mode is not TransferMode.FULL)


def known_content(read: ReadSpec, base: DigestReader | None) -> BaseDigests:
    """What may be assumed of the replica's content."""
    return PointDigests(base, read.size) if base is not None else NothingKnown()


def doubting(
    content: BaseDigests, read: ReadSpec, base: DigestReader | None, since: DigestReader | None
) -> BaseDigests:
    """``content`` less what must not be relied on; last of all, for an unfinished layer repairs no suspect block.

    :param base, since: digests of the base point, and of the point since which changes are tracked, if it is another.
    """
    if base is None or (since is None and not read.suspect):
        return content
    return Doubted(content, read.size, read.block_size, read.suspect, (since, base) if since is not None else None)


def check_base(read: ReadSpec, reader: DigestReader | None) -> DigestReader | None:
    """The digests to start from; None when a digest scan has to do without, because its blocks have another size.

    :raises Refused: if the mode cannot be carried out with them: a wrong base would leave wrong bytes in the replica.
    """
    what = f"copy disk {read.disk!r} in mode {read.mode}"
    if reader is not None and reader.header.point != read.base_point:
        raise Refused(what, f"the digests are of point {reader.header.point!r}, not {read.base_point!r}")
    same_blocks = reader is not None and reader.header.block_size == read.block_size
    if read.mode is TransferMode.INCREMENTAL:
        if not read.chained:
            raise Refused(what, "a layer that stands alone needs the whole disk")
        if reader is None or not same_blocks:
            raise Refused(what, f"digests of the base point in blocks of {read.block_size} bytes are needed",
                          "use a digest scan")
        if reader.header.size != read.size:
            raise Refused(what, f"the disk had {reader.header.size} bytes and now has {read.size}", "use a digest scan")
    return reader if same_blocks else None


def check_since(read: ReadSpec, since: DigestReader) -> None:
    """:raises TrackingLost: if the digests are not of the point since which changes are tracked, or of other blocks."""
    found = since.header
    if (found.point, found.size, found.block_size) != (read.since_point, read.size, read.block_size):
        why = f"the digests of point {read.since_point!r}, since which changes are tracked, do not fit"
        raise TrackingLost(f"copy disk {read.disk!r}", why, "use a digest scan")


class _BlockCopier:
    """The consumer of one reading thread."""

    def __init__(self, copying: Copying, sink: Sink, counters: Counters) -> None:
        self._base = copying.base
        self._digests = copying.digests
        self._audit = copying.audit
        self._write_zeros = copying.read.chained
        self._block_size = copying.read.block_size
        self._sink = sink
        self._counters = counters

    def block(self, item: ReadBlock, view: memoryview) -> None:
        started = time.monotonic()
        flags = zero_parts(view)
        digest = ZERO_DIGEST if all(flags) else block_digest(view)
        known = self._base.known(item.index)
        changed = digest != known
        if self._audit is not None:
            self._audit.block(item.index, digest)
        self._counters.source_proxy += time.monotonic() - started
        # Of a block that is zero, or was, it is known where it differs: wherever it has, or had, anything.
        if changed and item.vague and known and ZERO_DIGEST not in (digest, known):
            narrow = self._sink.narrow(item, view)
            if narrow is None:
                return
            item = narrow
        if item.kept and not changed:
            self._counters.saved += sum(area.length for area in item.wanted)
        if self._digests is not None and (changed or item.kept):
            self._digests.put(item.index, digest)

        def give() -> None:
            if changed:
                self._give(item, view, flags)
            if changed or item.kept:
                # Of a block that came before, the other side must hear that it is still right.
                self._sink.digest(item.index, digest)

        self._sink.deliver(item, give)

    def _give(self, item: ReadBlock, view: memoryview, flags: list[bool]) -> None:
        for piece, zero in pieces(flags, item.block, item.wanted):
            if zero:
                self._counters.zero += piece.length
                if self._write_zeros or item.kept:
                    self._sink.zero(piece)
            else:
                start = piece.start - item.block.start
                self._sink.data(piece.start, view[start : start + piece.length])
                self._counters.sent += piece.length

    def zeros(self, item: ZeroRun) -> None:
        if self._digests is not None:
            self._digests.clear(item.run.start // self._block_size, block_count(item.run.length, self._block_size))
        self._sink.deliver(item, lambda: self._sink.zero(item.run))

    def conclude(self, item: Conclusion) -> None:
        self._sink.conclude(item)

    def idle(self) -> None:
        self._sink.idle()
