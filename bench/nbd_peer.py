"""The peer of the copying rows: nbdcopy between two qemu-nbd servers."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import CpuMeter, Taken
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


@contextmanager
def served(image: Path, *options: str) -> Iterator[Server]:
    """The image served by qemu-nbd inside the context."""
    where = image.with_suffix(".nbd")
    command = ["qemu-nbd", "-t", "-e", str(CONNECTIONS), "-f", "qcow2", "-k", str(where), *options, str(image)]
    log = where.with_suffix(".log")
    with log.open("w") as said:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        _wait_listening(server, where, log)
        yield Server(where, server.pid)
    finally:
        server.terminate()
        server.wait()
        where.unlink(missing_ok=True)
        log.unlink()


def _wait_listening(server: subprocess.Popen[bytes], where: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(where)) == 0:
                return
        if server.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"qemu-nbd does not serve {where}: {log.read_text().strip()}")
        time.sleep(0.01)


def copy(source: Server, target: Path, size: int) -> Taken:
    """Let nbdcopy copy everything into a new qcow2 image, until the data is flushed.

    The time is nbdcopy's alone; the server of the new image runs before the clock does.
    """
    target.unlink(missing_ok=True)
    run("qemu-img", "create", "-q", "-f", "qcow2", target, str(size))
    with served(target) as server, CpuMeter({"servers": (source.pid, server.pid)}) as cpu:
        seconds = timed(lambda: run("nbdcopy", "--flush", source.uri, server.uri))
    return Taken(seconds, cpu.seconds)


def read(source: Server) -> Taken:
    """Let nbdcopy read everything."""
    with CpuMeter({"server": (source.pid,)}) as cpu:
        seconds = timed(lambda: run("nbdcopy", source.uri, "null:"))
    return Taken(seconds, cpu.seconds)
