"""The peer of the copying rows: nbdcopy between two qemu-nbd servers."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import CpuMeter, Taken
from bench.lines import Inside, Line
from bench.tools import BenchError, run, timed

CONNECTIONS = 16
START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Server:
    """A running qemu-nbd."""

    socket: Path
    pid: int

    @property
    def uri(self) -> str:
        """How nbdcopy reaches it."""
        return f"nbd+unix:///?socket={self.socket}"


@dataclass(frozen=True)
class RemoteServer:
    """A running qemu-nbd on another host."""

    address: str
    port: int
    pid: int

    @property
    def uri(self) -> str:
        """How nbdcopy reaches it."""
        return f"nbd://{self.address}:{self.port}"


@contextmanager
def served(image: Path, *options: str, inside: Inside = nullcontext) -> Iterator[Server]:
    """The image served by qemu-nbd inside the context."""
    where = image.with_suffix(".nbd")
    with _running(image, inside, "-k", str(where), *options) as server:
        _wait_listening(server, where)
        yield Server(where, server.process.pid)
    where.unlink(missing_ok=True)


@contextmanager
def served_remotely(image: Path, address: str, port: int, inside: Inside) -> Iterator[RemoteServer]:
    """The image served by qemu-nbd by TCP, without encryption, on the host that ``inside`` means."""
    with _running(image, inside, "-b", address, "-p", str(port)) as server:
        with inside():
            _wait_listening(server, (address, port))
        yield RemoteServer(address, port, server.process.pid)


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def _running(image: Path, inside: Inside, *options: str) -> Iterator[_Running]:
    log = image.with_suffix(".log")
    # It ends with us, also when we are killed.
    end = ["setpriv", "--pdeathsig", "KILL"]
    command = [*end, "qemu-nbd", "-t", "-e", str(CONNECTIONS), "-f", "qcow2", *options, str(image)]
    with log.open("w") as said, inside():
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield _Running(server, log)
    finally:
        server.terminate()
        server.wait()
        log.unlink()


def _wait_listening(server: _Running, where: Path | tuple[str, int]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    family = socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(where) if isinstance(where, Path) else where) == 0:
                return
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"qemu-nbd does not serve at {where}: {server.log.read_text().strip()}")
        time.sleep(0.01)


def copy(source: Server, target: Path, size: int) -> Taken:
    """Let nbdcopy copy everything into a new qcow2 image, until the data is flushed.

    The time is nbdcopy's alone; the server of the new image runs before the clock does.
    """
    _create(target, size)
    with served(target) as server, CpuMeter({"servers": (source.pid, server.pid)}) as cpu:
        seconds = timed(lambda: run("nbdcopy", "--flush", source.uri, server.uri))
    return Taken(seconds, cpu.seconds)


def copy_over(line: Line, source: Server, target: Path, size: int, address: str, port: int) -> Taken:
    """As :func:`copy`, from the line's near host, where the source is, into an image on its far host.

    nbdcopy runs on the near host; it encrypts and compresses nothing.
    """
    _create(target, size)
    with (
        served_remotely(target, address, port, line.far) as server,
        line.near(),
        CpuMeter({"servers": (source.pid, server.pid)}) as cpu,
    ):
        seconds = timed(lambda: run("nbdcopy", "--flush", source.uri, server.uri))
    return Taken(seconds, cpu.seconds)


def _create(image: Path, size: int) -> None:
    image.unlink(missing_ok=True)
    run("qemu-img", "create", "-q", "-f", "qcow2", image, str(size))


def read(source: Server) -> Taken:
    """Let nbdcopy read everything."""
    with CpuMeter({"server": (source.pid,)}) as cpu:
        seconds = timed(lambda: run("nbdcopy", source.uri, "null:"))
    return Taken(seconds, cpu.seconds)
