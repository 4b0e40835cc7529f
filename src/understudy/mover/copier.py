"""Copier: decides for each block what has to travel, and gives it to a sink."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from understudy.context import Context
from understudy.errors import Refused
from understudy.model.extent import Extent
from understudy.model.transfer import TransferMode
from understudy.mover.api import ReadSpec
from understudy.mover.base import BaseDigests, NothingKnown, PointDigests
from understudy.mover.digest import ZERO_DIGEST, DigestReader, DigestWriter, block_digest
from understudy.mover.filters import pieces, zero_parts
from understudy.mover.meter import Counters, Meter
from understudy.mover.plan import Plan, PlanSpec, ReadBlock, ZeroRun
from understudy.mover.reader import Source, read_plan
from understudy.storage import LayerWriter
from understudy.units import block_count


class Sink(Protocol):
    """Where changed data goes; one for each thread."""

    def data(self, offset: int, view: memoryview) -> None:
        """Write ``view`` at ``offset``; it is only valid during the call."""

    def zero(self, extent: Extent) -> None:
        """Make the range read as zeros."""


SinkFactory = Callable[[Counters], Sink]


class LayerSink:
    """Writes straight into a layer: source and target are the same mover."""

    def __init__(self, layer: LayerWriter, counters: Counters) -> None:
        self._layer = layer
        self._counters = counters

    def data(self, offset: int, view: memoryview) -> None:
        """Write into the layer."""
        started = time.monotonic()
        self._layer.write_at(offset, view)
        self._counters.target += time.monotonic() - started

    def zero(self, extent: Extent) -> None:
        """Zero in the layer."""
        started = time.monotonic()
        self._layer.zero(extent.start, extent.length)
        self._counters.target += time.monotonic() - started


@dataclass(frozen=True)
class Copying:
    """What one disk's copying needs.

    :ivar base: what the replica has, by digests.
    :ivar digests: the digest file of the new point, already holding the base's digests.
    """

    read: ReadSpec
    source: Source
    base: BaseDigests
    digests: DigestWriter
    meter: Meter


def copy_disk(ctx: Context, copying: Copying, sink: SinkFactory, wake: Callable[[], None] = lambda: None) -> None:
    """Read what may have changed and give what did to sinks; the digest file is up to date, not finished, at return.

    :raises TransferError: if reading fails.
    """
    read = copying.read
    spec = PlanSpec(read.size, read.block_size, read.mode, read.chained, read.source.dirty_context)
    plan = Plan(spec, copying.source.planner, copying.base)
    copying.meter.total = read.size

    def consumer(counters: Counters) -> _BlockCopier:
        return _BlockCopier(copying, sink(counters), counters)

    read_plan(ctx, copying.source, plan, copying.meter, consumer, wake=wake)


def wants_base(read: ReadSpec) -> bool:
    """Whether digests of a base point are used: only a chained layer that is not rewritten has anything below it."""
    return bool(read.chained and read.base_point and read.mode is not TransferMode.FULL)


def known_content(read: ReadSpec, base: DigestReader | None) -> BaseDigests:
    """What may be assumed of the replica's content."""
    return PointDigests(base, read.size) if base is not None else NothingKnown()


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


class _BlockCopier:
    """The consumer of one reading thread."""

    def __init__(self, copying: Copying, sink: Sink, counters: Counters) -> None:
        self._base = copying.base
        self._digests = copying.digests
        self._write_zeros = copying.read.chained
        self._block_size = copying.read.block_size
        self._sink = sink
        self._counters = counters

    def block(self, item: ReadBlock, view: memoryview) -> None:
        started = time.monotonic()
        flags = zero_parts(view)
        digest = ZERO_DIGEST if all(flags) else block_digest(view)
        changed = digest != self._base.known(item.index)
        self._counters.source_proxy += time.monotonic() - started
        if changed:
            self._send(item, view, flags)
            self._digests.put(item.index, digest)

    def _send(self, item: ReadBlock, view: memoryview, flags: list[bool]) -> None:
        for piece, zero in pieces(flags, item.block, item.wanted):
            if zero:
                self._counters.zero += piece.length
                if self._write_zeros:
                    self._sink.zero(piece)
            else:
                start = piece.start - item.block.start
                self._sink.data(piece.start, view[start : start + piece.length])
                self._counters.sent += piece.length

    def zeros(self, item: ZeroRun) -> None:
        self._sink.zero(item.run)
        self._digests.clear(item.run.start // self._block_size, block_count(item.run.length, self._block_size))
