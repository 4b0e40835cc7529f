"""Lanes: the connections on which the source side of a transfer sends, each with a reading thread of its own.

What was sent and is not yet acknowledged as durable is remembered, not kept: when a connection is lost, these blocks go
back to the plan and are read and sent again, on whatever connection comes first. The snapshot does not change, so it
does no harm if some of them had arrived.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from understudy.errors import LinkLost
from understudy.model.extent import Extent
from understudy.mover.codecs import Encoder
from understudy.mover.digest import DIGEST_BYTES
from understudy.mover.frames import (
    Codec,
    Durable,
    Frame,
    FrameType,
    pack_sum,
)
from understudy.mover.link import Hello
from understudy.mover.meter import Counters
from understudy.mover.parts import part_digests
from understudy.mover.plan import Conclusion, ReadBlock, Work, ZeroRun
from understudy.mover.wire import Connection, Pace

if TYPE_CHECKING:
    from understudy.mover.outgoing import Outgoing

POLL_S = 0.2


class AllArrived(Exception):
    """The target says that it has everything; its last acknowledgement was lost with a connection."""


@dataclass(frozen=True)
class _Outstanding:
    """An item whose frames are those below number ``frames``, as far as they are not of an item before it."""

    frames: int
    item: Work
    sent: int


class Lane:
    """One connection and what is outstanding on it; the :class:`understudy.mover.copier.Sink` of one thread."""

    def __init__(
        self, outgoing: Outgoing, slot: int, encoder: Encoder, counters: Counters, pace: Pace
    ) -> None:
        self._outgoing = outgoing
        self._slot = slot
        self._encoder = encoder
        self._counters = counters
        self._pace = pace
        self._lock = threading.Lock()
        self._outstanding: deque[_Outstanding] = deque()
        self._epoch = -1
        self._durable = 0
        self._sent = 0
        self._settled = 0
        self.connection: Connection | None = None

    # --- the sink -----------------------------------------------------------------------------------------------------

    def deliver(self, item: ReadBlock | ZeroRun, give: Callable[[], None]) -> None:
        """Send all of ``item``, again if the connection is lost meanwhile."""
        self._deliver(item, give)

    def conclude(self, item: Conclusion) -> None:
        """Tell the target that it has everything, and the digests that it may not know."""
        self._outgoing.finish_digests()
        self._deliver(item, self._say_end)

    def narrow(self, item: ReadBlock, view: memoryview) -> None:
        """Ask the target which parts differ; the item comes again with the answer, or because none can come."""
        started = time.monotonic()
        digests = part_digests(view)
        self._counters.source_proxy += time.monotonic() - started
        self._await(self._outgoing.has_credit)
        self._await(lambda timeout_s: self._outgoing.asking.ask(self._slot, item, timeout_s))
        try:
            self._connected()
            self._send(Frame(FrameType.ASK, Codec.NONE, item.block.start, len(digests), len(digests)), digests, digests)
        except LinkLost:
            if self.connection is None:
                raise  # patience is at its end
            self._outgoing.lost()
            self._lose()

    def data(self, offset: int, view: memoryview) -> None:
        """Send data."""
        self._encode_and_send(FrameType.DATA, offset, view)

    def zero(self, extent: Extent) -> None:
        """Send a zero range."""
        self._send(Frame(FrameType.ZERO, Codec.NONE, extent.start, extent.length, 0), b"", b"")

    def digest(self, index: int, digest: bytes) -> None:
        """Send the digest of a block whose data was sent."""
        offset = index * self._outgoing.geometry.block_size
        self._send(Frame(FrameType.DIGEST, Codec.NONE, offset, len(digest), len(digest)), digest, digest)

    def idle(self) -> None:
        """See whether the connection still stands: what it lost must be sent again. Else have it acknowledged soon."""
        connection = self.connection
        if connection is None:
            return
        if connection.broken():
            self._lose()
        elif self._outstanding and connection.sent != self._settled:
            try:
                connection.send(Frame(FrameType.SETTLED))
            except LinkLost:
                self._lose()
            else:
                self._settled = connection.sent

    # --- sending ------------------------------------------------------------------------------------------------------

    def _deliver(self, item: Work, give: Callable[[], None]) -> None:
        self._await(self._outgoing.has_credit)
        while True:
            self._sent = 0
            try:
                connection = self._connected()
                before = connection.sent
                give()
            except AllArrived:
                return
            except LinkLost:
                if self.connection is None:
                    raise  # patience is at its end
                self._outgoing.lost()
                self._lose()
            else:
                break
        if connection.sent == before:
            self._outgoing.plan.done([item])
        elif self._note(_Outstanding(connection.sent, item, self._sent)):
            self._outgoing.durable([item])

    def _note(self, outstanding: _Outstanding) -> bool:
        """Remember what was sent; whether it is durable already."""
        with self._lock:
            if outstanding.frames <= self._durable:
                return True
            self._outstanding.append(outstanding)
        self._outgoing.in_flight(outstanding.sent)
        return False

    def acknowledged(self, state: Durable) -> list[Work]:
        """The items that are durable now."""
        done: list[_Outstanding] = []
        with self._lock:
            if state.epoch == self._epoch:
                self._durable = max(self._durable, state.frames)
                while self._outstanding and self._outstanding[0].frames <= self._durable:
                    done.append(self._outstanding.popleft())
        self._outgoing.in_flight(-sum(item.sent for item in done))
        return [outstanding.item for outstanding in done]

    def _connected(self) -> Connection:
        if self.connection is None:
            started = time.monotonic()
            with self._lock:
                self._epoch += 1
                self._durable = 0
            hello: Hello = {"slot": self._slot, "epoch": self._epoch}
            connection, _ = self._outgoing.connect("data", hello)
            connection.about(self._outgoing.geometry)
            connection.paced(self._pace, self._outgoing.check)
            self.connection = connection
            self._outgoing.check()  # who stopped us meanwhile did not know of this connection
            self._counters.reconnects += 1 if self._epoch else 0
            self._counters.network += time.monotonic() - started
        return self.connection

    def _lose(self) -> None:
        """The connection is gone: what was outstanding on it is to be taken again."""
        self._outgoing.check()
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        with self._lock:
            lost = list(self._outstanding)
            self._outstanding.clear()
            self._epoch += 1  # a late acknowledgement is not for what comes
        if self._outgoing.asking.lost(self._slot) or lost:
            self._outgoing.lost()
        self._outgoing.in_flight(-sum(item.sent for item in lost))
        self._outgoing.plan.give_back([outstanding.item for outstanding in lost])

    def _await(self, given: Callable[[float], bool]) -> None:
        """Wait until ``given``, which waits for so long itself, says so."""
        started = time.monotonic()
        while not given(POLL_S):
            self._outgoing.check()
            self.idle()
        self._counters.network += time.monotonic() - started

    def _encode_and_send(self, frame_type: FrameType, offset: int, raw: bytes | memoryview) -> None:
        started = time.monotonic()
        codec, wire = self._encoder.encode(raw)
        self._counters.source_proxy += time.monotonic() - started
        self._send(Frame(frame_type, codec, offset, len(raw), len(wire)), raw, wire)

    def _send(self, frame: Frame, raw: bytes | memoryview, wire: bytes | memoryview) -> None:
        if self.connection is None:
            raise LinkLost("send", "there is no connection")
        self.connection.send(frame, raw, wire, self._counters)
        self._sent += len(raw)

    def _say_end(self) -> None:
        checksum, unknown = self._outgoing.last_words()
        if unknown is not None:
            for offset, digests in unknown.chunks():
                first = offset // DIGEST_BYTES
                self._encode_and_send(FrameType.DIGEST, first * self._outgoing.geometry.block_size, digests)
        raw = pack_sum(checksum)
        self._send(Frame(FrameType.END, Codec.NONE, 0, len(raw), len(raw)), raw, raw)
