"""QueryChangedDiskAreas: the areas of one disk that changed before a snapshot, a page of them."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from tests.vsphere import soap
from tests.vsphere.chain import allocated
from tests.vsphere.machines import OFF, Disk, Machine
from tests.vsphere.tracking import GRANULARITY, UnknownChangeId, joined

#: The change id that asks for what is allocated.
ALLOCATED = "*"


class Refused(Exception):
    """The question is answered with a fault."""

    def __init__(self, fault: Any) -> None:
        super().__init__(fault)
        self.fault = fault


def query(machine: Machine, request: soap.Request, page: int) -> Any:
    """The areas at and after the start that is asked for, `page` at most, and how far the answer speaks.

    :raises Refused: as vCenter refuses: with FileFault if the disk is not tracked, with InvalidArgument if an argument
        is wrong, also a change id that belongs to another tracking file.
    """
    disk, until, capacity, file = _asked(machine, request)
    start, since = int(request.text("startOffset") or 0), request.text("changeId") or ""
    if not 0 <= start < capacity:
        raise Refused(_invalid("startOffset"))
    if not until or not disk.tracker.active:
        raise Refused(_not_tracked(disk))
    if since == ALLOCATED:
        if not disk.tracker.complete:
            raise Refused(_not_tracked(disk))
        areas = joined(allocated(file, GRANULARITY))
    else:
        try:
            areas = disk.tracker.changed(since, until)
        except UnknownChangeId:
            raise Refused(_invalid("changeId")) from None
    return _page(areas, start, capacity, page)


def _asked(machine: Machine, request: soap.Request) -> tuple[Disk, str, int, Any]:
    """The disk, the change id up to which changes count, the capacity then, and the file with the bytes then."""
    snapshot, key = request.text("snapshot"), int(request.text("deviceKey") or 0)
    if not snapshot:
        # Without a snapshot the current state is meant, which stands still only while the VM is off.
        disk = machine.disks.get(key)
        if disk is None:
            raise Refused(_invalid("deviceKey"))
        if machine.power != OFF:
            raise Refused(_not_tracked(disk))
        return disk, disk.tracker.change_id, disk.capacity, disk.file
    if snapshot not in machine.snapshots:
        raise Refused(vmodl.fault.ManagedObjectNotFound(obj=vim.vm.Snapshot(snapshot)))
    kept = machine.snapshots[snapshot].disks.get(key)
    if kept is None:
        raise Refused(_invalid("deviceKey"))
    chain = kept.disk.chain
    return kept.disk, kept.change_id, kept.capacity, chain.file(chain.frozen[snapshot])


def _page(areas: list[tuple[int, int]], start: int, capacity: int, page: int) -> Any:
    info = vim.VirtualMachine.DiskChangeInfo
    after = [
        (max(begin, start), min(end, capacity)) for begin, end in areas if end > start and begin < capacity
    ]  # fmt: skip
    shown = after[:page]
    told = shown[-1][1] if len(after) > page else capacity
    changed = [info.DiskChangeExtent(start=begin, length=end - begin) for begin, end in shown]
    return info(startOffset=start, length=told - start, changedArea=changed)


def _invalid(argument: str) -> Any:
    return vmodl.fault.InvalidArgument(
        invalidProperty=argument, msg=f"A specified parameter was not correct: {argument}"
    )  # fmt: skip


def _not_tracked(disk: Disk) -> Any:
    return vim.fault.FileFault(file=disk.chain.live.path, msg="Error caused by file: changes are not tracked.")
