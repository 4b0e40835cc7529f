"""Faults: what goes wrong, and when, as a test has written down before.

A fault is for one method, or for "*", and comes true `times` times; then the method works again. `deny` and
`fill_datastore` hold until they are taken back.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tests.vsphere.soap import refused

ANY = "*"
#: A client that is held up gets its answer after this time at the latest, so that no test hangs.
LONGEST_HOLD_S = 60.0


class Kind(Enum):
    """How a call goes wrong."""

    FAULT = "a SOAP fault; nothing was done"
    TASK_FAULT = "a task that ends with a fault; nothing was done"
    DROPPED = "the connection ends in the middle of the answer; it was done"
    UNAVAILABLE = "HTTP 503; nothing was done"
    SLOW_TASK = "a task that runs until the test lets it end"
    STALLED = "no answer until the test lets it go on"
    LEFT_DELTA = "a snapshot is removed, but its delta is not merged"


@dataclass
class Hold:
    """What a test holds up: a task that is seen running, or a call that gets no answer."""

    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let it go on."""
        self.released.set()


class Faults:
    """The faults that a test has asked for and that did not come true yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[Kind, str], list[Any]] = {}
        self._denied: set[str] = set()
        self._held: list[Hold] = []
        self._calls_left: int | None = None
        self.full_datastores: set[str] = set()

    def fail(self, method: str, fault: Any, times: int = 1) -> None:
        """The method meets this vSphere fault.

        :raises TypeError: if the fault lacks a field that it must have.
        """
        refused(fault)
        self._add(Kind.FAULT, method, [fault] * times)

    def fail_task(self, method: str, fault: Any, times: int = 1) -> None:
        """The method's task ends with this vSphere fault.

        :raises TypeError: if the fault lacks a field that it must have.
        """
        refused(fault)
        self._add(Kind.TASK_FAULT, method, [fault] * times)

    def drop(self, method: str, times: int = 1) -> None:
        """The method is carried out, and the connection is cut in the middle of its answer."""
        self._add(Kind.DROPPED, method, [True] * times)

    def unavailable(self, method: str, times: int = 1) -> None:
        """The server answers HTTP 503."""
        self._add(Kind.UNAVAILABLE, method, [True] * times)

    def slow_task(self, method: str) -> Hold:
        """The method's task is carried out, and runs on until it is released."""
        return self._hold(Kind.SLOW_TASK, method)

    def stall(self, method: str) -> Hold:
        """The method gets no answer, and nothing is done, until it is released."""
        return self._hold(Kind.STALLED, method)

    def release_all(self) -> None:
        """Nothing is held up any more."""
        with self._lock:
            for hold in self._held:
                hold.release()

    def leave_delta(self, times: int = 1) -> None:
        """The next removal of a snapshot succeeds, leaves its delta, and the VM needs consolidation."""
        self._add(Kind.LEFT_DELTA, ANY, [True] * times)

    def deny(self, method: str) -> None:
        """The user has no permission for the method, until `allow`."""
        with self._lock:
            self._denied.add(method)

    def allow(self, method: str) -> None:
        """The user has the permission again."""
        with self._lock:
            self._denied.discard(method)

    def expire_sessions(self, after: int = 0) -> None:
        """All sessions end when `after` more calls were made with one."""
        with self._lock:
            self._calls_left = after

    def fill_datastore(self, name: str) -> None:
        """The datastore has no space left, until `free_datastore`."""
        with self._lock:
            self.full_datastores = self.full_datastores | {name}

    def free_datastore(self, name: str) -> None:
        """The datastore has space again."""
        with self._lock:
            self.full_datastores = self.full_datastores - {name}

    def take(self, kind: Kind, method: str) -> Any:
        """The fault of that kind that is due for the method, and not due any more afterwards; None if there is none."""
        with self._lock:
            for name in (method, ANY):
                if waiting := self._waiting.get((kind, name)):
                    return waiting.pop(0)
        return None

    def denied(self, method: str) -> bool:
        """Whether the user has no permission for the method."""
        with self._lock:
            return method in self._denied

    def sessions_expire_now(self) -> bool:
        """Count a call; True at the one with which all sessions end."""
        with self._lock:
            if self._calls_left is None:
                return False
            self._calls_left -= 1
            if self._calls_left >= 0:
                return False
            self._calls_left = None
            return True

    def _hold(self, kind: Kind, method: str) -> Hold:
        hold = Hold()
        with self._lock:
            self._held.append(hold)
        self._add(kind, method, [hold])
        return hold

    def _add(self, kind: Kind, method: str, faults: list[Any]) -> None:
        with self._lock:
            self._waiting.setdefault((kind, method), []).extend(faults)
