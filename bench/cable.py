"""Cable: two private hosts joined by a line of a given rate, limited by the kernel; for movers, without libvirt.

Both hosts are namespaces of the lab: they, all that runs in them, and the cable end with this process, however it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from bench.lines import Line
from bench.tools import BenchError, run
from understudy.lab.namespaces import Namespaces

NEAR_ADDRESS, FAR_ADDRESS = "10.213.78.1", "10.213.78.2"
PORT = 7000
_INTERFACE = "cable"
#: As on the lab's cable: what the kernel hands down at once is not split, and short transfers do not pass unlimited.
_BURST_S = 0.005
_QUEUE_MS = 50
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Cable:
    """A line with a host at each end."""

    near: Namespaces
    far: Namespaces

    @property
    def line(self) -> Line:
        """For movers."""
        return Line(f":{PORT}", f"{FAR_ADDRESS}:{PORT}", partial(inside, self.near), partial(inside, self.far))

    def carried(self) -> int:
        """Bytes that left the near host so far, with the headers of every packet: what the rate limit counts."""
        said = self.near.run(["tc", "-s", "-j", "qdisc", "show", "dev", _INTERFACE])
        return sum(int(queue["bytes"]) for queue in json.loads(said) if queue["kind"] == "tbf")


@contextmanager
def cable(bits_per_s: int) -> Iterator[Cable]:
    """Two hosts and a line that carries so many bits a second, each way."""
    with closing(Namespaces("near", {})) as near, closing(Namespaces("far", {})) as far:
        ends = [_INTERFACE, "type", "veth", "peer", "name", _INTERFACE]
        # Only its network is entered: the pid of the other host is one of ours.
        run("nsenter", "--target", str(near.holder.pid), "--net", "ip", "link", "add", *ends,
            "netns", str(far.holder.pid))  # fmt: skip
        for host, address in ((near, NEAR_ADDRESS), (far, FAR_ADDRESS)):
            host.run(["ip", "address", "add", f"{address}/30", "dev", _INTERFACE])
            host.run(["ip", "link", "set", _INTERFACE, "up"])
            limits = ["rate", f"{bits_per_s}bit", "burst", f"{int(bits_per_s / 8 * _BURST_S)}b"]
            host.run(["tc", "qdisc", "add", "dev", _INTERFACE, "root", "tbf", *limits, "latency", f"{_QUEUE_MS}ms"])
        yield Cable(near, far)


@contextmanager
def inside(host: Namespaces) -> Iterator[None]:
    """Processes that are started in this context have the host's network, and end with the host."""
    # Neither changes this process itself, whose thread must not start others meanwhile; paths stay as they are.
    kinds = ("net", "pid_for_children")
    back = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in kinds]
    try:
        for kind in ("net", "pid"):
            handle = os.open(f"/proc/{host.holder.pid}/ns/{kind}", os.O_RDONLY)
            try:
                _enter(handle)
            finally:
                os.close(handle)
        yield
    finally:
        for handle in back:
            _enter(handle)
            os.close(handle)


def _enter(handle: int) -> None:
    if _libc.setns(handle, 0) != 0:
        raise BenchError(f"enter a namespace: {os.strerror(ctypes.get_errno())}")
