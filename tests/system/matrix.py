"""Who may die where: the crash matrix, made from the sources, and what must be true after each of its cases.

The rows are the places of a run, found in the sources: before and after each step, and every fault point. The columns
are those who can die. A run stands still at a place, somebody is killed there, and the run goes on; then the next run
is an ordinary one. What must be true follows from what happened, by the rules in :func:`reasons`; there is no list of
cases, so that a new step or fault point is covered as soon as it is there.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.aftermath import Bench, remove_vms
from tests.system.installation import Installation
from tests.system.living import proxies
from tests.system.outcome import Outcome, outcome_of
from tests.system.places import fault_points, steps
from understudy.faults import TRACE_VARIABLE
from understudy.lab.lab import Lab
from understudy.lab.power_fs import PowerFs
from understudy.lab.vm import LabVm
from understudy.units import MIB

POINTS_KEPT = 2
SOURCE_PROXY, TARGET_PROXY = "near", "far"
STORE_BYTES = 160 * MIB
#: What a scan may send of a disk whose guest wrote a few files since the last point: those, and its metadata.
LITTLE = 6 * MIB

#: Where the controller may die; anybody else has the same place at the end of a step and at the beginning of the next.
PLACES = [*steps(), *fault_points()]


class Actor(enum.StrEnum):
    """Who dies."""

    CONTROLLER = "controller"
    SOURCE_PROXY = "source proxy"
    TARGET_PROXY = "target proxy"
    HYPERVISOR = "QEMU"
    SOURCE_LIBVIRT = "libvirtd of the source"
    TARGET_LIBVIRT = "libvirtd of the target"
    TARGET_POWER = "power of the target"


@dataclass(frozen=True)
class Way:
    """A kind of run that reaches fault points which others do not.

    :ivar broken_at: where the run before it is killed, so that it finds what that one left.
    """

    job: str
    suffix: str
    proxies: tuple[str, str]
    broken_at: str = ""


#: The first that reaches a place is the one that is broken there.
WAYS = (
    Way("wired", "_w", (SOURCE_PROXY, TARGET_PROXY)),
    Way("beside", "_b", (TARGET_PROXY, TARGET_PROXY)),
    Way("wired", "_w", (SOURCE_PROXY, TARGET_PROXY), broken_at="checkpoint.recorded"),
)


def reasons(actor: Actor, outcome: Outcome) -> tuple[str, ...]:
    """Why the next run may be no incremental one; an empty reason: it must be one."""
    if actor is Actor.HYPERVISOR:
        # Its dirty bitmaps died with it: marked as in use in the image, or never written there. A run that read the
        # disks of the VM, which was off then, may have made a point without a baseline.
        return ("bitmap_inconsistent", "checkpoint_missing", *(["no_baseline"] if outcome.heard else []))
    if outcome.recorded and not outcome.heard and actor is not Actor.CONTROLLER:
        # The controller took the run for a failed one, and went back to the baseline of the point before.
        return ("checkpoint_missing",)
    return ("",)


class Matrix(Bench):
    """A bench with the jobs of all ways, whose places are known."""

    def __init__(self, installation: Installation, vm: LabVm, power: PowerFs | None) -> None:
        super().__init__(installation, vm)
        self._power = power
        self._ways: dict[str, Way] = {}

    def learn(self) -> None:
        """Make the replicas, and find out which places lie on each way."""
        for way in WAYS:
            self._prepare(way)
            trace = self.installation.place / "trace"
            # Retention begins when there are more points than are kept.
            for _ in range(POINTS_KEPT + 1 if way is WAYS[0] else 1):
                self.write()
                answer = self.installation.run("job", "run", way.job, env={TRACE_VARIABLE: str(trace)})
                assert answer.status == 0, answer
            for place in trace.read_text().split():
                self._ways.setdefault(place, way)
            trace.unlink()
            self.check_points(self.replica_of(way))

    def way_to(self, place: str) -> Way | None:
        """The way on which a place lies, or None."""
        return self._ways.get(place)

    def replica_of(self, way: Way) -> str:
        """Name of a way's replica."""
        return self.vm.name + way.suffix

    def strike(self, place: str, actor: Actor) -> None:
        """Let ``actor`` die while a run stands at ``place``; what must be true then, and after another run."""
        way = self.way_to(place)
        if way is None:
            pytest.skip("not on the way of a run, which a test of its own complains of")
        replica = self.replica_of(way)
        self._prepare(way)
        self.write()
        before = self.point_ids(replica)
        with self.installation.stalled(way.job, place) as broken:
            self._kill(actor, way, broken.process.pid)
        self.wait_processes_gone()
        answer = broken.ended
        if actor is Actor.HYPERVISOR:
            self.vm.start()
        self.assert_thawed()
        after, killed = self.point_ids(replica), actor is Actor.CONTROLLER
        outcome = outcome_of(answer, before, after, POINTS_KEPT, killed=killed)
        self.check_points(replica)
        self.write()
        (task,) = self.assert_healed(way.job, replica, reasons(actor, outcome))["tasks"]
        (disk,) = task["disks"]
        # Were there more, a change had been lost before, which the scan would hide from the check at the end.
        assert disk["mode"] == "incremental" or disk["sent_bytes"] < LITTLE, task
        if actor is Actor.HYPERVISOR:
            self.assert_healed(way.job, replica)

    def renew_baselines(self) -> None:
        """Run every job: the baselines of those that did not run since QEMU died have died with it."""
        for job in dict.fromkeys(way.job for way in WAYS):
            self.installation.replicate(job)

    def assert_nothing_lost(self) -> None:
        """The next point of every replica is the guest's disk, found incrementally; and every point verifies."""
        for job, replica in dict.fromkeys((way.job, self.replica_of(way)) for way in WAYS):
            self.assert_shows_the_source(job, replica)
            self.verify_all(replica)

    def _prepare(self, way: Way) -> None:
        """Let the run before fail, if this way is one that finds what that left."""
        if way.broken_at:
            self.write()
            assert self.run_broken(way.job, f"{way.broken_at}=kill").status == 1
            self.wait_processes_gone()

    def _kill(self, actor: Actor, way: Way, controller: int) -> None:
        """Kill ``actor``; what a host starts again by itself is there again at return."""
        source, target = self.installation.lab.hosts
        if actor is Actor.CONTROLLER:
            os.kill(controller, signal.SIGKILL)
        elif actor is Actor.HYPERVISOR:
            self.vm.process().signal(signal.SIGKILL)
            self.vm.wait_off()
        elif actor in (Actor.SOURCE_LIBVIRT, Actor.TARGET_LIBVIRT):
            host = source if actor is Actor.SOURCE_LIBVIRT else target
            host.kill_libvirtd()
            host.start_libvirtd()
        else:
            # Before the first step there are no proxies yet.
            for proxy in proxies(self.installation.home, way.proxies[actor is not Actor.SOURCE_PROXY]):
                proxy.signal(signal.SIGKILL)
                assert proxy.wait_end(10)
        if actor is Actor.TARGET_POWER:
            assert self._power is not None
            self._power.cut()


