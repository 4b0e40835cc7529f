"""Receive: the target side of a transfer between two movers: what comes on its connections, and when it is durable."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from understudy.context import Context
from understudy.errors import LinkLost, Refused, TransferError, UnderstudyError
from understudy.mover.arriving import ArrivingDisk
from understudy.mover.codecs import Decoder
from understudy.mover.digest import DigestReader
from understudy.mover.frames import (
    MOST_CONNECTIONS,
    Codec,
    Durable,
    Frame,
    FrameType,
    Geometry,
    pack_durable,
    unpack_sum,
    verify,
)
from understudy.mover.meter import Counters, Meter
from understudy.mover.wire import Connection

VERSION = 2
#: What came is made durable and acknowledged at least this often, and whenever so much is new.
CHECKPOINT_S = 0.5
CHECKPOINT_BYTES = 64 << 20


@dataclass(frozen=True)
class Receiving:
    """What both sides of a transfer must agree on, and who may send.

    :ivar source_identity: name in the certificate of the source proxy; empty for one that comes by Unix socket.
    :ivar base_point: the point that the layer lies on, or empty.
    :ivar base_digests: its digest file, or None.
    :ivar patience_s: how long nobody may be connected.
    """

    source_identity: str
    point: str
    disk: str
    size: int
    block_size: int
    chained: bool
    base_point: str
    base_digests: Path | None
    patience_s: float


class _Inlet:
    """One connection that brings data: which one it is, and how many of its frames are written."""

    def __init__(self, connection: Connection, slot: int, epoch: int) -> None:
        self.connection = connection
        self.slot = slot
        self.epoch = epoch
        self.written = connection.received

    def durable(self) -> Durable:
        """As an acknowledgement says it, once what is written was made durable."""
        return Durable(self.slot, self.epoch, self.written)


class Reception:
    """One disk transfer at the target side.

    :meth:`run` is the transfer's life; :meth:`serve` is called for each connection, in a thread of that connection.
    """

    def __init__(self, receiving: Receiving, disk: ArrivingDisk, meter: Meter) -> None:
        self.receiving = receiving
        self._disk = disk
        self._meter = meter
        self._geometry = Geometry(receiving.size, receiving.block_size)
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        self._inlets: dict[int, _Inlet] = {}
        self._answers: Connection | None = None
        self._told: list[Durable] = []
        self._pending = 0
        self._contact = time.monotonic()
        self._failure: UnderstudyError | None = None
        self._checksum: int | None = None
        self._ended = False
        meter.total = receiving.size

    # --- the transfer's own thread ------------------------------------------------------------------------------------

    def run(self, ctx: Context) -> None:
        """Make durable what comes and acknowledge it, until everything came; at return layer and digests are durable.

        :raises TransferError: if nobody is connected for too long, or what comes is damaged.
        :raises DatastoreError: if writing fails; the source side is told.
        """
        try:
            while not self._finished():
                ctx.check()
                self._check_patience()
                self._wait()
                self._acknowledge()
            self._acknowledge()
        except BaseException as exc:
            defect = TransferError(self._what, f"internal error: {exc!r}")
            self._end(exc if isinstance(exc, UnderstudyError) else defect)
            raise
        self._meter.waiting = ""

    @property
    def _what(self) -> str:
        return f"receive disk {self.receiving.disk!r}"

    def _finished(self) -> bool:
        with self._changed:
            if self._failure is not None:
                raise self._failure
            return self._checksum is not None

    def _check_patience(self) -> None:
        answers = self._answers
        if answers is not None and answers.broken():
            self._forget_answers(answers)
        with self._changed:
            if self._inlets or self._answers is not None:
                self._contact = time.monotonic()
            waited = time.monotonic() - self._contact
        self._meter.waiting = f"no connection from the source proxy since {waited:.0f} s" if waited > 1 else ""
        if waited > self.receiving.patience_s:
            raise LinkLost(self._what, f"the source proxy was not connected for {self.receiving.patience_s:.0f} s",
                           "check the network between the proxies")

    def _wait(self) -> None:
        def due() -> bool:
            return self._pending >= CHECKPOINT_BYTES or self._failure is not None or self._checksum is not None

        with self._changed:
            self._changed.wait_for(due, CHECKPOINT_S)

    def _acknowledge(self) -> None:
        """Make durable what is written now, and say so."""
        with self._changed:
            states = [inlet.durable() for inlet in self._inlets.values()]
            self._pending = 0
            finished = self._checksum is not None
        if states == self._told:
            return
        if not finished:
            self._disk.checkpoint()
        with self._changed:
            self._told = states
        self._tell()

    def _tell(self) -> None:
        """Send the newest acknowledgement, if somebody listens."""
        with self._changed:
            connection, payload = self._answers, pack_durable(self._told)
        if connection is None or not payload:
            return
        try:
            with self._telling:
                frame = Frame(FrameType.ACKNOWLEDGE, Codec.NONE, 0, len(payload), len(payload))
                connection.send(frame, payload, payload)
        except LinkLost:
            self._forget_answers(connection)

    def _forget_answers(self, connection: Connection) -> None:
        with self._changed:
            if self._answers is connection:
                self._answers = None
        connection.close()

    def close(self) -> None:
        """The draft has ended: nothing more is accepted or answered."""
        self._end(TransferError(self._what, "its draft has ended"))

    def _end(self, failure: UnderstudyError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._ended = True
            answers, self._answers = self._answers, None
            inlets = list(self._inlets.values())
            self._changed.notify_all()
        if answers is not None:
            if self._checksum is None:
                answers.refuse(failure)
            answers.close()
        for inlet in inlets:
            inlet.connection.wake()

    # --- a connection's thread ----------------------------------------------------------------------------------------

    @property
    def source_identity(self) -> str:
        """Who may send."""
        return self.receiving.source_identity

    def serve(self, connection: Connection, hello: dict[str, object]) -> bool:
        """Take a connection whose hello named this transfer; whether it is kept, else it is used up.

        :raises Refused: if the other side means another disk, point or base.
        :raises UnderstudyError: why the transfer failed.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
        try:
            _check_hello(hello, self.receiving)
        except Refused as exc:
            self._fail(exc)
            raise
        connection.about(self._geometry)
        if hello.get("role") == "answers":
            self._serve_answers(connection, hello)
            return True
        self._serve_data(connection, hello)
        return False

    def _serve_answers(self, connection: Connection, hello: dict[str, object]) -> None:
        """The connection on which we speak: what is here, then acknowledgements. It is not read from any more."""
        with ExitStack() as stack:
            base = _shared_base(stack, hello, self.receiving)
            shared = self._disk.begin(base)
        self._welcome(connection, {"digests": "base" if shared else "zeros", "complete": self._disk.complete_blocks})
        if hello.get("claims"):
            self._say_claims(connection)
        with self._changed:
            before, self._answers = self._answers, connection
            if self._failure is not None:
                self._answers = None
                raise self._failure
        if before is not None:
            before.close()
        self._tell()

    def _say_claims(self, connection: Connection) -> None:
        for first, count, digests in self._disk.claims():
            offset = first * self._geometry.block_size
            if digests:
                frame = Frame(FrameType.CLAIM, Codec.NONE, offset, len(digests), len(digests))
                connection.send(frame, digests, digests)
            else:
                length = min(count * self._geometry.block_size, self._geometry.size - offset)
                connection.send(Frame(FrameType.UNKNOWN, Codec.NONE, offset, length))
        connection.send(Frame(FrameType.SETTLED))

    def _serve_data(self, connection: Connection, hello: dict[str, object]) -> None:
        slot, epoch = hello.get("slot"), hello.get("epoch")
        if not isinstance(slot, int) or not isinstance(epoch, int) or not 0 <= slot < MOST_CONNECTIONS or epoch < 0:
            raise Refused(self._what, f"there is no connection {slot!r}.{epoch!r}")
        inlet = _Inlet(connection, slot, epoch)
        with self._changed:
            before = self._inlets.get(slot)
            if before is not None and before.epoch > epoch:
                raise Refused(self._what, f"connection {slot} was made {before.epoch} times already")
            self._inlets[slot] = inlet
        if before is not None:
            before.connection.wake()
        try:
            self._welcome(connection, {})
            self._take_frames(inlet)
        except LinkLost:
            # The source side makes it again, and sends again what was not acknowledged.
            pass
        except UnderstudyError as exc:
            self._fail(exc)
            raise
        finally:
            with self._changed:
                if self._inlets.get(slot) is inlet and self._checksum is None:
                    del self._inlets[slot]
                self._contact = time.monotonic()

    def _welcome(self, connection: Connection, more: dict[str, object]) -> None:
        with self._changed:
            finished = "" if self._checksum is None else f"{self._checksum:016x}"
        connection.send_text(FrameType.WELCOME, {"version": VERSION, "finished": finished, **more})

    def _fail(self, failure: UnderstudyError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _take_frames(self, inlet: _Inlet) -> None:
        counters = self._meter.counters()
        decoder = Decoder()
        buffer = memoryview(bytearray(self._geometry.block_size))
        while True:
            frame, wire = inlet.connection.receive(buffer, counters)
            started = time.monotonic()
            raw = decoder.decode(frame, wire)
            verify(frame, raw)
            decoded = time.monotonic()
            checksum = self._write(frame, raw)
            counters.target_proxy += decoded - started
            counters.target += time.monotonic() - decoded
            self._count(counters, frame)
            with self._changed:
                inlet.written = inlet.connection.received
                self._checksum = checksum if self._checksum is None else self._checksum
                self._pending += frame.wire_length
                finished = self._checksum is not None
                if self._pending >= CHECKPOINT_BYTES or finished:
                    self._changed.notify_all()
            if finished:
                # The transfer's own thread may have ended before this: it was told once more.
                self._acknowledge()

    def _write(self, frame: Frame, raw: bytes | memoryview) -> int | None:
        """Write what a frame brings; the checksum of the digests if it was the end."""
        match frame.type:
            case FrameType.DATA:
                self._disk.write_at(frame.offset, raw)
            case FrameType.ZERO:
                self._disk.zero(frame.offset, frame.raw_length)
            case FrameType.DIGEST:
                self._disk.put_digests(frame.offset // self._geometry.block_size, raw)
            case FrameType.END:
                return self._conclude(unpack_sum(raw))
            case _:
                raise TransferError("receive", f"a {frame.type.name.lower()} frame in the middle of the data")
        return None

    def _count(self, counters: Counters, frame: Frame) -> None:
        if frame.type is FrameType.DATA:
            counters.sent += frame.raw_length
        elif frame.type is FrameType.ZERO:
            counters.zero += frame.raw_length

    def _conclude(self, announced: int) -> int:
        """Everything came: the source side says this only when all of it was acknowledged. The digests' checksum."""
        with self._changed:
            finished = self._checksum
        # Told again by a source side that was restarted after the first time.
        checksum = self._disk.finish() if finished is None else finished
        if checksum != announced:
            raise TransferError(self._what, "the digests are not those of the source side")
        return checksum


def _check_hello(hello: dict[str, object], receiving: Receiving) -> None:
    """Both sides must mean the same disk, point and base: a delta on another base would be wrong everywhere.

    :raises Refused: if they do not.
    """
    expected: dict[str, object] = {
        "version": VERSION, "disk": receiving.disk, "size": receiving.size, "block_size": receiving.block_size,
        "chained": receiving.chained, "point": receiving.point,
    }
    if hello.get("base_point"):
        expected["base_point"] = receiving.base_point if receiving.chained else ""
    for name, value in expected.items():
        if hello.get(name) != value:
            raise Refused(f"receive disk {receiving.disk!r}",
                          f"{name} is {hello.get(name)!r} at the source proxy and {value!r} here")


def _shared_base(stack: ExitStack, hello: dict[str, object], receiving: Receiving) -> DigestReader | None:
    """The base digests here, if they are the ones that the source side starts from; else all digests are sent."""
    if not hello.get("base_checksum") or receiving.base_digests is None:
        return None
    try:
        base = stack.enter_context(DigestReader(receiving.base_digests))
    except UnderstudyError:
        # Damaged here, intact at the source side: its digests come over the wire and heal ours.
        return None
    same = f"{base.header.checksum:016x}" == hello["base_checksum"] and base.header.block_size == receiving.block_size
    return base if same else None
