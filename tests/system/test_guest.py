"""Guest processing: frozen for the snapshot, never for longer, whatever happens to the agent or to us."""

from __future__ import annotations

import libvirt
import libvirt_qemu

from tests.system.installation import Installation
from tests.system.steps import (
    freeze_status,
    our_checkpoints,
    published_files,
    replica_directory,
    run_in_replica,
    wait_until,
)
from tests.unit.guests.local_guest import PROGRAM
from understudy.guests.program import AGENT_PATH
from understudy.lab.vm import LabVm

# The hook runs as the agent freezes and thaws; its file lies in memory, because the disk is frozen.
_HOOK = """#!/bin/sh
echo $1 $(cut -d' ' -f1 /proc/uptime) >>/run/hook.log
"""


def _vm(installation: Installation, name: str) -> LabVm:
    vm = installation.lab.create_vm(installation.lab.alpha, name)
    vm.wait_agent()
    vm.write_file("/data/fsfreeze-hook", _HOOK.encode())
    vm.run("chmod +x /data/fsfreeze-hook; sync")
    return vm


def _hooks(vm: LabVm) -> list[str]:
    """What the agent did since the last call, in order."""
    said = vm.run("cat /run/hook.log 2>/dev/null; rm -f /run/hook.log")
    return [line.split()[0] for line in said.splitlines()]


def test_the_guest_is_frozen_as_the_job_wants_it_and_thawed_after(installation: Installation) -> None:
    vm = _vm(installation, "frozen")
    for policy in ("off", "try", "require"):
        installation.job(policy, vm.name, options=("--guest-processing", policy, "--suffix", f"_{policy}"))
        vm.run(f"echo {policy} >/data/policy")  # in the guest's memory only: freezing must bring it to the disk
        (task,) = installation.replicate(policy)["tasks"]
        assert freeze_status(vm) == "thawed"
        assert task["warnings"] == []
        if policy == "off":
            assert (task["consistency"], task["frozen_ms"], _hooks(vm)) == ("crash", None, [])
            continue
        assert task["consistency"] == "filesystem"
        assert 0 < task["frozen_ms"] < 10_000
        assert _hooks(vm) == ["freeze", "thaw"]
        replica = f"frozen_{policy}"
        if policy == "require":
            installation.ok("failover", "start", replica)
            assert run_in_replica(installation, replica, "cat /data/policy").strip() == policy
            assert run_in_replica(installation, replica, "grep -c ' /data ext4 rw' /proc/mounts").strip() == "1"


def test_an_agent_that_does_not_answer_is_a_warning_or_an_error_as_the_job_wants(installation: Installation) -> None:
    vm = _vm(installation, "silent")
    for policy in ("try", "require"):
        installation.job(policy, vm.name, options=("--guest-processing", policy, "--suffix", f"_{policy}"))
        installation.replicate(policy)
    required = replica_directory(installation, "silent_require")
    before = published_files(required)
    # It stops after it has answered this command; a new disk is how the guest hears that it may go on.
    vm.run("setsid sh -c 'sleep 1; kill -STOP $(pidof qemu-ga); until [ -b /dev/vdb ]; do sleep 1; done; "
           "kill -CONT $(pidof qemu-ga)' </dev/null >/dev/null 2>&1 &")
    wait_until(lambda: not _answers(vm), 15, "the agent stopped")
    tried = installation.replicate("try")["tasks"][0]
    assert (tried["state"], tried["consistency"]) == ("warning", "crash")
    assert any("crash-consistent" in warning for warning in tried["warnings"])
    refused = installation.run("--json", "job", "run", "require")
    assert refused.status == 1
    assert "guest" in refused.json["tasks"][0]["error"]
    assert published_files(required) == before
    _attach_disk(installation, vm)
    wait_until(lambda: _answers(vm), 30, "the agent went on")
    wait_until(lambda: freeze_status(vm) == "thawed", 30, "the guest is thawed")
    assert vm.run("echo writable >/data/proof; sync; cat /data/proof").strip() == "writable"
    again = installation.replicate("require")["tasks"][0]
    assert (again["consistency"], again["disks"][0]["mode"]) == ("filesystem", "incremental")


