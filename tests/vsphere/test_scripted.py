"""Faults that a test asks the front for, as pyVmomi meets them."""

from __future__ import annotations

import http.client
import threading
import time
from typing import Any
from xml.parsers.expat import ExpatError

import pytest
from pyVmomi import vim, vmodl

from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front
from tests.vsphere.steps import VM, device, take


def state(client: Client, task: Any) -> str:
    return str(client.properties(task, "info.state")["info.state"])


def test_a_session_expires_at_the_next_call_and_a_new_one_works(vcenter: Front, client: Client, vm: Any) -> None:
    vcenter.faults.expire_sessions()
    for _ in range(2):
        with pytest.raises(vim.fault.NotAuthenticated):
            client.properties(vm, "name")
        with pytest.raises(vim.fault.NotAuthenticated):
            client.service.CurrentTime()
    client.content.sessionManager.Login(vcenter.user, vcenter.password, None)
    assert client.properties(vm, "name") == {"name": VM}


def test_a_session_expires_after_some_calls(vcenter: Front, client: Client, vm: Any) -> None:
    vcenter.faults.expire_sessions(after=2)
    for _ in range(2):
        client.service.CurrentTime()
    with pytest.raises(vim.fault.NotAuthenticated):
        client.service.CurrentTime()


def test_who_has_logged_out_or_never_in_reads_nothing(vcenter: Front, client: Client, vm: Any) -> None:
    client.content.sessionManager.Logout()
    with pytest.raises(vim.fault.NotAuthenticated):
        client.properties(vm, "name")
    stranger = connected(vcenter.url, vcenter.user, vcenter.password + ".")
    with pytest.raises(vim.fault.InvalidLogin):
        stranger.__enter__()


def test_a_method_is_denied_until_it_is_allowed(vcenter: Front, client: Client, vm: Any) -> None:
    vcenter.faults.deny("CreateSnapshot_Task")
    for _ in range(2):
        with pytest.raises(vim.fault.NoPermission):
            take(client, vm)
    assert client.properties(vm, "name") == {"name": VM}
    vcenter.faults.allow("CreateSnapshot_Task")
    take(client, vm)


def test_a_method_meets_any_fault_so_many_times(vcenter: Front, client: Client, vm: Any) -> None:
    vcenter.faults.fail("CurrentTime", vmodl.fault.HostCommunication(msg="The host does not answer."), times=2)
    for _ in range(2):
        with pytest.raises(vmodl.fault.HostCommunication, match="does not answer"):
            client.service.CurrentTime()
    client.service.CurrentTime()


def test_a_task_ends_with_any_fault_and_nothing_was_done(vcenter: Front, client: Client, vm: Any) -> None:
    fault = vim.fault.TaskInProgress(task=vim.Task("task-1"), msg="Another task is in progress.")
    vcenter.faults.fail_task("CreateSnapshot_Task", fault)
    task = vm.CreateSnapshot_Task("point", "", False, False)
    with pytest.raises(vim.fault.TaskInProgress, match="in progress") as met:
        client.wait(task)
    assert met.value.task._moId == "task-1"
    assert "snapshot" not in client.properties(vm, "snapshot", "name")
    take(client, vm)


def test_a_fault_that_lacks_a_field_is_refused_at_once(vcenter: Front) -> None:
    with pytest.raises(TypeError, match="task"):
        vcenter.faults.fail_task("CreateSnapshot_Task", vim.fault.TaskInProgress())


def test_a_task_of_no_vm_ends_with_a_fault(vcenter: Front, client: Client, vm: Any) -> None:
    vcenter.faults.fail_task("CreateVM_Task", vim.fault.DuplicateName(name="copy", object=vm))
    folder = client.properties(vm, "parent")["parent"]
    pool = client.properties(vm, "resourcePool")["resourcePool"]
    with pytest.raises(vim.fault.DuplicateName):
        client.wait(folder.CreateVM_Task(vim.vm.ConfigSpec(name="copy"), pool, None))


def test_a_removal_and_a_revert_end_with_a_fault(vcenter: Front, client: Client, vm: Any) -> None:
    snapshot = take(client, vm)
    vcenter.faults.fail_task("RemoveSnapshot_Task", vim.fault.FileLocked(file="disk1.vmdk"))
    with pytest.raises(vim.fault.FileLocked):
        client.wait(snapshot.RemoveSnapshot_Task(False))
    vcenter.faults.fail_task("RevertToSnapshot_Task", vim.fault.FileFault(file="disk1.vmdk"))
    with pytest.raises(vim.fault.FileFault):
        client.wait(snapshot.RevertToSnapshot_Task())
    assert client.properties(vm, "snapshot")["snapshot"].currentSnapshot == snapshot


