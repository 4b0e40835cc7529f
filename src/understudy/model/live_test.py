"""What a live test of a host found: every call of a session, made on one VM, with its duration and result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Fact = str | int | float | bool | None


@dataclass(frozen=True)
class LiveTestWish:
    """What is to be tested.

    :ivar proxy: that reads; empty for the first that can.
    :ivar read_bytes: of each disk at most.
    """

    vm: str
    proxy: str = ""
    read_bytes: int = 16 << 20


@dataclass(frozen=True)
class LiveStep:
    """One call, or a few that belong together.

    :ivar facts: what came of it.
    :ivar error: why it failed, or empty.
    """

    name: str
    seconds: float
    facts: Mapping[str, Fact] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class LiveTestReport:
    """All steps in their order; after one that failed only what cleans up was done.

    :ivar names: of the operator's own things, so that they can be made unreadable before the report is sent elsewhere.
    """

    steps: tuple[LiveStep, ...]
    names: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every step succeeded."""
        return not any(step.error for step in self.steps)
