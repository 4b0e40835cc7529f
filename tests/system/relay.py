"""Ports of a lab host, reachable at the same numbers on this machine's loopback address."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

from understudy.lab.hosts import LabHost

LOOPBACK = "127.0.0.1"
_CLONE_NEWNET = 0x40000000


@contextmanager
def relayed(host: LabHost, ports: range) -> Iterator[None]:
    """Connections to these ports of 127.0.0.1 end at the same ports of the host's own 127.0.0.1."""
    # A thread that is on the host's network for good; sockets stay on the network where they were made.
    with ExitStack() as stack, ThreadPoolExecutor(1) as on_host:
        on_host.submit(_enter_network, host.namespaces.holder.pid).result()
        for port in ports:
            server = stack.enter_context(socket.create_server((LOOPBACK, port)))
            thread = threading.Thread(target=_serve, args=(server, port, on_host))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield


def _enter_network(pid: int) -> None:
    handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(handle)


def _serve(server: socket.socket, port: int, on_host: ThreadPoolExecutor) -> None:
    with ExitStack() as ends:
        while True:
            try:
                near = ends.enter_context(server.accept()[0])
            except OSError:
                return  # shut down
            try:
                far = ends.enter_context(on_host.submit(socket.create_connection, (LOOPBACK, port)).result())
            except OSError:
                near.shutdown(socket.SHUT_RDWR)
                continue
            for one, other in ((near, far), (far, near)):
                thread = threading.Thread(target=_pump, args=(one, other))
                thread.start()
                ends.callback(thread.join)
                ends.callback(_end, one)


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until either side ends, then end both."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    _end(source)
    _end(target)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
