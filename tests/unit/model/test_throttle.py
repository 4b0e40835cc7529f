"""Throttles: which rate holds when, and what an operator may write."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.model.throttle import (
    Throttle,
    Window,
    format_rate,
    format_window,
    parse_rate,
    parse_window,
    rate_at,
)
from understudy.units import GIB, KIB, MIB

MONDAY = datetime(2026, 11, 23)


def moment(day: int, hour: int, minute: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("Mon-Fri 08:00-18:00 1M", [(0, 8, 0), (4, 17, 59)], [(0, 7, 59), (4, 18, 0), (5, 12, 0)]),
        ("Fri 22:00-06:00 1M", [(4, 22, 0), (4, 23, 59), (5, 0, 0), (5, 5, 59)], [(4, 21, 59), (4, 3, 0), (5, 6, 0)]),
        ("Sun 22:00-06:00 1M", [(6, 22, 0), (0, 5, 59), (7, 5, 59)], [(0, 22, 0), (6, 5, 0)]),
        ("Sat-Mon 00:00-24:00 1M", [(5, 0, 0), (6, 12, 0), (0, 23, 59)], [(1, 0, 0), (4, 23, 59)]),
        ("daily 12:00-11:00 1M", [(0, 12, 0), (3, 10, 59)], [(0, 11, 0), (0, 11, 59)]),
        ("tue,THU 00:00-00:01 1M", [(1, 0, 0), (3, 0, 0)], [(1, 0, 1), (2, 0, 0)]),
    ],
)
def test_a_window_holds_from_its_start_until_before_its_end(
    text: str, inside: list[tuple[int, int, int]], outside: list[tuple[int, int, int]]
) -> None:
    window = parse_window(text)
    assert [window.holds_at(moment(*at)) for at in inside] == [True] * len(inside)
    assert [window.holds_at(moment(*at)) for at in outside] == [False] * len(outside)


def test_the_first_window_that_holds_wins_and_the_base_rate_holds_elsewhere() -> None:
    windows = (parse_window("Mon 10:00-12:00 unlimited"), parse_window("Mon-Fri 08:00-18:00 2M"))
    throttle = Throttle("night", "", "", 9 * MIB, windows)
    assert rate_at(throttle, moment(0, 9)) == 2 * MIB
    assert rate_at(throttle, moment(0, 10)) is None
    assert rate_at(throttle, moment(0, 12)) == 2 * MIB
    assert rate_at(throttle, moment(0, 18)) == 9 * MIB
    assert rate_at(Throttle("open"), moment(0, 9)) is None


@pytest.mark.parametrize(
    ("text", "rate"),
    [("12M", 12 * MIB), ("12 MiB/s", 12 * MIB), ("64k", 64 * KIB), ("1G", GIB), ("1000", 1000), ("100Mbit", 12_500_000),
     ("1.5 Gbit/s", 187_500_000), ("64kbit", 8000), ("800bit", 100), ("Unlimited", None)],
)  # fmt: skip
def test_a_rate_is_bytes_in_binary_or_bits_in_decimal_units(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "M", "-1M", "0", "0Mbit", "1bit", "1.5M", "12 Mbyte", "12Mbits", "fast"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    "text",
    ["", "Mon", "Mon 08:00-18:00", "Mon 08:00 1M", "Mon 8-18 1M", "Mon 08:60-18:00 1M", "Mon 08:00-24:01 1M",
     "Mon 08:00-08:00 1M", "Mon 24:00-08:00 1M", "Day 08:00-18:00 1M", "Mon- 08:00-18:00 x", "Mon,,Tue 08:00-18:00 1M",
     "-Mon 08:00-18:00 1M", "Mon 08:00-18:00 0"],
)  # fmt: skip
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a|no start|no time"):
        parse_window(text)


WINDOWS = st.builds(
    Window, st.frozensets(st.integers(0, 6), min_size=1), st.integers(0, 1439), st.integers(0, 1440),
    st.none() | st.integers(1, 1 << 50),
).filter(lambda window: window.start_minute != window.end_minute)


@given(WINDOWS)
def test_a_window_survives_writing_and_reading(window: Window) -> None:
    assert parse_window(format_window(window)) == window


def test_windows_and_rates_are_written_as_people_write_them() -> None:
    text = "Mon-Wed,Sat 08:00-18:00 12M"
    assert format_window(parse_window(text)) == text
    assert format_window(parse_window("Sat-Mon 22:00-24:00 unlimited")) == "Mon,Sat-Sun 22:00-24:00 unlimited"
    assert format_window(parse_window("Mon-Sun 1:00-2:00 100Mbit")) == "daily 01:00-02:00 12500000"
    assert format_rate(12 * MIB) == "12.0 MiB/s (100.7 Mbit/s)"
    assert format_rate(64 * KIB) == "64.0 KiB/s (524.3 kbit/s)"
    assert format_rate(GIB) == "1.0 GiB/s (8.6 Gbit/s)"
    assert format_rate(None) == "unlimited"