def test_a_slow_task_runs_until_it_is_released(vcenter: Front, client: Client, vm: Any) -> None:
    slow = vcenter.faults.slow_task("CreateSnapshot_Task")
    task = vm.CreateSnapshot_Task("point", "", False, False)
    for _ in range(3):
        assert state(client, task) == "running"
        assert "info.result" not in client.properties(task, "info.state", "info.result")
    slow.release()
    assert state(client, task) == "success"
    assert isinstance(client.wait(task), vim.vm.Snapshot)


def test_an_update_of_a_slow_task_comes_when_it_is_released(vcenter: Front, client: Client, vm: Any) -> None:
    slow = vcenter.faults.slow_task("PowerOffVM_Task")
    task = vm.PowerOffVM_Task()
    query = vmodl.query.PropertyCollector
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=task)], propSet=[query.PropertySpec(type=vim.Task, pathSet=["info.state"])]
    )
    collector = client.content.propertyCollector
    watch = collector.CreateFilter(spec, True)
    released = threading.Event()

    def release() -> None:
        time.sleep(0.3)
        released.set()
        slow.release()

    thread = threading.Thread(target=release)
    thread.start()
    update = collector.WaitForUpdatesEx(None, query.WaitOptions(maxWaitSeconds=30))
    assert released.is_set()
    (change,) = update.filterSet[0].objectSet[0].changeSet
    assert change.val == "success"
    watch.Destroy()
    thread.join()


def test_a_connection_is_cut_in_the_middle_of_an_answer_and_the_call_was_carried_out(
    vcenter: Front, client: Client, vm: Any
) -> None:
    vcenter.faults.drop("CreateSnapshot_Task")
    with pytest.raises((http.client.HTTPException, ExpatError, OSError)):
        vm.CreateSnapshot_Task("point", "", False, False)
    (tree,) = client.properties(vm, "snapshot.rootSnapshotList")["snapshot.rootSnapshotList"]
    assert tree.name == "point"


def test_the_server_is_unavailable_once(vcenter: Front, client: Client) -> None:
    vcenter.faults.unavailable("CurrentTime")
    with pytest.raises(http.client.HTTPException, match="503"):
        client.service.CurrentTime()
    client.service.CurrentTime()


def test_a_call_gets_no_answer_until_it_is_released(vcenter: Front, client: Client) -> None:
    hold, answered = vcenter.faults.stall("CurrentTime"), threading.Event()

    def ask() -> None:
        client.service.CurrentTime()
        answered.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert not answered.wait(0.5)
    hold.release()
    asking.join(60)
    assert answered.is_set()


def test_all_connections_are_cut_and_new_ones_work(vcenter: Front, client: Client) -> None:
    client.service.CurrentTime()
    vcenter.cut_connections()
    with pytest.raises((OSError, http.client.HTTPException)):
        client.service.CurrentTime()
    client.stub.DropConnections()
    client.service.CurrentTime()
    assert vcenter.calls.count("CurrentTime") == 2
    assert vcenter.calls[:2] == ["RetrieveServiceContent", "Login"]


def test_any_method_may_go_wrong(vcenter: Front, client: Client) -> None:
    vcenter.faults.unavailable("*")
    with pytest.raises(http.client.HTTPException, match="503"):
        client.service.CurrentTime()


def test_a_full_datastore_shows_no_space_and_takes_no_snapshot(vcenter: Front, client: Client, vm: Any) -> None:
    def free() -> int:
        (found,) = client.inventory(vim.Datastore, "summary.freeSpace").values()
        return int(found["summary.freeSpace"])

    assert free() > 0
    vcenter.faults.fill_datastore("LocalDS_0")
    assert free() == 0
    with pytest.raises(vim.fault.NoDiskSpace):
        take(client, vm)
    assert "snapshot" not in client.properties(vm, "snapshot", "name")
    vcenter.faults.free_datastore("LocalDS_0")
    take(client, vm)
    assert free() > 0


def test_a_full_datastore_takes_no_new_disk(vcenter: Front, client: Client, vm: Any) -> None:
    controller = device(client, vm, vcenter.disks(VM)[0].key).controllerKey
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=controller, unitNumber=3, capacityInKB=1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="", diskMode="persistent", thinProvisioned=True),
    )  # fmt: skip
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    spec = vim.vm.ConfigSpec(deviceChange=[change])
    vcenter.faults.fill_datastore("LocalDS_0")
    with pytest.raises(vim.fault.NoDiskSpace):
        client.wait(vm.ReconfigVM_Task(spec))
    assert len(vcenter.disks(VM)) == 1
    vcenter.faults.free_datastore("LocalDS_0")
    client.wait(vm.ReconfigVM_Task(spec))
    assert [found.capacity for found in vcenter.disks(VM)] == [1024 * 1024] * 2


def test_a_guest_shuts_down_with_tools_only(vcenter: Front, client: Client, vm: Any) -> None:
    with pytest.raises(vim.fault.ToolsUnavailable):
        vm.ShutdownGuest()
    vcenter.set_tools(VM, running=True)
    vm.ShutdownGuest()
    assert client.properties(vm, "runtime.powerState") == {"runtime.powerState": "poweredOff"}
