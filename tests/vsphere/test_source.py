"""Source snapshots on a vCenter: what changed is told whole, what is not known is said, and nothing of ours stays."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.simulator import Inventory, missing
from tests.vsphere.sourcing import AREA, AT_ONCE, Scene, apply, changed, covered, session
from understudy.context import Context
from understudy.errors import Cancelled, GuestError, HostUnreachable, PlatformError, TrackingLost
from understudy.model.job import SnapshotMode
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, SourceSnapshot
from understudy.model.transfer import Reason
from understudy.platforms import CommitPatience
from understudy.platforms.vsphere import tasks
from understudy.platforms.vsphere.connection import Connection

pytestmark = pytest.mark.timeout(600)

SIZE = 4 * 1024 * 1024 + 512
AUTO = SnapshotMode.AUTO
TESTS = 44


@pytest.fixture(scope="module")
def vcenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One for all: each test has a VM of its own."""
    if reason := missing():
        pytest.skip(reason)
    with front(Inventory(vms=TESTS), tmp_path_factory.mktemp("front"), page=3) as running:
        yield running


@pytest.fixture(scope="module")
def connection(vcenter: Front) -> Iterator[Connection]:
    with session(vcenter) as opened:
        yield opened


@pytest.fixture
def scene(
    vcenter: Front, connection: Connection, request: pytest.FixtureRequest, tmp_path: Path
) -> Scene:  # fmt: skip
    """A running VM with a disk of random bytes."""
    index = [item.name for item in request.session.items if item.path == request.path].index(request.node.name)
    found = Scene(vcenter, connection, f"DC0_C0_RP0_VM{index}")
    (tmp_path / "raw").write_bytes(random.Random(1).randbytes(SIZE))
    vcenter.place_disk(found.name, tmp_path / "raw")
    return found


@pytest.fixture
def admin(vcenter: Front) -> Iterator[Client]:
    """What others do on the vCenter."""
    with connected(vcenter.url, vcenter.user, vcenter.password) as client:
        yield client


def take(scene: Scene, number: int, since: Baseline | None = None) -> tuple[SourceSnapshot, bytes, tuple[Any, ...]]:
    """A whole snapshot: what it says, its bytes, and the areas that changed since ``since``."""
    source = scene.source()
    with source.snapshot(Context(), scene.vm, AUTO, scene.request(number, since)) as held:
        disk = held.disks[0]
        assert isinstance(disk, LibraryDisk)
        export = source.library_export(disk)
        return held, scene.frozen(held), changed(export) if export.changed is not None else ()


def baseline(snapshot: SourceSnapshot) -> Baseline:
    assert snapshot.baseline is not None
    return snapshot.baseline


def only(snapshot: SourceSnapshot) -> LibraryDisk:
    (disk,) = snapshot.disks
    assert isinstance(disk, LibraryDisk)
    return disk


def test_a_chain_of_incrementals_is_the_disk_at_every_snapshot_byte_for_byte(scene: Scene) -> None:
    rng = random.Random(7)
    held, replica, _ = take(scene, 1)
    assert held.lost == ()
    assert held.notes == ("changed block tracking was off, and is switched on; this run compares or copies the whole "
                          "disks",)  # fmt: skip
    for number in range(2, 7):
        written = scene.write(rng, rng.randint(1, 12))
        since = baseline(held)
        assert scene.source().tracking(scene.vm, since) == {only(held).name: Reason.NONE}
        held, now, areas = take(scene, number, since)
        assert (held.lost, held.notes) == ((), ())
        assert covered(written, areas)
        assert sum(area.length for area in areas) < SIZE
        replica = apply(replica, now, areas)
        assert replica == now
        assert scene.snapshots == []


def test_what_is_written_while_the_snapshot_is_held_is_in_the_next_one_and_not_in_it(scene: Scene) -> None:
    first, replica, _ = take(scene, 1)
    source = scene.source()
    with source.snapshot(Context(), scene.vm, AUTO, scene.request(2, baseline(first))) as held:
        scene.vcenter.write(scene.name, scene.key(), 3 * AREA, b"while it is held")
        assert changed(source.library_export(only(held))) == ()
        assert scene.frozen(held) == replica
    third, now, areas = take(scene, 3, baseline(held))
    assert apply(replica, now, areas) == now != replica
    assert third.lost == ()


def test_nothing_moves_the_baseline_but_the_caller_so_an_older_one_tells_more(scene: Scene) -> None:
    first, replica, _ = take(scene, 1)
    scene.write(random.Random(3), 4)
    take(scene, 2, baseline(first))  # its point was not published
    scene.write(random.Random(4), 4)
    _, now, areas = take(scene, 3, baseline(first))
    assert apply(replica, now, areas) == now


