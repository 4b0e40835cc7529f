"""What every way into a guest can do: run a program there, and put a file there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.model.guest import GuestSystem, GuestTransport

#: More of what a program in the guest writes is not kept.
OUTPUT_LIMIT = 1 << 20


def go_on() -> None:
    """Nobody wants the end."""


@dataclass(frozen=True)
class Completed:
    """A program that ended in the guest; the status is negative if a signal ended it."""

    status: int
    stdout: bytes
    stderr: bytes


class Transport(Protocol):
    """A way into one guest, as a user with all rights there. Its verbs raise :class:`GuestError`."""

    @property
    def kind(self) -> GuestTransport:
        """Which way it is."""

    @property
    def system(self) -> GuestSystem:
        """Which programs the guest runs, and what its paths look like."""

    def run(
        self, argv: Sequence[str], timeout_s: float, stdin: bytes = b"", check: Callable[[], object] = go_on
    ) -> Completed:
        """Run a program to its end; ``check`` is called meanwhile and may raise.

        :raises GuestError: if it did not start, or did not end within ``timeout_s``; whether it ended then is unknown.
        """

    def run_pair(
        self, first: Sequence[str], second: Sequence[str], timeout_s: float
    ) -> tuple[Completed, Callable[[float], Completed]]:
        """Run ``first``; what is returned with its end runs ``second``, within so many seconds.

        For the time between, in which the guest's file systems are frozen: whatever lets us in there may wait for the
        thaw, as sudo does, so that ``second`` must not need it.

        :raises GuestError: as :meth:`run`; if ``first`` did not end in time ``second`` may be run by itself.
        """

    def put(self, path: str, content: bytes, mode: int, timeout_s: float) -> None:
        """Write a file whose directory nobody else may write to, replacing what was there.

        :param mode: of no meaning in a Windows guest, where a file may be used like its directory.
        """

    def close(self) -> None:
        """Let go of the guest; no error if it is gone."""
