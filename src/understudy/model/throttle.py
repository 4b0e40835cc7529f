"""Throttles: how fast proxies may send, by day of the week and time of day; rates are bytes per second."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from understudy.units import GIB, KIB, MIB, format_size, parse_size

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
UNLIMITED = "unlimited"

_DAY_MINUTES = 24 * 60
_TIME = re.compile(r"(\d{1,2}):(\d\d)")
_BITS = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)bit(?:/s)?", re.IGNORECASE)
_BIT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class Window:
    """Part of the week with a rate of its own.

    :ivar days: days on which it begins, 0 is Monday.
    :ivar start_minute: minute of the day at which it begins.
    :ivar end_minute: minute at which it ends; not above ``start_minute`` if that is on the next day.
    :ivar rate: None for no limit.
    """

    days: frozenset[int]
    start_minute: int
    end_minute: int
    rate: int | None

    def holds_at(self, local_time: datetime) -> bool:
        """Whether ``local_time``, as the clock on the wall shows it, is in the window."""
        day, minute = local_time.weekday(), local_time.hour * 60 + local_time.minute
        if self.start_minute < self.end_minute:
            return day in self.days and self.start_minute <= minute < self.end_minute
        began_today = day in self.days and minute >= self.start_minute
        return began_today or ((day - 1) % 7 in self.days and minute < self.end_minute)


@dataclass(frozen=True)
class Throttle:
    """A limit for all that ``source_proxy`` sends to ``target_proxy`` over a network; empty stands for every proxy.

    :ivar rate: outside all windows; None for no limit.
    :ivar windows: the first one that holds wins.
    """

    name: str
    source_proxy: str = ""
    target_proxy: str = ""
    rate: int | None = None
    windows: tuple[Window, ...] = ()


def rate_at(throttle: Throttle, local_time: datetime) -> int | None:
    """What the throttle allows at ``local_time``; None for no limit."""
    found = (window.rate for window in throttle.windows if window.holds_at(local_time))
    return next(found, throttle.rate)


def parse_rate(text: str) -> int | None:
    """Bytes per second in ``text``: ``12M`` and ``12 MiB/s`` are binary, ``100Mbit`` is decimal; or ``unlimited``.

    :raises ValueError: if it is no rate above 0.
    """
    plain = text.strip()
    if plain.lower() == UNLIMITED:
        return None
    bits = _BITS.fullmatch(plain)
    try:
        rate = int(float(bits[1]) * _BIT_UNITS[bits[2].lower()] / 8) if bits else parse_size(plain.removesuffix("/s"))
    except ValueError as exc:
        raise ValueError(f"not a rate: {text!r}") from exc
    if rate <= 0:
        raise ValueError(f"not a rate above 0: {text!r}")
    return rate


def format_rate(rate: int | None) -> str:
    """A rate for people, in bytes and in bits: ``12.0 MiB/s (100.7 Mbit/s)``."""
    if rate is None:
        return UNLIMITED
    unit, name = next((found for found in ((10**9, "Gbit/s"), (10**6, "Mbit/s")) if rate * 8 >= found[0]),
                      (10**3, "kbit/s"))
    return f"{format_size(rate)}/s ({rate * 8 / unit:.1f} {name})"


def parse_window(text: str) -> Window:
    """The window that ``text`` describes: days, times and rate, e.g. ``Mon-Fri 08:00-18:00 12M``.

    Days are joined by commas and hyphens, or ``daily``. A window that ends before it begins goes on to the next day;
    ``24:00`` is the end of a day.

    :raises ValueError: if it describes none.
    """
    parts = text.split(maxsplit=2)
    if len(parts) != 3:
        raise ValueError(f"not a window: {text!r}")
    start, separator, end = parts[1].partition("-")
    if not separator:
        raise ValueError(f"no start and end: {parts[1]!r}")
    start_minute, end_minute = _minute(start), _minute(end)
    if start_minute in (end_minute, _DAY_MINUTES):
        raise ValueError(f"no time between start and end: {parts[1]!r}")
    return Window(_days(parts[0]), start_minute, end_minute, parse_rate(parts[2]))


def format_window(window: Window) -> str:
    """The window as :func:`parse_window` reads it."""
    days = ",".join(_runs(sorted(window.days))) if len(window.days) < len(DAYS) else "daily"
    return f"{days} {format_minute(window.start_minute)}-{format_minute(window.end_minute)} {_exact(window.rate)}"


def format_minute(minute: int) -> str:
    """A minute of the day as ``HH:MM``."""
    return f"{minute // 60:02}:{minute % 60:02}"


def _days(text: str) -> frozenset[int]:
    if text.lower() == "daily":
        return frozenset(range(len(DAYS)))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = _day(first), _day(last or first)
        found.update((start + step) % 7 for step in range((end - start) % 7 + 1))
    return frozenset(found)


def _day(text: str) -> int:
    name = text.strip().capitalize()
    if name not in DAYS:
        raise ValueError(f"not a day: {text!r}; use {', '.join(DAYS)} or daily")
    return DAYS.index(name)


def _minute(text: str) -> int:
    match = _TIME.fullmatch(text)
    minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else _DAY_MINUTES + 1
    if minute > _DAY_MINUTES:
        raise ValueError(f"not a time of day: {text!r}")
    return minute


def _runs(days: list[int]) -> list[str]:
    """Days in a row as ``Mon-Wed``, others alone."""
    runs: list[list[int]] = []
    for day in days:
        if runs and day == runs[-1][-1] + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return [DAYS[run[0]] if len(run) == 1 else f"{DAYS[run[0]]}-{DAYS[run[-1]]}" for run in runs]


def _exact(rate: int | None) -> str:
    if rate is None:
        return UNLIMITED
    unit, suffix = next((found for found in ((GIB, "G"), (MIB, "M"), (KIB, "K")) if rate % found[0] == 0), (1, ""))
    return f"{rate // unit}{suffix}"
