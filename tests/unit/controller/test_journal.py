"""Sessions: queued once, claimed once, told as they happened, ended once."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from understudy.controller import frozen, interrupted, jobs, journal, reports
from understudy.controller.database import Database
from understudy.controller.records import FrozenGuest
from understudy.controller.schema import SessionRow
from understudy.errors import NotFound, Refused, UsageError
from understudy.model.estimate import DiskEstimate, Sums
from understudy.model.job import Job
from understudy.model.session import (
    DiskReport,
    SessionKind,
    SessionReport,
    SessionState,
    Step,
    StepReport,
    StepState,
    TaskReport,
)
from understudy.model.transfer import Reason, TransferMode
from understudy.units import GIB

DISK = DiskReport("vda", TransferMode.DIGEST_SCAN, Reason.CHECKPOINT_MISSING, 64 * 1024 * GIB, 5 * GIB, 4 * GIB,
                  3 * GIB, 2 * GIB, 6 * GIB, 12.5, "network")  # fmt: skip
ENDS = (SessionState.SUCCESS, SessionState.WARNING, SessionState.FAILED, SessionState.CANCELLED)


def running(database: Database) -> tuple[int, int]:
    """A running session, and the id of its running task for ``web 1``."""
    session = journal.insert_session(database, "nightly")
    assert journal.claim_session(database) is not None
    return session, journal.start_task(database, session, "web 1")


def task_of(report: SessionReport, vm: str) -> TaskReport:
    return next(task for task in report.tasks if task.vm == vm)


def test_a_new_session_is_queued_with_a_task_per_vm(site: Database) -> None:
    session = journal.insert_session(site, "nightly")
    report = reports.session_report(site, session)
    assert (report.id, report.job, report.state, report.ended_at) == (session, "nightly", SessionState.QUEUED, None)
    assert [(task.vm, task.state) for task in report.tasks] == [
        ("web 1", SessionState.QUEUED), ("db", SessionState.QUEUED),
    ]  # fmt: skip
    assert abs(datetime.fromisoformat(report.started_at) - datetime.now(UTC)).total_seconds() < 60


def test_sessions_of_unknown_or_disabled_jobs_are_refused(site: Database) -> None:
    with pytest.raises(NotFound, match="job 'mars': no such job"):
        journal.insert_session(site, "mars")
    jobs.set_enabled(site, "nightly", False)
    with pytest.raises(Refused, match="run job 'nightly': the job is disabled; enable it: understudy job enable"):
        journal.insert_session(site, "nightly")


def test_a_job_has_one_unfinished_session(site: Database) -> None:
    first = journal.insert_session(site, "nightly")
    with pytest.raises(Refused, match=f"run job 'nightly': its session {first} has not ended"):
        journal.insert_session(site, "nightly")
    journal.claim_session(site)
    with pytest.raises(Refused):
        journal.insert_session(site, "nightly")
    journal.end_session(site, first)
    assert journal.insert_session(site, "nightly") > first


def test_of_many_who_insert_at_once_one_succeeds(site: Database) -> None:
    def insert(_: int) -> bool:
        try:
            journal.insert_session(site, "nightly")
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(insert, range(16))) == 1


def test_ids_are_not_used_again(site: Database) -> None:
    first = journal.insert_session(site, "nightly")
    with site.transaction() as session:
        session.delete(session.get_one(SessionRow, first))
    assert journal.insert_session(site, "nightly") > first


def test_sessions_are_claimed_in_order_with_their_job(site: Database) -> None:
    jobs.create_job(site, Job("2", "hourly", "prod", "dr", "vault", ("x",)))
    first = journal.insert_session(site, "nightly")
    second = journal.insert_session(site, "hourly", full_scan=True)
    claims = [journal.claim_session(site), journal.claim_session(site), journal.claim_session(site)]
    assert [(claim.id, claim.job, claim.full_scan) if claim else None for claim in claims] == [
        (first, jobs.get_job(site, "nightly"), False), (second, jobs.get_job(site, "hourly"), True), None,
    ]  # fmt: skip


def test_an_estimate_is_a_session_of_its_kind_for_one_vm_or_all(site: Database) -> None:
    with pytest.raises(UsageError, match="estimate job 'nightly': it has no VM 'mars'"):
        journal.insert_session(site, "nightly", kind=SessionKind.ESTIMATE, vm="mars")
    first = journal.insert_session(site, "nightly", kind=SessionKind.ESTIMATE, vm="db")
    with pytest.raises(Refused, match=f"run job 'nightly': its session {first} has not ended"):
        journal.insert_session(site, "nightly")
    claimed = journal.claim_session(site)
    assert claimed is not None
    assert (claimed.kind, claimed.job.vms) == (SessionKind.ESTIMATE, ("db",))
    assert claimed.job == replace(jobs.get_job(site, "nightly"), vms=("db",))
    task = journal.start_task(site, first, "db")
    disk = DiskEstimate("vda", TransferMode.DIGEST_SCAN, Reason.NO_BASELINE, 10, Sums(3, 2, None, 8, 3), {"swap": 5},
                        ("disk vda: luks is not read",))  # fmt: skip
    journal.store_estimate(site, task, (disk,))
    journal.end_task(site, task, SessionState.SUCCESS)
    journal.end_session(site, first)
    report = reports.session_report(site, first)
    assert report.kind is SessionKind.ESTIMATE
    assert [(item.vm, item.estimate, item.restore_point) for item in report.tasks] == [("db", (disk,), None)]
    assert reports.list_sessions(site)[0].kind is SessionKind.ESTIMATE
    second = journal.insert_session(site, "nightly", kind=SessionKind.ESTIMATE)
    journal.claim_session(site)
    interrupted.fail_dead_sessions(site)
    errors = {item.error for item in reports.session_report(site, second).tasks}
    assert errors == {f"estimate {vm!r}: controller ended unexpectedly; estimate again" for vm in ("web 1", "db")}


def test_a_session_is_claimed_once(site: Database) -> None:
    journal.insert_session(site, "nightly")
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: journal.claim_session(site), range(16)))
    assert sum(claim is not None for claim in claims) == 1


def test_a_full_story_is_told_as_it_happened(site: Database) -> None:
    session, task = running(site)
    for step in (Step.SETTINGS, Step.INVENTORY):
        journal.start_step(site, task, step)
        journal.end_step(site, task, step, seconds=1.25)
    journal.end_step(site, task, Step.GUEST_PROCESSING, StepState.SKIPPED, 0.0)
    journal.start_step(site, task, Step.READ)
    journal.update_disk(site, task, DiskReport("vda", TransferMode.FULL, Reason.NEW_DISK, 10))
    journal.update_disk(site, task, DISK)
    journal.end_task(site, task, SessionState.WARNING, restore_point="p1", consistency="filesystem", frozen_ms=97.5,
                     warnings=("ünsure", "second"))  # fmt: skip
    other = journal.start_task(site, session, "db")
    journal.end_task(site, other, SessionState.SUCCESS, restore_point="p2")
    assert journal.end_session(site, session) is SessionState.WARNING

    report = reports.session_report(site, session)
    assert report.state is SessionState.WARNING
    assert report.ended_at is not None
    assert report.ended_at >= report.started_at
    told = task_of(report, "web 1")
    assert told.steps[:3] == (
        StepReport(Step.SETTINGS, StepState.SUCCESS, 1.25),
        StepReport(Step.INVENTORY, StepState.SUCCESS, 1.25),
        StepReport(Step.GUEST_PROCESSING, StepState.SKIPPED, 0.0),
    )
    assert (told.steps[3].name, told.steps[3].state) == (Step.READ, StepState.SUCCESS)
    assert told.disks == (DISK,)
    assert told == TaskReport("web 1", SessionState.WARNING, "p1", "filesystem", 97.5, None, ("ünsure", "second"),
                              steps=told.steps, disks=(DISK,))  # fmt: skip


def test_a_running_step_has_its_seconds_so_far(site: Database) -> None:
    session, task = running(site)
    journal.start_step(site, task, Step.SNAPSHOT)
    time.sleep(0.05)
    step = task_of(reports.session_report(site, session), "web 1").steps[0]
    assert step.state is StepState.RUNNING
    assert step.seconds >= 0.04
    journal.end_step(site, task, Step.SNAPSHOT)
    assert task_of(reports.session_report(site, session), "web 1").steps[0].seconds >= 0.04


def test_a_step_that_begins_again_is_one_step(site: Database) -> None:
    session, task = running(site)
    journal.start_step(site, task, Step.SEND)
    journal.end_step(site, task, Step.SEND, StepState.FAILED)
    journal.start_step(site, task, Step.SEND)
    journal.end_step(site, task, Step.SEND, seconds=2.0)
    assert task_of(reports.session_report(site, session), "web 1").steps == (
        StepReport(Step.SEND, StepState.SUCCESS, 2.0),
    )


@pytest.mark.parametrize(
    ("state", "step"),
    [(SessionState.FAILED, StepState.FAILED), (SessionState.CANCELLED, StepState.CANCELLED)],
)
def test_a_step_that_still_runs_ends_as_its_task_does(site: Database, state: SessionState, step: StepState) -> None:
    session, task = running(site)
    journal.start_step(site, task, Step.READ)
    journal.end_task(site, task, state, error="no space")
    told = task_of(reports.session_report(site, session), "web 1")
    assert (told.error, told.steps[0].state) == ("no space", step)


def test_warnings_are_stored_before_the_end_and_kept(site: Database) -> None:
    session, task = running(site)
    journal.store_warnings(site, task, ("a",))
    journal.store_waiting(site, task, "no free task slot")
    assert task_of(reports.session_report(site, session), "web 1").warnings == ("a",)
    journal.end_task(site, task, SessionState.FAILED, error="x")
    assert task_of(reports.session_report(site, session), "web 1").warnings == ("a",)


def test_a_queued_session_is_cancelled_at_once(site: Database) -> None:
    session = journal.insert_session(site, "nightly")
    assert journal.request_cancel(site, session) is SessionState.CANCELLED
    report = reports.session_report(site, session)
    assert report.ended_at is not None
    assert {task.state for task in report.tasks} == {SessionState.CANCELLED}
    assert journal.claim_session(site) is None


def test_a_running_session_is_asked_to_end(site: Database) -> None:
    session, task = running(site)
    assert not journal.is_cancel_requested(site, session)
    assert journal.request_cancel(site, session) is SessionState.RUNNING
    assert journal.request_cancel(site, session) is SessionState.RUNNING
    assert journal.is_cancel_requested(site, session)
    journal.end_task(site, task, SessionState.CANCELLED)
    assert journal.end_session(site, session) is SessionState.CANCELLED
    assert {task.state for task in reports.session_report(site, session).tasks} == {SessionState.CANCELLED}


def test_an_ended_session_cannot_be_stopped(site: Database) -> None:
    session, _ = running(site)
    journal.end_session(site, session)
    with pytest.raises(Refused, match=f"stop session {session}: it has ended \\(failed\\)"):
        journal.request_cancel(site, session)


def test_a_session_that_ends_before_its_tasks_failed(site: Database) -> None:
    session, task = running(site)
    journal.end_task(site, task, SessionState.SUCCESS)
    assert journal.end_session(site, session) is SessionState.FAILED
    assert "before this VM was done" in (task_of(reports.session_report(site, session), "db").error or "")


@pytest.mark.parametrize(("first", "second"), list(itertools.product(ENDS, ENDS)))
def test_an_end_is_final(site: Database, first: SessionState, second: SessionState) -> None:
    _, task = running(site)
    journal.end_task(site, task, first)
    with pytest.raises(Refused, match=f"it is {first} and cannot become {second}"):
        journal.end_task(site, task, second)


def test_a_task_is_started_once_and_a_session_ended_once(site: Database) -> None:
    session, task = running(site)
    with pytest.raises(Refused, match="it is running and cannot become running"):
        journal.start_task(site, session, "web 1")
    journal.end_session(site, session)
    with pytest.raises(Refused):
        journal.end_session(site, session)
    with pytest.raises(Refused):
        journal.end_task(site, task, SessionState.SUCCESS)


def test_a_task_that_never_ran_is_no_success(site: Database) -> None:
    session, _ = running(site)
    with site.reading() as reading:
        other = reading.get_one(SessionRow, session).tasks[1].id
    with pytest.raises(Refused, match="it is queued and cannot become success"):
        journal.end_task(site, other, SessionState.SUCCESS)


def test_unknown_sessions_and_vms_are_told(site: Database) -> None:
    session, _ = running(site)
    with pytest.raises(NotFound, match="has no VM 'mars'"):
        journal.start_task(site, session, "mars")
    for act in (journal.request_cancel, journal.is_cancel_requested, journal.end_session, reports.session_report):
        with pytest.raises(NotFound, match="session 999: no such session; see 'understudy session list'"):
            act(site, 999)


def test_sessions_are_listed_newest_first_by_job(site: Database) -> None:
    jobs.create_job(site, Job("2", "hourly", "prod", "dr", "vault", ("x",)))
    first, _ = running(site)
    second = journal.insert_session(site, "hourly")
    assert [item.id for item in reports.list_sessions(site)] == [second, first]
    assert [item.id for item in reports.list_sessions(site, "nightly")] == [first]
    with pytest.raises(NotFound):
        reports.list_sessions(site, "mars")


def test_history_outlives_the_job(site: Database) -> None:
    session, _ = running(site)
    journal.end_session(site, session)
    jobs.delete_job(site, "nightly")
    assert [item.job for item in reports.list_sessions(site, "nightly")] == ["nightly"]
    assert reports.session_report(site, session).job == "nightly"


def test_frozen_guests_are_recorded_until_thawed(database: Database) -> None:
    first = FrozenGuest("prod", "u1", 3, "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:10+00:00")
    second = FrozenGuest("prod", "u2", 4, "2026-01-01T00:00:01+00:00", "2026-01-01T00:00:11+00:00")
    frozen.record_frozen(database, second)
    frozen.record_frozen(database, first)
    frozen.record_frozen(database, first)
    assert frozen.list_frozen(database) == (first, second)
    frozen.clear_frozen(database, "prod", "u1")
    frozen.clear_frozen(database, "prod", "u1")
    assert frozen.list_frozen(database) == (second,)
