"""Work: long operations in threads of their own, with progress and cancel."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable

from understudy.context import CancelToken, Context
from understudy.errors import NotFound, UnderstudyError
from understudy.model.estimate import Sums
from understudy.model.exclusion import DiskSurvey
from understudy.mover import api
from understudy.mover.meter import Meter
from understudy.storage.values import RebuiltReplica

LOG = logging.getLogger(__name__)
KEPT = 256
LONGEST_WAIT_S = 60.0
CANCEL_TIMEOUT_S = 90.0
#: Groups of work that ends when its controller is not heard of any more: verifications, conversions.
VERIFYING, CONVERTING = "verify", "convert"

Verified = tuple[api.VerifiedDisk, ...]
Surveyed = tuple[DiskSurvey, ...]
Function = Callable[[Context, Meter], Verified | Surveyed | RebuiltReplica | Sums | None]


def error_fields(exc: BaseException) -> api.ErrorFields:
    """``exc`` as it travels; what is no :class:`UnderstudyError` is a defect and gets the base class's code."""
    if isinstance(exc, UnderstudyError):
        return api.ErrorFields(exc.code, exc.what, exc.why, exc.todo)
    return api.ErrorFields(UnderstudyError.code, "proxy", f"internal error: {type(exc).__name__}: {exc}", "see its log")


class WorkItem:
    """One long operation."""

    def __init__(self, name: str, function: Function, group: str) -> None:
        self.id = uuid.uuid4().hex
        self.group = group
        #: When somebody asked last how far it is (monotonic).
        self.asked_at = time.monotonic()
        self._name = name
        self._function = function
        self._token = CancelToken()
        self._meter = Meter()
        self._started = time.monotonic()
        self._seconds = 0.0
        self._verified: Verified = ()
        self._rebuilt: RebuiltReplica | None = None
        self._surveyed: Surveyed = ()
        self._sums: Sums | None = None
        self._error: api.ErrorFields | None = None
        self._done = threading.Event()

    def start(self) -> None:
        """Run in a new thread."""
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether it ended, in whatever way."""
        return self._done.is_set()

    def cancel(self) -> None:
        """Ask for the end."""
        self._token.cancel()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; whether it came."""
        return self._done.wait(timeout_s)

    def status(self) -> api.WorkStatus:
        """How far it is."""
        if not self.done:
            return api.WorkStatus(api.WorkState.RUNNING, time.monotonic() - self._started, self._meter.progress())
        state = api.WorkState.FAILED if self._error else api.WorkState.DONE
        return api.WorkStatus(state, self._seconds, self._meter.progress(), self._error, self._verified,
                          self._rebuilt, self._surveyed, self._sums)

    def _run(self) -> None:
        try:
            result = self._function(Context(self._token, {"work": self._name}), self._meter)
            if isinstance(result, RebuiltReplica):
                self._rebuilt = result
            elif isinstance(result, Sums):
                self._sums = result
            else:
                self._verified = tuple(item for item in result or () if isinstance(item, api.VerifiedDisk))
                self._surveyed = tuple(item for item in result or () if isinstance(item, DiskSurvey))
        except UnderstudyError as exc:
            LOG.warning("work=%s failed: %s", self._name, exc)
            self._error = error_fields(exc)
        except Exception as exc:
            LOG.exception("work=%s failed", self._name)
            self._error = error_fields(exc)
        finally:
            self._seconds = time.monotonic() - self._started
            self._done.set()


class Works:
    """All long operations of this mover; the last finished ones are kept so that their result can be asked for."""

    def __init__(self) -> None:
        self._items: dict[str, WorkItem] = {}
        self._lock = threading.Lock()

    def start(self, name: str, function: Function, group: str = "") -> str:
        """Start an operation, one of ``group`` if that is not empty; returns its id."""
        item = WorkItem(name, function, group)
        with self._lock:
            self._items[item.id] = item
            finished = [key for key, other in self._items.items() if other.done]
            for key in finished[:-KEPT]:
                del self._items[key]
        item.start()
        return item.id

    def status(self, work: str, wait_s: float) -> api.WorkStatus:
        """How far an operation is, after waiting up to ``wait_s`` seconds for its end.

        :raises NotFound: if there is no such operation.
        """
        item = self._items.get(work)
        if item is None:
            raise NotFound(f"work {work!r}", "this proxy does not know it", "the proxy may have been restarted")
        item.wait(min(max(wait_s, 0.0), LONGEST_WAIT_S))
        item.asked_at = time.monotonic()
        return item.status()

    def cancel(self, work: str) -> None:
        """Stop an operation and wait for its end; unknown ids are no error.

        :raises UnderstudyError: if it does not end.
        """
        item = self._items.get(work)
        if item is None:
            return
        item.cancel()
        if not item.wait(CANCEL_TIMEOUT_S):
            raise UnderstudyError(f"stop work {work!r}", f"it did not end within {CANCEL_TIMEOUT_S:.0f} s")

    def cancel_group(self, group: str) -> None:
        """Stop the operations of a group that are still under way.

        :raises UnderstudyError: if one does not end.
        """
        with self._lock:
            members = [item.id for item in self._items.values() if item.group == group and not item.done]
        for work in members:
            self.cancel(work)

    def cancel_unheard(self, group: str, silence_s: float) -> None:
        """Ask those of a group to end that nobody has asked for during ``silence_s`` seconds; does not wait for it."""
        now = time.monotonic()
        with self._lock:
            items = [item for item in self._items.values() if item.group == group and not item.done]
        for item in items:
            if now - item.asked_at > silence_s:
                LOG.warning("work=%s: nobody asks for it any more", item.id)
                item.cancel()

    def groups(self) -> tuple[str, ...]:
        """The groups of which an operation is under way, sorted."""
        with self._lock:
            return tuple(sorted({item.group for item in self._items.values() if item.group and not item.done}))

    def cancel_all(self, timeout_s: float) -> bool:
        """Stop everything; whether all ended within ``timeout_s`` seconds."""
        with self._lock:
            items = list(self._items.values())
        for item in items:
            item.cancel()
        deadline = time.monotonic() + timeout_s
        for item in items:
            item.wait(max(0.0, deadline - time.monotonic()))
        return all(item.done for item in items)
