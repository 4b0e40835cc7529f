"""No wrong range comes through the gate."""

from __future__ import annotations

import pytest

from understudy.model.extent import Extent
from understudy.volumes import Unfit
from understudy.volumes.gate import checked

SIZE, UNIT = 1 << 20, 4096
METADATA = [Extent(0, 8192)]


def test_good_ranges_are_sorted_and_merged() -> None:
    found = [Extent(16384, 4096), Extent(8192, 8192), Extent(65536, 4096)]
    assert checked(found, SIZE, UNIT, METADATA) == (Extent(8192, 12288), Extent(65536, 4096))


@pytest.mark.parametrize("found", [
    [Extent(4096, 4096)],
    [Extent(8192, 4095)],
    [Extent(8193, 4096)],
    [Extent(8192, 0)],
    [Extent(8192, 8192), Extent(12288, 4096)],
    [Extent(SIZE - 4096, 8192)],
    [Extent(SIZE, 4096)],
])  # fmt: skip
def test_one_wrong_range_condemns_all(found: list[Extent]) -> None:
    with pytest.raises(Unfit):
        checked([Extent(65536, 4096), *found], SIZE, UNIT, METADATA)
