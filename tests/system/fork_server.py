"""A process that has the program imported, and becomes a command or a proxy for each request: a fork of itself.

Started by :mod:`tests.system.forked` with its end of a socket as standard input; ends when the other end is closed. Its
forks have a socket of their own for requests: a command asks for its proxies there.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.schema import copying_schema

#: A request: JSON of :class:`Request`, with its three standard streams and the socket for its outcome.
LONGEST_REQUEST = 128 << 10
#: What a fork says when it is there and what it then waits for: whoever asked holds on to it first.
READY, GO = b"ready", b"go"
#: What a command or a proxy imports in the course of its life, besides the modules of the command line.
_IMPORTED_LATE = (
    "anyio._backends._asyncio", "sqlalchemy.dialects.sqlite.pysqlite", "tests.system.forked",
    "understudy.controller.database", "understudy.controller.services", "understudy.main",
    "understudy.mover.__main__", "understudy.mover.api.survey", "understudy.mover.api.transfer",
    "understudy.mover.process", "understudy.platforms.libvirt", "understudy.platforms.vsphere.host",
    "understudy.storage.qcow2", "uvicorn.lifespan.off", "uvicorn.loops.auto", "uvicorn.protocols.http.auto",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What to become.

    :ivar arguments: as a shell would give them: the Python interpreter, ``-m``, a module, what it is told.
    :ivar new_session: away from the terminal and its signals.
    """

    arguments: list[str]
    environment: dict[str, str]
    directory: str
    new_session: bool = False


@dataclass(frozen=True)
class _Child:
    pid: int
    outcome: socket.socket


def main() -> None:
    """Serve until nobody asks any more; in a fork, be what was asked for."""
    control = socket.socket(fileno=0)
    ours, of_forks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_all()
    fork = _serve(control, ours)
    if fork is not None:
        sys.exit(_be(*fork, of_forks))


def _import_all() -> None:
    from sqlalchemy.orm import configure_mappers

    from understudy.cli.app import COMMANDS
    from understudy.controller import migrate
    from understudy.mover.operations import load_all

    load_all()
    vars(migrate)["migrate"] = copying_schema(migrate.migrate)
    for module in (*(where.partition(":")[0] for where in COMMANDS.values()), *_IMPORTED_LATE):
        importlib.import_module(module)
    configure_mappers()
    gc.collect()
    gc.freeze()
    if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - names are enough
        raise RuntimeError("an import has started a thread, which no fork would have")


def _serve(control: socket.socket, of_forks: socket.socket) -> tuple[Request, socket.socket] | None:
    """Make forks and tell how they ended; None when that is over, in each fork its request and who waits for it."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(of_forks, selectors.EVENT_READ)
        while True:
            for key, _events in selector.select():
                if key.data is not None:
                    _tell_end(selector, key.fd, key.data)
                    continue
                asked = control if key.fileobj is control else of_forks
                message, descriptors, _flags, _address = socket.recv_fds(asked, LONGEST_REQUEST, 4)
                if not message:
                    return None
                *streams, last = descriptors
                outcome = socket.socket(fileno=last)
                if _fork(selector, control, streams, outcome):
                    of_forks.close()
                    return Request(**json.loads(message)), outcome


def _fork(
    selector: selectors.BaseSelector, control: socket.socket, streams: list[int], outcome: socket.socket
) -> bool:
    """True in the fork, which has its standard streams then, and nothing of the server's."""
    pid = os.fork()
    if pid:
        for descriptor in streams:
            os.close(descriptor)
        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, _Child(pid, outcome))
        return False
    for key in list(selector.get_map().values()):
        if key.data is not None:
            os.close(key.fd)
            key.data.outcome.close()
    selector.close()
    # Its number is that of standard input.
    control.detach()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return True


def _tell_end(selector: selectors.BaseSelector, descriptor: int, child: _Child) -> None:
    selector.unregister(descriptor)
    os.close(descriptor)
    _pid, status = os.waitpid(child.pid, 0)
    with child.outcome:
        # What a fork that was killed did not read would make the end of the socket an error, and the answer be lost.
        with contextlib.suppress(BlockingIOError):
            child.outcome.recv(len(GO), socket.MSG_DONTWAIT)
        # Whoever asked may not want to know.
        with contextlib.suppress(BrokenPipeError):
            child.outcome.send(str(os.waitstatus_to_exitcode(status)).encode())


def _be(request: Request, outcome: socket.socket, of_forks: socket.socket) -> int:
    """Become what was asked for, as if it had been started; begin when whoever waits for it can signal it."""
    if request.new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    tempfile.tempdir = None
    time.tzset()
    _show(request.arguments)
    with outcome:
        outcome.send(READY)
        if outcome.recv(len(GO)) != GO:
            return 1
    from tests.system.forked import start_proxy
    from understudy.main import main as command
    from understudy.mover import process
    from understudy.mover.__main__ import main as proxy

    # After the interpreter and -m MODULE.
    sys.argv = [sys.argv[0], *request.arguments[3:]]
    if request.arguments[2] == "understudy.mover":
        of_forks.close()
        proxy()
        return 0
    vars(process)["spawn"] = partial(start_proxy, of_forks)
    return command()


def _show(arguments: list[str]) -> None:
    """Let /proc and ps show these arguments: the tests find processes by them."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    room, line = end - start, b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
    if len(line) > room:
        raise RuntimeError(f"no room for a command line of {len(line)} bytes")
    ctypes.memmove(start, line.ljust(room, b"\0"), room)

