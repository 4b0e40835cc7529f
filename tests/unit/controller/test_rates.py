"""Rates: what each source proxy must keep, and how it is brought there."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.controller import rates
from understudy.controller.rates import RatePusher, keys_for, lowered, rates_for
from understudy.errors import MoverError
from understudy.model.throttle import Throttle, parse_window
from understudy.mover import api

NOON = datetime(2026, 11, 23, 12)
PROXIES = st.sampled_from(["", "a", "b", "c", "d"])
NAMED = st.sampled_from(["a", "b", "c", "d"])


def test_a_transfer_has_the_keys_of_its_pair_its_ends_and_of_all() -> None:
    assert keys_for("a", "b") == ("a/b", "a/", "/b", "/")


def test_the_limit_of_a_pair_and_of_a_sender_are_whole_at_its_source_proxy() -> None:
    throttles = (Throttle("p", "a", "x", 100), Throttle("s", "a", "", 70), Throttle("other", "b", "x", 1))
    assert rates_for(throttles, NOON, {("a", "x"): 3, ("a", "y"): 1}) == {"a": {"a/x": 100, "a/": 70}}


def test_a_limit_over_several_source_proxies_is_divided_by_their_disks() -> None:
    throttles = (Throttle("all", rate=100), Throttle("into x", "", "x", 90))
    assert rates_for(throttles, NOON, {("a", "x"): 2, ("a", "y"): 1, ("b", "x"): 1, ("c", "z"): 0}) == {
        "a": {"/": 75.0, "/x": 60.0},
        "b": {"/": 25.0, "/x": 30.0},
    }


def test_of_two_throttles_for_the_same_transfers_the_lower_one_holds_now() -> None:
    windows = (parse_window("Mon 08:00-18:00 unlimited"),)
    throttles = (Throttle("1", rate=100), Throttle("2", rate=80), Throttle("3", rate=1, windows=windows))
    assert rates_for(throttles, NOON, {("a", "x"): 1}) == {"a": {"/": 80.0}}


@given(
    st.lists(st.builds(Throttle, st.text(), PROXIES, PROXIES, st.none() | st.integers(1, 1000)), max_size=6),
    st.dictionaries(st.tuples(NAMED, NAMED), st.integers(1, 5)),
)
def test_all_shares_of_a_limit_are_never_more_than_it_and_every_transfer_has_its_key(
    throttles: list[Throttle], running: dict[tuple[str, str], int]
) -> None:
    found = rates_for(tuple(throttles), NOON, running)
    sums: Counter[str] = Counter()
    for told in found.values():
        for key, rate in told.items():
            sums[key] += rate  # type: ignore[assignment]
    for throttle in throttles:
        matching = [
            (source, target) for source, target in running
            if throttle.source_proxy in ("", source) and throttle.target_proxy in ("", target)
        ]
        key = f"{throttle.source_proxy}/{throttle.target_proxy}"
        if throttle.rate is not None and matching:
            assert 0 < sums[key] <= throttle.rate * 1.000001
            assert all(key in keys_for(*route) and key in found[route[0]] for route in matching)


def test_lowering_keeps_every_limit_at_the_lower_of_both_rates() -> None:
    assert lowered({"x": 1, "y": 5}, {"y": 3, "z": 4}) == {"x": 1, "y": 3, "z": 4}
    assert lowered({"y": 3}, {"y": 5}) == {"y": 3}
    assert lowered(None, {"y": 5}) == {"y": 5}


class Proxies:
    """Source proxies that note what they are told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, float]]] = []
        self.rates: dict[str, dict[str, float]] = defaultdict(dict)
        self.calls: Counter[str] = Counter()
        self.down: set[str] = set()
        self.hang: dict[str, threading.Event] = {}
        self.now = 0.0
        self.throttles: list[Throttle] = [Throttle("all", rate=100)]

    def client_of(self, name: str) -> Client:
        return Client(self, name)

    def drain(self) -> list[tuple[str, dict[str, float]]]:
        told, self.told = self.told, []
        return told


class Client:
    def __init__(self, proxies: Proxies, name: str) -> None:
        self._proxies = proxies
        self._name = name

    def call(self, request: api.SetRates, response_type: type[api.Nothing]) -> api.Nothing:
        self._proxies.calls[self._name] += 1
        if self._name in self._proxies.hang:
            self._proxies.hang[self._name].wait(10)
        if self._name in self._proxies.down:
            raise MoverError(f"proxy {self._name}", "down")
        told = {limit.key: limit.bytes_per_s for limit in request.limits}
        self._proxies.told.append((self._name, told))
        self._proxies.rates[self._name] = told
        return response_type()


@pytest.fixture
def proxies() -> Proxies:
    return Proxies()


@pytest.fixture
def pusher(proxies: Proxies) -> Iterator[RatePusher]:
    found = RatePusher(lambda: tuple(proxies.throttles), proxies.client_of, lambda: proxies.now, lambda: NOON)
    yield found
    found.close()


