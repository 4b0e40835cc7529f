"""Being the controller: one process at a time, the next one takes over, nothing stays frozen or running for ever."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from understudy.context import CancelToken, Context
from understudy.controller import catalog, control, frozen, interrupted, jobs, journal, lock
from understudy.controller import engine as engine_module
from understudy.controller.control import Control, cancel_on_interrupt, control_until_idle, follow_session
from understudy.controller.database import Database, open_database
from understudy.controller.engine import LocalEngine
from understudy.controller.leftovers import Swept
from understudy.controller.records import FrozenGuest
from understudy.controller.reports import session_report
from understudy.controller.sites import SiteBuilder
from understudy.controller.whereabouts import Whereabouts
from understudy.errors import GuestError, HostUnreachable, UnderstudyError
from understudy.model.job import Datastore, Host, Job
from understudy.model.session import SessionReport, SessionState
from understudy.replication.held import HeldTask
from understudy.replication.site import Place, Task, TaskOutcome

pytestmark = pytest.mark.timeout(60)

# A ``job run`` without hypervisor: each task waits for the file ``release``; thaws are noted in ``thawed``.
RUN = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from understudy.controller import control, engine
from understudy.controller.database import open_database
from understudy.controller.whereabouts import Whereabouts
from understudy.replication.site import TaskOutcome

home, session = Path(sys.argv[1]), int(sys.argv[2])

class Platform:
    def thaw(self, uuid, timeout_s):
        (home / f"thawed-{uuid}").touch()
        return 1

def replicate(ctx, task, site):
    (home / f"running-{os.getpid()}").touch()
    ctx.wait_until((home / "release").exists, timeout_s=120)
    return TaskOutcome("p1", "crash", None)

engine.replicate_vm = replicate
engine.LocalEngine._remember = lambda *_: None
sites = SimpleNamespace(
    platforms=SimpleNamespace(get=lambda uri: Platform()), warm_up=lambda job: None, build=lambda job, rows: None,
    locate=lambda job, vm, uuid: Whereabouts(job.source, vm),
    rates=SimpleNamespace(push=lambda: None), is_held=lambda held: False,
)
database = open_database(home)
said = []
def told(report):
    if not said:
        said.append("following")
        print(*said, flush=True)
report = control.follow_session(control.Control(home, database, sites), database, session, told)
print(report.state, flush=True)
"""


class Platforms:
    """Notes thaws; ``problems`` are raised for some VMs."""

    def __init__(self) -> None:
        self.thawed: list[str] = []
        self.problems: dict[str, UnderstudyError] = {}

    def get(self, _uri: str) -> Platforms:
        return self

    def thaw(self, vm_uuid: str, _timeout_s: float) -> int:
        if vm_uuid in self.problems:
            raise self.problems[vm_uuid]
        self.thawed.append(vm_uuid)
        return 1


class FakeSites:
    """``has`` says whether proxies have what a task holds."""

    def __init__(self) -> None:
        self.platforms = Platforms()
        self.rates = SimpleNamespace(push=lambda: None)
        self.has = True
        self.asked: list[HeldTask] = []

    def is_held(self, held: HeldTask) -> bool:
        self.asked.append(held)
        return self.has

    def warm_up(self, job: Job) -> None:
        pass

    def locate(self, job: Job, vm: str, uuid: str) -> Whereabouts:
        return Whereabouts(job.source, vm)

    def build(self, job: Job, rows: object) -> Place:
        return cast("Place", None)


@pytest.fixture
def home(tmp_path: Path, migrated_sqlite: Path) -> Path:
    shutil.copy(migrated_sqlite, tmp_path / "understudy.db")
    return tmp_path


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    """A database on SQLite that processes can share, with the job ``nightly``."""
    opened = open_database(home)
    catalog.add_host(opened, Host("prod", "qemu:///system", "/var/tmp/scratch"))
    catalog.add_datastore(opened, Datastore("vault", "prod", "qcow2", "/srv/replicas"))
    jobs.create_job(opened, Job("1", "nightly", "prod", "prod", "vault", ("web",)))
    yield opened
    opened.close()


@pytest.fixture
def sites() -> FakeSites:
    return FakeSites()


@pytest.fixture
def duties(home: Path, database: Database, sites: FakeSites) -> Iterator[Control]:
    made = Control(home, database, cast("SiteBuilder", sites))
    yield made
    made.release()


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Tasks of this process succeed once this is set."""
    event = threading.Event()

    def replicate(ctx: Context, task: Task, site: Place) -> TaskOutcome:
        ctx.wait_until(event.is_set, timeout_s=60, interval_s=0.01)
        return TaskOutcome("p1", "crash", None)

    monkeypatch.setattr(engine_module, "replicate_vm", replicate)
    monkeypatch.setattr(LocalEngine, "_remember", lambda *_: None)
    return event


class Runs:
    """``job run`` processes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[subprocess.Popen[str]] = []

    def start(self, session: int) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, str(self.home), str(session)], stdout=subprocess.PIPE, text=True
        )
        self.started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "following\n"
        return child

    def running(self) -> list[int]:
        return [int(path.name.partition("-")[2]) for path in self.home.glob("running-*")]

    def wait_running(self) -> int:
        assert Context().wait_until(lambda: bool(self.running()), timeout_s=30)
        (pid,) = self.running()
        return pid

    def close(self) -> None:
        for child in self.started:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


