"""Estimates against a naive model that looks at each 64 KiB part of a small disk."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import Cancelled
from understudy.model.extent import Extent, clip, merge
from understudy.model.transfer import TransferMode
from understudy.mover import estimate
from understudy.mover import plan as plan_module
from understudy.mover.base import NothingKnown
from understudy.mover.estimate import sum_transfer
from understudy.mover.plan import PlanSpec, ReadBlock, plan_disk
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import KIB

BLOCK = 256 * KIB
UNIT = 32 * KIB
FULL, INCREMENTAL = TransferMode.FULL, TransferMode.INCREMENTAL


class Server:
    """Tells of units of 32 KiB what is in it; answers for a random length of what it is asked."""

    def __init__(self, size: int, zero: set[int], dirty: set[int], seed: int = 0) -> None:
        self.size, self._dice = size, random.Random(seed)
        self._flags = {ALLOCATION: (zero, ZERO_FLAG), "dirty": (dirty, DIRTY_FLAG)}

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        known = self._dice.randint(at_least, length)
        return known, {name: self._told(name, start, start + known) for name in self._flags}

    def allocation(self, run: Extent) -> list[Extent]:
        return self._told(ALLOCATION, run.start, run.end)

    def _told(self, name: str, start: int, end: int) -> list[Extent]:
        flagged, flag = self._flags[name]
        asked = range(start // UNIT, -(-end // UNIT))
        units = (Extent(unit * UNIT, UNIT, flag if unit in flagged else 0) for unit in asked)
        return clip(units, start, end)


def units_of(size: int) -> range:
    return range(-(-size // UNIT))


def length_of(unit: int, size: int) -> int:
    return min(UNIT, size - unit * UNIT)


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, set[int], set[int], set[int], int]:
    """Size, zero units, dirty units, units left out (whole parts), seed. What is left out is told as zero."""
    size = draw(st.integers(1, 14 * BLOCK // 512)) * 512
    count = len(units_of(size))
    runs = st.lists(st.tuples(st.integers(0, count), st.integers(0, 40)), max_size=5)

    def spread(places: list[tuple[int, int]]) -> set[int]:
        return {unit for start, length in places for unit in range(start, min(start + length, count))}

    parts = {unit // 2 for unit in spread(draw(runs))}
    left_out = {unit for part in parts for unit in (2 * part, 2 * part + 1) if unit < count}
    return size, spread(draw(runs)) | left_out, spread(draw(runs)), left_out, draw(st.integers(0, 1 << 30))


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (estimate, plan_module):
        monkeypatch.setattr(module, "WINDOW", 4 * BLOCK)
        monkeypatch.setattr(module, "DIRTY_WINDOW", 6 * BLOCK)


@settings(max_examples=100)
@given(disks(), st.sampled_from(list(TransferMode)), st.booleans())
def test_the_categories_tile_the_disk_and_the_sums_are_those_of_the_model(
    disk: tuple[int, set[int], set[int], set[int], int], mode: TransferMode, write_zeros: bool
) -> None:
    size, zero, dirty, left_out, seed = disk
    excluded = merge(Extent(unit * UNIT, length_of(unit, size)) for unit in sorted(left_out))
    spec = PlanSpec(size, BLOCK, mode, write_zeros, "dirty")
    sums = sum_transfer(spec, Server(size, zero, dirty, seed), NothingKnown(), excluded)
    weigh = {unit: length_of(unit, size) for unit in units_of(size)}
    assert sums.zero == sum(weigh[unit] for unit in zero - left_out)
    assert sums.used == sum(weigh[unit] for unit in set(weigh) - zero)
    assert sums.used + sums.zero + sum(weigh[unit] for unit in left_out) == size
    changed = {unit // 2 for unit in dirty}
    if mode is not INCREMENTAL:
        assert sums.changed is None
        changed = {unit // 2 for unit in weigh}
    else:
        assert sums.changed == sum(weigh[unit] for unit in weigh if unit // 2 in changed)
    data = {unit // 2 for unit in set(weigh) - zero}
    assert sums.send == sum(weigh[unit] for unit in weigh if unit // 2 in changed & data)
    planned = plan_disk(spec, Server(size, zero, dirty, seed), NothingKnown())
    assert sums.read == sum(item.block.length for item in planned if isinstance(item, ReadBlock))


def test_a_disk_of_which_nothing_is_told_is_used_as_a_whole() -> None:
    class Silent(Server):
        def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
            return length, {}

        def allocation(self, run: Extent) -> list[Extent]:
            return []

    sums = sum_transfer(PlanSpec(3 * BLOCK, BLOCK, FULL, False), Silent(3 * BLOCK, {1}, set()), NothingKnown(), ())
    assert (sums.used, sums.zero, sums.read, sums.send) == (3 * BLOCK, 0, 3 * BLOCK, 3 * BLOCK)


def test_it_can_be_ended_in_every_window() -> None:
    left = [3]

    def check() -> None:
        left[0] -= 1
        if not left[0]:
            raise Cancelled("estimate")

    with pytest.raises(Cancelled):
        sum_transfer(PlanSpec(12 * BLOCK, BLOCK, FULL, False), Server(12 * BLOCK, set(), set()), NothingKnown(), (),
                     check)
