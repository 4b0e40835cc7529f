"""Extent functions against a naive model: sets of bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from understudy.model import extent
from understudy.model.extent import Extent

LIMIT = 200


def covered(ranges: list[Extent]) -> set[int]:
    """Every byte of the ranges."""
    return {byte for item in ranges for byte in range(item.start, item.end)}


def is_range_list(ranges: list[Extent]) -> bool:
    """Sorted, disjoint, nothing empty."""
    return all(item.length > 0 for item in ranges) and all(
        left.end <= right.start for left, right in pairwise(ranges)
    )


@st.composite
def range_lists(draw: st.DrawFn) -> list[Extent]:
    """Disjoint sorted ranges in 0..LIMIT."""
    flags = draw(st.lists(st.booleans(), min_size=LIMIT, max_size=LIMIT))
    return extent.merge(Extent(byte, 1) for byte, flag in enumerate(flags) if flag)


@given(st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, 50))))
def test_merge_covers_the_same_bytes_with_joined_ranges(places: list[tuple[int, int]]) -> None:
    ranges = sorted((Extent(start, length) for start, length in places), key=lambda item: item.start)
    merged = extent.merge(ranges)
    assert covered(merged) == covered(ranges)
    assert is_range_list(merged)
    assert all(left.end < right.start for left, right in pairwise(merged))


@given(range_lists(), range_lists())
def test_intersect_and_subtract_are_set_operations(left: list[Extent], right: list[Extent]) -> None:
    for result, expected in (
        (extent.intersect(left, right), covered(left) & covered(right)),
        (extent.subtract(left, right), covered(left) - covered(right)),
    ):
        assert covered(result) == expected
        assert is_range_list(result)


@given(range_lists(), st.integers(1, 40))
def test_rounding_out_and_in_bracket_the_ranges(ranges: list[Extent], unit: int) -> None:
    blocks = [set(range(start, min(start + unit, LIMIT))) for start in range(0, LIMIT, unit)]
    touched = set().union(*(block for block in blocks if block & covered(ranges)))
    whole = set().union(*(block for block in blocks if block <= covered(ranges)))
    assert covered(extent.round_out(ranges, unit, LIMIT)) == touched
    assert covered(extent.round_in(ranges, unit, LIMIT)) == whole


@given(range_lists(), st.integers(1, 40))
def test_by_block_cuts_at_borders_and_loses_nothing(ranges: list[Extent], unit: int) -> None:
    groups = list(extent.by_block(ranges, unit))
    assert [index for index, _ in groups] == sorted({index for index, _ in groups})
    assert covered([piece for _, pieces in groups for piece in pieces]) == covered(ranges)
    for index, pieces in groups:
        assert pieces
        assert all(piece.start // unit == index == (piece.end - 1) // unit for piece in pieces)


@given(range_lists(), st.integers(0, LIMIT), st.integers(0, LIMIT))
def test_clip_keeps_what_lies_inside(ranges: list[Extent], start: int, end: int) -> None:
    assert covered(extent.clip(ranges, start, end)) == covered(ranges) & set(range(start, end))


def test_a_million_extents_take_no_quadratic_time() -> None:
    left = [Extent(2 * number, 1) for number in range(300_000)]
    right = [Extent(4 * number, 2) for number in range(150_000)]
    assert len(extent.intersect(left, right)) == 150_000
    assert len(extent.subtract(left, right)) == 150_000
