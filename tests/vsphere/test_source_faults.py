"""What goes wrong around a job from a vCenter: it is waited for or told, nothing is lost, and the next run heals."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system.commands import StalledRun, await_while
from tests.vsphere.client import Client, connected
from tests.vsphere.installing import modes, task_of
from tests.vsphere.scene import INCREMENTAL, SYSTEM, Scene, World, opened_world
from understudy.units import MIB

pytestmark = pytest.mark.timeout(1200)

#: No multiple of a block, a part, or of what tracking counts in.
SIZE = 4 * MIB + 512
_IN_SMALL = 'mount -o loop "$0" "$1" && shift && exec "$@"'


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with opened_world(vms=2) as made:
        yield made


@pytest.fixture(scope="module")
def replicated(world: World) -> Scene:
    """A VM with a full copy."""
    scene = with_random_bytes(world, "DC0_C0_RP0_VM0")
    scene.create_job()
    scene.run()
    return scene


@pytest.fixture
def admin(world: World) -> Iterator[Client]:
    """A session of its own for each test: one cuts them all."""
    with connected(world.vcenter.url, world.vcenter.user, world.vcenter.password) as client:
        yield client


@pytest.fixture
def scene(replicated: Scene, admin: Client) -> Scene:
    """The same, and its guest has written."""
    replicated.world = replace(replicated.world, admin=admin)
    replicated.write(len(replicated.instants))
    return replicated


def with_random_bytes(world: World, vm: str) -> Scene:
    """A running VM with one disk."""
    scene, content = Scene(world, vm, (SYSTEM,)), world.place / f"{vm}.raw"
    content.write_bytes(random.Random(vm).randbytes(SIZE))
    world.vcenter.place_disk(vm, content)
    world.vcenter.set_tools(vm, running=True)
    return scene


def called(scene: Scene, method: str, times: int = 1) -> Callable[[], bool]:
    """Whether the method was called so often since now."""
    before = scene.vcenter.calls.count(method)
    return lambda: scene.vcenter.calls.count(method) >= before + times


def await_snapshot(scene: Scene, run: StalledRun) -> None:
    """Wait until the front has taken the snapshot, whatever the client knows of it."""
    await_while(run, lambda: bool(scene.disk(SYSTEM).chain.frozen), "there is no snapshot")


def test_tasks_that_take_their_time_are_waited_for_while_the_guest_writes(scene: Scene) -> None:
    taken = scene.vcenter.faults.slow_task("CreateSnapshot_Task")
    removed = scene.vcenter.faults.slow_task("RemoveSnapshot_Task")
    removal = called(scene, "RemoveSnapshot_Task")
    with scene.made.under_way(scene.job) as run:
        await_snapshot(scene, run)
        copies = scene.frozen()
        scene.write(1000)
        taken.release()
        await_while(run, removal, "the snapshot is not removed")
        removed.release()
    assert run.ended.status == 0, run.ended
    assert modes(scene.published(task_of(run.ended), copies)) == [INCREMENTAL]
    scene.assert_nothing_left()


def test_connections_that_are_cut_and_an_answer_that_is_lost_cost_nothing(scene: Scene) -> None:
    with scene.made.stalled(scene.job, "snapshot.after") as run:
        copies = scene.frozen()
        scene.write(1001)
        scene.vcenter.faults.drop("RemoveSnapshot_Task")
        scene.vcenter.cut_connections()
    assert run.ended.status == 0, run.ended
    vcenter = scene.vcenter
    with connected(vcenter.url, vcenter.user, vcenter.password) as again:
        after = replace(scene, world=replace(scene.world, admin=again))
        assert modes(after.published(task_of(run.ended), copies)) == [INCREMENTAL]
        after.assert_nothing_left()


def test_a_disk_that_another_program_holds_open_is_merged_when_it_lets_go(scene: Scene) -> None:
    taken = scene.vcenter.faults.slow_task("CreateSnapshot_Task")
    tries = called(scene, "ConsolidateVMDisks_Task", times=2)
    with scene.made.under_way(scene.job) as run:
        await_snapshot(scene, run)
        copies, chain = scene.frozen(), scene.disk(SYSTEM).chain
        (node,) = chain.frozen.values()
        with chain.file(node).open("rb") as reader:
            # As the disk library of another backup program does.
            fcntl.flock(reader, fcntl.LOCK_SH)
            taken.release()
            await_while(run, tries, "it is not tried again")
    assert run.ended.status == 0, run.ended
    assert modes(scene.published(task_of(run.ended), copies)) == [INCREMENTAL]
    scene.assert_nothing_left()


def test_a_full_datastore_of_the_vcenter_is_named_and_the_next_run_succeeds(scene: Scene) -> None:
    scene.vcenter.faults.fill_datastore("LocalDS_0")
    refused = scene.made.run("--json", "job", "run", scene.job)
    scene.vcenter.faults.free_datastore("LocalDS_0")
    assert refused.status == 1
    assert "no space is left on LocalDS_0" in task_of(refused)["error"]
    scene.check_points()
    scene.assert_nothing_left()
    assert modes(scene.run()) == [INCREMENTAL]


def test_a_target_that_gets_full_in_the_middle_keeps_its_points_and_the_next_run_heals(
        world: World, admin: Client) -> None:
    image, directory = world.place / "small.ext4", world.place / "small"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    directory.mkdir()
    # Each command has the file system mounted for itself alone: however it ends, nothing stays mounted.
    small = ("unshare", "--mount", "sh", "-c", _IN_SMALL, str(image), str(directory))
    made = replace(world.made, elsewhere=small, anew=True)
    scene = with_random_bytes(replace(world, made=made, admin=admin), "DC0_C0_RP0_VM1")
    made.ok("datastore", "add", "small", "--host", "beta", "--path", str(directory))
    made.job(scene.job, scene.vm, datastore="small")
    scene.run()
    disk = scene.disk(SYSTEM)
    scene.vcenter.write(scene.vm, disk.key, 0, random.Random(7).randbytes(3 * MIB))
    with made.stalled(scene.job, "snapshot.after") as run:
        scene.write(1002)
        hog = Path(f"/proc/{run.process.pid}/root{directory}/hog")
        take_all_but(hog, MIB)
    assert run.ended.status == 1
    assert "the datastore is full" in task_of(run.ended)["error"]
    scene.check_points()
    scene.assert_nothing_left()
    subprocess.run([*made.elsewhere, "rm", str(directory / "hog")], check=True)
    assert modes(scene.run()) == [INCREMENTAL]
    made.ok("replica", "verify", scene.replica)


def take_all_but(hog: Path, rest: int) -> None:
    """Fill the file system of the file, up to ``rest`` bytes."""
    with hog.open("wb") as file:
        state = os.fstatvfs(file.fileno())
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - rest)
