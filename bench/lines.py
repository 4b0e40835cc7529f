"""Lines: how a source mover reaches a target mover."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from bench.tools import BenchError

#: Processes that are started inside the context run on one of the line's hosts.
Inside = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Line:
    """The way from one mover to the other.

    :ivar listen: where the target mover listens for TLS; empty: they meet at a Unix socket.
    :ivar address: where the source mover connects.
    :ivar near: the host of the source mover.
    :ivar far: the host of the target mover.
    """

    listen: str = ""
    address: str = ""
    near: Inside = nullcontext
    far: Inside = nullcontext

    @property
    def tls(self) -> bool:
        """Whether the movers use TLS."""
        return bool(self.listen)


UNIX = Line()


def loopback() -> Line:
    """TLS inside this machine."""
    address = f"127.0.0.1:{_free_port()}"
    return Line(address, address)


@contextmanager
def relayed(delay_ms: float, rate: float) -> Iterator[Line]:
    """TLS inside this machine through a relay in user space; for many machines lack the kernel's netem.

    :param delay_ms: one way.
    :param rate: bytes per second each way.
    """
    listen = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "understudy.lab.delay", "--listen", "127.0.0.1:0", "--to", listen,
               "--delay-ms", str(delay_ms), "--rate", str(rate)]  # fmt: skip
    # It ends with its standard input, so also when we are killed.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay:
        word, _, port = (relay.stdout.readline() if relay.stdout else "").partition(" ")
        if word != "ready":
            raise BenchError(f"the relay with {delay_ms} ms did not start")
        yield Line(listen, f"127.0.0.1:{int(port)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
