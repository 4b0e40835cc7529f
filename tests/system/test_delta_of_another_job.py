"""A delta that a dead session of one job left, and a crash of QEMU on it, cost the other jobs of the VM nothing."""

from __future__ import annotations

import signal

from tests.system.installation import Installation
from tests.system.steps import INCREMENTAL, MIB, QUIET, assert_point_is, disk_paths, replicate_instant
from understudy.lab.disks import DataDisk


def test_what_was_written_to_a_delta_that_qemu_died_on_reaches_the_other_jobs_point(
    installation: Installation,
) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "both", data_disks=[DataDisk(32 * MIB)])
    vm.wait_agent()
    installation.job("plain", vm.name, options=QUIET)
    installation.job("external", vm.name, options=("--snapshot-mode", "external", "--suffix", "_x", *QUIET))
    replicate_instant(installation, vm, "plain")
    installation.replicate("external")
    paths = disk_paths(vm)
    killed = installation.run("job", "run", "external", env={"UNDERSTUDY_FAULT": "read.before=kill"})
    assert killed.status == -signal.SIGKILL
    assert all(path.endswith(".delta") for path in disk_paths(vm).values())
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=64k count=20 seek=16 oflag=direct conv=notrunc,fsync")
    vm.process().signal(signal.SIGKILL)
    vm.wait_off()
    vm.start()
    vm.wait_agent()
    installation.replicate("external")
    assert disk_paths(vm) == paths
    last = replicate_instant(installation, vm, "plain")
    # The merge wrote into the base, and so into the dirty map of each job, whatever became of the delta's own.
    assert last.how()["vdb"] == INCREMENTAL
    assert last.disk("vdb")["sent_bytes"] == 20 * 64 * 1024
    assert_point_is(installation.points("both_replica")[-1], last.copies)
