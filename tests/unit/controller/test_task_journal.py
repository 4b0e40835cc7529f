"""The journal of a task: every word is in the database when the call returns."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from understudy.controller import frozen, journal
from understudy.controller.database import Database
from understudy.controller.reports import session_report
from understudy.controller.schema import TaskRow
from understudy.controller.task_journal import DatabaseJournal
from understudy.errors import Cancelled, UnderstudyError
from understudy.faults import VARIABLE
from understudy.model.guest import Component, GuestReport, GuestStage
from understudy.model.session import DiskReport, Step, StepState, TaskReport
from understudy.model.transfer import Reason, TransferMode

DISK = DiskReport("vda", TransferMode.FULL, Reason.FIRST_RUN, 1000)


@pytest.fixture
def rows(site: Database) -> DatabaseJournal:
    session = journal.insert_session(site, "nightly")
    assert journal.claim_session(site) is not None
    made = DatabaseJournal(site, journal.start_task(site, session, "web 1"), session)
    made.host = "prod"
    return made


def told(database: Database, rows: DatabaseJournal) -> TaskReport:
    return next(task for task in session_report(database, rows._session).tasks if task.vm == "web 1")


def steps(database: Database, rows: DatabaseJournal) -> dict[Step, StepState]:
    return {step.name: step.state for step in told(database, rows).steps}


def test_a_step_is_running_while_it_lasts_and_then_ended(site: Database, rows: DatabaseJournal) -> None:
    with rows.step(Step.INVENTORY):
        assert steps(site, rows) == {Step.INVENTORY: StepState.RUNNING}
    assert steps(site, rows) == {Step.INVENTORY: StepState.SUCCESS}


@pytest.mark.parametrize(
    ("error", "state"),
    [(UnderstudyError("a", "b"), StepState.FAILED), (ZeroDivisionError(), StepState.FAILED),
     (KeyboardInterrupt(), StepState.FAILED), (Cancelled(), StepState.CANCELLED)],
    ids=["error", "defect", "interrupt", "cancelled"],
)  # fmt: skip
def test_a_step_that_raises_is_failed_or_cancelled_and_the_error_goes_on(
    site: Database, rows: DatabaseJournal, error: BaseException, state: StepState
) -> None:
    with pytest.raises(type(error)), rows.step(Step.READ):
        raise error
    assert steps(site, rows) == {Step.READ: state}


@pytest.mark.parametrize("side", ["before", "after"])
def test_each_step_has_a_fault_point_on_either_side(
    site: Database, rows: DatabaseJournal, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    monkeypatch.setenv(VARIABLE, f"snapshot.{side}=error")
    reached = []
    with pytest.raises(UnderstudyError, match=f"snapshot.{side}"), rows.step(Step.SNAPSHOT):
        reached.append(True)
    assert reached == ([True] if side == "after" else [])
    assert steps(site, rows) == {Step.SNAPSHOT: StepState.FAILED}


def test_a_step_inside_another_is_noted_with_its_seconds(site: Database, rows: DatabaseJournal) -> None:
    rows.step_took(Step.SEND, StepState.SKIPPED, 1.23456)
    (step,) = told(site, rows).steps
    assert (step.name, step.state, step.seconds) == (Step.SEND, StepState.SKIPPED, 1.235)


def test_progress_is_stored_at_most_once_a_second_for_each_disk_but_its_end_always(
    site: Database, rows: DatabaseJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("understudy.controller.task_journal.time.monotonic", lambda: now)

    def stored(name: str) -> int:
        return next(disk.read_bytes for disk in told(site, rows).disks if disk.name == name)

    rows.disk(replace(DISK, read_bytes=1), final=False)
    now += 0.9
    rows.disk(replace(DISK, read_bytes=2), final=False)
    rows.disk(replace(DISK, name="vdb", read_bytes=7), final=False)
    assert (stored("vda"), stored("vdb")) == (1, 7)
    now += 0.2
    rows.disk(replace(DISK, read_bytes=3), final=False)
    assert stored("vda") == 3
    rows.disk(replace(DISK, read_bytes=4), final=True)
    assert stored("vda") == 4


def test_a_warning_is_stored_at_once_and_once(site: Database, rows: DatabaseJournal) -> None:
    for text in ("first", "sécond", "first"):
        rows.warn(text)
    assert told(site, rows).warnings == ("first", "sécond")
    assert rows.warnings == ["first", "sécond"]


def test_why_a_task_waits_is_stored_until_it_goes_on(site: Database, rows: DatabaseJournal) -> None:
    def waiting() -> str:
        with site.reading() as session:
            return session.get_one(TaskRow, rows._task_id).waiting

    rows.waiting("no free task slot on proxy far")
    assert waiting() == "no free task slot on proxy far"
    rows.waiting("")
    assert waiting() == ""


def test_a_guest_is_recorded_with_its_deadline_until_it_is_thawed(site: Database, rows: DatabaseJournal) -> None:
    rows.freezing("uuid-1", 25, True)
    (guest,) = frozen.list_frozen(site)
    assert (guest.host, guest.vm_uuid, guest.session) == ("prod", "uuid-1", rows._session)
    lasting = datetime.fromisoformat(guest.deadline) - datetime.fromisoformat(guest.frozen_at)
    assert lasting.total_seconds() == 25
    rows.freezing("uuid-1", 25, False)
    assert frozen.list_frozen(site) == ()


def test_a_journal_that_goes_on_with_a_task_keeps_what_was_warned_before(site: Database, rows: DatabaseJournal) -> None:
    rows.warn("tracking lied")
    again = DatabaseJournal(site, rows._task_id, rows._session)
    again.warn("the controller was started again")
    assert again.warnings == ["tracking lied", "the controller was started again"]


def test_what_guest_processing_did_is_stored(site: Database, rows: DatabaseJournal) -> None:
    report = GuestReport("qga", Component.RUNTIME, "1", (GuestStage("freeze", 12.5),))
    rows.guest(report)
    assert told(site, rows).guest == report
