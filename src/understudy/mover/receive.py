"""Receive: the target side of a transfer between two movers."""

from __future__ import annotations

import hmac
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from understudy.context import Context
from understudy.errors import Refused, TransferError, UnderstudyError
from understudy.mover.codecs import Decoder
from understudy.mover.crew import Crew
from understudy.mover.digest import DigestHeader, DigestReader, DigestWriter
from understudy.mover.frames import LARGEST_DATA, Frame, FrameType, Geometry, Totals, verify
from understudy.mover.meter import Counters, Meter
from understudy.mover.wire import Connection
from understudy.storage import LayerWriter

THREADS = 2
ACCEPT_TIMEOUT_S = 120.0
HELLO_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Receiving:
    """What one disk's receiving needs.

    :ivar base_point: the point that the layer lies on, or empty.
    :ivar base_digests: its digest file, or None.
    :ivar digest_path: where the new point's digest file is written.
    """

    ticket: str
    point: str
    disk: str
    size: int
    block_size: int
    chained: bool
    base_point: str
    base_digests: Path | None
    digest_path: Path
    layer: LayerWriter


def receive_disk(ctx: Context, listener: socket.socket, receiving: Receiving, meter: Meter) -> None:
    """Wait for the source side on ``listener`` and write what it sends; at return layer and digests are durable.

    :raises TransferError: if nobody comes, the stream is cut or damaged, or the totals do not match.
    :raises DatastoreError: if writing fails; the source side is told.
    """
    geometry = Geometry(receiving.size, receiving.block_size)
    connection, hello = _accept(ctx, listener, geometry, receiving.ticket)
    try:
        try:
            _receive(ctx, connection, hello, receiving, meter)
        except UnderstudyError as exc:
            connection.refuse(exc)
            raise
    finally:
        connection.close()


def _receive(
    ctx: Context, connection: Connection, hello: dict[str, object], receiving: Receiving, meter: Meter
) -> None:
    _check_hello(hello, receiving)
    meter.total = receiving.size
    with ExitStack() as stack:
        base = _shared_base(stack, hello, receiving)
        header = DigestHeader(receiving.point, receiving.size, receiving.block_size)
        digests = stack.enter_context(DigestWriter(receiving.digest_path, header, base))
        connection.send_text(FrameType.WELCOME, {"digests": "base" if base is not None else "zeros"})
        target = _Target(connection, receiving, digests)
        crew = Crew(ctx, f"receive {receiving.disk}", connection.wake_readers)
        crew.run([_Writer(target, crew, meter.counters()).run for _ in range(THREADS)])
        target.check_totals()
        if digests.finish() != target.announced.checksum:
            raise TransferError(f"receive disk {receiving.disk!r}", "the digests are not those of the source side")
        receiving.layer.finish()
        connection.send(Frame(FrameType.ACKNOWLEDGE))


class _Target:
    """What the writing threads share."""

    def __init__(self, connection: Connection, receiving: Receiving, digests: DigestWriter) -> None:
        self.connection = connection
        self.layer = receiving.layer
        self.digests = digests
        self.block_size = receiving.block_size
        self.announced = Totals()
        self.received = Totals()
        self._ended = False
        self._disk = receiving.disk
        self._lock = threading.Lock()

    def count(self, frame: Frame) -> None:
        """Add a frame whose content is written."""
        with self._lock:
            self.received.count(frame)

    def end(self, payload: memoryview | bytes) -> None:
        """The source side has sent everything."""
        self.announced = Totals.unpack(payload)
        self._ended = True

    def check_totals(self) -> None:
        """Hold what was written against what the source side sent."""
        self.received.checksum = self.announced.checksum
        if not self._ended or self.received != self.announced:
            raise TransferError(f"receive disk {self._disk!r}",
                                f"the totals do not match: {self.received} written, {self.announced} sent")


class _Writer:
    """One thread: takes the next frame from the connection, decodes it, writes it."""

    def __init__(self, target: _Target, crew: Crew, counters: Counters) -> None:
        self._target = target
        self._crew = crew
        self._counters = counters
        self._decoder = Decoder()
        self._buffer = memoryview(bytearray(LARGEST_DATA))

    def run(self) -> None:
        while True:
            self._crew.check()
            received = self._target.connection.receive(self._buffer, self._counters)
            if received is None:
                return
            frame, wire = received
            started = time.monotonic()
            raw = self._decoder.decode(frame, wire)
            verify(frame, raw)
            self._counters.target_proxy += time.monotonic() - started
            if frame.type is FrameType.END:
                self._target.end(raw)
                return
            self._write(frame, raw)
            self._target.count(frame)

    def _write(self, frame: Frame, raw: bytes | memoryview) -> None:
        started = time.monotonic()
        match frame.type:
            case FrameType.DATA:
                self._target.layer.write_at(frame.offset, raw)
                self._counters.sent += len(raw)
                self._counters.processed += len(raw)
            case FrameType.ZERO:
                self._target.layer.zero(frame.offset, frame.raw_length)
                self._counters.zero += frame.raw_length
                self._counters.processed += frame.raw_length
            case FrameType.DIGEST:
                self._target.digests.put(frame.offset // self._target.block_size, raw)
            case _:
                raise TransferError("receive", f"a {frame.type.name.lower()} frame in the middle of the data")
        self._counters.target += time.monotonic() - started


def _accept(
    ctx: Context, listener: socket.socket, geometry: Geometry, ticket: str
) -> tuple[Connection, dict[str, object]]:
    """The connection of who knows the ticket; others are closed and do not end the wait."""
    deadline = time.monotonic() + ACCEPT_TIMEOUT_S
    listener.settimeout(0.2)
    while time.monotonic() < deadline:
        ctx.check()
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError as exc:
            raise TransferError("wait for the source proxy", exc.strerror or str(exc)) from exc
        sock.settimeout(HELLO_TIMEOUT_S)
        connection = Connection(sock, geometry)
        try:
            hello = connection.receive_text(FrameType.HELLO)
        except TransferError as exc:
            ctx.log(__name__).warning("closed a connection that did not introduce itself: %s", exc)
            connection.close()
            continue
        if hmac.compare_digest(str(hello.get("ticket", "")).encode(), ticket.encode()):
            sock.settimeout(None)
            return connection, hello
        ctx.log(__name__).warning("closed a connection with a wrong ticket")
        connection.close()
    raise TransferError("wait for the source proxy", f"it did not connect within {ACCEPT_TIMEOUT_S:.0f} s")


def _check_hello(hello: dict[str, object], receiving: Receiving) -> None:
    """Both sides must mean the same disk, point and base: a delta on another base would be wrong everywhere.

    :raises Refused: if they do not.
    """
    expected: dict[str, object] = {
        "version": 1, "disk": receiving.disk, "size": receiving.size, "block_size": receiving.block_size,
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
