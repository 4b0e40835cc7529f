"""The estimate of one VM on scripted collaborators: what it asks, what it never does, and what it gives back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.replication.test_run import DISK, JOB, OLD, SUMS, VM, World
from understudy.errors import Cancelled, CbtMismatch, MoverError, PlatformError, Refused, TrackingLost, TransferError
from understudy.model.estimate import DiskEstimate
from understudy.model.exclusion import DiskSurvey, Exclusion, pack
from understudy.model.extent import Extent
from understudy.model.inventory import VmState
from understudy.model.job import SnapshotMode
from understudy.model.session import Step, StepState
from understudy.model.snapshot import Tag
from understudy.model.transfer import Reason, TransferMode
from understudy.replication.estimate import estimate_vm
from understudy.replication.site import Task
from understudy.units import KIB, MIB

SWAP = Exclusion("vda", pack([Extent(MIB, 64 * KIB)]), {"swap": 64 * KIB})


def estimate(world: World) -> DiskEstimate:
    (found,) = estimate_vm(world.ctx, Task(world.job, "web", "web", 2), world.place)
    return found


def test_it_goes_as_far_as_the_first_read_and_back() -> None:
    world = World()
    assert estimate(world) == DiskEstimate("vda", TransferMode.INCREMENTAL, Reason.NONE, 64 * MIB, SUMS)
    assert [word for word in world.events if word not in ("tidy", "scratch", "end leftovers")] == [
        "reserve", "sweep", "snapshot", "estimate", "snapshot ended", "released"]
    assert world.events[world.at("snapshot ended") :].count("tidy") >= 1
    assert set(world.steps.items()) == {(step, StepState.SUCCESS) for step in (
        Step.SETTINGS, Step.INVENTORY, Step.SNAPSHOT, Step.READ, Step.COMMIT)}
    assert (world.kept, world.held, world.points, world.warnings) == ([], [], (OLD,), [])


@pytest.mark.parametrize("mode", list(SnapshotMode))
def test_the_source_is_held_without_a_marker_and_without_a_delta(mode: SnapshotMode) -> None:
    world = World(job=replace(JOB, snapshot_mode=mode))
    estimate(world)
    assert world.request is not None
    assert (world.request.checkpoint, world.request.tracked) == ("", ())
    assert (world.request.since_name, world.request.incremental) == ("cp-old", ("vda",))
    assert world.mode is SnapshotMode.BACKUP


def test_what_is_left_out_is_what_a_session_would_leave_out() -> None:
    notes = ("disk vda, partition 2: nothing known is on it",)
    world = World(job=replace(JOB, exclude_swap=True), surveys=(DiskSurvey(SWAP, notes=notes),))
    found = estimate(world)
    assert (found.excluded, found.notes) == (SWAP.by_kind, notes)
    assert world.read is not None
    assert (world.read.excluded, world.read.base_point) == (SWAP.packed, "p0")
    assert world.surveyed is not None
    assert not world.surveyed.quiesced


def test_a_vm_that_never_ran_is_a_full_copy() -> None:
    world = World(points=())
    found = estimate(world)
    assert (found.mode, found.reason) == (TransferMode.FULL, Reason.FIRST_RUN)
    assert world.at("whole snapshot")


@pytest.mark.parametrize(("error", "reason"), [
    (TrackingLost("read disk vda", "no dirty map is served"), Reason.BITMAP_INCONSISTENT),
    (CbtMismatch("read disk vda", "3 of 16 blocks"), Reason.CBT_MISMATCH),
])  # fmt: skip
def test_a_dirty_map_that_cannot_be_used_makes_it_the_estimate_of_a_scan(error: TrackingLost, reason: Reason) -> None:
    world = World(broken_once={"estimating": error})
    found = estimate(world)
    assert (found.mode, found.reason) == (TransferMode.DIGEST_SCAN, reason)
    assert world.read is not None
    assert (world.read.mode, world.read.source.dirty_context) == (TransferMode.DIGEST_SCAN, "")
    assert world.warnings == [f"disk vda: {error.why}; every block would be compared with its digest instead"]


def test_tracking_that_the_platform_refuses_makes_it_the_estimate_of_a_scan() -> None:
    world = World(broken_once={"snapshot": TrackingLost("snapshot", "no bitmap")})
    assert estimate(world).mode is TransferMode.DIGEST_SCAN
    assert "whole snapshot" in world.events


def test_a_delta_of_a_dead_session_is_left_to_the_next_session_which_must_know_of_it() -> None:
    delta = replace(DISK, path=f"/images/{Tag(JOB.id, VM.uuid, 1)}-vda.delta")
    world = World(vm=replace(VM, disks=(delta,)))
    with pytest.raises(Refused, match="left it on a snapshot delta; run 'understudy job run nightly'"):
        estimate(world)
    assert not {"sweep", "snapshot", "tidy"} & set(world.events)


def test_too_little_space_is_told_and_is_no_error() -> None:
    world = World(points=(), free_bytes=MIB // 2)
    assert estimate(world).sums == SUMS
    (warning,) = world.warnings
    assert warning.startswith("a session would fail: datastore 'ds': 512 KiB free, 1.0 MiB needed")


def test_a_snapshot_that_cannot_be_removed_is_a_warning() -> None:
    world = World(breaks={"snapshot ended": PlatformError("end the backup job", "it hangs", "virsh domjobabort web")})
    assert estimate(world).sums == SUMS
    assert world.warnings == ["end the backup job: it hangs; virsh domjobabort web"]


@pytest.mark.parametrize("error", [MoverError("proxy", "gone"), TransferError("read vda", "no")])
def test_what_fails_releases_the_source(error: TransferError) -> None:
    world = World(broken_once={"estimating": error})
    with pytest.raises(type(error)):
        estimate(world)
    assert world.at("estimate") < world.at("snapshot ended")
    assert world.steps[Step.READ] is StepState.FAILED


def test_it_can_be_cancelled_before_the_snapshot() -> None:
    world = World(cancel_at="sweep")
    with pytest.raises(Cancelled):
        estimate(world)
    assert "snapshot" not in world.events


def test_a_vm_that_is_off_counts_as_quiesced_if_it_was_shut_down() -> None:
    off = replace(VM, state=VmState.SHUT_OFF, clean_shutdown=True)
    world = World(points=(), vm=off, job=replace(JOB, exclude_swap=True), surveys=(DiskSurvey(SWAP),))
    estimate(world)
    assert world.surveyed is not None
    assert world.surveyed.quiesced
