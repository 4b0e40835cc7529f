"""Inlet: what does one connection bring to the target side of a transfer? Frames, decoded and checked."""

from __future__ import annotations

import time

from understudy.mover.codecs import Decoder
from understudy.mover.frames import Durable, Frame, FrameType, verify
from understudy.mover.meter import Counters
from understudy.mover.wire import Connection


class Inlet:
    """One connection that brings data: whose and which one it is, and how many of its frames are written.

    :param counters: count what comes on it.
    """

    def __init__(self, connection: Connection, sender: str, slot: int, epoch: int, counters: Counters) -> None:
        self.connection = connection
        self.sender = sender
        self.slot = slot
        self.epoch = epoch
        self.counters = counters
        self.written = connection.received
        self._decoder = Decoder()
        self._buffer = memoryview(bytearray(connection.geometry.block_size))

    def durable(self) -> Durable:
        """As an acknowledgement says it, once what is written was made durable."""
        return Durable(self.slot, self.epoch, self.written)

    def take(self) -> tuple[Frame, bytes | memoryview]:
        """The next frame and its bytes, which are only valid until the next call.

        :raises LinkLost: if the connection is gone.
        :raises TransferError: if the frame is damaged, or breaks a rule.
        """
        frame, wire = self.connection.receive(self._buffer, self.counters)
        started = time.monotonic()
        raw = self._decoder.decode(frame, wire)
        verify(frame, raw)
        self.counters.target_proxy += time.monotonic() - started
        if frame.type is FrameType.DATA:
            self.counters.sent += frame.raw_length
        elif frame.type is FrameType.ZERO:
            self.counters.zero += frame.raw_length
        return frame, raw
