"""What is laid over a disk: against a naive model, in windows, and at no cost where nothing is left out."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mover.test_plan import UNIT, Server
from understudy.errors import UsageError
from understudy.model.exclusion import pack
from understudy.model.extent import PART, Extent, merge
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource, ReadSpec
from understudy.mover.base import NothingKnown
from understudy.mover.excluded import HOLE_FLAG, Masks, masked, masks_of
from understudy.mover.meter import Counters
from understudy.mover.plan import Plan, PlanSpec, ReadBlock
from understudy.mover.reader import Client, DiskSource
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import GIB, MIB

SIZE = 40 * PART - 512
UNITS_IN_PART = PART // UNIT
sets = st.sets(st.integers(0, 39), max_size=30)


def ranges(size: int, numbers: set[int]) -> list[Extent]:
    return merge(Extent(number * PART, min(PART, size - number * PART)) for number in sorted(numbers))


def read_spec(size: int, now: set[int], before: set[int], once: set[int]) -> ReadSpec:
    packed = [pack(ranges(size, numbers)) for numbers in (now, before, once)]
    where = NbdSource("/s", "x", "dirty")
    return ReadSpec(where, "vda", size, TransferMode.INCREMENTAL, 4 * PART, True, "r", "p0", "p1",
                    excluded=packed[0], formerly_excluded=packed[1], once_excluded=packed[2])


class Planner(Server):
    """The server as a connection, too."""

    name, size, multi_conn = "x", SIZE, True

    @property
    def planner(self) -> Client:
        return cast("Client", self)


def units(extents: list[Extent], flag: int) -> set[int]:
    """The units of 16 KiB that have the flag; the extents tile what they cover."""
    for one, other in itertools.pairwise(extents):
        assert one.end == other.start
    return {unit for item in extents if item.flags & flag
            for unit in range(item.start // UNIT, -(-item.end // UNIT))}


@settings(max_examples=300, deadline=None)
@given(sets, sets, sets, st.sets(st.integers(0, 159), max_size=60), st.sets(st.integers(0, 159), max_size=60),
       st.integers())  # fmt: skip
def test_the_maps_tell_of_the_masked_disk(
    now: set[int], before: set[int], once: set[int], zero: set[int], dirty: set[int], seed: int
) -> None:
    source = masked(cast("DiskSource", Planner(SIZE, zero, dirty, seed)), read_spec(SIZE, now, before, once))
    position, dice = 0, random.Random(seed)
    told: dict[str, set[int]] = {"dirty": set(), ALLOCATION: set()}
    while position < SIZE:
        length = min(dice.randrange(1, 20) * PART, SIZE - position)
        known, statuses = source.statuses(position, length, min(UNIT, length))
        known = known // UNIT * UNIT if position + known < SIZE else known
        for name, flag in (("dirty", DIRTY_FLAG), (ALLOCATION, ZERO_FLAG)):
            assert statuses[name][0].start == position
            inside = units(statuses[name], flag)
            told[name] |= {unit for unit in inside if position <= unit * UNIT < position + known}
        position += known
    places = {unit: unit // UNITS_IN_PART for unit in range(-(-SIZE // UNIT))}
    assert told[ALLOCATION] == {unit for unit, part in places.items() if unit in zero or part in now}
    assert told["dirty"] == {
        unit for unit, part in places.items()
        if (part in now) != (part in before) or (part not in now and (unit in dirty or part in once))
    }  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(sets.filter(bool), st.integers(0, SIZE - 1), st.integers(1, SIZE))
def test_reads_are_zero_in_e_and_nowhere_else(now: set[int], start: int, length: int) -> None:
    masks = masks_of(read_spec(SIZE, now, set(), set()))
    assert masks is not None
    length = min(length, SIZE - start)
    buffer = bytearray(b"\1" * length)
    masks.read(memoryview(buffer), start)
    expected = bytearray(b"\1" * SIZE)
    for item in ranges(SIZE, now):
        expected[item.start : item.end] = bytes(item.length)
    assert buffer == expected[start : start + length]


def test_a_server_that_does_not_tell_what_is_allocated_still_has_zeros_in_e() -> None:
    masks = Masks((Extent(PART, PART, ZERO_FLAG | HOLE_FLAG),), ())
    assert masks.told({ALLOCATION: []}, "dirty", Extent(0, 3 * PART)) == {ALLOCATION: list(masks.zero)}


def test_where_nothing_is_left_out_nothing_is_in_the_way() -> None:
    source = cast("DiskSource", object())
    assert masked(source, read_spec(SIZE, set(), set(), set())) is source


class Scattered(Planner):
    """A huge disk with a change of 64 KiB in every hundred MiB."""

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        step, found, position = 100 * MIB, [], start
        while position < start + length:
            border = position // step * step
            end = border + PART if position < border + PART else border + step
            end = min(end, start + length)
            found.append(Extent(position, end - position, DIRTY_FLAG if position < border + PART else 0))
            position = end
        return length, {"dirty": found}

    def allocation(self, run: Extent) -> list[Extent]:
        return [Extent(run.start, run.length)]


def test_planning_10_tib_with_as_many_changes_and_ranges_as_there_may_be_is_a_matter_of_seconds() -> None:
    size, count = 10 * 1024 * GIB, 60_000
    dice = random.Random(1)
    now = set(dice.sample(range(size // PART), count))
    before = set(dice.sample(sorted(now), count // 2)) | set(dice.sample(range(size // PART), count // 2))
    read = read_spec(size, now, before, set())
    started = time.process_time()
    source = masked(cast("DiskSource", Scattered(size, set(), set(), 0)), read)
    plan = Plan(PlanSpec(size, MIB, TransferMode.INCREMENTAL, True, "dirty"), source, NothingKnown(), Counters())
    blocks = 0
    while (item := plan.take()) is not None:
        blocks += isinstance(item, ReadBlock)
    assert time.process_time() - started < 8
    assert blocks > 150_000


def test_ranges_of_another_disk_are_refused() -> None:
    read = read_spec(41 * PART, {40}, set(), set())
    with pytest.raises(UsageError, match="leaves out"):
        masks_of(replace(read, size=SIZE))
