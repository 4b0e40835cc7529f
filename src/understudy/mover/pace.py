"""Pace: how fast a disk may be read when nobody waits for the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from understudy.context import Context

#: Who waits looks this often whether it was cancelled.
CHECK_S = 0.15


class Pace:
    """Lets reads of several threads pass so that they are at most ``rate`` bytes a second together; 0 for no limit."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, ctx: Context, length: int) -> None:
        """Return when ``length`` bytes may be read. What was not used while nobody read is not saved up.

        :raises Cancelled: if the operator asked for the end meanwhile.
        """
        if not self._rate:
            return
        with self._lock:
            due = max(self._clock(), self._free_at)
            self._free_at = due + length / self._rate
        while (left := due - self._clock()) > 0:
            ctx.check()
            ctx.cancel.wait(min(left, CHECK_S))
