"""Task slots: all or nothing, never more than there are, and a wait that says why and can be ended."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from understudy.context import Context
from understudy.controller.resources import Claim, ResourcePool
from understudy.errors import Cancelled

pytestmark = pytest.mark.timeout(120)

BOTH = frozenset({"near", "far"})


def claim(vm: str, disks: int = 1, proxies: frozenset[str] = BOTH) -> Claim:
    return Claim(proxies, vm, disks)


def ignore(_reason: str) -> None:
    """For waits whose reasons do not matter."""


def taken(pool: ResourcePool, wanted: Claim) -> int:
    with pool.reserve(Context(), wanted, ignore) as lease:
        return lease.parallel


def test_a_task_gets_a_slot_per_disk_but_no_more_than_the_fuller_proxy_has() -> None:
    pool = ResourcePool({"near": 8, "far": 3})
    assert taken(pool, claim("a", disks=2)) == 2
    assert taken(pool, claim("a", disks=10)) == 3
    assert taken(pool, claim("a", disks=10, proxies=frozenset({"near"}))) == 8


def test_slots_come_back_even_if_the_task_fails() -> None:
    pool = ResourcePool({"near": 1, "far": 1})
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pool.reserve(Context(), claim("a"), ignore):
            raise ZeroDivisionError
    assert taken(pool, claim("a")) == 1


def test_a_task_that_waits_for_one_proxy_holds_nothing_on_the_other() -> None:
    pool = ResourcePool({"near": 1, "far": 1})
    ctx, reasons = Context(), list[str]()
    with pool.reserve(Context(), claim("a", proxies=frozenset({"far"})), ignore):
        waiter = threading.Thread(target=wait_for, args=(pool, ctx, claim("b"), reasons))
        waiter.start()
        assert ctx.wait_until(lambda: bool(reasons), timeout_s=10)
        # The other proxy and the waiting VM are free for somebody who needs no more.
        assert taken(pool, claim("b", proxies=frozenset({"near"}))) == 1
    waiter.join(10)
    assert not waiter.is_alive()
    assert reasons == ["no free task slot on proxy far", ""]


def wait_for(pool: ResourcePool, ctx: Context, wanted: Claim, reasons: list[str]) -> None:
    with pool.reserve(ctx, wanted, reasons.append):
        pass


def test_a_vm_is_worked_on_by_one_task_at_a_time() -> None:
    pool = ResourcePool({"near": 10, "far": 10})
    ctx, reasons = Context(), list[str]()
    with pool.reserve(Context(), claim("a"), ignore):
        assert taken(pool, claim("b")) == 1
        waiter = threading.Thread(target=wait_for, args=(pool, ctx, claim("a"), reasons))
        waiter.start()
        assert ctx.wait_until(lambda: bool(reasons), timeout_s=10)
    waiter.join(10)
    assert reasons == ["another task works on the same VM", ""]


def test_who_need_not_wait_is_told_nothing() -> None:
    reasons = list[str]()
    wait_for(ResourcePool({"near": 1, "far": 1}), Context(), claim("a"), reasons)
    assert reasons == []


def test_a_reason_is_told_once_and_a_new_one_as_well() -> None:
    pool = ResourcePool({"near": 1, "far": 1})
    ctx, reasons = Context(), list[str]()
    first = pool.reserve(Context(), claim("a", proxies=frozenset({"near"})), ignore)
    second = pool.reserve(Context(), claim("b", proxies=frozenset({"far"})), ignore)
    first.__enter__()
    second.__enter__()
    waiter = threading.Thread(target=wait_for, args=(pool, ctx, claim("a"), reasons))
    waiter.start()
    assert ctx.wait_until(lambda: bool(reasons), timeout_s=10)
    time.sleep(0.5)  # long enough for several looks
    first.__exit__(None, None, None)
    assert ctx.wait_until(lambda: len(reasons) > 1, timeout_s=10)
    second.__exit__(None, None, None)
    waiter.join(10)
    assert reasons == ["another task works on the same VM", "no free task slot on proxy far", ""]


def test_a_cancellation_ends_the_wait_and_takes_nothing() -> None:
    pool = ResourcePool({"near": 1, "far": 1})
    ctx = Context()
    with pool.reserve(Context(), claim("a"), ignore):
        threading.Timer(0.1, ctx.cancel.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            pool.reserve(ctx, claim("b"), ignore).__enter__()
        assert time.monotonic() - started < 10
    assert taken(pool, claim("b")) == 1


def test_however_many_tasks_come_slots_and_vms_are_never_given_twice() -> None:
    slots = {"near": 3, "far": 2}
    pool = ResourcePool(slots)
    lock = threading.Lock()
    used = dict.fromkeys(slots, 0)
    busy: set[str] = set()
    worst = dict.fromkeys(slots, 0)

    def work(number: int) -> int:
        chance = random.Random(number)
        proxies = frozenset(chance.choice([("near",), ("far",), ("near", "far")]))
        wanted = claim(f"vm{number % 5}", disks=chance.randint(1, 4), proxies=proxies)
        with pool.reserve(Context(), wanted, ignore) as lease:
            with lock:
                assert wanted.vm not in busy
                busy.add(wanted.vm)
                for proxy in proxies:
                    used[proxy] += lease.parallel
                    worst[proxy] = max(worst[proxy], used[proxy])
            time.sleep(0.002)
            with lock:
                busy.discard(wanted.vm)
                for proxy in proxies:
                    used[proxy] -= lease.parallel
        return lease.parallel

    with ThreadPoolExecutor(12) as threads:
        given = list(threads.map(work, range(150)))
    assert min(given) >= 1
    assert all(worst[proxy] <= slots[proxy] for proxy in slots)
    assert worst == slots  # they were used to the full, so the limit was really tried
    assert taken(pool, claim("vm0", disks=9, proxies=frozenset({"near"}))) == 3
