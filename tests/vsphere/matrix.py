"""The crash matrix for VMware vSphere: as :mod:`tests.system.matrix`, with a vCenter that may forget everybody.

The rows are found in the sources, the columns are those who can die. A run stands still at a place, the guest writes,
somebody is killed, and the run goes on; then the next run is an ordinary one. After either of them every restore point
is compared with what the source was at its snapshot, byte for byte.
"""

from __future__ import annotations

import enum
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.system.living import our_processes, proxies, wait_gone
from tests.system.outcome import outcome_of
from tests.system.places import fault_points
from tests.vsphere.installing import Vsphere
from tests.vsphere.machines import Disk
from tests.vsphere.shelves import Shelf
from tests.vsphere.steps import VM
from understudy.faults import TRACE_VARIABLE
from understudy.model.extent import PART
from understudy.units import KIB, MIB

POINTS_KEPT = 2
#: No multiple of a block, a part, or of what tracking counts in.
SIZE = 4 * MIB + 512
#: The jobs' block size.
BLOCK = 256 * KIB
SOURCE_PROXY, TARGET_PROXY = "near", "far"
#: Of stores whose places have a matrix of their own, with the same proxies: ``tests/system/test_matrix*.py``. Here it
#: matters what the source is when a point is published.
LAYERS = ("storage/qcow2/",)
#: Where the source's proxy has something to do.
READING = ["read.middle", *fault_points("mover")]
_TAKE = "CreateSnapshot_Task"


class Actor(enum.StrEnum):
    """Who dies."""

    CONTROLLER = "controller"
    SOURCE_PROXY = "source proxy"
    TARGET_PROXY = "target proxy"
    VCENTER = "vCenter"


@dataclass(frozen=True)
class Way:
    """A kind of run that reaches fault points which others do not."""

    job: str
    suffix: str
    proxies: tuple[str, str]


#: The first that reaches a place is the one that is broken there.
WAYS = (Way("wired", "_w", (SOURCE_PROXY, TARGET_PROXY)), Way("beside", "_b", (TARGET_PROXY, TARGET_PROXY)))


def publishing() -> list[str]:
    """The places of every store in which a point becomes visible."""
    return [place for place in fault_points("storage/qcow2") if place.startswith("publish.")]


@dataclass(frozen=True)
class Instant:
    """What the source was at a snapshot.

    :ivar writes: how often the guest had written.
    """

    content: bytes
    writes: int