def _answers(vm: LabVm) -> bool:
    with vm.domain() as domain:
        try:
            libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', 1, 0)
        except libvirt.libvirtError:
            return False
        return True


def _attach_disk(installation: Installation, vm: LabVm) -> None:
    image = installation.place / "signal.raw"
    image.write_bytes(bytes(65536))
    with vm.domain() as domain:
        domain.attachDeviceFlags(
            f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{image}'/>"
            "<target dev='vdb' bus='virtio'/></disk>", libvirt.VIR_DOMAIN_AFFECT_LIVE)


def test_a_guest_is_thawed_when_the_controller_is_killed_while_it_is_frozen(installation: Installation) -> None:
    vm = _vm(installation, "orphan")
    installation.job("nightly", vm.name, options=("--guest-processing", "require"))
    with installation.stalled("nightly", "snapshot.before") as run:
        assert freeze_status(vm) == "frozen"
        run.process.kill()
        run.process.wait()
        wait_until(lambda: freeze_status(vm) == "thawed", 8, "the guest is thawed")
    assert run.ended.status == -9
    assert vm.run("echo writable >/data/proof; sync; cat /data/proof").strip() == "writable"
    assert _hooks(vm) == ["freeze", "thaw"]
    (task,) = installation.replicate("nightly")["tasks"]
    assert task["consistency"] == "filesystem"
    assert freeze_status(vm) == "thawed"


def test_a_snapshot_that_takes_too_long_is_not_waited_for_by_the_guest(installation: Installation) -> None:
    vm = _vm(installation, "late")
    tasks = {}
    for policy in ("try", "require"):
        installation.job(policy, vm.name, options=("--guest-processing", policy, "--suffix", f"_{policy}"))
        with installation.stalled(policy, "snapshot.before") as run:
            assert freeze_status(vm) == "frozen"
            took = wait_until(lambda: freeze_status(vm) == "thawed", 20, "the guest is thawed")
            assert took > 4
            vm.run("echo late >/data/late; sync")
        assert freeze_status(vm) == "thawed"
        assert run.ended.status == (0 if policy == "try" else 1)
        (tasks[policy],) = run.ended.json["tasks"]
    assert (tasks["try"]["state"], tasks["try"]["consistency"]) == ("warning", "crash")
    assert any("thawed before the snapshot was complete" in warning for warning in tasks["try"]["warnings"])
    assert "thawed before the snapshot was complete" in tasks["require"]["error"]
    assert list(installation.store.glob("late_require/layers/*")) == []
    assert len(our_checkpoints(vm)) == 1  # the one of the run that made a point


def test_applications_are_quiesced_through_a_program_in_the_guest_and_faults_end_in_time(
    installation: Installation,
) -> None:
    vm = _vm(installation, "apps")
    root = "/run/applications"
    vm.run(f"mkdir -p {root} {AGENT_PATH.rpartition('/')[0]}")
    vm.write_file(AGENT_PATH, f"export ROOT={root}\n{PROGRAM}".encode())
    installation.job("nightly", vm.name, options=("--guest-processing", "try"))
    (task,) = installation.replicate("nightly")["tasks"]
    assert (task["state"], task["consistency"], task["warnings"]) == ("success", "application", [])
    assert (task["guest"]["transport"], task["guest"]["component"]) == ("qga", "agent")
    assert [item["label"] for item in task["guest"]["applications"]] == ["START"]
    assert _hooks(vm) == ["freeze", "thaw"]
    told = [line.split()[0] for line in vm.run(f"cat {root}/log").splitlines()]
    assert told == ["cleanup", "begin", "end", "commit", "cleanup"]
    for fault, why in (("hangs", "did not end"), ("lost", "no such session"), ("late", "by itself after 10 s")):
        vm.run(f"echo {fault} >{root}/mode")
        (task,) = installation.replicate("nightly")["tasks"]
        assert (task["state"], task["consistency"]) == ("warning", "filesystem")
        assert any(why in warning for warning in task["warnings"])
        assert freeze_status(vm) == "thawed"
        assert vm.run("ls /run/understudy-guest").strip() == ""