def test_tracking_that_was_reset_is_said_before_and_at_the_snapshot(scene: Scene) -> None:
    first, _, _ = take(scene, 1)
    scene.vcenter.reset_tracking(scene.name)
    assert scene.source().tracking(scene.vm, baseline(first)) == {only(first).name: Reason.CBT_RESET}
    held, _, _ = take(scene, 2, baseline(first))
    assert held.lost == ((only(first).name, Reason.CBT_RESET),)
    assert only(held).since == ""
    again, _, _ = take(scene, 3, baseline(held))
    assert again.lost == ()


def test_tracking_that_was_switched_off_is_said_and_switched_on_again(scene: Scene, admin: Client) -> None:
    first, _, _ = take(scene, 1)
    vm = admin.named(vim.VirtualMachine, scene.name)
    admin.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
    assert scene.source().tracking(scene.vm, baseline(first)) == {only(first).name: Reason.CBT_DISABLED}
    admin.wait(vm.CreateSnapshot_Task("of somebody", "", False, False))
    admin.wait(vm.RemoveAllSnapshots_Task(True))
    held, _, _ = take(scene, 2, baseline(first))
    assert held.lost == ((only(first).name, Reason.CBT_RESET),)
    assert "is switched on" in held.notes[0]


def test_a_vm_that_was_reverted_is_not_read_by_its_changes(scene: Scene, admin: Client) -> None:
    take(scene, 1)
    vm = admin.named(vim.VirtualMachine, scene.name)
    older = admin.wait(vm.CreateSnapshot_Task("of somebody", "", False, False))
    scene.write(random.Random(5), 3)
    held, _, _ = take(scene, 2)
    admin.wait(older.RevertToSnapshot_Task())
    again, _, _ = take(scene, 3, baseline(held))
    assert [reason for _, reason in again.lost] in ([Reason.CBT_RESET], [Reason.SOURCE_ROLLED_BACK])
    assert scene.snapshots == ["of somebody"]


def test_tracking_is_not_switched_on_over_snapshots_of_others(scene: Scene, admin: Client) -> None:
    admin.wait(admin.named(vim.VirtualMachine, scene.name).CreateSnapshot_Task("before update", "", False, False))
    held, _, _ = take(scene, 1)
    assert held.baseline is None
    assert "is not switched on while the VM has snapshots ('before update')" in held.notes[0]


@pytest.mark.parametrize("fault", [
    vmodl.fault.InvalidArgument(invalidProperty="changeId", msg="A specified parameter was not correct: changeId"),
    vim.fault.FileFault(file="web.vmdk", msg="Error caused by file"),
    vim.fault.FileNotFound(file="web-ctk.vmdk", msg="File not found"),
    vmodl.fault.NotSupported(msg="not supported"),
    vmodl.fault.SystemError(msg="A general system error occurred"),
], ids=lambda fault: type(fault).__name__)  # fmt: skip
def test_a_server_that_refuses_the_changes_costs_a_scan_and_no_failure(scene: Scene, fault: Any) -> None:
    first, _, _ = take(scene, 1)
    scene.vcenter.faults.fail("QueryChangedDiskAreas", fault)
    held, _, _ = take(scene, 2, baseline(first))
    assert held.lost == ((only(first).name, Reason.CBT_REFUSED),)
    source = scene.source()
    with source.snapshot(Context(), scene.vm, AUTO, scene.request(3, baseline(held))) as third:
        scene.vcenter.faults.fail("QueryChangedDiskAreas", fault)
        with pytest.raises(TrackingLost) as raised:
            source.library_export(only(third))
        assert raised.value.reason == Reason.CBT_REFUSED
        assert source.library_export(replace(only(third), since="")).changed is None


def test_a_snapshot_that_somebody_removes_while_it_is_read_is_an_error(scene: Scene, admin: Client) -> None:
    first, _, _ = take(scene, 1)
    source = scene.source()
    with source.snapshot(Context(), scene.vm, AUTO, scene.request(2, baseline(first))) as held:
        admin.wait(admin.named(vim.VirtualMachine, scene.name).RemoveAllSnapshots_Task(True))
        with pytest.raises(PlatformError, match="not held any more") as raised:
            source.library_export(only(held))
        assert not isinstance(raised.value, TrackingLost)


