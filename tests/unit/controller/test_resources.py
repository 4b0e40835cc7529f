"""The wait for resources: all or nothing, a reason that is told, an end on request, and no thread forgotten."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from understudy.context import Context
from understudy.controller import resources
from understudy.controller.choice import Route
from understudy.controller.ledger import Claim, Kind, Resource
from understudy.controller.resources import ResourcePool
from understudy.errors import Cancelled

pytestmark = pytest.mark.timeout(120)

WIRE = Route("near", "far")


def slots(proxy: str) -> Resource:
    return Resource(Kind.SLOT, proxy)


def pool(near: int, far: int, transfers: int = 0) -> ResourcePool:
    made = ResourcePool()
    made.offer({slots("near"): near, slots("far"): far, Resource(Kind.TRANSFER, "store"): transfers})
    return made


def claim(vm: str, route: Route = WIRE) -> Claim:
    return Claim(vm, frozenset({f"prod:/{vm}"}), "store", (route,))


def ignore(_reason: str) -> None:
    """For waits whose reasons do not matter."""


def test_a_task_takes_disks_while_slots_are_free_and_is_told_why_not() -> None:
    shared = pool(near=3, far=2)
    with shared.reserve(Context(), lambda: claim("a"), ignore) as held:
        assert held.route == WIRE
        assert [held.take(), held.take(), held.take()] == ["", "", "no free task slot on proxy far"]
        held.give_back()
        assert held.take() == ""


def test_the_first_disk_has_what_it_needs_whatever_happens_meanwhile() -> None:
    shared = pool(near=2, far=2)
    with shared.reserve(Context(), lambda: claim("a"), ignore) as one:
        with shared.reserve(Context(), lambda: claim("b"), ignore) as two:
            assert [one.take(), two.take()] == ["", ""]
            assert one.take() == "no free task slot on proxy far or near"
        assert one.take() == ""


def test_everything_comes_back_even_if_the_task_fails_in_the_middle_of_its_disks() -> None:
    shared = pool(near=2, far=2, transfers=2)


    def fail_in_the_middle() -> None:
        with shared.reserve(Context(), lambda: claim("a"), ignore) as held:
            assert [held.take(), held.take()] == ["", ""]
            assert held.take()
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fail_in_the_middle()
    with shared.reserve(Context(), lambda: claim("a"), ignore) as held:
        assert [held.take(), held.take()] == ["", ""]


def wait_for(shared: ResourcePool, ctx: Context, wanted: Claim, reasons: list[str]) -> None:
    with shared.reserve(ctx, lambda: wanted, reasons.append):
        pass


def test_a_task_that_waits_for_one_proxy_holds_nothing_on_the_other() -> None:
    shared = pool(near=2, far=1)
    ctx, reasons = Context(), list[str]()
    with shared.reserve(Context(), lambda: claim("a", Route("far", "far")), ignore):
        waiter = threading.Thread(target=wait_for, args=(shared, ctx, claim("b"), reasons))
        waiter.start()
        assert ctx.wait_until(lambda: bool(reasons), timeout_s=10)
        wait_for(shared, Context(), claim("c", Route("near", "near")), [])
    waiter.join(10)
    assert not waiter.is_alive()
    assert reasons == ["no free task slot on proxy far", ""]


def test_who_need_not_wait_is_told_nothing() -> None:
    reasons = list[str]()
    wait_for(pool(1, 1), Context(), claim("a"), reasons)
    assert reasons == []


def test_a_reason_is_told_once_and_a_new_one_as_well() -> None:
    shared = pool(near=1, far=1)
    ctx, reasons = Context(), list[str]()
    first = shared.reserve(Context(), lambda: claim("a", Route("near", "near")), ignore)
    second = shared.reserve(Context(), lambda: claim("b", Route("far", "far")), ignore)
    first.__enter__()
    second.__enter__()
    waiter = threading.Thread(target=wait_for, args=(shared, ctx, claim("a"), reasons))
    waiter.start()
    assert ctx.wait_until(lambda: bool(reasons), timeout_s=10)
    time.sleep(0.5)  # long enough for several looks
    first.__exit__(None, None, None)
    assert ctx.wait_until(lambda: len(reasons) > 1, timeout_s=10)
    second.__exit__(None, None, None)
    waiter.join(10)
    assert reasons == ["another task works on the same VM", "no free task slot on proxy far", ""]


def test_a_cancellation_ends_the_wait_and_takes_nothing() -> None:
    shared = pool(near=1, far=1)
    ctx = Context()
    with shared.reserve(Context(), lambda: claim("a"), ignore):
        threading.Timer(0.1, ctx.cancel.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            shared.reserve(ctx, lambda: claim("b"), ignore).__enter__()
        assert time.monotonic() - started < 10
    wait_for(shared, Context(), claim("b"), [])


def test_a_task_that_waits_hears_of_a_change_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_RENEW_S", 0.2)
    shared = pool(near=1, far=1)
    ctx, asked, routes = Context(), list[float](), [WIRE]

    def wanted() -> Claim:
        asked.append(time.monotonic())
        return claim("b", routes[-1])

    def wait() -> Route:
        with shared.reserve(ctx, wanted, ignore) as held:
            return held.route

    with ThreadPoolExecutor(1) as thread, shared.reserve(Context(), lambda: claim("a"), ignore):
        answer = thread.submit(wait)
        assert ctx.wait_until(lambda: len(asked) > 1, timeout_s=10)
        shared.offer({slots("new"): 1})
        routes.append(Route("new", "new"))
        assert answer.result(10) == Route("new", "new")


def test_a_vm_is_had_alone_only_if_no_task_works_on_it_or_waits_for_it() -> None:
    shared, reasons = pool(1, 1), list[str]()
    with shared.alone("web") as first, shared.alone("web") as second, shared.alone("db") as other:
        assert (first, second, other) == (True, False, True)
        ctx = Context()
        waiting = threading.Thread(target=wait_for, args=(shared, ctx, claim("web"), reasons))
        waiting.start()
        assert Context().wait_until(lambda: reasons == ["another task works on the same VM"], timeout_s=20)
    waiting.join(20)
    assert not waiting.is_alive()
    with shared.reserve(Context(), lambda: claim("web"), ignore), shared.alone("web") as taken:
        assert not taken
    with shared.alone("web") as taken:
        assert taken


def test_an_error_of_the_choice_ends_the_wait_and_keeps_no_place_in_the_queue() -> None:
    shared = pool(near=1, far=1)

    def broken() -> Claim:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shared.reserve(Context(), broken, ignore).__enter__()
    wait_for(shared, Context(), claim("a"), [])


def test_however_many_threads_come_no_limit_is_exceeded_and_all_come_to_their_end() -> None:
    limits = {"near": 3, "far": 2}
    shared = pool(**limits, transfers=4)
    lock = threading.Lock()
    used, worst, busy = dict.fromkeys(limits, 0), dict.fromkeys(limits, 0), set[str]()

    def count(proxies: set[str], change: int) -> None:
        with lock:
            for proxy in proxies:
                used[proxy] += change
                worst[proxy] = max(worst[proxy], used[proxy])

    def work(number: int) -> int:
        chance = random.Random(number)
        route = chance.choice([WIRE, Route("near", "near"), Route("far", "far")])
        vm = f"vm{number % 5}"
        with shared.reserve(Context(), lambda: claim(vm, route), ignore) as held:
            with lock:
                assert vm not in busy
                busy.add(vm)
            taken = 0
            while taken < chance.randint(1, 4) and not held.take():
                count({route.source, route.target}, 1)
                taken += 1
            time.sleep(0.002)
            for _ in range(taken):
                count({route.source, route.target}, -1)
                held.give_back()
            with lock:
                busy.discard(vm)
        return taken

    with ThreadPoolExecutor(12) as threads:
        given = list(threads.map(work, range(150)))
    assert min(given) >= 1
    assert worst == limits  # they were used to the full, and no further
