"""Who may die where: the crash matrix, made from the sources, and what must be true after each of its cases.

The rows are the places of a run, found in the sources: before and after each step, and every fault point. The columns
are those who can die. A run stands still at a place, somebody is killed there, and the run goes on; then the next run
is an ordinary one. What must be true follows from what happened, by the rules in :func:`reasons`; there is no list of
cases, so that a new step or fault point is covered as soon as it is there.
"""

from __future__ import annotations

import enum
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import understudy
from tests.system.aftermath import Bench, remove_vms
from tests.system.installation import Answer, Installation
from understudy.faults import TRACE_VARIABLE
from understudy.lab.lab import Lab
from understudy.lab.power_fs import PowerFs
from understudy.lab.processes import ProcessIdentity
from understudy.lab.vm import LabVm
from understudy.model.session import Step
from understudy.units import MIB

POINTS_KEPT = 2
SOURCES = Path(next(iter(understudy.__path__)))
#: Modules of acts that are no part of a run, and have their tests elsewhere.
NO_PART_OF_A_RUN = (
    "replication/failover.py", "replication/conversion.py", "mover/verify.py", "mover/conversion.py",
    "storage/qcow2/salvage.py",
)
#: Modules of a kind of target that no libvirt host is: restore points that are snapshots of the replica VM.
OF_ANOTHER_TARGET = (
    "replication/snapshot_points.py", "mover/leaves.py", "storage/snapshots/draft.py", "storage/snapshots/store.py",
)
SOURCE_PROXY, TARGET_PROXY = "near", "far"
STORE_BYTES = 160 * MIB
#: What a scan may send of a disk whose guest wrote a few files since the last point: those, and its metadata.
LITTLE = 6 * MIB


def steps() -> list[str]:
    """Before and after every step that a run goes through."""
    told = {name for path in SOURCES.rglob("*.py") for name in re.findall(r"\.step\(Step\.(\w+)\)", path.read_text())}
    return [f"{step}.{side}" for step in Step if step.name in told for side in ("before", "after")]


def borders() -> list[str]:
    """Before the first step, between any two, and after the last.

    The end of a step and the beginning of the next are one instant for everybody but the controller, which alone is
    between them.
    """
    return [place for place in steps() if place.endswith(".before")] + steps()[-1:]


def fault_points(under: str = "") -> list[str]:
    """Every fault point of the sources that has a fixed name, but for those outside a run."""
    found: dict[str, None] = {}
    for path in sorted((SOURCES / under).rglob("*.py")):
        if str(path.relative_to(SOURCES)) not in NO_PART_OF_A_RUN + OF_ANOTHER_TARGET:
            found |= dict.fromkeys(re.findall(r'fault_point\("([^"]+)"\)', path.read_text()))
    return list(found)


#: Where the controller may die, and where anybody else may.
PLACES = [*steps(), *fault_points()]
PLACES_OF_OTHERS = [*borders(), *fault_points()]


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


@dataclass(frozen=True)
class Outcome:
    """What became of a run in which somebody died.

    :ivar recorded: whether its restore point is on record.
    :ivar heard: whether its controller lived on and knows of that point.
    """

    actor: Actor
    recorded: bool
    heard: bool


def reasons(outcome: Outcome) -> tuple[str, ...]:
    """Why the next run may be no incremental one; an empty reason: it must be one."""
    if outcome.actor is Actor.HYPERVISOR:
        # Its dirty bitmaps died with it: marked as in use in the image, or never written there. A run that read the
        # disks of the VM, which was off then, may have made a point without a baseline.
        return ("bitmap_inconsistent", "checkpoint_missing", *(["no_baseline"] if outcome.heard else []))
    if outcome.recorded and not outcome.heard and outcome.actor is not Actor.CONTROLLER:
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
            self.vm.wait_agent()
        self.assert_thawed()
        outcome = self._outcome(actor, answer, before, self.point_ids(replica))
        self.check_points(replica)
        self.write()
        (task,) = self.assert_healed(way.job, replica, reasons(outcome))["tasks"]
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

    def _outcome(self, actor: Actor, answer: Answer, before: Sequence[str], after: Sequence[str]) -> Outcome:
        """Check what the run says of itself against what is there, and what it did to older points."""
        new = [point for point in after if point not in before]
        kept = [point for point in after if point in before]
        assert len(new) <= 1, (before, after)
        assert list(after) == [*before[len(before) - len(kept):], *new], (before, after)
        assert len(after) >= min(len(before), POINTS_KEPT), (before, after)
        if actor is Actor.CONTROLLER:
            assert answer.status == -signal.SIGKILL, answer
            return Outcome(actor, bool(new), heard=False)
        assert answer.status in (0, 1), answer
        assert "Traceback" not in answer.err, answer
        (task,) = answer.json["tasks"]
        assert (task["restore_point"] is not None) == (answer.status == 0), answer
        assert task["restore_point"] in (None, *new), "a point that was reported is gone"
        assert task["error"] or answer.status == 0, answer
        return Outcome(actor, bool(new), heard=task["restore_point"] is not None)

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
            for proxy in self._proxies(way.proxies[actor is not Actor.SOURCE_PROXY]):
                proxy.signal(signal.SIGKILL)
                assert proxy.wait_end(10)
        if actor is Actor.TARGET_POWER:
            assert self._power is not None
            self._power.cut()

    def _proxies(self, name: str) -> list[ProcessIdentity]:
        """The running proxy of that name; none if it does not run."""
        marks = {b"understudy.mover", b"--name", name.encode()}
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            here = str(self.installation.home).encode()
            if marks <= set(words) and any(word.startswith(here) for word in words):
                identity = ProcessIdentity.of(int(entry.parent.name))
                found += [identity] if identity else []
        return found


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
        for job, suffix, proxies in dict.fromkeys((way.job, way.suffix, way.proxies) for way in WAYS):
            movers = ("--source-proxy", proxies[0], "--target-proxy", proxies[1])
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
