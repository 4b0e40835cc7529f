"""Tracking that lies on a real VM: a sample catches it, all that it concealed is sent, and a full scan counts it."""

from __future__ import annotations

from typing import Any

from tests.system.installation import Installation
from tests.system.steps import (
    INCREMENTAL,
    MIB,
    QUIET,
    Instant,
    assert_points_are,
    replicate_off,
    replicate_paused,
)
from tests.unit.mover.mover_lab import lie
from understudy.lab.disks import DataDisk

BLOCKS = 32
MISMATCH = ("digest_scan", "cbt_mismatch")
FEW = (21, 22, 23)
#: So many of the 32 blocks lie, none of the few among them, that at least 4 of any 16 do.
MANY = [index * MIB + 4321 for index in range(20)]


def _checked(instant: Instant, disk: str) -> tuple[int, int]:
    found: Any = instant.disk(disk)
    return found["checked_blocks"], found["mismatched_blocks"]


def _assert_caught(instant: Instant) -> None:
    """The sample of vdb caught the lie, and the session tells the numbers."""
    assert instant.how() == {"vda": INCREMENTAL, "vdb": MISMATCH}
    checked, mismatched = _checked(instant, "vdb")
    assert checked == 16
    assert mismatched >= 4
    said = f"disk vdb: {mismatched} of {checked} blocks that tracking calls unchanged have changed"
    assert [text for text in instant.task["warnings"] if text.startswith(said)]
    assert instant.session["state"] == "warning"
    assert 0 < instant.disk("vdb")["sent_bytes"] <= len(MANY) * MIB


def _assert_honest(instant: Instant) -> None:
    assert set(instant.how().values()) == {INCREMENTAL}
    for name in ("vda", "vdb"):
        checked, mismatched = _checked(instant, name)
        assert checked >= 16
        assert mismatched == 0
    assert instant.task["warnings"] == []


def test_a_dirty_map_that_lies_costs_one_scan_and_no_byte(installation: Installation) -> None:
    lab = installation.lab
    vm = lab.create_vm(lab.alpha, "deceived", data_disks=[DataDisk(BLOCKS * MIB)])
    vm.wait_agent()
    vdb = next(disk.path for disk in vm.disks if disk.target == "vdb")
    installation.job("nightly", vm.name, options=QUIET)
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=24 oflag=direct")
    instants = [replicate_paused(installation, vm, "nightly")]
    vm.shutdown()

    lie(vdb, *MANY)
    vm.start()
    vm.wait_agent()
    instants.append(replicate_paused(installation, vm, "nightly"))
    _assert_caught(instants[-1])
    instants.append(replicate_paused(installation, vm, "nightly"))
    _assert_honest(instants[-1])
    vm.shutdown()

    lie(vdb, *(index * MIB for index in FEW))
    instants.append(replicate_off(installation, vm, "nightly", "--full-scan"))
    assert set(instants[-1].how().values()) == {("digest_scan", "forced")}
    assert _checked(instants[-1], "vdb") == (BLOCKS, len(FEW))
    assert _checked(instants[-1], "vda")[0] > 16
    (warning,) = instants[-1].task["warnings"]
    assert warning.startswith(f"disk vdb: 3 of {BLOCKS} blocks that tracking calls unchanged had changed")
    instants.append(replicate_off(installation, vm, "nightly"))
    _assert_honest(instants[-1])

    lie(vdb, *MANY)
    instants.append(replicate_off(installation, vm, "nightly"))
    _assert_caught(instants[-1])
    assert_points_are(installation, "deceived_replica", *instants)
