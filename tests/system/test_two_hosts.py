"""Two hosts without any fault: what travels, several VMs that share few slots, and children among services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.site_lab import FRAMES, MBIT, SiteLab, disk_of, fill, paused, site_lab
from understudy.lab.disks import DataDisk
from understudy.lab.vm import LabVm
from understudy.model.extent import PART
from understudy.units import MIB

CHILD_PORT = 7350


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[SiteLab, LabVm]]:
    with site_lab("first", [DataDisk(48 * MIB), DataDisk(32 * MIB)]) as (sites, vm):
        sites.lab.link.set_rate(200 * MBIT)
        sites.job("nightly", vm.name)
        yield sites, vm


def test_the_first_run_sends_the_data_and_the_next_what_changed(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    fill(vm, 32)
    disk = disk_of(sites.replicate("nightly", vm))
    assert (disk.mode, disk.sent_bytes) == ("full", 32 * MIB)
    assert disk.wire_bytes <= disk.sent_bytes * FRAMES
    fill(vm, 3, at_mib=40)
    disk = disk_of(sites.replicate("nightly", vm))
    assert (disk.mode, disk.sent_bytes, disk.reconnects) == ("incremental", 3 * MIB, 0)


def test_a_digest_scan_sends_the_part_that_changed_and_no_more(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=64k seek=100 count=1 conv=fsync,notrunc")
    disk = disk_of(sites.replicate("nightly", vm, "--full-scan"))
    assert (disk.mode, disk.sent_bytes) == ("digest_scan", PART)
    assert disk.wire_bytes < 2 * PART


def test_two_vms_with_five_disks_share_one_slot(scene: tuple[SiteLab, LabVm]) -> None:
    sites, first = scene
    second = sites.lab.create_vm(sites.lab.alpha, "second", data_disks=[DataDisk(16 * MIB)])
    second.wait_agent(120)
    fill(first, 8)
    fill(first, 4, disk="vdc")
    fill(second, 8)
    sites.job("both", first.name, second.name, suffix="_both")
    sites.pair.run("proxy", "set", "near", "--slots", "1")
    sites.lab.link.set_rate(60 * MBIT)
    reasons: set[str] = set()
    with paused(first), paused(second):
        runs = sites.begin_all("both", first, second)

        def both_waited() -> bool:
            tasks = runs[0].report.tasks
            reasons.update(task.waiting for task in tasks if task.waiting)
            reasons.update(f"disk: {disk.waiting}" for task in tasks for disk in task.disks if disk.waiting)
            return len({reason.startswith("disk: ") for reason in reasons}) == 2

        runs[0].until(both_waited, "a task and a disk wait")
        runs[0].process.wait(180)
    assert all("near" in reason for reason in reasons)
    for run in runs:
        run.succeed()
    second.destroy()


def test_a_child_takes_data_from_a_service(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    sites.lab.link.set_rate(200 * MBIT)
    sites.pair.run("proxy", "set", "local", "--data-address", f"{sites.lab.link.beta_address}:{CHILD_PORT}")
    sites.job("to child", vm.name, suffix="_child", source_proxy="near", target_proxy="local")
    fill(vm, 4)
    disk = disk_of(sites.replicate("to child", vm))
    assert disk.wire_bytes >= disk.sent_bytes > 0
    fill(vm, 2, at_mib=1)
    disk = disk_of(sites.replicate("to child", vm))
    assert (disk.mode, disk.sent_bytes) == ("incremental", 2 * MIB)


def test_a_child_brings_data_to_a_service(scene: tuple[SiteLab, LabVm]) -> None:
    sites, vm = scene
    sites.job("from child", vm.name, suffix="_other", source_proxy="local", target_proxy="far")
    disk = disk_of(sites.replicate("from child", vm))
    assert disk.wire_bytes >= disk.sent_bytes > 0
    fill(vm, 2, at_mib=1)
    disk = disk_of(sites.replicate("from child", vm))
    assert (disk.mode, disk.sent_bytes) == ("incremental", 2 * MIB)
