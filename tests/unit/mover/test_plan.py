"""Plans against a naive model, with a server that answers for less than asked, differently for each context."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import TransferError
from understudy.model.extent import PART, Extent, merge
from understudy.model.transfer import TransferMode
from understudy.mover.base import NothingKnown
from understudy.mover.meter import Counters
from understudy.mover.plan import LONG_RUN_BLOCKS, Conclusion, Plan, PlanSpec, ReadBlock, Skipped, Work, ZeroRun
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import KIB

BLOCK = 256 * KIB
UNIT = 16 * KIB


class Server:
    """Says zero and dirty for units of 16 KiB; answers for a random length if it is evasive."""

    def __init__(self, size: int, zero: set[int], dirty: set[int], seed: int, *, evasive: bool = True) -> None:
        self._evasive = evasive
        self._size, self._dice = size, random.Random(seed)
        self._flags = {ALLOCATION: (zero, ZERO_FLAG), "dirty": (dirty, DIRTY_FLAG)}

    def has(self, context: str) -> bool:
        return context in self._flags

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        assert at_least <= length
        assert start + length <= self._size
        known = self._dice.randint(at_least, length) if self._evasive else length
        found: dict[str, list[Extent]] = {}
        for name, (units, flag) in self._flags.items():
            position, found[name] = start, []
            while position < start + known:
                end = min((position // UNIT + 1) * UNIT, start + known)
                found[name].append(Extent(position, end - position, flag if position // UNIT in units else 0))
                position = end
        return known, found


    def allocation(self, run: Extent) -> list[Extent]:
        assert run.length >= LONG_RUN_BLOCKS * BLOCK
        assert 0 <= run.start < run.end <= self._size
        zero, flag = self._flags[ALLOCATION]
        found, position = [], run.start
        while position < run.end:
            end = min((position // UNIT + 1) * UNIT, run.end)
            found.append(Extent(position, end - position, flag if position // UNIT in zero else 0))
            position = end
        return found


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, set[int], set[int], int]:
    """Size, zero units, dirty units, seed."""
    size = draw(st.integers(1, 6 * BLOCK // 512)) * 512
    units = -(-size // UNIT)
    runs = st.lists(st.tuples(st.integers(0, units), st.integers(0, 40)), max_size=6)

    def spread(places: list[tuple[int, int]]) -> set[int]:
        return {unit for start, length in places for unit in range(start, min(start + length, units))}

    return size, spread(draw(runs)), spread(draw(runs)), draw(st.integers(0, 1 << 30))


@settings(max_examples=300)
@given(disks(), st.sampled_from(list(TransferMode)), st.booleans())
def test_every_byte_is_planned_as_the_model_says(
    disk: tuple[int, set[int], set[int], int], mode: TransferMode, write_zeros: bool
) -> None:
    size, zero, dirty, seed = disk
    spec = PlanSpec(size, BLOCK, mode, write_zeros, "dirty")
    counters = Counters()
    plan = Plan(spec, Server(size, zero, dirty, seed), NothingKnown(), counters)
    read: dict[int, ReadBlock] = {}
    zeroed: set[int] = set()
    while (item := plan.take()) is not None:
        assert not isinstance(item, Conclusion)
        if isinstance(item, Skipped):
            continue
        plan.done([item])
        done = item.block if isinstance(item, ReadBlock) else item.run
        touched = range(done.start // BLOCK, -(-done.end // BLOCK))
        if isinstance(item, ReadBlock):
            assert item.index not in read
            read[item.index] = item
        elif isinstance(item, ZeroRun):
            assert done.start % BLOCK == 0
            assert not zeroed & set(touched)
            zeroed |= set(touched)
    assert plan.imbalance() == ""
    assert plan.finished
    assert counters.processed == size
    for index in range(-(-size // BLOCK)):
        start, end = index * BLOCK, min((index + 1) * BLOCK, size)
        units = set(range(start // UNIT, -(-end // UNIT)))
        wanted = mode is not TransferMode.INCREMENTAL or bool(units & dirty)
        is_zero = units <= zero
        # Only of long runs an incremental knows that they are zero: the others are read.
        known_zero = wanted and is_zero and (mode is not TransferMode.INCREMENTAL or index not in read)
        assert (index in zeroed) == (known_zero and write_zeros)
        assert (index in read) == (wanted and not known_zero)
        if index in read:
            assert read[index].block == Extent(start, end - start)
            assert read[index].vague == (mode is TransferMode.DIGEST_SCAN and end - start > PART)
            _check_wanted(read[index], dirty if mode is TransferMode.INCREMENTAL else units)


def test_an_incremental_asks_for_zeros_in_long_runs_of_changed_blocks_alone() -> None:
    per_block = BLOCK // UNIT
    short = set(range(2 * per_block, (2 + LONG_RUN_BLOCKS - 1) * per_block))
    long = set(range(20 * per_block, (20 + LONG_RUN_BLOCKS) * per_block))
    size = 40 * BLOCK
    server = Server(size, set(range(size // UNIT)), short | long, 1, evasive=False)
    plan = Plan(PlanSpec(size, BLOCK, TransferMode.INCREMENTAL, True, "dirty"), server, NothingKnown(), Counters())
    items = []
    while (item := plan.take()) is not None:
        items.append(item)
    read = [item.index for item in items if isinstance(item, ReadBlock)]
    assert read == list(range(2, 2 + LONG_RUN_BLOCKS - 1))
    assert [item.run for item in items if isinstance(item, ZeroRun)] == [Extent(20 * BLOCK, LONG_RUN_BLOCKS * BLOCK)]


def _check_wanted(item: ReadBlock, dirty: set[int]) -> None:
    covered = {byte for part in item.wanted for byte in range(part.start // 512, -(-part.end // 512))}
    for start in range(item.block.start, item.block.end, PART):
        end = min(start + PART, item.block.end)
        sectors = set(range(start // 512, -(-end // 512)))
        hit = any(unit in dirty for unit in range(start // UNIT, -(-end // UNIT)))
        assert sectors <= covered if hit else not sectors & covered


def small_plan(blocks: int, *, concluded: bool = False) -> tuple[Plan, Counters]:
    """A plan of full mode over blocks that are read."""
    size, counters = blocks * BLOCK, Counters()
    spec = PlanSpec(size, BLOCK, TransferMode.FULL, True)
    return Plan(spec, Server(size, set(), set(), 1), NothingKnown(), counters, concluded=concluded), counters


def test_work_that_is_missing_is_noticed() -> None:
    plan, _ = small_plan(2)
    assert "planned" in plan.imbalance()
    taken = []
    while (item := plan.take()) is not None:
        if isinstance(item, ReadBlock):
            taken.append(item)
    assert not plan.finished
    plan.done(taken[:1])
    assert f"{BLOCK} of {2 * BLOCK} bytes were completed" in plan.imbalance()
    plan.done(taken[1:])
    assert plan.imbalance() == ""
    assert plan.finished


def test_what_was_given_back_is_taken_again_and_counts_once() -> None:
    plan, counters = small_plan(3, concluded=True)
    taken = iter(plan.take, None)
    first, second, third = (item for item in taken if isinstance(item, ReadBlock))
    plan.done([first])
    plan.give_back([second, third])
    assert counters.processed == BLOCK
    assert plan.take() == second
    assert plan.take() == third
    assert plan.take() is None
    plan.done([third])
    assert plan.take() is None
    plan.done([second])
    assert counters.processed == 3 * BLOCK
    assert plan.take() == Conclusion()
    assert plan.imbalance()
    plan.give_back([Conclusion()])
    assert plan.take() == Conclusion()
    assert plan.take() is None
    plan.done([Conclusion()])
    assert plan.finished
    assert plan.imbalance() == ""


def test_a_plan_whose_end_is_known_elsewhere_is_finished() -> None:
    plan, _ = small_plan(1, concluded=True)
    item = plan.take()
    assert isinstance(item, ReadBlock)
    while plan.take() is not None:
        pass
    plan.done([item])
    assert plan.take() == Conclusion()
    plan.give_back([Conclusion()])
    plan.finish()
    assert plan.finished
    assert plan.take() is None


class BrokenServer(Server):
    """Answers for the first blocks, then no more."""

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        if start:
            raise TransferError("ask for block status", "the server is gone")
        return super().statuses(start, at_least, at_least)


def test_nothing_is_concluded_when_the_rest_could_not_be_planned() -> None:
    """One thread hears the error; to another the plan must not look as if it had come to its end."""
    spec = PlanSpec(3 * BLOCK, BLOCK, TransferMode.FULL, True)
    plan = Plan(spec, BrokenServer(3 * BLOCK, set(), set(), 1), NothingKnown(), Counters(), concluded=True)
    item = plan.take()
    assert isinstance(item, ReadBlock)
    plan.done([item])
    assert plan.take() == Skipped(0, 0)
    with pytest.raises(TransferError):
        plan.take()
    assert plan.take() is None
    assert plan.take() is None
    assert not plan.finished
    assert "planned" in plan.imbalance()


def test_threads_that_lose_their_work_finish_it_all_the_same() -> None:
    plan, counters = small_plan(200, concluded=True)
    dice, lock = random.Random(5), threading.Lock()
    done: list[int] = []
    concluded: list[int] = []

    def finish(parts: list[Work]) -> None:
        for part in parts:
            (done if isinstance(part, ReadBlock) else concluded).append(getattr(part, "index", 0))
            assert isinstance(part, ReadBlock) or len(done) == 200
        plan.done(parts)

    def work() -> None:
        mine: list[Work] = []
        while not plan.finished:
            item = plan.take()
            if item is not None and not isinstance(item, Skipped):
                mine.append(item)
            with lock:
                act = dice.random()
            if act < 0.6 or item is None:
                (plan.give_back if act < 0.3 else finish)(mine)
                mine = []

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(done) == list(range(200))
    assert concluded == [0]
    assert counters.processed == 200 * BLOCK
    assert plan.imbalance() == ""


class Kept(NothingKnown):
    """Blocks that the layer has already."""

    def __init__(self, size: int, kept: set[int]) -> None:
        self._size, self._kept = size, kept

    def nonzero(self, run: Extent) -> list[Extent]:
        return []

    def kept(self, run: Extent) -> list[Extent]:
        found = [Extent(index * BLOCK, min(BLOCK, self._size - index * BLOCK)) for index in sorted(self._kept)]
        return merge([part for part in found if part.start < run.end and run.start < part.end])


@settings(max_examples=300)
@given(disks(), st.sampled_from(list(TransferMode)), st.booleans(), st.sets(st.integers(0, 5)))
def test_what_the_layer_has_already_is_looked_at_whole(
    disk: tuple[int, set[int], set[int], int], mode: TransferMode, chained: bool, kept: set[int]
) -> None:
    """Clean or dirty, zero or not, and whatever is known of it: zeros over it are written."""
    size, zero, dirty, seed = disk
    kept = {index for index in kept if index * BLOCK < size}
    counters = Counters()
    spec = PlanSpec(size, BLOCK, mode, chained, "dirty")
    plan = Plan(spec, Server(size, zero, dirty, seed), Kept(size, kept), counters)
    read: dict[int, ReadBlock] = {}
    zeroed: set[int] = set()
    while (item := plan.take()) is not None:
        if isinstance(item, ReadBlock):
            read[item.index] = item
        if isinstance(item, ZeroRun):
            zeroed |= set(range(item.run.start // BLOCK, -(-item.run.end // BLOCK)))
        if isinstance(item, ReadBlock | ZeroRun):
            plan.done([item])
    assert plan.imbalance() == ""
    assert not zeroed & read.keys()
    for index in kept:
        start, end = index * BLOCK, min((index + 1) * BLOCK, size)
        is_zero = set(range(start // UNIT, -(-end // UNIT))) <= zero
        if is_zero and (mode is not TransferMode.INCREMENTAL or index not in read):
            assert index in zeroed
        else:
            assert read[index].kept
            assert not read[index].vague, "what the layer shows is not what the base shows"
            assert read[index].wanted == (read[index].block,)
    assert {index for index, block in read.items() if block.kept} <= kept
    if not chained:
        assert zeroed <= kept
