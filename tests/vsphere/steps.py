"""What tests of the front do and ask, in a word each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.vsphere.client import Client
from tests.vsphere.facts import DiskFact, read_facts
from tests.vsphere.front import Front

VM = "DC0_C0_RP0_VM0"
OTHER = "DC0_C0_RP0_VM1"
AREA = 64 * 1024
SIZE = 4 * 1024 * 1024


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


def remove(client: Client, snapshot: Any, *, children: bool = False, consolidate: bool = True) -> None:
    client.wait(snapshot.RemoveSnapshot_Task(children, consolidate))


def revert(client: Client, snapshot: Any) -> None:
    client.wait(snapshot.RevertToSnapshot_Task())


def power_on(client: Client, vm: Any) -> None:
    client.wait(vm.PowerOnVM_Task())


def power_off(client: Client, vm: Any) -> None:
    client.wait(vm.PowerOffVM_Task())


def needs_consolidation(client: Client, vm: Any) -> bool:
    return bool(client.properties(vm, "runtime.consolidationNeeded")["runtime.consolidationNeeded"])


def backing_names(client: Client, item: Any, key: int) -> list[str]:
    """The names, without the folder, of a disk's file and of those below it."""
    names, backing = [], device(client, item, key).backing
    while backing is not None:
        names.append(backing.fileName.rpartition("/")[2])
        backing = backing.parent
    return names


def facts_of(vcenter: Front, vm: Any) -> list[DiskFact]:
    return [disk for disk in read_facts(vcenter.directory).disks if disk.vm == vm._moId]


def folder(vcenter: Front, vm: str = VM) -> Path:
    """Where the VM's files are."""
    return vcenter.datastores["LocalDS_0"] / vm
