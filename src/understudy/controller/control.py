"""Being the controller, or following the one that is: the loop behind ``job run``."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from understudy.context import CancelToken, Context
from understudy.controller import catalog, interrupted, journal, lock
from understudy.controller.database import Database
from understudy.controller.engine import Engine, LocalEngine
from understudy.controller.frozen import clear_frozen, list_frozen
from understudy.controller.recovery import resumable_sessions
from understudy.controller.reports import session_report
from understudy.controller.sites import SiteBuilder
from understudy.controller.sweep import sweep_jobs
from understudy.errors import Refused, UnderstudyError
from understudy.model.session import SessionReport

LOG = logging.getLogger(__name__)
# Each look at the database costs milliseconds, for as long as disks are copied; the end of a session is told at once.
_TICK_S = 0.2
_REPORT_S = 0.4
_THAW_TIMEOUT_S = 5.0


class Control:
    """The controller's duties, for as long as this process holds the lock of its home."""

    def __init__(self, home: Path, database: Database, sites: SiteBuilder) -> None:
        self._home = home
        self._database = database
        self._sites = sites
        self._engine: Engine = LocalEngine(database, sites)
        self._lock: lock.ControllerLock | None = None
        self._sweeping: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """Whether this process has no session to see to its end, and sweeps nothing."""
        return not self._engine.active() and not (self._sweeping and self._sweeping.is_alive())

    def tick(self) -> bool:
        """Become the controller if nobody is; as the controller start what is queued and pass cancellations on.

        :return: whether this process is the controller.
        """
        if self._lock is None:
            self._lock = lock.try_acquire(self._home)
            if self._lock is None:
                return False
            self._recover()
        while (claimed := journal.claim_session(self._database)) is not None:
            self._engine.submit(claimed)
        self._sites.rates.push()
        for session_id in self._engine.active():
            if journal.is_cancel_requested(self._database, session_id):
                self._engine.cancel(session_id)
        return True

    def wait(self) -> None:
        """Until it is time for another tick."""
        self._engine.wait_end(_TICK_S)

    def release(self) -> None:
        """Stop being the controller; only when idle."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _recover(self) -> None:
        """What a dead controller left: sessions to go on with or to end, guests that may be frozen (S9)."""
        resumed = resumable_sessions(self._database, self._sites.is_held)
        dead = interrupted.fail_dead_sessions(self._database, [session.id for session in resumed])
        for session_id in dead:
            LOG.warning("session=%s was left by a controller that died", session_id)
        for guest in list_frozen(self._database):
            try:
                platform = self._sites.platforms.get(catalog.get_host(self._database, guest.host))
                platform.thaw(guest.vm_uuid, _THAW_TIMEOUT_S)
            except UnderstudyError as exc:
                # It stays recorded, and is tried again when the next controller starts.
                LOG.warning("guest %s on host %s may be frozen: %s", guest.vm_uuid, guest.host, exc)
            else:
                clear_frozen(self._database, guest.host, guest.vm_uuid)
        for session in resumed:
            LOG.warning("session=%s was left by a controller that died, and is gone on with", session.id)
            interrupted.fail_lost_tasks(self._database, session.id, [task.vm for task in session.resumed])
            self._engine.submit(session)
        # A job that is about to run sweeps for itself, and tells in its session what it found.
        jobs = interrupted.idle_jobs(self._database, dead)
        if jobs:
            self._sweeping = threading.Thread(target=self._sweep, args=(jobs,), name="sweep", daemon=True)
            self._sweeping.start()

    def _sweep(self, jobs: tuple[str, ...]) -> None:
        """What dead sessions of a few jobs left; whatever goes wrong is no matter of the sessions that run now."""
        try:
            sweep_jobs(Context(), self._database, self._sites, jobs)  # it logs what it did, and what failed
        except UnderstudyError as exc:
            LOG.warning("sweep: %s", exc)
        except Exception:
            LOG.exception("a defect ended the sweep")


def follow_session(
    control: Control, database: Database, session_id: int, on_progress: Callable[[SessionReport], None] | None
) -> SessionReport:
    """See a session to its end, as the controller if there is no other.

    The lock is given back only here, when nothing runs any more. A second Ctrl-C ends the wait, not the tasks: they
    are on their way to an orderly end in this process, which keeps the lock until it is gone.

    :param on_progress: told about twice a second how it goes, and how it ended; None: nobody wants to know.
    """
    with _interrupts() as interrupted:
        asked = False
        next_report = 0.0
        while True:
            if interrupted() and not asked:
                asked = True
                _ask_to_stop(database, session_id)
            control.tick()
            if on_progress is not None and time.monotonic() >= next_report:
                next_report = time.monotonic() + _REPORT_S
                on_progress(session_report(database, session_id))
            if control.idle and journal.has_ended(database, session_id):
                control.release()
                report = session_report(database, session_id)
                if on_progress is not None:
                    on_progress(report)
                return report
            control.wait()


def control_until_idle(control: Control, database: Database) -> None:
    """Be the controller until nothing is queued or running; leave when another one has taken all that is queued.

    Not at once: the other one may be about to end, and then nobody would take what was queued for us.
    """
    try:
        while not control.idle if control.tick() else journal.has_session(database, running=False):
            control.wait()
    finally:
        control.release()


def _ask_to_stop(database: Database, session_id: int) -> None:
    try:
        journal.request_cancel(database, session_id)
    except Refused:
        LOG.info("session=%s ended before it could be cancelled", session_id)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Count SIGINT and SIGTERM inside the block: the first is an orderly wish, the second ends the command."""
    count = 0

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def cancel_on_interrupt(token: CancelToken) -> Iterator[None]:
    """Inside the block Ctrl-C cancels ``token`` instead of interrupting whatever runs."""

    def note(_number: int, _frame: FrameType | None) -> None:
        token.cancel()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
