"""Estimates of a VM: they say what the run after them does, and leave everything as it was, killed or not."""

from __future__ import annotations

from typing import Any

import libvirt

from tests.system.installation import Installation
from tests.system.steps import (
    INCREMENTAL,
    MIB,
    QUIET,
    Instant,
    assert_points_are,
    checkpoints,
    our_checkpoints,
    replicate_off,
    replicate_paused,
)
from understudy.lab.disks import DataDisk
from understudy.lab.vm import LabVm

PART = 64 << 10
CATEGORIES = ("used", "swap", "mask", "free", "zero")


def _noise(seek: int, count: int) -> str:
    return f"dd if=/dev/urandom of=/dev/vdb bs=64k count={count} seek={seek} oflag=direct conv=notrunc"


def _world(installation: Installation, vm: LabVm) -> Any:
    """All that an estimate could leave or change: on the source, in the scratch directory, in the datastore."""
    with vm.domain() as domain:
        job = domain.jobInfo()[0] if domain.isActive() else libvirt.VIR_DOMAIN_JOB_NONE
    beside = sorted(path.name for path in vm.disks[0].path.parent.iterdir())
    stored = {path: path.stat().st_mtime_ns for path in installation.store.rglob("*") if path.is_file()}
    return checkpoints(vm), job, beside, list(installation.scratch.glob("*")), stored


def _estimate(installation: Installation, vm: LabVm) -> dict[str, Any]:
    """The estimate of each disk; everything is as it was before."""
    before = _world(installation, vm)
    document = installation.json("job", "estimate", "nightly", "--vm", vm.name)
    assert _world(installation, vm) == before
    (found,) = document["vms"]
    assert (document["state"], found["state"], found["warnings"]) == ("success", "success", [])
    for disk in found["disks"]:
        assert sum(disk[name] for name in CATEGORIES) == disk["size"]
    assert document["total"]["send"] == sum(disk["send"] for disk in found["disks"])
    return {disk["name"]: disk for disk in found["disks"]}


def _assert_kept(estimate: dict[str, Any], instant: Instant) -> None:
    """The run read exactly what was said, left out the same, and sent no more; of the disk with noise just that."""
    for name, said in estimate.items():
        did = instant.disk(name)
        assert (said["mode"], said["reason"]) == instant.how()[name]
        assert said["read"] == did["read_bytes"]
        assert {kind: said[kind] for kind in ("swap", "mask", "free") if said[kind]} == did["excluded"]
        assert said["send"] >= did["sent_bytes"]
    assert estimate["vdb"]["send"] == instant.disk("vdb")["sent_bytes"]


def test_an_estimate_says_what_the_next_run_does_and_changes_nothing(installation: Installation) -> None:
    vm = installation.lab.create_vm(installation.lab.alpha, "guessed", data_disks=[DataDisk(32 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=QUIET)
    vm.run(f"{_noise(16, 100)}; sync")
    with vm.domain() as domain:
        domain.suspend()
    first = _estimate(installation, vm)
    assert first["vda"]["swap"] > 0
    assert (first["vdb"]["used"], first["vdb"]["send"], first["vdb"]["changed"]) == (100 * PART, 100 * PART, None)
    instants = [replicate_paused(installation, vm, "nightly")]  # it resumes the guest
    _assert_kept(first, instants[0])

    vm.run(f"{_noise(400, 3)}; sync")
    with vm.domain() as domain:
        domain.suspend()
    second = _estimate(installation, vm)
    assert (second["vdb"]["changed"], second["vdb"]["send"], second["vdb"]["read"]) == (3 * PART, 3 * PART, MIB)
    assert (second["vdb"]["mode"], second["vda"]["mode"]) == ("incremental", "incremental")
    kept = our_checkpoints(vm)
    with installation.stalled("nightly", "read.before", verb="estimate") as killed:
        killed.process.kill()
        killed.process.wait()
    assert our_checkpoints(vm) == kept
    instants.append(replicate_paused(installation, vm, "nightly"))
    assert set(instants[-1].how().values()) == {INCREMENTAL}
    assert [text for text in instants[-1].task["warnings"] if "ended the backup job of a dead session" in text]
    assert list(installation.scratch.iterdir()) == []
    _assert_kept(second, instants[-1])

    vm.run(f"{_noise(40, 2)}; sync")
    vm.shutdown()
    off = _estimate(installation, vm)
    assert (off["vdb"]["mode"], off["vdb"]["changed"]) == ("incremental", 2 * PART)
    instants.append(replicate_off(installation, vm, "nightly"))
    _assert_kept(off, instants[-1])
    assert_points_are(installation, "guessed_replica", *instants)
    kinds = [item["kind"] for item in installation.json("session", "list")]
    assert kinds == ["replicate", "estimate", "replicate", "estimate", "estimate", "replicate", "estimate"]
