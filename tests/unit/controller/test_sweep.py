"""The effects of a sweep: in order, one failure keeps nothing else, and what depends on it is not forced."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from understudy.context import Context
from understudy.controller import catalog, credentials, interrupted, journal, lock, sweep
from understudy.controller.credentials import Credential, CredentialKind
from understudy.controller.database import Database, open_database
from understudy.controller.leftovers import Scope
from understudy.controller.sites import SiteBuilder
from understudy.controller.sweep import Sweeping, list_leftovers, sweep_as_controller
from understudy.controller.sweep_facts import Looking
from understudy.controller.sweep_plan import Facts, HostVm, SurveyedPlace, plan_sweep
from understudy.errors import PlatformError, Refused
from understudy.model.job import Datastore, Host, Job
from understudy.model.snapshot import Tag
from understudy.mover.api import DatastoreSurvey
from understudy.platforms import VmTraces

JOB = Job("a" * 32, "nightly", "prod", "prod", "vault", ("web", "db"))
VAULT = Datastore("vault", "prod", "qcow2", "/srv")


def traces(name: str, session: int) -> VmTraces:
    tag = str(Tag(JOB.id, f"uuid-{name}", session))
    return VmTraces(name, f"uuid-{name}", True, (f"{tag}-beef",), f"{tag}.sock", (), ())


@dataclass
class Platform:
    """Cannot end what runs on the VM ``web``; notes what it did."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def describe_vm(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, uuid=f"uuid-{name}")

    def sweep(self, _ctx: Context, vm: SimpleNamespace, tag: Tag) -> list[str]:
        self.calls.append(("sweep", vm.name, tag.prefix))
        if vm.name == "web":
            raise PlatformError("end the snapshot", "the backup job does not end")
        return []

    def keep_baseline(self, vm: SimpleNamespace, tag: Tag, keep: str, former: str) -> list[str]:
        self.calls.append(("keep", vm.name, keep, former))
        return []


@pytest.fixture
def database(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Database]:
    shutil.copy(migrated_sqlite, tmp_path / "understudy.db")
    opened = open_database(tmp_path)
    catalog.add_host(opened, Host("prod", "qemu:///system", "/var/tmp/scratch"))
    yield opened
    opened.close()


def test_what_cannot_be_ended_keeps_what_depends_on_it_and_nothing_else(database: Database) -> None:
    platform = Platform()
    sites = cast("SiteBuilder", SimpleNamespace(platforms=SimpleNamespace(get=lambda _uri: platform)))
    facts = Facts((JOB,), vms=(HostVm("prod", traces("web", 1)), HostVm("prod", traces("db", 2))),
                  places=(SurveyedPlace(VAULT, DatastoreSurvey(exists=True, replicas=())),))  # fmt: skip
    swept = Sweeping(Context(), database, sites, facts).apply(plan_sweep(facts, Scope()))
    problems = {(item.leftover.owner, item.leftover.kind.value): item.problem for item in swept}
    assert problems == {
        ("web", "backup_job"): "end the snapshot: the backup job does not end",
        ("web", "checkpoint"): "the backup job of its VM could not be ended",
        ("db", "backup_job"): "",
        ("db", "checkpoint"): "",
    }
    assert [call[:2] for call in platform.calls] == [("sweep", "web"), ("sweep", "db"), ("keep", "db")]


@pytest.mark.parametrize("merged", [True, False])
def test_a_delta_that_stays_unmerged_is_told_although_the_platform_did_not_fail(
    database: Database, *, merged: bool
) -> None:
    left = VmTraces("db", "uuid-db", True, (), "", (), (), snapshots=(str(Tag(JOB.id, "uuid-db", 2)),), unmerged=True)
    platform = SimpleNamespace(
        describe_vm=Platform().describe_vm, sweep=lambda _ctx, _vm, _tag: ["it is locked"],
        traces=lambda: (replace(left, snapshots=(), unmerged=not merged),),
    )
    sites = cast("SiteBuilder", SimpleNamespace(platforms=SimpleNamespace(get=lambda _uri: platform)))
    facts = Facts((JOB,), vms=(HostVm("prod", left),))
    swept = Sweeping(Context(), database, sites, facts).apply(plan_sweep(facts, Scope()))
    problem = "" if merged else "it is locked"
    assert [(item.leftover.kind.value, item.problem) for item in swept] == [
        ("snapshot", problem), ("unmerged_delta", problem)]  # fmt: skip


def test_a_sweep_is_refused_while_another_process_is_the_controller(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[object] = []

    def plan(*arguments: object) -> tuple[Facts, tuple[()]]:
        planned.append(arguments[-1])
        return Facts(()), ()

    monkeypatch.setattr(sweep, "_planned", plan)
    sites = cast("SiteBuilder", SimpleNamespace(is_held=lambda _held: False))
    held = lock.try_acquire(database.home)
    assert held is not None
    with held:
        with pytest.raises(Refused, match="a controller is running"):
            sweep_as_controller(database, sites, ())
        assert planned == []
        assert list_leftovers(database, sites, ()) == ()
    assert sweep_as_controller(database, sites, ()) == ()
    assert planned == [(), ()]
    assert lock.holder(database.home) is None


def test_the_sessions_of_a_dead_controller_end_when_its_leftovers_are_swept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.controller import jobs

    catalog.add_datastore(database, VAULT)
    jobs.create_job(database, JOB)
    session = journal.insert_session(database, "nightly")
    journal.claim_session(database)
    running: list[Any] = []

    def plan(*arguments: Any) -> tuple[Facts, tuple[()]]:
        running.append(arguments[-1])
        return Facts(()), ()

    monkeypatch.setattr(sweep, "_planned", plan)
    sites = cast("SiteBuilder", SimpleNamespace(is_held=lambda _held: False))
    list_leftovers(database, sites, ())
    assert [item.id for item in interrupted.running_sessions(database)] == [session]
    sweep_as_controller(database, sites, ())
    assert running == [(), ()]
    assert interrupted.running_sessions(database) == ()


def test_no_files_are_looked_for_on_a_host_whose_disks_are_reached_by_a_library(database: Database) -> None:
    credentials.add_credential(database, Credential("vcenter", "u", CredentialKind.PASSWORD, "p"))
    catalog.add_host(database, Host("vc", "vpx://vc.lan/", "", credential="vcenter", thumbprint="AB:" * 31 + "AB"))
    asked: list[str] = []

    def proxy_on(host: Host) -> None:
        asked.append(host.name)

    platform = SimpleNamespace(traces=lambda: ())
    mover = SimpleNamespace(call=lambda _request, kind: kind(()))
    sites = SimpleNamespace(platforms=SimpleNamespace(get=lambda _host: platform), proxy_on=proxy_on,
                            movers=SimpleNamespace(get=lambda _name: mover))  # fmt: skip
    facts = Looking(database, cast("SiteBuilder", sites), Scope()).facts({}, ())
    assert asked == ["prod"]
    assert [item.place for item in facts.unseen if not item.failed] == ["prod"]
