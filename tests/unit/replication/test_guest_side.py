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
from understudy.model.guest import GuestPolicy, GuestSettings, GuestTransport
from understudy.model.inventory import Vm, VmState
from understudy.model.job import Job
from understudy.model.replica import Consistency
from understudy.replication.guest_side import guest_processing, guest_ways
from understudy.replication.site import Place, Task
from understudy.replication.source_side import consistency

ACCESS = SshAccess("web.lan", "root", None, None, "")
RUNNING = replace(VM, state=VmState.RUNNING, has_agent_channel=True, agent_connected=True)
SILENT = replace(RUNNING, agent_connected=False)


@dataclass
class World:
    access: SshAccess | None = None
    warnings: list[str] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)

    def watchdog(self, vm_uuid: str) -> Any:
        self.watched.append(vm_uuid)
        return SimpleNamespace(close=lambda: self.watched.append("closed"))

    @property
    def place(self) -> Place:
        guests = SimpleNamespace(watchdog=self.watchdog, access=lambda job, vm: self.access)
        journal = SimpleNamespace(warn=self.warnings.append, freezing=lambda *_: None, guest=lambda _: None)
        source = SimpleNamespace(agent_command=lambda *_: None)
        return cast("Place", SimpleNamespace(source=source, guests=guests, journal=journal))

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
    assert "crash-consistent: the guest agent is not running" in world.warnings[0]
    with pytest.raises(GuestError, match="the guest agent is not running in the guest"):
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


def test_a_point_is_what_was_achieved() -> None:
    assert consistency(RUNNING, Quiescing()) is Consistency.CRASH
    assert consistency(RUNNING, Quiescing(frozen=True)) is Consistency.FILESYSTEM
    assert consistency(RUNNING, Quiescing(frozen=True, application_consistent=True)) is Consistency.APPLICATION


def test_a_vm_that_was_renamed_keeps_its_settings() -> None:
    job = replace(JOB, vms=("web",), guests=(GuestSettings("web", GuestPolicy.REQUIRE), GuestSettings("", None)))
    assert job_there(job, "web", Whereabouts("host2", "web2")).guest("web2").policy is GuestPolicy.REQUIRE
