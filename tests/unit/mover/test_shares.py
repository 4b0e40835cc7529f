"""Rate limits in virtual time: never too much in any ten seconds, never too little, fair to each transfer."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.mover.shares import Bucket, Flow, Request, Shares, wire_length
from understudy.units import GIB, KIB, MIB

WINDOW_S = 10.0
TOLERANCE = 1.03
MBIT_100, GBIT_10 = 12_500_000, 1_250_000_000


@dataclass
class World:
    """Threads that send, a timekeeper that may be late, and a record of what was granted: ``(time, wire bytes)``."""

    late_s: float = 0.0
    seed: int = 0
    now: float = 1000.0
    sent: dict[Flow, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.shares = Shares(self.now)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._then: dict[Request, Callable[[int], None]] = {}
        self._alarm = float("inf")

    def at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def set(self, **rates: float) -> None:
        self.shares.set(rates, self.now)
        self.serve()

    def thread(self, flow: Flow, lengths: Callable[[], int], busy_s: Callable[[], float] = lambda: 0.0) -> None:
        """A thread that sends frames of ``lengths()`` bytes, each grant taking ``busy_s()``, for ever."""

        def send(left: int) -> None:
            self._then[self.shares.ask(flow, left)] = lambda granted: self.at(
                self.now + busy_s(), lambda: send(left - granted or lengths())
            )
            self.serve()

        self.at(self.now, lambda: send(lengths()))

    def serve(self) -> None:
        for request in self.shares.serve(self.now):
            self.sent[request.flow].append((self.now, wire_length(request.granted, request.flow.tls)))
            self._then.pop(request)(request.granted)
        due = self.shares.next_at
        if due < self._alarm:
            self._alarm = due
            self.at(max(due, self.now) + self.random.uniform(0, self.late_s), lambda: self._ring(due))

    def _ring(self, due: float) -> None:
        if due == self._alarm:
            self._alarm = float("inf")
            self.serve()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            time, _, act = heapq.heappop(self._events)
            self.now = max(self.now, time)
            act()
        self.now = end

    def bytes(self, flow: Flow, since: float = 0.0) -> int:
        return sum(count for time, count in self.sent[flow] if time >= since)

    def all_sent(self, *flows: Flow) -> list[tuple[float, int]]:
        return sorted(item for flow in flows for item in self.sent[flow])


def most_in_a_window(sent: list[tuple[float, int]], allowed: Callable[[float, float], float]) -> float:
    """The largest share of what was allowed in any window of ten seconds that begins with a grant."""
    worst, total, end = 0.0, 0, 0
    for begin, (time, count) in enumerate(sent):
        end = max(end, begin)
        while end < len(sent) and sent[end][0] <= time + WINDOW_S:
            total += sent[end][1]
            end += 1
        worst = max(worst, total / allowed(time, time + WINDOW_S))
        total -= count
    return worst


@settings(max_examples=25)
@given(
    st.sampled_from([2 * KIB, 64 * KIB, 1_000_000, MBIT_100]), st.integers(1, 4), st.integers(1, 4), st.booleans(),
    st.integers(0, 1 << 30),
)
def test_no_ten_seconds_ever_hold_three_per_cent_too_much(
    rate: int, transfers: int, threads: int, tls: bool, seed: int
) -> None:
    world = World(late_s=0.04, seed=seed)
    world.set(all=rate)
    flows = [world.shares.open(("all",), tls) for _ in range(transfers)]
    pick = world.random
    for flow in flows:
        for _ in range(threads):
            # Bursts, long idle times, frames from a header to a whole block.
            world.thread(flow, lambda: pick.choice([40, 300, 16 * KIB, MIB]),
                         lambda: pick.choice([0.0, 0.0, 0.001, 0.2, 3.0]))
    world.run(45)
    assert most_in_a_window(world.all_sent(*flows), lambda start, end: rate * (end - start)) <= TOLERANCE


@settings(max_examples=15)
@given(st.lists(st.sampled_from([64 * KIB, 512 * KIB, 3_000_000]), min_size=2, max_size=8), st.integers(0, 1 << 30))
def test_it_holds_while_rates_change(rates: list[int], seed: int) -> None:
    world = World(late_s=0.02, seed=seed)
    flows = [world.shares.open(("all",), True) for _ in range(3)]
    changes = [(world.now, rates[0])]
    world.set(all=rates[0])
    for flow in flows:
        world.thread(flow, lambda: MIB)
        world.thread(flow, lambda: MIB)
    for rate in rates[1:]:
        world.run(world.random.uniform(0.05, 12))
        changes.append((world.now, rate))
        world.set(all=rate)
    world.run(12)

    def allowed(start: float, end: float) -> float:
        edges = [*(time for time, _ in changes[1:]), float("inf")]
        return sum(
            rate * max(0.0, min(end, until) - max(start, since))
            for (since, rate), until in zip(changes, edges, strict=True)
        )

    # What was saved up under a high rate shrinks when the rate does, so it may be sent just before.
    saved = max(rates) * 0.05 / TOLERANCE
    assert most_in_a_window(world.all_sent(*flows), lambda start, end: allowed(start, end) + saved) <= TOLERANCE


def test_a_grant_of_the_old_rate_does_not_break_the_new_one() -> None:
    world = World()
    flows = [world.shares.open(("all",), False) for _ in range(10)]
    world.set(all=GBIT_10)
    for flow in flows:
        for _ in range(4):
            world.thread(flow, lambda: 4 * MIB)
    world.run(0.05)
    since = world.now
    world.set(all=64 * KIB)
    world.run(30)
    sent = [item for item in world.all_sent(*flows) if item[0] > since]
    assert most_in_a_window(sent, lambda start, end: 64 * KIB * (end - start)) <= TOLERANCE


@pytest.mark.parametrize("rate", [8 * KIB, 64 * KIB, MBIT_100])
def test_ten_seconds_of_demand_after_a_long_idle_time_hold_no_more(rate: int) -> None:
    world = World()
    flow = world.shares.open(("all",), True)
    world.set(all=rate)
    world.run(3600)
    world.thread(flow, lambda: MIB)
    world.thread(flow, lambda: 40)
    world.run(11)
    assert most_in_a_window(world.all_sent(flow), lambda start, end: rate * (end - start)) <= TOLERANCE


def test_what_was_saved_up_at_a_high_rate_is_gone_when_it_drops() -> None:
    shares = Shares(0.0)
    shares.set({"all": GBIT_10}, 0.0)
    flow = shares.open(("all",), False)
    shares.set({"all": 64 * KIB}, 60.0)
    for _ in range(100):
        shares.ask(flow, MIB)
    assert sum(request.granted for request in shares.serve(60.0)) <= 64 * KIB * 0.06


@pytest.mark.parametrize("rate", [8 * KIB, 64 * KIB, MBIT_100, GBIT_10])
@pytest.mark.parametrize("transfers", [1, 5])
def test_demand_gets_what_the_limit_allows_although_threads_are_late(rate: int, transfers: int) -> None:
    world = World(late_s=0.025, seed=1)
    flows = [world.shares.open(("all",), False) for _ in range(transfers)]
    world.set(all=rate)
    begin = world.now
    for flow in flows:
        world.thread(flow, lambda: MIB)
    world.run(2.0 if rate == GBIT_10 else 20.0)
    total = sum(world.bytes(flow) for flow in flows)
    assert 0.98 <= total / (rate * (world.now - begin)) <= 1.005


@pytest.mark.parametrize("lengths", [(MIB, MIB), (40, MIB), (MIB, 40), (3000, 70_000)])
def test_two_transfers_get_the_same_whatever_their_threads_and_frames(lengths: tuple[int, int]) -> None:
    world = World(late_s=0.002, seed=3)
    one, four = (world.shares.open(("all",), False) for _ in range(2))
    world.set(all=200_000)
    world.thread(one, lambda: lengths[0], lambda: 0.0001)
    for _ in range(4):
        world.thread(four, lambda: lengths[1], lambda: 0.0001)
    world.run(20)
    assert world.bytes(one) == pytest.approx(world.bytes(four), rel=0.05)


@pytest.mark.parametrize("transfers", [8, 60])
def test_many_transfers_get_the_same(transfers: int) -> None:
    world = World(seed=4)
    flows = [world.shares.open(("all",), True) for _ in range(transfers)]
    world.set(all=MBIT_100)
    for number, flow in enumerate(flows):
        for _ in range(1 + number % 4):
            world.thread(flow, lambda: world.random.choice([40, 20_000, MIB]))
    world.run(30)
    shares = [world.bytes(flow) for flow in flows]
    assert shares == pytest.approx([sum(shares) / transfers] * transfers, rel=0.05)


def test_what_one_transfer_does_not_use_goes_to_the_others() -> None:
    world = World(seed=5)
    slow, fast = (world.shares.open(("all",), False) for _ in range(2))
    world.set(all=1_000_000)
    world.thread(slow, lambda: 10_000, lambda: 0.1)  # 100 kB/s at most
    world.thread(fast, lambda: MIB)
    world.run(20)
    assert world.bytes(slow) == pytest.approx(2_000_000, rel=0.15)
    assert world.bytes(slow) + world.bytes(fast) >= 0.98 * 20_000_000


def test_a_pair_below_its_share_leaves_the_rest_of_the_global_limit_to_others() -> None:
    world = World(late_s=0.005, seed=6)
    narrow = [world.shares.open(("pair", "all"), False) for _ in range(2)]
    wide = world.shares.open(("all",), False)
    world.set(all=1_000_000, pair=200_000)
    for flow in (*narrow, wide):
        for _ in range(3):
            world.thread(flow, lambda: MIB)
    world.run(20)
    assert world.bytes(narrow[0]) == pytest.approx(2_000_000, rel=0.05)
    assert world.bytes(narrow[1]) == pytest.approx(2_000_000, rel=0.05)
    assert world.bytes(wide) == pytest.approx(16_000_000, rel=0.05)


def test_a_transfer_that_was_held_back_by_its_own_limit_has_no_claim_on_the_others_later() -> None:
    world = World()
    held, free = world.shares.open(("pair", "all"), False), world.shares.open(("all",), False)
    world.set(all=1_000_000, pair=20_000)
    world.thread(held, lambda: MIB)
    world.thread(free, lambda: MIB)
    world.run(600)
    since = world.now
    world.set(all=1_000_000)
    world.run(5)
    assert world.bytes(free, since) >= 0.4 * world.bytes(held, since)
    assert world.bytes(held, since + 2) == pytest.approx(world.bytes(free, since + 2), rel=0.05)


def test_a_transfer_that_begins_shares_from_the_first_moment() -> None:
    world = World()
    world.set(all=1_000_000)
    old = world.shares.open(("all",), False)
    world.thread(old, lambda: MIB)
    world.run(20)
    since = world.now
    new = world.shares.open(("all",), False)
    world.thread(new, lambda: MIB)
    world.run(0.5)
    assert world.bytes(old, since) == pytest.approx(250_000, abs=41_000)
    assert world.bytes(new, since) == pytest.approx(250_000, abs=41_000)


@pytest.mark.parametrize(("before", "after"), [(64 * KIB, MBIT_100), (MBIT_100, 64 * KIB), (1000, 10 * MIB)])
def test_another_rate_holds_within_50_ms(before: int, after: int) -> None:
    world = World()
    flow = world.shares.open(("all",), False)
    world.set(all=before)
    for _ in range(4):
        world.thread(flow, lambda: MIB)
    world.run(3)
    world.set(all=after)
    world.run(0.05)
    since = world.now
    world.run(2)
    # At most one grant more or less at the edges.
    assert world.bytes(flow, since) == pytest.approx(after * 2, abs=0.021 * after + KIB)


def test_a_limit_that_is_set_again_with_the_same_rate_gives_nothing_extra() -> None:
    world = World()
    flow = world.shares.open(("all",), False)
    world.set(all=1_000_000)
    world.thread(flow, lambda: MIB)
    for _ in range(1000):
        world.run(0.01)
        world.set(all=1_000_000)
    assert world.bytes(flow) <= 1.005 * 10_000_000


def test_a_limit_begins_without_a_burst_and_saves_up_only_50_ms() -> None:
    shares = Shares(0.0)
    shares.set({"all": MBIT_100}, 0.0)
    flow = shares.open(("all",), False)
    shares.ask(flow, 100_000)
    assert shares.serve(0.0) == []
    assert len(shares.serve(1.0)) == 1
    idle = 3600.0
    for _ in range(20):
        shares.ask(flow, 100_000)
    assert sum(request.granted for request in shares.serve(idle)) <= MBIT_100 * 0.05 + KIB


def test_without_limits_all_are_granted_whole_at_once() -> None:
    shares = Shares(0.0)
    flows = [shares.open(("pair", "all"), True) for _ in range(3)]
    shares.set({"pair": 1000, "all": 1000}, 0.0)
    requests = [shares.ask(flow, GIB) for flow in flows for _ in range(4)]
    assert shares.serve(0.0) == []
    shares.set({}, 0.0)
    assert set(shares.serve(0.0)) == set(requests)
    assert {request.granted for request in requests} == {GIB}
    assert shares.next_at == float("inf")


def test_keys_that_are_not_set_do_not_limit_and_other_limits_do_not_touch() -> None:
    shares = Shares(0.0)
    shares.set({"other": 1}, 0.0)
    request = shares.ask(shares.open(("pair", "all"), False), GIB)
    assert shares.serve(0.0) == [request]


def test_who_withdraws_makes_room_for_others() -> None:
    shares = Shares(0.0)
    shares.set({"all": 1_000_000}, 0.0)
    first, second = (shares.open(("all",), False) for _ in range(2))
    large = shares.ask(first, MIB)
    small = shares.ask(second, 100)
    assert shares.serve(0.001) == [], "the first one has reserved the limit"
    shares.withdraw(large)
    assert shares.serve(0.001) == [small]


def test_a_flow_that_ends_leaves_nobody_waiting() -> None:
    shares = Shares(0.0)
    shares.set({"all": 1000}, 0.0)
    flow = shares.open(("all",), False)
    request = shares.ask(flow, MIB)
    assert shares.serve(0.0) == []
    assert shares.close(flow, 0.0) == [request]


@pytest.mark.parametrize(("length", "wire"), [(1, 23), (16 * KIB, 16 * KIB + 22), (16 * KIB + 1, 16 * KIB + 45)])
def test_tls_adds_22_bytes_to_each_record(length: int, wire: int) -> None:
    assert (wire_length(length, tls=True), wire_length(length, tls=False)) == (wire, length)


@given(st.floats(1, 1e12))
def test_a_grant_fits_into_its_bucket_and_takes_20_ms_between_1_and_256_kib(rate: float) -> None:
    bucket = Bucket(rate)
    assert wire_length(bucket.grant, tls=True) <= bucket.depth
    assert 1 <= bucket.grant <= 256 * KIB
    if rate >= 100 * KIB:
        assert bucket.grant == min(256 * KIB, int(rate * 0.02))