@pytest.fixture
def runs(home: Path) -> Iterator[Runs]:
    made = Runs(home)
    yield made
    made.close()


def last_word(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


# --- several processes ------------------------------------------------------------------------------------------------


def test_of_two_processes_one_is_the_controller_and_both_see_the_end(
    home: Path, database: Database, runs: Runs
) -> None:
    session = journal.insert_session(database, "nightly")
    both = [runs.start(session), runs.start(session)]
    pid = runs.wait_running()
    assert lock.holder(home) == pid
    assert pid in {child.pid for child in both}
    (home / "release").touch()
    assert [last_word(child) for child in both] == ["success", "success"]
    assert [child.wait(30) for child in both] == [0, 0]
    assert runs.running() == [pid]
    assert lock.holder(home) is None


def test_a_follower_takes_over_when_the_controller_dies(home: Path, database: Database, runs: Runs) -> None:
    session = journal.insert_session(database, "nightly")
    both = {child.pid: child for child in (runs.start(session), runs.start(session))}
    dead = both.pop(runs.wait_running())
    (follower,) = both.values()
    frozen.record_frozen(database, FrozenGuest("prod", "uuid-1", session, "2026-01-01T00:00:00+00:00", "x"))
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert last_word(follower) == "failed"
    assert follower.wait(30) == 0
    report = session_report(database, session)
    assert report.state is SessionState.FAILED
    assert "controller ended unexpectedly" in (report.tasks[0].error or "")
    assert (home / "thawed-uuid-1").exists()
    assert frozen.list_frozen(database) == ()
    assert journal.insert_session(database, "nightly") > session


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("who", ["controller", "follower"])
def test_an_interrupt_of_either_process_asks_the_session_to_stop(
    database: Database, runs: Runs, number: signal.Signals, who: str
) -> None:
    session = journal.insert_session(database, "nightly")
    both = {child.pid: child for child in (runs.start(session), runs.start(session))}
    controller = both.pop(runs.wait_running())
    (follower,) = both.values()
    (controller if who == "controller" else follower).send_signal(number)
    assert [last_word(controller), last_word(follower)] == ["cancelled", "cancelled"]
    assert (controller.wait(30), follower.wait(30)) == (0, 0)
    assert session_report(database, session).state is SessionState.CANCELLED


def test_a_second_interrupt_ends_the_command_at_once(database: Database, runs: Runs) -> None:
    session = journal.insert_session(database, "nightly")
    controller, follower = runs.start(session), runs.start(session)
    if runs.wait_running() == follower.pid:
        controller, follower = follower, controller
    controller.send_signal(signal.SIGSTOP)  # so that the first wish cannot be granted
    try:
        follower.send_signal(signal.SIGINT)
        assert Context().wait_until(lambda: journal.is_cancel_requested(database, session), timeout_s=20)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) != 0
    finally:
        controller.send_signal(signal.SIGCONT)
    assert last_word(controller) == "cancelled"


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_controller_executes_what_is_queued_and_lets_go_when_idle(
    home: Path, database: Database, duties: Control, released: threading.Event
) -> None:
    session = journal.insert_session(database, "nightly")
    released.set()
    control_until_idle(duties, database)
    assert session_report(database, session).state is SessionState.SUCCESS
    assert lock.holder(home) is None


def test_where_another_process_is_the_controller_nothing_is_claimed_until_it_is_gone(
    home: Path, database: Database, duties: Control, released: threading.Event
) -> None:
    session = journal.insert_session(database, "nightly")
    released.set()
    held = lock.try_acquire(home)
    assert held is not None
    waiter = threading.Thread(target=control_until_idle, args=(duties, database))
    with held:
        assert not duties.tick()
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        assert session_report(database, session).state is SessionState.QUEUED
    waiter.join(30)
    assert session_report(database, session).state is SessionState.SUCCESS


def test_with_another_controller_and_nothing_queued_there_is_nothing_to_wait_for(
    home: Path, database: Database, duties: Control
) -> None:
    held = lock.try_acquire(home)
    assert held is not None
    with held:
        control_until_idle(duties, database)


def test_progress_is_told_from_the_first_to_the_last_moment(
    database: Database, duties: Control, released: threading.Event
) -> None:
    session = journal.insert_session(database, "nightly")
    told: list[SessionReport] = []
    threading.Timer(1.0, released.set).start()
    report = follow_session(duties, database, session, told.append)
    assert told[-1] == report
    assert report.state is SessionState.SUCCESS
    assert SessionState.RUNNING in {item.state for item in told}
    # The signal handlers of this process are its own again.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_end_of_a_session_is_noticed_without_another_look(
    database: Database, duties: Control, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_TICK_S", 3600.0)  # the test's time limit is less
    session = journal.insert_session(database, "nightly")
    threading.Timer(0.3, released.set).start()
    assert follow_session(duties, database, session, None).state is SessionState.SUCCESS


