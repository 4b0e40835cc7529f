"""Shares: which transfer may send how much under rate limits, and when. The time is an argument; nothing waits here.

Each limit is a bucket that fills at its rate and holds little, so that no stretch of time gets noticeably more than the
rate allows, whatever was saved up before. Of the transfers that want to send, the one that was served least lately
goes first, however many threads it has. A transfer that has to wait for a slow limit of its own takes nothing from the
others meanwhile, and gathers no claim on what they share.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from understudy.units import KIB

#: How much is granted at a time, in seconds of the smallest limit's rate, between these bytes.
GRANT_S = 0.02
SMALLEST_GRANT, LARGEST_GRANT = KIB, 256 * KIB
#: A grant under a very small limit must not take longer than this.
LONGEST_GRANT_S = 0.2
#: What a limit saves up beyond one grant, in seconds of its rate: threads that wake so late lose nothing.
SPARE_S = 0.03
#: How long it is remembered who was served: many grants, but no long claim for who could not or would not send.
MEMORY_S = 2.0

_RECORD = 16 * KIB
_RECORD_OVERHEAD = 22


def wire_length(length: int, tls: bool) -> int:
    """What ``length`` bytes, handed over in one call, are on a connection, without headers of TCP and IP.

    A record of TLS 1.3 holds 16 KiB and costs 22 bytes: header, content type and authentication tag.
    """
    return length + _RECORD_OVERHEAD * -(-length // _RECORD) if tls else length


class Bucket:
    """One limit: bytes that may be sent now, refilled at ``rate`` bytes per second."""

    __slots__ = ("depth", "grant", "level", "rate")

    def __init__(self, rate: float) -> None:
        # Empty: a limit that comes into force does not begin with a burst.
        self.level = 0.0
        self.change(rate)

    def change(self, rate: float) -> None:
        """Go on with another rate; what was saved up at the old one shrinks to what the new one may save."""
        self.rate = rate
        least = min(SMALLEST_GRANT, rate * LONGEST_GRANT_S)
        self.grant = max(1, int(min(LARGEST_GRANT, max(rate * GRANT_S, least))))
        self.depth = wire_length(self.grant, tls=True) + rate * SPARE_S
        self.level = min(self.level, self.depth)

    def refill(self, seconds: float) -> None:
        """Let time pass."""
        self.level = min(self.depth, self.level + seconds * self.rate)

    def pause(self, cost: int) -> float:
        """Seconds until ``cost`` bytes may be sent; 0 if they may now."""
        # Half a byte is forgiven: the clock may be too coarse to wait for a fraction.
        missing = cost - self.level
        return missing / self.rate if missing > 0.5 else 0.0


@dataclass(eq=False, slots=True)
class Request:
    """A wish to send ``length`` bytes; ``granted`` of them may be sent, 0 as long as it waits."""

    flow: Flow
    length: int
    granted: int = 0


@dataclass(eq=False, slots=True)
class Flow:
    """A transfer: the limits that hold for it, what it was served lately, and its requests, first come first served.

    :ivar largest: how much the limits let it have in one grant.
    """

    keys: tuple[str, ...]
    tls: bool
    limits: tuple[Bucket, ...] = ()
    largest: int = sys.maxsize
    served: float = 0.0
    requests: deque[Request] = field(default_factory=deque)

    def pause(self) -> tuple[float, Bucket | None]:
        """Seconds until every limit lets the first request have something, and the limit that takes longest.

        0 and None if it may have it now.
        """
        cost = wire_length(self._size(), self.tls)
        longest, slowest = 0.0, None
        for limit in self.limits:
            pause = limit.pause(cost)
            if pause > longest:
                longest, slowest = pause, limit
        return longest, slowest

    def grant(self) -> Request:
        """Grant something to the first request."""
        size = self._size()
        cost = wire_length(size, self.tls)
        for limit in self.limits:
            limit.level -= cost
        self.served += cost
        request = self.requests.popleft()
        request.granted = size
        return request

    def _size(self) -> int:
        return min(self.requests[0].length, self.largest)


class Shares:
    """All limits and flows of one proxy. Not for several threads at once.

    :ivar next_at: when :meth:`serve` has to be called again, on the clock of its callers; infinite if nobody waits.
    """

    def __init__(self, now: float) -> None:
        self._now = now
        self._buckets: dict[str, Bucket] = {}
        self._flows: list[Flow] = []
        self.next_at = math.inf

    def set(self, rates: Mapping[str, float], now: float) -> None:
        """Replace all limits by ``rates`` in bytes per second; a limit that stays keeps its state."""
        self._pass_time(now)
        buckets: dict[str, Bucket] = {}
        for key, rate in rates.items():
            buckets[key] = self._buckets.get(key) or Bucket(rate)
            buckets[key].change(rate)
        self._buckets = buckets
        for flow in self._flows:
            self._link(flow)

    def open(self, keys: tuple[str, ...], tls: bool) -> Flow:
        """A new flow under the limits called ``keys``; those that are not set do not limit it."""
        flow = Flow(keys, tls)
        # It begins level with the others, instead of keeping them waiting until it is.
        flow.served = min((other.served for other in self._flows if other.requests), default=0.0)
        self._link(flow)
        self._flows.append(flow)
        return flow

    def close(self, flow: Flow, now: float) -> list[Request]:
        """End a flow. What still waits in it is granted whole: its connection is gone, and nobody must be left asleep.

        :return: requests that were granted something.
        """
        flow.keys = ()
        self._link(flow)
        granted = self.serve(now)
        self._flows.remove(flow)
        return granted

    def ask(self, flow: Flow, length: int) -> Request:
        """Queue a request of ``length`` bytes, more than 0; :meth:`serve` must follow."""
        request = Request(flow, length)
        flow.requests.append(request)
        return request

    def withdraw(self, request: Request) -> None:
        """Take back a request that waits; :meth:`serve` must follow."""
        request.flow.requests.remove(request)

    def serve(self, now: float) -> list[Request]:
        """Grant what may be sent now; the requests that got something, which are queued no longer."""
        self._pass_time(now)
        granted: list[Request] = []
        while (request := self._next()) is not None:
            granted.append(request)
        return granted

    def _next(self) -> Request | None:
        """Grant one request, or none and note when that changes.

        Who is first but has to wait for a limit reserves it: otherwise small requests behind would take every byte as
        it comes. Only the limit that takes longest: the others are of no use to it until then, so they do not idle.
        """
        reserved: set[Bucket] = set()
        soonest = math.inf
        for flow in sorted((flow for flow in self._flows if flow.requests), key=attrgetter("served")):
            if not reserved.isdisjoint(flow.limits):
                continue
            pause, limit = flow.pause()
            if limit is None:
                return flow.grant()
            reserved.add(limit)
            soonest = min(soonest, pause)
        self.next_at = self._now + soonest
        return None

    def _link(self, flow: Flow) -> None:
        flow.limits = tuple(self._buckets[key] for key in flow.keys if key in self._buckets)
        flow.largest = min((limit.grant for limit in flow.limits), default=sys.maxsize)

    def _pass_time(self, now: float) -> None:
        seconds = now - self._now
        if seconds <= 0:
            return
        self._now = now
        for bucket in self._buckets.values():
            bucket.refill(seconds)
        kept = math.exp(-seconds / MEMORY_S)
        for flow in self._flows:
            flow.served *= kept
