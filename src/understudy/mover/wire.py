"""Wire: frames over a connected stream socket, plain or TLS, without joining or copying buffers."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from understudy.errors import LinkLost, TransferError, UnderstudyError, from_fields
from understudy.mover.frames import (
    HEADER_BYTES,
    LARGEST_TEXT,
    NO_DISK,
    Codec,
    Frame,
    FrameType,
    Geometry,
    pack_header,
    unpack_header,
    verify,
)
from understudy.mover.meter import Counters
from understudy.units import KIB

Bytes = bytes | memoryview

DRAIN_S = 10.0
#: A small payload is joined with its header: one record and one packet instead of two.
_JOIN = 16 * KIB
#: A dead peer is noticed after this, also when nothing is to be sent.
_DEAD_S = 20
_PROBE_S = 5
_NUMBERS = 1 << 32


class Pace(Protocol):
    """How fast a transfer may send."""

    def take(self, check: Callable[[], None], length: int) -> tuple[int, float]:
        """Wait until some of ``length`` bytes may be sent; how many, and the seconds waited.

        :param check: called every now and then while it waits; what it raises ends the wait.
        """


class Connection:
    """One transfer connection. One thread sends, one receives; over TLS they must be the same, or take turns."""

    def __init__(self, sock: socket.socket) -> None:
        self.geometry = NO_DISK
        self._socket = sock
        self._sent = 0
        self._received = 0
        self._pace: Pace | None = None
        self._check: Callable[[], None] = lambda: None
        if sock.family != socket.AF_UNIX:
            _tune(sock)

    @property
    def sent(self) -> int:
        """How many frames were sent: the number of the next one."""
        return self._sent

    @property
    def received(self) -> int:
        """How many frames were received."""
        return self._received

    def about(self, geometry: Geometry) -> None:
        """From now on frames are about a disk; and the connection may be idle for as long as it likes."""
        self.geometry = geometry
        self._socket.settimeout(None)

    def paced(self, pace: Pace, check: Callable[[], None]) -> None:
        """From now on sending heeds ``pace``; ``check`` ends a wait by raising."""
        self._pace, self._check = pace, check

    def send(self, frame: Frame, raw: Bytes = b"", wire: Bytes = b"", counters: Counters | None = None) -> None:
        """Send ``frame`` with payload ``wire``, the encoded form of ``raw``.

        :raises LinkLost: if the connection is gone.
        """
        started, worked = time.monotonic(), time.thread_time()
        header = pack_header(replace(frame, number=self._sent % _NUMBERS), raw)
        with _errors("send"):
            if len(wire) <= _JOIN:
                self._send_bytes(header + bytes(wire))
            else:
                self._send_bytes(header)
                self._send_bytes(wire)
        self._sent += 1
        if counters is not None:
            # Making the checksum and encrypting is work of this proxy; the rest of the time the network made us wait.
            worked = time.thread_time() - worked
            counters.source_proxy += worked
            counters.network += max(0.0, time.monotonic() - started - worked)
            counters.wire += len(header) + len(wire)

    def send_text(self, frame_type: FrameType, fields: dict[str, object]) -> None:
        """Send a frame whose payload is JSON."""
        raw = json.dumps(fields).encode()
        self.send(Frame(frame_type, Codec.NONE, 0, len(raw), len(raw)), raw, raw)

    def receive(self, buffer: memoryview, counters: Counters | None = None) -> tuple[Frame, memoryview]:
        """The next frame and its payload, which lies in ``buffer``; :func:`verify` must follow when it is decoded.

        :raises LinkLost: if the connection is gone.
        :raises TransferError: if the frame is not acceptable.
        """
        started, worked = time.monotonic(), time.thread_time()
        with _errors("receive"):
            header = bytearray(HEADER_BYTES)
            self._receive_bytes(memoryview(header))
            frame = unpack_header(bytes(header), self.geometry)
            if frame.number != self._received % _NUMBERS:
                raise TransferError("decode the transfer stream", f"frame {frame.number} instead of {self._received}")
            payload = buffer[: frame.wire_length]
            if len(payload) != frame.wire_length:
                raise TransferError("decode the transfer stream", f"a payload of {frame.wire_length} bytes")
            self._receive_bytes(payload)
        self._received += 1
        if counters is not None:
            worked = time.thread_time() - worked
            counters.target_proxy += worked
            counters.network += max(0.0, time.monotonic() - started - worked)
            counters.wire += HEADER_BYTES + len(payload)
        return frame, payload

    def receive_text(self, expected: FrameType) -> dict[str, object]:
        """The JSON payload of the next frame, which must be of type ``expected``; the other side's error is raised.

        :raises LinkLost: if the connection is gone.
        :raises TransferError: if another frame comes.
        """
        frame, payload = self.receive(memoryview(bytearray(LARGEST_TEXT)))
        verify(frame, payload)
        if frame.type is FrameType.ERROR:
            raise error_of(payload)
        if frame.type is not expected:
            raise TransferError("receive", f"a {frame.type.name.lower()} frame instead of {expected.name.lower()}")
        return _fields_of(payload)

    def refuse(self, error: UnderstudyError) -> None:
        """Tell the other side why this one ends, then take in what it still sends, so that the message is not lost.

        A socket closed with unread bytes resets the connection; the reset could overtake the message.
        """
        fields: dict[str, object] = {"code": error.code, "what": error.what, "why": error.why, "todo": error.todo}
        scrap = memoryview(bytearray(64 * KIB))
        try:
            self._socket.settimeout(DRAIN_S)
            self.send_text(FrameType.ERROR, fields)
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            deadline = time.monotonic() + DRAIN_S
            while self._socket.recv_into(scrap) and time.monotonic() < deadline:
                pass
        except (OSError, LinkLost):
            # The other side is gone: it has its own error, and ours is raised here.
            pass

    def broken(self) -> bool:
        """Whether the other side closed, on a connection where it has nothing to say but that."""
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        except ValueError:  # another thread has closed it
            return True
        return bool(poll.poll(0))

    def wake(self) -> None:
        """End every wait on this connection, in all threads."""
        # Of the plain socket: SSLSocket.shutdown() would make a later read take ciphertext for content.
        with suppress(OSError):  # not connected any more: nobody can be waiting
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_bytes(self, data: Bytes) -> None:
        pace = self._pace
        if pace is None:
            self._socket.sendall(data)
            return
        view = memoryview(data)
        while view:
            count, _ = pace.take(self._check, len(view))
            self._socket.sendall(view[:count])
            view = view[count:]

    def _receive_bytes(self, view: memoryview) -> None:
        receive = self._socket.recv_into
        while view:
            count = receive(view)
            if count == 0:
                raise LinkLost("receive on the transfer connection", "the other side closed it")
            view = view[count:]


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _DEAD_S // _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_S * 1000)


def error_of(payload: Bytes) -> UnderstudyError:
    """The error in an error frame."""
    fields = _fields_of(payload)
    code, what, why, todo = (str(fields.get(name, "")) for name in ("code", "what", "why", "todo"))
    return from_fields(code, what, why, todo)


def _fields_of(payload: Bytes) -> dict[str, object]:
    try:
        fields = json.loads(bytes(payload))
    except (ValueError, RecursionError) as exc:
        raise TransferError("receive", "a text frame that is no JSON") from exc
    if not isinstance(fields, dict):
        raise TransferError("receive", "a text frame that is no JSON object")
    return fields


@contextmanager
def _errors(act: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:  # ssl.SSLError is one
        raise LinkLost(f"{act} on the transfer connection", exc.strerror or str(exc)) from exc
