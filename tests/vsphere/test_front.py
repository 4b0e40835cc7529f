"""The front: each rule of a vCenter that it adds, driven by real pyVmomi through real TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.simulator import Inventory, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

VM = "DC0_C0_RP0_VM0"
OTHER = "DC0_C0_RP0_VM1"
AREA = 64 * 1024
SIZE = 4 * 1024 * 1024


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Front]:
    with front(Inventory(vms=2), tmp_path, page=3) as running:
        yield running


@pytest.fixture
def client(vcenter: Front) -> Iterator[Client]:
    with connected(vcenter.url, vcenter.user, vcenter.password) as session:
        yield session


@pytest.fixture
def vm(client: Client) -> Any:
    return client.named(vim.VirtualMachine, VM)


@pytest.fixture
def key(vcenter: Front, tmp_path: Path) -> int:
    """The key of a disk of 4 MiB that has the first and the last area allocated."""
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.write(b"first" * 1000)
        file.seek(SIZE - AREA)
        file.write(b"last." * 1000)
        file.truncate(SIZE)
    return vcenter.place_disk(VM, raw)


def track(client: Client, vm: Any, *, on: bool = True) -> None:
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=on)))


def take(client: Client, vm: Any, name: str = "point", *, quiesce: bool = False) -> Any:
    return client.wait(vm.CreateSnapshot_Task(name, "", False, quiesce))


def device(client: Client, item: Any, key: int) -> Any:
    devices = client.properties(item, "config.hardware.device")["config.hardware.device"]
    (found,) = [device for device in devices if device.key == key]
    return found


def change_id(client: Client, item: Any, key: int) -> str | None:
    found: str | None = device(client, item, key).backing.changeId
    return found


def changed(vm: Any, snapshot: Any, key: int, since: str, start: int = 0, end: int = SIZE) -> list[tuple[int, int]]:
    """All pages of the answer."""
    areas = []
    while start < end:
        answer = vm.QueryChangedDiskAreas(snapshot, key, start, since)
        assert answer.startOffset == start
        areas += [(area.start, area.length) for area in answer.changedArea]
        start += answer.length
    return areas


def test_a_disk_has_the_bytes_and_the_capacity_that_were_placed(
    vcenter: Front, client: Client, vm: Any, key: int, tmp_path: Path
) -> None:
    assert vcenter.disks(VM)[0].file.read_bytes() == (tmp_path / "raw").read_bytes()
    assert device(client, vm, key).capacityInBytes == SIZE
    assert device(client, vm, key).capacityInKB == SIZE // 1024


def test_tracking_takes_effect_at_the_next_snapshot_only(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    before = take(client, vm, "before")
    client.wait(before.RemoveSnapshot_Task(removeChildren=False))
    track(client, vm)
    assert client.properties(vm, "config.changeTrackingEnabled") == {"config.changeTrackingEnabled": True}
    assert change_id(client, vm, key) is None
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(None, key, 0, "*")
    snapshot = take(client, vm)
    assert change_id(client, snapshot, key)
    assert change_id(client, vm, key)
    assert changed(vm, snapshot, key, "*") == [(0, AREA), (SIZE - AREA, AREA)]


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
        changed(vm, first, key, two)


def test_a_snapshot_keeps_its_bytes_and_its_file_name(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    base = device(client, vm, key).backing.fileName
    before = vcenter.disks(VM)[0].file.read_bytes()
    first = take(client, vm, "first")
    vcenter.write(VM, key, 0, b"written after the snapshot")
    assert device(client, first, key).backing.fileName == base
    live = device(client, vm, key).backing
    assert live.fileName == base.replace(".vmdk", "-000001.vmdk")
    assert live.parent.fileName == base
    assert (vcenter.datastores["LocalDS_0"] / VM / "disk1-flat.vmdk").read_bytes() == before
    assert vcenter.disks(VM)[0].file.read_bytes() == b"written after the snapshot" + before[26:]
