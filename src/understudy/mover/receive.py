"""Receive: the target side of a transfer between two movers: what comes on its connections, and when it is durable."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from understudy.context import Context
from understudy.errors import LinkLost, Refused, TransferError, UnderstudyError
from understudy.mover.answering import Answering, Ask
from understudy.mover.answers import Answers
from understudy.mover.arriving import ArrivingDisk
from understudy.mover.below import Content
from understudy.mover.frames import (
    Codec,
    Durable,
    Frame,
    FrameType,
    Geometry,
    pack_durable,
    pack_parts,
    unpack_sum,
)
from understudy.mover.hello import (
    VERSION,
    Receiving,
    check_hello,
    number_of,
    say_claims,
    sender_of,
    shared_base,
)
from understudy.mover.inlet import Inlet
from understudy.mover.meter import Meter
from understudy.mover.wire import Connection

#: What came is made durable and acknowledged at least this often, and whenever so much is new.
CHECKPOINT_S = 0.5
CHECKPOINT_BYTES = 64 << 20
#: How long the end of a draft waits for threads that still write.
CLOSE_TIMEOUT_S = 60.0


class Reception:
    """One disk transfer at the target side.

    :meth:`run` is the transfer's life; :meth:`serve` is called for each connection, in a thread of that connection.

    :param below: what the layer lies on; None: the source side is told that everything differs.
    """

    def __init__(self, receiving: Receiving, disk: ArrivingDisk, meter: Meter, below: Content | None = None) -> None:
        self.receiving = receiving
        self._disk = disk
        self._meter = meter
        self._geometry = Geometry(receiving.size, receiving.block_size)
        self._changed = threading.Condition()
        #: Held while what came is made durable, so that the layer is never completed meanwhile.
        self._settling = threading.Lock()
        self._beginning = threading.Lock()
        self._serving: set[Connection] = set()
        self._sender = ""
        self._shared: bool | None = None
        self._inlets: dict[int, Inlet] = {}
        self._answers = Answers()
        self._answering = Answering(self._geometry, below, self._answer, self._fail)
        self._told: list[Durable] = []
        self._pending = 0
        self._contact = time.monotonic()
        self._failure: UnderstudyError | None = None
        self._checksum: int | None = None
        self._writing = 0
        self._ending = False
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
        finally:
            self._answering.end()
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
        self._answers.look()
        with self._changed:
            if self._inlets or self._answers.connected:
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
        if not self._settling.acquire(timeout=CHECKPOINT_S):
            return  # the layer is being completed
        try:
            with self._changed:
                states, sender = [inlet.durable() for inlet in self._inlets.values()], self._sender
                self._pending = 0
                ending, finished = self._ending, self._checksum is not None
            if states == self._told or (ending and not finished):
                return
            if not finished:
                self._disk.checkpoint()
            with self._changed:
                self._told = states if sender == self._sender else []
        finally:
            self._settling.release()
        self._tell()

    def _tell(self) -> None:
        """Send the newest acknowledgement, if somebody listens."""
        with self._changed:
            sender, payload = self._sender, pack_durable(self._told)
        if payload:
            self._answers.say(sender, Frame(FrameType.ACKNOWLEDGE, Codec.NONE, 0, len(payload), len(payload)), payload)

    def _answer(self, ask: Ask, parts: int) -> None:
        payload = pack_parts(parts)
        frame = Frame(FrameType.DIFFER, Codec.NONE, ask.offset, len(payload), len(payload))
        self._answers.say(ask.sender, frame, payload)

    def close(self) -> None:
        """The draft has ended: nothing more is accepted, answered or written.

        :raises TransferError: if a thread still writes after 60 s.
        """
        self._end(TransferError(self._what, "its draft has ended"))
        self._answering.end()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._serving, CLOSE_TIMEOUT_S):
                raise TransferError(self._what, f"its threads did not end within {CLOSE_TIMEOUT_S:.0f} s")

    def _end(self, failure: UnderstudyError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            served = list(self._serving)
            untold = failure if self._checksum is None else None
            self._changed.notify_all()
        self._answers.end(untold)
        for connection in served:
            connection.wake()

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
        with self._served(connection):
            try:
                check_hello(hello, self.receiving)
                shared = self._begin(hello)
            except UnderstudyError as exc:
                self._failed_on(connection, exc)
                raise
            self._admit_sender(hello)
            if hello.get("role") == "answers":
                # We only speak there: if it takes ten seconds, the connection is as good as lost.
                connection.geometry = self._geometry
                self._serve_answers(connection, hello, shared)
                return True
            connection.about(self._geometry)
            self._serve_data(connection, hello)
            return False

    @contextmanager
    def _served(self, connection: Connection) -> Iterator[None]:
        """Inside, the connection is woken by the transfer's end, which waits for it."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._serving.add(connection)
        try:
            yield
        finally:
            with self._changed:
                self._serving.discard(connection)
                self._changed.notify_all()

    def _admit_sender(self, hello: dict[str, object]) -> None:
        """One source side at a time: one that was started again takes over when it asks what is here.

        Its connections have the numbers of its predecessor's; nothing said of those may be taken for its own.
        """
        sender = sender_of(hello, self.receiving)
        with self._changed:
            if sender == self._sender:
                return
            if self._sender and not (hello.get("role") == "answers" and hello.get("claims")):
                raise Refused(self._what, "another source proxy sends for it now")
            self._sender = sender
            before, self._inlets, self._told = self._inlets, {}, []
        for inlet in before.values():
            inlet.connection.wake()

    def _begin(self, hello: dict[str, object]) -> bool:
        """Have the digest file, whichever connection comes first; whether it began from base digests."""
        with self._beginning:
            if self._shared is None:
                with ExitStack() as stack:
                    self._shared = self._disk.begin(shared_base(stack, hello, self.receiving))
            return self._shared

    def _serve_answers(self, connection: Connection, hello: dict[str, object], shared: bool) -> None:
        """The connection on which we speak: what is here, then all answers. It is not read from any more."""
        self._welcome(connection, {"digests": "base" if shared else "zeros"})
        if hello.get("claims"):
            say_claims(connection, self._disk, self._geometry)
        if not self._answers.begin(connection, sender_of(hello, self.receiving)):
            raise self._failure or TransferError(self._what, "it has ended")
        self._tell()

    def _serve_data(self, connection: Connection, hello: dict[str, object]) -> None:
        slot, epoch = number_of(hello, self.receiving)
        inlet = Inlet(connection, sender_of(hello, self.receiving), slot, epoch, self._meter.counters())
        with self._changed:
            if inlet.sender != self._sender:
                raise Refused(self._what, "another source proxy sends for it now")
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
            if self._checksum is None:
                self._failed_on(connection, exc)
            raise
        except Exception as exc:
            self._failed_on(connection, TransferError(self._what, f"internal error: {exc!r}"))
            raise
        finally:
            with self._changed:
                if self._inlets.get(slot) is inlet and self._checksum is None:
                    del self._inlets[slot]
                self._contact = time.monotonic()

    def _welcome(self, connection: Connection, more: dict[str, object]) -> None:
        with self._changed:
            finished = "" if self._checksum is None else f"{self._checksum:016x}"
        connection.send_text(FrameType.WELCOME, {
            "version": VERSION, "finished": finished, "complete": self._disk.complete_blocks, **more,
        })

    def _failed_on(self, connection: Connection, failure: UnderstudyError) -> None:
        """The transfer failed on ``connection``, where that is told to the other side by whoever serves it."""
        with self._changed:
            self._serving.discard(connection)
        self._fail(failure)

    def _fail(self, failure: UnderstudyError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _take_frames(self, inlet: Inlet) -> None:
        while True:
            frame, raw = inlet.take()
            started = time.monotonic()
            if frame.type is FrameType.END:
                self._conclude(inlet, unpack_sum(raw))
            else:
                with self._before_the_end():
                    self._write(inlet, frame, raw)
            inlet.counters.target += time.monotonic() - started
            with self._changed:
                inlet.written = inlet.connection.received
                self._pending += frame.wire_length
                if self._pending >= CHECKPOINT_BYTES:
                    self._changed.notify_all()

    @contextmanager
    def _before_the_end(self) -> Iterator[None]:
        """Inside, something is written; the end waits for it.

        :raises TransferError: if the end is over.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._ending or self._failure or self._checksum is not None)
            if self._failure is not None:
                raise self._failure
            if self._ending:
                raise TransferError(self._what, "something came after its end")
            self._writing += 1
        try:
            yield
        finally:
            self._written()

    def _written(self) -> None:
        with self._changed:
            self._writing -= 1
            if self._ending:
                self._changed.notify_all()

    def _write(self, inlet: Inlet, frame: Frame, raw: bytes | memoryview) -> None:
        """Write what a frame brings, or have answered what it asks."""
        match frame.type:
            case FrameType.DATA:
                self._disk.write_at(frame.offset, raw)
            case FrameType.ZERO:
                self._disk.zero(frame.offset, frame.raw_length)
            case FrameType.DIGEST:
                self._disk.put_digests(frame.offset // self._geometry.block_size, raw)
            case FrameType.ASK:
                self._answering.put(Ask(inlet.sender, frame.offset, bytes(raw)))
            case FrameType.SETTLED:
                # The source side waits: do not keep it until the next checkpoint would be due.
                with self._changed:
                    self._pending += CHECKPOINT_BYTES
            case _:
                raise TransferError("receive", f"a {frame.type.name.lower()} frame in the middle of the data")

    def _conclude(self, inlet: Inlet, announced: int) -> None:
        """Everything came: the source side says this only when all of it was acknowledged.

        It says it again if it lost the connection before it heard that we know. What came on connections that it lost
        may still be being written.
        """
        with self._settling:
            checksum = self._checksum if self._checksum is not None else self._complete()
            if checksum != announced:
                raise TransferError(self._what, "the digests are not those of the source side")
            with self._changed:
                # Both at once: who sees that it is finished acknowledges the end too.
                self._checksum, inlet.written = checksum, inlet.connection.received
                self._told = [other.durable() for other in self._inlets.values()]
                self._changed.notify_all()
        self._tell()

    def _complete(self) -> int:
        """Complete layer and digests when nobody writes any more; the digests' checksum."""
        with self._changed:
            self._ending = True
            self._changed.wait_for(lambda: not self._writing or self._failure)
            if self._failure is not None:
                raise self._failure
        return self._disk.finish()
