"""An NBD server that says what it is told to: for block status that no honest server gives."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_OPTION_REPLY = 0x3E889045565A9
_REQUEST, _STRUCTURED = 0x25609513, 0x668E33EF
_GO, _STRUCTURED_REPLY, _SET_META_CONTEXT = 7, 8, 10
_ACK, _INFO, _META_CONTEXT, _UNSUPPORTED = 1, 3, 4, (1 << 31) + 1
_BLOCK_STATUS, _DISCONNECT = 7, 2
_DONE, _STATUS_CHUNK, _NONE_CHUNK = 1, 5, 0
_EXPORT_FLAGS = 1 | 2 | 1 << 8  # has flags, read only, several connections

#: Given context number by name, offset and length of a request: chunks of (context number, pairs of length and flags).
Answers = Callable[[dict[str, int], int, int], list[tuple[int, list[tuple[int, int]]]]]


@contextmanager
def lying_server(path: Path, size: int, answers: Answers) -> Iterator[None]:
    """A server for one connection after the other at the Unix socket ``path``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                connection, _ = listener.accept()
                with connection:
                    if not ended.is_set():
                        _serve(connection, size, answers)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            with socket.socket(socket.AF_UNIX) as knock:
                knock.connect(str(path))
            thread.join(10)
            path.unlink()


class _Gone(Exception):
    """The client closed."""


def _serve(connection: socket.socket, size: int, answers: Answers) -> None:
    def receive(length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = connection.recv(length - len(data))
            if not more:
                raise _Gone
            data += more
        return data

    try:
        connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        receive(4)
        contexts = _negotiate(connection, receive, size)
        while True:
            _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", receive(28))
            if kind == _DISCONNECT:
                return
            assert kind == _BLOCK_STATUS
            for context, pairs in answers(contexts, offset, length):
                body = struct.pack(">I", context) + b"".join(struct.pack(">II", *pair) for pair in pairs)
                connection.sendall(struct.pack(">IHHQI", _STRUCTURED, 0, _STATUS_CHUNK, cookie, len(body)) + body)
            connection.sendall(struct.pack(">IHHQI", _STRUCTURED, _DONE, _NONE_CHUNK, cookie, 0))
    except (_Gone, OSError):
        return  # what the client thinks of it is the test's matter


def _negotiate(connection: socket.socket, receive: Callable[[int], bytes], size: int) -> dict[str, int]:
    contexts: dict[str, int] = {}
    while True:
        _, option, length = struct.unpack(">8sII", receive(16))
        data = receive(length)

        def reply(kind: int, body: bytes = b"", option: int = option) -> None:
            connection.sendall(struct.pack(">QIII", _OPTION_REPLY, option, kind, len(body)) + body)

        if option == _STRUCTURED_REPLY:
            reply(_ACK)
        elif option == _SET_META_CONTEXT:
            for name in _queries(data):
                contexts[name] = len(contexts) + 1
                reply(_META_CONTEXT, struct.pack(">I", contexts[name]) + name.encode())
            reply(_ACK)
        elif option == _GO:
            reply(_INFO, struct.pack(">HQH", 0, size, _EXPORT_FLAGS))
            reply(_ACK)
            return contexts
        else:
            reply(_UNSUPPORTED)


def _queries(data: bytes) -> Iterator[str]:
    position = 4 + struct.unpack_from(">I", data)[0]
    (count,) = struct.unpack_from(">I", data, position)
    position += 4
    for _ in range(count):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4:position + 4 + length].decode()
        position += 4 + length
