"""Tasks, and Shown: what clients see in answers of snapshots, tasks and datastores where the simulator knows less.

A task of the front is a real one of the simulator, so that a client may wait for it in any way; its error, or that it
has not ended yet, is written into the answers that tell of it.
"""

from __future__ import annotations

import threading
from typing import Any
from xml.dom import minidom

from pyVmomi import vim

from tests.vsphere import soap
from tests.vsphere.client import Client
from tests.vsphere.machines import Kept, Machine, Machines, backing_of
from tests.vsphere.scripted import LONGEST_HOLD_S, Faults, Hold

#: No VM has a device with this key.
_NO_DEVICE = 987654


class Tasks:
    """Tasks of the simulator that mean something else than what it did."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._faults: dict[str, Any] = {}
        self._slow: dict[str, Hold] = {}

    def failing(self, machine: Machine | None, fault: Any) -> str:
        """A task that has ended with `fault`."""
        if machine is None:
            task = self._client.content.virtualDiskManager.DeleteVirtualDisk_Task("[nowhere] nothing.vmdk", None)
        else:
            device = vim.vm.device.VirtualDevice(key=_NO_DEVICE)
            change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=device)
            task = self._vm(machine).ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change]))
        with self._lock:
            self._faults[task._moId] = fault
        return str(task._moId)

    def succeeding(self, machine: Machine) -> str:
        """A task that has ended well."""
        return str(self._vm(machine).ReconfigVM_Task(vim.vm.ConfigSpec())._moId)

    def hold(self, moref: str, slow: Hold) -> None:
        """Show the task as running until it is released."""
        with self._lock:
            self._slow[moref] = slow

    def fault(self, moref: str) -> Any:
        """The fault that a task of ours has ended with."""
        with self._lock:
            return self._faults.get(moref)

    def held(self, moref: str) -> Hold | None:
        """What holds the task, if it is to be seen running."""
        with self._lock:
            slow = self._slow.get(moref)
        return slow if slow is not None and not slow.released.is_set() else None

    def concerns(self, moref: str) -> bool:
        """Whether the task means something else than what the simulator says."""
        with self._lock:
            return moref in self._faults or moref in self._slow

    def _vm(self, machine: Machine) -> Any:
        return vim.VirtualMachine(machine.moref, self._client.stub)


class Shown:
    """Answers as clients get them."""

    def __init__(self, machines: Machines, tasks: Tasks, faults: Faults, datastores: dict[str, str]) -> None:
        self._machines = machines
        self._tasks = tasks
        self._faults = faults
        self._datastores = datastores

    def __call__(self, request: soap.Request, answer: soap.Answer) -> soap.Answer:
        """The answer with what the simulator does not know; untouched, bytes and all, if it knows enough."""
        if answer.status != 200:
            return answer
        if request.method == "Fetch" and request.kind == "VirtualMachineSnapshot":
            body = soap.altered_whole(answer.body, lambda whole: self._snapshot(request.moref, whole))
            return soap.Answer(answer.status, body)
        subjects = {subject for subject in soap.subjects(answer.body) if self._concerns(*subject)}
        if not subjects:
            return answer
        if request.method.startswith("WaitForUpdates"):
            self._wait(subjects)
        return soap.Answer(answer.status, soap.altered(answer.body, self._alter))

    def _concerns(self, kind: str, moref: str) -> bool:
        if kind == "Task":
            return self._tasks.concerns(moref)
        if kind == "Datastore":
            return self._datastores.get(moref) in self._faults.full_datastores
        return True

    def _wait(self, subjects: set[tuple[str, str]]) -> None:
        """An update about a slow task is not sent before there is one."""
        for kind, moref in subjects:
            if kind == "Task" and (slow := self._tasks.held(moref)) is not None:
                slow.released.wait(LONGEST_HOLD_S)

    def _alter(self, kind: str, moref: str, subject: minidom.Element) -> None:
        if kind == "VirtualMachineSnapshot":
            self._snapshot(moref, subject)
        elif kind == "Task" and (fault := self._tasks.fault(moref)) is not None:
            _show_fault(subject, fault)
        elif kind == "Task" and self._tasks.held(moref) is not None:
            _show_running(subject)
        elif kind == "Datastore" and self._concerns(kind, moref):
            for name in ("freeSpace", "summary.freeSpace", "info.freeSpace"):
                _set_everywhere(subject, name, "0")

    def _snapshot(self, moref: str, subject: minidom.Element) -> None:
        """The disks of a snapshot's configuration as they were kept."""
        machine = self._machines.of_snapshot(moref)
        if machine is None:
            return
        kept = machine.snapshots[moref].disks
        for element in subject.getElementsByTagName("*"):
            if soap.type_of(element) == "VirtualDisk":
                key = soap.child(element, "key")
                if key is not None and (disk := kept.get(int(soap.content(key)))) is not None:
                    _show_kept(element, moref, disk)


def _show_kept(device: minidom.Element, snapshot: str, kept: Kept) -> None:
    backing, disk = soap.child(device, "backing"), kept.disk
    assert backing is not None
    node = disk.chain.frozen[snapshot]
    soap.replace_child(backing, "fileName", node.path, str)
    soap.replace_child(backing, "changeId", kept.change_id or None, str)
    soap.replace_child(backing, "parent", backing_of(node.parent), _FLAT)
    soap.replace_child(device, "capacityInKB", -(-kept.capacity // 1024), int)
    soap.replace_child(device, "capacityInBytes", kept.capacity, int)


def _show_fault(task: minidom.Element, fault: Any) -> None:
    for name, value in soap.values(task):
        entry = value.parentNode
        assert isinstance(entry, minidom.Element)
        if name == "info.error":
            soap.replace_child(entry, "val", fault, object)
        elif name == "info":
            soap.replace_child(value, "error", fault, vim.fault.VimFault)


def _show_running(task: minidom.Element) -> None:
    for name, value in list(soap.values(task)):
        entry = value.parentNode
        assert isinstance(entry, minidom.Element)
        if name == "info.state":
            soap.set_content(value, "running")
        elif name in ("info.result", "info.error", "info.completeTime"):
            task.removeChild(entry)
        elif name == "info":
            for field in ("result", "error", "completeTime"):
                soap.replace_child(value, field, None, object)
            soap.replace_child(value, "state", "running", str)


def _set_everywhere(subject: minidom.Element, name: str, new: str) -> None:
    for found, value in soap.values(subject):
        if found == name:
            soap.set_content(value, new)
        for inner in value.getElementsByTagName(name):
            soap.set_content(inner, new)


_FLAT = vim.vm.device.VirtualDisk.FlatVer2BackingInfo
