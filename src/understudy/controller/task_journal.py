"""The journal of one task, kept in the configuration database."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager

from understudy.controller import journal
from understudy.controller.database import Database
from understudy.controller.frozen import clear_frozen, record_frozen
from understudy.controller.records import FrozenGuest
from understudy.errors import Cancelled
from understudy.faults import fault_point
from understudy.model.guest import GuestReport
from understudy.model.session import DiskReport, Step, StepState
from understudy.replication.held import HeldTask

_DISK_INTERVAL_S = 1.0


class DatabaseJournal:
    """Implements :class:`understudy.replication.site.TaskJournal`."""

    def __init__(self, database: Database, task_id: int, session: int) -> None:
        self._database = database
        self._task_id = task_id
        self._session = session
        #: Where the VM is, which must be known before it is frozen.
        self.host = ""
        self._disk_written: dict[str, float] = {}
        self.warnings = list(journal.task_warnings(database, task_id))

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """A step, with a fault point on either side of it."""
        started = time.monotonic()
        journal.start_step(self._database, self._task_id, step)
        state = StepState.FAILED
        try:
            fault_point(f"{step}.before")
            yield
            fault_point(f"{step}.after")
            state = StepState.SUCCESS
        except Cancelled:
            state = StepState.CANCELLED
            raise
        finally:
            self.step_took(step, state, time.monotonic() - started)

    def step_took(self, step: Step, state: StepState, seconds: float) -> None:
        """The end of a step."""
        journal.end_step(self._database, self._task_id, step, state, round(seconds, 3))

    def disk(self, report: DiskReport, final: bool) -> None:
        """Store a disk's progress, at most once a second; its end is always stored."""
        now = time.monotonic()
        due = now - self._disk_written.get(report.name, float("-inf")) >= _DISK_INTERVAL_S
        if due or final:
            self._disk_written[report.name] = now
            journal.update_disk(self._database, self._task_id, report)

    def warn(self, text: str) -> None:
        """Store a warning."""
        if text not in self.warnings:
            self.warnings.append(text)
            journal.store_warnings(self._database, self._task_id, tuple(self.warnings))

    def waiting(self, reason: str) -> None:
        """Store why the task waits."""
        journal.store_waiting(self._database, self._task_id, reason)

    def holding(self, held: HeldTask | None) -> None:
        """Store what the task holds."""
        journal.store_held(self._database, self._task_id, held)

    def freezing(self, vm_uuid: str, deadline_s: float, frozen: bool) -> None:
        """Record that the guest is, or may be, frozen; or that it is thawed (S9)."""
        if not frozen:
            clear_frozen(self._database, self.host, vm_uuid)
            return
        now = datetime.datetime.now(datetime.UTC)
        deadline = now + datetime.timedelta(seconds=deadline_s)
        record_frozen(
            self._database, FrozenGuest(self.host, vm_uuid, self._session, now.isoformat(), deadline.isoformat())
        )

    def guest(self, report: GuestReport) -> None:
        """Store what guest processing did."""
        journal.store_guest(self._database, self._task_id, report)
