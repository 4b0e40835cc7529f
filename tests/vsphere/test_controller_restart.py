"""The controller is killed while the snapshot is held: with a proxy that is a service, the next one goes on with it.

The proxy of all disks is a service of its own on this machine, so it outlives the commands that are controllers.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.controller.service_lab import START_TIMEOUT_S, free_port, serve_command
from tests.vsphere.installing import modes, task_of
from tests.vsphere.scene import INCREMENTAL, KEPT, SYSTEM, Scene, World, opened_world
from tests.vsphere.snapshot_scene import SnapshotScene, add_datastore
from understudy.platforms.vsphere.replica_points import POINT
from understudy.units import MIB

pytestmark = pytest.mark.timeout(1800)

#: No multiple of a block, a part, or of what tracking counts in.
SIZE = 4 * MIB + 512
RESUMED = "the controller was started again while the disks were under way, and went on with them"


class Service:
    """The proxy ``reader``, which the commands reach on loopback."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._state = world.place / "reader"
        self._process: subprocess.Popen[bytes] | None = None

    def enrol(self) -> None:
        """Invite it and enrol it, as on another host."""
        made = self._world.made
        here = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        token = made.ok("--json", "proxy", "invite", "reader", "--controller", here[0]).json["token"]
        made.ok("proxy", "enrol", token, "--state-dir", str(self._state), "--no-start", "--control-address", here[1],
                "--data-address", here[2])  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._world.place / "reader.log").open("ab") as log:
            self._process = subprocess.Popen(serve_command(self._state), stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log)  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._world.made.run("proxy", "check", "reader").status:
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@contextmanager
def running(world: World) -> Iterator[Service]:
    service = Service(world)
    try:
        service.enrol()
        service.start()
        yield service
    finally:
        service.kill()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with opened_world(vms=2) as made:
        add_datastore(made)
        yield made


@pytest.fixture(scope="module")
def service(world: World) -> Iterator[Service]:
    with running(world) as started:
        yield started


def replicated(kind: type[Scene], world: World, number: int) -> Scene:
    """A VM with a full copy by the service."""
    scene = kind(world, f"DC0_C0_RP0_VM{number}", (SYSTEM,))
    content = world.place / "content.raw"
    content.write_bytes(random.Random(number).randbytes(SIZE))
    world.vcenter.place_disk(scene.vm, content)
    world.vcenter.set_tools(scene.vm, running=True)
    options = ("--source-proxy", "reader", "--target-proxy", "reader")
    if isinstance(scene, SnapshotScene):
        scene.create_job(*options)
    else:
        scene.made.job(scene.job, scene.vm, options=("--points", str(KEPT), *options))
    scene.run()
    return scene


@pytest.fixture(scope="module")
def to_kvm(world: World, service: Service) -> Scene:
    return replicated(Scene, world, 0)


@pytest.fixture(scope="module")
def to_vsphere(world: World, service: Service) -> Scene:
    return replicated(SnapshotScene, world, 1)


def killed(scene: Scene, point: str, seed: int) -> dict[str, Path]:
    """Kill the controller of a run at that fault point; the guest writes before and after. What its snapshot has."""
    scene.write(seed, times=8)
    with scene.made.killed(scene.job, point):
        assert len(scene.snapshots) == 1
        copies = scene.frozen()
        scene.write(seed + 1)
        return copies


def again(scene: Scene) -> tuple[int, dict[str, Any]]:
    """Run the job again; its exit status, and the task of the session."""
    answer = scene.made.run("--json", "job", "run", scene.job)
    return answer.status, task_of(answer)


