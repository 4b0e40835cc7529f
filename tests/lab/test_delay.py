"""The delay relay: what goes through it comes out whole, late, and at the given rate."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from understudy.lab.delay import Wire

MIB = 1 << 20
Handler = Callable[[socket.socket], object]


@contextmanager
def _server(handle: Handler) -> Iterator[int]:
    """A TCP server that gives each connection to `handle`, in a thread of its own; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    handlers: list[threading.Thread] = []

    def serve_one(connection: socket.socket) -> None:
        with connection:
            handle(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            handlers.append(threading.Thread(target=serve_one, args=(connection,)))
            handlers[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *handlers):
            thread.join()


@contextmanager
def _relay(port: int, *options: str) -> Iterator[int]:
    """A relay to a port of this machine; the port it listens on."""
    argv = [sys.executable, "-m", "understudy.lab.delay", "--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{port}"]
    with subprocess.Popen([*argv, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        word, listening = process.stdout.readline().split()
        assert word == "ready"
        yield int(listening)
        process.stdin.close()
        assert process.wait(10) == 0


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def _receive_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def _echo_all(connection: socket.socket) -> None:
    connection.sendall(_receive_all(connection))


def _echo(connection: socket.socket) -> None:
    while part := connection.recv(MIB):
        connection.sendall(part)


def test_bytes_arrive_intact_both_ways_on_many_connections() -> None:
    def exchange(port: int) -> bool:
        data = os.urandom(4 * MIB + 77)
        with _connect(port) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return hashlib.sha256(_receive_all(connection)).digest() == hashlib.sha256(data).digest()

    with _server(_echo_all) as target, _relay(target, "--delay-ms", "20") as port, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(exchange, [port] * 8))


def test_a_round_trip_takes_twice_the_delay_and_a_new_connection_one_more() -> None:
    with _server(_echo) as target, _relay(target, "--delay-ms", "50") as port:
        started = time.monotonic()
        with _connect(port) as connection:
            seconds = []
            for _ in range(4):
                connection.sendall(b"ping")
                assert connection.recv(100) == b"ping"
                seconds.append(time.monotonic() - started)
                started = time.monotonic()
    assert seconds[0] >= 0.2
    assert min(seconds[1:]) >= 0.1
    # Not held back by more than the delay either; the best of three, for a busy machine.
    assert min(seconds[1:]) < 0.19


def test_four_connections_are_not_slowed_by_a_long_delay() -> None:
    def send(port: int) -> None:
        with _connect(port) as connection:
            connection.sendall(bytes(16 * MIB))
            connection.shutdown(socket.SHUT_WR)
            assert _receive_all(connection) == b"got it"

    def take(connection: socket.socket) -> None:
        _receive_all(connection)
        connection.sendall(b"got it")

    with _server(take) as target, _relay(target, "--delay-ms", "50") as port, ThreadPoolExecutor(4) as pool:
        started = time.monotonic()
        list(pool.map(send, [port] * 4))
        seconds = time.monotonic() - started
    # 64 MiB. With one read of 512 KiB per round trip and connection it would be 20 MiB/s.
    assert seconds < 2.0


def test_connections_share_the_rate() -> None:
    def send(port: int) -> None:
        with _connect(port) as connection:
            connection.sendall(bytes(MIB))
            connection.shutdown(socket.SHUT_WR)
            _receive_all(connection)

    options = ("--delay-ms", "5", "--rate", str(4 * MIB))
    with _server(_receive_all) as target, _relay(target, *options) as port:
        started = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, [port] * 4))
        seconds = time.monotonic() - started
    assert 0.9 < seconds < 4


def test_a_receiver_that_does_not_read_stops_the_sender() -> None:
    release = threading.Event()
    with _server(lambda _: release.wait(60)) as target, _relay(target, "--delay-ms", "1") as port:
        with _connect(port) as connection:
            connection.settimeout(1)
            sent = 0
            with suppress(TimeoutError):
                while sent < 256 * MIB:
                    sent += connection.send(bytes(MIB))
        release.set()
    # The queue, a last read, and what the kernel holds on both sides.
    assert 32 * MIB <= sent < 64 * MIB


def test_a_connection_that_breaks_on_one_side_ends_on_the_other() -> None:
    ended = threading.Event()

    def send_on(connection: socket.socket) -> None:
        assert connection.recv(100) == b"hello"
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(b"more")
        ended.set()

    with _server(send_on) as target, _relay(target, "--delay-ms", "5") as port:
        with _connect(port) as connection:
            connection.sendall(b"hello")
            time.sleep(0.1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert ended.wait(10)


def test_a_refused_connection_is_reset_after_a_round_trip() -> None:
    with _server(_echo) as target:
        pass
    with _relay(target, "--delay-ms", "50") as port:
        started = time.monotonic()
        with _connect(port) as connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert time.monotonic() - started >= 0.1


def test_a_sender_waits_while_the_wire_is_taken() -> None:
    wire = Wire(1_000_000)
    started = time.monotonic()
    for _ in range(4):
        wire.send(50_000)
    # 0.2 s, less what a late sender may catch up.
    assert time.monotonic() - started >= 0.18


def test_it_ends_on_sigterm() -> None:
    argv = [sys.executable, "-m", "understudy.lab.delay", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1"]
    with subprocess.Popen([*argv, "--delay-ms", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
