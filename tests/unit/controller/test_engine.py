"""The local engine: whatever happens to a task ends in its row, and no session is left open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from understudy.context import Context
from understudy.controller import engine as engine_module
from understudy.controller import journal
from understudy.controller.database import Database
from understudy.controller.engine import LocalEngine
from understudy.controller.records import ClaimedSession
from understudy.controller.reports import session_report
from understudy.controller.sites import SiteBuilder
from understudy.controller.task_journal import DatabaseJournal
from understudy.controller.whereabouts import Whereabouts
from understudy.errors import Cancelled, HostUnreachable, MoverError, UnderstudyError
from understudy.model.estimate import DiskEstimate, Sums
from understudy.model.job import Job
from understudy.model.session import SessionKind, SessionReport, SessionState, Step, StepState, TaskReport
from understudy.model.transfer import Reason, TransferMode
from understudy.mover.client import MoverClient
from understudy.replication.site import Place, Task, TaskOutcome

pytestmark = pytest.mark.timeout(120)

Replicate = Callable[[Context, Task, DatabaseJournal], TaskOutcome]
DONE = TaskOutcome("p1", "filesystem", 12.5)


class FakeSite:
    """As much of a site as a scripted replication needs."""

    def __init__(self, journal: DatabaseJournal) -> None:
        self.journal = journal

    def __getattr__(self, name: str) -> object:
        raise MoverError("proxy 'local'", "it is a fake")


class FakeSites(SiteBuilder):
    """Builds fake sites; ``problem`` is raised instead."""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.warm_problem: UnderstudyError | None = None
        self.warmed: list[str] = []

    def warm_up(self, job: Job) -> None:
        self.warmed.append(job.name)
        if self.warm_problem is not None:
            raise self.warm_problem

    def locate(self, job: Job, vm: str, uuid: str) -> Whereabouts:
        return Whereabouts(job.source, vm)

    def build(self, job: Job, journal: DatabaseJournal) -> Place:
        if self.problem is not None:
            raise self.problem
        return FakeSite(journal)  # type: ignore[return-value]

    def mover_at(self, host: str, wanted: str = "") -> MoverClient:
        raise MoverError("proxy 'local'", "it is a fake")


class Bench:
    """An engine on a database with a job of the VMs ``web 1`` and ``db``, and what a task does."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.sites = FakeSites()
        self.engine = LocalEngine(database, self.sites)
        self.replicate: dict[str, Replicate] = {}
        self.tasks: list[Task] = []

    def run_task(self, ctx: Context, task: Task, site: Place) -> TaskOutcome:
        self.tasks.append(task)
        assert isinstance(site.journal, DatabaseJournal)
        act = self.replicate.get(task.vm)
        return DONE if act is None else act(ctx, task, site.journal)

    def claim(self, full_scan: bool = False) -> ClaimedSession:
        journal.insert_session(self.database, "nightly", full_scan)
        claimed = journal.claim_session(self.database)
        assert claimed is not None
        return claimed

    def run(self) -> SessionReport:
        claimed = self.claim()
        self.engine.submit(claimed)
        return self.ended(claimed.id)

    def ended(self, session: int) -> SessionReport:
        assert Context().wait_until(lambda: session not in self.engine.active(), timeout_s=30)
        return session_report(self.database, session)


