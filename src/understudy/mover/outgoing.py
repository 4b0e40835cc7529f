"""Outgoing: one transfer at the source side, as all its connections see it: what is sent, and what is durable there."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from understudy.context import Context
from understudy.errors import LinkLost, TransferError
from understudy.mover.api import SendDisk
from understudy.mover.asking import Asking
from understudy.mover.claims import Claims
from understudy.mover.codecs import Encoder
from understudy.mover.crew import Stopped
from understudy.mover.digest import CHUNK, DIGEST_BYTES, DigestReader, DigestWriter
from understudy.mover.frames import (
    LARGEST_TEXT,
    Durable,
    Frame,
    FrameType,
    Geometry,
    unpack_durable,
    verify,
)
from understudy.mover.hello import VERSION
from understudy.mover.lanes import AllArrived, Lane
from understudy.mover.link import Hello, Link
from understudy.mover.meter import Counters
from understudy.mover.plan import Conclusion, Plan, ReadBlock, Work, ZeroRun
from understudy.mover.wire import Connection, Pace, error_of
from understudy.units import block_count

#: Bytes sent and not yet acknowledged, over all connections of a disk.
WINDOW = 256 << 20


class Outgoing:
    """One transfer at the source side: what all its connections share.

    :param start: the source side's digests of the base point, or None.
    :param pace: how fast all connections together may send.
    """

    def __init__(
        self, ctx: Context, request: SendDisk, link: Link, start: DigestReader | None, pace: Pace
    ) -> None:
        self._ctx = ctx
        self._read = request.read
        self._compression = request.compression
        self._link = link
        self._start = start
        self._pace = pace
        self._geometry = Geometry(self._read.size, self._read.block_size)
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._answers: Connection | None = None
        self._shared = False
        self._stopped = False
        # Which source side this is: acknowledgements for one that ran before must never be taken for this one's.
        self._sender = secrets.token_hex(16)
        self._plan: Plan | None = None
        self._digests: DigestWriter | None = None
        self._checksum: int | None = None
        self._durable_blocks = 0
        self._credit = threading.Condition()
        self._unacknowledged = 0
        #: Blocks about whose parts the target was asked.
        self.asking = Asking(self.in_flight, self._give_back)

    def check(self) -> None:
        """:raises Cancelled: if the operator asked for the end; :class:`Stopped` if another thread failed."""
        if self._stopped:
            raise Stopped
        self._ctx.check()

    @property
    def plan(self) -> Plan:
        """The plan that is carried out."""
        if self._plan is None:
            raise TransferError(f"send disk {self._read.disk!r}", "it was not begun")
        return self._plan

    def _give_back(self, items: Sequence[Work]) -> None:
        self.plan.give_back(items)

    def begin(self, plan: Plan, digests: DigestWriter) -> None:
        """From now on ``plan`` is carried out and ``digests`` are written."""
        self._plan, self._digests = plan, digests

    def stop(self) -> None:
        """End every wait in every thread."""
        self._stopped = True
        for connection in [self._answers, *(lane.connection for lane in self._lanes)]:
            if connection is not None:
                connection.wake()

    def close(self) -> None:
        """Close all connections."""
        for connection in [self._answers, *(lane.connection for lane in self._lanes)]:
            if connection is not None:
                connection.close()

    def _check_unfinished(self) -> None:
        self.check()
        if self._plan is not None and self._plan.finished:
            raise AllArrived

    # --- connections --------------------------------------------------------------------------------------------------

    def connect(self, role: str, more: Hello) -> tuple[Connection, Hello]:
        """A connection for ``role``, and the welcome."""
        read = self._read
        hello: Hello = {
            "version": VERSION, "sender": self._sender, "role": role, "disk": read.disk, "size": read.size,
            "block_size": read.block_size, "chained": read.chained, "mode": read.mode, "base_point": read.base_point,
            "point": read.point,
            "base_checksum": f"{self._start.header.checksum:016x}" if self._start is not None else "", **more,
        }
        durable = 0

        def check() -> None:
            nonlocal durable
            self._check_unfinished()
            durable = self._durable_blocks

        connection, welcome = self._link.connect(check, hello)
        self._check_complete(connection, welcome.get("complete"), durable)
        finished = welcome.get("finished")
        if finished:
            connection.close()
            if self._checksum is None or f"{self._checksum:016x}" != finished:
                raise TransferError(f"send disk {read.disk!r}", "the target proxy has finished another transfer",
                                    "run the job again")
            self.plan.finish()
            self._stop_listening()
            raise AllArrived
        return connection, welcome

    def _check_complete(self, connection: Connection, complete: object, durable: int) -> None:
        """Whether a target that was started again has what it had acknowledged.

        Every welcome is looked at: once a block was sent there, the number says nothing of those before.
        """
        if not isinstance(complete, int) or complete < durable:
            connection.close()
            raise TransferError(f"send disk {self._read.disk!r}", "the target proxy has lost what it had acknowledged: "
                                f"{complete} of {durable} blocks are there", "run the job again")

    def open_answers(self, claims: Claims, keep: DigestWriter) -> None:
        """Make the connection on which the target answers, and hear what it has already.

        :param claims: gets the blocks that the target has; their digests are written to ``keep``.
        """
        while True:
            connection = self._connect_answers(claims=True)
            try:
                self._hear_claims(connection, claims, keep)
            except LinkLost:
                connection.close()
                self._link.lost()
                self.check()
            else:
                self._link.arrived()
                connection.about(self._geometry)
                self.asking.heard()
                return

    def _hear_claims(self, connection: Connection, claims: Claims, keep: DigestWriter) -> None:
        connection.geometry = self._geometry
        buffer = memoryview(bytearray(CHUNK))
        while True:
            frame, payload = connection.receive(buffer)
            verify(frame, payload)
            first = frame.offset // self._geometry.block_size
            match frame.type:
                case FrameType.CLAIM:
                    count = len(payload) // DIGEST_BYTES
                    keep.put(first, payload)
                    claims.touched.add(first, count)
                    claims.claimed.add(first, count)
                case FrameType.UNKNOWN:
                    claims.touched.add(first, block_count(frame.raw_length, self._geometry.block_size))
                case FrameType.SETTLED:
                    break
                case FrameType.ERROR:
                    raise error_of(payload)
                case _:
                    raise TransferError("receive", f"a {frame.type.name.lower()} frame among the claims")

    def _connect_answers(self, *, claims: bool) -> Connection:
        connection, welcome = self.connect("answers", {"claims": claims})
        self._shared = welcome.get("digests") == "base"
        self._answers = connection
        self.check()  # who stopped us meanwhile did not know of this connection
        return connection

    def listen(self) -> None:
        """Hear acknowledgements and answers until everything is done; for a thread of its own."""
        buffer = memoryview(bytearray(LARGEST_TEXT))
        while not self.plan.finished:
            try:
                connection = self._answers or self._connect_answers(claims=False)
                connection.about(self._geometry)
                frame, payload = connection.receive(buffer)
            except AllArrived:
                return
            except LinkLost:
                if self._answers is None:
                    raise  # patience is at its end
                self._answers.close()
                self._answers = None
                if self._unacknowledged:
                    self.lost()
                self.asking.unheard()
                self.check()
                continue
            verify(frame, payload)
            self._hear(frame, payload)

    def _hear(self, frame: Frame, payload: memoryview) -> None:
        match frame.type:
            case FrameType.ACKNOWLEDGE:
                self._acknowledged(unpack_durable(payload))
            case FrameType.DIFFER:
                self.asking.answered(frame.offset // self._geometry.block_size, payload)
            case FrameType.SETTLED:
                self.asking.heard()
            case FrameType.ERROR:
                raise error_of(payload)
            case _:
                raise TransferError("receive", f"a {frame.type.name.lower()} frame among the acknowledgements")

    # --- what is durable ----------------------------------------------------------------------------------------------

    def _acknowledged(self, states: list[Durable]) -> None:
        done: list[Work] = []
        for state in states:
            if state.slot < len(self._lanes):
                done += self._lanes[state.slot].acknowledged(state)
        self.durable(done)

    def durable(self, items: list[Work]) -> None:
        """These items were sent and are durable at the target."""
        with self._lock:
            self._durable_blocks += sum(_blocks(item, self._geometry.block_size) for item in items)
        if items:
            self._link.arrived()
        self.plan.done(items)
        if self.plan.finished:
            # The acknowledgement may have come before the lane knew that it had sent the end; no other one comes.
            self._stop_listening()

    def lost(self) -> None:
        """A connection is lost with what was under way on it."""
        self._link.lost()

    def _stop_listening(self) -> None:
        """Nothing more is said on the connection of answers."""
        if self._answers is not None:
            self._answers.wake()

    def in_flight(self, count: int) -> None:
        """So many bytes more, or less, are not acknowledged."""
        with self._credit:
            self._unacknowledged += count
            if count < 0:
                self._credit.notify_all()

    def has_credit(self, timeout_s: float) -> bool:
        """Whether more may be sent, after waiting up to ``timeout_s`` seconds for that."""
        with self._credit:
            return self._credit.wait_for(lambda: self._unacknowledged <= WINDOW, timeout_s)

    def finish_digests(self) -> None:
        """Complete the digests: nothing changes them any more."""
        if self._digests is None:
            raise TransferError(f"send disk {self._read.disk!r}", "it was not begun")
        with self._lock:
            if self._checksum is None:
                self._checksum = self._digests.finish()

    def last_words(self) -> tuple[int, DigestWriter | None]:
        """The checksum of the digests, and the digests themselves if the target may not have all of them.

        They are sent only where both sides began from other digests. Else the target's own must be right by now, and
        the checksum is the proof that it got every block.
        """
        self.finish_digests()
        return self._checksum or 0, None if self._shared or self._start is None else self._digests

    def lane(self, counters: Counters) -> Lane:
        """One more connection."""
        lane = Lane(self, len(self._lanes), Encoder(self._compression), counters, self._pace)
        self._lanes.append(lane)
        return lane

    @property
    def geometry(self) -> Geometry:
        """The disk."""
        return self._geometry


def _blocks(item: Work, block_size: int) -> int:
    match item:
        case ReadBlock():
            return 1
        case ZeroRun():
            return block_count(item.run.length, block_size)
        case Conclusion():
            return 0