class OnTarget(Installation):
    """An installation whose controller and proxies run on the target host, which alone sees the datastore."""

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """On the target host."""
        return ("nsenter", *self.lab.beta.namespaces.enter_options(), "--")


@contextmanager
def matrix(lab: Lab, name: str, *, power: PowerFs | None = None) -> Iterator[Matrix]:
    """A matrix with a running VM ``name``, and all its ways known; removed at the end.

    :param power: file system at :func:`store_of` that is the datastore, seen by the target host only.
    """
    place = store_of(lab, name).parent
    (place / "tmp").mkdir(parents=True, exist_ok=True)
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(place / "tmp")
    try:
        installation = Installation(lab, place) if power is None else OnTarget(lab, place)
        if power is not None:
            installation.store = power.outside
        vm = lab.create_vm(lab.alpha, name)
        vm.wait_agent()
        for proxy in (SOURCE_PROXY, TARGET_PROXY):
            installation.ok("proxy", "add", proxy)
        for job, suffix, (near, far) in dict.fromkeys((way.job, way.suffix, way.proxies) for way in WAYS):
            movers = ("--source-proxy", near, "--target-proxy", far)
            installation.job(job, vm.name, options=("--points", str(POINTS_KEPT), "--suffix", suffix, *movers))
        made = Matrix(installation, vm, power)
        made.learn()
        yield made
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        remove_vms(lab)


def store_of(lab: Lab, name: str) -> Path:
    """Where the datastore of the matrix with this VM is."""
    return lab.directory / f"test-{name}" / "store"
