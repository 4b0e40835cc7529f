"""Throttle: the threads of this source proxy wait here until the rate limits let them send.

What is limited are the bytes that a transfer puts on its connections: frames, with what TLS adds to them; not the
headers of TCP and IP, nor what comes back.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from understudy.errors import UsageError
from understudy.mover import api
from understudy.mover.shares import Flow, Request, Shares

#: A thread that waits looks this often whether it was cancelled.
CHECK_S = 0.15

Check = Callable[[], None]


class Throttles:
    """All rate limits of this proxy, and the transfers under them; for any number of threads.

    One of the threads that wait keeps the time for all: it sleeps until the next grant is due.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._shares = Shares(clock())
        self._waiting: dict[Request, threading.Condition] = {}
        self._timekeeper: Request | None = None
        self._alarm_at = math.inf

    def set(self, limits: Iterable[api.RateLimit]) -> None:
        """Replace all limits; who waits goes on by the new ones at once.

        :raises UsageError: if a rate is not positive and finite, or a key is given twice.
        """
        rates: dict[str, float] = {}
        for limit in limits:
            if not 0 < limit.bytes_per_s < math.inf or limit.key in rates:
                raise UsageError(f"set rate limit {limit.key!r}", f"{limit.bytes_per_s} is no rate, or a second one")
            rates[limit.key] = limit.bytes_per_s
        with self._lock:
            now = self._clock()
            self._shares.set(rates, now)
            self._wake(self._shares.serve(now))
            self._wake_timekeeper()

    def lane(self, keys: tuple[str, ...], tls: bool) -> Lane:
        """The way of one transfer, for all its threads, under the limits called ``keys``, whenever these are set.

        :param tls: count what TLS adds.
        """
        with self._lock:
            return Lane(self, self._shares.open(keys, tls))

    def take(self, flow: Flow, check: Check, length: int) -> tuple[int, float]:
        """For :class:`Lane`, which tells what it does."""
        with self._lock:
            started = self._clock()
            request = self._shares.ask(flow, length)
            self._wake(self._shares.serve(started))
            if request.granted:
                return request.granted, 0.0
            self._waiting[request] = threading.Condition(self._lock)
        try:
            while not self._wait(request):
                check()
        finally:
            self._leave(request)
        return request.granted, self._clock() - started

    def close(self, flow: Flow) -> None:
        """For :class:`Lane`, which tells what it does."""
        with self._lock:
            self._wake(self._shares.close(flow, self._clock()))
            self._wake_timekeeper()

    def _wait(self, request: Request) -> bool:
        """Sleep until something may have changed, not longer than a check may be late; whether it was granted."""
        with self._lock:
            now = self._clock()
            self._wake(self._shares.serve(now))
            if not request.granted:
                due = self._shares.next_at
                if self._timekeeper is None or due < self._alarm_at:
                    self._timekeeper = request
                pause = CHECK_S
                if self._timekeeper is request:
                    self._alarm_at = due
                    pause = min(CHECK_S, due - now)
                self._waiting[request].wait(max(0.0, pause))
            return request.granted > 0

    def _leave(self, request: Request) -> None:
        with self._lock:
            del self._waiting[request]
            if self._timekeeper is request:
                self._timekeeper = None
            if not request.granted:
                self._shares.withdraw(request)
                self._wake(self._shares.serve(self._clock()))
                self._wake_timekeeper()
            elif self._timekeeper is None:
                self._wake_timekeeper()

    def _wake(self, granted: list[Request]) -> None:
        for request in granted:
            if request in self._waiting:
                self._waiting[request].notify()

    def _wake_timekeeper(self) -> None:
        """Let the one that keeps the time look at it anew, or somebody become that one."""
        first = self._timekeeper or next((request for request in self._waiting if not request.granted), None)
        if first is not None:
            self._waiting[first].notify()


class Lane:
    """Where the threads of one transfer get leave to send; a context manager that ends with the transfer."""

    __slots__ = ("_flow", "_throttles")

    def __init__(self, throttles: Throttles, flow: Flow) -> None:
        self._throttles = throttles
        self._flow = flow

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def take(self, check: Check, length: int) -> tuple[int, float]:
        """Wait until some of ``length`` bytes, at least one, may be sent in one call.

        Without a limit these are all, at once; else about as many as the limits let pass in 20 ms. What was granted
        must be sent: it is counted already.

        :param check: called about every 0.15 s while it waits; what it raises ends the wait.
        :return: how many bytes may be sent now, and the seconds waited for that.
        """
        if not self._flow.limits or not length:
            return length, 0.0
        return self._throttles.take(self._flow, check, length)

    def close(self) -> None:
        """Forget the transfer; its threads send no more."""
        self._throttles.close(self._flow)
