"""Whether a guest is touched at all, and which ways into it are tried."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.replication.test_run import JOB, VM
from understudy.context import Context
from understudy.controller.whereabouts import Whereabouts, job_there
from understudy.errors import GuestError
from understudy.guests.freezing import Quiescing
from understudy.guests.ssh import SshAccess
from understudy.model.guest import GuestPolicy, GuestSettings, GuestSystem, GuestTransport
from understudy.model.guest_operations import GuestLogin
from understudy.model.inventory import Vm, VmState
from understudy.model.job import Host, Job
from understudy.model.replica import Consistency
from understudy.model.snapshot import SnapshotRequest, SourceSnapshot, Tag
from understudy.replication.guest_side import complaints, guest_processing, guest_ways, with_quiescing
from understudy.replication.site import Place, Task
from understudy.replication.source_side import consistency

ACCESS = SshAccess("web.lan", "root", None, None, "")
RUNNING = replace(VM, state=VmState.RUNNING, has_agent_channel=True, agent_connected=True)
SILENT = replace(RUNNING, agent_connected=False)


@dataclass
class World:
    access: SshAccess | None = None
    login: GuestLogin | None = None
    system: GuestSystem | None = GuestSystem.POSIX
    host: Host = field(default_factory=lambda: Host("a", "qemu:///system", "/scratch"))
    warnings: list[str] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)

    def watchdog(self, vm_uuid: str) -> Any:
        self.watched.append(vm_uuid)
        return SimpleNamespace(close=lambda: self.watched.append("closed"))

    def operations(self, vm_uuid: str, login: GuestLogin) -> Any:
        if self.system is None:
            raise GuestError(vm_uuid, f"Tools do not let {login.user} in")
        return SimpleNamespace(system=self.system)

    @property
    def place(self) -> Place:
        guests = SimpleNamespace(watchdog=self.watchdog, access=lambda job, vm: self.access,
                                 login=lambda job, vm: self.login)  # fmt: skip
        journal = SimpleNamespace(warn=self.warnings.append, freezing=lambda *_: None, guest=lambda _: None)
        source = SimpleNamespace(agent_command=lambda *_: None, guest_operations=self.operations)
        return cast("Place", SimpleNamespace(source=source, guests=guests, journal=journal, source_host=self.host))

    def touched(self, vm: Vm, policy: GuestPolicy, *transports: GuestTransport) -> bool:
        with guest_processing(Context(), task(policy, *transports), self.place, vm) as processing:
            return processing is not None


def task(policy: GuestPolicy, *transports: GuestTransport) -> Task:
    job: Job = replace(JOB, guests=(GuestSettings(VM.name, policy, transports),))
    return Task(job, VM.name, VM.name, 2)


@pytest.mark.parametrize(("vm", "policy"), [
    (RUNNING, GuestPolicy.OFF), (replace(RUNNING, state=VmState.SHUT_OFF), GuestPolicy.REQUIRE),
], ids=["off", "powered off"])  # fmt: skip
def test_a_guest_that_is_not_to_be_processed_is_left_alone(vm: Vm, policy: GuestPolicy) -> None:
    world = World(ACCESS)
    assert not world.touched(vm, policy)
    assert (world.warnings, world.watched) == ([], [])


def test_settings_of_the_vm_hold_before_those_of_the_job() -> None:
    job = replace(JOB, guest_policy=GuestPolicy.REQUIRE, guests=(GuestSettings(VM.name, GuestPolicy.OFF),))
    with guest_processing(Context(), Task(job, VM.name, VM.name, 2), World().place, SILENT) as processing:
        assert processing is None


def test_without_any_way_the_policy_decides() -> None:
    world = World()
    assert not world.touched(SILENT, GuestPolicy.TRY)
    assert "crash-consistent: the host has no connection to a guest agent" in world.warnings[0]
    with pytest.raises(GuestError, match="the host has no connection to a guest agent"):
        world.touched(SILENT, GuestPolicy.REQUIRE)


def test_the_watchdog_of_the_agent_is_there_as_long_as_the_agent_may_freeze() -> None:
    world = World()
    assert world.touched(RUNNING, GuestPolicy.TRY)
    assert world.watched == [RUNNING.uuid, "closed"]
    by_ssh = World(ACCESS)
    assert by_ssh.touched(SILENT, GuestPolicy.TRY)
    assert by_ssh.touched(RUNNING, GuestPolicy.TRY, GuestTransport.SSH)
    assert by_ssh.watched == []


@pytest.mark.parametrize(("vm", "access", "count"), [
    (RUNNING, None, 1), (RUNNING, ACCESS, 2), (SILENT, ACCESS, 1), (SILENT, None, 0),
])  # fmt: skip
def test_only_what_is_set_up_is_tried(vm: Vm, access: SshAccess | None, count: int) -> None:
    some = task(GuestPolicy.TRY)
    place = World(access).place
    assert len(guest_ways(some.job, place.source, place.guests, vm)) == count


def test_a_guest_of_vsphere_is_reached_by_its_tools_with_a_password_after_everything_else() -> None:
    some = task(GuestPolicy.TRY)
    place = World(ACCESS, GuestLogin("root", "secret")).place
    both = [GuestTransport.SSH, GuestTransport.VMTOOLS]
    assert list(guest_ways(some.job, place.source, place.guests, SILENT)) == both


@pytest.mark.parametrize(("system", "count"), [(GuestSystem.POSIX, 1), (GuestSystem.WINDOWS, 0), (None, 1)])
def test_a_windows_guest_is_left_to_its_tools(system: GuestSystem | None, count: int) -> None:
    """That they do not run there is told when they are tried."""
    chosen = task(GuestPolicy.TRY, GuestTransport.VMTOOLS)
    place = World(None, GuestLogin("root", "secret"), system).place
    assert len(guest_ways(chosen.job, place.source, place.guests, SILENT)) == count


def test_a_point_is_what_was_achieved() -> None:
    held = SourceSnapshot("", (), None)
    assert consistency(RUNNING, Quiescing(), held) is Consistency.CRASH
    assert consistency(RUNNING, Quiescing(frozen=True), held) is Consistency.FILESYSTEM
    assert consistency(RUNNING, Quiescing(), replace(held, quiesced=True)) is Consistency.FILESYSTEM
    assert consistency(RUNNING, Quiescing(frozen=True, application_consistent=True), held) is Consistency.APPLICATION


def test_a_vm_that_was_renamed_keeps_its_settings() -> None:
    job = replace(JOB, vms=("web",), guests=(GuestSettings("web", GuestPolicy.REQUIRE), GuestSettings("", None)))
    assert job_there(job, "web", Whereabouts("host2", "web2")).guest("web2").policy is GuestPolicy.REQUIRE


# --- a platform that quiesces the guest itself ------------------------------------------------------------------------

VCENTER = Host("vc", "vpx://vc.lan/", "")
TOOLS = replace(RUNNING, has_agent_channel=False, agent_connected=False)
REQUEST = SnapshotRequest(Tag("1", "u", 2), ("scsi0:0",), (), None, "", (), "")


def test_a_missing_qemu_agent_is_no_complaint_where_the_platform_quiesces() -> None:
    for policy in (GuestPolicy.TRY, GuestPolicy.REQUIRE):
        world = World(host=VCENTER)
        assert not world.touched(TOOLS, policy)
        assert (world.warnings, world.watched) == ([], [])
    assert World(ACCESS, host=VCENTER).touched(TOOLS, GuestPolicy.TRY)


def test_scripts_that_nobody_can_run_are_told_or_an_error() -> None:
    settings = GuestSettings(VM.name, GuestPolicy.TRY, pre_freeze=("/etc/hostname",))
    for policy in (GuestPolicy.TRY, GuestPolicy.REQUIRE):
        world = World(host=VCENTER)
        job = replace(JOB, guests=(replace(settings, policy=policy),))
        processing = guest_processing(Context(), Task(job, VM.name, VM.name, 2), world.place, TOOLS)
        if policy is GuestPolicy.REQUIRE:
            with pytest.raises(GuestError, match="the job has scripts"), processing:
                pytest.fail("entered")
        else:
            with processing as entered:
                assert entered is None
            assert world.warnings == [
                "no script ran: the job has scripts, and there is no way to run them in the guest"
            ]


@pytest.mark.parametrize(("host", "vm", "policy", "frozen", "wish"), [
    (VCENTER, TOOLS, GuestPolicy.TRY, False, (True, False)),
    (VCENTER, TOOLS, GuestPolicy.REQUIRE, False, (True, True)),
    (VCENTER, TOOLS, GuestPolicy.REQUIRE, True, (False, False)),
    (VCENTER, TOOLS, GuestPolicy.OFF, False, (False, False)),
    (VCENTER, replace(TOOLS, state=VmState.SHUT_OFF), GuestPolicy.REQUIRE, False, (False, False)),
    (Host("a", "qemu:///system", "/s"), TOOLS, GuestPolicy.REQUIRE, False, (False, False)),
])  # fmt: skip
def test_the_platform_is_to_quiesce_what_the_job_wants_quiesced_and_nothing_else_has(
    host: Host, vm: Vm, policy: GuestPolicy, frozen: bool, wish: tuple[bool, bool]
) -> None:
    place = World(host=host).place
    request = with_quiescing(REQUEST, task(policy), place, vm, Quiescing(frozen=frozen))
    assert (request.quiesce, request.must_quiesce) == wish


def test_what_the_snapshot_achieved_instead_is_told_after_what_failed() -> None:
    failed = Quiescing(warnings=["guest processing failed, the restore point is crash-consistent: ssh: refused"])
    held = SourceSnapshot("", (), None, quiesced=True, notes=("tracking was switched on",))
    assert complaints(failed, held) == (
        failed.warnings[0],
        "the platform quiesced the guest instead: the restore point is file-system-consistent",
        "tracking was switched on",
    )
    assert complaints(Quiescing(), held) == ("tracking was switched on",)
