"""Rate limits on the wire between two sites, measured at the interface of the source's host.

What is limited is what the proxies put on their connections. The interface counts the headers of Ethernet, IP and TCP
too, and what the controller is answered: one percent together, because the kernel hands packets of up to 64 KiB over a
veth. On a real network the headers alone would be 4 percent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.site_lab import MBIT, Run, SiteLab, disk_of, fill, site_lab
from understudy.lab.disks import DataDisk
from understudy.lab.vm import LabVm
from understudy.mover.frames import LARGEST_DATA
from understudy.units import KIB, MIB

DATA_MIB = 48
RATE = 4 * MIB
TOLERANCE = 1.03
WINDOW_S = 10.0
LINE_BITS = 400 * MBIT


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[SiteLab, LabVm]]:
    with site_lab("paced", [DataDisk(64 * MIB), DataDisk(64 * MIB)]) as (sites, vm):
        sites.job("nightly", vm.name, points=2)
        sites.replicate("nightly", vm)
        sites.lab.link.set_rate(LINE_BITS)
        yield sites, vm


class Meter:
    """Samples of the bytes that left host alpha."""

    def __init__(self, sites: SiteLab) -> None:
        self._net = Path(f"/proc/{sites.lab.alpha.namespaces.holder.pid}/net/dev")
        self.samples: list[tuple[float, int]] = []

    def sample(self) -> None:
        """Look once."""
        (line,) = [line for line in self._net.read_text().splitlines() if line.strip().startswith("lablink:")]
        self.samples.append((time.monotonic(), int(line.split(":")[1].split()[8])))

    def rate(self, start: float, end: float) -> float:
        """Bytes per second between two moments."""
        inside = [sample for sample in self.samples if start <= sample[0] <= end]
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

    def highest(self, start: float, end: float, window_s: float = WINDOW_S) -> float:
        """The highest rate in any window that lies between two moments."""
        found = [0.0]
        for begin in [at for at, _ in self.samples if start <= at <= end - window_s]:
            found.append(self.rate(begin, begin + window_s))
        return max(found)


@contextmanager
def metered(sites: SiteLab) -> Iterator[Meter]:
    """A meter that is read ten times a second inside the block."""
    meter, ended = Meter(sites), threading.Event()

    def run() -> None:
        while not ended.wait(0.1):
            meter.sample()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield meter
    finally:
        ended.set()
        thread.join()


def _both_filled(vm: LabVm) -> None:
    fill(vm, DATA_MIB)
    fill(vm, DATA_MIB, disk="vdc")


def _sent(run: Run) -> dict[str, int]:
    return {disk.name: disk.wire_bytes for disk in run.task.disks if disk.name != "vda"}


@pytest.mark.parametrize("between", [(), ("--from", "near", "--to", "far")], ids=["all", "pair"])
def test_two_disks_share_a_limit_fairly_and_never_exceed_it(
    scene: tuple[SiteLab, LabVm], between: tuple[str, ...]
) -> None:
    sites, vm = scene
    _both_filled(vm)
    sites.pair.run("throttle", "add", "slow", "--rate", str(RATE), *between)
    with metered(sites) as meter:
        run = sites.begin("nightly", vm)
        run.await_sent(4 * MIB, "vdb")
        run.await_sent(4 * MIB, "vdc")
        began, before = time.monotonic(), _sent(run)
        time.sleep(12)
        ended, after = time.monotonic(), _sent(run)
        sites.pair.run("throttle", "remove", "slow")
        run.succeed()
    shares = {name: after[name] - before[name] for name in after}
    assert meter.highest(began, ended) <= RATE * TOLERANCE
    assert meter.rate(began, ended) >= RATE * 0.95
    # Bytes count when the block that they belong to is sent: at both ends a disk may be one ahead of its share.
    assert max(shares.values()) - min(shares.values()) <= 2 * (LARGEST_DATA + KIB)
    assert meter.highest(ended, meter.samples[-1][0], 1) > 2 * RATE


def test_a_changed_limit_holds_within_seconds(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    _both_filled(vm)
    sites.pair.run("throttle", "add", "slow", "--rate", str(RATE))
    with metered(sites) as meter:
        run = sites.begin("nightly", vm)
        run.await_sent(4 * MIB)
        began = time.monotonic()
        time.sleep(4)
        sites.pair.run("throttle", "set", "slow", "--rate", str(RATE // 4))
        lowered = time.monotonic()
        time.sleep(8)
        sites.pair.run("throttle", "set", "slow", "--rate", str(2 * RATE))
        raised = time.monotonic()
        time.sleep(6)
        ended = time.monotonic()
        run.succeed()
    rates = (meter.rate(began, began + 4), meter.rate(lowered + 3, lowered + 8), meter.rate(raised + 3, ended))
    for rate, limit in zip(rates, (RATE, RATE / 4, 2 * RATE), strict=True):
        assert 0.9 * limit <= rate <= limit * TOLERANCE
    assert disk_of(run.task).sent_bytes == DATA_MIB * MIB
    sites.pair.run("throttle", "remove", "slow")
