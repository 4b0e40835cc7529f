"""What a controller left running when it died: told to the next one, and ended."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.controller.test_journal import running, task_of
from tests.unit.replication.ends import HELD
from understudy.controller import interrupted, jobs, journal, reports
from understudy.controller.database import Database
from understudy.controller.records import ResumedTask
from understudy.model.job import Job
from understudy.model.session import SessionState, Step, StepState


def test_sessions_of_a_dead_controller_fail_and_all_else_stays(site: Database) -> None:
    jobs.create_job(site, Job("2", "hourly", "prod", "dr", "vault", ("x",)))
    session, task = running(site)
    journal.start_step(site, task, Step.READ)
    journal.request_cancel(site, session)
    queued = journal.insert_session(site, "hourly")
    assert interrupted.fail_dead_sessions(site) == (session,)
    assert interrupted.fail_dead_sessions(site) == ()
    report = reports.session_report(site, session)
    assert report.state is SessionState.FAILED
    assert report.ended_at is not None
    for told in report.tasks:
        assert told.state is SessionState.FAILED
        assert told.error == f"replicate {told.vm!r}: controller ended unexpectedly; run the job again"
    assert task_of(report, "web 1").steps[0].state is StepState.FAILED
    assert reports.session_report(site, queued).state is SessionState.QUEUED


def test_what_a_running_task_holds_is_found_until_it_lets_go_or_ends(site: Database) -> None:
    session, task = running(site)
    held = replace(HELD, vm=replace(HELD.vm, name="wéb '1\" \x00 ☃"))
    assert interrupted.held_sessions(site) == ()
    journal.store_held(site, task, held)
    (found,) = interrupted.held_sessions(site)
    assert (found.id, found.job.name, found.full_scan) == (session, "nightly", False)
    assert found.resumed == (ResumedTask(task, "web 1", held),)
    journal.store_held(site, task, None)
    assert interrupted.held_sessions(site) == ()
    journal.store_held(site, task, held)
    journal.end_task(site, task, SessionState.FAILED)
    assert interrupted.held_sessions(site) == ()


def test_a_task_that_was_done_stays_done_when_the_controller_dies(site: Database) -> None:
    session, task = running(site)
    journal.end_task(site, task, SessionState.SUCCESS, restore_point="p1")
    interrupted.fail_dead_sessions(site)
    told = task_of(reports.session_report(site, session), "web 1")
    assert (told.state, told.restore_point) == (SessionState.SUCCESS, "p1")
