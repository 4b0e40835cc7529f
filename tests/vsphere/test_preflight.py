"""Looking at a vCenter or ESXi host as a source, against the simulated one and its front."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.vsphere import soap
from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.simulator import Inventory, missing
from understudy.model.access import HostAccess
from understudy.model.preflight import Gravity, Preflight, Role, Tracking
from understudy.platforms import server_certificate
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.preflight import look

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

VM = "DC0_C0_RP0_VM0"
OTHER = "DC0_C0_RP0_VM1"
SNAPSHOT = "VirtualMachine.State.CreateSnapshot"


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Front]:
    with front(Inventory(vms=2), tmp_path) as running:
        yield running


@pytest.fixture
def client(vcenter: Front) -> Iterator[Client]:
    with connected(vcenter.url, vcenter.user, vcenter.password) as session:
        yield session


def looked(server: Front, scheme: str = "vpx") -> Preflight:
    uri = f"{scheme}://127.0.0.1:{server.port}/"
    access = HostAccess(uri, server.user, server.password, server_certificate(uri).thumbprint)
    with closing(Connection(access)) as connection:
        return look(connection)


def unknown(method: str) -> vmodl.fault.MethodNotFound:
    return vmodl.fault.MethodNotFound(receiver=vim.AuthorizationManager("AuthorizationManager"), method=method)


def deny(server: Front, privilege: str, *morefs: str) -> None:
    """The account lacks a privilege on these objects; on all, if none is named."""
    inner: Callable[..., soap.Answer] = server._gateway.handle

    def handle(request: soap.Request, forward: Any) -> soap.Answer:
        answer = inner(request, forward)
        if request.method != "HasUserPrivilegeOnEntities":
            return answer
        parts = re.split(rb"(?=<returnval>)", answer.body)
        granted = rf"(<privId>{re.escape(privilege)}</privId>\s*<isGranted>)true".encode()
        denied = [
            re.sub(granted, rb"\1false", part)
            if not morefs or any(f">{moref}<".encode() in part for moref in morefs) else part
            for part in parts
        ]  # fmt: skip
        return soap.Answer(answer.status, b"".join(denied))

    server._gateway.handle = handle


def test_a_vcenter_is_told_with_its_vms_and_datastores(vcenter: Front, client: Client) -> None:
    found = looked(vcenter)
    assert (found.kind, found.read_only, found.licences) == ("vcenter", False, ("Evaluation Mode",))
    assert found.product.startswith("VMware vCenter Server")
    assert (found.version, found.api_version) == ("6.5.0", "6.5")
    assert [(vm.name, vm.tracking, vm.snapshots, vm.obstacle, vm.disks) for vm in found.vms] == [
        (VM, Tracking.OFF, 0, "", ()), (OTHER, Tracking.OFF, 0, "", ()),
    ]  # fmt: skip
    uuids = client.inventory(vim.VirtualMachine, "config.instanceUuid")
    assert {vm.uuid for vm in found.vms} == {item["config.instanceUuid"] for item in uuids.values()}
    (store,) = found.datastores
    assert (store.name, store.problem) == ("LocalDS_0", "")
    assert 0 < store.free <= store.capacity
    assert all(check.granted for check in found.privileges)
    assert {check.asked for check in found.privileges if check.place == "VMs"} == {2}
    assert not [item for item in found.findings if item.gravity is Gravity.BLOCKING]


def test_a_single_esxi_host_is_told(tmp_path: Path) -> None:
    with front(Inventory(esx=True, vms=1), tmp_path) as server:
        found = looked(server, "esx")
    assert (found.kind, found.read_only) == ("esxi", False)
    assert found.product.startswith("VMware ESXi")
    assert len(found.vms) == 1


def test_tracking_snapshots_and_what_needs_consolidation_are_told(vcenter: Front, client: Client) -> None:
    vm = client.named(vim.VirtualMachine, VM)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    first = client.wait(vm.CreateSnapshot_Task("a", "", False, False))
    client.wait(vm.CreateSnapshot_Task("b", "", False, False))
    client.wait(vm.RevertToCurrentSnapshot_Task())
    client.wait(first.RevertToSnapshot_Task())
    client.wait(vm.CreateSnapshot_Task("c", "", False, False))
    other = client.named(vim.VirtualMachine, OTHER)
    gone = client.wait(other.CreateSnapshot_Task("a", "", False, False))
    vcenter.faults.leave_delta()
    client.wait(gone.RemoveSnapshot_Task(False, True))
    found = looked(vcenter)
    assert [(item.tracking, item.snapshots, item.deepest, item.unmerged) for item in found.vms] == [
        (Tracking.ON, 3, 2, False), (Tracking.OFF, 0, 0, True),
    ]  # fmt: skip
    assert {item.subject for item in found.findings if "consolidation" in item.why} == {f"VM {OTHER}"}


def test_a_disk_that_no_snapshot_takes_is_told(vcenter: Front, client: Client) -> None:
    vm = client.named(vim.VirtualMachine, VM)
    devices = client.properties(vm, "config.hardware.device")["config.hardware.device"]
    disk: Any = next(device for device in devices if isinstance(device, vim.vm.device.VirtualDisk))
    disk.backing.diskMode = "independent_persistent"
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    found = looked(vcenter)
    ((name, why),) = found.vms[0].disks
    assert "no snapshot takes it" in why
    assert any(item.subject == f"VM {VM}" and f"--exclude-disk '{VM}:{name}'" in item.todo for item in found.findings)


def test_a_privilege_that_is_missing_on_one_vm_is_told_with_its_name(vcenter: Front, client: Client) -> None:
    deny(vcenter, SNAPSHOT, client.named(vim.VirtualMachine, OTHER)._moId)
    found = looked(vcenter)
    (check,) = [check for check in found.privileges if not check.granted]
    assert (check.privilege, check.role, check.asked, check.missing_on) == (SNAPSHOT, Role.SOURCE, 2, (OTHER,))
    (finding,) = [item for item in found.findings if item.subject == "account"]
    assert finding.gravity is Gravity.WARNING


def test_a_privilege_that_is_missing_everywhere_blocks(vcenter: Front) -> None:
    deny(vcenter, SNAPSHOT)
    (finding,) = [item for item in looked(vcenter).findings if item.subject == "account"]
    assert finding.gravity is Gravity.BLOCKING


def test_an_older_server_is_asked_for_the_session(vcenter: Front) -> None:
    vcenter.faults.fail("HasUserPrivilegeOnEntities", unknown("HasUserPrivilegeOnEntities"), times=9)
    assert all(check.granted for check in looked(vcenter).privileges)


def test_a_server_that_does_not_tell_privileges_is_still_looked_at(vcenter: Front) -> None:
    for method in ("HasUserPrivilegeOnEntities", "HasPrivilegeOnEntities"):
        vcenter.faults.fail(method, unknown(method), times=9)
    found = looked(vcenter)
    assert {check.granted for check in found.privileges} == {None}
    assert [item.why for item in found.findings if item.subject == "account"] == [
        "the server does not tell which privileges it has"]  # fmt: skip


def test_nothing_is_changed_by_looking(vcenter: Front) -> None:
    methods: list[str] = []
    inner = vcenter._gateway.handle

    def handle(request: soap.Request, forward: Any) -> soap.Answer:
        methods.append(request.method)
        return inner(request, forward)

    vcenter._gateway.handle = handle
    looked(vcenter)
    assert set(methods) <= {
        "RetrieveServiceContent", "Login", "Logout", "CreateContainerView", "DestroyView", "RetrievePropertiesEx",
        "ContinueRetrievePropertiesEx", "HasUserPrivilegeOnEntities", "CurrentTime",
    }  # fmt: skip