def test_a_disk_that_grew_since_it_was_planned_is_an_error_and_leaves_no_snapshot(scene: Scene) -> None:
    vm = scene.vm
    planned = replace(vm, disks=tuple(replace(disk, size=disk.size - 512) for disk in vm.disks))
    with pytest.raises(PlatformError, match=r"disk .* was resized just now, from \d+ to 4194816 bytes"), \
            scene.source().snapshot(Context(), planned, AUTO, scene.request(1)):  # fmt: skip
        pytest.fail("held")
    assert scene.snapshots == []


# --- quiescing --------------------------------------------------------------------------------------------------------


def quiesced(scene: Scene, *, must: bool = False) -> SourceSnapshot:
    with scene.source().snapshot(
        Context(), scene.vm, AUTO, scene.request(1, quiesce=True, must_quiesce=must)
    ) as held:  # fmt: skip
        return replace(held, notes=tuple(note for note in held.notes if "changed block" not in note))


def test_tools_that_run_quiesce_the_guest(scene: Scene) -> None:
    scene.vcenter.set_tools(scene.name, running=True)
    held = quiesced(scene, must=True)
    assert (held.quiesced, held.notes) == (True, ())


def test_without_tools_the_wish_is_not_believed_to_be_fulfilled(scene: Scene) -> None:
    scene.vcenter.set_tools(scene.name, running=False)
    held = quiesced(scene)
    assert (held.quiesced, held.notes) == (False, (
        "the guest is not quiesced, the restore point is crash-consistent: VMware Tools do not run in the guest",))


QUIESCE_FAULTS = [
    vim.fault.ApplicationQuiesceFault(msg="Failed to quiesce applications"),
    vim.fault.FilesystemQuiesceFault(msg="Failed to quiesce file systems"),
    vim.fault.GenericVmConfigFault(reason="x", msg="An error occurred while quiescing the virtual machine"),
    vmodl.fault.SystemError(
        reason="x", faultMessage=[vmodl.LocalizableMessage(key="msg.snapshot.error-QUIESCINGERROR")]
    ),
]


@pytest.mark.parametrize("fault", QUIESCE_FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_guest_that_cannot_be_quiesced_makes_the_point_crash_consistent_and_the_reason_is_told(
    scene: Scene, fault: Any
) -> None:
    scene.vcenter.set_tools(scene.name, running=True)
    scene.vcenter.faults.fail_task("CreateSnapshot_Task", fault)
    held = quiesced(scene)
    assert not held.quiesced
    assert len(held.notes) == 1
    assert held.notes[0].startswith("the guest is not quiesced, the restore point is crash-consistent: ")


@pytest.mark.parametrize("tools", [True, False])
def test_with_require_there_is_no_snapshot_of_a_guest_that_cannot_be_quiesced(scene: Scene, tools: bool) -> None:
    scene.vcenter.set_tools(scene.name, running=tools)
    if tools:
        scene.vcenter.faults.fail_task("CreateSnapshot_Task", QUIESCE_FAULTS[0])
    with pytest.raises(GuestError, match="quiesce the guest"):
        quiesced(scene, must=True)
    assert scene.snapshots == []


def test_a_snapshot_that_fails_for_another_reason_is_no_crash_consistent_one(scene: Scene) -> None:
    scene.vcenter.set_tools(scene.name, running=True)
    scene.vcenter.faults.fail_task("CreateSnapshot_Task", vim.fault.TooManySnapshotLevels(msg="too many"))
    with pytest.raises(PlatformError, match="TooManySnapshotLevels"):
        quiesced(scene)


# --- leaving it -------------------------------------------------------------------------------------------------------


def test_a_snapshot_goes_with_its_context_whatever_ended_it(scene: Scene) -> None:
    found: list[str] = []

    def work() -> None:
        with scene.source().snapshot(Context(), scene.vm, AUTO, scene.request(1)):
            found.extend(scene.snapshots)
            raise Cancelled

    with pytest.raises(Cancelled):
        work()
    assert found == [str(scene.tag(1))]
    assert scene.snapshots == []


def test_a_snapshot_goes_although_the_task_was_cancelled(scene: Scene) -> None:
    ctx = Context()
    with scene.source().snapshot(ctx, scene.vm, AUTO, scene.request(1)):
        ctx.cancel.cancel()
    assert scene.snapshots == []


def test_a_task_that_is_cancelled_while_its_snapshot_is_made_leaves_none(scene: Scene) -> None:
    ctx, slow = Context(), scene.vcenter.faults.slow_task("CreateSnapshot_Task")

    def cancel() -> None:
        while not scene.snapshots:
            time.sleep(0.05)
        ctx.cancel.cancel()
        slow.release()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Cancelled), scene.source().snapshot(ctx, scene.vm, AUTO, scene.request(1)):
        pytest.fail("held")
    canceller.join()
    assert scene.snapshots == []


