"""Which host of its job has a VM, and how the job holds for it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from understudy.controller.whereabouts import Whereabouts, job_there, locate_vm
from understudy.errors import HostUnreachable, NotFound, Refused
from understudy.model.guest import GuestSettings
from understudy.model.inventory import Sighting, VmState
from understudy.model.job import Job
from understudy.platforms import SourcePlatform

JOB = Job(id="j", name="nightly", source="alpha", target="beta", datastore="ds", vms=("web", "db"),
          other_sources=("gamma",), excluded_disks=(("web", "vdb"), ("db", "vdc")),
          masks=(("", "/tmp/**"), ("web", "/a"), ("db", "/b")),
          guests=(GuestSettings(""), GuestSettings("web", address="web.lan"), GuestSettings("db", address="db.lan")),
          )  # fmt: skip
RUNS, OFF = VmState.RUNNING, VmState.SHUT_OFF
SILENT = HostUnreachable("host 'gamma'", "no route")


class Host:
    """Knows these VMs, by name; or does not answer."""

    def __init__(self, *vms: Sighting, silent: bool = False) -> None:
        self._vms = vms
        self._silent = silent

    def sighting(self, name: str, uuid: str) -> Sighting | None:
        if self._silent:
            raise SILENT
        by_uuid = next((vm for vm in self._vms if vm.uuid == uuid), None)
        return by_uuid or next((vm for vm in self._vms if vm.name == name), None)


def hosts(**known: Host) -> Callable[[str], SourcePlatform]:
    return lambda name: cast(SourcePlatform, known[name])


def test_a_vm_is_known_by_its_name_before_the_first_run() -> None:
    there = hosts(alpha=Host(Sighting("web", "u1", OFF)), gamma=Host())
    assert locate_vm(JOB, "web", "", there) == Whereabouts("alpha", "web")


def test_a_renamed_vm_is_known_by_its_uuid_even_if_another_one_has_its_name_now() -> None:
    there = hosts(alpha=Host(Sighting("web", "u2", RUNS), Sighting("shop", "u1", RUNS)), gamma=Host())
    assert locate_vm(JOB, "web", "u1", there) == Whereabouts("alpha", "shop")


def test_a_vm_that_migrated_is_found_although_another_one_took_its_name() -> None:
    there = hosts(alpha=Host(Sighting("web", "u2", RUNS)), gamma=Host(Sighting("web", "u1", OFF)))
    assert locate_vm(JOB, "web", "u1", there) == Whereabouts("gamma", "web")


def test_a_vm_of_the_same_name_is_taken_if_nobody_has_the_uuid() -> None:
    """Whoever compares it with the replica refuses it, and can say why."""
    there = hosts(alpha=Host(), gamma=Host(Sighting("web", "u2", RUNS)))
    assert locate_vm(JOB, "web", "u1", there) == Whereabouts("gamma", "web")


def test_a_definition_that_a_migration_left_does_not_count() -> None:
    there = hosts(alpha=Host(Sighting("web", "u1", OFF)), gamma=Host(Sighting("web", "u1", RUNS)))
    assert locate_vm(JOB, "web", "u1", there) == Whereabouts("gamma", "web")


@pytest.mark.parametrize(("state", "why"), [(OFF, "runs on none of them"), (RUNS, "runs on hosts alpha and gamma")])
def test_two_hosts_that_may_both_be_meant_are_refused(state: VmState, why: str) -> None:
    vm = Sighting("web", "u1", state)
    with pytest.raises(Refused, match=why):
        locate_vm(JOB, "web", "u1", hosts(alpha=Host(vm), gamma=Host(vm)))


def test_a_host_that_does_not_answer_matters_unless_the_vm_runs_elsewhere() -> None:
    silent = Host(silent=True)
    runs, off = Host(Sighting("web", "u1", RUNS)), Host(Sighting("web", "u1", OFF))
    assert locate_vm(JOB, "web", "u1", hosts(alpha=runs, gamma=silent)).host == "alpha"
    for other in (off, Host()):
        with pytest.raises(HostUnreachable):
            locate_vm(JOB, "web", "u1", hosts(alpha=other, gamma=silent))


def test_a_vm_that_no_host_has_is_not_found() -> None:
    with pytest.raises(NotFound):
        locate_vm(JOB, "web", "u1", hosts(alpha=Host(), gamma=Host()))


def test_the_job_holds_for_the_host_and_the_name_where_the_vm_is() -> None:
    there = job_there(JOB, "web", Whereabouts("gamma", "shop"))
    assert there == replace(
        JOB, source="gamma", excluded_disks=(("shop", "vdb"),), masks=(("", "/tmp/**"), ("shop", "/a")),
        guests=(GuestSettings(""), GuestSettings("shop", address="web.lan")),
    )  # fmt: skip
    assert job_there(JOB, "web", Whereabouts("alpha", "web")).masks_of("web") == JOB.masks_of("web")


def test_a_vm_that_took_the_name_of_another_one_of_the_job_keeps_its_own_settings() -> None:
    there = job_there(JOB, "web", Whereabouts("alpha", "db"))
    assert there.masks_of("db") == ("/tmp/**", "/a")
    assert there.guest("db").address == "web.lan"
    assert there.excluded_disks == (("db", "vdb"),)
