"""Changed areas of a disk: whatever the pages are, every block that changed is among them, or the answer is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.model.exclusion import MOST_RANGES, pack, unpack
from understudy.model.extent import Extent, merge, subtract, total
from understudy.platforms.vsphere.areas import AnswerError, Bounded, Page, changed_areas, join_nearest

UNIT = 512
BLOCKS = 200


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[Extent]]:
    """The capacity of a disk, and what changed on it; often up to its very end."""
    blocks = draw(st.integers(1, BLOCKS))
    changed = draw(st.sets(st.integers(0, blocks - 1)) | st.just({blocks - 1}) | st.just(set(range(blocks))))
    return blocks * UNIT, merge(Extent(block * UNIT, UNIT) for block in sorted(changed))


class Platform:
    """Answers in pages of so many areas, which end where the draw says; an error at the end of the disk (P45)."""

    def __init__(self, capacity: int, changed: list[Extent], draw: Callable[[int, int], int], *, over: int = 0) -> None:
        self.capacity = capacity
        self.changed = changed
        self._draw = draw
        self._over = over
        self.asked: list[int] = []

    def ask(self, start: int) -> Page:
        if start >= self.capacity:
            raise AssertionError("asked at the end of the disk")
        self.asked.append(start)
        end = min(self.capacity, start + self._draw(1, BLOCKS) * UNIT)
        areas = [(max(area.start, start), min(area.end, end)) for area in self.changed]
        inside = tuple(Extent(first, last - first) for first, last in areas if first < last)
        if end == self.capacity and self._over:
            # The tracking file knows whole units only: the last area may reach past the end of the disk.
            inside = tuple(Extent(item.start, item.length + self._over * (item.end == end)) for item in inside)
            end += self._over
        return Page(start, end - start, inside)


@given(disks(), st.data(), st.sampled_from([0, UNIT, 64 * 1024]))
def test_every_changed_byte_is_found_over_any_pages_and_no_other(
    disk: tuple[int, list[Extent]], data: st.DataObject, over: int
) -> None:
    capacity, changed = disk
    platform = Platform(capacity, changed, lambda low, high: data.draw(st.integers(low, high)), over=over)
    assert list(changed_areas(platform.ask, capacity)) == changed
    assert platform.asked == sorted(set(platform.asked))


@given(disks(), st.data(), st.integers(1, 8))
def test_what_is_too_much_for_memory_becomes_fewer_areas_that_hold_all_of_it(
    disk: tuple[int, list[Extent]], data: st.DataObject, most: int
) -> None:
    capacity, changed = disk
    platform = Platform(capacity, changed, lambda low, high: data.draw(st.integers(low, high)))
    found = changed_areas(platform.ask, capacity, most)
    assert len(found) <= most
    assert subtract(changed, found) == []
    assert list(found) == merge(found)
    assert not found or found[-1].end <= capacity
    assert unpack(pack(found)) == found
    if len(changed) <= most:
        assert list(found) == changed


@given(disks(), st.integers(1, 12))
def test_the_smallest_gaps_are_closed(disk: tuple[int, list[Extent]], most: int) -> None:
    _, changed = disk
    joined = join_nearest(changed, most)
    gaps = sorted(after.start - before.end for before, after in itertools.pairwise(changed))
    closed = gaps[: max(0, len(changed) - most)]
    assert total(joined) == total(changed) + sum(closed)


def test_the_most_that_can_be_packed_are_kept_exactly_and_one_more_costs_one_gap() -> None:
    areas = [Extent(2 * UNIT * index, UNIT) for index in range(MOST_RANGES + 1)]
    exact, more = Bounded(MOST_RANGES), Bounded(MOST_RANGES)
    exact.add(areas[:-1])
    more.add(areas)
    assert unpack(pack(exact.areas)) == tuple(areas[:-1])
    assert len(unpack(pack(more.areas))) == MOST_RANGES
    assert total(more.areas) == total(areas) + UNIT


def test_areas_that_touch_over_a_page_are_one() -> None:
    pages = {0: Page(0, 1024, (Extent(512, 512),)), 1024: Page(1024, 1024, (Extent(1024, 512),))}
    assert changed_areas(pages.__getitem__, 2048) == (Extent(512, 1024),)


def test_an_empty_disk_is_not_asked_for() -> None:
    assert changed_areas(lambda start: pytest.fail("asked"), 0) == ()


@pytest.mark.parametrize(("page", "why"), [
    (Page(0, 0, ()), "ends at 0"),
    (Page(0, -512, ()), "ends at -512"),
    (Page(512, 512, ()), "begins at 512"),
    (Page(-512, 2048, ()), "begins at -512"),
    (Page(0, 1024, (Extent(1024, 512),)), "not in the part"),
    (Page(0, 1024, (Extent(512, 1024),)), "not in the part"),
    (Page(0, 4096, (Extent(2048, 512),)), "not in the part"),
    (Page(0, 2048, (Extent(-512, 1024),)), "not in order"),
    (Page(0, 2048, (Extent(1024, 512), Extent(0, 512))), "not in order"),
    (Page(0, 2048, (Extent(0, 1024), Extent(512, 512))), "not in order"),
    (Page(0, 2048, (Extent(512, 0),)), "not in order"),
])  # fmt: skip
def test_an_answer_that_makes_no_sense_is_refused(page: Page, why: str) -> None:
    with pytest.raises(AnswerError, match=why):
        changed_areas(lambda _: page, 2048)


def test_a_page_that_goes_back_is_refused_and_asked_for_once() -> None:
    asked = []

    def ask(start: int) -> Page:
        asked.append(start)
        return Page(0, 1024, ())

    with pytest.raises(AnswerError, match="begins at 0"):
        changed_areas(ask, 2048)
    assert asked == [0, 1024]
