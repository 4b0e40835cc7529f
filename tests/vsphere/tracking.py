"""ChangeTracker: changed block tracking of one disk, from the writes that a test records.

A change id is "UUID/number". The UUID is that of the tracking file and a new one says that all knowledge is lost; the
number counts snapshots. Each snapshot keeps the id of its instant, and the live disk has the next number already: who
takes the live id for a baseline misses what was written since the last snapshot, and only he.
"""

from __future__ import annotations

import uuid

#: What one bit of the tracking file stands for.
GRANULARITY = 64 * 1024


class UnknownChangeId(Exception):
    """The change id is of another tracking file, or of no snapshot before this one."""


class ChangeTracker:
    """Which areas of a disk were written, by the snapshot before which they were."""

    def __init__(self) -> None:
        self.active = False
        #: Whether the tracking file knows all that is allocated: not if there was a snapshot when it was made.
        self.complete = False
        self._identity = ""
        self._number = 0
        self._written: dict[int, set[int]] = {}

    @property
    def change_id(self) -> str:
        """The live disk's change id; empty while the disk is not tracked."""
        return f"{self._identity}/{self._number}" if self.active else ""

    def start(self, *, complete: bool) -> None:
        """Track from now on, with a new tracking file."""
        self.active, self.complete = True, complete
        self._identity, self._number, self._written = _new_identity(), 1, {1: set()}

    def stop(self) -> None:
        """Forget all."""
        self.active, self.complete = False, False
        self._written.clear()

    def record(self, offset: int, length: int) -> None:
        """The guest wrote there."""
        if self.active and length:
            first, last = offset // GRANULARITY, (offset + length - 1) // GRANULARITY
            self._written[self._number].update(range(first, last + 1))

    def freeze(self) -> str:
        """The change id of a snapshot taken now; what is written afterwards counts to the next."""
        frozen = self.change_id
        if self.active:
            self._number += 1
            self._written[self._number] = set()
        return frozen

    def changed(self, since: str, until: str) -> list[tuple[int, int]]:
        """Areas (start, end) that were written after `since` and before `until`, in order, joined where they touch.

        :raises UnknownChangeId: if `since` is no change id of this tracking file that is older than `until`.
        """
        first, last = self._known(since), self._known(until)
        if first > last:
            raise UnknownChangeId(since)
        return joined(set().union(*(self._written[number] for number in range(first + 1, last + 1))))

    def _known(self, change_id: str) -> int:
        identity, _, number = change_id.rpartition("/")
        if not self.active or identity != self._identity or not number.isdecimal() or int(number) not in self._written:
            raise UnknownChangeId(change_id)
        return int(number)


def joined(blocks: set[int]) -> list[tuple[int, int]]:
    """The areas (start, end) that `blocks` of the tracking granularity make."""
    areas: list[tuple[int, int]] = []
    for block in sorted(blocks):
        start = block * GRANULARITY
        if areas and areas[-1][1] == start:
            areas[-1] = (areas[-1][0], start + GRANULARITY)
        else:
            areas.append((start, start + GRANULARITY))
    return areas


def _new_identity() -> str:
    """A UUID as vSphere writes it: 16 pairs of hexadecimal digits, a hyphen in the middle."""
    pairs = [f"{byte:02x}" for byte in uuid.uuid4().bytes]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])
