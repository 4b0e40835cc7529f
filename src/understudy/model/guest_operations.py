"""What a platform does inside a guest for us, as a user of that guest: control calls and small files, no disk data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from understudy.model.guest import GuestSystem


@dataclass(frozen=True)
class GuestLogin:
    """Who logs in to a guest."""

    user: str
    password: str = field(repr=False)


class GuestOperations(Protocol):
    """One guest, through its platform. Its verbs raise :class:`understudy.errors.GuestError`."""

    @property
    def system(self) -> GuestSystem:
        """Which programs the guest runs, and what its paths look like."""

    @property
    def user(self) -> str:
        """As whom programs run there."""

    def start(self, program: str, arguments: str) -> int:
        """Start a program by its absolute path; its process number.

        :param arguments: one text, which a shell of the guest takes apart where it has one.
        """

    def ended(self, pid: int) -> int | None:
        """The exit status of a program that was started here; None while it runs."""

    def terminate(self, pid: int) -> None:
        """Kill a process; no error if it has ended."""

    def put(self, path: str, content: bytes) -> None:
        """Write a file that only its owner can open, replacing what was there."""

    def get(self, path: str, limit: int) -> bytes:
        """The beginning of a file, ``limit`` bytes at the most."""

    def make_directory(self, parent: str) -> str:
        """Make a directory that only its owner can enter; its path.

        :param parent: where; empty: where the guest has such things.
        """

    def remove_directory(self, path: str) -> None:
        """Remove a directory with all that is in it."""