def test_a_snapshot_whose_answer_was_lost_is_found_by_its_name_and_removed(scene: Scene) -> None:
    scene.vcenter.faults.drop("CreateSnapshot_Task")
    with pytest.raises(HostUnreachable), scene.source().snapshot(Context(), scene.vm, AUTO, scene.request(1)):
        pytest.fail("held")
    assert scene.snapshots == []


def test_a_session_that_expires_at_any_call_is_renewed_and_nothing_is_left(scene: Scene) -> None:
    first, replica, _ = take(scene, 1)
    number = 2
    for calls in (*range(0, 24, 2), 0):  # the last leaves no expiry for other tests
        scene.write(random.Random(calls), 2)
        scene.vcenter.faults.expire_sessions(after=calls)
        first, now, areas = take(scene, number, baseline(first))
        replica = apply(replica, now, areas)
        assert (replica == now, first.lost, scene.snapshots) == (True, (), [])
        number += 1


def test_a_delta_that_a_removal_leaves_is_consolidated(scene: Scene, admin: Client) -> None:
    scene.vcenter.faults.leave_delta()
    take(scene, 1)
    vm = admin.named(vim.VirtualMachine, scene.name)
    assert admin.properties(vm, "runtime.consolidationNeeded")["runtime.consolidationNeeded"] is False
    (disk,) = scene.vcenter.disks(scene.name)
    assert not disk.chain.live.path.endswith("-000001.vmdk")


def test_a_delta_that_stays_is_an_error_that_says_what_to_do_and_the_next_sweep_merges_it(
    scene: Scene, admin: Client
) -> None:
    scene.vcenter.faults.leave_delta()
    refused = vim.fault.InsufficientStorageSpace(msg="no space")
    scene.vcenter.faults.fail_task("ConsolidateVMDisks_Task", refused)
    with pytest.raises(PlatformError, match=r"is not merged: .*no space.*ConsolidateVMDisks"):
        take(scene, 1)
    assert scene.source().sweep(Context(), scene.vm, scene.tag(2)) == [
        f"merged what removed snapshots had left of VM {scene.name!r}"
    ]
    vm = admin.named(vim.VirtualMachine, scene.name)
    assert admin.properties(vm, "runtime.consolidationNeeded")["runtime.consolidationNeeded"] is False


def test_a_snapshot_that_may_not_be_removed_is_named_with_the_privilege_and_the_command(scene: Scene) -> None:
    scene.vcenter.faults.deny("RemoveSnapshot_Task")
    name = str(scene.tag(1))
    with pytest.raises(PlatformError) as raised, \
            scene.source(CommitPatience((600.0,))).snapshot(Context(), scene.vm, AUTO, scene.request(1)):  # fmt: skip
        pass
    text = str(raised.value)
    assert text.startswith(f"remove snapshot '{name}' of VM '{scene.name}': ")
    assert "Denied.RemoveSnapshot_Task" in text
    assert f"Get-VM '{scene.name}' | Get-Snapshot -Name '{name}' | Remove-Snapshot" in text
    with pytest.raises(PlatformError, match=f"{name}' stays"):
        scene.source().sweep(Context(), scene.vm, scene.tag(2))
    scene.vcenter.faults.allow("RemoveSnapshot_Task")
    assert scene.source().sweep(Context(), scene.vm, scene.tag(2)) == [
        f"removed snapshot '{name}' of a dead session from VM '{scene.name}'"
    ]


def test_a_removal_that_fails_is_tried_again_after_a_pause(scene: Scene) -> None:
    scene.vcenter.faults.fail_task("RemoveSnapshot_Task", vim.fault.GenericVmConfigFault(reason="busy", msg="busy"))
    with scene.source(CommitPatience((0.0,))).snapshot(Context(), scene.vm, AUTO, scene.request(1)):
        pass
    assert scene.snapshots == []


def test_a_snapshot_of_a_vm_that_is_gone_needs_no_removal(scene: Scene, admin: Client) -> None:
    vm = admin.named(vim.VirtualMachine, scene.name)
    with scene.source().snapshot(Context(), scene.vm, AUTO, scene.request(1)):
        admin.wait(vm.PowerOffVM_Task())
        admin.wait(vm.Destroy_Task())


# --- what dead controllers left ---------------------------------------------------------------------------------------


def left(scene: Scene, number: int, stack: ExitStack) -> SourceSnapshot:
    """A snapshot whose controller died: nobody leaves its context before the test has ended."""
    return stack.enter_context(scene.source().snapshot(Context(), scene.vm, AUTO, scene.request(number)))


