"""The threads of a source proxy under rate limits: they wait, wake at once when limits change, and can be cancelled."""

from __future__ import annotations

import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.context import Context
from understudy.errors import Cancelled, UsageError
from understudy.mover import api, throttle
from understudy.mover.operations import operation
from understudy.mover.throttle import Lane, Throttles
from understudy.units import GIB, KIB, MIB

LIMITED = (api.RateLimit("all", 1000.0),)


class Clock:
    """A clock that stands still until it is set: nothing is granted by the passing of time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is woken, or sleeps for longer than the test."""
    monkeypatch.setattr(throttle, "CHECK_S", 60.0)


def unchecked() -> None:
    """Nobody cancels."""


class Takers:
    """Threads that take; all are joined at the end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.taken: list[tuple[int, float]] = []
        self.errors: list[BaseException] = []
        self.stop = threading.Event()

    def check(self) -> None:
        if self.stop.is_set():
            raise Cancelled

    def start(self, act: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                act()
            except Cancelled as exc:
                self.errors.append(exc)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        return self._threads[-1]

    def take(self, lane: Lane, length: int, check: Callable[[], None] | None = None) -> threading.Thread:
        return self.start(lambda: self.taken.append(lane.take(check or self.check, length)))

    def join(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


@pytest.fixture
def takers() -> Iterator[Takers]:
    found = Takers()
    yield found
    found.stop.set()
    assert found.join(5)


def test_without_a_limit_everything_may_go_at_once_and_it_costs_well_under_a_microsecond() -> None:
    throttles = Throttles()
    throttles.set([api.RateLimit("other", 1.0)])
    with throttles.lane(("pair", "all"), tls=True) as lane:
        assert lane.take(unchecked, GIB) == (GIB, 0.0)
        assert min(timeit.repeat(lambda: lane.take(unchecked, MIB), number=10_000, repeat=5)) < 10_000 * 1e-6


def test_two_transfers_with_1_and_4_threads_use_the_limit_and_share_it(takers: Takers) -> None:
    rate, seconds = 5_000_000, 2.5
    throttles = Throttles()
    sent = {"one": 0, "four": 0}
    lock = threading.Lock()
    with ExitStack() as stack:
        lanes = {name: stack.enter_context(throttles.lane(("all",), tls=False)) for name in sent}
        throttles.set([api.RateLimit("all", rate)])
        begin = time.monotonic()

        def send(name: str) -> None:
            while time.monotonic() < begin + seconds:
                granted, _ = lanes[name].take(takers.check, MIB)
                with lock:
                    sent[name] += granted

        for name in ("one", "four", "four", "four", "four"):
            takers.start(lambda name=name: send(name))  # type: ignore[misc]
        assert takers.join(seconds + 10)
        total, allowed = sum(sent.values()), rate * (time.monotonic() - begin)
    # The lower bound leaves room for a machine that is busy with other tests; in virtual time it is 98 %.
    assert 0.85 * allowed <= total <= allowed + 0.05 * rate
    assert sent["one"] == pytest.approx(sent["four"], rel=0.05, abs=0.02 * rate)


def test_what_was_waited_is_told() -> None:
    throttles = Throttles()
    throttles.set([api.RateLimit("all", 100 * KIB)])
    with throttles.lane(("all",), tls=False) as lane:
        granted, waited = lane.take(unchecked, 2 * KIB)
    assert granted == 2 * KIB
    assert 0.019 <= waited < 1


@pytest.mark.usefixtures("no_checks")
def test_removing_all_limits_wakes_everybody_at_once(takers: Takers) -> None:
    throttles = Throttles(Clock())
    throttles.set(LIMITED)
    with throttles.lane(("all",), tls=True) as first, throttles.lane(("pair", "all"), tls=True) as second:
        for lane in (first, second):
            for _ in range(4):
                takers.take(lane, MIB, unchecked)
        time.sleep(0.1)
        assert takers.taken == []
        throttles.set([])
        assert takers.join(10)
        assert [granted for granted, _ in takers.taken] == [MIB] * 8


@pytest.mark.usefixtures("no_checks")
def test_a_higher_rate_reaches_at_once_who_already_waits(takers: Takers) -> None:
    clock = Clock()
    throttles = Throttles(clock)
    throttles.set([api.RateLimit("all", 0.01)])
    with throttles.lane(("all",), tls=False) as lane:
        takers.take(lane, 1000)
        takers.take(lane, 1000)
        time.sleep(0.1)
        throttles.set([api.RateLimit("all", 100_000.0)])
        assert takers.taken == []
        clock.now = 0.02
        assert takers.join(10)
        assert [granted for granted, _ in takers.taken] == [1000, 1000]


def test_a_cancel_ends_the_wait_of_its_transfer_and_another_keeps_the_time(takers: Takers) -> None:
    clock = Clock()
    throttles = Throttles(clock)
    throttles.set(LIMITED)
    ctx = Context()
    with throttles.lane(("all",), tls=False) as cancelled, throttles.lane(("all",), tls=False) as other:
        doomed = [takers.take(cancelled, MIB, ctx.check) for _ in range(3)]
        takers.take(other, 100)
        time.sleep(0.05)
        ctx.cancel.cancel()
        for thread in doomed:
            thread.join(10)
        assert len(takers.errors) == 3
        assert takers.taken == []
        clock.now = 0.2
        assert takers.join(10)
        assert [granted for granted, _ in takers.taken] == [100]


@pytest.mark.usefixtures("no_checks")
def test_who_keeps_the_time_hands_it_on_when_it_may_send(takers: Takers) -> None:
    throttles = Throttles()
    throttles.set([api.RateLimit("all", 100 * KIB)])
    with throttles.lane(("all",), tls=False) as lane:
        for _ in range(6):
            takers.take(lane, 2 * KIB)
        assert takers.join(10)
    assert [granted for granted, _ in takers.taken] == [2 * KIB] * 6


@pytest.mark.usefixtures("no_checks")
def test_closing_a_lane_leaves_no_thread_asleep(takers: Takers) -> None:
    throttles = Throttles(Clock())
    throttles.set(LIMITED)
    lane = throttles.lane(("all",), tls=True)
    for _ in range(3):
        takers.take(lane, MIB, unchecked)
    time.sleep(0.05)
    lane.close()
    assert takers.join(10)


def test_nothing_to_send_waits_for_nothing() -> None:
    throttles = Throttles()
    throttles.set(LIMITED)
    with throttles.lane(("all",), tls=True) as lane:
        assert lane.take(unchecked, 0) == (0, 0.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_rate_is_refused_and_changes_nothing(rate: float) -> None:
    throttles = Throttles()
    throttles.set([api.RateLimit("all", 1000.0)])
    with throttles.lane(("all",), tls=False) as lane:
        with pytest.raises(UsageError, match="set rate limit 'all'"):
            throttles.set([api.RateLimit("all", rate)])
        with pytest.raises(UsageError, match="a second one"):
            throttles.set([api.RateLimit("all", 1.0), api.RateLimit("all", 2.0)])
        assert lane.take(unchecked, 100)[1] > 0


def test_the_request_of_the_control_protocol_sets_the_limits() -> None:
    mover: Any = SimpleNamespace(throttles=Throttles())
    assert operation("SetRates").handler(mover, api.SetRates((api.RateLimit("all", 1000.0),))) == api.Nothing()
    with mover.throttles.lane(("all",), tls=False) as lane:
        assert lane.take(unchecked, 100)[1] > 0
