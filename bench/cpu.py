"""Processor time: what a contender really cost, which says more than its seconds when the machine is busy."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Taken:
    """What one run of a contender took, in seconds: on the clock, and of the processors, its servers' included."""

    seconds: float
    cpu: float


class CpuMeter:
    """Measures inside its context; ``seconds`` and ``parts`` are there when it was left.

    :param pids: processes that live through the context, by the part that they play. Children that start and end inside
        it count too, for no part.
    """

    def __init__(self, pids: Mapping[str, Collection[int]]) -> None:
        self.seconds = 0.0
        self.parts: dict[str, float] = {}
        self._pids = pids

    def __enter__(self) -> Self:
        self._before, self._children_before = self._used(), _children_seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.parts = {part: used - self._before[part] for part, used in self._used().items()}
            self.seconds = sum(self.parts.values()) + _children_seconds() - self._children_before

    def _used(self) -> dict[str, float]:
        return {part: sum(map(_process_seconds, pids)) for part, pids in self._pids.items()}


def _children_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _process_seconds(pid: int) -> float:
    # The command name, in parentheses, may itself have spaces; user and system time are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
