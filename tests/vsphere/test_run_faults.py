"""The disk library fails in the middle of a job, or somebody holds a disk of the source for longer than we wait.

Each time the session says what happened, no point is lost or wrong, and the next run heals without reading all again.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.system.commands import Answer, await_while
from tests.vsphere.installing import modes, task_of
from tests.vsphere.scene import INCREMENTAL, SYSTEM, Scene, World, opened_world
from tests.vsphere.snapshot_scene import SnapshotScene, add_datastore
from understudy.units import MIB

pytestmark = pytest.mark.timeout(1200)

#: No multiple of a block, a part, or of what tracking counts in.
SIZE = 4 * MIB + 512
LOCKED = "Unable to access a file since it is locked"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with opened_world(vms=3) as made:
        add_datastore(made)
        yield made


@pytest.fixture(autouse=True)
def well_again(world: World) -> Iterator[None]:
    """Whatever fails, the library of the next test does not."""
    yield
    world.made.library.fail()


def made_of(kind: type[Scene], world: World, number: int) -> Scene:
    """A running VM with one disk of random bytes, and its job."""
    vm = f"DC0_C0_RP0_VM{number}"
    content = world.place / f"{vm}.raw"
    content.write_bytes(random.Random(number).randbytes(SIZE))
    world.vcenter.place_disk(vm, content)
    world.vcenter.set_tools(vm, running=True)
    scene = kind(world, vm, (SYSTEM,))
    scene.create_job()
    return scene


@pytest.fixture(scope="module")
def to_kvm(world: World) -> Scene:
    """A VM whose replica is on KVM."""
    return made_of(Scene, world, 0)


@pytest.fixture(scope="module")
def to_vsphere(world: World) -> Scene:
    """A VM whose replica is on vSphere."""
    return made_of(SnapshotScene, world, 1)


def failed(scene: Scene) -> str:
    """Run the job, which must fail; what its task says."""
    answer = scene.made.run("--json", "job", "run", scene.job)
    return error_of(answer)


def error_of(answer: Answer) -> str:
    assert answer.status == 1, answer
    assert answer.json["state"] == "failed"
    return str(task_of(answer)["error"])


def servers(world: World, *, writing: bool) -> list[int]:
    """The nbdkits that have the stand-in's sessions, which are named by their processes."""
    directory = Path(f"{world.made.library.log}.sessions")
    found = {int(entry.name.partition(".")[0]) for entry in directory.iterdir()}
    return [pid for pid in sorted(found) if is_server(pid, writing=writing)]


def is_server(pid: int, *, writing: bool) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False
    return words[0] == b"nbdkit" and (b"--readonly" not in words) == writing


def killed_in_the_middle(scene: Scene, call: str) -> str:
    """Run the job, and kill the nbdkit that carries out that call of the library, which it has begun; what it says."""
    library = scene.made.library
    library.forget()
    library.fail(slow_read_ms=400)
    with scene.made.under_way(scene.job) as run:
        await_while(run, lambda: len(library.calls(call)) > 2, f"no {call}")
        (server,) = servers(scene.world, writing=call == "Write")
        os.kill(server, signal.SIGKILL)
        library.fail()
    return error_of(run.ended)


def test_a_connection_that_is_lost_while_the_first_copy_is_read(to_kvm: Scene) -> None:
    to_kvm.made.library.fail(short_session=9)
    error = failed(to_kvm)
    assert "ended the connection" in error
    assert "TCP port 443 of the server and 902 of its ESXi hosts" in error
    to_kvm.assert_nothing_left()
    to_kvm.made.library.fail()
    # Of another instant than the unfinished copy.
    to_kvm.write(1)
    assert modes(to_kvm.run()) == [("full", "first_run")]


@pytest.mark.parametrize("requests", [1, 3])
def test_a_connection_that_is_lost_while_changes_are_read(to_kvm: Scene, requests: int) -> None:
    to_kvm.write(10 + requests, times=8)
    to_kvm.made.library.fail(short_session=requests)
    assert "ended the connection" in failed(to_kvm)
    to_kvm.check_points()
    to_kvm.assert_nothing_left()
    to_kvm.made.library.fail()
    to_kvm.write(20 + requests)
    assert modes(to_kvm.run()) == [INCREMENTAL]
    to_kvm.assert_nothing_left()


def test_nbdkit_is_killed_while_it_reads(to_kvm: Scene) -> None:
    to_kvm.write(30, times=30)
    error = killed_in_the_middle(to_kvm, "Read")
    assert "nbdkit ended with status -9" in error
    to_kvm.check_points()
    to_kvm.assert_nothing_left()
    to_kvm.write(31)
    assert modes(to_kvm.run()) == [INCREMENTAL]
    to_kvm.assert_nothing_left()


def test_a_connection_that_is_lost_while_the_first_copy_is_written_on_vsphere(to_vsphere: Scene) -> None:
    to_vsphere.made.library.fail(fail_write=7)
    error = failed(to_vsphere)
    assert "ended the connection" in error
    to_vsphere.assert_nothing_left()
    to_vsphere.made.library.fail()
    # Where the broken copy has data there are zeros now, which nobody writes to a new disk.
    disk = to_vsphere.disk(SYSTEM)
    to_vsphere.vcenter.write(to_vsphere.vm, disk.key, 0, bytes(3 * MIB))
    assert modes(to_vsphere.run()) == [("full", "first_run")]
    to_vsphere.assert_nothing_left()


