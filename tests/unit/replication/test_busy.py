"""Shares of busy time: who keeps a transfer from being faster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.replication.busy import PARTS, bottleneck, shares

seconds = st.floats(0, 1e9, allow_nan=False)
parts = st.dictionaries(st.sampled_from(PARTS), seconds)


@given(parts, parts)
def test_shares_add_up_to_one_or_there_are_none(near: dict[str, float], far: dict[str, float]) -> None:
    found = shares(near, far)
    if sum(near.values()) > 0:
        assert set(found) == set(PARTS)
        assert all(0 <= share <= 1 for share in found.values())
        assert sum(found.values()) == pytest.approx(1, abs=len(PARTS) * 0.00005 + 1e-9)
    else:
        assert found == {}
    assert bottleneck(found) in ((*PARTS,) if found else ("",))


@given(st.floats(0.001, 1e6), seconds)
def test_what_the_source_side_does_not_wait_for_is_never_blamed(source: float, far: float) -> None:
    found = shares({"source": source, "source_proxy": source, "network": 0.0}, {"target": far, "network": 1.0})
    assert (found["network"], found["target"], found["target_proxy"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("near", "far", "expected", "slowest"),
    [
        # The disk is slow; the target has nothing to do most of the time.
        ({"source": 8.0, "source_proxy": 1.0, "network": 1.0}, {"target": 1.0, "target_proxy": 0.0, "network": 9.0},
         {"source": 0.8, "source_proxy": 0.1, "network": 0.0, "target_proxy": 0.0, "target": 0.1}, "source"),
        # Digests and compression take the time.
        ({"source": 1.0, "source_proxy": 9.0}, {"target": 1.0, "network": 9.0},
         {"source": 0.1, "source_proxy": 0.9, "network": 0.0, "target_proxy": 0.0, "target": 0.0}, "source_proxy"),
        # The source waits, and the target has nothing to do: it is what lies between.
        ({"source": 1.0, "source_proxy": 1.0, "network": 8.0}, {"target": 0.5, "target_proxy": 0.5, "network": 9.0},
         {"source": 0.1, "source_proxy": 0.1, "network": 0.7, "target_proxy": 0.05, "target": 0.05}, "network"),
        # The source waits, and the target writes all the time.
        ({"source": 1.0, "source_proxy": 1.0, "network": 8.0}, {"target": 9.0, "target_proxy": 1.0, "network": 0.0},
         {"source": 0.1, "source_proxy": 0.1, "network": 0.0, "target_proxy": 0.08, "target": 0.72}, "target"),
        # One proxy: it writes itself.
        ({"source": 1.0, "target": 3.0}, {},
         {"source": 0.25, "source_proxy": 0.0, "network": 0.0, "target_proxy": 0.0, "target": 0.75}, "target"),
        # The target did not start yet.
        ({"source": 1.0, "network": 1.0}, {"target": 0.0, "network": 0.0},
         {"source": 0.5, "source_proxy": 0.0, "network": 0.5, "target_proxy": 0.0, "target": 0.0}, "source"),
    ],
    ids=["source", "source proxy", "network", "target", "one proxy", "no target yet"],
)  # fmt: skip
def test_the_busy_part_has_the_largest_share(
    near: dict[str, float], far: dict[str, float], expected: dict[str, float], slowest: str
) -> None:
    found = shares(near, far)
    assert found == pytest.approx(expected, abs=0.0001)
    assert bottleneck(found) == slowest
