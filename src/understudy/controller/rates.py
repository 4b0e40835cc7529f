"""Rates: which limits each source proxy must keep now, and bringing them there.

A limit is named by the transfers that it holds for, ``SOURCE/TARGET`` with an empty name for every proxy, and not by
its throttle: so a throttle that is added or removed also holds for transfers that run already.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from understudy.errors import MoverError, UnderstudyError
from understudy.model.throttle import Throttle, rate_at
from understudy.mover import api

LOG = logging.getLogger(__name__)

PUSH_S = 1.0
#: Rates are brought again after this time, should a proxy have lost them unnoticed.
AGAIN_S = 30.0
#: How long the start of a transfer, and the controller's tick, wait for proxies that do not answer.
START_PATIENCE_S, TICK_PATIENCE_S = 10.0, 2.0
_THREADS = 8

Rates = Mapping[str, float]


def keys_for(source: str, target: str) -> tuple[str, ...]:
    """The limits that may come to hold for a transfer between two proxies, from that of the pair to that of all."""
    return (_key(source, target), _key(source, ""), _key("", target), _key("", ""))


def rates_for(
    throttles: tuple[Throttle, ...], local_time: datetime, running: Mapping[tuple[str, str], int]
) -> dict[str, dict[str, float]]:
    """The limits for each source proxy that has transfers: bytes per second by key.

    A limit that spans several source proxies is divided among them in proportion to the disks that they send under it.

    :param running: number of disks by (source proxy, target proxy).
    """
    found: dict[str, dict[str, float]] = {source: {} for (source, _), disks in running.items() if disks > 0}
    for throttle in throttles:
        rate = rate_at(throttle, local_time)
        if rate is None:
            continue
        disks: Counter[str] = Counter()
        for (source, target), count in running.items():
            if throttle.source_proxy in ("", source) and throttle.target_proxy in ("", target) and count > 0:
                disks[source] += count
        key = _key(throttle.source_proxy, throttle.target_proxy)
        for source, count in disks.items():
            share = rate * count / disks.total()
            found[source][key] = min(share, found[source].get(key, share))
    return found


def lowered(known: Rates | None, wanted: Rates) -> dict[str, float]:
    """What of ``wanted`` lowers something: each limit that is known or wanted, at the lower of the two rates.

    :param known: None if the proxy was never told any.
    """
    if known is None:
        return dict(wanted)
    return {key: min(rates[key] for rates in (known, wanted) if key in rates) for key in {**known, **wanted}}


def _key(source: str, target: str) -> str:
    return f"{source}/{target}"  # no proxy's name has a slash


class Caller(Protocol):
    """A proxy that can be told its rates."""

    def call(self, request: api.SetRates, response_type: type[api.Nothing]) -> api.Nothing:
        """Carry out ``request``.

        :raises UnderstudyError: if the proxy does not answer, or refuses.
        """


@dataclass(frozen=True)
class _Told:
    """What a proxy was told last; ``due_at`` is when it must be told again even if nothing changed."""

    rates: Rates
    due_at: float


class RatePusher:
    """Keeps the source proxies' limits as they must be, for as long as transfers run.

    Where a limit is divided, the shares that shrink are brought before those that grow, so that their sum is never
    above the limit.
    """

    def __init__(
        self, throttles: Callable[[], tuple[Throttle, ...]], client_of: Callable[[str], Caller],
        clock: Callable[[], float] = time.monotonic, local_time: Callable[[], datetime] = datetime.now,
    ) -> None:
        """:param throttles: reads all throttles.
        :param client_of: the client of a proxy by name; it may raise an error of ours.
        """
        self._throttles = throttles
        self._client_of = client_of
        self._clock = clock
        self._local_time = local_time
        self._running: Counter[tuple[str, str]] = Counter()
        self._told: dict[str, _Told] = {}
        self._sending: dict[str, Future[bool]] = {}
        self._outages: set[str] = set()
        self._next_push = clock()
        self._lock = threading.Lock()  # of the fields above
        self._round = threading.Lock()  # one round at a time
        self._pool = ThreadPoolExecutor(_THREADS, "push-rates")

    @contextmanager
    def running(self, source: str, target: str) -> Iterator[tuple[str, ...]]:
        """Inside the block a disk is sent from proxy ``source`` to proxy ``target``; gives the keys of its limits.

        :raises MoverError: if the source proxy could not be told a limit that it must keep.
        """
        with self._lock:
            self._running[source, target] += 1
        try:
            with self._round:
                unaware = self._bring(START_PATIENCE_S)
            if source in unaware:
                raise MoverError(f"limit what proxy {source!r} sends", "it could not be told its rate",
                                 "check that the proxy runs, see the log")
            yield keys_for(source, target)
        finally:
            with self._lock:
                self._running[source, target] -= 1
                self._running = +self._running

    def push(self) -> None:
        """Bring what changed; does nothing when it was called within the last second or is at it already."""
        if self._clock() < self._next_push or not self._round.acquire(blocking=False):
            return
        try:
            self._bring(TICK_PATIENCE_S)
        finally:
            self._round.release()

    def forget(self, proxy: str) -> None:
        """The proxy was started again and knows no rates: they are brought with the next transfer or push."""
        with self._lock:
            self._told.pop(proxy, None)
            self._next_push = self._clock()

    def close(self) -> None:
        """Bring nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bring(self, patience_s: float) -> set[str]:
        """Tell every source proxy what it must keep now; those that have a limit and could not be told."""
        self._next_push = self._clock() + PUSH_S
        with self._lock:
            running = dict(self._running)
            known = {proxy: told.rates for proxy, told in self._told.items()}
        if not running:
            return set()
        wanted = rates_for(self._throttles(), self._local_time(), running)
        lower = {proxy: lowered(known.get(proxy), rates) for proxy, rates in wanted.items()}
        failed = self._tell_all(lower, patience_s)
        # A share grows only where those who hold the other shares know that theirs shrank.
        stuck = {key for proxy in failed for key in lower[proxy]}
        raised = {
            proxy: {key: lower[proxy][key] if key in stuck else rate for key, rate in rates.items()}
            for proxy, rates in wanted.items() if proxy not in failed
        }
        self._tell_all(raised, patience_s)
        return {proxy for proxy in failed if wanted[proxy]}

    def _tell_all(self, rates: Mapping[str, Rates], patience_s: float) -> set[str]:
        """Tell each proxy its rates, where it must be told; those that did not confirm in time."""
        with self._lock:
            due = {proxy for proxy, wanted in rates.items() if self._is_due(proxy, wanted)}
            busy = {proxy for proxy, future in self._sending.items() if not future.done()}
            # One at a time: an older message must not arrive after a newer one.
            asked = {proxy: self._pool.submit(self._tell, proxy, rates[proxy]) for proxy in due - busy}
            self._sending.update(asked)
        wait(asked.values(), patience_s)
        late = {proxy for proxy, future in asked.items() if not future.done() or not future.result()}
        return late | (due & busy)

    def _is_due(self, proxy: str, wanted: Rates) -> bool:
        told = self._told.get(proxy)
        if told is None:
            return bool(wanted)
        return told.rates != wanted or told.due_at <= self._clock()

    def _tell(self, proxy: str, rates: Rates) -> bool:
        """Tell one proxy; whether it confirmed."""
        request = api.SetRates(tuple(api.RateLimit(key, rate) for key, rate in sorted(rates.items())))
        try:
            self._client_of(proxy).call(request, api.Nothing)
        except UnderstudyError as exc:
            with self._lock:
                # Whether it heard is not known: tell it again, whatever it must know then.
                if proxy in self._told:
                    self._told[proxy] = _Told(self._told[proxy].rates, self._clock())
                again = proxy in self._outages
                self._outages.add(proxy)
            LOG.log(logging.DEBUG if again else logging.WARNING, "proxy=%s could not be told its rates: %s", proxy, exc)
            return False
        with self._lock:
            self._told[proxy] = _Told(rates, self._clock() + AGAIN_S)
            back = proxy in self._outages
            self._outages.discard(proxy)
        LOG.log(logging.INFO if back else logging.DEBUG, "proxy=%s rates=%s", proxy, dict(rates))
        return True
