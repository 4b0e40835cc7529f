"""The main job, from the first run to the booted replica; every command starts as it does from a shell."""

from __future__ import annotations

import pytest

from tests.system.installation import Installation, assert_same, frozen_copy
from understudy.lab import agent

pytestmark = pytest.mark.anew


def test_a_running_vm_is_replicated_and_its_replica_boots_with_the_change(installation: Installation) -> None:
    vm = installation.lab.create_vm(installation.lab.alpha, "wéb server 1")
    vm.wait_agent()
    installation.job("nightly", vm.name)
    first = installation.replicate("nightly")
    assert [disk["mode"] for disk in first["tasks"][0]["disks"]] == ["full"]
    vm.write_file("/data/change", b"made after the first run")
    vm.run("sync")
    second = installation.replicate("nightly")
    task = second["tasks"][0]
    assert (task["disks"][0]["mode"], task["consistency"]) == ("incremental", "filesystem")
    assert task["disks"][0]["excluded"]["swap"] > 0
    assert task["disks"][0]["notes"] == []
    (looked,) = (step for step in task["steps"] if step["name"] == "survey")
    assert looked["state"] == "success"
    assert [point["disks"][0]["excluded"] for point in installation.points(f"{vm.name}_replica")] == [
        disk["excluded"] for session in (first, second) for disk in session["tasks"][0]["disks"]]
    replica = f"{vm.name}_replica"
    installation.ok("failover", "start", replica)
    with installation.lab.beta.connection() as beta:
        agent.wait_agent(beta, replica)
        assert agent.read_guest_file(beta, replica, "/data/change") == b"made after the first run"
    installation.ok("failover", "undo", replica)
    assert installation.run("replica", "verify", replica).status == 0


def test_a_point_is_the_frozen_source_at_that_instant(installation: Installation) -> None:
    vm = installation.lab.create_vm(installation.lab.alpha, "paused")
    vm.wait_agent()
    installation.job("nightly", vm.name, options=("--guest-processing", "off"))
    with vm.domain() as domain:
        domain.suspend()
        copies = frozen_copy(vm, installation.place)
        with installation.stalled("nightly", "snapshot.after"):
            domain.resume()
            vm.run("dd if=/dev/urandom of=/data/noise bs=64k count=40; sync")
    (point,) = installation.points("paused_replica")
    assert_same(point["disks"][0]["image"], copies["vda"])
