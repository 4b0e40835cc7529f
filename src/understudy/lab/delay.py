"""A long line in user space: forwards TCP connections with a delay each way, and at a given rate if one is given.

::

    python -m understudy.lab.delay --listen 127.0.0.1:0 --to 10.213.77.2:9000 --delay-ms 50 --rate 125000000

It writes `ready PORT` when it listens, and ends with its stdin or by SIGTERM. It is a stand-in for the kernel's netem,
which many machines lack: bytes take as long as on a long line, a connection takes a round trip to come about, and the
bottleneck is shared. It shows neither loss nor TCP's slow start. Each direction of a connection has two threads: one
reads as fast as it may, the other writes each piece when it is due.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import sys
import threading
import time
from collections import deque

_READ_SIZE = 512 << 10
# Twice what is under way at 1 Gbit/s with 100 ms; only a receiver that does not read fills it.
_QUEUE_BYTES = 32 << 20
# At a low rate pieces are small, so that the rate is even and connections take turns.
_PIECE_S = 0.01
# What a late reader may catch up, so that the rate is also reached where a sleep takes longer than asked for.
_CATCH_UP_S = 0.01


class Wire:
    """The bottleneck of one direction, shared by all connections: when has a piece left, at so many bytes a second?"""

    def __init__(self, rate: float | None) -> None:
        """:param rate: bytes per second; None for no limit."""
        self._rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.piece = _READ_SIZE if rate is None else max(4096, min(_READ_SIZE, int(rate * _PIECE_S)))

    def send(self, size: int) -> float:
        """Wait until `size` bytes have gone over the wire; the instant (monotonic clock) at which they had."""
        now = time.monotonic()
        if self._rate is None:
            return now
        with self._lock:
            self._free_at = max(self._free_at, now - _CATCH_UP_S) + size / self._rate
            gone_at = self._free_at
        time.sleep(max(0.0, gone_at - now))
        return gone_at


class DelayQueue:
    """What is under way in one direction of one connection: pieces with the instant at which each is due."""

    def __init__(self, limit: int = _QUEUE_BYTES) -> None:
        """:param limit: bytes under way from which on `put` waits."""
        self._limit = limit
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = threading.Condition()

    def put(self, piece: bytes, due: float) -> None:
        """Add a piece, an empty one at the end of the data; waits while too much is under way."""
        with self._changed:
            self._changed.wait_for(lambda: self._size < self._limit)
            self._pieces.append((due, piece))
            self._size += len(piece)
            self._changed.notify_all()

    def get(self) -> bytes:
        """Wait for the first piece, and until it is due, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._pieces))
            due, piece = self._pieces[0]
        # Nothing that comes later is due earlier, so nothing needs to wake this up.
        time.sleep(max(0.0, due - time.monotonic()))
        with self._changed:
            self._pieces.popleft()
            self._size -= len(piece)
            self._changed.notify_all()
        return piece


class _Direction:
    """One direction of one connection: its two threads, which end with the data or with the connection."""

    def __init__(self, source: socket.socket, target: socket.socket, wire: Wire, delay_s: float) -> None:
        self._source = source
        self._target = target
        self._wire = wire
        self._delay_s = delay_s
        self._queue = DelayQueue()
        self._threads = [threading.Thread(target=act, daemon=True) for act in (self._read, self._write)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        while True:
            try:
                piece = self._source.recv(self._wire.piece)
            except OSError:
                # The peer broke off: as far as the other side can tell, its data ends here.
                piece = b""
            gone_at = self._wire.send(len(piece))
            self._queue.put(piece, gone_at + self._delay_s)
            if not piece:
                return

    def _write(self) -> None:
        broken = False
        # Taken to its end also when nobody receives any more: the reader may wait for room.
        while piece := self._queue.get():
            try:
                if not broken:
                    self._target.sendall(piece)
            except OSError:
                broken = True
                # The sender learns it when the news has come back.
                time.sleep(self._delay_s)
                _reset(self._source)
        _end_of_data(self._target)


def _end_of_data(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        # It is gone already; who reads from it finds out.
        return


def _reset(sock: socket.socket) -> None:
    """Take no more data of a sender whose receiver is gone; what it sends from now on is answered by a reset."""
    try:
        _reset_when_closed(sock)
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It is gone already.
        return


def _reset_when_closed(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Relay:
    """Forwards every connection to a listening socket to the target, until the process ends."""

    def __init__(self, target: tuple[str, int], delay_s: float, rate: float | None = None) -> None:
        """:param delay_s: seconds one way. :param rate: bytes per second each way, of all connections together."""
        self._target = target
        self._delay_s = delay_s
        self._there = Wire(rate)
        self._back = Wire(rate)

    def serve(self, listener: socket.socket) -> None:
        """Accept connections; never returns."""
        while True:
            client, _address = listener.accept()
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client:
            # The handshake of the line that this stands for. The client was told at once, but hears nothing before.
            time.sleep(2 * self._delay_s)
            try:
                server = socket.create_connection(self._target)
            except OSError as exc:
                print(f"{self._target[0]}:{self._target[1]}: {exc}", file=sys.stderr, flush=True)
                _reset_when_closed(client)
                return
            with server:
                self._join_both(client, server)

    def _join_both(self, client: socket.socket, server: socket.socket) -> None:
        for sock in (client, server):
            # Pieces were cut by somebody else's Nagle already; ours would delay the last of each burst.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        directions = [
            _Direction(client, server, self._there, self._delay_s),
            _Direction(server, client, self._back, self._delay_s),
        ]
        for direction in directions:
            direction.start()
        for direction in directions:
            direction.join()


def main() -> None:
    """Listen, say so, and forward until stdin ends."""
    arguments = _parser().parse_args()
    listener = socket.create_server(arguments.listen, backlog=128)
    relay = Relay(arguments.to, arguments.delay_ms / 1000, arguments.rate)
    threading.Thread(target=relay.serve, args=(listener,), daemon=True).start()
    print(f"ready {listener.getsockname()[1]}", flush=True)
    while os.read(sys.stdin.fileno(), 4096):
        pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m understudy.lab.delay", description="Forward TCP with a delay.")
    parser.add_argument("--listen", type=_address, required=True, metavar="HOST:PORT", help="port 0: any free one")
    parser.add_argument("--to", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, required=True, metavar="MS", help="one way")
    parser.add_argument("--rate", type=float, metavar="BYTES", help="bytes per second each way, of all connections")
    return parser


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    main()
