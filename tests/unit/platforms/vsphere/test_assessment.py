"""What facts of a vCenter or ESXi host mean: what blocks, what warns, what is only worth knowing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.model.preflight import DatastoreSpace, Finding, Gravity, PrivilegeCheck, Role, Tracking, VmCheck
from understudy.platforms.vsphere.assessment import Licence, assess, is_read_only
from understudy.platforms.vsphere.privileges import NEEDED
from understudy.units import GIB

GRANTED = tuple(replace(check, asked=2) for check in NEEDED)
VM = VmCheck("web", "u-1", "vmx-19", Tracking.ON)
STORE = DatastoreSpace("ds1", "VMFS", 100 * GIB, 50 * GIB)


def findings(
    *, api: str = "8.0.3.0", read_only: bool | None = False, privileges: tuple[PrivilegeCheck, ...] = GRANTED,
    vms: tuple[VmCheck, ...] = (VM,), stores: tuple[DatastoreSpace, ...] = (STORE,),
) -> tuple[Finding, ...]:  # fmt: skip
    return assess(api, read_only, privileges, vms, stores)


def only(found: tuple[Finding, ...]) -> tuple[Gravity, str, str]:
    (finding,) = found
    return finding.gravity, finding.subject, finding.why


def lacking(privilege: str, *names: str, asked: int = 2) -> tuple[PrivilegeCheck, ...]:
    return tuple(replace(check, asked=asked, missing_on=names) if check.privilege == privilege else check
                 for check in GRANTED)  # fmt: skip


def test_a_host_without_fault_has_no_findings() -> None:
    assert findings() == ()
    assert findings(api="6.5") == ()


@pytest.mark.parametrize(
    ("kind", "licences", "read_only"),
    [
        ("vcenter", [], False),
        ("vcenter", [Licence("vSphere 8 Hypervisor", "esxBasic")], False),
        ("esxi", [], None),
        ("esxi", [Licence("Evaluation Mode", "eval")], False),
        ("esxi", [Licence("VMware vSphere 8 Enterprise Plus", "esx.enterprisePlus.cpuPackage")], False),
        ("esxi", [Licence("VMware vSphere 7 Hypervisor", "esxBasic")], True),
        ("esxi", [Licence("", "esx.hypervisor.cpuPackageCoreLimited")], True),
    ],
)
def test_a_free_esxi_is_known_by_its_licence(kind: str, licences: list[Licence], read_only: bool | None) -> None:
    assert is_read_only(kind, licences) is read_only


def test_a_free_licence_blocks_and_an_unknown_one_is_noted() -> None:
    assert only(findings(read_only=True))[:2] == (Gravity.BLOCKING, "server")
    assert only(findings(read_only=None))[:2] == (Gravity.NOTE, "server")


def test_an_api_older_than_what_this_was_written_for_is_told() -> None:
    assert only(findings(api="6.0"))[0] is Gravity.WARNING
    assert "version 5.5" in only(findings(api="5.5"))[2]


def test_what_cannot_be_done_without_blocks_only_if_it_is_missing_everywhere() -> None:
    snapshot = "VirtualMachine.State.CreateSnapshot"
    gravity, subject, why = only(findings(privileges=lacking(snapshot, "db", "web")))
    assert (gravity, subject) == (Gravity.BLOCKING, "account")
    assert why == f"{snapshot} is missing on all VMs: it is needed to hold a VM still while it is read"
    gravity, _, why = only(findings(privileges=lacking(snapshot, "web")))
    assert gravity is Gravity.WARNING
    assert "is missing on 1 of 2 VMs (web)" in why
    many = [f"vm{number}" for number in range(7)]
    why = only(findings(privileges=lacking(snapshot, *many, asked=9)))[2]
    assert "7 of 9 VMs (vm0, vm1, vm2, vm3, vm4 and 2 more)" in why


def test_other_privileges_warn_as_a_source_and_are_noted_as_a_target() -> None:
    assert only(findings(privileges=lacking("VirtualMachine.Config.ChangeTracking", "db", "web")))[0] is Gravity.WARNING
    gravity, _, why = only(findings(privileges=lacking("Global.DisableMethods", "the root folder", asked=1)))
    assert (gravity, why.partition(":")[0]) == (Gravity.WARNING, "Global.DisableMethods is missing on the whole server")
    target = next(check.privilege for check in NEEDED if check.role is Role.TARGET)
    assert only(findings(privileges=lacking(target, "the root folder", asked=1)))[0] is Gravity.NOTE


def test_privileges_for_guest_operations_are_noted() -> None:
    gravity, _, why = only(findings(privileges=lacking("VirtualMachine.GuestOperations.Execute", "db", "web")))
    assert (gravity, "run programs in guests by their Tools" in why) == (Gravity.NOTE, True)


def test_privileges_that_the_server_does_not_tell_are_one_note() -> None:
    assert only(findings(privileges=NEEDED))[:2] == (Gravity.NOTE, "account")


def test_a_server_without_a_vm_to_replicate_blocks() -> None:
    assert only(findings(vms=()))[:2] == (Gravity.BLOCKING, "account")
    found = findings(vms=(replace(VM, obstacle="it is a template"),))
    assert [item.gravity for item in found] == [Gravity.BLOCKING, Gravity.WARNING]
    assert [item.gravity for item in findings(vms=(VM, replace(VM, name="t", obstacle="x")))] == [Gravity.WARNING]


@pytest.mark.parametrize(
    ("change", "gravity", "why"),
    [
        ({"tracking": Tracking.UNSUPPORTED, "hardware": "vmx-04"}, Gravity.WARNING, "not possible (vmx-04)"),
        ({"tracking": Tracking.OFF, "snapshots": 2, "deepest": 1}, Gravity.WARNING, "2 snapshots, and changed block"),
        ({"snapshots": 1, "deepest": 1}, Gravity.NOTE, "it has 1 snapshot, left alone"),
        ({"unmerged": True}, Gravity.WARNING, "need consolidation"),
        ({"disks": (("scsi0:1", "it is shared"),)}, Gravity.WARNING, "disk scsi0:1 cannot be replicated: it is shared"),
    ],
)  # fmt: skip
def test_what_is_told_of_a_vm(change: dict[str, object], gravity: Gravity, why: str) -> None:
    found = only(findings(vms=(replace(VM, **change),)))  # type: ignore[arg-type]
    assert found[:2] == (gravity, "VM web")
    assert why in found[2]


def test_tracking_that_is_off_is_no_problem_and_a_long_chain_is() -> None:
    assert findings(vms=(replace(VM, tracking=Tracking.OFF),)) == ()
    found = findings(vms=(replace(VM, snapshots=30, deepest=24),))
    assert [(item.gravity, "24 snapshots lie" in item.why) for item in found] == [
        (Gravity.WARNING, True), (Gravity.NOTE, False)]  # fmt: skip


@pytest.mark.parametrize(
    ("capacity", "free", "told"),
    [(100 * GIB, 10 * GIB, False), (100 * GIB, 10 * GIB - 1, True), (4 * GIB, 2 * GIB, False), (4 * GIB, GIB, True)],
)
def test_a_datastore_with_little_room_is_told(capacity: int, free: int, told: bool) -> None:
    assert bool(findings(stores=(replace(STORE, capacity=capacity, free=free),))) is told


def test_a_datastore_that_cannot_be_used_is_told_with_the_reason() -> None:
    found = only(findings(stores=(replace(STORE, free=0, problem="no host has access to it"),)))
    assert found == (Gravity.WARNING, "datastore ds1", "no host has access to it")


def test_an_esxi_host_that_cannot_be_used_is_noted() -> None:
    found = assess("8.0", False, GRANTED, (VM,), (STORE,), ["esxi1"])
    assert only(found) == (Gravity.NOTE, "ESXi host esxi1", "it is in maintenance, or not connected")


def test_no_privilege_is_asked_for_twice() -> None:
    assert len({check.privilege for check in NEEDED}) == len(NEEDED)
