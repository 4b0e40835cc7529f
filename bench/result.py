"""Results: the rows of the benchmark, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Unit(StrEnum):
    """What a row's values are."""

    RATIO = "x"
    SECONDS = "s"
    MILLISECONDS = "ms"
    MEBIBYTES = "MiB"


@dataclass(frozen=True)
class Goal:
    """The figure to reach.

    :ivar at_least: the median must not be below ``value``; else it must not be above.
    :ivar within: how far the median may be from ``value``, on both sides; then ``at_least`` does not count.
    """

    value: float
    at_least: bool = False
    within: float | None = None

    def reached(self, median: float) -> bool:
        """Whether the median is good enough."""
        if self.within is not None:
            return abs(median - self.value) <= self.within
        return median >= self.value if self.at_least else median <= self.value


@dataclass(frozen=True)
class Row:
    """One measured row.

    :ivar values: one for each run, in order.
    :ivar goal: None for rows that only report.
    :ivar details: what the values were made from, one number for each run.
    :ivar checked: what the content check compared; empty if the row has none of its own.
    """

    name: str
    title: str
    unit: Unit
    values: tuple[float, ...]
    goal: Goal | None = None
    details: dict[str, list[float]] = field(default_factory=dict)
    checked: str = ""

    @property
    def median(self) -> float:
        """The measured figure."""
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """``ok``, ``missed``, or a dash for rows without a goal."""
        if self.goal is None:
            return "-"
        return "ok" if self.goal.reached(self.median) else "missed"

    def shape(self) -> dict[str, Any]:
        """The row as JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit.value,
            "goal": None if self.goal is None else asdict(self.goal),
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "verdict": self.verdict,
            "values": list(self.values),
            "details": self.details,
            "detail_medians": {name: statistics.median(values) for name, values in self.details.items() if values},
            "checked": self.checked,
        }


def ratios(peer: Sequence[float], ours: Sequence[float]) -> tuple[float, ...]:
    """How many times faster ours was, run by run: above 1 is faster."""
    return tuple(theirs / own for theirs, own in zip(peer, ours, strict=True))


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [("Row", "Goal", "Median", "Min - max", "", "What")]
    lines += [(row.name, _goal(row), _number(row, row.median), _range(row), row.verdict, row.title) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(_line(line, widths) for line in lines)


def _line(words: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right, what does not need a width last."""
    name, goal, median, spread, verdict, title = words
    numbers = [word.rjust(width) for word, width in zip((goal, median, spread), widths[1:4], strict=True)]
    return "  ".join([name.ljust(widths[0]), *numbers, verdict.ljust(widths[4]), title])


def _goal(row: Row) -> str:
    if row.goal is None:
        return "-"
    if row.goal.within is not None:
        return f"{row.goal.value:g} +- {row.goal.within:g} {row.unit.value}"
    return f"{'>=' if row.goal.at_least else '<='} {row.goal.value:g} {row.unit.value}"


def _number(row: Row, value: float) -> str:
    digits = 0 if row.unit in (Unit.MILLISECONDS, Unit.MEBIBYTES) else 2
    return f"{value:.{digits}f} {row.unit.value}"


def _range(row: Row) -> str:
    low, high = (_number(row, value).split()[0] for value in (min(row.values), max(row.values)))
    return f"{low} - {high}"
