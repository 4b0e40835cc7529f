"""Calls: the methods that the front does itself, or does more for than the simulator.

Each is carried out under one lock, and its answer goes out when files, inventory and facts say the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import GetVmodlType

from tests.vsphere import changes, reconfiguration, soap
from tests.vsphere.chain import Locked, copy_sparse
from tests.vsphere.client import Client
from tests.vsphere.guest_operations import Guests
from tests.vsphere.machines import OFF, RUNNING, Machine, Machines
from tests.vsphere.scripted import Faults, Kind
from tests.vsphere.shown import Tasks

#: As many snapshots may a VM stand on.
LONGEST_CHAIN = 32

Forward = Callable[[], soap.Answer]


class CallFault(Exception):
    """The call is answered with a fault."""

    def __init__(self, fault: Any) -> None:
        super().__init__(fault)
        self.fault = fault


class TaskFault(Exception):
    """The call starts a task, which ends with a fault."""

    def __init__(self, fault: Any) -> None:
        super().__init__(fault)
        self.fault = fault


class Calls:
    """Answers calls. `page` is the number of areas in one answer of QueryChangedDiskAreas."""

    def __init__(
        self, client: Client, machines: Machines, tasks: Tasks, faults: Faults, guests: Guests, page: int
    ) -> None:  # fmt: skip
        self._client = client
        self._machines = machines
        self._tasks = tasks
        self._faults = faults
        self._guests = guests
        self._page = page
        self.lock = threading.RLock()
        self._of_vm: dict[str, Callable[[soap.Request, Machine, Forward], soap.Answer]] = {
            "CreateSnapshot_Task": self._create_snapshot,
            "RemoveAllSnapshots_Task": self._remove_all_snapshots,
            "RevertToCurrentSnapshot_Task": self._revert_to_current,
            "ConsolidateVMDisks_Task": self._consolidate,
            "QueryChangedDiskAreas": self._query_changed_areas,
            "ReconfigVM_Task": self._reconfigure,
            "PowerOnVM_Task": self._power_on,
            "ResetVM_Task": self._power,
            "PowerOffVM_Task": self._power,
            "SuspendVM_Task": self._power,
            "ShutdownGuest": self._shut_down,
            "CloneVM_Task": self._clone,
            "UnregisterVM": self._remove_vm,
            "Destroy_Task": self._remove_vm,
        }
        self._of_snapshot: dict[str, Callable[[soap.Request, Machine, Forward], soap.Answer]] = {
            "RemoveSnapshot_Task": self._remove_snapshot,
            "RevertToSnapshot_Task": self._revert,
        }
        self._of_folder = ("CreateVM_Task", "RegisterVM_Task")

    def answer(self, request: soap.Request, forward: Forward) -> soap.Answer:
        """The answer to a call; `forward` has the simulator carry it out."""
        machine: Machine | None = None
        try:
            if (fault := self._faults.take(Kind.FAULT, request.method)) is not None:
                raise CallFault(fault)
            if self._faults.denied(request.method):
                raise CallFault(_no_permission(request))
            if self._guests.concerned(request):
                # Without the lock: a guest may take its time.
                return self._guests.answer(request)
            call, machine = self._of(request)
            if (fault := self._faults.take(Kind.TASK_FAULT, request.method)) is not None:
                raise TaskFault(fault)
            if call is None:
                answer = forward()
            else:
                with self.lock:
                    answer = call(request, machine, forward)
        except CallFault as exc:
            return soap.refused(exc.fault)
        except TaskFault as exc:
            return soap.task_started(request.method, self._tasks.failing(machine, exc.fault))
        if answer.status == 200 and (slow := self._faults.take(Kind.SLOW_TASK, request.method)) is not None:
            self._tasks.hold(soap.started_task(answer), slow)
        return answer

    def _of(self, request: soap.Request) -> tuple[Any, Any]:
        """What carries the call out, and for which VM; None for the simulator alone."""
        if request.kind == "VirtualMachine" and request.method in self._of_vm:
            try:
                with self.lock:
                    return self._of_vm[request.method], self._machines.adopt(request.moref)
            except vmodl.fault.ManagedObjectNotFound as exc:
                raise CallFault(exc) from None
        if request.kind == "VirtualMachineSnapshot" and request.method in self._of_snapshot:
            machine = self._machines.of_snapshot(request.moref)
            if machine is not None:
                return self._of_snapshot[request.method], machine
        if request.kind == "Folder" and request.method in self._of_folder:
            return self._new_vm, None
        if request.kind == "SearchIndex" and request.method == "FindAllByUuid":
            return self._find_all_by_uuid, None
        if request.kind == "VirtualDiskManager" and request.method == "CreateVirtualDisk_Task":
            return self._create_disk, None
        return None, None

    def _find_all_by_uuid(self, request: soap.Request, machine: None, forward: Forward) -> soap.Answer:
        """Of VMs only; the simulator does not know this call."""
        name = "config.instanceUuid" if request.flag("instanceUuid") else "config.uuid"
        wanted = (request.text("uuid") or "").lower()
        found = [vim.VirtualMachine(moref) for moref, values in self._client.inventory(vim.VirtualMachine, name).items()
                 if str(values.get(name)).lower() == wanted]  # fmt: skip
        return soap.returned(request.method, found, GetVmodlType("vim.ManagedEntity[]"))

    def _create_snapshot(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        if machine.current is not None and machine.current.depth >= LONGEST_CHAIN:
            raise TaskFault(vim.fault.TooManySnapshotLevels(msg="The maximum number of snapshots is reached."))
        if request.flag("quiesce") and machine.power == RUNNING and not self._tools_run(machine):
            raise TaskFault(vim.fault.ApplicationQuiesceFault(msg="The guest's file systems cannot be quiesced."))
        self._refuse_open(machine)
        self._refuse_full(machine)
        machine.stun()
        answer = forward()
        if answer.status == 200:
            snapshot = self._client.wait(vim.Task(soap.started_task(answer), self._client.stub))
            machine.freeze(snapshot._moId)
            self._machines.settle(machine)
        return answer

    def _remove_snapshot(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        gone = machine.tree(request.moref) if request.flag("removeChildren") else [request.moref]
        return self._removal(request, machine, forward, gone)

    def _remove_all_snapshots(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        return self._removal(request, machine, forward, list(machine.snapshots))

    def _removal(self, request: soap.Request, machine: Machine, forward: Forward, gone: list[str]) -> soap.Answer:
        answer = forward()
        if answer.status == 200:
            self._client.wait(vim.Task(soap.started_task(answer), self._client.stub))
            machine.forget(gone)
            left = self._faults.take(Kind.LEFT_DELTA, request.method) is not None
            if request.flag("consolidate", default=True) and not left:
                # A reader keeps a file: the snapshot is gone, its delta stays.
                with suppress(Locked):
                    machine.merge()
            self._machines.settle(machine)
        return answer

    def _consolidate(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        try:
            machine.merge()
        except Locked as exc:
            raise TaskFault(vim.fault.FileLocked(file=str(exc))) from None
        self._machines.settle(machine)
        return soap.task_started(request.method, self._tasks.succeeding(machine))

    def _revert(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        return self._reversal(machine, request.moref, forward)

    def _revert_to_current(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        if machine.current is None:
            return forward()
        return self._reversal(machine, machine.current.moref, forward)

    def _reversal(self, machine: Machine, snapshot: str, forward: Forward) -> soap.Answer:
        """The VM stands on the snapshot again, and is off: no snapshot here keeps the memory."""
        self._refuse_open(machine)
        answer = forward()
        if answer.status == 200:
            vm = vim.VirtualMachine(machine.moref, self._client.stub)
            if machine.power != OFF:
                self._client.wait(vm.PowerOffVM_Task())
            machine.revert(snapshot)
            self._machines.restore(machine, snapshot)
            self._machines.settle(machine)
        return answer

    def _query_changed_areas(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        try:
            found = changes.query(machine, request, self._page)
        except changes.Refused as exc:
            raise CallFault(exc.fault) from None
        return soap.returned(request.method, found, vim.VirtualMachine.DiskChangeInfo)

    def _reconfigure(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        if (fault := reconfiguration.refusal(machine, request)) is not None:
            raise TaskFault(fault)
        if reconfiguration.makes_files(request):
            self._refuse_full(machine)
        return self._followed(machine, forward)

    def _power_on(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        self._refuse_open(machine)
        if machine.power == OFF:
            machine.stun()
        return self._followed(machine, forward)

    def _power(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        return self._followed(machine, forward)

    def _followed(self, machine: Machine, forward: Forward) -> soap.Answer:
        """The simulator carries it out, and we learn of the VM anew."""
        answer = forward()
        if answer.status == 200:
            self._machines.adopt(machine.moref)
            self._machines.settle(machine)
        return answer

    def _shut_down(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        if machine.power == RUNNING and not self._tools_run(machine):
            raise CallFault(vim.fault.ToolsUnavailable(msg="VMware Tools is not running."))
        return self._followed(machine, forward)

    def _clone(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        """A whole copy, also where a linked clone was asked for; of the snapshot, if one is named."""
        snapshot = request.text("spec", "snapshot")
        linked = request.text("spec", "location", "diskMoveType") == "createNewChildDiskBacking"
        if linked and snapshot is None:
            raise TaskFault(vmodl.fault.InvalidArgument(invalidProperty="spec.snapshot"))
        if snapshot is not None and snapshot not in machine.snapshots:
            raise CallFault(vmodl.fault.ManagedObjectNotFound(obj=vim.vm.Snapshot(snapshot)))
        self._refuse_full(machine)
        answer = forward()
        # The simulator has put the clone's files into the original's disks.
        self._machines.settle(machine)
        if answer.status == 200 and (clone := self._made(answer)) is not None:
            for copy, original in clone.copies_of(machine):
                node = original.chain.live if snapshot is None else original.chain.frozen[snapshot]
                copy_sparse(original.chain.file(node), copy.file)
            if request.text("spec", "powerOn") == "true":
                self._client.wait(vim.VirtualMachine(clone.moref, self._client.stub).PowerOnVM_Task())
            self._machines.settle(self._machines.adopt(clone.moref))
        return answer

    def _remove_vm(self, request: soap.Request, machine: Machine, forward: Forward) -> soap.Answer:
        if request.method == "Destroy_Task":
            self._refuse_open(machine)
        answer = forward()
        try:
            self._machines.adopt(machine.moref)
        except vmodl.fault.ManagedObjectNotFound:
            self._machines.forget(machine.moref)
        return answer

    def _new_vm(self, request: soap.Request, machine: None, forward: Forward) -> soap.Answer:
        if self._faults.full_datastores and request.method == "CreateVM_Task":
            path = request.text("config", "files", "vmPathName") or ""
            self._refuse_full_path(path)
        answer = forward()
        if answer.status == 200 and (made := self._made(answer)) is not None:
            self._machines.settle(made)
        return answer

    def _create_disk(self, request: soap.Request, machine: None, forward: Forward) -> soap.Answer:
        """The simulator makes an empty file."""
        path = request.text("name") or ""
        self._refuse_full_path(path)
        answer = forward()
        if answer.status == 200:
            found = self._client.properties(vim.Task(soap.started_task(answer), self._client.stub), "info.state")
            if found["info.state"] == vim.TaskInfo.State.success:
                with self._machines.file_at(path, request.text("datacenter")).open("r+b") as file:
                    file.truncate(int(request.text("spec", "capacityKb") or 0) * 1024)
        return answer

    def _made(self, answer: soap.Answer) -> Machine | None:
        """The VM that a task has made, if it has ended well."""
        task = vim.Task(soap.started_task(answer), self._client.stub)
        found = self._client.properties(task, "info.state", "info.result")
        return self._machines.adopt(found["info.result"]._moId) if "info.result" in found else None

    def _tools_run(self, machine: Machine) -> bool:
        vm = vim.VirtualMachine(machine.moref, self._client.stub)
        found = self._client.properties(vm, "guest.toolsRunningStatus")
        return bool(found.get("guest.toolsRunningStatus") == "guestToolsRunning")

    def _refuse_open(self, machine: Machine) -> None:
        if file := machine.open_elsewhere:
            raise TaskFault(vim.fault.FileLocked(file=file, msg="The file is locked."))

    def _refuse_full(self, machine: Machine) -> None:
        for disk in machine.disks.values():
            self._refuse_full_path(disk.chain.live.path)

    def _refuse_full_path(self, path: str) -> None:
        name = path.partition("]")[0].removeprefix("[")
        if name in self._faults.full_datastores:
            raise TaskFault(vim.fault.NoDiskSpace(datastore=name, file=path, msg="There is not enough space."))


def _no_permission(request: soap.Request) -> Any:
    return vim.fault.NoPermission(
        object=vim.ManagedEntity(request.moref), privilegeId=f"Denied.{request.method}",
        msg="Permission to perform this operation was denied.",
    )  # fmt: skip
