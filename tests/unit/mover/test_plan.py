"""Plans against a naive model, with a server that answers for less than asked, differently for each context."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.model.extent import PART, Extent
from understudy.model.transfer import TransferMode
from understudy.mover.base import NothingKnown
from understudy.mover.meter import Counters
from understudy.mover.plan import Conclusion, Plan, PlanSpec, ReadBlock, Skipped, ZeroRun
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import KIB

BLOCK = 256 * KIB
UNIT = 16 * KIB


class Server:
    """Says zero and dirty for units of 16 KiB; answers for a random length."""

    def __init__(self, size: int, zero: set[int], dirty: set[int], seed: int) -> None:
        self._size, self._dice = size, random.Random(seed)
        self._flags = {ALLOCATION: (zero, ZERO_FLAG), "dirty": (dirty, DIRTY_FLAG)}

    def has(self, context: str) -> bool:
        return context in self._flags

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        assert at_least <= length
        assert start + length <= self._size
        known = self._dice.randint(at_least, length)
        found: dict[str, list[Extent]] = {}
        for name, (units, flag) in self._flags.items():
            position, found[name] = start, []
            while position < start + known:
                end = min((position // UNIT + 1) * UNIT, start + known)
                found[name].append(Extent(position, end - position, flag if position // UNIT in units else 0))
                position = end
        return known, found


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, set[int], set[int], int]:
    """Size, zero units, dirty units, seed."""
    size = draw(st.integers(1, 6 * BLOCK // 512)) * 512
    units = -(-size // UNIT)
    runs = st.lists(st.tuples(st.integers(0, units), st.integers(0, 40)), max_size=6)

    def spread(places: list[tuple[int, int]]) -> set[int]:
        return {unit for start, length in places for unit in range(start, min(start + length, units))}

    return size, spread(draw(runs)), spread(draw(runs)), draw(st.integers(0, 1 << 30))


@settings(max_examples=300, deadline=None)
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
        assert (index in zeroed) == (wanted and is_zero and write_zeros)
        assert (index in read) == (wanted and not is_zero)
        if index in read:
            assert read[index].block == Extent(start, end - start)
            _check_wanted(read[index], dirty if mode is TransferMode.INCREMENTAL else units)


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
