"""The store loses its power at every one of its fault points: each restore point on record is what it was."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.places import fault_points
from tests.unit.storage import replica_lab
from understudy.faults import TRACE_VARIABLE, VARIABLE
from understudy.lab.errors import CommandFailed
from understudy.lab.lab import Lab
from understudy.lab.power_fs import PowerFs
from understudy.storage.qcow2.format import CLUSTER
from understudy.storage.qcow2.store import Qcow2Store
from understudy.units import MIB

REPLICA = "web 1_replica"
PUBLISH = """
draft = store.begin_point('p5', (NewDisk('vda', 20 * CLUSTER, True), NewDisk('new', CLUSTER, False)))
for name in ('vda', 'new'):
    draft.layer(name).finish()
    draft.digest_path(name).write_bytes(b'digest of p5')
draft.publish(point_meta('p5'))
"""
KEPT = """
disk = NewDisk('vda', 20 * CLUSTER, True, mark='m')
draft = store.begin_point('p6', (disk,))
draft.digest_path('vda').write_bytes(b'digests')
draft.layer('vda').write_at(0, b'x' * CLUSTER)
draft.layer('vda').checkpoint(())
draft.keep()
store.begin_point('p7', (disk,)).keep()
"""
#: The first that comes by a fault point is the one that is killed there.
ACTS = (PUBLISH, "store.retire(('p1', 'p2'))", "store.bind_head('p4')", KEPT)


class Scene:
    """A replica of four points on a file system that can lose its power; disks chain, stand alone, come and go."""

    def __init__(self, power: PowerFs, template: Path, known: replica_lab.Lab) -> None:
        self._power = power
        self._template = template
        self._known = known
        self.datastore = power.directory / "datastore"
        self.acts: dict[str, str] = {}

    def learn(self) -> None:
        """Find out which act comes by which fault points."""
        trace = self._power.directory / "trace"
        for act in ACTS:
            self.fresh()
            self.run(act, env={TRACE_VARIABLE: str(trace)})
            for place in (self._power.outside / "trace").read_text().split():
                self.acts.setdefault(place, act)

    def fresh(self) -> replica_lab.Lab:
        """The replica as it was at first, durable."""
        place = self._power.outside / "datastore"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._template, place)
        self._power.host.namespaces.run(["sync", "-f", str(self._power.directory)])
        return replica_lab.Lab(Qcow2Store(place, REPLICA), dict(self._known.images), dict(self._known.heads))

    def run(self, act: str, *, env: Mapping[str, str] | None = None) -> None:
        """Do something to the store, as a process on the file system's host.

        :raises CommandFailed: if that was killed.
        """
        lines = "".join(f"    {line}\n" for line in act.strip().splitlines())
        code = (
            "from pathlib import Path\nfrom replica_lab import *\n"
            f"store = Qcow2Store(Path({str(self.datastore)!r}), {REPLICA!r})\nwith store.lock(1):\n{lines}"
        )
        paths = [str(Path(replica_lab.__file__).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
        search = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))}
        self._power.host.run([sys.executable, "-c", code], env={**search, **(env or {})})

    def cut(self) -> None:
        """Cut the power and give it back."""
        self._power.cut()


@pytest.fixture(scope="module", params=[False, True], ids=["no journal", "journal"])
def scene(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    name = "store-with-journal" if request.param else "store"
    power = PowerFs.mount(lab.beta, lab.directory / name, 96 * MIB, journal=request.param)
    template, rng = tmp_path_factory.mktemp("template"), random.Random(11)
    with replica_lab.lab_in(template) as made:
        made.add_point(rng, "p1", {"vda": 20 * CLUSTER, "vdb": 9 * CLUSTER + 512, "old": CLUSTER}, acts=9)
        made.add_point(rng, "p2", {"vda": 20 * CLUSTER, "vdb": 12 * CLUSTER}, acts=9)
        made.add_point(rng, "p3", {"vda": 20 * CLUSTER, "vdb": 12 * CLUSTER}, acts=9)
        made.add_point(rng, "p4", {"vda": 20 * CLUSTER, "vdb": 12 * CLUSTER}, full=frozenset({"vdb"}), acts=9)
        made.images["p5"] = {"vda": made.images["p4"]["vda"], "new": bytes(CLUSTER)}
        made.store.bind_head("p3")
        made.write_head("vda", 5 * CLUSTER, 3, 700)
    found = Scene(power, template, made)
    found.learn()
    yield found
    power.unmount()


@pytest.mark.parametrize("place", fault_points("storage/qcow2"))
def test_no_point_is_harmed_when_the_power_goes(scene: Scene, place: str) -> None:
    act = scene.acts[place]  # a new fault point that no act comes by needs an act of its own
    replica = scene.fresh()
    with pytest.raises(CommandFailed) as killed:
        scene.run(act, env={VARIABLE: f"{place}=kill"})
    assert "Traceback" not in str(killed.value)
    if "bind_head" in act:
        replica.heads.clear()
    scene.cut()
    replica.verify()
    before = {point.id for point in replica.store.load().points}
    assert {"p3", "p4"} <= before
    scene.run("store.sweep()")
    if "p5" not in before:
        scene.run(PUBLISH)
    if "p1" in before:
        scene.run("store.retire(('p1',))")
    replica.verify()
    replica.verify_files()


def test_what_an_act_that_ended_has_made_outlives_the_power(scene: Scene) -> None:
    replica = scene.fresh()
    scene.run(PUBLISH)
    scene.cut()
    assert replica.store.load().newest == replica.store.load().point("p5")
    scene.run("store.retire(('p1', 'p2'))")
    scene.cut()
    assert [point.id for point in replica.store.load().points] == ["p3", "p4", "p5"]
    replica.verify()
    replica.verify_files()
    scene.run("store.bind_head('p4')")
    replica.heads.clear()
    scene.cut()
    assert replica.store.head().point == "p4"
    assert replica.store.head().empty
    scene.run("store.retire(('p3',))")
    scene.cut()
    replica.verify()
    replica.verify_files()
