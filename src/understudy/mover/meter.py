"""Counters of a long operation: each thread adds to its own, a reader sums them up."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields

from understudy.mover import api

BUSY = ("source", "source_proxy", "network", "target_proxy", "target")


@dataclass(slots=True)
class Counters:
    """Completed work of one thread: bytes, and busy seconds of each part.

    :ivar processed: bytes of the disk that are dealt with, unchanged and skipped ones included.
    :ivar zero: bytes found to be zero, which did not travel as data.
    :ivar saved: bytes that an earlier attempt had brought already.
    :ivar checked, mismatched: blocks that tracking calls unchanged, compared all the same; and those that had changed.
    :ivar network: at the source side, time in which sending waited; at the target side, time without anything to do.
    """

    processed: int = 0
    read: int = 0
    sent: int = 0
    wire: int = 0
    zero: int = 0
    saved: int = 0
    reconnects: int = 0
    checked: int = 0
    mismatched: int = 0
    source: float = 0.0
    source_proxy: float = 0.0
    network: float = 0.0
    target_proxy: float = 0.0
    target: float = 0.0


class Meter:
    """Sums the counters of all threads of one operation.

    :param total: bytes to process.
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total
        #: Why nothing moves; empty while it does.
        self.waiting = ""
        self._counters: list[Counters] = []
        self._parts: list[Meter] = []
        self._lock = threading.Lock()

    def counters(self) -> Counters:
        """New counters, for one thread."""
        counters = Counters()
        with self._lock:
            self._counters.append(counters)
        return counters

    def include(self, part: Meter) -> None:
        """Count what ``part``, one of several disks, counts; its total is not added."""
        with self._lock:
            self._parts.append(part)

    def sums(self) -> Counters:
        """All counters added up."""
        result = Counters()
        with self._lock:
            for counters in [*self._counters, *(part.sums() for part in self._parts)]:
                for field in fields(Counters):
                    setattr(result, field.name, getattr(result, field.name) + getattr(counters, field.name))
        return result

    def progress(self) -> api.Progress:
        """The sums as the control protocol tells them."""
        sums = self.sums()
        busy = {part: round(getattr(sums, part), 4) for part in BUSY}
        return api.Progress(self.total, sums.processed, sums.read, sums.sent, sums.wire, sums.zero, busy, sums.saved,
                        sums.reconnects, self.waiting, sums.checked, sums.mismatched)
