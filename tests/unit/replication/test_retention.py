"""Retention: only the oldest surplus goes, and never the newest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.replication.retention import points_to_retire

POINTS = st.lists(st.text(min_size=1), unique=True)


@given(POINTS, st.integers(1, 20))
def test_exactly_the_surplus_goes_oldest_first(points: list[str], keep: int) -> None:
    gone = points_to_retire(points, keep)
    assert len(gone) == max(0, len(points) - keep)
    assert list(gone) == points[: len(gone)]


@given(POINTS.filter(bool), st.integers(1, 20))
def test_the_newest_always_stays(points: list[str], keep: int) -> None:
    assert points[-1] not in points_to_retire(points, keep)


@given(POINTS, st.integers(1, 20))
def test_retiring_again_finds_nothing_to_do(points: list[str], keep: int) -> None:
    left = points[len(points_to_retire(points, keep)) :]
    assert points_to_retire(left, keep) == ()


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="at least one restore point"):
        points_to_retire(["a"], keep)