def gone_on(scene: Scene, point: str, seed: int) -> None:
    """What was killed there is gone on with; then an ordinary run has what was written meanwhile."""
    copies = killed(scene, point, seed)
    (left,) = scene.snapshots
    # While it can be gone on with, nobody sweeps it.
    listed = scene.made.ok("--json", "sweep", "--dry-run", "--host", "vc").json
    assert [(item["name"], item["action"]) for item in listed if item["kind"] == "snapshot"] == [(left, "skip")]
    status, task = again(scene)
    assert status == 0, task
    assert RESUMED in task["warnings"]
    assert modes(scene.published(task, copies)) == [INCREMENTAL]
    scene.assert_nothing_left()
    assert modes(scene.run()) == [INCREMENTAL]


def test_the_snapshot_is_found_again_and_its_point_is_made_on_kvm(to_kvm: Scene) -> None:
    gone_on(to_kvm, "read.middle", 10)


@pytest.mark.parametrize("point", ["read.middle", "point.sealed", "point.taken"])
def test_the_snapshot_is_found_again_and_its_point_is_made_on_vsphere(to_vsphere: Scene, point: str) -> None:
    gone_on(to_vsphere, point, len(point))
    assert isinstance(to_vsphere, SnapshotScene)
    to_vsphere.check_replica_settled()


@pytest.mark.parametrize("by_another", [False, True])
def test_a_snapshot_that_somebody_removed_makes_no_point_and_the_next_run_heals(
        to_kvm: Scene, *, by_another: bool) -> None:
    killed(to_kvm, "read.middle", 20 + by_another)
    admin, (name,) = to_kvm.world.admin, to_kvm.snapshots
    admin.wait(to_kvm.ref.RemoveAllSnapshots_Task())
    if by_another:
        # Of the same name, but of a later instant.
        admin.wait(to_kvm.ref.CreateSnapshot_Task(name, "", False, False))
    status, task = again(to_kvm)
    assert status == 1
    assert ("another snapshot has its name now" if by_another else "it is not held any more") in task["error"]
    to_kvm.check_points()
    assert modes(to_kvm.run()) == [INCREMENTAL]
    to_kvm.assert_nothing_left()


def test_a_session_whose_proxy_died_too_is_swept_by_the_next_run(to_kvm: Scene, service: Service) -> None:
    to_kvm.write(30, times=8)
    with to_kvm.made.killed(to_kvm.job, "read.middle"):
        (left,) = to_kvm.snapshots
        service.kill()
        to_kvm.write(31)
    service.start()
    task = to_kvm.run()
    assert f"removed snapshot '{left}' of a dead session from VM '{to_kvm.vm}'" in task["warnings"]
    assert modes(task) == [INCREMENTAL]
    to_kvm.assert_nothing_left()


def test_a_session_that_is_stopped_instead_leaves_no_snapshot_and_its_point_is_not_made(to_vsphere: Scene) -> None:
    killed(to_vsphere, "point.taken", 40)
    assert isinstance(to_vsphere, SnapshotScene)
    session = max(item["id"] for item in to_vsphere.made.ok("--json", "session", "list", "--job", to_vsphere.job).json)
    to_vsphere.made.ok("session", "stop", str(session))
    recorded = {POINT + point["id"] for point in to_vsphere.points()}
    assert recorded == {POINT + instant.point for instant in to_vsphere.instants[-len(recorded):]}
    # What the dead session made beyond the points on record goes with the next run.
    assert modes(to_vsphere.run()) == [INCREMENTAL]
    to_vsphere.assert_nothing_left()


@pytest.mark.parametrize("where", ["to_kvm", "to_vsphere"])
def test_the_snapshot_of_an_estimate_that_was_killed_goes_with_the_next_run(
        where: str, request: pytest.FixtureRequest) -> None:
    scene: Scene = request.getfixturevalue(where)
    scene.write(50)
    before = scene.points()
    with scene.made.stalled(scene.job, "survey.after", verb="estimate") as estimate:
        (left,) = scene.snapshots
        estimate.process.kill()
    scene.write(51)
    assert scene.points() == before
    task = scene.run()
    assert f"removed snapshot '{left}' of a dead session from VM '{scene.vm}'" in task["warnings"]
    assert modes(task) == [INCREMENTAL]
    scene.assert_nothing_left()
