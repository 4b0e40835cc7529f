"""Changed block tracking through the front: when it starts, what it tells, and when it knows nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.vsphere.client import Client
from tests.vsphere.front import Front
from tests.vsphere.steps import (
    AREA,
    OTHER,
    SIZE,
    VM,
    change_id,
    changed,
    device,
    power_off,
    power_on,
    remove,
    revert,
    take,
    track,
)


def test_the_simulator_says_that_it_can_track(client: Client, vm: Any) -> None:
    name = "capability.changeTrackingSupported"
    assert client.properties(vm, name) == {name: True}


def test_tracking_takes_effect_at_the_next_snapshot_only(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    before = take(client, vm, "before")
    remove(client, before)
    track(client, vm)
    assert client.properties(vm, "config.changeTrackingEnabled") == {"config.changeTrackingEnabled": True}
    assert change_id(client, vm, key) is None
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(None, key, 0, "*")
    snapshot = take(client, vm)
    assert change_id(client, snapshot, key)
    assert change_id(client, vm, key)
    assert changed(vm, snapshot, key, "*") == [(0, AREA), (SIZE - AREA, AREA)]


def test_tracking_takes_effect_at_a_power_cycle(client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    power_off(client, vm)
    assert change_id(client, vm, key) is None
    power_on(client, vm)
    assert change_id(client, vm, key)


def test_a_snapshot_from_before_tracking_has_no_changes(client: Client, vm: Any, key: int) -> None:
    early = take(client, vm, "early")
    track(client, vm)
    assert change_id(client, early, key) is None
    take(client, vm, "late")
    assert change_id(client, early, key) is None
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(early, key, 0, "*")


def test_what_is_allocated_is_unknown_if_tracking_began_above_a_snapshot(client: Client, vm: Any, key: int) -> None:
    take(client, vm, "early")
    track(client, vm)
    late = take(client, vm, "late")
    assert change_id(client, late, key)
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(late, key, 0, "*")


def test_changes_are_those_between_two_snapshots(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    first = take(client, vm, "first")
    vcenter.write(VM, key, 10 * AREA - 1, b"ab")
    vcenter.write(VM, key, 20 * AREA, b"c")
    second = take(client, vm, "second")
    vcenter.write(VM, key, 30 * AREA, b"d")
    third = take(client, vm, "third")
    one, two, three = (change_id(client, snapshot, key) or "" for snapshot in (first, second, third))
    assert changed(vm, second, key, one) == [(9 * AREA, 2 * AREA), (20 * AREA, AREA)]
    assert changed(vm, third, key, two) == [(30 * AREA, AREA)]
    assert changed(vm, third, key, one) == [(9 * AREA, 2 * AREA), (20 * AREA, AREA), (30 * AREA, AREA)]
    assert changed(vm, third, key, three) == []
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(first, key, 0, two)


def test_changes_are_known_since_a_snapshot_that_is_removed(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    first = take(client, vm, "first")
    since = change_id(client, first, key) or ""
    vcenter.write(VM, key, 5 * AREA, b"while the snapshot was there")
    remove(client, first)
    vcenter.write(VM, key, 7 * AREA, b"afterwards")
    second = take(client, vm, "second")
    assert changed(vm, second, key, since) == [(5 * AREA, AREA), (7 * AREA, AREA)]


def test_the_live_change_id_is_younger_than_the_last_snapshot(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    track(client, vm)
    snapshot = take(client, vm)
    live, kept = change_id(client, vm, key) or "", change_id(client, snapshot, key) or ""
    assert live.rpartition("/")[0] == kept.rpartition("/")[0]
    assert int(live.rpartition("/")[2]) == int(kept.rpartition("/")[2]) + 1


def test_an_answer_has_a_page_of_areas_and_says_how_far_it_goes(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    track(client, vm)
    since = change_id(client, take(client, vm, "first"), key) or ""
    for area in range(0, 14, 2):
        vcenter.write(VM, key, area * AREA, b"x")
    second = take(client, vm, "second")
    answer = vm.QueryChangedDiskAreas(second, key, 0, since)
    assert [(area.start, area.length) for area in answer.changedArea] == [(n * AREA, AREA) for n in (0, 2, 4)]
    assert answer.length == 5 * AREA
    last = vm.QueryChangedDiskAreas(second, key, 12 * AREA, since)
    assert [(area.start, area.length) for area in last.changedArea] == [(12 * AREA, AREA)]
    assert last.length == SIZE - 12 * AREA
    assert changed(vm, second, key, since) == [(n * AREA, AREA) for n in range(0, 14, 2)]


def test_an_area_begins_where_the_question_begins(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    since = change_id(client, take(client, vm, "first"), key) or ""
    vcenter.write(VM, key, 3 * AREA, bytes(2 * AREA))
    second = take(client, vm, "second")
    assert changed(vm, second, key, since, start=4 * AREA + 512) == [(4 * AREA + 512, AREA - 512)]


def test_a_write_that_tracking_loses_is_in_the_bytes_only(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    since = change_id(client, take(client, vm, "first"), key) or ""
    vcenter.write(VM, key, AREA, b"lost", tracked=False)
    assert vcenter.disks(VM)[0].file.read_bytes()[AREA : AREA + 4] == b"lost"
    assert changed(vm, take(client, vm, "second"), key, since) == []


def test_each_disk_of_a_vm_is_tracked_by_itself(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    second = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=device(client, vm, key).controllerKey, unitNumber=3, capacityInKB=SIZE // 1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="", diskMode="persistent", thinProvisioned=True),
    )  # fmt: skip
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=second)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change], changeTrackingEnabled=True)))
    (other,) = (disk.key for disk in vcenter.disks(VM) if disk.key != key)
    before = take(client, vm, "before")
    vcenter.write(VM, other, AREA, b"x")
    after = take(client, vm, "after")
    assert changed(vm, after, key, change_id(client, before, key) or "") == []
    assert changed(vm, after, other, change_id(client, before, other) or "") == [(AREA, AREA)]
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(after, other, 0, change_id(client, before, key))


def test_a_disk_that_is_added_later_is_tracked_from_the_next_snapshot_on(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    track(client, vm)
    remove(client, take(client, vm))
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=device(client, vm, key).controllerKey, unitNumber=3, capacityInKB=SIZE // 1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="", diskMode="persistent", thinProvisioned=True),
    )  # fmt: skip
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    (added,) = (disk.key for disk in vcenter.disks(VM) if disk.key != key)
    assert change_id(client, vm, added) is None
    assert change_id(client, take(client, vm), added)


def test_an_area_ends_with_the_disk(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    other = client.named(vim.VirtualMachine, OTHER)
    disk = device(client, other, vcenter.disks(OTHER)[0].key)
    disk.capacityInBytes = SIZE + 1024
    disk.capacityInKB = SIZE // 1024 + 1
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    client.wait(other.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change], changeTrackingEnabled=True)))
    since = change_id(client, take(client, other, "first"), disk.key) or ""
    vcenter.write(OTHER, disk.key, SIZE + 1023, b"x")
    second = take(client, other, "second")
    assert changed(other, second, disk.key, since, end=SIZE + 1024) == [(SIZE, 1024)]


@pytest.mark.parametrize("start", [SIZE, SIZE + 1, -1])
def test_a_start_outside_the_disk_is_an_invalid_argument(client: Client, vm: Any, key: int, start: int) -> None:
    track(client, vm)
    snapshot = take(client, vm)
    with pytest.raises(vmodl.fault.InvalidArgument) as refusal:
        vm.QueryChangedDiskAreas(snapshot, key, start, "*")
    assert refusal.value.invalidProperty == "startOffset"


@pytest.mark.parametrize("since", ["52 00/1", "", "unknown", "{identity}/99", "{identity}/x"])
def test_a_change_id_that_nobody_gave_is_an_invalid_argument(client: Client, vm: Any, key: int, since: str) -> None:
    track(client, vm)
    snapshot = take(client, vm)
    identity = (change_id(client, snapshot, key) or "").rpartition("/")[0]
    with pytest.raises(vmodl.fault.InvalidArgument) as refusal:
        vm.QueryChangedDiskAreas(snapshot, key, 0, since.format(identity=identity))
    assert refusal.value.invalidProperty == "changeId"


def test_a_device_that_is_no_disk_is_an_invalid_argument(client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    snapshot = take(client, vm)
    with pytest.raises(vmodl.fault.InvalidArgument) as refusal:
        vm.QueryChangedDiskAreas(snapshot, 4000, 0, "*")
    assert refusal.value.invalidProperty == "deviceKey"


def test_a_removed_snapshot_is_not_found(client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    snapshot = take(client, vm)
    remove(client, snapshot)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.QueryChangedDiskAreas(snapshot, key, 0, "*")


def test_without_a_snapshot_only_a_vm_that_is_off_tells_changes(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    track(client, vm)
    since = change_id(client, take(client, vm), key) or ""
    vcenter.write(VM, key, AREA, b"x")
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(None, key, 0, since)
    power_off(client, vm)
    assert changed(vm, None, key, since) == [(AREA, AREA)]


def test_a_reset_makes_all_change_ids_unknown(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    first = take(client, vm, "first")
    since = change_id(client, first, key) or ""
    vcenter.reset_tracking(VM)
    vcenter.write(VM, key, AREA, b"x")
    second = take(client, vm, "second")
    assert (change_id(client, second, key) or "").rpartition("/")[0] != since.rpartition("/")[0]
    for snapshot in (first, second):
        with pytest.raises(vmodl.fault.InvalidArgument):
            vm.QueryChangedDiskAreas(snapshot, key, 0, since)


def test_a_revert_makes_all_change_ids_unknown(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    first = take(client, vm, "first")
    since = change_id(client, first, key) or ""
    revert(client, first)
    second = take(client, vm, "second")
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(second, key, 0, since)


def test_tracking_switched_off_and_on_begins_anew(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    since = change_id(client, take(client, vm, "first"), key) or ""
    track(client, vm, on=False)
    take(client, vm, "without")
    assert change_id(client, vm, key) is None
    track(client, vm)
    third = take(client, vm, "third")
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(third, key, 0, since)


def test_a_disk_that_grows_keeps_its_change_ids(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    track(client, vm)
    first = take(client, vm, "first")
    since = change_id(client, first, key) or ""
    remove(client, first)
    disk = device(client, vm, key)
    disk.capacityInKB, disk.capacityInBytes = 2 * SIZE // 1024, 2 * SIZE
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    vcenter.write(VM, key, 2 * SIZE - 1, b"x")
    second = take(client, vm, "second")
    assert changed(vm, second, key, since, end=2 * SIZE) == [(2 * SIZE - AREA, AREA)]


def test_an_independent_disk_is_neither_tracked_nor_kept(vcenter: Front, client: Client) -> None:
    other = client.named(vim.VirtualMachine, OTHER)
    disk = device(client, other, vcenter.disks(OTHER)[0].key)
    disk.backing.diskMode = "independent_persistent"
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    client.wait(other.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change], changeTrackingEnabled=True)))
    snapshot = take(client, other)
    assert device(client, other, disk.key).backing.fileName == disk.backing.fileName
    assert change_id(client, other, disk.key) is None
    assert change_id(client, snapshot, disk.key) is None
    with pytest.raises(vmodl.fault.InvalidArgument):
        other.QueryChangedDiskAreas(snapshot, disk.key, 0, "*")


def test_nobody_writes_to_a_vm_that_is_off_or_beyond_the_end(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    with pytest.raises(ValueError, match="beyond the end"):
        vcenter.write(VM, key, SIZE - 1, b"xy")
    power_off(client, vm)
    with pytest.raises(ValueError, match="not running"):
        vcenter.write(VM, key, 0, b"x")