def test_a_connection_that_is_lost_while_changes_are_written_on_vsphere(to_vsphere: Scene) -> None:
    to_vsphere.write(40, times=12)
    to_vsphere.made.library.fail(fail_write=4)
    assert "ended the connection" in failed(to_vsphere)
    to_vsphere.check_points()
    to_vsphere.assert_nothing_left()
    to_vsphere.made.library.fail()
    to_vsphere.write(41)
    assert modes(to_vsphere.run()) == [INCREMENTAL]
    to_vsphere.assert_nothing_left()


def test_a_connection_that_is_lost_when_all_was_written_on_vsphere_and_nothing_flushed(to_vsphere: Scene) -> None:
    """The server has the bytes, perhaps; a point is none before they are durable."""
    to_vsphere.write(45, times=12)
    to_vsphere.made.library.forget()
    to_vsphere.made.library.fail(fail_flush=1)
    assert "ended the connection" in failed(to_vsphere)
    counts = to_vsphere.made.library.counts()
    assert counts["Flush"] == 1
    assert counts["Write"]
    to_vsphere.check_points()
    to_vsphere.assert_nothing_left()
    to_vsphere.made.library.fail()
    to_vsphere.write(46)
    assert modes(to_vsphere.run()) == [INCREMENTAL]
    to_vsphere.assert_nothing_left()


@pytest.mark.parametrize("call", ["Write", "Read"])
def test_nbdkit_is_killed_while_the_replica_on_vsphere_is_written(to_vsphere: Scene, call: str) -> None:
    to_vsphere.write(len(call), times=30)
    assert "nbdkit ended with status -9" in killed_in_the_middle(to_vsphere, call)
    to_vsphere.check_points()
    to_vsphere.assert_nothing_left()
    to_vsphere.write(51)
    assert modes(to_vsphere.run()) == [INCREMENTAL]
    to_vsphere.assert_nothing_left()


@pytest.fixture(scope="module")
def held_open(world: World) -> Scene:
    """A VM, replicated to KVM, whose disk other programs open."""
    scene = made_of(Scene, world, 2)
    scene.run()
    return scene


def refuse_merging(scene: Scene, times: int) -> None:
    """The next consolidations fail as with a file that somebody has open; not by the fault that is waited for."""
    fault = vim.fault.GenericVmConfigFault(reason="locked", msg=LOCKED)
    scene.vcenter.faults.fail_task("ConsolidateVMDisks_Task", fault, times)


def run_with_the_disk_held(scene: Scene, reader: ExitStack, seed: int) -> dict[str, Any]:
    """Run the job; another program opens the disk while the snapshot is held, until ``reader`` ends."""
    scene.write(seed)
    taken = scene.vcenter.faults.slow_task("CreateSnapshot_Task")
    refuse_merging(scene, times=2)  # commands of tests try once more
    with scene.made.under_way(scene.job) as run:
        await_while(run, lambda: bool(scene.disk(SYSTEM).chain.frozen), "there is no snapshot")
        copies, chain = scene.frozen(), scene.disk(SYSTEM).chain
        (node,) = chain.frozen.values()
        # As the disk library of another backup program does.
        fcntl.flock(reader.enter_context(chain.file(node).open("rb")), fcntl.LOCK_SH)
        taken.release()
        scene.write(seed + 1)
    assert (run.ended.status, run.ended.json["state"]) == (0, "warning"), run.ended
    task = scene.published(task_of(run.ended), copies)
    assert modes(task) == [INCREMENTAL]
    return task


def merge_of(scene: Scene) -> str:
    """What an administrator is told to type."""
    return f"(Get-VM '{scene.vm}').ExtensionData.ConsolidateVMDisks()"


def unmerged(scene: Scene) -> tuple[str, str, list[str]]:
    """What a sweep would do with the delta, and what may be typed instead; it finds nothing else."""
    (found,) = scene.made.ok("--json", "sweep", "--dry-run", "--host", "vc").json
    assert (found["kind"], found["owner"]) == ("unmerged_delta", scene.vm)
    return found["action"], found["problem"], found["commands"]


def test_a_disk_that_is_held_until_patience_ends_has_its_point_and_is_merged_by_a_sweep(held_open: Scene) -> None:
    with ExitStack() as reader:
        task = run_with_the_disk_held(held_open, reader, 60)
        (warning,) = [text for text in task["warnings"] if text.startswith("remove snapshot")]
        assert "has a delta that no snapshot needs, and it is not merged: " in warning
        assert LOCKED in warning
        assert "the next run or 'understudy sweep' tries again" in warning
        assert merge_of(held_open) in warning
        assert held_open.snapshots == []
        assert unmerged(held_open) == ("commit", "", [merge_of(held_open)])
        refuse_merging(held_open, times=1)
        refused = held_open.made.run("sweep", "--host", "vc")
        assert refused.status == 1
        assert LOCKED in refused.err
        assert merge_of(held_open) in refused.err
    held_open.made.ok("sweep", "--host", "vc")
    held_open.assert_nothing_left()


def test_a_disk_that_is_held_through_two_runs_has_both_points_and_is_merged_by_the_third(held_open: Scene) -> None:
    with ExitStack() as reader:
        run_with_the_disk_held(held_open, reader, 70)
        held_open.write(72)
        refuse_merging(held_open, times=3)
        task = held_open.run()
        assert modes(task) == [INCREMENTAL]
        assert len([text for text in task["warnings"] if LOCKED in text]) == 2
    held_open.write(73)
    task = held_open.run()
    assert modes(task) == [INCREMENTAL]
    assert f"merged what removed snapshots had left of VM '{held_open.vm}'" in task["warnings"]
    held_open.assert_nothing_left()
