"""External mode when the guest goes away in the middle."""

from __future__ import annotations

from pathlib import Path

from tests.system.installation import Installation


def test_a_vm_cut_off_in_the_middle_keeps_its_delta_until_it_runs_again(installation: Installation) -> None:
    vm = installation.lab.create_vm(installation.lab.alpha, "cut")
    vm.wait_agent()
    installation.job("nightly", vm.name, options=("--snapshot-mode", "external"))
    installation.replicate("nightly")
    with installation.stalled("nightly", "read.before") as run:
        vm.run("echo kept > /data/kept; sync")
        vm.destroy()
    (task,) = run.ended.json["tasks"]
    assert any("start it and run the job again" in warning for warning in task["warnings"])
    directory = Path(vm.disks[0].path).parent
    assert len(list(directory.glob("*.delta"))) == 1
    vm.start()
    vm.wait_agent()
    assert vm.run("cat /data/kept") == "kept\n"
    (disk,) = installation.replicate("nightly")["tasks"][0]["disks"]
    assert (disk["mode"], disk["reason"]) == ("digest_scan", "snapshot_left")
    assert not list(directory.glob("*.delta"))
    assert installation.replicate("nightly")["tasks"][0]["disks"][0]["mode"] == "incremental"
