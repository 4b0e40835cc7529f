"""Snapshots through the front: they keep their bytes and names, and are merged, left behind, or reverted to."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.vsphere.calls import LONGEST_CHAIN
from tests.vsphere.client import Client
from tests.vsphere.front import Front
from tests.vsphere.steps import (
    OTHER,
    SIZE,
    VM,
    backing_names,
    device,
    facts_of,
    folder,
    needs_consolidation,
    power_off,
    remove,
    revert,
    take,
)


def live(vcenter: Front, vm: str = VM) -> bytes:
    return vcenter.disks(vm)[0].file.read_bytes()


def test_a_disk_has_the_bytes_and_the_capacity_that_were_placed(
    vcenter: Front, client: Client, vm: Any, key: int, tmp_path: Path
) -> None:
    assert live(vcenter) == (tmp_path / "raw").read_bytes()
    assert (folder(vcenter) / "disk1-flat.vmdk").read_bytes() == live(vcenter)
    assert device(client, vm, key).capacityInBytes == SIZE
    assert device(client, vm, key).capacityInKB == SIZE // 1024


def test_no_disk_is_placed_under_a_snapshot(vcenter: Front, client: Client, vm: Any, key: int, tmp_path: Path) -> None:
    take(client, vm)
    with pytest.raises(ValueError, match="snapshots"):
        vcenter.place_disk(VM, tmp_path / "raw", key)


def test_a_snapshot_keeps_its_bytes_and_its_file_and_the_vm_writes_into_a_delta(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    before = live(vcenter)
    first = take(client, vm, "first")
    vcenter.write(VM, key, 0, b"after the first")
    second = take(client, vm, "second")
    vcenter.write(VM, key, 0, b"after the second")
    assert backing_names(client, first, key) == ["disk1.vmdk"]
    assert backing_names(client, second, key) == ["disk1-000001.vmdk", "disk1.vmdk"]
    assert backing_names(client, vm, key) == ["disk1-000002.vmdk", "disk1-000001.vmdk", "disk1.vmdk"]
    assert (folder(vcenter) / "disk1-flat.vmdk").read_bytes() == before
    assert (folder(vcenter) / "disk1-000001-flat.vmdk").read_bytes() == b"after the first" + before[15:]
    assert live(vcenter) == b"after the second" + before[16:]


def test_a_snapshot_is_the_same_in_every_way_of_asking(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    snapshot = take(client, vm)
    for name in ("config", "config.hardware"):
        found = client.properties(snapshot, name)[name]
        devices = found.hardware.device if name == "config" else found.device
        assert [disk.backing.fileName for disk in devices if disk.key == key] == [f"[LocalDS_0] {VM}/disk1.vmdk"]
    (disk,) = (disk for disk in snapshot.config.hardware.device if disk.key == key)
    assert disk.backing.fileName == f"[LocalDS_0] {VM}/disk1.vmdk"


def test_an_update_tells_of_the_new_delta(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    query = vmodl.query.PropertyCollector
    path = "config.hardware.device"
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=vm)], propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=[path])]
    )
    collector = client.content.propertyCollector
    watch = collector.CreateFilter(spec, True)
    version = collector.WaitForUpdatesEx(None, query.WaitOptions(maxWaitSeconds=30)).version
    take(client, vm)
    update = collector.WaitForUpdatesEx(version, query.WaitOptions(maxWaitSeconds=30))
    devices = update.filterSet[0].objectSet[0].changeSet[-1].val
    assert [disk.backing.fileName for disk in devices if disk.key == key] == [f"[LocalDS_0] {VM}/disk1-000001.vmdk"]
    watch.Destroy()


def test_the_removal_of_a_snapshot_merges_what_came_after_it_into_its_file(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    before = live(vcenter)
    first = take(client, vm, "first")
    vcenter.write(VM, key, 0, b"after the first")
    second = take(client, vm, "second")
    vcenter.write(VM, key, 0, b"after the second")
    remove(client, first)
    assert backing_names(client, second, key) == ["disk1.vmdk"]
    assert backing_names(client, vm, key) == ["disk1-000002.vmdk", "disk1.vmdk"]
    assert (folder(vcenter) / "disk1-flat.vmdk").read_bytes() == b"after the first" + before[15:]
    remove(client, second)
    assert backing_names(client, vm, key) == ["disk1.vmdk"]
    assert live(vcenter) == b"after the second" + before[16:]
    assert sorted(file.name for file in folder(vcenter).glob("*.vmdk")) == ["disk1-flat.vmdk", "disk1.vmdk"]
    assert not needs_consolidation(client, vm)


def test_all_snapshots_are_removed_at_once(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    for name in ("first", "second", "third"):
        take(client, vm, name)
    vcenter.write(VM, key, 0, b"now")
    now = live(vcenter)
    client.wait(vm.RemoveAllSnapshots_Task())
    assert backing_names(client, vm, key) == ["disk1.vmdk"]
    assert live(vcenter) == now
    assert "snapshot" not in client.properties(vm, "snapshot", "name")


def test_a_snapshot_is_removed_with_those_above_it(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    first = take(client, vm, "first")
    second = take(client, vm, "second")
    take(client, vm, "third")
    remove(client, second, children=True)
    (tree,) = client.properties(vm, "snapshot.rootSnapshotList")["snapshot.rootSnapshotList"]
    assert (tree.snapshot._moId, list(tree.childSnapshotList)) == (first._moId, [])
    assert backing_names(client, first, key) == ["disk1.vmdk"]
    assert backing_names(client, vm, key)[1:] == ["disk1.vmdk"]


def test_a_removal_without_consolidation_leaves_the_delta_until_it_is_consolidated(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    snapshot = take(client, vm)
    vcenter.write(VM, key, 0, b"now")
    now = live(vcenter)
    remove(client, snapshot, consolidate=False)
    assert needs_consolidation(client, vm)
    assert backing_names(client, vm, key) == ["disk1-000001.vmdk", "disk1.vmdk"]
    client.wait(vm.ConsolidateVMDisks_Task())
    assert not needs_consolidation(client, vm)
    assert backing_names(client, vm, key) == ["disk1.vmdk"]
    assert live(vcenter) == now


def test_a_removal_may_leave_the_delta_behind_unasked(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    vcenter.faults.leave_delta()
    remove(client, take(client, vm))
    assert needs_consolidation(client, vm)
    assert "snapshot" not in client.properties(vm, "snapshot", "name")
    remove(client, take(client, vm))
    assert not needs_consolidation(client, vm), "the next removal merges what is left"


def test_the_consolidation_of_a_vm_that_needs_none_succeeds(client: Client, vm: Any) -> None:
    client.wait(vm.ConsolidateVMDisks_Task())
    assert not needs_consolidation(client, vm)


def test_a_snapshot_that_is_being_read_is_not_merged_away(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    before = live(vcenter)
    snapshot = take(client, vm)
    vcenter.write(VM, key, 0, b"after it")
    with (folder(vcenter) / "disk1-flat.vmdk").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        remove(client, snapshot)
        assert needs_consolidation(client, vm)
        assert reader.read() == before
        with pytest.raises(vim.fault.FileLocked):
            client.wait(vm.ConsolidateVMDisks_Task())
    client.wait(vm.ConsolidateVMDisks_Task())
    assert backing_names(client, vm, key) == ["disk1.vmdk"]


def test_a_revert_brings_the_bytes_back_and_turns_the_vm_off(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    before = live(vcenter)
    snapshot = take(client, vm)
    vcenter.write(VM, key, 0, b"undone")
    revert(client, snapshot)
    assert live(vcenter) == before
    assert client.properties(vm, "runtime.powerState") == {"runtime.powerState": "poweredOff"}
    assert backing_names(client, vm, key)[1:] == ["disk1.vmdk"]
    assert backing_names(client, snapshot, key) == ["disk1.vmdk"]
    assert len(list(folder(vcenter).glob("*-flat.vmdk"))) == 2, "the dropped delta is still there"


def test_a_revert_brings_network_cards_disks_and_sizes_back(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    power_off(client, vm)

    def cards() -> list[tuple[int, bool]]:
        devices = client.properties(vm, "config.hardware.device")["config.hardware.device"]
        found: list[Any] = [device for device in devices if isinstance(device, vim.vm.device.VirtualEthernetCard)]
        return [(card.key, card.connectable.startConnected) for card in found]

    def memory() -> int:
        return int(client.properties(vm, "config.hardware.memoryMB")["config.hardware.memoryMB"])

    before, was, content = cards(), memory(), live(vcenter)
    snapshot = take(client, vm)
    devices = client.properties(vm, "config.hardware.device")["config.hardware.device"]
    card: Any = next(device for device in devices if isinstance(device, vim.vm.device.VirtualEthernetCard))
    card.connectable.startConnected = not card.connectable.startConnected
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change], memoryMB=2 * was)))
    assert cards() != before
    out = vim.vm.device.VirtualDeviceSpec(operation="remove", device=device(client, vm, key))
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[out])))
    assert vcenter.disks(VM) == []
    assert [fact.snapshot for fact in facts_of(vcenter, vm)] == [snapshot._moId], "the snapshot still has the disk"
    revert(client, snapshot)
    assert (cards(), memory(), live(vcenter)) == (before, was, content)
    assert backing_names(client, vm, key)[1:] == ["disk1.vmdk"]


def test_a_revert_takes_away_a_disk_that_came_later(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    snapshot = take(client, vm)
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=device(client, vm, key).controllerKey, unitNumber=3, capacityInKB=SIZE // 1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="", diskMode="persistent", thinProvisioned=True),
    )  # fmt: skip
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    assert len(vcenter.disks(VM)) == 2
    revert(client, snapshot)
    assert [disk.key for disk in vcenter.disks(VM)] == [key]


def test_a_revert_to_an_old_snapshot_keeps_the_young_one(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    first = take(client, vm, "first")
    vcenter.write(VM, key, 0, b"in the second")
    middle = live(vcenter)
    second = take(client, vm, "second")
    revert(client, first)
    third = take(client, vm, "third")
    assert backing_names(client, third, key)[1:] == ["disk1.vmdk"]
    remove(client, first)
    assert not needs_consolidation(client, vm), "a file with two above it is no left-over"
    revert(client, second)
    assert live(vcenter) == middle
    assert device(client, vm, key).capacityInBytes == SIZE


def test_a_revert_to_the_current_snapshot(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    before = live(vcenter)
    take(client, vm)
    vcenter.write(VM, key, 0, b"undone")
    client.wait(vm.RevertToCurrentSnapshot_Task())
    assert live(vcenter) == before


def test_the_names_of_deltas_are_used_again(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    remove(client, take(client, vm))
    take(client, vm)
    assert backing_names(client, vm, key)[0] == "disk1-000001.vmdk"


def test_no_vm_stands_on_more_snapshots_than_esxi_allows(client: Client, vm: Any) -> None:
    for number in range(LONGEST_CHAIN):
        take(client, vm, str(number))
    with pytest.raises(vim.fault.TooManySnapshotLevels):
        take(client, vm, "one too many")
    assert LONGEST_CHAIN == 32


def test_a_running_guest_is_quiesced_with_tools_only(vcenter: Front, client: Client, vm: Any) -> None:
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        take(client, vm, quiesce=True)
    assert "snapshot" not in client.properties(vm, "snapshot", "name")
    vcenter.set_tools(VM, running=True)
    take(client, vm, quiesce=True)
    (tree,) = client.properties(vm, "snapshot.rootSnapshotList")["snapshot.rootSnapshotList"]
    assert tree.quiesced
    vcenter.set_tools(VM, running=False)
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        take(client, vm, quiesce=True)


def test_a_vm_that_is_off_needs_no_tools_to_be_quiesced(client: Client, vm: Any) -> None:
    power_off(client, vm)
    take(client, vm, quiesce=True)


def test_a_disk_grows_without_snapshots_only_and_never_shrinks(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    def resize(size: int) -> None:
        disk = device(client, vm, key)
        disk.capacityInKB, disk.capacityInBytes = size // 1024, size
        change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
        client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))

    resize(2 * SIZE)
    assert vcenter.disks(VM)[0].file.stat().st_size == 2 * SIZE
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        resize(SIZE)
    take(client, vm)
    with pytest.raises(vim.fault.InvalidDeviceOperation):
        resize(3 * SIZE)
    assert vcenter.disks(VM)[0].file.stat().st_size == 2 * SIZE


def test_a_change_of_a_disk_by_the_name_of_an_old_file_is_refused(client: Client, vm: Any, key: int) -> None:
    stale = device(client, vm, key)
    take(client, vm)
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=stale)
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def clone_spec(client: Client, vm: Any, snapshot: Any, *, linked: bool) -> Any:
    pool = client.properties(vm, "resourcePool")["resourcePool"]
    kind = "createNewChildDiskBacking" if linked else None
    return vim.vm.CloneSpec(
        location=vim.vm.RelocateSpec(pool=pool, diskMoveType=kind), powerOn=False, template=False, snapshot=snapshot
    )


def test_a_clone_of_a_snapshot_has_its_bytes_and_leaves_the_original_alone(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    before = live(vcenter)
    snapshot = take(client, vm)
    vcenter.write(VM, key, 0, b"after the snapshot")
    now, names = live(vcenter), backing_names(client, vm, key)
    parent = client.properties(vm, "parent")["parent"]
    clone = client.wait(vm.CloneVM_Task(parent, "copy", clone_spec(client, vm, snapshot, linked=True)))
    assert live(vcenter, "copy") == before
    assert backing_names(client, vm, key) == names
    assert backing_names(client, snapshot, key) == ["disk1.vmdk"]
    assert live(vcenter) == now
    (disk,) = vcenter.disks("copy")
    assert device(client, clone, disk.key).capacityInBytes == SIZE
    assert disk.file.parent == folder(vcenter, "copy")


def test_a_clone_is_powered_on_if_it_is_wanted(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    spec = clone_spec(client, vm, None, linked=False)
    spec.powerOn = True
    clone = client.wait(vm.CloneVM_Task(client.properties(vm, "parent")["parent"], "copy", spec))
    assert client.properties(clone, "runtime.powerState") == {"runtime.powerState": "poweredOn"}
    assert [fact.writable for fact in facts_of(vcenter, clone)] == [False]
    assert live(vcenter, "copy") == live(vcenter)


def test_a_linked_clone_needs_a_snapshot(client: Client, vm: Any) -> None:
    parent = client.properties(vm, "parent")["parent"]
    with pytest.raises(vmodl.fault.InvalidArgument):
        client.wait(vm.CloneVM_Task(parent, "copy", clone_spec(client, vm, None, linked=True)))


def test_vms_do_not_share_their_snapshots(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    other = client.named(vim.VirtualMachine, OTHER)
    take(client, other)
    assert backing_names(client, vm, key) == ["disk1.vmdk"]
    assert backing_names(client, other, vcenter.disks(OTHER)[0].key) == ["disk1-000001.vmdk", "disk1.vmdk"]
