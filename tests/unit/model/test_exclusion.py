"""What is left out, as text: it comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import base64
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.model.exclusion import excludable, pack, ranges_of, unpack
from understudy.model.extent import PART, Extent, merge

SIZE = 100 * PART - 512


@given(st.sets(st.integers(0, 99)))
def test_ranges_come_back_as_they_were(parts: set[int]) -> None:
    ranges = tuple(merge(Extent(part * PART, min(PART, SIZE - part * PART)) for part in sorted(parts)))
    assert ranges_of(pack(ranges), SIZE) == ranges == excludable(ranges, SIZE)


def test_ranges_that_touch_are_one() -> None:
    assert ranges_of(pack([Extent(0, PART), Extent(PART, PART)]), SIZE) == (Extent(0, 2 * PART),)


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda data: base64.b64encode(zlib.compress(data)).decode()))
def test_any_text_is_ranges_of_the_disk_or_an_error(text: str) -> None:
    try:
        found = ranges_of(text, SIZE)
    except ValueError:
        return
    assert all(not item.start % PART and (not item.end % PART or item.end == SIZE) for item in found)
    assert all(0 <= item.start < item.end <= SIZE for item in found)


def test_a_number_without_end_is_an_error_at_once() -> None:
    text = base64.b64encode(zlib.compress(b"\xff" * 1_000_000)).decode()
    started = time.process_time()
    with pytest.raises(ValueError, match="too large"):
        unpack(text)
    assert time.process_time() - started < 2
