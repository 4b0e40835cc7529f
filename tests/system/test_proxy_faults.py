"""A proxy is killed, hangs, or is killed while it publishes: what was acknowledged does not travel again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.system.site_lab import FRAMES, LINE_BITS, SiteLab, disk_of, fill, in_flight, site_lab
from understudy.lab.disks import DataDisk
from understudy.lab.vm import LabVm
from understudy.model.job import DEFAULT_CONNECTIONS
from understudy.model.session import DiskReport
from understudy.units import MIB

DATA_MIB = 40
DATA = DATA_MIB * MIB
RESTART_S = 3.0


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[SiteLab, LabVm]]:
    with site_lab("served", [DataDisk(96 * MIB), DataDisk(64 * MIB)]) as (sites, vm):
        sites.job("nightly", vm.name, points=3)
        fill(vm, 8)
        sites.replicate("nightly", vm)
        sites.lab.link.set_rate(LINE_BITS)
        yield sites, vm


def kill(sites: SiteLab, name: str, down_s: float = RESTART_S) -> None:
    """Kill a proxy; its service manager starts it again after a while."""
    process = sites.pair.proxies[name]
    process.kill()
    assert process.wait() == -signal.SIGKILL
    time.sleep(down_s)
    sites.pair.start_proxy(name)


def test_a_target_proxy_killed_twice_does_not_fail_the_session(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    for part in (1, 2):
        run.await_sent(DATA * part // 3)
        kill(sites, "far")
        fill(vm, 1, at_mib=part)
    disk = disk_of(run.succeed())
    assert disk.reconnects > 0
    assert DATA <= disk.sent_bytes <= DATA + 2 * in_flight()
    assert disk.wire_bytes <= disk.sent_bytes * FRAMES


def test_a_source_proxy_killed_does_not_fail_the_session(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    fill(vm, 1, at_mib=5)
    run.await_sent(DATA // 2)
    kill(sites, "near")
    disk = disk_of(run.succeed())
    _assert_not_sent_again(disk)


def test_both_proxies_killed_do_not_fail_the_session(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    run.await_sent(DATA // 2)
    sites.pair.proxies["near"].kill()
    kill(sites, "far")
    sites.pair.start_proxy("near")
    disk = disk_of(run.succeed())
    _assert_not_sent_again(disk)


def test_a_disk_that_was_complete_before_the_target_proxy_died_is_not_sent_again(
    scene: tuple[SiteLab, LabVm],
) -> None:
    sites, vm = scene
    fill(vm, 8)
    fill(vm, DATA_MIB - 8, disk="vdc")
    run = sites.begin("nightly", vm)
    run.await_ended("vdb")
    run.await_sent(DATA // 2, "vdc")
    kill(sites, "far")
    task = run.succeed()
    first, second = disk_of(task, "vdb"), disk_of(task, "vdc")
    assert first.sent_bytes == 8 * MIB
    assert first.wire_bytes <= 8 * MIB * FRAMES
    assert second.sent_bytes <= DATA - 8 * MIB + in_flight()


def _assert_not_sent_again(disk: DiskReport) -> None:
    """Both source sides together sent the data, and what was in flight when the first one died.

    What the first one sent after it was last asked seems to have been there before.
    """
    assert DATA <= disk.sent_bytes + disk.resumed_bytes <= DATA + in_flight()
    assert disk.resumed_bytes <= in_flight()
    assert disk.wire_bytes <= disk.sent_bytes * FRAMES


def test_a_target_proxy_that_hangs_for_half_a_minute_goes_on(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    run = sites.begin("nightly", vm)
    # What it has not read fills TCP's buffers at both ends, so that two thirds must be acknowledged before.
    run.await_sent(DATA * 2 // 3)
    far = sites.pair.proxies["far"]
    far.stop()
    try:
        run.until(lambda: "does not answer" in run.disk().waiting, "the disk says why it waits", timeout_s=25)
        time.sleep(20)
    finally:
        far.cont()
    disk = disk_of(run.succeed())
    assert DATA <= disk.sent_bytes <= DATA + in_flight() + DEFAULT_CONNECTIONS * 2 * MIB


@pytest.mark.parametrize("point", ["mover.publish.before", "publish.renamed"])
def test_a_target_proxy_killed_while_it_publishes_is_healed_by_the_next_run(
    scene: tuple[SiteLab, LabVm], point: str
) -> None:
    sites, vm = scene
    sites.pair.proxies["far"].terminate()
    sites.pair.proxies["far"].wait()
    far = sites.pair.start_proxy("far", env={"UNDERSTUDY_FAULT": f"{point}=kill"})
    fill(vm, 4)
    run = sites.begin("nightly", vm)
    before = sites.point_ids(run.replica)
    assert far.wait() == -signal.SIGKILL
    time.sleep(RESTART_S)
    sites.pair.start_proxy("far")
    error = run.fail()
    assert "/v1/publish_point" in error
    assert sites.point_ids(run.replica) == before
    sites.check_points(run.replica)
    fill(vm, 1, at_mib=2)
    disk = disk_of(sites.replicate("nightly", vm))
    # Once its files have their final names, the point is swept as a whole.
    resumed = 3 * MIB if point == "mover.publish.before" else 0
    assert (disk.resumed_bytes, disk.sent_bytes) == (resumed, 4 * MIB - resumed)


def test_a_source_proxy_killed_while_it_reads_a_vm_that_is_off_fails_the_session_clearly(
    scene: tuple[SiteLab, LabVm],
) -> None:
    sites, vm = scene
    fill(vm, DATA_MIB)
    vm.shutdown()
    run = sites.begin("nightly", vm)
    before = sites.point_ids(run.replica)
    run.await_sent(DATA // 4)
    kill(sites, "near")
    error = run.fail()
    assert "the source proxy was restarted" in error
    assert sites.point_ids(run.replica) == before
    sites.check_points(run.replica)
    disk = disk_of(sites.replicate("nightly", vm))
    assert disk.resumed_bytes > 0
    vm.start()
    vm.wait_agent(120)
    sites.replicate("nightly", vm)
