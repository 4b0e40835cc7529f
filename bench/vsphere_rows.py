"""Inventory of a vCenter with very many VMs: the simulated one of the tests, and our list in a process of its own.

``python -m bench.vsphere_rows URI USER`` reads the password from standard input, and prints JSON: seconds, seconds of
the processor, largest resident set in MiB, number of VMs. The simulator answers in one piece, whatever is asked for, so
that the memory has the whole answer in it; a real server answers in pages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.memory import sizes
from bench.result import Goal, Row, Unit
from bench.settings import Settings
from bench.tools import BenchError
from tests.vsphere.simulator import Inventory, Simulator, missing, simulator
from understudy.model.access import HostAccess
from understudy.platforms import open_platform, server_certificate

LIST, MEMORY = "vsphere-list", "memory-vsphere-list"
NAMES = (LIST, MEMORY)


@dataclass(frozen=True)
class _Listed:
    seconds: float
    processor_s: float
    peak_mib: float
    vms: int


def list_rows(settings: Settings, place: Path) -> Iterator[Row]:  # noqa: ARG001 - the signature of all rows
    """All VMs with all of their disks and network cards."""
    if not settings.wants(*NAMES):
        return
    if reason := missing():
        raise BenchError(reason)
    with simulator(Inventory(vms=settings.vms, autostart=False), "bench", "of the bench", tls=True) as server:
        found = [_list(server, settings.vms) for _ in range(settings.runs)]
    yield Row(LIST, f"listing the {settings.vms:,} VMs of a simulated vCenter", Unit.SECONDS,
              tuple(listed.seconds for listed in found), Goal(30),
              {"processor_s": [listed.processor_s for listed in found]}, "the number of VMs")  # fmt: skip
    yield Row(MEMORY, f"largest resident set in {LIST}", Unit.MEBIBYTES,
              tuple(listed.peak_mib for listed in found), None)  # fmt: skip


def _list(server: Simulator, vms: int) -> _Listed:
    uri = f"vpx://{urlsplit(server.url).netloc}/"
    said = subprocess.run([sys.executable, "-m", "bench.vsphere_rows", uri, server.user], input=server.password,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if said.returncode:
        raise BenchError(said.stderr)
    listed = _Listed(**json.loads(said.stdout))
    if listed.vms != vms:
        raise BenchError(f"{listed.vms} VMs are listed, {vms} are there")
    return listed


def _measure(uri: str, user: str, password: str) -> _Listed:
    access = HostAccess(uri, user, password, server_certificate(uri).thumbprint)
    with closing(open_platform(access)) as platform:
        started, processor = time.monotonic(), time.process_time()
        vms = platform.list_vms()
        seconds, processor_s = time.monotonic() - started, time.process_time() - processor
    complete = sum(1 for vm in vms if vm.disks and vm.nics)
    return _Listed(seconds, processor_s, sizes("self")["VmHWM"], complete)


GROUPS = (list_rows,)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], sys.stdin.read()).__dict__))
