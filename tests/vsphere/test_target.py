"""Replica VMs on a vCenter's double: every verb, every fault, every repetition; and each byte where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.simulator import Inventory, missing
from tests.vsphere.sourcing import AT_ONCE
from tests.vsphere.steps import OTHER, SIZE, VM
from tests.vsphere.target_lab import IDENTITY, POINTS, REPLICA, STORE, TargetLab, target_lab
from understudy.context import Context
from understudy.errors import DatastoreError, HostUnreachable, NotFound, PlatformError, Refused
from understudy.model.access import HostAccess
from understudy.model.inventory import VmState
from understudy.model.job import SNAPSHOTS
from understudy.platforms.snapshot_target import SnapshotVmSpec, snapshot_target
from understudy.platforms.vsphere.definition import hardware_of
from understudy.platforms.vsphere.host import VsphereHost
from understudy.platforms.vsphere.replica_errors import LONGEST_CHAIN
from understudy.platforms.vsphere.replica_mark import CONNECTED, OWNER
from understudy.platforms.vsphere.replica_points import POINT
from understudy.platforms.vsphere.trust import fetch_certificate

pytestmark = pytest.mark.timeout(600)

ONE, TWO, THREE, FOUR = POINTS
NIC = vim.vm.device.VirtualEthernetCard
DISK = vim.vm.device.VirtualDisk


@pytest.fixture
def lab(vcenter: Front, client: Client, key: int) -> Iterator[TargetLab]:
    with target_lab(vcenter, client) as made:
        yield made


# --- the VM -----------------------------------------------------------------------------------------------------------


def test_a_replica_is_made_off_and_marked_with_the_hardware_of_the_source_connected_to_nothing(lab: TargetLab) -> None:
    assert lab.host.snapshot_replica(IDENTITY) is None
    lab.make()
    found, source = lab.host.snapshot_replica(IDENTITY), lab.hardware
    assert found is not None
    assert (found.name, found.state, found.points, found.strangers) == (REPLICA, VmState.SHUT_OFF, (), ())
    assert dict(found.disks) == {source.disks[0].name: SIZE}
    seen = lab.properties("config.instanceUuid", "config.extraConfig", "config.annotation", "config.hardware",
                          "config.guestId", "config.changeTrackingEnabled")  # fmt: skip
    marks = {option.key: option.value for option in seen["config.extraConfig"]}
    assert seen["config.instanceUuid"] == IDENTITY.domain_uuid
    assert marks[OWNER] == IDENTITY.id
    assert VM in seen["config.annotation"]
    assert not seen["config.changeTrackingEnabled"]
    assert seen["config.guestId"] == source.guest_id
    assert (seen["config.hardware"].memoryMB << 20, seen["config.hardware"].numCPU) == (
        source.memory_bytes, source.vcpus)  # fmt: skip
    (card,) = lab.devices(NIC)
    assert (card.macAddress, card.connectable.startConnected) == (source.nics[0].mac, False)
    assert marks[CONNECTED] == source.nics[0].mac
    (disk,) = lab.devices(DISK)
    assert disk.backing.thinProvisioned
    assert lab.leaf().read_bytes() == bytes(SIZE)
    assert snapshot_target(SNAPSHOTS, lab.host) is lab.host


def test_making_it_again_changes_nothing_but_gives_new_disks_where_they_are_to_be_new(lab: TargetLab) -> None:
    lab.make()
    content = lab.write(1)
    before = lab.disk().chain.live.path
    lab.make(anew=set())
    assert (lab.disk().chain.live.path, lab.leaf().read_bytes()) == (before, content)
    lab.make()
    assert lab.leaf().read_bytes() == bytes(SIZE)
    assert len(list(lab.leaf().parent.glob("*-flat.vmdk"))) == 1


def test_nothing_is_asked_of_the_server_to_change_if_the_vm_fits(lab: TargetLab) -> None:
    lab.make()
    before = lab.vcenter.calls.count("ReconfigVM_Task")
    lab.make(anew=set())
    assert lab.vcenter.calls.count("ReconfigVM_Task") == before


def test_hardware_that_the_source_has_now_comes_to_the_replica_which_keeps_its_points(lab: TargetLab) -> None:
    lab.make()
    lab.write(1)
    lab.take(ONE)
    old = lab.hardware
    new = replace(old, vcpus=old.vcpus + 1, memory_bytes=2 * old.memory_bytes, nics=(
        replace(old.nics[0], mac="00:50:56:01:02:03"),))  # fmt: skip
    lab.make(new, anew=set())
    seen = lab.properties("config.hardware")["config.hardware"]
    assert (seen.numCPU, seen.memoryMB << 20) == (new.vcpus, new.memory_bytes)
    (card,) = lab.devices(NIC)
    assert (card.macAddress, card.connectable.startConnected) == ("00:50:56:01:02:03", False)
    assert lab.points() == (ONE,)


def test_a_card_that_somebody_connected_is_disconnected_again(lab: TargetLab) -> None:
    lab.make()
    (card,) = lab.devices(NIC)
    card.connectable.startConnected = True
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
    lab.client.wait(lab.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    lab.make(anew=set())
    assert [card.connectable.startConnected for card in lab.devices(NIC)] == [False]


def test_a_second_disk_is_added_and_taken_off_again_and_points_keep_what_they_have(lab: TargetLab) -> None:
    lab.make()
    first = lab.write(1)
    lab.take(ONE)
    both = lab.two_disks()
    name, second = (disk.name for disk in both.disks)
    lab.make(both, anew={second})
    lab.write(2, second)
    content = lab.leaf(second).read_bytes()
    lab.take(TWO)
    lab.make(anew=set())
    found = lab.host.snapshot_replica(IDENTITY)
    assert found is not None
    assert set(found.disks) == {name}
    assert lab.frozen(TWO, second).read_bytes() == content
    assert lab.frozen(ONE).read_bytes() == first
    with pytest.raises(NotFound, match=ONE):
        lab.host.point_export(IDENTITY, second, ONE)
    lab.revert(TWO)
    assert lab.leaf(second).read_bytes() == content


def test_a_disk_that_grew_is_new_while_older_points_keep_the_old_file(lab: TargetLab) -> None:
    lab.make()
    content = lab.write(1)
    lab.take(ONE)
    lab.make(lab.grown())
    assert lab.leaf().read_bytes() == bytes(2 * SIZE)
    lab.take(TWO)
    assert lab.frozen(ONE).read_bytes() == content
    lab.revert(ONE)
    assert lab.leaf().read_bytes() == content
    lab.revert(TWO)
    assert lab.leaf().read_bytes() == bytes(2 * SIZE)


def test_a_disk_that_is_to_be_written_on_must_be_there_and_of_its_size(lab: TargetLab) -> None:
    lab.make()
    before = lab.write(1)
    with pytest.raises(PlatformError, match="bytes"):
        lab.make(lab.grown(), anew=set())
    with pytest.raises(PlatformError, match="is gone"):
        lab.make(lab.two_disks(), anew=set())
    assert lab.leaf().read_bytes() == before


def test_a_vm_that_is_gone_is_not_made_anew_with_empty_disks_that_should_have_content(lab: TargetLab) -> None:
    with pytest.raises(PlatformError, match="is gone"):
        lab.make(anew=set())
    assert lab.host.snapshot_replica(IDENTITY) is None


def test_a_running_vm_and_vms_of_others_are_refused_and_not_touched(lab: TargetLab) -> None:
    lab.make()
    lab.host.start_replica(IDENTITY.domain_uuid)
    for act in (lab.make, lambda: lab.take(ONE), lambda: lab.host.remove_snapshot_replica(lab.ctx, IDENTITY)):
        with pytest.raises(Refused, match="running"):
            act()
    other = lab.host.describe_vm(OTHER)
    foreign = replace(IDENTITY, domain_uuid=other.uuid)
    for refused in (
        lambda: lab.host.snapshot_replica(foreign),
        lambda: lab.host.make_snapshot_replica(lab.ctx, replace(lab.spec(), identity=foreign)),
        lambda: lab.host.take_point(lab.ctx, foreign, ONE, ""),
        lambda: lab.host.revert_to_point(lab.ctx, foreign, ONE),
        lambda: lab.host.remove_points(lab.ctx, foreign, (ONE,)),
        lambda: lab.host.remove_snapshot_replica(lab.ctx, foreign),
        lambda: lab.host.leaf_export(foreign, "scsi0:0"),
        lambda: lab.host.point_export(foreign, "scsi0:0", ONE),
        lambda: lab.host.start_replica(other.uuid),
        lambda: lab.host.stop_replica(other.uuid),
        lambda: lab.host.undefine_replica(other.uuid),
    ):
        with pytest.raises(Refused, match="not ours"):
            refused()
    assert lab.host.describe_vm(OTHER).state is VmState.RUNNING
    with pytest.raises(Refused, match="another replica"):
        lab.host.snapshot_replica(replace(IDENTITY, id="another"))


def test_the_name_of_another_vm_is_not_taken(lab: TargetLab) -> None:
    with pytest.raises(Refused, match="another VM of that name"):
        lab.host.make_snapshot_replica(lab.ctx, replace(lab.spec(), identity=replace(IDENTITY, name=OTHER)))


def test_a_source_of_another_platform_is_refused(lab: TargetLab) -> None:
    with pytest.raises(Refused, match="not of VMware vSphere"):
        lab.host.make_snapshot_replica(lab.ctx, replace(lab.spec(), definition="<domain><name>x</name></domain>"))


def test_the_vm_is_removed_with_its_files_and_its_removal_repeated(lab: TargetLab) -> None:
    lab.make()
    lab.take(ONE)
    folder = lab.leaf().parent
    lab.host.remove_snapshot_replica(lab.ctx, IDENTITY)
    assert lab.host.snapshot_replica(IDENTITY) is None
    assert not list(folder.glob("*.vmdk"))
    lab.host.remove_snapshot_replica(lab.ctx, IDENTITY)
    assert lab.remove(ONE) == []


def test_a_vm_with_a_snapshot_of_others_or_a_disk_of_another_vm_is_not_removed(lab: TargetLab) -> None:
    lab.make()
    path = "config.hardware.device"
    devices = lab.client.properties(lab.client.named(vim.VirtualMachine, OTHER), path)[path]
    other: Any = next(item for item in devices if isinstance(item, DISK))
    (mine,) = lab.devices(DISK)
    other.key, other.unitNumber, other.controllerKey = -1, 5, mine.controllerKey
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=other)
    lab.client.wait(lab.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    with pytest.raises(Refused, match="disks of others"):
        lab.host.remove_snapshot_replica(lab.ctx, IDENTITY)
    file = lab.local(other.backing.fileName)
    assert [text for text in lab.make(anew=set()) if other.backing.fileName in text and "taken off" in text]
    assert file.exists()
    lab.snapshot("of somebody")
    with pytest.raises(Refused, match="of somebody"):
        lab.host.remove_snapshot_replica(lab.ctx, IDENTITY)


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_keep_their_bytes_while_the_leaf_is_written_and_revert_brings_them_back(lab: TargetLab) -> None:
    lab.make()
    content = {}
    for seed, point in enumerate((ONE, TWO, THREE)):
        content[point] = lab.write(seed)
        lab.take(point)
    lab.write(9)
    assert lab.points() == (ONE, TWO, THREE)
    assert {point: lab.frozen(point).read_bytes() for point in content} == content
    lab.revert(THREE)
    assert lab.leaf().read_bytes() == content[THREE]
    lab.write(10)
    lab.revert(ONE)
    assert lab.leaf().read_bytes() == content[ONE]
    assert {point: lab.frozen(point).read_bytes() for point in content} == content
    lab.revert(THREE)
    assert lab.remove(ONE, TWO) == []
    assert lab.points() == (THREE,)
    assert lab.leaf().read_bytes() == lab.frozen(THREE).read_bytes() == content[THREE]
    assert not lab.properties("runtime.consolidationNeeded")["runtime.consolidationNeeded"]


def test_a_leaf_is_told_by_the_file_of_this_moment_and_a_point_by_its_snapshot(lab: TargetLab) -> None:
    lab.make()
    name = lab.hardware.disks[0].name
    before = lab.host.leaf_export(IDENTITY, name)
    lab.take(ONE)
    after, point = lab.host.leaf_export(IDENTITY, name), lab.host.point_export(IDENTITY, name, ONE)
    assert before.disk.file == point.disk.file != after.disk.file
    assert (before.disk.snapshot, after.disk.snapshot, point.disk.snapshot) == ("", "", lab.moref_of(ONE)._moId)
    assert {export.disk.vm for export in (before, after, point)} == {lab.ref._moId}
    assert after.login.user == lab.vcenter.user
    assert after.changed is None
    with pytest.raises(NotFound, match="has it not"):
        lab.host.leaf_export(IDENTITY, "scsi3:3")
    with pytest.raises(NotFound, match="snapshot is gone"):
        lab.host.point_export(IDENTITY, name, TWO)


def test_taking_a_point_again_is_no_second_snapshot_and_one_that_the_vm_left_is_refused(lab: TargetLab) -> None:
    lab.make()
    lab.take(ONE)
    lab.take(ONE)
    assert [name for name, _ in lab.tree()] == [POINT + ONE]
    lab.take(TWO)
    with pytest.raises(PlatformError, match="stands on another"):
        lab.take(ONE)


def test_snapshots_of_others_are_named_and_never_touched(lab: TargetLab) -> None:
    lab.make()
    lab.take(ONE)
    lab.snapshot("before the update")
    lab.take(TWO)
    found = lab.host.snapshot_replica(IDENTITY)
    assert found is not None
    assert (found.points, found.strangers) == ((ONE, TWO), ("before the update",))
    assert any("before the update" in text for text in lab.make(anew=set()))
    assert lab.remove(ONE, TWO, THREE, "before the update") == []
    assert [name for name, _ in lab.tree()] == ["before the update"]


def test_a_tree_that_somebody_made_branch_is_understood(lab: TargetLab) -> None:
    lab.make()
    content = {}
    for seed, point in enumerate((ONE, TWO)):
        content[point] = lab.write(seed)
        lab.take(point)
    lab.client.wait(lab.moref_of(ONE).RevertToSnapshot_Task())
    lab.snapshot("by hand")
    lab.write(7)
    assert lab.points() == (ONE, TWO)
    lab.revert(TWO)
    assert lab.leaf().read_bytes() == content[TWO]
    content[THREE] = lab.write(8)
    lab.take(THREE)
    assert lab.remove(ONE) == []
    for point in (TWO, THREE):
        assert lab.frozen(point).read_bytes() == content[point]
    assert {name for name, _ in lab.tree()} == {POINT + TWO, POINT + THREE, "by hand"}


def test_more_snapshots_than_a_server_takes_are_refused_with_advice(lab: TargetLab) -> None:
    lab.make()
    for index in range(LONGEST_CHAIN - 1):
        lab.snapshot(f"by hand {index}")
    lab.take(ONE)
    before = lab.vcenter.calls.count("CreateSnapshot_Task")
    with pytest.raises(PlatformError, match="32 are the most") as failure:
        lab.take(TWO)
    assert "fewer restore points" in failure.value.todo
    assert lab.points() == (ONE,)
    assert lab.vcenter.calls.count("CreateSnapshot_Task") == before


def test_what_a_removal_leaves_unmerged_is_merged(lab: TargetLab) -> None:
    lab.make()
    lab.take(ONE)
    content = lab.write(1)
    lab.take(TWO)
    lab.vcenter.faults.leave_delta()
    assert lab.remove(ONE) == []
    assert not lab.properties("runtime.consolidationNeeded")["runtime.consolidationNeeded"]
    assert lab.frozen(TWO).read_bytes() == content


def test_points_that_cannot_be_removed_are_told_one_by_one(lab: TargetLab) -> None:
    lab.make()
    for point in (ONE, TWO):
        lab.take(point)
    lab.vcenter.faults.deny("RemoveSnapshot_Task")
    problems = lab.remove(ONE, TWO)
    assert [text.split(":")[0] for text in problems] == [f"restore point {ONE}", f"restore point {TWO}"]
    assert all("lacks" in text for text in problems)
    lab.vcenter.faults.allow("RemoveSnapshot_Task")
    assert lab.remove(ONE, TWO) == []
    assert lab.points() == ()


def test_a_revert_powers_off_and_deletes_disks_that_no_point_has(lab: TargetLab) -> None:
    lab.make()
    content = lab.write(1)
    lab.take(ONE)
    both = lab.two_disks()
    lab.make(both, anew={both.disks[1].name})
    fresh = lab.leaf(both.disks[1].name)
    lab.host.start_replica(IDENTITY.domain_uuid)
    lab.revert(ONE)
    found = lab.host.snapshot_replica(IDENTITY)
    assert found is not None
    assert (found.state, len(found.disks)) == (VmState.SHUT_OFF, 1)
    assert lab.leaf().read_bytes() == content
    assert not fresh.exists()
    # One that somebody added is his: it goes with the revert, its file does not.
    (mine,) = lab.devices(DISK)
    store = lab.properties("datastore")["datastore"][0]
    added = DISK(key=-1, controllerKey=mine.controllerKey, unitNumber=4, capacityInKB=1024, capacityInBytes=1024 * 1024,
                 backing=DISK.FlatVer2BackingInfo(fileName="", diskMode="persistent", datastore=store))  # fmt: skip
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=added)
    lab.client.wait(lab.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    (file,) = [lab.local(disk.backing.fileName) for disk in lab.devices(DISK) if disk.unitNumber == 4]
    lab.revert(ONE)
    assert len(lab.devices(DISK)) == 1
    assert file.exists()


def test_points_are_no_leftovers_of_sessions(lab: TargetLab) -> None:
    lab.make()
    lab.take(ONE)
    assert all(not traces.snapshots for traces in lab.host.traces())


# --- power ------------------------------------------------------------------------------------------------------------


def test_a_start_connects_what_the_source_had_connected_and_a_revert_disconnects_it(lab: TargetLab) -> None:
    lab.make()
    lab.take(ONE)
    for _ in range(2):
        lab.host.start_replica(IDENTITY.domain_uuid)
        assert lab.host.replica_state(IDENTITY.domain_uuid) is VmState.RUNNING
    assert [card.connectable.startConnected for card in lab.devices(NIC)] == [True]
    for _ in range(2):
        lab.host.stop_replica(IDENTITY.domain_uuid)
        assert lab.host.replica_state(IDENTITY.domain_uuid) is VmState.SHUT_OFF
    lab.revert(ONE)
    assert [card.connectable.startConnected for card in lab.devices(NIC)] == [False]


def test_a_card_whose_network_the_target_has_not_stays_disconnected(lab: TargetLab) -> None:
    old = lab.hardware
    new = replace(old, nics=(*old.nics, replace(old.nics[0], mac="00:50:56:01:02:03", network="DMZ"),
                             replace(old.nics[0], mac="00:50:56:01:02:04", connected=False)))  # fmt: skip
    assert [text for text in lab.make(new) if "DMZ" in text]
    lab.host.start_replica(IDENTITY.domain_uuid)
    started = {card.macAddress: card.connectable.startConnected for card in lab.devices(NIC)}
    assert started == {old.nics[0].mac: True, "00:50:56:01:02:03": False, "00:50:56:01:02:04": False}


def test_a_vm_that_is_not_there_is_not_started_and_its_stop_and_removal_are_no_errors(lab: TargetLab) -> None:
    with pytest.raises(NotFound, match="has it no more"):
        lab.host.start_replica(IDENTITY.domain_uuid)
    lab.host.stop_replica(IDENTITY.domain_uuid)
    lab.host.undefine_replica(IDENTITY.domain_uuid)
    assert lab.host.replica_state(IDENTITY.domain_uuid) is None
    assert lab.host.replica_disks(IDENTITY.domain_uuid) == set()


def test_why_a_replica_does_not_start_is_told(lab: TargetLab) -> None:
    lab.make()
    for fault, words in (
        (vim.fault.InvalidHostState(msg="In maintenance."), "maintenance"),
        (vim.fault.InsufficientResourcesFault(msg="No memory."), "the CPUs or the memory"),
        (vim.fault.RestrictedVersion(msg="Free."), "licence"),
    ):
        lab.vcenter.faults.fail_task("PowerOnVM_Task", fault)
        with pytest.raises(PlatformError) as failure:
            lab.host.start_replica(IDENTITY.domain_uuid)
        assert words in str(failure.value) + failure.value.todo
    lab.vcenter.faults.fail_task("PowerOnVM_Task", vim.fault.TaskInProgress(task=vim.Task("task-1")))
    lab.host.start_replica(IDENTITY.domain_uuid)  # waits for the other task
    assert lab.host.replica_state(IDENTITY.domain_uuid) is VmState.RUNNING


# --- place ------------------------------------------------------------------------------------------------------------


def test_space_of_a_place_by_each_of_its_names(lab: TargetLab) -> None:
    found = [lab.host.place_space(name) for name in (STORE, f"[{STORE}]", f"DC0/{STORE}", f"[DC0/{STORE}]")]
    assert len(set(found)) == 1
    assert found[0].total_bytes >= found[0].free_bytes > 0
    assert found[0].writable
    for name in ("nowhere", f"DC9/{STORE}"):
        with pytest.raises(NotFound, match="none of that name"):
            lab.host.place_space(name)
    lab.vcenter.faults.fill_datastore(STORE)
    assert lab.host.place_space(STORE).free_bytes == 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_full_datastore_is_told_as_one_and_nothing_is_half_done(lab: TargetLab) -> None:
    lab.vcenter.faults.fill_datastore(STORE)
    with pytest.raises(DatastoreError, match="no space"):
        lab.make()
    assert lab.host.snapshot_replica(IDENTITY) is None
    lab.vcenter.faults.free_datastore(STORE)
    lab.make()
    lab.vcenter.faults.fill_datastore(STORE)
    with pytest.raises(DatastoreError, match="no space"):
        lab.take(ONE)
    lab.vcenter.faults.free_datastore(STORE)
    lab.take(ONE)
    assert lab.points() == (ONE,)


@pytest.mark.parametrize("method", ["CreateVM_Task", "CreateSnapshot_Task", "RevertToSnapshot_Task", "PowerOnVM_Task"])
def test_a_missing_privilege_is_named_and_the_act_can_be_repeated(lab: TargetLab, method: str) -> None:
    lab.vcenter.faults.deny(method)
    with pytest.raises(PlatformError, match=f"Denied.{method}"):
        whole(lab)
    lab.vcenter.faults.allow(method)
    assert whole(lab) == []


def whole(lab: TargetLab) -> list[str]:
    """A whole life, which may be run again from its beginning wherever it failed; what removals told."""
    lab.make()
    content = lab.write(1)
    if ONE not in lab.points():
        lab.take(ONE)
        assert lab.frozen(ONE).read_bytes() == content
    lab.revert(ONE)
    lab.host.start_replica(IDENTITY.domain_uuid)
    lab.host.stop_replica(IDENTITY.domain_uuid)
    lab.revert(ONE)
    assert lab.leaf().read_bytes() == lab.frozen(ONE).read_bytes()
    if problems := lab.remove(ONE):
        return problems
    lab.host.remove_snapshot_replica(lab.ctx, IDENTITY)
    return []


ACTS = ("CreateVM_Task", "ReconfigVM_Task", "CreateSnapshot_Task", "RevertToSnapshot_Task", "PowerOnVM_Task",
        "PowerOffVM_Task", "RemoveSnapshot_Task", "Destroy_Task")  # fmt: skip


@pytest.mark.parametrize("method", ACTS)
def test_after_an_answer_that_was_lost_the_life_is_run_again_and_comes_to_its_end(lab: TargetLab, method: str) -> None:
    if method != "CreateVM_Task":
        lab.make()  # the life changes it then
    lab.vcenter.faults.drop(method)
    if method == "RemoveSnapshot_Task":
        (told,) = whole(lab)
    else:
        with pytest.raises(HostUnreachable) as failure:
            whole(lab)
        told = failure.value.why
    assert "whether it was done is not known" in told
    lab.host.stop_replica(IDENTITY.domain_uuid)
    assert whole(lab) == []
    assert lab.host.snapshot_replica(IDENTITY) is None


def test_sessions_that_expire_anywhere_are_renewed(lab: TargetLab) -> None:
    for after in (0, 3, 9, 20, 40):
        lab.vcenter.faults.expire_sessions(after)
        lab.make()
        lab.take(ONE)
        lab.revert(ONE)
        assert lab.remove(ONE) == []
    lab.host.remove_snapshot_replica(lab.ctx, IDENTITY)


def test_a_slow_task_is_waited_for(lab: TargetLab) -> None:


    hold = lab.vcenter.faults.slow_task("CreateVM_Task")
    timer = threading.Timer(0.3, hold.release)
    timer.start()
    lab.make()
    timer.join()
    assert lab.host.snapshot_replica(IDENTITY) is not None


def test_a_vm_that_the_server_does_not_reach_is_not_taken_for_one_that_lost_its_points(lab: TargetLab) -> None:
    lab.make()
    lab.take(ONE)
    options = [vim.option.OptionValue(key="SET.runtime.connectionState", value="disconnected")]
    lab.client.wait(lab.ref.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=options)))
    for act in (lambda: lab.host.snapshot_replica(IDENTITY), lab.make, lambda: lab.remove(ONE)):
        with pytest.raises(PlatformError, match="disconnected"):
            act()


# --- other servers ----------------------------------------------------------------------------------------------------


@contextmanager
def server(inventory: Inventory, directory: Path, scheme: str) -> Iterator[tuple[Front, Client, VsphereHost]]:
    """Another server, and our platform for it."""
    if reason := missing():
        pytest.skip(reason)
    with front(inventory, directory) as running, connected(running.url, running.user, running.password) as client:
        shown = fetch_certificate("127.0.0.1", running.port)
        uri = f"{scheme}://127.0.0.1:{running.port}/"
        host = VsphereHost(HostAccess(uri, running.user, running.password, shown.thumbprint), AT_ONCE)
        try:
            yield running, client, host
        finally:
            host.close()


def made_on(host: VsphereHost, vm: str, place: str) -> None:
    """Make a replica of a VM, twice."""
    definition = host.describe_vm(vm).definition
    hardware = hardware_of(definition)
    assert hardware is not None
    sizes = {disk.name: disk.capacity for disk in hardware.disks}
    for _ in range(2):
        host.make_snapshot_replica(Context(), SnapshotVmSpec(IDENTITY, definition, sizes, frozenset(sizes), place))


def test_of_datastores_of_one_name_the_datacenter_tells_and_the_replica_is_made_there(tmp_path: Path) -> None:
    with server(Inventory(datacenters=2, hosts=2, vms=1), tmp_path, "vpx") as (_, client, host):
        with pytest.raises(Refused, match=f"DC0/{STORE}, DC1/{STORE}"):
            host.place_space(STORE)
        made_on(host, VM, f"DC1/{STORE}")
        found = client.properties(client.named(vim.VirtualMachine, REPLICA), "runtime.host", "parent", "resourcePool")
        above = client.properties(client.properties(found["runtime.host"], "parent")["parent"], "name", "resourcePool")
        assert above["name"].startswith("DC1")
        assert found["resourcePool"] == above["resourcePool"]
        center = client.properties(client.properties(found["parent"], "parent")["parent"], "name")
        assert center["name"] == "DC1"


def test_a_host_in_maintenance_is_not_chosen(tmp_path: Path) -> None:
    with server(Inventory(hosts=2, vms=1), tmp_path, "vpx") as (_, client, host):
        names = {found["name"]: vim.HostSystem(moref, client.stub)
                 for moref, found in client.inventory(vim.HostSystem, "name").items()}  # fmt: skip
        first, second = sorted(names)
        client.wait(names[first].EnterMaintenanceMode_Task(0, False, None))
        made_on(host, VM, STORE)
        found = client.properties(client.named(vim.VirtualMachine, REPLICA), "runtime.host")["runtime.host"]
        assert client.properties(found, "name")["name"] == second
        host.remove_snapshot_replica(Context(), IDENTITY)
        client.wait(names[second].EnterMaintenanceMode_Task(0, False, None))
        with pytest.raises(PlatformError, match="no ESXi host"):
            made_on(host, VM, STORE)


def test_a_single_esxi_host_keeps_replicas_too(tmp_path: Path) -> None:
    with server(Inventory(vms=1, esx=True), tmp_path, "esx") as (running, client, host):
        source = next(iter(client.inventory(vim.VirtualMachine, "name").values()))["name"]
        made_on(host, source, STORE)
        host.take_point(Context(), IDENTITY, ONE, "one")
        found = host.snapshot_replica(IDENTITY)
        assert found is not None
        assert (found.points, found.state) == ((ONE,), VmState.SHUT_OFF)
        host.start_replica(IDENTITY.domain_uuid)
        host.revert_to_point(Context(), IDENTITY, ONE)
        assert len(running.disks(REPLICA)) == 1
        host.remove_snapshot_replica(Context(), IDENTITY)
        assert host.snapshot_replica(IDENTITY) is None