@dataclass
class Matrix:
    """A VM with one disk and a job for each way; the guest writes before and after everything.

    :ivar place: the directory of all files.
    """

    made: Vsphere
    shelf: Shelf
    place: Path
    _known: dict[tuple[str, str], Instant] = field(default_factory=dict)
    _ways: dict[str, Way] = field(default_factory=dict)
    _written: list[range] = field(default_factory=list)

    def learn(self) -> None:
        """Make the replicas, and find out which places lie on each way."""
        trace = self.place / "trace"
        for way in WAYS:
            # Retention begins when there are more points than are kept.
            for _ in range(POINTS_KEPT + 1 if way is WAYS[0] else 1):
                self.write()
                answer = self.made.run("--json", "job", "run", way.job, env={TRACE_VARIABLE: str(trace)})
                assert answer.status == 0, answer
                self._known[self.replica_of(way), answer.json["tasks"][0]["restore_point"]] = self.now()
            for place in trace.read_text().split():
                self._ways.setdefault(place, way)
            trace.unlink()
            self.check_points(way)

    def way_to(self, place: str) -> Way | None:
        """The way on which a place lies, or None."""
        return self._ways.get(place)

    def replica_of(self, way: Way) -> str:
        """Name of a way's replica."""
        return VM + way.suffix

    def strike(self, place: str, actor: Actor) -> None:
        """Let ``actor`` die while a run stands at ``place``; what must be true then, and after another run."""
        way = self.way_to(place)
        if way is None:
            pytest.skip("not on the way of a run, which a test of its own complains of")
        self.write()
        before, taken = self.point_ids(way), self.made.vcenter.calls.count(_TAKE)
        with self.made.stalled(way.job, place) as broken:
            at_snapshot = self.now()
            self.write()
            if self.made.vcenter.calls.count(_TAKE) == taken:
                at_snapshot = self.now()
            self._kill(actor, way, broken.process.pid)
        wait_gone(self.place)
        after = self.point_ids(way)
        outcome = outcome_of(broken.ended, before, after, POINTS_KEPT, killed=actor is Actor.CONTROLLER)
        assert outcome.heard or actor is not Actor.VCENTER, broken.ended
        if outcome.recorded:
            self._known[self.replica_of(way), after[-1]] = at_snapshot
        self.check_points(way)
        self.write()
        self.assert_healed(way)

    def assert_healed(self, way: Way) -> None:
        """The next plain run succeeds, is incremental, sends no more than was written, and all is clean afterwards.

        Whoever died: nothing of a baseline is kept at the server. A change id is in the record of its point, both
        become visible at once, and the next run goes on from what is on record, whether the controller has heard of it
        or not.
        """
        replica = self.replica_of(way)
        # What an unfinished layer has already is looked at by whole blocks.
        unit = BLOCK if any(self.place.rglob("*.partial")) else PART
        changed = self._changed_since(self._known[replica, self.point_ids(way)[-1]], unit)
        task = self.made.replicate(way.job)
        (disk,) = task["disks"]
        assert (disk["mode"], disk["reason"]) == ("incremental", ""), task
        assert 0 < disk["sent_bytes"] <= changed, task
        self._known[replica, task["restore_point"]] = self.now()
        assert self.point_ids(way)[-1] == task["restore_point"]
        self.check_points(way)
        self.assert_clean(way)

    def assert_nothing_lost(self) -> None:
        """The next point of every replica is the guest's disk, found incrementally; and every point verifies."""
        for way in WAYS:
            self.write()
            self.assert_healed(way)
            for point in self.point_ids(way):
                self.made.ok("replica", "verify", self.replica_of(way), "--point", point)
        assert self.made.json("sweep", "--dry-run") == []

    def write(self) -> None:
        """The guest writes at two places of its disk."""
        rng = random.Random(len(self._written))
        for _ in range(2):
            length = rng.randint(1, PART)
            start = rng.randint(0, SIZE - length)
            self.made.vcenter.write(VM, self._disk.key, start, rng.randbytes(length))
            self._written.append(range(start, start + length))

    def now(self) -> Instant:
        """What the guest sees now."""
        return Instant(self._disk.file.read_bytes(), len(self._written))

    def _changed_since(self, instant: Instant, unit: int) -> int:
        """How many bytes the units of the disk have at the most in which the guest has written since."""
        written = self._written[instant.writes :]
        return unit * len({number for area in written for number in range(area[0] // unit, area[-1] // unit + 1)})

    def point_ids(self, way: Way) -> list[str]:
        """Restore points on record, oldest first."""
        return [point["id"] for point in self.shelf.record(self.replica_of(way))["points"]]

    def check_points(self, way: Way) -> None:
        """Every restore point is what the source was at its snapshot."""
        replica = self.replica_of(way)
        points = {point["id"]: point for point in self.shelf.record(replica)["points"]}
        for name, point in points.items():
            same = self.shelf.content(replica, point) == self._known[replica, name].content
            assert same, f"point {name} of {replica}"
        for key in [key for key in self._known if key[0] == replica and key[1] not in points]:
            del self._known[key]

    def assert_clean(self, way: Way) -> None:
        """Nothing of an ended run is left, anywhere."""
        vcenter, disk, needed = self.made.vcenter, self._disk, "runtime.consolidationNeeded"
        found = [*our_processes(self.place), *self.shelf.left(self.replica_of(way))]
        found += [f"snapshot {name}" for name in vcenter.snapshots(VM).values()]
        found += [f"consolidate {name}" for name, wanted in vcenter.properties(VM, needed).items() if wanted]
        found += [f"delta {node.path}" for node in disk.chain.nodes if node is not disk.chain.live]
        strays = [*disk.file.parent.glob("*-0000??*"), *self.place.glob("tmp/understudy-*"),
                  *self.place.rglob("*.partial")]  # fmt: skip
        found += map(str, strays)
        assert not found, found

    def _kill(self, actor: Actor, way: Way, controller: int) -> None:
        if actor is Actor.CONTROLLER:
            os.kill(controller, signal.SIGKILL)
        elif actor is Actor.VCENTER:
            self.made.vcenter.forget_sessions()
            self.made.vcenter.cut_connections()
        else:
            # Before the first step there are no proxies yet.
            for proxy in proxies(self.made.home, way.proxies[actor is not Actor.SOURCE_PROXY]):
                proxy.signal(signal.SIGKILL)
                assert proxy.wait_end(10)

    @property
    def _disk(self) -> Disk:
        (disk,) = self.made.vcenter.disks(VM)
        return disk


@contextmanager
def matrix(made: Vsphere, shelf: Shelf, place: Path, target: str) -> Iterator[Matrix]:
    """A matrix of the front's first VM, and all its ways known.

    :param target: the host that has the datastore ``ds``.
    """
    (place / "tmp").mkdir()
    content = place / "content.raw"
    content.write_bytes(random.Random(1).randbytes(SIZE))
    made.vcenter.place_disk(VM, content)
    made.vcenter.set_tools(VM, running=True)
    for proxy in (SOURCE_PROXY, TARGET_PROXY):
        made.ok("proxy", "add", proxy)
    for way in WAYS:
        movers = ("--source-proxy", way.proxies[0], "--target-proxy", way.proxies[1])
        made.job(way.job, VM, target=target, options=("--points", str(POINTS_KEPT), "--suffix", way.suffix, *movers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(place / "tmp"))
        learned = Matrix(made, shelf, place)
        learned.learn()
        yield learned
