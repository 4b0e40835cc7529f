"""The run of a task whose disks are read through the vendor's disk library: baselines are change ids in the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.replication.test_run import JOB, OLD, VM, World
from understudy.errors import DatastoreError, GuestError, HostUnreachable, UnderstudyError
from understudy.model.guest import GuestPolicy
from understudy.model.inventory import VmState
from understudy.model.job import Host
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, SnapshotRequest, SourceSnapshot
from understudy.model.transfer import Reason, TransferMode, TransportMode

VCENTER = Host("a", "vpx://vc.lan/", "")
#: What the newest point says of its instant, and what the snapshot says of this one.
BEFORE, NOW = "52 aa-11/4", "52 aa-11/7"
POINT = replace(OLD, baseline=Baseline("understudy-x-1-beef", ("vda",), "p0", change_ids=(BEFORE,)))


def snapshot(request: SnapshotRequest) -> SourceSnapshot:
    """As a vCenter makes it: change ids are the snapshot's."""
    since = request.since.change_id("vda") if request.since and request.incremental else ""
    disk = LibraryDisk("vda", "vm-1", "snapshot-9", "[ds] web/web.vmdk", 2000, since)
    made = Baseline(request.checkpoint, request.tracked, change_ids=(NOW,)) if request.checkpoint else None
    return SourceSnapshot("2026-01-02T00:00:00.000+00:00", (disk,), made)


def world(made: Callable[[SnapshotRequest], SourceSnapshot] = snapshot, **changes: object) -> World:
    found = World(points=(POINT,), host=VCENTER, transport=TransportMode.LIBRARY, library=made)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def modes(run: World) -> tuple[TransferMode, Reason]:
    return run.reports[-1].mode, run.reports[-1].reason


def test_the_change_ids_of_the_snapshot_are_in_the_record_of_the_published_point_and_nowhere_before() -> None:
    run = world()
    run.run()
    assert run.meta is not None
    assert run.meta.baseline == Baseline(run.checkpoint, ("vda",), run.meta.id, change_ids=(NOW,))
    assert run.at(f"export since {BEFORE}") < run.at("publish") < run.at("snapshot ended")
    assert run.read is not None
    assert (run.read.mode, run.read.source.dirty_context) == (TransferMode.INCREMENTAL, "changed")


@pytest.mark.parametrize("where", ["copy", "transfer", "publish"])
def test_a_run_that_fails_leaves_the_change_ids_of_the_last_good_point(where: str) -> None:
    run = world(breaks={where: DatastoreError("write", "no space left")})
    with pytest.raises(DatastoreError):
        run.run()
    assert run.points == (POINT,)
    assert run.points[-1].baseline is not None
    assert run.points[-1].baseline.change_id("vda") == BEFORE
    assert run.at("close export") < run.at("snapshot ended")


def test_a_disk_whose_tracking_was_lost_with_the_snapshot_is_scanned_for_that_reason() -> None:
    def lost(request: SnapshotRequest) -> SourceSnapshot:
        held = snapshot(replace(request, incremental=()))
        return replace(held, lost=(("vda", Reason.CBT_RESET),))

    run = world(lost)
    run.run()
    assert modes(run) == (TransferMode.DIGEST_SCAN, Reason.CBT_RESET)
    assert "export since never" in run.events
    assert run.meta is not None
    assert run.meta.baseline is not None
    assert run.meta.baseline.change_id("vda") == NOW


def test_a_vm_that_is_off_is_tracked_like_any_other() -> None:
    run = world(vm=replace(VM, state=VmState.SHUT_OFF))
    run.run()
    assert run.request is not None
    assert run.request.tracked == run.request.incremental == ("vda",)
    assert modes(run) == (TransferMode.INCREMENTAL, Reason.NONE)


def test_a_disk_that_was_moved_is_scanned_for_that_reason() -> None:
    moved = replace(VM, disks=(replace(VM.disks[0], path="[other] web/web.vmdk"),))
    run = world(vm=moved)
    run.run()
    assert modes(run) == (TransferMode.DIGEST_SCAN, Reason.SOURCE_REPLACED)


def test_no_file_of_the_host_is_looked_for_or_touched() -> None:
    run = world()
    run.run()
    assert not {"scratch", "tidy", "remove bitmap"} & set(run.events)


def test_who_reads_an_old_snapshot_is_stopped_before_it_is_swept() -> None:
    run = world()
    run.run()
    assert run.at("end leftovers") < run.at("sweep") < run.at("snapshot")


def test_versions_of_the_vcenter_and_of_the_library_are_in_the_record() -> None:
    run = world(breaks={"target facts": HostUnreachable("host b", "restarting")})
    run.run()
    assert run.meta is not None
    assert run.meta.versions == {
        "vsphere": "9.0.0", "hypervisor": "7.2.0", "source_nbdkit": "1.42", "source_nbdkit_plugin": "1.42.3",
        "source_disk_library": "8.0.3", "source_understudy": "0.1", "target_understudy": "0.1",
    }  # fmt: skip


@pytest.mark.parametrize(("policy", "quiesced", "consistency"), [
    (GuestPolicy.TRY, True, "filesystem"), (GuestPolicy.TRY, False, "crash"), (GuestPolicy.REQUIRE, True, "filesystem"),
    (GuestPolicy.OFF, False, "crash"),
])  # fmt: skip
def test_the_point_is_what_the_platform_achieved_and_its_notes_are_warnings(
    policy: GuestPolicy, quiesced: bool, consistency: str
) -> None:
    def made(request: SnapshotRequest) -> SourceSnapshot:
        assert request.quiesce == (policy is not GuestPolicy.OFF)
        assert request.must_quiesce == (policy is GuestPolicy.REQUIRE)
        notes = () if quiesced or not request.quiesce else ("the guest is not quiesced",)
        return replace(snapshot(request), quiesced=quiesced, notes=notes)

    run = world(made, job=replace(JOB, guest_policy=policy))
    assert run.run().consistency == consistency
    assert run.warnings == (["the guest is not quiesced"] if (policy, quiesced) == (GuestPolicy.TRY, False) else [])


def test_a_guest_that_must_be_quiesced_and_cannot_makes_no_point() -> None:
    def refused(request: SnapshotRequest) -> SourceSnapshot:
        assert request.must_quiesce
        error: UnderstudyError = GuestError("quiesce the guest", "VMware Tools do not run")
        raise error

    run = world(refused, job=replace(JOB, guest_policy=GuestPolicy.REQUIRE))
    with pytest.raises(GuestError, match="VMware Tools"):
        run.run()
    assert run.points == (POINT,)
