"""Send: the source side of a transfer between two movers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from understudy.context import Context
from understudy.errors import TransferError
from understudy.model.extent import Extent
from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.mover.api import SendDisk
from understudy.mover.codecs import Encoder
from understudy.mover.copier import Copying, check_base, copy_disk, known_content
from understudy.mover.crew import Crew
from understudy.mover.digest import CHUNK, DIGEST_BYTES, DigestHeader, DigestReader, DigestWriter
from understudy.mover.frames import Codec, Frame, FrameType, Geometry, Totals
from understudy.mover.meter import Counters, Meter
from understudy.mover.reader import Source
from understudy.mover.wire import Connection

#: Digests are compared in pieces this long; a changed piece is sent whole.
GRAIN = 16 * DIGEST_BYTES


class WireSink:
    """Compresses and sends what one thread gives it, and counts it."""

    def __init__(self, connection: Connection, compression: Compression, counters: Counters) -> None:
        self._connection = connection
        self._encoder = Encoder(compression)
        self._counters = counters
        self.totals = Totals()

    def data(self, offset: int, view: memoryview) -> None:
        """Send data."""
        self._encode_and_send(FrameType.DATA, offset, view)

    def zero(self, extent: Extent) -> None:
        """Send a zero range."""
        self._send(Frame(FrameType.ZERO, Codec.NONE, extent.start, extent.length, 0), b"", b"")

    def digests(self, offset: int, digests: bytes) -> None:
        """Send digests from the block at ``offset`` on."""
        self._encode_and_send(FrameType.DIGEST, offset, digests)

    def _encode_and_send(self, frame_type: FrameType, offset: int, raw: bytes | memoryview) -> None:
        started = time.monotonic()
        codec, wire = self._encoder.encode(raw)
        self._counters.source_proxy += time.monotonic() - started
        self._send(Frame(frame_type, codec, offset, len(raw), len(wire)), raw, wire)

    def _send(self, frame: Frame, raw: bytes | memoryview, wire: bytes | memoryview) -> None:
        self._connection.send(frame, raw, wire, self._counters)
        self.totals.count(frame)


def send_disk(ctx: Context, request: SendDisk, base: DigestReader | None, digest_path: Path, meter: Meter) -> None:
    """Read a disk and send what changed; at return everything is durable on the target.

    :param base: the source side's digests of the base point.
    :param digest_path: where the source side's digest file of the new point is written.
    :raises TransferError: if reading or sending fails, or the target reports an error (then as that error).
    """
    read = request.read
    start = check_base(read, base)
    with ExitStack() as stack:
        source = Source(read.source, read.size, tracked=read.mode is TransferMode.INCREMENTAL)
        stack.callback(source.close)
        header = DigestHeader(read.point, read.size, read.block_size)
        digests = stack.enter_context(DigestWriter(digest_path, header, start))
        connection = _connect(request.socket, Geometry(read.size, read.block_size))
        stack.callback(connection.close)
        shared = _hello(ctx, connection, request, start)
        sinks: list[WireSink] = []

        def new_sink(counters: Counters) -> WireSink:
            sinks.append(WireSink(connection, request.compression, counters))
            return sinks[-1]

        copying = Copying(read, source, known_content(read, start), digests, meter)
        copy_disk(ctx, copying, new_sink, connection.wake)
        checksum = digests.finish()
        last = new_sink(meter.counters())

        def conclude() -> None:
            for offset, changed in changed_digests(digests, start if shared else None):
                last.digests(offset, changed)
            _finish(ctx, connection, sinks, checksum)

        # In a thread of its own, so that a cancel ends a send that the target does not take.
        Crew(ctx, f"finish {read.disk}", connection.wake).run([conclude])


def changed_digests(digests: DigestWriter, base: DigestReader | None) -> Iterator[tuple[int, bytes]]:
    """Pieces of the digest array that differ from the base's (or from zeros): offset on the disk and digests."""
    step = CHUNK // DIGEST_BYTES
    blocks = digests.header.blocks
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        now = digests.read(first, count)
        before = _before(base, first, count)
        if now == before:
            continue
        for start, end in _runs(now, before):
            yield (first + start // DIGEST_BYTES) * digests.header.block_size, now[start:end]


def _before(base: DigestReader | None, first: int, count: int) -> bytes:
    there = min(count, base.header.blocks - first) if base is not None else 0
    found = base.read(first, there) if base is not None and there > 0 else b""
    return found.ljust(count * DIGEST_BYTES, b"\0")


def _runs(now: bytes, before: bytes) -> Iterator[tuple[int, int]]:
    start = -1
    for position in range(0, len(now), GRAIN):
        same = now[position : position + GRAIN] == before[position : position + GRAIN]
        if not same and start < 0:
            start = position
        elif same and start >= 0:
            yield start, position
            start = -1
    if start >= 0:
        yield start, len(now)


def _connect(path: str, geometry: Geometry) -> Connection:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as exc:
        sock.close()
        raise TransferError(f"connect to the target proxy at {path}", exc.strerror or str(exc)) from exc
    return Connection(sock, geometry)


def _hello(ctx: Context, connection: Connection, request: SendDisk, start: DigestReader | None) -> bool:
    """Introduce the transfer; whether the target starts from the same base digests."""
    read = request.read
    connection.send_text(FrameType.HELLO, {
        "version": 1, "ticket": request.ticket, "disk": read.disk, "size": read.size, "block_size": read.block_size,
        "chained": read.chained, "mode": read.mode, "base_point": read.base_point, "point": read.point,
        "base_checksum": f"{start.header.checksum:016x}" if start is not None else "",
    })
    return connection.wait_text(ctx, FrameType.WELCOME).get("digests") == "base"


def _finish(ctx: Context, connection: Connection, sinks: list[WireSink], checksum: int) -> None:
    totals = Totals(checksum=checksum)
    for sink in sinks:
        totals.frames += sink.totals.frames
        totals.data += sink.totals.data
        totals.zero += sink.totals.zero
        totals.digests += sink.totals.digests
    raw = totals.pack()
    connection.send(Frame(FrameType.END, Codec.NONE, 0, len(raw), len(raw)), raw, raw)
    connection.wait_text(ctx, FrameType.ACKNOWLEDGE)
