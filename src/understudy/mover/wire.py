"""Wire: frames over a connected stream socket, without joining or copying buffers."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from understudy.context import Context
from understudy.errors import TransferError, UnderstudyError, from_fields
from understudy.mover.frames import HEADER_BYTES, Codec, Frame, FrameType, Geometry, pack_header, unpack_header, verify
from understudy.mover.meter import Counters

Bytes = bytes | memoryview

DRAIN_S = 10.0
POLL_S = 0.1


class Connection:
    """One transfer connection; :meth:`send` and :meth:`receive` may each be called by several threads."""

    def __init__(self, sock: socket.socket, geometry: Geometry) -> None:
        self._socket = sock
        self._geometry = geometry
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._ended = False
        self._refusal: UnderstudyError | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(
        self, frame: Frame, raw: Bytes = b"", wire: Bytes = b"", counters: Counters | None = None
    ) -> None:
        """Send ``frame`` with payload ``wire``, the encoded form of ``raw``. The other side's error is raised here.

        :raises TransferError: if the connection is gone.
        """
        header = pack_header(frame, raw)
        started = time.monotonic()
        with self._sending, _errors("send"):
            if self._poll.poll(0):
                # Between hello and end the target only speaks when it failed.
                self._raise_error()
            self._send_or_hear(header, wire)
        if counters is not None:
            counters.network += time.monotonic() - started
            counters.wire += len(header) + len(wire)

    def send_text(self, frame_type: FrameType, fields: dict[str, object]) -> None:
        """Send a frame whose payload is JSON."""
        raw = json.dumps(fields).encode()
        self.send(Frame(frame_type, Codec.NONE, 0, len(raw), len(raw)), raw, raw)

    def receive(self, buffer: memoryview, counters: Counters | None = None) -> tuple[Frame, memoryview] | None:
        """The next frame and its payload, which lies in ``buffer``; after the end frame None to every other thread.

        :raises TransferError: if the connection was closed in the middle, or the frame is not acceptable.
        """
        started = time.monotonic()
        with self._receiving, _errors("receive"):
            if self._ended:
                return None
            frame, payload = self._receive_frame(buffer)
            self._ended = frame.type is FrameType.END
        if counters is not None:
            counters.network += time.monotonic() - started
            counters.wire += HEADER_BYTES + len(payload)
        return frame, payload

    def receive_text(self, expected: FrameType) -> dict[str, object]:
        """The JSON payload of the next frame, which must be of type ``expected``; the other side's error is raised.

        :raises TransferError: if another frame or nothing comes.
        """
        with self._receiving, _errors("receive"):
            frame, payload = self._receive_frame(memoryview(bytearray(64 << 10)))
        verify(frame, payload)
        if frame.type is FrameType.ERROR:
            raise _error_of(payload)
        if frame.type is not expected:
            raise TransferError("receive", f"a {frame.type.name.lower()} frame instead of {expected.name.lower()}")
        return _fields_of(payload) if payload else {}

    def wait_text(self, ctx: Context, expected: FrameType) -> dict[str, object]:
        """As :meth:`receive_text`, for as long as it takes.

        :raises Cancelled: if the operator asked for the end meanwhile.
        """
        while not self._poll.poll(POLL_S * 1000):
            ctx.check()
        return self.receive_text(expected)

    def refuse(self, error: UnderstudyError) -> None:
        """Tell the other side why this one ends, then take in what it still sends, so that the message is not lost.

        A socket closed with unread bytes resets the connection; the reset could overtake the message.
        """
        fields: dict[str, object] = {"code": error.code, "what": error.what, "why": error.why, "todo": error.todo}
        raw = json.dumps(fields).encode()[: 64 << 10]
        try:
            self._socket.settimeout(DRAIN_S)
            frame = Frame(FrameType.ERROR, Codec.NONE, 0, len(raw), len(raw))
            _send_all(self._socket, pack_header(frame, raw), raw)
            self._socket.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + DRAIN_S
            while self._socket.recv(1 << 20) and time.monotonic() < deadline:
                pass
        except OSError:
            # The other side is gone: it has its own error, and ours is raised here.
            pass

    def wake(self) -> None:
        """End every wait on this connection, in all threads."""
        self._shutdown(socket.SHUT_RDWR)

    def wake_readers(self) -> None:
        """End every wait for a frame; :meth:`refuse` still works."""
        self._shutdown(socket.SHUT_RD)

    def _shutdown(self, how: int) -> None:
        # An error here means not connected any more: nobody can be waiting.
        with suppress(OSError):
            self._socket.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_or_hear(self, header: bytes, payload: bytes | memoryview) -> None:
        try:
            _send_all(self._socket, header, payload)
        except (BrokenPipeError, ConnectionResetError):
            # The target stopped listening; why is the last thing it says.
            if self._poll.poll(DRAIN_S * 1000):
                self._raise_error()
            raise

    def _receive_frame(self, buffer: memoryview) -> tuple[Frame, memoryview]:
        header = bytearray(HEADER_BYTES)
        _receive_all(self._socket, memoryview(header))
        frame = unpack_header(bytes(header), self._geometry)
        payload = buffer[: frame.wire_length]
        if len(payload) != frame.wire_length:
            raise TransferError("receive", f"a frame of {frame.wire_length} bytes where it is not allowed")
        _receive_all(self._socket, payload)
        return frame, payload

    def _raise_error(self) -> None:
        if self._refusal is not None:
            # Said once, and every sending thread must hear it: behind it there is only the end of the stream.
            raise self._refusal
        frame, payload = self._receive_frame(memoryview(bytearray(64 << 10)))
        verify(frame, payload)
        if frame.type is FrameType.ERROR:
            self._refusal = _error_of(payload)
            raise self._refusal
        raise TransferError("send", f"the target sent a {frame.type.name.lower()} frame too early")


def _send_all(sock: socket.socket, header: bytes, payload: bytes | memoryview) -> None:
    sent = sock.sendmsg((header, payload))
    if sent < len(header):
        sock.sendall(header[sent:])
        sent = len(header)
    rest = memoryview(payload)[sent - len(header) :]
    if rest:
        sock.sendall(rest)


def _receive_all(sock: socket.socket, view: memoryview) -> None:
    while view:
        count = sock.recv_into(view, 0, socket.MSG_WAITALL)
        if count == 0:
            raise TransferError("receive", "the other side closed the connection in the middle")
        view = view[count:]


def _error_of(payload: memoryview) -> UnderstudyError:
    fields = _fields_of(payload)
    code, what, why, todo = (str(fields.get(name, "")) for name in ("code", "what", "why", "todo"))
    return from_fields(code, what, why, todo)


def _fields_of(payload: memoryview) -> dict[str, object]:
    try:
        fields = json.loads(bytes(payload))
    except ValueError as exc:
        raise TransferError("receive", "a text frame that is no JSON") from exc
    if not isinstance(fields, dict):
        raise TransferError("receive", "a text frame that is no JSON object")
    return fields


@contextmanager
def _errors(act: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise TransferError(f"{act} on the transfer connection", exc.strerror or str(exc)) from exc
