"""Sizes and durations: what an operator types is understood, what he reads is right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.units import GIB, KIB, MIB, block_count, format_seconds, format_size, parse_duration, parse_size

UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}


@given(st.integers(0, 1 << 70), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "B", "iB"]), st.booleans())
def test_a_size_is_its_number_times_its_unit_however_it_is_written(
    number: int, unit: str, tail: str, lower: bool
) -> None:
    text = f" {number} {unit}{tail}\n"
    assert parse_size(text.lower() if lower else text) == number * UNITS[unit]


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5G", "1 P", "0x10", "1e3", "1KK", "1 024", "1M2"])
def test_what_is_no_size_is_refused_and_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="not a size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 1 << 60))
def test_a_formatted_size_is_within_a_twentieth_of_the_truth(count: int) -> None:
    number, unit = format_size(count).split()
    factor = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}[unit]
    assert abs(float(number) * factor - count) <= 0.05 * count


@given(st.integers(0, 1023), st.sampled_from(["", "KiB", "MiB", "GiB"]))
def test_a_whole_size_survives_formatting_and_parsing(number: int, unit: str) -> None:
    size = number * UNITS[unit[:1]]
    shown = format_size(size)
    if "." not in shown:
        assert parse_size(shown) == size
    else:
        whole, _, rest = shown.partition(".")
        assert rest.startswith("0 ") or size % UNITS[unit[:1]] == 0
        assert int(whole) == number or number == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (12.4, "12 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


@given(st.integers(0, 1 << 50), st.integers(1, 1 << 24))
def test_the_blocks_cover_the_disk_and_none_is_superfluous(size: int, block_size: int) -> None:
    count = block_count(size, block_size)
    assert count * block_size >= size
    assert (count - 1) * block_size < size


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), (" 30 m ", 1800), ("1h", 3600), ("2D", 172800)])
def test_a_duration_is_its_number_times_its_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1w", "1h30m", "9999999999s"])
def test_what_is_no_duration_is_refused_and_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)