def test_a_sweep_removes_what_dead_sessions_of_the_job_left_and_nothing_else(scene: Scene, admin: Client) -> None:
    vm = admin.named(vim.VirtualMachine, scene.name)
    other_job = str(replace(scene.tag(9), job_id="f" * 32))
    with ExitStack() as stack:
        admin.wait(vm.CreateSnapshot_Task("understudy-by-hand", "", False, False))
        admin.wait(vm.CreateSnapshot_Task(other_job, "", False, False))
        left(scene, 1, stack)
        left(scene, 2, stack)
        assert scene.snapshots == ["understudy-by-hand", other_job, str(scene.tag(1)), str(scene.tag(2))]
        assert scene.source().sweep(Context(), scene.vm, scene.tag(3)) == [
            f"removed snapshot '{scene.tag(number)}' of a dead session from VM '{scene.name}'" for number in (2, 1)
        ]
        assert scene.snapshots == ["understudy-by-hand", other_job]
        assert scene.source().sweep(Context(), scene.vm, scene.tag(3)) == []


def test_traces_tell_of_all_vms_what_of_ours_they_have_and_how_to_remove_it(scene: Scene) -> None:
    with scene.source().snapshot(Context(), scene.vm, AUTO, scene.request(4)):
        found = {item.name: item for item in scene.source().traces()}
    name = str(scene.tag(4))
    assert len(found) >= TESTS - 1  # one test destroys its VM
    assert found[scene.name].snapshots == (name,)
    assert (found[scene.name].uuid, found[scene.name].active) == (scene.vm.uuid, True)
    by_hand = f"Get-VM '{scene.name}' | Get-Snapshot -Name '{name}' | Remove-Snapshot"
    assert (found[scene.name].by_hand, found[scene.name].unmerged) == ({name: (by_hand,)}, False)


def test_traces_tell_of_a_delta_that_no_snapshot_needs(scene: Scene) -> None:
    # Whoever made the snapshot.
    snapshot = tasks.run(Context(), scene.connection, "snapshot", lambda: scene.ref.CreateSnapshot_Task(
        name="by hand", description="", memory=False, quiesce=False))  # fmt: skip
    scene.vcenter.faults.leave_delta()
    tasks.run(Context(), scene.connection, "remove", lambda: snapshot.RemoveSnapshot_Task(removeChildren=False))
    (found,) = [item for item in scene.source().traces() if item.name == scene.name]
    assert found.unmerged
    assert found.by_hand == {"merge": (f"(Get-VM '{scene.name}').ExtensionData.ConsolidateVMDisks()",)}


def test_a_snapshot_is_taken_over_by_the_next_controller_and_ended_by_it(scene: Scene) -> None:
    with ExitStack() as stack:
        held = left(scene, 1, stack)
        with scene.source().hold_again(Context(), scene.vm, scene.request(1), held) as again:
            assert again == held
            assert scene.frozen(again)
        assert scene.snapshots == []
        with pytest.raises(PlatformError, match="not held any more"), \
                scene.source().hold_again(Context(), scene.vm, scene.request(1), held):  # fmt: skip
            pytest.fail("held")


def test_another_snapshot_of_the_same_name_is_not_taken_for_the_one_that_was_held(scene: Scene, admin: Client) -> None:
    with ExitStack() as stack:
        held = left(scene, 1, stack)
        vm = admin.named(vim.VirtualMachine, scene.name)
        admin.wait(vm.RemoveAllSnapshots_Task(True))
        admin.wait(vm.CreateSnapshot_Task(str(scene.tag(1)), "", False, False))
        with pytest.raises(PlatformError, match="another snapshot has its name now"), \
                scene.source().hold_again(Context(), scene.vm, scene.request(1), held):  # fmt: skip
            pytest.fail("held")


def test_no_qemu_guest_agent_is_reached_and_that_is_said(scene: Scene) -> None:
    for call in (lambda: scene.source().freeze("u", 1.0), lambda: scene.source().thaw("u", 1.0),
                 lambda: scene.source().agent_command("u", "guest-ping", {}, 1.0)):  # fmt: skip
        with pytest.raises(GuestError, match="no QEMU guest agent"):
            call()


def test_a_change_id_leaves_nothing_on_the_server(scene: Scene) -> None:
    source, vm = scene.source(AT_ONCE), scene.vm
    assert source.markers(vm) == {}
    assert source.keep_baseline(vm, scene.tag(1), "x", "y") == []
    assert source.remove_orphan(vm, "x", ()) == ""
