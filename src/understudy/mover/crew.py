"""Crew: the threads of one transfer. The first failure stops all of them and is the one that is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from understudy.context import Context
from understudy.errors import Cancelled, TransferError

STOP_TIMEOUT_S = 60.0


class Stopped(Exception):
    """Another thread of the crew failed; end quietly."""


class Crew:
    """Runs functions in threads of their own until all returned, one failed, or the operator cancelled.

    :param wake: called once on failure or cancel, to wake threads that wait in a system call (close their socket).
    """

    def __init__(self, ctx: Context, name: str, wake: Callable[[], None] = lambda: None) -> None:
        self._ctx = ctx
        self._name = name
        self._wake = wake
        self._changed = threading.Condition()
        self._stop = False
        self._running = 0
        self._error: BaseException | None = None

    def check(self) -> None:
        """To be called between requests by every thread.

        :raises Stopped: if another thread failed.
        :raises Cancelled: if the operator asked for the end.
        """
        if self._stop:
            raise Stopped
        self._ctx.check()

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run ``jobs``; raises the first error of any.

        :raises Cancelled: if the operator asked for the end.
        """
        self._running = len(jobs)
        for number, job in enumerate(jobs):
            name = f"{self._name}-{number}"
            threading.Thread(target=self._guard, args=(job,), name=name, daemon=True).start()
        self._wait()
        if self._ctx.cancel.cancelled:
            raise Cancelled() from self._error
        if self._error is not None:
            raise self._error

    def _wait(self) -> None:
        with self._changed:
            while self._running and not self._stop:
                self._changed.wait(0.1)
                self._stop = self._stop or self._ctx.cancel.cancelled
            if not self._running:
                return
        self._wake()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._running, STOP_TIMEOUT_S):
                raise TransferError(self._name, f"its threads did not end within {STOP_TIMEOUT_S:.0f} s")

    def _guard(self, job: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            job()
        except Stopped:
            pass
        except BaseException as exc:  # noqa: BLE001 - raised again by run(), in the thread that waits
            error = exc
        with self._changed:
            self._running -= 1
            if error is not None:
                self._error = self._error or error
                self._stop = True
            self._changed.notify_all()
