"""A controller that finds the sessions of a dead one: what it goes on with, what it fails, what it leaves alone."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.unit.replication.ends import HELD
from understudy.context import Context
from understudy.controller import catalog, interrupted, jobs, journal, lock
from understudy.controller import engine as engine_module
from understudy.controller.control import Control, follow_session
from understudy.controller.database import Database, open_database
from understudy.controller.engine import LocalEngine
from understudy.controller.recovery import end_dead_sessions, resumable_sessions
from understudy.controller.reports import session_report
from understudy.controller.schema import TaskRow
from understudy.controller.services import ControllerServices
from understudy.controller.sites import SiteBuilder
from understudy.controller.whereabouts import Whereabouts
from understudy.errors import NotFound, PlatformError
from understudy.model.job import Datastore, Host, Job
from understudy.model.session import DiskReport, SessionReport, SessionState, TaskReport
from understudy.model.transfer import Reason, TransferMode
from understudy.replication.held import HeldTask
from understudy.replication.site import Place, Task, TaskOutcome

pytestmark = pytest.mark.timeout(60)

VMS = ("held", "lost", "queued", "done")
DONE = TaskOutcome("p1", "crash", None)


@pytest.fixture
def home(tmp_path: Path, migrated_sqlite: Path) -> Path:
    shutil.copy(migrated_sqlite, tmp_path / "understudy.db")
    return tmp_path


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    """A database with the jobs ``nightly``, of four VMs, and ``hourly``, of one."""
    opened = open_database(home)
    catalog.add_host(opened, Host("prod", "qemu:///system", "/var/tmp/scratch"))
    catalog.add_datastore(opened, Datastore("vault", "prod", "qcow2", "/srv/replicas"))
    jobs.create_job(opened, Job("1", "nightly", "prod", "prod", "vault", VMS))
    jobs.create_job(opened, Job("2", "hourly", "prod", "prod", "vault", ("held",)))
    yield opened
    opened.close()


def left(database: Database, job: str = "nightly", *, full_scan: bool = False) -> int:
    """A session as a controller leaves it that dies while one of its VMs has its disks under way."""
    session = journal.insert_session(database, job, full_scan)
    claimed = journal.claim_session(database)
    assert claimed is not None
    tasks = {vm: journal.start_task(database, session, vm) for vm in claimed.job.vms if vm != "queued"}
    journal.store_held(database, tasks["held"], replace(HELD, vm=replace(HELD.vm, name=f"held of {job}")))
    if "done" in tasks:
        journal.end_task(database, tasks["done"], SessionState.SUCCESS, restore_point="p0")
    return session


class World:
    """A controller whose tasks only note that they ran, and what the proxies say of a task that is held."""

    def __init__(self, home: Path, database: Database) -> None:
        self.database = database
        self.has: Callable[[HeldTask], bool] = lambda _: True
        self.replicated: list[str] = []
        self.resumed: list[tuple[Task, HeldTask]] = []
        self.resume: Callable[[Context], TaskOutcome] = lambda _: DONE
        sites = SimpleNamespace(
            platforms=None, rates=SimpleNamespace(push=lambda: None), warm_up=lambda _: None,
            build=lambda _job, _rows: None, is_held=self.is_held, locate=lambda job, vm, _: Whereabouts(job.source, vm),
        )  # fmt: skip
        self.control = Control(home, database, cast("SiteBuilder", sites))

    def is_held(self, held: HeldTask) -> bool:
        return self.has(held)

    def replicate_vm(self, ctx: Context, task: Task, place: Place) -> TaskOutcome:
        self.replicated.append(task.vm)
        return DONE

    def resume_vm(self, ctx: Context, task: Task, place: Place, held: HeldTask) -> TaskOutcome:
        self.resumed.append((task, held))
        return self.resume(ctx)

    def run(self) -> None:
        """Be the controller until nothing is left to do."""
        assert Context().wait_until(lambda: self.control.tick() and self.control.idle, timeout_s=30)

    def report(self, session: int) -> SessionReport:
        return session_report(self.database, session)

    def tasks(self, session: int) -> dict[str, TaskReport]:
        return {task.vm: task for task in self.report(session).tasks}


@pytest.fixture
def world(home: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(home, database)
    monkeypatch.setattr(engine_module, "replicate_vm", made.replicate_vm)
    monkeypatch.setattr(engine_module, "resume_vm", made.resume_vm)
    monkeypatch.setattr(LocalEngine, "_remember", lambda *_: None)
    yield made
    made.control.release()


# --- the next controller ----------------------------------------------------------------------------------------------


def test_a_held_task_goes_on_a_lost_one_fails_a_queued_one_runs_and_an_ended_one_stays(
    database: Database, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    session = left(database, full_scan=True)
    world.run()
    assert caplog.messages == [f"session={session} was left by a controller that died, and is gone on with"]
    ((task, held),) = world.resumed
    assert (task.vm, task.session, task.full_scan, task.job.name) == ("held", session, True, "nightly")
    assert held == replace(HELD, vm=replace(HELD.vm, name="held of nightly"))
    assert world.replicated == ["queued"]
    told = world.tasks(session)
    assert (told["held"].state, told["held"].restore_point) == (SessionState.WARNING, "p1")
    assert told["held"].warnings == (
        "the controller was started again while the disks were under way, and went on with them",
    )
    assert told["lost"].error == "replicate 'lost': controller ended unexpectedly; run the job again"
    assert (told["queued"].state, told["done"].state) == (SessionState.SUCCESS, SessionState.SUCCESS)
    assert told["done"].restore_point == "p0"
    assert world.report(session).state is SessionState.FAILED


def test_a_session_of_which_the_proxies_have_nothing_fails_as_ever(database: Database, world: World) -> None:
    session = left(database)
    world.has = lambda _: False
    world.run()
    assert world.resumed == []
    assert world.replicated == []
    assert {vm: task.state for vm, task in world.tasks(session).items()} == dict.fromkeys(
        VMS, SessionState.FAILED
    ) | {"done": SessionState.SUCCESS}


def test_sessions_are_told_apart(database: Database, world: World) -> None:
    nightly, hourly = left(database), left(database, "hourly")
    world.has = lambda held: held.vm.name == "held of hourly"
    world.run()
    assert [task.session for task, _ in world.resumed] == [hourly]
    assert world.report(nightly).state is SessionState.FAILED
    assert world.report(hourly).state is SessionState.WARNING


def test_a_resumed_task_that_fails_says_why_and_holds_nothing_any_more(database: Database, world: World) -> None:
    session = left(database, "hourly")

    def fail(_: Context) -> TaskOutcome:
        raise PlatformError("snapshot of VM 'held'", "it is not held any more", "run the job again")

    world.resume = fail
    world.run()
    task = world.tasks(session)["held"]
    assert (task.state, task.error) == (
        SessionState.FAILED, "snapshot of VM 'held': it is not held any more; run the job again",
    )  # fmt: skip
    with database.reading() as reading:
        assert [row.held for row in reading.query(TaskRow).all()] == [None]


@pytest.mark.parametrize("before", [True, False], ids=["before the controller died", "while it goes on"])
def test_a_resumed_session_can_be_cancelled(database: Database, world: World, before: bool) -> None:
    session, began = left(database, "hourly"), threading.Event()

    def wait(ctx: Context) -> TaskOutcome:
        began.set()
        ctx.wait_until(lambda: False, timeout_s=30)
        return DONE

    world.resume = wait
    if before:
        journal.request_cancel(database, session)
    world.control.tick()
    assert before or began.wait(20)
    if not before:
        journal.request_cancel(database, session)
    world.run()
    assert world.report(session).state is SessionState.CANCELLED


def test_a_cancelled_session_gives_up_all_that_it_holds(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_TASK_THREADS", 1)
    jobs.create_job(database, Job("3", "both", "prod", "prod", "vault", ("a", "b")))
    session = journal.insert_session(database, "both")
    journal.claim_session(database)
    for vm in ("a", "b"):
        journal.store_held(database, journal.start_task(database, session, vm), HELD)
    journal.request_cancel(database, session)

    def wait(ctx: Context) -> TaskOutcome:
        ctx.wait_until(lambda: False, timeout_s=30)
        return DONE

    world.resume = wait
    world.run()
    # The second one is resumed although it is cancelled already: only so its snapshot and its draft are ended.
    assert {task.vm for task, _ in world.resumed} == {"a", "b"}
    assert {task.state for task in world.tasks(session).values()} == {SessionState.CANCELLED}


GARBAGE = ["", "nonsense", "{}", "null", '{"spec": 1}', "\u2028'\""]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_another_version_wrote_keeps_no_controller_from_starting(
    database: Database, world: World, garbage: str, caplog: pytest.LogCaptureFixture
) -> None:
    nightly, hourly = left(database), left(database, "hourly")
    with database.transaction() as session:
        for row in session.query(TaskRow).filter_by(session_id=nightly, vm="held"):
            row.held = garbage
    with caplog.at_level(logging.WARNING):
        world.run()
    assert world.report(nightly).state is SessionState.FAILED
    assert world.report(hourly).state is SessionState.WARNING
    assert f"session={nightly} was left by a controller that died" in caplog.messages
    if garbage:
        assert any(text.startswith(f"session={nightly} vm=held cannot be gone on with: ") for text in caplog.messages)


def test_following_an_interrupted_session_sees_it_to_its_end(database: Database, world: World) -> None:
    session = left(database, "hourly")
    report = follow_session(world.control, database, session, lambda _: None)
    assert report.state is SessionState.WARNING
    assert journal.insert_session(database, "hourly") > session


def test_with_a_task_its_disks_end(database: Database) -> None:
    session = left(database, "hourly")
    (resumed,) = resumable_sessions(database, lambda _: True)
    moving = DiskReport("vda", TransferMode.FULL, Reason.FIRST_RUN, 1000, processed_bytes=10, rate=5.0,
                        waiting="a slot")  # fmt: skip
    journal.update_disk(database, resumed.resumed[0].id, moving)
    assert session_report(database, session).tasks[0].disks == (moving,)
    interrupted.fail_dead_sessions(database)
    assert session_report(database, session).tasks[0].disks == (replace(moving, rate=0.0, waiting=""),)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_dead_session_is_ended_unless_it_is_left_to_the_next_controller(database: Database) -> None:
    nightly, hourly = left(database), left(database, "hourly")
    assert end_dead_sessions(database, lambda session: session.job.name == "hourly") == (nightly,)
    assert session_report(database, hourly).state is SessionState.RUNNING
    assert end_dead_sessions(database, lambda _: False) == (hourly,)
    assert end_dead_sessions(database, lambda _: False) == ()


def test_what_holds_nothing_is_ended_without_a_question(database: Database) -> None:
    session = journal.insert_session(database, "hourly")
    journal.claim_session(database)
    assert end_dead_sessions(database, lambda _: True) == (session,)


def test_nothing_is_ended_while_a_controller_lives(home: Path, database: Database) -> None:
    session = left(database)
    controller = lock.try_acquire(home)
    assert controller is not None
    with controller:
        assert end_dead_sessions(database, lambda _: False) == ()
    assert session_report(database, session).state is SessionState.RUNNING


@pytest.fixture
def services(home: Path, database: Database, world: World, monkeypatch: pytest.MonkeyPatch) -> ControllerServices:
    made = ControllerServices(home, database)
    monkeypatch.setattr(made._sites, "is_held", world.is_held)
    return made


def test_the_session_to_go_on_with_is_found_by_its_job(
    database: Database, services: ControllerServices, world: World
) -> None:
    nightly, hourly = left(database), left(database, "hourly")
    assert services.interrupted_session("nightly") == nightly
    assert services.interrupted_session("hourly") == hourly
    world.has = lambda held: held.vm.name == "held of nightly"
    assert services.interrupted_session("hourly") is None
    assert session_report(database, hourly).state is SessionState.FAILED
    assert session_report(database, nightly).state is SessionState.RUNNING
    with pytest.raises(NotFound):
        services.interrupted_session("mars")


def test_a_session_that_runs_or_is_queued_is_not_interrupted(
    home: Path, database: Database, services: ControllerServices
) -> None:
    assert services.interrupted_session("nightly") is None
    queued = journal.insert_session(database, "nightly")
    assert services.interrupted_session("nightly") is None
    assert session_report(database, queued).state is SessionState.QUEUED
    controller = lock.try_acquire(home)
    assert controller is not None
    with controller:
        journal.claim_session(database)
        assert services.interrupted_session("nightly") is None