def tick(pusher: RatePusher, proxies: Proxies, seconds: float = 1.1) -> list[tuple[str, dict[str, float]]]:
    proxies.now += seconds
    pusher.push()
    return proxies.drain()


def test_a_transfer_begins_only_when_its_proxy_knows_the_limits(pusher: RatePusher, proxies: Proxies) -> None:
    with pusher.running("a", "x") as keys:
        assert keys == keys_for("a", "x")
        assert proxies.drain() == [("a", {"/": 100.0})]
    assert tick(pusher, proxies) == []


def test_only_changes_are_brought_and_a_new_throttle_reaches_running_transfers(
    pusher: RatePusher, proxies: Proxies
) -> None:
    with pusher.running("a", "x"):
        proxies.drain()
        assert tick(pusher, proxies) == []
        proxies.throttles.append(Throttle("pair", "a", "x", 40))
        proxies.now += 0.5
        pusher.push()
        assert proxies.drain() == [], "at most once a second"
        assert tick(pusher, proxies) == [("a", {"/": 100.0, "a/x": 40.0})]
        proxies.throttles.clear()
        assert tick(pusher, proxies) == [("a", {})]


def test_shares_shrink_before_others_grow(pusher: RatePusher, proxies: Proxies) -> None:
    with ExitStack() as stack:
        stack.enter_context(pusher.running("a", "x"))
        proxies.drain()
        with pusher.running("b", "x"):
            assert sorted(proxies.drain()) == [("a", {"/": 50.0}), ("b", {"/": 50.0})]
        assert tick(pusher, proxies) == [("a", {"/": 100.0})]
        # b still knows its 50: nothing about it is above its share, so only a is told before.
        with pusher.running("b", "x"), pusher.running("b", "x"):
            names, shares = zip(*((name, told["/"]) for name, told in proxies.drain()), strict=True)
            assert names == ("a", "a", "b")
            assert shares == pytest.approx((50, 100 / 3, 200 / 3))


def test_no_share_grows_while_the_proxy_with_the_other_one_cannot_be_told(
    pusher: RatePusher, proxies: Proxies, caplog: pytest.LogCaptureFixture
) -> None:
    with pusher.running("a", "x"), pusher.running("b", "x"), ExitStack() as more:
        proxies.down = {"a"}
        proxies.drain()
        more.enter_context(pusher.running("b", "x"))
        for _ in range(3):
            assert tick(pusher, proxies) == []
        assert proxies.rates["b"] == {"/": 50.0}
        assert [record.levelname for record in caplog.records if "could not be told" in record.message] == ["WARNING"]
        proxies.down = set()
        assert [name for name, _ in tick(pusher, proxies)] == ["a", "b"]
        assert proxies.rates["a"] == pytest.approx({"/": 100 / 3})
        assert proxies.rates["b"] == pytest.approx({"/": 200 / 3})


def test_a_transfer_does_not_begin_when_its_proxy_cannot_be_told_its_limit(
    pusher: RatePusher, proxies: Proxies
) -> None:
    proxies.down = {"a"}
    with pytest.raises(MoverError, match="limit what proxy 'a' sends"), pusher.running("a", "x"):
        pass
    assert tick(pusher, proxies) == [], "it does not run"
    proxies.throttles.clear()
    with pusher.running("a", "x"):
        assert proxies.drain() == [], "without a limit there is nothing to tell"


def test_rates_are_brought_again_every_30_seconds_and_after_a_restart(pusher: RatePusher, proxies: Proxies) -> None:
    with pusher.running("a", "x"):
        proxies.drain()
        assert tick(pusher, proxies, 28) == []
        assert tick(pusher, proxies, 3) == [("a", {"/": 100.0})]
        pusher.forget("a")
        pusher.push()
        assert proxies.drain() == [("a", {"/": 100.0})]


def test_a_proxy_that_does_not_answer_holds_up_the_tick_once_and_gets_one_message_at_a_time(
    pusher: RatePusher, proxies: Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "TICK_PATIENCE_S", 0.05)
    with pusher.running("a", "x"), pusher.running("b", "y"):
        proxies.hang["a"] = threading.Event()
        proxies.throttles.append(Throttle("b", "b", "", 30))
        proxies.drain()
        proxies.throttles[0] = Throttle("all", rate=80)
        assert tick(pusher, proxies) == [("b", {"/": 40.0, "b/": 30.0})]
        proxies.throttles[0] = Throttle("all", rate=60)
        assert tick(pusher, proxies) == [("b", {"/": 30.0, "b/": 30.0})]
        assert proxies.calls["a"] == 3, "one for each start, and the one that hangs"
        proxies.hang.pop("a").set()
        while proxies.rates["a"] != {"/": 30.0}:
            tick(pusher, proxies)