@pytest.fixture
def bench(site: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(site)
    monkeypatch.setattr(engine_module, "replicate_vm", made.run_task)
    monkeypatch.setattr(LocalEngine, "_remember", lambda *_: None)
    yield made
    assert made.engine.active() == frozenset()


def task_of(report: SessionReport, vm: str = "web 1") -> TaskReport:
    return next(task for task in report.tasks if task.vm == vm)


def raising(error: BaseException) -> Replicate:
    def replicate(_ctx: Context, _task: Task, rows: DatabaseJournal) -> TaskOutcome:
        rows.warn("seen before the end")
        with rows.step(Step.READ):
            raise error

    return replicate


def test_a_task_that_succeeds_tells_its_point(bench: Bench) -> None:
    report = bench.run()
    assert report.state is SessionState.SUCCESS
    assert report.ended_at is not None
    for task in report.tasks:
        assert (task.state, task.restore_point, task.consistency) == (SessionState.SUCCESS, "p1", "filesystem")
        assert (task.frozen_ms, task.error, task.warnings) == (12.5, None, ())
    assert bench.sites.warmed == ["nightly"]


def test_an_estimate_is_stored_and_makes_no_point(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DiskEstimate("vda", TransferMode.FULL, Reason.FIRST_RUN, 10, Sums(3, 7, None, 8, 3))

    def estimate(_ctx: Context, task: Task, place: Place) -> tuple[DiskEstimate, ...]:
        if task.vm == "db":
            raise MoverError("proxy 'local'", "gone")
        place.journal.warn("a session would fail")
        return (disk,)

    monkeypatch.setattr(engine_module, "estimate_vm", estimate)
    journal.insert_session(bench.database, "nightly", kind=SessionKind.ESTIMATE)
    claimed = journal.claim_session(bench.database)
    assert claimed is not None
    bench.engine.submit(claimed)
    report = bench.ended(claimed.id)
    web, db = task_of(report), task_of(report, "db")
    assert (web.state, web.estimate, web.restore_point) == (SessionState.WARNING, (disk,), None)
    assert web.warnings == ("a session would fail",)
    assert (db.state, db.estimate, db.error) == (SessionState.FAILED, (), "proxy 'local': gone")
    assert bench.tasks == []


def test_a_task_gets_its_settings(bench: Bench) -> None:
    claimed = bench.claim(full_scan=True)
    bench.engine.submit(claimed)
    bench.ended(claimed.id)
    assert {task.vm for task in bench.tasks} == {"web 1", "db"}
    assert {(task.session, task.full_scan, task.job.name) for task in bench.tasks} == {(claimed.id, True, "nightly")}


def test_a_warning_makes_a_task_and_its_session_a_warning(bench: Bench) -> None:
    def warn(_ctx: Context, _task: Task, rows: DatabaseJournal) -> TaskOutcome:
        rows.warn("a drive was ejected")
        return DONE

    bench.replicate["db"] = warn
    report = bench.run()
    assert report.state is SessionState.WARNING
    assert (task_of(report, "db").state, task_of(report, "db").warnings) == (
        SessionState.WARNING, ("a drive was ejected",),
    )  # fmt: skip
    assert task_of(report).state is SessionState.SUCCESS


def test_an_error_ends_in_the_row_in_its_own_words_and_the_other_task_goes_on(bench: Bench) -> None:
    bench.replicate["web 1"] = raising(HostUnreachable("host 'prod'", "no route", "check the network"))
    report = bench.run()
    task = task_of(report)
    assert (report.state, task.state) == (SessionState.FAILED, SessionState.FAILED)
    assert task.error == "host 'prod': no route; check the network"
    assert task.warnings == ("seen before the end",)
    assert [(step.name, step.state) for step in task.steps] == [(Step.READ, StepState.FAILED)]
    assert (task.restore_point, task_of(report, "db").state) == (None, SessionState.SUCCESS)


def test_a_defect_ends_in_the_row_as_an_internal_error(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.replicate["web 1"] = raising(ZeroDivisionError("of all things"))
    task = task_of(bench.run())
    assert task.state is SessionState.FAILED
    assert task.error is not None
    assert "internal error: ZeroDivisionError('of all things'); see the log, and report it" in task.error
    assert any(record.exc_info for record in caplog.records)


def test_a_cancelled_task_is_cancelled_and_has_no_error(bench: Bench) -> None:
    bench.replicate["web 1"] = raising(Cancelled())
    report = bench.run()
    task = task_of(report)
    assert (report.state, task.state, task.error) == (SessionState.CANCELLED, SessionState.CANCELLED, None)
    assert task.warnings == ("seen before the end",)
    assert [step.state for step in task.steps] == [StepState.CANCELLED]


@pytest.mark.parametrize("problem", [HostUnreachable("host 'prod'", "no route"), RuntimeError("odd")])
def test_a_site_that_cannot_be_built_fails_the_task(bench: Bench, problem: Exception) -> None:
    bench.sites.problem = problem
    report = bench.run()
    assert [task.state for task in report.tasks] == [SessionState.FAILED, SessionState.FAILED]
    assert all(task.error for task in report.tasks)
    assert bench.tasks == []


def test_a_session_whose_proxies_cannot_be_started_ends_all_the_same(bench: Bench) -> None:
    bench.sites.warm_problem = MoverError("start proxy 'local'", "no memory")
    report = bench.run()
    assert report.state is SessionState.FAILED
    assert all(task.error for task in report.tasks)


def test_cancelling_reaches_the_running_task_and_keeps_the_others_from_starting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_TASK_THREADS", 1)
    started = threading.Event()

    def wait(ctx: Context, _task: Task, _rows: DatabaseJournal) -> TaskOutcome:
        started.set()
        ctx.wait_until(lambda: False, timeout_s=60)
        return DONE

    bench.replicate["web 1"] = wait
    claimed = bench.claim()
    bench.engine.submit(claimed)
    assert started.wait(20)
    journal.request_cancel(bench.database, claimed.id)
    bench.engine.cancel(claimed.id)
    report = bench.ended(claimed.id)
    assert {task.state for task in report.tasks} == {SessionState.CANCELLED}
    assert [task.vm for task in bench.tasks] == ["web 1"]


def test_cancelling_what_is_unknown_is_no_error(bench: Bench) -> None:
    bench.engine.cancel(4711)
    assert bench.engine.active() == frozenset()


def test_a_session_is_active_until_its_row_is_ended(bench: Bench) -> None:
    release = threading.Event()

    def wait(_ctx: Context, _task: Task, _rows: DatabaseJournal) -> TaskOutcome:
        release.wait(30)
        return DONE

    bench.replicate["db"] = wait
    claimed = bench.claim()
    bench.engine.submit(claimed)
    assert bench.engine.active() == frozenset({claimed.id})
    assert not session_report(bench.database, claimed.id).state.ended
    release.set()
    assert bench.ended(claimed.id).state is SessionState.SUCCESS


def test_a_point_that_was_made_counts_even_if_its_record_cannot_be_copied(
    site: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Bench(site)
    monkeypatch.setattr(engine_module, "replicate_vm", made.run_task)
    for task in made.run().tasks:
        assert (task.state, task.restore_point, task.error) == (SessionState.WARNING, "p1", None)
        assert any("it is a fake" in warning for warning in task.warnings)