def test_following_ends_only_when_this_process_has_nothing_left_to_do(
    database: Database, duties: Control, released: threading.Event
) -> None:
    jobs.create_job(database, Job("2", "hourly", "prod", "prod", "vault", ("db",)))
    first, second = journal.insert_session(database, "nightly"), journal.insert_session(database, "hourly")
    threading.Timer(0.3, released.set).start()
    follow_session(duties, database, first, lambda _: None)
    assert session_report(database, second).state is SessionState.SUCCESS


def test_a_cancellation_from_the_database_reaches_the_task(
    database: Database, duties: Control, released: threading.Event
) -> None:
    session = journal.insert_session(database, "nightly")
    assert duties.tick()
    journal.request_cancel(database, session)
    assert Context().wait_until(lambda: duties.tick() and duties.idle, timeout_s=20)
    assert session_report(database, session).state is SessionState.CANCELLED


# --- recovery ---------------------------------------------------------------------------------------------------------


def guest(uuid: str, host: str = "prod") -> FrozenGuest:
    return FrozenGuest(host, uuid, 1, "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:10+00:00")


def test_a_new_controller_fails_dead_sessions_and_thaws_recorded_guests(
    database: Database, duties: Control, sites: FakeSites
) -> None:
    session = journal.insert_session(database, "nightly")
    journal.claim_session(database)
    frozen.record_frozen(database, guest("uuid-1"))
    frozen.record_frozen(database, guest("uuid-2"))
    assert duties.tick()
    assert session_report(database, session).state is SessionState.FAILED
    assert sorted(sites.platforms.thawed) == ["uuid-1", "uuid-2"]
    assert frozen.list_frozen(database) == ()


@pytest.mark.parametrize("problem", [HostUnreachable("host 'prod'", "no route"), GuestError("thaw", "agent busy")])
def test_a_guest_that_cannot_be_thawed_stays_recorded_and_the_others_are_thawed(
    database: Database, duties: Control, sites: FakeSites, problem: UnderstudyError
) -> None:
    sites.platforms.problems["uuid-1"] = problem
    for item in (guest("uuid-1"), guest("uuid-2"), guest("uuid-3", "gone")):
        frozen.record_frozen(database, item)
    assert duties.tick()
    assert sites.platforms.thawed == ["uuid-2"]
    assert {item.vm_uuid for item in frozen.list_frozen(database)} == {"uuid-1", "uuid-3"}


def test_what_dead_sessions_left_is_swept_for_jobs_that_are_not_about_to_run(
    database: Database, duties: Control, monkeypatch: pytest.MonkeyPatch, released: threading.Event
) -> None:
    jobs.create_job(database, Job("2", "hourly", "prod", "prod", "vault", ("db",)))
    for name in ("nightly", "hourly"):
        journal.insert_session(database, name)
        journal.claim_session(database)
    interrupted.fail_dead_sessions(database)
    swept, may_end = [], threading.Event()

    def sweep(_ctx: Context, _database: Database, _sites: SiteBuilder, job_ids: tuple[str, ...]) -> tuple[Swept, ...]:
        swept.append(job_ids)
        may_end.wait(20)
        raise HostUnreachable("host 'prod'", "no route")

    monkeypatch.setattr(control, "sweep_jobs", sweep)
    assert duties.tick()
    assert swept == []  # no session died since the last controller started
    duties.release()
    for name in ("nightly", "hourly"):
        journal.insert_session(database, name)
        journal.claim_session(database)
    monkeypatch.setattr(interrupted, "fail_dead_sessions", _ended_and_queued_again(database, "nightly"))
    assert duties.tick()
    assert Context().wait_until(lambda: swept == [("2",)], timeout_s=20)
    assert not duties.idle
    released.set()
    may_end.set()
    assert Context().wait_until(lambda: duties.idle, timeout_s=20)


def _ended_and_queued_again(database: Database, name: str) -> Callable[..., tuple[int, ...]]:
    """Ends dead sessions, as it does; by then the operator has started a job again."""
    end = interrupted.fail_dead_sessions

    def act(*arguments: Any) -> tuple[int, ...]:
        ended = end(*arguments)
        journal.insert_session(database, name)
        return ended

    return act


def test_recovery_happens_once_and_not_to_sessions_of_this_controller(
    database: Database, duties: Control, sites: FakeSites, released: threading.Event
) -> None:
    assert duties.tick()
    session = journal.insert_session(database, "nightly")
    frozen.record_frozen(database, guest("uuid-1"))
    assert duties.tick()
    assert duties.tick()
    assert session_report(database, session).state is SessionState.RUNNING
    assert sites.platforms.thawed == []
    released.set()
    assert Context().wait_until(lambda: duties.idle, timeout_s=20)


def test_an_interrupt_cancels_a_token_while_the_block_lasts() -> None:
    token = CancelToken()
    before = signal.getsignal(signal.SIGINT)
    with cancel_on_interrupt(token):
        signal.raise_signal(signal.SIGINT)
        assert token.wait(10)
    assert signal.getsignal(signal.SIGINT) is before
