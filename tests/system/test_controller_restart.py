"""The controller is killed while disks are under way: the proxies go on, and the next controller takes over."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.system.site_lab import FRAMES, LINE_BITS, Run, SiteLab, disk_of, fill, in_flight, site_lab
from tests.system.steps import wait_until
from understudy.lab.vm import LabVm
from understudy.model.session import SessionState
from understudy.units import MIB

DATA_MIB = 48
DATA = DATA_MIB * MIB


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[SiteLab, LabVm]]:
    with site_lab("orphan") as (sites, vm):
        sites.job("nightly", vm.name, points=3)
        fill(vm, 8)
        sites.replicate("nightly", vm)
        sites.lab.link.set_rate(LINE_BITS)
        yield sites, vm


def _killed(sites: SiteLab, vm: LabVm) -> Run:
    """A run whose controller was killed when a quarter of the data had travelled."""
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    fill(vm, 2, at_mib=3)
    run.await_sent(DATA // 4)
    run.process.kill()
    assert run.process.wait() == -signal.SIGKILL
    return run


def _arrived(run: Run) -> int:
    """Bytes of the layer in the making."""
    layers = run.sites.replica_place(run.replica) / "layers"
    return sum(path.stat().st_size for path in layers.glob("vdb-*.qcow2.partial"))


def test_proxies_go_on_without_a_controller_and_the_next_one_ends_the_session(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    run = _killed(sites, vm)
    before = _arrived(run)
    wait_until(lambda: _arrived(run) > before + 4 * MIB, 15, "the layer grows while there is no controller")
    again = sites.again(run)
    disk = disk_of(again.succeed())
    # Not a byte more than without the kill.
    assert disk.sent_bytes == DATA
    assert disk.wire_bytes <= DATA * FRAMES
    assert "controller" in " ".join(again.task.warnings)
    fill(vm, 3, at_mib=60)
    after = sites.replicate("nightly", vm)
    assert (disk_of(after).mode, disk_of(after).sent_bytes) == ("incremental", 5 * MIB)


def test_a_controller_that_comes_when_all_has_arrived_only_publishes(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    run = _killed(sites, vm)
    wait_until(lambda: _arrived(run) > DATA, 30, "everything has arrived")
    time.sleep(1)
    sites.pair.run("controller")
    assert run.task.restore_point, run.task
    sites.check_point(run, run.task)
    assert disk_of(run.task).sent_bytes == DATA


def test_a_session_without_a_controller_is_ended_by_session_stop_and_swept_by_the_next_run(
    scene: tuple[SiteLab, LabVm],
) -> None:
    sites, vm = scene
    run = _killed(sites, vm)
    before = sites.point_ids(run.replica)
    sites.pair.run("session", "stop", str(run.session))
    assert run.report.state is SessionState.FAILED
    assert sites.point_ids(run.replica) == before
    disk = disk_of(sites.replicate("nightly", vm))
    # The guest wrote to 2 MiB of what had arrived.
    assert disk.resumed_bytes >= DATA // 4 - in_flight()
    assert disk.sent_bytes == DATA - disk.resumed_bytes


def test_a_vm_powered_off_while_there_is_no_controller_loses_the_snapshot_and_nothing_else(
    scene: tuple[SiteLab, LabVm],
) -> None:
    sites, vm = scene
    run = _killed(sites, vm)
    before = sites.point_ids(run.replica)
    vm.destroy()
    error = sites.again(run).fail()
    assert "it is not held any more" in error
    assert sites.point_ids(run.replica) == before
    sites.check_points(run.replica)
    disk = disk_of(sites.replicate("nightly", vm))
    assert disk.sent_bytes == DATA - disk.resumed_bytes
    vm.start()
    vm.wait_agent(120)
    disk = disk_of(sites.replicate("nightly", vm))
    assert (disk.mode, disk.sent_bytes) == ("incremental", 0)
